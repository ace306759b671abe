"""Windows over a series: each is summed afresh from its own rows, so a result depends on nothing outside its window.

A series is float64 with NaN for null; a window that is not whole, or holds a null, is null. No sum runs on from row to
row: what an old large value leaves behind in a running sum would stay there, and a result would depend on where the
series was cut. Windows are made of windows of half the length (64 rows take six additions of whole columns); what is
measured from a window's mean goes through it row by row, all windows at once.

NumPy's loops over columns that fit into the processor's cache leave nothing for a compiler to win: Numba was tried.
"""

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Guards of ANALYTICS 4.2 and 4.6: what is not above them is rounding noise.
LEAST_CORR: Final = 1e-14
LEAST_SLOPE: Final = 1e-18
LEAST_Z: Final = 1e-12


def before(x: Floats, rows: int = 1) -> Floats:
    """The series so many rows earlier."""
    made = np.full(len(x), np.nan)
    made[rows:] = x[: max(len(x) - rows, 0)]
    return made


def over(a: Floats, b: Floats) -> Floats:
    """a // b of the definitions: null where b is 0."""
    return np.where(b == 0, np.nan, a / b)


def ln(x: Floats) -> Floats:
    """The natural logarithm; null where there is none."""
    made = np.log(x)
    return np.where(np.isfinite(made), made, np.nan)


def sums(x: Floats, n: int) -> Floats:
    """The sum of each window of n rows."""
    return _row(_folded(x[None], n, lambda newer, older, _: newer + older), 0)


def highest(x: Floats, n: int) -> Floats:
    """The largest value of each window of n rows."""
    return _row(_folded(x[None], n, lambda newer, older, _: np.maximum(newer, older)), 0)


def lowest(x: Floats, n: int) -> Floats:
    """The smallest value of each window of n rows."""
    return _row(_folded(x[None], n, lambda newer, older, _: np.minimum(newer, older)), 0)


def rows_since_highest(x: Floats, n: int) -> Floats:
    """How many rows ago the largest value of each window was there last; 0 = in the newest row."""
    since = _row(_folded(np.stack((x, np.zeros(len(x)))), n, _higher), 1)
    return np.where(np.isnan(sums(x, n)), np.nan, since)


def _higher(newer: Floats, older: Floats, width: int) -> Floats:
    """Of two windows with their highest value and how many rows ago it was: the same of both together."""
    is_older = older[0] > newer[0]
    return np.where(is_older, np.stack((older[0], older[1] + width)), newer)


def _row(of: Floats, number: int) -> Floats:
    made: Floats = of[number]
    return made


def _folded(x: Floats, n: int, fold: Callable[[Floats, Floats, int], Floats]) -> Floats:
    """What windows of n rows hold, from windows of 1, 2, 4, 8 ... rows, each made of two of half the length.

    The columns of `x` are the rows of the series. `fold` is given the newer window, the older one that ends where it
    begins, and how many rows the newer one has.
    """
    rows = x.shape[1]
    if rows < n:
        return np.full(x.shape, np.nan)
    power, width = x, 1  # whole windows of `width` rows
    found, held = x[:, :0], 0  # whole windows of the `held` newest rows
    while True:
        if n & width:
            found = fold(found[:, width:], power[:, : rows - held - width + 1], held) if held else power
            held += width
        if held == n:
            return np.concatenate((np.full((len(x), n - 1), np.nan), found), axis=1)
        power = fold(power[:, width:], power[:, :-width], width)
        width *= 2


def _walked(n: int, kept: int, *columns: Floats) -> Iterator[tuple[Floats, ...]]:
    """The windows' rows, the oldest of each window first: all windows' first rows, their second rows, and so on."""
    for at in range(n):
        yield tuple(column[at : at + kept] for column in columns)


def squares(x: Floats, mean: Floats, n: int) -> Floats:
    """The sum of the squares of x - mean of each window of n rows; `mean` is that of the windows."""
    made, middle = _empty(x, n), mean[n - 1 :]
    total = made[n - 1 :]
    for (row,) in _walked(n, len(total), x):
        away = row - middle
        away *= away
        total += away
    return made


