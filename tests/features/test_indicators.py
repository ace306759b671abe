"""Indicators against TA-Lib, against the text of ANALYTICS 3 in plain Python, and by what must hold of any series."""

import gzip
import json
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pytest
import talib
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_lake.features import indicators as module
from crypto_lake.features.compiled import IS_COMPILED, plain
from crypto_lake.features.indicators import LOOKBACK, READY, is_ready
from crypto_lake.features.indicators import indicators as made_of
from crypto_lake.models import DATASETS
from crypto_lake.models.indicator import STATES, VALUES

FIRST: Final = datetime(2024, 1, 15, 22, 0, tzinfo=UTC)
ATOL = RTOL = 1e-6
# Where each column begins; vwap is null again where nothing was traded.
BEGINS: Final = {
    **dict.fromkeys(("sma_20", "ema_20", "bb_upper", "bb_middle", "bb_lower", "cci_20"), 19),
    **dict.fromkeys(("rsi_14", "atr_14", "plus_di_14", "minus_di_14", "mfi_14", "natr_14"), 14),
    **dict.fromkeys(("macd", "macd_signal", "macd_hist"), 33),
    **dict.fromkeys(("stoch_k", "stoch_d"), 17),
    **dict.fromkeys(("obv", "vwap"), 0),
    "adx_14": 27,
    "willr_14": 13,
    "roc_10": 10,
}
# Of these nothing outside a window is known.
WINDOWS: Final = ("sma_20", "bb_upper", "bb_middle", "bb_lower", "stoch_k", "stoch_d", "cci_20", "mfi_14", "willr_14",
                  "roc_10")  # fmt: skip
KERNELS: Final = ("follow", "follow_wilder", "follow_sum", "repeat_where_zero", "follow_balance", "mean_of_day")
PRICES: Final = ("open", "high", "low", "close")
FEW: Final = settings(max_examples=30, deadline=None)


def bars_of(
    closes: Sequence[float],
    spreads: Sequence[float],
    volumes: Sequence[float],
    *,
    every: timedelta = timedelta(minutes=1),
) -> pl.DataFrame:
    """Bars that open at the close before, and reach so far beyond both."""
    opens = [*closes[:1], *closes[:-1]]
    rows = list(zip(opens, closes, spreads, strict=True))
    return pl.DataFrame(
        {
            "time": [FIRST + number * every for number in range(len(closes))],
            "open": opens,
            "high": [max(first, last) + spread for first, last, spread in rows],
            "low": [min(first, last) - spread for first, last, spread in rows],
            "close": list(closes),
            "volume": list(volumes),
        },
        schema={"time": pl.Datetime("us", "UTC"), **dict.fromkeys(PRICES, pl.Float64()), "volume": pl.Float64()},
    )


def walk(count: int = 1500, seed: int = 1, *, start: float = 60_000.0, step: float = 20.0, volume: float = 30.0) -> Any:
    """Closes, spreads and volumes of a random walk."""
    dice = np.random.default_rng(seed)
    closes = np.round(start + np.cumsum(dice.normal(0, step, count)), 4)
    spreads = np.round(np.abs(dice.normal(0, step / 4, count)), 4)
    return closes, spreads, np.round(np.abs(dice.normal(0, volume, count)), 3)


def random_walk() -> pl.DataFrame:
    return bars_of(*walk())


def heavy_volume() -> pl.DataFrame:
    return bars_of(*walk(seed=2, volume=3e9))


def flat_windows() -> pl.DataFrame:
    closes, spreads, volumes = walk(seed=3)
    for begin in (100, 700):
        closes[begin : begin + 300] = closes[begin - 1]
        spreads[begin : begin + 300] = volumes[begin : begin + 300] = 0.0
    return bars_of(closes, spreads, volumes)


def a_jump() -> pl.DataFrame:
    before, after = walk(500, 4, start=1e6, step=300.0), walk(500, 5, start=1.0, step=0.001, volume=1e5)
    return bars_of(*(np.concatenate(both) for both in zip(before, after, strict=True)))


