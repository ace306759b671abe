"""History into a table: files that it does not name, then one commit that names them all and marks what they are.

A drain commits what came in the last seconds; here millions of rows belong together, and a collector may be writing
to the same table all the while. So the files are written first, seen by nobody, and the commit is made for exactly
one version of the table. When somebody was faster, only what was added meanwhile is looked at.
"""

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, cast
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
from crypto_lake.models.dataset import TIME, Column
from crypto_lake.writers import CommitConflict, CommitFailed, CommitUnknown
from crypto_lake.writers.delta import PARTITION, STORE_ERRORS, Lake, reason
from crypto_lake.writers.rewrite import COMMIT_TRIES, QUIET, files_of, moved, now_ms, removal, scans, statistic

# The same for every row of a file, or nearly: as a dictionary they cost nothing.
CONSTANT: Final = pa.dictionary(pa.int32(), pa.string())
# In files with all symbols of a day rows stand together by these.
CLUSTERED: Final = frozenset({"symbol", "underlying"})
# Whose last digits are noise: laid down byte by byte only the first ones are packed, in half the time and smaller.
AMOUNTS: Final = frozenset({"volume", "quantity", "quote_quantity", "quote_volume"})
OF_CONTRACTS: Final = frozenset({"expiry", "right", "strike"})
# Smaller pieces wait for the next ones, so that a small file's rows make one group, not one per piece.
GROUP_ROWS: Final = 32_768
# In larger groups one symbol's rows would be a long read.
MOST_GROUP_ROWS: Final = 65_536
LEVEL: Final = 1
# A constant column is cut from one that is this long, or a multiple.
REPEATED: Final = 1 << 18
# Eight times what pyarrow takes at once: a tenth less time.
BATCH_ROWS: Final = 8_192


@dataclass(frozen=True, slots=True)
class Mark:
    """Which days of a month are in the table, as bits of an app transaction's version: bit 0 is the first."""

    app: str
    days: int


@dataclass(slots=True)
class _Part:
    """A day's file that is being written."""

    path: str
    writer: pq.ParquetWriter
    groups: list[Any]
    waiting: list[pa.Table] = field(default_factory=list)
    waiting_rows: int = 0
    rows: int = 0
    words: dict[str, set[str]] = field(default_factory=dict)
    spans: list[tuple[Any, Any]] = field(default_factory=list)  # of the order column, piece by piece


