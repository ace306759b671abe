"""Series of bars as indicators and features read them: one bar per time, and no interval left out where trade never
rests.

Bars of several origins may stand in the table for one interval; the best is taken. What is traded around the clock has
a bar in every interval from the first one to the last one (ANALYTICS 1.1); what sleeps at night has the bars that are
there.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final

import polars as pl

from crypto_lake.models.bar import AROUND_THE_CLOCK, BAR, FLATFILE, KLINE, TIMEFRAMES_US, TRADES, YAHOO
from crypto_lake.models.dataset import TIME
from crypto_lake.query.days import midnight
from crypto_lake.query.snapshot import EPOCH, Snapshot

# Of two bars of one time the one whose origin comes first, unless only the other is complete.
ORIGINS: Final = (TRADES, KLINE, FLATFILE, YAHOO)
# What is nothing when nobody trades.
SUMS: Final = ("volume", "quote_volume", "count", "taker_buy_volume", "taker_buy_quote_volume")
# So many days are looked at in one step back at the most.
LONGEST_STEP_DAYS: Final = 256
DAY_US: Final = TIMEFRAMES_US["1d"]
MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Series:
    """Bars of one market and timeframe; `first` and `last` are the open times of its first and its last bar."""

    venue: str
    symbol: str
    timeframe: str
    first: datetime
    last: datetime

    def __str__(self) -> str:
        return f"{self.venue}:{self.symbol} {self.timeframe}"


def all_series(
    of: Snapshot,
    *,
    symbols: Collection[str] | None = None,
    timeframes: Collection[str] | None = None,
    origin: str | None = None,
) -> list[Series]:
    """The series in a table of bars, or of what is made of bars: by market, and then from short to long bars."""
    rows = of.scan(date.min, date.max, symbols=symbols)
    if timeframes is not None:
        rows = rows.filter(pl.col("timeframe").is_in(list(timeframes)))
    if origin is not None:
        rows = rows.filter(pl.col("origin") == origin)
    ends = (pl.col("time").min().alias("first"), pl.col("time").max().alias("last"))
    found = rows.group_by("venue", "symbol", "timeframe").agg(*ends).collect(engine="streaming")
    series = (Series(*row) for row in found.iter_rows() if row[2] in TIMEFRAMES_US)
    return sorted(series, key=lambda each: (each.venue, each.symbol, TIMEFRAMES_US[each.timeframe]))


def series(
    of: Snapshot,
    venue: str,
    symbol: str,
    timeframe: str,
    first: date,
    last: date,
    *,
    origin: str | None = None,
    before: int = 0,
    end: datetime | None = None,
) -> pl.DataFrame:
    """The bars of the days from `first` to `last`, both inclusive, in the order of time: the columns of `bar`.

    With `before`, so many bars that come before `first` stand in front, or all that there are. `origin` takes bars of
    that origin alone. `end` is the open time of the last bar of the series (`Series.last`), if that is known; else it
    is looked for where the days end with intervals without a bar. A bar that is filled in has `complete` false, and in
    each of `SUMS` 0, or null where the bar before it has none.
    """
    reader = _Reader(of, venue, symbol, timeframe, origin)
    rows = reader.bars(first, last)
    if venue not in AROUND_THE_CLOCK:
        return pl.concat([reader.back(first, before).tail(before), rows]) if before else rows
    length = TIMEFRAMES_US[timeframe]
    begin_us = _epoch_us(first)
    slot_us = begin_us - before * length
    if before or rows.is_empty() or _slots(rows, length)[0] > begin_us:
        rows = pl.concat([reader.back(first, before or 1, until_us=min(slot_us, begin_us - length)), rows])
    if rows.is_empty():
        return rows
    limit_us, reached_us = _epoch_us(last) + DAY_US - length, _slots(rows, length)[-1]
    if reached_us < limit_us and not (reader.goes_on(last) if end is None else end.date() > last):
        limit_us = reached_us
    return filled(rows, timeframe, slot_us, limit_us)


def filled(rows: pl.DataFrame, timeframe: str, first_us: int, last_us: int) -> pl.DataFrame:
    """Bars (in the order of time) from `first_us` on, with one for each interval without any up to `last_us`; of the
    earlier ones the last gives a close to those that follow. Nothing is filled in before the first bar."""
    length = TIMEFRAMES_US[timeframe]
    clocked = rows.with_columns(_slots(rows, length).alias("slot"))
    begin_us = max(first_us, clocked["slot"][0])
    kept = clocked.filter(pl.col("slot") >= begin_us)
    if kept.height == (last_us - begin_us) // length + 1 and kept["slot"].is_unique().all():
        return kept.drop("slot")
    slots = pl.DataFrame({"slot": pl.int_range(begin_us, last_us + 1, length, eager=True)})
    empty = slots.join(kept.select("slot"), on="slot", how="anti", maintain_order="left")
    fillers = _fillers(empty.join_asof(clocked, on="slot", strategy="backward"), length)
    return pl.concat([kept.drop("slot"), fillers.select(*kept.drop("slot").columns)]).sort("time")


def _fillers(rows: pl.DataFrame, length: int) -> pl.DataFrame:
    """Bars of intervals without a trade, out of the bars before them."""
    opened = pl.col("slot").cast(TIME)
    return rows.with_columns(
        opened.alias("time"),
        (opened + pl.duration(microseconds=length - 1)).alias("close_time"),
        opened.dt.date().alias("date"),
        *(pl.col("close").alias(name) for name in ("open", "high", "low")),
        *((pl.col(name) * 0).alias(name) for name in SUMS),
        pl.lit(None, TIME).alias("received_time"),
        pl.lit("derived").alias("source"),
        pl.lit(value=False).alias("complete"),
        pl.lit(0, pl.Int64).alias("revision"),
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the bars of one series, the best one of each time."""

    of: Snapshot
    venue: str
    symbol: str
    timeframe: str
    origin: str | None

    def scan(self, first: date, last: date) -> pl.LazyFrame:
        rows = self.of.scan(first, last, symbols=(self.symbol,))
        wanted = [pl.col("venue") == self.venue, pl.col("timeframe") == self.timeframe]
        wanted += [] if self.origin is None else [pl.col("origin") == self.origin]
        return rows.filter(*wanted)

    def bars(self, first: date, last: date) -> pl.DataFrame:
        held = {*self.of.columns, "date"}
        columns = (
            pl.col(name) if name in held else pl.lit(None, dtype).alias(name) for name, dtype in BAR.schema.items()
        )
        return best(self.scan(first, last).select(*columns).collect())

    def back(self, day: date, rows: int, *, until_us: int | None = None) -> pl.DataFrame:
        """The bars before a day: as many as asked for, or back to one that opens at `until_us` or earlier."""
        found: list[pl.DataFrame] = []
        near_us = until_us if until_us is not None else _epoch_us(day)
        for first, last in self.steps(day, (_epoch_us(day) - near_us + DAY_US - 1) // DAY_US):
            found.insert(0, self.bars(first, last))
            if until_us is None and sum(each.height for each in found) >= rows:
                break
            if until_us is not None and found[0].height and _slots(found[0], 1)[0] <= until_us:
                break
        return pl.concat([pl.DataFrame(schema=BAR.schema), *found])

    def steps(self, day: date, count: int) -> Iterator[tuple[date, date]]:
        """Spans of days before that one which may hold bars, the latest first, each longer than the one after it."""
        days = [each for each in self.of.days(self.symbol) if each < day]
        count = max(count, 1)
        while days:
            some = days[-count:]
            yield some[0], some[-1]
            del days[-count:]
            count = min(2 * count, LONGEST_STEP_DAYS)

    def goes_on(self, day: date) -> bool:
        """Whether there is a bar behind that day."""
        later, count = [each for each in self.of.days(self.symbol) if each > day], 1
        while later:
            if self.scan(later[0], later[:count][-1]).head(1).collect().height:
                return True
            later, count = later[count:], min(2 * count, LONGEST_STEP_DAYS)
        return False


def best(rows: pl.DataFrame) -> pl.DataFrame:
    """One bar per time, in the order of time."""
    if rows["time"].is_unique().all():
        return rows.sort("time")
    rank = pl.col("origin").replace_strict(ORIGINS, range(len(ORIGINS)), default=len(ORIGINS), return_dtype=pl.Int64)
    order = ("time", ~pl.col("complete"), rank, -pl.col("revision"))
    return rows.sort(order).unique("time", keep="first", maintain_order=True)


def _slots(rows: pl.DataFrame, length: int) -> pl.Series:
    return rows["time"].dt.epoch("us") // length * length


def _epoch_us(day: date) -> int:
    return (midnight(day) - EPOCH) // MICROSECOND
