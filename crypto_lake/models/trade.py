"""Single trades."""

from typing import Final

import polars as pl
from msgspec import Struct, field

from crypto_lake.config import COIN_M, FUTURES, SPOT
from crypto_lake.models.dataset import (
    Archive,
    DecimalText,
    Dump,
    Id,
    Instant,
    Live,
    Stream,
    Symbol,
    flag,
    integer,
    market,
    price,
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

TRADE = market(
    "trade",
    "single trades",
    time("event_time", "when the venue made the message; null by REST and dump", nullable=True),
    integer("trade_id", "consecutive per symbol"),
    price("price", "quote units"),
    price("quantity", "base units"),
    price("quote_quantity", "price x quantity, quote units; null on COIN-M (contracts)", nullable=True),
    flag("is_buyer_maker", "true: the aggressor sold"),
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
    derived={"quote_quantity": pl.when(pl.col("venue") != COIN_M).then(pl.col("price") * pl.col("quantity"))},
)
