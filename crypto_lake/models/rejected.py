"""Rejected messages: what did not fit its dataset, as it was received."""

from crypto_lake.models.dataset import DATE, VENUE, Dataset, text, time

REJECTED = Dataset(
    "rejected",
    "messages that do not fit their dataset, with their bytes",
    (
        VENUE,
        text("dataset", "the table it was meant for"),
        text("reason", "what is wrong with it"),
        text("payload", "as received; bytes that are no UTF-8 as \\xNN"),
        time("received_time", "when it reached us"),
        DATE,
    ),
    key=(),
    z_order=("dataset", "received_time"),
    partition="received_time",
)
