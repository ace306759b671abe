"""Reads what Qlib is given and what it was made of, and says where the two differ (the check of ANALYTICS 6)."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
import polars as pl
from deltalake import DeltaTable
from numpy.typing import NDArray

from crypto_lake.config import ConfigError
from crypto_lake.models import qlib
from crypto_lake.models.bar import BAR
from crypto_lake.models.dataset import TIME
from crypto_lake.models.qlib import Calendar, Manifest, Span
from crypto_lake.query.days import midnight
from crypto_lake.query.snapshot import Snapshot
from crypto_lake.query.span import DAY, TICK

Values = NDArray[np.float32]
OnStep = Callable[[str, int, int], None]

# So many values are in memory at a time; each is some 20 bytes while it is on its way.
CELLS: Final = 4_000_000
NEAREST_LINES: Final = 3
KEY: Final = ["symbol", "slot"]


class Finding(NamedTuple):
    """Something that is wrong with a root: the file, and what."""

    file: str
    what: str


# What a root should hold


@dataclass(frozen=True, slots=True)
class Made:
    """What a root is made of: the bars of some series, and fields out of that table or others beside them.

    `series` has the venue and the origin of each symbol, `fields` the table of each field. Bars are those with a time
    from `since_us` to before `until_us`.
    """

    timeframe: str
    series: Mapping[str, tuple[str, str]]
    fields: Mapping[str, str]
    tables: Mapping[str, Snapshot]
    since_us: int | None = None
    until_us: int | None = None

    @property
    def frequency(self) -> str:
        """What Qlib calls the timeframe."""
        return qlib.FREQUENCIES[self.timeframe]

    def blocks(self, days: Collection[date]) -> Iterator[tuple[date, date]]:
        """Runs of `days` that follow on each other, in order, none with much more than `CELLS` values to read unless it
        is one day."""
        rows: dict[date, int] = {}
        for file in self.tables[BAR.name].files:
            if file.may_hold(self.series):
                rows[file.day] = rows.get(file.day, 0) + (file.rows or 0)
        run: list[date] = []
        gathered = 0
        for day in sorted(days):
            cells = rows.get(day, 0) * (len(self.fields) + 1)
            if run and (day - run[-1] > DAY or gathered + cells > CELLS):
                yield run[0], run[-1]
                run, gathered = [], 0
            run.append(day)
            gathered += cells
        if run:
            yield run[0], run[-1]

    def block(self, first: date, last: date) -> "Block":
        """The bars of some days. Raises `ConfigError` where two of a symbol share a slot."""
        found = self._bars(first, last, ()).sort(KEY).collect(engine="streaming")
        same = (pl.col("symbol") == pl.col("symbol").shift(1)) & (pl.col("slot") == pl.col("slot").shift(1))
        for symbol, slot in found.filter(same).head(1).iter_rows():
            when = qlib.written(np.array([slot], np.int64), self.frequency)[0]
            raise ConfigError(
                f"table bar holds two bars ({self.timeframe}) of {symbol} at {when}: crypto-lake validate --advanced "
                "shows them"
            )
        calendar, places = np.unique(found["slot"].to_numpy(), return_inverse=True)
        runs = found["symbol"].rle().struct.unnest()
        behind = runs["len"].cum_sum().to_list()
        rows = {name: slice(end - size, end) for (size, name), end in zip(runs.iter_rows(), behind, strict=True)}
        return Block(first, last, calendar, places, rows)

    def slices(self, rows: int) -> Iterator[tuple[str, ...]]:
        """All fields, so many at a time that the values of so many bars are about `CELLS`."""
        names = list(self.fields)
        step = max(1, CELLS // max(rows, 1))
        return (tuple(names[begin : begin + step]) for begin in range(0, len(names), step))

    def values(self, block: "Block", fields: Sequence[str]) -> dict[str, Values]:
        """Some fields of a block's rows as float32; NaN where a table has no row or no value."""
        rows = self._bars(block.first, block.last, [name for name in fields if self.fields[name] == BAR.name])
        for table in dict.fromkeys(self.fields[name] for name in fields):
            if table != BAR.name:
                rows = rows.join(self._beside(table, block, fields), on=KEY, how="left")
        found = rows.sort(KEY).select(pl.col(fields).fill_null(float("nan"))).collect(engine="streaming")
        assert found.height == len(block.places)
        return {name: found[name].to_numpy() for name in fields}

    def _bars(self, first: date, last: date, fields: Sequence[str]) -> pl.LazyFrame:
        series = pl.LazyFrame(
            [(symbol, *of) for symbol, of in self.series.items()], schema=["symbol", "venue", "origin"], orient="row"
        )
        rows = self._scan(BAR.name, first, last).join(series, on=series.collect_schema().names(), how="semi")
        return rows.select("symbol", qlib.slot(self.frequency), *_floats(fields))

    def _beside(self, table: str, block: "Block", fields: Sequence[str]) -> pl.LazyFrame:
        series = pl.LazyFrame(
            [(symbol, venue) for symbol, (venue, _) in self.series.items()], schema=["symbol", "venue"], orient="row"
        )
        rows = self._scan(table, block.first, block.last).join(series, on=["symbol", "venue"], how="semi")
        own = [name for name in fields if self.fields[name] == table]
        return rows.select("symbol", qlib.slot(self.frequency), *_floats(own))

    def _scan(self, table: str, first: date, last: date) -> pl.LazyFrame:
        rows = self.tables[table].scan(
            first, last, symbols=self.series.keys(), since_us=self.since_us, until_us=self.until_us
        )
        return rows.filter(pl.col("timeframe") == self.timeframe)


