"""The 111 features as one writes them with pandas in a notebook: rolling(), and apply() where there is nothing else."""

import warnings

import numpy as np
import pandas as pd

# A column at a time is how it is written.
warnings.simplefilter("ignore", pd.errors.PerformanceWarning)

E = 1e-12
LN2 = np.log(2)


def features(
    bars: pd.DataFrame,
    reference: pd.DataFrame,
    books: pd.DataFrame,
    marks: pd.DataFrame,
    open_interest: pd.DataFrame,
    liquidations: pd.DataFrame,
) -> pd.DataFrame:
    """A row per bar; bars without trades are not thought of."""
    b = bars.set_index("time")
    x = pd.DataFrame(index=b.index)
    _prices(x, b)
    _candles(x, b)
    _trend(x, b)
    _flow(x, b)
    _impact(x, b)
    _book(x, books)
    _derivatives(x, b, marks, open_interest)
    _liquidated(x, b, liquidations)
    _clock(x)
    _cross(x, b, reference)
    return x.replace([np.inf, -np.inf], np.nan)


def _z(s: pd.Series, n: int) -> pd.Series:
    window = s.rolling(n)
    return (s - window.mean()) / window.std()


def _prices(x: pd.DataFrame, b: pd.DataFrame) -> None:
    c = b.close
    r = np.log(c / c.shift())
    x["ret_1"] = c / c.shift() - 1
    for k in (1, 5, 15, 30, 60, 240):
        x[f"logret_{k}"] = np.log(c / c.shift(k))
    x["gap_open"] = np.log(b.open / c.shift())
    x["logret_oc"] = np.log(c / b.open)
    for k in (15, 60, 240):
        x[f"rv_{k}"] = np.sqrt((r**2).rolling(k).sum())
    x["std_30"] = r.rolling(30).std()
    x["skew_60"] = r.rolling(60).apply(
        lambda w: ((w - w.mean()) ** 3).mean() / ((w - w.mean()) ** 2).mean() ** 1.5, raw=True
    )
    x["kurt_60"] = r.rolling(60).apply(
        lambda w: ((w - w.mean()) ** 4).mean() / ((w - w.mean()) ** 2).mean() ** 2, raw=True
    )
    x["bipower_60"] = np.pi / 2 * (r.abs() * r.abs().shift()).rolling(60).sum()
    total = (r**2).rolling(60).sum()
    x["jump_share_60"] = (total - x.bipower_60).clip(lower=0) / total
    x["semivar_down_60"] = (r**2).where(r < 0, 0).rolling(60).sum()
    x["semivar_up_60"] = (r**2).where(r > 0, 0).rolling(60).sum()
    hl, co = np.log(b.high / b.low), np.log(c / b.open)
    x["parkinson_30"] = np.sqrt((hl**2).rolling(30).sum() / (4 * LN2 * 30))
    x["garman_klass_30"] = np.sqrt((0.5 * hl**2 - (2 * LN2 - 1) * co**2).rolling(30).mean().clip(lower=0))
    rs = np.log(b.high / c) * np.log(b.high / b.open) + np.log(b.low / c) * np.log(b.low / b.open)
    x["rogers_satchell_30"] = np.sqrt(rs.rolling(30).mean().clip(lower=0))
    k = 0.34 / (1.34 + 31 / 29)
    parts = x.gap_open.rolling(30).var() + k * co.rolling(30).var() + (1 - k) * rs.rolling(30).mean()
    x["yang_zhang_30"] = np.sqrt(parts.clip(lower=0))
    x["vol_ratio_15_60"] = (x.rv_15 / np.sqrt(15)) / (x.rv_60 / np.sqrt(60))
    x["vol_of_vol_60"] = x.rv_15.rolling(60).std()


