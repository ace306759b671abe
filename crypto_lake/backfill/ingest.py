"""Archives into their table: read in pieces, shaped and checked like live rows, and committed with their marks."""

import fcntl
import glob
import itertools
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any, Final, Protocol

import polars as pl

from crypto_lake.backfill.findings import note_all
from crypto_lake.backfill.plan import Job, Wanted, bits, lacks
from crypto_lake.backfill.unpack import Damaged, pieces
from crypto_lake.connections.objects import Fetched
from crypto_lake.models import Dataset
from crypto_lake.models.bucket import DAY
from crypto_lake.models.dataset import TIME, Archive
from crypto_lake.models.dump_file import DUMP_FILE, INGESTED
from crypto_lake.models.quality import QUALITY
from crypto_lake.models.rejected import REJECTED
from crypto_lake.processors.compare import Compared, compare
from crypto_lake.processors.decode import Refused
from crypto_lake.processors.delimited import Layout, Misfit
from crypto_lake.processors.quality import Checks
from crypto_lake.processors.shape import Finding, finding_rows, rejected_rows, shape
from crypto_lake.writers import CommitConflict, CommitFailed
from crypto_lake.writers.bulk import Bulk, Mark
from crypto_lake.writers.delta import Lake, reason

# Somebody who adds the very same rows is met again and again only when something is wrong.
CONFLICTS: Final = 10
# Rows in disorder are sorted in stretches of about so many.
STRETCH_ROWS: Final = 1_000_000
DUMP: Final = "dump"
# Of rows that only one side has, or that differ, so many of a day are shown.
EXAMPLES: Final = 100


def _some(dataset: Dataset, held: pl.DataFrame, more: pl.DataFrame) -> pl.DataFrame:
    """The first ones by their keys: the same ones whatever files the table has them in."""
    return (pl.concat([held, more]) if held.width else more).sort(dataset.key).head(EXAMPLES)


class Stopped(Exception):
    """Somebody asked us to stop; nothing of what was under way is in the tables."""


class Unfit(Exception):
    """An archive cannot be what it should be; the text says which and why."""

    def __init__(self, landed: Any, reason: str) -> None:
        super().__init__(reason)
        self.landed = landed


class Gone(Unfit):
    """An archive is not where it was: another backfill has taken it, and removed it."""


class Overlap(Exception):
    """Archives of one symbol have rows of one day: `front` has to be in the table before `behind` is read."""

    def __init__(self, front: Sequence["Landed"], behind: Sequence["Landed"]) -> None:
        super().__init__(behind[0].job.file.path)
        self.front, self.behind = front, behind


@dataclass(frozen=True, slots=True)
class Landed:
    """An archive that was downloaded, and where there is one the archive beside it."""

    job: Job
    fetched: Fetched
    beside: Fetched | None = None
    is_compared: bool = False  # value by value with the rows that the table has, not only key by key


@dataclass(slots=True)
class Day:
    """A day of an archive: its rows, each once; those of them that the table had; those that only the table has.

    When both were compared, `lone` are examples of what only the table has (`last_lone` is the last of all), and `ours`
    and `theirs` of what differs under one key, in pairs; `differing` counts these (None: not compared).
    """

    rows: int = 0
    known: int = 0
    only_ours: int = 0
    differing: int | None = None
    lone: pl.DataFrame = field(default_factory=pl.DataFrame)
    last_lone: pl.DataFrame = field(default_factory=pl.DataFrame)
    ours: pl.DataFrame = field(default_factory=pl.DataFrame)
    theirs: pl.DataFrame = field(default_factory=pl.DataFrame)

    def compare(self, dataset: Dataset, compared: Compared) -> None:
        """Takes what a comparison of a part of the day found."""
        self.differing = (self.differing or 0) + compared.ours.height
        self.lack(dataset, compared.only_ours)
        self.ours = _some(dataset, self.ours, compared.ours)
        self.theirs = _some(dataset, self.theirs, compared.theirs)

    def lack(self, dataset: Dataset, rows: pl.DataFrame) -> None:
        """Takes rows of the table that the archive lacks."""
        self.only_ours += rows.height
        self.lone = _some(dataset, self.lone, rows)
        both = pl.concat([self.last_lone, rows]) if self.last_lone.width else rows
        self.last_lone = both.sort(dataset.key).tail(1)


