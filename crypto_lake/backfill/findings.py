"""What a comparison of days with their official files found: rows of `quality`, and a form that people can read."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from crypto_lake.backfill.plan import Job
from crypto_lake.models import Dataset
from crypto_lake.models.quality import QUALITY
from crypto_lake.processors.compare import OF_THE_ROAD, compare
from crypto_lake.query.days import DAY, midnight
from crypto_lake.writers.delta import Lake

if TYPE_CHECKING:
    from crypto_lake.backfill.ingest import Day, Taken

# The checks.
DUMP_LACKS_ROWS: Final = "dump_lacks_rows"
ROW_DIFFERS: Final = "row_differs"

# With whom REST agrees, when it was asked.
OURS: Final = "ours"
DUMP: Final = "dump"
BOTH: Final = "both"  # it does not know what they differ in
NEITHER: Final = "neither"
NOBODY: Final = ""  # it was not asked, or did not answer

TICK: Final = timedelta(microseconds=1)
PLACE: Final = ("venue", "symbol")


@dataclass(slots=True)
class Lone:
    """A row that only the table has, and what REST says: `ours` (it has it, too), `dump` (it has no such row)."""

    key: dict[str, Any]
    time: datetime
    row: dict[str, Any]
    rest: str = NOBODY


@dataclass(slots=True)
class Pair:
    """Two accounts of one row: the columns that differ, and whose account REST confirms."""

    key: dict[str, Any]
    time: datetime
    ours: dict[str, Any]
    dump: dict[str, Any]
    rest: str = NOBODY


@dataclass(slots=True)
class Differences:
    """How the table and the official file of a day differ: how many rows, and the first ones of them."""

    symbol: str
    date: date
    only_ours: int = 0
    differing: int | None = None
    lone: list[Lone] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)


def differences(dataset: Dataset, symbol: str, day: date, found: "Day") -> Differences:
    """What a comparison found, for a person to read."""
    shown = [name for name in _own(dataset) if name != "time"]
    lone = [
        Lone(_key(dataset, row), row["time"], {name: row[name] for name in shown if row[name] is not None})
        for row in found.lone.iter_rows(named=True)
    ]
    return Differences(symbol, day, found.only_ours, found.differing, lone, list(_pairs(dataset, found)))


def _pairs(dataset: Dataset, found: "Day") -> Iterator[Pair]:
    differing = differing_columns(dataset, found.ours, found.theirs)
    rows = zip(differing, found.ours.iter_rows(named=True), found.theirs.iter_rows(named=True), strict=True)
    for names, mine, other in rows:
        yield Pair(
            _key(dataset, mine),
            mine["time"],
            {name: mine[name] for name in names},
            {name: other[name] for name in names},
        )


def differing_columns(dataset: Dataset, ours: pl.DataFrame, theirs: pl.DataFrame) -> list[list[str]]:
    """Of each pair of rows the columns that differ, by the same rule by which the rows were found to differ."""
    if ours.is_empty():
        return []
    numbered = ours.with_row_index("pair")
    found: list[list[str]] = [[] for _ in range(ours.height)]
    own = _own(dataset)
    for name in own:
        # What is null is not compared: so the others are.
        others = [pl.lit(None, dataset.schema[each]).alias(each) for each in own if each != name]
        unlike = compare(dataset, ours.with_columns(others), theirs).ours.select(dataset.key)
        for pair in numbered.join(unlike, on=list(dataset.key), how="semi", nulls_equal=True)["pair"]:
            found[pair].append(name)
    return found


def _own(dataset: Dataset) -> list[str]:
    """The columns that are facts: neither of the key nor of the road that a row came by."""
    return [name for name in dataset.schema if name not in OF_THE_ROAD and name not in dataset.key]


def _key(dataset: Dataset, row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in dataset.key if name not in PLACE}


# The table


def note_all(lake: Lake, dataset: Dataset, taken: Iterable["Taken"], *, now: datetime) -> None:
    """Puts what was found on all days that were compared into `quality`. Raises `CommitFailed`."""
    for each in taken:
        for day in each.done:
            if (found := each.days.get(day)) and found.differing is not None:
                note(lake, dataset, each.job, day, found, now=now)


def note(lake: Lake, dataset: Dataset, job: Job, day: date, found: "Day", *, now: datetime) -> None:
    """Puts what was found on a day into `quality`; nothing, when that was the last that was said about it.

    Raises `CommitFailed`.
    """
    rows = [
        {
            "venue": job.file.venue,
            "symbol": job.file.symbol,
            "dataset": dataset.name,
            "found_time": now,
            "date": now.date(),
            **finding,
        }
        for finding in _findings(dataset, job, day, found)
    ]
    whose = job.file.path if len(job.file.days) == 1 else f"{job.file.path}/{day}"
    frame = pl.DataFrame(rows, schema=QUALITY.schema)
    lake.append_once(QUALITY, frame, {f"reconcile/{whose}": _fingerprint(dataset, job, found)})


def _findings(dataset: Dataset, job: Job, day: date, found: "Day") -> Iterator[dict[str, Any]]:
    # That a sample lacks rows is no finding.
    if found.only_ours and not dataset.is_sampled(job.file.venue):
        first, last = found.lone.row(0, named=True), found.last_lone.row(0, named=True)
        yield {
            "check": DUMP_LACKS_ROWS,
            "severity": "warn",
            **_span(dataset, first, last),
            "observed": float(found.only_ours),
            "threshold": 0.0,
        }
    for row in found.ours.iter_rows(named=True):
        yield {"check": ROW_DIFFERS, "severity": "error", **_span(dataset, row, row)}
    if rest := (found.differing or 0) - found.ours.height:
        begin = midnight(day)
        whole = {"first_time": begin, "last_time": begin + DAY - TICK}
        yield {"check": ROW_DIFFERS, "severity": "error", **whole, "observed": float(rest), "threshold": 0.0}


def _span(dataset: Dataset, first: dict[str, Any], last: dict[str, Any]) -> dict[str, Any]:
    span = {"first_time": first["time"], "last_time": last["time"]}
    if dataset.order and dataset.schema[dataset.order] == pl.Int64:
        span |= {"first_id": first[dataset.order], "last_id": last[dataset.order]}
    return span


def _fingerprint(dataset: Dataset, job: Job, found: "Day") -> int:
    """The same number as long as the same file and the same rows are compared."""
    facts = [name for name in dataset.schema if name not in OF_THE_ROAD]
    parts: Sequence[pl.DataFrame] = (found.lone, found.last_lone, found.ours, found.theirs)
    texts = [str(part.select(facts).rows()) if part.width else "" for part in parts]
    text = "\n".join([job.sha256, str(found.only_ours), str(found.differing), *texts])
    return int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)
