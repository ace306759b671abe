"""Maintenance on a timer, in a process of its own: what it holds of memory goes with it."""

import asyncio
import sys
from typing import Final

import structlog

from crypto_lake.config import Settings, child_environment
from crypto_lake.models import SIDES
from crypto_lake.monitoring import metrics
from crypto_lake.services.drainer import Drainer
from crypto_lake.services.wait import first_of

log = structlog.get_logger()

# Reading and committing slow down with the number of small files, so many commits to one table are a reason too.
COMMITS_BETWEEN: Final = 100
LOOK_EVERY_S: Final = 5.0
# A run that takes longer than this hangs; the next one does its work.
LONGEST_S: Final = 6 * 3600.0
NICENESS: Final = "10"


async def maintain(settings: Settings, datasets: list[str], drainer: Drainer, stop: asyncio.Event) -> None:
    """Runs `crypto-lake optimize` every `LAKE_OPTIMIZE_EVERY_S`, and sooner after many commits, until `stop`."""
    if settings.sink != "delta":
        return
    loop = asyncio.get_running_loop()
    last_s, before = loop.time(), dict(drainer.progress.commits)
    while not stop.is_set():
        await first_of(stop, timeout_s=min(LOOK_EVERY_S, settings.optimize_every_s))
        commits = dict(drainer.progress.commits)
        is_late = loop.time() - last_s >= settings.optimize_every_s
        is_scattered = any(count - before.get(name, 0) >= COMMITS_BETWEEN for name, count in commits.items())
        if (is_late or is_scattered) and not stop.is_set():
            await _run(settings, datasets, stop)
            last_s, before = loop.time(), commits


async def _run(settings: Settings, datasets: list[str], stop: asyncio.Event) -> None:
    process = await asyncio.create_subprocess_exec(
        *("nice", "-n", NICENESS, sys.executable, "-m", "crypto_lake", "optimize"),
        *("--datasets", ",".join([*datasets, *(side.name for side in SIDES)])),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=child_environment(LAKE_ROOT=settings.root, LOG_TO_FILE="false", LAKE_RETENTION_H=str(settings.retention_h)),
        start_new_session=True,  # Ctrl-C on the terminal is for the daemon, which ends this one in its own time
    )  # fmt: skip
    talk = asyncio.create_task(process.communicate())
    await first_of(stop, talk, timeout_s=LONGEST_S)
    if not talk.done():
        process.terminate()  # an optimize that is cut off leaves files that no table names, and vacuum removes them
    _, words = await talk
    ok = process.returncode == 0
    metrics.maintenance_runs_total.labels("optimize", "done" if ok else "failed").inc()
    if not ok and not stop.is_set():
        log.error("maintenance_failed", status=process.returncode, reason=words.decode(errors="replace")[-500:].strip())
