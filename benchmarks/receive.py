"""Delay from a sender's `send` to our receive stamp, at 20,000 messages a second into a real daemon.

Three processes: the sender (`feed.py`), the daemon, and the daemon's drain, which commits to Delta all the while.
Sender and receiver read the same clock. The delay is an upper bound: the sender's own batching (all messages of a
tick leave together, stamped before the first one), the loopback and the wait for a processor are inside.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from benchmarks import feed, workload
from benchmarks.report import Findings, Line

RATE: Final = 20_000
SECONDS: Final = 20
# Connecting, 50 book snapshots over REST and the first commit are shown apart.
WARM_UP_S: Final = 3.0
COMMIT_EVERY_S: Final = 3
TARGET_MS: Final = 5.0
STARTED_S: Final = 30.0
DRAINED_S: Final = 60.0
PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "WS_PROXY", "WSS_PROXY")


def measure(frames: Path, folder: Path) -> Findings:
    """A run with one connection a stream, and one with two, which carry everything twice."""
    findings = _measure(frames, folder / "one", redundancy=1)
    twice = _measure(frames, folder / "two", redundancy=2)
    delay_ms, shares = twice.figures["delay_ms"], twice.figures["cpu_share"]
    more = [
        Line("LAKE_REDUNDANCY=2, in the journals / in the tables",
             f"{twice.figures['received']:,} / {twice.figures['rows']:,}", "equal",
             twice.figures["received"] == twice.figures["rows"] == twice.figures["sender"]["messages"]),
        Line("LAKE_REDUNDANCY=2, delay p50 / p99 / max",
             f"{delay_ms['p50']:.2f} / {delay_ms['p99']:.2f} / {delay_ms['max']:.2f} ms"),
        Line("LAKE_REDUNDANCY=2, CPU of the receiving process", f"{shares['receive']:.0%}"),
    ]  # fmt: skip
    return Findings(
        findings.title, [*findings.lines, *more], {**findings.figures, "twice": twice.figures}, findings.notes
    )


def _measure(frames: Path, folder: Path, *, redundancy: int) -> Findings:
    """One run of sender, daemon and drain together."""
    numbers = map(str, (RATE, SECONDS, redundancy))
    with _running([sys.executable, "-m", "benchmarks.feed", str(frames), *numbers], {}) as sender:
        ports = json.loads(_line(sender))
        settings = {**_settings(folder, ports), "LAKE_REDUNDANCY": str(redundancy)}
        with _running([sys.executable, "-m", "benchmarks.receive"], settings) as daemon:
            assert json.loads(_line(sender)) == {"connected": redundancy * len(feed.CONNECTIONS)}
            time.sleep(1)
            before = _cpu_s(daemon.pid)
            _say(sender, "go")
            sent = json.loads(_line(sender))
            used = {name: spent_s - before.get(name, 0.0) for name, spent_s in _cpu_s(daemon.pid).items()}
            time.sleep(1)
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(DRAINED_S)
        _say(sender, "end")
    received = _received(next((folder / "state" / "journal").iterdir()))
    rows = sum(_rows(folder / "lake" / name) for name in workload.KINDS)
    return _findings(sent, used, received, rows)


def _settings(folder: Path, ports: Mapping[str, int]) -> dict[str, str]:
    return {
        "LAKE_ROOT": str(folder / "lake"),
        "LAKE_STATE": str(folder / "state"),
        "LAKE_DATASETS": ",".join(workload.KINDS),
        "LAKE_SYMBOLS": ",".join(workload.SYMBOLS),
        "LAKE_COMMIT_EVERY_S": str(COMMIT_EVERY_S),
        "LAKE_METRICS_PORT": "0",
        "LAKE_BINANCE_FUTURES_WS": f"ws://127.0.0.1:{ports['ws']}",
        "LAKE_BINANCE_FUTURES_REST": f"http://127.0.0.1:{ports['rest']}",
        "LOG_TO_TERMINAL": "true",
    }


@contextmanager
def _running(command: list[str], settings: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours, ended at the end whatever happens."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LAKE_")}
    plain = {name: value for name, value in kept.items() if name.upper() not in PROXIES}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**plain, **settings}
    )
    try:
        yield process
    except BaseException:
        process.kill()
        print((process.communicate()[1] or b"").decode(errors="replace")[-3000:], file=sys.stderr)
        raise
    finally:
        if process.poll() is None:
            _close(process)


def _close(process: subprocess.Popen[bytes]) -> None:
    try:
        process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"{process.args!r} ended without a word"
    return line


def _say(process: subprocess.Popen[bytes], word: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{word}\n".encode())
    process.stdin.flush()


def _cpu_s(pid: int) -> dict[str, float]:
    """CPU seconds so far of the daemon (`receive`), of its drain, and of what else it started."""
    spent = {"receive": _own_cpu_s(psutil.Process(pid)), "drain": 0.0, "other": 0.0}
    for child in psutil.Process(pid).children(recursive=True):
        is_drain = any("services.worker" in word for word in child.cmdline())
        spent["drain" if is_drain else "other"] += _own_cpu_s(child)
    return spent


def _own_cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _received(journals: Path) -> np.ndarray:
    """(sent, delay) in ns of every message in the journals."""
    from crypto_lake.journal import FRAME, read_all

    stamps = [
        (sent_ns := feed.sent_ns(record.payload), record.received_us * 1000 - sent_ns)
        for name in workload.KINDS
        for record in read_all(journals / name)
        if record.kind == FRAME
    ]
    return np.array(stamps, np.int64)


def _rows(table: Path) -> int:
    import polars as pl
    from deltalake import DeltaTable

    live = pl.scan_delta(DeltaTable(str(table))).filter(pl.col("source") == "live")
    return int(live.select(pl.len()).collect().item())


def _findings(sent: dict[str, Any], used: dict[str, float], received: np.ndarray, rows: int) -> Findings:
    began_ns = received[:, 0].min()
    steady = received[received[:, 0] >= began_ns + WARM_UP_S * 1e9][:, 1] / 1e6
    early = received[received[:, 0] < began_ns + WARM_UP_S * 1e9][:, 1] / 1e6
    delay = {f"p{share:g}": float(np.percentile(steady, share)) for share in (50, 99, 99.9)} | {"max": steady.max()}
    rate = sent["messages"] / sent["seconds"]
    shares = {name: spent_s / sent["seconds"] for name, spent_s in used.items()}
    whole = len(received) == rows == sent["messages"]
    lines = [
        Line("messages per second, sent and received", f"{rate:,.0f}/s", f"{RATE:,}/s", rate >= 0.99 * RATE),
        Line("messages sent / in the journals / in the tables", f"{sent['messages']:,} / {len(received):,} / {rows:,}",
             "equal", whole),
        *(
            Line(f"delay {name}", f"{value:.2f} ms", *(_verdict(value) if name == "p99" else ()))
            for name, value in delay.items()
        ),
        Line(f"delay p99 / max of the first {WARM_UP_S:.0f} s (connecting, 50 snapshots)",
             f"{np.percentile(early, 99):.2f} / {early.max():.2f} ms"),
        Line("the sender behind its plan, p99 / max", f"{sent['late_p99_ms']:.2f} / {sent['late_max_ms']:.2f} ms"),
        Line("CPU of the receiving process, of one core", f"{shares['receive']:.0%}"),
        Line("CPU of the drain's process, of one core", f"{shares['drain']:.0%}"),
        Line("CPU of the sender, of one core", f"{sent['cpu_s'] / sent['seconds']:.0%}"),
    ]  # fmt: skip
    figures = {
        "delay_ms": {name: round(float(value), 3) for name, value in delay.items()},
        "first_seconds_delay_ms": {
            "p99": round(float(np.percentile(early, 99)), 3),
            "max": round(float(early.max()), 3),
        },
        "messages_per_s": round(rate),
        "received": len(received),
        "rows": rows,
        "cpu_share": {name: round(share, 3) for name, share in shares.items()},
        "sender": sent,
    }
    notes = [
        f"One sender thread, a tick every {feed.TICK_S * 1e3:g} ms on an absolute plan; what is due leaves in one send",
        f"per connection ({len(feed.CONNECTIONS)} of them), stamped right before. Commits every {COMMIT_EVERY_S} s.",
    ]
    return Findings("receive: delay from send to receive stamp, daemon and drain at work", lines, figures, notes)


def _verdict(p99_ms: float) -> tuple[str, bool]:
    return f"< {TARGET_MS:.0f} ms", p99_ms < TARGET_MS


def main() -> None:
    """The daemon, as `crypto-lake run` starts it."""
    import uvloop

    from crypto_lake.config import load
    from crypto_lake.monitoring.log import configure
    from crypto_lake.services import daemon

    settings = load()
    configure(settings)
    uvloop.run(daemon.run(settings))


if __name__ == "__main__":
    main()
