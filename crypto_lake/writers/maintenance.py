"""Keeps tables quick and small: few files while a day runs, sorted ones when it is over, and no dead ones.

What was done to a day stands in the names of its files: `part-` as a writer appended it, `merged-` by `compact`,
`sorted-` by `sort_day`. So there is nothing to remember and nothing that can disagree with the table. Both only move
rows (`writers.rewrite`), appenders never notice, and of two runs that overlap the later one gives up.

Run it in a process of its own: sorting takes up to a gigabyte, and what the libraries hold of it goes with the process.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any, Final, Literal

import polars as pl
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import TableNotFoundError
from deltalake.fs import DeltaStorageHandler
from pyarrow import fs

from crypto_lake.config import ConfigError
from crypto_lake.models import Dataset
from crypto_lake.writers import CommitFailed
from crypto_lake.writers.delta import PARTITION, STORE_ERRORS, TABLE_PROPERTIES, Lake, reason
from crypto_lake.writers.rewrite import QUIET, files_of, note, rewrite

MEGABYTE: Final = 1024 * 1024
# A file of this size stays as it is until its day is sorted, so that a row is merged a handful of times at the most.
SMALL_BYTES: Final = 16 * MEGABYTE
MERGED_BYTES: Final = 32 * MEGABYTE
MERGED, SORTED = "merged", "sorted"
MERGED_LEVEL, SORTED_LEVEL = 1, 6
# Late rows of a day still come for a while after midnight.
CLOSED_AFTER: Final = timedelta(hours=1)
# A sorted day is sorted again when more files than this came late, or a single one with this share of its bytes.
LATE_FILES: Final = 1
LATE_SHARE: Final = 0.1
# After a long backfill the rest is for the next run.
DAYS_A_RUN: Final = 100
TRIES: Final = 3
# Delta's own rule; less only when LAKE_RETENTION_H says so.
USUAL_RETENTION_H: Final = 168
# A full vacuum removes what no table names, and a writer's file is that until its commit lands.
FULL_RETENTION_H: Final = 24
FULL_EVERY: Final = timedelta(hours=24)
FULL_NOTE: Final = "vacuum/full"
# The drain makes a checkpoint every 100 commits; a table that nobody drains gets one here.
UNCHECKED_COMMITS: Final = 200
CHECKPOINT_EVERY: Final = int(TABLE_PROPERTIES["delta.checkpointInterval"] or 100)

Step = Literal["compact", "sort", "vacuum", "log"]


@dataclass(frozen=True, slots=True)
class Done:
    """What one step did; of a vacuum `files_before` counts the dead files. `error` says why it could not be done."""

    dataset: str
    step: Step
    day: date | None = None
    files_before: int = 0
    files_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    error: str | None = None

    @property
    def changed(self) -> bool:
        """Whether anything was replaced or removed."""
        return self.error is None and self.files_before > 0


def maintain(root: str, datasets: Iterable[Dataset], now: datetime, *, retention_h: float) -> list[Done]:
    """One round over the tables that exist: merge open days, sort closed ones, drop dead files, shorten the log.

    Never raises for what one table does: a step that fails is in the list with its reason, and the next round
    does it again.
    """
    return [done for dataset in datasets for done in _maintain_table(root, dataset, now, retention_h)]


def compact(root: str, dataset: Dataset, day: date) -> Done:
    """Merges the small files of a day. Raises `CommitFailed` when somebody else replaced them meanwhile."""
    done = Done(dataset.name, "compact", day)
    files = _files(root, dataset, day)
    for batch in _batches(files.filter(pl.col("size_bytes") < SMALL_BYTES)):
        count, size = rewrite(
            Lake(root), dataset, day, batch, prefix=MERGED, level=MERGED_LEVEL, by=_sort_columns(dataset)
        )
        done = replace(
            done,
            files_before=done.files_before + batch.height,
            files_after=done.files_after + count,
            bytes_before=done.bytes_before + int(batch["size_bytes"].sum()),
            bytes_after=done.bytes_after + size,
        )
    return done


def sort_day(root: str, dataset: Dataset, day: date) -> Done:
    """Sorts a whole day by the dataset's `z_order` columns. Raises `CommitFailed` like `compact`."""
    files = _files(root, dataset, day)
    done = Done(dataset.name, "sort", day)
    if files.is_empty():
        return done
    count, size = rewrite(Lake(root), dataset, day, files, prefix=SORTED, level=SORTED_LEVEL, by=_sort_columns(dataset))
    return replace(
        done,
        files_before=files.height,
        files_after=count,
        bytes_before=int(files["size_bytes"].sum()),
        bytes_after=size,
    )


