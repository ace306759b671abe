"""The daemon's end of the drain's process: starts it, hears its reports, starts it again when it dies."""

import asyncio
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec
import structlog

from crypto_lake.config import ConfigError, Settings, child_environment, collector_id
from crypto_lake.connections.backoff import backoff_s
from crypto_lake.models import DATASETS
from crypto_lake.models.bar import BAR
from crypto_lake.models.symbol import Named
from crypto_lake.monitoring import metrics
from crypto_lake.services.bars import table_order
from crypto_lake.services.contract import (
    THREADS,
    BarsMade,
    BarsNotMade,
    Batch,
    Holes,
    Order,
    Ready,
    Refusal,
    Report,
    Round,
    Symbols,
    Trouble,
)

log = structlog.get_logger()

REPORTS: Final = msgspec.json.Decoder(Report)
# A worker that dies at once is not started in a tight loop.
FIRST_RESTART_S: Final = 1.0
MOST_RESTART_S: Final = 60.0
# Reports are short lines; a longer one is not ours.
LINE_BYTES: Final = 4 * 2**20


@dataclass(slots=True)
class Progress:
    """What the reports said last."""

    positions: dict[str, int] = field(default_factory=dict)
    committed_s: dict[str, float] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    rejected: int = 0
    failing_since_s: float | None = None
    trouble: str = ""
    rss_bytes: int = 0
    commits: dict[str, int] = field(default_factory=dict)
    holes: dict[str, int] = field(default_factory=dict)
    findings: dict[str, int] = field(default_factory=dict)
    # Stretches of missing ids that are being asked for.
    open_holes: dict[str, int] = field(default_factory=dict)
    # Bars written into the table `bar`, and why it is not up to date.
    bars: int = 0
    bars_trouble: str = ""