def _candles(x: pd.DataFrame, b: pd.DataFrame) -> None:
    o, h, low, c = b.open, b.high, b.low, b.close
    top, bottom = np.maximum(o, c), np.minimum(o, c)
    x["kmid"], x["klen"], x["kmid2"] = (c - o) / o, (h - low) / o, (c - o) / (h - low + E)
    x["kup"], x["kup2"] = (h - top) / o, (h - top) / (h - low + E)
    x["klow"], x["klow2"] = (bottom - low) / o, (bottom - low) / (h - low + E)
    x["ksft"], x["ksft2"] = (2 * c - h - low) / o, (2 * c - h - low) / (h - low + E)


def _trend(x: pd.DataFrame, b: pd.DataFrame) -> None:
    c, steps = b.close, np.arange(20)
    r, dc = x.logret_1, b.close.diff()
    x["ma_ratio_20"], x["ma_ratio_60"] = c / c.rolling(20).mean() - 1, c / c.rolling(60).mean() - 1
    x["zclose_60"] = _z(c, 60)
    x["slope_20"] = c.rolling(20).apply(lambda w: np.polyfit(steps, w, 1)[0], raw=True) / c
    x["rsqr_20"] = c.rolling(20).apply(lambda w: np.corrcoef(steps, w)[0, 1] ** 2, raw=True)
    low_20, high_20 = b.low.rolling(20).min(), b.high.rolling(20).max()
    x["rsv_20"] = (c - low_20) / (high_20 - low_20)
    x["dist_high_60"], x["dist_low_60"] = c / b.high.rolling(60).max() - 1, c / b.low.rolling(60).min() - 1
    x["bars_since_high_60"] = b.high.rolling(60).apply(lambda w: np.argmax(w[::-1]), raw=True)
    x["bars_since_low_60"] = b.low.rolling(60).apply(lambda w: np.argmin(w[::-1]), raw=True)
    x["rank_20"] = c.rolling(20).rank() / 20
    x["up_share_20"] = (r > 0).rolling(20).mean()
    x["sumd_20"] = dc.rolling(20).sum() / dc.abs().rolling(20).sum()
    x["autocorr1_60"] = r.rolling(60).corr(r.shift())
    x["var_ratio_5_60"] = x.logret_5.rolling(60).var() / (5 * r.rolling(60).var())
    x["efficiency_20"] = (c - c.shift(20)).abs() / dc.abs().rolling(20).sum()


def _flow(x: pd.DataFrame, b: pd.DataFrame) -> None:
    v, q, n = b.volume, b.quote_volume, b["count"]
    sv, sq = 2 * b.taker_buy_volume - v, 2 * b.taker_buy_quote_volume - q
    x["log_volume"] = np.log1p(v)
    x["volume_z_60"], x["count_z_60"] = _z(v, 60), _z(n, 60)
    x["rel_volume_60"] = v / v.rolling(60).mean()
    x["avg_trade_size"] = v / n
    x["taker_buy_ratio"], x["flow_imb"] = b.taker_buy_volume / v, sv / v
    x["cvd_60"] = sv.rolling(60).sum()
    x["flow_imb_60"] = x.cvd_60 / v.rolling(60).sum()
    x["dollar_imb_15"] = sq.rolling(15).sum() / q.rolling(15).sum()
    x["vwap_dev"] = b.close * v / q - 1
    x["vwap_dev_60"] = b.close * v.rolling(60).sum() / q.rolling(60).sum() - 1
    x["corr_r_vol_30"] = x.logret_1.rolling(30).corr(x.log_volume)
    x["vpin_50"] = sv.abs().rolling(50).sum() / v.rolling(50).sum()
    x["trade_intensity_15"] = n.rolling(15).sum() / 900
    x["empty_share_60"] = (n == 0).rolling(60).mean()


def _slope(y: pd.Series, on: pd.Series, n: int) -> pd.Series:
    return y.rolling(n).cov(on) / on.rolling(n).var()


