"""Lines of an official CSV to a frame under the table's names: header or none, times by their digits, nothing guessed.

There are two ways with one result. The plain one is Polars' CSV reader, and line by line where it stumbles; the
compiled one (`digits`, the extra `fast`) takes what has nothing unusual in it, which is nearly everything.
"""

import csv
import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from crypto_lake.models.dataset import TIME, Archive, Column, Dataset, FlatKind

if TYPE_CHECKING:
    from crypto_lake.processors.digits import Kind

Text = bytes | bytearray | memoryview
# In smaller pieces than this the compiled reader would not earn back the tenth of a second that it takes to make it.
WORTH_BYTES: Final = 1 << 20

# A file with more of them is no file with bad lines in it, it is a file of another kind.
REFUSED_AT_MOST: Final = 100_000
# So much is read line by line at once, for it is twenty times its size while it is lists of texts.
SINGLY_BYTES: Final = 1 << 16
# No line of these files is longer; a first line that is, is no header.
LONGEST_HEADER: Final = 1 << 16
# Of a bad line so much is told.
SHOWN_CHARS: Final = 80

BOM: Final = b"\xef\xbb\xbf"
WHOLE: Final = r"^[+-]?[0-9]+$"
NUMBER: Final = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
MOMENT: Final = r"^[0-9]{4}-[0-9]{2}-[0-9]{2} ([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]$"

# The least and the greatest number of each unit of time, which is what its number of digits says (PROTOCOLS D.6).
UNITS: Final = {
    "s": (10**9, 10**10 - 1),
    "ms": (10**12, 10**13 - 1),
    "us": (10**15, 10**16 - 1),
    "ns": (10**18, 2**63 - 1),
}
MICROSECONDS: Final = {"s": 1_000_000, "ms": 1000, "us": 1}
# The times of some files are texts, `2023-06-25 00:05:00`.
WORDS: Final = "text"

# By type: what the compiled reader makes of a field, what Arrow calls it, and what is said of a text that is none.
KINDS: Final[dict[pl.DataType, "Kind"]] = {
    pl.Int64(): "whole",
    pl.Float64(): "number",
    pl.Boolean(): "flag",
    pl.String(): "text",
    TIME: "time",
}
# In these there may be nothing, if the column may be null.
MAYBE: Final[dict[pl.DataType, "Kind"]] = {pl.Int64(): "maybe whole", pl.Float64(): "maybe number"}
ARROW: Final = {
    pl.Int64(): pa.int64(),
    pl.Float64(): pa.float64(),
    pl.Boolean(): pa.bool_(),
    TIME: pa.timestamp("us", "UTC"),
}
WRONG: Final = {
    pl.Int64(): "no whole number",
    pl.Float64(): "no finite number",
    pl.Boolean(): "not true or false",
    TIME: "no time",
}


class Misfit(Exception):
    """The file is not what it should be, and no line of it may be used. The text says what is wrong."""


class Parsed(NamedTuple):
    """Rows in the order of their lines, and `(line, reason)` of every line that is none."""

    frame: pl.DataFrame
    refused: list[tuple[bytes, str]]


