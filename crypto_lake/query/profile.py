"""What a day of a symbol looks like: counts, prices, pauses; a pass over all columns and one over the narrow ones."""

from collections.abc import Iterator
from datetime import date
from typing import Final

import polars as pl

from crypto_lake.models import Dataset
from crypto_lake.models.coverage import EVERY_SYMBOL
from crypto_lake.models.dataset import TIME
from crypto_lake.processors.sequence import by_symbol
from crypto_lake.query.findings import Findings

PROFILE: Final[dict[str, pl.DataType]] = {
    "dataset": pl.String(),
    "venue": pl.String(),
    "symbol": pl.String(),
    "date": pl.Date(),
    "rows": pl.Int64(),
    "nulls": pl.Int64(),
    "wrong_date": pl.Int64(),
    "duplicates": pl.Int64(),
    "min_price": pl.Float64(),
    "max_price": pl.Float64(),
    "mean_price": pl.Float64(),
    "volume": pl.Float64(),
    "first_time": TIME,
    "last_time": TIME,
    "longest_pause_s": pl.Float64(),
    "outliers": pl.Int64(),
    "outlier_share": pl.Float64(),
}
# A day with so many times the rows or the volume of the day before, or so small a part of it, is worth a look.
NEIGHBOUR_RATIO: Final = 5.0
PRICES: Final = ("price", "last_price", "mark_price", "bid_price", "close")
VOLUMES: Final = ("filled_quantity", "quantity")
WITHIN: Final = ["venue", "symbol"]


def line(dataset: Dataset) -> pl.Expr:
    """The symbol under which a row is counted: venues that are covered by file have one line for all their symbols."""
    if not dataset.by_file:
        return pl.col("symbol")
    return pl.when(by_symbol(dataset)).then(pl.col("symbol")).otherwise(pl.lit(EVERY_SYMBOL)).alias("symbol")


def profile(dataset: Dataset, rows: pl.LazyFrame, day: date) -> pl.DataFrame:
    """Per venue and symbol (`line`) what can be said without an order of the rows, and `null.<column>` for each column
    that must not be null; duplicates, pause and outliers are still to come."""
    price, volume = _first(PRICES, dataset), _first(VOLUMES, dataset)
    clock = pl.col(dataset.partition)
    nothing = pl.lit(None, pl.String())
    symbol = line(dataset) if "symbol" in dataset.schema else nothing.alias("symbol")
    groups = [pl.col("venue") if "venue" in dataset.schema else nothing.alias("venue"), symbol]
    strict = [column.name for column in dataset.columns if not column.nullable]
    found = rows.group_by(groups).agg(
        pl.len().cast(pl.Int64).alias("rows"),
        *(pl.col(name).null_count().cast(pl.Int64).alias(f"null.{name}") for name in strict),
        (clock.dt.date() != pl.col("date")).sum().cast(pl.Int64).alias("wrong_date"),
        price.min().alias("min_price"),
        price.max().alias("max_price"),
        price.mean().alias("mean_price"),
        volume.sum().alias("volume"),
        clock.min().alias("first_time"),
        clock.max().alias("last_time"),
    )
    seen = found.collect(engine="streaming").sort(WITHIN)
    return seen.with_columns(
        pl.lit(dataset.name).alias("dataset"),
        pl.lit(day).alias("date"),
        pl.sum_horizontal(pl.col("^null\\..*$")).cast(pl.Int64).alias("nulls"),
        volume=pl.lit(None, pl.Float64()) if _first_name(VOLUMES, dataset) is None else pl.col("volume"),
    ).with_columns(_of_one_symbol(dataset, "min_price", "max_price", "mean_price", "volume"))


def _of_one_symbol(dataset: Dataset, *names: str) -> pl.Expr:
    """Null where a line is about all symbols: sums and ends over different things."""
    return pl.when(by_symbol(dataset)).then(pl.col(names))


def pauses(dataset: Dataset, piece: pl.DataFrame) -> pl.DataFrame:
    """Per venue and symbol the longest time between two rows that follow each other, in seconds, and the ends."""
    clock = pl.col("time")
    steps = _seconds(clock.sort().diff().max())
    found = piece.group_by("venue", line(dataset)).agg(
        steps.alias("longest_pause_s"), begin=clock.min(), end=clock.max()
    )
    return found.with_columns(_of_one_symbol(dataset, "longest_pause_s", "begin", "end"))


def of_pieces(parts: pl.DataFrame) -> pl.DataFrame:
    """What the pieces of a day say together, per venue and symbol."""
    between = _seconds(pl.col("begin") - pl.col("end").cum_max().shift(1)).over(WITHIN, order_by="begin")
    return (
        parts.with_columns(pl.max_horizontal("longest_pause_s", between).alias("longest_pause_s"))
        .group_by(WITHIN)
        .agg(pl.col("longest_pause_s").max(), pl.col("duplicates", "outliers").sum())
    )


def _seconds(length: pl.Expr) -> pl.Expr:
    return length.dt.total_microseconds() / 1e6


def judge(dataset: Dataset, seen: pl.DataFrame, findings: Findings) -> None:
    """What is wrong with a day as its profile shows it."""
    for row in seen.iter_rows(named=True):
        place = {name: row[name] for name in (*WITHIN, "first_time", "last_time")}
        for name in dataset.schema:
            if number := row.get(f"null.{name}"):
                text = f"{number:,} rows without {name}"
                findings.add(dataset, "null_column", "error", text, observed=float(number), threshold=0.0, **place)
        if number := row["wrong_date"]:
            text = f"{number:,} rows of another day than {row['date']}"
            findings.add(dataset, "wrong_date", "error", text, observed=float(number), threshold=0.0, **place)


def compare(dataset: Dataset, days: pl.DataFrame, findings: Findings) -> None:
    """Notes days which differ from the day before by more than `NEIGHBOUR_RATIO`."""
    ordered = days.sort(*WITHIN, "date")
    follows = (pl.col("date").diff() == pl.duration(days=1)).over(WITHIN)
    for name in ("rows", "volume"):
        ratio = (pl.col(name) / pl.col(name).shift(1)).over(WITHIN)
        jumps = ordered.with_columns(ratio.alias("ratio")).filter(
            follows,
            pl.col("ratio").is_finite(),
            (pl.col("ratio") > NEIGHBOUR_RATIO) | (pl.col("ratio") < 1 / NEIGHBOUR_RATIO),
        )
        for row in jumps.iter_rows(named=True):
            place = {column: row[column] for column in (*WITHIN, "first_time", "last_time")}
            text = f"{row['date']}: {name} {row['ratio']:.3g} times the day before"
            findings.add(
                dataset, f"{name}_jump", "info", text, observed=row["ratio"], threshold=NEIGHBOUR_RATIO, **place
            )


def _first(names: tuple[str, ...], dataset: Dataset) -> pl.Expr:
    name = _first_name(names, dataset)
    return pl.lit(None, pl.Float64()) if name is None else pl.col(name)


def _first_name(names: tuple[str, ...], dataset: Dataset) -> str | None:
    return next(_held(names, dataset), None)


def _held(names: tuple[str, ...], dataset: Dataset) -> Iterator[str]:
    return (name for name in names if name in dataset.schema)
