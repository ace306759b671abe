"""Mark price, index price and funding rate of perpetuals."""

from typing import Final

from msgspec import Struct, field

from crypto_lake.config import COIN_M, FUTURES
from crypto_lake.models.bar import KLINES
from crypto_lake.models.dataset import (
    Archive,
    DecimalText,
    Dump,
    Instant,
    InstantOrZero,
    Live,
    Stream,
    Symbol,
    market,
    price,
    time,
)


class MarkPrice(Struct, tag_field="e", tag="markPriceUpdate", gc=False):
    """`<symbol>@markPrice@1s`, `!markPrice@arr@1s`; `r` is empty for delivery contracts."""

    time: Instant = field(name="E")
    symbol: Symbol = field(name="s")
    mark_price: DecimalText = field(name="p")
    estimated_settle_price: DecimalText | None = field(name="P", default=None)
    index_price: DecimalText | None = field(name="i", default=None)
    funding_rate: DecimalText | None = field(name="r", default=None)
    next_funding_time: InstantOrZero | None = field(name="T", default=None)
    market_type: int | None = field(name="st", default=None)


# Of a minute's bar the close is what the price was at its end; no row looks ahead of its time.
NOTHING: Final = dict.fromkeys(KLINES, "")
MARK: Final = {**NOTHING, "close": "mark_price", "close_time": "time"}
INDEX: Final = {**NOTHING, "close": "index_price", "close_time": "time"}

MARK_PRICE = market(
    "mark_price",
    "mark price, index price and funding rate, every second",
    price("mark_price", "quote units"),
    price("index_price", "quote units; null where the venue sends none", nullable=True),
    price("estimated_settle_price", "quote units; of use near settlement only", nullable=True),
    price("funding_rate", "of the next funding, a fraction; null for delivery contracts", nullable=True),
    time("next_funding_time", "null for delivery contracts", nullable=True),
    key=("venue", "symbol", "time"),
    order="time",
    live=Live({FUTURES: Stream("market", "{symbol}@markPrice@1s", every="!markPrice@arr@1s")}, MarkPrice),
    dump=Dump(
        {
            FUTURES: Archive(
                "markPriceKlines",
                MARK,
                intervals=("1m",),
                beside=Archive("indexPriceKlines", INDEX, intervals=("1m",)),
            ),
            COIN_M: Archive(
                "markPriceKlines",
                MARK,
                intervals=("1m",),
                beside=Archive("indexPriceKlines", INDEX, intervals=("1m",), is_by_pair=True),
            ),
        }
    ),
)
