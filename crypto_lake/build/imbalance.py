"""The table `imbalance_bar`: each series from its first trade to its last, day after day, and on from there next time.

A bar depends on all trades before it, so what a series goes on from is kept with its bars, in the same commit; and with
it, day by day, what trades it was made of. Where a day has others now (a hole was filled, a day was revised), the
series is made anew. A series in the table is at any time the one of its first so many trades.
"""

import re
from collections.abc import Generator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, fields
from datetime import date
from threading import Event
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import polars as pl

from crypto_lake.build.changes import difference
from crypto_lake.build.flow import Built, Call, OnStep, Steps, drive, settled, silently
from crypto_lake.build.select import Days, Market, asked, one_of, only, source, span_of_days
from crypto_lake.config import ConfigError
from crypto_lake.features.imbalance import Parameters, State, begin, feed, is_trade
from crypto_lake.models import Dataset
from crypto_lake.models.agg_trade import AGG_TRADE
from crypto_lake.models.imbalance_bar import IMBALANCE_BAR
from crypto_lake.models.trade import TRADE
from crypto_lake.processors.shape import shape
from crypto_lake.query.days import DAY
from crypto_lake.query.snapshot import Snapshot, Touched, touched
from crypto_lake.writers.delta import Lake
from crypto_lake.writers.derived import Derived

# Below every id.
BEFORE_ALL: Final = -(2**62)
ALWAYS: Final = Days(date.min, date.max)
SOURCES: Final[dict[str, Dataset]] = {"agg_trade": AGG_TRADE, "trade": TRADE}
DEFAULT: Final = "default"
# Two builds at once commit every some seconds at the most; so many conflicts in a row are no chance.
CONFLICTS: Final = 10
# A day with more bars of one trade than this share has the wrong parameters (ANALYTICS 2.4).
MANY: Final = 0.2
VERSION: Final = 1
# It stands in the name of a file.
NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,60}")


class Wanted(NamedTuple):
    """What a build is asked for, as a user writes it; None: all there is. `again` makes series anew."""

    parameters: Parameters
    settings: str = DEFAULT
    symbols: str | None = None
    venue: str | None = None
    start: str | None = None
    end: str | None = None
    source: str = "agg_trade"
    again: bool = False


@dataclass(slots=True)
class BuiltBars(Built):
    """And how often the guards of ANALYTICS 2.4 were needed: `clamped` counts the refreshes in which the expected ticks
    hit a limit."""

    clamped: int = 0
    one_tick_bars: int = 0


class Used(NamedTuple):
    """Trades that a series is made of, in whatever order: how many, and the sum of their digests."""

    rows: int
    digest: int

    def and_also(self, others: "Used") -> "Used":
        """Both together."""
        return Used(self.rows + others.rows, (self.digest + others.digest) % 2**64)


NONE_USED: Final = Used(0, 0)


class Record(msgspec.Struct, frozen=True):
    """What is kept of a series: how it is made, from which day on, the last day that it has come to, what it has used
    of each day, and the state behind that."""

    parameters: Parameters
    source: str
    start: date | None
    position: date | None
    used: dict[str, Used]
    state: bytes
    version: int = VERSION

    def of_day(self, day: date) -> Used:
        """What was used of a day."""
        return self.used.get(day.isoformat(), NONE_USED)


def build(
    root: str,
    wanted: Wanted,
    executor: Executor,
    at_once: int,
    *,
    on_step: OnStep = silently,
    stop: Event | None = None,
) -> BuiltBars:
    """The imbalance bars of all trades of these symbols up to the last day asked for, as far as they are not made yet.

    Raises `ConfigError` for a symbol, a span or a table that is not there, and for parameters that are not those of the
    series of that name; `CommitFailed` and `CommitUnknown`.
    """
    one_of("--from", wanted.source, tuple(SOURCES))
    if not NAME.fullmatch(wanted.settings):
        raise ConfigError(f"--settings {wanted.settings!r} is no name: write up to 60 letters, digits and . _ -")
    built = BuiltBars(IMBALANCE_BAR.name)

    def make() -> BuiltBars:
        work = Work.begin(root, wanted, built)
        work.run(executor, at_once, on_step, stop)
        built.series = len(work.lines)
        built.is_stopped = stop is not None and stop.is_set()
        return built

    return settled(make)


