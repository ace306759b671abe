"""The checks of ANALYTICS 5.1: what is wrong with rows, one finding per check and row, and which rows are refused.

Nearly every batch is clean, so what can be said of whole columns is said first: the rows are laid group after group
(a group is a venue and a symbol), each is compared with what came before it in its group, and only rows that something
is wrong with, or that cannot be cleared that way, are looked at one by one.
"""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from crypto_lake.config import SPOT
from crypto_lake.models.dataset import Chain, Dataset
from crypto_lake.models.quality import QUALITY

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]

# A venue whose clock is wrong fails every row for ever: beyond this many, findings of a batch are counted in one.
PER_BATCH: Final = 100
LEVELS_CHECKED: Final = 5
# Makes the median of absolute deviations an estimate of the standard deviation.
MAD_SCALE: Final = 1.4826
# Below every id: what "none yet" is in arithmetic.
NOTHING: Final = -(2**63)
# Prices that are cleared together once those of a whole batch cannot be; about the length of the window.
BLOCK: Final = 64


# The column of book5 (ANALYTICS 0.2) by which a snapshot says which one it follows.
PREVIOUS: Final = "prev_update_id"
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND: Final = timedelta(milliseconds=1)
NO_FINDINGS: Final = pl.DataFrame(schema=QUALITY.schema)
# A hit on its way to be a finding; `check` is its place in the specification.
HIT: Final[dict[str, pl.DataType]] = {
    "check": pl.Int64(),
    "place": pl.Int64(),
    "observed": pl.Float64(),
    "threshold": pl.Float64(),
    "first_id": pl.Int64(),
    "last_id": pl.Int64(),
}


class Rule(NamedTuple):
    """How bad it is when a row fails a check, and whether the row is set aside for it."""

    severity: str
    rejects: bool = False


# In the order of the specification; findings about the same row come in this order.
RULES: Final[dict[str, Rule]] = {
    "duplicate": Rule("warn"),
    "id_regress": Rule("warn"),
    "id_gap": Rule("error"),
    "bad_range": Rule("error", rejects=True),
    "trade_id_gap": Rule("info"),  # an error on spot: futures leave fills out of the aggregated trades
    "time_backwards": Rule("warn"),
    "null_field": Rule("error", rejects=True),
    "price_nonpositive": Rule("error", rejects=True),
    "qty_nonpositive": Rule("error", rejects=True),
    "clock_skew_future": Rule("warn"),
    "late_receive": Rule("warn"),
    "price_outlier": Rule("warn"),
    "crossed": Rule("error"),
    "locked": Rule("warn"),
    "unsorted_levels": Rule("error", rejects=True),
    "nonpositive_size": Rule("error", rejects=True),
    "wide_spread": Rule("warn"),
    "book_seq_gap": Rule("error"),
}
NAMES: Final = list(RULES)
SEVERITIES: Final = pl.Series([rule.severity for rule in RULES.values()])
# What a refusal shows of the row; the other rejecting checks show what was observed.
SHOWN: Final = {
    "bad_range": ("first_trade_id", "last_trade_id"),
    "null_field": ("price", "quantity"),
    "price_nonpositive": ("price",),
    "qty_nonpositive": ("quantity",),
}


@dataclass(frozen=True, slots=True)
class Limits:
    """The thresholds of ANALYTICS 5.1, and how many holes in the ids of a symbol are remembered.

    With more holes than that, ids in the lowest of them count as seen.
    """

    skew_ms: int = 1000
    late_ms: int = 10_000
    window: int = 50
    window_least: int = 25
    mad_factor: float = 10.0
    share: float = 0.005
    spread: float = 0.01
    holes: int = 10_000


class Refusal(NamedTuple):
    """A row to reject: its place in the rows checked, and the check that it fails first, with the value."""

    row: int
    reason: str


