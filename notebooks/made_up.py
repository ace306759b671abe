"""Two made-up days of two symbols for the notebooks: no market has seen them, but the tables are as a recorder leaves
them. A slow pressure that nobody sees moves the price a little and the flow of trades more, so there is something to
find."""

from datetime import UTC, datetime

import numpy as np
import polars as pl
from numpy.typing import NDArray

from crypto_lake.models import DATASETS
from crypto_lake.processors.shape import shape
from crypto_lake.writers.delta import Lake

Floats = NDArray[np.float64]

START = datetime(2026, 3, 2, tzinfo=UTC)
SECONDS = 2 * 86_400
START_US = int(START.timestamp() * 1e6)
TRADES_A_SECOND = 0.5
PRESSURE_S = 900  # how long a pressure lasts
VOLATILITY = 4e-5  # of a second
DRIFT = 6e-7  # what a pressure of 1 adds to the return of a second
BOOK_EVERY_S = 10
LEVELS = 8
ID_STEP = 10
DEPTH = DATASETS["depth"]
BTC, ETH = 60_000.0, 3_000.0


def lake(root: str, *, seed: int = 1) -> None:
    """Writes the tables under `root`: trades of BTCUSDT and ETHUSDT; of BTCUSDT also depth, marks and liquidations."""
    random = np.random.default_rng(seed)
    pressure = _pressure(random)
    shared = random.normal(0, VOLATILITY, SECONDS)
    btc = BTC * np.exp(np.cumsum(shared + DRIFT * pressure))
    eth = ETH * np.exp(np.cumsum(0.8 * shared + random.normal(0, 0.6 * VOLATILITY, SECONDS)))
    put = _Tables(root).put
    put("agg_trade", _trades(random, btc, pressure, 0.1), symbol="BTCUSDT")
    put("agg_trade", _trades(random, eth, np.zeros(SECONDS), 0.01), symbol="ETHUSDT")
    put("depth", _depth(random, btc, pressure), symbol="BTCUSDT")
    put("mark_price", _marks(random, btc, pressure), symbol="BTCUSDT")
    put("open_interest", _open_interest(random), symbol="BTCUSDT")
    put("liquidation", _liquidations(random, btc), symbol="BTCUSDT")


class _Tables:
    """Appends rows as a recorder does."""

    def __init__(self, root: str) -> None:
        self._lake = Lake(root)
        self._commits = 0

    def put(self, name: str, rows: pl.DataFrame, *, symbol: str) -> None:
        self._commits += 1
        self._lake.check(DATASETS[name])
        time = pl.from_epoch("time", "us").dt.replace_time_zone("UTC")
        says = {"venue": "binance-futures", "symbol": symbol, "source": "live"}
        market = rows.with_columns(
            *(pl.lit(word).alias(column) for column, word in says.items() if column not in rows.columns),
            *(time.alias(column) for column in ("time", "received_time", "event_time")),
        )
        self._lake.append(DATASETS[name], shape(DATASETS[name], market), "made-up", start=0, end=self._commits)


def _pressure(random: np.random.Generator) -> Floats:
    """Mean 0, variance 1, and it takes a quarter of an hour to change."""
    keep, noise = np.exp(-1 / PRESSURE_S), random.normal(size=SECONDS)
    noise[1:] *= np.sqrt(1 - keep**2)
    for second in range(1, SECONDS):
        noise[second] += keep * noise[second - 1]
    return noise


def _trades(random: np.random.Generator, price: Floats, pressure: Floats, tick: float) -> pl.DataFrame:
    counts = random.poisson(TRADES_A_SECOND, SECONDS)
    second = np.repeat(np.arange(SECONDS), counts)
    within = random.integers(0, 1_000, len(second))
    order = np.lexsort((within, second))
    second, ids = second[order], np.arange(len(second))
    is_sell = random.random(len(second)) > 0.5 + 0.2 * np.tanh(pressure[second])
    side = np.where(is_sell, -0.5, 0.5) * tick
    return pl.DataFrame(
        {
            "time": START_US + second * 1_000_000 + within[order] * 1_000,
            "agg_trade_id": ids,
            "price": np.round((price[second] + side) / tick) * tick,
            "quantity": np.round(random.lognormal(-3, 1, len(second)), 3) + 0.001,
            "first_trade_id": ids,
            "last_trade_id": ids,
            "is_buyer_maker": is_sell,
        }
    )


