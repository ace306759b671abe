"""Two accounts of the same rows: what only one of them has, and where they differ."""

from typing import Final, NamedTuple

import polars as pl

from crypto_lake.models.dataset import TIME, Dataset

# What a road says of itself is no difference; nor is what one of them does not know.
OF_THE_ROAD: Final = frozenset({"received_time", "source", "date", "revision"})
MILLISECOND: Final = "1ms"


class Compared(NamedTuple):
    """Rows of the table's columns; `ours` and `theirs` are the differing ones, in pairs."""

    only_ours: pl.DataFrame
    only_theirs: pl.DataFrame
    ours: pl.DataFrame
    theirs: pl.DataFrame


def compare(dataset: Dataset, ours: pl.DataFrame, theirs: pl.DataFrame, *, is_same_road: bool = False) -> Compared:
    """Holds the rows of two accounts against each other by their keys; in each no key is twice.

    A column that is null on one side is not compared. Of two times that differ by less than a millisecond, one of
    which is a whole one, the other only says more. Two accounts of the same road know and round the same things: there
    null is a value, and times are as they are.
    """
    key = list(dataset.key)
    only_ours = ours.join(theirs, on=key, how="anti", nulls_equal=True, maintain_order="left")
    only_theirs = theirs.join(ours, on=key, how="anti", nulls_equal=True, maintain_order="left")
    both = ours.join(theirs, on=key, how="inner", suffix="_theirs", nulls_equal=True, maintain_order="left")
    compared = [name for name in dataset.schema if name not in (*key, *OF_THE_ROAD)]
    unlike = both.filter(pl.any_horizontal(_differs(dataset, name, is_same_road=is_same_road) for name in compared))
    theirs_of = [pl.col(name if name in key else f"{name}_theirs").alias(name) for name in dataset.schema]
    return Compared(only_ours, only_theirs, unlike.select(*dataset.schema), unlike.select(theirs_of))


def _differs(dataset: Dataset, name: str, *, is_same_road: bool) -> pl.Expr:
    mine, other = pl.col(name), pl.col(f"{name}_theirs")
    if is_same_road:
        return mine.ne_missing(other)
    unlike = mine != other
    if dataset.schema[name] == TIME:
        floor = mine.dt.truncate(MILLISECOND), other.dt.truncate(MILLISECOND)
        is_coarser = (floor[0] == floor[1]) & ((mine == floor[0]) | (other == floor[1]))
        unlike &= ~is_coarser
    return unlike.fill_null(value=False)
