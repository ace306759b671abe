"""Certificates: of days that were taken or compared the holes are noted, and what they are worth in `coverage`."""

from datetime import date, datetime
from functools import cache

import polars as pl

from crypto_lake.backfill.plan import days_in, mark_name
from crypto_lake.backfill.settle import IsTaken, settle
from crypto_lake.models import Dataset
from crypto_lake.models.coverage import COVERAGE
from crypto_lake.models.gap import GAP
from crypto_lake.query.coverage import coverage, held_runs
from crypto_lake.writers.bulk import marked
from crypto_lake.writers.delta import Lake


def certify(lake: Lake, dataset: Dataset, facts: pl.DataFrame, *, now: datetime) -> pl.DataFrame:
    """Settles the holes of the days in `facts` (columns `query.coverage.FACTS`, of one venue), and certifies them.

    Returns the rows that it appends to `coverage`. Made again after a crash it changes no state; a day only has one
    more row for one more look.
    """
    if facts.is_empty():
        return pl.DataFrame(schema=COVERAGE.schema)
    venue = str(facts["venue"][0])
    days = _days(facts)
    first, last = min(map(min, days.values())), max(map(max, days.values()))
    held = held_runs(lake.root, dataset, symbols=sorted(days), start=first, end=last).filter(pl.col("venue") == venue)
    is_taken = _by_marks(lake, dataset, venue)
    lake.add(GAP, settle(lake.root, dataset, held, venue=venue, days=days, is_taken=is_taken, now=now))
    seen = coverage(dataset.name, symbols=sorted(days), start=first, end=last, root=lake.root, now=now, facts=facts)
    rows = seen.join(facts, on=["venue", "symbol", "date"], how="semi")
    lake.add(COVERAGE, rows)
    return rows


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
