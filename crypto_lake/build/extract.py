"""A table, or a part of it, into files for other programs: one file, or a folder with one for each day."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final, NamedTuple

import polars as pl

from crypto_lake.build.flow import OnStep, silently
from crypto_lake.config import ConfigError
from crypto_lake.models import Dataset, dataset_named
from crypto_lake.query import read
from crypto_lake.query.days import days_held, pieces
from crypto_lake.query.source import PARTITION, find
from crypto_lake.query.span import span
from crypto_lake.writers.extract import Form, left_out, write

# What `pieces` needs to know rows apart.
MARKET: Final = {"venue", "symbol"}


class Part(NamedTuple):
    """Which rows of a table, as a user says it; None: all."""

    symbols: list[str] | None = None
    venue: str | None = None
    start: str | None = None
    end: str | None = None
    columns: list[str] | None = None


@dataclass(slots=True)
class Extracted:
    """What was written."""

    out: str
    rows: int
    files: int
    days: int
    left_out: list[str]
    seconds: float


def extract(
    root: str, dataset: str, form: Form, out: Path, part: Part | None = None, *, on_step: OnStep = silently
) -> Extracted:
    """Writes rows of a table to `out`, day by day; those of one symbol stand together, in order of their ids or times.

    With the form's ending `out` is one file, without any a folder: `out/date=2024-01-15/agg_trade.parquet`. Raises
    `ConfigError`.
    """
    began = time.monotonic()
    asked, part = dataset_named(dataset), part or Part()
    if out.suffix not in ("", f".{form}"):
        raise ConfigError(f"--out {out}: name a file that ends in .{form}, or a folder")
    columns = part.columns or list(asked.schema)
    read(asked.name, columns=columns, root=root)  # says which column there is not
    rows = _rows(root, asked, part)
    schema = pl.Schema({name: asked.schema[name] for name in columns})
    days = _days(root, asked, part)
    steps = _Steps(asked, rows, columns, on_step, len(days))
    if out.suffix:
        count, files = write(out, form, schema, (frame for day in days for frame in steps.of(day))), 1
    else:
        count, files = _into_folder(out, form, schema, asked, days, steps)
    return Extracted(str(out), count, files, len(days), left_out(form, schema), time.monotonic() - began)


def _rows(root: str, dataset: Dataset, part: Part) -> pl.LazyFrame:
    """The rows that are wanted; of `symbols` binance:BTCUSDT is of one venue."""
    named = [word.strip().rpartition(":") for word in part.symbols or ()]
    rows = read(
        dataset.name,
        symbols=[symbol for _, _, symbol in named] or None,
        venue=part.venue,
        start=part.start,
        end=part.end,
        root=root,
    )
    if any(venue for venue, _, _ in named):
        pairs = [
            (pl.col("symbol") == symbol) & ((pl.col("venue") == venue) | (venue == "")) for venue, _, symbol in named
        ]
        rows = rows.filter(pl.any_horizontal(pairs))
    return rows


def _days(root: str, dataset: Dataset, part: Part) -> list[date]:
    source = find(root, dataset)
    return [] if source is None else days_held(source, *span(part.start, part.end))


def _into_folder(
    out: Path, form: Form, schema: pl.Schema, dataset: Dataset, days: list[date], steps: "_Steps"
) -> tuple[int, int]:
    """A file for each day that has rows; how many rows and files."""
    rows = files = 0
    for day in days:
        path = out / f"{PARTITION}={day}" / f"{dataset.name}.{form}"
        frames = steps.of(day)
        first = next(frames, None)
        if first is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out {out}: cannot be written: {error.strerror or error}") from None
        rows += write(path, form, schema, _joined(first, frames))
        files += 1
    return rows, files


def _joined(first: pl.DataFrame, rest: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    yield first
    yield from rest


class _Steps:
    """The rows of one day after the other, in pieces, and how many days are done."""

    def __init__(self, dataset: Dataset, rows: pl.LazyFrame, columns: list[str], on_step: OnStep, of: int) -> None:
        self._dataset = dataset
        self._rows = rows
        self._columns = columns
        self._on_step = on_step
        self._of = of
        self._done = 0

    def of(self, day: date) -> Iterator[pl.DataFrame]:
        """The day's rows that are wanted, if there are any: those of a venue and symbol together and in order."""
        rows, clock = self._rows.filter(pl.col(PARTITION) == day), self._dataset.order or self._dataset.partition
        by = [name for name in ("venue", "symbol", clock, *self._dataset.key) if name in self._dataset.schema]
        wanted = list(dict.fromkeys([*self._columns, *by]))
        is_market = set(self._dataset.schema) >= MARKET
        for piece in pieces(self._dataset, rows, wanted) if is_market else [rows.select(wanted).collect()]:
            if piece.height:
                yield piece.sort(*dict.fromkeys(by)).select(self._columns)
        self._done += 1
        self._on_step(self._dataset.name, self._done, self._of)
