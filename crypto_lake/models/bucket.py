"""The layout of Binance's bucket of official files (PROTOCOLS D.2): where a file is, and what a path says."""

import re
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Final

from crypto_lake.config import COIN_M, FUTURES, SPOT
from crypto_lake.models.dataset import Archive, Dataset, Period

# The markets as users and folders call them.
MARKETS: Final = {"um": FUTURES, "cm": COIN_M, "spot": SPOT}
FOLDERS: Final = {FUTURES: "data/futures/um", COIN_M: "data/futures/cm", SPOT: "data/spot"}
CHECKSUM: Final = ".CHECKSUM"
# A few files write a month with one digit.
PATH: Final = re.compile(
    r"data/(?P<market>futures/um|futures/cm|spot)/(?P<period>daily|monthly)/(?P<type>\w+)/(?P<symbol>[^/]+)/"
    r"(?:(?P<interval>\w+)/)?[^/]+?-(?P<year>\d{4})-(?P<month>\d{1,2})(?:-(?P<day>\d{1,2}))?\.zip"
)
DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class File:
    """One file: a venue, a type, a symbol (or a pair), an interval of klines or "", and a day or a month.

    `first` is the day, or the first day of the month.
    """

    venue: str
    type: str
    symbol: str
    interval: str
    period: Period
    first: date

    @property
    def folder(self) -> str:
        """Its folder in the bucket, with a slash behind it."""
        interval = f"{self.interval}/" if self.interval else ""
        return f"{FOLDERS[self.venue]}/{self.period}/{self.type}/{self.symbol}/{interval}"

    @property
    def stem(self) -> str:
        """The name of the ZIP, and of the CSV inside, without the ending."""
        when = f"{self.first:%Y-%m}" if self.period == "monthly" else self.first.isoformat()
        return f"{self.symbol}-{self.interval or self.type}-{when}"

    @property
    def path(self) -> str:
        """Where it is in the bucket."""
        return f"{self.folder}{self.stem}.zip"

    @property
    def last(self) -> date:
        """The last day that it is about."""
        return end_of_month(self.first) if self.period == "monthly" else self.first

    @property
    def days(self) -> list[date]:
        """The days that it is about."""
        return [self.first + number * DAY for number in range((self.last - self.first).days + 1)]

    def of(self, other: Archive) -> "File":
        """The file of another kind about the same symbol, interval and period."""
        symbol = self.symbol.partition("_")[0] if other.is_by_pair else self.symbol
        return replace(self, type=other.type, symbol=symbol)


def file_at(path: str) -> File | None:
    """What a path says; None if it is none of this layout."""
    found = PATH.fullmatch(path)
    if found is None:
        return None
    venue = next(venue for venue, folder in FOLDERS.items() if folder == f"data/{found['market']}")
    try:
        first = date(int(found["year"]), int(found["month"]), int(found["day"] or 1))
    except ValueError:
        return None
    period: Period = "monthly" if found["period"] == "monthly" else "daily"
    return File(venue, found["type"], found["symbol"], found["interval"] or "", period, first)


def is_about(file: File, dataset: Dataset) -> bool:
    """Whether the rows of a file belong to a dataset."""
    archive = dataset.dump.archives.get(file.venue) if dataset.dump else None
    return archive is not None and archive.type == file.type


def end_of_month(day: date) -> date:
    """The last day of the month that `day` is in."""
    return (day.replace(day=1) + 31 * DAY).replace(day=1) - DAY
