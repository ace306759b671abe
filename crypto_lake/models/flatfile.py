"""The layout of the Massive (Polygon.io) bucket of flat files (PROTOCOLS E.2): where a file is, what a key says."""

import re
from dataclasses import dataclass
from datetime import date
from typing import Final

from crypto_lake.config import CRYPTO, FOREX, US_OPTIONS, US_STOCKS, ConfigError, nearest
from crypto_lake.models import DATASETS
from crypto_lake.models.dataset import Dataset, FlatKind

KEY: Final = re.compile(r"(?P<folder>\w+/\w+)/(?P<year>\d{4})/(?P<month>\d{2})/(?P<day>\d{4}-\d{2}-\d{2})\.csv\.gz")
# With these the exchanges try their own systems out, on all days and in all feeds; their prices mean nothing.
TEST_TICKERS: Final = frozenset(
    {
        *(f"Z{letter}ZZT" for letter in "ABCEJVWX"),
        *("ZVZZC", "ZXYZ.A", "ZBZX", "ZTST", "ZTEST", "ZEXIT", "ZIEXT", "ZXIET", "ZVV", "ZZK", "IGZ", "CBO", "CBX"),
        *("ATEST", "CTEST", "MTEST", "NTEST", "PTEST"),
        *(f"{root}TEST.{letter}" for root in "ACMNP" for letter in "ABCGHLMNQVWXYZ"),
    }
)


@dataclass(frozen=True, slots=True)
class FlatFile:
    """One flat file: its folder (`us_stocks_sip/minute_aggs_v1`) and its day, which is that of the exchange."""

    folder: str
    day: date

    @property
    def path(self) -> str:
        """Its key in the bucket."""
        return f"{month_of(self.folder, self.day)}{self.day}.csv.gz"

    @property
    def dataset(self) -> Dataset:
        """The table that its rows go to."""
        return flat_dataset(self.folder)

    @property
    def kind(self) -> FlatKind:
        """How it is read."""
        return self.dataset.flat[self.folder]


def month_of(folder: str, day: date) -> str:
    """Where all files of the day's month are: how their keys begin."""
    return f"{folder}/{day:%Y/%m}/"


def folders() -> list[str]:
    """The folders whose files are understood."""
    return [folder for dataset in DATASETS.values() for folder in dataset.flat]


def flat_dataset(folder: str) -> Dataset:
    """The table that a folder's rows go to. Raises `ConfigError` when there is none."""
    for dataset in DATASETS.values():
        if folder in dataset.flat:
            return dataset
    raise ConfigError(f"there are no flat files {folder!r} that are understood{nearest(folder, folders())}")


def flatfile_at(path: str) -> FlatFile | None:
    """What a key says; None if it is none of this layout, or of a kind that is not understood."""
    found = KEY.fullmatch(path)
    if found is None or found["folder"] not in folders():
        return None
    try:
        file = FlatFile(found["folder"], date.fromisoformat(found["day"]))
    except ValueError:
        return None
    return file if file.path == path else None


def flat_app(folder: str, day: date, symbol: str = "") -> str:
    """Under which name the table notes which days of the month are in: of all symbols, or of one that was asked for."""
    return "/".join(filter(None, ("flatfile", folder, f"{day:%Y-%m}", symbol)))


def symbol_of(venue: str, ticker: str) -> str:
    """The symbol of a ticker: as it is, but pairs lose their dash, which REST and older files do not write."""
    return ticker.replace("-", "") if venue in (CRYPTO, FOREX) else ticker


def is_test(venue: str, ticker: str) -> bool:
    """Whether it is one with which an exchange tries itself out."""
    if venue == US_OPTIONS:
        return (option_root(ticker) or "") in TEST_TICKERS
    return venue == US_STOCKS and ticker in TEST_TICKERS


# O: and the root, the expiry as YYMMDD, the right, and the strike in thousandths on eight digits.
OPTION: Final = re.compile(r"O:(?P<root>.+)(?P<expiry>\d{6})(?P<right>[CP])(?P<strike>\d{8})")


def option_root(ticker: str) -> str | None:
    """The root of an option's symbol; None if it is no such symbol."""
    found = OPTION.fullmatch(ticker)
    return found["root"] if found else None