class Checked(NamedTuple):
    """Findings as rows of the table `quality`, and the rows to reject, in the rows' order."""

    findings: pl.DataFrame
    refused: list[Refusal]


@dataclass(frozen=True, slots=True)
class Subject:
    """Which columns of a dataset the checks look at, and so which checks it has."""

    ids: str | None
    is_trade: bool
    has_range: bool
    has_levels: bool
    has_best: bool
    has_clocks: bool
    chain: Chain | None

    @classmethod
    def of(cls, dataset: Dataset) -> "Subject":
        """Decided from the columns, so that a new dataset needs nothing here."""
        names = set(dataset.schema)
        own = dataset.sequence or (dataset.chain.last if dataset.chain else dataset.order)
        return cls(
            ids=own if own in names and dataset.schema[own] == pl.Int64 else None,
            is_trade=dataset.sequence is not None and {"price", "quantity"} <= names,
            has_range={"first_trade_id", "last_trade_id", "agg_trade_id"} <= names,
            has_levels={"bids", "asks"} <= names,
            has_best={"bid_price", "bid_quantity", "ask_price", "ask_quantity"} <= names,
            has_clocks=dataset.live is not None and {"time", "received_time"} <= names,
            chain=dataset.chain,
        )


@dataclass(slots=True)
class Group:
    """What is remembered of a venue and symbol: the state of ANALYTICS 5.1.

    Ids seen are all up to `highest` but those in `holes` (first and last, ascending): what came before the first row
    is the first hole. `link` is the last update of the book, `window` the prices that an outlier is told by.
    """

    highest: int = NOTHING
    latest_ms: int = 0
    last_trade: int = NOTHING
    is_after_bad: bool = False
    link: int = NOTHING
    window: Floats = field(default_factory=lambda: np.empty(0))
    holes: list[tuple[int, int]] = field(default_factory=list)

    def open_hole(self, first: int, last: int, at_most: int) -> None:
        """Notes ids that are passed over; all are above the holes there are."""
        self.holes.append((first, last))
        if len(self.holes) > at_most:
            del self.holes[0]

    def see(self, seen: int) -> bool:
        """Notes an id that is not above the highest; returns whether it was seen before."""
        at = bisect_right(self.holes, (seen, 2**63)) - 1
        if at < 0 or self.holes[at][1] < seen:
            return True
        first, last = self.holes[at]
        self.holes[at : at + 1] = [hole for hole in ((first, seen - 1), (seen + 1, last)) if hole[0] <= hole[1]]
        return False


def _learnt(tip: dict[str, Any], order: str | None) -> Group:
    own, time = tip.get(order) if order else None, tip.get("time")
    latest_ms = 0 if time is None else (time - EPOCH) // MILLISECOND
    return Group(latest_ms=latest_ms) if own is None else Group(highest=own, latest_ms=latest_ms, link=own)


class Hits(NamedTuple):
    """Rows that fail one check. Without ids of their own the findings bear those of their rows."""

    check: str
    place: Ints
    observed: Floats | None = None
    threshold: Floats | float | None = None
    first_id: Ints | None = None
    last_id: Ints | None = None


class Laid(NamedTuple):
    """Rows laid group after group, each in the order of arrival: their places, and where the groups begin and end."""

    order: Ints
    starts: Ints
    ends: Ints
    groups: list[Group]

    def highest_before(self, values: Ints, held: Sequence[int]) -> Ints:
        """The highest value before each row in its group, beginning with what is `held` of the group."""
        before = _shifted(values, self.starts, held)
        for at in np.flatnonzero(np.logical_or.reduceat(values < before, self.starts)):
            part = slice(self.starts[at], self.ends[at])
            before[part] = np.maximum.accumulate(np.append(before[part.start], values[part]))[:-1]
        return before

    def of(self, places: Ints) -> list[Group]:
        """The groups of rows, by their places in the order laid."""
        return [self.groups[at] for at in np.searchsorted(self.ends, places, side="right")]