def a_flat_begin() -> pl.DataFrame:
    closes, spreads, volumes = walk(400, 6)
    closes[:60], spreads[:60], volumes[:60] = closes[0], 0.0, 0.0
    return bars_of(closes, spreads, volumes)


SERIES: Final = (random_walk, heavy_volume, flat_windows, a_jump, a_flat_begin)


def assert_equal(name: str, ours: Sequence[float | None], theirs: Sequence[float | None]) -> None:
    assert len(ours) == len(theirs)
    for row, (got, want) in enumerate(zip(ours, theirs, strict=True)):
        assert (got is None) == (want is None), f"{name}, row {row}: {got}, not {want}"
        if got is not None and want is not None:
            assert abs(got - want) <= ATOL + RTOL * abs(want), f"{name}, row {row}: {got!r}, not {want!r}"


# Against TA-Lib


def by_talib(bars: pl.DataFrame) -> dict[str, list[float | None]]:
    """Every column but vwap, as TA-Lib has it."""
    high, low, close, volume = (bars[name].to_numpy() for name in ("high", "low", "close", "volume"))
    macd, signal, rest = talib.MACD(close, 12, 26, 9)
    upper, middle, lower = talib.BBANDS(close, 20, 2, 2)
    slow, slower = talib.STOCH(high, low, close, 14, 3, 0, 3, 0)
    found = {
        "sma_20": talib.SMA(close, 20), "ema_20": talib.EMA(close, 20), "rsi_14": talib.RSI(close, 14),
        "macd": macd, "macd_signal": signal, "macd_hist": rest,
        "bb_upper": upper, "bb_middle": middle, "bb_lower": lower,
        "atr_14": talib.ATR(high, low, close, 14), "adx_14": talib.ADX(high, low, close, 14),
        "plus_di_14": talib.PLUS_DI(high, low, close, 14), "minus_di_14": talib.MINUS_DI(high, low, close, 14),
        "stoch_k": slow, "stoch_d": slower, "obv": talib.OBV(close, volume), "cci_20": talib.CCI(high, low, close, 20),
        "mfi_14": talib.MFI(high, low, close, volume, 14), "willr_14": talib.WILLR(high, low, close, 14),
        "roc_10": talib.ROC(close, 10), "natr_14": talib.NATR(high, low, close, 14),
    }  # fmt: skip
    return {name: pl.Series(values, nan_to_null=True).to_list() for name, values in found.items()}


@pytest.mark.parametrize("series", SERIES)
def test_every_column_is_that_of_talib_from_the_first_row_on(series: Callable[[], pl.DataFrame]) -> None:
    bars = series()
    ours, theirs = made_of(bars), by_talib(bars)
    assert {*theirs, "vwap"} == set(VALUES)
    for name, column in theirs.items():
        assert column[BEGINS[name]] is not None
        assert_equal(name, ours[name].to_list(), column)


@pytest.mark.parametrize("count", [0, 1, 2, 10, 11, 13, 14, 15, 17, 18, 19, 20, 25, 26, 27, 28, 33, 34, 35])
def test_a_short_series_has_nulls_where_nothing_is_known_yet(count: int) -> None:
    bars = random_walk().head(count)
    ours = made_of(bars)
    assert ours.columns == ["time", *VALUES, *STATES]
    for name in VALUES:
        known = ours[name].is_not_null().to_list()
        assert known == [row >= BEGINS[name] for row in range(count)], name
    if count > 1:
        for name, column in by_talib(bars).items():
            assert_equal(name, ours[name].to_list(), column)


def test_small_flows_of_money_count_as_large_ones_do() -> None:
    """Older libraries say 0 when less than 1 unit of money went to and fro."""
    closes, spreads, volumes = walk(60, 7, start=1.0, step=0.001)
    bars = bars_of(closes, spreads, volumes / 1e5)
    ours = made_of(bars)["mfi_14"].to_list()
    assert min(ours[14:]) > 0
    assert_equal("mfi_14", ours, by_text(bars)["mfi_14"])
    assert_equal("mfi_14", ours, by_talib(bars)["mfi_14"])