@dataclass(slots=True)
class Taken:
    """What became of an archive."""

    landed: Landed
    rows: int = 0  # lines that are rows, with repetitions
    first_time: datetime | None = None
    last_time: datetime | None = None
    days: dict[date, Day] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)
    findings: list[pl.DataFrame] = field(default_factory=list)

    @property
    def job(self) -> Job:
        """What it was fetched for."""
        return self.landed.job

    @property
    def lacking(self) -> list[date]:
        """Wanted days of which a file about many days has no row."""
        is_one = len(self.job.file.days) == 1
        return [] if is_one else [day for day in self.job.days if day not in self.days]

    @property
    def done(self) -> list[date]:
        """The days that are in the table now, whole as far as the archive goes."""
        lacking = set(self.lacking)
        return [day for day in self.job.days if day not in lacking]

    @property
    def added(self) -> int:
        """Rows that the table did not have."""
        return sum(day.rows - day.known for day in self.days.values())


@dataclass(frozen=True, slots=True)
class Told:
    """How an ingest tells of its progress, and is told to stop."""

    on_rows: Callable[[int], None] = lambda _: None
    stop: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        """Raises `Stopped` when somebody asks to stop."""
        if self.stop.is_set():
            raise Stopped


def ingest(
    lake: Lake,
    wanted: Wanted,
    landed: Sequence[Landed],
    *,
    known: Mapping[str, str],
    now: datetime,
    told: Told,
    are_noted: bool = True,
) -> list[Taken]:
    """Puts the rows of some archives into the table, those that it lacks, in one commit.

    `known` are the paths in the ledger whose rows are in already, with their sums. What comparisons find is noted in
    `quality`, unless the caller does that (`are_noted`). Raises `Unfit` for an archive that is not what it should be,
    `Overlap` for some that cannot share a commit, `Stopped`, `CommitFailed`; nothing is in the tables then, but maybe
    words about it.
    """
    mixed: set[str] = set()
    ordered = sorted(landed, key=_place)
    known = dict(known)
    for _ in range(CONFLICTS + len(landed)):
        bulk = Bulk(lake, wanted.dataset, silent=_silent(wanted))
        try:
            archives = [_Archive(bulk, wanted, each, now, told) for each in ordered]
            each_taken = (archive.take(is_mixed=archive.file.path in mixed) for archive in archives)
            taken = list(_apart(ordered, each_taken, 1 if wanted.dataset.is_retold else 0))
            _note(lake, wanted.dataset, taken, now)
            if are_noted:
                note_all(lake, wanted.dataset, taken, now=now)
            enter(lake, [each for each in taken if not each.landed.is_compared], known, now=now)
            bulk.commit(_marks(wanted, taken))
            return taken
        except CommitConflict:
            continue
        except _Mixed as found:
            mixed.add(found.path)
        except (OSError, pl.exceptions.PolarsError) as error:  # a disk that is full, of the tables or of what is sorted
            raise CommitFailed(f"{lake.uri(wanted.dataset)}: {reason(error)}") from error
        finally:
            bulk.discard()
    raise CommitConflict(f"{wanted.dataset.name}: somebody else keeps adding the same rows")


def _silent(wanted: Wanted) -> frozenset[str]:
    """The columns of which the archives say nothing."""
    archives = [wanted.archive, *([wanted.archive.beside] if wanted.archive.beside else [])]
    says = wanted.dataset.dump.says if wanted.dataset.dump else {}
    return wanted.dataset.silent(says, *(each.columns.values() for each in archives))


def ledger(lake: Lake) -> dict[str, tuple[str, str]]:
    """Of every path in the ledger the newest sum and state."""
    rows = lake.rows(DUMP_FILE).sort("state_time", maintain_order=True).unique("path", keep="last")
    return {path: (sha256, state) for path, sha256, state in rows.select("path", "sha256", "state").iter_rows()}


def _place(landed: Landed) -> tuple[str, date]:
    return landed.job.file.symbol, landed.job.file.first


