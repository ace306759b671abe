"""Delta tables: rows and the journal position that they pay for, in one commit."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import polars as pl
from deltalake import (
    ColumnProperties,
    CommitProperties,
    DeltaTable,
    PostCommitHookProperties,
    Schema,
    Transaction,
    WriterProperties,
    write_deltalake,
)
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from crypto_lake.config import ConfigError
from crypto_lake.models import Dataset
from crypto_lake.models.dataset import TIME
from crypto_lake.writers import CommitConflict, CommitFailed, CommitUnknown, StoreAway, marks_of, no_marks

PARTITION: Final = "date"
SYSTEM_SAID: Final = re.compile(r"[^:\n]*\(os error \d+\)")
# A fact and its repetition may fall on two sides of midnight where the venue gives no time and ours stands in.
SLACK: Final = pl.duration(days=1)
# So many who note the same at the same moment are sorted out.
GUARDED_TRIES: Final = 5
# Deleting old logs after a commit may fail although the commit stands; maintenance does that.
QUIETLY: Final = PostCommitHookProperties(cleanup_expired_logs=False)
# Whatever the object store or the log raises; a commit either shows in the table afterwards or it does not.
STORE_ERRORS: Final = (DeltaError, OSError, ValueError, pl.exceptions.PolarsError)


class Lake:
    """The Delta tables under one root, a path or an s3:// URL.

    One process may write a table under one app id at a time (the journal's lock sees to that); appends of others
    and maintenance do not disturb it.
    """

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self._versions: dict[str, int] = {}
        self._opened: dict[str, DeltaTable] = {}

    def uri(self, dataset: Dataset) -> str:
        """Where the dataset's table is."""
        return f"{self.root}/{dataset.name}"

    def table(self, dataset: Dataset) -> DeltaTable | None:
        """The table as it is now; None if there is none.

        Opened anew each time: a handle that is kept grows slower and larger with every commit.
        """
        try:
            return DeltaTable(self.uri(dataset))
        except TableNotFoundError:
            return None

    def check(self, dataset: Dataset) -> None:
        """Makes the table if there is none; columns that it lacks and that may be null are added, null in its rows.

        Raises `StoreAway` when the root cannot be written, `ConfigError` when the table there has other columns.
        """
        try:
            found = dict(pl.Schema(self._evolved(dataset).schema()))
        except STORE_ERRORS as error:
            raise StoreAway(f"LAKE_ROOT={self.root}: {dataset.name} cannot be opened: {reason(error)}") from None
        for name, dtype in dataset.schema.items():
            if found.get(name) != dtype:
                is_now = found.get(name, "missing")
                raise ConfigError(
                    f"LAKE_ROOT={self.root}: table {dataset.name} has another schema: column {name} is {is_now}, "
                    f"not {dtype}; move {self.uri(dataset)} away or choose another LAKE_ROOT"
                )

    def position(self, dataset: Dataset, app: str) -> int:
        """The journal position up to which the table holds the records of `app`; 0 if it holds none."""
        with _failing(dataset):
            return self._there(dataset).transaction_version(app) or 0

    def pending(self, dataset: Dataset, app: str) -> int:
        """Never: a Delta commit is there or it is not."""
        return 0

    def append(self, dataset: Dataset, rows: pl.DataFrame, app: str, *, start: int, end: int) -> None:
        """Commits `rows` and the position `end` of `app`.

        After a look (`was_changed_by_others`) the commit goes on top of the very version that was looked at. Raises
        `CommitConflict` when there is a newer one by now, `CommitFailed` when nothing was written, `CommitUnknown` when
        the table cannot be asked.
        """
        looked_at = self._opened.pop(dataset.name, None)
        try:
            table = looked_at or self._there(dataset)
            # No retry on top of a commit that was not looked at: its rows may have the same keys.
            _write(table, dataset, rows, {app: end}, retries=0 if looked_at else None)
        except STORE_ERRORS as error:
            table = self._settled(dataset, app, end, error)
        self._versions[dataset.name] = table.version()

    def add(self, dataset: Dataset, rows: pl.DataFrame) -> None:
        """Appends rows to a table in which every row stands for itself. Raises `CommitFailed`."""
        self.append_once(dataset, rows, {})

    def append_once(self, dataset: Dataset, rows: pl.DataFrame, guards: Mapping[str, int]) -> None:
        """Appends rows and notes the guards (app ids with their versions); nothing when these are noted already.

        Raises `CommitFailed`.
        """
        if rows.is_empty():
            return
        with _failing(dataset):
            # Of two who note the same at one moment one is refused, and finds it noted when it looks again.
            for left in reversed(range(GUARDED_TRIES if guards else 1)):
                try:
                    self._append_guarded(dataset, rows, guards)
                except CommitFailedError:
                    if not left:
                        raise
                else:
                    return

    def _append_guarded(self, dataset: Dataset, rows: pl.DataFrame, guards: Mapping[str, int]) -> None:
        table = self._there(dataset)
        if guards and all(table.transaction_version(app) == version for app, version in guards.items()):
            return
        _write(table, dataset, rows, guards)

    def marks(self, dataset: Dataset, groups: pl.DataFrame) -> pl.DataFrame:
        """The highest value of the order column per group and the newest time, for groups that have rows.

        Walks the days from the newest back until every group has shown itself: order and time rise together.
        """
        within = list(dataset.within)
        found = groups.clear().with_columns(no_marks(dataset))
        with _failing(dataset):
            table = self._there(dataset)
            rows = pl.scan_delta(table)
            for day in sorted({part[PARTITION] for part in table.partitions()}, reverse=True):
                missing = groups.join(found, on=within, how="anti")
                if missing.is_empty():
                    break
                of_day = rows.filter(
                    pl.col(PARTITION) == pl.lit(day).str.to_date(), pl.col("symbol").is_in(missing["symbol"].implode())
                )
                best = of_day.group_by(within).agg(marks_of(dataset)).collect()
                found = pl.concat([found, best.join(missing, on=within, how="semi").select(found.columns)])
        return found

    def known(self, dataset: Dataset, rows: pl.DataFrame) -> pl.DataFrame:
        """The keys among those of `rows` that the table holds."""
        key = list(dataset.key)
        dates = (rows[PARTITION].min(), rows[PARTITION].max())
        with _failing(dataset):
            near = pl.scan_delta(self._there(dataset)).filter(
                pl.col(PARTITION).is_between(pl.lit(dates[0]) - SLACK, pl.lit(dates[1]) + SLACK),
                pl.col("symbol").is_in(rows["symbol"].unique().implode()),
            )
            if dataset.order:
                order = rows[dataset.order]
                near = near.filter(pl.col(dataset.order).is_between(order.min(), order.max()))
            return near.select(key).join(rows.select(key).lazy(), on=key, how="semi").unique().collect()

    def rows(self, table: Dataset, /, **equals: str) -> pl.DataFrame:
        """The rows of a small table whose columns have these values."""
        with _failing(table):
            held = pl.scan_delta(self._there(table)).filter(*_equal(equals))
            return held.select(*table.schema).collect()

    def was_changed_by_others(self, dataset: Dataset) -> bool:
        """Whether a commit that was not made here added rows; compacting adds none."""
        with _failing(dataset):
            table = self._opened[dataset.name] = self._there(dataset)
            before = self._versions.get(dataset.name, table.version())
            self._versions[dataset.name] = table.version()
            if table.version() == before:
                return False
            commits = table.history(table.version() - before)
            return any(commit.get("operation") not in MAINTENANCE and REARRANGED not in commit for commit in commits)

    def _there(self, dataset: Dataset) -> DeltaTable:
        """The table. A drain never makes one: where a disk is not mounted it would write beside the real table."""
        table = self.table(dataset)
        if table is None:
            raise DeltaError(f"{self.uri(dataset)} is not there any more")
        return table

    def _create(self, dataset: Dataset) -> DeltaTable:
        return DeltaTable.create(
            self.uri(dataset),
            schema=pl.DataFrame(schema=dataset.schema).to_arrow().schema,
            mode="ignore",
            partition_by=[PARTITION],
            name=dataset.name,
            description=dataset.meaning,
            configuration=TABLE_PROPERTIES,
        )

    def _evolved(self, dataset: Dataset) -> DeltaTable:
        """The table with all columns that it may get; another program may make it, or add them, at the same moment."""
        for left in reversed(range(GUARDED_TRIES)):
            try:
                table = self.table(dataset) or self._create(dataset)
                held = set(pl.Schema(table.schema()))
                lacking = {each.name: each.dtype for each in dataset.columns if each.nullable and each.name not in held}
                if not lacking:
                    return table
                fields = Schema.from_arrow(pl.DataFrame(schema=lacking).to_arrow().schema).fields
                table.alter.add_columns(fields, post_commithook_properties=QUIETLY)
            except DeltaError:
                if not left:
                    raise
        return table

    def _settled(self, dataset: Dataset, app: str, end: int, error: Exception) -> DeltaTable:
        """The table if the commit of `end` is in it all the same; else raises what the error means."""
        try:
            table = self._there(dataset)
            position = table.transaction_version(app)
        except STORE_ERRORS as again:
            raise CommitUnknown(f"{dataset.name}: {reason(error)}; and then: {reason(again)}") from error
        if position != end:
            failure = CommitConflict if isinstance(error, CommitFailedError) else CommitFailed
            raise failure(f"{dataset.name}: {reason(error)}") from error
        return table


def _write(
    table: DeltaTable, dataset: Dataset, rows: pl.DataFrame, noted: Mapping[str, int], *, retries: int | None = None
) -> None:
    # A later program may have given the table columns that this one does not know: they are null in our rows.
    has_more = len(table.schema().fields) > len(dataset.columns)
    write_deltalake(
        table,
        rows,
        mode="append",
        schema_mode="merge" if has_more else None,
        writer_properties=live_properties(dataset),
        commit_properties=CommitProperties(
            app_transactions=[Transaction(app, version) for app, version in noted.items()], max_commit_retries=retries
        ),
        post_commithook_properties=QUIETLY,
    )


def _equal(values: Mapping[str, str]) -> list[pl.Expr]:
    return [pl.col(name) == value for name, value in values.items()]


@contextmanager
def _failing(dataset: Dataset) -> Iterator[None]:
    """What a store raises while it is asked becomes `CommitFailed`: nothing was written, try again."""
    try:
        yield
    except STORE_ERRORS as error:
        raise CommitFailed(f"{dataset.name}: {reason(error)}") from error


# Marks a commit that moved rows to other files and changed none of them (writers.rewrite).
REARRANGED: Final = "rearranged"
MAINTENANCE: Final = ("OPTIMIZE", "VACUUM START", "VACUUM END")
TABLE_PROPERTIES: Final[dict[str, str | None]] = {
    "delta.checkpointInterval": "20",
    "delta.logRetentionDuration": "interval 30 days",
}


def live_properties(dataset: Dataset) -> WriterProperties:
    """How a live commit is encoded: fast (zstd 1), ids and times as differences; maintenance packs it tighter."""
    return WriterProperties(compression="ZSTD", compression_level=1, column_properties=_differences(dataset))


def _differences(dataset: Dataset) -> dict[str, ColumnProperties]:
    delta = ColumnProperties(dictionary_enabled=False, encoding="DELTA_BINARY_PACKED")
    return {name: delta for name, dtype in dataset.schema.items() if dtype in (pl.Int64, TIME)}


def reason(error: Any) -> str:
    """The first line of a store's error, and what the system said in its inner chain, if it did."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    said = SYSTEM_SAID.search(text)
    return first if said is None or said[0].strip() in first else f"{first}: {said[0].strip()}"