def _floats(fields: Sequence[str]) -> list[pl.Expr]:
    return [pl.col(name).cast(pl.Float32) for name in fields]


@dataclass(frozen=True, slots=True)
class Block:
    """The bars of some days: `calendar` has their slots, `places` of each row which of these it is, and `rows` those of
    each symbol."""

    first: date
    last: date
    calendar: Calendar
    places: NDArray[np.intp]
    rows: Mapping[str, slice]

    def dense(self, symbol: str, column: Values, begin: int, end: int) -> Values:
        """A symbol's values for the block's slots from `begin` to before `end`, NaN where it has none."""
        found = np.full(end - begin, np.nan, qlib.VALUE)
        rows = self.rows.get(symbol, slice(0))
        places = self.places[rows] - begin
        inside = (places >= 0) & (places < end - begin)
        found[places[inside]] = column[rows][inside]
        return found


# What a root holds


class Held:
    """A root at rest. Opening it raises `ConfigError` when there is no calendar to go by."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.frequency = _frequency(root)
        self.manifest = manifest(root)
        path = qlib.calendar_path(root, self.frequency)
        self.texts = pl.Series("line", path.read_bytes().decode("utf-8", "replace").splitlines(), pl.String())
        slots = qlib.parsed(self.texts, self.frequency)
        self.calendar: Calendar = slots.fill_null(-1).to_numpy()
        self.misfits = self.texts.filter(slots.is_null()).head(NEAREST_LINES).to_list()

    def lines(self) -> list[list[str]]:
        """What instruments/all.txt says, line by line; nothing if there is no such file."""
        path = qlib.instruments_path(self.root)
        text = path.read_bytes().decode("utf-8", "replace") if path.exists() else ""
        return [line.split("\t") for line in text.split("\n")[: -1 if text.endswith("\n") else None]]

    def fields(self, symbol: str) -> list[str]:
        """The fields that a symbol has files of."""
        ending = f".{self.frequency}.bin"
        folder = self.root / qlib.FEATURES / qlib.directory(symbol)
        return sorted(path.name.removesuffix(ending) for path in folder.glob(f"*{ending}"))

    def path(self, symbol: str, field: str) -> Path:
        """The file of a field."""
        return qlib.values_path(self.root / qlib.FEATURES, symbol, field, self.frequency)

    def values(self, symbol: str, field: str, span: Span, begin: int, end: int) -> Values:
        """The values of the slots from `begin` to before `end`, which are inside the symbol's span."""
        with self.path(symbol, field).open("rb") as file:
            file.seek((1 + begin - span.start) * qlib.VALUE.itemsize)
            return np.frombuffer(file.read((end - begin) * qlib.VALUE.itemsize), qlib.VALUE)

    def days(self) -> set[date]:
        """The days on which there are slots."""
        return set(pl.Series(self.calendar).cast(TIME).dt.date().unique())

    def is_as_noted(self) -> bool:
        """Whether calendar and instruments are those of the manifest: no export was killed while it wrote them."""
        noted = self.manifest
        if noted is None or (noted.slots, noted.digest) != (len(self.calendar), qlib.digest(self.calendar)):
            return False
        members = sorted(noted.members.items())
        ends = np.array([slot for _, each in members for slot in (each.start, each.span.end - 1)], np.int64)
        if ends.size and ends.max() >= noted.slots:
            return False
        texts = self.texts.gather(ends)
        lines = zip((name for name, _ in members), texts[::2], texts[1::2], strict=True)
        return [list(line) for line in lines] == self.lines()


