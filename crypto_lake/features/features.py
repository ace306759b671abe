"""The features of bars (docs/features.md): each row from what had happened by the close of its bar."""

from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from crypto_lake.features.asof import Floats, Times, floats, last_until, millis, per_bar
from crypto_lake.features.book_features import book_features
from crypto_lake.features.rolling import (
    Windows,
    against_steps,
    before,
    correlation,
    covariance,
    highest,
    ln,
    lowest,
    over,
    rank,
    rows_since_highest,
    slope,
    sums,
    third_and_fourth,
)
from crypto_lake.models.bar import TIMEFRAMES_US
from crypto_lake.models.feature import LOOKBACK, NAMES

# So many rows at a time: what is in hand then fits into a core's cache.
TILE: Final = 4096
E: Final = 1e-12
LN2: Final = float(np.log(2))
# 0.34/(1.34 + (n+1)/(n-1)) of Yang and Zhang for n = 30.
YANG_ZHANG: Final = 0.34 / (1.34 + 31 / 29)
CORWIN_SCHULTZ: Final = 3 - 2 * 2**0.5
MINUTES, DAYS = 1440, 7
# 1970-01-01 was a Thursday; Monday is 0.
FIRST_WEEKDAY: Final = 3
# Values of all minutes and weekdays, so that one does not depend on where in a column it is computed.
TOD: Final = 2 * np.pi * np.arange(MINUTES) / MINUTES
DOW: Final = 2 * np.pi * np.arange(DAYS) / DAYS
TOD_SIN, TOD_COS, DOW_SIN, DOW_COS = np.sin(TOD), np.cos(TOD), np.sin(DOW), np.cos(DOW)


@dataclass(frozen=True, slots=True)
class Rows:
    """What features are made of, one value per bar; null is NaN. The letters are those of docs/features.md."""

    open_ms: Times
    close_ms: Times
    o: Floats
    h: Floats
    low: Floats
    c: Floats
    v: Floats
    q: Floats
    n: Floats
    bv: Floats
    bq: Floats
    ec: Floats
    mp: Floats
    ip: Floats
    fr: Floats
    funding_ms: Floats
    oi: Floats
    lb: Floats
    ls: Floats
    liquidations: Floats
    liquidated_ms: Floats

    def part(self, first: int, last: int) -> "Rows":
        """Rows `first` up to `last`, which is not among them."""
        return Rows(*(getattr(self, each.name)[first:last] for each in fields(self)))


def features(
    bars: pl.DataFrame,
    *,
    timeframe: str,
    reference: pl.DataFrame | None = None,
    books: pl.DataFrame | None = None,
    marks: pl.DataFrame | None = None,
    open_interest: pl.DataFrame | None = None,
    liquidations: pl.DataFrame | None = None,
    wanted: int | None = None,
) -> pl.DataFrame:
    """`time` and the features of the last `wanted` bars (default: of all), in the order of the registry.

    The frames have the columns of their tables and are of one symbol each. `bars` are in the order of time, and where
    trade never rests without gaps; their first row is the first of the series, or at least `LOOKBACK` rows before the
    first one wanted. `reference` are bars (`time` and `close` are enough); the others hold, in any order, what happened
    in the bars and the last thing before them. An input that is None makes its features null.
    """
    if bars.is_empty():
        return pl.DataFrame(schema={"time": bars.schema["time"], **dict.fromkeys(NAMES, pl.Float64())})
    count = bars.height if wanted is None else min(wanted, bars.height)
    rows = _rows(bars, timeframe, reference, marks, open_interest, liquidations)
    first = bars.height - count
    with np.errstate(all="ignore"):  # what is no number becomes null
        books_of = book_features(rows.open_ms[first:], rows.close_ms[first:], books)
        tiles = [_tile(rows, at, min(at + TILE, bars.height)) for at in range(first, bars.height, TILE)]
    made = {name: np.concatenate([tile[name] for tile in tiles]) for name in tiles[0]} | books_of
    assert made.keys() == set(NAMES)
    return _frame({name: made[name] for name in NAMES}).insert_column(0, bars["time"].tail(count))


def book_columns(bars: pl.DataFrame, timeframe: str, books: pl.DataFrame | None) -> pl.DataFrame:
    """The features of the book of all `bars`, as in `features`: these look back on no other bar."""
    open_ms, close_ms = _clocks(bars, timeframe)
    with np.errstate(all="ignore"):
        return _frame(book_features(open_ms, close_ms, books))


