"""A lake to put rows into: trades whose ids are minutes, events of the book, bars, rows of gap and of the ledger."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from crypto_lake.models import DATASETS
from crypto_lake.processors.shape import shape
from crypto_lake.writers.delta import Lake

MIDNIGHT = datetime(2024, 1, 15, tzinfo=UTC)


def minute(number: float) -> datetime:
    """So many minutes after the first midnight."""
    return MIDNIGHT + timedelta(minutes=number)


class Tables:
    """Delta tables under one root; each `put` is a commit."""

    def __init__(self, root: Path) -> None:
        self.path = root
        self.root = str(root)
        self._commits = 0

    def put(self, name: str, *frames: pl.DataFrame) -> None:
        """Appends rows, a commit for each frame."""
        lake = Lake(self.root)
        lake.check(DATASETS[name])
        for frame in frames:
            self._commits += 1
            lake.append(DATASETS[name], frame, "test", start=0, end=self._commits)

    def trades(self, ids: Iterable[int], symbol: str = "BTCUSDT", **columns: Any) -> None:
        """Aggregated trades, id n in minute n."""
        self.put("agg_trade", agg_trades(list(ids), symbol, **columns))

    def events(self, links: Iterable[tuple[int, int, int]], **columns: Any) -> None:
        """Depth events of USD-M: what each follows, its first id, its last one; in minute `last`."""
        before, first, last = zip(*links, strict=True)
        rows = {
            "venue": "binance-futures",
            "symbol": "BTCUSDT",
            "time": [minute(n) for n in last],
            "received_time": [minute(n) for n in last],
            "source": "live",
            "first_update_id": first,
            "final_update_id": last,
            "previous_update_id": before,
            "bids": [[{"price": 1.0, "quantity": 1.0}]] * len(last),
            "asks": [[{"price": 2.0, "quantity": 1.0}]] * len(last),
        }
        self.put("depth", shape(DATASETS["depth"], pl.DataFrame(rows | columns)))

    def liquidations(self, minutes: Iterable[float]) -> None:
        """Orders at these minutes."""
        times = [minute(n) for n in minutes]
        rows = {
            **dict.fromkeys(("price", "average_price", "quantity", "last_filled_quantity", "filled_quantity"), 1.0),
            **dict.fromkeys(("order_type", "time_in_force", "status"), "X"),
            "venue": "binance-futures",
            "symbol": "BTCUSDT",
            "time": times,
            "event_time": times,
            "received_time": times,
            "source": "live",
            "side": "SELL",
        }
        self.put("liquidation", shape(DATASETS["liquidation"], pl.DataFrame(rows)))

    def gap(
        self,
        ids: tuple[int, int] | None,
        minutes: tuple[float, float | None],
        state: str = "open",
        **columns: Any,
    ) -> None:
        """A row of gap; its state came about at the first midnight and `at` seconds."""
        end = minutes[1]
        row = {
            "venue": "binance-futures",
            "symbol": "BTCUSDT",
            "dataset": "agg_trade",
            "first_id": ids[0] if ids else None,
            "last_id": ids[1] if ids else None,
            "start_time": minute(minutes[0]),
            "end_time": None if end is None else minute(end),
            "reason": "disconnect",
            "state": state,
            "filled_rows": 0,
            "state_time": MIDNIGHT + timedelta(seconds=columns.pop("at", 0)),
            "date": minute(minutes[0]).date(),
        }
        self.put("gap", pl.DataFrame([row | columns], schema=DATASETS["gap"].schema))

    def bars(self, minutes: Iterable[int], *, timeframe: str = "1m", origin: str = "kline", **columns: Any) -> None:
        """Bars of spot; each begins so many minutes after the first midnight."""
        self.put("bar", bars(list(minutes), timeframe=timeframe, origin=origin, **columns))

    def ledger(self, path: str, **columns: Any) -> None:
        """A row of the ledger of archives: one of January 2024 that is what it should be."""
        january = datetime(2024, 1, 1, tzinfo=UTC)
        row = {
            "path": path,
            "sha256": "ab" * 32,
            "etag": None,
            "last_modified": None,
            "size": 1,
            "rows": 1,
            "first_time": january,
            "last_time": january + timedelta(days=30, hours=23),
            "state": "ingested",
            "state_time": MIDNIGHT + timedelta(seconds=columns.pop("at", 0)),
            "date": MIDNIGHT.date(),
        }
        self.put("dump_file", pl.DataFrame([row | columns], schema=DATASETS["dump_file"].schema))


def bars(minutes: list[int], *, timeframe: str = "1m", origin: str = "kline", **columns: Any) -> pl.DataFrame:
    """Rows of bar: two trades of 1 each at 10, and one of them was bought."""
    rows = {
        "venue": "binance",
        "symbol": "BTCUSDT",
        "time": [minute(n) for n in minutes],
        "source": "dump" if origin == "kline" else "derived",
        "timeframe": timeframe,
        **dict.fromkeys(("open", "high", "low", "close", "taker_buy_quote_volume"), 10.0),
        "volume": 2.0,
        "quote_volume": 20.0,
        "count": 2,
        "taker_buy_volume": 1.0,
        "complete": True,
        "revision": 0,
        "origin": origin,
    }
    return shape(DATASETS["bar"], pl.DataFrame(rows | columns))


def agg_trades(ids: list[int], symbol: str, **columns: Any) -> pl.DataFrame:
    times = [minute(n) for n in ids]
    rows = {
        "venue": "binance-futures",
        "symbol": symbol,
        "time": times,
        "received_time": times,
        "source": "live",
        "event_time": times,
        "agg_trade_id": ids,
        "price": [100.0] * len(ids),
        "quantity": [2.0] * len(ids),
        "first_trade_id": ids,
        "last_trade_id": ids,
        "is_buyer_maker": True,
    }
    return shape(DATASETS["agg_trade"], pl.DataFrame(rows | columns))


@pytest.fixture
def lake(tmp_path: Path) -> Tables:
    """An empty root with no table."""
    return Tables(tmp_path / "tables")
