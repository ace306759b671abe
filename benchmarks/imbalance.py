"""Imbalance bars from 20,000,000 trades, beside mlfinpy: the same rule (side tick, compare gt), the same parameters.

mlfinpy is in an environment of its own, and gets the first of the same trades; those of our bars that end in them are
its bars, trade for trade. Ours is the whole way from a frame of trades to a frame of bars and the state behind it.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from benchmarks import apart, contest
from benchmarks.report import Findings, Line
from crypto_lake.features.imbalance import Parameters

TRADES, THEIR_TRADES, FEW = 20_000_000, 400_000, 20_000
RUNS: Final = 3
MOST_RSS_MB: Final = 2500
TIMES: Final = 300
# mlfinpy imports scikit-learn, and does not say so.
MLFINPY: Final = ("mlfinpy==0.1.2", "scikit-learn")
RISKLABAI: Final = ("RiskLabAI==2.0.1",)
# The frame's file, and the arrays that the others read: their environment knows no Parquet.
FILE, PRICES, QUANTITIES = "trades.parquet", "price.npy", "quantity.npy"
BY_TICK: Final = Parameters(side="tick", compare="gt")
CONTENDERS: Final = {
    "const": BY_TICK,
    "ema": Parameters(side="tick", compare="gt", mode="ema"),
    "aggressor": Parameters(mode="ema", min_imbalance_share=0.02),
    "usd_share": Parameters(kind="usd_share"),
}

# Run by the other environment's interpreter: reads two arrays, and prints for each set of parameters the number of the
# trade that ends each bar, and the CPU time.
MLFINPY_SCRIPT: Final = """
import json, sys, time
import numpy as np, pandas as pd
from mlfinpy.data_structure import imbalance_bars

asked, found = json.loads(sys.argv[1]), []
trades = pd.DataFrame({"price": np.load(asked["prices"]), "volume": np.load(asked["quantities"])})[: asked["trades"]]
trades.insert(0, "date_time", pd.to_datetime(trades.index, unit="s"))
for one in asked["sets"]:
    words = {"expected_imbalance_window": one["imbalance_window"], "exp_num_ticks_init": one["init_ticks"]}
    if one["mode"] == "ema":
        words["exp_num_ticks_constraints"] = [one["min_ticks"], one["max_ticks"]]
        words["num_prev_bars"] = one["num_prev_bars"]
    make = getattr(imbalance_bars, "get_{mode}_{kind}_imbalance_bars".format(**one))
    make(trades[: asked["few"]], verbose=False, **words)
    began = time.process_time()
    bars, _ = make(trades, verbose=False, **words)
    took = time.process_time() - began
    found.append({"ends": [] if bars is None else bars["tick_num"].tolist(), "cpu_s": took})
print(json.dumps(found))
"""
RISKLABAI_SCRIPT: Final = """
import json, sys, time
import numpy as np
from RiskLabAI.data.structures.imbalance_bars import ExpectedImbalanceBars, FixedImbalanceBars

asked, found = json.loads(sys.argv[1]), []
prices, quantities = (np.load(asked[name])[: asked["trades"]].tolist() for name in ("prices", "quantities"))
for one in asked["sets"]:
    words = {
        "bar_type": one["kind"] + "_imbalance",
        "initial_estimate_of_expected_n_ticks_in_bar": one["init_ticks"],
        "window_size_for_expected_imbalance_estimation": one["imbalance_window"],
    }
    if one["mode"] == "ema":
        words["window_size_for_expected_n_ticks_estimation"] = one["num_prev_bars"]
        words["expected_ticks_number_bounds"] = (one["min_ticks"], one["max_ticks"])
    made = (ExpectedImbalanceBars if one["mode"] == "ema" else FixedImbalanceBars)(**words)
    began = time.process_time()
    bars = made.construct_bars_from_data(zip(range(len(prices)), prices, quantities))
    found.append({"ends": [bar[1] for bar in bars], "cpu_s": time.process_time() - began})
