"""`backfill binance`: official files into the tables, from the plan to the certificate; it ends by itself.

How files are fetched and read is said in `backfill.flow`; what is Binance's own stands here.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from functools import partial

import polars as pl
import structlog

from crypto_lake.backfill.certify import certified, certify
from crypto_lake.backfill.facts import facts_of
from crypto_lake.backfill.findings import Differences, differences
from crypto_lake.backfill.flow import Flow, Progress, Spoilt, Summary, Wrong, unless
from crypto_lake.backfill.ingest import Landed, Taken, Told, enter, ingest, ledger
from crypto_lake.backfill.mode import Mode, mode_here
from crypto_lake.backfill.plan import Absent, Job, Missing, Wanted, daily, days_in, jobs, lacks
from crypto_lake.config import ConfigError, Settings
from crypto_lake.connections import SourceError
from crypto_lake.connections.objects import Fetched, Objects, checksum_in, discard
from crypto_lake.models import SIDES
from crypto_lake.models.bucket import CHECKSUM, FOLDERS, File, file_at, is_about
from crypto_lake.models.coverage import COVERAGE
from crypto_lake.models.dump_file import DUMP_FILE, INGESTED, REPLACED
from crypto_lake.writers.bulk import marked

log = structlog.get_logger()


async def backfill(
    settings: Settings,
    wanted: Wanted,
    progress: Progress,
    *,
    keep_archives: bool = False,
    recheck: bool = True,
    mode: Mode | None = None,
    stop: threading.Event | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Summary:
    """Takes what is wanted and not yet there. Raises `ConfigError`, `SourceError`, `CommitFailed`.

    Without a `mode` this machine says which; the size of pieces is that of ZIPs.
    """
    stop, mode = stop or threading.Event(), mode or mode_here(settings.mode)
    if not wanted.symbols:
        symbols = await unless(stop, symbols_of(settings, wanted))
        if symbols is None:
            return Summary(is_stopped=True)
        wanted = replace(wanted, symbols=symbols)
    async with Objects(settings.dumps, at_once=mode.downloads) as objects:
        run = _Run(settings, wanted, progress, objects, mode, stop, clock, keep_archives=keep_archives)
        return await run.whole(recheck=recheck)


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
    """Binance's part of a `Flow`, and the plan."""

    def __init__(
        self,
        settings: Settings,
        wanted: Wanted,
        progress: Progress,
        objects: Objects,
        mode: Mode,
        stop: threading.Event,
        clock: Callable[[], datetime],
        *,
        keep_archives: bool,
    ) -> None:
        self.wanted, self.progress, self.objects = wanted, progress, objects
        self.stop, self.clock = stop, clock
        self.told = Told(progress.read, stop)
        self.flow: Flow[Job, Landed, tuple[list[Taken], pl.DataFrame]] = Flow(
            self,
            settings,
            wanted.dataset,
            progress,
            mode=mode,
            stop=stop,
            clock=clock,
            keep_archives=keep_archives,
        )
        self.lake, self.summary = self.flow.lake, self.flow.summary
        self._known: dict[str, str] = {}
        self._unknown: set[tuple[str, date]] = set()  # days about which the venue says nothing that makes sense
        self._lacking: dict[str, list[date]] = {}

    async def whole(self, *, recheck: bool) -> Summary:
        for dataset in (self.wanted.dataset, *SIDES, COVERAGE, DUMP_FILE):
            await asyncio.to_thread(self.lake.check, dataset)
        entries = await asyncio.to_thread(ledger, self.lake)
        self._known = {path: sha for path, (sha, state) in entries.items() if state == INGESTED}
        missing = await asyncio.to_thread(self._missing)
        self.progress.planned(sum(len(found.days) for found in missing.values()))
        if recheck:
            await self.flow.take(self._replaced(entries))
        await self.flow.take(self._published(jobs(self.wanted, missing, self._ask, self.clock().date())))
        await self.flow.take(self._published(self._rest()))
        await self.flow.take_again(self._once_more)
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

    async def _ask(self, file: File) -> str | None:
        """The SHA-256 that the venue states of a file; None where it states none that makes sense."""
        text = await self.objects.text(file.path + CHECKSUM)
        try:
            return None if text is None else checksum_in(text, f"{file.stem}.zip")
        except SourceError as error:
            # About this file nothing is known; the others are not concerned.
            self._unknown |= {(file.symbol, day) for day in file.days}
            self.flow.give_up(file.path, f"{file.path}: {error}")
            return None

    async def _replaced(self, entries: dict[str, tuple[str, str]]) -> AsyncIterator[Job]:
        """The files in the ledger that are not any more what they were when their rows were taken."""
        for path, (sha256, state) in entries.items():
            file = file_at(path)
            if file is None or state not in (INGESTED, REPLACED) or not self._is_wanted(file):
                continue
            now = await self._ask(file)
            # What was found to be replaced, and then not taken, is still to be taken.
            if now is None or (now == sha256 and state == INGESTED):
                continue
            log.warning("dump_replaced", path=path, was=sha256, now=now)
            self.summary.replaced.append(path)
            if (now, REPLACED) != (sha256, state):
                await asyncio.to_thread(self.flow.say, path, REPLACED, sha256=now)
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

    async def _rest(self) -> AsyncIterator[Job | Absent]:
        """Days that a month's file lacks may have files of their own."""
        lacking, self._lacking = self._lacking, {}
        for symbol, days in lacking.items():
            for job in await daily(self.wanted, symbol, days, self._ask):
                yield job

    async def _published(self, found: AsyncIterator[Job | Absent]) -> AsyncIterator[Job]:
        """The jobs among these; the others are noted."""
        async for each in found:
            if isinstance(each, Job):
                yield each
                continue
            self.progress.planned(-len(each.days))
            if days := tuple(day for day in each.days if (each.symbol, day) not in self._unknown):
                self.summary.absent.append(Absent(each.symbol, days))

    async def _once_more(self, again: Sequence[Job]) -> AsyncIterator[Job]:
        for job in again:
            sha256 = await self._ask(job.file)
            yield Job(job.file, sha256 or job.sha256, job.days)

    # Doing it, as a `Source`

    async def landed(self, job: Job) -> Landed:
        """The file of a job. Raises `Spoilt`, `SourceError`, `ConfigError`."""
        path = job.path
        fetched = await self._come(job.file, len(job.days))
        if fetched is None or fetched.sha256 != job.sha256:
            what = "is not there any more" if fetched is None else f"has SHA-256 {fetched.sha256}"
            raise Spoilt(f"{path} {what}, and its .CHECKSUM says {job.sha256}")
        other = self.wanted.archive.beside
        beside = None if other is None else await self._fetch_beside(job.file.of(other))
        # Of a file that took another's place the rows may be others under the same keys.
        return Landed(job, fetched, beside, is_compared=path in self.summary.replaced)

    async def _fetch_beside(self, file: File) -> Fetched | None:
        """The file that knows more of the same rows; where none is published they are still rows."""
        sha256 = await sum_of(self.objects, file)
        fetched = None if sha256 is None else await self._come(file)
        if fetched is None or fetched.sha256 == sha256:
            return fetched
        discard(fetched.path)
        raise SourceError(f"{file.path} has SHA-256 {fetched.sha256}, and its .CHECKSUM says {sha256}")

    async def _come(self, file: File, days: int = 0) -> Fetched | None:
        place, size = self.flow.place(file.path), partial(self.progress.sized, file.path, days=days)
        return await self.objects.fetch(file.path, place, on_bytes=self.progress.fetched, on_size=size)

    def days(self, job: Job) -> Sequence[date]:
        """The days that a job is about."""
        return job.days

    def lane(self, job: Job) -> str:
        """Of one symbol a file may have rows that the next one has too."""
        return job.file.symbol

    def is_shared(self, job: Job) -> bool:
        """Small files of any kind share their commit."""
        return True

    def ledger_row(self, job: Job) -> dict[str, str]:
        """What the ledger says of a file that is put aside."""
        return {"sha256": job.sha256}

    def is_taken(self, job: Job) -> bool:
        """Whether another backfill has taken it."""
        proofs = certified(self.lake, self.wanted.dataset, self.wanted.venue)
        # Of a file that took another's place we have said so in the ledger, maybe after the other was done.
        is_fresh = job.path not in self.summary.replaced
        return is_fresh and all(proofs.get((job.file.symbol, day)) == job.sha256 for day in job.days)

    def ingest(self, batch: Sequence[Landed]) -> tuple[list[Taken], pl.DataFrame]:
        """Puts the rows of some files into the table; what became of them, and their certificates."""
        now = self.clock()
        taken = ingest(self.lake, self.wanted, batch, known=self._known, now=now, told=self.told)
        # Before the certificates: days that have theirs are not looked at again, nor is what lies there for them.
        self.flow.clean(got.path for each in batch for got in (each.fetched, each.beside) if got)
        rows = certify(self.lake, self.wanted.dataset, facts_of(taken), now=now)
        enter(self.lake, [each for each in taken if each.landed.is_compared], self._known, now=now)
        return taken, rows

    def count(self, batch: Sequence[Landed], taken: tuple[list[Taken], pl.DataFrame]) -> None:
        """They are through."""
        each_taken, certificates = taken
        for verdict, count in certificates["verdict"].value_counts().iter_rows():
            self.summary.verdicts[verdict] = self.summary.verdicts.get(verdict, 0) + count
        for each in each_taken:
            self._count(each)

    def _count(self, taken: Taken) -> None:
        summary, path = self.summary, taken.job.path
        self._known[path] = taken.job.sha256
        summary.files += 1
        summary.size += taken.landed.fetched.size
        summary.rows += taken.rows
        summary.added += taken.added
        summary.refused += len(taken.refused)
        summary.days += len(taken.done)
        summary.compared += self._differences(taken)
        if taken.lacking:
            self.progress.planned(len(taken.lacking))
            summary.short.append(path)
            self._lacking.setdefault(taken.job.file.symbol, []).extend(taken.lacking)
        self.progress.done(path, INGESTED, f"{taken.rows:,} rows, {taken.added:,} new")

    def _differences(self, taken: Taken) -> Iterator[Differences]:
        for day in taken.done:
            found = taken.days.get(day)
            if found and found.differing is not None and (found.differing or found.only_ours):
                yield differences(self.wanted.dataset, taken.job.file.symbol, day, found)


__all__ = ["ConfigError", "Progress", "SourceError", "Summary", "Wrong", "backfill", "symbols_of"]
