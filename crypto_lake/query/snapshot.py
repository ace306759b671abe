"""A table at one version, and what has changed in it since an older one: what a build reads, whoever adds meanwhile."""

import json
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import polars as pl
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.fs import DeltaStorageHandler
from pyarrow import fs

from crypto_lake.config import ConfigError
from crypto_lake.models import Dataset
from crypto_lake.models.dataset import DATE, TIME
from crypto_lake.query.findings import first_line
from crypto_lake.query.source import PARTITION

CASTS: Final = pl.ScanCastOptions(datetime_cast=["nanosecond-downcast", "convert-timezone"])
# A table's number and its version fit into the 64 bits of an app transaction.
TABLES: Final = 2**30
VERSIONS: Final = 2**32
# Statistics of times may be cut to whole milliseconds.
SLACK_US: Final = 999
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# Who looked so long ago looks at all of it sooner than at so many commits.
MOST_COMMITS: Final = 50_000


@dataclass(frozen=True, slots=True)
class File:
    """A file of a table; what the log does not say of it is None."""

    day: date
    path: str
    rows: int | None = None
    low_symbol: str | None = None
    high_symbol: str | None = None
    low_us: int | None = None
    high_us: int | None = None
    low_venue: str | None = None
    high_venue: str | None = None

    @property
    def market(self) -> tuple[str, str] | None:
        """The venue and the symbol of all its rows, if the log says that it is one."""
        if self.low_venue is None or self.low_symbol is None or (self.low_venue, self.low_symbol) != self._high:
            return None
        return self.low_venue, self.low_symbol

    @property
    def _high(self) -> tuple[str | None, str | None]:
        return self.high_venue, self.high_symbol

    def may_hold(self, symbols: Collection[str] | None) -> bool:
        """Whether rows of one of `symbols` may be inside."""
        if symbols is None or self.low_symbol is None or self.high_symbol is None:
            return True
        return any(self.low_symbol <= symbol <= self.high_symbol for symbol in symbols)


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A table at one version. It can be sent to another process that sees the same storage.

    `version` is the table's own number, and in front of it (times 2**32) one that stands for the table: what was made
    from a table that has been deleted since is not up to date with one that came in its place.
    """

    dataset: str
    uri: str
    version: int
    files: tuple[File, ...]
    partition: str  # the column whose UTC date is the day
    columns: dict[str, pl.DataType]  # those of the files

    def days(self, symbol: str | None = None) -> list[date]:
        """The days on which there are rows, or may be rows of that symbol, in order."""
        symbols = None if symbol is None else (symbol,)
        return sorted({file.day for file in self.files if file.may_hold(symbols)})

    def markets(
        self, first: date, last: date, *, symbols: Collection[str] | None = None
    ) -> dict[tuple[str, str], list[date]]:
        """The days, in order, of each venue and symbol that has rows from `first` to `last` (both inclusive)."""
        files = self.part(first, last, symbols=symbols).files
        known = {(*file.market, file.day) for file in files if file.market}
        unclear = [file for file in files if not file.market]
        held = pl.collect_all([self._rows([file]).select("venue", "symbol").unique() for file in unclear])
        known |= {(*market, file.day) for file, rows in zip(unclear, held, strict=True) for market in rows.iter_rows()}
        found: dict[tuple[str, str], list[date]] = {}
        for venue, symbol, day in sorted(known):
            if symbols is None or symbol in symbols:
                found.setdefault((venue, symbol), []).append(day)
        return found

    def part(self, first: date, last: date, *, symbols: Collection[str] | None = None) -> "Snapshot":
        """The same with the files of these days alone (both inclusive), and of these symbols: what a task needs."""
        files = (file for file in self.files if first <= file.day <= last and file.may_hold(symbols))
        return replace(self, files=tuple(files))

    def scan(
        self,
        first: date,
        last: date,
        *,
        symbols: Collection[str] | None = None,
        since_us: int | None = None,
        until_us: int | None = None,
    ) -> pl.LazyFrame:
        """The rows of these days (both inclusive), in no particular order.

        With `since_us` and `until_us` those whose `time` is not before the one and before the other (µs since 1970).
        """
        wanted = [file for file in self.part(first, last, symbols=symbols).files if _is_near(file, since_us, until_us)]
        if not wanted:
            return pl.LazyFrame(schema={**self.columns, PARTITION: DATE.dtype})
        found = self._rows(wanted).filter(*_conditions(symbols, since_us, until_us))
        return found.with_columns(pl.col(self.partition).dt.date().alias(PARTITION))

    def _rows(self, files: Sequence[File]) -> pl.LazyFrame:
        return pl.scan_parquet(
            [f"{self.uri}/{file.path}" for file in files],
            schema=self.columns,
            cast_options=CASTS,
            missing_columns="insert",
            hive_partitioning=False,
            glob=False,
        )


def snapshot(root: str, dataset: Dataset) -> Snapshot | None:
    """The table as it is now; None if there is none. Raises `ConfigError` when it cannot be read."""
    place = f"{root.rstrip('/')}/{dataset.name}"
    try:
        table = DeltaTable(place)
    except TableNotFoundError:
        return None
    except (DeltaError, OSError, ValueError) as error:
        raise ConfigError(f"LAKE_ROOT={root}: table {dataset.name} cannot be read: {first_line(error)}") from None
    columns = dict(pl.Schema(table.schema()))
    del columns[PARTITION]
    ordered = {name: columns[name] for name in dataset.schema if name in columns}
    files = tuple(sorted(_files(table), key=lambda file: (file.day, file.path)))
    return Snapshot(
        dataset.name,
        table.table_uri.rstrip("/"),
        zlib.crc32(str(table.metadata().id).encode()) % TABLES * VERSIONS + table.version(),
        files,
        dataset.partition,
        {**ordered, **columns},
    )


@dataclass(frozen=True, slots=True)
class Touched:
    """Rows came or went on a day: of symbols and times (µs since 1970) within these, where the log says so."""

    day: date
    low_symbol: str | None = None
    high_symbol: str | None = None
    low_us: int | None = None
    high_us: int | None = None

    def may_hold(self, symbol: str) -> bool:
        """Whether rows of that symbol may be among them."""
        return File(self.day, "", None, self.low_symbol, self.high_symbol).may_hold((symbol,))


def touched(now: Snapshot, since: int) -> list[Touched] | None:
    """What came or went after the table's version `since`, commit by commit; rows that were only moved did neither.

    None when the log does not reach back so far, or is another table's: then everything may have changed.
    """
    if since == now.version:
        return []
    if since // VERSIONS != now.version // VERSIONS or not 0 < now.version - since <= MOST_COMMITS:
        return None
    store = fs.PyFileSystem(DeltaStorageHandler(now.uri))
    try:
        return [each for version in range(since + 1, now.version + 1) for each in _changes(store, version % VERSIONS)]
    except FileNotFoundError:
        return None


def _changes(store: fs.FileSystem, version: int) -> Iterator[Touched]:
    with store.open_input_file(f"_delta_log/{version:020}.json") as file:
        lines = file.read().decode().splitlines()
    for line in lines:
        action = json.loads(line)
        for kind in ("add", "remove"):
            if kind in action and action[kind].get("dataChange", True):
                yield _of_action(action[kind])


def _of_action(action: dict[str, Any]) -> Touched:
    day = date.fromisoformat(action["partitionValues"][PARTITION])
    noted = json.loads(action.get("stats") or "{}")
    lows, highs = noted.get("minValues", {}), noted.get("maxValues", {})
    return Touched(
        day,
        lows.get("symbol"),
        highs.get("symbol"),
        _epoch_us(lows.get("time")),
        _epoch_us(highs.get("time"), slack_us=SLACK_US),
    )


def _epoch_us(text: str | None, *, slack_us: int = 0) -> int | None:
    if text is None:
        return None
    instant = datetime.fromisoformat(text)
    return (instant.replace(tzinfo=instant.tzinfo or UTC) - EPOCH) // timedelta(microseconds=1) + slack_us


def _files(table: DeltaTable) -> Iterator[File]:
    actions = pl.DataFrame(table.get_add_actions(flatten=True))
    if f"partition.{PARTITION}" not in actions.columns:
        return
    clocks = [_said(actions, name).cast(TIME).dt.epoch("us") for name in ("min.time", "max.time")]
    counts = [_said(actions, name) for name in ("num_records", "min.symbol", "max.symbol")]
    venues = [_said(actions, name) for name in ("min.venue", "max.venue")]
    for day, path, *said in actions.select(f"partition.{PARTITION}", "path", *counts, *clocks, *venues).iter_rows():
        yield File(day, path, *said)


def _said(actions: pl.DataFrame, name: str) -> pl.Expr:
    return pl.col(name) if name in actions.columns else pl.lit(None).alias(name)


def _is_near(file: File, since_us: int | None, until_us: int | None) -> bool:
    is_after = since_us is None or file.high_us is None or file.high_us + SLACK_US >= since_us
    return is_after and (until_us is None or file.low_us is None or file.low_us < until_us)


def _conditions(symbols: Collection[str] | None, since_us: int | None, until_us: int | None) -> list[pl.Expr]:
    found = [] if symbols is None else [pl.col("symbol").is_in(sorted(symbols))]
    clock = pl.col("time")
    found += [] if since_us is None else [clock >= pl.lit(since_us).cast(TIME)]
    return found if until_us is None else [*found, clock < pl.lit(until_us).cast(TIME)]
