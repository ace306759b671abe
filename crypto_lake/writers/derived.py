"""Derived tables: rows that take the place of others, what they were made from, and what the next ones go on from.

All of it is one commit. What rows were made from are app transactions (a source table's version); what a series goes
on from (a book, the values of the last trades) is too large for that: it is a file under `_state/` whose name ends with
the version of an app transaction, so it counts from the moment on in which the rows do, and never without them.
"""

import contextlib
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Final, cast
from urllib.parse import quote
from uuid import uuid4

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError
from deltalake.fs import DeltaStorageHandler
from deltalake.transaction import AddAction, RemoveAction
from pyarrow import fs

from crypto_lake.models import Dataset
from crypto_lake.writers import CommitConflict, CommitFailed, CommitUnknown
from crypto_lake.writers.delta import PARTITION, STORE_ERRORS, Lake, reason
from crypto_lake.writers.rewrite import COMMIT_TRIES, QUIET, files_of, moved, removal, scans, write_file

# A commit is worth its while with so many rows, or days (each is a file), or after so long: what a crash takes away.
ENOUGH_ROWS: Final = 250_000
ENOUGH_DAYS: Final = 64
ENOUGH_S: Final = 15.0
LEVEL: Final = 3
# Hidden from Delta's vacuum, as are all folders that begin like this.
STATES: Final = "_state"
MISSING: Final = (FileNotFoundError, pa.ArrowException)