def _frame(made: dict[str, Floats]) -> pl.DataFrame:
    """What is no number is null, and there is one zero: plus zero."""
    cleaned = {name: np.where(np.isfinite(column), column + 0.0, np.nan) for name, column in made.items()}
    return pl.DataFrame(cleaned, nan_to_null=True)


def _clocks(bars: pl.DataFrame, timeframe: str) -> tuple[Times, Times]:
    """When each bar opens and closes (ms)."""
    open_ms = millis(bars["time"])
    assert (np.diff(open_ms) > 0).all(), "bars come in the order of time, each once"
    return open_ms, open_ms + TIMEFRAMES_US[timeframe] // 1000 - 1


def _rows(
    bars: pl.DataFrame,
    timeframe: str,
    reference: pl.DataFrame | None,
    marks: pl.DataFrame | None,
    open_interest: pl.DataFrame | None,
    liquidations: pl.DataFrame | None,
) -> Rows:
    """Everything on the rows of the bars."""
    open_ms, close_ms = _clocks(bars, timeframe)
    mp, ip, fr, funding_ms, oi = _marks(close_ms, marks, open_interest)
    lb, ls, number, liquidated_ms = _liquidations(open_ms, close_ms, liquidations)
    return Rows(
        open_ms=open_ms,
        close_ms=close_ms,
        o=floats(bars, "open"),
        h=floats(bars, "high"),
        low=floats(bars, "low"),
        c=floats(bars, "close"),
        v=floats(bars, "volume"),
        q=floats(bars, "quote_volume"),
        n=floats(bars, "count"),
        bv=floats(bars, "taker_buy_volume"),
        bq=floats(bars, "taker_buy_quote_volume"),
        ec=_same_open(open_ms, reference),
        mp=mp,
        ip=ip,
        fr=fr,
        funding_ms=funding_ms,
        oi=oi,
        lb=lb,
        ls=ls,
        liquidations=number,
        liquidated_ms=liquidated_ms,
    )


def _same_open(open_ms: Times, reference: pl.DataFrame | None) -> Floats:
    """The close of the reference's bar with the same open."""
    if reference is None or reference.is_empty():
        return np.full(len(open_ms), np.nan)
    ordered = reference.sort("time")
    there = millis(ordered["time"])
    at = last_until(there, open_ms)
    is_same = there[np.maximum(at, 0)] == open_ms
    return np.where(is_same & (at >= 0), floats(ordered, "close")[at], np.nan)


def _marks(close_ms: Times, marks: pl.DataFrame | None, interest: pl.DataFrame | None) -> tuple[Floats, ...]:
    """Mark price, index price, funding rate, time of the next funding (ms), open interest."""
    if marks is None or marks.is_empty():
        return tuple(np.full(len(close_ms), np.nan) for _ in range(5))
    ordered = marks.sort("time")
    times = millis(ordered["time"])
    at = last_until(times, close_ms)
    values = [floats(ordered, name) for name in ("mark_price", "index_price", "funding_rate")]
    values.append(floats(ordered.select(pl.col("next_funding_time").dt.epoch("ms")), "next_funding_time"))
    values.append(_as_of(times, interest))
    return tuple(np.where(at >= 0, each[at], np.nan) for each in values)


def _as_of(times: Times, interest: pl.DataFrame | None) -> Floats:
    """Open interest at each of these times."""
    if interest is None or interest.is_empty():
        return np.full(len(times), np.nan)
    ordered = interest.sort("time")
    at = last_until(millis(ordered["time"]), times)
    return np.where(at >= 0, floats(ordered, "open_interest")[at], np.nan)


