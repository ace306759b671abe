"""Books at regular intervals out of depth: a market's days in order with the book carried from one to the next, markets
side by side.

A book depends on nothing before its last snapshot (features.book). So what came behind the rows that were played goes
on from the book that was kept, and where rows came late the book is made anew from the last snapshot before that day.
"""

import re
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import date
from threading import Event
from typing import Final, NamedTuple

import msgspec
import polars as pl

from crypto_lake.build.changes import difference
from crypto_lake.build.findings import Findings
from crypto_lake.build.flow import Built, Call, OnStep, Steps, drive, settled, silently
from crypto_lake.build.select import Days, Market, asked, span_of_days
from crypto_lake.build.select import source as source_of
from crypto_lake.config import ConfigError
from crypto_lake.features.book import Book, Crossed
from crypto_lake.models.book_snapshot import BOOK_SNAPSHOT
from crypto_lake.models.dataset import TIME
from crypto_lake.models.depth import DEPTH
from crypto_lake.processors.shape import shape
from crypto_lake.query.days import DAY
from crypto_lake.query.depth import DepthRows
from crypto_lake.query.snapshot import EPOCH, Touched, touched
from crypto_lake.writers.delta import Lake
from crypto_lake.writers.derived import Derived

DURATION: Final = re.compile(r"(\d{1,9})(ms|s|m|h)")
UNITS_US: Final = {"ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000}
DAY_US: Final = 86_400_000_000
MOST_LEVELS: Final = 5_000
# Others commit to the table every some seconds at the most; so many conflicts in a row are no chance.
CONFLICTS: Final = 10
CROSSED: Final = "crossed"
NOTHING_FED: Final = -2  # below every id


class Grid(NamedTuple):
    """What the rows of a market have in common: the best so many levels, one row per interval."""

    levels: int
    every_us: int

    @classmethod
    def of(cls, levels: int, every: str) -> "Grid":
        """Raises `ConfigError` for what is no grid: intervals must fill a day evenly."""
        found = DURATION.fullmatch(every.strip())
        every_us = int(found[1]) * UNITS_US[found[2]] if found else 0
        if not every_us or DAY_US % every_us:
            raise ConfigError(
                f"--every {every!r}: say an interval that fills a day evenly, such as 100ms, 1s, 5s or 1m"
            )
        if not 1 <= levels <= MOST_LEVELS:
            raise ConfigError(f"--levels {levels}: say a number from 1 to {MOST_LEVELS}")
        return cls(levels, every_us)

    @property
    def number(self) -> int:
        """As an app transaction holds it."""
        return self.every_us * (MOST_LEVELS + 1) + self.levels

    @classmethod
    def numbered(cls, number: int) -> "Grid":
        """The one with that number."""
        every_us, levels = divmod(number, MOST_LEVELS + 1)
        return cls(levels, every_us)

    def __str__(self) -> str:
        unit, size = next((unit, size) for unit, size in reversed(UNITS_US.items()) if self.every_us % size == 0)
        return f"--levels {self.levels} --every {self.every_us // size}{unit}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for, in the words of the command line; None is all."""

    symbols: str | None = None
    venue: str | None = None
    start: str | None = None
    end: str | None = None
    levels: int = 20
    every: str = "1s"
    # Whether everything that is asked for is made anew, and may get another grid by that.
    again: bool = False


def build(
    root: str,
    wanted: Wanted,
    executor: Executor,
    at_once: int,
    *,
    on_step: OnStep = silently,
    stop: Event | None = None,
) -> Built:
    """Brings the table `book_snapshot` up to date with `depth`.

    Raises `ConfigError` for a symbol, a span or a table that is not there and for a grid that is not that of the rows
    which the table has, `CommitFailed` and `CommitUnknown`.
    """
    Grid.of(wanted.levels, wanted.every)
    findings = Findings(Lake(root), DEPTH, time.time_ns() // 1000)

    def make() -> Built:
        work = Work(Lake(root), wanted, findings)
        work.run(executor, at_once, on_step, stop)
        work.built.series, work.built.findings = len(work.lines), findings.added
        work.built.is_stopped = stop is not None and stop.is_set()
        return work.built

    return settled(make)


class Work:
    """A build under way: what it reads, and what it is to make."""

    def __init__(self, lake: Lake, wanted: Wanted, findings: Findings) -> None:
        self.grid, self.again = Grid.of(wanted.levels, wanted.every), wanted.again
        days = span_of_days(wanted.start, wanted.end)
        self.is_all = days == Days(date.min, date.max)
        self.of = source_of(lake.root, DEPTH, how="record depth first (LAKE_DATASETS)")
        held = asked(self.of, days, wanted.symbols, wanted.venue)
        self.derived = Derived(lake, BOOK_SNAPSHOT)
        self.findings = findings
        self.built = Built(BOOK_SNAPSHOT.name)
        self.changes: dict[int, list[Touched] | None] = {}
        self.lines = [Line(self, market, held[market]) for market in held]

    def run(self, executor: Executor, at_once: int, on_step: OnStep, stop: Event | None) -> None:
        """Makes what is to be made and commits it."""
        total, done = sum(len(line.todo) for line in self.lines), 0

        def tell() -> None:
            nonlocal done
            done += 1
            on_step(BOOK_SNAPSHOT.name, done, total)

        drive((line.steps(tell) for line in self.lines), executor, at_once, on_done=self.settle, stop=stop)
        self.settle(all=True)

    def settle(self, *, all: bool = False) -> None:  # noqa: A002 (as in Derived)
        """Findings first: who dies in between finds that they are said."""
        self.findings.flush()
        self.derived.settle(all=all)

    def changed_since(self, version: int) -> list[Touched] | None:
        """What came to `depth` after that version of it."""
        if version not in self.changes:
            self.changes[version] = touched(self.of, version)
        return self.changes[version]


# A market


class Fed(msgspec.Struct, frozen=True, array_like=True):
    """What a book was fed with: all to `last_id`, so many rows of its last day (snapshots of the next day among them).
    Without `rows` a day is new."""

    last_id: int = NOTHING_FED
    rows: int = 0


class Kept(msgspec.Struct, array_like=True):
    """What a market goes on from: its book behind the rows of a day, which were those of a version of `depth`."""

    version: int
    grid: int
    day: date
    fed: Fed
    book: bytes


class Line:
    """The books of one market in the making."""

    def __init__(self, work: Work, market: Market, days: list[date]) -> None:
        self._work, self._market = work, market
        self._rows = DepthRows(work.of, *market)
        self._app = f"build/books/{market.venue}/{market.symbol}"
        self._is_ours = pl.col("venue") == market.venue, pl.col("symbol") == market.symbol
        self._check_grid(days)
        self._kept = self._found_kept() if work.is_all and not work.again else None
        self._days = days
        self.todo = self._plan(days)

    def _check_grid(self, days: list[date]) -> None:
        """Raises `ConfigError` where there are rows of another grid that would stay."""
        derived, grid = self._work.derived, self._work.grid
        held = derived.noted(f"{self._app}/grid")
        if held in (0, grid.number):
            return
        was = f"the rows of {self._market} in book_snapshot were made with {Grid.numbered(held)}, not {grid}"
        if not self._work.again:
            raise ConfigError(f"{was}: say the same, or --again to make all of them anew")
        if not self._work.is_all:
            raise ConfigError(f"{was}: --again makes all of them anew, leave --start and --end out")
        gone = sorted(set(derived.days()) - set(days))
        if gone and (stays := derived.held(gone[0], gone[-1], *self._is_ours, pl.col("date").is_in(gone)).height):
            self._work.built.say(f"{self._market}: {stays} rows are of days without depth; they stay as they are")

    def _found_kept(self) -> Kept | None:
        state = self._work.derived.state(f"{self._app}/book")
        if state is None:
            return None
        try:
            kept = msgspec.msgpack.decode(state, type=Kept)
            Book.from_bytes(kept.book)
        except (msgspec.DecodeError, ValueError):
            return None  # of another version of this program
        return kept if kept.grid == self._work.grid.number else None

    def _plan(self, days: list[date]) -> list[date]:
        """The days to be made, in order."""
        kept, work = self._kept, self._work
        if kept is None:
            return days
        version = max(kept.version, work.derived.noted(self._app))
        changes = work.changed_since(version - 1)
        if changes is None:
            self._kept = None
            return days
        new = {change.day for change in changes if change.may_hold(self._market.symbol)}
        if late := sorted(day for day in new.intersection(days) if day < kept.day):
            self._kept = None
            return self._from_before(late[0], days)
        if not new and not any(day > kept.day for day in days):
            return []
        # A snapshot that came on a later day may be of this one.
        return [day for day in days if day >= kept.day]

    def _from_before(self, late: date, days: list[date]) -> list[date]:
        """The days to be made when rows came late. Where the venue does not say a snapshot's time it may be of the day
        before that on which it was received."""
        self._work.built.say(f"{self._market}: rows of {late} came late; what follows from them is made anew")
        return [day for day in days if day >= late - DAY]

    def steps(self, tell: Callable[[], None]) -> Steps:
        """Makes its days one after the other."""
        kept, left = self._kept, list(self.todo)
        book, fed = (kept.book, kept.fed) if kept else (None, Fed())
        while left:
            day = left.pop(0)
            if book is None:
                book, fed = yield Call(begin_at, (self._rows, day, self._work.grid))
            fed = fed if kept and kept.day == day else Fed(fed.last_id)
            played = yield Call(play_day, (self._rows.part(day - DAY, day + DAY), day, book, fed))
            if played is None:
                book, kept, left = None, None, self._from_before(day, self._days)
                continue
            book, fed = played.book, played.fed
            self._land(day, played)
            tell()
        self._note()

    def _land(self, day: date, played: "Played") -> None:
        work = self._work
        says = {"venue": self._market.venue, "symbol": self._market.symbol, "source": "derived"}
        made = shape(BOOK_SNAPSHOT, played.rows.with_columns(pl.lit(value).alias(name) for name, value in says.items()))
        is_made = pl.col("time") >= pl.lit(played.since_us).cast(TIME)
        found = difference(BOOK_SNAPSHOT, work.derived.held(day, day, *self._is_ours, is_made), made)
        work.derived.put(found.added, found.gone)
        tell_crossed(work.findings, self._market, played.crossed)
        work.built.days += 1
        work.built.computed += made.height
        work.built.added += found.added.height
        work.built.removed += found.gone.height
        work.derived.note(f"{self._app}/grid", work.grid.number)
        if work.is_all:
            kept = Kept(work.of.version + 1, work.grid.number, day, played.fed, played.book)
            work.derived.keep(f"{self._app}/book", msgspec.msgpack.encode(kept))

    def _note(self) -> None:
        if self._work.is_all:
            self._work.derived.note(self._app, self._work.of.version + 1)


# Tasks


class Played(NamedTuple):
    """A day's rows from `since_us` on (µs since 1970), and the book behind them."""

    rows: pl.DataFrame
    since_us: int
    book: bytes
    fed: Fed
    crossed: list[Crossed]


def play_day(rows: DepthRows, day: date, book: bytes, fed: Fed) -> Played | None:
    """A task: plays what the book was not fed with of a day. None when that has come late, and must be among the rest.

    Snapshots belong to the day of the events around them, whenever they came.
    """
    playing = Book.from_bytes(book)
    since_us = max((day - EPOCH.date()).days * DAY_US, playing.interval_us or 0)
    events = rows.ids(day, day)
    last_id = max(fed.last_id, int(events["final_update_id"][-1]) if events.height else NOTHING_FED)
    update_id = pl.col("final_update_id")
    is_beginning = (update_id < 0) & (pl.col("date") == day)
    snapshots = rows.snapshots(day - DAY, day + DAY)
    # Those of the day before are looked at when that day is made.
    counted = pl.concat([each.select("final_update_id") for each in (events, snapshots.filter(pl.col("date") >= day))])
    if fed.rows and (_count(counted, fed.last_id) != fed.rows or snapshots.filter(is_beginning).height):
        return None
    is_new = (update_id >= 0) & update_id.is_between(fed.last_id, last_id, closed="right")
    events, snapshots = events.filter(is_new), snapshots.filter(is_new | is_beginning)
    made = [playing.apply(piece) for piece in rows.play(events, snapshots)]
    # Intervals fill days evenly: at the end of one they are all over.
    shown = pl.concat([*made, playing.unfinished()]).filter(pl.col("time") >= pl.lit(since_us).cast(TIME))
    return Played(shown, since_us, playing.to_bytes(), Fed(last_id, _count(counted, last_id)), playing.crossed)


def _count(ids: pl.DataFrame, last_id: int) -> int:
    return ids.filter(pl.col("final_update_id").is_between(0, last_id)).height


def begin_at(rows: DepthRows, day: date, grid: Grid) -> tuple[bytes, Fed]:
    """A task: the book as a day finds it, from the last day before with a snapshot among its events."""
    book, fed = Book(levels=grid.levels, every_us=grid.every_us).to_bytes(), Fed()
    for each in _since_snapshot(rows, [each for each in rows.days() if each < day]):
        played = play_day(rows.part(each - DAY, each + DAY), each, book, Fed(fed.last_id))
        assert played is not None, "nothing can be late where nothing was fed"
        book, fed = played.book, played.fed
    return book, fed


def _since_snapshot(rows: DepthRows, days: list[date]) -> list[date]:
    """The last of the days, from the one on behind whose events nothing before it matters; all of them without one."""
    for number in reversed(range(len(days))):
        events = rows.ids(days[number], days[number])["final_update_id"]
        books = rows.snapshots(days[number], days[number] + DAY)["final_update_id"]
        if events.len() and books.is_between(events[0], events[-1]).any():
            return days[number:]
    return days


# Findings


def tell_crossed(findings: Findings, market: Market, crossed: list[Crossed]) -> None:
    """Books that stayed crossed."""
    rows = pl.DataFrame([each._asdict() for each in crossed])
    if rows.height:
        rows = rows.with_columns(venue=pl.lit(market.venue), symbol=pl.lit(market.symbol))
        facts = {"first_time": pl.col("first_us"), "last_time": pl.col("last_us"), "threshold": pl.lit(0.0)}
        same = {name: pl.col(name) for name in ("first_id", "last_id", "observed")}
        findings.add(rows, CROSSED, "error", **facts, **same)