def parameters(**said: Any) -> Parameters:
    """The parameters as a user writes them. Raises `ConfigError`."""
    try:
        return Parameters(**said)
    except ValueError as error:
        raise ConfigError(re.sub(r"\b([a-z_]+)=", lambda found: f"{_flag(found[1])} ", str(error))) from None


def _flag(name: str) -> str:
    return "--from" if name == "source" else f"--{name.replace('_', '-')}"


# A build


@dataclass(slots=True, eq=False)
class Work:
    """A build under way."""

    of: Snapshot
    wanted: Wanted
    span: Days
    derived: Derived
    built: BuiltBars
    lines: "list[Line]" = field(default_factory=list)
    changes: dict[int, list[Touched] | None] = field(default_factory=dict)

    @classmethod
    def begin(cls, root: str, wanted: Wanted, built: BuiltBars) -> "Work":
        """Looks at what is there, and whether the series can go on by these parameters."""
        name, span = wanted.source, span_of_days(wanted.start, wanted.end)
        of = source(root, SOURCES[name], how=f"record or backfill {name} first, or say --from")
        work = cls(of, wanted, span, Derived(Lake(root), IMBALANCE_BAR), built)
        held = asked(of, ALWAYS, wanted.symbols, wanted.venue).items()
        meant = [(market, days) for market, days in held if days[0] <= span.last]
        if wanted.again:
            meant = [(market, days) for market, days in meant if days[-1] >= span.first]
        if not meant:
            raise ConfigError(f"--start, --end: table {name} holds nothing of what is asked for on these days")
        work.lines += [Line(work, market, days) for market, days in meant]
        return work

    def run(self, executor: Executor, at_once: int, on_step: OnStep, stop: Event | None) -> None:
        """Makes what is to be made and commits it."""
        total, done = sum(len(line.todo) for line in self.lines), 0

        def tell() -> None:
            nonlocal done
            done += 1
            on_step(IMBALANCE_BAR.name, done, max(total, done))

        drive((line.steps(tell) for line in self.lines), executor, at_once, on_done=self.derived.settle, stop=stop)
        self.derived.settle(all=True)
        if self.lines and all(line.is_left_out for line in self.lines):
            raise ConfigError(self.lines[0].left_out)

    def new_since(self, seen: int) -> list[Touched] | None:
        """What came or went after version `seen` - 1 of the trades; None: anything may have."""
        if seen not in self.changes:
            self.changes[seen] = touched(self.of, seen - 1) if seen else None
        return self.changes[seen]


