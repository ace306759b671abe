"""Features of bars into the table `feature`: of new and revised bars, and of those whose windows reach into a change.

Blocks of days are computed independently of each other, each with the bars that its windows look back on, so a part
made anew is what a whole run makes, bit by bit.
"""

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from threading import Event
from typing import Final
from zlib import crc32

import polars as pl

from crypto_lake.build import inputs
from crypto_lake.build.changes import Difference, difference
from crypto_lake.build.feature_rows import READ, Sources, features_of
from crypto_lake.build.flow import Built, Call, OnStep, Steps, drive, settled, silently
from crypto_lake.build.inputs import ORIGINS, Series
from crypto_lake.build.reaches import Reaches, Stretch, stretches
from crypto_lake.build.records import Records, at_us, day_of, instant_us
from crypto_lake.build.select import Days, Market, chosen, is_meant, named, one_of, source, span_of_days
from crypto_lake.config import ConfigError
from crypto_lake.models import DATASETS
from crypto_lake.models.bar import BAR, TIMEFRAMES_US
from crypto_lake.models.feature import FEATURE, LOOKBACK, page, reach
from crypto_lake.models.liquidation import LIQUIDATION
from crypto_lake.query.days import midnight
from crypto_lake.query.snapshot import Snapshot, Touched, snapshot, touched
from crypto_lake.writers.delta import Lake
from crypto_lake.writers.derived import Derived