def _depth(random: np.random.Generator, price: Floats, pressure: Floats) -> pl.DataFrame:
    """A snapshot, then every some seconds what changed; there is more on the side that is pressed."""
    at = np.arange(0, SECONDS, BOOK_EVERY_S)
    lean = 1 + 0.4 * np.tanh(pressure[at])
    bids = _changes(random, price[at], -1, lean)
    asks = _changes(random, price[at], 1, 2 - lean)
    ids = ID_STEP * np.arange(len(at))
    rows = {
        "time": START_US + at * 1_000_000 + 500_000,
        "first_update_id": ids - ID_STEP + 1,
        "final_update_id": np.where(ids == 0, ID_STEP // 2, ids),  # a snapshot is taken between two changes
        "previous_update_id": ids - ID_STEP,
        "bids": bids,
        "asks": asks,
    }
    events = pl.DataFrame(rows, schema_overrides={"bids": DEPTH.schema["bids"], "asks": DEPTH.schema["asks"]})
    is_snapshot = pl.col("previous_update_id") < 0
    nulls = pl.when(~is_snapshot).then(pl.col("first_update_id", "previous_update_id"))
    return events.with_columns(
        nulls, pl.when(is_snapshot).then(pl.lit("rest")).otherwise(pl.lit("live")).alias("source")
    )


def _changes(random: np.random.Generator, price: Floats, sign: int, weight: Floats) -> list[list[dict[str, float]]]:
    """Of each book the levels that are new, and those that are gone with a quantity of 0."""
    sizes = np.round(weight[:, None] * random.lognormal(0, 0.5, (len(price), LEVELS)), 3) + 0.001
    found, before = [], set()
    for middle, size in zip(np.round(price, 1), sizes, strict=True):
        prices = [round(middle + sign * (0.1 + level * 0.1), 1) for level in range(LEVELS)]
        gone = [{"price": each, "quantity": 0.0} for each in before.difference(prices)]
        new = [{"price": each, "quantity": float(some)} for each, some in zip(prices, size, strict=True)]
        found.append(gone + new)
        before = set(prices)
    return found


def _marks(random: np.random.Generator, price: Floats, pressure: Floats) -> pl.DataFrame:
    at = np.arange(0, SECONDS, 3)
    funding_s = 8 * 3_600
    return pl.DataFrame(
        {
            "time": START_US + at * 1_000_000,
            "mark_price": price[at] + random.normal(0, 1, len(at)),
            "index_price": price[at] * (1 - 1e-5 * pressure[at]),
            "estimated_settle_price": price[at],
            "funding_rate": 1e-4 + 1e-6 * np.round(np.cumsum(random.normal(0, 0.05, len(at))), 2),
            "next_funding_time": START_US + (at // funding_s + 1) * funding_s * 1_000_000,
        }
    ).with_columns(pl.from_epoch("next_funding_time", "us").dt.replace_time_zone("UTC"))


def _open_interest(random: np.random.Generator) -> pl.DataFrame:
    at = np.arange(0, SECONDS, 60)
    interest = 80_000 + np.cumsum(random.normal(0, 5, len(at)))
    return pl.DataFrame({"time": START_US + at * 1_000_000, "open_interest": np.round(interest, 3)})


def _liquidations(random: np.random.Generator, price: Floats) -> pl.DataFrame:
    at = np.flatnonzero(random.random(SECONDS) < 1 / 120)
    quantity = np.round(random.lognormal(-2, 1, len(at)), 3) + 0.001
    return pl.DataFrame(
        {
            "time": START_US + at * 1_000_000 + 250_000,
            "side": np.where(random.random(len(at)) < 0.5, "SELL", "BUY"),
            "order_type": "LIMIT",
            "time_in_force": "IOC",
            "price": np.round(price[at], 1),
            "average_price": np.round(price[at], 1),
            "quantity": quantity,
            "last_filled_quantity": quantity,
            "filled_quantity": quantity,
            "status": "FILLED",
        }
    )