def _impact(x: pd.DataFrame, b: pd.DataFrame) -> None:
    r, dc, q = x.logret_1, b.close.diff(), b.quote_volume
    sv, sq = 2 * b.taker_buy_volume - b.volume, 2 * b.taker_buy_quote_volume - q
    hl = np.log(b.high / b.low)
    x["amihud_30"] = (r.abs() / q).where(q > 0).rolling(30).mean()
    x["roll_spread_60"] = 2 * np.sqrt((-dc.rolling(60).cov(dc.shift())).clip(lower=0))
    x["kyle_lambda_60"] = _slope(dc, sv, 60)
    x["hasbrouck_lambda_60"] = _slope(r, np.sign(sq) * np.sqrt(sq.abs()), 60)
    beta = hl**2 + hl.shift() ** 2
    gamma = np.log(np.maximum(b.high, b.high.shift()) / np.minimum(b.low, b.low.shift())) ** 2
    d = 3 - 2 * np.sqrt(2)
    a = (np.sqrt(2 * beta) - np.sqrt(beta)) / d - np.sqrt(gamma / d)
    x["corwin_schultz_30"] = (2 * (np.exp(a) - 1) / (1 + np.exp(a))).clip(lower=0).rolling(30).mean()
    x["zero_ret_share_30"] = (r == 0).rolling(30).mean()
    x["illiq_hl_30"] = hl.rolling(30).sum() / q.rolling(30).sum()


def _book(x: pd.DataFrame, books: pd.DataFrame) -> None:
    k = books.copy()
    levels = range(1, 6)
    mid = (k.bp1 + k.ap1) / 2
    k["spread_bps"] = (k.ap1 - k.bp1) / mid * 1e4
    k["microprice_dev_bps"] = ((k.ap1 * k.bq1 + k.bp1 * k.aq1) / (k.aq1 + k.bq1) / mid - 1) * 1e4
    k["imb_l1"] = (k.bq1 - k.aq1) / (k.bq1 + k.aq1)
    bids, asks = sum(k[f"bq{i}"] for i in levels), sum(k[f"aq{i}"] for i in levels)
    near_bids, near_asks = sum(k[f"bq{i}"] / i for i in levels), sum(k[f"aq{i}"] / i for i in levels)
    k["imb_l5"], k["imb_w5"] = (bids - asks) / (bids + asks), (near_bids - near_asks) / (near_bids + near_asks)
    k["depth5_quote"] = sum(k[f"bp{i}"] * k[f"bq{i}"] + k[f"ap{i}"] * k[f"aq{i}"] for i in levels)
    k["bid_slope5"] = bids / ((k.bp1 - k.bp5) / mid * 1e4)
    k["ask_slope5"] = asks / ((k.ap5 - k.ap1) / mid * 1e4)
    flows = []
    for i in levels:
        pb, qb, pa, qa = (k[f"{name}{i}"] for name in ("bp", "bq", "ap", "aq"))
        pb0, qb0, pa0, qa0 = (s.shift() for s in (pb, qb, pa, qa))
        e = qb.where(pb >= pb0, 0) - qb0.where(pb <= pb0, 0) - qa.where(pa <= pa0, 0) + qa0.where(pa >= pa0, 0)
        flows.append(e.where(pb0.notna()))
    k["ofi_l1"], k["ofi_l5"] = flows[0], sum(flows)
    of_bar = k.groupby(k.time.dt.floor("1min"))
    for name in ("ofi_l1", "ofi_l5"):
        x[name] = of_bar[name].sum(min_count=1).reindex(x.index)
    x["spread_mean_bps"] = of_bar.spread_bps.mean().reindex(x.index)
    close = pd.DataFrame({"close_time": x.index + pd.Timedelta("59.999s")})
    last = pd.merge_asof(
        close, k.assign(ts=k.time), left_on="close_time", right_on="time", tolerance=pd.Timedelta("60s")
    )
    names = (
        "spread_bps",
        "microprice_dev_bps",
        "imb_l1",
        "imb_l5",
        "imb_w5",
        "depth5_quote",
        "bid_slope5",
        "ask_slope5",
    )
    for name in names:
        x[name] = last[name].to_numpy()
    x["book_age_ms"] = ((last.close_time - last.ts) / pd.Timedelta("1ms")).to_numpy()