class Line:
    """One series: the imbalance bars of a market by one set of parameters."""

    def __init__(self, work: Work, market: Market, days: Sequence[date]) -> None:
        wanted = work.wanted
        self._work = work
        self._market = market
        self._app = f"build/imbalance/{market.venue}/{market.symbol}/{wanted.parameters.kind}/{wanted.settings}"
        self._record = self._kept()
        start = work.span.first if wanted.start else None
        if self._record is not None:
            self._check(self._record, start)
            start = self._record.start
        # Where nothing is kept, all is made from here.
        self._last = Record(wanted.parameters, wanted.source, start, None, {}, begin(wanted.parameters).to_bytes())
        self._blank = self._last
        self._days = [day for day in days if start is None or day >= start]
        # What is held and not made again yet; None: everything that is held is made.
        self._rest: pl.DataFrame | None = None
        self._tally: dict[date, tuple[int, int]] = {}
        self._goes_on_in = self._record.position if self._record else None
        self.is_left_out = False
        self.todo = self._up_to_now() if self._record is None else self._behind(self._record)

    def _kept(self) -> Record | None:
        """What was kept with the last bars; None if nothing was, if it is of another age, or if it is not wanted."""
        kept = None if self._work.wanted.again else self._work.derived.state(self._app)
        try:
            record = None if kept is None else msgspec.msgpack.decode(kept, type=Record)
        except msgspec.ValidationError:
            return None
        return record if record is None or record.version == VERSION else None

    def _check(self, record: Record, start: date | None) -> None:
        """Raises `ConfigError` when it is not the series that was asked for."""
        wanted = self._work.wanted
        series = f"imbalance bars {wanted.settings!r} of {self._market}"
        was, now = _words(record.parameters, record.source), _words(wanted.parameters, wanted.source)
        unlike = [f"{_flag(name)} {was[name]}, not {now[name]}" for name in was if was[name] != now[name]]
        how = "choose another name with --settings, or make them anew with --again"
        if unlike:
            raise ConfigError(f"{series} were made with {'; '.join(unlike)}: {how}")
        if start and record.start and start < record.start:
            raise ConfigError(f"{series} begin with --start {record.start}, not {start}: {how}")

    @property
    def left_out(self) -> str:
        """Why there are no bars."""
        return (
            f"{self._market}: its trades do not say who was the aggressor (is_buyer_maker is null), so they are in no "
            "bar; --side tick needs no aggressor"
        )

    # What is to be done

    def _behind(self, record: Record) -> list[date]:
        """The days behind the last one, and that one if something changed in it."""
        position = record.position
        if position is None:
            return self._up_to_now()
        todo = [day for day in self._days if position < day <= self._work.span.last]
        return [position, *todo] if self._changed(position) else todo

    def _up_to_now(self) -> list[date]:
        """All days, as far as is asked for; and as far as the series has come, unless it is to be another one."""
        reached = self._record.position if self._record else None
        last = max(self._work.span.last, reached or date.min)
        return [day for day in self._days if day <= last]

    def _changed(self, day: date) -> bool:
        changes = self._work.new_since(self._work.derived.noted(self._seen_app))
        if changes is None:
            return True
        return any(each.day == day and each.may_hold(self._market.symbol) for each in changes)

    @property
    def _seen_app(self) -> str:
        return f"{self._app}/seen"

    def steps(self, tell: Any) -> Steps:
        """Goes on from what is kept if that still holds, else from the beginning."""
        record = self._record
        is_sound = record is not None and (yield from self._is_sound(record))
        if record is not None and is_sound:
            is_sound = yield from self._go_on(record, self.todo, tell)
        if not is_sound:
            yield from self._make_anew(tell, is_changed=record is not None)
        self._say_if_short()
        self._work.derived.note(self._seen_app, self._work.of.version + 1)

    def _is_sound(self, record: Record) -> Generator[Call, Any, bool]:
        """Whether the days that are done have the trades that they had; those that nobody touched do."""
        done = {*self._days, *map(date.fromisoformat, record.used)}
        for day in sorted(day for day in done if day < (record.position or date.min)):
            if self._changed(day):
                found = yield Call(used_of_day, (self._part(day), self._market, day))
                if found != record.of_day(day):
                    return False
        return True

    def _make_anew(self, tell: Any, *, is_changed: bool) -> Generator[Call, Any, None]:
        work = self._work
        if is_changed:
            work.built.say(
                f"{self._market}: trades came or changed behind bars that were made, so the series "
                f"{work.wanted.settings!r} is made anew from {self._days[0] if self._days else 'its begin'}"
            )
        self._tally, self._goes_on_in = {}, None
        # What waits is of the series that was to go on, and held only when it is committed.
        work.derived.settle(all=True)
        if work.derived.noted(self._app):
            self._rest = work.derived.held(date.min, date.max, *self._ours()).sort("bar")
        yield from self._go_on(self._blank, self._up_to_now(), tell, is_anew=True)
        if self._rest is not None and not self.is_left_out:
            self._leave(self._rest)
            self._keep(self._last)

    def _go_on(
        self, record: Record, days: Sequence[date], tell: Any, *, is_anew: bool = False
    ) -> Generator[Call, Any, bool]:
        """Makes the bars of these days; False where a day has other trades than those that were used of it."""
        self._last = record
        for day in days:
            args = (self._part(day), self._market, day, record.parameters, record.state, record.of_day(day))
            made = yield Call(bars_of_day, args)
            if made.is_unsigned:
                self.is_left_out = True
                self._work.built.say(self.left_out)
                break
            if not made.is_same and not is_anew:
                return False
            if made.used or day != record.position:
                record = self._last = _after(record, day, made)
                self._land(made, record)
            tell()
        return True

    def _part(self, day: date) -> Snapshot:
        return self._work.of.part(day, day + DAY, symbols=(self._market.symbol,))

    def _ours(self) -> tuple[pl.Expr, ...]:
        wanted = self._work.wanted
        kind, settings = pl.col("kind") == wanted.parameters.kind, pl.col("settings") == wanted.settings
        return only([self._market]), kind, settings

    # What was made

    def _land(self, made: "Made", record: Record) -> None:
        """Puts what is not held as it was made, and what the series goes on from behind it."""
        work, rows = self._work, self._rows(made.bars)
        work.built.days += 1
        work.built.computed += rows.height
        work.built.clamped += made.clamped
        work.built.one_tick_bars += made.one_tick_bars
        self._count(rows)
        if made.refused:
            work.built.say(f"{self._market}: {made.refused:,} rows without a price or a quantity are in no bar")
        if self._rest is not None:
            rows = self._unlike(rows, self._rest)
        if self._rest is None:
            work.built.added += rows.height
            work.derived.put(rows)
            self._keep(record)

    def _unlike(self, rows: pl.DataFrame, rest: pl.DataFrame) -> pl.DataFrame:
        """The made rows from the first one on that is not held as it was made; from there on nothing held counts."""
        head = rest.head(rows.height)
        found = difference(IMBALANCE_BAR, head, rows)
        if found.added.is_empty() and found.gone.is_empty():
            self._rest = rest.slice(rows.height)
            return rows.clear()
        first = pl.concat([found.added["bar"], found.gone["bar"]]).min()
        self._leave(rest.filter(pl.col("bar") >= first))
        return rows.filter(pl.col("bar") >= first)

    def _leave(self, rows: pl.DataFrame) -> None:
        self._rest = None
        self._work.built.removed += rows.height
        self._work.derived.put(rows.clear(), rows)

    def _keep(self, record: Record) -> None:
        derived = self._work.derived
        derived.keep(self._app, msgspec.msgpack.encode(record))
        derived.note(self._seen_app, self._work.of.version + 1)

    def _rows(self, bars: pl.DataFrame) -> pl.DataFrame:
        wanted = self._work.wanted
        said = {
            "venue": self._market.venue,
            "symbol": self._market.symbol,
            "source": "derived",
            "kind": wanted.parameters.kind,
            "settings": wanted.settings,
        }
        words = (pl.lit(value).alias(name) for name, value in said.items())
        return shape(IMBALANCE_BAR, bars.with_columns(*words, pl.col("close_time").alias("time")))

    # What a user should know

    def _count(self, rows: pl.DataFrame) -> None:
        """Of each day the bars, and those of one trade; of a day that goes on also the ones from before."""
        for day, bars, single in rows.group_by("date").agg(pl.len(), (pl.col("ticks") == 1).sum()).iter_rows():
            if day not in self._tally:
                self._tally[day] = self._counted_before(day)
            before = self._tally[day]
            self._tally[day] = before[0] + bars, before[1] + single

    def _counted_before(self, day: date) -> tuple[int, int]:
        if day != self._goes_on_in:
            return 0, 0
        held = self._work.derived.held(day, day, *self._ours())
        return held.height, int((held["ticks"] == 1).sum())

    def _say_if_short(self) -> None:
        short = sorted(day for day, (bars, single) in self._tally.items() if single > MANY * bars)
        if short:
            days = f"on {short[0]}" if len(short) == 1 else f"on {len(short)} days, first {short[0]},"
            self._work.built.say(
                f"{self._market}: {days} more than {MANY:.0%} of the bars have one trade: --min-imbalance-share 0.02, "
                "or --init-ticks, --min-ticks and --max-ticks nearer to --imbalance-window make longer ones"
            )


