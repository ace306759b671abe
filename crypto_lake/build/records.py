"""Records of one market around an instant, out of a table: those of a span, the last one before it, the next behind it.

How far away the last or the next one is nobody knows: the days of the table are looked through in growing steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Final

import polars as pl

from crypto_lake.models import DATASETS
from crypto_lake.query.snapshot import EPOCH, Snapshot

LONGEST_STEP_DAYS: Final = 256
at_us = pl.col("time").dt.epoch("us")


@dataclass(frozen=True, slots=True)
class Records:
    """The rows of a table that are of one market, in the columns that are asked for; times are µs since 1970.

    `equals` are columns and what else stands in them. A column that the table does not have is null.
    """

    of: Snapshot
    venue: str
    symbol: str
    columns: tuple[str, ...] = ("time",)
    equals: tuple[tuple[str, str], ...] = ()

    def until(self, us: int) -> "Records":
        """The same without the files of later days: what is sent to another process."""
        return replace(self, of=self.of.part(date.min, day_of(us), symbols=(self.symbol,)))

    def around(self, first_us: int, last_us: int) -> pl.DataFrame:
        """Those from `first_us` to `last_us`, both inclusive, and the last one before."""
        return pl.concat([self.last_before(first_us), self.within(first_us, last_us)])

    def within(self, first_us: int, last_us: int) -> pl.DataFrame:
        """Those from `first_us` to `last_us`, both inclusive."""
        return self._rows(day_of(first_us), day_of(last_us), first_us, last_us + 1)

    def last_before(self, us: int) -> pl.DataFrame:
        """The last one before an instant, with all others of its millisecond: their order is not that of time alone.
        No rows if there is none."""
        for first, last in self._back(day_of(us)):
            rows = self._rows(first, last, None, us)
            if rows.height:
                return rows.filter(at_us // 1000 == (at_us // 1000).max())
        return self._rows(date.max, date.min, None, None)

    def next_after(self, us: int, rows: int = 1) -> int | None:
        """When the next one behind an instant is, or the one that comes so many `rows` behind it."""
        wanted = rows
        for first, last in self._on(day_of(us)):
            found = self._rows(first, last, us + 1, None)["time"].dt.epoch("us").sort()
            if found.len() >= wanted:
                return int(found[wanted - 1])
            wanted -= found.len()
        return None

    def is_empty(self) -> bool:
        """Whether there is none at all."""
        return self._scan(date.min, date.max, None, None).head(1).collect().is_empty()

    def _rows(self, first: date, last: date, since_us: int | None, until_us: int | None) -> pl.DataFrame:
        return self._scan(first, last, since_us, until_us).collect()

    def _scan(self, first: date, last: date, since_us: int | None, until_us: int | None) -> pl.LazyFrame:
        rows = self.of.scan(first, last, symbols=(self.symbol,), since_us=since_us, until_us=until_us)
        schema = DATASETS[self.of.dataset].schema
        equal = [pl.col(name) == value for name, value in (("venue", self.venue), *self.equals)]
        return rows.filter(*equal).select(
            pl.col(name) if name in self.of.columns else pl.lit(None, schema[name]).alias(name) for name in self.columns
        )

    def _back(self, day: date) -> Iterator[tuple[date, date]]:
        days, count = [each for each in self.of.days(self.symbol) if each <= day], 1
        while days:
            yield days[-count:][0], days[-1]
            del days[-count:]
            count = min(2 * count, LONGEST_STEP_DAYS)

    def _on(self, day: date) -> Iterator[tuple[date, date]]:
        days, count = [each for each in self.of.days(self.symbol) if each >= day], 1
        while days:
            yield days[0], days[:count][-1]
            del days[:count]
            count = min(2 * count, LONGEST_STEP_DAYS)


def day_of(us: int) -> date:
    """The UTC day of an instant."""
    return (EPOCH + timedelta(microseconds=us)).date()


def instant_us(instant: datetime) -> int:
    """An instant as µs since 1970."""
    return (instant - EPOCH) // timedelta(microseconds=1)
