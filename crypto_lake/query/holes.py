"""Holds the ids in a table against the table `gap`: what is missing unknown, what is called missing and is there."""

from dataclasses import dataclass
from datetime import datetime

import polars as pl

from crypto_lake.models import Dataset
from crypto_lake.models.gap import GAP, NOT_AT_VENUE, OPEN, UNFILLABLE
from crypto_lake.processors.sequence import INTERVALS, has_sequence
from crypto_lake.query.findings import Findings, Severity
from crypto_lake.query.gaps import missing
from crypto_lake.query.runs import between, overlaps, without


@dataclass(frozen=True, slots=True)
class Missing:
    """What a table lacks.

    `unknown` ids are missing and no gap row names them, `known` are the rows of gap that are not filled, and `ids` are
    all missing ids that the venue has, each with the times around it. `lasting` are the ids of gaps that both looks at
    the table `gap` call missing.
    """

    unknown: pl.DataFrame
    known: pl.DataFrame
    ids: pl.DataFrame
    lasting: pl.DataFrame

    @property
    def dark(self) -> pl.DataFrame:
        """The rows without ids: times without delivery of which nothing came later."""
        return self.known.filter(pl.col("first_id").is_null())


def compare(
    dataset: Dataset,
    held: pl.DataFrame,
    newest: pl.DataFrame,
    *,
    before: pl.DataFrame,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Missing:
    """What is missing between the runs `held`, by the `newest` states of gaps that touch the span.

    A recorder may be at work. `before` are the states from before the table was opened: a hole that was filled since
    was known, and a gap is what both times say (its rows and its state are two commits).
    """
    before = before.filter(pl.col("dataset") == dataset.name)
    ends = pl.col("end_time").is_null() | (pl.col("end_time") >= since) if since else pl.lit(value=True)
    begins = pl.col("start_time") < until if until else pl.lit(value=True)
    known = newest.filter(pl.col("state").is_in([OPEN, UNFILLABLE]), ends, begins)
    if not has_sequence(dataset):
        nothing = pl.DataFrame(schema=INTERVALS)
        return Missing(nothing, known, nothing, nothing)
    unknown = without(without(between(held), missing(newest)), missing(before))
    wanted = missing(known).filter(pl.col("reason") != NOT_AT_VENUE)
    lasting = missing(known).join(missing(before), on=[*GAP.key, "last_id"], how="semi", nulls_equal=True)
    return Missing(unknown, known, pl.concat([unknown, without(wanted, held)]), lasting.select(*INTERVALS))


def judge(dataset: Dataset, held: pl.DataFrame, found: Missing, findings: Findings) -> None:
    """The findings: holes nobody knows and gaps that are none are errors, known holes are told."""
    _tell(dataset, found.unknown, findings, "unknown_hole", "ids are missing and no gap row says so")
    _tell(dataset, overlaps(found.lasting, held), findings, "gap_not_real", "ids are in a gap row and in the table")
    for row in found.known.iter_rows(named=True):
        severity: Severity = "warn" if row["state"] == OPEN and row["reason"] != NOT_AT_VENUE else "info"
        count = None if row["first_id"] is None else row["last_id"] - row["first_id"] + 1
        what = "no delivery" if count is None else f"{count:,} ids are missing"
        findings.add(
            dataset, "known_gap", severity, f"{what}: {row['state']}, {row['reason']}",
            venue=row["venue"], symbol=row["symbol"], first_time=row["start_time"], last_time=row["end_time"],
            first_id=row["first_id"], last_id=row["last_id"], observed=None if count is None else float(count),
        )  # fmt: skip


def _tell(dataset: Dataset, intervals: pl.DataFrame, findings: Findings, check: str, text: str) -> None:
    for row in intervals.iter_rows(named=True):
        count = row["last_id"] - row["first_id"] + 1
        findings.add(
            dataset, check, "error", f"{count:,} {text}",
            venue=row["venue"], symbol=row["symbol"], first_time=row["start_time"], last_time=row["end_time"],
            first_id=row["first_id"], last_id=row["last_id"], observed=float(count), threshold=0.0,
        )  # fmt: skip
