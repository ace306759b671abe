"""`backfill massive`: flat files of stocks, options, indices and pairs into the tables, to the certificate of each day.

How files are fetched and read is said in `backfill.flow`; what is the service's own stands here. Its listing says what
there is, the calendar of the exchange what there should be.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from functools import partial
from typing import Any, Final

import polars as pl
import structlog

from crypto_lake.backfill.flat import FlatJob, FlatLanded, FlatTaken, certificate, heal, ingest_flat
from crypto_lake.backfill.flat_plan import Entry, FlatWanted, began, by_day, entries, found, lacking
from crypto_lake.backfill.flow import Flow, Progress, Spoilt, Summary
from crypto_lake.backfill.ingest import Told
from crypto_lake.backfill.mode import Mode, mode_here
from crypto_lake.backfill.plan import Absent
from crypto_lake.backfill.sessions import is_due, sessions
from crypto_lake.config import Settings
from crypto_lake.connections.s3 import Bucket, Listed, NotEntitled
from crypto_lake.models import SIDES
from crypto_lake.models.coverage import COVERAGE, EVERY_SYMBOL, INCOMPLETE
from crypto_lake.models.dump_file import DUMP_FILE, INGESTED, REPLACED
from crypto_lake.models.flatfile import FlatFile, flatfile_at, month_of

log = structlog.get_logger()

FOLDER: Final = "massive"
# The service was seen to answer more downloads at once with 429 (PROTOCOLS E.1).
DOWNLOADS: Final = 2
# A day of trades may have gigabytes: so few of them wait on the disk.
LARGE_AHEAD: Final = 4


async def backfill(
    settings: Settings,
    wanted: FlatWanted,
    progress: Progress,
    *,
    keep_archives: bool = False,
    recheck: bool = True,
    mode: Mode | None = None,
    stop: threading.Event | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Summary:
    """Takes what is wanted and not yet there. Raises `ConfigError`, `SourceError`, `CommitFailed`.

    Without a `mode` this machine says which.
    """
    mode, stop = _milder(mode or mode_here(settings.mode), wanted), stop or threading.Event()
    keys = settings.massive_key_id, settings.massive_secret
    async with Bucket(settings.massive_s3, *keys, at_once=mode.downloads) as bucket:
        run = _Run(settings, wanted, progress, bucket, mode, stop, clock, keep_archives=keep_archives)
        return await run.whole(recheck=recheck)


def _milder(mode: Mode, wanted: FlatWanted) -> Mode:
    """As the service and the disk want it."""
    ahead = mode.ahead if wanted.kind.timeframe == "1d" else min(mode.ahead, LARGE_AHEAD)
    return replace(mode, downloads=min(mode.downloads, DOWNLOADS), ahead=ahead)


class _Run:
    """The service's part of a `Flow`, and the plan."""

    def __init__(
        self,
        settings: Settings,
        wanted: FlatWanted,
        progress: Progress,
        bucket: Bucket,
        mode: Mode,
        stop: threading.Event,
        clock: Callable[[], datetime],
        *,
        keep_archives: bool,
    ) -> None:
        self.wanted, self.progress, self.bucket = wanted, progress, bucket
        self.mode, self.stop, self.clock = mode, stop, clock
        self.told = Told(progress.read, stop)
        self.flow: Flow[FlatJob, FlatLanded, list[FlatTaken]] = Flow(
            self,
            settings,
            wanted.dataset,
            progress,
            mode=mode,
            stop=stop,
            clock=clock,
            keep_archives=keep_archives,
            folder=FOLDER,
        )
        self.lake, self.summary = self.flow.lake, self.flow.summary
        self._sessions: set[date] = set()
        self._entries: dict[str, Entry] = {}
        self._lacks: dict[date, tuple[str, ...]] = {}  # days that are not marked, and for which symbols
        self._oldest: date | None = None  # day of all files that are known
        self._absent: list[date] = []
        self._seen, self._unseen = set[str](), set[str]()  # symbols and roots of which rows came, or were to come
        # Who waits for his turn sees first whether the one before him was refused.
        self._turns, self._is_refused = asyncio.Semaphore(mode.downloads), False

    async def whole(self, *, recheck: bool) -> Summary:
        for dataset in (self.wanted.dataset, *SIDES, COVERAGE, DUMP_FILE):
            await asyncio.to_thread(self.lake.check, dataset)
        await asyncio.to_thread(self._begin)
        await self.flow.take(self._jobs(recheck=recheck))
        await self.flow.take_again(self._once_more)
        await asyncio.to_thread(self._note_absent)
        self.summary.unseen = sorted(self._unseen - self._seen)
        self.summary.is_stopped = self.stop.is_set()
        return self.summary

    # What is to be done

    def _begin(self) -> None:
        """Looks at what is there, and puts right what a crash left."""
        wanted = self.wanted
        days = [day for month in wanted.months for day in wanted.days(month)]
        self._sessions = set(sessions(wanted.kind.calendar, wanted.first, wanted.last))
        self._entries = entries(self.lake, wanted)
        self._know(file.day for path in self._entries if (file := flatfile_at(path)))
        self._lacks = lacking(self.lake, wanted)
        self.summary.held_days = len(days) - len(self._lacks)
        of_all = lacking(self.lake, replace(wanted, symbols=()))
        heal(self.lake, wanted.folder, [day for day in days if day not in of_all], now=self.clock())
        self.flow.sweep(wanted.folder, self._is_in)
        self.progress.planned(len(self._due(days)))

    def _know(self, days: Iterable[date]) -> None:
        """There are files of these days."""
        self._oldest = min([*days, *([self._oldest] if self._oldest else [])], default=None)

    def _due(self, days: Iterable[date]) -> list[date]:
        """Of some days the sessions that are not marked, and whose files should be there."""
        now = self.clock()
        return [day for day in days if day in self._sessions and day in self._lacks and is_due(day, now)]

    async def _jobs(self, *, recheck: bool) -> AsyncIterator[FlatJob]:
        """Month by month; a month of which nothing is to be asked is not listed."""
        for month in self.wanted.months:
            days = self.wanted.days(month)
            is_held = any(FlatFile(self.wanted.folder, day).path in self._entries for day in days)
            # Where nothing is known yet the calendar does not know best: currencies have files of Sundays.
            is_left = any(day in self._lacks and (day in self._sessions or not is_held) for day in days)
            if not self._is_refused and (is_left or (recheck and is_held)):
                for job in await self._of_month(days, await self._listed(month), recheck=recheck):
                    yield job

    async def _listed(self, month: date) -> dict[date, Listed]:
        listed = by_day(await self.bucket.listed(month_of(self.wanted.folder, month)), self.wanted.folder)
        self._know(listed)
        return listed

    async def _of_month(self, days: Sequence[date], listed: Mapping[date, Listed], *, recheck: bool) -> list[FlatJob]:
        now = self.clock()
        what = found(self.wanted, days, self._sessions, self._lacks, listed, self._entries, now, recheck=recheck)
        self.progress.planned(len(what.jobs) - len(self._due(days)))
        self._absent += [day for day in what.absent if self._is_hole(day)]
        if what.awaited:
            self.summary.awaited.append(Absent(self.wanted.folder, tuple(what.awaited)))
        for job in what.jobs:
            if job.replaces:
                await asyncio.to_thread(self._note_replaced, job, listed[job.file.day])
        return what.jobs

    def _is_hole(self, day: date) -> bool:
        """Whether a file is missing: in the year in which files begin it is not known on which day that was."""
        is_first_year = day.year == began(self.wanted.folder).year
        return not is_first_year or (self._oldest is not None and self._oldest < day)

    def _note_replaced(self, job: FlatJob, listed: Listed) -> None:
        entry = self._entries[job.path]
        log.warning("dump_replaced", path=job.path, was=entry.etag, now=job.etag)
        self.summary.replaced.append(job.path)
        if entry.state != REPLACED or not entry.is_of(listed):
            told = {"etag": listed.etag, "size": listed.size, "last_modified": listed.last_modified}
            self.flow.say(job.path, REPLACED, **told)

    async def _once_more(self, again: Sequence[FlatJob]) -> AsyncIterator[FlatJob]:
        for job in again:
            listed = (await self._listed(job.file.day)).get(job.file.day)
            yield replace(job, etag=listed.etag, size=listed.size) if listed else job

    # Doing it, as a `Source`

    async def landed(self, job: FlatJob) -> FlatLanded | None:
        """The file of a job; None once the service has said that it is not for us. Raises `Spoilt`, `SourceError`."""
        size = partial(self.progress.sized, job.path, days=1)
        async with self._turns:
            if self._is_refused:
                return None
            try:
                fetched = await self.bucket.fetch(
                    job.path, self.flow.place(job.path), on_bytes=self.progress.fetched, on_size=size
                )
            except NotEntitled as error:
                self._refuse(job, error)
                return None
        if fetched is None:
            raise Spoilt(f"{job.path} is listed and not there")
        is_other = fetched.etag != job.etag if fetched.etag and job.etag else fetched.size != job.size
        if is_other:
            now = f"{fetched.size} bytes and ETag {fetched.etag}"
            raise Spoilt(f"{job.path} has {now}; listed are {job.size} and {job.etag}")
        return FlatLanded(job, fetched)

    def _refuse(self, job: FlatJob, error: NotEntitled) -> None:
        """Said once; nothing more of the folder is asked for."""
        if not self._is_refused:
            self._is_refused = True
            self.flow.give_up(job.path, f"{error}; nothing more of {self.wanted.folder} is asked for")

    def days(self, job: FlatJob) -> Sequence[date]:
        """The day of a job."""
        return (job.file.day,)

    def lane(self, job: FlatJob) -> str:
        """No two files have a row in common."""
        return job.path

    def is_shared(self, job: FlatJob) -> bool:
        """A file that took another's place is held against what it replaces, and nothing else."""
        return not job.replaces

    def ledger_row(self, job: FlatJob) -> dict[str, Any]:
        """What the ledger says of a file that is put aside."""
        return {"etag": job.etag, "size": job.size}

    def is_taken(self, job: FlatJob) -> bool:
        """Whether another backfill has taken it."""
        entry = entries(self.lake, self.wanted).get(job.path)
        is_said = entry is not None and entry.state == INGESTED and job.etag in (None, entry.etag)
        return is_said and not lacking(self.lake, replace(self.wanted, first=job.file.day, last=job.file.day))

    def ingest(self, batch: Sequence[FlatLanded]) -> list[FlatTaken]:
        """Puts the rows of some files into the table."""
        # What the ledger knows of a file may be what some of its symbols were; of all of them it has to say more.
        known = self._known() if self.wanted.symbols else {}
        how: Any = {"now": self.clock(), "told": self.told, "piece_bytes": self.mode.piece_bytes}
        # A file that took another's place need not do that twice.
        left = [each for each in batch if not (each.job.replaces and self.is_taken(each.job))]
        with self.flow.consumed([each.fetched.path for each in batch]):
            return ingest_flat(self.lake, left, known=known, **how) if left else []

    def _known(self) -> dict[str, str]:
        replaced = set(self.summary.replaced)
        return {
            path: entry.sha256
            for path, entry in self._entries.items()
            if entry.state == INGESTED and entry.sha256 and path not in replaced
        }

    def count(self, batch: Sequence[FlatLanded], taken: list[FlatTaken]) -> None:
        """They are through."""
        summary = self.summary
        for each in taken:
            summary.files += 1
            summary.days += 1
            summary.size += each.landed.fetched.size
            summary.rows += each.rows
            summary.added += each.added
            summary.refused += len(each.refused)
            summary.tests += each.tests
            summary.changed += each.changed
            self._seen |= each.per_name.keys()
            self._unseen |= set(each.job.symbols)
            self.progress.done(each.job.path, INGESTED, f"{each.rows:,} rows, {each.added:,} new")
        for path in {each.job.path for each in batch} - {each.job.path for each in taken}:
            self.progress.done(path, INGESTED, "taken by another backfill")

    # What is there, and what is not

    def _note_absent(self) -> None:
        """Sessions without a file are holes; each is said in `coverage`, once."""
        if not self._absent:
            return
        kind, dataset = self.wanted.kind, self.wanted.dataset
        self.summary.absent.append(Absent(self.wanted.folder, tuple(self._absent)))
        rows = self.lake.rows(COVERAGE, dataset=dataset.name, venue=kind.venue, symbol=EVERY_SYMBOL)
        rows = rows.filter(pl.col("timeframe").fill_null("") == kind.timeframe)
        newest = rows.sort("checked_time", maintain_order=True).unique("date", keep="last")
        said = set(newest.filter(pl.col("verdict") == INCOMPLETE, pl.col("dump_sha256").is_null())["date"])
        files = [FlatFile(self.wanted.folder, day) for day in self._absent if day not in said]
        if files:
            no_rows = partial(certificate, symbols=(), now=self.clock(), rows=0, sha256=None, dump_rows=None)
            self.lake.add(COVERAGE, pl.concat(map(no_rows, files)))

    def _is_in(self, path: str) -> bool:
        """Whether the rows of a file are in the table."""
        file = flatfile_at(path)
        return file is not None and self.is_taken(FlatJob(file, None, 0))
