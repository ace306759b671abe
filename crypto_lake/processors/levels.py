"""Book levels: from JSON arrays of decimal strings to list columns, a whole batch at once.

Decoding every level into Python objects costs more than all the rest of a depth message (DESIGN 6), so the arrays stay
raw bytes: the batch is joined, brackets and quotes fall away, and a CSV parser reads the numbers.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Final

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv

from crypto_lake.models.dataset import LEVELS

_COMMA_TO_LINE: Final = bytes.maketrans(b",", b"\n")
_PUNCTUATION: Final = b'[]"'
_DIGITS: Final = b"0123456789.-+eE"
# Between two arrays: what no price or quantity can be. An empty array is an empty line, which the parser passes over.
_END: Final = b',"nan",'
# What passes here is read by the CSV parser too: else a misfit would be found, and no array to blame for it.
_NUMBER: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_STRICT: Final = msgspec.json.Decoder(list[tuple[str, str]])


class NotLevels(ValueError):
    """Some arrays are no lists of [price, quantity] in strings; `rows` says which."""

    def __init__(self, rows: dict[int, str]) -> None:
        super().__init__(f"{len(rows)} arrays are no price levels")
        self.rows = rows


def level_lists(name: str, arrays: Sequence[bytes | msgspec.Raw]) -> pl.Series:
    """A series of list[struct{price, quantity}], one list per JSON array.

    Raises `NotLevels` when an array is not `[["price","quantity"],...]` with finite decimals in strings.
    """
    numbers, counts = _numbers(arrays)
    if numbers is None:
        numbers, counts = _numbers(_compacted(arrays))
        assert numbers is not None, "what _compacted lets through has the form"
    return _lists(name, numbers, counts)


def _numbers(arrays: Sequence[bytes | msgspec.Raw]) -> tuple[np.ndarray | None, np.ndarray]:
    """All numbers, price and quantity in turn (None unless the text has that form), and the levels per array."""
    text = _END.join(arrays)
    lines = text.translate(_COMMA_TO_LINE, _PUNCTUATION)
    if not lines:
        return np.empty(0) if text in (b"", b"[]") else None, np.zeros(len(arrays), np.int64)
    try:
        column = pa_csv.read_csv(
            pa.py_buffer(lines),
            read_options=pa_csv.ReadOptions(column_names=["number"], use_threads=False, block_size=len(lines) + 1),
            convert_options=pa_csv.ConvertOptions(column_types={"number": pa.float64()}, null_values=[]),
        ).column("number")
    except pa.ArrowInvalid:
        return None, np.empty(0)
    found = column.to_numpy()
    is_end = np.isnan(found)
    ends, numbers = np.flatnonzero(is_end), found[~is_end]
    if len(ends) != len(arrays) - 1 or not np.isfinite(numbers).all():
        return None, np.empty(0)
    counts = np.diff(ends, prepend=-1, append=len(found)) - 1
    if (counts % 2).any():
        return None, np.empty(0)
    # With the digits gone an array is nothing but its form.
    form = _END.join([_form(count) for count in (counts // 2).tolist()])
    if text.translate(None, _DIGITS) != form:
        return None, np.empty(0)
    return numbers, counts // 2


@lru_cache(maxsize=1024)
def _form(count: int) -> bytes:
    return b"[" + b",".join([b'["",""]'] * count) + b"]"


def _compacted(arrays: Sequence[bytes | msgspec.Raw]) -> list[bytes]:
    """The arrays without blanks and escapes. Raises `NotLevels` with every array that is none, whatever the reason."""
    compact, wrong = [], {}
    for row, array in enumerate(arrays):
        try:
            levels = _STRICT.decode(array)
        except _UNDECODABLE as error:
            wrong[row] = str(error)
            continue
        if why := _not_numbers(levels):
            wrong[row] = why
        compact.append(msgspec.json.encode(levels))
    if wrong:
        raise NotLevels(wrong)
    return compact


def _not_numbers(levels: list[tuple[str, str]]) -> str:
    for number in chain.from_iterable(levels):
        if not _NUMBER.fullmatch(number):
            return f"{number!r} is no number"
        if not np.isfinite(float(number)):
            return f"{number!r} is no finite number"
    return ""


def _lists(name: str, numbers: np.ndarray, counts: np.ndarray) -> pl.Series:
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    levels = pa.StructArray.from_arrays(
        [pa.array(np.ascontiguousarray(numbers[0::2])), pa.array(np.ascontiguousarray(numbers[1::2]))],
        names=["price", "quantity"],
    )
    series = pl.from_arrow(pa.LargeListArray.from_arrays(pa.array(offsets), levels))
    assert isinstance(series, pl.Series)
    assert series.dtype == LEVELS
    return series.alias(name)
