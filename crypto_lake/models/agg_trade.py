"""Aggregated trades: the fills of one taker order at one price, merged by the venue."""

from typing import Final

from msgspec import Struct, field

from crypto_lake.config import COIN_M, FUTURES, SPOT
from crypto_lake.models.dataset import (
    Archive,
    DecimalText,
    Dump,
    Id,
    Instant,
    Live,
    Poll,
    Request,
    Stream,
    Symbol,
    flag,
    integer,
    market,
    price,
    time,
)


class AggTradeBody(Struct, gc=False):
    """An element of REST aggTrades (PROTOCOLS C.3); the symbol is in the request."""

    agg_trade_id: Id = field(name="a")
    price: DecimalText = field(name="p")
    quantity: DecimalText = field(name="q")
    first_trade_id: Id = field(name="f")
    last_trade_id: Id = field(name="l")
    time: Instant = field(name="T")
    is_buyer_maker: bool = field(name="m")
    quantity_without_rpi: DecimalText | None = field(name="nq", default=None)


class AggTrade(AggTradeBody, tag_field="e", tag="aggTrade", kw_only=True, gc=False):
    """`<symbol>@aggTrade`, PROTOCOLS A.5."""

    event_time: Instant = field(name="E")
    symbol: Symbol = field(name="s")
    market_type: int | None = field(name="st", default=None)


FILE: Final = {
    "agg_trade_id": "agg_trade_id",
    "price": "price",
    "quantity": "quantity",
    "first_trade_id": "first_trade_id",
    "last_trade_id": "last_trade_id",
    "transact_time": "time",
    "is_buyer_maker": "is_buyer_maker",
}
SPOT_FILE: Final = {
    **{name: column for name, column in FILE.items() if column not in ("time", "is_buyer_maker")},
    "time": "time",
    "is_buyer_maker": "is_buyer_maker",
    "is_best_match": "",
}

AGG_TRADE = market(
    "agg_trade",
    "aggregated trades: fills of one taker order at one price",
    time("event_time", "when the venue made the message; null by REST and dump", nullable=True),
    integer("agg_trade_id", "consecutive per symbol"),
    price("price", "quote units"),
    price("quantity", "base units, RPI trades included"),
    price("quantity_without_rpi", "base units, without RPI trades; null where unknown", nullable=True),
    integer("first_trade_id", "first trade inside"),
    integer("last_trade_id", "last trade inside"),
    flag("is_buyer_maker", "true: the aggressor sold"),
    key=("venue", "symbol", "agg_trade_id"),
    order="agg_trade_id",
    sequence="agg_trade_id",
    live=Live(
        {FUTURES: Stream("market", "{symbol}@aggTrade"), SPOT: Stream("", "{symbol}@aggTrade")},
        AggTrade,
        pulse="{symbol}@markPrice@1s",
        first_word_s=600,  # small perpetuals trade once a minute: a minute without a trade is nothing
    ),
    is_fillable=True,
    poll=Poll(
        {FUTURES: Request("/fapi/v1/aggTrades", 20, reach_s=48 * 3600.0), SPOT: Request("/api/v3/aggTrades", 4)},
        AggTradeBody,
        from_id="fromId",
        at_most=1000,
    ),
    dump=Dump(
        {FUTURES: Archive("aggTrades", FILE), COIN_M: Archive("aggTrades", FILE), SPOT: Archive("aggTrades", SPOT_FILE)}
    ),
)
