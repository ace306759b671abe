"""Puts the rows of some files of a table into other files: the only commit here that removes a file.

deltalake's own `optimize` is not used. Two of its runs that overlap both succeed and leave every row twice (1.6.6:
removals without a change of data are left out of its conflict check), and its z-order swaps the halves of each byte
as soon as there are two columns, so that one symbol's hour lies all over the day. Here a commit names the files that
it replaces, is made for exactly one version of the table, and only while the table holds all of them.
"""

import json
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Final, cast

import polars as pl
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties
from deltalake.exceptions import CommitFailedError
from deltalake.fs import DeltaStorageHandler
from deltalake.transaction import AddAction, RemoveAction
from pyarrow import fs

from crypto_lake.models import Dataset
from crypto_lake.models.dataset import TIME
from crypto_lake.writers import CommitFailed
from crypto_lake.writers.delta import PARTITION, REARRANGED, Lake

# Appenders commit every some seconds and a commit takes milliseconds: losing so often means that something is wrong.
COMMIT_TRIES: Final = 50
# Rows that are held at once, measured in memory; sorting needs about three times that.
PIECE_BYTES: Final = 128 * 1024 * 1024
# One symbol's hour should be a short read, whether a row is a trade or fifty price levels.
GROUP_BYTES: Final = 8 * 1024 * 1024
GROUP_ROWS: Final = (4_096, 131_072)
SAMPLE_ROWS: Final = 10_000
MOVED_LEVEL: Final = 3
SPILL_ROWS: Final = 250_000
# Names of columns that live while a day is cut into pieces.
CELL, PIECE, CELL_LENGTH = "__cell", "__piece", "10m"
# A longer text (a rejected payload) would make the log heavy and prunes nothing.
STATISTICS_TEXT: Final = 64
FILES: Final = {
    "path": pl.String,
    "size_bytes": pl.Int64,
    "modification_time": pl.Int64,
    PARTITION: pl.Date,
}
# Paths that stand in the log as they are; others (escaped ones, of another writer) are left alone.
PLAIN_PATH: Final = rf"^{PARTITION}=\d{{4}}-\d\d-\d\d/[A-Za-z0-9._-]+$"
# The drain's process makes the checkpoints: two processes that write the same one are not protected from each other.
QUIET: Final = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)


def files_of(table: DeltaTable) -> pl.DataFrame:
    """The table's files: path, size_bytes, modification_time (ms), date."""
    actions = pl.DataFrame(table.get_add_actions(flatten=True))
    if f"partition.{PARTITION}" not in actions.columns:
        return pl.DataFrame(schema=FILES)
    files = actions.rename({f"partition.{PARTITION}": PARTITION}).select(*FILES)
    return files.filter(pl.col("path").str.contains(PLAIN_PATH)).sort("modification_time", "path")


def rewrite(
    lake: Lake, dataset: Dataset, day: date, old: pl.DataFrame, *, prefix: str, level: int, by: Sequence[str]
) -> tuple[int, int]:
    """Replaces the files `old` of a day by files named `prefix`-..., their rows sorted by `by`.

    Returns the number of new files and their bytes. Raises `CommitFailed`, and then nothing has changed: what was
    written already is an orphan, which a full vacuum removes.
    """
    table = lake.table(dataset)
    assert table is not None
    files = scans(table, old["path"].to_list())
    added: list[AddAction] = []
    written = 0
    for piece in _sorted_pieces(files, by):
        added.append(write_file(table, day, piece, f"{prefix}-{len(added):05}-{uuid.uuid4()}", level))
        written += piece.height
    held = pl.concat(files).select(pl.len()).collect().item()
    if written != held:
        raise CommitFailed(f"{dataset.name} {day}: {written} rows written of {held}")
    _commit(lake, dataset, day, old, added, prefix)
    return len(added), sum(file.size for file in added)


def note(table: DeltaTable, properties: CommitProperties) -> None:
    """Commits a note (an app transaction) without any file."""
    table.create_write_transaction(
        [], "append", table.schema(), [PARTITION], commit_properties=properties, post_commithook_properties=QUIET
    )