def test_what_a_long_pause_leaves_of_gains_and_losses_is_not_nothing() -> None:
    """Older libraries take sums under 1e-14 for 0; only 0 is 0, and the shares stay what they were."""
    closes, spreads, volumes = walk(800, 8)
    closes[100:], spreads[100:], volumes[100:] = closes[99], 0.0, 0.0
    bars = bars_of(closes, spreads, volumes)
    ours, theirs = made_of(bars), by_talib(bars)
    for name in ("rsi_14", "plus_di_14", "minus_di_14"):
        assert ours[name][100] == pytest.approx(ours[name][-1]), name
        assert ours[name][-1] > 1
        assert_equal(name, ours[name].to_list(), theirs[name])


def test_prices_apart_by_rounding_alone_are_equal_in_money_flow_and_channel() -> None:
    low, high = 0.3, 0.3 * (1 + 5e-13)
    bars = bars_of([low if row % 2 else high for row in range(40)], [0.0] * 40, [5.0] * 40)
    assert bars["close"].n_unique() == 2
    ours = made_of(bars)
    assert set(ours["mfi_14"][14:]) == {0.0}
    assert set(ours["cci_20"][19:]) == {0.0}
    assert ours["obv"][-1] != ours["obv"][-2]


def test_without_any_direction_the_index_stays_what_it_was() -> None:
    """It takes some ten thousand bars before a direction is forgotten."""
    measure, index = np.array([1.0, 0.0, 3.0, 0.0, 0.0]), np.array([7.0, np.nan, 5.0, np.nan, np.nan])
    module.repeat_where_zero(measure, index, 1)
    assert index.tolist() == [7, 7, 5, 5, 5]
    closes, spreads, volumes = walk(14_000, 9)
    closes[40:], spreads[40:] = closes[39], 1e6
    index = made_of(bars_of(closes, spreads, volumes))["dx_14"]
    assert index.null_count() == 14
    assert index[-1] == index[-1000] > 0