def _after(record: Record, day: date, made: "Made") -> Record:
    """What is kept behind a day."""
    used = dict(record.used)
    for each, some in made.used.items():
        used[each.isoformat()] = record.of_day(each).and_also(some)
    return msgspec.structs.replace(record, position=day, used=used, state=made.state)


def _words(made_with: Parameters, source: str) -> dict[str, str]:
    """What a series is made with, as a user writes it."""
    values = {each.name: getattr(made_with, each.name) for each in fields(Parameters)}
    return {name: f"{value:.15g}" if isinstance(value, float) else str(value) for name, value in values.items()} | {
        "source": source
    }


# Tasks


class Made(NamedTuple):
    """What a task made of a day: bars, the state behind them, and what it used of which day.

    `is_same`: the day still has what was used of it before. `is_unsigned`: trades have no sign.
    """

    bars: pl.DataFrame
    state: bytes
    used: dict[date, Used]
    refused: int = 0
    clamped: int = 0
    one_tick_bars: int = 0
    is_same: bool = True
    is_unsigned: bool = False


def bars_of_day(of: Snapshot, market: Market, day: date, parameters: Parameters, kept: bytes, before: Used) -> Made:
    """A task: the bars that end with a day's trades behind the last one used.

    Trades enter in the order of ids over midnight: what came later and has a smaller id than the day's largest one
    (some milliseconds of the next day) is of this day.
    """
    state = State.from_bytes(kept)
    is_new = pl.col("id") > (BEFORE_ALL if state.last_id is None else state.last_id)
    rows = read_trades(of, market, day)
    own = once(rows)
    if parameters.side == "aggressor" and own["is_buyer_maker"].null_count():
        return Made(feed(own.clear(), parameters, state).bars, kept, {}, is_unsigned=True)
    fresh = own.filter(is_new)
    trades = fresh
    if fresh.height:
        ahead = once(read_trades(of, market, day + DAY, is_new, pl.col("id") < fresh["id"][-1]))
        trades = once(pl.concat([fresh, ahead]))
    fed = feed(trades, parameters, state)
    return Made(
        fed.bars,
        fed.state.to_bytes(),
        {each: used(some) for (each,), some in sorted(trades.group_by(pl.col("time").dt.date()))},
        clamped=fed.counts.clamped,
        one_tick_bars=fed.counts.one_tick_bars,
        refused=rows.filter(is_new & ~is_trade()).height,
        is_same=used(own.filter(~is_new)) == before,
    )


