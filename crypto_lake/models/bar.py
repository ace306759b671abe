"""Bars: what was traded in an interval. Those of the venue (klines) and those made here stand in one table."""

from typing import Final

import polars as pl

from crypto_lake.config import COIN_M, CRYPTO, FOREX, FUTURES, SPOT, US_INDICES, US_OPTIONS, US_STOCKS
from crypto_lake.models.dataset import (
    OPTION_COLUMNS,
    Archive,
    Charts,
    Dump,
    FlatKind,
    flag,
    integer,
    market,
    price,
    text,
    time,
)

# How long a bar is, in microseconds.
TIMEFRAMES_US: Final[dict[str, int]] = {
    "1s": 1_000_000,
    "1m": 60_000_000,
    "5m": 300_000_000,
    "15m": 900_000_000,
    "1h": 3_600_000_000,
    "4h": 14_400_000_000,
    "1d": 86_400_000_000,
}

# Venues that never close.
AROUND_THE_CLOCK: Final = (FUTURES, SPOT, COIN_M, CRYPTO)

# Origins.
TRADES: Final = "trades"
KLINE: Final = "kline"
FLATFILE: Final = "flatfile"
YAHOO: Final = "yahoo"

KLINES: Final = {
    "open_time": "time",
    "open": "open",
    "high": "high",
    "low": "low",
    "close": "close",
    "volume": "volume",
    "close_time": "",
    "quote_volume": "quote_volume",
    "count": "count",
    "taker_buy_volume": "taker_buy_volume",
    "taker_buy_quote_volume": "taker_buy_quote_volume",
    "ignore": "",
}
# Flat files of aggregates: open, close, high, low, in this order; those of indices have no volume.
INDEX_AGGS: Final = {
    "ticker": "symbol",
    "open": "open",
    "close": "close",
    "high": "high",
    "low": "low",
    "window_start": "time",
}
AGGS: Final = {**INDEX_AGGS, "volume": "volume", "transactions": "count"}
# Folder, venue, columns, calendar and zone of the day. What trades all week has its days in UTC.
FLAT_PLACES: Final = (
    ("us_stocks_sip", US_STOCKS, AGGS, "XNYS", "America/New_York"),
    ("us_options_opra", US_OPTIONS, AGGS, "XNYS", "America/New_York"),
    ("us_indices", US_INDICES, INDEX_AGGS, "XNYS", "America/New_York"),
    ("global_crypto", CRYPTO, AGGS, "24/7", "UTC"),
    ("global_forex", FOREX, AGGS, "24/5", "UTC"),
)
LONGER: Final = tuple(name for name in TIMEFRAMES_US if name != "1s")

BAR = market(
    "bar",
    "bars; `time` is the open of the interval",
    text("timeframe", "1s, 1m, 5m, 15m, 1h, 4h or 1d"),
    time("close_time", "the last microsecond of the interval"),
    price("open", "first price, quote units"),
    price("high", "highest price"),
    price("low", "lowest price"),
    price("close", "last price"),
    price("volume", "base units; COIN-M: contracts; null of indices", nullable=True),
    price("quote_volume", "quote units; COIN-M: base units", nullable=True),
    integer("count", "trades", nullable=True),
    price("taker_buy_volume", "of it bought by the aggressor", nullable=True),
    price("taker_buy_quote_volume", "of it bought by the aggressor", nullable=True),
    flag("complete", "false when a recorded gap overlaps the interval"),
    integer("revision", "how often it was made again; a revised bar replaces its row"),
    text("origin", "trades (made here), kline (the venue's), flatfile or yahoo"),
    *OPTION_COLUMNS,
    key=("venue", "symbol", "timeframe", "time", "origin"),
    order="time",
    within=("venue", "symbol", "timeframe", "origin"),
    is_fillable=True,
    layer="silver",
    dump=Dump(
        {
            FUTURES: Archive("klines", KLINES, intervals=LONGER),
            COIN_M: Archive("klines", KLINES, intervals=LONGER),
            SPOT: Archive("klines", KLINES, intervals=tuple(TIMEFRAMES_US)),
        },
        says={"complete": True, "revision": 0, "origin": KLINE},
    ),
    flat={
        f"{folder}/{name}": FlatKind(
            venue,
            columns,
            says={"complete": True, "revision": 0, "origin": FLATFILE},
            timeframe=timeframe,
            calendar=calendar,
            zone=zone,
        )
        for folder, venue, columns, calendar, zone in FLAT_PLACES
        for name, timeframe in (("day_aggs_v1", "1d"), ("minute_aggs_v1", "1m"))
    },
    charts=Charts((US_STOCKS, US_INDICES, CRYPTO, FOREX), says={"complete": True, "revision": 0, "origin": YAHOO}),
    derived={
        "close_time": pl.col("time")
        + pl.duration(microseconds=pl.col("timeframe").replace_strict(TIMEFRAMES_US, return_dtype=pl.Int64) - 1)
    },
)
