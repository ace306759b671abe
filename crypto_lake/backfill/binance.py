"""`backfill binance`: official files into the tables, from the plan to the certificate; it ends by itself.

Files are fetched side by side, a few ahead of the one that is being read; small ones that are ready together share a
commit. What stops it half-way (a crash, Ctrl-C) costs the commit under way: the next run plans from the tables.
"""

import asyncio
import contextlib
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import polars as pl
import structlog

from crypto_lake.backfill.certify import certified, certify
from crypto_lake.backfill.facts import facts_of
from crypto_lake.backfill.findings import Differences, differences
from crypto_lake.backfill.ingest import Gone, Landed, Overlap, Stopped, Taken, Told, Unfit, enter, ingest, ledger
from crypto_lake.backfill.plan import Absent, Job, Missing, Wanted, daily, days_in, jobs, lacks
from crypto_lake.config import ConfigError, Settings
from crypto_lake.connections import SourceError
from crypto_lake.connections.objects import Fetched, Objects, checksum_in, discard
from crypto_lake.models import SIDES
from crypto_lake.models.bucket import CHECKSUM, FOLDERS, File, file_at, is_about
from crypto_lake.models.coverage import COVERAGE
from crypto_lake.models.dump_file import DUMP_FILE, INGESTED, QUARANTINED, REPLACED
from crypto_lake.writers.bulk import marked
from crypto_lake.writers.delta import Lake
from crypto_lake.writers.maintenance import UNCHECKED_COMMITS, shorten_log

log = structlog.get_logger()

# Archives that wait for being read, besides those that are being fetched.
AHEAD: Final = 16
# Small archives that are ready together (AHEAD and one at the most) make one commit, up to so many bytes.
TOGETHER_BYTES: Final = 32_000_000
# A day is a file that stays open until the commit.
TOGETHER_DAYS: Final = 100
# A sum that is wrong may be that of a file which is being replaced: it is looked at once more, at the end.
LOOKS: Final = 2
# How soon it is noticed that somebody asks to stop.
LOOK_EVERY_S: Final = 0.1

Got = TypeVar("Got")


class Progress(Protocol):
    """Whoever watches; every method may be called from any thread."""

    def planned(self, days: int) -> None:
        """So many more days are to be taken; fewer (less than 0) when nothing is published of them."""

    def found(self, files: int) -> None:
        """So many more files are to be taken."""

    def sized(self, path: str, size_bytes: int, days: int) -> None:
        """A file has so many bytes, and is taken for so many days; may be said again and again."""

    def fetched(self, count: int) -> None:
        """So many more bytes came; fewer (less than 0) when a download began anew."""

    def read(self, rows: int) -> None:
        """So many more rows were read."""

    def done(self, path: str, state: str, detail: str) -> None:
        """A file is through."""


@dataclass(frozen=True, slots=True)
class Wrong:
    """A file that could not be taken, and why."""

    path: str
    reason: str


@dataclass(slots=True)
class Summary:
    """What a backfill did."""

    files: int = 0
    rows: int = 0  # in the files
    added: int = 0  # that the tables lacked
    refused: int = 0
    size: int = 0
    days: int = 0
    held_days: int = 0  # that were in the tables before
    absent: list[Absent] = field(default_factory=list)
    short: list[str] = field(default_factory=list)  # monthly files that lack days
    replaced: list[str] = field(default_factory=list)
    wrong: list[Wrong] = field(default_factory=list)
    verdicts: dict[str, int] = field(default_factory=dict)
    compared: list[Differences] = field(default_factory=list)  # days of replaced files that differ from the table
    is_stopped: bool = False

    @property
    def is_good(self) -> bool:
        """Whether everything that is published is in the tables."""
        return not (self.wrong or self.is_stopped)


