"""The daemon: which services run, in which order they start, and how they stop."""

import asyncio
import contextlib
import gc
import os
import signal
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from crypto_lake.config import ConfigError, Settings
from crypto_lake.connections import SourceError
from crypto_lake.connections.rest import Rest
from crypto_lake.journal import Journal, backlog, take
from crypto_lake.models import Dataset
from crypto_lake.models.bar import BAR
from crypto_lake.models.depth import DEPTH
from crypto_lake.models.frame import OTHERS
from crypto_lake.monitoring import health, metrics, notify
from crypto_lake.services.bars import Bars, table_order
from crypto_lake.services.collect import Feed, Policy, keep, plan, replan
from crypto_lake.services.contract import Holes
from crypto_lake.services.drainer import Drainer
from crypto_lake.services.flush import Disk, close_journals, flush_journals
from crypto_lake.services.intake import part
from crypto_lake.services.load import Load
from crypto_lake.services.maintain import maintain
from crypto_lake.services.markets import Wanted, chosen
from crypto_lake.services.poll import poll, polled
from crypto_lake.services.repair import Repair
from crypto_lake.services.selection import Selection
from crypto_lake.services.snapshots import Snapshots
from crypto_lake.services.wait import first_of
from crypto_lake.services.yahoo import charted, record

log = structlog.get_logger()

OBSERVE_EVERY_S: Final = 1.0
FORGET_EVERY_S: Final = 60.0
FIRST_FORGET_S: Final = 5.0
READY_PATIENCE_S: Final = 30.0
# A recorder that reaches nobody for so long after its start ends and says so: an address may be wrong.
START_PATIENCE_S: Final = 10.0
STATE_FILE: Final = "daemon.json"
INTERRUPTED: Final = 130
# What a feed counts, in the order of `_count`.
COUNTERS: Final = (metrics.frames_total, metrics.frame_bytes_total, metrics.repeats_total, metrics.shed_total)


class Running(msgspec.Struct):
    """What a running daemon leaves in LAKE_STATE, for `status` to find it."""

    pid: int
    port: int
    started_s: float


