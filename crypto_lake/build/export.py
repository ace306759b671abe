"""Bars, and what stands beside them, into a Qlib root: only what is new where the old part is as it was."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import polars as pl

from crypto_lake.build.flow import OnStep, silently
from crypto_lake.build.select import EVERY, Market, chosen, source
from crypto_lake.config import ConfigError, nearest
from crypto_lake.models import DATASETS
from crypto_lake.models import qlib as names
from crypto_lake.models.bar import BAR, TRADES
from crypto_lake.models.qlib import DEFAULT_FIELDS, FREQUENCIES, Asked, Calendar, Manifest, Member, Span
from crypto_lake.query import qlib as query
from crypto_lake.query.qlib import Block, Finding, Held, Made, Window
from crypto_lake.query.snapshot import Snapshot, touched
from crypto_lake.query.span import span
from crypto_lake.writers.qlib import Root, taken

# Where a field may come from: of two tables that have one of that name the first.
TABLES: Final = tuple(name for name in ("bar", "indicator", "feature") if name in DATASETS)
NUMBERS: Final = (pl.Float64(), pl.Int64(), pl.Boolean())


class Wanted(NamedTuple):
    """What an export is asked for, as a user writes it; None: whatever there is, or what the root has."""

    timeframe: str = "1m"
    fields: str | None = None
    symbols: str | None = None
    venue: str | None = None
    start: str | None = None
    end: str | None = None
    origin: str | None = None


@dataclass(slots=True)
class Exported:
    """What an export did. `added` slots are new in the calendar; `is_anew`: no file was gone on from."""

    folder: str
    frequency: str
    symbols: int = 0
    fields: int = 0
    slots: int = 0
    added: int = 0
    is_anew: bool = False
    # What a user should know, each said once.
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(slots=True)
class Checked:
    """What a check found."""

    folder: str
    frequency: str
    symbols: int
    slots: int
    findings: list[Finding]


class _Changed(Exception):
    """The root cannot be gone on from: what it holds is not what it would be made of now."""


def export_qlib(root: str, out: Path, wanted: Wanted, *, on_step: OnStep = silently) -> Exported:
    """Brings the Qlib root `out` up to date with the tables under `root`, or makes it.

    A root only grows: symbols, fields and days that it has stay in it. Raises `ConfigError` for what a user can mend.
    """
    began = time.monotonic()
    frequency = frequency_of(wanted.timeframe)
    fields = fields_named(wanted.fields)
    _tables(root, fields)  # what is not there is said before a folder is made
    try:
        with taken(out, frequency):
            done = _Export(root, out, wanted, fields, on_step).run()
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written: {error.strerror or error}") from None
    done.seconds = time.monotonic() - began
    return done


def check_qlib(
    root: str, out: Path, *, venue: str | None = None, origin: str | None = None, on_step: OnStep = silently
) -> Checked:
    """Holds a Qlib root against its format and against the tables under `root`. Raises `ConfigError` where there is
    nothing to check, or no table to hold it against."""
    held = Held(out)
    findings, spans = query.judge(held)
    if not any(each.file.startswith(names.CALENDARS) for each in findings) and spans:
        made, unknown = _made_of(root, held, spans, venue, origin)
        own = {name: slots for name, slots in spans.items() if name in made.series}
        findings += unknown + query.check_values(held, own, made, on_step)
    return Checked(str(out), held.frequency, len(held.lines()), len(held.calendar), findings)


def frequency_of(timeframe: str) -> str:
    """What Qlib calls a timeframe. Raises `ConfigError`."""
    if timeframe not in FREQUENCIES:
        raise ConfigError(f"--timeframe {timeframe}: Qlib has {', '.join(FREQUENCIES)}")
    return FREQUENCIES[timeframe]


def field_tables() -> dict[str, str]:
    """Every field there is, with its table."""
    return {
        column.name: name
        for name in reversed(TABLES)
        for column in DATASETS[name].columns
        if column.dtype in NUMBERS and column.name not in DATASETS[name].key
    }


def fields_named(words: str | None) -> dict[str, str]:
    """Fields by a list with commas, each with its table. Raises `ConfigError` with the nearest for one there is not."""
    known = field_tables()
    asked = list(DEFAULT_FIELDS) if words is None else [part.strip() for part in words.split(",") if part.strip()]
    for name in asked:
        if name not in known:
            raise ConfigError(f"--fields: no table ({', '.join(TABLES)}) has {name!r}{nearest(name, known)}")
    if not asked:
        raise ConfigError("--fields: name at least one, such as close")
    return {name: known[name] for name in asked}


def _tables(root: str, fields: Mapping[str, str]) -> dict[str, Snapshot]:
    wanted = dict.fromkeys([BAR.name, *fields.values()])
    return {name: source(root, DATASETS[name], how=f"crypto-lake build {_maker(name)} makes it") for name in wanted}


def _maker(table: str) -> str:
    return f"{table}s"


class _Export:
    """One run: what the root has, what is wanted, and the way from one to the other."""

    def __init__(self, root: str, out: Path, wanted: Wanted, fields: dict[str, str], on_step: OnStep) -> None:
        self.out = out
        self.wanted = wanted
        self.noted = query.manifest(out)
        self.held = _held(out) if self.noted else None
        self.fields = fields_named(",".join(self.noted.fields)) | fields if self.noted else fields
        self.tables = _tables(root, self.fields)
        self.on_step = on_step
        self.done = Exported(str(out), FREQUENCIES[wanted.timeframe], fields=len(self.fields))

    def run(self) -> Exported:
        """Goes on from what is held where that can be done, else makes all of it anew."""
        since_us, until_us = self._span()
        every = {day for day in self.tables[BAR.name].days() if query.is_inside(day, since_us, until_us)}
        new = self._new_days(since_us)
        days = every if new is None else {day for day in new if query.is_inside(day, since_us, until_us)}
        series = _series(self.tables[BAR.name], days, self.wanted, self.noted, self.done)
        made = Made(self.wanted.timeframe, series, self.fields, self.tables, since_us, until_us)
        if self.held and self.noted and self.noted.fields == tuple(self.fields):
            try:
                return self._write(made, days if new is not None else days | self.held.days(), self.held)
            except _Changed:
                pass
        self.done.is_anew = True
        return self._write(made, every, None)

    def _span(self) -> tuple[int | None, int | None]:
        """Times from the first one to before the second (µs since 1970): those wanted, and those the root has."""
        since, until = span(self.wanted.start, self.wanted.end)
        since_us = None if since is None else int(since.timestamp() * 1e6)
        until_us = None if until is None else int(until.timestamp() * 1e6)
        if self.noted and since_us is not None:
            since_us = None if self.noted.start_us is None else min(since_us, self.noted.start_us)
        if self.held and until_us is not None:
            until_us = max(until_us, names.behind(int(self.held.calendar[-1]), self.held.frequency))
        return since_us, until_us

    def _new_days(self, since_us: int | None) -> set[date] | None:
        """The days on which something may differ from what the root has; None: on every one."""
        noted, asked = self.noted, self._asked
        if not self.held or not noted or (noted.asked, noted.start_us) != (asked, since_us):
            return None
        symbols = _symbols(asked.symbols)
        end = max(self.held.days())
        found = {day for day in self.tables[BAR.name].days() if day >= end}
        for each in self.tables.values():
            version = noted.versions.get(query.table_id(each))
            changes = None if version is None else touched(each, version)
            if changes is None:
                return None
            found |= {
                one.day
                for one in changes
                if symbols is None or any(one.may_hold(name) for name in symbols | noted.members.keys())
            }
        return found

    @property
    def _asked(self) -> Asked:
        return Asked(self.wanted.symbols, self.wanted.venue, self.wanted.origin)

    def _write(self, made: Made, days: Collection[date], held: Held | None) -> Exported:
        root = Root(self.out, made.frequency, held.manifest if held else None)
        if not root.undo():
            raise _Changed
        try:
            calendar = _grow(root, made, days, held, self.on_step)
        except BaseException:
            root.undo()
            raise
        if not root.spans:
            raise ConfigError(f"table bar holds no bars ({made.timeframe}) of what is wanted: widen --start and --end")
        members = {name: Member(*made.series[name], *slots) for name, slots in sorted(root.spans.items())}
        versions = {query.table_id(each): each.version for each in self.tables.values()}
        manifest = Manifest(
            made.timeframe,
            tuple(made.fields),
            members,
            len(calendar),
            names.digest(calendar),
            made.since_us,
            self._asked,
            versions,
        )
        if manifest != self.noted or not held:
            root.finish(calendar, manifest)
        self.done.symbols, self.done.slots = len(members), len(calendar)
        self.done.added = len(calendar) - (len(self.held.calendar) if self.held else 0)
        return self.done


def _held(out: Path) -> Held | None:
    """What the root holds, if an export can go on from it."""
    if not query.frequencies(out):
        return None
    held = Held(out)
    return held if held.is_as_noted() else None


def _symbols(words: str | None) -> set[str] | None:
    """The symbols in a list with commas, without their venues; None: all."""
    found = {word.strip().rpartition(":")[2] for word in (words or EVERY).split(",")}
    return None if found == {EVERY} else found


# Which series


def _series(
    bars: Snapshot, days: Collection[date], wanted: Wanted, noted: Manifest | None, done: Exported
) -> dict[str, tuple[str, str]]:
    """Venue and origin of each symbol: those that the root has, and those that are wanted. Raises `ConfigError`."""
    members = noted.members if noted else {}
    origins = _origins(bars, days, wanted)
    there = {*origins, *(Market(each.venue, symbol) for symbol, each in members.items())}
    of = ", ".join(word for word in (wanted.timeframe, wanted.origin) if word)
    if not there:
        of_symbols = f" of {wanted.symbols}" if wanted.symbols else ""
        raise ConfigError(f"table bar holds no bars ({of}){of_symbols} of that time: crypto-lake build bars makes some")
    markets = chosen(there, wanted.symbols, wanted.venue, table=f"bar ({of})")
    unfit = sorted({market.symbol for market in markets if not names.is_symbol(market.symbol)})
    if unfit:
        done.notes.append(f"skipped, since Qlib has no such names: {', '.join(unfit)}")
    found = {symbol: (each.venue, each.origin) for symbol, each in members.items()}
    for market in markets:
        if names.is_symbol(market.symbol):
            if market.symbol not in found:
                found[market.symbol] = market.venue, _origin(market, origins[market], wanted)
            _refuse_another(market, *found[market.symbol], wanted)
    return found


def _origins(bars: Snapshot, days: Collection[date], wanted: Wanted) -> dict[Market, set[str]]:
    """The origins of the bars that each market has on some days."""
    if not days:
        return {}
    symbols = _symbols(wanted.symbols)
    rows = bars.scan(min(days), max(days), symbols=symbols).filter(pl.col("timeframe") == wanted.timeframe)
    if wanted.origin:
        rows = rows.filter(pl.col("origin") == wanted.origin)
    found: dict[Market, set[str]] = {}
    for venue, symbol, origin in rows.select("venue", "symbol", "origin").unique().collect(engine="streaming").rows():
        found.setdefault(Market(venue, symbol), set()).add(origin)
    return found


def _origin(market: Market, there: set[str], wanted: Wanted) -> str:
    """What was asked for; else bars that were made here, or the only ones there are."""
    if wanted.origin or TRADES in there:
        return wanted.origin or TRADES
    if len(there) > 1:
        raise ConfigError(f"{market} has bars of {' and '.join(sorted(there))}: say --origin")
    return next(iter(there))


def _refuse_another(market: Market, venue: str, origin: str, wanted: Wanted) -> None:
    """Qlib has one series of a symbol."""
    if venue != market.venue:
        raise ConfigError(
            f"{market.symbol} is wanted of {venue} and of {market.venue}, and Qlib knows no venues: say --venue, or "
            f"{venue}:{market.symbol}; another one goes into another root"
        )
    if wanted.origin not in (None, origin):
        raise ConfigError(
            f"--origin {wanted.origin}: the root has {market.symbol} of {origin}; another origin goes into another root"
        )


# Growth


def _grow(root: Root, made: Made, days: Collection[date], held: Held | None, on_step: OnStep) -> Calendar:
    """Appends what is behind the ends of the root's files; the calendar then. Raises `_Changed` when what is not behind
    them differs."""
    parts = [held.calendar if held else np.empty(0, np.int64)]
    total, done = len(parts[0]), 0
    for first, last in made.blocks(days):
        block = made.block(first, last)
        window = Window.of(parts[0], block)
        if not window.agrees(parts[0], block):
            raise _Changed
        known = window.end - window.begin
        new = block.calendar[known:]
        _grow_by(root, made, block, window, held, offset=window.begin if known else total)
        parts.append(new)
        total += len(new)
        done += (last - first).days + 1
        on_step(f"bar {made.timeframe}", done, len(days))
        if total > names.MOST_SLOTS:
            raise ConfigError(
                f"there are more than {names.MOST_SLOTS:,} slots of {made.timeframe}, and Qlib counts them in a 4-byte "
                "float: choose a later --start or a longer --timeframe"
            )
    return np.concatenate(parts)


def _grow_by(root: Root, made: Made, block: Block, window: Window, held: Held | None, *, offset: int) -> None:
    """By a block, whose first slot is the root's slot `offset`."""
    noted = {name: each.span for name, each in held.manifest.members.items()} if held and held.manifest else {}
    if query.early(noted, block, window):
        raise _Changed
    new = {symbol: place for symbol in block.rows if (place := _new_places(root, block, symbol, offset))}
    for fields in made.slices(len(block.places)):
        columns = made.values(block, fields)
        if held and next(query.differences(held, noted, block, window, columns), None):
            raise _Changed
        for symbol, (begin, end) in new.items():
            dense = {name: block.dense(symbol, column, begin, end) for name, column in columns.items()}
            root.append(symbol, offset + begin, dense)
    for symbol, (begin, end) in new.items():
        root.advance(symbol, offset + begin, end - begin)


