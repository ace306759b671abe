"""Trades in memory into bars: 1m and all longer timeframes in one pass, beside Polars' group_by_dynamic for 1m alone.

Both get the same 20,000,000 aggregated trades of one symbol and two weeks, sorted, and make the same columns; CPU time
is that of all threads. What the other does is the shortest way to write it in Polars. In a process of its own the rows
of both are compared: prices and counts to the last bit, sums within 1e-9.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from benchmarks import contest
from benchmarks.report import Findings, Line
from crypto_lake.models.bar import TIMEFRAMES_US
from crypto_lake.models.dataset import TIME

ROWS, FEW_ROWS = 20_000_000, 200_000
SPAN_DAYS: Final = 14
START_US: Final = 1_717_200_000_000_000
RUNS: Final = 3
TIMES: Final = 3
CONTENDERS: Final = ("ours", "ours-from-rows", "ours-plain", "polars")
TIMEFRAMES: Final = ("1m", "5m", "15m", "1h", "4h", "1d")
LEAST_TIMES_POLARS: Final = 10
RTOL: Final = 1e-9
EXACT: Final = ("time", "open", "high", "low", "close", "count")
SUMS: Final = ("volume", "quote_volume", "taker_buy_volume", "taker_buy_quote_volume")
Work = Callable[[pl.DataFrame], Any]


def measure(_frames: Path, folder: Path) -> Findings:
    """The contest, and that both make the same rows."""
    runs = contest.in_turns("benchmarks.bars", CONTENDERS, folder, times=RUNS)
    same = contest.child("benchmarks.bars", "compare")
    best = contest.best_of(runs)
    per_cpu_s = {name: best[name]["per_cpu_s"] for name in CONTENDERS}
    times = per_cpu_s["ours"] / per_cpu_s["polars"]
    lines = [
        *(Line(_WORDS[name], f"{per_cpu_s[name]:,.0f}/s") for name in CONTENDERS),
        Line("ours: times Polars", f"{times:.1f}x", f">= {LEAST_TIMES_POLARS}x", times >= LEAST_TIMES_POLARS),
        Line("ours from rows of the table: times Polars", f"{per_cpu_s['ours-from-rows'] / per_cpu_s['polars']:.1f}x"),
        Line("ours without the extra `fast`: times Polars", f"{per_cpu_s['ours-plain'] / per_cpu_s['polars']:.2f}x"),
        Line("the same 1m bars", f"{same['bars']:,}"),
        *(Line(f"wall time: {name}", f"{best[name]['wall_s']:.2f} s") for name in CONTENDERS),
    ]
    notes = [
        f"{ROWS:,} trades of {SPAN_DAYS} days; best of {RUNS} processes each, warmed up, in turns.",
        f"Ours makes {', '.join(TIMEFRAMES)}; Polars makes 1m.",
    ]
    figures = {"ratios": {"times_polars": round(times, 2)}, "runs": runs, "compared": same}
    return Findings("bars: trades in memory to bars, trades per CPU-second", lines, figures, notes)


_WORDS: Final = {
    "ours": "ours, six timeframes from arrays of trades",
    "ours-from-rows": "ours, six timeframes from unchecked rows",
    "ours-plain": "ours without the extra `fast`",
    "polars": "Polars group_by_dynamic, 1m",
}


def market(rows: int) -> pl.DataFrame:
    """Aggregated trades as the table has them, by time and id."""
    chance = np.random.default_rng(1)
    times = np.cumsum(chance.exponential(SPAN_DAYS * 86_400e3 / rows, rows)).astype(np.int64) * 1000 + START_US
    counts = chance.integers(1, 6, rows)
    last = np.cumsum(counts)
    found = pl.DataFrame(
        {
            "agg_trade_id": np.arange(rows),
            "time": times,
            "price": np.round(60_000 + np.cumsum(chance.normal(0, 0.2, rows)), 1),
            "quantity": np.round(chance.exponential(0.05, rows) + 0.001, 3),
            "first_trade_id": last - counts + 1,
            "last_trade_id": last,
            "is_buyer_maker": chance.integers(0, 2, rows).astype(np.bool_),
        }
    )
    return found.with_columns(pl.col("time").cast(TIME).set_sorted()).rechunk()


# What runs in the child processes


def _ours(rows: pl.DataFrame) -> Work:
    from crypto_lake.features.bars import all_bars, trades_of

    trades = trades_of(rows)
    return lambda _: all_bars(trades, TIMEFRAMES)


def _ours_from_rows(_: pl.DataFrame) -> Work:
    from crypto_lake.features.bars import all_bars, trades_of

    return lambda rows: all_bars(trades_of(rows), TIMEFRAMES)


def _polars(_: pl.DataFrame) -> Work:
    bought = (~pl.col("is_buyer_maker")).cast(pl.Float64)
    quote = pl.col("price") * pl.col("quantity")
    # Sums of whole columns first: a filter in each group takes longer.
    prepared = (
        pl.col("time", "price"),
        pl.col("quantity").alias("volume"),
        quote.alias("quote_volume"),
        (pl.col("last_trade_id") - pl.col("first_trade_id") + 1).alias("count"),
        (bought * pl.col("quantity")).alias("taker_buy_volume"),
        (bought * quote).alias("taker_buy_quote_volume"),
    )
    price = pl.col("price")
    columns = (
        price.first().alias("open"),
        price.max().alias("high"),
        price.min().alias("low"),
        price.last().alias("close"),
        pl.col("count", *SUMS).sum(),
    )
    return lambda rows: rows.lazy().select(*prepared).group_by_dynamic("time", every="1m").agg(*columns).collect()


_WORK: Final[dict[str, Callable[[pl.DataFrame], Work]]] = {
    "ours": _ours, "ours-from-rows": _ours_from_rows, "ours-plain": _ours, "polars": _polars,
}  # fmt: skip


def _measured(name: str) -> contest.Run:
    """One contender: a small market first, then the large one, the best of some times."""
    few, rows = market(FEW_ROWS), market(ROWS)
    _WORK[name](few)(few)
    work = _WORK[name](rows)
    cpu_s, wall_s = min(_once(work, rows) for _ in range(1 if name == "ours-plain" else TIMES))
    return {"cpu_s": cpu_s, "wall_s": wall_s, "per_cpu_s": ROWS / cpu_s, "rss_mb": contest.peak_rss_mb()}


def _once(work: Work, rows: pl.DataFrame) -> tuple[float, float]:
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    made = work(rows)
    assert made is not None
    return time.process_time() - cpu_s, time.perf_counter() - wall_s


def _compare() -> dict[str, int]:
    """Whether the bars are the same, and how many there are; the longer ones against Polars, too."""
    rows = market(ROWS)
    ours, compared = _ours(rows)(rows), {}
    theirs = _polars(rows)(rows)
    for name in TIMEFRAMES:
        every = pl.col("time").dt.truncate(f"{TIMEFRAMES_US[name]}us")
        longer = theirs.group_by(every).agg(
            pl.col("open").first(), pl.col("high").max(), pl.col("low").min(), pl.col("close").last(),
            pl.col("count").sum(), pl.col(SUMS).sum(),
        ).sort("time")  # fmt: skip
        for column in EXACT:
            assert ours[name][column].equals(longer[column]), f"{name} {column}"
        for column in SUMS:
            off = (ours[name][column] / longer[column] - 1).abs().max()
            assert off is not None, f"{name} {column}"
            assert off <= RTOL, f"{name} {column}: {off}"
        compared[name] = longer.height
    return {"bars": compared["1m"], "all": sum(compared.values())}


def main() -> None:
    """One contender, or the comparison, in this process."""
    if sys.argv[1] == "ours-plain":
        contest.without_extras()
        sys.modules["numba"] = None  # type: ignore[assignment]
    print(json.dumps(_compare() if sys.argv[1] == "compare" else _measured(sys.argv[1])))


if __name__ == "__main__":
    main()