def _liquidations(open_ms: Times, close_ms: Times, liquidations: pl.DataFrame | None) -> tuple[Floats, ...]:
    """Quote units bought and sold by force and their number, per bar; the time of the last one (ms)."""
    if liquidations is None:
        return tuple(np.full(len(open_ms), np.nan) for _ in range(4))
    # Of the same time too they come in one order: a sum is then the same to the last bit, however they were read.
    ordered = liquidations.sort("time", "side", "average_price", "filled_quantity")
    times = millis(ordered["time"])
    amounts = floats(ordered, "average_price") * floats(ordered, "filled_quantity")
    is_buy, is_sell = ((ordered["side"] == side).to_numpy() for side in ("BUY", "SELL"))
    bars = per_bar(times, open_ms, close_ms)
    at = last_until(times, close_ms)
    last = np.where(at >= 0, times[at].astype(np.float64), np.nan) if len(times) else np.full(len(open_ms), np.nan)
    return (
        _sum(bars, is_buy, amounts, len(open_ms)),
        _sum(bars, is_sell, amounts, len(open_ms)),
        _sum(bars, is_buy | is_sell, np.ones(len(times)), len(open_ms)),
        last,
    )


def _sum(bars: Times, is_meant: NDArray[np.bool_], amounts: Floats, count: int) -> Floats:
    inside = is_meant & (bars >= 0)
    return np.bincount(bars[inside], weights=amounts[inside], minlength=count).astype(np.float64)


def _tile(rows: Rows, first: int, last: int) -> dict[str, Floats]:
    """All features but those of the book, of rows `first` up to `last`."""
    start = max(first - LOOKBACK, 0)
    part = rows.part(start, last)
    parts = Parts.of(part)
    made: dict[str, Floats] = {}
    for group in (_returns, _volatility, _candle, _trend, _flow, _liquidity, _derivatives, _liquidated, _clock, _cross):
        made |= group(part, parts)
    return {name: column[first - start :] for name, column in made.items()}


@dataclass(frozen=True, slots=True)
class Parts:
    """Columns that several groups read."""

    c: Windows
    v: Windows
    r: Windows
    dc: Windows
    sv: Windows
    hl: Floats
    co: Floats
    sq: Floats
    q: Windows

    @classmethod
    def of(cls, x: Rows) -> "Parts":
        """Those of the rows."""
        earlier = before(x.c)
        return cls(
            c=Windows(x.c),
            v=Windows(x.v),
            r=Windows(ln(x.c / earlier)),
            dc=Windows(x.c - earlier),
            sv=Windows(2 * x.bv - x.v),
            hl=ln(x.h / x.low),
            co=ln(x.c / x.o),
            sq=2 * x.bq - x.q,
            q=Windows(x.q),
        )


def _share(holds: NDArray[np.bool_], of: Floats, n: int) -> Floats:
    """The share of the window's rows in which something holds; null where `of` is."""
    return sums(np.where(np.isnan(of), np.nan, holds), n) / n


def _returns(x: Rows, p: Parts) -> dict[str, Floats]:
    return {
        "ret_1": x.c / before(x.c) - 1,
        **{f"logret_{k}": ln(x.c / before(x.c, k)) for k in (1, 5, 15, 30, 60, 240)},
        "gap_open": ln(x.o / before(x.c)),
        "logret_oc": p.co,
    }


def _volatility(x: Rows, p: Parts) -> dict[str, Floats]:
    r = p.r.x
    squares = r * r
    rv_15, rv_60, rv_240 = (np.sqrt(sums(squares, k)) for k in (15, 60, 240))
    total, bipower = sums(squares, 60), np.pi / 2 * sums(np.abs(r) * np.abs(before(r)), 60)
    jump = np.where(np.isnan(bipower), 0.0 * total, np.maximum(0.0, total - bipower))
    second = p.r.squares(60) / 60
    third, fourth = (each / 60 for each in third_and_fourth(r, p.r.mean(60), 60))
    range_squares, body_squares = p.hl * p.hl, p.co * p.co
    rs = ln(x.h / x.c) * ln(x.h / x.o) + ln(x.low / x.c) * ln(x.low / x.o)
    rs_mean = sums(rs, 30) / 30
    gap, body = Windows(ln(x.o / before(x.c))), Windows(p.co)
    yang_zhang = gap.variance(30) + YANG_ZHANG * body.variance(30) + (1 - YANG_ZHANG) * rs_mean
    return {
        "rv_15": rv_15,
        "rv_60": rv_60,
        "rv_240": rv_240,
        "std_30": p.r.deviation(30),
        "skew_60": over(third, second * np.sqrt(second)),
        "kurt_60": over(fourth, second * second),
        "bipower_60": bipower,
        "jump_share_60": over(jump, total),
        "semivar_down_60": sums(np.where(r < 0, squares, 0.0 * r), 60),
        "semivar_up_60": sums(np.where(r > 0, squares, 0.0 * r), 60),
        "parkinson_30": np.sqrt(sums(range_squares, 30) / (4 * LN2 * 30)),
        "garman_klass_30": np.sqrt(np.maximum(0.0, sums(0.5 * range_squares - (2 * LN2 - 1) * body_squares, 30) / 30)),
        "rogers_satchell_30": np.sqrt(np.maximum(0.0, rs_mean)),
        "yang_zhang_30": np.sqrt(np.maximum(0.0, yang_zhang)),
        "vol_ratio_15_60": over(rv_15 / np.sqrt(15), rv_60 / np.sqrt(60)),
        "vol_of_vol_60": Windows(rv_15).deviation(60),
    }


