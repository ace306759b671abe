"""Trades for tests of bars: a market whose tables fill, and the bars that they should become."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
from deltalake import DeltaTable
from polars.testing import assert_frame_equal

from crypto_lake.build.bar_rows import Rules
from crypto_lake.build.bars import Wanted, build
from crypto_lake.build.farm import farm
from crypto_lake.build.flow import Built
from crypto_lake.features.bars import SCHEMA, all_bars, filled, trades_of
from crypto_lake.models import AGG_TRADE, BAR, DATASETS
from crypto_lake.models.bar import TIMEFRAMES_US
from crypto_lake.processors.shape import shape
from crypto_lake.writers.delta import Lake

FIRST = datetime(2024, 3, 4, tzinfo=UTC)
USUAL = ["1m", "5m", "15m", "1h", "4h", "1d"]
FUTURES = "binance-futures"


@dataclass(frozen=True)
class Fill:
    """A trade so many seconds after the first midnight; `lag_s` after that it was received, or never."""

    id: int
    at_s: float
    price: float = 10.0
    quantity: float = 1.0
    lag_s: float | None = None
    symbol: str = "BTCUSDT"
    venue: str = FUTURES

    @property
    def time(self) -> datetime:
        return FIRST + timedelta(seconds=self.at_s)


def agg_trades(fills: Sequence[Fill]) -> pl.DataFrame:
    return shape(
        AGG_TRADE,
        pl.DataFrame(
            {
                "venue": [fill.venue for fill in fills],
                "symbol": [fill.symbol for fill in fills],
                "time": [fill.time for fill in fills],
                "received_time": [
                    None if fill.lag_s is None else fill.time + timedelta(seconds=fill.lag_s) for fill in fills
                ],
                "source": ["live"] * len(fills),
                "agg_trade_id": [fill.id for fill in fills],
                "price": [fill.price for fill in fills],
                "quantity": [fill.quantity for fill in fills],
                "first_trade_id": [fill.id * 2 for fill in fills],
                "last_trade_id": [fill.id * 2 + fill.id % 2 for fill in fills],
                "is_buyer_maker": [fill.id % 3 == 0 for fill in fills],
            },
            schema_overrides={"received_time": AGG_TRADE.schema["received_time"]},
        ),
    )


class Market:
    """Tables that fill, and the bars that they should become."""

    def __init__(self, root: Path) -> None:
        self.path, self.root, self.lake = root, str(root), Lake(str(root))
        self.fills: list[Fill] = []

    def put(self, fills: Sequence[Fill]) -> None:
        """A commit of trades."""
        self.fills += fills
        self.lake.check(AGG_TRADE)
        self.lake.add(AGG_TRADE, agg_trades(fills))

    def gap(self, start_s: float, end_s: float | None, state: str = "open", symbol: str = "BTCUSDT") -> None:
        """A row of the table `gap`; a later one says what the hole is by then."""
        gap = DATASETS["gap"]
        self.lake.check(gap)
        start = FIRST + timedelta(seconds=start_s)
        row = {
            "venue": FUTURES, "symbol": symbol, "dataset": "agg_trade", "first_id": None, "last_id": None,
            "start_time": start, "end_time": None if end_s is None else FIRST + timedelta(seconds=end_s),
            "reason": "disconnect", "state": state, "filled_rows": 0, "state_time": datetime.now(UTC),
            "date": start.date(),
        }  # fmt: skip
        self.lake.add(gap, pl.DataFrame([row], schema=gap.schema))

    def build(self, workers: int = 1, rules: Rules = Rules(), **asked: Any) -> Built:  # noqa: B008
        with farm(None, workers) as (executor, at_once):
            return build(self.root, Wanted(**asked, rules=rules), executor, at_once)

    def bars(self, timeframe: str | None = None, symbol: str = "BTCUSDT") -> pl.DataFrame:
        rows = self.lake.rows(BAR, symbol=symbol).sort("timeframe", "time")
        return rows if timeframe is None else rows.filter(pl.col("timeframe") == timeframe)

    def values(self, timeframe: str, symbol: str = "BTCUSDT") -> pl.DataFrame:
        return self.bars(timeframe, symbol).select(*SCHEMA)

    def findings(self, check: str) -> pl.DataFrame:
        if not (self.path / "quality").exists():
            return pl.DataFrame(schema=DATASETS["quality"].schema)
        return self.lake.rows(DATASETS["quality"], check=check).sort("first_time")

    def version(self) -> int:
        return DeltaTable(f"{self.root}/bar").version()

    def assert_bars(
        self, fills: Sequence[Fill] | None = None, timeframes: Sequence[str] = USUAL, *, fill: bool = True
    ) -> None:
        """The table has the bars of all these trades at once, and no others."""
        fills = self.fills if fills is None else fills
        for symbol in {fill.symbol for fill in fills}:
            trades = trades_of(agg_trades([each for each in fills if each.symbol == symbol]))
            wanted = all_bars(trades, timeframes)
            for name in timeframes:
                truth = filled(wanted[name], TIMEFRAMES_US[name]) if fill else wanted[name]
                assert_frame_equal(self.values(name, symbol), truth, check_exact=True)
        rows = self.lake.rows(BAR)
        assert set(rows["timeframe"]) == set(timeframes)
        assert rows.select(BAR.key).is_unique().all()
        assert rows["source"].unique().to_list() == ["derived"]
        width = pl.col("timeframe").replace_strict(TIMEFRAMES_US, return_dtype=pl.Int64)
        assert (
            rows.select((pl.col("close_time") - pl.col("time")).dt.total_microseconds() == width - 1).to_series().all()
        )


def busy(
    first_id: int, at_s: float, count: int, *, seed: int = 0, symbol: str = "BTCUSDT", step_s: float = 97
) -> list[Fill]:
    """Trades at chance, every `step_s` or so; some minutes have none, times go back now and then."""
    chance = random.Random(seed or first_id)
    fills = []
    for number in range(count):
        at_s += chance.expovariate(1 / step_s)
        price, quantity = chance.randrange(900, 1100) / 100, chance.randrange(1, 5000) / 1000
        fills.append(Fill(first_id + number, round(at_s - (number % 5 == 0) * 0.5, 3), price, quantity, symbol=symbol))
    return fills


DAY_S = 86_400.0


def dropped(fills: Sequence[Fill], lateness_s: float) -> set[int]:
    """The ids of late trades by the text of ANALYTICS 1.4."""
    received = [fill for fill in fills if fill.lag_s is not None]
    late, watermark = set(), float("-inf")
    for fill in sorted(received, key=lambda fill: (fill.at_s + (fill.lag_s or 0), fill.id)):
        if watermark >= fill.at_s // 60 * 60 + 60 + lateness_s:
            late.add(fill.id)
        watermark = max(watermark, fill.at_s)
    return late


def straggling(count: int, step_s: float, symbol: str = "BTCUSDT") -> list[Fill]:
    """Trades of which some come minutes late, and some were backfilled."""
    chance = random.Random(count)
    return [
        replace(fill, lag_s=chance.choice([0.1] * 8 + [70.0, 400.0, 4000.0, None]))
        for fill in busy(1, 80_000, count, step_s=step_s, symbol=symbol)
    ]
