"""What the log of a table says of its files, where that says all: no row is read, however many there are."""

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

import polars as pl

from crypto_lake.models import Dataset
from crypto_lake.models.bar import BAR
from crypto_lake.models.dataset import TIME
from crypto_lake.query.source import PARTITION, Source

# A file of one venue, symbol and source has these as the lowest and the highest one.
SAME: Final = ("venue", "symbol", "source")
FILES: Final[dict[str, pl.DataType]] = {
    **dict.fromkeys(SAME, pl.String()),
    "date": pl.Date(),
    "rows": pl.Int64(),
    "first_id": pl.Int64(),
    "last_id": pl.Int64(),
    "start_time": TIME,
    "end_time": TIME,
}


@dataclass(frozen=True, slots=True)
class Logged:
    """The days that the log answers, and their files, a row each (columns `FILES`)."""

    days: frozenset[date]
    files: pl.DataFrame


NOTHING: Final = Logged(frozenset(), pl.DataFrame(schema=FILES))


def logged(source: Source, days: Collection[date], symbols: Sequence[str] | None) -> Logged:
    """Those of `days` all of whose files (that may hold one of `symbols`) are told by the log as if they were read.

    These are files with rows of one venue, symbol and source, in a dataset with ids as many as there are ids from the
    first to the last: since no key is in a table twice they are one run without a hole.
    """
    if source.table is None or not _is_enough(source.dataset):
        return NOTHING
    actions = pl.DataFrame(source.table.get_add_actions(flatten=True))
    if not _columns(source.dataset) <= set(actions.columns):
        return NOTHING
    own = actions.filter(~are_by_file(source.dataset, actions))
    files = _files(source.dataset, own).filter(pl.col("date").is_in(list(days)))
    asked = None if symbols is None else sorted(symbols)
    wanted = [_may_hold(low, high, asked) for low, high in files.select("symbol", "high").iter_rows()]
    files = files.filter(pl.Series(wanted, dtype=pl.Boolean))
    unclear = set(files.filter(~pl.col("is_told"))["date"])
    told = files.filter(~pl.col("date").is_in(unclear)).select(*FILES)
    return Logged(frozenset(day for day in days if day not in unclear), told)


def days_by_symbol(source: Source, days: Sequence[date]) -> list[date]:
    """Those of `days` with a file that may hold rows of a venue which is covered by symbol, as the log says."""
    if source.table is None or not source.dataset.by_file:
        return list(days)
    actions = pl.DataFrame(source.table.get_add_actions(flatten=True))
    found = set(actions.filter(~are_by_file(source.dataset, actions))[f"partition.{PARTITION}"])
    return [day for day in days if day in found]


def are_by_file(dataset: Dataset, actions: pl.DataFrame) -> pl.Series:
    """Per file of the log, whether it says that all rows are of one venue that is covered by file."""
    if not (dataset.by_file and {"min.venue", "max.venue"} <= set(actions.columns)):
        return pl.repeat(value=False, n=actions.height, dtype=pl.Boolean, eager=True)
    low, high = actions["min.venue"], actions["max.venue"]
    return ((low == high) & low.is_in(sorted(dataset.by_file))).fill_null(value=False)


def _is_enough(dataset: Dataset) -> bool:
    """An event of a chain says in its row what it follows, and of bars each timeframe is counted."""
    return dataset.chain is None and dataset.name != BAR.name


def _known(dataset: Dataset) -> list[str]:
    return [*SAME, "time", *([dataset.sequence] if dataset.sequence else [])]


def _columns(dataset: Dataset) -> set[str]:
    ends = {f"{what}.{name}" for what in ("min", "max", "null_count") for name in _known(dataset)}
    return {"num_records", f"partition.{PARTITION}", *ends}


def _files(dataset: Dataset, actions: pl.DataFrame) -> pl.DataFrame:
    ids = dataset.sequence
    rows = pl.col("num_records").cast(pl.Int64)
    is_one = [pl.col(f"min.{name}") == pl.col(f"max.{name}") for name in SAME]
    is_whole = [pl.col(f"null_count.{name}") == 0 for name in _known(dataset)]
    is_run = [rows == pl.col(f"max.{ids}") - pl.col(f"min.{ids}") + 1] if ids else []
    return actions.select(
        *(pl.col(f"min.{name}").alias(name) for name in SAME),
        pl.col(f"partition.{PARTITION}").alias("date"),
        rows.alias("rows"),
        (pl.col(f"min.{ids}") if ids else pl.lit(None, pl.Int64())).alias("first_id"),
        (pl.col(f"max.{ids}") if ids else pl.lit(None, pl.Int64())).alias("last_id"),
        pl.col("min.time").cast(TIME).alias("start_time"),
        pl.col("max.time").cast(TIME).alias("end_time"),
        pl.col("max.symbol").alias("high"),
        pl.all_horizontal(*is_one, *is_whole, *is_run).fill_null(value=False).alias("is_told"),
    )


def _may_hold(low: str | None, high: str | None, symbols: Sequence[str] | None) -> bool:
    """Whether a file with symbols from `low` to `high` may hold one of `symbols` (in order; None: any)."""
    if symbols is None or low is None or high is None:
        return True
    at = bisect_left(symbols, low)
    return at < len(symbols) and symbols[at] <= high
