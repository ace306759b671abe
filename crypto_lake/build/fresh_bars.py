"""Bars beside a running recorder: after each of its commits those whose intervals have closed, and those that a late
trade revises. What it costs depends on what is new, not on what is there.
"""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec
import polars as pl

from crypto_lake.build.bar_rows import (
    FOREVER_US,
    LATENESS_US,
    NO_BARS,
    SOURCES,
    Late,
    Outages,
    Rules,
    as_rows,
    bars_of,
    day_of,
    made_by,
    minute_of,
    named,
    note_mixed,
    ours,
    put_difference,
    read_trades,
    start_us,
    tell_incomplete,
    tell_late,
)
from crypto_lake.build.findings import Findings
from crypto_lake.build.flow import Built, settled
from crypto_lake.build.select import Market
from crypto_lake.features.bars import BASE, BASE_US, filled, needed, roll_up
from crypto_lake.models import Dataset
from crypto_lake.models.bar import BAR, TIMEFRAMES_US
from crypto_lake.models.dataset import TIME
from crypto_lake.models.frame import OTHERS
from crypto_lake.models.gap import GAP
from crypto_lake.query.days import DAY
from crypto_lake.query.gaps import gaps
from crypto_lake.query.snapshot import Snapshot, Touched, snapshot, touched
from crypto_lake.writers.delta import Lake
from crypto_lake.writers.derived import Derived

# So many days back trades can still come by themselves; what is older is left to a build.
REACH_DAYS: Final = 3
# What is of the last hour is read for all markets at once, from a little before it on: with its unfinished minutes.
# Anything else is read market by market.
RECENT_US: Final = 3_600_000_000
BEFORE_US: Final = 3 * BASE_US
CONFLICTS: Final = 10
NO_TABLE: Final = -1


class State(msgspec.Struct):
    """How far it is: versions of the tables, and per market up to where bars are written (µs since 1970): from where on
    trades wait for their interval to close."""

    trades: int
    gaps: int
    closed: dict[str, int]


def refresh(
    lake: Lake,
    source: Dataset,
    *,
    timeframes: Sequence[str] = (BASE,),
    late: Late = "revise",
    lateness_us: int = LATENESS_US,
) -> Built:
    """Writes the bars of `source` (agg_trade or trade) that have closed since the last time, with all that they change.

    An interval is closed by later trades of its symbol alone (ANALYTICS 1.4). The first time begins with the newest
    day; trades of more than `REACH_DAYS` ago, too, are left to `build`. 1m is always made. Raises `CommitFailed` and
    `CommitUnknown`: nothing is lost, the next call makes up for it.
    """
    assert source.name in SOURCES
    built = Built(BAR.name)
    names = needed([*timeframes, BASE])

    def make() -> Built:
        of = snapshot(lake.root, source)
        if of is not None and of.files:
            _Refresh(lake, of, names, Rules(late, lateness_us), built).run()
        return built

    return settled(make)


@lru_cache(maxsize=4)
def _known(root: str, dataset: str, _version: int) -> pl.DataFrame:
    """The holes of a dataset as the table of gaps has them in a version; it seldom changes."""
    return gaps(root, dataset)


