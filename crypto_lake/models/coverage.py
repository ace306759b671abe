"""Coverage: what a day of a symbol holds and lacks, one row for every time it was looked at."""

from typing import Final

from crypto_lake.models.dataset import DATE, SYMBOL, VENUE, Dataset, integer, price, text, time

# Verdicts.
COMPLETE: Final = "complete"
INCOMPLETE: Final = "incomplete"
DIFFERS: Final = "differs"
UNVERIFIABLE: Final = "unverifiable"

# A flat file has all symbols of a venue: its certificate is one row, about all of them.
EVERY_SYMBOL: Final = "*"

COVERAGE = Dataset(
    "coverage",
    "the condition of days, append-only: one row per check of a day",
    (
        VENUE,
        SYMBOL,
        time("time", "the first instant of the day that is covered, UTC"),
        text("dataset", "the table that was checked"),
        integer("first_id", "first id held on the day; null without ids", nullable=True),
        integer("last_id", "last id held on the day", nullable=True),
        integer("rows", "rows held"),
        integer("missing_rows", "rows known to be missing; null where nothing says how many", nullable=True),
        integer("repaired_rows", "rows that came later than live"),
        price("downtime_s", "seconds of the day in which nobody delivered"),
        text("dump_sha256", "of the official dump compared with; null without one", nullable=True),
        integer("dump_rows", "rows in that dump", nullable=True),
        integer("dump_missing_rows", "rows that we hold and the dump lacks", nullable=True),
        integer("differing_rows", "rows under one key that differ", nullable=True),
        text("verdict", "complete, incomplete, differs or unverifiable"),
        time("checked_time", "when it was looked at, our clock"),
        text("timeframe", "of bars out of flat files, which are covered file by file", nullable=True),
        DATE,
    ),
    key=("venue", "dataset", "symbol", "date", "timeframe", "checked_time"),
    z_order=("symbol", "time"),
    layer="silver",
)
