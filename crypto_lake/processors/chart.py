"""Bars out of a chart: those that are complete, on the grid, inside the question and traded at all.

What is complete is decided by the exchange's own time, which stands in the chart (that of the last trade), never by
our clock: answers may be a quarter of an hour old.
"""

from itertools import pairwise
from typing import Final, NamedTuple

import msgspec
import polars as pl

from crypto_lake.models.chart import CHARTED_S, Chart, ChartQuestion, Quote, Series
from crypto_lake.models.dataset import TIME
from crypto_lake.models.frame import UNDECODABLE

PRICES: Final = ("open", "high", "low", "close")
VALUES: Final = (*PRICES, "volume")


class NoBars(Exception):
    """An answer that cannot be read as a chart of what was asked; the text says why."""


class Bars(NamedTuple):
    """Rows with the names of the table, in the order of the answer; and rows that fit no interval, with the reason."""

    frame: pl.DataFrame
    refused: list[tuple[str, bytes]]


_CHARTS: Final = msgspec.json.Decoder(Chart)
NO_BARS: Final = pl.DataFrame(
    schema={"symbol": pl.String(), "timeframe": pl.String(), "time": TIME} | dict.fromkeys(VALUES, pl.Float64())
)


def bars_in(body: bytes, question: ChartQuestion) -> Bars:
    """The complete bars of an answer. Raises `NoBars`."""
    series = _series(body, question)
    rows = _rows(series)
    if rows.is_empty():
        return Bars(NO_BARS, [])
    stamp = pl.col("stamp")
    newest_s = series.timestamp[-1]
    now_s = max(newest_s, newest_s if series.meta.market_s is None else series.meta.market_s)
    rows = _laid(rows, series, question.timeframe).with_columns(is_last=pl.int_range(pl.len()) == pl.len() - 1)
    # The last row may be the price of this second, wherever it stands: it is no bar, and no misfit either.
    misfits = rows.filter(pl.col("begin_s").is_null() & ~pl.col("is_last"))
    rows = rows.filter(
        (pl.col("end_s") <= now_s)
        & (stamp >= question.since_s)
        & (stamp < question.until_s)
        & pl.all_horizontal(pl.col(PRICES).is_not_null())
    ).unique("begin_s", keep="first", maintain_order=True)
    frame = rows.select(
        pl.lit(question.symbol).alias("symbol"),
        pl.lit(question.timeframe).alias("timeframe"),
        (pl.col("begin_s") * 1_000_000).cast(TIME).alias("time"),
        *VALUES,
    )
    return Bars(frame, [_misfit(row, question) for row in misfits.iter_rows(named=True)])


def _series(body: bytes, question: ChartQuestion) -> Series:
    """The series that was asked for. Raises `NoBars` for an error, and for a chart of something else."""
    try:
        content = _CHARTS.decode(body).chart
    except UNDECODABLE as error:
        raise NoBars(str(error)) from None
    if content.error is not None:
        raise NoBars(content.error.text)
    if question.timeframe not in CHARTED_S:
        raise NoBars(f"bars of {question.timeframe} are not asked for")
    if not content.result:
        raise NoBars("neither a chart nor an error")
    series = content.result[0]
    if series.meta.symbol != question.symbol:
        raise NoBars(f"a chart of {series.meta.symbol}, and {question.symbol} was asked for")
    if series.meta.granularity not in ("", question.timeframe):
        raise NoBars(f"bars of {series.meta.granularity}, and {question.timeframe} was asked for")
    return series


def _rows(series: Series) -> pl.DataFrame:
    """The arrays side by side. Raises `NoBars` when they are not of one length."""
    stamps, quote = series.timestamp, (series.indicators.quote or [Quote()])[0]
    values = {name: getattr(quote, name) for name in VALUES}
    if not stamps:
        return pl.DataFrame()
    if any(later < earlier for earlier, later in pairwise(stamps)):
        raise NoBars("times that do not rise")
    # An index may come without volumes altogether.
    values["volume"] = values["volume"] or [None] * len(stamps)
    for name, column in values.items():
        if len(column) != len(stamps):
            raise NoBars(f"{len(stamps)} times, and {len(column)} values of {name}")
    columns = [pl.Series(name, column, pl.Float64) for name, column in values.items()]
    return pl.DataFrame([pl.Series("stamp", stamps, pl.Int64), *columns])


def _laid(rows: pl.DataFrame, series: Series, timeframe: str) -> pl.DataFrame:
    """With the first second of each row's interval (null off the grid) and the first one behind it."""
    if timeframe == "1d":
        return _laid_by_days(rows, series.meta.zone)
    length_s, stamp = CHARTED_S[timeframe], pl.col("stamp")
    begin = pl.when(stamp % length_s == 0).then(stamp).alias("begin_s")
    return rows.with_columns(begin).with_columns(end_s=pl.col("begin_s") + length_s)


def _laid_by_days(rows: pl.DataFrame, zone: str) -> pl.DataFrame:
    """Days are stamped with the open of the market; their interval is the exchange's day, 23 to 25 hours."""
    try:
        day = pl.from_epoch("stamp", "s").dt.replace_time_zone("UTC").dt.convert_time_zone(zone).dt.date()
        return rows.with_columns(begin_s=_midnight(day, zone), end_s=_midnight(day.dt.offset_by("1d"), zone))
    except pl.exceptions.PolarsError:
        raise NoBars(f"{zone!r} is no time zone") from None


def _midnight(day: pl.Expr, zone: str) -> pl.Expr:
    """In seconds; where a day begins at one o'clock because the clock is put forward at midnight, that."""
    first, second = (
        (day.cast(pl.Datetime("us")) + pl.duration(hours=hours)).dt.replace_time_zone(
            zone, ambiguous="earliest", non_existent="null"
        )
        for hours in (0, 1)
    )
    return pl.coalesce(first, second).dt.epoch("s")


def _misfit(row: dict[str, float | None], question: ChartQuestion) -> tuple[str, bytes]:
    shown = {"timestamp": row["stamp"]} | {name: row[name] for name in VALUES}
    return f"{row['stamp']} begins no {question.timeframe} of {question.symbol}", msgspec.json.encode(shown)


__all__ = ["Bars", "NoBars", "bars_in"]