def _commit(lake: Lake, dataset: Dataset, day: date, old: pl.DataFrame, added: list[AddAction], what: str) -> None:
    removed = [removal(file, day) for file in old.to_dicts()]
    # No retry inside: a retry goes on top of commits that nobody has looked at, which is how rows double.
    properties = CommitProperties(custom_metadata={REARRANGED: what}, max_commit_retries=0)
    for _ in range(COMMIT_TRIES):
        table = lake.table(dataset)
        assert table is not None
        if not set(old["path"]) <= set(files_of(table)["path"]):
            raise CommitFailed(f"{dataset.name} {day}: somebody else replaced the files meanwhile")
        try:
            table.create_write_transaction(
                [*added, *removed],
                "append",
                table.schema(),
                [PARTITION],
                commit_properties=properties,
                post_commithook_properties=QUIET,
            )
        except CommitFailedError:
            continue
        return
    raise CommitFailed(f"{dataset.name} {day}: {COMMIT_TRIES} commits lost against other writers")


def removal(file: dict[str, Any], day: date, *, is_change: bool = False) -> RemoveAction:
    """What takes a file (a row of `files_of`) out of its table; `is_change` if rows go with it."""
    return RemoveAction(file["path"], is_change, now_ms(), file["size_bytes"], {PARTITION: day.isoformat()})


def moved(table: DeltaTable, dataset: Dataset, day: date, files: Sequence[pl.LazyFrame], name: str) -> list[AddAction]:
    """The rows of some files of a day in new files, which no commit names yet; nothing, when there are none.

    They are called after the file `name`, by what maintenance did to it.
    """
    prefix, by = name.partition("-")[0], list(dataset.z_order)
    pieces = (piece for piece in _sorted_pieces(files, by) if piece.height)
    return [
        write_file(table, day, piece, f"{prefix}-{number:05}-{uuid.uuid4()}", MOVED_LEVEL)
        for number, piece in enumerate(pieces)
    ]


def scans(table: DeltaTable, paths: Sequence[str]) -> list[pl.LazyFrame]:
    """The rows of each file, with all the columns that the table has, whatever this program knows of them."""
    columns = dict(pl.Schema(table.schema()))
    del columns[PARTITION]
    root = table.table_uri.rstrip("/")
    casts = pl.ScanCastOptions(datetime_cast=["nanosecond-downcast", "convert-timezone"])
    how: dict[str, Any] = {"missing_columns": "insert", "hive_partitioning": False, "glob": False}
    return [pl.scan_parquet(f"{root}/{path}", schema=columns, cast_options=casts, **how) for path in paths]


