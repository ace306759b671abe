"""Nothing but decoding: msgspec into typed structs, every level a pair of floats, and the result is dropped."""

from collections.abc import Iterable

import msgspec
from msgspec import Struct, field

Level = tuple[float, float]


class AggTrade(Struct, tag_field="e", tag="aggTrade", gc=False):
    event_time: int = field(name="E")
    symbol: str = field(name="s")
    agg_trade_id: int = field(name="a")
    price: float = field(name="p")
    quantity: float = field(name="q")
    first_trade_id: int = field(name="f")
    last_trade_id: int = field(name="l")
    time: int = field(name="T")
    is_buyer_maker: bool = field(name="m")


class Depth(Struct, tag_field="e", tag="depthUpdate", gc=False):
    event_time: int = field(name="E")
    time: int = field(name="T")
    symbol: str = field(name="s")
    first_update_id: int = field(name="U")
    final_update_id: int = field(name="u")
    previous_update_id: int = field(name="pu")
    bids: list[Level] = field(name="b")
    asks: list[Level] = field(name="a")


class Order(Struct, gc=False):
    symbol: str = field(name="s")
    side: str = field(name="S")
    order_type: str = field(name="o")
    time_in_force: str = field(name="f")
    quantity: float = field(name="q")
    price: float = field(name="p")
    average_price: float = field(name="ap")
    status: str = field(name="X")
    last_filled_quantity: float = field(name="l")
    filled_quantity: float = field(name="z")
    time: int = field(name="T")


class Liquidation(Struct, tag_field="e", tag="forceOrder", gc=False):
    event_time: int = field(name="E")
    order: Order = field(name="o")


class Combined(Struct, gc=False):
    stream: str
    data: AggTrade | Depth | Liquidation


def decode_all(payloads: Iterable[bytes]) -> None:
    """Decodes each payload. Decimal strings become floats on the way (`strict=False`)."""
    decode = msgspec.json.Decoder(Combined, strict=False).decode
    for payload in payloads:
        decode(payload)
