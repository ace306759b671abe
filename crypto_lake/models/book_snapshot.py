"""Books at regular intervals, rebuilt from changes of depth."""

from crypto_lake.models.dataset import integer, levels, market

BOOK_SNAPSHOT = market(
    "book_snapshot",
    "the best levels of the book, the last one of each interval; `time` is that of the last change inside",
    integer("update_id", "final_update_id of the last change inside"),
    levels("bids", "best levels, the highest price first; quote units and base units (COIN-M: contracts)"),
    levels("asks", "best levels, the lowest price first"),
    key=("venue", "symbol", "time", "update_id"),
    order="update_id",
    layer="silver",
)
