"""Indicators of a series of bars (ANALYTICS 3): exact from the first valid row on, and continued bit by bit from any.

Windows are made anew at every row, so no large old value leaves an error behind; only what is recursive by definition
goes on from the row before. Every sum has one order, so it does not matter where a series is cut.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from crypto_lake.features.compiled import compiled
from crypto_lake.models.dataset import TIME
from crypto_lake.models.indicator import STATES, VALUES

Numbers = NDArray[np.float64]

INPUTS: Final = ("time", "high", "low", "close", "volume")
# So many bars before a row are in its windows.
LOOKBACK: Final = 19
# Of recursive columns the value of the row before is needed. On-balance volume may be null: it is from the first bar
# without a volume on.
RECURSIVE: Final = ("ema_20", "macd_signal", "atr_14", "adx_14", "obv", *STATES)
# The first row that has them all.
READY: Final = 33
# Longer series are made in pieces that stay near the processor, each going on from the one before.
PIECE_ROWS: Final = 32_768
COLUMNS: Final[dict[str, pl.DataType]] = {"time": TIME, **dict.fromkeys((*VALUES, *STATES), pl.Float64())}
# Differences below this share of a price are rounding.
ROUNDING: Final = 1e-12


def is_ready(row: Mapping[str, Any]) -> bool:
    """Whether a row holds all that the next one is made of."""
    return all(row[name] is not None for name in RECURSIVE if name != "obv")


def indicators(
    bars: pl.DataFrame, *, before: Mapping[str, Any] | None = None, lookback: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Columns `time`, `VALUES` and `STATES`, a row per bar; null where there is no value, never a NaN.

    `bars` has the columns `INPUTS` and one row per time in their order; of what is traded around the clock no interval
    may be missing. A null volume makes null what is made of it. Without `before` the first bar is the first of the
    series. With it the bars go on: `before` is the row of the bar before (`is_ready`), and `lookback` are the bars up
    to that one, `LOOKBACK` of them at least, and all of the UTC day of the first of `bars`.
    """
    assert (before is None) == (lookback is None)
    begin = 0 if lookback is None else lookback.height
    assert before is None or (begin >= LOOKBACK and is_ready(before))
    every = bars.select(INPUTS) if lookback is None else pl.concat([lookback.select(INPUTS), bars.select(INPUTS)])
    day = every["time"].dt.epoch("d")
    made = [pl.DataFrame(schema=COLUMNS)]
    for first in range(begin, every.height, PIECE_ROWS):
        # The windows of its first row, and its day so far.
        since = max(0, min(first - LOOKBACK, int(day.search_sorted(day[first], "left")))) if first else 0
        piece = every.slice(since, first + PIECE_ROWS - since)
        made.append(_piece(piece, first - since, before))
        before = made[-1].row(-1, named=True)
    return pl.concat(made)


def _piece(bars: pl.DataFrame, begin: int, before: Mapping[str, Any] | None) -> pl.DataFrame:
    made = _Made(bars, begin, before)
    with np.errstate(all="ignore"):
        made.fill()
    shown = {name: _shown(name, made.columns[name][begin:]) for name in (*VALUES, *STATES)}
    return pl.DataFrame({"time": bars["time"][begin:], **shown}, schema=COLUMNS)


def _shown(name: str, values: Numbers) -> pl.Series:
    return pl.Series(name, np.where(np.isfinite(values), values, np.nan), nan_to_null=True)


