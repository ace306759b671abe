"""What the metadata of a table says: the log, the list of files, their footers. No row is read."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlparse

import polars as pl
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.fs import DeltaStorageHandler
from pyarrow import ArrowException, fs

from crypto_lake.models import Dataset
from crypto_lake.query.days import DAY, is_market, is_within, midnight
from crypto_lake.query.findings import Findings
from crypto_lake.query.logged import are_by_file
from crypto_lake.query.source import PARTITION, Source
from crypto_lake.query.span import TICK

# Footers are read side by side: on a busy disk each mostly waits.
READERS: Final = 8


@dataclass(frozen=True, slots=True)
class File:
    """A file as the log has it; of a sink's file only path and day are known before its footer is read."""

    path: str
    day: date | None
    size: int | None = None
    rows: int | None = None
    first: datetime | None = None
    last: datetime | None = None
    is_flat: bool = False  # all of it of a venue that is covered by file: not every day has one


@dataclass(frozen=True, slots=True)
class Footer:
    """What a Parquet file says of itself."""

    rows: int
    schema: pl.Schema


@dataclass(frozen=True, slots=True)
class Stored:
    """A file as it is: no size when it is not there, no footer where none is read (JSONL, object stores)."""

    size: int | None
    footer: Footer | None = None
    is_whole: bool = True


GONE: Final = Stored(None)


@dataclass(frozen=True, slots=True)
class Seen:
    """A table in short: its files inside the span, their bytes, and their rows where the metadata knows."""

    form: str
    files: int
    size: int
    rows: int | None
    days: tuple[date, ...]
    missing_days: int


def look(source: Source, findings: Findings, *, since: datetime | None, until: datetime | None, now: datetime) -> Seen:
    """Checks the files of the days from `since` to before `until` against the log and against the dataset."""
    if source.table is not None:
        _check_schema(source.dataset, _schema(source.table), findings, place=source.table.table_uri)
        _check_partitions(source.dataset, source.table, findings)
        every = _logged(source)
        is_flat = bool(every) and all(each.is_flat for each in every)
        files = [each for each in every if each.day is None or is_within(each.day, since, until)]
        stored = _stored_delta(source.table, files)
    else:
        is_flat = False
        files = [File(str(path), day) for day, path in source.files if is_within(day, since, until)]
        stored = _stored(files, lambda path: _local(Path(path)))
    for file in files:
        _check_file(source.dataset, file, stored.get(file.path, GONE), findings)
    days = tuple(sorted({file.day for file in files if file.day}))
    regular = tuple(sorted({file.day for file in files if file.day and not file.is_flat}))
    missing = 0 if is_flat else _check_days(source.dataset, regular, findings, since=since, until=until, now=now)
    counted = [_rows(file, stored.get(file.path, GONE).footer) for file in files]
    if not any(counted) and is_market(source.dataset):
        which = " of these days" if since or until else ""
        findings.add(source.dataset, "empty_table", "warn", f"{source.dataset.name} holds no row{which}")
    return Seen(
        "delta" if source.table is not None else files[0].path.rpartition(".")[2] if files else "files",
        len(files),
        sum(stored.get(file.path, GONE).size or 0 for file in files),
        None if None in counted else sum(filter(None, counted)),
        days,
        missing,
    )


def _schema(table: DeltaTable) -> dict[str, Any]:
    return dict(pl.Schema(table.schema()))


def _check_schema(dataset: Dataset, found: dict[str, Any], findings: Findings, *, place: str) -> None:
    for name, dtype in dataset.schema.items():
        if name not in found and dataset.column(name).nullable:
            findings.add(dataset, "schema", "info", f"{place}: column {name} is not there yet and reads as null")
        elif name not in found:
            findings.add(dataset, "schema", "error", f"{place}: column {name} is missing")
        elif found[name] != dtype:
            findings.add(dataset, "schema", "error", f"{place}: column {name} is {found[name]}, not {dtype}")
    for name in found.keys() - dataset.schema.keys():
        findings.add(dataset, "schema", "info", f"{place}: column {name} is not declared")


def _check_partitions(dataset: Dataset, table: DeltaTable, findings: Findings) -> None:
    by = table.metadata().partition_columns
    if by != [PARTITION]:
        findings.add(dataset, "schema", "error", f"{table.table_uri}: partitioned by {by}, not by {PARTITION}")


def _logged(source: Source) -> list[File]:
    assert source.table is not None
    clock = source.dataset.partition
    actions = pl.DataFrame(source.table.get_add_actions(flatten=True))
    names = ("path", f"partition.{PARTITION}", "size_bytes", "num_records", f"min.{clock}", f"max.{clock}")
    columns = [actions[name].to_list() if name in actions.columns else [None] * actions.height for name in names]
    is_flat = are_by_file(source.dataset, actions).to_list()
    return [
        File(unquote(path), _day(day), size, rows, _instant(first), _instant(last), flat)
        for path, day, size, rows, first, last, flat in zip(*columns, is_flat, strict=True)
    ]


def _day(value: Any) -> date | None:
    """The day of a partition, in a table that is partitioned as it should be."""
    return value if type(value) is date else None


