"""Features of the book: its state at the close of a bar, and what came to it and left it during the bar."""

from typing import Final

import numpy as np
import polars as pl

from crypto_lake.features.asof import Floats, Times, floats, last_until, per_bar
from crypto_lake.features.rolling import over

LEVELS: Final = 5
# A book that is older says nothing of now.
MOST_AGE_MS: Final = 60_000
STATE: Final = (
    *("spread_bps", "microprice_dev_bps", "imb_l1", "imb_l5", "imb_w5", "depth5_quote", "bid_slope5", "ask_slope5"),
)
NAMES: Final = (*STATE, "ofi_l1", "ofi_l5", "spread_mean_bps", "book_age_ms")


class Books:
    """Snapshots in order: their times, and price and size of each level, NaN for null."""

    def __init__(self, books: pl.DataFrame) -> None:
        ordered = books.with_columns(ms=pl.col("time").dt.epoch("us") // 1000).sort("ms", "update_id")
        self.times: Times = ordered["ms"].to_numpy()
        levels = ordered.select(
            pl.col(side).list.get(level, null_on_oob=True).struct.field(field).alias(f"{side} {field} {level}")
            for side in ("bids", "asks")
            for field in ("price", "quantity")
            for level in range(LEVELS)
        )
        columns = [floats(levels, name) for name in levels.columns]
        self.bid, self.bid_size, self.ask, self.ask_size = (
            columns[at : at + LEVELS] for at in range(0, 4 * LEVELS, LEVELS)
        )

    @property
    def mid(self) -> Floats:
        """The middle between the best prices."""
        return (self.bid[0] + self.ask[0]) / 2

    @property
    def spread_bps(self) -> Floats:
        """The distance between the best prices in hundredths of a percent of their middle."""
        return (self.ask[0] - self.bid[0]) / self.mid * 1e4


def book_features(open_ms: Times, close_ms: Times, books: pl.DataFrame | None) -> dict[str, Floats]:
    """Group G of the bars that open and close at these times; `books` hold the last snapshot before them as well."""
    if books is None or books.is_empty():
        return {name: np.full(len(open_ms), np.nan) for name in NAMES}
    held = Books(books)
    at = last_until(held.times, close_ms)
    age = close_ms - held.times[at]
    is_known = (at >= 0) & (age <= MOST_AGE_MS)
    made = {
        **{name: column[at] for name, column in _state(held).items()},
        **_changes(held, open_ms, close_ms),
        "book_age_ms": age.astype(np.float64),
    }
    return {name: np.where(is_known, column, np.nan) for name, column in made.items()}


def _state(b: Books) -> dict[str, Floats]:
    """What each snapshot says by itself."""
    mid, (pb, *_), (qb, *_), (pa, *_), (qa, *_) = b.mid, b.bid, b.bid_size, b.ask, b.ask_size
    bids, asks = _total(b.bid_size), _total(b.ask_size)
    near_bids, near_asks = (
        _total([size / (i + 1) for i, size in enumerate(side)]) for side in (b.bid_size, b.ask_size)
    )
    sides = ((b.bid, b.bid_size), (b.ask, b.ask_size))
    amounts = [price * size for prices, sizes in sides for price, size in zip(prices, sizes, strict=True)]
    return {
        "spread_bps": b.spread_bps,
        "microprice_dev_bps": ((pa * qb + pb * qa) / (qa + qb) / mid - 1) * 1e4,
        "imb_l1": (qb - qa) / (qb + qa),
        "imb_l5": (bids - asks) / (bids + asks),
        "imb_w5": (near_bids - near_asks) / (near_bids + near_asks),
        "depth5_quote": _total(amounts),
        "bid_slope5": bids / ((b.bid[0] - b.bid[-1]) / mid * 1e4),
        "ask_slope5": asks / ((b.ask[-1] - b.ask[0]) / mid * 1e4),
    }


def _changes(b: Books, open_ms: Times, close_ms: Times) -> dict[str, Floats]:
    """What happened between the snapshots of a bar."""
    bars = per_bar(b.times, open_ms, close_ms)
    inside = bars >= 0
    count = np.bincount(bars[inside], minlength=len(open_ms)).astype(np.float64)

    def summed(column: Floats) -> Floats:
        """Per bar, in the order of the snapshots; null in a bar without one."""
        return np.where(count == 0, np.nan, np.bincount(bars[inside], weights=column[inside], minlength=len(open_ms)))

    flows = [_flow(*level) for level in zip(b.bid, b.bid_size, b.ask, b.ask_size, strict=True)]
    return {
        "ofi_l1": summed(flows[0]),
        "ofi_l5": summed(_total(flows)),
        "spread_mean_bps": over(summed(b.spread_bps), count),
    }


def _flow(pb: Floats, qb: Floats, pa: Floats, qa: Floats) -> Floats:
    """e of one level, of each snapshot against the one before; the first has none."""
    made = np.full(len(pb), np.nan)
    pb0, qb0, pa0, qa0 = pb[:-1], qb[:-1], pa[:-1], qa[:-1]
    pb1, qb1, pa1, qa1 = pb[1:], qb[1:], pa[1:], qa[1:]
    bids = np.where(pb1 >= pb0, qb1, 0.0) - np.where(pb1 <= pb0, qb0, 0.0)
    asks = np.where(pa1 >= pa0, qa0, 0.0) - np.where(pa1 <= pa0, qa1, 0.0)
    # A comparison with null is false: the null itself must come through.
    known = 0.0 * (pb0 + qb0 + pa0 + qa0 + pb1 + qb1 + pa1 + qa1)
    made[1:] = bids + asks + known
    return made


def _total(columns: list[Floats]) -> Floats:
    """The sum of columns, from the first to the last."""
    made = columns[0].copy()
    for column in columns[1:]:
        made += column
    return made
