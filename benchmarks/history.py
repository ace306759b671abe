"""A month of aggregated trades from its ZIP into the table, beside tools that turn the bare CSV into Parquet.

Each run is a process of its own with one contender in it: it warms up on a small file, then measures once; contenders
take turns, and the best of three runs counts. CPU time is that of all threads. Ours begins with the ZIP: SHA-256,
inflating, parsing, checks, the look for keys that the table has, Parquet by day, the Delta commit with its mark, and
the certificate of each day. The others begin with the CSV, already unpacked, and write one Parquet file with their
defaults; they check nothing.
"""

import hashlib
import json
import sys
import zipfile
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from benchmarks import contest
from benchmarks.report import Findings, Line

ROWS: Final = 13_000_000
FEW_ROWS: Final = 200_000
RUNS: Final = 3
CONTENDERS: Final = ("ours", "ours-plain", "polars", "duckdb", "pandas")
MONTH: Final = date(2024, 1, 1)
MONTH_MS: Final = 31 * 86_400_000
STEM: Final = "BTCUSDT-aggTrades-2024-01"
PIECE_ROWS: Final = 1_000_000
MOST_RSS_MB: Final = 600
SMALLER: Final = 0.7
SCHEMA: Final = {
    "agg_trade_id": pl.Int64,
    "price": pl.Float64,
    "quantity": pl.Float64,
    "first_trade_id": pl.Int64,
    "last_trade_id": pl.Int64,
    "transact_time": pl.Int64,
    "is_buyer_maker": pl.Boolean,
}


def measure(_frames: Path, folder: Path) -> Findings:
    """All contenders in turns."""
    for name, rows in (("month", ROWS), ("few", FEW_ROWS)):
        make(folder / name, rows)
    runs = contest.in_turns("benchmarks.history", CONTENDERS, folder, times=RUNS)
    return _findings(contest.best_of(runs), runs, folder)


