"""Bars made from trades against the venue's own klines (ANALYTICS 1.5): which bars differ, and whether a day passes."""

from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from crypto_lake.config import SPOT
from crypto_lake.models.bar import BAR, KLINE, TRADES
from crypto_lake.query.days import midnight
from crypto_lake.query.findings import Findings, Severity

CHECK: Final = "volume_reconcile"
SERIES: Final = ["symbol", "timeframe"]
EXACT: Final = ("open", "high", "low", "close", "volume", "taker_buy_volume", "count")
ROUNDED: Final = ("quote_volume", "taker_buy_quote_volume")  # the venue rounds each trade
RTOL, ATOL = 1e-9, 1e-12
# Aggregated trades of futures leave out some fills, and one of them can reach over the edge of a bar.
VOLUME_SHARE: Final = 0.001
# Of each symbol, timeframe and day; the others are counted.
BARS_TOLD: Final = 20
THEIRS: Final = "_theirs"

DIFFERS: Final = "differs"
ONLY_OURS: Final = "only ours"
ONLY_THEIRS: Final = "only theirs"


@dataclass(frozen=True, slots=True)
class Compared:
    """A comparison of one venue's bars.

    `bars` has a row for each that differs: `what` says how, and each column of a bar is there twice, theirs with
    `_theirs` behind the name. `days` has a row for each symbol, timeframe and day that both sides have: `bars` of
    either side, how many of them are `differing`, the `volume` of both sides, and whether the day `passes`.
    """

    bars: pl.DataFrame
    days: pl.DataFrame


def compare(ours: pl.DataFrame, theirs: pl.DataFrame, *, venue: str) -> Compared:
    """Rows of `bar` made from trades against rows that are klines, on the days that both have.

    Spot passes only when all bars are equal: prices, volumes and counts exactly, quote volumes within 1e-9. Futures,
    whose aggregated trades are not all trades, pass when the day's volume agrees within 0.1 %. A bar that only one
    side has is none that differs when nobody traded in it.
    """
    both = _newest(ours).join(_newest(theirs), on=[*SERIES, "time"], how="full", coalesce=True, suffix=THEIRS)
    both = both.with_columns(pl.col("time").dt.date().alias("date"), _what().alias("what"))
    days = both.group_by(*SERIES, "date").agg(
        pl.col("venue").count().alias("ours"),
        pl.col(f"venue{THEIRS}").count().alias("theirs"),
        pl.len().alias("bars"),
        pl.col("what").count().alias("differing"),
        pl.col("volume", f"volume{THEIRS}").sum(),
    )
    days = days.filter(pl.col("ours") > 0, pl.col("theirs") > 0).drop("ours", "theirs").sort(*SERIES, "date")
    passes = pl.col("differing") == 0 if venue == SPOT else _is_near(VOLUME_SHARE)
    differing = both.drop_nulls("what").join(days, on=[*SERIES, "date"], how="semi")
    return Compared(differing.sort(*SERIES, "time"), days.with_columns(passes.alias("passes")))


def _newest(bars: pl.DataFrame) -> pl.DataFrame:
    """One row per bar: a revised one counts, and not the one that it replaces."""
    return bars.sort("revision").unique([*SERIES, "time"], keep="last", maintain_order=True)


def _what() -> pl.Expr:
    exact = [pl.col(name).ne_missing(pl.col(name + THEIRS)) for name in EXACT]
    rounded = [_is_off(name) for name in ROUNDED]
    is_ours, is_theirs = pl.col("venue").is_not_null(), pl.col(f"venue{THEIRS}").is_not_null()
    traded, theirs_traded = pl.col("count").ne_missing(0), pl.col(f"count{THEIRS}").ne_missing(0)
    return (
        pl.when(is_ours & is_theirs & pl.any_horizontal(*exact, *rounded))
        .then(pl.lit(DIFFERS))
        .when(is_ours & ~is_theirs & traded)
        .then(pl.lit(ONLY_OURS))
        .when(~is_ours & is_theirs & theirs_traded)
        .then(pl.lit(ONLY_THEIRS))
    )


