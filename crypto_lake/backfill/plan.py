"""What has to be fetched: the days that are wanted, minus the days whose mark is in the table."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

from crypto_lake.models import Dataset
from crypto_lake.models.bucket import DAY, File, end_of_month
from crypto_lake.models.dataset import Archive, Period

# So many files are asked after at once.
ASKED_AT_ONCE: Final = 32
# A month of which so few days are missing is not fetched as a whole.
FEW_DAYS: Final = 5

# The SHA-256 that the venue states of a file; None where it is not published.
Ask = Callable[[File], Awaitable[str | None]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a user asks for: both days are inside."""

    dataset: Dataset
    venue: str
    symbols: tuple[str, ...]
    interval: str
    first: date
    last: date

    @property
    def archive(self) -> Archive:
        """The kind of file that has it."""
        assert self.dataset.dump is not None
        return self.dataset.dump.archives[self.venue]

    @property
    def months(self) -> list[date]:
        """The first day of each month that it touches."""
        return months_of(self.first, self.last)

    def days(self, month: date) -> list[date]:
        """The days of a month that are wanted."""
        return days_of(month, self.first, self.last)

    def file(self, symbol: str, period: Period, first: date) -> File:
        """The file of a symbol and a day or month."""
        return File(self.venue, self.archive.type, symbol, self.interval, period, first)

    def app(self, symbol: str, month: date) -> str:
        """Under which name the table notes which days of a month are in."""
        return mark_name(self.venue, symbol, month, self.interval if self.dataset.name == "bar" else "")


@dataclass(frozen=True, slots=True)
class Job:
    """A file to take, its SHA-256 by the venue's word, and the days that are wanted of it."""

    file: File
    sha256: str
    days: tuple[date, ...]

    @property
    def path(self) -> str:
        """Where its file is in the bucket."""
        return self.file.path


@dataclass(frozen=True, slots=True)
class Absent:
    """Days of which the venue has published no file."""

    symbol: str
    days: tuple[date, ...]


def months_of(first: date, last: date) -> list[date]:
    """The first day of each month that is touched from `first` to `last`."""
    found, month = [], first.replace(day=1)
    while month <= last:
        found.append(month)
        month = end_of_month(month) + DAY
    return found


def days_of(month: date, first: date, last: date) -> list[date]:
    """The days of a month that are from `first` to `last`."""
    begin, end = max(first, month), min(last, end_of_month(month))
    return [begin + number * DAY for number in range((end - begin).days + 1)]


def mark_name(venue: str, symbol: str, month: date, interval: str = "") -> str:
    """The app id of a month's mark (`writers.bulk.Mark`)."""
    return "/".join(filter(None, ("dump", venue, symbol, f"{month:%Y-%m}", interval)))


def lacks(app: str) -> str:
    """Under which name the table notes which days of a month its own file lacks."""
    return f"{app}/lacks"


def bits(days: Iterable[date]) -> int:
    """Days of one month as bits, the first of the month as the lowest."""
    return sum(1 << (day.day - 1) for day in set(days))


def days_in(mark: int, month: date) -> set[date]:
    """The days of a month that a mark names."""
    return {month.replace(day=number) for number in range(1, end_of_month(month).day + 1) if mark >> (number - 1) & 1}


@dataclass(frozen=True, slots=True)
class Missing:
    """Days of a month that are to be taken. `is_spent`: the month's own file was taken, and it has none of them."""

    days: tuple[date, ...]
    is_spent: bool = False


async def jobs(
    wanted: Wanted, missing: Mapping[tuple[str, date], Missing], ask: Ask, today: date
) -> AsyncIterator[Job | Absent]:
    """The files that have the `missing` days of each symbol and month; month by month, so that symbols stay together.

    Whether a file exists is decided by its checksum, nothing else. Raises what `ask` raises.
    """
    places = sorted((month, symbol) for (symbol, month), found in missing.items() if found.days)
    for at in range(0, len(places), ASKED_AT_ONCE):
        some = places[at : at + ASKED_AT_ONCE]
        found = await asyncio.gather(
            *(_of_month(wanted, symbol, month, missing[symbol, month], ask, today) for month, symbol in some)
        )
        for each in found:
            for job in each:
                yield job


async def daily(wanted: Wanted, symbol: str, days: Sequence[date], ask: Ask) -> list[Job | Absent]:
    """The daily files of some days, where there are such files."""
    files = [wanted.file(symbol, "daily", day) for day in days] if "daily" in wanted.archive.periods else []
    sums = await asyncio.gather(*map(ask, files))
    found: list[Job | Absent] = [
        Job(file, sha256, (file.first,)) for file, sha256 in zip(files, sums, strict=True) if sha256
    ]
    absent = set(days) - {job.file.first for job in found if isinstance(job, Job)}
    return [*found, Absent(symbol, tuple(sorted(absent)))] if absent else found


async def _of_month(
    wanted: Wanted, symbol: str, month: date, missing: Missing, ask: Ask, today: date
) -> list[Job | Absent]:
    has_month = "monthly" in wanted.archive.periods and end_of_month(month) < today and not missing.is_spent
    is_whole = len(wanted.days(month)) == end_of_month(month).day and len(missing.days) > FEW_DAYS
    is_first = has_month and (is_whole or "daily" not in wanted.archive.periods)
    if is_first and (job := await _monthly(wanted, symbol, month, missing.days, ask)):
        return [job]
    found = await daily(wanted, symbol, missing.days, ask)
    absent = [day for each in found if isinstance(each, Absent) for day in each.days]
    if absent and has_month and not is_first and (job := await _monthly(wanted, symbol, month, absent, ask)):
        return [*(each for each in found if isinstance(each, Job)), job]
    return found


async def _monthly(wanted: Wanted, symbol: str, month: date, days: Collection[date], ask: Ask) -> Job | None:
    file = wanted.file(symbol, "monthly", month)
    sha256 = await ask(file)
    return Job(file, sha256, tuple(sorted(days))) if sha256 else None
