"""What every backfill does with files: fetches a few ahead, reads what is ready, and puts aside what cannot be read.

What a source does in its own way it says as a `Source`. What stops a backfill half-way (a crash, Ctrl-C) costs the
commit under way: the next run plans from the tables.
"""

import asyncio
import contextlib
import itertools
import os
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeVar

import polars as pl
import structlog

from crypto_lake.backfill.findings import Differences
from crypto_lake.backfill.ingest import Gone, Overlap, Stopped, Unfit
from crypto_lake.backfill.mode import Mode
from crypto_lake.backfill.plan import Absent
from crypto_lake.config import Settings
from crypto_lake.connections import SourceError
from crypto_lake.connections.objects import Fetched, discard
from crypto_lake.connections.part import disk
from crypto_lake.models import Dataset
from crypto_lake.models.dump_file import DUMP_FILE, INGESTED, QUARANTINED
from crypto_lake.writers.delta import Lake
from crypto_lake.writers.maintenance import UNCHECKED_COMMITS, shorten_log

log = structlog.get_logger()

QUARANTINE: Final = "quarantine"
GOING: Final = ".going"
# A day is a file that stays open until the commit.
TOGETHER_DAYS: Final = 100
# A file that is unfit may be one that is being replaced: it is looked at once more, at the end.
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

    mode: str = ""
    files: int = 0
    rows: int = 0  # in the files
    added: int = 0  # that the tables lacked
    refused: int = 0
    tests: int = 0  # rows with which an exchange tries itself out; left out
    changed: int = 0  # rows of flat files that were replaced: other values, new ones, or there no more
    unseen: list[str] = field(default_factory=list)  # symbols that were asked for and are in none of the files
    size: int = 0
    days: int = 0
    held_days: int = 0  # that were in the tables before
    absent: list[Absent] = field(default_factory=list)
    awaited: list[Absent] = field(default_factory=list)  # too young to be published
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


class Spoilt(Exception):
    """A file that came is not what it should be; the text says which and why."""


class HasPath(Protocol):
    """What is to be done with one file, which has this path in the bucket."""

    @property
    def path(self) -> str: ...


class HasFile(Protocol):
    """A file that was downloaded."""

    @property
    def fetched(self) -> Fetched: ...


JobT = TypeVar("JobT", bound=HasPath)
JobT_contra = TypeVar("JobT_contra", bound=HasPath, contravariant=True)
LandedT = TypeVar("LandedT", bound=HasFile)
TakenT = TypeVar("TakenT")


class Source(Protocol[JobT_contra, LandedT, TakenT]):
    """What a source of files does in its own way."""

    async def landed(self, job: JobT_contra) -> LandedT | None:
        """The file of a job; None when there is no more to say of it. Raises `Spoilt`, `SourceError`, `ConfigError`."""

    def ingest(self, batch: Sequence[LandedT]) -> TakenT:
        """Puts the rows of some files into the table, in a thread. Raises what `backfill.ingest.ingest` raises."""

    def count(self, batch: Sequence[LandedT], taken: TakenT) -> None:
        """They are through."""

    def is_taken(self, job: JobT_contra) -> bool:
        """Whether another backfill has taken it, in a thread."""

    def days(self, job: JobT_contra) -> Collection[date]:
        """The days that it is taken for."""

    def lane(self, job: JobT_contra) -> str:
        """Files of one lane are not read side by side."""

    def is_shared(self, job: JobT_contra) -> bool:
        """Whether its commit may be that of other files, too."""

    def ledger_row(self, job: JobT_contra) -> dict[str, Any]:
        """What the ledger says of a file that is put aside, but for its path and state."""


@dataclass(frozen=True, slots=True)
class _Ready(Generic[JobT, LandedT]):
    """A job, and its file."""

    job: JobT
    landed: LandedT