def _new_places(root: Root, block: Block, symbol: str, offset: int) -> tuple[int, int] | None:
    """From which place in the block to before which one a symbol has bars behind the end of its files."""
    places = block.places[block.rows[symbol]]
    if symbol in root.spans:
        places = places[places + offset >= root.spans[symbol].end]
    return (int(places[0]), int(places[-1]) + 1) if len(places) else None


# The check


def _made_of(
    root: str, held: Held, spans: Mapping[str, Span], venue: str | None, origin: str | None
) -> tuple[Made, list[Finding]]:
    """What a root should be made of; with it the fields that no table has."""
    known, there = field_tables(), dict.fromkeys(name for symbol in spans for name in held.fields(symbol))
    fields = {name: known[name] for name in there if name in known}
    timeframe = next(name for name, frequency in FREQUENCIES.items() if frequency == held.frequency)
    tables = _tables(root, fields)
    noted = held.manifest
    if noted:
        series = {name: (each.venue, each.origin) for name, each in noted.members.items() if name in spans}
    else:
        wanted = Wanted(timeframe, symbols=",".join(spans), venue=venue, origin=origin)
        series = _series(tables[BAR.name], tables[BAR.name].days(), wanted, None, Exported("", ""))
    since_us = noted.start_us if noted else int(held.calendar[0])
    unknown = [Finding(names.FEATURES, f"no table has a field {name!r}") for name in there if name not in known]
    until_us = names.behind(int(held.calendar[-1]), held.frequency)
    return Made(timeframe, series, fields, tables, since_us, until_us), unknown