def is_inside(day: date, since_us: int | None, until_us: int | None) -> bool:
    """Whether a part of the day is from the first time to before the second."""
    begin_us = int(midnight(day).timestamp()) * 1_000_000
    return (until_us is None or begin_us < until_us) and (since_us is None or begin_us + DAY // TICK > since_us)


def table_id(table: Snapshot) -> str:
    """What tells a table from another one that was made later in its place."""
    return str(DeltaTable(table.uri).metadata().id)


def frequencies(root: Path) -> list[str]:
    """The frequencies that there is a calendar of."""
    names = (path.stem for path in (root / qlib.CALENDARS).glob("*.txt"))
    return sorted(name for name in names if not name.endswith("_future"))


def _frequency(root: Path) -> str:
    there = frequencies(root)
    if not there:
        raise ConfigError(
            f"{root}: there is no calendar: not a Qlib root, or an export into it came to no end; make it again with "
            "crypto-lake export qlib"
        )
    if len(there) > 1 or there[0] not in qlib.FREQUENCIES.values():
        known = ", ".join(qlib.FREQUENCIES.values())
        raise ConfigError(f"{root}: has calendars of {', '.join(there)}; a root has one of {known}")
    return there[0]


def manifest(root: Path) -> Manifest | None:
    """What was noted of a root; None if nothing was, or nothing that can be read."""
    try:
        return qlib.decoded((root / qlib.MANIFEST).read_bytes())
    except (FileNotFoundError, msgspec.DecodeError):
        return None


# The check


def judge(held: Held) -> tuple[list[Finding], dict[str, Span]]:
    """What is wrong with a root whatever it was made of; and the slots of each symbol whose files can be compared."""
    findings = [Finding(_short(held, qlib.calendar_path(held.root, held.frequency)), what) for what in _calendar(held)]
    findings += [Finding(_short(held, qlib.instruments_path(held.root)), what) for what in _instruments(held)]
    spans: dict[str, Span] = {}
    for line in held.lines():
        wrong, span = _symbol(held, line[0])
        findings += wrong
        if span is not None:
            findings += _ends(held, line, span)
            spans[line[0]] = span
    return findings, spans


def _calendar(held: Held) -> Iterator[str]:
    if held.misfits:
        yield f"{held.misfits[0]!r} is no time as {held.frequency} has it"
    if held.texts.is_empty():
        yield "is empty"
    if len(held.calendar) > qlib.MOST_SLOTS:
        yield f"has {len(held.calendar):,} slots; indexes are exact up to {qlib.MOST_SLOTS:,}"
    if not held.misfits and (np.diff(held.calendar) <= 0).any():
        at = int(np.argmax(np.diff(held.calendar) <= 0)) + 1
        yield f"line {at + 1}: {held.texts[at]} does not come after {held.texts[at - 1]}"


def _instruments(held: Held) -> Iterator[str]:
    lines = held.lines()
    if not lines:
        yield "is missing or empty"
    elif held.manifest and not held.is_as_noted():
        yield "is not what was noted of it, or the calendar is not: an export into it came to no end; export again"
    names = [line[0] for line in lines]
    if names != sorted(set(names)):
        yield "is not sorted by symbol, or names one twice"
    for number, line in enumerate(lines, 1):
        if len(line) != 3 or any(not part or part != part.strip() for part in line):
            yield f"line {number}: is not SYMBOL, first and last slot with tabs between them"
        elif line[0] != line[0].upper():
            yield f"line {number}: {line[0]} is not upper case"
        elif len(held.calendar):
            first, last = qlib.parsed(pl.Series(line[1:]), held.frequency)
            if first is None or last is None or first > last:
                yield f"line {number}: {line[1]} to {line[2]} is no span of {held.frequency}"
            elif first < held.calendar[0] or last > held.calendar[-1]:
                yield f"line {number}: {line[1]} to {line[2]} is not inside the calendar"


def _symbol(held: Held, symbol: str) -> tuple[list[Finding], Span | None]:
    """What is wrong with the files of a symbol; their common slots, if they have."""
    folder = held.root / qlib.FEATURES / qlib.directory(symbol)
    if not symbol or not folder.is_dir():
        return [Finding(_short(held, folder), f"is missing; {symbol} is an instrument")], None
    if not (fields := held.fields(symbol)):
        return [Finding(_short(held, folder), f"has no field of {held.frequency}")], None
    found = {field: _file(held, held.path(symbol, field)) for field in fields}
    findings = [
        Finding(_short(held, held.path(symbol, field)), each) for field, each in found.items() if isinstance(each, str)
    ]
    spans = {field: each for field, each in found.items() if not isinstance(each, str)}
    findings += _lacking(held, symbol, fields)
    if len(set(spans.values())) > 1:
        ends = "; ".join(f"{field} {span.start} to {span.end - 1}" for field, span in spans.items())
        findings.append(Finding(_short(held, folder), f"fields have not the same slots: {ends}"))
    return findings, None if findings else next(iter(spans.values()))


def _lacking(held: Held, symbol: str, fields: list[str]) -> list[Finding]:
    """A field that is missing is read as empty, without an error."""
    wanted = held.manifest.fields if held.manifest else ()
    folder = held.root / qlib.FEATURES / qlib.directory(symbol)
    found = [f"has no file of the field {name}" for name in wanted if name not in fields]
    found += [f"{name!r} is no name of a field" for name in fields if not qlib.is_field(name)]
    return [Finding(_short(held, folder), what) for what in found]


def _file(held: Held, path: Path) -> Span | str:
    """The slots of a file, or what is wrong with it."""
    size, unit = path.stat().st_size, qlib.VALUE.itemsize
    if size % unit or size < 2 * unit:
        return f"has {size:,} bytes: not an index and values of {unit} bytes each"
    with path.open("rb") as file:
        start = float(np.frombuffer(file.read(unit), qlib.VALUE)[0])
    if not (start >= 0 and start.is_integer()):
        return f"begins with {start:g}, which is no index"
    span = Span(int(start), size // unit - 1)
    if span.end > len(held.calendar):
        return f"ends at slot {span.end - 1:,}; the calendar has {len(held.calendar):,}"
    return span


def _ends(held: Held, line: list[str], span: Span) -> list[Finding]:
    said, are = line[1:], [held.texts[span.start], held.texts[span.end - 1]]
    if said == are:
        return []
    file = _short(held, qlib.instruments_path(held.root))
    return [Finding(file, f"{line[0]}: says {' to '.join(said)}; its files are of {' to '.join(are)}")]


class Difference(NamedTuple):
    """Where a file differs from what it should be made of: how many values do, the first of them, and its values."""

    symbol: str
    field: str
    values: int
    slot: int
    is_: float
    should_be: float


class Window(NamedTuple):
    """The slots of a root that are of a block's days: from `begin` to before `end`."""

    begin: int
    end: int

    @classmethod
    def of(cls, calendar: Calendar, block: Block) -> "Window":
        """The window of a block in a calendar."""
        days = np.array([block.first, block.last + DAY], "datetime64[us]").astype(np.int64)
        begin, end = np.searchsorted(calendar, days)
        return cls(int(begin), int(end))

    def agrees(self, calendar: Calendar, block: Block) -> bool:
        """Whether the calendar has the block's slots and no other, as far as it goes; behind its end they are new."""
        count = self.end - self.begin
        is_same = np.array_equal(block.calendar[:count], calendar[self.begin : self.end])
        return is_same and (len(block.calendar) == count or self.end == len(calendar))


def differences(
    held: Held, spans: Mapping[str, Span], block: Block, window: Window, columns: Mapping[str, Values]
) -> Iterator[Difference]:
    """Where the files of the symbols in `spans` are not what a block says. Bars behind the last slot of a symbol are
    new, and no difference."""
    for symbol, span in spans.items():
        begin, end = max(window.begin, span.start), min(window.end, span.end)
        for field, column in columns.items() if begin < end else ():
            is_ = held.values(symbol, field, span, begin, end)
            should_be = block.dense(symbol, column, begin - window.begin, end - window.begin)
            differ = ~((is_ == should_be) | (np.isnan(is_) & np.isnan(should_be)))
            if differ.any():
                at = int(np.argmax(differ))
                yield Difference(symbol, field, int(differ.sum()), begin + at, float(is_[at]), float(should_be[at]))


def early(spans: Mapping[str, Span], block: Block, window: Window) -> dict[str, int]:
    """How many bars a block has of a symbol before the symbol's first slot."""
    found = {}
    for symbol, rows in block.rows.items():
        if symbol in spans and (count := int((block.places[rows] + window.begin < spans[symbol].start).sum())):
            found[symbol] = count
    return found


def check_values(held: Held, spans: Mapping[str, Span], made: Made, on_step: OnStep) -> list[Finding]:
    """Compares all values of a root with what it is made of; what `judge` finds fault with is left out of `spans`."""
    own = held.days()
    end = max(own)
    days = own | {
        day for day in made.tables[BAR.name].days() if day <= end and is_inside(day, made.since_us, made.until_us)
    }
    findings: list[Finding] = []
    told: dict[tuple[str, str], Difference] = {}
    done = 0
    for first, last in made.blocks(days):
        block = made.block(first, last)
        window = Window.of(held.calendar, block)
        if not window.agrees(held.calendar, block):
            findings.append(_other_slots(held, block, window))
            continue
        findings += [
            Finding(_short(held, qlib.instruments_path(held.root)), f"{symbol}: {count:,} bars before its first slot")
            for symbol, count in early(spans, block, window).items()
        ]
        for fields in made.slices(len(block.places)):
            for each in differences(held, spans, block, window, made.values(block, fields)):
                before = told.get((each.symbol, each.field), each._replace(values=0))
                told[each.symbol, each.field] = before._replace(values=before.values + each.values)
        done += (last - first).days + 1
        on_step("check", done, len(days))
    return findings + [_different(held, each, made) for each in told.values()]


def _other_slots(held: Held, block: Block, window: Window) -> Finding:
    theirs = held.calendar[window.begin : window.end]
    ours = block.calendar if window.end < len(held.calendar) else block.calendar[block.calendar <= held.calendar[-1]]
    counts = len(np.setdiff1d(theirs, ours)), len(np.setdiff1d(ours, theirs))
    file = _short(held, qlib.calendar_path(held.root, held.frequency))
    words = f"has {counts[0]:,} slots without a bar and lacks those of {counts[1]:,} bars; export again"
    return Finding(file, f"{block.first} to {block.last}: {words}")


def _different(held: Held, each: Difference, made: Made) -> Finding:
    table = made.fields[each.field]
    words = f"{each.values:,} values are not those of table {table}, first at {held.texts[each.slot]}"
    return Finding(_short(held, held.path(each.symbol, each.field)), f"{words}: {each.is_!r}, not {each.should_be!r}")


def _short(held: Held, path: Path) -> str:
    return str(path.relative_to(held.root))
