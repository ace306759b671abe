"""Certificates: of days that were taken or compared the holes are noted, and what they are worth in `coverage`."""

from datetime import date, datetime
from functools import cache
from typing import Final

import polars as pl
from deltalake.exceptions import DeltaError

from crypto_lake.backfill.plan import days_in, mark_name
from crypto_lake.backfill.settle import IsTaken, settle
from crypto_lake.models import Dataset
from crypto_lake.models.bucket import DAY
from crypto_lake.models.coverage import COVERAGE
from crypto_lake.models.gap import GAP
from crypto_lake.query.coverage import coverage, held_runs
from crypto_lake.query.held import ON_DAY
from crypto_lake.query.source import find
from crypto_lake.writers import CommitFailed
from crypto_lake.writers.bulk import marked
from crypto_lake.writers.delta import Lake, reason

# What a certificate says besides what the archive says.
JUDGED: Final = ("missing_rows", "verdict")


def certify(lake: Lake, dataset: Dataset, facts: pl.DataFrame, *, now: datetime) -> pl.DataFrame:
    """Settles the holes of the days in `facts` (columns `query.coverage.FACTS`, of one venue), and certifies them.

    Returns the rows that it appends to `coverage` about these days; the days beside them get a new certificate when
    theirs is not true any more. Made again after a crash it changes no state; a day only has one more row for one more
    look. Raises `CommitFailed`.
    """
    if facts.is_empty():
        return pl.DataFrame(schema=COVERAGE.schema)
    try:
        return _certify(lake, dataset, facts, now)
    except (DeltaError, OSError, pl.exceptions.PolarsError) as error:
        raise CommitFailed(f"{lake.uri(dataset)}: {reason(error)}") from error


def _certify(lake: Lake, dataset: Dataset, facts: pl.DataFrame, now: datetime) -> pl.DataFrame:
    venue = str(facts["venue"][0])
    days = _days(facts)
    first, last = min(map(min, days.values())), max(map(max, days.values()))
    held = held_runs(lake.root, dataset, symbols=sorted(days), start=first, end=last).filter(pl.col("venue") == venue)
    is_taken = _by_marks(lake, dataset, venue)
    lake.add(GAP, settle(lake.root, dataset, held, venue=venue, days=days, is_taken=is_taken, now=now))
    near = first - DAY, last + DAY
    seen = coverage(
        dataset.name, symbols=sorted(days), start=near[0], end=near[1], root=lake.root, now=now, facts=facts
    )
    rows = seen.join(facts, on=ON_DAY, how="semi")
    lake.add(COVERAGE, pl.concat([rows, _outdated(lake, seen.join(facts, on=ON_DAY, how="anti"), near)]))
    return rows


def _outdated(lake: Lake, seen: pl.DataFrame, near: tuple[date, date]) -> pl.DataFrame:
    """Of days as they are now those whose certificate says something else.

    A hole at midnight is not to be seen before the day on its other side has come.
    """
    source = find(lake.root, COVERAGE)
    if source is None:
        return seen.clear()
    of_day = [*ON_DAY, "dataset"]
    noted = source.scan(*near).drop_nulls("dump_sha256").select(*of_day, *JUDGED, "checked_time").collect()
    newest = noted.sort("checked_time").unique(of_day, keep="last").drop("checked_time")
    others = seen.join(newest, on=of_day, how="semi")
    return others.join(newest, on=newest.columns, how="anti", nulls_equal=True)


def _days(facts: pl.DataFrame) -> dict[str, set[date]]:
    return {str(symbol): set(part["date"]) for (symbol,), part in facts.group_by("symbol")}


def _by_marks(lake: Lake, dataset: Dataset, venue: str) -> IsTaken:
    """Looks at the marks in the table, month by month."""
    table = lake.table(dataset)

    @cache
    def days(symbol: str, month: date) -> set[date]:
        app = mark_name(venue, symbol, month)
        return days_in(marked(table, [app])[app], month)

    return lambda symbol, day: day in days(symbol, day.replace(day=1))


def certified(lake: Lake, dataset: Dataset, venue: str) -> dict[tuple[str, date], str]:
    """The days of each symbol that were compared with an archive, and its sum."""
    table = lake.table(COVERAGE)
    if table is None:
        return {}
    rows = lake.rows(COVERAGE, dataset=dataset.name, venue=venue).drop_nulls("dump_sha256")
    newest = rows.sort("checked_time").unique(["symbol", "date"], keep="last")
    return {(symbol, day): sha256 for symbol, day, sha256 in newest.select("symbol", "date", "dump_sha256").iter_rows()}
