"""`reconcile`: the table against the official file against REST: what can be had is filled, and the rest is said.

The file is no more the truth than the table is. Rows that the table lacks are taken from it; rows that only the table
has stay; where both have a row and differ, both are shown and none is changed. REST, where it reaches, is asked for ids
that neither has, and whose account it confirms. Everything here may be done again at any time, also after a crash.
"""

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

import polars as pl
import structlog

from crypto_lake.backfill.ask import FIRST_DAY
from crypto_lake.backfill.binance import sum_of, symbols_of
from crypto_lake.backfill.certify import certify
from crypto_lake.backfill.facts import facts_of
from crypto_lake.backfill.findings import OURS, Differences, differences, note
from crypto_lake.backfill.flow import Progress
from crypto_lake.backfill.ingest import CONFLICTS, Day, Landed, Stopped, Taken, Told, Unfit, enter, ingest, ledger
from crypto_lake.backfill.plan import Job, Wanted, daily
from crypto_lake.backfill.settle import can_be_asked, not_at_venue
from crypto_lake.backfill.witness import Heard, Stretch, ask, opinions, stretches
from crypto_lake.config import ConfigError, Settings
from crypto_lake.connections import SourceError
from crypto_lake.connections.objects import Fetched, Objects, discard
from crypto_lake.connections.rest import Rest
from crypto_lake.models import SIDES
from crypto_lake.models.bucket import DAY, File
from crypto_lake.models.coverage import COMPLETE, COVERAGE, UNVERIFIABLE
from crypto_lake.models.dump_file import DUMP_FILE, INGESTED
from crypto_lake.models.gap import GAP, NOT_AT_VENUE
from crypto_lake.models.rejected import REJECTED
from crypto_lake.processors.decode import Refused
from crypto_lake.processors.sequence import INTERVALS, has_sequence
from crypto_lake.processors.shape import rejected_rows
from crypto_lake.query.coverage import FACTS, held_runs
from crypto_lake.query.gaps import gaps, missing
from crypto_lake.query.runs import between, overlaps, without
from crypto_lake.query.span import span
from crypto_lake.writers import CommitConflict
from crypto_lake.writers.bulk import Bulk
from crypto_lake.writers.delta import Lake

log = structlog.get_logger()

# A wrong sum may be that of a file which is being replaced: it is looked at once more.
LOOKS: Final = 2
# So many pages of a day are asked for to know whose account REST confirms.
WITNESS_PAGES: Final = 5
# Holes that reach beyond the days asked for are those days' business, unless they are as short as this.
SHORT_HOLE_IDS: Final = 10_000
# Rows of REST are committed when there are so many.
TOGETHER_ROWS: Final = 50_000
# What is missing for no longer is maybe on its way, and a recorder's own repair asks for it.
RECENT: Final = timedelta(minutes=15)

# What REST did for a day; the last one of them that applies.
NOTHING_TO_ASK: Final = "nothing to ask"
ASKED: Final = "asked"
NOT_ASKED: Final = "not asked"
NO_ANSWER: Final = "no answer"
RANKS: Final = (NOTHING_TO_ASK, ASKED, NOT_ASKED, NO_ANSWER)
NO_ROAD: Final = "REST has no rows of this by their ids"
OUT_OF_REACH: Final = "older than what REST still has"
OTHER_DAYS: Final = "most of what is missing is of the day before or behind, reconcile that one"


@dataclass(slots=True)
class Reconciled:
    """A day of a symbol: what it holds now, what was filled, and what the accounts of it say (None: no file).

    `not_at_venue` are ids between the day's rows that the venue has no row of. `fault` says why its file is of no use.
    """

    dataset: str
    venue: str
    symbol: str
    date: date
    verdict: str = UNVERIFIABLE
    path: str | None = None
    sha256: str | None = None
    rows: int = 0
    dump_rows: int | None = None
    filled_by_dump: int = 0
    filled_by_rest: int = 0
    missing_rows: int | None = None
    not_at_venue: int = 0
    rest: str = NOTHING_TO_ASK
    rest_reason: str = ""
    rest_pages: int = 0
    fault: str = ""
    differences: Differences | None = None

    @property
    def is_there(self) -> bool:
        """Whether anybody knows anything of it."""
        return self.rows > 0 or self.dump_rows is not None

    @property
    def is_good(self) -> bool:
        """Whether there is nothing that somebody should look into."""
        return self.verdict in (COMPLETE, UNVERIFIABLE) and not self.fault