def _derivatives(x: pd.DataFrame, b: pd.DataFrame, marks: pd.DataFrame, open_interest: pd.DataFrame) -> None:
    close = pd.DataFrame({"close_time": x.index + pd.Timedelta("59.999s")})
    records = pd.merge_asof(marks, open_interest, on="time")
    m = pd.merge_asof(close, records, left_on="close_time", right_on="time").set_index(x.index)
    x["basis_bps"] = (m.mark_price / m.index_price - 1) * 1e4
    x["mark_dev_bps"] = (b.close / m.mark_price - 1) * 1e4
    x["funding_rate"] = m.funding_rate
    x["basis_z_60"] = _z(x.basis_bps, 60)
    x["minutes_to_funding"] = (m.next_funding_time - x.index - pd.Timedelta("1min")) / pd.Timedelta("1min")
    x["oi_change_60"] = m.open_interest / m.open_interest.shift(60) - 1
    x["funding_chg_60"] = m.funding_rate - m.funding_rate.shift(60)


def _liquidated(x: pd.DataFrame, b: pd.DataFrame, liquidations: pd.DataFrame) -> None:
    k = liquidations.assign(usd=liquidations.average_price * liquidations.filled_quantity)
    of_bar = k.groupby([k.time.dt.floor("1min"), "side"]).usd.agg(["sum", "count"]).unstack().reindex(x.index).fillna(0)
    lb, ls, ln = of_bar["sum"]["BUY"], of_bar["sum"]["SELL"], of_bar["count"].sum(axis=1)
    x["liq_count_15"] = ln.rolling(15).sum()
    x["liq_long_usd_15"], x["liq_short_usd_15"] = ls.rolling(15).sum(), lb.rolling(15).sum()
    lb_60, ls_60 = lb.rolling(60).sum(), ls.rolling(60).sum()
    x["liq_imb_60"] = (lb_60 - ls_60) / (lb_60 + ls_60)
    x["liq_intensity_60"] = (lb_60 + ls_60) / b.quote_volume.rolling(60).sum()
    close = pd.DataFrame({"close_time": x.index + pd.Timedelta("59.999s")})
    last = pd.merge_asof(close, k[["time"]].assign(ts=k.time), left_on="close_time", right_on="time")
    x["secs_since_liq"] = ((last.close_time - last.ts) / pd.Timedelta("1s") + 0.001).to_numpy()


def _clock(x: pd.DataFrame) -> None:
    minute, day = x.index.hour * 60 + x.index.minute, x.index.dayofweek
    x["tod_sin"], x["tod_cos"] = np.sin(2 * np.pi * minute / 1440), np.cos(2 * np.pi * minute / 1440)
    x["dow_sin"], x["dow_cos"] = np.sin(2 * np.pi * day / 7), np.cos(2 * np.pi * day / 7)
    x["is_weekend"] = (day >= 5).astype(float)
    x["minute_of_hour"] = (minute % 60).astype(float)
    x["session_us"] = ((day < 5) & (minute >= 810) & (minute < 1200)).astype(float)


def _cross(x: pd.DataFrame, b: pd.DataFrame, reference: pd.DataFrame) -> None:
    ec = reference.set_index("time").close.reindex(x.index)
    er = np.log(ec / ec.shift())
    x["eth_logret_1"], x["eth_logret_5"] = er, np.log(ec / ec.shift(5))
    x["corr_eth_60"] = x.logret_1.rolling(60).corr(er)
    x["beta_eth_60"] = _slope(x.logret_1, er, 60)
    x["lead_eth_60"] = x.logret_1.rolling(60).corr(er.shift())
    x["ratio_z_60"] = _z(b.close / ec, 60)