print(json.dumps(found))
"""


def measure(_frames: Path, folder: Path) -> Findings:
    """Ours by four sets of parameters, mlfinpy by the two that it knows."""
    python = apart.python_with("mlfinpy", *MLFINPY)
    market(TRADES).write_parquet(folder / FILE)
    head = pl.read_parquet(folder / FILE, n_rows=THEIR_TRADES)
    save(head, folder)
    runs = contest.in_turns("benchmarks.imbalance", tuple(CONTENDERS), folder, times=RUNS)
    names = ("const", "ema")
    sets = [CONTENDERS[name] for name in names]
    answers = [asked(python, MLFINPY_SCRIPT, sets, folder, THEIR_TRADES) for _ in range(RUNS)]
    theirs = dict(zip(names, zip(*answers, strict=True), strict=True))
    for name, some in theirs.items():
        ends = [each for each in runs[name][0]["ends"] if each <= THEIR_TRADES]  # type: ignore[attr-defined]
        assert ends == some[0]["ends"], f"{name}: mlfinpy has other bars"
    return _findings(runs, theirs)


def _findings(runs: dict[str, Any], theirs: dict[str, Any]) -> Findings:
    best = contest.best_of(runs)
    rates = {name: THEIR_TRADES / min(run["cpu_s"] for run in some) for name, some in theirs.items()}
    ratios = {name: best[name]["per_cpu_s"] / rate for name, rate in rates.items()}
    rss_mb = max(run["rss_mb"] for some in runs.values() for run in some)
    lines = [
        *(Line(_WORDS[name], f"{run['per_cpu_s'] / 1e6:,.0f} million/s") for name, run in best.items()),
        *(Line(f"mlfinpy, {name}", f"{rate:,.0f}/s") for name, rate in rates.items()),
        *(
            Line(f"ours: times mlfinpy, {name}", f"{ratio:,.0f}x", f">= {TIMES}x", ratio >= TIMES)
            for name, ratio in ratios.items()
        ),
        Line("ours: peak RSS", f"{rss_mb:.0f} MB", f"< {MOST_RSS_MB} MB", rss_mb < MOST_RSS_MB),
    ]
    bars = ", ".join(f"{name} {len(some[0]['ends']):,}" for name, some in runs.items())
    notes = [
        f"{TRADES:,} trades; bars: {bars}. mlfinpy had the first {THEIR_TRADES:,}, with bars identical to ours: "
        + ", ".join(f"{name} {len(some[0]['ends']):,}" for name, some in theirs.items()),
        f"Best of {RUNS} processes each, warmed up. Of our RSS the frame of trades is {_frame_mb():.0f} MB.",
    ]
    for some in runs.values():
        for run in some:
            run.pop("ends")
    figures = {
        "ratios": {f"times_mlfinpy_{name}": round(ratio) for name, ratio in ratios.items()},
        "runs": runs,
        "mlfinpy_per_cpu_s": {name: round(rate) for name, rate in rates.items()},
    }
    return Findings("imbalance: imbalance bars from trades, trades per CPU-second", lines, figures, notes)


_WORDS: Final = {
    "const": "ours, dollar, side tick, const",
    "ema": "ours, dollar, side tick, ema",
    "aggressor": "ours, dollar, side aggressor, ema with a floor",
    "usd_share": "ours, usd_share",
}


def _frame_mb() -> float:
    """Five columns, a bit for the flag."""
    return TRADES * (4 * 8 + 1 / 8) / 1e6


# Trades, and what others make of them; a test uses these, too


def market(count: int, *, seed: int = 1) -> pl.DataFrame:
    """Trades of a market in which buyers and sellers have the upper hand in turns, as in a real one.

    With signs that are drawn anew for each trade the expected imbalance is nothing, and nearly every trade is a bar.
    """
    random = np.random.default_rng(seed)
    spell = 4_000
    shares = 0.5 + 0.12 * random.standard_normal(count // spell + 1)
    is_sold = random.random(count) < np.repeat(shares, spell)[:count]
    moves = np.where(random.random(count) < 0.3, np.where(is_sold, -1, 1), 0)
    reverts = np.where(random.random(count) < 0.02, random.integers(-3, 4, count), 0)
    return pl.DataFrame(
        {
            "id": np.arange(1, count + 1),
            "time": 1_763_640_000_000_000 + np.cumsum(random.integers(0, 120_000, count)),
            "price": np.round(90_000 + 0.1 * np.cumsum(moves + reverts), 1),
            "quantity": np.round(random.exponential(0.05, count) + 0.001, 3),
            "is_buyer_maker": is_sold,
        }
    )


def save(trades: pl.DataFrame, folder: Path) -> None:
    """For `asked`."""
    np.save(folder / PRICES, trades["price"].to_numpy())
    np.save(folder / QUANTITIES, trades["quantity"].to_numpy())


def asked(python: Path, script: str, sets: Sequence[Parameters], folder: Path, trades: int) -> list[Any]:
    """What another library makes of the first saved trades: the numbers of those that end a bar, and CPU time."""
    places = {"prices": str(folder / PRICES), "quantities": str(folder / QUANTITIES)}
    counts = {"trades": trades, "few": min(FEW, trades)}
    question = json.dumps({**places, **counts, "sets": [asdict(each) for each in sets]})
    words = [str(python), "-W", "ignore", "-c", script, question]
    done = subprocess.run(words, stdout=subprocess.PIPE, check=True, timeout=600)
    answers: list[Any] = json.loads(done.stdout)
    return answers


def main() -> None:
    """One set of parameters in this process: a few trades first, then all of them, once."""
    from crypto_lake.features.imbalance import begin, feed

    name, folder = sys.argv[1], Path(sys.argv[2])
    trades, parameters = pl.read_parquet(folder / FILE), CONTENDERS[name]
    feed(trades.head(FEW), parameters, begin(parameters))
    began_s, wall_s = time.process_time(), time.perf_counter()
    fed = feed(trades, parameters, begin(parameters))
    cpu_s, wall_s = time.process_time() - began_s, time.perf_counter() - wall_s
    found = {"cpu_s": round(cpu_s, 3), "wall_s": round(wall_s, 3), "per_cpu_s": trades.height / cpu_s}
    ends = fed.bars["tick_num"].to_list()
    print(
        json.dumps({**found, "rss_mb": contest.peak_rss_mb(), "one_tick_bars": fed.counts.one_tick_bars, "ends": ends})
    )


if __name__ == "__main__":
    main()