class Bulk:
    """Rows on their way into a table. Whoever does not `commit` has to `discard`.

    Columns that hold one word in all the rows to come (venue, symbol, source) are named with `speak`. Where the symbol
    is not one of them its rows stand together, as in files that have all symbols of a day; they may be so many that
    keys are not compared when somebody else was faster: rows with the same words in the same stretch are a conflict.
    Columns that are `silent`, of which the road says nothing, are left out of the files: to every reader they are null.
    """

    def __init__(self, lake: Lake, dataset: Dataset, *, silent: Collection[str] = ()) -> None:
        self.dataset = dataset
        assert all(dataset.column(name).nullable for name in silent), "what is left out is null"
        self._columns = [each for each in dataset.columns if each.name != PARTITION and each.name not in silent]
        self._lake = lake
        self._table = _opened(lake, dataset)
        self._files = files_of(self._table)
        self._store = fs.PyFileSystem(DeltaStorageHandler.from_table(self._table._table))
        self._parts: dict[date, _Part] = {}
        self._says: dict[str, str] = {}
        self._symbols: set[str] = set()
        self._removed: list[RemoveAction] = []
        self._moved: list[AddAction] = []
        self._actions: list[AddAction] = []

    def speak(self, **says: str) -> None:
        """What stands in these columns in all rows from here on."""
        self._says = says

    def held(
        self, day: date, columns: Sequence[str], *, above: Any = None, up_to: Any = None, **equals: str
    ) -> pl.DataFrame:
        """These columns of the rows that the table holds on a day, of all whose columns have these values.

        `above` and `up_to` limit the order column.
        """
        paths = self._files.filter(pl.col(PARTITION) == day)["path"].to_list()
        order = pl.col(self.dataset.order or "")
        limits = [] if above is None else [order > above]
        limits += [] if up_to is None else [order <= up_to]
        if PARTITION in columns:
            columns = [name for name in columns if name != PARTITION]
            return _read(self._table, paths, columns, equals, limits).with_columns(pl.lit(day).alias(PARTITION))
        return _read(self._table, paths, columns, equals, limits)

    def is_empty(self, day: date) -> bool:
        """Whether the table holds nothing on that day."""
        return self._files.filter(pl.col(PARTITION) == day).is_empty()

    def replace(self, days: Sequence[date], rows: pl.Expr) -> list[pl.LazyFrame]:
        """Takes rows out of the table with the commit to come: those of these days for which `rows` holds.

        What else is in their files moves to other files. Returns what is taken out, file by file. `add` does not look
        at what is taken out: the same keys may come again.
        """
        found = []
        for file, held, count in self._with(days, rows):
            if count:
                day = file[PARTITION]
                found.append(held.filter(rows).with_columns(pl.lit(day).alias(PARTITION)))
                self._removed.append(removal(file, day, is_change=True))
                kept = held.filter(~rows.fill_null(value=False))
                self._moved += moved(self._table, self.dataset, day, [kept], Path(file["path"]).name)
        return found

    def count(self, days: Sequence[date], rows: pl.Expr) -> int:
        """For how many rows of these days `rows` holds."""
        return sum(count for _, _, count in self._with(days, rows))

    def _with(self, days: Sequence[date], rows: pl.Expr) -> Iterator[tuple[dict[str, Any], pl.LazyFrame, int]]:
        """The files of these days, their rows, and for how many of them `rows` holds."""
        files = self._files.filter(pl.col(PARTITION).is_in(days))
        for file, held in zip(files.to_dicts(), scans(self._table, files["path"].to_list()), strict=True):
            yield file, held, held.filter(rows).select(pl.len()).collect(engine="streaming").item()

    def written(self) -> list[pl.LazyFrame]:
        """The rows that were added, file by file; nothing can be added any more."""
        self._actions = self._finish()
        files = zip(self._parts, scans(self._table, [part.path for part in self._parts.values()]), strict=True)
        return [rows.with_columns(pl.lit(day).alias(PARTITION)) for day, rows in files]

    def add(self, day: date, rows: pl.DataFrame) -> None:
        """Rows of one day, as `shape` makes them, none of whose keys the table holds."""
        if rows.is_empty():
            return
        part = self._parts.get(day) or self._begin(day)
        if "symbol" in self._says:
            self._symbols.add(self._says["symbol"])
        else:
            order = rows[str(self.dataset.order)]
            part.spans.append((order.min(), order.max()))
        part.waiting.append(self._as_arrow(rows))
        for name, word in self._says.items():
            part.words.setdefault(name, set()).add(word)
        part.waiting_rows += rows.height
        part.rows += rows.height
        if part.waiting_rows >= GROUP_ROWS:
            _flush(part)

    def commit(self, marks: Sequence[Mark]) -> int:
        """Names the files and marks the days in one commit; the number of rows.

        Raises `CommitConflict` when somebody added rows under the same keys meanwhile (nothing is written: look again),
        and `CommitFailed`.
        """
        added = [*(self._actions or self._finish()), *self._moved]
        rows = sum(part.rows for part in self._parts.values())
        for _ in range(COMMIT_TRIES):
            try:
                self._commit(added, marks)
            except STORE_ERRORS as error:
                if not self._has_landed(marks, error):
                    self._look_again()
                    continue
            self._parts, self._moved = {}, []
            return rows
        raise CommitFailed(f"{self.dataset.name}: {COMMIT_TRIES} commits lost against other writers")

    def discard(self) -> None:
        """Removes the files that no commit names."""
        for part in self._parts.values():
            with contextlib.suppress(*STORE_ERRORS, pa.ArrowException):
                part.writer.close()
            with contextlib.suppress(*STORE_ERRORS):
                self._store.delete_file(part.path)
        for action in self._moved:
            with contextlib.suppress(*STORE_ERRORS):
                self._store.delete_file(action.path)
        self._parts, self._moved = {}, []

    def _begin(self, day: date) -> _Part:
        path = f"{PARTITION}={day.isoformat()}/{self._name(day)}-{uuid4()}.parquet"
        schema = self._schema()
        groups: list[Any] = []
        writer = pq.ParquetWriter(
            path,
            schema,
            filesystem=self._store,
            compression="zstd",
            compression_level=LEVEL,
            use_dictionary=[name for name in schema.names if self._repeats(name)],
            # Ids and times rise: their differences are small.
            column_encoding={name: how for name in schema.names if (how := self._encoding(name))},
            # Of what nobody looks for: writing down the lowest and highest price costs more than it saves.
            write_statistics=[name for name in schema.names if name in _sought(self.dataset) - set(self._says)],
            store_schema=False,
            metadata_collector=groups,
            write_batch_size=BATCH_ROWS,
        )
        part = self._parts[day] = _Part(path, writer, groups)
        return part

    def _name(self, day: date) -> str:
        """Alone in its day the file is what maintenance would make of it: sorted by symbol and time."""
        return "sorted-00000" if self.is_empty(day) else "part-00000"

    def _schema(self) -> pa.Schema:
        # What is never null needs no note per row that it is not.
        fields = [
            pa.field(column.name, CONSTANT if self._is_word(column) else _arrow_type(column.dtype), column.nullable)
            for column in self._columns
        ]
        return pa.schema(fields)

    def _repeats(self, name: str) -> bool:
        """Whether its values come again and again in a group of rows: one symbol's prices do, those of many do not."""
        dtype = self.dataset.schema[name]
        return dtype == pl.String or name in OF_CONTRACTS or (dtype == pl.Float64 and "symbol" in self._says)

    def _encoding(self, name: str) -> str:
        """How its values are laid down, where that is not the usual way."""
        if self.dataset.schema[name] in (pl.Int64, TIME):
            return "DELTA_BINARY_PACKED"
        return "BYTE_STREAM_SPLIT" if name in AMOUNTS and not self._repeats(name) else ""

    def _is_word(self, column: Column) -> bool:
        """Whether it is written as a dictionary: one word for all rows, or one for many rows in a row."""
        return column.name in self._says or column.name in CLUSTERED

    def _as_arrow(self, rows: pl.DataFrame) -> pa.Table:
        schema = self._schema()
        columns = [self._column(rows[field.name], field.type) for field in schema]
        return pa.Table.from_arrays(columns, schema=schema)

    def _column(self, values: pl.Series, wanted: pa.DataType) -> pa.Array | pa.ChunkedArray:
        if values.name in self._says:
            return _constant(self._says[values.name], len(values))
        if values.null_count() == len(values):
            return _nothing(wanted, len(values))
        if values.name in CLUSTERED:
            return _runs(values)
        return values.to_frame().to_arrow().column(0).cast(wanted)

    def _finish(self) -> list[AddAction]:
        return [self._closed(day, part) for day, part in sorted(self._parts.items())]

    def _closed(self, day: date, part: _Part) -> AddAction:
        _flush(part)
        part.writer.close()
        size = self._store.get_file_info(part.path).size
        (metadata,) = part.groups
        return AddAction(
            part.path, size, {PARTITION: day.isoformat()}, now_ms(), True, json.dumps(_statistics(metadata, part.words))
        )

    def _commit(self, added: list[AddAction], marks: Sequence[Mark]) -> None:
        transactions = [
            Transaction(mark.app, (self._table.transaction_version(mark.app) or 0) | mark.days) for mark in marks
        ]
        self._table.create_write_transaction(
            [*added, *self._removed],
            "append",
            self._table.schema(),
            [PARTITION],
            # No retry inside: it would go on top of commits that nobody has looked at.
            commit_properties=CommitProperties(app_transactions=transactions, max_commit_retries=0),
            post_commithook_properties=QUIET,
        )

    def _has_landed(self, marks: Sequence[Mark], error: Exception) -> bool:
        """Whether the table names our files (without any: our days). Raises `CommitFailed`, `CommitUnknown`."""
        try:
            self._table = _opened(self._lake, self.dataset)
            paths = {part.path for part in self._parts.values()} | {action.path for action in self._moved}
            landed = paths <= set(files_of(self._table)["path"])
            if not paths:
                noted = marked(self._table, [mark.app for mark in marks])
                landed = all(noted[mark.app] & mark.days == mark.days for mark in marks)
        except (*STORE_ERRORS, CommitFailed) as again:
            self._parts, self._moved = {}, []  # maybe a commit names them; if none does, a full vacuum takes them
            raise CommitUnknown(f"{self.dataset.name}: {reason(error)}; and then: {reason(again)}") from error
        if not landed and not isinstance(error, CommitFailedError):
            raise CommitFailed(f"{self.dataset.name}: {reason(error)}") from error
        return landed

    def _look_again(self) -> None:
        """Whether the files that are new in the table hold any of our keys, or files that we replace are gone."""
        files = files_of(self._table)
        fresh = files.join(self._files, on="path", how="anti").filter(pl.col(PARTITION).is_in(list(self._parts)))
        self._files = files
        if not {action.path for action in self._removed} <= set(files["path"]):
            raise CommitConflict(f"{self.dataset.name}: somebody else replaced the same files meanwhile")
        for (day,), some in fresh.group_by(PARTITION):
            if self._has_ours(cast(date, day), some["path"].to_list()):
                raise CommitConflict(f"{self.dataset.name} {day}: somebody else added the same rows meanwhile")

    def _has_ours(self, day: date, paths: Sequence[str]) -> bool:
        """Whether files hold keys that we add on a day; with all symbols in one file: rows with the same words."""
        if not self._symbols:
            words = {name: word for name, word in self._says.items() if name in (*self.dataset.key, "source")}
            lows, highs = zip(*self._parts[day].spans, strict=True)
            near = pl.col(str(self.dataset.order)).is_between(pl.lit(min(lows)), pl.lit(max(highs)))
            return not _read(self._table, paths, ["venue"], words, [near], at_most=1).is_empty()
        theirs = _read(self._table, paths, self.dataset.key, {"symbol": self._symbols})
        if theirs.is_empty():
            return False
        ours = _read(self._table, [self._parts[day].path], self.dataset.key, {})
        return not ours.join(theirs, on=list(self.dataset.key), how="semi").is_empty()


