"""How far a change in the inputs of features reaches: from rows that came or went to the bars they matter to."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from crypto_lake.build.inputs import Series
from crypto_lake.build.records import Records, instant_us
from crypto_lake.features.book_features import MOST_AGE_MS
from crypto_lake.models.bar import AROUND_THE_CLOCK, TIMEFRAMES_US
from crypto_lake.models.feature import LOOKBACK, reach
from crypto_lake.query.days import midnight
from crypto_lake.query.snapshot import Snapshot, Touched

DAY_US: Final = TIMEFRAMES_US["1d"]


@dataclass(frozen=True, slots=True)
class Stretch:
    """From one instant to another, both inclusive, µs since 1970: of records their times, of bars their opens."""

    first_us: int
    last_us: int


def stretches(changes: Iterable[Touched], symbol: str, timeframe: str) -> list[Stretch]:
    """Where rows of a symbol came or went; what lies within each other's reach is one stretch."""
    near_us = LOOKBACK * TIMEFRAMES_US[timeframe]
    found: list[Stretch] = []
    mine = {_stretch(each) for each in changes if each.may_hold(symbol)}
    for each in sorted(mine, key=lambda stretch: stretch.first_us):
        if found and each.first_us <= found[-1].last_us + near_us:
            found[-1] = Stretch(found[-1].first_us, max(found[-1].last_us, each.last_us))
        else:
            found.append(each)
    return found


def _stretch(change: Touched) -> Stretch:
    begin_us = instant_us(midnight(change.day))
    first_us = begin_us if change.low_us is None else change.low_us
    return Stretch(first_us, begin_us + DAY_US - 1 if change.high_us is None else change.high_us)


@dataclass(frozen=True, slots=True)
class Reaches:
    """Of changes in the inputs of one series."""

    series: Series
    bars: Snapshot
    origin: str | None
    records: Mapping[str, Records | None]

    def of_bars(self, of: Series, change: Stretch, rows: int) -> Stretch:
        """Of bars of the series or its reference that features look back on for so many `rows`. The bars that are
        filled in, from the one before the change to the one behind it, change with it."""
        there = self._bars(of)
        before = there.last_before(change.first_us)["time"].dt.epoch("us").min()
        behind_us = there.next_after(change.last_us)
        last_us = change.last_us if behind_us is None else behind_us
        assert before is None or isinstance(before, int)
        return Stretch(change.first_us if before is None else before, self._ahead(last_us, rows))

    def of_records(self, table: str, change: Stretch) -> Stretch:
        """Of records of one of the other tables. The last one before a close is what counts, so a change is seen up to
        the next record."""
        behind_us = self._behind(table, change.last_us)
        rows = reach([table])
        last_us = self._ahead(change.last_us, rows)
        if table == "book_snapshot":
            last_us = max(change.last_us + MOST_AGE_MS * 1000, behind_us or 0)
        elif table == "liquidation":
            last_us = max(last_us, self._end_us if behind_us is None else behind_us)
        else:
            last_us = self._ahead(self._end_us if behind_us is None else behind_us, rows)
        return Stretch(change.first_us - TIMEFRAMES_US[self.series.timeframe] + 1, last_us)

    def _behind(self, table: str, us: int) -> int | None:
        """When the next record is; open interest is read at the times of the marks."""
        records = self.records[table]
        assert records is not None
        behind_us = records.next_after(us)
        marks = self.records["mark_price"]
        if table != "open_interest" or behind_us is None or marks is None:
            return behind_us
        return marks.next_after(behind_us - 1)

    @property
    def _end_us(self) -> int:
        return instant_us(self.series.last)

    def _ahead(self, us: int, rows: int) -> int:
        """The open of the bar that comes so many rows behind an instant."""
        if self.series.venue in AROUND_THE_CLOCK or not rows:
            return us + rows * TIMEFRAMES_US[self.series.timeframe]
        there_us = self._bars(self.series).next_after(us, rows)
        return max(us, self._end_us) if there_us is None else there_us

    def _bars(self, of: Series) -> Records:
        equals = (("timeframe", of.timeframe), *([] if self.origin is None else [("origin", self.origin)]))
        return Records(self.bars, of.venue, of.symbol, equals=tuple(equals))
