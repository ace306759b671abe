"""The condition of a day (ANALYTICS 5.4): pending, missing, degraded or available."""

from collections.abc import Collection
from datetime import date, datetime, timedelta
from typing import Final

import polars as pl

from crypto_lake.models import Dataset
from crypto_lake.models.gap import NOT_AT_VENUE
from crypto_lake.processors.sequence import by_symbol
from crypto_lake.query.days import DAY, midnight
from crypto_lake.query.findings import Place
from crypto_lake.query.holes import Missing

PENDING: Final = "pending"
MISSING: Final = "missing"
DEGRADED: Final = "degraded"
AVAILABLE: Final = "available"

# The venue publishes a day's dump within this time after its end; until then a fillable day may still be filled.
DUMP_WITHIN: Final = timedelta(hours=48)
REJECTED_SHARE: Final = 0.001
WITHIN: Final = ["venue", "symbol"]


def conditions(
    dataset: Dataset,
    days: pl.DataFrame,
    found: Missing,
    *,
    spoilt: Collection[Place],
    rejected: pl.DataFrame,
    now: datetime,
) -> pl.DataFrame:
    """`days` (profiles) with a column `condition`; days without a row between two that have some are added.

    Venues that come in flat files have a line for all symbols, and days on which nobody trades: none is added for them
    (which file is missing stands in `coverage`), and what spoils a day of one symbol spoils it for the line.
    `rejected` has venue, date and count: a rejected message names no symbol for certain, so it speaks of the venue.
    """
    whole = _with_days_between(dataset, days)
    spoilt_files = {(venue, day) for name, venue, _, day in spoilt if name == dataset.name and venue in dataset.by_file}
    open_gaps = found.known.filter(pl.col("reason") != NOT_AT_VENUE).select(
        *WITHIN, "start_time", pl.col("end_time").fill_null(now)
    )
    holed = _days_of(open_gaps)
    bad_days = _refused_days(days, rejected) | spoilt_files
    column = [
        _condition(
            dataset,
            row["date"],
            has_rows=bool(row["rows"]),
            is_holed=not holed.isdisjoint({(row["venue"], each, row["date"]) for each in (row["symbol"], "*")}),
            is_spoilt=any(
                (dataset.name, *place, row["date"]) in spoilt
                for place in ((row["venue"], row["symbol"]), (row["venue"], ""), ("", ""))
            )
            or (row["venue"], row["date"]) in bad_days,
            now=now,
        )
        for row in whole.select(*WITHIN, "date", "rows").iter_rows(named=True)
    ]
    return whole.with_columns(pl.Series("condition", column, dtype=pl.String))


def _condition(dataset: Dataset, day: date, *, has_rows: bool, is_holed: bool, is_spoilt: bool, now: datetime) -> str:
    end = midnight(day) + DAY
    if now < end:
        return PENDING
    may_be_filled = dataset.is_fillable and now < end + DUMP_WITHIN
    if may_be_filled and (is_holed or not has_rows):
        return PENDING
    if not has_rows:
        return MISSING
    return DEGRADED if is_holed or is_spoilt else AVAILABLE


def _with_days_between(dataset: Dataset, days: pl.DataFrame) -> pl.DataFrame:
    files = days.filter(~by_symbol(dataset))
    spans = (
        days.filter(by_symbol(dataset))
        .group_by(WITHIN)
        .agg(pl.col("date").min().alias("first"), pl.col("date").max().alias("last"))
    )
    every = spans.select(*WITHIN, pl.date_ranges("first", "last").alias("date")).explode("date")
    both = every.join(days, on=[*WITHIN, "date"], how="left", nulls_equal=True)
    filled = both.with_columns(pl.col("rows").fill_null(0), pl.col("dataset").fill_null(pl.col("dataset").max()))
    return pl.concat([filled.select(days.columns), files]).sort(*WITHIN, "date")


def _days_of(spans: pl.DataFrame) -> set[tuple[str, str, date]]:
    days = pl.date_ranges(pl.col("start_time").dt.date(), pl.max_horizontal("start_time", "end_time").dt.date())
    return set(spans.select(*WITHIN, days.alias("date")).explode("date").iter_rows())


def _refused_days(days: pl.DataFrame, rejected: pl.DataFrame) -> set[tuple[str, date]]:
    held = days.group_by("venue", "date").agg(pl.col("rows").sum())
    both = rejected.join(held, on=["venue", "date"], how="inner")
    bad = both.filter(pl.col("count") > REJECTED_SHARE * (pl.col("count") + pl.col("rows")))
    return set(bad.select("venue", "date").iter_rows())