class Derived:
    """The commits to come of one derived table, which is made if there is none.

    Whoever puts rows has compared them with what is `held` since the last `settle`: a commit goes on top of the
    version that was looked at. When somebody else changed the same series meanwhile, nothing is written.
    """

    def __init__(self, lake: Lake, dataset: Dataset) -> None:
        """Raises `StoreAway` and `ConfigError` as `Lake.check` does."""
        lake.check(dataset)
        self.dataset = dataset
        self._lake = lake
        self._table = self._opened()
        self._files = files_of(self._table)
        self._since_s: float | None = None
        self._forget()

    def noted(self, app: str) -> int:
        """What `note` said last under this name; 0 if nothing."""
        return self._table.transaction_version(app) or 0

    def state(self, app: str) -> bytes | None:
        """What `keep` left with the last commit; None if it left nothing, or if that is lost: then it is to be made
        anew. Raises `CommitConflict`."""
        version = self.noted(app)
        if not version:
            return None
        try:
            held = pq.read_table(_place(app, version), filesystem=self._store)
        except MISSING as error:
            if (self._opened().transaction_version(app) or 0) == version:
                return None
            raise CommitConflict(f"{self.dataset.name}: {app} was changed by somebody else meanwhile") from error
        return cast(bytes, held["state"][0].as_py())

    def held(self, first: date, last: date, *where: pl.Expr) -> pl.DataFrame:
        """The rows of these days (both inclusive) for which all of `where` hold; those that wait are not among them."""
        days = self._files.filter(pl.col(PARTITION).is_between(first, last))
        found = [
            rows.with_columns(pl.lit(file[PARTITION]).alias(PARTITION)).filter(*where).select(*self.dataset.schema)
            for file, rows in zip(days.to_dicts(), scans(self._table, days["path"].to_list()), strict=True)
        ]
        return pl.concat([pl.DataFrame(schema=self.dataset.schema), *pl.collect_all(found)])

    def days(self) -> list[date]:
        """The days of which the table holds anything."""
        return sorted(set(self._files[PARTITION]))

    def put(self, rows: pl.DataFrame, gone: pl.DataFrame | None = None) -> None:
        """Rows of the table's columns that come, and rows held (their key and date at least) that leave with that."""
        self._since_s = self._since_s or time.monotonic()
        if rows.height:
            self._rows.append(rows)
        if gone is not None and gone.height:
            self._gone.append(gone.select(*self.dataset.key, PARTITION))

    def note(self, app: str, version: int) -> None:
        """What the rows so far were made from; counts with the next commit."""
        if self.noted(app) != version or app in self._notes:
            self._notes[app] = version

    def keep(self, app: str, state: bytes) -> None:
        """What the series goes on from behind the rows so far; counts with the next commit."""
        self._states[app] = state

    def settle(self, *, all: bool = False) -> None:  # noqa: A002 (the word for it)
        """Commits when enough has gathered, or else with `all`.

        Raises `CommitConflict` (nothing is written: look again), `CommitFailed` and `CommitUnknown`.
        """
        if (all or self._is_enough()) and (self._rows or self._gone or self._notes or self._states):
            try:
                self._commit()
            finally:
                self._table = self._opened()
                self._files = files_of(self._table)
                self._forget()

    def _forget(self) -> None:
        self._store = fs.PyFileSystem(DeltaStorageHandler.from_table(self._table._table))
        self._rows: list[pl.DataFrame] = []
        self._gone: list[pl.DataFrame] = []
        self._notes: dict[str, int] = {}
        self._states: dict[str, bytes] = {}
        self._since_s = None

    def _is_enough(self) -> bool:
        days = {day for rows in self._rows for day in rows[PARTITION].unique()}
        rows = sum(rows.height for rows in self._rows) + sum(gone.height for gone in self._gone)
        waited_s = time.monotonic() - (self._since_s or time.monotonic())
        return rows >= ENOUGH_ROWS or len(days) >= ENOUGH_DAYS or waited_s >= ENOUGH_S

    def _opened(self) -> DeltaTable:
        try:
            table = self._lake.table(self.dataset)
        except STORE_ERRORS as error:
            raise CommitFailed(f"{self.dataset.name}: {reason(error)}") from error
        if table is None:
            raise CommitFailed(f"{self._lake.uri(self.dataset)} is not there any more")
        return table

    def _commit(self) -> None:
        rows = pl.concat([pl.DataFrame(schema=self.dataset.schema), *self._rows])
        number = time.time_ns()
        before = {app: self.noted(app) for app in (*self._notes, *self._states)}
        added: list[AddAction] = []
        try:
            removed = list(self._leaving(added))
            added += self._coming(rows, {action.path for action in removed})
            for app, state in self._states.items():
                kept = pa.table({"state": pa.array([state], pa.large_binary())})
                pq.write_table(kept, _place(app, number), filesystem=self._store, compression="zstd")
            self._name([*added, *removed], number, before, rows)
        except (*STORE_ERRORS, pa.ArrowException, CommitConflict, CommitFailed) as error:
            self._discard(added, number)
            if isinstance(error, CommitFailed):
                raise
            raise CommitFailed(f"{self.dataset.name}: {reason(error)}") from error
        self._drop_states(number)

    def _leaving(self, added: list[AddAction]) -> Iterator[RemoveAction]:
        """The files that rows leave; what else is in them goes to files among `added`."""
        if not self._gone:
            return
        key = list(self.dataset.key)
        for (day,), gone in pl.concat(self._gone).unique().group_by(PARTITION):
            files = self._files.filter(pl.col(PARTITION) == day)
            found = 0
            for file, rows in zip(files.to_dicts(), scans(self._table, files["path"].to_list()), strict=True):
                ours = rows.join(gone.lazy(), on=key, how="semi", nulls_equal=True)
                if count := ours.select(pl.len()).collect().item():
                    found += count
                    yield removal(file, cast(date, day), is_change=True)
                    kept = rows.join(gone.lazy(), on=key, how="anti", nulls_equal=True)
                    added += moved(self._table, self.dataset, cast(date, day), [kept], Path(file["path"]).name)
            if found != gone.height:
                raise CommitConflict(
                    f"{self.dataset.name} {day}: of {gone.height} rows to be replaced {found} are there"
                )

    def _coming(self, rows: pl.DataFrame, leaving: set[str]) -> Iterator[AddAction]:
        for (day,), some in rows.sort(PARTITION, *self.dataset.z_order).group_by(PARTITION, maintain_order=True):
            others = self._files.filter(pl.col(PARTITION) == day, ~pl.col("path").is_in(list(leaving)))
            # Alone in its day the file is what maintenance would make of it.
            name = "part-00000" if others.height or leaving else "sorted-00000"
            values = some.drop(PARTITION)
            yield write_file(self._table, cast(date, day), values, f"{name}-{uuid4()}", LEVEL, is_change=True)

    def _name(
        self, actions: list[AddAction | RemoveAction], number: int, before: dict[str, int], rows: pl.DataFrame
    ) -> None:
        """The commit, on top of exactly one version; others may be faster, as long as they leave our series alone."""
        table, known = self._table, set(self._files["path"])
        for _ in range(COMMIT_TRIES):
            try:
                table.create_write_transaction(
                    actions,
                    "append",
                    table.schema(),
                    [PARTITION],
                    # No retry inside: it would go on top of commits that nobody has looked at.
                    commit_properties=CommitProperties(app_transactions=self._noted_with(number), max_commit_retries=0),
                    post_commithook_properties=QUIET,
                )
            except STORE_ERRORS as error:
                table = self._after(error, number)
                if self._has_landed(table, actions, number):
                    return
                if not isinstance(error, CommitFailedError):
                    raise
                known |= self._check(table, known, actions, before, rows)
            else:
                return
        raise CommitFailed(f"{self.dataset.name}: {COMMIT_TRIES} commits lost against other writers")

    @property
    def _own_app(self) -> str:
        """Says which commit was made last, so that one whose answer was lost can be found."""
        return f"derived/{self.dataset.name}"

    def _noted_with(self, number: int) -> list[Transaction]:
        noted = {**self._notes, **dict.fromkeys(self._states, number), self._own_app: number}
        return [Transaction(app, version) for app, version in noted.items()]

    def _has_landed(self, table: DeltaTable, actions: list[AddAction | RemoveAction], number: int) -> bool:
        """Somebody else may have made the next commit already, but not touched our files so soon."""
        ours = {action.path for action in actions if isinstance(action, AddAction)}
        return table.transaction_version(self._own_app) == number or not ours.isdisjoint(files_of(table)["path"])

    def _after(self, error: Exception, number: int) -> DeltaTable:
        try:
            return self._opened()
        except CommitFailed as again:
            raise CommitUnknown(f"{self.dataset.name}: {reason(error)}; and then: {again}") from error

    def _check(
        self,
        table: DeltaTable,
        known: set[str],
        actions: list[AddAction | RemoveAction],
        before: dict[str, int],
        rows: pl.DataFrame,
    ) -> set[str]:
        """Whether the commit may go on top of this version, too; its files."""
        files = files_of(table)
        conflict = CommitConflict(f"{self.dataset.name}: somebody else changed the same rows meanwhile")
        if any((table.transaction_version(app) or 0) != version for app, version in before.items()):
            raise conflict
        leaving = {action.path for action in actions if isinstance(action, RemoveAction)}
        if not leaving <= set(files["path"]):
            raise conflict
        days = rows[PARTITION].unique().implode()
        fresh = files.filter(~pl.col("path").is_in(list(known)), pl.col(PARTITION).is_in(days))
        key = list(self.dataset.key)
        for theirs in scans(table, fresh["path"].to_list()):
            if theirs.join(rows.lazy(), on=key, how="semi", nulls_equal=True).head(1).collect().height:
                raise conflict
        return set(files["path"])

    def _discard(self, added: list[AddAction], number: int) -> None:
        """Removes what no commit names."""
        for path in (*(action.path for action in added), *(_place(app, number) for app in self._states)):
            with contextlib.suppress(*STORE_ERRORS, pa.ArrowException):
                self._store.delete_file(path)

    def _drop_states(self, number: int) -> None:
        """Those that the new ones replace; one that stays behind harms nobody."""
        if not self._states:
            return
        ours = {_place(app, number).rpartition("-")[0]: number for app in self._states}
        with contextlib.suppress(*STORE_ERRORS, pa.ArrowException):
            for info in self._store.get_file_info(fs.FileSelector(STATES, allow_not_found=True)):
                name, _, version = info.path.rpartition("-")
                if name in ours and version.isdigit() and int(version) < number:
                    self._store.delete_file(info.path)


def _place(app: str, version: int) -> str:
    return f"{STATES}/{quote(app, safe='')}-{version}"
