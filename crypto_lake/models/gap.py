"""Gaps: what is missing from a dataset, one row for every state a hole was in."""

from crypto_lake.models.dataset import DATE, SYMBOL, VENUE, Dataset, integer, text, time

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
        text("reason", "disconnect, sequence, restart, silence or venue"),
        text("state", "open, filled or unfillable"),
        integer("filled_rows", "rows that came later"),
        time("state_time", "when it came into this state"),
        DATE,
    ),
    key=("venue", "dataset", "symbol", "first_id", "start_time"),
    z_order=("symbol", "start_time"),
    partition="start_time",
)