def _is_off(name: str) -> pl.Expr:
    ours, theirs = pl.col(name), pl.col(name + THEIRS)
    return ((ours - theirs).abs() > ATOL + RTOL * theirs.abs()).fill_null(ours.is_null() != theirs.is_null())


def _is_near(share: float) -> pl.Expr:
    return (pl.col("volume") - pl.col(f"volume{THEIRS}")).abs() <= share * pl.col(f"volume{THEIRS}")


# Findings


def judge(rows: pl.DataFrame, findings: Findings) -> None:
    """The findings about some rows of `bar`, whole days of one or more venues and symbols."""
    for (venue,), part in rows.group_by("venue", maintain_order=True):
        ours, theirs = (part.filter(pl.col("origin") == origin) for origin in (TRADES, KLINE))
        if ours.height and theirs.height:
            _judge_venue(str(venue), compare(ours, theirs, venue=str(venue)), findings)


def _judge_venue(venue: str, compared: Compared, findings: Findings) -> None:
    severity: Severity = "error" if venue == SPOT else "warn"
    for (symbol, timeframe, day), part in compared.bars.group_by(*SERIES, "date", maintain_order=True):
        place = {"venue": venue, "symbol": symbol}
        for bar in part.head(BARS_TOLD).iter_rows(named=True):
            findings.add(BAR, CHECK, severity, f"{timeframe}: {_words(bar)}", **place, **_facts(bar))
        if (rest := part.height - BARS_TOLD) > 0:
            _add_rest(part, f"{timeframe}: and {rest:,} more bars of {day} differ", severity, place, findings)
    for each in compared.days.filter(~pl.col("passes")).iter_rows(named=True):
        if venue != SPOT:
            _judge_day(venue, each, findings)


def _words(bar: dict[str, Any]) -> str:
    if bar["what"] == ONLY_OURS:
        return f"no official kline, and {bar['count']} trades here"
    if bar["what"] == ONLY_THEIRS:
        return f"no bar here, and {bar[f'count{THEIRS}']} trades in the official kline"
    pairs = [(name, bar[name], bar[name + THEIRS]) for name in (*EXACT, *ROUNDED)]
    return ", ".join(f"{name} {ours}, not {theirs}" for name, ours, theirs in pairs if ours != theirs)


def _facts(bar: dict[str, Any]) -> dict[str, Any]:
    close = bar["close_time"] or bar[f"close_time{THEIRS}"]
    return {
        "first_time": bar["time"],
        "last_time": close,
        "observed": bar["volume"],
        "threshold": bar[f"volume{THEIRS}"],
    }


def _add_rest(part: pl.DataFrame, text: str, severity: Severity, place: dict[str, Any], findings: Findings) -> None:
    rest = part.slice(BARS_TOLD)
    findings.add(
        BAR, CHECK, severity, text, **place,
        first_time=rest["time"].min(), last_time=rest["time"].max(), observed=float(rest.height), threshold=0.0,
    )  # fmt: skip


def _judge_day(venue: str, day: dict[str, Any], findings: Findings) -> None:
    ours, theirs = day["volume"], day[f"volume{THEIRS}"]
    share = abs(ours - theirs) / theirs if theirs else float("inf")
    text = (
        f"{day['timeframe']}: {day['date']} fails: volume {ours:.10g}, not {theirs:.10g} ({share:.3%} off), "
        f"{day['differing']:,} of {day['bars']:,} bars differ"
    )
    findings.add(
        BAR, CHECK, "error", text, venue=venue, symbol=day["symbol"],
        first_time=midnight(day["date"]), last_time=midnight(day["date"]), observed=share, threshold=VOLUME_SHARE,
    )  # fmt: skip