def marked(table: DeltaTable | None, apps: Sequence[str]) -> dict[str, int]:
    """The days that each app's mark names, as bits."""
    return {app: (table.transaction_version(app) or 0) if table else 0 for app in apps}


def _opened(lake: Lake, dataset: Dataset) -> DeltaTable:
    table = lake.table(dataset)
    if table is None:
        raise CommitFailed(f"{lake.uri(dataset)} is not there any more")
    return table


def _read(
    table: DeltaTable,
    paths: Sequence[str],
    columns: Sequence[str],
    equals: Mapping[str, str | set[str]],
    limits: Sequence[pl.Expr] = (),
    *,
    at_most: int | None = None,
) -> pl.DataFrame:
    schema = dict(pl.Schema(table.schema()))
    nothing = pl.DataFrame(schema={name: schema[name] for name in columns})
    conditions = [
        pl.col(name).is_in(list(value)) if isinstance(value, set) else pl.col(name) == value
        for name, value in equals.items()
    ]
    found = [rows.filter(*conditions, *limits).select(columns) for rows in scans(table, paths)]
    found = found if at_most is None else [rows.head(at_most) for rows in found]
    return pl.concat([nothing, *pl.collect_all(found)])


def _flush(part: _Part) -> None:
    if part.waiting:
        groups = -(-part.waiting_rows // MOST_GROUP_ROWS)
        part.writer.write_table(pa.concat_tables(part.waiting), row_group_size=-(-part.waiting_rows // groups))
        part.waiting, part.waiting_rows = [], 0


def _constant(word: str, count: int) -> pa.DictionaryArray:
    return _repeated(word, -(-count // REPEATED) * REPEATED).slice(0, count)


@lru_cache(maxsize=64)
def _repeated(word: str, count: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), count), pa.array([word], pa.string()))


def _nothing(wanted: pa.DataType, count: int) -> pa.Array:
    return _nulls(wanted, -(-count // REPEATED) * REPEATED).slice(0, count)


@lru_cache(maxsize=16)
def _nulls(wanted: pa.DataType, count: int) -> pa.Array:
    return pa.nulls(count, wanted)


def _runs(values: pl.Series) -> pa.DictionaryArray:
    """Texts each of which stands many times in a row: they are not looked at one by one again by the writer."""
    places = values.rle_id()
    firsts = places.search_sorted(pl.arange(0, int(places[-1]) + 1, eager=True, dtype=pl.UInt32))
    texts = values.gather(firsts)
    if texts.n_unique() < len(texts) or texts.null_count():  # a word may stand in a dictionary once, and nothing never
        return values.to_frame().to_arrow().column(0).cast(pa.string()).combine_chunks().dictionary_encode()
    return pa.DictionaryArray.from_arrays(places.cast(pl.Int32).to_arrow(), texts.to_arrow().cast(pa.string()))


def _arrow_type(dtype: pl.DataType) -> pa.DataType:
    return pl.Series([], dtype=dtype).to_arrow(compat_level=pl.CompatLevel.oldest()).type


def _sought(dataset: Dataset) -> set[str]:
    """The columns by which files are skipped, and what is in them is known without opening them."""
    return {*dataset.key, "venue", "symbol", "source", "time"}


def _statistics(metadata: pq.FileMetaData, words: Mapping[str, set[str]]) -> dict[str, Any]:
    """What the log says of a file, out of what the writer noted of its row groups, and the words that fill columns."""
    lows: dict[str, Any] = {name: min(some) for name, some in words.items()}
    highs: dict[str, Any] = {name: max(some) for name, some in words.items()}
    nulls: dict[str, int] = dict.fromkeys(words, 0)
    for name, group in _noted(metadata):
        nulls[name] = nulls.get(name, 0) + (group.null_count or 0)
        if group.has_min_max and not isinstance(group.min, bool):
            lows[name] = min(lows.get(name, group.min), group.min)
            highs[name] = max(highs.get(name, group.max), group.max)
    return {
        "numRecords": metadata.num_rows,
        "minValues": {name: statistic(value) for name, value in lows.items()},
        "maxValues": {name: statistic(value) for name, value in highs.items()},
        "nullCount": nulls,
    }


def _noted(metadata: pq.FileMetaData) -> Iterator[tuple[str, Any]]:
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            if column.statistics is not None:
                yield column.path_in_schema, column.statistics
