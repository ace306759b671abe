"""`tables`: what a lake holds layer by layer, how far it is up to date, and at a glance whether it is whole."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import polars as pl
from deltalake.exceptions import DeltaError

from crypto_lake.config import ConfigError
from crypto_lake.models import DATASETS, Dataset
from crypto_lake.models.dataset import TIME
from crypto_lake.processors.sequence import by_symbol, columns_needed, has_sequence, holes
from crypto_lake.query.findings import first_line
from crypto_lake.query.landing import exports, landing
from crypto_lake.query.source import Source, find

LAYERS: Final = ("landing", "bronze", "silver", "gold")
TABLES: Final[dict[str, pl.DataType]] = {
    "dataset": pl.String(),
    "layer": pl.String(),
    "rows": pl.Int64(),
    "symbols": pl.Int64(),
    "first_time": TIME,
    "last_time": TIME,
    "files": pl.Int64(),
    "bytes": pl.Int64(),
    "duplicates": pl.Int64(),
    "holes": pl.Int64(),
    "age_s": pl.Float64(),
}


def layers(root: str, state: Path, journals: Path, *, quick: bool = False, now: datetime) -> pl.DataFrame:
    """What is there from landing to gold: `tables`, and in the same columns the files that are no table.

    Of those `first_time` and `last_time` say when the oldest and the newest one was last written. `state` is
    LAKE_STATE, `journals` the folder with this lake's journals. Raises `ConfigError` when a table cannot be read.
    """
    try:
        found = tables(root, quick=quick, now=now)
    except (DeltaError, OSError, pl.exceptions.PolarsError) as error:
        raise ConfigError(f"tables under {root} cannot be read (`validate` says which): {first_line(error)}") from None
    others = pl.DataFrame([*landing(state, journals), *exports(root)], schema=TABLES).with_columns(_age(now))
    order = pl.col("layer").cast(pl.Enum(LAYERS))
    return pl.concat([found, others]).sort(order, maintain_order=True)


def tables(root: str, *, quick: bool = False, now: datetime | None = None) -> pl.DataFrame:
    """One row per table under `root`, bronze before silver.

    `duplicates` counts rows whose key occurs more than once (null where nothing keeps the keys apart), `holes` the
    stretches of missing ids per venue and symbol (null where a dataset has no ids in sequence). Both look at every
    row, one symbol at a time, but for venues that come in flat files: `validate` looks for duplicates there. `quick`
    leaves them null, and of a Delta table reads the log only, which does not know how many symbols there are. `age_s`
    is how old the newest fact is.
    """
    sources = [source for dataset in DATASETS.values() if (source := find(root, dataset))]
    found = pl.DataFrame([_summary(source, quick=quick) for source in sources], schema=TABLES)
    aged = found.with_columns(_age(now or datetime.now(UTC)))
    return aged.sort(pl.col("layer").cast(pl.Enum(LAYERS)), maintain_order=True)


def _age(now: datetime) -> pl.Expr:
    return ((pl.lit(now, TIME) - pl.col("last_time")).dt.total_microseconds() / 1e6).alias("age_s")


def _summary(source: Source, *, quick: bool) -> dict[str, Any]:
    dataset, (files, size) = source.dataset, source.stored()
    known = {"dataset": dataset.name, "layer": dataset.layer, "files": files, "bytes": size}
    if quick and (noted := source.noted()):
        return known | noted
    rows, clock = source.scan(), pl.col(dataset.partition)
    symbols = pl.col("symbol").n_unique() if "symbol" in dataset.schema else pl.lit(None, pl.Int64())
    seen = rows.select(rows=pl.len(), symbols=symbols, first_time=clock.min(), last_time=clock.max())
    known |= seen.collect(engine="streaming").row(0, named=True)
    return known if quick else known | _integrity(dataset, rows)


def _integrity(dataset: Dataset, rows: pl.LazyFrame) -> dict[str, int | None]:
    """Duplicates and holes, symbol by symbol: what is held at once is one symbol's ids."""
    # Without an order column nobody keeps the keys apart: a gap has a row for each of its states.
    is_keyed, is_linked = bool(dataset.key and dataset.order), has_sequence(dataset)
    if not (is_keyed or is_linked):
        return {}
    if dataset.by_file:
        rows = rows.filter(by_symbol(dataset))
    symbols = rows.select(pl.col("symbol").unique()).collect(engine="streaming")["symbol"]
    if dataset.by_file and symbols.is_empty():
        return {}
    parts = [rows.filter(pl.col("symbol") == symbol) for symbol in symbols]
    return {
        "duplicates": sum(_duplicates(dataset, part) for part in parts) if is_keyed else None,
        "holes": sum(_holes(dataset, part) for part in parts) if is_linked else None,
    }


def _duplicates(dataset: Dataset, rows: pl.LazyFrame) -> int:
    times = rows.group_by(dataset.key).len().filter(pl.col("len") > 1)
    return int(times.select(pl.col("len").sum()).collect(engine="streaming").item())


def _holes(dataset: Dataset, rows: pl.LazyFrame) -> int:
    return holes(dataset, rows.select(columns_needed(dataset)).collect(engine="streaming")).height
