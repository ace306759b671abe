"""Gaps: what is missing from a dataset, one row for every state a hole was in.

The newest row of a key is the state of its hole. An `open` or `unfillable` row with ids names exactly ids that the
table lacks: when a part of a hole is filled, it divides into the parts that are filled and those that are not, each
under its own `first_id`. Rows without ids are times in which nobody delivered. Where a dataset has ids, these are
`filled` with the first row from behind them: by its id it says what is missing, in rows of their own.
"""

from typing import Final

from crypto_lake.models.dataset import DATE, SYMBOL, VENUE, Dataset, integer, text, time

# States.
OPEN: Final = "open"
FILLED: Final = "filled"
UNFILLABLE: Final = "unfillable"

# Reasons.
DISCONNECT: Final = "disconnect"
SEQUENCE: Final = "sequence"  # every connection was there, and the ids are not
RESTART: Final = "restart"
SILENCE: Final = "silence"
NOT_AT_VENUE: Final = "venue"  # the venue has no row under these ids
OVERLOAD: Final = "overload"  # set aside by us, in the order that the load policy fixes

GAP = Dataset(
    "gap",
    "holes in other tables, append-only: the newest row of a key is its state",
    (
        VENUE,
        SYMBOL,
        text("dataset", "the table with the hole"),
        integer("first_id", "first missing id; null where the dataset has no ids", nullable=True),
        integer("last_id", "last missing id, inclusive", nullable=True),
        time("start_time", "the last fact before the hole"),
        time("end_time", "the first fact behind it; null while it lasts", nullable=True),
        text("reason", "disconnect, sequence, restart, silence, venue or overload"),
        text("state", "open, filled or unfillable (no road leads to these rows any more)"),
        integer("filled_rows", "rows that came later"),
        time("state_time", "when it came into this state"),
        DATE,
    ),
    key=("venue", "dataset", "symbol", "first_id", "start_time"),
    z_order=("symbol", "start_time"),
    partition="start_time",
)
