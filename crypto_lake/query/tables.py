"""`tables`: what a lake holds, and at a glance whether it is whole."""

from typing import Any, Final

import polars as pl

from crypto_lake.models import DATASETS, Dataset
from crypto_lake.models.dataset import TIME
from crypto_lake.processors.sequence import columns_needed, has_sequence, holes
from crypto_lake.query.source import Source, find

TABLES: Final[dict[str, pl.DataType]] = {
    "dataset": pl.String(),
    "rows": pl.Int64(),
    "symbols": pl.Int64(),
    "first_time": TIME,
    "last_time": TIME,
    "files": pl.Int64(),
    "bytes": pl.Int64(),
    "duplicates": pl.Int64(),
    "holes": pl.Int64(),
}


def tables(root: str, *, quick: bool = False) -> pl.DataFrame:
    """One row per table under `root`.

    `duplicates` counts rows whose key occurs more than once (null where nothing keeps the keys apart), `holes` the
    stretches of missing ids per venue and symbol (null where a dataset has no ids in sequence). Both look at every
    row, one symbol at a time. `quick` leaves them null, and of a Delta table reads the log only, which does not
    know how many symbols there are.
    """
    sources = [source for dataset in DATASETS.values() if (source := find(root, dataset))]
    return pl.DataFrame([_summary(source, quick=quick) for source in sources], schema=TABLES)


def _summary(source: Source, *, quick: bool) -> dict[str, Any]:
    dataset, (files, size) = source.dataset, source.stored()
    known = {"dataset": dataset.name, "files": files, "bytes": size}
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
    symbols = rows.select(pl.col("symbol").unique()).collect(engine="streaming")["symbol"]
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