@dataclass
class Layout:
    """How the lines of one file are read. `columns` are the table's, by place in the line; None is left out.

    It goes with the file from piece to piece: the first piece may begin with a header, and the first time that is
    read says in what unit (`s`, `ms`, `us`, `ns` or `text`) all others must be.
    """

    dataset: Dataset
    columns: tuple[Column | None, ...]
    has_header: bool
    unit: str | None = None
    compiled_from_bytes: int | None = WORTH_BYTES
    _has_begun: bool = False
    _kept: int = 0
    _refused: int = 0

    @classmethod
    def of(cls, dataset: Dataset, archive: Archive | FlatKind, text: Text) -> "Layout":
        """The layout of a file that begins with `text`. Raises `Misfit` if its columns are not those of `archive`."""
        line, _ = _first_line(bytes(text[:LONGEST_HEADER]).removeprefix(BOM))
        try:
            fields = _fields(line)
        except ValueError as error:
            raise Misfit(f"the first line is no line of a CSV: {error}") from None
        if re.match(NUMBER, fields[0]):
            return cls(dataset, _by_place(dataset, archive, len(fields)), has_header=False)
        return cls(dataset, _by_name(dataset, archive, [name.strip() for name in fields]), has_header=True)

    @cached_property
    def kept(self) -> dict[str, Column]:
        """The columns that are read, in the table's order."""
        read = {column.name for column in self.columns if column}
        return {column.name: column for column in self.dataset.columns if column.name in read}

    def parse(self, text: Text) -> Parsed:
        """The rows in `text`, the file's next whole lines; the end of its last line may be missing.

        The frame has the columns `kept` in the table's types; nothing in it refers to `text`. Raises `Misfit` when
        times are not all of one unit, when nothing so far is a row, and when too many lines are none.
        """
        if not self._has_begun:
            self._has_begun = True
            text = self._behind_header(text)
        frame = self._compiled(text)
        parsed = Parsed(frame, []) if frame is not None else self._plain(bytes(text))
        self._kept += parsed.frame.height
        self._refused += len(parsed.refused)
        if parsed.refused and not self._kept:
            raise Misfit(f"no line fits; {_told(parsed.refused[0])}")
        if self._refused > REFUSED_AT_MOST:
            raise Misfit(f"more than {REFUSED_AT_MOST} lines do not fit; {_told(parsed.refused[0])}")
        return parsed

    def _behind_header(self, text: Text) -> Text:
        text = text[len(BOM) :] if bytes(text[: len(BOM)]) == BOM else text
        return text[_first_line(bytes(text[:LONGEST_HEADER]))[1] :] if self.has_header else text

    def _compiled(self, text: Text) -> pl.DataFrame | None:
        """The rows by the compiled reader; None where it cannot be had or where it is not for these lines."""
        if self.compiled_from_bytes is None or len(text) < max(self.compiled_from_bytes, 1) or not self._kinds:
            return None
        digits, unit = _digits(), self.unit or self._first_unit(text)
        if digits is None or (self._times_at and unit not in UNITS):
            return None
        least, most = UNITS[unit] if unit else (0, 0)
        try:
            columns = digits.read_columns(
                text, self._kinds, least=least, most=most, scale=MICROSECONDS.get(unit or "", 0)
            )
        except digits.Unusual:
            return None
        frame = _frame([column for column in self.columns if column], columns).select(*self.kept)
        if any(frame[name].null_count() for name, column in self.kept.items() if not column.nullable):
            return None
        self.unit = unit
        return frame

    @cached_property
    def _kinds(self) -> "tuple[Kind, ...]":
        """What the compiled reader is to make of the fields; nothing if it cannot."""
        kinds = [_kind(column) if column else "skip" for column in self.columns]
        known = tuple(kind for kind in kinds if kind)
        return known if len(known) == len(kinds) else ()

    @cached_property
    def _times_at(self) -> list[int]:
        """The places of the times in a line."""
        return [place for place, column in enumerate(self.columns) if column and column.dtype == TIME]

    def _first_unit(self, text: Text) -> str | None:
        """The unit of the first time in `text`; None if it is no plain number, or if there are no times."""
        if not self._times_at:
            return None
        (place, *_), fields = self._times_at, bytes(text[:LONGEST_HEADER]).partition(b"\n")[0].split(b",")
        found = re.fullmatch(rb"[0-9]{1,19}", fields[place]) if place < len(fields) else None
        return unit_of(int(found[0])) if found else None

    def _plain(self, text: bytes) -> Parsed:
        """By Polars; where that does not go, by halves, so that a bad line takes few good ones along."""
        frame = self._at_once(text)
        if frame is not None:
            return Parsed(frame, [])
        middle = text.rfind(b"\n", 0, len(text) // 2) + 1
        if len(text) <= SINGLY_BYTES or not middle:
            return self._singly(text)
        front, back = self._plain(text[:middle]), self._plain(text[middle:])
        return Parsed(pl.concat([front.frame, back.frame]), front.refused + back.refused)

    def _at_once(self, text: bytes) -> pl.DataFrame | None:
        """The rows by Polars' reader; None if there is anything of which it could make something else than we do."""
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n")
        if not text.lstrip(b"\n"):
            return self._nothing()
        if not _is_simple(text, len(self.columns)):
            return None
        schema = {f"column_{place}": _read_as(column) for place, column in enumerate(self.columns, 1)}
        names = {f"column_{place}": column.name for place, column in enumerate(self.columns, 1) if column}
        try:
            frame = pl.read_csv(text, has_header=False, schema=schema, columns=list(names), quote_char=None)
        except pl.exceptions.PolarsError:  # line by line it will be said what it is
            return None
        return self._checked(frame.rename(names).select(*self.kept))

    def _checked(self, frame: pl.DataFrame) -> pl.DataFrame | None:
        """The frame with its times as times; None if a value is missing, not finite, or no time of the file's unit."""
        nulls = frame.null_count().row(0, named=True)
        if any(nulls[name] for name, column in self.kept.items() if not column.nullable):
            return None
        if not all(frame.select(pl.selectors.float().is_finite().all()).row(0)):
            return None
        times = [name for name, column in self.kept.items() if column.dtype == TIME]
        if not times:
            return frame
        ends = frame.select(pl.col(times).min().name.suffix(" first"), pl.col(times).max().name.suffix(" last")).row(0)
        units = {unit_of(end) or "" for end in ends if end is not None} | ({self.unit} if self.unit else set())
        if len(units) != 1 or not units <= UNITS.keys():
            return None
        (self.unit,) = units
        return frame.with_columns(_instants(frame[name], self.unit) for name in times)

    def _singly(self, text: bytes) -> Parsed:
        """Line by line. This way is the slowest one, and says what a line must be for all of them."""
        lines, rows, refused = _split(text, len(self.columns))
        wrong: dict[int, str] = {}
        columns = []
        for place, column in enumerate(self.columns):
            if column is None:
                continue
            given = pl.Series(column.name, [row[place] or None for row in rows], pl.String)
            columns.append(self._times(given) if column.dtype == TIME else _values(given, column.dtype))
            lost = columns[-1].is_null() & (given.is_not_null() if column.nullable else True)
            wrong = {at: _reason(column, given[at]) for at in lost.arg_true()} | wrong
        frame = pl.DataFrame(columns).select(*self.kept)
        if wrong:
            frame = frame.filter(pl.Series([at not in wrong for at in range(len(rows))], dtype=pl.Boolean))
            refused += [(*lines[at], why) for at, why in wrong.items()]
        return Parsed(frame, [(line, why) for _, line, why in sorted(refused)])

    def _times(self, given: pl.Series) -> pl.Series:
        """The instants of a column of texts, null where it is none. Raises `Misfit` if they are not of one unit."""
        numbers, words = _values(given, pl.Int64()).to_list(), given.str.contains(MOMENT)
        units = [WORDS if is_text else unit_of(number or 0) for number, is_text in zip(numbers, words, strict=True)]
        for unit, text in zip(units, given, strict=True):
            self.unit = self.unit or unit
            if unit and unit != self.unit:
                raise Misfit(f"times are not all of one unit: there is {text!r} ({unit}), and before it {self.unit}")
        if self.unit == WORDS:
            moments = given.set(~words, None).str
            return moments.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="us", time_zone="UTC", strict=False)
        known = [number if unit else None for number, unit in zip(numbers, units, strict=True)]
        return _instants(pl.Series(given.name, known, pl.Int64), self.unit or "us")

    def _nothing(self) -> pl.DataFrame:
        return pl.DataFrame(schema={name: column.dtype for name, column in self.kept.items()})