class Checks:
    """The checks of one dataset and the state they need: one small record per venue and symbol.

    Prices and quantities that are no finite number count as null. Times are compared in whole milliseconds.
    """

    def __init__(self, dataset: Dataset, limits: Limits | None = None) -> None:
        self.dataset = dataset
        self.limits = limits or Limits()
        self.subject = Subject.of(dataset)
        self._groups: dict[tuple[str, str], Group] = {}

    def check(
        self,
        rows: pl.DataFrame,
        *,
        found_us: int,
        numbered: bool = False,
        at_rest: bool = False,
        at_most: int | None = PER_BATCH,
    ) -> Checked:
        """What is wrong with `rows`, the table's columns in the order of arrival, duplicates still among them.

        Rows of another source than `live` came late on purpose: they get the checks of their values only and leave
        the state alone, unless `at_rest`. `numbered` fills the column `row`. `at_most` findings per check, venue and
        symbol are written one by one, the rest of them in one that says how many; None: all one by one. `found_us`
        is our clock.
        """
        if rows.is_empty():
            return Checked(NO_FINDINGS, [])
        live = None if at_rest else _live(rows)
        hits = [*self._of_values(rows), *self._of_order(rows, live)]
        hits = [each for each in hits if each.place.size]
        if not hits:
            return Checked(NO_FINDINGS, [])
        findings = _findings(self.dataset, self.subject.ids, rows, hits, found_us, at_most)
        if not numbered:
            findings = findings.with_columns(row=pl.lit(None, pl.Int64))
        return Checked(findings, _refused(rows, hits))

    def learn(self, tips: pl.DataFrame) -> None:
        """Goes on from what the table holds: venue, symbol, the highest id (under the name of `dataset.order`), `time`.

        Either of the two may be missing or null. Ids up to the learnt one count as seen, also those that the table
        lacks; the last trade id and the window of prices begin anew. Groups that have a state already keep it.
        """
        chain = self.subject.chain
        if chain is not None and chain.apart in tips.columns:
            tips = tips.filter(~pl.col(chain.apart))
        for tip in tips.iter_rows(named=True):
            pair = tip["venue"], tip["symbol"]
            if pair not in self._groups:
                self._groups[pair] = _learnt(tip, self.dataset.order if self.subject.ids else None)

    def _of_values(self, rows: pl.DataFrame) -> Iterator[Hits]:
        """The checks that look at one row alone."""
        subject = self.subject
        if subject.has_range:
            yield from _bad_ranges(rows)
        if subject.is_trade:
            yield from _bad_numbers(rows)
        if subject.has_best:
            yield from _book(_best(rows), self.limits, None)
        if subject.has_levels:
            whole = np.flatnonzero(rows[subject.chain.apart].to_numpy()) if subject.chain else None
            if whole is None:
                yield from _book(_levels(rows), self.limits, None)
            elif whole.size:
                yield from _book(_levels(rows[whole]), self.limits, whole)

    def _of_order(self, rows: pl.DataFrame, live: Flags | None) -> Iterator[Hits]:
        """The checks that depend on when a row came and on what came before."""
        subject = self.subject
        if live is not None and not live.any():
            return
        if subject.has_clocks:
            yield from _clocks(rows, live, self.limits)
        if subject.is_trade:
            yield from self._of_trades(rows, self._lay(rows, live))
        if subject.chain:
            links = ~rows[subject.chain.apart].to_numpy()
            yield from self._of_chain(rows, self._lay(rows, links if live is None else links & live))
        elif PREVIOUS in rows.columns:
            yield from self._of_chain(rows, self._lay(rows, live))

    def _lay(self, rows: pl.DataFrame, wanted: Flags | None) -> Laid:
        """Lays the wanted rows group after group."""
        placed = rows.select("venue", "symbol", pl.int_range(pl.len()).alias("place"))
        if wanted is not None and not wanted.all():
            placed = placed.filter(wanted)
        grouped = placed.group_by("venue", "symbol", maintain_order=True).agg("place")
        ends = np.cumsum(grouped["place"].list.len().to_numpy(), dtype=np.int64)
        order = grouped["place"].list.explode().to_numpy() if ends.size else np.empty(0, np.int64)
        groups = [self._groups.setdefault(pair, Group()) for pair in grouped.select("venue", "symbol").iter_rows()]
        return Laid(order, np.append(0, ends[:-1]) if ends.size else ends, ends, groups)

    def _of_trades(self, rows: pl.DataFrame, laid: Laid) -> Iterator[Hits]:
        assert self.subject.ids is not None
        repeated = np.zeros(laid.order.size, np.bool_)
        yield from self._of_ids(laid, _ints(rows, self.subject.ids)[laid.order], repeated)
        if self.subject.has_range:
            first, last = _ints(rows, "first_trade_id")[laid.order], _ints(rows, "last_trade_id")[laid.order]
            yield from _trade_ids(laid, first, last)
        yield from _times(laid, _millis(rows["time"]).to_numpy()[laid.order])
        yield from _outliers(laid, _numbers(rows, "price")[laid.order], repeated, self.limits)

    def _of_ids(self, laid: Laid, ids: Ints, repeated: Flags) -> Iterator[Hits]:
        """duplicate, id_regress and id_gap; marks in `repeated` which rows are duplicates."""
        before = laid.highest_before(ids, [group.highest for group in laid.groups])
        passes_over, falls_back = (ids - 1 > before) & (before != NOTHING), ids <= before
        for group, start, highest in zip(
            laid.groups, laid.starts, np.maximum.reduceat(ids, laid.starts).tolist(), strict=True
        ):
            if group.highest == NOTHING:
                group.holes = [(NOTHING, int(ids[start]) - 1)]
            group.highest = max(group.highest, highest)
        unusual = np.flatnonzero(passes_over | falls_back)
        if not unusual.size:
            return
        for at, group, own, highest in zip(
            unusual.tolist(), laid.of(unusual), ids[unusual].tolist(), before[unusual].tolist(), strict=True
        ):
            if own > highest:
                group.open_hole(highest + 1, own - 1, self.limits.holes)
            else:
                repeated[at] = group.see(own)
        yield Hits("duplicate", laid.order[repeated])
        back, over = np.flatnonzero(falls_back), np.flatnonzero(passes_over)
        yield Hits("id_regress", laid.order[back], _apart(before[back], ids[back]) + 1, 0.0)
        missing = before[over] + 1, ids[over] - 1
        yield Hits("id_gap", laid.order[over], _apart(ids[over], before[over]) - 1, 0.0, *missing)

    def _of_chain(self, rows: pl.DataFrame, laid: Laid) -> Iterator[Hits]:
        """book_seq_gap: an event has to follow the row before it, whatever came earlier."""
        if not laid.order.size:
            return
        last, follows = (column[laid.order] for column in _links(rows, self.subject))
        before = _shifted(last, laid.starts, [group.link for group in laid.groups])
        for group, end in zip(laid.groups, laid.ends, strict=True):
            group.link = int(last[end - 1])
        at = np.flatnonzero((follows != before) & (before != NOTHING) & (follows != NOTHING))
        if at.size:
            is_hole = follows[at] > before[at]
            missing = np.where(is_hole, before[at] + 1, last[at]), np.where(is_hole, follows[at], last[at])
            yield Hits("book_seq_gap", laid.order[at], _apart(follows[at], before[at]), 0.0, *missing)


