"""Watermarks: how far each series of a table is up to date, from the table itself, the newest days first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

import polars as pl
from deltalake.exceptions import DeltaError

from crypto_lake.config import US_OPTIONS, ConfigError
from crypto_lake.models import Dataset
from crypto_lake.models.dataset import TIME
from crypto_lake.models.flatfile import OPTION
from crypto_lake.query.days import DAY, days_held
from crypto_lake.query.findings import first_line
from crypto_lake.query.source import PARTITION, Source, find

# What a series is, as far as a dataset has these columns.
SERIES: Final = ("venue", "symbol", "timeframe", "origin")
WATERMARKS: Final[dict[str, pl.DataType]] = {
    "dataset": pl.String(),
    **dict.fromkeys(SERIES, pl.String()),
    "watermark": TIME,
}
# Older days are read only as long as no more rows than that were: about two seconds' work.
READ_ROWS: Final = 50_000_000


@dataclass(frozen=True, slots=True)
class Watermarks:
    """The newest `time` of each series (columns `WATERMARKS`), and the first day that was looked at.

    `since` is None when that was all of them: else a series that ended before it is not there.
    """

    dataset: str
    rows: pl.DataFrame
    since: date | None


def of_tables(root: str, datasets: Sequence[Dataset]) -> list[Watermarks]:
    """Those of the tables that are there. Raises `ConfigError` when none of them is, and when one cannot be read."""
    try:
        found = [watermarks(source) for dataset in datasets if (source := find(root, dataset))]
    except (DeltaError, OSError, pl.exceptions.PolarsError) as error:
        raise ConfigError(f"tables under {root} cannot be read (`validate` says which): {first_line(error)}") from None
    if not found:
        names = f"no table {datasets[0].name}" if len(datasets) == 1 else "no tables"
        raise ConfigError(f"{names} under {root}")
    return found


def watermarks(source: Source, *, read_rows: int = READ_ROWS) -> Watermarks:
    """How far each venue, symbol, timeframe and origin of a table is up to date.

    A day is read only where the log does not say it all, which it does of files with one series. The newest day is
    always looked at, older ones until more than `read_rows` rows were.
    """
    files = _files(source)
    days = set(days_held(source, None, None)) - set(files["day"])
    unclear = days | set(files.filter(~pl.col("is_clear"))["day"])
    found, since = [files.filter(~pl.col("day").is_in(unclear)).select(*SERIES, "watermark")], None
    for day in sorted(unclear, reverse=True):
        if read_rows < 0:
            break
        since = day
        counted = _of_day(source, day, _words(files.filter(pl.col("day") == day)))
        read_rows -= int(counted["rows"].sum())
        found.append(counted.drop("rows"))
    newest = pl.concat(found).group_by(SERIES).agg(pl.col("watermark").max()).sort(SERIES)
    rows = newest.select(pl.lit(source.dataset.name).alias("dataset"), *SERIES, "watermark")
    is_all = since is None or since == min(unclear)
    return Watermarks(source.dataset.name, rows, None if is_all else since)


def laggards(marks: pl.DataFrame) -> pl.DataFrame:
    """Of the series of one venue, timeframe and origin those that end a day or more before the newest one.

    An option that has expired by then is over, not late. The latest come last.
    """
    # Not by the date: in winter the last hour of a session in New York is on the next day in UTC.
    late = marks.filter(pl.col("watermark") <= pl.col("watermark").max() - DAY)
    newest = marks["watermark"].dt.date().max()
    if late.height and late["venue"][0] == US_OPTIONS:
        expiry = ("20" + pl.col("symbol").str.extract(OPTION.pattern, 2)).str.to_date("%Y%m%d", strict=False)
        late = late.filter((expiry >= newest).fill_null(value=True))
    return late.sort("watermark", "symbol")


def _of_day(source: Source, day: date, words: Mapping[str, str]) -> pl.DataFrame:
    """The newest time of each series on a day, and its rows; `words` are the columns that are the same in all of it."""
    varying = [name for name in SERIES if name in source.dataset.schema and name not in words]
    clock = pl.col(source.dataset.partition).max().alias("watermark")
    rows = source.scan(day, day)
    grouped = (
        rows.group_by(varying).agg(clock, pl.len().alias("rows")) if varying else rows.select(clock, rows=pl.len())
    )
    columns = [pl.col(name) if name in varying else pl.lit(words.get(name), pl.String()).alias(name) for name in SERIES]
    return grouped.select(*columns, "watermark", "rows").collect(engine="streaming")


def _files(source: Source) -> pl.DataFrame:
    """What the log says of each file: the one word that is in a column of `SERIES` (null if it is not one), the newest
    time, the day, and whether that is all (`is_clear`). Of a sink's files it says nothing."""
    dataset = source.dataset
    schema = {**dict.fromkeys(SERIES, pl.String()), "watermark": TIME, "day": pl.Date(), "is_clear": pl.Boolean()}
    if source.table is None:
        return pl.DataFrame(schema=schema)
    actions, clock = pl.DataFrame(source.table.get_add_actions(flatten=True)), f"max.{dataset.partition}"
    own = [name for name in SERIES if name in dataset.schema]
    needed = {clock, *(f"{end}.{name}" for end in ("min", "max", "null_count") for name in own)}
    if not needed <= set(actions.columns):
        return pl.DataFrame(schema=schema)
    words = [_word(name) if name in own else pl.lit(None, pl.String()).alias(name) for name in SERIES]
    files = actions.select(*words, watermark=pl.col(clock).cast(TIME), day=pl.col(f"partition.{PARTITION}"))
    return files.with_columns(is_clear=pl.all_horizontal(pl.col(*own, "watermark").is_not_null())).select(*schema)


def _word(name: str) -> pl.Expr:
    low, high = pl.col(f"min.{name}"), pl.col(f"max.{name}")
    return pl.when(low == high, pl.col(f"null_count.{name}") == 0).then(high).alias(name)


def _words(files: pl.DataFrame) -> dict[str, str]:
    """The columns that hold one word in all these files."""
    alike = [name for name in SERIES if files[name].null_count() == 0 and files[name].n_unique() == 1]
    return {name: str(files[name][0]) for name in alike}
