"""Rows into one file for other programs: Parquet, CSV or JSONL, in as much memory as a piece of it takes."""

import contextlib
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Final, Literal, get_args

import polars as pl
from pyarrow.parquet import ParquetWriter

from crypto_lake.config import ConfigError

Form = Literal["parquet", "csv", "jsonl"]
FORMS: Final[tuple[str, ...]] = get_args(Form)
# Rows are gathered to so many bytes: few large groups of rows in a Parquet file are read faster than many small ones.
GATHER_BYTES: Final = 64 * 2**20
UNFINISHED: Final = ".tmp"


def form_of(path: Path) -> Form:
    """What a file becomes by its ending. Raises `ConfigError`."""
    found: dict[str, Form] = {f".{form}": form for form in get_args(Form)}
    if path.suffix not in found:
        raise ConfigError(f"--out {path}: the ending says what it becomes: {', '.join(found)}")
    return found[path.suffix]


def write(path: Path, form: Form, schema: pl.Schema, frames: Iterable[pl.DataFrame]) -> int:
    """All rows of `frames`, which have that schema, into a new file that has its name when it is whole; how many.

    CSV has no lists: columns that are some are left out. Raises `ConfigError` when the file cannot be written.
    """
    unfinished = path.with_name(f".{path.name}{UNFINISHED}")
    try:
        with unfinished.open("wb") as file, _Pen(file, form, schema) as pen:
            for frame in frames:
                pen.write(frame)
        unfinished.rename(path)
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):  # where nothing can be written nothing is left behind
            unfinished.unlink(missing_ok=True)
    return pen.rows


def left_out(form: Form, schema: pl.Schema) -> list[str]:
    """The columns that a form cannot hold."""
    return [name for name, dtype in schema.items() if form == "csv" and dtype.is_nested()]


class _Pen:
    """Writes frames to an open file."""

    def __init__(self, file: IO[bytes], form: Form, schema: pl.Schema) -> None:
        self.rows = 0
        self._file = file
        self._form = form
        self._columns = [name for name in schema if name not in left_out(form, schema)]
        self._gathered = [pl.DataFrame(schema=schema).select(self._columns)]
        self._gathered_bytes = 0
        self._closing = ExitStack()

    def __enter__(self) -> "_Pen":
        empty = self._gathered[0]
        if self._form == "parquet":
            schema = empty.to_arrow().schema
            self._parquet = self._closing.enter_context(ParquetWriter(self._file, schema, compression="zstd"))
        elif self._form == "csv":
            empty.write_csv(self._file)
        return self

    def write(self, frame: pl.DataFrame) -> None:
        """The next rows."""
        self.rows += frame.height
        self._gathered.append(frame.select(self._columns))
        self._gathered_bytes += int(frame.estimated_size())
        if self._gathered_bytes >= GATHER_BYTES:
            self._flush()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._flush()
        self._closing.close()

    def _flush(self) -> None:
        rows = pl.concat(self._gathered)
        self._gathered, self._gathered_bytes = [rows.clear()], 0
        if self._form == "parquet":
            if rows.height:
                self._parquet.write_table(rows.to_arrow())
        elif self._form == "csv":
            rows.write_csv(self._file, include_header=False)
        else:
            rows.write_ndjson(self._file)
