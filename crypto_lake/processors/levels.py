"""Book levels: from JSON arrays of decimal strings to list columns, a whole batch at once.

Decoding every level into Python objects costs more than all the rest of a depth message (DESIGN 6), so the arrays stay
raw bytes: levels are counted, the batch is joined, brackets and quotes fall away, and a CSV parser reads the numbers.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv

from crypto_lake.models.dataset import LEVELS

_COMMA_TO_LINE: Final = bytes.maketrans(b",", b"\n")
_PUNCTUATION: Final = b'[]"'
_SEPARATOR: Final = b'","'
_STRICT: Final = msgspec.json.Decoder(list[tuple[str, str]])


class NotLevels(ValueError):
    """Some arrays are no lists of [price, quantity] in strings; `rows` says which."""

    def __init__(self, rows: dict[int, str]) -> None:
        super().__init__(f"{len(rows)} arrays are no price levels")
        self.rows = rows


def level_lists(name: str, arrays: Sequence[bytes]) -> pl.Series:
    """A series of list[struct{price, quantity}], one list per JSON array.

    Raises `NotLevels` when an array is not `[["price","quantity"],...]` with finite decimals in strings.
    """
    numbers, counts = _numbers(arrays)
    if numbers is None:
        arrays = _compacted(arrays)
        numbers, counts = _numbers(arrays)
    if numbers is None:
        raise NotLevels({row: why for row, array in enumerate(arrays) if (why := _not_numbers(array))})
    return _lists(name, numbers, counts)


def _numbers(arrays: Sequence[bytes]) -> tuple[np.ndarray | None, np.ndarray]:
    """All numbers, price and quantity in turn (None unless the text has that form), and the levels per array."""
    counts = np.fromiter((array.count(_SEPARATOR) for array in arrays), np.int32, len(arrays))
    total, filled = int(counts.sum()), int(np.count_nonzero(counts))
    text = b",".join(arrays) if filled == len(arrays) else b",".join(array for array in arrays if array != b"[]")
    lines = text.translate(_COMMA_TO_LINE, _PUNCTUATION)
    # Four quotes and two brackets a level, two brackets an array: another form leaves another number of characters.
    if len(text) - len(lines) != 6 * total + 2 * filled:
        return None, counts
    if not total:
        return (None if text else np.empty(0)), counts
    try:
        column = pa_csv.read_csv(
            pa.py_buffer(lines),
            read_options=pa_csv.ReadOptions(column_names=["number"], use_threads=False, block_size=len(lines) + 1),
            convert_options=pa_csv.ConvertOptions(column_types={"number": pa.float64()}, null_values=[]),
        ).column("number")
    except pa.ArrowInvalid:
        return None, counts
    numbers: np.ndarray = column.to_numpy()
    return (numbers if len(numbers) == 2 * total and np.isfinite(numbers.sum()) else None), counts


def _compacted(arrays: Sequence[bytes]) -> list[bytes]:
    compact, wrong = [], {}
    for row, array in enumerate(arrays):
        try:
            compact.append(msgspec.json.encode(_STRICT.decode(array)))
        except msgspec.DecodeError as error:
            wrong[row] = str(error)
    if wrong:
        raise NotLevels(wrong)
    return compact


def _not_numbers(array: bytes) -> str:
    for pair in _STRICT.decode(array):
        for number in pair:
            try:
                if not np.isfinite(float(number)):
                    return f"{number!r} is no finite number"
            except ValueError:
                return f"{number!r} is no number"
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
