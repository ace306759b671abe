"""Single trades."""

from typing import Final

import polars as pl
from msgspec import Struct, field

from crypto_lake.config import COIN_M, CRYPTO, FUTURES, SPOT, US_OPTIONS, US_STOCKS
from crypto_lake.models.dataset import (
    OPTION_COLUMNS,
    Archive,
    DecimalText,
    Dump,
    FlatKind,
    Id,
    Instant,
    Live,
    Stream,
    Symbol,
    flag,
    integer,
    market,
    price,
    text,
    time,
)


class Trade(Struct, tag_field="e", tag="trade", gc=False):
    """`<symbol>@trade`; not documented on USD-M, where `X` says what kind of fill it was (PROTOCOLS A.5)."""

    event_time: Instant = field(name="E")
    symbol: Symbol = field(name="s")
    trade_id: Id = field(name="t")
    price: DecimalText = field(name="p")
    quantity: DecimalText = field(name="q")
    time: Instant = field(name="T")
    is_buyer_maker: bool = field(name="m")
    fill: str | None = field(name="X", default=None)
    market_type: int | None = field(name="st", default=None)


# Of the quote quantity the venue's text is rounded; ours is the product on every road.
FILE: Final = {
    "id": "trade_id",
    "price": "price",
    "qty": "quantity",
    "quote_qty": "",
    "time": "time",
    "is_buyer_maker": "is_buyer_maker",
}
COIN_M_FILE: Final = {"base_qty" if name == "quote_qty" else name: column for name, column in FILE.items()}

# Flat files: times are nanoseconds since 1970, kept to the last digit beside `time`.
SIP: Final = {
    "ticker": "symbol",
    "conditions": "conditions",
    "correction": "correction",
    "exchange": "exchange",
    "price": "price",
    "sip_timestamp": "sip_timestamp",
    "size": "quantity",
}
STOCK_TRADES: Final = {
    **SIP,
    "id": "venue_trade_id",
    "participant_timestamp": "participant_timestamp",
    "sequence_number": "sequence_number",
    "tape": "tape",
    "trf_id": "trf_id",
    "trf_timestamp": "trf_timestamp",
}
CRYPTO_TRADES: Final = {
    "ticker": "symbol",
    "conditions": "conditions",
    "exchange": "exchange",
    "id": "venue_trade_id",
    "participant_timestamp": "participant_timestamp",
    "price": "price",
    "size": "quantity",
}

TRADE = market(
    "trade",
    "single trades",
    time("event_time", "when the venue made the message; null by REST and dump", nullable=True),
    integer("trade_id", "consecutive per symbol; of flat files day x 10^9 + the trade's place among its symbol's"),
    price("price", "quote units"),
    price("quantity", "base units"),
    price("quote_quantity", "price x quantity, quote units; null on COIN-M (contracts)", nullable=True),
    flag("is_buyer_maker", "true: the aggressor sold; null where the venue does not say", nullable=True),
    text("venue_trade_id", "flat files: the id that the exchange gave it, as it is written", nullable=True),
    integer("sequence_number", "flat files: rises per symbol and day, with holes", nullable=True),
    integer("exchange", "flat files: number of the exchange", nullable=True),
    text("conditions", "flat files: numbers of the conditions, separated by commas", nullable=True),
    integer("correction", "flat files: number of the kind of correction", nullable=True),
    integer("tape", "flat files: 1 NYSE, 2 other listings, 3 Nasdaq", nullable=True),
    integer("sip_timestamp", "flat files: when the SIP had it, ns since 1970", nullable=True),
    integer("participant_timestamp", "flat files: when the exchange made it, ns since 1970", nullable=True),
    integer("trf_id", "flat files: number of the trade reporting facility", nullable=True),
    integer("trf_timestamp", "flat files: when that facility had it, ns since 1970", nullable=True),
    *OPTION_COLUMNS,
    key=("venue", "symbol", "trade_id"),
    order="trade_id",
    sequence="trade_id",
    is_fillable=True,
    live=Live(
        {FUTURES: Stream("public", "{symbol}@trade"), SPOT: Stream("", "{symbol}@trade")},
        Trade,
        first_word_s=600,
        refuse={"not a print (X=NA)": pl.col("fill") == "NA"},
    ),
    dump=Dump(
        {
            FUTURES: Archive("trades", FILE),
            COIN_M: Archive("trades", COIN_M_FILE),
            SPOT: Archive("trades", {**FILE, "is_best_match": ""}),
        }
    ),
    flat={
        "us_stocks_sip/trades_v1": FlatKind(US_STOCKS, STOCK_TRADES),
        "us_options_opra/trades_v1": FlatKind(US_OPTIONS, SIP),
        "global_crypto/trades_v1": FlatKind(CRYPTO, CRYPTO_TRADES, calendar="24/7", zone="UTC"),
    },
    derived={"quote_quantity": pl.when(pl.col("venue") != COIN_M).then(pl.col("price") * pl.col("quantity"))},
)
