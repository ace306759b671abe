"""`gaps`: the state that every hole is in now, out of the append-only table `gap`."""

from collections.abc import Sequence
from typing import Final

import polars as pl

from crypto_lake.models import DATASETS
from crypto_lake.models.frame import OTHERS
from crypto_lake.models.gap import FILLED, GAP, OPEN, UNFILLABLE
from crypto_lake.query.source import find

# How a hole goes on: what was given up may still come, what came does not go.
PROGRESS: Final = {OPEN: 0, UNFILLABLE: 1, FILLED: 2}


def gaps(
    root: str, dataset: str | None = None, *, venue: str | None = None, symbols: Sequence[str] | None = None
) -> pl.DataFrame:
    """One row per hole: the newest state of each key of `gap`, ordered by dataset, venue, symbol, start_time, first_id.

    With `symbols` also the rows of symbol `*`. Empty where there is no table `gap`. Of two rows with one `state_time`
    that is newer which has come further (filled, unfillable, open), then the one that ends, then the shorter one:
    holes only shrink, and maintenance does not keep the order in which rows of a file were written.
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


def newest(rows: pl.DataFrame) -> pl.DataFrame:
    """The newest row of each key; see `gaps` for rows of one `state_time`."""
    ordered = rows.sort(
        "state_time",
        pl.col("state").replace_strict(PROGRESS, default=-1, return_dtype=pl.Int8),
        pl.col("end_time").is_not_null(),
        -(pl.col("last_id") - pl.col("first_id")),
        maintain_order=True,
    )
    last = ordered.unique(GAP.key, keep="last", maintain_order=True)
    return last.sort("dataset", "venue", "symbol", "start_time", "first_id")


def missing(known: pl.DataFrame) -> pl.DataFrame:
    """Those of the newest states that name missing ids: open or unfillable."""
    return known.filter(pl.col("state").is_in([OPEN, UNFILLABLE]), pl.col("first_id").is_not_null())