class Daemon:
    """A running collector. `stop` ends it; `run` is its life."""

    def __init__(self, settings: Settings, *, stop: asyncio.Event, policy: Policy | None = None) -> None:
        self.settings, self.stop = settings, stop
        self.policy = policy or Policy(silence_s=settings.silence_s, redundancy=settings.redundancy)
        self.datasets = chosen(settings.datasets)
        self.selection = Selection(settings)
        # That Yahoo is to be asked is said by a setting of its own; it would be odd to have to say it twice.
        self.datasets += [BAR] if (self.charted or settings.yahoo_every_s) and BAR not in self.datasets else []
        self.started_s = time.time()
        self.port = 0
        self.feeds: list[Feed] = []
        self._journals: dict[str, Journal] = {}
        self._may_read, self._disk, self._load = asyncio.Event(), Disk(), Load()
        self._books = Snapshots()
        self._repair = Repair()
        self._stops: dict[Feed, asyncio.Event] = {}
        self._counted: dict[Feed, tuple[int, ...]] = {}
        names = [dataset.name for dataset in self.datasets]
        self._drainer = Drainer(settings, names, self._hear, self.selection.hear)
        self._bars = Bars(settings, self.datasets)

    async def run(self, *, run_s: float | None = None) -> None:
        """Records until `stop`, or for `run_s` seconds; then closes the sockets, the journals and the tables.

        Raises `ConfigError` or `SourceError` when it cannot begin.
        """
        # What is opened last is closed first: the sockets, then the journals, which the worker then drains whole.
        async with contextlib.AsyncExitStack() as stack:
            pages = await health.start(
                self.settings.metrics_port, lambda: self.judge(time.time()), {"/bars": self._bars.page}
            )
            stack.push_async_callback(pages.close)
            stack.callback(os.close, _alone(self.settings.state))
            self.port = pages.port
            stack.callback(self._close_journals)
            self._open_journals()
            await self._drainer.start()
            stack.push_async_callback(self._drain_and_end, self._watch_drainer())
            stack.push_async_callback(self._end_bars, asyncio.create_task(self._bars.watch(), name="live bars"))
            rest = await stack.enter_async_context(Rest(self.settings.rest_address, api_key=self.settings.api_key))
            asking = asyncio.create_task(self.selection.begin(rest))
            await first_of(self.stop, asking)
            if not asking.done():
                asking.cancel()
                return
            asking.result()
            stack.enter_context(_state_file(self.settings.state / STATE_FILE, self.port, self.started_s))
            await self._serve(rest, run_s)

    def kill(self) -> None:
        """Ends the worker at once; what is not in the tables is in the journals."""
        self._drainer.kill()
        self._bars.kill()

    def judge(self, now_s: float) -> health.Health:
        """How it is."""
        drained, state = self._drainer.progress, self.settings.journals
        progress = health.Progress(
            started_s=self.started_s,
            commit_every_s=self.settings.commit_every_s,
            feeds={feed.name: self._feed_health(feed) for feed in self.feeds},
            drains={
                name: health.Drain(
                    committed_s=drained.committed_s.get(name),
                    backlog_bytes=backlog(state / name, drained.positions.get(name, 0)),
                )
                for name in self._journals
            },
            journal_full=bool(self._disk.trouble),
            load_level=self._load.level,
            load_reason=self._load.reason,
            store_failing_since_s=drained.failing_since_s,
            bars_trouble=drained.bars_trouble,
            unlisted=tuple(self.selection.unlisted),
        )
        judged = health.judge(progress, now_s=now_s)
        judged.details.update(rows=drained.rows, duplicates=drained.duplicates, rejected=drained.rejected)
        judged.details["symbols"] = {venue: len(each.symbols) for venue, each in self.selection.markets.items()}
        return judged

    def _feed_health(self, feed: Feed) -> health.Feed:
        heard_s = feed.heard_us / 1e6 if feed.heard_us else None
        return health.Feed(
            heard_s=heard_s,
            silence_s=2 * self.policy.silence_s if feed.is_busy else None,
            open=feed.open,
            wanted=feed.wanted,
            messages=feed.frames,
            repeats=feed.repeats,
            lapses=feed.lapses,
            shed=feed.shed,
            is_shedding=feed.is_shedding,
            silent=feed.silent,
        )

    @property
    def _connections(self) -> int:
        """How many there are when all are open."""
        return len(self.feeds) * self.policy.redundancy

    def _hear(self, holes: Holes) -> None:
        """The drain has found rows missing."""
        self._repair.hear(holes)
        self._books.hear(holes)

    def _open_journals(self) -> None:
        for dataset in self.datasets:
            journal = Journal(self.settings.journals / dataset.name)
            self._journals[dataset.name] = journal
            if journal.cut_bytes:
                log.warning("journal_tail_cut", dataset=dataset.name, size_bytes=journal.cut_bytes, reason="a crash")
                metrics.journal_cut_bytes_total.labels(dataset.name).inc(journal.cut_bytes)

    def _close_journals(self) -> None:
        close_journals(self._journals.values())

    def _watch_drainer(self) -> "asyncio.Task[None]":
        watching = asyncio.create_task(self._drainer.watch(), name="drain")
        watching.add_done_callback(lambda _: self.stop.set())  # tables that cannot be written any more: end
        return watching

    async def _drain_and_end(self, watching: "asyncio.Task[None]") -> None:
        notify.status("draining the journals")
        try:
            self._close_journals()
        finally:
            await self._drainer.finish()
            await watching
        left = sum(
            backlog(self.settings.journals / name, self._drainer.progress.positions.get(name, 0))
            for name in self._journals
        )
        log.info("stopped", rows=sum(self._drainer.progress.rows.values()), journal_bytes_for_the_next_start=left)

    async def _end_bars(self, watching: "asyncio.Task[None]") -> None:
        """Bars are made of the journal alone: nothing of it is lost with them."""
        await self._bars.finish()
        watching.cancel()
        await asyncio.wait([watching])

    @property
    def charted(self) -> list[tuple[str, str]]:
        """Venue and symbol of what Yahoo is asked for now."""
        return charted(self.selection.markets, self.settings)

    async def _serve(self, rest: Rest, run_s: float | None) -> None:
        markets = self.selection.markets
        polls = polled(self.datasets, markets)
        self._part()
        self.feeds = plan(self.datasets, markets, self.settings)
        _require_work(self.datasets, self.feeds, polls, is_charted=bool(self.charted))
        log.info(
            "recording",
            datasets=[dataset.name for dataset in self.datasets],
            symbols={venue: len(wanted.symbols) for venue, wanted in markets.items()},
            connections=self._connections,
            root=self.settings.root,
            health=f"http://{health.HOST}:{self.port}/health",
        )
        quiet = asyncio.Event()  # set when nothing is appended any more
        async with asyncio.TaskGroup() as background:
            background.create_task(
                flush_journals(
                    self._journals.values(),
                    self._may_read,
                    self._disk,
                    quiet,
                    sync_every_s=self.settings.journal_sync_s,
                    load=self._load,
                )
            )
            background.create_task(self._observe(quiet))
            background.create_task(self._tell_systemd(quiet))
            async with asyncio.TaskGroup() as listening:
                self._listen(listening)
                asking = self._ask(listening, rest)
                await first_of(self.stop, timeout_s=run_s)
                log.info("stopping")
                notify.stopping()
                self.stop.set()
                for task in asking:
                    task.cancel()  # an answer may take its time, and is asked for again after the next start
                for stop in self._stops.values():
                    stop.set()
            quiet.set()

    def _listen(self, group: asyncio.TaskGroup) -> None:
        """The feeds, which end with `stop` when what has arrived is in the journals; and maintenance."""
        self._keep(group, self.feeds)
        tables = dict.fromkeys([*self._journals, *([BAR.name] if table_order(self.settings, self.datasets) else [])])
        group.create_task(maintain(self.settings, list(tables), self._drainer, self.stop))

    def _keep(self, group: asyncio.TaskGroup, feeds: list[Feed]) -> None:
        for feed in feeds:
            self._stops[feed] = asyncio.Event()
            group.create_task(self._kept(feed))

    async def _kept(self, feed: Feed) -> None:
        """A feed until its end, which may come while the others go on: then nothing is wanted of it any more."""
        await keep(
            feed,
            self._journals[feed.dataset.name],
            self._may_read,
            self._stops[feed],
            policy=self.policy,
            load=self._load,
            on_stream=self._books.ask if feed.dataset is DEPTH else None,
        )
        if not feed.streams:
            _count(self.feeds, self._counted)
            self.feeds.remove(feed)
            del self._stops[feed], self._counted[feed]

    def _part(self) -> None:
        """Ends what the run before has collected and this one does not."""
        markets = self.selection.markets.items()
        wanted = {venue: {*each.symbols, *((OTHERS,) if each.every else ())} for venue, each in markets}
        for journal in self._journals.values():
            part(journal, wanted, time.time_ns() // 1000)

    async def _follow(self, group: asyncio.TaskGroup, rest: Rest) -> None:
        """Symbols that are added to the table are collected, and those that are removed are not, for ever."""
        while True:
            await self.selection.news()
            before = dict(self.selection.markets)
            if await self.selection.turn(rest):
                self._turn(group)
                _tell_change(before, self.selection.markets)

    def _turn(self, group: asyncio.TaskGroup) -> None:
        fresh = replan(self.feeds, self.datasets, self.selection.markets, self.settings)
        self.feeds += fresh
        self._keep(group, fresh)
        for feed in self.feeds:
            if not feed.streams:
                self._stops[feed].set()

    def _ask(self, group: asyncio.TaskGroup, rest: Rest) -> "list[asyncio.Task[None]]":
        """What asks the venues, and may be cut off in the middle."""
        every_s = self.settings.price_every_s
        gate = self._may_read
        work = [
            poll(dataset, venue, self.selection.markets, rest, self._journals[dataset.name], gate, every_s=every_s)
            for dataset in self.datasets
            if dataset.poll and not dataset.live
            for venue in dataset.poll.requests
        ]
        work.append(self._follow(group, rest))
        if DEPTH.name in self._journals:
            work.append(self._books.fetch(rest, self._journals[DEPTH.name], gate, every_s=self.settings.book_every_s))
        if BAR.name in self._journals and self.settings.yahoo_every_s:
            work.append(record(self.settings, lambda: self.charted, self._journals[BAR.name], gate))
        work.append(self._repair.run(rest, self._journals, gate))
        return [group.create_task(each) for each in (*work, self._require_connection())]

    async def _require_connection(self) -> None:
        """Raises `SourceError` when no feed has connected some time after the start and each has failed."""
        patient_until = time.monotonic() + START_PATIENCE_S
        while self.feeds and not any(feed.opened for feed in self.feeds):
            if time.monotonic() > patient_until and all(feed.trouble for feed in self.feeds):
                raise SourceError(self.feeds[0].trouble)
            await first_of(self.stop, timeout_s=OBSERVE_EVERY_S)

    async def _observe(self, quiet: asyncio.Event) -> None:
        """Once a second what is seen goes into the metrics; once a minute a line into the log, and old journals go."""
        forgot_s = time.monotonic() - FORGET_EVERY_S + FIRST_FORGET_S
        while not quiet.is_set():
            await first_of(quiet, timeout_s=OBSERVE_EVERY_S)
            _count(self.feeds, self._counted)
            metrics.load_level.set(self._load.level)
            for name, journal in self._journals.items():
                position = self._drainer.progress.positions.get(name, 0)
                metrics.journal_end_position.labels(name).set(journal.end)
                metrics.journal_backlog_bytes.labels(name).set(backlog(journal.directory, position))
            if time.monotonic() - forgot_s > FORGET_EVERY_S:
                await asyncio.to_thread(self._forget)
                self._tell()
                forgot_s = time.monotonic()

    def _tell(self) -> None:
        """A line a minute, for those who watch the log."""
        messages = sum(feed.frames for feed in self.feeds)
        rows = sum(self._drainer.progress.rows.values())
        is_open = sum(feed.open for feed in self.feeds)
        log.info(
            "recorded", messages=messages, rows=rows, connections=is_open, since_s=int(time.time() - self.started_s)
        )
        notify.status(f"{messages:,} messages, {rows:,} rows, {is_open} connections")

    def _forget(self) -> None:
        before_us = int((time.time() - 3600 * self.settings.journal_keep_h) * 1e6)
        for name, position in list(self._drainer.progress.positions.items()):
            self._journals[name].forget(position, older_than_us=before_us)

    async def _tell_systemd(self, quiet: asyncio.Event) -> None:
        """READY when every feed has connected, and then a sign of life as long as there is progress."""
        patient_until = time.monotonic() + READY_PATIENCE_S
        while not all(feed.open for feed in self.feeds) and time.monotonic() < patient_until and not quiet.is_set():
            await first_of(quiet, timeout_s=0.1)
        notify.ready(f"recording {self._connections} connections")
        interval_s = notify.watchdog_interval_s()
        while interval_s and not quiet.is_set():
            if self.judge(time.time()).status != "failing":
                notify.alive()
            await first_of(quiet, timeout_s=interval_s)


def _require_work(
    datasets: list[Dataset], feeds: list[Feed], polls: list[tuple[Dataset, Wanted]], *, is_charted: bool
) -> None:
    """Raises `ConfigError` for a dataset that none of the wanted venues has."""
    fed = {feed.dataset.name for feed in feeds} | {dataset.name for dataset, _ in polls}
    fed |= {BAR.name} if is_charted else set()
    for dataset in datasets:
        if dataset.name not in fed:
            log.warning("dataset_not_on_these_venues", dataset=dataset.name)
    if not fed:
        raise ConfigError("LAKE_DATASETS and LAKE_SYMBOLS: none of the venues named has any of the datasets")


def _tell_change(before: Mapping[str, Wanted], now: Mapping[str, Wanted]) -> None:
    names = [{f"{venue}:{name}" for venue, each in of.items() for name in each.symbols} for of in (before, now)]
    if names[0] != names[1]:
        log.info("symbols_changed", added=sorted(names[1] - names[0]), removed=sorted(names[0] - names[1]))


def _count(feeds: list[Feed], counted: dict[Feed, tuple[int, ...]]) -> None:
    """Brings the metrics up to what the feeds have seen; `counted` is what they had seen before."""
    is_open: Counter[tuple[str, str]] = Counter()
    silent: Counter[tuple[str, str]] = Counter()
    for feed in feeds:
        labels = (feed.dataset.name, feed.venue)
        now = (feed.frames, feed.size_bytes, feed.repeats, feed.shed)
        for counter, count, before in zip(COUNTERS, now, counted.get(feed, (0,) * len(now)), strict=True):
            counter.labels(*labels).inc(count - before)
        counted[feed] = now
        is_open[labels] += feed.open
        silent[labels] += len(feed.silent)
        metrics.last_frame_time_seconds.labels(*labels).set(feed.heard_us / 1e6)
    for labels, count in is_open.items():
        metrics.connections_open.labels(*labels).set(count)
        metrics.streams_silent.labels(*labels).set(silent[labels])


def _alone(state: Path) -> int:
    """The lock that keeps a second recorder away from this LAKE_STATE."""
    busy = f"LAKE_STATE={state}: another crypto-lake records with it; stop that one, or give this one its own"
    try:
        state.mkdir(parents=True, exist_ok=True)
        return take(state / "daemon.lock", busy=busy)
    except OSError as error:
        raise ConfigError(f"LAKE_STATE={state}: cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def _state_file(path: Path, port: int, started_s: float) -> Iterator[None]:
    path.write_bytes(msgspec.json.encode(Running(os.getpid(), port, started_s)))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


async def run(settings: Settings, *, run_s: float | None = None) -> None:
    """The daemon as a process: SIGTERM and SIGINT stop it in order, a second one at once."""
    stop = asyncio.Event()
    daemon = Daemon(settings, stop=stop)
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            daemon.kill()
            os._exit(INTERRUPTED)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    # What is imported by now stays for ever. A collection that looks through all of it takes a tenth of a second, in
    # which nothing is received.
    gc.collect()
    gc.freeze()
    await daemon.run(run_s=run_s)


def ask_health(settings: Settings) -> dict[str, Any]:
    """What the daemon that runs with this LAKE_STATE says of itself. Raises `ConfigError` when none runs."""
    path = settings.state / STATE_FILE
    try:
        running = msgspec.json.decode(path.read_bytes(), type=Running)
        os.kill(running.pid, 0)
        with urllib.request.urlopen(f"http://{health.HOST}:{running.port}/health", timeout=5) as page:
            answer = page.read()
    except urllib.error.HTTPError as unwell:
        answer = unwell.read()
    except (OSError, msgspec.DecodeError):
        raise ConfigError(f"no crypto-lake runs with LAKE_STATE={settings.state}") from None
    return {"pid": running.pid, **msgspec.json.decode(answer)}
