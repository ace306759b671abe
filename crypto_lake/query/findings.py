"""Findings of a validation: every one is counted, and of each check so many are kept as a person may read."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final, Literal

import polars as pl

from crypto_lake.models import Dataset
from crypto_lake.models.quality import QUALITY

Severity = Literal["info", "warn", "error"]

# The columns of `quality` that do not follow from when it was found, and a sentence.
FINDINGS: Final[dict[str, pl.DataType]] = {
    "dataset": pl.String(),
    **{name: dtype for name, dtype in QUALITY.schema.items() if name not in ("dataset", "found_time", "date")},
    "detail": pl.String(),
}
COUNTS: Final[dict[str, pl.DataType]] = {
    "dataset": pl.String(),
    "check": pl.String(),
    "severity": pl.String(),
    "found": pl.Int64(),
}
# Of each table and check; what is beyond is in the counts.
KEPT: Final = 1_000

Place = tuple[str, str, str, date]  # dataset, venue, symbol, day


@dataclass(slots=True)
class Findings:
    """What was found so far."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    spoilt: set[Place] = field(default_factory=set)

    def add(self, dataset: Dataset, check: str, severity: Severity, detail: str, **facts: Any) -> None:
        """One finding; `facts` are columns of `quality`."""
        self._add({"dataset": dataset.name, "check": check, "severity": severity, "detail": detail, **facts})

    def add_rows(self, found: pl.DataFrame) -> None:
        """Findings as rows of `quality`, maybe with `detail`, maybe millions of them."""
        for (name, check, severity), part in found.group_by("dataset", "check", "severity", maintain_order=True):
            kind = str(name), str(check), str(severity)
            kept = part.head(max(0, KEPT - self.counts[kind]))
            self.rows += kept.select(column for column in FINDINGS if column in kept.columns).to_dicts()
            self.counts[kind] += part.height
            if severity == "error":
                self._spoil(part)

    def _add(self, finding: dict[str, Any]) -> None:
        kind = finding["dataset"], finding["check"], finding["severity"]
        self.counts[kind] += 1
        if self.counts[kind] <= KEPT:
            self.rows.append(finding)
        if finding["severity"] == "error":
            self._spoil(pl.DataFrame([finding], schema=FINDINGS))

    def _spoil(self, errors: pl.DataFrame) -> None:
        first, last = pl.coalesce("first_time", "last_time").dt.date(), pl.coalesce("last_time", "first_time").dt.date()
        places = errors.select("dataset", "venue", "symbol", first.alias("first"), last.alias("last"))
        for dataset, venue, symbol, begin, end in places.drop_nulls(["first", "last"]).unique().iter_rows():
            days = pl.date_range(min(begin, end), max(begin, end), eager=True)
            self.spoilt.update((dataset, venue or "", symbol or "", day) for day in days)

    def frame(self) -> pl.DataFrame:
        """The findings that were kept, the worst first."""
        rank = pl.col("severity").replace_strict({"error": 0, "warn": 1, "info": 2}, return_dtype=pl.Int8)
        return pl.DataFrame(self.rows, schema=FINDINGS).sort(rank, maintain_order=True)

    def count_frame(self) -> pl.DataFrame:
        """How many there were of each kind."""
        return pl.DataFrame([(*kind, number) for kind, number in self.counts.items()], schema=COUNTS, orient="row")


def first_line(error: BaseException) -> str:
    """What an error of a store says; the rest of it is its inner chain."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
