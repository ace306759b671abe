"""Runs: the stretches of ids that a table holds without a hole, and sums of such intervals.

All frames here have venue, symbol, first_id, last_id (inclusive), start_time, end_time; what else they have is
dropped. A day of trades without a hole is one run, so the runs of years fit into memory.
"""

from typing import Final

import polars as pl

from crypto_lake.models.dataset import Dataset
from crypto_lake.processors.sequence import INTERVALS, links

WITHIN: Final = ["venue", "symbol"]


def runs(dataset: Dataset, frame: pl.DataFrame) -> pl.DataFrame:
    """The runs of some rows of a dataset with ids; of a chain those that the events hold by what they follow."""
    linked = links(dataset, frame).drop_nulls(["last", "follows"])
    each = linked.select(
        *WITHIN,
        (pl.col("follows") + 1).alias("first_id"),
        pl.col("last").alias("last_id"),
        pl.col("time").alias("start_time"),
        pl.col("time").alias("end_time"),
    )
    return joined(each.filter(pl.col("first_id") <= pl.col("last_id")))


def joined(intervals: pl.DataFrame) -> pl.DataFrame:
    """The union: intervals that overlap or touch become one, with the time of its first id and of its last."""
    ordered = intervals.select(*INTERVALS).sort(*WITHIN, "first_id", "last_id")
    reached = pl.col("last_id").cum_max().shift(1).over(WITHIN)
    begins = (pl.col("first_id") > reached + 1).fill_null(value=True)
    return (
        ordered.with_columns(begins.cum_sum().over(WITHIN).alias("run"))
        .group_by(*WITHIN, "run", maintain_order=True)
        .agg(
            pl.col("first_id").first(),
            pl.col("last_id").max(),
            pl.col("start_time").first(),
            pl.col("end_time").sort_by("last_id").last(),
        )
        .select(*INTERVALS)
    )


def between(held: pl.DataFrame) -> pl.DataFrame:
    """The holes between the runs of each venue and symbol."""
    ordered = joined(held)
    found = ordered.with_columns(
        (pl.col("last_id").shift(1).over(WITHIN) + 1).alias("first_id"),
        (pl.col("first_id") - 1).alias("last_id"),
        pl.col("end_time").shift(1).over(WITHIN).alias("start_time"),
        pl.col("start_time").alias("end_time"),
    )
    return found.drop_nulls("first_id")


def without(intervals: pl.DataFrame, taken: pl.DataFrame) -> pl.DataFrame:
    """What is left of `intervals` when the ids of `taken` go; what is left keeps the times of its interval."""
    # The holes between the taken ones, and what lies before the first and behind the last, are what may stay.
    left = [
        _cut(intervals, _gaps_of(taken)),
        intervals.select(*INTERVALS).join(taken.select(WITHIN).unique(), on=WITHIN, how="anti"),
    ]
    return pl.concat(left)


def overlaps(intervals: pl.DataFrame, others: pl.DataFrame) -> pl.DataFrame:
    """The parts of `intervals` whose ids are in `others` too, with the times of `intervals`."""
    return _cut(intervals, joined(others).select(*WITHIN, low="first_id", high="last_id"))


def _gaps_of(taken: pl.DataFrame) -> pl.DataFrame:
    """The ids outside of `taken`, per venue and symbol, open at both ends."""
    one = joined(taken)
    before = (pl.col("last_id").shift(1).over(WITHIN) + 1).fill_null(-(2**63) + 1)
    inner = one.select(*WITHIN, before.alias("low"), (pl.col("first_id") - 1).alias("high"))
    behind = one.group_by(WITHIN).agg((pl.col("last_id").max() + 1).alias("low"))
    return pl.concat([inner, behind.with_columns(pl.lit(2**63 - 1, pl.Int64).alias("high"))])


def _cut(intervals: pl.DataFrame, allowed: pl.DataFrame) -> pl.DataFrame:
    """The parts of `intervals` inside the disjoint ranges `low` to `high`."""
    parts = [
        _cut_group(part, allowed.filter(pl.col("venue") == key[0], pl.col("symbol") == key[1]))
        for key, part in intervals.select(*INTERVALS).group_by(WITHIN, maintain_order=True)
    ]
    return pl.concat([pl.DataFrame(schema=INTERVALS), *parts]).sort(*WITHIN, "first_id")


def _cut_group(intervals: pl.DataFrame, allowed: pl.DataFrame) -> pl.DataFrame:
    pairs = intervals.join_where(
        allowed.select("low", "high"), pl.col("first_id") <= pl.col("high"), pl.col("last_id") >= pl.col("low")
    )
    return pairs.select(
        *WITHIN,
        pl.max_horizontal("first_id", "low").alias("first_id"),
        pl.min_horizontal("last_id", "high").alias("last_id"),
        "start_time",
        "end_time",
    )
