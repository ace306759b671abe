"""The task of a worker: the rows of the table `feature` for a block of bars, out of tables at their versions.

Books and marks may be many a second: they are read a day at a time, whatever the length of the block.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Final

import numpy as np
import polars as pl

from crypto_lake.build import inputs
from crypto_lake.build.inputs import Series
from crypto_lake.build.reaches import Stretch
from crypto_lake.build.records import Records, at_us, day_of, instant_us
from crypto_lake.features.asof import last_until
from crypto_lake.features.features import book_columns, features
from crypto_lake.models.bar import TIMEFRAMES_US
from crypto_lake.models.feature import FEATURE, LOOKBACK
from crypto_lake.processors.shape import shape
from crypto_lake.query.snapshot import Snapshot

# The tables besides that of the bars, and what is read of each.
READ: Final = {
    "book_snapshot": ("time", "update_id", "bids", "asks"),
    "mark_price": ("time", "mark_price", "index_price", "funding_rate", "next_funding_time"),
    "open_interest": ("time", "open_interest"),
    "liquidation": ("time", "side", "average_price", "filled_quantity"),
}


@dataclass(frozen=True, slots=True)
class Sources:
    """What the features of a series are made from. No records: there is no such table, or it cannot have such rows."""

    series: Series
    bars: Snapshot
    origin: str | None
    records: Mapping[str, Records | None]
    # The reference as it is named, and its bars, if there are any.
    reference: str | None
    reference_bars: Series | None

    def until(self, us: int) -> "Sources":
        """The same without later days: what is sent to another process."""
        symbols = [each.symbol for each in (self.series, self.reference_bars) if each is not None]
        return replace(
            self,
            bars=self.bars.part(date.min, day_of(us), symbols=symbols),
            records={table: each and each.until(us) for table, each in self.records.items()},
        )


def features_of(sources: Sources, block: Stretch) -> pl.DataFrame:
    """The rows of the table `feature` for the bars of a block."""
    series = sources.series
    first, last = day_of(block.first_us), day_of(block.last_us)
    bars = _bars(sources, series, first, last, before=LOOKBACK).filter(at_us <= block.last_us)
    wanted = bars.select((at_us >= block.first_us).sum()).item()
    if not wanted:
        return pl.DataFrame(schema=FEATURE.schema)
    bars = bars.tail(wanted + LOOKBACK)
    begin_us, end_us = _span(bars, series.timeframe)
    other, marks = sources.reference_bars, _marks(sources, bars)
    made = features(
        bars,
        timeframe=series.timeframe,
        reference=_bars(sources, other, day_of(begin_us), last, before=0) if other else None,
        marks=marks,
        open_interest=_interest(sources, marks, begin_us, end_us),
        liquidations=_around(sources, "liquidation", begin_us, end_us),
        wanted=wanted,
    )
    said = {"venue": series.venue, "symbol": series.symbol, "source": "derived", "timeframe": series.timeframe}
    named = made.with_columns(
        *(pl.lit(value).alias(name) for name, value in said.items()),
        *_books(sources, bars.tail(wanted)),
        bars["origin"].tail(wanted),
        pl.lit(sources.reference, pl.String()).alias("reference"),
    )
    return shape(FEATURE, named)


def _bars(sources: Sources, series: Series, first: date, last: date, *, before: int) -> pl.DataFrame:
    market = (series.venue, series.symbol, series.timeframe)
    return inputs.series(sources.bars, *market, first, last, origin=sources.origin, before=before, end=series.last)


def _books(sources: Sources, bars: pl.DataFrame) -> list[pl.Series]:
    """The features of the book; none of them looks back on other bars."""
    timeframe = sources.series.timeframe
    parts = [
        book_columns(day, timeframe, _around(sources, "book_snapshot", *_span(day, timeframe))) for day in _days(bars)
    ]
    return pl.concat(parts).get_columns()


def _marks(sources: Sources, bars: pl.DataFrame) -> pl.DataFrame | None:
    """The last mark of each bar that has any, and the last one before the bars."""
    records, length = sources.records["mark_price"], TIMEFRAMES_US[sources.series.timeframe]
    if records is None:
        return None
    parts = [records.last_before(instant_us(bars["time"][0]))]
    for day in _days(bars):
        rows = records.within(*_span(day, sources.series.timeframe)).sort("time")
        opens, times = (frame.select(at_us).to_series().to_numpy() for frame in (day, rows))
        last = np.unique(last_until(times, opens + length - 1))
        parts.append(rows[last[last >= 0].tolist()])
    return pl.concat(parts)


def _days(bars: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """The bars of each day."""
    yield from bars.partition_by("date", maintain_order=True)


def _span(bars: pl.DataFrame, timeframe: str) -> tuple[int, int]:
    """The first and the last microsecond of bars."""
    return instant_us(bars["time"][0]), instant_us(bars["time"][-1]) + TIMEFRAMES_US[timeframe] - 1


def _around(sources: Sources, table: str, first_us: int, last_us: int) -> pl.DataFrame | None:
    """What happened in a span, and the last thing before it."""
    records = sources.records[table]
    return records.around(first_us, last_us) if records else None


def _interest(sources: Sources, marks: pl.DataFrame | None, first_us: int, last_us: int) -> pl.DataFrame | None:
    """Open interest at the times of the marks, the first of which may be long before the span."""
    records = sources.records["open_interest"]
    if records is None or marks is None or marks.is_empty():
        return None
    earliest_us = int(marks.select(at_us.min()).item())
    # What is of the same millisecond is of the same time.
    until_us = (earliest_us // 1000 + 1) * 1000
    earlier = [records.last_before(until_us)] if earliest_us < first_us else []
    return pl.concat([*earlier, records.around(first_us, last_us)]).unique("time")