def make(folder: Path, rows: int) -> None:
    """A made-up month as CSV and as ZIP: a price that walks by ticks, quantities of a long tail, bursts of fills."""
    folder.mkdir()
    with (folder / f"{STEM}.csv").open("wb") as file:
        for number, piece in enumerate(_pieces(rows)):
            piece.write_csv(file, include_header=number == 0)
    with zipfile.ZipFile(folder / f"{STEM}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / f"{STEM}.csv", f"{STEM}.csv")


def _pieces(rows: int) -> Iterator[pl.DataFrame]:
    draw = np.random.default_rng(1)
    start_ms = int(datetime(MONTH.year, MONTH.month, MONTH.day, tzinfo=UTC).timestamp() * 1000)
    price, trade, at_ms = 650_000, 5_000_000_000, 0.0
    for begin in range(0, rows, PIECE_ROWS):
        count = min(PIECE_ROWS, rows - begin)
        ticks = price + np.cumsum(draw.choice([-1, 0, 0, 0, 0, 0, 1], count))
        last = trade + np.cumsum(draw.integers(1, 4, count))
        first = np.concatenate(([trade + 1], last[:-1] + 1))
        steps = np.maximum(1, np.round(np.exp(draw.normal(3, 1.8, count)))).astype(np.int64)
        times = at_ms + np.cumsum(draw.exponential(0.999 * MONTH_MS / rows, count))
        price, trade, at_ms = int(ticks[-1]), int(last[-1]), float(times[-1])
        columns = {
            "agg_trade_id": 2_000_000_000 + np.arange(begin, begin + count),
            "price": ticks / 10,
            "quantity": steps / 1000,
            "first_trade_id": first,
            "last_trade_id": last,
            "transact_time": start_ms + np.minimum(times, MONTH_MS - 1).astype(np.int64),
            "is_buyer_maker": draw.random(count) < 0.5,
        }
        yield pl.DataFrame(columns, schema=SCHEMA)


def _findings(best: dict[str, dict[str, float]], runs: dict[str, Any], folder: Path) -> Findings:
    ours, polars, pandas = (best[name]["per_cpu_s"] for name in ("ours", "polars", "pandas"))
    rss_mb = max(run["rss_mb"] for name in ("ours", "ours-plain") for run in runs[name])
    smaller = best["ours"]["bytes"] / best["duckdb"]["bytes"]
    lines = [
        *(Line(_WORDS[name], f"{best[name]['per_cpu_s']:,.0f}/s") for name in CONTENDERS),
        Line("ours: times Polars", f"{ours / polars:.2f}x", ">= 1x", ours >= polars),
        Line("ours: times pandas", f"{ours / pandas:.2f}x", ">= 1.4x", ours >= 1.4 * pandas),
        Line("ours: times DuckDB", f"{ours / best['duckdb']['per_cpu_s']:.2f}x"),
        Line("ours without the extra `fast`: times Polars", f"{best['ours-plain']['per_cpu_s'] / polars:.2f}x"),
        Line("ours: peak RSS", f"{rss_mb:.0f} MB", f"< {MOST_RSS_MB} MB", rss_mb < MOST_RSS_MB),
        Line("ours: bytes on disk beside DuckDB's", f"{smaller:.2f}x", f"<= {SMALLER}x", smaller <= SMALLER),
        *(Line(f"wall time: {name}", f"{best[name]['wall_s']:.1f} s") for name in CONTENDERS),
    ]
    sizes = [f"{name} {best[name]['bytes'] / 1e6:,.0f} MB" for name in CONTENDERS]
    notes = [
        f"{ROWS:,} rows, {_size(folder, 'csv')} as CSV, {_size(folder, 'zip')} as ZIP.",
        f"Best of {RUNS} processes each, warmed up, in turns.",
        f"Parquet: {', '.join(sizes)}.",
    ]
    figures = {"ratios": {"times_polars": round(ours / polars, 2), "times_pandas": round(ours / pandas, 2),
                          "bytes_of_duckdb": round(smaller, 2)}, "runs": runs}  # fmt: skip
    return Findings("history: a month of aggTrades from ZIP to Delta, rows per CPU-second", lines, figures, notes)


_WORDS: Final = {
    "ours": "ours, from the ZIP to the certificate",
    "ours-plain": "ours without the extra `fast`",
    "polars": "Polars scan_csv -> sink_parquet, bare CSV",
    "duckdb": "DuckDB COPY, bare CSV",
    "pandas": "pandas read_csv -> to_parquet, bare CSV",
}


def _size(folder: Path, ending: str) -> str:
    return f"{(folder / 'month' / f'{STEM}.{ending}').stat().st_size / 1e6:,.0f} MB"


# What runs in the child processes


def _ours(source: Path, target: Path) -> None:
    from crypto_lake.backfill.certify import certify
    from crypto_lake.backfill.facts import facts_of
    from crypto_lake.backfill.ingest import Landed, Told, ingest
    from crypto_lake.backfill.plan import Job, Wanted
    from crypto_lake.config import FUTURES
    from crypto_lake.connections.objects import Fetched
    from crypto_lake.models import DATASETS
    from crypto_lake.writers.delta import Lake

    archive = source / f"{STEM}.zip"
    lake, dataset, now = Lake(str(target)), DATASETS["agg_trade"], datetime.now(UTC)
    with archive.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    wanted = Wanted(dataset, FUTURES, ("BTCUSDT",), "", MONTH, date(2024, 1, 31))
    file_of_month = wanted.file("BTCUSDT", "monthly", MONTH)
    landed = Landed(
        Job(file_of_month, sha256, tuple(file_of_month.days)),
        Fetched(archive, sha256, archive.stat().st_size, None, None),
    )
    taken = ingest(lake, wanted, [landed], known={}, now=now, told=Told())
    rows = certify(lake, dataset, facts_of(taken), now=now)
    assert rows["rows"].sum() == taken[0].added
    assert set(rows["verdict"]) == {"complete"}


def _tables(target: Path) -> None:
    """They are there before the first file comes."""
    from crypto_lake.models import DATASETS
    from crypto_lake.writers.delta import Lake

    for name in ("agg_trade", "rejected", "quality", "gap", "coverage", "dump_file"):
        Lake(str(target)).check(DATASETS[name])


def _polars(source: Path, target: Path) -> None:
    pl.scan_csv(source / f"{STEM}.csv").sink_parquet(target / "out.parquet")


def _duckdb(source: Path, target: Path) -> None:
    import duckdb

    duckdb.sql(f"copy (select * from read_csv('{source / STEM}.csv')) to '{target / 'out.parquet'}' (format parquet)")


def _pandas(source: Path, target: Path) -> None:
    import pandas as pd

    pd.read_csv(source / f"{STEM}.csv").to_parquet(target / "out.parquet")


_WORK: Final[dict[str, contest.Work]] = {
    "ours": _ours,
    "ours-plain": _ours,
    "polars": _polars,
    "duckdb": _duckdb,
    "pandas": _pandas,
}


def main() -> None:
    """One contender in this process: a small file first, then the month, once."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    if name == "ours-plain":
        contest.without_extras()
    prepare = _tables if name.startswith("ours") else Path.mkdir
    found = contest.measured(_WORK[name], folder / "few", folder / "month", folder / name, rows=ROWS, prepare=prepare)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