# ---- rows alone


def _bad_ranges(rows: pl.DataFrame) -> Iterator[Hits]:
    first, last = _ints(rows, "first_trade_id"), _ints(rows, "last_trade_id")
    at = np.flatnonzero(last < first)
    yield Hits("bad_range", at, _apart(first[at], last[at]), 0.0)


def _bad_numbers(rows: pl.DataFrame) -> Iterator[Hits]:
    """null_field, price_nonpositive and qty_nonpositive."""
    price, quantity = _numbers(rows, "price"), _numbers(rows, "quantity")
    if price.min() > 0 and quantity.min() > 0:  # false for NaN
        return
    yield Hits("null_field", np.flatnonzero(np.isnan(price) | np.isnan(quantity)))
    for check, values in (("price_nonpositive", price), ("qty_nonpositive", quantity)):
        at = np.flatnonzero(values <= 0)
        yield Hits(check, at, values[at], 0.0)


class Book(NamedTuple):
    """Levels of books, one row each, the best first; NaN where a level is missing."""

    bid_prices: Floats
    bid_sizes: Floats
    ask_prices: Floats
    ask_sizes: Floats


def _best(rows: pl.DataFrame) -> Book:
    names = ("bid_price", "bid_quantity", "ask_price", "ask_quantity")
    return Book(*(rows[name].to_numpy()[:, np.newaxis] for name in names))