def is_closed(day: date, now: datetime) -> bool:
    """Whether a UTC day ended so long ago that only rare rows still come."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1) + CLOSED_AFTER <= now


def unsorted_days(root: str, dataset: Dataset, now: datetime) -> list[date]:
    """The closed days that are worth sorting, newest first: never sorted, or with enough late files."""
    late = ~_named(SORTED)
    days = (
        _files(root, dataset)
        .group_by(PARTITION)
        .agg(
            late.sum().alias("late"),
            (late.sum() == pl.len()).alias("never"),
            (pl.col("size_bytes").filter(late).sum() / pl.col("size_bytes").sum()).alias("share"),
        )
    )
    due = days.filter(pl.col("never") | (pl.col("late") > LATE_FILES) | (pl.col("share") >= LATE_SHARE))
    return [day for day in sorted(due[PARTITION].to_list(), reverse=True) if is_closed(day, now)]


def vacuum(
    root: str, dataset: Dataset, *, retention_h: float, full: bool = False, dry_run: bool = False, now: datetime
) -> Done:
    """Removes files that the table has not named for `retention_h` hours; with `full` also those it never named.

    A full vacuum leaves alone whatever is younger than a day, however short the retention. Less than 168 hours is
    for users who said so in LAKE_RETENTION_H: readers that opened the table before may fail.
    Raises `ConfigError` for a negative retention.
    """
    if retention_h < 0:
        raise ConfigError(f"LAKE_RETENTION_H={retention_h:g}: must be 0 or more")
    hours = math.ceil(max(retention_h, FULL_RETENTION_H) if full else retention_h)
    table = DeltaTable(Lake(root).uri(dataset))
    asked: dict[str, Any] = {
        "retention_hours": hours,
        "enforce_retention_duration": hours >= USUAL_RETENTION_H,
        "full": full,
    }
    dead = _present(table, table.vacuum(dry_run=True, **asked))
    if dead and not dry_run:
        table.vacuum(dry_run=False, post_commithook_properties=QUIET, **asked)
    if full and not dry_run:
        note(table, CommitProperties(app_transactions=[Transaction(FULL_NOTE, int(now.timestamp()))]))
    return Done(dataset.name, "vacuum", files_before=len(dead))


def is_full_vacuum_due(root: str, dataset: Dataset, now: datetime) -> bool:
    """Whether the last full vacuum, which the table itself remembers, was a day ago."""
    last_s = DeltaTable(Lake(root).uri(dataset)).transaction_version(FULL_NOTE) or 0
    return now.timestamp() - last_s >= FULL_EVERY.total_seconds()


def shorten_log(root: str, dataset: Dataset) -> Done:
    """Makes a checkpoint when the drain makes none, and removes log entries that are past their retention."""
    table = DeltaTable(Lake(root).uri(dataset))
    behind = table.version() - _last_checkpoint(table)
    # At a multiple of the interval the drain may be writing that very checkpoint.
    if behind >= UNCHECKED_COMMITS and table.version() % CHECKPOINT_EVERY:
        table.create_checkpoint()
    table.cleanup_metadata()
    return Done(dataset.name, "log")


def _maintain_table(root: str, dataset: Dataset, now: datetime, retention_h: float) -> Iterator[Done]:
    try:
        days = _files(root, dataset)[PARTITION].unique().sort().to_list()
        unsorted = unsorted_days(root, dataset, now)
        full = is_full_vacuum_due(root, dataset, now)
    except TableNotFoundError:
        return
    except STORE_ERRORS as error:
        yield Done(dataset.name, "log", error=reason(error))
        return
    for day in days:
        if not is_closed(day, now):
            yield _attempt(Done(dataset.name, "compact", day), partial(compact, root, dataset, day))
    for day in unsorted[:DAYS_A_RUN]:
        yield _attempt(Done(dataset.name, "sort", day), partial(sort_day, root, dataset, day))
    clean = partial(vacuum, root, dataset, retention_h=retention_h, now=now)
    yield _attempt(Done(dataset.name, "vacuum"), clean)
    if full:
        yield _attempt(Done(dataset.name, "vacuum"), partial(clean, full=True))
    yield _attempt(Done(dataset.name, "log"), partial(shorten_log, root, dataset))


def _attempt(failed: Done, step: Callable[[], Done]) -> Done:
    """The one place where maintenance tries again: against other runs, a bounded number of times."""
    for _ in range(TRIES):
        try:
            return step()
        except CommitFailed as error:
            failed = replace(failed, error=str(error))
        except (*STORE_ERRORS, pl.exceptions.PolarsError) as error:
            return replace(failed, error=reason(error))
    return failed


def _files(root: str, dataset: Dataset, day: date | None = None) -> pl.DataFrame:
    files = files_of(DeltaTable(Lake(root).uri(dataset)))
    return files if day is None else files.filter(pl.col(PARTITION) == day)


def _batches(files: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Files, oldest first, in groups worth merging: two at least, and not much more than `MERGED_BYTES`."""
    group = ((pl.col("size_bytes").cum_sum() - 1) // MERGED_BYTES).alias("group")
    for batch in files.with_columns(group).partition_by("group", include_key=False, maintain_order=True):
        if batch.height > 1:
            yield batch


def _named(prefix: str) -> pl.Expr:
    return pl.col("path").str.contains(f"/{prefix}-", literal=True)


def _sort_columns(dataset: Dataset) -> list[str]:
    """The z-order columns, and the order column so that a day has one order only."""
    assert len(dataset.z_order) == 2, "a group and a clock"
    last = [dataset.order] if dataset.order and dataset.order not in dataset.z_order else []
    return [*dataset.z_order, *last]


def _present(table: DeltaTable, paths: list[str]) -> list[str]:
    """Those of the files that still exist: the log names a removed file for a week, gone or not."""
    store = _store(table)
    folders = {path.rpartition("/")[0] for path in paths}
    listed = (store.get_file_info(fs.FileSelector(folder, allow_not_found=True)) for folder in folders)
    held = {info.path for infos in listed for info in infos}
    return [path for path in paths if path in held]


def _store(table: DeltaTable) -> Any:
    return fs.PyFileSystem(DeltaStorageHandler.from_table(table._table))


def _last_checkpoint(table: DeltaTable) -> int:
    try:
        with _store(table).open_input_file("_delta_log/_last_checkpoint") as file:
            return int(pl.read_ndjson(file.read())["version"][0])
    except FileNotFoundError:
        return 0