# Against the text


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def by_text(bars: pl.DataFrame) -> dict[str, list[float | None]]:
    """ANALYTICS 3 row by row, window by window."""
    high, low, close, volume = (bars[name].to_list() for name in ("high", "low", "close", "volume"))
    rows = range(len(close))
    typical = [(high[t] + low[t] + close[t]) / 3 for t in rows]

    def column(begin: int, value: Callable[[int], float | None]) -> list[Any]:
        return [value(t) if t >= begin else None for t in rows]

    def averaged(values: list[Any], begin: int, seed: Sequence[Any], factor: float) -> list[Any]:
        found: list[Any] = [None] * len(values)
        for t in rows[begin:]:
            found[t] = mean(seed) if t == begin else found[t - 1] + factor * (values[t] - found[t - 1])
        return found

    def wilder(values: list[Any], n: int, f: int) -> list[Any]:
        found: list[Any] = [None] * len(values)
        for t in rows[f + n - 1 :]:
            begins = t == f + n - 1
            found[t] = mean(values[f : f + n]) if begins else (found[t - 1] * (n - 1) + values[t]) / n
        return found

    def summed(values: list[Any]) -> list[Any]:
        found: list[Any] = [None] * len(values)
        for t in rows[13:]:
            found[t] = math.fsum(values[1:14]) if t == 13 else found[t - 1] - found[t - 1] / 14 + values[t]
        return found

    change = column(1, lambda t: close[t] - close[t - 1])
    gain = wilder(column(1, lambda t: max(change[t], 0.0)), 14, 1)
    loss = wilder(column(1, lambda t: max(-change[t], 0.0)), 14, 1)
    ema12 = averaged(close, 25, close[14:26], 2 / 13)
    ema26 = averaged(close, 25, close[:26], 2 / 27)
    macd = column(25, lambda t: ema12[t] - ema26[t])
    signal = averaged(macd, 33, macd[25:34], 2 / 10)
    true_range = column(1, lambda t: max(high[t], close[t - 1]) - min(low[t], close[t - 1]))
    average = wilder(true_range, 14, 1)
    up = column(1, lambda t: high[t] - high[t - 1])
    down = column(1, lambda t: low[t - 1] - low[t])
    total = summed(true_range)
    plus_sum = summed(column(1, lambda t: up[t] if up[t] > down[t] and up[t] > 0 else 0.0))
    minus_sum = summed(column(1, lambda t: down[t] if down[t] > up[t] and down[t] > 0 else 0.0))
    plus = column(14, lambda t: 100 * plus_sum[t] / total[t] if total[t] else 0.0)
    minus = column(14, lambda t: 100 * minus_sum[t] / total[t] if total[t] else 0.0)
    index: list[Any] = [None] * len(close)
    for t in rows[14:]:
        both = plus[t] + minus[t]
        index[t] = 100 * abs(plus[t] - minus[t]) / both if both else (index[t - 1] if t > 14 else 0.0)

    def deviation(t: int) -> float:
        window = close[t - 19 : t + 1]
        return math.sqrt(mean([(each - mean(window)) ** 2 for each in window]))

    def fast(t: int) -> float:
        highest, lowest = max(high[t - 13 : t + 1]), min(low[t - 13 : t + 1])
        return 100 * (close[t] - lowest) / (highest - lowest) if highest != lowest else 0.0

    def channel(t: int) -> float:
        window = typical[t - 19 : t + 1]
        m = mean(window)
        if max(window) - min(window) <= 1e-12 * abs(m) or abs(typical[t] - m) <= 1e-12 * abs(m):
            return 0.0
        return (typical[t] - m) / (0.015 * mean([abs(each - m) for each in window]))

    def money(t: int) -> float:
        window = range(t - 13, t + 1)
        bought = math.fsum(typical[j] * volume[j] for j in window if typical[j] - typical[j - 1] > 1e-12 * typical[j])
        sold = math.fsum(typical[j] * volume[j] for j in window if typical[j - 1] - typical[j] > 1e-12 * typical[j])
        return 100 * bought / (bought + sold) if bought + sold else 0.0

    def of_day(t: int) -> float | None:
        day = [j for j in rows[: t + 1] if bars["time"][j].date() == bars["time"][t].date()]
        traded = math.fsum(volume[j] for j in day)
        return math.fsum(typical[j] * volume[j] for j in day) / traded if traded else None

    def percent_r(t: int) -> float:
        highest, lowest = max(high[t - 13 : t + 1]), min(low[t - 13 : t + 1])
        return -100 * (highest - close[t]) / (highest - lowest) if highest != lowest else 0.0

    slow = column(15, lambda t: mean([fast(t - 2), fast(t - 1), fast(t)]))
    balance: list[float] = []
    for t in rows:
        sign = 1 if t == 0 or close[t] > close[t - 1] else -1 if close[t] < close[t - 1] else 0
        balance.append((balance[-1] if balance else 0.0) + sign * volume[t])
    means = column(19, lambda t: mean(close[t - 19 : t + 1]))
    return {
        "sma_20": means,
        "ema_20": averaged(close, 19, close[:20], 2 / 21),
        "rsi_14": column(14, lambda t: 100 * gain[t] / (gain[t] + loss[t]) if gain[t] + loss[t] else 0.0),
        "macd": column(33, lambda t: macd[t]),
        "macd_signal": signal,
        "macd_hist": column(33, lambda t: macd[t] - signal[t]),
        "bb_upper": column(19, lambda t: means[t] + 2 * deviation(t)),
        "bb_middle": means,
        "bb_lower": column(19, lambda t: means[t] - 2 * deviation(t)),
        "atr_14": average,
        "adx_14": wilder(index, 14, 14),
        "plus_di_14": plus,
        "minus_di_14": minus,
        "stoch_k": column(17, lambda t: slow[t]),
        "stoch_d": column(17, lambda t: mean(slow[t - 2 : t + 1])),
        "obv": [*balance],
        "vwap": column(0, of_day),
        "cci_20": column(19, channel),
        "mfi_14": column(14, money),
        "willr_14": column(13, percent_r),
        "roc_10": column(10, lambda t: 100 * (close[t] / close[t - 10] - 1)),
        "natr_14": column(14, lambda t: 100 * average[t] / close[t]),
    }