TIMEFRAMES: Final = tuple(name for name in TIMEFRAMES_US if name != "1s")
# So many days are one task: enough rows that what is read before them is little, few enough for a worker's memory.
BLOCK_DAYS: Final = {"1m": 1, "5m": 8, "15m": 16, "1h": 64, "4h": 256, "1d": 1024}
# The symbol that others are held against; the first one itself is held against the second.
REFERENCES: Final = ("ETHUSDT", "BTCUSDT")
NO_REFERENCE: Final = "none"
# So many rows wait for a commit at the most.
MOST_ROWS: Final = 100_000
HOW_BARS: Final = "backfill bars or make them from trades (crypto-lake build bars)"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a build is asked for, as a user writes it; None: whatever there is."""

    symbols: str | None = None
    venue: str | None = None
    start: str | None = None
    end: str | None = None
    timeframes: str = "1m"
    reference: str = REFERENCES[0]
    origin: str | None = None


def build(
    root: str,
    wanted: Wanted,
    executor: Executor,
    at_once: int,
    *,
    on_step: OnStep = silently,
    stop: Event | None = None,
) -> Built:
    """Brings the table `feature` up to date with the tables under `root`.

    Raises `ConfigError` for what a user can mend, `CommitFailed` and `CommitUnknown` as writers do.
    """

    def make() -> Built:
        built = Built(FEATURE.name)
        run = _Run(root, wanted, built)
        plan = run.plan(on_step)
        drive(plan.works, executor, at_once, on_done=run.settle, stop=stop)
        run.derived.settle(all=True)
        built.is_stopped = plan.done < len(plan.works)
        return built

    return settled(make)


class _Run:
    """One build: the tables as they are when it begins, and what has changed in them since the last one."""

    def __init__(self, root: str, wanted: Wanted, built: Built) -> None:
        self.wanted, self.built = wanted, built
        self.days = span_of_days(wanted.start, wanted.end)
        self.timeframes = one_of("--timeframes", wanted.timeframes, TIMEFRAMES)
        if wanted.origin is not None and wanted.origin not in ORIGINS:
            raise ConfigError(f"--origin {wanted.origin}: there are {', '.join(ORIGINS)}")
        self.bars = source(root, BAR, how=HOW_BARS)
        self.tables = {table: snapshot(root, DATASETS[table]) for table in READ}
        self.series = self._chosen()
        self.references = self._references()
        self.derived = Derived(Lake(root), FEATURE)
        self._changes: dict[tuple[str, int], list[Touched] | None] = {}
        self.held = self._held_series(root)
        self.waiting = 0

    def plan(self, on_step: OnStep) -> "_Plan":
        """The blocks of all series, each by itself; the earliest of all series come first, so that the rows of a day
        come together."""
        self._say_missing()
        plan = _Plan(on_step)
        blocks: list[tuple[Stretch, Steps]] = []
        for sources in map(self._sources, self.series):
            mine = self._blocks(sources)
            self.built.series += bool(mine)
            left = [len(mine)]
            blocks += [(block, self._steps(sources, block, left, plan)) for block in mine]
        for series in self._orphans():
            blocks += [
                (block, self._drop(series, block, plan)) for _, block in _cut(_extent(series), series, self.days)
            ]
        plan.works = [steps for _, steps in sorted(blocks, key=lambda each: each[0].first_us)]
        return plan

    def settle(self) -> None:
        """Commits when enough rows wait: each of them is a kilobyte."""
        if self.waiting >= MOST_ROWS:
            self.derived.settle(all=True)
            self.waiting = 0
        self.derived.settle()

    def _steps(self, sources: Sources, block: Stretch, left: list[int], plan: "_Plan") -> Steps:
        made = yield Call(features_of, (sources.until(block.last_us + TIMEFRAMES_US[sources.series.timeframe]), block))
        self._put(sources.series, block, made)
        self.built.days += (day_of(block.last_us) - day_of(block.first_us)).days + 1
        self.built.computed += made.height
        left[0] -= 1
        if not left[0]:
            self._note(sources)
        plan.one_more()

    def _drop(self, series: Series, block: Stretch, plan: "_Plan") -> Steps:
        """Takes away the rows of bars that there are no more."""
        self._put(series, block, pl.DataFrame(schema=FEATURE.schema))
        plan.one_more()
        yield from ()

    def _put(self, series: Series, block: Stretch, made: pl.DataFrame) -> None:
        held = self.derived.held(day_of(block.first_us), day_of(block.last_us), *_within(series, block))
        found = difference(FEATURE, held, made) if held.height else Difference(made, held, same=0, revised=0)
        self.derived.put(found.added, found.gone)
        self.waiting += found.added.height
        self.built.added += found.added.height
        self.built.revised += found.revised
        self.built.removed += found.gone.height - found.revised

    # What there is

    def _chosen(self) -> list[Series]:
        timeframes, origin = self.timeframes, self.wanted.origin
        there = inputs.all_series(
            self.bars, symbols=named(self.wanted.symbols), timeframes=timeframes, origin=origin
        ) or inputs.all_series(self.bars, timeframes=timeframes, origin=origin)  # to say what there is
        of = ", ".join([*self.timeframes, *([self.wanted.origin] if self.wanted.origin else [])])
        markets = {Market(each.venue, each.symbol) for each in there}
        meant = set(chosen(markets, self.wanted.symbols, self.wanted.venue, table=f"bar ({of})"))
        return [each for each in there if (each.venue, each.symbol) in meant]

    def _held_series(self, root: str) -> dict[tuple[str, ...], Series]:
        """What the table has of these symbols, from before this build."""
        there = snapshot(root, FEATURE)
        names, timeframes = named(self.wanted.symbols), self.timeframes
        held = inputs.all_series(there, symbols=names, timeframes=timeframes) if there else []
        return {_key(each): each for each in held}

    def _orphans(self) -> list[Series]:
        """Series that the table has, as far as they are asked for, and that have no bars any more."""
        if self.wanted.origin is not None:
            return []
        there = {_key(each) for each in self.series}
        asked = (each for each in self.held.values() if self.wanted.venue in (None, each.venue))
        return [
            each
            for each in asked
            if _key(each) not in there and is_meant(self.wanted.symbols, Market(each.venue, each.symbol))
        ]

    def _references(self) -> dict[tuple[str, ...], Series]:
        """The bars of all references, by venue, symbol and timeframe."""
        names = {market.symbol for each in self.series if (market := self._reference(each))}
        there = inputs.all_series(self.bars, symbols=names, timeframes=self.timeframes, origin=self.wanted.origin)
        return {_key(each): each for each in there}

    def _reference(self, series: Series) -> Market | None:
        if self.wanted.reference == NO_REFERENCE:
            return None
        venue, _, symbol = self.wanted.reference.rpartition(":")
        market = Market(venue or series.venue, symbol)
        if market != (series.venue, series.symbol):
            return market
        return Market(series.venue, next(name for name in REFERENCES if name != series.symbol))

    def _sources(self, series: Series) -> Sources:
        market = self._reference(series)
        bars = self.references.get((*market, series.timeframe)) if market else None
        if market and not bars:
            self.built.say(f"there are no {series.timeframe} bars of the reference {market}: group K is null")
        name = None if market is None else market.symbol if market.venue == series.venue else str(market)
        records = {table: self._records(table, series) for table in READ}
        return Sources(series, self.bars, self.wanted.origin, records, name, bars)

    def _records(self, table: str, series: Series) -> Records | None:
        there = self.tables[table]
        if there is None:
            return None
        found = Records(there, series.venue, series.symbol, READ[table])
        # Where liquidations are recorded, none of a symbol is a zero; elsewhere nobody knows.
        is_unknown = table == LIQUIDATION.name and series.venue not in _liquidated() and found.is_empty()
        return None if is_unknown else found

    def _say_missing(self) -> None:
        for table, there in self.tables.items():
            if there is None:
                self.built.say(f"there is no table {table}: features made from it are null")
            elif lacking := [name for name in READ[table] if name not in there.columns]:
                self.built.say(f"table {table} has no {', '.join(lacking)}: features made from it are null")

    # What is new

    def _blocks(self, sources: Sources) -> list[Stretch]:
        """The blocks that are to be made, each from the first to the last bar that something has changed for."""
        changed = self._changed(sources)
        blocks: dict[int, Stretch] = {}
        for each in [self._all(sources.series)] if changed is None else changed:
            for number, part in _cut(each, sources.series, self.days):
                held = blocks.get(number, part)
                blocks[number] = Stretch(min(held.first_us, part.first_us), max(held.last_us, part.last_us))
        series_app = _app(sources.series)
        if not blocks:
            self._note(sources)
        elif self.derived.noted(f"{series_app}/settings") not in (0, _settings(sources)):
            # From the first commit on some rows are made by these settings, and the others are not what they are said
            # to be any more, wherever this run ends.
            self.derived.note(f"{series_app}/settings", 0)
        return [blocks[number] for number in sorted(blocks)]

    def _changed(self, sources: Sources) -> list[Stretch] | None:
        """The bars whose features may be others than they were; None: all of them."""
        series, app = sources.series, _app(sources.series)
        if self.derived.noted(f"{app}/settings") != _settings(sources):
            return None
        reaches = Reaches(series, self.bars, sources.origin, sources.records)
        found: list[Stretch] = []
        for bars, rows in ((series, LOOKBACK), (sources.reference_bars, reach(["reference"]))):
            changes = self._since(app, self.bars, bars)
            if changes is None:
                return None
            found += [reaches.of_bars(bars, each, rows) for each in changes if bars]
        for table, records in sources.records.items():
            changes = self._since(app, records.of, series) if records else self._gone(app, table)
            if changes is None:
                return None
            found += [reaches.of_records(table, each) for each in changes]
        return found

    def _since(self, app: str, there: Snapshot, series: Series | None) -> list[Stretch] | None:
        """Where rows of the symbol came or went since the last build; None: nobody knows."""
        noted = self.derived.noted(f"{app}/{there.dataset}")
        if series is None or not noted:
            return [] if series is None else None
        known = (there.dataset, noted - 1)
        if known not in self._changes:
            self._changes[known] = touched(there, noted - 1)
        changes = self._changes[known]
        return None if changes is None else stretches(changes, series.symbol, series.timeframe)

    def _gone(self, app: str, table: str) -> list[Stretch] | None:
        """Of a table that is not there: nothing, unless it was."""
        return None if self.derived.noted(f"{app}/{table}") else []

    def _all(self, series: Series) -> Stretch:
        """From the first bar to the last one; where rows are held that have no bar any more, from and to there."""
        held, now = _extent(self.held.get(_key(series), series)), _extent(series)
        return Stretch(min(held.first_us, now.first_us), max(held.last_us, now.last_us))

    def _note(self, sources: Sources) -> None:
        """All of the series is made from these versions; not when only some of its days were asked for."""
        if self.days != Days(date.min, date.max):
            return
        app = _app(sources.series)
        self.derived.note(f"{app}/settings", _settings(sources))
        self.derived.note(f"{app}/{BAR.name}", self.bars.version + 1)
        for table, records in sources.records.items():
            self.derived.note(f"{app}/{table}", records.of.version + 1 if records else 0)


@dataclass(slots=True)
class _Plan:
    """What there is to do, and how much of it is done."""

    on_step: OnStep
    works: list[Steps] = field(default_factory=list)
    done: int = 0

    def one_more(self) -> None:
        """One more is done."""
        self.done += 1
        self.on_step(FEATURE.name, self.done, len(self.works))


def _cut(stretch: Stretch, series: Series, days: Days) -> Iterator[tuple[int, Stretch]]:
    """The parts of a stretch that are in the days asked for, each with the number of its block."""
    length = BLOCK_DAYS[series.timeframe]
    first, last = max(day_of(stretch.first_us), days.first), min(day_of(stretch.last_us), days.last)
    for number in range(first.toordinal() // length, last.toordinal() // length + 1):
        begin = max(date.fromordinal(max(number * length, 1)), first)
        end = min(date.fromordinal((number + 1) * length - 1), last)
        behind_us = instant_us(midnight(end)) + TIMEFRAMES_US["1d"]
        yield number, Stretch(max(stretch.first_us, instant_us(midnight(begin))), min(stretch.last_us, behind_us - 1))


def _within(series: Series, block: Stretch) -> list[pl.Expr]:
    named = [pl.col(name) == getattr(series, name) for name in ("venue", "symbol", "timeframe")]
    return [*named, at_us.is_between(block.first_us, block.last_us)]


def _extent(series: Series) -> Stretch:
    return Stretch(instant_us(series.first), instant_us(series.last))


def _key(series: Series) -> tuple[str, ...]:
    return series.venue, series.symbol, series.timeframe


def _app(series: Series) -> str:
    return f"build/features/{series.timeframe}/{series.venue}/{series.symbol}"


def _settings(sources: Sources) -> int:
    """What else the rows depend on, as a number: when it is another one, all are made anew."""
    asked = (sources.reference, sources.reference_bars is not None, sources.origin, _formulas())
    return crc32(repr(asked).encode()) + 1


@cache
def _formulas() -> int:
    """The definitions of all features as a number."""
    return crc32(page().encode())


def _liquidated() -> set[str]:
    """The venues that tell of liquidations."""
    live = LIQUIDATION.live.streams if LIQUIDATION.live else {}
    return {*live, *(LIQUIDATION.dump.archives if LIQUIDATION.dump else {})}
