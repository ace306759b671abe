"""The ledger of official files: which were taken, and what became of them."""

from typing import Final

from crypto_lake.models.dataset import DATE, Dataset, integer, text, time

# States.
INGESTED: Final = "ingested"  # its rows are in the table
REPLACED: Final = "replaced"  # the venue has put another file into its place since
QUARANTINED: Final = "quarantined"  # it is not what it should be; no row of it is in the table

DUMP_FILE = Dataset(
    "dump_file",
    "ledger of downloaded archives, append-only: the newest row of a path is its state",
    (
        text("path", "in the bucket: data/futures/um/daily/aggTrades/..., us_stocks_sip/day_aggs_v1/..."),
        text("sha256", "of the file as it was, and as its .CHECKSUM says if it has one", nullable=True),
        text("etag", "as the server said", nullable=True),
        time("last_modified", "as the server said", nullable=True),
        integer("size", "bytes", nullable=True),
        integer("rows", "rows in it", nullable=True),
        time("first_time", "of its first row", nullable=True),
        time("last_time", "of its last row", nullable=True),
        text("state", "ingested, replaced or quarantined"),
        time("state_time", "when it came into this state, our clock"),
        integer("refused_rows", "lines that are no rows and stand in `rejected`", nullable=True),
        DATE,
    ),
    key=("path", "state_time"),
    z_order=("path", "state_time"),
    partition="state_time",
)
