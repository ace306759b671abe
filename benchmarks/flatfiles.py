"""Flat files of minute aggregates into the table, beside tools that turn them into Parquet; then one symbol's month.

The contest is one stock day of 2,000,000 rows as .csv.gz. Ours is SHA-256, inflating and its sum, parsing, checks, the
look for keys that the table has, Parquet, the Delta commit with its mark, the ledger and the certificate. The others
read the same file and write one Parquet file with their defaults; they check nothing. Then one options file of
50,000,000 rows, for its memory, and a month of such stock days, out of which one symbol is read.
"""

import hashlib
import json
import statistics
import sys
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import polars as pl

from benchmarks import contest
from benchmarks.report import Findings, Line
from crypto_lake.models.flatfile import FlatFile
from crypto_lake.simulator.flatfiles import FlatMarket

ROWS, FEW_ROWS, OPTION_ROWS = 2_000_000, 500_000, 50_000_000
RUNS: Final = 3
CONTENDERS: Final = ("ours", "ours-plain", "polars", "duckdb")
STOCKS, OPTIONS = "us_stocks_sip/minute_aggs_v1", "us_options_opra/minute_aggs_v1"
DAY: Final = date(2026, 5, 22)
# The weekdays of a month.
MONTH: Final = [day for number in range(31) if (day := date(2026, 5, 1) + timedelta(days=number)).weekday() < 5]
MOST_RSS_MB, MOST_OPTIONS_RSS_MB = 600, 800
SYMBOL: Final = "AAPL"
MOST_READ_MS: Final = 1000
READS: Final = 9
FILE: Final = "day.csv.gz"
SCHEMA: Final = {
    "ticker": pl.String,
    **dict.fromkeys(("volume", "open", "close", "high", "low"), pl.Float64),
    **dict.fromkeys(("window_start", "transactions"), pl.Int64),
}


def measure(_frames: Path, folder: Path) -> Findings:
    """The contest, the large file, and the reads."""
    for name, rows in (("large", ROWS), ("few", FEW_ROWS)):
        (folder / name).mkdir()
        FlatMarket(seed=1).write(folder / name / FILE, STOCKS, DAY, rows=rows)
    runs = contest.in_turns("benchmarks.flatfiles", CONTENDERS, folder, times=RUNS)
    options = contest.child("benchmarks.flatfiles", "options", str(folder))
    reads = contest.child("benchmarks.flatfiles", "reads", str(folder))
    return _findings(contest.best_of(runs), runs, options, reads, folder)


def _findings(
    best: dict[str, contest.Run], runs: dict[str, Any], options: dict[str, float], reads: dict[str, float], folder: Path
) -> Findings:
    ours, polars, duckdb = (best[name]["per_cpu_s"] for name in ("ours", "polars", "duckdb"))
    rss_mb = max(run["rss_mb"] for name in ("ours", "ours-plain") for run in runs[name])
    lines = [
        *(Line(_WORDS[name], f"{best[name]['per_cpu_s']:,.0f}/s") for name in CONTENDERS),
        Line("ours: times Polars", f"{ours / polars:.2f}x", ">= 1x", ours >= polars),
        Line("ours: times DuckDB", f"{ours / duckdb:.2f}x", ">= 1x", ours >= duckdb),
        Line("ours without the extra `fast`: times Polars", f"{best['ours-plain']['per_cpu_s'] / polars:.2f}x"),
        Line("ours: peak RSS", f"{rss_mb:.0f} MB", f"< {MOST_RSS_MB} MB", rss_mb < MOST_RSS_MB),
        Line(
            f"a file of {OPTION_ROWS:,} option bars: peak RSS",
            f"{options['rss_mb']:.0f} MB",
            f"< {MOST_OPTIONS_RSS_MB} MB",
            options["rss_mb"] < MOST_OPTIONS_RSS_MB,
        ),
        Line("the same: rows per CPU-second", f"{options['per_cpu_s']:,.0f}/s"),
        Line(
            f"read one symbol's month of {reads['rows']:,} rows",
            f"{reads['ms']:.0f} ms",
            f"< {MOST_READ_MS} ms",
            reads["ms"] < MOST_READ_MS,
        ),
        Line("the same, the first time in a process", f"{reads['first_ms']:.0f} ms"),
        *(Line(f"wall time: {name}", f"{best[name]['wall_s']:.1f} s") for name in CONTENDERS),
    ]
    sizes = [f"{name} {best[name]['bytes'] / 1e6:,.0f} MB" for name in CONTENDERS]
    notes = [
        f"{ROWS:,} rows, {(folder / 'large' / FILE).stat().st_size / 1e6:,.0f} MB as .csv.gz.",
        f"Best of {RUNS} processes each, warmed up, in turns.",
        f"Parquet: {', '.join(sizes)}.",
        f"The month: {len(MONTH)} days of {ROWS:,} rows; the time is the median of {READS} reads.",
    ]
    ratios = {"times_polars": round(ours / polars, 2), "times_duckdb": round(ours / duckdb, 2)}
    figures = {"ratios": ratios, "runs": runs, "options": options, "reads": reads}
    return Findings(
        "flatfiles: minute aggregates of a day from .csv.gz to Delta, rows per CPU-second", lines, figures, notes
    )