def _levels(rows: pl.DataFrame) -> Book:
    """From lists of levels, or from a column per level (ANALYTICS 0.2, book5)."""
    if "bids" not in rows.columns:
        names = ("bid_px", "bid_sz", "ask_px", "ask_sz")
        columns = ([f"{name}_{level}" for level in range(1, LEVELS_CHECKED + 1)] for name in names)
        return Book(*(rows.select(pl.col(each).cast(pl.Float64)).to_numpy() for each in columns))
    sides = [(side, part) for side in ("bids", "asks") for part in ("price", "quantity")]
    return Book(*(_level_columns(rows, side, part) for side, part in sides))


def _level_columns(rows: pl.DataFrame, side: str, part: str) -> Floats:
    levels = pl.col(side).list
    each = (levels.get(level, null_on_oob=True).struct.field(part).alias(str(level)) for level in range(LEVELS_CHECKED))
    return rows.select(each).to_numpy()


def _book(book: Book, limits: Limits, places: Ints | None) -> Iterator[Hits]:
    """crossed, locked, unsorted_levels, nonpositive_size and wide_spread; a missing level fails nothing."""

    def hits(check: str, fails: Flags, observed: Floats | None = None, threshold: float | None = None) -> Hits:
        at = np.flatnonzero(fails)
        return Hits(check, at if places is None else places[at], None if observed is None else observed[at], threshold)

    bid, ask = book.bid_prices[:, 0], book.ask_prices[:, 0]
    with np.errstate(all="ignore"):  # an empty side is 0, a missing one NaN: both give no spread
        spread = (ask - bid) / ((ask + bid) / 2)
    yield hits("crossed", bid > ask, bid - ask, 0.0)
    yield hits("locked", bid == ask, bid)
    yield hits("wide_spread", spread > limits.spread, spread, limits.spread)
    asks, bids = book.ask_prices, book.bid_prices
    is_unsorted = (asks[:, :-1] >= asks[:, 1:]) | (bids[:, 1:] >= bids[:, :-1])
    yield hits("unsorted_levels", np.logical_or.reduce(is_unsorted, axis=1))
    smallest = np.fmin.reduce(np.hstack([book.bid_sizes, book.ask_sizes]), axis=1)
    yield hits("nonpositive_size", smallest <= 0, smallest, 0.0)


# ---- rows and what came before them


def _clocks(rows: pl.DataFrame, live: Flags | None, limits: Limits) -> Iterator[Hits]:
    """clock_skew_future and late_receive; rows without a time of receipt fail neither."""
    lag = (_millis(rows["received_time"]) - _millis(rows["time"])).fill_null(0).to_numpy()
    for check, off, limit in (
        ("clock_skew_future", -lag, limits.skew_ms),
        ("late_receive", lag, limits.late_ms),
    ):
        at = np.flatnonzero(off > limit if live is None else (off > limit) & live)
        yield Hits(check, at, off[at].astype(np.float64), float(limit))


