"""Liquidations: a sample, at most one order per symbol and second (PROTOCOLS A.5), so sums are a floor."""

from typing import Final

from msgspec import Struct, field

from crypto_lake.config import COIN_M, FUTURES
from crypto_lake.models.dataset import (
    Archive,
    DecimalText,
    Dump,
    Instant,
    Live,
    Stream,
    Symbol,
    market,
    price,
    text,
    time,
)


class ForceOrder(Struct, gc=False):
    """The order inside a forceOrder event."""

    symbol: Symbol = field(name="s")
    side: str = field(name="S")
    order_type: str = field(name="o")
    time_in_force: str = field(name="f")
    quantity: DecimalText = field(name="q")
    price: DecimalText = field(name="p")
    average_price: DecimalText = field(name="ap")
    status: str = field(name="X")
    last_filled_quantity: DecimalText = field(name="l")
    filled_quantity: DecimalText = field(name="z")
    time: Instant = field(name="T")
    market_type: int | None = field(name="st", default=None)


class Liquidation(Struct, tag_field="e", tag="forceOrder", gc=False):
    """`!forceOrder@arr` and `<symbol>@forceOrder`: single objects in spite of the name; `st` inside or outside."""

    event_time: Instant = field(name="E")
    order: ForceOrder = field(name="o")
    market_type: int | None = field(name="st", default=None)


FILE: Final = {
    "time": "time",
    "side": "side",
    "order_type": "order_type",
    "time_in_force": "time_in_force",
    "original_quantity": "quantity",
    "price": "price",
    "average_price": "average_price",
    "order_status": "status",
    "last_fill_quantity": "last_filled_quantity",
    "accumulated_fill_quantity": "filled_quantity",
}

LIQUIDATION = market(
    "liquidation",
    "liquidation orders; a sample of at most one per symbol and second",
    time("event_time", "when the venue made the message", nullable=True),
    text("side", "of the liquidation order: SELL closed a long, BUY a short"),
    text("order_type", "LIMIT, MARKET"),
    text("time_in_force", "IOC, ..."),
    price("price", "order price, quote units"),
    price("average_price", "average fill price, quote units"),
    price("quantity", "original quantity, base units (COIN-M: contracts)"),
    price("last_filled_quantity", "of the last fill"),
    price("filled_quantity", "filled so far"),
    text("status", "FILLED, ..."),
    key=("venue", "symbol", "time", "side", "price", "quantity"),
    order="time",
    live=Live(
        {FUTURES: Stream("market", "{symbol}@forceOrder", every="!forceOrder@arr")},
        Liquidation,
        is_busy=False,
        pulse="{symbol}@markPrice@1s",
        first_word_s=None,
    ),
    # Of USD-M there are no files any more; those of COIN-M hold every row twice (PROTOCOLS D.7).
    dump=Dump({COIN_M: Archive("liquidationSnapshot", FILE, periods=("daily",))}),
)