def assert_as_the_text_says(bars: pl.DataFrame) -> None:
    ours, theirs = made_of(bars), by_text(bars)
    assert tuple(theirs) == VALUES
    for name, column in theirs.items():
        assert_equal(name, ours[name].to_list(), column)


@pytest.mark.parametrize("series", SERIES)
def test_every_column_is_as_the_text_says(series: Callable[[], pl.DataFrame]) -> None:
    assert_as_the_text_says(series().head(900))


@pytest.mark.parametrize(
    "names",
    [
        ("spot_btcusdt_20240808.gz", "spot_btcusdt_20240809.gz"),
        ("usdm_btcusdt_20240718.gz", "usdm_btcusdt_20240719.gz"),
    ],
)
def test_bars_out_of_real_trades_give_what_the_text_says(data: Path, names: tuple[str, ...]) -> None:
    """Over midnight; the futures have seconds in which nobody traded."""
    bars = seconds(trades([data / "captures" / name for name in names]))
    assert bars["time"].dt.date().n_unique() == 2
    assert bars.height > 400
    assert_as_the_text_says(bars)
    for name, column in by_talib(bars).items():
        assert_equal(name, made_of(bars)[name].to_list(), column)


def trades(paths: Sequence[Path]) -> pl.DataFrame:
    found: dict[int, tuple[int, float, float]] = {}
    for path in paths:
        with gzip.open(path, "rt") as lines:
            events = [json.loads(line.partition(" ")[2]) for line in lines if '"e":"trade"' in line]
        for event in (each["data"] for each in events):
            if float(event["p"]) > 0:
                found[event["t"]] = (event["T"], float(event["p"]), float(event["q"]))
    rows = [found[each] for each in sorted(found)]
    return pl.DataFrame(rows, schema=["time", "price", "quantity"], orient="row")


def seconds(rows: pl.DataFrame) -> pl.DataFrame:
    """Bars of one second each, without holes."""
    price = pl.col("price")
    found = rows.group_by(pl.col("time") // 1000, maintain_order=True).agg(
        high=price.max(), low=price.min(), close=price.last(), volume=pl.col("quantity").sum()
    )
    every = pl.DataFrame({"time": range(found["time"].min(), found["time"].max() + 1)})
    bars = every.join(found, on="time", how="left").sort("time")
    bars = bars.with_columns(pl.col("close").forward_fill(), pl.col("volume").fill_null(0.0))
    return bars.with_columns(
        pl.from_epoch("time", "s").cast(pl.Datetime("us")).dt.replace_time_zone("UTC"),
        pl.col("high", "low").fill_null(pl.col("close")),
    )


def test_vwap_begins_anew_with_each_day_of_utc() -> None:
    bars = (
        random_walk().head(200).with_columns(volume=pl.when(pl.int_range(pl.len()) < 3).then(0.0).otherwise("volume"))
    )
    typical = (pl.col("high") + pl.col("low") + pl.col("close")) / 3
    day = pl.col("time").dt.date()
    want = (typical * pl.col("volume")).cum_sum().over(day) / pl.col("volume").cum_sum().over(day)
    vwap = made_of(bars)["vwap"]
    assert_equal("vwap", vwap.to_list(), bars.select(want.fill_nan(None)).to_series().to_list())
    assert vwap[:3].null_count() == 3
    midnight = bars["time"].dt.date().n_unique() and bars["time"].dt.hour().to_list().index(0)
    assert vwap[midnight] == pytest.approx(bars.select(typical).to_series()[midnight])