def _trade_ids(laid: Laid, first: Ints, last: Ints) -> Iterator[Hits]:
    """trade_id_gap: the first trade inside has to follow the highest one of the rows before."""
    is_bad = last < first
    raising = np.where(is_bad, NOTHING, last)
    before = laid.highest_before(raising, [group.last_trade for group in laid.groups])
    is_after_bad = _shifted(is_bad, laid.starts, [group.is_after_bad for group in laid.groups])
    at = np.flatnonzero((first - 1 > before) & (before != NOTHING) & ~is_bad & ~is_after_bad)
    for group, end, highest in zip(
        laid.groups, laid.ends, np.maximum.reduceat(raising, laid.starts).tolist(), strict=True
    ):
        group.last_trade = max(group.last_trade, highest)
        group.is_after_bad = bool(is_bad[end - 1])
    missing = before[at] + 1, first[at] - 1
    yield Hits("trade_id_gap", laid.order[at], _apart(first[at], before[at]) - 1, 0.0, *missing)


def _times(laid: Laid, times: Ints) -> Iterator[Hits]:
    """time_backwards."""
    before = laid.highest_before(times, [group.latest_ms for group in laid.groups])
    for group, latest in zip(laid.groups, np.maximum.reduceat(times, laid.starts).tolist(), strict=True):
        group.latest_ms = max(group.latest_ms, latest)
    at = np.flatnonzero(times < before)
    yield Hits("time_backwards", laid.order[at], _apart(before[at], times[at]), 0.0)


def _outliers(laid: Laid, prices: Floats, repeated: Flags, limits: Limits) -> Iterator[Hits]:
    """price_outlier, and every group's window after these rows.

    Prices that lie within the share of each other (with those of the window) hold no outlier: the median is one of
    them or between two. So a group is cleared as a whole, and only the others are gone through.
    """
    is_price = prices > 0
    bounds = np.concatenate([[0], np.cumsum(is_price)]) if not is_price.all() else np.arange(prices.size + 1)
    order, repeated, prices = laid.order[is_price], repeated[is_price], prices[is_price]
    found = Outliers([], [], [])
    for group, start, end in zip(laid.groups, bounds[laid.starts].tolist(), bounds[laid.ends].tolist(), strict=True):
        part = prices[start:end]
        joined = np.concatenate([group.window, part])
        if joined.size and joined.max() - joined.min() > limits.share * joined.min():
            window = Window(group.window.tolist(), limits)
            window.go_through(part.tolist(), repeated[start:end], start, found)
            joined = np.array(window.recent)
        group.window = joined[-limits.window :].copy()
    if found.at:
        yield Hits("price_outlier", order[found.at], np.array(found.off), np.array(found.bound))


class Outliers(NamedTuple):
    """Where they are, how far they are off, and how far they might be."""

    at: list[int]
    off: list[float]
    bound: list[float]