async def backfill(
    settings: Settings,
    wanted: Wanted,
    progress: Progress,
    *,
    keep_archives: bool = False,
    recheck: bool = True,
    stop: threading.Event | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Summary:
    """Takes what is wanted and not yet there. Raises `ConfigError`, `SourceError`, `CommitFailed`."""
    stop = stop or threading.Event()
    if not wanted.symbols:
        symbols = await unless(stop, symbols_of(settings, wanted))
        if symbols is None:
            return Summary(is_stopped=True)
        wanted = replace(wanted, symbols=symbols)
    run = _Run(settings, wanted, progress, keep_archives, stop, clock)
    async with Objects(settings.dumps) as objects:
        return await run.whole(objects, recheck=recheck)


async def symbols_of(settings: Settings, wanted: Wanted) -> tuple[str, ...]:
    """Every symbol that has a folder in the bucket. Raises `SourceError`, `ConfigError` when there is none."""
    async with Objects(settings.dumps) as objects:
        folders = [f"{FOLDERS[wanted.venue]}/{period}/{wanted.archive.type}/" for period in wanted.archive.periods]
        found: set[str] = set()
        for folder in folders:
            async for key in objects.keys(settings.listing_address, folder):
                name = key.removeprefix(folder).partition("/")[0]
                if name:
                    found.add(name)
    if not found:
        raise ConfigError(f"LAKE_BINANCE_DUMPS={settings.dumps}: no symbol has {wanted.archive.type} files there")
    return tuple(sorted(found))


async def sum_of(objects: Objects, file: File) -> str | None:
    """The SHA-256 that the venue states of a file; None where it is not published. Raises `SourceError`."""
    text = await objects.text(file.path + CHECKSUM)
    return None if text is None else checksum_in(text, f"{file.stem}.zip")


class _Run:
    def __init__(
        self,
        settings: Settings,
        wanted: Wanted,
        progress: Progress,
        keep_archives: bool,
        stop: threading.Event,
        clock: Callable[[], datetime],
    ) -> None:
        self.settings, self.wanted, self.progress = settings, wanted, progress
        self.keep_archives, self.stop, self.clock = keep_archives, stop, clock
        self.lake = Lake(settings.root)
        self.summary = Summary()
        self.told = Told(progress.read, stop)
        self._known: dict[str, str] = {}
        self._again: list[Job] = []  # sums that were wrong
        self._unknown: set[tuple[str, date]] = set()  # days about which the venue says nothing that makes sense
        self._looks: dict[str, int] = {}
        self._lacking: dict[str, list[date]] = {}
        self._commits = 0

    async def whole(self, objects: Objects, *, recheck: bool) -> Summary:
        for dataset in (self.wanted.dataset, *SIDES, COVERAGE, DUMP_FILE):
            await asyncio.to_thread(self.lake.check, dataset)
        entries = await asyncio.to_thread(ledger, self.lake)
        self._known = {path: sha for path, (sha, state) in entries.items() if state == INGESTED}
        missing = await asyncio.to_thread(self._missing)
        self.progress.planned(sum(len(found.days) for found in missing.values()))
        if recheck:
            await self._take(objects, self._replaced(objects, entries))
        await self._take(objects, jobs(self.wanted, missing, partial(self._ask, objects), self.clock().date()))
        await self._take(objects, self._rest(objects))
        while self._again and not self.stop.is_set():
            again, self._again = self._again, []
            await self._take(objects, self._once_more(objects, again))
        self.summary.is_stopped = self.stop.is_set()
        return self.summary

    # What is to be done

    def _missing(self) -> dict[tuple[str, date], Missing]:
        """The wanted days of each symbol and month that are not marked, or not certified."""
        table, today = self.lake.table(self.wanted.dataset), self.clock().date()
        proofs = certified(self.lake, self.wanted.dataset, self.wanted.venue)
        found: dict[tuple[str, date], Missing] = {}
        for symbol in self.wanted.symbols:
            apps = {month: self.wanted.app(symbol, month) for month in self.wanted.months}
            marks = marked(table, [*apps.values(), *map(lacks, apps.values())])
            for month, app in apps.items():
                here = days_in(marks[app], month)
                days = [day for day in self.wanted.days(month) if day <= today]
                left = [day for day in days if not (day in here and (symbol, day) in proofs)]
                nowhere = days_in(marks[lacks(app)], month)
                found[symbol, month] = Missing(tuple(left), is_spent=nowhere.issuperset(left))
                self.summary.held_days += len(days) - len(left)
        return found

    async def _ask(self, objects: Objects, file: File) -> str | None:
        """The SHA-256 that the venue states of a file; None where it states none that makes sense."""
        text = await objects.text(file.path + CHECKSUM)
        try:
            return None if text is None else checksum_in(text, f"{file.stem}.zip")
        except SourceError as error:
            # About this file nothing is known; the others are not concerned.
            self._unknown |= {(file.symbol, day) for day in file.days}
            self._give_up(file, f"{file.path}: {error}")
            return None

    async def _replaced(self, objects: Objects, entries: dict[str, tuple[str, str]]) -> AsyncIterator[Job | Absent]:
        """The files in the ledger that are not any more what they were when their rows were taken."""
        for path, (sha256, state) in entries.items():
            file = file_at(path)
            if file is None or state not in (INGESTED, REPLACED) or not self._is_wanted(file):
                continue
            now = await self._ask(objects, file)
            # What was found to be replaced, and then not taken, is still to be taken.
            if now is None or (now == sha256 and state == INGESTED):
                continue
            log.warning("dump_replaced", path=path, was=sha256, now=now)
            self.summary.replaced.append(path)
            if (now, REPLACED) != (sha256, state):
                await asyncio.to_thread(self._say, path, now, REPLACED)
            self._known.pop(path, None)
            days = await asyncio.to_thread(self._concerned, file)
            self.progress.planned(len(days))
            yield Job(file, now, days)

    def _concerned(self, file: File) -> tuple[date, ...]:
        """The days of a file that are wanted, in the table, or were not in it: of these nobody will ask it again."""
        month = file.first.replace(day=1)
        app = self.wanted.app(file.symbol, month)
        marks = marked(self.lake.table(self.wanted.dataset), [app, lacks(app)])
        here = {day for mark in marks.values() for day in days_in(mark, month)}
        return tuple(day for day in file.days if day in here or self.wanted.first <= day <= self.wanted.last)

    def _is_wanted(self, file: File) -> bool:
        wanted = self.wanted
        return (
            is_about(file, wanted.dataset)
            and (file.venue, file.interval) == (wanted.venue, wanted.interval)
            and file.symbol in wanted.symbols
            and file.first <= wanted.last
            and file.last >= wanted.first
        )

    async def _rest(self, objects: Objects) -> AsyncIterator[Job | Absent]:
        """Days that a month's file lacks may have files of their own."""
        lacking, self._lacking = self._lacking, {}
        for symbol, days in lacking.items():
            for job in await daily(self.wanted, symbol, days, partial(self._ask, objects)):
                yield job

    async def _once_more(self, objects: Objects, again: Sequence[Job]) -> AsyncIterator[Job | Absent]:
        for job in again:
            sha256 = await self._ask(objects, job.file)
            yield Job(job.file, sha256 or job.sha256, job.days)

    # Doing it

    async def _take(self, objects: Objects, found: AsyncIterator[Job | Absent]) -> None:
        """Fetches and reads what is found, a few files ahead."""
        ready: asyncio.Queue[Landed | None] = asyncio.Queue(AHEAD)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._fetch_all(objects, found, ready))
                group.create_task(self._read_all(ready))
        except ExceptionGroup as errors:
            raise _first(errors) from None

    async def _fetch_all(
        self, objects: Objects, found: AsyncIterator[Job | Absent], ready: asyncio.Queue[Landed | None]
    ) -> None:
        await unless(self.stop, self._fetch_each(objects, found, ready))
        await ready.put(None)

    async def _fetch_each(
        self, objects: Objects, found: AsyncIterator[Job | Absent], ready: asyncio.Queue[Landed | None]
    ) -> None:
        room = asyncio.Semaphore(AHEAD)
        async with asyncio.TaskGroup() as group:
            async for job in found:
                if isinstance(job, Absent):
                    self._note_absent(job)
                    continue
                if job.file.path not in self._looks:
                    self.progress.found(1)
                await room.acquire()
                group.create_task(self._fetch(objects, job, ready)).add_done_callback(lambda _: room.release())

    def _note_absent(self, absent: Absent) -> None:
        self.progress.planned(-len(absent.days))
        if days := tuple(day for day in absent.days if (absent.symbol, day) not in self._unknown):
            self.summary.absent.append(Absent(absent.symbol, days))

    async def _fetch(self, objects: Objects, job: Job, ready: asyncio.Queue[Landed | None]) -> None:
        try:
            landed = await self._landed(objects, job)
        except SourceError as error:
            later = f"; it asks to be left alone for {error.retry_after_s:,.0f} s" if error.retry_after_s else ""
            self._give_up(job.file, f"{error}{later}")
            return
        if landed is not None:
            await ready.put(landed)

    async def _landed(self, objects: Objects, job: Job) -> Landed | None:
        """The file of a job; None if it is not what it should be. Raises `SourceError`."""
        path = job.file.path
        fetched = await self._come(objects, job.file, len(job.days))
        if fetched is None or fetched.sha256 != job.sha256:
            what = "is not there any more" if fetched is None else f"has SHA-256 {fetched.sha256}"
            await self._spoilt(job, f"{path} {what}, and its .CHECKSUM says {job.sha256}")
            return None
        other = self.wanted.archive.beside
        beside = None if other is None else await self._fetch_beside(objects, job.file.of(other))
        # Of a file that took another's place the rows may be others under the same keys.
        return Landed(job, fetched, beside, is_compared=path in self.summary.replaced)

    async def _fetch_beside(self, objects: Objects, file: File) -> Fetched | None:
        """The file that knows more of the same rows; where none is published they are still rows."""
        sha256 = await sum_of(objects, file)
        fetched = None if sha256 is None else await self._come(objects, file)
        if fetched is None or fetched.sha256 == sha256:
            return fetched
        discard(fetched.path)
        raise SourceError(f"{file.path} has SHA-256 {fetched.sha256}, and its .CHECKSUM says {sha256}")

    async def _come(self, objects: Objects, file: File, days: int = 0) -> Fetched | None:
        def on_size(size_bytes: int) -> None:
            self.progress.sized(file.path, size_bytes, days)

        return await objects.fetch(file.path, self._place(file), on_bytes=self.progress.fetched, on_size=on_size)

    def _give_up(self, file: File, reason: str) -> None:
        """This file did not come; others may."""
        log.error("dump_not_fetched", path=file.path, reason=reason)
        self.summary.wrong.append(Wrong(file.path, reason))
        self.progress.done(file.path, "failed", reason)

    async def _spoilt(self, job: Job, reason: str) -> None:
        """Once more at the end; then it is put aside."""
        path, place = job.file.path, self._place(job.file)
        self._looks[path] = self._looks.get(path, 0) + 1
        if self._looks[path] < LOOKS:
            log.warning("dump_spoilt", path=path, reason=reason)
            if place.exists():
                self.progress.fetched(-place.stat().st_size)
            discard(place)
            self._again.append(job)
            return
        log.error("dump_quarantined", path=path, reason=reason)
        if aside := await asyncio.to_thread(self._quarantine, place, path):
            reason = f"{reason}; put aside as {aside}"
        await asyncio.to_thread(self._say, path, job.sha256, QUARANTINED)
        self.summary.wrong.append(Wrong(path, reason))
        self.progress.done(path, QUARANTINED, reason)

    def _quarantine(self, place: Path, path: str) -> Path | None:
        """Where it is put; None if there is nothing to put aside."""
        if not place.exists():
            return None
        target = self.settings.state / "quarantine" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(place, target)
        discard(place)
        return target

    def _place(self, file: File) -> Path:
        return self.settings.landing / file.path

    async def _read_all(self, ready: asyncio.Queue[Landed | None]) -> None:
        is_over = False
        while not is_over:
            batch: list[Landed] = []
            while not is_over and (not batch or (not ready.empty() and _is_small(batch))):
                landed = await ready.get()
                if landed is None:
                    is_over = True
                else:
                    batch.append(landed)
            if batch and not self.stop.is_set():
                await self._read(batch)

    async def _read(self, batch: list[Landed]) -> None:
        """One commit, or some if not all can share it; an archive that is unfit leaves the others alone."""
        left = [batch]
        while left:
            some = left.pop()
            try:
                taken = await asyncio.to_thread(self._ingest, some)
            except Unfit as unfit:
                others = [each for each in some if each is not unfit.landed]
                left += [others] if others else []
                if isinstance(unfit, Gone):
                    await self._lost(unfit.landed.job)
                else:
                    await self._spoilt(unfit.landed.job, str(unfit))
            except Overlap as overlap:
                left += [list(overlap.behind), list(overlap.front)]
            except Stopped:
                return
            else:
                self._count(some, taken)

    async def _lost(self, job: Job) -> None:
        """Another backfill had the archive and removed it: all is done, or it is fetched once more at the end."""
        path, symbol = job.file.path, job.file.symbol
        proofs = await asyncio.to_thread(certified, self.lake, self.wanted.dataset, self.wanted.venue)
        # Of a file that took another's place we have said so in the ledger, maybe after the other was done.
        if path not in self.summary.replaced and all(proofs.get((symbol, day)) == job.sha256 for day in job.days):
            self.progress.done(path, INGESTED, "taken by another backfill")
            return
        self._looks.setdefault(path, 0)
        self._again.append(job)

    def _ingest(self, batch: Sequence[Landed]) -> list[Taken]:
        now = self.clock()
        taken = ingest(self.lake, self.wanted, batch, known=self._known, now=now, told=self.told)
        self._commits += 1
        if self._commits % UNCHECKED_COMMITS == 1:
            # Nobody may be recording into this table, and a log without a checkpoint is read from its begin each time.
            shorten_log(self.settings.root, self.wanted.dataset)
        # Before the certificates: days that have theirs are not looked at again, nor is what lies there for them.
        self._clean(batch)
        rows = certify(self.lake, self.wanted.dataset, facts_of(taken), now=now)
        enter(self.lake, [each for each in taken if each.landed.is_compared], self._known, now=now)
        for verdict, count in rows["verdict"].value_counts().iter_rows():
            self.summary.verdicts[verdict] = self.summary.verdicts.get(verdict, 0) + count
        return taken

    def _count(self, batch: Sequence[Landed], taken: Iterable[Taken]) -> None:
        summary = self.summary
        sizes = {each.job.file.path: each.fetched.size for each in batch}
        for each in taken:
            path = each.job.file.path
            self._known[path] = each.job.sha256
            summary.files += 1
            summary.size += sizes[path]
            summary.rows += each.rows
            summary.added += each.added
            summary.refused += len(each.refused)
            summary.days += len(each.done)
            summary.compared += self._differences(each)
            if each.lacking:
                self.progress.planned(len(each.lacking))
                summary.short.append(path)
                self._lacking.setdefault(each.job.file.symbol, []).extend(each.lacking)
            self.progress.done(path, INGESTED, f"{each.rows:,} rows, {each.added:,} new")

    def _differences(self, taken: Taken) -> Iterator[Differences]:
        for day in taken.done:
            found = taken.days.get(day)
            if found and found.differing is not None and (found.differing or found.only_ours):
                yield differences(self.wanted.dataset, taken.job.file.symbol, day, found)

    def _clean(self, batch: Iterable[Landed]) -> None:
        if self.keep_archives:
            return
        for each in batch:
            for fetched in (each.fetched, each.beside):
                if fetched is not None:
                    discard(fetched.path)
                    with contextlib.suppress(OSError):  # others are still fetched into the folder
                        fetched.path.parent.rmdir()

    def _say(self, path: str, sha256: str, state: str) -> None:
        now = self.clock()
        row = {"path": path, "sha256": sha256, "state": state, "state_time": now, "date": now.date()}
        self.lake.add(DUMP_FILE, pl.DataFrame([row], schema=DUMP_FILE.schema))


async def unless(stop: threading.Event, work: Coroutine[Any, Any, Got]) -> Got | None:
    """What the work comes to; None when somebody asks to stop before it is done, which cancels it."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            if stop.is_set():
                task.cancel()
            await asyncio.wait([task], timeout=LOOK_EVERY_S)
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait([task])
        raise
    return None if task.cancelled() else task.result()


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Of several things that went wrong at once the first one is told."""
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _is_small(batch: Sequence[Landed]) -> bool:
    days = {day for each in batch for day in each.job.days}
    size = sum(each.fetched.size for each in batch)
    return size < TOGETHER_BYTES and len(days) < TOGETHER_DAYS


__all__ = ["ConfigError", "Progress", "SourceError", "Summary", "Wrong", "backfill", "symbols_of"]