class _Made:
    """The columns of one run while they are made. Rows before `begin` are those of the look-back: of recursive columns
    the last one of them is known, everything else in them is of no use."""

    def __init__(self, bars: pl.DataFrame, begin: int, before: Mapping[str, Any] | None) -> None:
        self.high, self.low, self.close, self.volume = (_numbers(bars[name]) for name in INPUTS[1:])
        self.day = bars["time"].dt.epoch("d").cast(pl.Int64).to_numpy()
        self.begin = begin
        self.columns: dict[str, Numbers] = {name: self.empty() for name in RECURSIVE}
        for name in RECURSIVE if before is not None else ():
            value = before[name] if before is not None else None
            self.columns[name][begin - 1] = np.nan if value is None else value

    def empty(self) -> Numbers:
        return np.full(len(self.close), np.nan)

    def fill(self) -> None:
        """All columns, in an order in which each finds what it is made of."""
        self.means()
        self.macd()
        self.strength()
        self.ranges()
        self.directions()
        self.oscillators()
        self.volumes()
        self.channel()

    # Recursive columns: the first value of a series is a mean of its first rows, each further one goes on from the row
    # before.

    def goes_on(self, name: str, values: Numbers, *, factor: float, seed: tuple[int, int], shown: int) -> Numbers:
        """An exponential mean; its value at row `shown` is the mean of the rows `seed`, both inclusive."""
        made = self.columns[name]
        begin = self.seeded(made, values, seed, shown)
        follow(values, made, begin, factor)
        return made

    def wilder(self, name: str, values: Numbers, seed: tuple[int, int]) -> Numbers:
        """Wilder's mean over as many rows as are in the seed."""
        made = self.columns[name]
        begin = self.seeded(made, values, seed, seed[1])
        follow_wilder(values, made, begin, seed[1] - seed[0] + 1)
        return made

    def seeded(self, made: Numbers, values: Numbers, seed: tuple[int, int], shown: int) -> int:
        """The row from which on to follow."""
        if self.begin:
            return self.begin
        first, last = seed
        if shown < len(made):
            made[shown] = _sum(values[first : last + 1]) / (last - first + 1)
        return shown + 1

    # Columns

    def means(self) -> None:
        middle, deviation = _spread(self.close, 20)
        self.columns |= {
            "sma_20": middle,
            "bb_middle": middle,
            "bb_upper": middle + 2 * deviation,
            "bb_lower": middle - 2 * deviation,
            "roc_10": 100 * (self.close / _earlier(self.close, 10) - 1),
        }
        self.goes_on("ema_20", self.close, factor=2 / 21, seed=(0, 19), shown=19)

    def macd(self) -> None:
        fast = self.goes_on("ema_12", self.close, factor=2 / 13, seed=(14, 25), shown=25)
        slow = self.goes_on("ema_26", self.close, factor=2 / 27, seed=(0, 25), shown=25)
        macd = fast - slow
        signal = self.goes_on("macd_signal", macd, factor=2 / 10, seed=(25, 33), shown=33)
        self.columns["macd"] = np.where(np.isnan(signal), np.nan, macd)
        self.columns["macd_hist"] = macd - signal

    def strength(self) -> None:
        change = self.close - _earlier(self.close, 1)
        gain = self.wilder("avg_gain_14", np.maximum(change, 0.0), (1, 14))
        loss = self.wilder("avg_loss_14", np.maximum(-change, 0.0), (1, 14))
        self.columns["rsi_14"] = _share(gain, gain + loss)

    def ranges(self) -> None:
        before = _earlier(self.close, 1)
        self.true_range = np.maximum(self.high, before) - np.minimum(self.low, before)
        average = self.wilder("atr_14", self.true_range, (1, 14))
        self.columns["natr_14"] = 100 * average / self.close

    def directions(self) -> None:
        up, down = self.high - _earlier(self.high, 1), _earlier(self.low, 1) - self.low
        # A product rather than a choice: what is not a number stays none.
        total = self.wilder_sum("tr_14", self.true_range)
        plus = self.wilder_sum("plus_dm_14", up * ((up > down) & (up > 0)))
        minus = self.wilder_sum("minus_dm_14", down * ((down > up) & (down > 0)))
        plus, minus = _from(14, _share(plus, total), self.begin), _from(14, _share(minus, total), self.begin)
        index = self.columns["dx_14"]
        if not self.begin and len(index) > 14:
            index[13] = 0.0
        index[self.begin or 14 :] = (100 * np.abs(plus - minus) / (plus + minus))[self.begin or 14 :]
        repeat_where_zero(plus + minus, index, self.begin or 14)
        if not self.begin:
            index[:14] = np.nan
        self.wilder("adx_14", index, (14, 27))
        self.columns |= {"plus_di_14": plus, "minus_di_14": minus}

    def wilder_sum(self, name: str, values: Numbers) -> Numbers:
        made = self.columns[name]
        if not self.begin and len(made) > 13:
            made[13] = _sum(values[1:14])
        follow_sum(values, made, self.begin or 14, 14)
        return made

    def oscillators(self) -> None:
        highest, lowest = _highest(self.high, 14), -_highest(-self.low, 14)
        width = highest - lowest
        fast = _share(self.close - lowest, width)
        slow = _window_sum(fast, 3) / 3
        slower = _window_sum(slow, 3) / 3
        self.columns |= {
            "stoch_k": np.where(np.isnan(slower), np.nan, slow),
            "stoch_d": slower,
            "willr_14": _share(self.close - highest, width),
        }

    def volumes(self) -> None:
        typical = (self.high + self.low + self.close) / 3
        change = typical - _earlier(typical, 1)
        flow, least = typical * self.volume, ROUNDING * typical
        bought, sold = _window_sum(flow * (change > least), 14), _window_sum(flow * (-change > least), 14)
        self.columns["mfi_14"] = _from(14, _share(bought, bought + sold), self.begin)
        balance = self.columns["obv"]
        if not self.begin:
            balance[:1] = self.volume[:1]
        follow_balance(self.close, self.volume, balance, self.begin or 1)
        self.columns["vwap"] = mean_of_day(self.day, typical, self.volume, self.empty())

    def channel(self) -> None:
        typical = (self.high + self.low + self.close) / 3
        self.columns["cci_20"] = _channel(typical, 20)