def _apart(ordered: Sequence[Landed], taken: Iterable[Taken], reach: int) -> Iterator[Taken]:
    """The same. What they add was looked for in the table, not in each other: raises `Overlap` if two add to a day.

    Or to days that are not farther from each other than `reach`.
    """
    added_to: set[tuple[str, date]] = set()
    for number, each in enumerate(taken):
        days = {day for day, found in each.days.items() if found.rows > found.known}
        near = {(each.job.file.symbol, day + off * DAY) for day in days for off in range(-reach, reach + 1)}
        if not near.isdisjoint(added_to):
            raise Overlap(ordered[:number], ordered[number:])
        added_to |= {(each.job.file.symbol, day) for day in days}
        yield each


def _marks(wanted: Wanted, taken: Iterable[Taken]) -> list[Mark]:
    """The days that are in now, and those that a month's file lacks: it is not fetched for these again."""
    days: dict[str, set[date]] = {}
    for each in taken:
        app = wanted.app(each.job.file.symbol, each.job.file.first.replace(day=1))
        for name, some in ((app, each.done), (lacks(app), each.lacking)):
            if some:
                days.setdefault(name, set()).update(some)
    return [Mark(app, bits(found)) for app, found in days.items()]


def _note(lake: Lake, dataset: Dataset, taken: Sequence[Taken], now: datetime) -> None:
    """What is said beside the rows is written before them: whoever finds a day marked finds these words too."""
    now_us = int(now.timestamp() * 1e6)
    for each in taken:
        guard = {f"dump/{each.job.file.path}": int(each.job.sha256[:15], 16)}
        lake.append_once(REJECTED, rejected_rows(dataset, each.refused), guard)
        short = finding_rows(dataset, list(_short_month(each)), found_us=now_us)
        lake.append_once(QUALITY, pl.concat([short, *each.findings]), guard)


def enter(lake: Lake, taken: Iterable[Taken], known: dict[str, str], *, now: datetime) -> None:
    """Into the ledger, what is not in `known`; from then on it is.

    Of days that are marked already the mark says nothing of a file that was compared with them: of such a file the
    ledger has to speak last, after the certificates. Until it does, the file is to be taken.
    """
    known.update(enter_rows(lake, (_entry(each, now) for each in taken), known))


def enter_rows(lake: Lake, entries: Iterable[dict[str, Any]], known: Mapping[str, str]) -> dict[str, str]:
    """Entries into the ledger, but those whose sum is `known`; the sums of the others. Raises `CommitFailed`."""
    fresh = [entry for entry in entries if known.get(entry["path"]) != entry["sha256"]]
    lake.add(DUMP_FILE, pl.DataFrame(fresh, schema=DUMP_FILE.schema))
    return {entry["path"]: entry["sha256"] for entry in fresh}


def _short_month(taken: Taken) -> Iterator[Finding]:
    """A month's file that does not reach from the first to the last day of its month (ANALYTICS 5.3)."""
    file, held = taken.job.file, sorted(taken.days)
    if file.period == "monthly" and held and len(set(held) & set(file.days)) < len(file.days):
        assert taken.first_time is not None
        assert taken.last_time is not None
        first_us, last_us = (int(each.timestamp() * 1e6) for each in (taken.first_time, taken.last_time))
        yield Finding(
            file.venue,
            file.symbol,
            "incomplete_month",
            "warn",
            first_us,
            last_us,
            float(len(held)),
            float(len(file.days)),
        )


def _entry(taken: Taken, now: datetime) -> dict[str, Any]:
    job, got = taken.job, taken.landed.fetched
    return {**ledger_row(taken, got, now), "path": job.file.path, "sha256": job.sha256}


class Counted(Protocol):
    """What was counted of a file."""

    rows: int
    first_time: datetime | None
    last_time: datetime | None
    refused: list[Refused]