def unit_of(time: int) -> str | None:
    """The unit of a time since 1970, by its digits; None if no unit has so many."""
    return next((unit for unit, (least, most) in UNITS.items() if least <= time <= most), None)


@cache
def _digits() -> Any:
    """The module of the compiled reader; None where what it needs is not installed."""
    try:
        return importlib.import_module("crypto_lake.processors.digits")
    except ImportError:
        return None


def _kind(column: Column) -> "Kind | None":
    """What the compiled reader is to make of a column's fields; None if it cannot."""
    return (MAYBE.get(column.dtype) if column.nullable else None) or KINDS.get(column.dtype)


def _frame(columns: Sequence[Column], values: Sequence[Any]) -> pl.DataFrame:
    """A frame of arrays that nobody else will change: they are not copied. Of truths eight are in a byte."""
    both = list(zip(columns, values, strict=True))
    rows = next(len(each) for column, each in both if column.dtype in (pl.Int64, pl.Float64, TIME))
    arrays = [
        pa.Array.from_buffers(ARROW[column.dtype], rows, [None, pa.py_buffer(each)])
        for column, each in both
        if column.dtype != pl.String
    ]
    names = [column.name for column, _ in both if column.dtype != pl.String]
    frame = pl.DataFrame(pl.from_arrow(pa.RecordBatch.from_arrays(arrays, names=names)))
    texts = [_texts(column.name, each) for column, each in both if column.dtype == pl.String]
    maybe = [(column, each) for column, each in both if _kind(column) in MAYBE.values()]
    return frame.with_columns(*texts, *(_known(column) for column, each in maybe if _lacks(each)))


def _texts(name: str, texts: Any) -> pl.Series:
    """The texts of the compiled reader; one without a letter is none."""
    distinct = pl.Series(name, pl.from_arrow(texts.distinct))
    distinct = distinct.set(distinct.str.len_bytes() == 0, None)
    return distinct.gather(texts.places)


def _lacks(values: npt.NDArray[Any]) -> bool:
    """Whether the compiled reader has put what it puts in place of a number that is not there; no text has it."""
    return bool((np.isnan(values) if values.dtype == np.float64 else values == _digits().NO_WHOLE).any())


