"""Bars at rest: whether one can be (ANALYTICS 5.3), which are missing between others, whether a day has all of them."""

from datetime import date, timedelta
from typing import Final

import polars as pl

from crypto_lake.config import COIN_M
from crypto_lake.models.bar import BAR, KLINE, TIMEFRAMES_US, TRADES
from crypto_lake.processors.sequence import by_symbol
from crypto_lake.query.days import DAY, midnight
from crypto_lake.query.findings import Findings

WITHIN: Final = ["venue", "symbol"]
SERIES: Final = list(BAR.within)
RTOL: Final = 1e-9
# Venues round the quote quantity of each trade to so much.
ROUNDING: Final = 0.5e-8
# Origins of series in which every interval has a bar, whether anybody traded or not. What comes in flat files has none
# where nobody did, nor at night, whoever made the bars.
GAPLESS: Final = (KLINE, TRADES)

LENGTH_US: Final = pl.col("timeframe").replace_strict(TIMEFRAMES_US, default=None, return_dtype=pl.Int64)

# A bar cannot be when one of these holds.
_slack = pl.col("count").fill_null(0) * ROUNDING
_low_quote, _high_quote = pl.col("low") * pl.col("volume"), pl.col("high") * pl.col("volume")
BROKEN: Final[dict[str, pl.Expr]] = {
    "low is above open or close": pl.col("low") > pl.min_horizontal("open", "close"),
    "high is below open or close": pl.col("high") < pl.max_horizontal("open", "close"),
    "taker_buy_volume is not within 0 and volume": (pl.col("taker_buy_volume") < 0)
    | (pl.col("taker_buy_volume") > pl.col("volume") * (1 + RTOL)),
    "of count and volume one is 0": (pl.col("count") == 0) != (pl.col("volume") == 0),
    "quote_volume / volume is not within low and high": (pl.col("venue") != COIN_M)  # there it is in base units
    & (pl.col("volume") > 0)
    & ~pl.col("quote_volume")
    .is_between(_low_quote * (1 - RTOL) - _slack, _high_quote * (1 + RTOL) + _slack)
    .fill_null(value=True),
}


def judge(rows: pl.DataFrame, reached: pl.DataFrame | None, findings: Findings) -> None:
    """Findings about some rows of `bar` in the order of time: bars that cannot be, and holes between bars.

    `reached` has the latest time of each series on the days before, as `reached`.
    """
    _judge_values(rows, findings)
    _judge_holes(rows, reached, findings)


def _judge_values(rows: pl.DataFrame, findings: Findings) -> None:
    said = [pl.when(condition.fill_null(value=False)).then(pl.lit(text)) for text, condition in BROKEN.items()]
    words = pl.concat_list(said).list.drop_nulls()
    broken = rows.filter(words.list.len() > 0)
    broken = broken.with_columns(detail=pl.format("{}: {}", "timeframe", words.list.join("; ")))
    findings.add_rows(_as_findings(broken, "bar_invariant", "error", first="time", last="close_time"))


def _judge_holes(rows: pl.DataFrame, reached: pl.DataFrame | None, findings: Findings) -> None:
    """One finding per hole: the open times of the first bar that is missing and of the last one."""
    series = rows.filter(by_symbol(BAR), pl.col("origin").is_in(GAPLESS)).sort(*SERIES, "time")
    before = pl.col("time").shift(1).over(SERIES)
    if reached is not None:
        series = series.join(reached, on=SERIES, how="left", maintain_order="left")
        before = pl.coalesce(before, "reached")
    length = pl.duration(microseconds=LENGTH_US)
    apart = series.with_columns(first=before + length, last=pl.col("time") - length)
    holes = apart.filter(pl.col("first") <= pl.col("last")).with_columns(
        observed=((pl.col("last") - pl.col("first")).dt.total_microseconds() // LENGTH_US + 1).cast(pl.Float64)
    )
    text = pl.format("{} bars of {} ({}) are missing", pl.col("observed").cast(pl.Int64), "timeframe", "origin")
    holes = holes.with_columns(text.alias("detail"))
    findings.add_rows(_as_findings(holes, "bar_gap", "warn", first="first", last="last"))


def _as_findings(rows: pl.DataFrame, check: str, severity: str, *, first: str, last: str) -> pl.DataFrame:
    nothing = pl.lit(None)
    return rows.select(
        *WITHIN,
        pl.lit(BAR.name).alias("dataset"),
        pl.lit(check).alias("check"),
        pl.lit(severity).alias("severity"),
        nothing.cast(pl.Int64).alias("row"),
        pl.col(first).alias("first_time"),
        pl.col(last).alias("last_time"),
        nothing.cast(pl.Int64).alias("first_id"),
        nothing.cast(pl.Int64).alias("last_id"),
        (pl.col("observed") if "observed" in rows.columns else nothing.cast(pl.Float64)).alias("observed"),
        (pl.lit(0.0) if "observed" in rows.columns else nothing.cast(pl.Float64)).alias("threshold"),
        "detail",
    )


# A day's bars

ON_SCHEDULE: Final[dict[str, pl.DataType]] = {"is_full": pl.Boolean(), "is_full_from_first": pl.Boolean()}


def schedule(rows: pl.DataFrame, day: date) -> pl.DataFrame:
    """Per venue and symbol whether a day has all klines of each timeframe that it has any of: `is_full` from its
    beginning, `is_full_from_first` from the first one on."""
    end = midnight(day) + DAY
    series = rows.filter(pl.col("origin") == KLINE).group_by(*WITHIN, "timeframe")
    counted = series.agg(pl.col("time").n_unique().alias("count"), pl.col("time").min().alias("first"))
    from_first = (pl.lit(end) - pl.col("first")).dt.total_microseconds() // LENGTH_US
    return counted.group_by(WITHIN).agg(
        (pl.col("count") == DAY // timedelta(microseconds=1) // LENGTH_US).all().alias("is_full"),
        (pl.col("count") == from_first).all().alias("is_full_from_first"),
    )
