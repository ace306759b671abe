"""Funding: what longs paid to shorts, at every funding."""

from typing import Final

from crypto_lake.config import COIN_M, FUTURES
from crypto_lake.models.dataset import Archive, Dump, market, price

FILE: Final = Archive(
    "fundingRate",
    {"calc_time": "time", "funding_interval_hours": "interval_hours", "last_funding_rate": "funding_rate"},
    periods=("monthly",),
)

FUNDING_RATE = market(
    "funding_rate",
    "funding as it was paid; `time` is the venue's, some milliseconds off the hour",
    price("funding_rate", "a fraction of the position's value; positive: longs paid"),
    price("mark_price", "quote units; null where the road does not say it", nullable=True),
    price("interval_hours", "hours between two fundings", nullable=True),
    key=("venue", "symbol", "time"),
    order="time",
    is_fillable=True,
    dump=Dump({FUTURES: FILE, COIN_M: FILE}),
)