class Window:
    """The last prices that were no outliers, in the order they came and sorted."""

    def __init__(self, prices: Iterable[float], limits: Limits) -> None:
        self.recent = deque(prices, maxlen=limits.window)
        self.limits = limits
        self._scale = limits.mad_factor * MAD_SCALE
        self._spread: float | None = None  # the median of absolute deviations, once it is needed
        self._ranked = sorted(self.recent)

    def go_through(self, prices: list[float], repeated: Flags, start: int, found: Outliers) -> None:
        """Adds the outliers among prices above 0 to `found`, counted from `start`; repeated rows are not tested."""
        for first in range(0, len(prices), BLOCK):
            block, is_repeated = prices[first : first + BLOCK], repeated[first : first + BLOCK]
            if self._clears(block):
                self.recent.extend(block)
                self._sort()
            elif not is_repeated.any() and self._condemns(block):
                self._note(block, start + first, found)
            else:
                self._walk(block, is_repeated.tolist(), start + first, found)

    def _clears(self, block: list[float]) -> bool:
        """Whether none of the block can be an outlier."""
        lowest, highest = min(*block, *self.recent), max(*block, *self.recent)
        return highest - lowest <= self.limits.share * lowest

    def _condemns(self, block: list[float]) -> bool:
        """Whether all of the block are outliers: prices went away for good, and none of them enters the window."""
        if len(self._ranked) < self.limits.window_least:
            return False
        middle = _median(self._ranked)
        nearest = max(min(block) - middle, middle - max(block))
        return self._is_beyond(nearest, middle)

    def _walk(self, block: list[float], repeated: list[bool], start: int, found: Outliers) -> None:
        for at, price in enumerate(block):
            if not repeated[at] and self._is_outlier(price):
                self._note([price], start + at, found)
            else:
                self._enter(price)

    def _note(self, prices: list[float], start: int, found: Outliers) -> None:
        middle = _median(self._ranked)
        found.at.extend(range(start, start + len(prices)))
        found.off.extend([abs(price - middle) for price in prices])
        found.bound.extend([self._bound(middle)] * len(prices))

    def _is_outlier(self, price: float) -> bool:
        if len(self._ranked) < self.limits.window_least:
            return False
        middle = _median(self._ranked)
        return self._is_beyond(abs(price - middle), middle)

    def _is_beyond(self, off: float, middle: float) -> bool:
        if off <= self.limits.share * middle:
            return False
        if self._spread is None and off <= self._scale * self._least_spread(middle):
            return False
        return off > self._bound(middle)

    def _bound(self, middle: float) -> float:
        if self._spread is None:
            self._spread = _median(sorted([abs(each - middle) for each in self._ranked]))
        return max(self._scale * self._spread, self.limits.share * middle)

    def _least_spread(self, middle: float) -> float:
        """Below the median of deviations for certain, and soon seen: half of the prices lie outside of these two."""
        skipped = (len(self._ranked) // 2) // 2
        return min(middle - self._ranked[skipped], self._ranked[-1 - skipped] - middle)

    def _enter(self, price: float) -> None:
        if len(self.recent) == self.limits.window:
            del self._ranked[bisect_left(self._ranked, self.recent[0])]
        self.recent.append(price)
        insort(self._ranked, price)
        self._spread = None

    def _sort(self) -> None:
        self._ranked = sorted(self.recent)
        self._spread = None


def _median(ranked: list[float]) -> float:
    half = len(ranked) // 2
    return ranked[half] if len(ranked) % 2 else (ranked[half - 1] + ranked[half]) / 2


# ---- what came out


def _findings(
    dataset: Dataset, ids: str | None, rows: pl.DataFrame, hits: list[Hits], found_us: int, at_most: int | None
) -> pl.DataFrame:
    """The hits as rows of `quality`, by row and check; the ones that stand for many come last."""
    own = rows.select("venue", "symbol", "time", (pl.col(ids) if ids else pl.lit(None, pl.Int64)).alias("id"))
    found = pl.concat([_hit_rows(each) for each in hits]).sort("place", "check")
    found = pl.concat([found, own[found["place"]]], how="horizontal").with_columns(
        pl.coalesce("first_id", "id").alias("first_id"),
        pl.coalesce("last_id", "id").alias("last_id"),
        pl.col("time").alias("first_time"),
        pl.col("time").alias("last_time"),
        pl.col("place").alias("row"),
    )
    if at_most is not None and found.height > at_most:
        found = _joined(found, at_most)
    found_time = pl.lit(found_us).cast(QUALITY.schema["found_time"])
    is_worse = (pl.col("check") == "trade_id_gap") & (pl.col("venue") == SPOT)
    return (
        found.with_columns(check=pl.Series(NAMES)[found["check"]], severity=SEVERITIES[found["check"]])
        .with_columns(
            severity=pl.when(is_worse).then(pl.lit("error")).otherwise("severity"),
            dataset=pl.lit(dataset.name),
            found_time=found_time,
            date=found_time.dt.date(),
        )
        .select(*QUALITY.schema)
    )


def _hit_rows(hits: Hits) -> pl.DataFrame:
    columns = hits._asdict() | {"check": NAMES.index(hits.check)}
    return pl.DataFrame(columns, schema=HIT)


def _joined(found: pl.DataFrame, at_most: int) -> pl.DataFrame:
    """The first findings of each kind as they are, the others of the kind as one."""
    kind = ("check", "venue", "symbol")
    is_single = pl.int_range(pl.len()).over(kind) < at_most
    found = found.with_columns(is_single.alias("is_single"))
    rest = found.filter(~pl.col("is_single")).group_by(kind, maintain_order=True)
    one = rest.agg(
        pl.col("first_time").min(),
        pl.col("last_time").max(),
        pl.col("first_id").min(),
        pl.col("last_id").max(),
        pl.len().cast(pl.Float64).alias("observed"),
    )
    return pl.concat([found.filter("is_single"), one], how="diagonal")


def _refused(rows: pl.DataFrame, hits: list[Hits]) -> list[Refusal]:
    rejecting = [_hit_rows(each) for each in hits if RULES[each.check].rejects and each.place.size]
    if not rejecting:
        return []
    first = pl.concat(rejecting).sort("place", "check").unique("place", keep="first", maintain_order=True)
    names = [name for name in ("first_trade_id", "last_trade_id", "price", "quantity") if name in rows.columns]
    values = rows.select("venue", *names)[first["place"]].iter_rows(named=True)
    told = zip(first["place"], first["check"], first["observed"], values, strict=True)
    return [Refusal(place, _reason(NAMES[nth], observed, row)) for place, nth, observed, row in told]


def _reason(check: str, observed: float | None, row: dict[str, object]) -> str:
    if check in SHOWN:
        return f"{check}: {', '.join(f'{name} {row[name]}' for name in SHOWN[check])}"
    return check if observed is None else f"{check}: {observed}"


# ---- columns as arrays


def _ints(rows: pl.DataFrame, name: str) -> Ints:
    """Ids; a row without one is no row of its table."""
    assert not rows[name].null_count(), f"{name} is null"
    return rows[name].to_numpy()


def _numbers(rows: pl.DataFrame, name: str) -> Floats:
    """Finite numbers, else NaN."""
    values: Floats = rows[name].to_numpy()
    is_number = np.isfinite(values)
    return values if is_number.all() else np.where(is_number, values, np.nan)


def _millis(times: pl.Series) -> pl.Series:
    return times.dt.epoch("ms")


def _live(rows: pl.DataFrame) -> Flags | None:
    """Which rows came by stream; None when all did."""
    is_live: Flags = (rows["source"] == "live").to_numpy()
    return None if is_live.all() else is_live


def _links(rows: pl.DataFrame, subject: Subject) -> tuple[Ints, Ints]:
    """Per row the last update it holds, and the one it says it follows (or nothing)."""
    chain = subject.chain
    follows = pl.coalesce(chain.previous, pl.col(chain.first) - 1) if chain else pl.col(PREVIOUS)
    assert subject.ids is not None
    links = rows.select(last=subject.ids, follows=follows.cast(pl.Int64).fill_null(NOTHING))
    return _ints(links, "last"), _ints(links, "follows")


def _shifted(values: NDArray[Any], starts: Ints, held: Sequence[int]) -> NDArray[Any]:
    """The value of the row before in the group, and at a group's start what is `held` of it."""
    before = np.empty_like(values)
    before[1:] = values[:-1]
    before[starts] = held
    return before


def _apart(upper: Ints, lower: Ints) -> Floats:
    """How far ids are apart, as numbers: a difference of two ids may be too large for an integer."""
    return upper.astype(np.float64) - lower
