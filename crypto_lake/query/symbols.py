"""Which symbols the table `symbol` names: of each venue and symbol its newest row counts."""

from typing import Final

import polars as pl

from crypto_lake.models.symbol import SYMBOL_TABLE, Named
from crypto_lake.query.source import Source, find

WITHIN: Final = ["venue", "symbol"]


def states(root: str) -> pl.DataFrame:
    """The newest row of every venue and symbol, in the order of `added_time`; none where there is no such table.

    Raises what the store raises when it cannot be read (`writers.delta.STORE_ERRORS`).
    """
    return newest(find(root, SYMBOL_TABLE))


def newest(source: Source | None) -> pl.DataFrame:
    """The same of a table that was found already."""
    rows = pl.DataFrame(schema=SYMBOL_TABLE.schema) if source is None else source.scan().collect()
    # Two rows of one microsecond: that which keeps the symbol counts, for rows too many can be left out later.
    ordered = rows.sort("added_time", "is_active", *WITHIN)
    return ordered.unique(WITHIN, keep="last", maintain_order=True)


def named(states: pl.DataFrame) -> dict[str, Named]:
    """The same by venue."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    for venue, symbol, is_active in states.select(*WITHIN, "is_active").iter_rows():
        found.setdefault(venue, ([], []))[not is_active].append(symbol)
    return {venue: Named(tuple(active), tuple(removed)) for venue, (active, removed) in found.items()}


def active(root: str, venue: str) -> list[str]:
    """The symbols of a venue that are to be collected, the first one added first."""
    return list(named(states(root)).get(venue, Named()).active)
