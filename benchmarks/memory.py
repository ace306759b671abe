"""Memory of the drain's process over 2,000 small Delta commits, with maintenance beside it as the daemon runs it.

The process is the daemon's own (`services.worker`); it finds journals that are far ahead of the tables and is told to
take 200 messages at a time. After every 100 commits one round of maintenance runs in a process of its own.
"""

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import psutil

from benchmarks import workload
from benchmarks.report import Findings, Line

ROWS: Final = 200
COMMITS: Final = 2_000
SAMPLES: Final = (200, 500, 1_000, 1_500, 2_000)
SETTLED: Final = 500
GROWTH: Final = 0.15
DATASETS: Final = ("depth", "agg_trade")
LONGEST_S: Final = 300.0


def measure(frames: Path, folder: Path) -> Findings:
    """One worker from its start to its 2,000th commit."""
    from crypto_lake.services.maintain import COMMITS_BETWEEN

    workload.journal(folder / "journal", workload.load(frames))
    seconds: list[float] = []
    resident: dict[int, int] = {}
    rounds: list[subprocess.Popen[bytes]] = []
    began_s = time.monotonic()
    worker = _worker(folder)
    try:
        own = psutil.Process(worker.pid)
        assert worker.stdout is not None
        for line in worker.stdout:
            report = json.loads(line)
            if report["type"] != "Batch":
                assert report["type"] in ("Ready", "Round"), report
                continue
            seconds.append(report["seconds"])
            if len(seconds) in SAMPLES:
                resident[len(seconds)] = own.memory_info().rss
            if len(seconds) % COMMITS_BETWEEN == 0:
                _maintain(folder, rounds)
            if len(seconds) == COMMITS or time.monotonic() - began_s > LONGEST_S:
                break
    finally:
        for process in (worker, *rounds):
            if process.poll() is None and process is not worker:
                process.wait(30)
            process.kill()
            process.communicate()
    failed = [each for each in rounds if each.returncode]
    return _findings(seconds, resident, len(rounds), len(failed), _files(folder), time.monotonic() - began_s)


def _worker(folder: Path) -> subprocess.Popen[bytes]:
    from crypto_lake.services.contract import THREADS, Order

    order = Order(
        root=str(folder / "lake"),
        sink="delta",
        journals=str(folder / "journal"),
        collector="bench",
        datasets=list(DATASETS),
        commit_every_s=1,
        batch_messages=ROWS,
    )
    worker = subprocess.Popen(
        [sys.executable, "-m", "crypto_lake.services.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "POLARS_MAX_THREADS": THREADS},
    )
    assert worker.stdin is not None
    worker.stdin.write(msgspec.json.encode(order) + b"\n")
    worker.stdin.flush()
    return worker


def _maintain(folder: Path, rounds: list[subprocess.Popen[bytes]]) -> None:
    """Starts a round unless the one before is still at work."""
    if not rounds or rounds[-1].poll() is not None:
        command = ("nice", "-n", "10", sys.executable, "-m", "benchmarks.memory", str(folder / "lake"))
        rounds.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL))


def _files(folder: Path) -> int:
    from deltalake import DeltaTable

    return sum(len(DeltaTable(str(folder / "lake" / name)).file_uris()) for name in DATASETS)


def _findings(
    seconds: list[float], resident: dict[int, int], rounds: int, failed: int, files: int, took_s: float
) -> Findings:
    megabytes = {commits: size / 2**20 for commits, size in resident.items()}
    growth = megabytes[max(megabytes)] / megabytes[SETTLED] - 1 if SETTLED in megabytes else float("nan")
    millis = np.array(seconds) * 1e3
    last = millis[-500:]
    lines = [
        Line("commits made", f"{len(seconds):,}", f"{COMMITS:,}", len(seconds) >= COMMITS),
        *(Line(f"resident memory at commit {commits:,}", f"{size:.0f} MB") for commits, size in megabytes.items()),
        Line(f"growth after commit {SETTLED}", f"{growth:+.1%}", f"< {GROWTH:.0%}", growth < GROWTH),
        Line(f"a commit of {ROWS} rows, median / p99", f"{np.median(millis):.1f} / {np.percentile(millis, 99):.1f} ms"),
        Line("    of the last 500, median / p99", f"{np.median(last):.1f} / {np.percentile(last, 99):.1f} ms"),
        Line("maintenance rounds meanwhile / failed", f"{rounds} / {failed}", "none failed", failed == 0),
        Line("files in the two tables at the end", f"{files}"),
    ]
    figures: dict[str, Any] = {
        "commits": len(seconds),
        "rss_mb": {str(commits): round(size, 1) for commits, size in megabytes.items()},
        "growth_after_500": round(growth, 4),
        "commit_ms": {"median": round(float(np.median(millis)), 2), "p99": round(float(np.percentile(millis, 99)), 2)},
        "commit_ms_last_500": {
            "median": round(float(np.median(last)), 2),
            "p99": round(float(np.percentile(last, 99)), 2),
        },
        "maintenance": {"rounds": rounds, "failed": failed},
        "files": files,
        "seconds": round(took_s, 1),
    }
    notes = ["A commit is one whole step of the drain: read, decode, check, dedupe, write, and the look at the log."]
    return Findings("memory: the drain's process over 2,000 commits", lines, figures, notes)


def main() -> None:
    """One round of maintenance on the tables under argv[1], on the day that the messages are of."""
    from crypto_lake.models import DATASETS as ALL
    from crypto_lake.writers.maintenance import maintain

    now = datetime.fromtimestamp(workload.START_MS / 1000, UTC) + timedelta(minutes=10)
    done = maintain(sys.argv[1], [ALL[name] for name in DATASETS], now, retention_h=168)
    if errors := [str(each.error) for each in done if each.error]:
        sys.exit("; ".join(errors))


if __name__ == "__main__":
    main()
