"""`gaps`: the state that every hole is in now, out of the append-only table `gap`."""

from collections.abc import Sequence

import polars as pl

from crypto_lake.models import DATASETS
from crypto_lake.models.frame import OTHERS
from crypto_lake.models.gap import GAP, OPEN, UNFILLABLE
from crypto_lake.processors.states import newest
from crypto_lake.query.source import find


def gaps(
    root: str, dataset: str | None = None, *, venue: str | None = None, symbols: Sequence[str] | None = None
) -> pl.DataFrame:
    """One row per hole and state (`processors.states.newest`), by dataset, venue, symbol, start_time, first_id.

    With `symbols` also the rows of symbol `*`. Empty where there is no table `gap`.
    """
    source = find(root, GAP)
    if source is None:
        return pl.DataFrame(schema=GAP.schema)
    rows = source.scan()
    if dataset is not None:
        rows = rows.filter(pl.col("dataset") == DATASETS[dataset].name)
    if venue is not None:
        rows = rows.filter(pl.col("venue") == venue)
    if symbols is not None:
        rows = rows.filter(pl.col("symbol").is_in([*symbols, OTHERS]))
    return newest(rows.collect(engine="streaming"))


def missing(known: pl.DataFrame) -> pl.DataFrame:
    """Those of the newest states that name missing ids: open or unfillable."""
    return known.filter(pl.col("state").is_in([OPEN, UNFILLABLE]), pl.col("first_id").is_not_null())
