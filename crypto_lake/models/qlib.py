"""What a Qlib root is: frequencies, names, places of files, and what an export notes beside them (ANALYTICS 6)."""

import re
from pathlib import Path
from typing import Final, NamedTuple
from zlib import crc32

import msgspec
import numpy as np
import polars as pl
from msgspec import Struct
from numpy.typing import NDArray

from crypto_lake.models.bar import TIMEFRAMES_US

# Bars by the name that Qlib has for their length.
FREQUENCIES: Final[dict[str, str]] = {
    "1m": "1min",
    "5m": "5min",
    "15m": "15min",
    "1h": "60min",
    "4h": "240min",
    "1d": "day",
}
DEFAULT_FIELDS: Final = (
    *("open", "high", "low", "close", "volume", "quote_volume", "count"),
    *("taker_buy_volume", "taker_buy_quote_volume"),
)
# Files hold 4-byte floats, the first of which is an index: exact up to here.
VALUE: Final = np.dtype("<f4")
MOST_SLOTS: Final = 2**24

CALENDARS: Final = "calendars"
INSTRUMENTS: Final = "instruments"
FEATURES: Final = "features"
# Beside what Qlib reads: what the files were made of.
MANIFEST: Final = "crypto_lake.json"

_SYMBOL: Final = re.compile(r"[A-Z0-9_.-]+")
_FIELD: Final = re.compile(r"[a-z0-9_]+")
# Names that Windows keeps for devices stand in a directory of another name; Qlib does the same.
_RESERVED: Final = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
_PREFIX: Final = "_qlib_"
# Two are no names of a directory; Qlib's reader takes the others in instruments/all.txt for an empty cell.
_UNFIT: Final = {".", "..", "NA", "NULL"}

Calendar = NDArray[np.int64]
"""The open times of a root's slots, in order: µs since 1970."""


class Span(NamedTuple):
    """The slots of a symbol: the index of the first one, and how many there are."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """The index behind the last one."""
        return self.start + self.length


class Member(Struct, frozen=True):
    """A symbol of a root: whose bars it has, and which slots."""

    venue: str
    origin: str
    start: int
    length: int

    @property
    def span(self) -> Span:
        """Its slots."""
        return Span(self.start, self.length)


class Asked(Struct, frozen=True):
    """Which series the last export was asked for."""

    symbols: str | None
    venue: str | None
    origin: str | None


class Manifest(Struct, frozen=True):
    """What a root holds. `versions` are those of the tables (by their ids) that it was made of, `digest` is that of the
    calendar."""

    timeframe: str
    fields: tuple[str, ...]
    members: dict[str, Member]
    slots: int
    digest: int
    start_us: int | None
    asked: Asked
    versions: dict[str, int]


def is_symbol(name: str) -> bool:
    """Whether Qlib can have a symbol of that name."""
    return _SYMBOL.fullmatch(name) is not None and name not in _UNFIT and not name.lower().startswith(_PREFIX)


def is_field(name: str) -> bool:
    """Whether Qlib can have a field of that name."""
    return _FIELD.fullmatch(name) is not None


def directory(symbol: str) -> str:
    """The name of a symbol's folder."""
    name = symbol.lower()
    return _PREFIX + name if name in _RESERVED else name


def calendar_path(root: Path, frequency: str) -> Path:
    """The file with the open times of all slots."""
    return root / CALENDARS / f"{frequency}.txt"


def instruments_path(root: Path) -> Path:
    """The file with the symbols, and the first and the last slot of each."""
    return root / INSTRUMENTS / "all.txt"


def values_path(features: Path, symbol: str, field: str, frequency: str) -> Path:
    """The file with the values of a field of a symbol."""
    return features / directory(symbol) / f"{field}.{frequency}.bin"


def encoded(manifest: Manifest) -> bytes:
    """The text of a manifest."""
    return msgspec.json.format(msgspec.json.encode(manifest)) + b"\n"


def decoded(text: bytes) -> Manifest:
    """The manifest of a text. Raises `msgspec.DecodeError`."""
    return msgspec.json.decode(text, type=Manifest)


def slot(frequency: str) -> pl.Expr:
    """The slot of a bar by its `time`, µs since 1970: as exact as the text of the calendar."""
    return pl.col("time").dt.truncate("1d" if frequency == "day" else "1s").dt.epoch("us").alias("slot")


def digest(calendar: Calendar) -> int:
    """What tells a calendar from another one that is as long."""
    return crc32(calendar.tobytes())


def behind(slot_us: int, frequency: str) -> int:
    """The first time that does not fall on that slot any more."""
    return slot_us + TIMEFRAMES_US["1d" if frequency == "day" else "1s"]


def written(slots: Calendar, frequency: str) -> pl.Series:
    """The texts of slots."""
    return pl.Series(slots).cast(pl.Datetime("us")).dt.to_string(_form(frequency))


def parsed(texts: pl.Series, frequency: str) -> pl.Series:
    """The slots (µs since 1970) that texts name; null where one is not written as `written` writes it."""
    times = texts.str.to_datetime(_form(frequency), time_unit="us", strict=False)
    is_same = times.dt.to_string(_form(frequency)) == texts
    return times.to_frame("time").select(pl.when(pl.lit(is_same)).then("time").dt.epoch("us").alias("slot"))["slot"]


def _form(frequency: str) -> str:
    return "%Y-%m-%d" if frequency == "day" else "%Y-%m-%d %H:%M:%S"
