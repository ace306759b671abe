"""Bars out of trades: of history day by day on the farm, and beside a running recorder as intervals close.

Bars of 1m (and 1s) are made from trades, longer ones from those. A day's bars are all within it, so a day needs nothing
of another one but the close that fillers repeat: a new day changes itself, and the fillers up to the next day that has
trades. Of both neighbours everything is held against the table, so it does not matter how an earlier build ended.
"""

import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import date
from threading import Event
from typing import Final

import polars as pl

from crypto_lake.build.bar_rows import (
    NO_BARS,
    SOURCES,
    Made,
    Outages,
    Rules,
    as_rows,
    bars_of_day,
    made_by,
    minute_of,
    named,
    note_mixed,
    ours,
    put_difference,
    rules_app,
    start_us,
    tell_incomplete,
    tell_late,
)
from crypto_lake.build.findings import Findings
from crypto_lake.build.flow import Built, Call, OnStep, Steps, drive, settled, silently
from crypto_lake.build.select import Days, Market, asked, one_of, only, span_of_days
from crypto_lake.build.select import source as source_of
from crypto_lake.features.bars import BASE, BASE_US, filled, needed, roll_up
from crypto_lake.models.bar import BAR, TIMEFRAMES_US
from crypto_lake.models.dataset import TIME
from crypto_lake.models.frame import OTHERS
from crypto_lake.models.gap import GAP
from crypto_lake.query.days import DAY
from crypto_lake.query.gaps import gaps
from crypto_lake.query.snapshot import Snapshot, Touched, snapshot, touched
from crypto_lake.writers.delta import Lake
from crypto_lake.writers.derived import Derived