# What must hold of any series

MOVES: Final = st.tuples(st.integers(-30, 30), st.integers(0, 20), st.sampled_from((0, 0, 1, 7, 250)))


@st.composite
def any_bars(draw: st.DrawFn, least: int = 0) -> pl.DataFrame:
    """Prices with few digits, so that many are equal; stretches without trades; two days."""
    moves = draw(st.lists(MOVES, min_size=least, max_size=120))
    pause, length = draw(st.integers(0, 120)), draw(st.integers(0, 60))
    price, rows = draw(st.sampled_from((2000, 100_000, 10**9))), []
    for row, (step, spread, volume) in enumerate(moves):
        is_quiet = pause <= row < pause + length
        price = max(price + (0 if is_quiet else step), 100)
        rows.append((price / 100, 0.0 if is_quiet else spread / 100, 0.0 if is_quiet else volume / 8))
    closes, spreads, volumes = zip(*rows, strict=True) if rows else ((), (), ())
    return bars_of(closes, spreads, volumes, every=timedelta(minutes=5))


@FEW
@given(any_bars())
def test_any_series_gives_what_the_text_says(bars: pl.DataFrame) -> None:
    assert_as_the_text_says(bars)


@FEW
@given(any_bars(), st.integers(0, 120))
def test_a_row_never_changes_when_more_come(bars: pl.DataFrame, count: int) -> None:
    assert made_of(bars.head(count)).equals(made_of(bars).head(count))


@FEW
@given(any_bars(), st.integers(0, 120))
def test_nothing_is_known_of_later_bars(bars: pl.DataFrame, count: int) -> None:
    is_later = pl.int_range(pl.len()) >= count
    columns = [pl.when(is_later).then(pl.col(name) * 3).otherwise(name).alias(name)
               for name in ("high", "low", "close", "volume")]  # fmt: skip
    assert made_of(bars.with_columns(columns)).head(count).equals(made_of(bars).head(count))


def continued(bars: pl.DataFrame, cuts: Sequence[int], rows_before: int = LOOKBACK) -> pl.DataFrame:
    """In parts, each from the last row of the part before."""
    parts = [made_of(bars.head(cuts[0]))]
    for begin, end in zip(cuts, [*cuts[1:], bars.height], strict=True):
        day = bars["time"].dt.date().to_list()
        since = min(begin - rows_before, day.index(day[begin])) if begin < bars.height else begin - rows_before
        before = parts[-1].row(-1, named=True)
        parts.append(made_of(bars[begin:end], before=before, lookback=bars[since:begin]))
    return pl.concat(parts)


@FEW
@given(any_bars(READY + 20), st.lists(st.integers(READY + 1, READY + 20), min_size=1, max_size=5, unique=True))
def test_a_series_may_be_cut_anywhere(bars: pl.DataFrame, cuts: list[int]) -> None:
    """Bit by bit, with the fewest bars to look back at."""
    assert continued(bars, sorted(cuts)).equals(made_of(bars))


@pytest.mark.parametrize("series", SERIES)
def test_the_parts_of_a_long_series_are_the_whole_bit_by_bit(series: Callable[[], pl.DataFrame]) -> None:
    bars = series()
    whole = made_of(bars)
    assert continued(bars, [34, 35, 60, 119, 120, 121, 333]).equals(whole)
    assert continued(bars, list(range(34, 200))).equals(whole)
    assert [is_ready(row) for row in whole.head(40).rows(named=True)] == [row >= READY for row in range(40)]


def test_a_long_series_is_made_in_pieces_that_nobody_can_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = random_walk()
    whole = made_of(bars)
    monkeypatch.setattr(module, "PIECE_ROWS", 100)
    assert made_of(bars).equals(whole)
    assert continued(bars, [250, 777]).equals(whole)