def products(x: Floats, x_mean: Floats, y: Floats, y_mean: Floats, n: int) -> Floats:
    """The sum of (x - its mean) * (y - its mean) of each window of n rows."""
    made, x_middle, y_middle = _empty(x, n), x_mean[n - 1 :], y_mean[n - 1 :]
    total = made[n - 1 :]
    for x_row, y_row in _walked(n, len(total), x, y):
        away = x_row - x_middle
        away *= y_row - y_middle
        total += away
    return made


def third_and_fourth(x: Floats, mean: Floats, n: int) -> tuple[Floats, Floats]:
    """The sums of the third and of the fourth powers of x - mean of each window of n rows."""
    third, fourth, middle = _empty(x, n), _empty(x, n), mean[n - 1 :]
    cubes, fourths = third[n - 1 :], fourth[n - 1 :]
    for (row,) in _walked(n, len(cubes), x):
        away = row - middle
        square = away * away
        away *= square
        square *= square
        cubes += away
        fourths += square
    return third, fourth


def against_steps(x: Floats, mean: Floats, n: int) -> Floats:
    """The sum of (step - mean step) * (x - mean) of each window, whose rows are the steps 0 .. n-1."""
    made, middle = _empty(x, n), mean[n - 1 :]
    total = made[n - 1 :]
    for step, (row,) in enumerate(_walked(n, len(total), x)):
        away = row - middle
        away *= step - (n - 1) / 2
        total += away
    return made


def rank(x: Floats, n: int) -> Floats:
    """The rank of the newest row among the rows of its window, ties in the middle, divided by n."""
    newest = x[n - 1 :]
    below, equal = np.zeros(len(newest), np.int16), np.zeros(len(newest), np.int16)
    for (row,) in _walked(n, len(newest), x):
        below += row < newest
        equal += row == newest
    made = sums(x, n)  # null where the rank is
    made[n - 1 :] = np.where(np.isnan(made[n - 1 :]), np.nan, (below + (equal + 1) / 2) / n)
    return made


def _empty(x: Floats, n: int) -> Floats:
    """Zeros where a window of n rows is whole, null before."""
    made = np.zeros(len(x))
    made[: n - 1] = np.nan
    return made


class Windows:
    """A series and the sums of its windows, each made once."""

    def __init__(self, x: Floats) -> None:
        self.x = x
        self._sums: dict[int, Floats] = {}
        self._squares: dict[int, Floats] = {}

    def sum(self, n: int) -> Floats:
        """S_n."""
        if n not in self._sums:
            self._sums[n] = sums(self.x, n)
        return self._sums[n]

    def mean(self, n: int) -> Floats:
        """M_n."""
        return self.sum(n) / n

    def squares(self, n: int) -> Floats:
        """The sum of the squares around the mean."""
        if n not in self._squares:
            self._squares[n] = squares(self.x, self.mean(n), n)
        return self._squares[n]

    def variance(self, n: int) -> Floats:
        """VAR_n."""
        return self.squares(n) / (n - 1)

    def deviation(self, n: int) -> Floats:
        """SD_n."""
        return np.sqrt(self.variance(n))

    def z(self, n: int) -> Floats:
        """z_n: null where the window is flat."""
        mean, deviation = self.mean(n), self.deviation(n)
        is_flat = deviation <= LEAST_Z * np.maximum(1.0, np.abs(mean))
        return np.where(is_flat, np.nan, (self.x - mean) / deviation)


def covariance(a: Windows, b: Windows, n: int) -> Floats:
    """COV_n."""
    return products(a.x, a.mean(n), b.x, b.mean(n), n) / (n - 1)


def correlation(a: Windows, b: Windows, n: int) -> Floats:
    """corr_n: null where one of the windows is flat."""
    scale = a.deviation(n) * b.deviation(n)
    return np.where(scale <= LEAST_CORR, np.nan, covariance(a, b, n) / scale)


def slope(y: Windows, x: Windows, n: int) -> Floats:
    """slope_n of y on x: null where x is flat."""
    variance = x.variance(n)
    return np.where(variance <= LEAST_SLOPE, np.nan, covariance(y, x, n) / variance)
