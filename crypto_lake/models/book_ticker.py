"""The best bid and ask, at every change."""

from typing import Final, Literal

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
    integer,
    market,
    price,
    time,
)


class BookTicker(Struct, gc=False):
    """`<symbol>@bookTicker`, PROTOCOLS A.5; spot sends neither the event's name nor a time."""

    symbol: Symbol = field(name="s")
    update_id: Id = field(name="u")
    bid_price: DecimalText = field(name="b")
    bid_quantity: DecimalText = field(name="B")
    ask_price: DecimalText = field(name="a")
    ask_quantity: DecimalText = field(name="A")
    event: Literal["bookTicker"] | None = field(name="e", default=None)
    event_time: Instant | None = field(name="E", default=None)
    time: Instant | None = field(name="T", default=None)
    market_type: int | None = field(name="st", default=None)


FILE: Final = Archive(
    "bookTicker",
    {
        "update_id": "update_id",
        "best_bid_price": "bid_price",
        "best_bid_qty": "bid_quantity",
        "best_ask_price": "ask_price",
        "best_ask_qty": "ask_quantity",
        "transaction_time": "time",
        "event_time": "event_time",
    },
)

BOOK_TICKER = market(
    "book_ticker",
    "best bid and ask at every change; on spot `time` is when it reached us, for the venue sends none",
    time("event_time", "when the venue made the message; null on spot", nullable=True),
    integer("update_id", "order-book update id, the one of depth"),
    price("bid_price", "quote units"),
    price("bid_quantity", "base units"),
    price("ask_price", "quote units"),
    price("ask_quantity", "base units"),
    key=("venue", "symbol", "update_id"),
    order="update_id",
    sacrifice=1,  # depth says the same, and more
    live=Live({FUTURES: Stream("public", "{symbol}@bookTicker"), SPOT: Stream("", "{symbol}@bookTicker")}, BookTicker),
    dump=Dump({FUTURES: FILE, COIN_M: FILE}),
)