def _known(column: Column) -> pl.Expr:
    own = pl.col(column.name)
    return pl.when(own.is_not_nan() if column.dtype == pl.Float64 else own != _digits().NO_WHOLE).then(own)


def _instants(numbers: pl.Series, unit: str) -> pl.Series:
    """Instants from numbers of that unit; what is below a microsecond is left out."""
    return (numbers // 1000 if unit == "ns" else numbers * MICROSECONDS[unit]).cast(TIME)


def _values(given: pl.Series, dtype: pl.DataType) -> pl.Series:
    """The values of a column of texts, null where a text is none."""
    if dtype == pl.String:
        return given
    if dtype == pl.Boolean:
        return given.str.to_lowercase().replace_strict({"true": True, "false": False}, default=None, return_dtype=dtype)
    is_number = given.str.contains(WHOLE if dtype == pl.Int64 else NUMBER)
    values = given.set(~is_number, None).cast(dtype, strict=False)
    return values if dtype == pl.Int64 else values.set(~values.is_finite(), None)


def _reason(column: Column, text: str | None) -> str:
    """Why a text is no value of a column."""
    if text is None:
        return f"{column.name}: there is nothing"
    return f"{column.name}: {_shown(text)} is {WRONG[column.dtype]}"


def _told(refused: tuple[bytes, str]) -> str:
    line, reason = refused
    return f"the first of them is {_shown(line.decode('utf-8', 'backslashreplace'))}: {reason}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "...")


def _first_line(text: bytes) -> tuple[bytes, int]:
    """The first line that is not empty, without its end, and where the next one begins."""
    found = re.search(rb"[^\r\n]+", text)
    if found is None:
        return b"", len(text)
    end = text.find(b"\n", found.end()) + 1
    return found[0], end or len(text)


def _by_place(dataset: Dataset, archive: Archive | FlatKind, count: int) -> tuple[Column | None, ...]:
    if count != len(archive.columns):
        wanted = ", ".join(archive.columns)
        raise Misfit(
            f"the first line has {count} fields, no header, and there should be {len(archive.columns)}: {wanted}"
        )
    return tuple(dataset.column(name) if name else None for name in archive.columns.values())


def _by_name(dataset: Dataset, archive: Archive | FlatKind, names: Sequence[str]) -> tuple[Column | None, ...]:
    wanted = {name: column for name, column in archive.columns.items() if column}
    missing = [name for name in wanted if name not in names]
    if missing:
        raise Misfit(f"the header lacks {', '.join(missing)}; it has {_shown(', '.join(names))}")
    twice = [name for name in wanted if names.count(name) > 1]
    if twice:
        raise Misfit(f"the header has {', '.join(twice)} more than once")
    return tuple(dataset.column(wanted[name]) if name in wanted else None for name in names)


def _read_as(column: Column | None) -> pl.DataType:
    """What Polars' reader is told to make of a column; times are numbers at first."""
    if column is None:
        return pl.String()
    return pl.Int64() if column.dtype == TIME else column.dtype


def _is_simple(text: bytes, fields: int) -> bool:
    """Whether no byte is in it that readers treat each in its way, and as many commas as its lines should have.

    White space is one: Polars' reader passes over it in front of a number.
    """
    if any(odd in text for odd in (b'"', b"\r", b" ", b"\t")):
        return False
    each = np.frombuffer(text, np.uint8)
    lines = np.count_nonzero(each == ord("\n")) + (not text.endswith(b"\n"))
    return bool(np.count_nonzero(each == ord(",")) == lines * (fields - 1))


Lines = list[tuple[int, bytes]]
Rows = list[list[str]]


def _split(text: bytes, count: int) -> tuple[Lines, Rows, list[tuple[int, bytes, str]]]:
    """The lines of `count` fields, each with its number, and their fields; the other lines, with what is wrong."""
    lines: Lines = []
    rows: Rows = []
    refused = []
    for number, line in enumerate(each.removesuffix(b"\r") for each in text.split(b"\n")):
        if not line:
            continue
        try:
            row = _fields(line)
        except ValueError as error:
            refused.append((number, line, str(error)))
            continue
        if len(row) == count:
            lines.append((number, line))
            rows.append(row)
        else:
            refused.append((number, line, f"{len(row)} fields instead of {count}"))
    return lines, rows, refused


def _fields(line: bytes) -> list[str]:
    """The fields of a line. Raises `ValueError` if it is no UTF-8, or quoted in a way that makes no sense."""
    text = line.decode()
    if '"' not in text:
        return text.split(",")
    try:
        return next(csv.reader([text], strict=True))
    except csv.Error as error:
        raise ValueError(f"quotes that do not fit: {error}") from None