@dataclass(slots=True)
class Outcome:
    """The days that were reconciled."""

    days: list[Reconciled] = field(default_factory=list)
    is_stopped: bool = False

    @property
    def is_good(self) -> bool:
        """Whether all of them were, none differs from its file or is known to lack rows, and every symbol has some."""
        symbols = {day.symbol for day in self.days if day.is_there}
        return not self.is_stopped and all(day.is_good and day.symbol in symbols for day in self.days)


def day_or_month(text: str, *, today: date) -> str:
    """The same text, if it is a day or a month that has begun. Raises `ConfigError`."""
    form = f"--date {text}: write a day (2024-01-15) or a month (2024-01)"
    try:
        first, behind = span(text, text)
    except ConfigError:
        raise ConfigError(form) from None
    assert first is not None
    assert behind is not None
    if behind - first < DAY:
        raise ConfigError(form)
    if first.date() > today:
        raise ConfigError(f"--date {text}: that is yet to come; today is {today} (UTC)")
    if behind.date() <= FIRST_DAY:
        raise ConfigError(f"--date {text}: Binance began on {FIRST_DAY}")
    return text


async def reconcile(
    settings: Settings,
    wanted: Wanted,
    progress: Progress,
    *,
    stop: threading.Event | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Outcome:
    """Reconciles every wanted day of every symbol. Raises `ConfigError`, `SourceError`, `CommitFailed`."""
    if not wanted.symbols:
        wanted = replace(wanted, symbols=await symbols_of(settings, wanted))
    run = _Run(settings, wanted, progress, stop or threading.Event(), clock)
    async with Objects(settings.dumps) as objects, Rest(settings.rest_address, api_key=settings.api_key) as rest:
        return await run.whole(objects, rest)


@dataclass(slots=True)
class _Look:
    """A day under way."""

    day: date
    job: Job | None = None
    found: Day | None = None  # the comparison with its file
    fault: str = ""
    by_rest: int = 0
    rest: str = NOTHING_TO_ASK
    reason: str = ""
    pages: int = 0
    differences: Differences | None = None

    def say(self, rest: str, reason: str = "") -> None:
        if RANKS.index(rest) > RANKS.index(self.rest):
            self.rest, self.reason = rest, reason


Looks = dict[date, _Look]


class _Hole(NamedTuple):
    """Missing ids, and the times of the rows on both sides."""

    first_id: int
    last_id: int
    start_time: datetime
    end_time: datetime

    def is_of(self, looks: Looks) -> bool:
        """Whether it is inside these days, or too short to matter to others."""
        is_inside = min(looks) <= self.start_time.date() and self.end_time.date() <= max(looks)
        return is_inside or self.last_id - self.first_id < SHORT_HOLE_IDS


class _Run:
    def __init__(
        self,
        settings: Settings,
        wanted: Wanted,
        progress: Progress,
        stop: threading.Event,
        clock: Callable[[], datetime],
    ) -> None:
        self.settings, self.wanted, self.progress, self.stop, self.clock = settings, wanted, progress, stop, clock
        self.dataset, self.venue = wanted.dataset, wanted.venue
        self.lake = Lake(settings.root)
        self.told = Told(progress.read, stop)
        self._known: dict[str, str] = {}
        self._silence = ""  # why REST is asked no more

    async def whole(self, objects: Objects, rest: Rest) -> Outcome:
        for dataset in (self.dataset, *SIDES, COVERAGE, DUMP_FILE):
            await asyncio.to_thread(self.lake.check, dataset)
        entries = await asyncio.to_thread(ledger, self.lake)
        self._known = {path: sha256 for path, (sha256, state) in entries.items() if state == INGESTED}
        outcome = Outcome()
        with contextlib.suppress(Stopped):
            for symbol in self.wanted.symbols:
                outcome.days += await self._symbol(objects, rest, symbol)
        outcome.is_stopped = self.stop.is_set()
        return outcome

    async def _symbol(self, objects: Objects, rest: Rest, symbol: str) -> list[Reconciled]:
        looks = {day: _Look(day) for month in self.wanted.months for day in self.wanted.days(month)}
        taken = await self._compare(objects, symbol, looks)
        await self._ask_for_missing(rest, symbol, looks)
        for look in looks.values():
            await self._hear_witness(rest, symbol, look)
        return await asyncio.to_thread(self._certify, symbol, looks, taken)

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise Stopped

    # The official files

    async def _compare(self, objects: Objects, symbol: str, looks: Looks) -> list[Taken]:
        """Takes from the days' files what the table lacks, and compares the rest."""
        jobs = await self._jobs(objects, symbol, looks)
        self.progress.found(len(jobs))
        before = {place for job in jobs for place in self._places(job) if place.exists()}
        landed = await asyncio.gather(*(self._landed(objects, job) for job in jobs))
        self._check_stop()
        taken = [each for job, it in zip(jobs, landed, strict=True) if (each := await self._ingest(job, it, looks))]
        for job in jobs:
            _clean(place for place in self._places(job) if place not in before)
        return taken

    async def _jobs(self, objects: Objects, symbol: str, looks: Looks) -> list[Job]:
        """The days' own files, and for days without one that of their month."""

        async def ask_sum(file: File) -> str | None:
            return await sum_of(objects, file)

        found: list[Job] = []
        for month in self.wanted.months:
            days = [day for day in looks if day.replace(day=1) == month]
            own = [job for job in await daily(self.wanted, symbol, days, ask_sum) if isinstance(job, Job)]
            absent = sorted(set(days) - {day for job in own for day in job.days})
            found += own
            if absent and "monthly" in self.wanted.archive.periods:
                file = self.wanted.file(symbol, "monthly", month)
                found += [Job(file, sha256, tuple(absent))] if (sha256 := await ask_sum(file)) else []
        return found

    def _places(self, job: Job) -> list[Path]:
        beside = self.wanted.archive.beside
        files = [job.file, *([job.file.of(beside)] if beside else [])]
        return [self.settings.landing / file.path for file in files]

    async def _landed(self, objects: Objects, job: Job) -> Landed | str:
        """The file as it was downloaded, or lay there already; or why it is of no use."""
        try:
            fetched = await self._fetch(objects, job.file, job.sha256)
            if isinstance(fetched, str):
                return fetched
            beside = await self._fetch_beside(objects, job.file)
        except SourceError as error:
            return str(error)
        except Stopped:
            return "stopped"
        return Landed(replace(job, sha256=fetched.sha256), fetched, beside, is_compared=True)

    async def _fetch(self, objects: Objects, file: File, sha256: str) -> Fetched | str:
        place, reason = self.settings.landing / file.path, ""
        for _ in range(LOOKS):
            fetched = await objects.fetch(file.path, place, on_bytes=self._came)
            if fetched is not None and fetched.sha256 == sha256:
                return fetched
            await asyncio.to_thread(discard, place)
            what = "is not there any more" if fetched is None else f"has SHA-256 {fetched.sha256}"
            reason = f"{file.path} {what}, and its .CHECKSUM says {sha256}"
            sha256 = await sum_of(objects, file) or sha256
        return reason

    async def _fetch_beside(self, objects: Objects, file: File) -> Fetched | None:
        """The file that knows more of the same rows; without it they are still rows."""
        if (other := self.wanted.archive.beside) is None:
            return None
        sha256 = await sum_of(objects, file.of(other))
        fetched = await self._fetch(objects, file.of(other), sha256) if sha256 else None
        return fetched if isinstance(fetched, Fetched) else None

    def _came(self, count: int) -> None:
        self._check_stop()
        self.progress.fetched(count)

    async def _ingest(self, job: Job, landed: Landed | str, looks: Looks) -> Taken | None:
        if isinstance(landed, Landed):
            try:
                (taken,) = await asyncio.to_thread(self._take, landed)
            except Unfit as unfit:
                landed = str(unfit)
        if isinstance(landed, str):
            log.error("dump_not_compared", path=job.file.path, reason=landed)
            self.progress.done(job.file.path, "failed", landed)
            for day in job.days:
                looks[day].fault = landed
            return None
        for day in taken.done:
            looks[day].job, looks[day].found = taken.job, taken.days.get(day, Day(differing=0))
        self.progress.done(job.file.path, INGESTED, f"{taken.rows:,} rows, {taken.added:,} new")
        return taken

    def _take(self, landed: Landed) -> list[Taken]:
        # What is found is noted when REST was heard: its rows may be more that the file lacks.
        known, now = self._known, self.clock()
        return ingest(self.lake, self.wanted, [landed], known=known, now=now, told=self.told, are_noted=False)

    # Ids that nobody has

    async def _ask_for_missing(self, rest: Rest, symbol: str, looks: Looks) -> None:
        """Asks REST for ids that neither the table nor the file has; what comes is added, what does not is noted."""
        holes = await asyncio.to_thread(self._holes, symbol, looks)
        every = [_Hole(*row) for row in holes.select(*_Hole._fields).iter_rows()]
        wanted = [hole for hole in every if self._may_ask(_of(looks, hole), hole.start_time, is_ours=hole.is_of(looks))]
        heard: list[Heard] = []
        try:
            for stretch in stretches([hole[:2] for hole in wanted], self._at_most):
                async for page in ask(rest, self.dataset, self.venue, symbol, stretch):
                    self._check_stop()
                    _count(looks, [hole for hole in wanted if stretch[0] <= hole.first_id <= stretch[1]])
                    self.progress.read(page.rows.height)
                    heard.append(page)
                    if sum(each.rows.height for each in heard) >= TOGETHER_ROWS:
                        await asyncio.to_thread(self._fill, symbol, looks, holes, heard)
                        heard = []
        except SourceError as error:
            self._be_silent(error, [look for hole in wanted for look in _of(looks, hole)])
        if heard:
            await asyncio.to_thread(self._fill, symbol, looks, holes, heard)

    @property
    def _at_most(self) -> int:
        return self.dataset.poll.at_most if self.dataset.poll else 0

    def _holes(self, symbol: str, looks: Looks) -> pl.DataFrame:
        """What is missing between the rows of these days, but for what the venue is known not to have."""
        if not has_sequence(self.dataset):
            return pl.DataFrame(schema=INTERVALS)
        first, last = min(looks), max(looks)
        runs = held_runs(self.lake.root, self.dataset, symbols=[symbol], start=first, end=last)
        runs = runs.filter(pl.col("venue") == self.venue)
        known = missing(gaps(self.lake.root, self.dataset.name, venue=self.venue, symbols=[symbol]))
        holes = without(between(runs), known.filter(pl.col("reason") == NOT_AT_VENUE))
        begin, end = pl.col("start_time").dt.date(), pl.col("end_time").dt.date()
        is_near = (begin >= first - DAY) & (end <= last + DAY) & (begin <= last) & (end >= first)
        return holes.filter(is_near, pl.col("end_time") < self.clock() - RECENT)

    def _may_ask(self, looks: Sequence[_Look], since: datetime, *, is_ours: bool = True) -> bool:
        """Whether REST can and should be asked about rows of that time; if not, the days say why."""
        if not is_ours:
            word, reason = NOT_ASKED, OTHER_DAYS
        elif can_be_asked(self.dataset, self.venue, since, self.clock()):
            word, reason = (NO_ANSWER, self._silence) if self._silence else (ASKED, "")
        else:
            word, reason = NOT_ASKED, OUT_OF_REACH if self._has_road else NO_ROAD
        for look in looks:
            look.say(word, reason)
        return word == ASKED

    @property
    def _has_road(self) -> bool:
        poll = self.dataset.poll
        return poll is not None and bool(poll.from_id) and self.venue in poll.requests

    def _be_silent(self, error: SourceError, looks: Iterable[_Look]) -> None:
        log.warning("rest_not_heard", dataset=self.dataset.name, venue=self.venue, reason=str(error))
        if not error.is_final:  # else it speaks of this symbol only
            self._silence = str(error)
        for look in looks:
            look.say(NO_ANSWER, str(error))

    def _fill(self, symbol: str, looks: Looks, holes: pl.DataFrame, heard: Sequence[Heard]) -> None:
        """Adds the rows that are in the holes, and names what the venue does not have."""
        refused = [each for page in heard for each in page.refused]
        self.lake.append_once(REJECTED, rejected_rows(self.dataset, refused), _guard(self.venue, symbol, refused))
        for day, rows in self._add(symbol, self._inside(holes, heard)).items():
            if look := looks.get(day):
                look.by_rest += rows.height
                if look.found:
                    look.found.lack(self.dataset, rows)
        spans = pl.concat([page.spans for page in heard])
        left = self._holes(symbol, looks)
        self.lake.add(GAP, not_at_venue(self.dataset, overlaps(left, spans), self.clock()))

    def _inside(self, holes: pl.DataFrame, heard: Sequence[Heard]) -> pl.DataFrame:
        own = str(self.dataset.sequence)
        rows = pl.concat([page.rows for page in heard]).unique(self.dataset.key, keep="first").sort(own)
        ends = holes.select(own_first="first_id", own_last="last_id").sort("own_first")
        inside = rows.join_asof(ends, left_on=own, right_on="own_first").filter(pl.col(own) <= pl.col("own_last"))
        return inside.select(rows.columns)

    def _add(self, symbol: str, rows: pl.DataFrame) -> dict[date, pl.DataFrame]:
        """Commits the rows that the table lacks; returns them by their day."""
        for _ in range(CONFLICTS):
            bulk = Bulk(self.lake, self.dataset)
            bulk.speak(venue=self.venue, symbol=symbol, source="rest")
            try:
                added = {day: self._add_day(bulk, day, part) for (day,), part in rows.group_by("date")}
                if any(part.height for part in added.values()):
                    bulk.commit([])
                return added
            except CommitConflict:
                continue
            finally:
                bulk.discard()
        raise CommitConflict(f"{self.dataset.name}: somebody else keeps adding the same rows")

    def _add_day(self, bulk: Bulk, day: date, rows: pl.DataFrame) -> pl.DataFrame:
        held = bulk.held(day, self.dataset.key, venue=self.venue, symbol=rows["symbol"][0])
        fresh = rows.join(held, on=list(self.dataset.key), how="anti").sort(str(self.dataset.order))
        bulk.add(day, fresh)
        return fresh

    # Whose account REST confirms

    async def _hear_witness(self, rest: Rest, symbol: str, look: _Look) -> None:
        """Of rows that only the table has, or that differ, asks REST for some."""
        if look.found is None:
            return
        found = look.found
        look.differences = told = differences(self.dataset, symbol, look.day, found)
        # What came from REST needs no other witness.
        is_new = pl.col("source") != "rest"
        asked = [found.lone.filter(is_new)] if found.lone.width else []
        heard = await self._heard(rest, symbol, look, [*asked, found.ours])
        for lone, rest_says in zip(
            told.lone, opinions(self.dataset, found.lone, found.lone.clear(), heard), strict=True
        ):
            lone.rest = rest_says
        for lone, source in zip(told.lone, found.lone["source"] if told.lone else [], strict=True):
            lone.rest = OURS if source == "rest" else lone.rest
        for pair, rest_says in zip(told.pairs, opinions(self.dataset, found.ours, found.theirs, heard), strict=True):
            pair.rest = rest_says

    async def _heard(self, rest: Rest, symbol: str, look: _Look, frames: Sequence[pl.DataFrame]) -> Heard:
        """The pages with the rows in some frames, up to a number of pages."""
        rows = [row for frame in frames for row in frame.iter_rows(named=True)]
        own = self.dataset.sequence or ""
        ids: list[Stretch] = [(row[own], row[own]) for row in rows if self._may_ask([look], row["time"])]
        pages: list[Heard] = []
        try:
            for stretch in stretches(ids, self._at_most)[:WITNESS_PAGES]:
                async for page in ask(rest, self.dataset, self.venue, symbol, stretch):
                    self._check_stop()
                    look.pages += 1
                    pages.append(page)
                    break
        except SourceError as error:
            self._be_silent(error, [look])
        empty = Heard(pl.DataFrame(schema=self.dataset.schema))
        every = [empty, *pages]
        heard_rows = pl.concat([page.rows for page in every]).unique(self.dataset.key, keep="first")
        return Heard(heard_rows, pl.concat([page.spans for page in every]))

    # What that comes to

    def _certify(self, symbol: str, looks: Looks, taken: Sequence[Taken]) -> list[Reconciled]:
        now = self.clock()
        for look in looks.values():
            if look.job and look.found:
                note(self.lake, self.dataset, look.job, look.day, look.found, now=now)
        rows = certify(self.lake, self.dataset, self._facts(symbol, looks, taken), now=now)
        enter(self.lake, taken, self._known, now=now)
        verdicts = {row["date"]: row for row in rows.iter_rows(named=True)}
        nowhere = self._not_at_venue(symbol)
        found = []
        for day, look in looks.items():
            row = verdicts[day]
            each = Reconciled(self.dataset.name, self.venue, symbol, day, row["verdict"], rows=row["rows"])
            each.missing_rows, each.not_at_venue = row["missing_rows"], nowhere.get(day, 0)
            each.filled_by_rest, each.fault, each.differences = look.by_rest, look.fault, look.differences
            each.rest, each.rest_reason, each.rest_pages = look.rest, look.reason, look.pages
            if look.job and look.found:
                each.path, each.sha256, each.dump_rows = look.job.file.path, look.job.sha256, look.found.rows
                each.filled_by_dump = look.found.rows - look.found.known
                each.rows = look.found.rows + look.found.only_ours
            found.append(each)
        return found

    def _facts(self, symbol: str, looks: Looks, taken: Sequence[Taken]) -> pl.DataFrame:
        facts = facts_of(taken)
        others = [
            {"venue": self.venue, "symbol": symbol, "date": day} for day, look in looks.items() if look.found is None
        ]
        return pl.concat([facts, pl.DataFrame(others, schema=FACTS)])

    def _not_at_venue(self, symbol: str) -> dict[date, int]:
        """How many ids the venue does not have before the rows of each day."""
        known = missing(gaps(self.lake.root, self.dataset.name, venue=self.venue, symbols=[symbol]))
        counts = (
            known.filter(pl.col("reason") == NOT_AT_VENUE, pl.col("symbol") == symbol)
            .group_by(pl.col("end_time").dt.date().alias("day"))
            .agg((pl.col("last_id") - pl.col("first_id") + 1).sum())
        )
        return dict(counts.iter_rows())


def _of(looks: Looks, hole: _Hole) -> list[_Look]:
    """The days that a hole touches."""
    return [look for day, look in looks.items() if hole.start_time.date() <= day <= hole.end_time.date()]


def _count(looks: Looks, holes: Iterable[_Hole]) -> None:
    """A page was asked for because of these holes."""
    for look in {look.day: look for hole in holes for look in _of(looks, hole)}.values():
        look.pages += 1


def _guard(venue: str, symbol: str, refused: Sequence[Refused]) -> dict[str, int]:
    text = b"\n".join(each.payload for each in refused)
    return {f"reconcile/{venue}/{symbol}": int(hashlib.sha256(text).hexdigest()[:15], 16)}


def _clean(places: Iterable[Path]) -> None:
    for place in places:
        discard(place)
        with contextlib.suppress(OSError):  # others are still fetched into the folder, or it is not there
            place.parent.rmdir()