def used_of_day(of: Snapshot, market: Market, day: date) -> Used:
    """A task: what a series that has come behind this day must have used of it."""
    return used(once(read_trades(of, market, day)))


def read_trades(of: Snapshot, market: Market, day: date, *where: pl.Expr) -> pl.DataFrame:
    """A market's rows of a day, as `feed` wants them."""
    order = SOURCES[of.dataset].order
    assert order is not None
    rows = of.scan(day, day, symbols=(market.symbol,)).filter(pl.col("venue") == market.venue)
    if "last_trade_id" in of.columns:  # what ends before it begins is no trade
        rows = rows.filter(pl.col("last_trade_id") >= pl.col("first_trade_id"))
    return (
        rows.select(pl.col(order).alias("id"), "time", "price", "quantity", "is_buyer_maker").filter(*where).collect()
    )


def once(rows: pl.DataFrame) -> pl.DataFrame:
    """The trades among these rows, by id; of an id that is there twice the first row."""
    trades = rows.filter(is_trade())
    if not trades["id"].is_sorted():
        trades = trades.sort("id", maintain_order=True)
    is_other = trades["id"].diff().fill_null(1) > 0
    return trades if is_other.all() else trades.filter(is_other)


# Odd numbers, as of splitmix64: each bit of a column changes about half of the bits of the product.
ODDS: Final = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93, 0xFF51AFD7ED558CCD)


def used(trades: pl.DataFrame) -> Used:
    """Tells other trades apart, in whatever order they come: the same on every machine and with every version."""
    sold = trades["is_buyer_maker"].cast(pl.Int64).fill_null(2)
    columns = [trades["id"], trades["time"].to_physical(), trades["price"], trades["quantity"], sold]
    mixed = np.zeros(trades.height, np.uint64)
    with np.errstate(over="ignore"):
        for column, odd in zip(columns, ODDS, strict=True):
            mixed = (mixed ^ column.to_numpy().view(np.uint64)) * np.uint64(odd)
            mixed ^= mixed >> np.uint64(29)
    return Used(trades.height, int(mixed.sum(dtype=np.uint64)))