_WORDS: Final = {
    "ours": "ours, from the .csv.gz to the certificate",
    "ours-plain": "ours without the extra `fast`",
    "polars": "Polars scan_csv -> sink_parquet",
    "duckdb": "DuckDB COPY",
}


# What runs in the child processes


def _ours(source: Path, target: Path) -> None:
    _into(target, source / FILE, STOCKS, DAY)


def _into(target: Path, path: Path, folder: str, day: date) -> int:
    """A file into the lake `target`; its rows."""
    from crypto_lake.backfill.flat import FlatJob, FlatLanded, ingest_flat
    from crypto_lake.backfill.ingest import Told
    from crypto_lake.connections.objects import Fetched
    from crypto_lake.writers.delta import Lake

    lake, now = Lake(str(target)), datetime.now(UTC)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    size = path.stat().st_size
    landed = FlatLanded(FlatJob(FlatFile(folder, day), None, size), Fetched(path, sha256, size, None, None))
    (taken,) = ingest_flat(lake, [landed], known={}, now=now, told=Told())
    assert taken.added == taken.rows > 0
    assert not taken.refused
    return taken.rows


def _tables(target: Path) -> None:
    """They are there before the first file comes."""
    from crypto_lake.models import DATASETS
    from crypto_lake.writers.delta import Lake

    for name in ("bar", "rejected", "quality", "coverage", "dump_file"):
        Lake(str(target)).check(DATASETS[name])


def _polars(source: Path, target: Path) -> None:
    pl.scan_csv(source / FILE, schema=SCHEMA).sink_parquet(target / "out.parquet")


def _duckdb(source: Path, target: Path) -> None:
    import duckdb

    duckdb.sql(f"copy (select * from read_csv('{source / FILE}')) to '{target / 'out.parquet'}' (format parquet)")


_WORK: Final[dict[str, contest.Work]] = {"ours": _ours, "ours-plain": _ours, "polars": _polars, "duckdb": _duckdb}


def _options(folder: Path) -> dict[str, float]:
    """One large file, made by another process: what is measured is the reading."""
    path = folder / "options.csv.gz"
    contest.child("benchmarks.flatfiles", "make-options", str(folder))
    _tables(folder / "options")
    cpu_s = time.process_time()
    rows = _into(folder / "options", path, OPTIONS, DAY)
    cpu_s = time.process_time() - cpu_s
    path.unlink()
    return {"rows": rows, "per_cpu_s": rows / cpu_s, "rss_mb": contest.peak_rss_mb()}


def _make_options(folder: Path) -> int:
    return FlatMarket(seed=2).write(folder / "options.csv.gz", OPTIONS, DAY, rows=OPTION_ROWS)


def _reads(folder: Path) -> dict[str, float]:
    """A month of stock days, and one symbol out of it, as a notebook asks for it."""
    from crypto_lake.query import read

    contest.child("benchmarks.flatfiles", "make-month", str(folder))
    took_ms, rows = [], 0
    for _ in range(READS):
        began_s = time.perf_counter()
        bars = read(
            "bar", venue="us-stocks", symbols=[SYMBOL], timeframe="1m", start="2026-05", end="2026-05",
            root=str(folder / "month"),
        )  # fmt: skip
        rows = bars.collect().height
        took_ms.append((time.perf_counter() - began_s) * 1000)
    assert rows
    return {"rows": rows, "ms": statistics.median(took_ms), "first_ms": took_ms[0]}


def _make_month(folder: Path) -> int:
    path, rows = folder / "of-month.csv.gz", 0
    _tables(folder / "month")
    for day in MONTH:
        FlatMarket(seed=day.day).write(path, STOCKS, day, rows=ROWS)
        rows += _into(folder / "month", path, STOCKS, day)
    return rows


_ALONE: Final[dict[str, Any]] = {
    "options": _options, "make-options": _make_options, "reads": _reads, "make-month": _make_month,
}  # fmt: skip


def main() -> None:
    """One contender, or one of the other measurements, in this process."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    if name in _ALONE:
        print(json.dumps(_ALONE[name](folder)))
        return
    if name == "ours-plain":
        contest.without_extras()
    prepare = _tables if name.startswith("ours") else Path.mkdir
    run = contest.measured(_WORK[name], folder / "few", folder / "large", folder / name, rows=ROWS, prepare=prepare)
    print(json.dumps(run))


if __name__ == "__main__":
    main()