class _Refresh:
    """One call of `refresh`."""

    def __init__(self, lake: Lake, of: Snapshot, names: Sequence[str], rules: Rules, built: Built) -> None:
        self._lake, self._of, self._names, self._rules, self._built = lake, of, names, rules, built
        self._direct = [name for name in names if TIMEFRAMES_US[name] <= BASE_US]
        self._derived = Derived(lake, BAR)
        self._findings = Findings(lake, BAR, time.time_ns() // 1000)
        self._app = f"build/bars/live/{of.dataset}/{','.join(names)}/{rules.late}"
        self._last = of.days()[-1]
        self._floor_us = start_us(self._last - (REACH_DAYS - 1) * DAY)
        kept = self._derived.state(self._app)
        self._before = msgspec.json.decode(kept, type=State) if kept else None
        self._closed = dict(self._before.closed) if self._before else {}

    def run(self) -> None:
        """Makes and commits."""
        holes = snapshot(self._lake.root, GAP)
        now = State(self._of.version, holes.version if holes else NO_TABLE, self._closed)
        if self._before and (self._before.trades, self._before.gaps) == (now.trades, now.gaps):
            return
        known = _known(self._lake.root, self._of.dataset, now.gaps)
        self._outages = Outages(known)
        changes = touched(self._of, self._before.trades) if self._before else None
        if self._before is None or changes is None:
            self._begin()
        else:
            self._follow(changes, dict(self._of_gaps(known, holes, self._before.gaps)))
        # Without a bar nothing has to be kept: the next time as much is looked at as now, and a little more.
        if self._built.added or self._closed != (self._before.closed if self._before else {}):
            self._derived.keep(self._app, msgspec.json.encode(now))
        self._findings.flush()
        self._derived.settle(all=True)
        self._built.findings += self._findings.added

    # Which markets, and from when on

    def _begin(self) -> None:
        """The newest day, market by market. What was traded last before it may wait for the first trade within it."""
        for market in map(Market._make, self._of.markets(self._last, self._last)):
            since = start_us(self._last)
            self._alone(market, min(since, self._closed.get(str(market), since)))
        eve = self._of.scan(self._last - DAY, self._last - DAY).group_by("venue", "symbol")
        last = eve.agg(pl.col("time").max().to_physical()).collect(engine="streaming")
        for venue, symbol, newest in last.iter_rows():
            self._closed.setdefault(str(Market(venue, symbol)), self._closed_before(newest))

    def _follow(self, changes: Sequence[Touched], late: dict[Market, int]) -> None:
        """What came, and what gaps say of bars that may be there already (`late`, from when on)."""
        changes = [change for change in changes if change.day >= day_of(self._floor_us)]
        newest = max((change.high_us or 0 for change in changes), default=0)
        recent = [change for change in changes if self._low(change) >= newest - RECENT_US]
        for change in changes:
            if self._low(change) < newest - RECENT_US:
                for market in self._markets_in(change):
                    late[market] = min(late.get(market, FOREVER_US), self._low(change))
        if recent:
            self._together(min(map(self._low, recent)), late)
        for market, since in late.items():
            self._alone(market, min(since, self._closed.get(str(market), since)))

    def _together(self, since: int, late: Collection[Market]) -> None:
        """All markets with trades from that time on, but the `late` ones. Of each, its last minutes may not be closed
        yet; where these are long ago it is read once more, and there is little of it."""
        since = minute_of(since)
        begin = since - BEFORE_US
        rows = self._read(begin)
        present = rows.filter(not_before(since)).select("venue", "symbol").unique().sort("venue", "symbol")
        sinces = {
            market: min(since, self._closed.get(str(market), since))
            for market in sorted(map(Market._make, present.iter_rows()))
            if market not in late
        }
        self._make(rows, {market: first for market, first in sinces.items() if first >= begin})
        idle = {market: first for market, first in sinces.items() if begin - RECENT_US <= first < begin}
        if idle:
            self._make(self._read(min(idle.values()), {market.symbol for market in idle}), idle)
        for market, first in sinces.items():
            if first < begin - RECENT_US:
                self._alone(market, first)

    def _alone(self, market: Market, since: int) -> None:
        self._make(self._read(since, {market.symbol}), {market: since})

    def _read(self, since: int, symbols: Collection[str] | None = None) -> pl.DataFrame:
        return read_trades(self._of, day_of(since), self._last, symbols=symbols, since_us=since)

    def _low(self, change: Touched) -> int:
        return minute_of(max(self._floor_us, start_us(change.day), change.low_us or 0))

    def _markets_in(self, change: Touched) -> list[Market]:
        of_day = self._of.scan(change.day, change.day, since_us=change.low_us).filter(
            *([] if change.high_us is None else [pl.col("time") <= instant(change.high_us)]),
            *([] if change.low_symbol is None else [pl.col("symbol") >= change.low_symbol]),
            *([] if change.high_symbol is None else [pl.col("symbol") <= change.high_symbol]),
        )
        found = of_day.select("venue", "symbol").unique().collect().sort("venue", "symbol")
        return [Market(*row) for row in found.iter_rows()]

    def _of_gaps(self, known: pl.DataFrame, holes: Snapshot | None, before: int) -> Iterator[tuple[Market, int]]:
        """The markets with bars of which something was noted in the table of gaps, each with the start of the first
        of these holes."""
        changes = touched(holes, before) if holes and before != NO_TABLE else None
        if changes is not None:
            days = pl.Series([change.day for change in changes], dtype=pl.Date).unique()
            known = known.filter(pl.col("start_time").dt.date().is_in(days.implode()))
        starts = known.group_by("venue", "symbol").agg(pl.col("start_time").min().to_physical())
        for venue, symbol, start in starts.iter_rows():
            for name, closed in self._closed.items():
                market = Market(*name.split(":", 1))
                if market.venue == venue and symbol in (market.symbol, OTHERS) and start < closed:
                    yield market, minute_of(max(start, self._floor_us))

    # What they become

    def _make(self, rows: pl.DataFrame, since: dict[Market, int]) -> None:
        """Bars of several markets, from when on each."""
        if not since:
            return
        parts = rows.partition_by("venue", "symbol", as_dict=True)
        spans = {
            market: Span(first, self._until(parts[market]), self._names)
            for market, first in since.items()
            if market in parts
        }
        for market, span in spans.items():
            self._closed.setdefault(str(market), span.since_us)
        spans = {market: span for market, span in spans.items() if span.until_us > span.since_us}
        if not spans:
            return
        held = self._held(spans)
        found = [self._found(market, span, parts[market], held) for market, span in spans.items()]
        made = as_rows(frame for frames, _ in found for frame in frames)
        tell_incomplete(self._findings, made.filter(pl.col("timeframe") == self._direct[0]))
        compared = pl.concat([BAR_ROWS, *(frame for _, frames in found for frame in frames)])
        changed = put_difference(self._derived, compared, made, self._built)
        for venue, symbol in pl.concat([changed.added, changed.gone]).select("venue", "symbol").unique().iter_rows():
            note_mixed(self._derived, Market(venue, symbol), made_by(self._of.dataset, self._rules))
        self._built.series += len(spans)
        self._closed |= {str(market): span.until_us for market, span in spans.items()}

    def _until(self, rows: pl.DataFrame) -> int:
        """Up to where a market's intervals are closed."""
        newest: int = rows.select(pl.col("time").max().to_physical()).item()
        return self._closed_before(newest)

    def _closed_before(self, newest_us: int) -> int:
        return minute_of(newest_us - self._rules.lateness_us)

    def _held(self, spans: Mapping[Market, "Span"]) -> dict[tuple[Any, ...], pl.DataFrame]:
        """The bars that are there, by venue, symbol and timeframe, from where on they are needed."""
        begin = min(span.needs_us for span in spans.values())
        names = pl.col("symbol").is_in(sorted({market.symbol for market in spans}))
        rows = self._derived.held(day_of(begin), self._last, names, *ours(self._names), not_before(begin))
        return rows.sort("time").partition_by("venue", "symbol", "timeframe", as_dict=True)

    def _found(
        self, market: Market, span: "Span", rows: pl.DataFrame, held: Mapping[tuple[Any, ...], pl.DataFrame]
    ) -> tuple[list[pl.DataFrame], list[pl.DataFrame]]:
        """A market's bars, and the rows that are held of the same intervals."""
        made = bars_of(rows.filter(not_before(span.since_us)), self._direct, self._rules)
        tell_late(self._findings, made.late)
        before = held.get((*market, BASE), BAR_ROWS).filter(earlier_than(span.since_us))
        close = before["close"][-1] if before.height else None
        found = {
            name: filled(
                bars.filter(earlier_than(span.until_us)),
                TIMEFRAMES_US[name],
                before=close,
                first=span.since_us,
                until=span.until_us,
            )
            for name, bars in made.bars.items()
        }
        minutes = pl.concat([before.select(NO_BARS.columns), found[BASE]])
        of_names = {name: span.of(name) for name in self._names}
        closed = {name: ends for name, ends in of_names.items() if ends[0] < ends[1]}
        for name, (first, until) in closed.items():
            if name not in found:
                found[name] = roll_up(minutes.filter(not_before(first), earlier_than(until)), TIMEFRAMES_US[name])
        outages = self._outages.of(market)
        return (
            [named(market, name, bars, outages) for name, bars in found.items()],
            [
                held[(*market, name)].filter(not_before(first), earlier_than(until))
                for name, (first, until) in closed.items()
                if (*market, name) in held
            ],
        )


BAR_ROWS: Final = pl.DataFrame(schema=BAR.schema)


class Span(NamedTuple):
    """A market's minutes that are made: from one time on (µs since 1970), up to where all is closed."""

    since_us: int
    until_us: int
    names: Sequence[str]

    def of(self, name: str) -> tuple[int, int]:
        """The same of a longer timeframe: intervals that have one of these minutes and are closed as a whole."""
        width = TIMEFRAMES_US[name]
        return self.since_us // width * width, self.until_us // width * width

    @property
    def needs_us(self) -> int:
        """From when on bars are needed: those that longer ones are made of, and the one that fillers repeat."""
        starts = (start for start, end in map(self.of, self.names) if end > start)
        return min(self.since_us - BASE_US, *starts)


def not_before(time_us: int) -> pl.Expr:
    """Rows whose time is not before that one (µs since 1970)."""
    return pl.col("time") >= instant(time_us)


def earlier_than(time_us: int) -> pl.Expr:
    """Rows whose time is before that one (µs since 1970)."""
    return pl.col("time") < instant(time_us)


def instant(time_us: int) -> pl.Expr:
    """An instant (µs since 1970) as a value of a column of times."""
    return pl.lit(time_us).cast(TIME)
