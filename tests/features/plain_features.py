"""The features once more, row by row in plain Python and straight from their definitions; null is None.

Slow, and with nothing in common with the package but the names: what both say is likely to be meant.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import polars as pl

Value = float | None
Series = Callable[[int], Value]
LENGTH_MS = {"1m": 60_000, "5m": 300_000, "15m": 900_000, "1h": 3_600_000, "4h": 14_400_000, "1d": 86_400_000}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def ms(instant: datetime) -> int:
    """Milliseconds since 1970, cut off."""
    away = instant - EPOCH
    return (away.days * 86_400 + away.seconds) * 1000 + away.microseconds // 1000


def by_row(compute: Callable[..., Value], *series: Series) -> Series:
    """A value of each row from others of the same row; null from a null, or where it cannot be computed."""

    def value(t: int) -> Value:
        found = [each(t) for each in series]
        if any(each is None for each in found):
            return None
        try:
            made = compute(*found)
        except (ZeroDivisionError, ValueError, OverflowError):
            return None
        return made if made is not None and math.isfinite(made) else None

    return value


def late(x: Series, rows: int = 1) -> Series:
    return lambda t: x(t - rows) if t >= rows else None


def window(x: Series, n: int, t: int) -> list[float] | None:
    """Rows t-n+1 .. t; None if the series starts later or any value is null."""
    if t - n + 1 < 0:
        return None
    found = [x(each) for each in range(t - n + 1, t + 1)]
    return None if any(each is None for each in found) else [each for each in found if each is not None]


def over_window(compute: Callable[..., Value], n: int, *series: Series) -> Series:
    def value(t: int) -> Value:
        windows = [window(x, n, t) for x in series]
        if any(each is None for each in windows):
            return None
        try:
            made = compute(*windows)
        except (ZeroDivisionError, ValueError, OverflowError):
            return None
        return made if made is not None and math.isfinite(made) else None

    return value


def mean(x: Sequence[float]) -> float:
    return math.fsum(x) / len(x)


def cov(x: Sequence[float], y: Sequence[float]) -> float:
    a, b = mean(x), mean(y)
    return math.fsum((p - a) * (q - b) for p, q in zip(x, y, strict=True)) / (len(x) - 1)


def var(x: Sequence[float]) -> float:
    return 0.0 if len(set(x)) == 1 else cov(x, x)


def sd(x: Sequence[float]) -> float:
    return math.sqrt(var(x))


def corr(x: Sequence[float], y: Sequence[float]) -> Value:
    scale = sd(x) * sd(y)
    return None if scale <= 1e-14 else cov(x, y) / scale


def slope(y: Sequence[float], x: Sequence[float]) -> Value:
    return None if var(x) <= 1e-18 else cov(x, y) / var(x)


def z(x: Sequence[float]) -> Value:
    return None if sd(x) <= 1e-12 * max(1.0, abs(mean(x))) else (x[-1] - mean(x)) / sd(x)


def share(holds: Callable[[float], bool]) -> Callable[[Sequence[float]], float]:
    return lambda x: sum(1 for each in x if holds(each)) / len(x)


def moment(x: Sequence[float], k: int) -> float:
    middle = mean(x) if len(set(x)) > 1 else x[0]
    return math.fsum((each - middle) ** k for each in x) / len(x)


def last_where(x: Sequence[float], wanted: float) -> float:
    return float(min(back for back in range(len(x)) if x[-1 - back] == wanted))


def fit(c: Sequence[float]) -> tuple[float, float, float]:
    """Sxy, Sxx, Syy of a line over 0 .. n-1."""
    middle, level = (len(c) - 1) / 2, mean(c)
    sxy = math.fsum((i - middle) * (y - level) for i, y in enumerate(c))
    sxx = math.fsum((i - middle) ** 2 for i in range(len(c)))
    return sxy, sxx, math.fsum((y - level) ** 2 for y in c)


def rsqr(c: Sequence[float]) -> Value:
    sxy, sxx, syy = fit(c)
    return None if syy <= 1e-18 * max(1.0, mean(c) ** 2) else sxy**2 / (sxx * syy)


def amihud(r: Sequence[float], q: Sequence[float]) -> Value:
    found = [abs(a) / b for a, b in zip(r, q, strict=True) if b > 0]
    return mean(found) if found else None


def divided(a: float, b: float) -> Value:
    return None if b == 0 else a / b


def plain_features(
    bars: pl.DataFrame,
    timeframe: str,
    *,
    reference: pl.DataFrame | None = None,
    books: pl.DataFrame | None = None,
    marks: pl.DataFrame | None = None,
    open_interest: pl.DataFrame | None = None,
    liquidations: pl.DataFrame | None = None,
) -> dict[str, list[Value]]:
    """Every feature of every bar."""
    rows = bars.to_dicts()
    opens = [ms(row["time"]) for row in rows]
    closes = [each + LENGTH_MS[timeframe] - 1 for each in opens]
    made: dict[str, Series] = {
        **of_bars(rows),
        **of_books(opens, closes, books),
        **of_marks(rows, closes, marks, open_interest),
        **of_liquidations(rows, opens, closes, liquidations),
        **of_time(opens),
        **of_reference(rows, opens, reference),
    }
    return {name: [remembered(t) for t in range(len(rows))] for name, remembered in made.items()}


def kept(x: Series) -> Series:
    """Each row is computed once."""
    held: dict[int, Value] = {}

    def value(t: int) -> Value:
        if t not in held:
            held[t] = x(t)
        return held[t]

    return value


def column(rows: Sequence[Mapping[str, Any]], name: str) -> Series:
    return lambda t: rows[t][name]


def of_bars(rows: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    o, h, low, c, v, q, n, bv, bq = (
        column(rows, name)
        for name in (
            *("open", "high", "low", "close", "volume", "quote_volume", "count"),
            *("taker_buy_volume", "taker_buy_quote_volume"),
        )
    )
    ln = math.log
    r = kept(by_row(lambda a, b: ln(a / b), c, late(c)))
    dc = kept(by_row(lambda a, b: a - b, c, late(c)))
    sv, sq = by_row(lambda b, a: 2 * b - a, bv, v), by_row(lambda b, a: 2 * b - a, bq, q)
    hl, co = kept(by_row(lambda a, b: ln(a / b), h, low)), kept(by_row(lambda a, b: ln(a / b), c, o))
    gap = kept(by_row(lambda a, b: ln(a / b), o, late(c)))

    def logret(k: int) -> Series:
        return by_row(lambda a, b: ln(a / b), c, late(c, k))

    def rv(k: int) -> Series:
        return kept(over_window(lambda x: math.sqrt(math.fsum(a * a for a in x)), k, r))

    rv_15, rv_60 = rv(15), rv(60)
    pair = by_row(lambda a, b: abs(a) * abs(b), r, late(r))
    bipower = over_window(lambda x: math.pi / 2 * math.fsum(x), 60, pair)
    total = over_window(lambda x: math.fsum(a * a for a in x), 60, r)

    def jump(t: int) -> Value:
        all_of_it, smooth = total(t), bipower(t)
        if all_of_it is None or all_of_it == 0:
            return None
        return 0.0 if smooth is None else max(0.0, all_of_it - smooth) / all_of_it

    rs = kept(
        by_row(lambda a, b, d, e: ln(b / e) * ln(b / a) + ln(d / e) * ln(d / a), o, h, low, c),
    )
    gk = by_row(lambda a, b: 0.5 * a * a - (2 * ln(2) - 1) * b * b, hl, co)
    k = 0.34 / (1.34 + 31 / 29)

    def corwin(h1: float, l1: float, h0: float, l0: float) -> float:
        d = 3 - 2 * math.sqrt(2)
        both = ln(h1 / l1) ** 2 + ln(h0 / l0) ** 2
        g = ln(max(h1, h0) / min(l1, l0)) ** 2
        a = (math.sqrt(2 * both) - math.sqrt(both)) / d - math.sqrt(g / d)
        return max(0.0, 2 * (math.exp(a) - 1) / (1 + math.exp(a)))

    e = 1e-12
    log_volume = by_row(math.log1p, v)
    impact = by_row(lambda a: math.copysign(1.0, a) * math.sqrt(abs(a)) if a else 0.0, sq)
    return {
        "ret_1": by_row(lambda a, b: a / b - 1, c, late(c)),
        **{f"logret_{each}": logret(each) for each in (1, 5, 15, 30, 60, 240)},
        "gap_open": gap,
        "logret_oc": co,
        "rv_15": rv_15,
        "rv_60": rv_60,
        "rv_240": rv(240),
        "std_30": over_window(sd, 30, r),
        "skew_60": over_window(lambda x: divided(moment(x, 3), moment(x, 2) ** 1.5), 60, r),
        "kurt_60": over_window(lambda x: divided(moment(x, 4), moment(x, 2) ** 2), 60, r),
        "bipower_60": bipower,
        "jump_share_60": jump,
        "semivar_down_60": over_window(lambda x: math.fsum(a * a for a in x if a < 0), 60, r),
        "semivar_up_60": over_window(lambda x: math.fsum(a * a for a in x if a > 0), 60, r),
        "parkinson_30": over_window(lambda x: math.sqrt(math.fsum(a * a for a in x) / (4 * ln(2) * 30)), 30, hl),
        "garman_klass_30": over_window(lambda x: math.sqrt(max(0.0, mean(x))), 30, gk),
        "rogers_satchell_30": over_window(lambda x: math.sqrt(max(0.0, mean(x))), 30, rs),
        "yang_zhang_30": over_window(
            lambda a, b, d: math.sqrt(max(0.0, var(a) + k * var(b) + (1 - k) * mean(d))), 30, gap, co, rs
        ),
        "vol_ratio_15_60": by_row(lambda a, b: divided(a / math.sqrt(15), b / math.sqrt(60)), rv_15, rv_60),
        "vol_of_vol_60": over_window(sd, 60, rv_15),
        "kmid": by_row(lambda a, b: (b - a) / a, o, c),
        "klen": by_row(lambda a, b, d: (b - d) / a, o, h, low),
        "kmid2": by_row(lambda a, b, d, f: (f - a) / (b - d + e), o, h, low, c),
        "kup": by_row(lambda a, b, f: (b - max(a, f)) / a, o, h, c),
        "kup2": by_row(lambda a, b, d, f: (b - max(a, f)) / (b - d + e), o, h, low, c),
        "klow": by_row(lambda a, d, f: (min(a, f) - d) / a, o, low, c),
        "klow2": by_row(lambda a, b, d, f: (min(a, f) - d) / (b - d + e), o, h, low, c),
        "ksft": by_row(lambda a, b, d, f: (2 * f - b - d) / a, o, h, low, c),
        "ksft2": by_row(lambda b, d, f: (2 * f - b - d) / (b - d + e), h, low, c),
        "ma_ratio_20": over_window(lambda x: x[-1] / mean(x) - 1, 20, c),
        "ma_ratio_60": over_window(lambda x: x[-1] / mean(x) - 1, 60, c),
        "zclose_60": over_window(z, 60, c),
        "slope_20": over_window(lambda x: fit(x)[0] / fit(x)[1] / x[-1], 20, c),
        "rsqr_20": over_window(rsqr, 20, c),
        "rsv_20": over_window(lambda b, d, f: divided(f[-1] - min(d), max(b) - min(d)), 20, h, low, c),
        "dist_high_60": by_row(lambda a, b: a / b - 1, c, over_window(max, 60, h)),
        "dist_low_60": by_row(lambda a, b: a / b - 1, c, over_window(min, 60, low)),
        "bars_since_high_60": over_window(lambda x: last_where(x, max(x)), 60, h),
        "bars_since_low_60": over_window(lambda x: last_where(x, min(x)), 60, low),
        "rank_20": over_window(
            lambda x: (sum(a < x[-1] for a in x) + (sum(a == x[-1] for a in x) + 1) / 2) / 20, 20, c
        ),
        "up_share_20": over_window(share(lambda a: a > 0), 20, r),
        "sumd_20": over_window(lambda x: divided(math.fsum(x), math.fsum(map(abs, x))), 20, dc),
        "autocorr1_60": over_window(corr, 60, r, late(r)),
        "var_ratio_5_60": over_window(lambda a, b: divided(var(a), 5 * var(b)), 60, kept(logret(5)), r),
        "efficiency_20": by_row(
            lambda a, b, x: divided(abs(a - b), x),
            c,
            late(c, 20),
            over_window(lambda x: math.fsum(map(abs, x)), 20, dc),
        ),
        "log_volume": log_volume,
        "volume_z_60": over_window(z, 60, v),
        "count_z_60": over_window(z, 60, n),
        "rel_volume_60": over_window(lambda x: divided(x[-1], mean(x)), 60, v),
        "avg_trade_size": by_row(divided, v, n),
        "taker_buy_ratio": by_row(divided, bv, v),
        "flow_imb": by_row(divided, sv, v),
        "cvd_60": over_window(math.fsum, 60, sv),
        "flow_imb_60": over_window(lambda a, b: divided(math.fsum(a), math.fsum(b)), 60, sv, v),
        "dollar_imb_15": over_window(lambda a, b: divided(math.fsum(a), math.fsum(b)), 15, sq, q),
        "vwap_dev": by_row(lambda a, b, d: None if d == 0 else a * b / d - 1, c, v, q),
        "vwap_dev_60": by_row(
            lambda a, b, d: None if d == 0 else a * b / d - 1,
            c,
            over_window(math.fsum, 60, v),
            over_window(math.fsum, 60, q),
        ),
        "corr_r_vol_30": over_window(corr, 30, r, log_volume),
        "vpin_50": over_window(lambda a, b: divided(math.fsum(map(abs, a)), math.fsum(b)), 50, sv, v),
        "trade_intensity_15": over_window(lambda x: math.fsum(x) / 900, 15, n),
        "empty_share_60": over_window(share(lambda a: a == 0), 60, n),
        "amihud_30": over_window(amihud, 30, r, q),
        "roll_spread_60": over_window(lambda a, b: 2 * math.sqrt(max(0.0, -cov(a, b))), 60, dc, late(dc)),
        "kyle_lambda_60": over_window(slope, 60, dc, sv),
        "hasbrouck_lambda_60": over_window(slope, 60, r, impact),
        "corwin_schultz_30": over_window(mean, 30, kept(by_row(corwin, h, low, late(h), late(low)))),
        "zero_ret_share_30": over_window(share(lambda a: a == 0), 30, r),
        "illiq_hl_30": over_window(lambda a, b: divided(math.fsum(a), math.fsum(b)), 30, hl, q),
    }


def of_books(opens: Sequence[int], closes: Sequence[int], books: pl.DataFrame | None) -> dict[str, Series]:
    held = [] if books is None else books.to_dicts()
    snapshots = sorted(held, key=lambda row: (ms(row["time"]), row["update_id"]))
    times = [ms(row["time"]) for row in snapshots]

    def cell(s: int, side: str, level: int, field: str) -> Value:
        levels = snapshots[s][side]
        return levels[level][field] if level < len(levels) and levels[level] is not None else None

    def cells(s: int, names: str) -> list[float] | None:
        """E.g. "pb0 qb0": price and size of the best bid; None if any is null."""
        fields = {"p": "price", "q": "quantity"}
        sides = {"b": "bids", "a": "asks"}
        found = [cell(s, sides[name[1]], int(name[2]), fields[name[0]]) for name in names.split()]
        return None if any(each is None for each in found) else [each for each in found if each is not None]

    def used(t: int) -> int | None:
        before = [s for s, each in enumerate(times) if each <= closes[t]]
        return before[-1] if before and closes[t] - times[before[-1]] <= 60_000 else None

    used = {t: used(t) for t in range(len(opens))}.get

    def state(names: str, compute: Callable[..., float]) -> Series:
        def value(t: int) -> Value:
            s = used(t)
            found = None if s is None else cells(s, names)
            try:
                return None if found is None else compute(*found)
            except ZeroDivisionError:
                return None

        return value

    def inside(t: int) -> list[int]:
        return [s for s, each in enumerate(times) if opens[t] <= each <= closes[t]] if used(t) is not None else []

    def flow(levels: int) -> Series:
        def value(t: int) -> Value:
            mine = inside(t)
            if not mine or mine[0] == 0:
                return None
            found = []
            for s in mine:
                for level in range(levels):
                    names = " ".join(f"{each}{level}" for each in ("pb", "qb", "pa", "qa"))
                    now, past = cells(s, names), cells(s - 1, names)
                    if now is None or past is None:
                        return None
                    (pb, qb, pa, qa), (pb0, qb0, pa0, qa0) = now, past
                    found += [qb if pb >= pb0 else 0, -qb0 if pb <= pb0 else 0]
                    found += [-qa if pa <= pa0 else 0, qa0 if pa >= pa0 else 0]
            return math.fsum(found)

        return value

    def spreads(t: int) -> Value:
        found = [cells(s, "pb0 pa0") for s in inside(t)]
        if not found or any(each is None for each in found):
            return None
        return mean([(each[1] - each[0]) / ((each[0] + each[1]) / 2) * 1e4 for each in found if each])

    best = "pb0 qb0 pa0 qa0"
    sizes = " ".join(f"q{side}{level}" for side in "ba" for level in range(5))
    whole = " ".join(f"{field}{side}{level}" for side in "ba" for level in range(5) for field in "pq")

    def weighted(*q: float) -> float:
        b, a = (math.fsum(q[at + i] / (i + 1) for i in range(5)) for at in (0, 5))
        return (b - a) / (b + a)

    def age(t: int) -> Value:
        s = used(t)
        return None if s is None else float(closes[t] - times[s])

    bid_sizes, ask_sizes = (" ".join(f"q{side}{level}" for level in range(5)) for side in "ba")
    return {
        "spread_bps": state("pb0 pa0", lambda pb, pa: (pa - pb) / ((pb + pa) / 2) * 1e4),
        "microprice_dev_bps": state(
            best, lambda pb, qb, pa, qa: ((pa * qb + pb * qa) / (qa + qb) / ((pb + pa) / 2) - 1) * 1e4
        ),
        "imb_l1": state("qb0 qa0", lambda qb, qa: (qb - qa) / (qb + qa)),
        "imb_l5": state(sizes, lambda *q: (math.fsum(q[:5]) - math.fsum(q[5:])) / math.fsum(q)),
        "imb_w5": state(sizes, weighted),
        "depth5_quote": state(whole, lambda *x: math.fsum(x[i] * x[i + 1] for i in range(0, 20, 2))),
        "bid_slope5": state(
            f"pb0 pb4 pa0 {bid_sizes}", lambda b1, b5, a1, *q: math.fsum(q) / ((b1 - b5) / ((b1 + a1) / 2) * 1e4)
        ),
        "ask_slope5": state(
            f"pa0 pa4 pb0 {ask_sizes}", lambda a1, a5, b1, *q: math.fsum(q) / ((a5 - a1) / ((b1 + a1) / 2) * 1e4)
        ),
        "ofi_l1": flow(1),
        "ofi_l5": flow(5),
        "spread_mean_bps": spreads,
        "book_age_ms": age,
    }


def of_marks(
    rows: Sequence[Mapping[str, Any]],
    closes: Sequence[int],
    marks: pl.DataFrame | None,
    interest: pl.DataFrame | None,
) -> dict[str, Series]:
    held = [] if marks is None else sorted(marks.to_dicts(), key=lambda row: row["time"])
    open_contracts = [] if interest is None else sorted(interest.to_dicts(), key=lambda row: row["time"])

    def record(t: int) -> Mapping[str, Any] | None:
        found = [each for each in held if ms(each["time"]) <= closes[t]]
        return found[-1] if found else None

    record = {t: record(t) for t in range(len(closes))}.get

    def of_record(name: str) -> Series:
        def value(t: int) -> Value:
            found = record(t)
            return None if found is None else found[name]

        return value

    def contracts(t: int) -> Value:
        found = record(t)
        before = [each for each in open_contracts if found and ms(each["time"]) <= ms(found["time"])]
        return before[-1]["open_interest"] if before else None

    def to_funding(t: int) -> Value:
        found = record(t)
        if found is None or found["next_funding_time"] is None:
            return None
        return (ms(found["next_funding_time"]) - (closes[t] + 1)) / 60_000

    mp, ip, fr, oi = of_record("mark_price"), of_record("index_price"), of_record("funding_rate"), kept(contracts)
    basis = kept(by_row(lambda a, b: (a / b - 1) * 1e4, mp, ip))
    return {
        "basis_bps": basis,
        "mark_dev_bps": by_row(lambda a, b: (a / b - 1) * 1e4, column(rows, "close"), mp),
        "funding_rate": fr,
        "basis_z_60": over_window(z, 60, basis),
        "minutes_to_funding": to_funding,
        "oi_change_60": by_row(lambda a, b: a / b - 1, oi, late(oi, 60)),
        "funding_chg_60": by_row(lambda a, b: a - b, fr, late(fr, 60)),
    }


def of_liquidations(
    rows: Sequence[Mapping[str, Any]], opens: Sequence[int], closes: Sequence[int], liquidations: pl.DataFrame | None
) -> dict[str, Series]:
    names = ("liq_count_15", "liq_long_usd_15", "liq_short_usd_15", "liq_imb_60", "liq_intensity_60", "secs_since_liq")
    if liquidations is None:
        return {name: lambda _: None for name in names}
    held = [(ms(row["time"]), row) for row in liquidations.to_dicts()]

    def summed(*sides: str, count: bool = False) -> Series:
        return kept(
            lambda t: math.fsum(
                1 if count else row["average_price"] * row["filled_quantity"]
                for time, row in held
                if opens[t] <= time <= closes[t] and row["side"] in sides
            )
        )

    def since(t: int) -> Value:
        found = [time for time, _ in held if time <= closes[t]]
        return (closes[t] + 1 - max(found)) / 1000 if found else None

    lb, ls, ln = summed("BUY"), summed("SELL"), summed("BUY", "SELL", count=True)
    lb_60, ls_60 = over_window(math.fsum, 60, lb), over_window(math.fsum, 60, ls)
    q_60 = over_window(math.fsum, 60, column(rows, "quote_volume"))
    return {
        "liq_count_15": over_window(math.fsum, 15, ln),
        "liq_long_usd_15": over_window(math.fsum, 15, ls),
        "liq_short_usd_15": over_window(math.fsum, 15, lb),
        "liq_imb_60": by_row(lambda b, s: divided(b - s, b + s), lb_60, ls_60),
        "liq_intensity_60": by_row(lambda b, s, q: divided(b + s, q), lb_60, ls_60, q_60),
        "secs_since_liq": since,
    }


def of_time(opens: Sequence[int]) -> dict[str, Series]:
    when = [datetime.fromtimestamp(each // 1000, UTC) for each in opens]
    minute = [each.hour * 60 + each.minute for each in when]
    day = [each.weekday() for each in when]
    return {
        "tod_sin": lambda t: math.sin(2 * math.pi * minute[t] / 1440),
        "tod_cos": lambda t: math.cos(2 * math.pi * minute[t] / 1440),
        "dow_sin": lambda t: math.sin(2 * math.pi * day[t] / 7),
        "dow_cos": lambda t: math.cos(2 * math.pi * day[t] / 7),
        "is_weekend": lambda t: 1.0 if day[t] >= 5 else 0.0,
        "minute_of_hour": lambda t: float(minute[t] % 60),
        "session_us": lambda t: 1.0 if day[t] < 5 and 810 <= minute[t] < 1200 else 0.0,
    }


def of_reference(
    rows: Sequence[Mapping[str, Any]], opens: Sequence[int], reference: pl.DataFrame | None
) -> dict[str, Series]:
    held = {} if reference is None else {ms(row["time"]): row["close"] for row in reference.to_dicts()}
    c = column(rows, "close")

    def ec(t: int) -> Value:
        return held.get(opens[t])

    r = kept(by_row(lambda a, b: math.log(a / b), c, late(c)))
    er = kept(by_row(lambda a, b: math.log(a / b), ec, late(ec)))
    return {
        "eth_logret_1": er,
        "eth_logret_5": by_row(lambda a, b: math.log(a / b), ec, late(ec, 5)),
        "corr_eth_60": over_window(corr, 60, r, er),
        "beta_eth_60": over_window(slope, 60, r, er),
        "lead_eth_60": over_window(corr, 60, r, late(er)),
        "ratio_z_60": over_window(z, 60, by_row(lambda a, b: a / b, c, ec)),
    }
