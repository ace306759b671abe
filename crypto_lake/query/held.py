"""What a table holds of each day: how many rows, which ids, and the runs of ids over all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Final

import polars as pl

from crypto_lake.models import Dataset
from crypto_lake.models.bar import BAR
from crypto_lake.processors.sequence import INTERVALS, by_symbol, columns_needed, has_sequence
from crypto_lake.query.bars import ON_SCHEDULE, schedule
from crypto_lake.query.days import days_held, is_within, of_day, pieces
from crypto_lake.query.logged import Logged, days_by_symbol, logged
from crypto_lake.query.runs import WITHIN, joined, runs
from crypto_lake.query.source import Source
from crypto_lake.query.span import TICK

# Called before each day that is read: the table, how many of its days are done, and how many there are.
OnStep = Callable[[str, int, int], None]

COUNTS: Final[dict[str, pl.DataType]] = {
    "venue": pl.String(),
    "symbol": pl.String(),
    "date": pl.Date(),
    "rows": pl.Int64(),
    "repaired_rows": pl.Int64(),
    "first_id": pl.Int64(),
    "last_id": pl.Int64(),
    "low": pl.Int64(),  # the lowest id that the day's rows account for; of a chain what its first event follows, + 1
}
ON_DAY: Final = [*WITHIN, "date"]


@dataclass(frozen=True, slots=True)
class Held:
    """Rows per venue, symbol and day (columns `COUNTS`; of bars also `ON_SCHEDULE`), and the runs of ids."""

    counts: pl.DataFrame
    runs: pl.DataFrame


def held(
    source: Source, symbols: Sequence[str] | None, since: datetime | None, until: datetime | None, *, on_step: OnStep
) -> Held:
    """What is there on the days from `since` to before `until`, and on the nearest one before and behind them.

    The log of a Delta table answers the days of which it says enough; the others are read. Venues that are covered by
    file are left out.
    """
    dataset = source.dataset
    wanted = _with_neighbours(days_by_symbol(source, days_held(source, None, None)), since, until)
    told = logged(source, wanted, symbols)
    schema = COUNTS | ON_SCHEDULE if dataset.name == BAR.name else COUNTS
    counts, found = [pl.DataFrame(schema=schema)], _runs_told(dataset, told)
    counts += [_counts_told(dataset, told)] if told.files.height else []
    unread = [day for day in wanted if day not in told.days]
    for number, day in enumerate(unread):
        on_step(dataset.name, number, len(unread))
        for piece in pieces(dataset, of_day(source, day, symbols).filter(by_symbol(dataset)), _columns(dataset)):
            counts.append(_counted(dataset, piece, day))
            if has_sequence(dataset):
                found = joined(pl.concat([found, runs(dataset, piece)]))
    return Held(_summed(counts), found)


def _with_neighbours(days: list[date], since: datetime | None, until: datetime | None) -> list[date]:
    within = [day for day in days if is_within(day, since, until)]
    before = [day for day in days if since and day < since.date()]
    behind = [day for day in days if until and day > (until - TICK).date()]
    return [*before[-1:], *within, *behind[:1]]


def _columns(dataset: Dataset) -> list[str]:
    needed = columns_needed(dataset) if has_sequence(dataset) else ["venue", "symbol", "time"]
    also = ["timeframe", "origin"] if dataset.name == BAR.name else []
    return [*dict.fromkeys([*needed, "source", *also])]


def _summed(counts: list[pl.DataFrame]) -> pl.DataFrame:
    both = pl.concat(counts)
    schedules = [name for name in ON_SCHEDULE if name in both.columns]
    return both.group_by(ON_DAY).agg(
        pl.col("rows", "repaired_rows").sum(),
        pl.col("first_id", "low").min(),
        pl.col("last_id").max(),
        pl.col(schedules).all(ignore_nulls=False),
    )


# From the rows


def _counted(dataset: Dataset, piece: pl.DataFrame, day: date) -> pl.DataFrame:
    is_late = _is_late(dataset)
    if dataset.chain:  # snapshots come by REST and repair nothing
        is_late &= ~pl.col(dataset.chain.apart)
    first, last, low = _id_columns(dataset)
    found = piece.group_by(WITHIN).agg(
        pl.lit(day).alias("date"),
        pl.len().cast(pl.Int64).alias("rows"),
        is_late.sum().cast(pl.Int64).alias("repaired_rows"),
        first.min().alias("first_id"),
        last.max().alias("last_id"),
        low.min().alias("low"),
    )
    return found.join(schedule(piece, day), on=WITHIN, how="left") if dataset.name == BAR.name else found


def _is_late(dataset: Dataset) -> pl.Expr:
    """Whether a row came by another road than usual: rows of a dataset's first road are not late."""
    if dataset.live:
        return pl.col("source") != "live"
    return ~pl.col("source").is_in(["live", "rest"]) if dataset.poll else pl.lit(value=False)


def _id_columns(dataset: Dataset) -> tuple[pl.Expr, pl.Expr, pl.Expr]:
    """First id, last id, and the first one accounted for."""
    if dataset.sequence:
        own = pl.col(dataset.sequence)
        return own, own, own
    if (chain := dataset.chain) is None:
        nothing = pl.lit(None, pl.Int64)
        return nothing, nothing, nothing
    is_link = ~pl.col(chain.apart)
    follows = pl.coalesce(chain.previous, pl.col(chain.first) - 1)
    return tuple(each.filter(is_link) for each in (pl.col(chain.first), pl.col(chain.last), follows + 1))  # type: ignore[return-value]


# From the log


def _counts_told(dataset: Dataset, told: Logged) -> pl.DataFrame:
    late = pl.when(_is_late(dataset)).then("rows").otherwise(0)
    return told.files.select(
        *ON_DAY, "rows", late.alias("repaired_rows"), "first_id", "last_id", pl.col("first_id").alias("low")
    )


def _runs_told(dataset: Dataset, told: Logged) -> pl.DataFrame:
    return joined(told.files.select(*INTERVALS)) if has_sequence(dataset) else pl.DataFrame(schema=INTERVALS)
