"""Open interest: contracts that are held, every five minutes."""

from typing import Final

from crypto_lake.config import COIN_M, FUTURES
from crypto_lake.models.dataset import Archive, Dump, market, price

FILE: Final = Archive(
    "metrics",
    {
        "create_time": "time",
        "symbol": "",
        "sum_open_interest": "open_interest",
        "sum_open_interest_value": "open_interest_value",
        "count_toptrader_long_short_ratio": "",
        "sum_toptrader_long_short_ratio": "",
        "count_long_short_ratio": "",
        "sum_taker_long_short_vol_ratio": "",
    },
    periods=("daily",),
)

OPEN_INTEREST = market(
    "open_interest",
    "open interest, every five minutes",
    price("open_interest", "base units; COIN-M: contracts"),
    price("open_interest_value", "quote units; COIN-M: base units", nullable=True),
    key=("venue", "symbol", "time"),
    order="time",
    is_fillable=True,
    dump=Dump({FUTURES: FILE, COIN_M: FILE}),
)
