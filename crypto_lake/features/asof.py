"""Records on the rows of bars: the last one until an instant, and those that happened in a bar."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Times = NDArray[np.int64]


def millis(times: pl.Series) -> Times:
    """Instants as milliseconds since 1970; microseconds are cut off."""
    made: Times = times.dt.epoch("us").to_numpy() // 1000
    return made


def floats(frame: pl.DataFrame, name: str) -> Floats:
    """A column as float64 with NaN for null."""
    return np.ascontiguousarray(frame[name].cast(pl.Float64).fill_null(float("nan")).to_numpy())


def last_until(times: Times, instants: Times) -> Times:
    """For each instant the index of the last of the sorted `times` that is not after it; -1: there is none."""
    return np.searchsorted(times, instants, side="right") - 1


def per_bar(times: Times, open_ms: Times, close_ms: Times) -> Times:
    """For each time the index of the bar that it is in; -1: it is in none."""
    bars = last_until(open_ms, times)
    return np.where((bars >= 0) & (times <= close_ms[bars]), bars, -1)