@FEW
@given(any_bars())
def test_twice_the_price_is_twice_what_is_a_price_and_nothing_else(bars: pl.DataFrame) -> None:
    """To the last bit, since 2 is a power of 2."""
    prices = (
        "sma_20",
        "ema_20",
        "macd",
        "macd_signal",
        "macd_hist",
        "bb_upper",
        "bb_middle",
        "bb_lower",
        "atr_14",
        "vwap",
    )
    want = made_of(bars).select(VALUES).with_columns(pl.col(prices) * 2)
    assert made_of(bars.with_columns(pl.col("high", "low", "close") * 2)).select(VALUES).equals(want)


@pytest.mark.parametrize("series", SERIES)
def test_a_window_remembers_nothing(series: Callable[[], pl.DataFrame]) -> None:
    bars = series()
    for begin in (1, 480, 500):
        of_tail, of_all = made_of(bars[begin:])[20:], made_of(bars)[begin + 20 :]
        assert of_tail.select(WINDOWS).equals(of_all.select(WINDOWS))


@pytest.mark.parametrize("series", SERIES)
def test_nothing_is_ever_not_a_number(series: Callable[[], pl.DataFrame]) -> None:
    made = made_of(series())
    for name in (*VALUES, *STATES):
        assert made[name].drop_nulls().is_finite().all(), name
        later = made[name][READY:]
        assert later.null_count() == (0 if name != "vwap" else later.null_count()), name


def test_a_flat_series_has_the_values_of_the_guards() -> None:
    last = made_of(bars_of([100.1] * 300, [0.0] * 300, [0.0] * 300)).row(-1, named=True)
    price = dict.fromkeys(("sma_20", "ema_20", "bb_upper", "bb_middle", "bb_lower"), 100.1)
    assert last["vwap"] is None
    want = {name: price.get(name, 0.0) for name in VALUES if name != "vwap"}
    assert {name: last[name] for name in want} == pytest.approx(want, rel=1e-15)
    assert last["bb_upper"] == last["bb_lower"] == 100.1


def test_without_volumes_only_what_is_made_of_them_is_null() -> None:
    bars = random_walk()
    want = made_of(bars).with_columns(pl.lit(None, pl.Float64).alias(name) for name in ("obv", "vwap", "mfi_14"))
    nothing = bars.with_columns(volume=pl.lit(None, pl.Float64))
    assert made_of(nothing).equals(want)
    assert continued(nothing, [300]).equals(want)


def test_a_bar_without_a_volume_is_in_no_window_of_money() -> None:
    bars = random_walk().head(300)
    made = made_of(bars.with_columns(volume=pl.when(pl.int_range(pl.len()) == 100).then(None).otherwise("volume")))
    want = made_of(bars)
    assert made["mfi_14"].is_null().arg_true().to_list() == [*range(14), *range(100, 114)]
    assert made["mfi_14"][114:].equals(want["mfi_14"][114:])
    assert made["obv"].is_null().arg_true().to_list() == list(range(100, 300))
    assert made["vwap"].is_null().arg_true().to_list() == list(range(100, 120))  # to the end of its day


@pytest.mark.skipif(not IS_COMPILED, reason="no Numba: there is one path")
@pytest.mark.parametrize("series", SERIES)
def test_compiled_and_plain_are_the_same(series: Callable[[], pl.DataFrame], monkeypatch: pytest.MonkeyPatch) -> None:
    bars = series()
    whole = made_of(bars)
    for name in KERNELS:
        text = plain(getattr(module, name))
        assert text is not getattr(module, name)
        monkeypatch.setattr(module, name, text)
    assert made_of(bars).equals(whole)


def test_the_table_has_the_columns_in_their_order() -> None:
    columns = list(DATASETS["indicator"].schema)
    begin = columns.index("sma_20")
    assert tuple(columns[begin : begin + 22]) == VALUES
    assert tuple(columns[begin + 22 : begin + 30]) == STATES
    assert len(VALUES) == 22
    assert all(column.nullable for column in DATASETS["indicator"].columns[begin : begin + 30])