class Flow(Generic[JobT, LandedT, TakenT]):
    """The files of one backfill into one table; `folder` is theirs below LAKE_STATE's `landing` and `quarantine`.

    What goes wrong with a file is noted in the summary, and the others go on.
    """

    def __init__(
        self,
        source: Source[JobT, LandedT, TakenT],
        settings: Settings,
        dataset: Dataset,
        progress: Progress,
        *,
        mode: Mode,
        stop: threading.Event,
        clock: Callable[[], datetime],
        keep_archives: bool,
        folder: str = "",
    ) -> None:
        self.source, self.lake, self.dataset = source, Lake(settings.root), dataset
        self.summary, self.progress = Summary(mode=mode.word), progress
        self.mode, self.stop, self.clock = mode, stop, clock
        self._landing, self._aside = settings.landing / folder, settings.state / QUARANTINE / folder
        self._keep_archives = keep_archives
        self._again: list[JobT] = []
        self._looks: dict[str, int] = {}
        self._commits = itertools.count()
        log.info("backfill_mode", mode=mode.word, readers=mode.readers, piece_bytes=mode.piece_bytes)

    def place(self, path: str) -> Path:
        """Where a file is until its rows are in the table."""
        return self._landing / path

    async def take(self, jobs: AsyncIterator[JobT]) -> None:
        """Fetches and reads the files of these jobs. Raises `ConfigError`, `CommitFailed` and what `jobs` raises."""
        ready: asyncio.Queue[_Ready[JobT, LandedT] | None] = asyncio.Queue(self.mode.ahead)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._fetch_all(jobs, ready))
                group.create_task(self._read_all(ready))
        except ExceptionGroup as errors:
            raise first_of(errors) from None

    async def take_again(self, renewed: Callable[[Sequence[JobT]], AsyncIterator[JobT]]) -> None:
        """Looks once more at the files that were unfit; `renewed` makes of their jobs those of now."""
        while self._again and not self.stop.is_set():
            again, self._again = self._again, []
            await self.take(renewed(again))

    def give_up(self, path: str, reason: str) -> None:
        """This file did not come; others may."""
        log.error("dump_not_fetched", path=path, reason=reason)
        self.summary.wrong.append(Wrong(path, reason))
        self.progress.done(path, "failed", reason)

    def say(self, path: str, state: str, **known: Any) -> None:
        """One more row of the ledger, in a thread."""
        now = self.clock()
        row = {"path": path, "state": state, "state_time": now, "date": now.date(), **known}
        self.lake.add(DUMP_FILE, pl.DataFrame([row], schema=DUMP_FILE.schema))

    def clean(self, archives: Iterable[Path]) -> None:
        """These are read; they go unless somebody wants to keep them."""
        for archive in () if self._keep_archives else archives:
            discard(archive)
            _leave(archive.parent)

    @contextlib.contextmanager
    def consumed(self, archives: Sequence[Path]) -> Iterator[None]:
        """These go when the block has ended well; should we be killed in it, the next one to `sweep` sees to that."""
        marks = [] if self._keep_archives else [each.with_name(each.name + GOING) for each in archives]
        for mark in marks:
            # Another backfill has removed it, and its folder; or the disk is full, and what goes makes room.
            with contextlib.suppress(OSError):
                mark.touch()
        try:
            yield
            self.clean(archives)
        finally:
            for mark in marks:
                mark.unlink(missing_ok=True)
                _leave(mark.parent)

    def sweep(self, folder: str, is_taken: Callable[[str], bool]) -> None:
        """Removes what killed processes left below a folder: archives that should have gone, for their rows are in."""
        # Others may be at work in there, and remove folders.
        found = [Path(place, name) for place, _, names in os.walk(self.place(folder)) for name in names]
        for mark in (path for path in found if path.suffix == GOING):
            archive = mark.with_suffix("")
            if is_taken(archive.relative_to(self._landing).as_posix()):
                discard(archive)
            mark.unlink(missing_ok=True)
            _leave(mark.parent)

    # Fetching

    async def _fetch_all(self, jobs: AsyncIterator[JobT], ready: asyncio.Queue[_Ready[JobT, LandedT] | None]) -> None:
        await unless(self.stop, self._fetch_each(jobs, ready))
        await ready.put(None)

    async def _fetch_each(self, jobs: AsyncIterator[JobT], ready: asyncio.Queue[_Ready[JobT, LandedT] | None]) -> None:
        room = asyncio.Semaphore(self.mode.ahead)
        async with asyncio.TaskGroup() as group:
            async for job in jobs:
                if job.path not in self._looks:
                    self.progress.found(1)
                await room.acquire()
                group.create_task(self._fetch(job, ready)).add_done_callback(lambda _: room.release())

    async def _fetch(self, job: JobT, ready: asyncio.Queue[_Ready[JobT, LandedT] | None]) -> None:
        try:
            landed = await self.source.landed(job)
        except SourceError as error:
            later = f"; it asks to be left alone for {error.retry_after_s:,.0f} s" if error.retry_after_s else ""
            self.give_up(job.path, f"{error}{later}")
        except Spoilt as spoilt:
            await self._spoilt(job, str(spoilt))
        else:
            if landed is not None:
                await ready.put(_Ready(job, landed))

    # Reading

    async def _read_all(self, ready: asyncio.Queue[_Ready[JobT, LandedT] | None]) -> None:
        room, last_of = asyncio.Semaphore(self.mode.readers), dict[str, asyncio.Task[None]]()
        async with asyncio.TaskGroup() as group:
            is_over = False
            while not is_over:
                await room.acquire()
                batch, is_over = await self._batch(ready)
                lanes = {self.source.lane(each.job) for each in batch}
                if before := {last_of[lane] for lane in lanes if lane in last_of}:
                    await asyncio.wait(before)
                task = group.create_task(self._read(batch))
                task.add_done_callback(lambda _: room.release())
                last_of.update(dict.fromkeys(lanes, task))

    async def _batch(
        self, ready: asyncio.Queue[_Ready[JobT, LandedT] | None]
    ) -> tuple[list[_Ready[JobT, LandedT]], bool]:
        """What is ready, small ones together; and whether that was all."""
        batch: list[_Ready[JobT, LandedT]] = []
        while not batch or (not ready.empty() and self._is_small(batch)):
            each = await ready.get()
            if each is None:
                return batch, True
            batch.append(each)
        return batch, False

    def _is_small(self, batch: Sequence[_Ready[JobT, LandedT]]) -> bool:
        days = {day for each in batch for day in self.source.days(each.job)}
        size = sum(each.landed.fetched.size for each in batch)
        return size < self.mode.together_bytes and len(days) < TOGETHER_DAYS

    async def _read(self, batch: list[_Ready[JobT, LandedT]]) -> None:
        """One commit, or some if not all can share it; a file that is unfit leaves the others alone."""
        alone = [[each] for each in batch if not self.source.is_shared(each.job)]
        left = [*alone, [each for each in batch if self.source.is_shared(each.job)]]
        while left and not self.stop.is_set():
            some = left.pop()
            landed = [each.landed for each in some]
            if not landed:
                continue
            try:
                taken = await asyncio.to_thread(self._ingest, landed)
            except Unfit as unfit:
                (job,) = (each.job for each in _those(some, [unfit.landed]))
                left.append([each for each in some if each.job is not job])
                await (self._lost(job) if isinstance(unfit, Gone) else self._spoilt(job, str(unfit)))
            except Overlap as overlap:
                left += [_those(some, overlap.behind), _those(some, overlap.front)]
            except Stopped:
                return
            else:
                self.source.count(landed, taken)

    def _ingest(self, landed: Sequence[LandedT]) -> TakenT:
        taken = self.source.ingest(landed)
        if next(self._commits) % UNCHECKED_COMMITS == 0:
            # Nobody may be recording into this table, and a log without a checkpoint is read from its begin each time.
            shorten_log(self.lake.root, self.dataset)
        return taken

    # What is not as it should be

    async def _spoilt(self, job: JobT, reason: str) -> None:
        """Once more at the end; then it is put aside."""
        path, place = job.path, self.place(job.path)
        self._looks[path] = self._looks.get(path, 0) + 1
        if self._looks[path] < LOOKS:
            log.warning("dump_spoilt", path=path, reason=reason)
            if place.exists():
                self.progress.fetched(-place.stat().st_size)
            discard(place)
            self._again.append(job)
            return
        log.error("dump_quarantined", path=path, reason=reason)
        if aside := await asyncio.to_thread(self._quarantine, path):
            reason = f"{reason}; put aside as {aside}"
        await asyncio.to_thread(self.say, path, QUARANTINED, **self.source.ledger_row(job))
        self.summary.wrong.append(Wrong(path, reason))
        self.progress.done(path, QUARANTINED, reason)

    def _quarantine(self, path: str) -> Path | None:
        """Where it is put; None if there is nothing to put aside. Raises `ConfigError`."""
        place, target = self.place(path), self._aside / path
        if not place.exists():
            return None
        with disk(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(place, target)
        discard(place)
        return target

    async def _lost(self, job: JobT) -> None:
        """Another backfill had the archive and removed it: all is done, or it is fetched once more at the end."""
        if await asyncio.to_thread(self.source.is_taken, job):
            self.progress.done(job.path, INGESTED, "taken by another backfill")
            return
        self._looks.setdefault(job.path, 0)
        self._again.append(job)


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


def first_of(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Of several things that went wrong at once the first one is told."""
    first = errors.exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first


def _leave(folder: Path) -> None:
    with contextlib.suppress(OSError):  # others are still fetched into it
        folder.rmdir()


def _those(some: Iterable[_Ready[JobT, LandedT]], landed: Iterable[object]) -> list[_Ready[JobT, LandedT]]:
    wanted = {id(each) for each in landed}
    return [each for each in some if id(each.landed) in wanted]
