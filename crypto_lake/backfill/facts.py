"""What archives say of days: the facts that a certificate rests on."""

from collections.abc import Iterable

import polars as pl

from crypto_lake.backfill.ingest import Taken
from crypto_lake.query.coverage import FACTS


def facts_of(taken: Iterable[Taken]) -> pl.DataFrame:
    """What the archives say of the days that are in the table now."""
    rows = [
        {
            "venue": each.job.file.venue,
            "symbol": each.job.file.symbol,
            "date": day,
            "dump_sha256": each.job.sha256,
            "dump_rows": found.rows if (found := each.days.get(day)) and found.rows else _refused_rows(each),
            "dump_missing_rows": found.only_ours if found else 0,
            "differing_rows": found.differing if found else None,
        }
        for each in taken
        for day in each.done
    ]
    return pl.DataFrame(rows, schema=FACTS)


def _refused_rows(taken: Taken) -> int:
    """The rows of a day's own file none of which is fit: such a day is not one without rows."""
    return len(taken.refused) if len(taken.job.file.days) == 1 else 0
