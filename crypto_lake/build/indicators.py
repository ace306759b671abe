"""The table `indicator`: made of bars, series by series, from the first bar on that is new or was revised.

A row is made of its bar, of some bars before it, and of the row before it. So whatever changed, rows in front of it
stand as they are; and behind it, once rows come out as they are held and no changed bar is in their windows any more,
so do all rows up to the next change. That is so unless a run came to no end: some of its rows are held then, and those
behind them are still the old ones.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from threading import Event
from typing import Any, Final, NamedTuple

import polars as pl

from crypto_lake.build.changes import difference
from crypto_lake.build.flow import Built, Call, OnStep, Steps, drive, settled, silently
from crypto_lake.build.inputs import LONGEST_STEP_DAYS, MICROSECOND, ORIGINS, Series, all_series, series
from crypto_lake.build.select import Market, chosen, named, one_of, source
from crypto_lake.config import ConfigError
from crypto_lake.features.indicators import LOOKBACK, RECURSIVE, indicators, is_ready
from crypto_lake.models.bar import BAR, TIMEFRAMES_US
from crypto_lake.models.indicator import INDICATOR
from crypto_lake.processors.shape import shape
from crypto_lake.query.days import DAY, midnight
from crypto_lake.query.snapshot import EPOCH, Snapshot, Touched, snapshot, touched
from crypto_lake.writers.delta import Lake
from crypto_lake.writers.derived import ENOUGH_ROWS, Derived

HOW: Final = "make some with `crypto-lake build bars`, or fetch some with `crypto-lake backfill`"
# All series go on side by side, so many days at a time that these are some hundred thousand rows: a commit has rows of
# many series and few days, and so there are few files.
TOGETHER_ROWS: Final = 500_000
TOGETHER_DAYS: Final = 64
# What is made of bars of any origin.
BEST: Final = "best"
# Noted with rows, behind the name of their series, until the last ones of a run are there.
UNFINISHED: Final = "/unfinished"
# What the next task has to know of the row before.
HANDED_ON: Final = ("time", *RECURSIVE)
Row = dict[str, Any]


class Wanted(NamedTuple):
    """What a build is asked for, as a user writes it; None: all there is."""

    symbols: str | None = None
    venue: str | None = None
    timeframes: str | None = None
    origin: str | None = None


class Stretch(NamedTuple):
    """From one time to another, both inside."""

    first: datetime
    last: datetime


EVERYTHING: Final = Stretch(datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))


def build(
    root: str,
    wanted: Wanted,
    executor: Executor,
    at_once: int,
    *,
    on_step: OnStep = silently,
    stop: Event | None = None,
) -> Built:
    """Brings the table up to date with the bars under `root`.

    Raises `ConfigError` for what a user can mend, `CommitFailed` and `CommitUnknown`.
    """
    return settled(lambda: _build(root, wanted, executor, at_once, on_step, stop))


def _build(root: str, wanted: Wanted, executor: Executor, at_once: int, on_step: OnStep, stop: Event | None) -> Built:
    timeframes, origin = _asked(wanted)
    of = source(root, BAR, how=HOW)
    works = _chosen(of, wanted, timeframes, origin)
    run = _Run(of, Derived(Lake(root), INDICATOR), origin, _held(root))
    for each in [] if origin else run.orphans(works, wanted, timeframes):
        run.drop(each, keep=None)
    run.built.series = len(works)
    for name in sorted(set(timeframes if wanted.timeframes else ()) - {each.timeframe for each in works}):
        run.built.say(f"table bar has no bars of {name}")
    due = [course for course in map(run.begun, works) if not run.is_over(course)]
    total, days = len(due), _days_together(due)
    while due and not (stop and stop.is_set()):
        on_step(INDICATOR.name, total - len(due), total)
        last = min(course.first for course in due) + (days - 1) * DAY
        steps = (run.go_on(course, last) for course in due if course.first <= last)
        drive(steps, executor, at_once, on_done=run.settle_if_many, stop=stop)
        run.settle()
        due = [course for course in due if not run.is_over(course)]
    run.into.settle(all=True)
    run.built.is_stopped = bool(due)
    return run.built


def _asked(wanted: Wanted) -> tuple[tuple[str, ...], str | None]:
    """Timeframes and origin. Raises `ConfigError`."""
    timeframes = one_of("--timeframes", wanted.timeframes or ",".join(TIMEFRAMES_US), tuple(TIMEFRAMES_US))
    if wanted.origin is None:
        return timeframes, None
    if wanted.origin not in ORIGINS:
        raise ConfigError(f"--origin: there is no {wanted.origin!r}; there are {', '.join(ORIGINS)}")
    return timeframes, wanted.origin


def _chosen(of: Snapshot, wanted: Wanted, timeframes: Sequence[str], origin: str | None) -> list[Series]:
    """The series to look at. Raises `ConfigError` when there are none."""
    names = named(wanted.symbols)
    there = all_series(of, symbols=names, origin=origin)
    if names and names > {each.symbol for each in there}:
        there = all_series(of, origin=origin)  # one of these is what was meant
    if origin and not there:
        raise ConfigError(f"--origin {origin}: table bar has no bars of that origin; {HOW}")
    meant = set(chosen({_market(each) for each in there}, wanted.symbols, wanted.venue, table=BAR.name))
    found = [each for each in there if _market(each) in meant and each.timeframe in timeframes]
    if not found:
        raise ConfigError(f"--timeframes {wanted.timeframes}: table bar has no such bars; {HOW}")
    return found


def _market(of: Series) -> Market:
    return Market(of.venue, of.symbol)


def _key(of: Series) -> tuple[str, str, str]:
    return of.venue, of.symbol, of.timeframe


def _held(root: str) -> dict[tuple[str, str, str], Series]:
    """What series the table has, and from when to when."""
    there = snapshot(root, INDICATOR)
    return {_key(each): each for each in all_series(there)} if there else {}


# A task


class Block(NamedTuple):
    """Rows of some days, the last one of all so far, and whether volumes were missing."""

    rows: pl.DataFrame
    last: Row | None
    lacks_volume: bool


def make(
    of: Snapshot, one: Series, origin: str | None, first: date, last: date, before: Row | None, after: datetime
) -> Block:
    """The rows behind `after` of these days, both inclusive. They go on from the row `before`; without one the first
    day is that on which the series begins."""
    bars = series(of, *_key(one), first, last, origin=origin, before=LOOKBACK if before else 0, end=one.last)
    lookback = None
    if before is not None:
        held = pl.col("time") <= before["time"]
        bars, lookback = bars.filter(~held), bars.filter(held)
        assert lookback["time"][-1] == before["time"]
    if bars.is_empty():
        return Block(pl.DataFrame(schema=INDICATOR.schema), before, lacks_volume=False)
    made = indicators(bars, before=before, lookback=lookback)
    said = bars.select("venue", "symbol", "timeframe", "origin", pl.lit("derived").alias("source"))
    rows = shape(INDICATOR, pl.concat([said, made], how="horizontal")).filter(pl.col("time") > after)
    return Block(rows, made.select(HANDED_ON).row(-1, named=True), lacks_volume=bars["volume"].null_count() > 0)


# The driver


@dataclass(slots=True)
class _Course:
    """How far a series is: rows up to `after` are as they should be, and `before` is the last of them."""

    one: Series
    changes: Sequence[Stretch]
    first: date = date.max  # the next day
    before: Row | None = None
    after: datetime = EVERYTHING.first


def _days_together(courses: Iterable[_Course]) -> int:
    """How many days all series go on at a time."""
    rows_a_day = sum(TIMEFRAMES_US["1d"] // TIMEFRAMES_US[each.one.timeframe] for each in courses)
    return max(1, min(TOGETHER_DAYS, TOGETHER_ROWS // max(rows_a_day, 1)))


@dataclass(slots=True)
class _Run:
    """What the series of one build share."""

    of: Snapshot
    into: Derived
    origin: str | None
    held: dict[tuple[str, str, str], Series]
    built: Built = field(default_factory=lambda: Built(INDICATOR.name))
    waiting: int = 0  # rows
    changes: dict[int, list[Touched] | None] = field(default_factory=dict)

    def begun(self, one: Series) -> _Course:
        """A series where the first change is."""
        self.disown(one)
        course = _Course(one, self.changed(one))
        self.drop(one, keep=one)
        self.place(course, next((each.first for each in course.changes), None))
        return course

    def is_over(self, course: _Course) -> bool:
        """Whether all rows of a series are as they should be; then that is noted."""
        if course.first <= course.one.last.date():
            return False
        app = self.app(course.one, self.origin)
        self.into.note(app, self.of.version + 1)
        self.into.note(app + UNFINISHED, 0)
        return True

    def place(self, course: _Course, since: datetime | None) -> None:
        """Goes to the last row before `since`, or behind the end if there is nothing more to be made."""
        if since is None or since > course.one.last:
            course.first = date.max
            return
        course.before = self.row_before(course.one, since)
        course.after = EVERYTHING.first if course.before is None else course.before["time"]
        course.first = course.one.first.date() if course.before is None else course.after.date()

    def go_on(self, course: _Course, last: date) -> Steps:
        """The rows of a series up to that day, maybe from its begin: its first rows cannot be gone on from."""
        one, last = course.one, min(last, course.one.last.date())
        first, end = course.first if course.before else one.first.date(), midnight(last + DAY)
        part = self.of.part(date.min, last, symbols=(one.symbol,))
        block: Block = yield Call(make, (part, one, self.origin, first, last, course.before, course.after))
        if self.put(one, block, Stretch(course.after, end)) and is_settled(course.changes, block.rows, end):
            self.place(course, next((each.first for each in course.changes if each.first >= end), None))
        else:
            course.before = block.last if block.last and is_ready(block.last) else None
            course.first, course.after = last + DAY, end - MICROSECOND

    def settle_if_many(self) -> None:
        """Between days that are made together a commit is made only where they are too much for one."""
        if self.waiting >= ENOUGH_ROWS:
            self.settle()

    def settle(self) -> None:
        """Commits if that is worth its while."""
        self.into.settle()
        self.waiting = 0

    def orphans(self, works: Sequence[Series], wanted: Wanted, timeframes: Sequence[str]) -> list[Series]:
        """Series that the table has and that have no bars any more, as far as they are asked for."""
        there, markets = {_key(each) for each in works}, {_market(each) for each in works}
        return [
            each
            for key, each in self.held.items()
            if key not in there
            and each.timeframe in timeframes
            and wanted.venue in (None, each.venue)
            and (named(wanted.symbols) is None or _market(each) in markets)
        ]

    # What is new

    def app(self, one: Series, origin: str | None) -> str:
        return f"build/indicators/{one.venue}/{one.symbol}/{one.timeframe}/{origin or BEST}"

    def disown(self, one: Series) -> None:
        """Rows made of bars of another choice of origins are those of that choice no more."""
        for other in (None, *ORIGINS):
            if other != self.origin and self.into.noted(self.app(one, other)):
                self.into.note(self.app(one, other), 0)

    def changed(self, one: Series) -> list[Stretch]:
        """When bars came or went since the series was noted, in order."""
        app = self.app(one, self.origin)
        noted = self.into.noted(app)
        if not noted:
            return [EVERYTHING]
        if noted not in self.changes:
            self.changes[noted] = touched(self.of, noted - 1)
        found = self.changes[noted]
        if found is None:
            return [EVERYTHING]
        changes = _stretches(each for each in found if each.may_hold(one.symbol))
        if changes and self.into.noted(app + UNFINISHED):
            return [Stretch(changes[0].first, EVERYTHING.last)]
        return changes

    # What is held

    def where(self, one: Series) -> list[pl.Expr]:
        said = {"venue": one.venue, "symbol": one.symbol, "timeframe": one.timeframe}
        return [pl.col(name) == value for name, value in said.items()]

    def row_before(self, one: Series, since: datetime) -> Row | None:
        """The last row held before that time, if it can be gone on from; else the series is made from its begin."""
        held = self.held.get(_key(one))
        if held is None or since <= one.first:
            return None
        days = [day for day in self.into.days() if held.first.date() <= day <= min(since, held.last).date()]
        clock, count = pl.col("time"), 1
        while days:
            rows = self.into.held(days[-count:][0], days[-1], *self.where(one), clock < since, clock >= one.first)
            if rows.height:
                row = rows.select(HANDED_ON).sort("time").row(-1, named=True)
                return row if is_ready(row) else None
            del days[-count:]
            count = min(2 * count, LONGEST_STEP_DAYS)
        return None

    def put(self, one: Series, block: Block, within: Stretch) -> bool:
        """What the block changes; whether that is nothing. `within`: behind the first time and before the last one."""
        if block.lacks_volume:
            self.built.say(f"{one.venue}: there are bars without a volume: obv, vwap and mfi_14 are null there")
        held = pl.DataFrame(schema=INDICATOR.schema)
        if _key(one) in self.held:
            first, clock = max(within.first, one.first), pl.col("time")
            inside = (clock > within.first, clock < within.last, clock.is_between(one.first, one.last))
            held = self.into.held(first.date(), min(within.last, one.last).date(), *self.where(one), *inside)
        found = difference(INDICATOR, held, block.rows)
        self.waiting += found.added.height
        self.built.computed += block.rows.height
        self.built.days += block.rows["date"].n_unique()
        self.built.added += found.added.height
        self.built.revised += found.revised
        self.built.removed += found.gone.height - found.revised
        if found.added.height or found.gone.height:
            self.into.put(found.added, found.gone)
            self.into.note(self.app(one, self.origin) + UNFINISHED, 1)
            return False
        return True

    def drop(self, one: Series, keep: Series | None) -> None:
        """Rows held before the first bar and behind the last one leave."""
        held = self.held.get(_key(one))
        if held is None:
            return
        clock, gone = pl.col("time"), []
        if keep is None:
            gone.append(self.into.held(held.first.date(), held.last.date(), *self.where(one)))
        elif held.first < keep.first:
            gone.append(self.into.held(held.first.date(), keep.first.date(), *self.where(one), clock < keep.first))
        if keep is not None and held.last > keep.last:
            gone.append(self.into.held(keep.last.date(), held.last.date(), *self.where(one), clock > keep.last))
        for rows in gone:
            self.built.removed += rows.height
            self.into.put(rows.clear(), rows)


def _stretches(changes: Iterable[Touched]) -> list[Stretch]:
    """In order, those that overlap joined."""
    found: list[Stretch] = []
    for each in sorted(_stretch(change) for change in changes):
        if found and each.first <= found[-1].last:
            found[-1] = Stretch(found[-1].first, max(found[-1].last, each.last))
        else:
            found.append(each)
    return found


def _stretch(change: Touched) -> Stretch:
    first = midnight(change.day) if change.low_us is None else EPOCH + timedelta(microseconds=change.low_us)
    last = midnight(change.day + DAY) if change.high_us is None else EPOCH + timedelta(microseconds=change.high_us)
    return Stretch(first, last)


def is_settled(changes: Sequence[Stretch], rows: pl.DataFrame, end: datetime) -> bool:
    """Whether nothing that changed before `end` is in the windows of the rows behind these, which reach up to `end`."""
    if rows.height < LOOKBACK:
        return False
    since = rows["time"][-LOOKBACK]
    return not any(each.first < end and each.last >= since for each in changes)