def _candle(x: Rows, _: Parts) -> dict[str, Floats]:
    body, length = x.c - x.o, x.h - x.low
    upper, lower = x.h - np.maximum(x.o, x.c), np.minimum(x.o, x.c) - x.low
    shift = 2 * x.c - x.h - x.low
    return {
        "kmid": body / x.o,
        "klen": length / x.o,
        "kmid2": body / (length + E),
        "kup": upper / x.o,
        "kup2": upper / (length + E),
        "klow": lower / x.o,
        "klow2": lower / (length + E),
        "ksft": shift / x.o,
        "ksft2": shift / (length + E),
    }


def _trend(x: Rows, p: Parts) -> dict[str, Floats]:
    steps = 20 * (20 * 20 - 1) / 12  # the sum of squares of 0 .. 19 around their mean
    rising, spread = against_steps(x.c, p.c.mean(20), 20), p.c.squares(20)
    is_flat = spread <= 1e-18 * np.maximum(1.0, p.c.mean(20) ** 2)
    high, low, distance = highest(x.h, 60), lowest(x.low, 60), sums(np.abs(p.dc.x), 20)
    low_20 = lowest(x.low, 20)
    return {
        "ma_ratio_20": x.c / p.c.mean(20) - 1,
        "ma_ratio_60": x.c / p.c.mean(60) - 1,
        "zclose_60": p.c.z(60),
        "slope_20": rising / steps / x.c,
        "rsqr_20": np.where(is_flat, np.nan, rising * rising / (steps * spread)),
        "rsv_20": over(x.c - low_20, highest(x.h, 20) - low_20),
        "dist_high_60": x.c / high - 1,
        "dist_low_60": x.c / low - 1,
        "bars_since_high_60": rows_since_highest(x.h, 60),
        "bars_since_low_60": rows_since_highest(-x.low, 60),
        "rank_20": rank(x.c, 20),
        "up_share_20": _share(p.r.x > 0, p.r.x, 20),
        "sumd_20": over(p.dc.sum(20), distance),
        "autocorr1_60": correlation(p.r, Windows(before(p.r.x)), 60),
        "var_ratio_5_60": over(Windows(ln(x.c / before(x.c, 5))).variance(60), 5 * p.r.variance(60)),
        "efficiency_20": over(np.abs(x.c - before(x.c, 20)), distance),
    }


def _flow(x: Rows, p: Parts) -> dict[str, Floats]:
    log_volume = np.log1p(x.v)
    return {
        "log_volume": log_volume,
        "volume_z_60": p.v.z(60),
        "count_z_60": Windows(x.n).z(60),
        "rel_volume_60": over(x.v, p.v.mean(60)),
        "avg_trade_size": over(x.v, x.n),
        "taker_buy_ratio": over(x.bv, x.v),
        "flow_imb": over(p.sv.x, x.v),
        "cvd_60": p.sv.sum(60),
        "flow_imb_60": over(p.sv.sum(60), p.v.sum(60)),
        "dollar_imb_15": over(sums(p.sq, 15), p.q.sum(15)),
        "vwap_dev": over(x.c * x.v, x.q) - 1,
        "vwap_dev_60": over(x.c * p.v.sum(60), p.q.sum(60)) - 1,
        "corr_r_vol_30": correlation(p.r, Windows(log_volume), 30),
        "vpin_50": over(sums(np.abs(p.sv.x), 50), p.v.sum(50)),
        "trade_intensity_15": sums(x.n, 15) / 900,
        "empty_share_60": _share(x.n == 0, x.n, 60),
    }


