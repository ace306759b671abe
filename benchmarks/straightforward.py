"""The pipeline one writes first: a dataclass per message, a frame every 2,000 rows, a Delta commit per frame.

It stands beside ours in the bench. It is written as its users write it, without handicaps: the standard JSON parser,
typed dataclasses, Polars and deltalake with their defaults.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl
from deltalake import write_deltalake

FLUSH_ROWS = 2_000


@dataclass
class AggTrade:
    symbol: str
    time: datetime
    event_time: datetime
    agg_trade_id: int
    price: float
    quantity: float
    first_trade_id: int
    last_trade_id: int
    is_buyer_maker: bool
    date: str


@dataclass
class Level:
    price: float
    quantity: float


@dataclass
class Depth:
    symbol: str
    time: datetime
    event_time: datetime
    first_update_id: int
    final_update_id: int
    previous_update_id: int
    bids: list[Level]
    asks: list[Level]
    date: str


@dataclass
class Liquidation:
    symbol: str
    time: datetime
    event_time: datetime
    side: str
    order_type: str
    time_in_force: str
    price: float
    average_price: float
    quantity: float
    status: str
    last_filled_quantity: float
    filled_quantity: float
    date: str


def instant(millis: int) -> datetime:
    return datetime.fromtimestamp(millis / 1000, UTC)


def agg_trade(data: dict[str, Any]) -> AggTrade:
    time = instant(data["T"])
    return AggTrade(
        symbol=data["s"],
        time=time,
        event_time=instant(data["E"]),
        agg_trade_id=data["a"],
        price=float(data["p"]),
        quantity=float(data["q"]),
        first_trade_id=data["f"],
        last_trade_id=data["l"],
        is_buyer_maker=data["m"],
        date=time.date().isoformat(),
    )


def depth(data: dict[str, Any]) -> Depth:
    time = instant(data["T"])
    return Depth(
        symbol=data["s"],
        time=time,
        event_time=instant(data["E"]),
        first_update_id=data["U"],
        final_update_id=data["u"],
        previous_update_id=data["pu"],
        bids=[Level(float(price), float(quantity)) for price, quantity in data["b"]],
        asks=[Level(float(price), float(quantity)) for price, quantity in data["a"]],
        date=time.date().isoformat(),
    )


def liquidation(data: dict[str, Any]) -> Liquidation:
    order = data["o"]
    time = instant(order["T"])
    return Liquidation(
        symbol=order["s"],
        time=time,
        event_time=instant(data["E"]),
        side=order["S"],
        order_type=order["o"],
        time_in_force=order["f"],
        price=float(order["p"]),
        average_price=float(order["ap"]),
        quantity=float(order["q"]),
        status=order["X"],
        last_filled_quantity=float(order["l"]),
        filled_quantity=float(order["z"]),
        date=time.date().isoformat(),
    )


MODELS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "aggTrade": agg_trade,
    "depthUpdate": depth,
    "forceOrder": liquidation,
}


def level_dicts(pairs: list[list[str]]) -> list[dict[str, float]]:
    return [{"price": float(price), "quantity": float(quantity)} for price, quantity in pairs]


def depth_with_dicts(data: dict[str, Any]) -> Depth:
    """For `ingest_tuned`: a dictionary per level is what Polars reads fastest."""
    event: Any = depth({**data, "b": (), "a": ()})
    event.bids, event.asks = level_dicts(data["b"]), level_dicts(data["a"])
    return event  # type: ignore[no-any-return]


def ingest(payloads: Iterable[bytes], root: str) -> None:
    """Every message into the table of its event type under `root`."""
    _ingest(payloads, root, MODELS, pl.DataFrame)


def ingest_tuned(payloads: Iterable[bytes], root: str) -> None:
    """The same after its user has met a profiler: Polars takes dataclasses apart slowly, so it gets dictionaries."""
    _ingest(
        payloads, root, {**MODELS, "depthUpdate": depth_with_dicts}, lambda rows: pl.DataFrame(list(map(vars, rows)))
    )


def _ingest(
    payloads: Iterable[bytes],
    root: str,
    models: dict[str, Callable[[dict[str, Any]], Any]],
    frame: Callable[[list[Any]], pl.DataFrame],
) -> None:
    waiting: dict[str, list[Any]] = {name: [] for name in models}
    for payload in payloads:
        data = json.loads(payload)["data"]
        rows = waiting[data["e"]]
        rows.append(models[data["e"]](data))
        if len(rows) >= FLUSH_ROWS:
            flush(frame(rows), f"{root}/{data['e']}")
            rows.clear()
    for name, rows in waiting.items():
        if rows:
            flush(frame(rows), f"{root}/{name}")


def flush(rows: pl.DataFrame, uri: str) -> None:
    write_deltalake(uri, rows, mode="append", partition_by=["date"])
