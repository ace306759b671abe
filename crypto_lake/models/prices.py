"""Prices: the rolling 24 hours of every symbol, asked for at an interval."""

import polars as pl
from msgspec import Struct, field

from crypto_lake.config import FUTURES, SPOT
from crypto_lake.models.dataset import (
    Count,
    DecimalText,
    Id,
    Instant,
    Poll,
    Request,
    Symbol,
    integer,
    market,
    price,
    time,
)


class Ticker(Struct, gc=False):
    """An element of REST ticker/24hr, PROTOCOLS C.4; spot has more, which we leave."""

    symbol: Symbol
    time: Instant = field(name="closeTime")
    price_change: DecimalText = field(name="priceChange")
    price_change_percent: DecimalText = field(name="priceChangePercent")
    weighted_average_price: DecimalText = field(name="weightedAvgPrice")
    last_price: DecimalText = field(name="lastPrice")
    last_quantity: DecimalText = field(name="lastQty")
    open_price: DecimalText = field(name="openPrice")
    high_price: DecimalText = field(name="highPrice")
    low_price: DecimalText = field(name="lowPrice")
    volume: DecimalText
    quote_volume: DecimalText = field(name="quoteVolume")
    open_time: Instant = field(name="openTime")
    first_trade_id: Id = field(name="firstId")
    last_trade_id: Id = field(name="lastId")
    trade_count: Count = field(name="count")


PRICES = market(
    "prices",
    "24-hour ticker of every symbol; `time` is the close of its window",
    price("price_change", "quote units, over the window"),
    price("price_change_percent", "percent"),
    price("weighted_average_price", "quote units"),
    price("last_price", "quote units"),
    price("last_quantity", "base units"),
    price("open_price", "quote units"),
    price("high_price", "quote units"),
    price("low_price", "quote units"),
    price("volume", "base units"),
    price("quote_volume", "quote units"),
    time("open_time", "begin of the window"),
    time("close_time", "end of the window"),
    integer("first_trade_id", "-1 when there was no trade"),
    integer("last_trade_id", "-1 when there was no trade"),
    integer("trade_count", "trades in the window"),
    key=("venue", "symbol", "time"),
    order="time",
    poll=Poll({FUTURES: Request("/fapi/v1/ticker/24hr", 40), SPOT: Request("/api/v3/ticker/24hr", 80)}, Ticker),
    derived={"close_time": pl.col("time")},
)