def ledger_row(taken: Counted, got: Fetched, now: datetime) -> dict[str, Any]:
    """A file as the ledger has it once its rows are in the table, but for its path."""
    return {
        "sha256": got.sha256,
        "etag": got.etag,
        "last_modified": got.last_modified,
        "size": got.size,
        "rows": taken.rows,
        "first_time": taken.first_time,
        "last_time": taken.last_time,
        "state": INGESTED,
        "state_time": now,
        "date": now.date(),
        "refused_rows": len(taken.refused),
    }


class _Mixed(Exception):
    """The rows of an archive do not rise: it has to be sorted, and looked through for repetitions."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


class _Archive:
    """One archive on its way into a bulk."""

    def __init__(self, bulk: Bulk, wanted: Wanted, landed: Landed, now: datetime, told: Told) -> None:
        self.bulk, self.landed, self.told = bulk, landed, told
        self.dataset, self.archive, self.file = wanted.dataset, wanted.archive, landed.job.file
        self.now_us = int(now.timestamp() * 1e6)
        self.taken = Taken(landed)
        self._wanted = set(landed.job.days)
        self._held: dict[date, pl.DataFrame] = {}
        self._reached: dict[date, Any] = {}
        self._checks = Checks(self.dataset)
        says = dict(self.dataset.dump.says) if self.dataset.dump else {}
        if "timeframe" in self.dataset.schema:
            says["timeframe"] = self.file.interval
        self._words = {"venue": self.file.venue, "symbol": self.file.symbol, "source": DUMP}
        self._words |= {name: word for name, word in says.items() if isinstance(word, str)}
        self._says = [pl.lit(value).alias(name) for name, value in (self._words | says).items()]

    def take(self, *, is_mixed: bool) -> Taken:
        """Reads it to its end. Raises `Unfit`, and `_Mixed` unless it was told so."""
        self.bulk.speak(**self._words)
        try:
            for rows in self._sorted() if is_mixed else self._rising():
                self._add(rows)
            self._compare_rest()
        except (Damaged, Misfit) as error:
            raise Unfit(self.landed, str(error)) from None
        except FileNotFoundError:
            if all(each.path.exists() for each in (self.landed.fetched, self.landed.beside) if each):
                raise
            raise Gone(self.landed, f"{self.file.stem}.zip is not there any more") from None
        return self.taken

    def _sorted(self) -> Iterator[pl.DataFrame]:
        with desk(self.landed.fetched.path) as folder:
            yield from _sorted(self.dataset, self._shaped(), self.taken, self.now_us, folder)

    def _rising(self) -> Iterator[pl.DataFrame]:
        """The rows as they come, as long as they rise: then none comes twice."""
        order, last = str(self.dataset.order), None
        for rows in self._shaped():
            column = rows[order]
            is_above = last is None or column[0] > last
            if not (is_above and column.is_sorted() and _is_distinct(column)):
                raise _Mixed(self.file.path)
            last = column[-1]
            yield rows

    def _shaped(self) -> Iterator[pl.DataFrame]:
        """The rows of the archive as rows of the table, piece by piece; what is no row is set aside."""
        beside = self._beside()
        for parsed in self._parsed(self.landed.fetched.path, self.archive):
            frame = parsed if beside is None else parsed.join(beside, on="time", how="left", maintain_order="left")
            rows = self._checked(shape(self.dataset, frame.with_columns(self._says)))
            self._count(rows)
            if rows.height:
                yield rows
            self.told.on_rows(rows.height)
            self.told.look()

    def _parsed(self, path: Path, archive: Archive) -> Iterator[pl.DataFrame]:
        layout: Layout | None = None
        for text in pieces(path):
            layout = layout or Layout.of(self.dataset, archive, text)
            parsed = layout.parse(text)
            self.taken.refused += [
                Refused(self.file.venue, reason, bytes(line), self.now_us, self.file.symbol)
                for line, reason in parsed.refused
            ]
            yield parsed.frame

    def _beside(self) -> pl.DataFrame | None:
        """What the archive beside this one knows of the same rows; a month of minutes is small."""
        if self.landed.beside is None or self.archive.beside is None:
            return None
        return pl.concat(self._parsed(self.landed.beside.path, self.archive.beside)).unique("time", keep="first")

    def _checked(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Without the rows that a check of values refuses (ANALYTICS 5.1)."""
        checked = self._checks.check(rows, found_us=self.now_us)
        if checked.findings.height:
            self.taken.findings.append(checked.findings)
        if not checked.refused:
            return rows
        places = [place for place, _ in checked.refused]
        texts = rows[places].write_ndjson().encode().splitlines()
        self.taken.refused += [
            Refused(self.file.venue, reason, text, self.now_us, self.file.symbol)
            for (_, reason), text in zip(checked.refused, texts, strict=True)
        ]
        return rows.with_row_index("place").filter(~pl.col("place").is_in(places)).drop("place")

    def _count(self, rows: pl.DataFrame) -> None:
        if rows.is_empty():
            return
        first, last = rows["time"].min(), rows["time"].max()
        assert isinstance(first, datetime)
        assert isinstance(last, datetime)
        near = self.file.first - DAY, self.file.last + DAY
        if first.date() < near[0] or last.date() > near[1]:
            stray = first if first.date() < near[0] else last
            raise Misfit(f"a row of {stray:%Y-%m-%d %H:%M:%S} is not of {self.file.stem}")
        taken = self.taken
        taken.rows += rows.height
        taken.first_time = first if taken.first_time is None else min(taken.first_time, first)
        taken.last_time = last if taken.last_time is None else max(taken.last_time, last)

    def _add(self, rows: pl.DataFrame) -> None:
        """The rows of wanted days that the table lacks; those a little beyond the file's own days too."""
        of_file = set(self.file.days)
        for day, part in _by_day(rows):
            if day in self._wanted or day not in of_file:
                self._add_day(day, part)

    def _add_day(self, day: date, rows: pl.DataFrame) -> None:
        counts = self.taken.days.setdefault(day, Day())
        fresh = self._compared(day, rows, counts) if self.landed.is_compared else self._unknown(day, rows, counts)
        counts.rows += rows.height
        counts.known += rows.height - fresh.height
        self.bulk.add(day, fresh)

    def _unknown(self, day: date, rows: pl.DataFrame, counts: Day) -> pl.DataFrame:
        """The rows whose key the table lacks."""
        held = self._held_on(day, counts)
        fresh = rows
        if held.height:
            fresh = rows.join(held, on=list(self.dataset.key), how="anti", maintain_order="left")
            counts.only_ours -= rows.height - fresh.height
        return self._untold(day, fresh) if self.dataset.is_retold and fresh.height else fresh

    def _untold(self, day: date, rows: pl.DataFrame) -> pl.DataFrame:
        """Without those that the table has on the day before or behind."""
        own = rows[str(self.dataset.order)]
        low, high = own.min(), own.max()
        for other in (day - DAY, day + DAY):
            near = self.bulk.held(other, self.dataset.key, up_to=high, **self._equals())
            near = near.filter(pl.col(own.name) >= low)
            rows = rows.join(near, on=list(self.dataset.key), how="anti", maintain_order="left")
        return rows

    def _compared(self, day: date, rows: pl.DataFrame, counts: Day) -> pl.DataFrame:
        """The same; the table's rows up to the last of these are held against them."""
        last = rows[str(self.dataset.order)].max()
        ours = self.bulk.held(
            day, list(self.dataset.schema), above=self._reached.get(day), up_to=last, **self._equals()
        )
        self._reached[day] = last
        compared = compare(self.dataset, ours, rows)
        counts.compare(self.dataset, compared)
        return compared.only_theirs

    def _compare_rest(self) -> None:
        """What the table has behind the archive's last row of a day, only the table has; all, when there is no row."""
        for day in self.taken.done:
            if not self.landed.is_compared:
                if day not in self.taken.days:
                    self._held_on(day, self.taken.days.setdefault(day, Day()))
                continue
            ours = self.bulk.held(day, list(self.dataset.schema), above=self._reached.get(day), **self._equals())
            counts = self.taken.days.setdefault(day, Day())
            counts.compare(self.dataset, compare(self.dataset, ours, ours.clear()))

    def _held_on(self, day: date, counts: Day) -> pl.DataFrame:
        """The keys of the day that the table holds."""
        if day not in self._held:
            # The days go by: what was looked up for one is of no use for the next but one.
            self._held = {other: held for other, held in self._held.items() if abs(other - day) <= DAY}
            self._held[day] = self.bulk.held(day, self.dataset.key, **self._equals())
            counts.only_ours += self._held[day].height
        return self._held[day]

    def _equals(self) -> dict[str, str]:
        return {name: word for name, word in self._words.items() if name in self.dataset.key}