def _liquidity(x: Rows, p: Parts) -> dict[str, Floats]:
    r, known = p.r.x, 0.0 * (p.r.x + x.q)
    is_traded = x.q > 0
    impacts = sums(np.where(is_traded, np.abs(r) / x.q, known), 30)
    earlier_dc = Windows(before(p.dc.x))
    pushes = Windows(np.sign(p.sq) * np.sqrt(np.abs(p.sq)))
    return {
        "amihud_30": over(impacts, sums(np.where(is_traded, known + 1.0, known), 30)),
        "roll_spread_60": 2 * np.sqrt(np.maximum(0.0, -covariance(p.dc, earlier_dc, 60))),
        "kyle_lambda_60": slope(p.dc, p.sv, 60),
        "hasbrouck_lambda_60": slope(p.r, pushes, 60),
        "corwin_schultz_30": sums(_spread_of_ranges(x, p.hl), 30) / 30,
        "zero_ret_share_30": _share(x.c == before(x.c), r, 30),
        "illiq_hl_30": over(sums(p.hl, 30), p.q.sum(30)),
    }


def _spread_of_ranges(x: Rows, hl: Floats) -> Floats:
    """Corwin and Schultz's spread, from the ranges of two bars and of both together."""
    earlier = before(hl)
    both = hl * hl + earlier * earlier
    gamma = ln(np.maximum(x.h, before(x.h)) / np.minimum(x.low, before(x.low))) ** 2
    a = (np.sqrt(2 * both) - np.sqrt(both)) / CORWIN_SCHULTZ - np.sqrt(gamma / CORWIN_SCHULTZ)
    raised = np.exp(a)
    spread: Floats = np.maximum(0.0, 2 * (raised - 1) / (1 + raised))
    return spread


def _derivatives(x: Rows, _: Parts) -> dict[str, Floats]:
    basis = (x.mp / x.ip - 1) * 1e4
    return {
        "basis_bps": basis,
        "mark_dev_bps": (x.c / x.mp - 1) * 1e4,
        "funding_rate": x.fr,
        "basis_z_60": Windows(basis).z(60),
        "minutes_to_funding": (x.funding_ms - (x.close_ms + 1)) / 60_000,
        "oi_change_60": x.oi / before(x.oi, 60) - 1,
        "funding_chg_60": x.fr - before(x.fr, 60),
    }


def _liquidated(x: Rows, p: Parts) -> dict[str, Floats]:
    bought, sold = sums(x.lb, 60), sums(x.ls, 60)
    return {
        "liq_count_15": sums(x.liquidations, 15),
        "liq_long_usd_15": sums(x.ls, 15),
        "liq_short_usd_15": sums(x.lb, 15),
        "liq_imb_60": over(bought - sold, bought + sold),
        "liq_intensity_60": over(bought + sold, p.q.sum(60)),
        "secs_since_liq": (x.close_ms + 1 - x.liquidated_ms) / 1000,
    }


def _clock(x: Rows, _: Parts) -> dict[str, Floats]:
    minutes = x.open_ms // 60_000
    minute, weekday = minutes % MINUTES, (minutes // MINUTES + FIRST_WEEKDAY) % DAYS
    is_session = (weekday < 5) & (minute >= 810) & (minute < 1200)
    return {
        "tod_sin": TOD_SIN[minute],
        "tod_cos": TOD_COS[minute],
        "dow_sin": DOW_SIN[weekday],
        "dow_cos": DOW_COS[weekday],
        "is_weekend": (weekday >= 5).astype(np.float64),
        "minute_of_hour": (minute % 60).astype(np.float64),
        "session_us": is_session.astype(np.float64),
    }


def _cross(x: Rows, p: Parts) -> dict[str, Floats]:
    er = Windows(ln(x.ec / before(x.ec)))
    return {
        "eth_logret_1": er.x,
        "eth_logret_5": ln(x.ec / before(x.ec, 5)),
        "corr_eth_60": correlation(p.r, er, 60),
        "beta_eth_60": slope(p.r, er, 60),
        "lead_eth_60": correlation(p.r, Windows(before(er.x)), 60),
        "ratio_z_60": Windows(x.c / x.ec).z(60),
    }
