"""Symbols: what to collect, one row for every time that a symbol was added or removed."""

from typing import Final

from msgspec import Struct

from crypto_lake.config import COIN_M, CRYPTO, FOREX, FUTURES, SPOT, US_INDICES, US_OPTIONS, US_STOCKS
from crypto_lake.models.dataset import DATE, SYMBOL, VENUE, Dataset, flag, text, time

# What a symbol of a venue is unless somebody says otherwise.
ASSET_TYPE_OF: Final = {
    FUTURES: "perpetual",
    SPOT: "spot",
    COIN_M: "perpetual",
    US_STOCKS: "stock",
    US_OPTIONS: "option",
    US_INDICES: "index",
    CRYPTO: "crypto",
    FOREX: "forex",
}
ASSET_TYPES: Final = ("perpetual", "spot", "stock", "etf", "option", "index", "crypto", "forex")

SYMBOL_TABLE = Dataset(
    "symbol",
    "what to collect, append-only: the newest row of a venue's symbol is its state",
    (
        VENUE,
        SYMBOL,
        text("asset_type", ", ".join(ASSET_TYPES)),
        flag("is_active", "whether it is to be collected from then on"),
        time("added_time", "when it was added or removed, our clock"),
        DATE,
    ),
    key=("venue", "symbol", "added_time"),
    z_order=("symbol", "added_time"),
    partition="added_time",
)


class Named(Struct, frozen=True):
    """What the table says of a venue's symbols: those to be collected and those not to be, the oldest word first."""

    active: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