def _is_distinct(column: pl.Series) -> bool:
    """Whether no value of a sorted column comes twice."""
    return not (column == column.shift(1)).any()


def _by_day(rows: pl.DataFrame) -> Iterator[tuple[date, pl.DataFrame]]:
    days = rows["date"]
    if days.min() == days.max():
        yield days[0], rows
        return
    for (day,), part in rows.partition_by("date", as_dict=True, maintain_order=True).items():
        yield day, part


@contextmanager
def desk(archive: Path) -> Iterator[Path]:
    """A folder beside an archive for as long as it is sorted; what killed processes left of theirs goes first."""
    for left in archive.parent.glob(f"{glob.escape(archive.name)}.sort-*"):
        with suppress(OSError), _locked(left):  # where it is refused somebody sorts
            shutil.rmtree(left)
    temporary = tempfile.TemporaryDirectory(prefix=f"{archive.name}.sort-", dir=archive.parent)
    with temporary as folder, _locked(Path(folder)):
        yield Path(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The kernel lets go of the lock when its holder dies, however it dies. Raises `OSError` when somebody has it."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(opened)


def _sorted(
    dataset: Dataset, batches: Iterable[pl.DataFrame], taken: Taken, now_us: int, desk: Path
) -> Iterator[pl.DataFrame]:
    """The same rows, each key once, day by day in order; a stretch of a day is held at a time."""
    for number, rows in enumerate(batches):
        for day, part in _by_day(rows):
            target = desk / day.isoformat()
            target.mkdir(exist_ok=True)
            part.write_ipc(target / f"{number:06}.arrow", compression="lz4")
    before: list[pl.DataFrame] = []  # keys of the day before that may be told again
    for target in sorted(desk.iterdir()):
        told = []
        # The folder's name is the archive's, which may have letters that a pattern is made of.
        for stretch in _stretches(dataset, pl.scan_ipc(sorted(target.iterdir()))):
            once = _each_once(dataset, stretch, taken, now_us)
            for keys in before:
                once = once.join(keys, on=list(dataset.key), how="anti", maintain_order="left")
            told += [once.select(dataset.key)] if dataset.is_retold else []
            yield once
        before = told


def _stretches(dataset: Dataset, rows: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    order = pl.col(str(dataset.order))
    low, high, count = rows.select(order.min(), order.max().alias("high"), pl.len()).collect().row(0)
    if count <= 2 * STRETCH_ROWS or dataset.schema[str(dataset.order)] == TIME:
        yield rows.collect()
        return
    parts = -(-count // STRETCH_ROWS)
    cuts = [low + (high - low + 1) * number // parts for number in range(parts + 1)]
    for begin, end in itertools.pairwise(cuts):
        yield rows.filter(order.is_between(begin, end - 1)).collect()


def _each_once(dataset: Dataset, rows: pl.DataFrame, taken: Taken, now_us: int) -> pl.DataFrame:
    """Sorted, each key once. What stands under the key of another row and says something else is set aside."""
    once = rows.unique(dataset.key, keep="first", maintain_order=True)
    # A best bid is told again with a later time, under the same update: live, too, the first word counts.
    said = [name for name in rows.columns if dataset.sequence or rows.schema[name] != TIME]
    distinct = rows.unique([*dict.fromkeys((*dataset.key, *said))], keep="first", maintain_order=True)
    if distinct.height > once.height:
        other = distinct.join(once, on=distinct.columns, how="anti", nulls_equal=True, maintain_order="left")
        reason = "another row of the archive has the same key and differs"
        taken.refused += [
            Refused(row["venue"], reason, str(row).encode(), now_us, row["symbol"])
            for row in other.iter_rows(named=True)
        ]
    return once.sort(dataset.order or "time", maintain_order=True)
