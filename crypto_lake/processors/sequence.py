"""Holes in ids: what a table lacks between two rows that it has."""

from typing import Final

import polars as pl

from crypto_lake.models.dataset import TIME, Dataset

# Stretches of ids, both ends inclusive, with the times of the rows on either side or of their own.
INTERVALS: Final[dict[str, pl.DataType]] = {
    "venue": pl.String(),
    "symbol": pl.String(),
    "first_id": pl.Int64(),
    "last_id": pl.Int64(),
    "start_time": TIME,
    "end_time": TIME,
}


def has_sequence(dataset: Dataset) -> bool:
    """Whether holes can be seen in the dataset's ids."""
    return dataset.sequence is not None or dataset.chain is not None


def by_symbol(dataset: Dataset) -> pl.Expr:
    """Whether a row is of a venue that is looked at symbol by symbol. What comes in flat files is not."""
    return ~pl.col("venue").is_in(sorted(dataset.by_file)) if dataset.by_file else pl.lit(value=True)


def columns_needed(dataset: Dataset) -> list[str]:
    """The columns that `holes` looks at."""
    ids: tuple[str, ...] = (dataset.sequence,) if dataset.sequence else ()
    if dataset.chain:
        ids = (dataset.chain.first, dataset.chain.last, dataset.chain.previous, dataset.chain.apart)
    return ["venue", "symbol", "time", *ids]


def holes(dataset: Dataset, frame: pl.DataFrame) -> pl.DataFrame:
    """The stretches of ids that are missing between rows of the same venue and symbol, both ends inclusive.

    The order of the rows does not matter, nor do repetitions. `start_time` and `end_time` are those of the rows on
    either side. Of a chain the missing ids go up to what the next event says that it follows; an event which reaches
    back behind the one before it (another connection cut the updates otherwise) leaves nothing out.
    """
    within = ["venue", "symbol"]
    linked = links(dataset, frame).drop_nulls("last").sort(*within, "last", "follows")
    before = pl.col("last").cum_max().shift(1).over(within)
    found = linked.with_columns(before.alias("before"), pl.col("time").shift(1).over(within).alias("start_time"))
    return found.filter(pl.col("follows") > pl.col("before")).select(
        *within,
        (pl.col("before") + 1).alias("first_id"),
        pl.col("follows").alias("last_id"),
        "start_time",
        pl.col("time").alias("end_time"),
    )


def links(dataset: Dataset, frame: pl.DataFrame, *also: str | pl.Expr) -> pl.DataFrame:
    """Per row of a sequence or chain: venue, symbol, time, the `last` id that it holds, the id that it `follows`.

    A row holds the ids behind the one that it follows up to its last. Rows apart (snapshots) are no links, and neither
    are those out of flat files.
    """
    assert has_sequence(dataset), f"{dataset.name} has neither sequence nor chain"
    frame = frame.filter(by_symbol(dataset))
    if dataset.sequence:
        own = pl.col(dataset.sequence)
        return frame.select("venue", "symbol", "time", own.alias("last"), (own - 1).alias("follows"), *also)
    chain = dataset.chain
    assert chain is not None
    follows = pl.coalesce(chain.previous, pl.col(chain.first) - 1)
    return frame.filter(~pl.col(chain.apart)).select(
        "venue", "symbol", "time", pl.col(chain.last).alias("last"), follows.alias("follows"), *also
    )