class Drainer:
    """The worker process and what is known of it."""

    def __init__(
        self,
        settings: Settings,
        datasets: list[str],
        on_holes: Callable[[Holes], None],
        on_symbols: Callable[[Mapping[str, Named] | None], None],
    ) -> None:
        """`on_symbols` is told what the table `symbol` says: at each start (None: it cannot be read), and when it has
        changed."""
        self.progress = Progress()
        self._on_holes, self._on_symbols = on_holes, on_symbols
        self._order = Order(
            root=settings.root,
            sink=settings.sink,
            journals=str(settings.journals),
            collector=collector_id(settings),
            datasets=datasets,
            commit_every_s=settings.commit_every_s,
            batch_messages=settings.batch_messages,
            has_recorded=any(settings.journals.glob("*/*.journal")),
            bars=table_order(settings, [DATASETS[name] for name in datasets]),
        )
        self._process: asyncio.subprocess.Process | None = None
        self._troubled: set[str] = set()
        self._noted: set[str] = set()  # what builds of bars had to say is said once
        self._ending = False

    async def start(self) -> None:
        """Starts the worker; returns when it has seen that the tables can be written. Raises `ConfigError`."""
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "crypto_lake.services.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=child_environment(POLARS_MAX_THREADS=THREADS),
            limit=LINE_BYTES,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(self._order) + b"\n")
        first = await process.stdout.readline()
        report = REPORTS.decode(first) if first else None
        if isinstance(report, Refusal):
            await process.wait()
            raise ConfigError(report.reason)
        if not isinstance(report, Ready):
            await process.wait()
            raise WorkerDied(f"the drain's process ended with {process.returncode} before it was ready")
        self._on_symbols(report.symbols)

    async def watch(self) -> None:
        """Hears the reports until `finish`; a worker that dies is started again.

        Raises `ConfigError` when a new one finds tables that it cannot write.
        """
        attempt = 0
        while True:
            began_s = time.monotonic()
            await self._hear()
            if self._ending:
                return
            assert self._process is not None
            attempt = 0 if time.monotonic() - began_s > MOST_RESTART_S else attempt + 1
            wait_s = backoff_s(attempt, lambda: 1.0, FIRST_RESTART_S / 2, MOST_RESTART_S)
            log.error("drain_died", status=self._process.returncode, again_in_s=wait_s, lost="nothing")
            await asyncio.sleep(wait_s)
            try:
                await self.start()
            except WorkerDied as error:
                log.error("drain_did_not_start", reason=str(error))

    async def finish(self) -> int:
        """Lets it drain what is there and end; returns its exit status."""
        process = self._process
        if process is None:
            return 0
        self._ending = True
        assert process.stdin is not None
        process.stdin.close()
        return await process.wait()

    def kill(self) -> None:
        """Ends it now; the journal has everything."""
        if self._process and self._process.returncode is None:
            self._process.kill()

    async def _hear(self) -> None:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        async for line in process.stdout:
            match REPORTS.decode(line):
                case Batch() as batch:
                    self._count(batch)
                case Holes() as holes:
                    self.progress.open_holes[holes.dataset] = len(holes.missing)
                    metrics.holes_open.labels(holes.dataset).set(len(holes.missing))
                    self._on_holes(holes)
                case Symbols(venues):
                    self._on_symbols(venues)
                case Trouble() as trouble:
                    self._worry(trouble)
                case BarsMade() as made:
                    self._count_bars(made)
                case BarsNotMade(reason):
                    self._worry_about_bars(reason)
                case Refusal(reason):
                    raise ConfigError(reason)
                case Round() as done:
                    self.progress.positions, self.progress.rss_bytes = done.positions, done.rss_bytes
                    metrics.drain_rss_bytes.set(done.rss_bytes)
        await process.wait()

    def _count(self, batch: Batch) -> None:
        progress, name = self.progress, batch.dataset
        now_s = time.time()
        progress.positions[name], progress.committed_s[name] = batch.position, now_s
        progress.rows[name] = progress.rows.get(name, 0) + batch.rows
        progress.duplicates += batch.duplicates
        progress.rejected += batch.rejected
        progress.commits[name] = progress.commits.get(name, 0) + 1
        progress.holes[name] = progress.holes.get(name, 0) + batch.holes
        progress.findings[name] = progress.findings.get(name, 0) + batch.findings
        self._troubled.discard(name)
        if not self._troubled and progress.failing_since_s is not None:
            log.info("store_takes_commits_again", after_s=round(now_s - progress.failing_since_s, 1))
            progress.failing_since_s, progress.trouble = None, ""
        if batch.rejected:
            log.warning("messages_rejected", dataset=name, messages=batch.rejected, see="the table rejected")
        if batch.holes:
            log.warning("ids_missing", dataset=name, holes=batch.holes, see="the table gap")
        metrics.holes_total.labels(name).inc(batch.holes)
        metrics.findings_total.labels(name).inc(batch.findings)
        metrics.rows_committed_total.labels(name).inc(batch.rows)
        metrics.rejected_total.labels(name).inc(batch.rejected)
        metrics.duplicates_total.labels(name).inc(batch.duplicates)
        metrics.commits_total.labels(name).inc()
        metrics.commit_seconds.labels(name).observe(batch.seconds)
        metrics.committed_position.labels(name).set(batch.position)
        metrics.last_commit_time_seconds.labels(name).set(now_s)

    def _count_bars(self, made: BarsMade) -> None:
        progress = self.progress
        progress.bars += made.added
        if made.added or made.revised:
            progress.commits[BAR.name] = progress.commits.get(BAR.name, 0) + 1
        metrics.table_bars_total.labels("added").inc(made.added)
        metrics.table_bars_total.labels("revised").inc(made.revised)
        metrics.findings_total.labels(BAR.name).inc(made.findings)
        for note in set(made.notes) - self._noted:
            log.info("bars", note=note)
            self._noted.add(note)
        if progress.bars_trouble:
            log.info("bars_are_made_again")
            progress.bars_trouble = ""

    def _worry_about_bars(self, reason: str) -> None:
        metrics.table_bars_failures_total.inc()
        if not self.progress.bars_trouble:
            log.error("bars_not_made", reason=reason, lost="nothing: they are made of the table, with the next commit")
        self.progress.bars_trouble = reason

    def _worry(self, trouble: Trouble) -> None:
        metrics.commit_failures_total.labels(trouble.dataset).inc()
        self._troubled.add(trouble.dataset)
        self.progress.trouble = trouble.reason
        if self.progress.failing_since_s is None:
            self.progress.failing_since_s = time.time()
            log.error("store_does_not_take_commits", reason=trouble.reason, effect="the journal keeps everything")


class WorkerDied(Exception):
    """The process ended without a word."""