def _sorted_pieces(files: Sequence[pl.LazyFrame], by: Sequence[str]) -> Iterator[pl.DataFrame]:
    """The rows in order, in pieces of bounded memory, each of which goes on where the one before ended."""
    *groups, clock = by[:2]
    rows = pl.concat(files)
    cell = pl.col(clock).dt.truncate(CELL_LENGTH).alias(CELL)
    cells = rows.select(*groups, cell).group_by(*groups, CELL).len().collect(engine="streaming")
    at_once = PIECE_BYTES // _row_bytes(rows)
    cells = cells.sort(*groups, CELL).with_columns(((pl.col("len").cum_sum() - 1) // at_once).alias(PIECE))
    if cells[PIECE].n_unique() <= 1:
        yield rows.collect().sort(by)
        return
    cells = cells.drop("len")
    with tempfile.TemporaryDirectory(prefix="crypto_lake_sort_") as folder:
        # File by file: over all of them Polars reads so far ahead that memory grows with the day.
        for number, file in enumerate(files):
            numbered = file.with_columns(cell).join(cells.lazy(), on=[*groups, CELL], how="left", nulls_equal=True)
            _spill(numbered.drop(CELL), Path(folder), number)
        for piece in sorted(Path(folder).iterdir()):
            yield pl.scan_ipc(piece / "*.arrow").collect().sort(by)


def _row_bytes(rows: pl.LazyFrame) -> int:
    """About how many bytes of memory a row takes."""
    sample = rows.head(SAMPLE_ROWS).collect()
    return max(1, int(sample.estimated_size() / max(1, sample.height)))


def _spill(numbered: pl.LazyFrame, folder: Path, number: int) -> None:
    """Writes each piece's rows of a file to a folder of its own on the local disk."""
    for count, batch in enumerate(numbered.collect_batches(chunk_size=SPILL_ROWS, maintain_order=False)):
        for (piece,), part in batch.partition_by(PIECE, as_dict=True, include_key=False).items():
            target = folder / f"{piece:06}"
            target.mkdir(exist_ok=True)
            part.write_ipc(target / f"{number:06}-{count:06}.arrow", compression="lz4")


def write_file(
    table: DeltaTable, day: date, rows: pl.DataFrame, name: str, level: int, *, is_change: bool = False
) -> AddAction:
    """Writes rows of one day to a file, which no commit names yet; `is_change` if they are new to the table."""
    path = f"{PARTITION}={day.isoformat()}/{name}.parquet"
    store = fs.PyFileSystem(DeltaStorageHandler.from_table(table._table))
    lowest, highest = GROUP_ROWS
    bytes_each = max(1, rows.estimated_size() // max(1, rows.height))
    leaves = [leaf for column, dtype in rows.schema.items() for leaf in _leaves(column, dtype)]
    pq.write_table(
        rows.to_arrow(),
        path,
        filesystem=store,
        row_group_size=min(highest, max(lowest, GROUP_BYTES // bytes_each)),
        compression="zstd",
        compression_level=level,
        use_dictionary=[leaf for leaf, dtype in leaves if dtype in (pl.String, pl.Float64)],
        # Ids and times rise: their differences are small.
        column_encoding={leaf: "DELTA_BINARY_PACKED" for leaf, dtype in leaves if dtype in (pl.Int64, TIME)},
        write_page_index=True,
        store_schema=False,
    )
    size = store.get_file_info(path).size
    return AddAction(path, size, {PARTITION: day.isoformat()}, now_ms(), is_change, json.dumps(_statistics(rows)))


def _leaves(name: str, dtype: pl.DataType) -> Iterator[tuple[str, pl.DataType]]:
    """The columns inside a column, by the paths that Parquet gives them."""
    if isinstance(dtype, pl.List):
        yield from _leaves(f"{name}.list.element", cast(pl.DataType, dtype.inner))
    elif isinstance(dtype, pl.Struct):
        for field in dtype.fields:
            yield from _leaves(f"{name}.{field.name}", cast(pl.DataType, field.dtype))
    else:
        yield name, dtype


def _statistics(rows: pl.DataFrame) -> dict[str, Any]:
    """What the log says of a file: readers skip it by that, so it says nothing that it does not know for certain."""
    plain = [name for name, dtype in rows.schema.items() if dtype in (pl.Int64, pl.Float64, pl.String, TIME)]
    lows, highs = (rows.select(plain).select(pl.all().min()), rows.select(plain).select(pl.all().max()))
    usable = [name for name in plain if _is_usable(rows[name], lows[name][0], highs[name][0])]
    return {
        "numRecords": rows.height,
        "minValues": {name: statistic(lows[name][0]) for name in usable},
        "maxValues": {name: statistic(highs[name][0]) for name in usable},
        "nullCount": {name: rows[name].null_count() for name in plain},
    }


def _is_usable(values: pl.Series, low: Any, high: Any) -> bool:
    if low is None:
        return False
    if isinstance(low, str):
        return max(len(low), len(high)) <= STATISTICS_TEXT
    return values.dtype != pl.Float64 or bool(values.is_finite().all())


def statistic(value: Any) -> Any:
    """A value of a file's statistics as the log writes it."""
    return value.strftime("%Y-%m-%dT%H:%M:%S.%fZ") if hasattr(value, "strftime") else value


def now_ms() -> int:
    """Our clock, milliseconds since 1970, as the log counts."""
    return time.time_ns() // 1_000_000
