"""A dataset at rest, day by day, in pieces of bounded memory."""

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from typing import Final

import polars as pl

from crypto_lake.models import Dataset
from crypto_lake.query.source import PARTITION, Source
from crypto_lake.query.span import TICK

DAY: Final = timedelta(days=1)
# A piece has about so many rows, and not more than twice that: sorting and checking take some 500 bytes a row.
PIECE_ROWS: Final = 500_000


def is_market(dataset: Dataset) -> bool:
    """Whether its rows are facts of a venue, which should come on every day; others are our own records."""
    return "source" in dataset.schema


def days_held(source: Source, since: datetime | None, until: datetime | None) -> list[date]:
    """The days that have a partition or a file, from `since` to before `until`, in order."""
    if source.table is not None:
        held = {date.fromisoformat(part[PARTITION]) for part in source.table.partitions() if part[PARTITION]}
    else:
        held = {day for day, _ in source.files}
    return sorted(day for day in held if is_within(day, since, until))


def is_within(day: date, since: datetime | None, until: datetime | None) -> bool:
    """Whether a part of the day is inside the span."""
    return not ((since and day < since.date()) or (until and day > (until - TICK).date()))


def midnight(day: date) -> datetime:
    """The day's first instant."""
    return datetime.combine(day, time(), UTC)


def of_day(source: Source, day: date, symbols: Sequence[str] | None) -> pl.LazyFrame:
    """The rows of a day, of all symbols or of some."""
    rows = source.scan(day, day)
    chosen = symbols is not None and "symbol" in source.dataset.schema
    return rows.filter(pl.col("symbol").is_in(list(symbols or ()))) if chosen else rows


def pieces(dataset: Dataset, rows: pl.LazyFrame, columns: Sequence[str | pl.Expr]) -> Iterator[pl.DataFrame]:
    """Those columns of all rows, piece by piece; of one venue and symbol in the order of its ids.

    Small symbols share a piece. A large one is cut where its ids say (where it has some), so that rows of one key are
    never in two pieces.
    """
    ids = dataset.order if dataset.order and dataset.schema[dataset.order] == pl.Int64 else None
    ends = [pl.col(ids).min().alias("low"), pl.col(ids).max().alias("high")] if ids else []
    groups = rows.group_by("venue", "symbol").agg(pl.len(), *ends).collect(engine="streaming").sort("venue", "symbol")
    large = groups.filter(pl.col("len") > 2 * PIECE_ROWS) if ids else groups.clear()
    small = groups.join(large, on=["venue", "symbol"], how="anti").sort("venue", "symbol")
    numbered = small.with_columns(((pl.col("len").cum_sum() - 1) // PIECE_ROWS).alias("piece"))
    for piece in numbered.partition_by("piece", maintain_order=True):
        some = rows if piece.height == groups.height else _of(rows, piece)
        yield some.select(columns).collect(engine="streaming")
    for group in large.iter_rows(named=True):
        one = rows.filter(pl.col("venue") == group["venue"], pl.col("symbol") == group["symbol"])
        for low, high in _ranges(group["low"], group["high"], -(-group["len"] // PIECE_ROWS)):
            yield one.filter(pl.col(str(ids)).is_between(low, high)).select(columns).collect(engine="streaming")


def _of(rows: pl.LazyFrame, groups: pl.DataFrame) -> pl.LazyFrame:
    # The ends of the list are what a file and its groups of rows are skipped by.
    some = groups["symbol"]
    is_near = pl.col("symbol").is_between(pl.lit(some.min(), pl.String()), pl.lit(some.max(), pl.String()))
    near = rows.filter(is_near, pl.col("symbol").is_in(some.implode()))
    return near.join(groups.select("venue", "symbol").lazy(), on=["venue", "symbol"], how="semi")


def _ranges(low: int, high: int, count: int) -> Iterator[tuple[int, int]]:
    """So many stretches of equal length that make up `low` to `high`."""
    cuts = [low + (high - low + 1) * number // count for number in range(count + 1)]
    return ((begin, end - 1) for begin, end in pairwise(cuts) if begin < end)
