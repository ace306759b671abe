"""Contenders side by side: each run is a process of its own, warmed up on a small input, measured on a large one.

CPU time is that of all threads of the process.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Work = Callable[[Path, Path], None]
Run = dict[str, float]


def in_turns(module: str, names: Sequence[str], folder: Path, *, times: int) -> dict[str, list[Run]]:
    """The runs of each contender, who take turns."""
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for _ in range(times):
        for name in names:
            runs[name].append(child(module, name, str(folder)))
    return runs


def best_of(runs: Mapping[str, Sequence[Run]]) -> dict[str, Run]:
    """The run of each that did most per CPU-second."""
    return {name: max(some, key=lambda run: run["per_cpu_s"]) for name, some in runs.items()}


def child(module: str, *arguments: str) -> Any:
    """What a process of a benchmark prints, which is JSON."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, check=True, timeout=600)
    return json.loads(done.stdout)


def without_extras() -> None:
    """From here on it is as if the extra `fast` were not installed: importing what it brings is an error."""
    sys.modules.update(dict.fromkeys(("isal", "llvmlite", "numba")))  # type: ignore[arg-type]


def measured(
    work: Work, small: Path, large: Path, target: Path, *, rows: int, prepare: Callable[[Path], None] = Path.mkdir
) -> Run:
    """One contender: the small input first, then the large one, once. Both targets are prepared before."""
    for folder in (target, warm := target.with_name(f"{target.name}-warm-up")):
        shutil.rmtree(folder, ignore_errors=True)
        prepare(folder)
    work(small, warm)
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    work(large, target)
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    size = sum(path.stat().st_size for path in target.rglob("*.parquet") if "_delta_log" not in path.parts)
    for folder in (target, warm):
        shutil.rmtree(folder)
    return {
        "cpu_s": round(cpu_s, 3),
        "wall_s": round(wall_s, 3),
        "per_cpu_s": rows / cpu_s,
        "rss_mb": peak_rss_mb(),
        "bytes": size,
    }


def peak_rss_mb() -> float:
    """Of this process; `ru_maxrss` would begin with what the parent had."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
