"""Findings: what the checks saw, in rows that arrived and in tables at rest (ANALYTICS 5)."""

from crypto_lake.models.dataset import DATE, SYMBOL, VENUE, Dataset, integer, price, text, time

QUALITY = Dataset(
    "quality",
    "findings of the checks, one row each",
    (
        VENUE,
        SYMBOL,
        text("dataset", "the table that was checked"),
        text("check", "the name of the check (ANALYTICS 5.1 and 5.3)"),
        text("severity", "info, warn or error"),
        integer("row", "0-based place of the row in the checked input; null where it has none", nullable=True),
        time("first_time", "the first fact that the finding covers", nullable=True),
        time("last_time", "the last one", nullable=True),
        integer("first_id", "the first id that it covers; null without ids", nullable=True),
        integer("last_id", "the last one, inclusive", nullable=True),
        price("observed", "what was seen, in the unit of the check", nullable=True),
        price("threshold", "what would have been right at the most", nullable=True),
        time("found_time", "when it was found, our clock"),
        DATE,
    ),
    key=(),
    z_order=("symbol", "found_time"),
    partition="found_time",
    layer="silver",
)
