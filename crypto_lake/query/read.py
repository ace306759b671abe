"""`read`: the rows of a dataset as a Polars LazyFrame that opens only the files it needs."""

from collections.abc import Sequence
from datetime import datetime, time
from typing import Any

import polars as pl

from crypto_lake.config import ConfigError, load, nearest
from crypto_lake.models import Dataset, dataset_named
from crypto_lake.query.source import Source, find
from crypto_lake.query.span import TICK, Moment, span


def read(
    dataset: str,
    /,
    *,
    symbols: str | Sequence[str] | None = None,
    venue: str | None = None,
    start: Moment | None = None,
    end: Moment | None = None,
    columns: Sequence[str] | None = None,
    root: str | None = None,
    **equals: Any,
) -> pl.LazyFrame:
    """The rows of a dataset, wherever they came from and however they are stored.

    `start` and `end` are both inside: a date, a datetime (no zone = UTC), or a text, where "2024-01-15" is the whole
    day and "2024-01" the whole month. They speak of `time`, or in datasets without one of the column that gives the
    day (`start_time` of gap). Further keywords say what a column must equal, e.g. `source="live"`. `root` is
    LAKE_ROOT unless given. Rows come in no particular order: sort what you collect.

        read("agg_trade", symbols="BTCUSDT", start="2024-01-15", end="2024-01-16").collect()

    Raises `ConfigError` for a dataset or column that does not exist, a time that is none, and a missing table.
    """
    asked = dataset_named(dataset)
    wanted = {"symbol": symbols, "venue": venue, **equals}
    conditions = [_matches(asked, name, value) for name, value in wanted.items() if value is not None]
    chosen = [_known_column(asked, name) for name in columns or asked.schema]
    since, until = span(start, end)
    source = _found(asked, load().root if root is None else root)
    rows = source.scan(since.date() if since else None, (until - TICK).date() if until else None)
    return rows.filter(_within(asked, since, until), *conditions).select(chosen)


def _found(dataset: Dataset, root: str) -> Source:
    source = find(root, dataset)
    if source is None:
        raise ConfigError(f"no table {dataset.name} under {root}")
    return source


def _known_column(dataset: Dataset, name: str) -> str:
    if name not in dataset.schema:
        raise ConfigError(f"{dataset.name} has no column {name!r}{nearest(name, dataset.schema)}")
    return name


def _matches(dataset: Dataset, name: str, value: Any) -> pl.Expr:
    column = pl.col(_known_column(dataset, name))
    if isinstance(value, (list, tuple, set, frozenset, pl.Series)):
        return column.is_in(list(value))
    return column.eq(value)


def _within(dataset: Dataset, since: datetime | None, until: datetime | None) -> pl.Expr:
    """What the days that are scanned leave open. Where they begin and end with the span no time has to be looked at,
    which is a quarter of the work for one symbol of a month."""
    clock = pl.col(dataset.partition)
    after = pl.lit(True) if since is None or _is_midnight(since) else clock >= since
    return after if until is None or _is_midnight(until) else after & (clock < until)


def _is_midnight(instant: datetime) -> bool:
    return instant.time() == time()
