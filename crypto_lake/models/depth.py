"""Changes of the order book, and the snapshots they attach to."""

import polars as pl
from msgspec import Raw, Struct, field

from crypto_lake.config import FUTURES, SPOT
from crypto_lake.models.dataset import (
    Chain,
    Id,
    Instant,
    Live,
    Poll,
    Request,
    Stream,
    Symbol,
    flag,
    integer,
    levels,
    market,
    time,
)


class Depth(Struct, tag_field="e", tag="depthUpdate", gc=False):
    """`<symbol>@depth@<speed>`, PROTOCOLS A.5 and B; spot has neither `T` nor `pu`."""

    event_time: Instant = field(name="E")
    symbol: Symbol = field(name="s")
    first_update_id: Id = field(name="U")
    final_update_id: Id = field(name="u")
    bids: Raw = field(name="b")
    asks: Raw = field(name="a")
    previous_update_id: Id | None = field(name="pu", default=None)
    time: Instant | None = field(name="T", default=None)
    market_type: int | None = field(name="st", default=None)


class DepthSnapshot(Struct, gc=False):
    """The body of REST depth; the symbol is in the request, spot has no times."""

    final_update_id: Id = field(name="lastUpdateId")
    bids: Raw = field(name="bids")
    asks: Raw = field(name="asks")
    event_time: Instant | None = field(name="E", default=None)
    time: Instant | None = field(name="T", default=None)


DEPTH = market(
    "depth",
    "changes of the order book, and snapshots; quantities are absolute, 0 deletes a level",
    time("event_time", "when the venue made the message; null where it does not say", nullable=True),
    integer("first_update_id", "first update inside; null in a snapshot", nullable=True),
    integer("final_update_id", "last update inside"),
    integer("previous_update_id", "final_update_id of the event before; null where the venue has none", nullable=True),
    flag("is_snapshot", "true: the whole book to its limit, from REST"),
    levels("bids", "changed levels, quote units and base units (COIN-M: contracts)"),
    levels("asks", "changed levels"),
    key=("venue", "symbol", "is_snapshot", "final_update_id"),
    order="final_update_id",
    within=("venue", "symbol", "is_snapshot"),
    sacrifice=2,  # most of the bytes, and a snapshot lets the book go on
    chain=Chain("first_update_id", "final_update_id", "previous_update_id", apart="is_snapshot"),
    live=Live({FUTURES: Stream("public", "{symbol}@depth@{speed}"), SPOT: Stream("", "{symbol}@depth@{speed}")}, Depth),
    poll=Poll(
        {
            FUTURES: Request("/fapi/v1/depth", 20, {"limit": "1000"}),
            SPOT: Request("/api/v3/depth", 250, {"limit": "5000"}),
        },
        DepthSnapshot,
    ),
    derived={"is_snapshot": pl.col("source") == "rest"},
)
