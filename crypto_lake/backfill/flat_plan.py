"""Which flat files have to be taken: what the bucket lists, minus what is marked; and which ones should be there."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Final

import polars as pl

from crypto_lake.backfill.flat import FlatJob
from crypto_lake.backfill.plan import days_in, days_of, months_of
from crypto_lake.backfill.sessions import is_due
from crypto_lake.config import CRYPTO, FOREX, US_INDICES, US_OPTIONS, ConfigError
from crypto_lake.connections.s3 import Listed
from crypto_lake.models import Dataset
from crypto_lake.models.dataset import FlatKind
from crypto_lake.models.dump_file import DUMP_FILE, INGESTED
from crypto_lake.models.flatfile import FlatFile, flat_app, flat_dataset, flatfile_at, option_root, symbol_of
from crypto_lake.writers.bulk import marked
from crypto_lake.writers.delta import Lake

# The years in which the files of a folder begin (PROTOCOLS E.2), some time in the year.
BEGAN: Final = {
    "us_stocks_sip": 2003,
    "us_options_opra": 2014,
    "us_indices": 2023,
    "global_crypto": 2010,
    "global_forex": 2009,
}
# How symbols of these venues begin; users leave it out.
PREFIXES: Final = {CRYPTO: "X:", FOREX: "C:", US_INDICES: "I:"}


@dataclass(frozen=True, slots=True)
class FlatWanted:
    """What a user asks for: files of one folder, both days are inside. No symbols: all; of options also roots."""

    folder: str
    symbols: tuple[str, ...]
    first: date
    last: date

    @property
    def dataset(self) -> Dataset:
        """The table that the rows go to."""
        return flat_dataset(self.folder)

    @property
    def kind(self) -> FlatKind:
        """How the files are read."""
        return self.dataset.flat[self.folder]

    @property
    def months(self) -> list[date]:
        """The first day of each month that it touches."""
        return months_of(self.first, self.last)

    def days(self, month: date) -> list[date]:
        """The days of a month that are wanted."""
        return days_of(month, self.first, self.last)


def began(folder: str) -> date:
    """The first day of the year in which a folder's files begin."""
    return date(BEGAN[folder.partition("/")[0]], 1, 1)


def symbol_asked(venue: str, name: str) -> str:
    """A symbol as it stands in the table: pairs and indices with their prefix, pairs without a dash.

    Of options the root of contracts stays as it is. Raises `ConfigError` for what can be no symbol.
    """
    prefix = PREFIXES.get(venue, "")
    symbol = symbol_of(venue, f"{prefix}{name.removeprefix(prefix)}")
    if any(not each.isprintable() or each.isspace() or each in "/\\" for each in symbol) or symbol == prefix:
        raise ConfigError(f"--symbols {name!r}: that is no symbol")
    if venue == US_OPTIONS and symbol.startswith("O:") and option_root(symbol) is None:
        raise ConfigError(f"--symbols {name}: an option is written as O:SPY261218C00600000; SPY is all of its options")
    return symbol


# What is there already


def lacking(lake: Lake, wanted: FlatWanted) -> dict[date, tuple[str, ...]]:
    """The wanted days that are not marked, each with the symbols that lack it: none for all."""
    table, found = lake.table(wanted.dataset), dict[date, tuple[str, ...]]()
    for month in wanted.months:
        apps = {symbol: flat_app(wanted.folder, month, symbol) for symbol in ("", *wanted.symbols)}
        marks = marked(table, list(apps.values()))
        here = {symbol: days_in(marks[app], month) for symbol, app in apps.items()}
        for day in wanted.days(month):
            left = tuple(symbol for symbol in wanted.symbols if day not in here[symbol])
            if day not in here[""] and (left or not wanted.symbols):
                found[day] = left
    return found


@dataclass(frozen=True, slots=True)
class Entry:
    """What the ledger says of a file: its newest state; `was_taken` says whether rows of it were ever taken."""

    state: str
    sha256: str | None
    etag: str | None
    size: int | None
    was_taken: bool

    def is_of(self, listed: Listed) -> bool:
        """Whether it is about the file that is listed now; where nobody noted an ETag, its size has to do."""
        if self.etag and listed.etag:
            return self.etag.strip('"') == listed.etag
        return self.size == listed.size


def entries(lake: Lake, wanted: FlatWanted) -> dict[str, Entry]:
    """What the ledger says of each file that it knows of the folder, by path."""
    rows = lake.rows(DUMP_FILE).filter(pl.col("path").str.starts_with(f"{wanted.folder}/"))
    taken = set(rows.filter(pl.col("state") == INGESTED)["path"])
    newest = rows.sort("state_time", maintain_order=True).unique("path", keep="last")
    return {
        path: Entry(state, sha256, etag, size, path in taken)
        for path, state, sha256, etag, size in newest.select("path", "state", "sha256", "etag", "size").iter_rows()
    }


# What is to be done


@dataclass(slots=True)
class Found:
    """A month: what to take of it, what should be there and is not, and what is to come."""

    jobs: list[FlatJob] = field(default_factory=list)
    absent: list[date] = field(default_factory=list)
    awaited: list[date] = field(default_factory=list)


def found(
    wanted: FlatWanted,
    days: Sequence[date],
    sessions: Collection[date],
    lacks: Mapping[date, tuple[str, ...]],
    listed: Mapping[date, Listed],
    known: Mapping[str, Entry],
    now: datetime,
    *,
    recheck: bool,
) -> Found:
    """Of some days in a row: what is listed is there, whatever the calendar says; that tells what is missing."""
    result = Found()
    for day in days:
        if (each := listed.get(day)) is None:
            if day in lacks and day in sessions:
                (result.absent if is_due(day, now) else result.awaited).append(day)
            continue
        entry = known.get(each.path)
        replaces = entry is not None and entry.was_taken and not (entry.state == INGESTED and entry.is_of(each))
        if day in lacks or (replaces and recheck):
            symbols = wanted.symbols if replaces else lacks[day]
            result.jobs.append(FlatJob(FlatFile(wanted.folder, day), each.etag, each.size, symbols, replaces))
    return result


def by_day(listed: Sequence[Listed], folder: str) -> dict[date, Listed]:
    """The flat files of a folder among these."""
    files = ((flatfile_at(each.path), each) for each in listed)
    return {file.day: each for file, each in files if file is not None and file.folder == folder}