DEFAULT: Final = "1m,5m,15m,1h,4h,1d"
# Days of which bars are held in memory, to look at a day's neighbours once.
HELD_DAYS: Final = 4


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for, in the words of the command line: lists with commas, days or months; None is all."""

    symbols: str | None = None
    venue: str | None = None
    timeframes: str = DEFAULT
    source: str = "agg_trade"
    start: str | None = None
    end: str | None = None
    rules: Rules = Rules()  # noqa: RUF009 (it is frozen)


def build(
    root: str,
    wanted: Wanted,
    executor: Executor,
    at_once: int,
    *,
    on_step: OnStep = silently,
    stop: Event | None = None,
) -> Built:
    """The bars of all trades that are asked for, as far as the table `bar` does not have them yet.

    Raises `ConfigError` for a timeframe, a symbol, a span or a table that is not there, `CommitFailed` and
    `CommitUnknown`.
    """
    one_of("--from", wanted.source, tuple(SOURCES))
    one_of("--timeframes", wanted.timeframes, tuple(TIMEFRAMES_US))
    span_of_days(wanted.start, wanted.end)
    findings = Findings(Lake(root), BAR, time.time_ns() // 1000)

    def make() -> Built:
        work = Work.begin(Lake(root), wanted, findings)
        work.run(executor, at_once, on_step, stop)
        work.built.series, work.built.findings = len(work.lines), findings.added
        work.built.is_stopped = stop is not None and stop.is_set()
        return work.built

    return settled(make)


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """A build under way: what it reads, and what it is to make."""

    of: Snapshot
    gap_version: int
    derived: Derived
    findings: Findings
    outages: Outages
    names: tuple[str, ...]
    direct: tuple[str, ...]
    rules: Rules
    lines: "list[Line]"
    built: Built

    @classmethod
    def begin(cls, lake: Lake, wanted: Wanted, findings: Findings) -> "Work":
        """Looks at what is new in the trades and in the gaps since these bars were made last."""
        source = SOURCES[wanted.source]
        other = " or ".join(f"--from {name}" for name in SOURCES if name != source.name)
        of = source_of(lake.root, source, how=f"record or backfill {source.name} first, or say {other}")
        days = span_of_days(wanted.start, wanted.end)
        held = asked(of, days, wanted.symbols, wanted.venue)
        holes, known = snapshot(lake.root, GAP), gaps(lake.root, source.name)
        names = tuple(needed(one_of("--timeframes", wanted.timeframes, tuple(TIMEFRAMES_US))))
        direct = tuple(name for name in names if TIMEFRAMES_US[name] <= BASE_US)
        work = cls(
            of, holes.version + 1 if holes else 0, Derived(lake, BAR), findings,
            Outages(known), names, direct, wanted.rules, [], Built(BAR.name),
        )  # fmt: skip
        news, is_all = News(of, holes, known), days == Days(date.min, date.max)
        work.lines.extend(Line(work, market, some, news, is_all=is_all) for market, some in held.items())
        return work

    @property
    def made_by(self) -> int:
        """Tells builds apart that make other bars of the same trades."""
        return made_by(self.of.dataset, self.rules)

    def run(self, executor: Executor, at_once: int, on_step: OnStep, stop: Event | None) -> None:
        """Makes what is to be made and commits it."""
        total, done = sum(len(line.todo) for line in self.lines), 0

        def tell() -> None:
            nonlocal done
            done += 1
            on_step(BAR.name, done, total)

        works = (line.day(day, tell) for line in self.lines for day in line.todo)
        drive(works, executor, at_once, on_done=self.settle, stop=stop)
        for line in self.lines:
            if not line.todo:
                line.note()
        self.settle(all=True)

    def settle(self, *, all: bool = False) -> None:  # noqa: A002 (as in Derived)
        """Findings first: a commit of bars says that theirs are written."""
        self.findings.flush()
        self.derived.settle(all=all)


# What is new


@dataclass(slots=True)
class News:
    """What came to the trades and to the gaps after a version, read once for all who ask."""

    of: Snapshot
    holes: Snapshot | None
    known: pl.DataFrame
    _trades: dict[int, list[Touched] | None] = field(default_factory=dict)
    _gaps: dict[int, list[tuple[Market, date, date]] | None] = field(default_factory=dict)

    def todo(self, market: Market, days: Sequence[date], trades: int, holes: int) -> dict[date, int]:
        """The days whose bars may be others now, each with the time from which on (µs since 1970), when they were made
        from version `trades` - 1 of the trades and `holes` - 1 of the gaps."""
        whole = {day: start_us(day) for day in days}
        if not trades:
            return whole
        if trades not in self._trades:
            self._trades[trades] = touched(self.of, trades - 1)
        if holes not in self._gaps:
            self._gaps[holes] = self._spans(holes)
        changes, spans = self._trades[trades], self._gaps[holes]
        if changes is None or spans is None:
            return whole
        found: dict[date, int] = {}
        for change in changes:
            if change.day in whole and change.may_hold(market.symbol):
                since = max(start_us(change.day), minute_of(change.low_us or 0))
                found[change.day] = min(found.get(change.day, since), since)
        for other, first, last in spans:
            if other.venue == market.venue and other.symbol in (market.symbol, OTHERS):
                found.update({day: whole[day] for day in _within(days, first, last)})
        return dict(sorted(found.items()))

    def _spans(self, since: int) -> list[tuple[Market, date, date]] | None:
        """The days of the holes of which something was noted, of whatever state they are now."""
        changes = touched(self.holes, since - 1) if self.holes and since else None
        if self.holes is None:
            return []
        if changes is None:
            return None if since else self._days_of(self.known)
        if not changes:
            return []
        days = {change.day for change in changes}
        noted = self.holes.scan(min(days), max(days)).filter(pl.col("dataset") == self.of.dataset)
        # All rows, not the newest states: a hole that ends by now may have lasted for ever when bars were made.
        return self._days_of(noted.filter(pl.col("start_time").dt.date().is_in(days)).collect())

    def _days_of(self, rows: pl.DataFrame) -> list[tuple[Market, date, date]]:
        ends = pl.col("end_time").dt.date().fill_null(date.max)
        spans = rows.select("venue", "symbol", pl.col("start_time").dt.date().alias("first"), ends.alias("last"))
        return [(Market(venue, symbol), first, last) for venue, symbol, first, last in spans.unique().iter_rows()]


def _within(days: Sequence[date], first: date, last: date) -> Sequence[date]:
    """Those from `first` to `last`, of all in order; without one the next: the fillers up to it are made with it."""
    begin, end = bisect_left(days, first), bisect_right(days, last)
    return days[begin : max(end, begin + 1)]


# A market's days


class Line:
    """The bars of one market in the making, in the order of days, although tasks may end in any order."""

    def __init__(self, work: Work, market: Market, asked: list[date], news: News, *, is_all: bool) -> None:
        self._work = work
        self._market = market
        self._is_all = is_all
        # Around the days that are asked for there may be others with bars already: fillers reach up to them.
        others = [] if is_all else work.of.days(market.symbol)
        self._days = sorted({*asked, *(day for day in others if not asked[0] <= day <= asked[-1])})
        series = f"{market.venue}/{market.symbol}"
        self._app = f"build/bars/{work.made_by}/{','.join(work.names)}/{series}"
        self._rules_app = rules_app(market)
        self._outages = work.outages.of(market)
        self.todo = self._plan(asked, news)
        self._waiting = list(self.todo)
        self._arrived: dict[date, Made] = {}
        self._closes: dict[date, float | None] = {}
        self._held: dict[date, pl.DataFrame] = {}

    def _plan(self, asked: list[date], news: News) -> dict[date, int]:
        noted, rules = self._work.derived.noted, self._work.rules
        is_same = noted(self._rules_app) == self._work.made_by
        todo = news.todo(self._market, asked, noted(self._app) if is_same else 0, noted(f"{self._app}/gap"))
        if rules.late == "revise" or not todo:
            return todo
        # What came first may close an interval of the same day, and of the day before.
        affected = set(todo) | {asked[at - 1] for day in todo if (at := bisect_left(asked, day))}
        return {day: start_us(day) for day in asked if day in affected}

    def day(self, day: date, tell: Callable[[], None]) -> Steps:
        """Makes a day."""
        work, following = self._work, self._after(day)
        part = work.of.part(day, following or day, symbols=(self._market.symbol,))
        made = yield Call(bars_of_day, (part, self._market, day, self.todo[day], following, work.direct, work.rules))
        self._arrived[day] = made
        while self._waiting and self._waiting[0] in self._arrived:
            first = self._waiting.pop(0)
            self._land(first, self._arrived.pop(first))
        if not self._waiting:
            self.note()
        tell()

    def note(self) -> None:
        """What was made, and by which rules."""
        derived, made_by = self._work.derived, self._work.made_by
        if self._is_all:
            derived.note(self._app, self._work.of.version + 1)
            derived.note(f"{self._app}/gap", self._work.gap_version)
            derived.note(self._rules_app, made_by)
        else:
            note_mixed(derived, self._market, made_by)

    def _land(self, day: date, made: Made) -> None:
        note_mixed(self._work.derived, self._market, self._work.made_by)
        tell_late(self._work.findings, made.late)
        before, after = self._before(day), self._after(day)
        close = self._close_of(before)
        if before is not None:
            close = self._fill(before, day, close)
        since = pl.col("time") < pl.lit(self.todo[day]).cast(TIME)
        held = self._traded(day)
        traded = {name: pl.concat([held[name].filter(since), made.bars[name]]) for name in self._work.direct}
        self._put(day, traded, close)
        while after is not None and after not in self.todo and self._is_built(after):
            self._refill(after, self._fill(day, after, self._closes[day]))
            if (self._held_rows(after)["count"] > 0).any():
                break
            # Of a span alone a day of others may look like one of ours: there are fillers in it and behind it.
            day, after = after, self._after(after)

    def _close_of(self, day: date | None) -> float | None:
        """The close of a day that is done or held; None where there are no bars of it. What is held is filled to its
        end, since a day with trades follows."""
        if day is None:
            return None
        if day not in self._closes and self._is_built(day):
            self._refill(day, None)
        return self._closes.get(day)

    def _fill(self, before: date, after: date, close: float | None) -> float | None:
        """The days between two with trades."""
        day = before + DAY
        while day < after and (close is not None or self._held_rows(day).height):
            self._put(day, dict.fromkeys(self._work.direct, NO_BARS), close)
            day += DAY
        return close

    def _refill(self, day: date, close: float | None) -> None:
        """A day that is held and did not change. Without a close from before its first fillers say which one it is."""
        if close is None:
            first = (
                self._held_rows(day).filter(pl.col("timeframe") == self._work.direct[0]).sort("time").row(0, named=True)
            )
            close = None if first["count"] else first["close"]
        self._put(day, self._traded(day), close)

    def _put(self, day: date, traded: dict[str, pl.DataFrame], close: float | None) -> None:
        """Holds a day against the table: its bars, fillers, and longer bars."""
        work, made = self._work, traded
        if work.rules.fill:
            first, until = start_us(day), start_us(day + DAY) if self._is_followed(day) else None
            made = {
                name: filled(some, TIMEFRAMES_US[name], before=close, first=first, until=until)
                for name, some in traded.items()
            }
        smallest = made[work.direct[0]]
        self._closes[day] = smallest["close"][-1] if smallest.height else close
        made = made | {name: roll_up(made[BASE], TIMEFRAMES_US[name]) for name in work.names if name not in made}
        rows = as_rows(named(self._market, name, some, self._outages) for name, some in made.items())
        tell_incomplete(work.findings, rows.filter(pl.col("timeframe") == work.direct[0]))
        put_difference(work.derived, self._held_rows(day), rows, work.built)
        work.built.days += 1

    def _is_followed(self, day: date) -> bool:
        """Whether there are bars with trades on a later day, so that there are fillers up to it."""
        after = self._after(day)
        return after is not None and (after in self.todo or self._is_built(after))

    def _is_built(self, day: date) -> bool:
        return day in self._closes or (self._held_rows(day)["timeframe"] == self._work.direct[0]).any()

    def _traded(self, day: date) -> dict[str, pl.DataFrame]:
        rows = self._held_rows(day).filter(pl.col("count") > 0).sort("time")
        return {name: rows.filter(pl.col("timeframe") == name).select(NO_BARS.columns) for name in self._work.direct}

    def _held_rows(self, day: date) -> pl.DataFrame:
        """The bars of a day that the table holds, of the timeframes that are made."""
        if day not in self._held:
            while len(self._held) >= HELD_DAYS:
                del self._held[next(iter(self._held))]
            self._held[day] = self._work.derived.held(day, day, only([self._market]), *ours(self._work.names))
        return self._held[day]

    def _before(self, day: date) -> date | None:
        at = bisect_left(self._days, day)
        return self._days[at - 1] if at else None

    def _after(self, day: date) -> date | None:
        at = bisect_left(self._days, day + DAY)
        return self._days[at] if at < len(self._days) else None
