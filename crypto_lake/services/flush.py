"""Flushing: what the sockets append is on disk within 50 ms; when the disk will not take it, the sockets rest."""

import asyncio
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from crypto_lake.config import ConfigError
from crypto_lake.journal import Journal
from crypto_lake.journal.writer import MAX_WAITING_BYTES
from crypto_lake.monitoring import metrics
from crypto_lake.services.load import Load

log = structlog.get_logger()

FLUSH_EVERY_S: Final = 0.05
RETRY_EVERY_S: Final = 1.0
FREE_EVERY_S: Final = 1.0
# A disk that takes nothing at the stop has this long to change its mind.
LAST_TRIES: Final = 5


@dataclass(slots=True)
class Disk:
    """What is known of the journals' disk; `trouble` is empty while it takes everything."""

    trouble: str = ""


async def flush_journals(
    journals: Iterable[Journal],
    may_read: asyncio.Event,
    disk: Disk,
    stop: asyncio.Event,
    *,
    sync_every_s: float,
    load: Load | None = None,
) -> None:
    """Writes what waits every 50 ms and syncs every `sync_every_s`, until `stop`; clears `may_read` when that fails.

    Tells `load` what it measures.
    """
    journals = list(journals)
    synced_s = time.monotonic()
    may_read.set()
    async with asyncio.TaskGroup() as group:
        group.create_task(_watch(journals, load or Load(), stop))
        while not stop.is_set():
            await asyncio.sleep(FLUSH_EVERY_S if not disk.trouble else RETRY_EVERY_S)
            due = time.monotonic() - synced_s >= sync_every_s
            await _flush(journals, may_read, disk, sync=due)
            if due:
                synced_s = time.monotonic()


async def _watch(journals: list[Journal], load: Load, stop: asyncio.Event) -> None:
    """Measures how late the loop is, what waits and what is free; beside the flushing, which may take its time."""
    free_bytes, free_at_s = float("inf"), 0.0
    while not stop.is_set():
        woke_s = time.monotonic()
        await asyncio.sleep(FLUSH_EVERY_S)
        now_s = time.monotonic()
        delay_s = max(0.0, now_s - woke_s - FLUSH_EVERY_S)
        metrics.receive_delay_seconds.observe(delay_s)
        if journals and now_s - free_at_s >= FREE_EVERY_S:
            free_bytes, free_at_s = _free_bytes(journals[0].directory), now_s
        share = max((journal.waiting_bytes for journal in journals), default=0) / MAX_WAITING_BYTES
        load.observe(now_s, waiting_share=share, loop_delay_s=delay_s, free_bytes=free_bytes)


def _free_bytes(directory: Path) -> float:
    """On the disk of a folder; a folder that cannot be asked is no reason to give anything up."""
    try:
        return shutil.disk_usage(directory).free
    except OSError:
        return float("inf")


async def _flush(journals: list[Journal], may_read: asyncio.Event, disk: Disk, *, sync: bool) -> None:
    try:
        # In a thread, for a disk may take its time, and receiving must not.
        await asyncio.to_thread(_write, journals, sync=sync)
    except OSError as error:
        if not disk.trouble:
            log.error("journal_disk_full", reason=error.strerror, effect="the sockets rest until it takes data again")
        disk.trouble = error.strerror or "cannot be written"
        may_read.clear()
        metrics.journal_full.set(1)
        return
    if disk.trouble:
        log.warning("journal_disk_writes_again", was=disk.trouble)
    disk.trouble = ""
    metrics.journal_full.set(0)
    if any(journal.is_full for journal in journals):
        may_read.clear()  # a slow disk: rest until the next flush has caught up
    else:
        may_read.set()


def _write(journals: list[Journal], *, sync: bool) -> None:
    failure: OSError | None = None
    for journal in journals:
        try:
            journal.flush()
            if sync:
                journal.sync()
        except OSError as error:
            failure = error
    if failure:
        raise failure


def close_journals(journals: Iterable[Journal]) -> None:
    """Writes the rest and closes all of them. Raises `ConfigError` when the disk refuses the rest to the last try."""
    refused = [reason for journal in journals if (reason := _close(journal))]
    if refused:
        raise ConfigError(f"LAKE_STATE: {'; '.join(refused)}; make room before the next start")


def _close(journal: Journal) -> str:
    """Why what it received last could not be written; empty if it could."""
    for tries_left in reversed(range(LAST_TRIES)):
        try:
            journal.flush()
            break
        except OSError:
            if tries_left:
                time.sleep(RETRY_EVERY_S)
    try:
        journal.close()
    except OSError as error:
        return f"{journal.directory.name}: the last {journal.waiting_bytes} bytes are lost, {error.strerror}"
    return ""