# Windows: the rows t-n+1 .. t at row t, as n views of the whole column, each one row further on. What is added up goes
# from the oldest row to the newest one.


def _numbers(values: pl.Series) -> Numbers:
    return values.cast(pl.Float64).fill_null(np.nan).to_numpy()


def _earlier(values: Numbers, rows: int) -> Numbers:
    """What stands so many rows before."""
    made = np.full(len(values), np.nan)
    made[rows:] = values[: max(len(values) - rows, 0)]
    return made


def _from(row: int, values: Numbers, begin: int) -> Numbers:
    """Nothing before that row of the series."""
    if not begin:
        values[:row] = np.nan
    return values


def _sum(values: Numbers) -> float:
    total = 0.0
    for value in values.tolist():
        total += value
    return total


def _window_sum(values: Numbers, n: int) -> Numbers:
    total = _earlier(values, n - 1)
    for rows in range(n - 2, -1, -1):
        total += _earlier(values, rows)
    return total


def _highest(values: Numbers, n: int) -> Numbers:
    highest = values
    for rows in range(1, n):
        highest = np.maximum(highest, _earlier(values, rows))
    return highest


def _spread(values: Numbers, n: int) -> tuple[Numbers, Numbers]:
    """Mean and population deviation; distances from the oldest value of the window are what is added up."""
    oldest = _earlier(values, n - 1)
    distances = [_earlier(values, rows) - oldest for rows in range(n - 1, -1, -1)]
    centre, squares = _mean(distances), np.zeros(len(values))
    for distance in distances:
        squares += (distance - centre) ** 2
    return oldest + centre, np.sqrt(squares / n)


def _channel(values: Numbers, n: int) -> Numbers:
    """The commodity channel index; 0 where the window, or the last value against its mean, is flat but for rounding."""
    oldest = _earlier(values, n - 1)
    distances = [_earlier(values, rows) - oldest for rows in range(n - 1, -1, -1)]
    centre, away = _mean(distances), np.zeros(len(values))
    for distance in distances:
        away += np.abs(distance - centre)
    least = ROUNDING * np.abs(oldest + centre)
    width = _highest(values, n) + _highest(-values, n)
    off = distances[-1] - centre
    is_flat = (width <= least) | (np.abs(off) <= least)
    return np.where(is_flat, 0.0, off / (0.015 * (away / n)))


def _mean(each: list[Numbers]) -> Numbers:
    total = np.zeros(len(each[0]))
    for values in each:
        total += values
    return total / len(each)


def _share(part: Numbers, whole: Numbers) -> Numbers:
    """Percent; 0 of nothing."""
    return np.where(whole == 0, 0.0, 100 * part / whole)


# Row by row


@compiled
def follow(values: Numbers, made: Numbers, begin: int, factor: float) -> None:
    """An exponential mean from row `begin` on; the row before is there."""
    for row in range(begin, len(values)):
        made[row] = made[row - 1] + factor * (values[row] - made[row - 1])


@compiled
def follow_wilder(values: Numbers, made: Numbers, begin: int, n: int) -> None:
    """Wilder's mean over `n`, likewise."""
    for row in range(begin, len(values)):
        made[row] = (made[row - 1] * (n - 1) + values[row]) / n


@compiled
def follow_sum(values: Numbers, made: Numbers, begin: int, n: int) -> None:
    """Wilder's sum over `n`, likewise."""
    for row in range(begin, len(values)):
        made[row] = made[row - 1] - made[row - 1] / n + values[row]


@compiled
def repeat_where_zero(measure: Numbers, made: Numbers, begin: int) -> None:
    """The row before again, where the measure is 0."""
    for row in range(begin, len(measure)):
        if measure[row] == 0.0:
            made[row] = made[row - 1]


@compiled
def follow_balance(close: Numbers, volume: Numbers, made: Numbers, begin: int) -> None:
    """On-balance volume; without the volume of a bar nothing is known from there on."""
    for row in range(begin, len(close)):
        sign = 0.0
        if close[row] > close[row - 1]:
            sign = 1.0
        elif close[row] < close[row - 1]:
            sign = -1.0
        made[row] = made[row - 1] + sign * volume[row]


@compiled
def mean_of_day(day: NDArray[np.int64], price: Numbers, volume: Numbers, made: Numbers) -> Numbers:
    """Prices weighted by volume since the begin of the day; NaN while nothing was traded."""
    value, total = 0.0, 0.0
    for row in range(len(day)):
        if row == 0 or day[row] != day[row - 1]:
            value, total = 0.0, 0.0
        value += price[row] * volume[row]
        total += volume[row]
        if total != 0.0:
            made[row] = value / total
    return made