def _instant(value: Any) -> datetime | None:
    return value if isinstance(value, datetime) else None


def _stored_delta(table: DeltaTable, files: list[File]) -> dict[str, Stored]:
    place = urlparse(table.table_uri)
    if place.scheme == "file":
        folder = Path(unquote(place.path))
        return _stored(files, lambda path: _local(folder / path))
    # An object is there as a whole or not at all: its size says enough, and a list costs one request for many files.
    store = fs.PyFileSystem(DeltaStorageHandler.from_table(table._table))
    folders = {file.path.rpartition("/")[0] for file in files}
    lists = (store.get_file_info(fs.FileSelector(folder, allow_not_found=True)) for folder in folders)
    return {info.path: Stored(info.size) for infos in lists for info in infos}


def _stored(files: Iterable[File], ask: Callable[[str], Stored]) -> dict[str, Stored]:
    paths = [file.path for file in files]
    with ThreadPoolExecutor(READERS) as readers:
        return dict(zip(paths, readers.map(ask, paths), strict=True))


def _local(path: Path) -> Stored:
    try:
        size = path.stat().st_size
    except OSError:
        return GONE
    if path.suffix != ".parquet":
        return Stored(size)
    try:
        with pq.ParquetFile(path) as file:
            return Stored(size, Footer(file.metadata.num_rows, pl.Schema(file.schema_arrow)))
    except (ArrowException, OSError):
        return Stored(size, is_whole=False)


def _check_file(dataset: Dataset, file: File, stored: Stored, findings: Findings) -> None:
    span = {"first_time": midnight(file.day), "last_time": midnight(file.day)} if file.day else {}
    if stored.size is None:
        findings.add(dataset, "file_missing", "error", f"{file.path} is not there", **span)
    elif file.size is not None and stored.size != file.size:
        findings.add(
            dataset, "file_size", "error", f"{file.path} has {stored.size} bytes, not {file.size}",
            observed=float(stored.size), threshold=float(file.size), **span,
        )  # fmt: skip
    elif not stored.is_whole:
        findings.add(dataset, "file_unreadable", "error", f"{file.path} is no whole Parquet file", **span)
    elif not stored.size or 0 in (file.rows, stored.footer and stored.footer.rows):
        findings.add(dataset, "file_empty", "error", f"{file.path} holds no row", **span)
    elif stored.footer is not None:
        _check_footer(dataset, file, stored.footer, findings, span)
    _check_day(dataset, file, findings, span)


def _check_footer(dataset: Dataset, file: File, footer: Footer, findings: Findings, span: dict[str, datetime]) -> None:
    if file.size is None:
        held = dict(footer.schema) | {PARTITION: dataset.schema[PARTITION]}
        _check_schema(dataset, held, findings, place=file.path)
    elif file.rows is not None and file.rows != footer.rows:
        findings.add(
            dataset, "row_count", "error", f"{file.path} has {footer.rows} rows, the log says {file.rows}",
            observed=float(footer.rows), threshold=float(file.rows), **span,
        )  # fmt: skip


def _check_day(dataset: Dataset, file: File, findings: Findings, span: dict[str, datetime]) -> None:
    """Whether the rows of a file are of the day whose directory it is in."""
    if file.day is None:
        findings.add(dataset, "wrong_day", "error", f"{file.path} belongs to no day")
    elif file.size is None:
        return  # of a sink's file the folder's name decides
    elif file.rows is None or file.first is None or file.last is None:
        text = f"the log has no rows or no times of {file.path}: readers cannot skip it"
        findings.add(dataset, "no_statistics", "warn", text, **span)
    elif not (midnight(file.day) <= file.first and file.last < midnight(file.day) + DAY):
        text = f"{file.path} has rows from {file.first} to {file.last}"
        findings.add(dataset, "wrong_day", "error", text, **span | {"first_time": file.first, "last_time": file.last})


def _check_days(
    dataset: Dataset,
    held: tuple[date, ...],
    findings: Findings,
    *,
    since: datetime | None,
    until: datetime | None,
    now: datetime,
) -> int:
    """Days without a file between the first and the last, or in the span that was asked for; how many."""
    first = since.date() if since else held[0] if held else None
    last = min(until - TICK, now).date() if until else held[-1] if held else None
    if first is None or last is None or first > last or not is_market(dataset):
        return 0
    missing = [day for day in pl.date_range(first, last, eager=True) if day not in set(held)]
    for begin, end in _stretches(missing):
        days = (end - begin).days + 1
        text = f"{dataset.name} has no file of {begin}" + (f" to {end}, {days} days" if days > 1 else "")
        findings.add(
            dataset, "missing_day", "warn", text,
            first_time=midnight(begin), last_time=midnight(end) + DAY, observed=float(days),
        )  # fmt: skip
    return len(missing)


def _stretches(days: list[date]) -> list[tuple[date, date]]:
    """Days that follow each other as first and last."""
    found: list[tuple[date, date]] = []
    for day in days:
        if found and found[-1][1] + DAY == day:
            found[-1] = found[-1][0], day
        else:
            found.append((day, day))
    return found


def _rows(file: File, footer: Footer | None) -> int | None:
    return file.rows if file.rows is not None else footer.rows if footer else None
