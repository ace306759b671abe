"""`python -m benchmarks [NAME ...]`: all benchmarks, or the ones named, one after the other."""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks import (
    bars,
    books,
    features,
    flatfiles,
    history,
    imbalance,
    ingest,
    memory,
    receive,
    report,
    workload,
)

BENCHMARKS: Final[dict[str, Callable[[Path, Path], report.Findings]]] = {
    "ingest": ingest.measure,
    "receive": receive.measure,
    "memory": memory.measure,
    "history": history.measure,
    "flatfiles": flatfiles.measure,
    "bars": bars.measure,
    "imbalance": imbalance.measure,
    "books": books.measure,
    "features": features.measure,
}
# These are fed with the frames of a made-up exchange.
FED: Final = frozenset(("ingest", "receive", "memory"))


def main() -> None:
    """Runs them, prints each table as soon as it is there, and says at the end which targets were missed."""
    arguments = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    arguments.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    names = arguments.parse_args().names or list(BENCHMARKS)
    if unknown := set(names) - set(BENCHMARKS):
        arguments.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    began_s, facts, found = time.monotonic(), report.machine(), {}
    with tempfile.TemporaryDirectory(prefix="crypto_lake-bench-") as folder:
        frames = Path(folder) / "frames"
        if FED.intersection(names):
            print(f"making {workload.COUNT:,} messages ...", flush=True)
            frames = workload.generate(frames, workload.COUNT)
        for name in names:
            print(f"{name} ...", flush=True)
            here = Path(folder) / name
            here.mkdir()
            found[name] = BENCHMARKS[name](frames, here)
            report.show(found[name])
    report.keep(facts, found)
    missed = [line.what for findings in found.values() for line in findings.lines if line.ok is False]
    print(f"{time.monotonic() - began_s:.0f} s; figures in {report.RESULTS}")
    print(f"MISSED: {'; '.join(missed)}" if missed else "every target is met")


if __name__ == "__main__":
    main()
