"""The 111 features of a million minutes, beside the same features written with pandas as one writes them in a notebook.

Bars, a reference, a book and a mark every ten seconds, open interest every five minutes and some liquidations are made
up, ten days at a time; their making is not measured. Pandas gets fewer bars, since it would take minutes: the rates are
compared. Both are asked for the same stretch, and must agree.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from benchmarks import contest
from benchmarks.report import Findings, Line

BARS, PANDAS_BARS, BUILT_BARS = 1_000_000, 14_400, 43_200
BLOCK: Final = 14_400
RUNS: Final = 3
MINUTE_US: Final = 60_000_000
BEGIN_US: Final = 1_767_225_600_000_000  # 2026-01-01
EVERY_S: Final = 10
LEAST_TIMES: Final = 5
MOST_RSS_MB: Final = 600
RTOL, ATOL = 1e-6, 1e-8


def measure(_frames: Path, folder: Path) -> Findings:
    """The contest, and a build from tables to a table."""
    contest.child("benchmarks.features", "agree", str(folder))
    runs = contest.in_turns("benchmarks.features", ("ours", "pandas"), folder, times=RUNS)
    built = contest.child("benchmarks.features", "build", str(folder))
    best = contest.best_of(runs)
    ours, pandas = best["ours"]["per_cpu_s"], best["pandas"]["per_cpu_s"]
    rss_mb = max(run["rss_mb"] for run in runs["ours"])
    lines = [
        Line("ours", f"{ours:,.0f}/s"),
        Line("pandas", f"{pandas:,.0f}/s"),
        Line("ours: times pandas", f"{ours / pandas:.1f}x", f">= {LEAST_TIMES}x", ours >= LEAST_TIMES * pandas),
        Line("ours: peak RSS", f"{rss_mb:.0f} MB", f"< {MOST_RSS_MB} MB", rss_mb < MOST_RSS_MB),
        Line("from tables to the table, committed", f"{built['per_cpu_s']:,.0f}/s"),
        Line("the same: peak RSS", f"{built['rss_mb']:.0f} MB"),
    ]
    notes = [
        f"{BARS:,} bars with {BARS * 60 // EVERY_S:,} books and as many marks; pandas {PANDAS_BARS:,} bars.",
        f"Best of {RUNS} processes each, warmed up, in turns; their values agree (rtol {RTOL:g}).",
        f"The build: {BUILT_BARS:,} bars of one symbol.",
    ]
    figures = {"ratios": {"times_pandas": round(ours / pandas, 1)}, "runs": runs, "build": built}
    return Findings("features: 111 of each 1m bar, bars per CPU-second", lines, figures, notes)


# What is measured


def _blocks(count: int) -> Iterator[tuple[int, dict[str, pl.DataFrame]]]:
    """Inputs for so many bars, each block with what its windows look back on."""
    for first in range(0, count, BLOCK):
        rows = min(BLOCK, count - first)
        yield rows, inputs(first, rows)


def inputs(first: int, count: int) -> dict[str, pl.DataFrame]:
    """Tables for bars `first` and on, and for 240 before them."""
    rng = np.random.default_rng(first)
    back = min(first, 240)
    start_us, rows = BEGIN_US + (first - back) * MINUTE_US, count + back
    every_us = np.arange(start_us - 5_000_000, start_us + rows * MINUTE_US, EVERY_S * 1_000_000)
    return {
        "bars": _bars(rng, start_us, rows, 60_000.0),
        "reference": _bars(rng, start_us, rows, 2_500.0).select("time", "close"),
        "books": _books(rng, every_us),
        "marks": _marks(rng, every_us),
        "open_interest": _interest(rng, every_us[::30]),
        "liquidations": _liquidations(rng, np.sort(rng.choice(every_us, rows // 10, replace=False))),
    }


def _times(us: Any) -> pl.Series:
    return pl.Series(us).cast(pl.Datetime("us", "UTC"))


def _bars(rng: np.random.Generator, start_us: int, count: int, price: float) -> pl.DataFrame:
    close = price * np.exp(np.cumsum(rng.normal(0, 5e-4, count)))
    opened = np.roll(close, 1) * np.exp(rng.normal(0, 1e-4, count))
    opened[0] = close[0]
    high = np.maximum(opened, close) * np.exp(np.abs(rng.normal(0, 3e-4, count)))
    low = np.minimum(opened, close) * np.exp(-np.abs(rng.normal(0, 3e-4, count)))
    volume, share = rng.lognormal(2, 1, count), rng.random(count)
    quote = volume * (opened + close) / 2
    return pl.DataFrame(
        {
            "time": _times(start_us + np.arange(count) * MINUTE_US),
            "open": opened,
            "high": high,
            "low": low,
            "close": close,
            "volume": volume,
            "quote_volume": quote,
            "count": rng.integers(1, 500, count),
            "taker_buy_volume": volume * share,
            "taker_buy_quote_volume": quote * share,
        }
    )


def _books(rng: np.random.Generator, us: Any) -> pl.DataFrame:
    middle = 600_000 + np.cumsum(rng.integers(-3, 4, len(us)))
    sides = {}
    for side, sign in (("bids", -1), ("asks", 1)):
        prices = (middle[:, None] + sign * (1 + np.arange(5))) / 10
        levels = pl.DataFrame({"price": prices.ravel(), "quantity": rng.lognormal(0, 1, 5 * len(us))})
        sides[side] = levels.to_struct().reshape((len(us), 5)).arr.to_list()
    return pl.DataFrame({"time": _times(us), "update_id": np.arange(len(us)), **sides})


def _marks(rng: np.random.Generator, us: Any) -> pl.DataFrame:
    mark = 60_000 * np.exp(np.cumsum(rng.normal(0, 1e-4, len(us))))
    eight_hours_us = 28_800_000_000
    return pl.DataFrame(
        {
            "time": _times(us),
            "mark_price": mark,
            "index_price": mark * np.exp(rng.normal(0, 1e-4, len(us))),
            "funding_rate": rng.normal(1e-4, 1e-5, len(us)),
            "next_funding_time": _times((us // eight_hours_us + 1) * eight_hours_us),
        }
    )


def _interest(rng: np.random.Generator, us: Any) -> pl.DataFrame:
    return pl.DataFrame({"time": _times(us), "open_interest": rng.uniform(9e4, 1e5, len(us))})


def _liquidations(rng: np.random.Generator, us: Any) -> pl.DataFrame:
    count = len(us)
    sides = np.where(rng.random(count) < 0.5, "BUY", "SELL")
    prices, sizes = rng.uniform(59_000, 61_000, count), rng.lognormal(0, 1, count)
    return pl.DataFrame({"time": _times(us), "side": sides, "average_price": prices, "filled_quantity": sizes})


def _ours(wanted: int, tables: dict[str, pl.DataFrame]) -> pl.DataFrame:
    from crypto_lake.features.features import features

    others = {name: held for name, held in tables.items() if name != "bars"}
    return features(tables["bars"], timeframe="1m", wanted=wanted, **others)


def _pandas(wanted: int, tables: dict[str, pl.DataFrame]) -> Any:
    from benchmarks.features_pandas import features

    frames = {name: held.to_pandas() for name, held in tables.items() if name != "books"}
    return features(**frames, books=flat_books(tables["books"]).to_pandas()).tail(wanted)


def flat_books(books: pl.DataFrame) -> pl.DataFrame:
    """A column per level, as pandas wants them."""
    return books.select(
        "time",
        *(
            pl.col(side).list.get(level).struct.field(field).alias(f"{short}{part}{level + 1}")
            for side, short in (("bids", "b"), ("asks", "a"))
            for level in range(5)
            for field, part in (("price", "p"), ("quantity", "q"))
        ),
    )


_WORK: Final[dict[str, Any]] = {"ours": _ours, "pandas": _pandas}


def _measured(name: str) -> contest.Run:
    """The rate of a contender, warmed up; what it is given is made outside of the time."""
    count = BARS if name == "ours" else PANDAS_BARS
    _WORK[name](1_000, inputs(0, 1_000))
    cpu_s = wall_s = 0.0
    for rows, tables in _blocks(count):
        began_cpu_s, began_s = time.process_time(), time.perf_counter()
        made = _WORK[name](rows, tables)
        cpu_s, wall_s = cpu_s + time.process_time() - began_cpu_s, wall_s + time.perf_counter() - began_s
        assert len(made) == rows
    return {"cpu_s": round(cpu_s, 3), "wall_s": round(wall_s, 3), "per_cpu_s": count / cpu_s,
            "rss_mb": contest.peak_rss_mb(), "bytes": 0}  # fmt: skip


def _agree() -> dict[str, float]:
    """Whether both say the same of a stretch, from the row on in which all windows are whole."""
    tables = inputs(0, 3_000)
    ours, theirs = _ours(3_000, tables), _pandas(3_000, tables)
    worst = 0.0
    for name in ours.columns[1:]:
        mine, other = ours[name].to_numpy()[240:], theirs[name].to_numpy(dtype=float)[240:]
        assert (np.isnan(mine) == np.isnan(other)).all(), name
        away = np.nan_to_num(np.abs(mine - other) / (ATOL + RTOL * np.abs(other)))
        worst = max(worst, float(away.max()))
        assert away.max() <= 1, f"{name}: {away.max()}"
    return {"worst": worst}


def _build(folder: Path) -> dict[str, float]:
    """A month of one symbol, from tables to the table."""
    from crypto_lake.build.farm import farm
    from crypto_lake.build.features import Wanted, build

    root = str(folder / "lake")
    contest.child("benchmarks.features", "make", str(folder))
    cpu_s = time.process_time()
    with farm(None, 1) as (executor, at_once):
        done = build(root, Wanted(symbols="BTCUSDT"), executor, at_once)
    cpu_s = time.process_time() - cpu_s
    assert done.added == BUILT_BARS
    return {"per_cpu_s": BUILT_BARS / cpu_s, "rss_mb": contest.peak_rss_mb()}


def _make(folder: Path) -> int:
    """The lake of the build."""
    from crypto_lake.models import DATASETS
    from crypto_lake.processors.shape import shape
    from crypto_lake.writers.delta import Lake
    from crypto_lake.writers.derived import Derived

    lake = Lake(str(folder / "lake"))
    bar = {"timeframe": "1m", "complete": True, "revision": 0, "origin": "trades"}
    order = {"price": 1.0, "quantity": 1.0, "order_type": "LIMIT", "time_in_force": "IOC"}
    filled = {"last_filled_quantity": 1.0, "status": "FILLED"}
    more = {"bar": bar, "liquidation": {**order, **filled}}
    names = {"bars": "bar", "books": "book_snapshot", "marks": "mark_price", "liquidations": "liquidation"}
    tables = inputs(0, BUILT_BARS)
    reference = tables.pop("reference").with_columns(pl.col("close").alias(name) for name in ("open", "high", "low"))
    for symbol, held in (("BTCUSDT", tables), ("ETHUSDT", {"bars": reference})):
        for name, rows in held.items():
            dataset = DATASETS[names.get(name, name)]
            said = {"venue": "binance-futures", "symbol": symbol, "source": "dump", **more.get(dataset.name, {})}
            rows = rows.with_columns(pl.lit(value).alias(key) for key, value in said.items())  # noqa: PLW2901
            if dataset.name == "bar":
                rows = rows.with_columns(close_time=pl.col("time") + pl.duration(microseconds=MINUTE_US - 1))  # noqa: PLW2901
            into = Derived(lake, dataset)
            into.put(shape(dataset, rows))
            into.settle(all=True)
    return BUILT_BARS


def main() -> None:
    """One contender, or one of the other measurements, in this process."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    alone = {"agree": _agree, "build": lambda: _build(folder), "make": lambda: _make(folder)}
    print(json.dumps(alone[name]() if name in alone else _measured(name)))


if __name__ == "__main__":
    main()
