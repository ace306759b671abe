"""`validate`: checks tables, from their metadata only down to every row; each level includes the ones before it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, Final, Literal

import polars as pl
from deltalake.exceptions import DeltaError

from crypto_lake.config import ConfigError
from crypto_lake.models import DATASETS, Dataset, dataset_named
from crypto_lake.models.dump_file import DUMP_FILE
from crypto_lake.models.gap import GAP
from crypto_lake.models.rejected import REJECTED
from crypto_lake.query import archives, holes, profile
from crypto_lake.query.condition import conditions
from crypto_lake.query.days import days_held, is_market
from crypto_lake.query.findings import Findings, first_line
from crypto_lake.query.gaps import gaps
from crypto_lake.query.profile import PROFILE
from crypto_lake.query.quick import Seen, look
from crypto_lake.query.source import Source, find
from crypto_lake.query.span import Moment, span
from crypto_lake.query.walk import Walk

Level = Literal["quick", "advanced", "integrity"]
# Called before each step: the table, how many of its days are done, and how many there are.
OnStep = Callable[[str, int, int], None]

# What the log, the store or a file says when it cannot be read.
STORE_ERRORS: Final = (DeltaError, OSError, pl.exceptions.PolarsError)

TABLES: Final[dict[str, pl.DataType]] = {
    "dataset": pl.String(),
    "form": pl.String(),
    "files": pl.Int64(),
    "bytes": pl.Int64(),
    "rows": pl.Int64(),
    "first_day": pl.Date(),
    "last_day": pl.Date(),
    "missing_days": pl.Int64(),
    "errors": pl.Int64(),
    "warnings": pl.Int64(),
}
UNREADABLE: Final = Seen("delta", 0, 0, None, (), 0)
DAYS: Final = PROFILE | {"condition": pl.String()}


@dataclass(frozen=True, slots=True)
class Report:
    """What a validation saw: a row per table, per day and symbol (not when quick), and per finding.

    `findings` are the first 1,000 of each table and check; `counts` says how many there were.
    """

    root: str
    level: Level
    checked_time: datetime
    tables: pl.DataFrame
    days: pl.DataFrame
    findings: pl.DataFrame
    counts: pl.DataFrame

    @property
    def errors(self) -> int:
        """How many findings are of severity error."""
        return int(self.counts.filter(pl.col("severity") == "error")["found"].sum())

    @property
    def warnings(self) -> int:
        """How many are of severity warn."""
        return int(self.counts.filter(pl.col("severity") == "warn")["found"].sum())


def validate(
    root: str,
    *,
    level: Level = "quick",
    datasets: Sequence[str] | None = None,
    symbols: Sequence[str] | None = None,
    start: Moment | None = None,
    end: Moment | None = None,
    now: datetime,
    landing: Path | None = None,
    on_step: OnStep = lambda _table, _done, _of: None,
) -> Report:
    """Checks the tables under `root`, all or some; `start` and `end` are days and both inside.

    `symbols` has no meaning for the metadata. Official archives that are still in the folder `landing` are read again
    at the deepest level. Raises `ConfigError` when there is nothing to check: no table at all, a
    named one that is not there, or a store that does not answer.
    """
    since, until = span(start, end)
    findings = Findings()
    is_deep = level == "integrity"
    before = _gaps(root) if is_deep else pl.DataFrame(schema=GAP.schema)  # a recorder may be at work
    seen: dict[str, Seen] = {}
    profiles = []
    chosen = [dataset_named(name) for name in datasets] if datasets else list(DATASETS.values())
    for dataset in chosen:
        on_step(dataset.name, 0, 0)
        try:
            source = find(root, dataset)
            if source is not None:
                seen[dataset.name] = look(source, findings, since=since, until=until, now=now)
        except DeltaError as error:
            findings.add(dataset, "table_unreadable", "error", f"{dataset.name} does not open: {first_line(error)}")
            seen[dataset.name] = UNREADABLE
            continue
        except OSError as error:
            raise ConfigError(f"{root}/{dataset.name} cannot be asked: {first_line(error)}") from None
        if source is not None and level != "quick":
            inspection = _Inspection(root, source, findings, before, now=now, is_deep=is_deep, on_step=on_step)
            profiles.append(inspection.run(symbols, since, until))
    if lacking := [name for name in datasets or () if name not in seen]:
        raise ConfigError(f"no table {', '.join(lacking)} under {root}")
    if not seen:
        raise ConfigError(f"no tables under {root}")
    kept = landing if is_deep else None
    asked = archives.Asked(chosen, symbols, since, until, has_months=level != "quick", landing=kept)
    _judge_archives(root, asked, findings, on_step)
    return Report(
        root=root,
        level=level,
        checked_time=now,
        tables=_tables(seen, findings),
        days=pl.concat([pl.DataFrame(schema=DAYS), *profiles]),
        findings=findings.frame(),
        counts=findings.count_frame(),
    )


@dataclass(frozen=True, slots=True)
class _Inspection:
    """The levels that read rows, for one table."""

    root: str
    source: Source
    findings: Findings
    before: pl.DataFrame
    now: datetime
    is_deep: bool
    on_step: OnStep

    def run(self, symbols: Sequence[str] | None, since: datetime | None, until: datetime | None) -> pl.DataFrame:
        """The profile of each day, with its condition where rows are looked at one by one."""
        dataset = self.source.dataset
        walk = Walk(self.source, self.findings, now=self.now, is_deep=self.is_deep)
        held = days_held(self.source, since, until)
        profiles = [pl.DataFrame(schema=PROFILE)]
        for number, day in enumerate(held):
            self.on_step(dataset.name, number, len(held))
            profiles += self._day(walk, day, symbols)
        days = pl.concat(profiles)
        if is_market(dataset):
            profile.compare(dataset, days, self.findings)
        if not (self.is_deep and is_market(dataset)):
            return days.with_columns(pl.lit(None, pl.String()).alias("condition"))
        newest = _gaps(self.root, dataset.name, symbols=symbols)
        found = holes.compare(dataset, walk.held, newest, before=self.before, since=since, until=until)
        holes.judge(dataset, walk.held, found, self.findings)
        rejected = _rejected(self.root, dataset)
        return conditions(dataset, days, found, spoilt=self.findings.spoilt, rejected=rejected, now=self.now)

    def _day(self, walk: Walk, day: date, symbols: Sequence[str] | None) -> list[pl.DataFrame]:
        try:
            return [walk.day(day, symbols)]
        except STORE_ERRORS as error:
            moment = datetime(day.year, day.month, day.day, tzinfo=self.now.tzinfo)
            text = f"{day} cannot be read: {first_line(error)}"
            self.findings.add(self.source.dataset, "day_unreadable", "error", text, first_time=moment, last_time=moment)
            return []


def _judge_archives(root: str, asked: archives.Asked, findings: Findings, on_step: OnStep) -> None:
    """A ledger whose log is broken has findings of its own; one whose rows cannot be read says nothing of archives."""
    try:
        archives.judge(root, asked, findings, on_step)
    except STORE_ERRORS as error:
        text = f"the ledger cannot be read: {first_line(error)}"
        findings.add(DUMP_FILE, "ledger_unreadable", "error", text)


def _gaps(root: str, dataset: str | None = None, *, symbols: Sequence[str] | None = None) -> pl.DataFrame:
    """The states of holes. A table `gap` that cannot be read has findings of its own, and then names no hole."""
    try:
        return gaps(root, dataset, symbols=symbols)
    except STORE_ERRORS:
        return pl.DataFrame(schema=GAP.schema)


def _rejected(root: str, dataset: Dataset) -> pl.DataFrame:
    """How many messages of a dataset were rejected, per venue and day; none where that cannot be read."""
    try:
        source = find(root, REJECTED)
        rows = source.scan() if source else pl.LazyFrame(schema=REJECTED.schema)
        counted = rows.filter(pl.col("dataset") == dataset.name).group_by("venue", "date")
        return counted.agg(pl.len().alias("count")).collect(engine="streaming")
    except STORE_ERRORS:
        return pl.DataFrame(schema={"venue": pl.String, "date": pl.Date, "count": pl.UInt32})


def _tables(seen: dict[str, Seen], findings: Findings) -> pl.DataFrame:
    def found(name: str, severity: str) -> int:
        return sum(count for kind, count in findings.counts.items() if (kind[0], kind[2]) == (name, severity))

    rows: list[dict[str, Any]] = [
        {
            "dataset": name,
            "form": table.form,
            "files": table.files,
            "bytes": table.size,
            "rows": table.rows,
            "first_day": table.days[0] if table.days else None,
            "last_day": table.days[-1] if table.days else None,
            "missing_days": table.missing_days,
            "errors": found(name, "error"),
            "warnings": found(name, "warn"),
        }
        for name, table in seen.items()
    ]
    return pl.DataFrame(rows, schema=TABLES)
