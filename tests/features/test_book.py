"""Order books: against a book of dictionaries and decimals, against the market behind the events, and real ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from math import gcd
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_lake.features import ladder
from crypto_lake.features.book import LIMITS, SCHEMA, Book, in_order
from crypto_lake.features.compiled import plain
from tests.features.depth_market import (
    FUTURES_CAPTURES,
    SPOT_CAPTURES,
    Level,
    Market,
    Row,
    captured,
    event,
    frame,
    levels,
    pairs,
    received,
    snapshot,
)

SECOND = 1_000_000
LASTING_US = SECOND
Shown = tuple[int, int, list[Level], list[Level]]
fast = settings(max_examples=40, deadline=None)


def shown(made: pl.DataFrame) -> list[Shown]:
    rows = made.select(pl.col("time").dt.epoch("us"), "update_id", "bids", "asks").rows()
    return [(at, update_id, pairs(bids), pairs(asks)) for at, update_id, bids, asks in rows]


# A book of dictionaries, written from the text of PROTOCOLS B and of the module


@dataclass
class Half:
    """One side: quantities by price; prices below the end (bids; above it for asks) are known when heard of."""

    sign: int
    quantities: dict[Decimal, float] = field(default_factory=dict)
    end: Decimal | None = None

    def is_beyond(self, price: Decimal) -> bool:
        return self.end is not None and self.sign * price < self.sign * self.end

    def existing(self) -> list[Decimal]:
        found = [price for price, quantity in self.quantities.items() if quantity]
        return sorted(found, key=lambda price: -self.sign * price)

    def best(self, wanted: int, step: Decimal) -> list[Level] | None:
        known = self.end
        found: list[Level] = []
        for price in sorted(self.quantities, key=lambda price: -self.sign * price):
            if self.is_beyond(price):
                assert known is not None
                if price != known - self.sign * step:
                    break
                known = price
            if self.quantities[price] and len(found) < wanted:
                found.append((float(price), self.quantities[price]))
        return None if not found and self.end is not None else found


def step_of(prices: list[Decimal]) -> Decimal:
    scale = max((-int(price.as_tuple().exponent) for price in prices), default=0)
    whole = 0
    for price in prices:
        whole = gcd(whole, int(price.scaleb(scale)))
    return Decimal(whole).scaleb(-scale)


class Reference:
    """Row by row, slowly."""

    def __init__(self, levels: int, every_us: int) -> None:
        self.levels, self.every_us = levels, every_us
        self.rows: dict[int, Shown] = {}  # by interval
        self.last: int | None = None
        self.is_seeded = False
        self.waiting: list[Row] = []
        self.clock: int | None = None
        self.losses = 0

    def play(self, row: Row) -> None:
        if row["is_snapshot"]:
            self.begin(row)
        elif self.last is None:
            self.waiting.append(row)
        else:
            self.follow(row)

    def begin(self, row: Row) -> None:
        if self.last is not None and row["final_update_id"] < self.last:
            return
        self.last, self.is_seeded, self.crossed_since = row["final_update_id"], True, None
        self.halves = [Half(1), Half(-1)]
        prices = []
        for half, side in zip(self.halves, (row["bids"], row["asks"]), strict=True):
            half.quantities = {Decimal(str(price)): quantity for price, quantity in pairs(side)}
            if len(side) in LIMITS:
                half.end = min(half.quantities, key=lambda price, sign=half.sign: sign * price)
            prices += half.quantities
        self.prices = prices
        waiting, self.waiting = self.waiting, []
        for each in waiting:
            self.play(each)

    def follow(self, row: Row) -> None:
        first, final, previous = (row[f"{name}_update_id"] for name in ("first", "final", "previous"))
        assert self.last is not None
        if self.is_seeded and self.last == -1:
            fits = True
        elif self.is_seeded and previous is not None:
            if final < self.last:
                return
            fits = first <= self.last <= final or previous == self.last
        else:
            if final <= self.last:
                return
            fits = previous == self.last if previous is not None else first <= self.last + 1
        if not fits:
            self.lose(row)
            return
        self.apply(row, final)

    def apply(self, row: Row, final: int) -> None:
        for half, side in zip(self.halves, (row["bids"], row["asks"]), strict=True):
            for price, quantity in pairs(side):
                decimal = Decimal(str(price))
                if half.is_beyond(decimal):
                    self.prices.append(decimal)
                half.quantities[decimal] = quantity
        self.last, self.is_seeded = final, False
        self.clock = max(row["time"], self.clock if self.clock is not None else row["time"])
        bids, asks = (half.existing() for half in self.halves)
        if bids and asks and bids[0] > asks[0]:
            if self.crossed_since is None:
                self.crossed_since = self.clock
            self.rows.pop(self.clock // self.every_us, None)
            if self.clock - self.crossed_since >= LASTING_US:
                self.lose()
            return
        self.crossed_since = None
        if bids and asks and bids[0] < asks[0]:
            for half, bound in zip(self.halves, (asks[0], bids[0]), strict=True):
                if half.is_beyond(bound):
                    half.end = bound
        step = step_of(self.prices)
        best = [half.best(self.levels, step) for half in self.halves]
        if best[0] is not None and best[1] is not None:
            self.rows[self.clock // self.every_us] = (self.clock, final, best[0], best[1])
        else:
            self.rows.pop(self.clock // self.every_us, None)

    def lose(self, row: Row | None = None) -> None:
        self.last = None
        self.losses += 1
        self.waiting = [row] if row else []


# A market that is known, and what a stream makes of it


@dataclass
class Stream:
    """What a client got of a market; named by what it was made of."""

    seed: int
    tick: str
    has_previous: bool
    depth: int
    events: int

    def __post_init__(self) -> None:
        random = Random(self.seed)
        self.market = Market(random, Decimal(self.tick), self.has_previous, self.depth)
        self.rows = received(list(self.market.rows(self.events)), random)


ticks = st.sampled_from(["0.1", "0.5", "1", "10", "0.01", "0.00001", "0.000025"])
streams = st.builds(
    Stream, st.integers(0, 2**32), ticks, st.booleans(), st.sampled_from([3, 12, 40]), st.integers(5, 160)
)


def played(rows: Sequence[Row], *, every_us: int = SECOND, wanted: int = 7) -> tuple[Book, list[Shown]]:
    book = Book(levels=wanted, every_us=every_us)
    return book, shown(book.apply(frame(rows)))


def expected(rows: Sequence[Row], *, every_us: int = SECOND, wanted: int = 7) -> tuple[Reference, list[Shown]]:
    reference = Reference(wanted, every_us)
    for row in rows:
        reference.play(row)
    return reference, [reference.rows[interval] for interval in sorted(reference.rows)]


@given(streams)
@fast
def test_a_book_shows_what_dictionaries_and_decimals_show(stream: Stream) -> None:
    rows = stream.rows
    # A row per event: the intervals themselves have their own test.
    book, found = played(rows, every_us=1)
    reference, wanted = expected(rows, every_us=1)
    assert found + shown(book.unfinished()) == wanted
    assert book.is_known == (reference.last is not None)
    assert book.update_id == reference.last


@given(streams)
@fast
def test_whatever_is_shown_is_the_market(stream: Stream) -> None:
    market, rows = stream.market, stream.rows
    for order in (frame(rows), in_order(frame(rows).sample(fraction=1, shuffle=True, seed=1).unique())):
        for _, update_id, bids, asks in shown(Book(levels=50, every_us=1).apply(order)):
            true_bids, true_asks = market.truth[update_id]
            assert bids == true_bids[: len(bids)]
            assert asks == true_asks[: len(asks)]


@given(streams, st.lists(st.integers(0, 400), max_size=5))
@fast
def test_cut_anywhere_and_kept_in_between_it_is_the_same_book(stream: Stream, cuts: list[int]) -> None:
    rows = stream.rows
    whole, wanted = played(rows)
    book, found = Book(levels=7, every_us=SECOND), []
    borders = sorted({0, *(cut for cut in cuts if cut < len(rows)), len(rows)})
    for start, end in pairwise(borders):
        found += shown(book.apply(frame(rows[start:end])))
        book = Book.from_bytes(book.to_bytes())
    assert found == wanted
    assert shown(book.unfinished()) == shown(whole.unfinished())
    assert same(book.best(), whole.best())
    assert book.total == whole.total


def same(mine: Any, other: Any) -> bool:
    if mine is None or other is None:
        return mine is other
    return mine[:2] == other[:2] and all((a == b).all() for a, b in zip(mine[2:], other[2:], strict=True))


@given(streams, st.integers(0, 200))
@fast
def test_what_was_shown_stays_whatever_comes(stream: Stream, end: int) -> None:
    rows = stream.rows
    _, part = played(rows[:end])
    _, whole = played(rows)
    assert whole[: len(part)] == part


@given(streams)
@settings(max_examples=10, deadline=None)
def test_compiled_and_plain_are_the_same(stream: Stream) -> None:
    rows = stream.rows
    with pytest.MonkeyPatch.context() as patch:
        compiled = played(rows)
        for kernel in ladder.KERNELS:
            patch.setattr(ladder, plain(kernel).__name__, plain(kernel))
        text = played(rows)
    assert text[1] == compiled[1]
    assert text[0].to_bytes() == compiled[0].to_bytes()
    assert all(plain(kernel) is not kernel for kernel in ladder.KERNELS)


# Prices


decimals = st.tuples(st.integers(1, 10**15 - 1), st.integers(0, 12)).map(lambda each: Decimal(each[0]).scaleb(-each[1]))
steps = st.lists(st.decimals("0.0000001", "9999999", allow_nan=False, places=7), min_size=1, max_size=30, unique=True)


@given(steps)
@fast
def test_prices_come_back_as_they_were_whatever_their_decimals(prices: list[Decimal]) -> None:
    texts = [float(f"{price:f}") for price in prices]
    first, *rest = [(price, 1.0) for price in texts]
    book = Book(levels=40)
    book.apply(frame([snapshot(1, [first]), *(event(n, n, n - 1, [each]) for n, each in enumerate(rest, 2))]))
    best = book.best()
    assert best is not None
    assert best.bids[:, 0].tolist() == sorted(texts, reverse=True)


@given(decimals)
@fast
def test_fifteen_digits_are_kept_wherever_the_point_is(price: Decimal) -> None:
    for side in ("bids", "asks"):
        book = Book()
        book.apply(frame([snapshot(1, **{side: [(float(price), 2.5)]})]))
        best = book.best()
        assert best is not None
        assert getattr(best, side).tolist() == [[float(price), 2.5]]


def test_one_side_may_have_more_decimals_than_the_other() -> None:
    book = Book()
    rows = [snapshot(1, [(9.5, 1.0)], [(10.25, 1.0)]), event(2, 2, 1, [(9.4, 2.0)], [(10.125, 3.0)])]
    book.apply(frame(rows))
    assert quoted(book) == (2, [[9.5, 1.0], [9.4, 2.0]], [[10.125, 3.0], [10.25, 1.0]])


def test_very_large_and_very_small_prices_live_in_one_book() -> None:
    book = Book()
    book.apply(frame([snapshot(1, [(123456789.0, 1.0)]), event(2, 2, 1, [(1e-9, 2.0), (999999999.5, 3.0)])]))
    best = book.best()
    assert best is not None
    assert best.bids.tolist() == [[999999999.5, 3.0], [123456789.0, 1.0], [1e-9, 2.0]]


@pytest.mark.parametrize("price", [float("nan"), float("inf"), 0.1234567890123456789])
def test_a_price_that_cannot_be_kept_is_refused_by_name(price: float) -> None:
    book = Book()
    with pytest.raises(ValueError, match=str(price)[:5]):
        book.apply(frame([snapshot(1, [(1e8, 1.0), (price, 1.0)])]))


# The chain, by hand


def chain_of(*rows: Row) -> Book:
    book = Book(levels=3)
    book.apply(frame(rows))
    return book


def quoted(book: Book) -> Any:
    best = book.best()
    return None if best is None else (best.update_id, best.bids.tolist(), best.asks.tolist())


BASE = snapshot(100, [(9.9, 1.0)], [(10.1, 1.0)])
NEW = ([(9.8, 2.0)], [])


@pytest.mark.parametrize(
    ("first", "final", "previous", "fits"),
    [
        (90, 99, 89, None),  # u < L: dropped
        (90, 100, 89, True),  # U <= L <= u
        (95, 105, 94, True),
        (101, 105, 100, True),  # goes on exactly behind it
        (101, 105, 99, False),
        (102, 105, 101, False),
    ],
)
def test_the_first_event_behind_a_snapshot_of_futures(first: int, final: int, previous: int, fits: bool | None) -> None:
    check_first(event(first, final, previous, *NEW), fits)


@pytest.mark.parametrize(
    ("first", "final", "fits"),
    [(90, 99, None), (90, 100, None), (95, 105, True), (101, 105, True), (102, 105, False)],
)
def test_the_first_event_behind_a_snapshot_of_spot(first: int, final: int, fits: bool | None) -> None:
    check_first(event(first, final, None, *NEW), fits)


def check_first(row: Row, fits: bool | None) -> None:
    book = chain_of(BASE, row)
    if fits is None:
        assert quoted(book) == (100, [[9.9, 1.0]], [[10.1, 1.0]])
    elif fits:
        assert quoted(book) == (row["final_update_id"], [[9.9, 1.0], [9.8, 2.0]], [[10.1, 1.0]])
    else:
        assert not book.is_known
        assert book.update_id is None


def test_futures_chain_by_the_previous_id_and_spot_by_the_first() -> None:
    assert chain_of(BASE, event(101, 110, 100), event(150, 160, 110)).update_id == 160
    assert not chain_of(BASE, event(101, 110, 100), event(111, 160, 109)).is_known
    assert chain_of(BASE, event(101, 110, None), event(105, 160, None)).update_id == 160
    assert not chain_of(BASE, event(101, 110, None), event(112, 160, None)).is_known


def test_events_that_came_before_their_snapshot_are_applied_behind_it() -> None:
    rows = [event(95, 99, 94), event(100, 104, 99, *NEW), event(105, 109, 104, [(9.9, 0.0)]), BASE]
    assert quoted(chain_of(*rows)) == (109, [[9.8, 2.0]], [[10.1, 1.0]])


def test_an_older_snapshot_leaves_a_book_alone_and_a_later_one_replaces_it() -> None:
    rows = [BASE, event(101, 110, 100, *NEW)]
    assert quoted(chain_of(*rows, snapshot(105, [(1.0, 1.0)], [(2.0, 1.0)])))[0] == 110
    assert quoted(chain_of(*rows, snapshot(110, [(1.0, 1.0)], [(2.0, 1.0)]))) == (110, [[1.0, 1.0]], [[2.0, 1.0]])


def test_a_hole_hides_the_book_until_a_snapshot_fits() -> None:
    hole = [BASE, event(101, 110, 100), event(121, 130, 120, *NEW), event(131, 140, 130)]
    assert not chain_of(*hole).is_known
    assert not chain_of(*hole, snapshot(105, [(9.0, 1.0)])).is_known  # older than the hole
    assert quoted(chain_of(*hole, snapshot(125, [(9.0, 1.0)], [(10.0, 1.0)]))) == (
        140, [[9.8, 2.0], [9.0, 1.0]], [[10.0, 1.0]],
    )  # fmt: skip


def test_an_empty_snapshot_is_the_beginning_of_a_book() -> None:
    rows = [snapshot(-1), event(7, 9, 6, [(9.9, 1.0)], [(10.1, 1.0)]), event(12, 13, 9, [(9.9, 0.0)])]
    assert quoted(chain_of(*rows[:2])) == (9, [[9.9, 1.0]], [[10.1, 1.0]])
    assert quoted(chain_of(*rows)) == (13, [], [[10.1, 1.0]])


def test_the_order_of_the_chain_has_snapshots_at_their_place() -> None:
    rows = [
        event(11, 20, 10, at=2_000), event(21, 30, 20, at=3_000), event(1, 10, 0, at=1_000),
        snapshot(20, at=9_000), snapshot(25, at=0), snapshot(-1, at=1_500),
    ]  # fmt: skip
    found = in_order(frame(rows))
    assert found["final_update_id"].to_list() == [10, -1, 20, 20, 25, 30]
    assert found["is_snapshot"].to_list() == [False, True, False, True, True, False]


def test_only_the_newest_events_wait_for_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crypto_lake.features.book.MOST_WAITING", 10)
    events = [event(n, n, n - 1, [(float(n), 1.0)]) for n in range(101, 140)]
    late = [snapshot(n, [(1.0, 1.0)], [(500.0, 1.0)]) for n in (128, 129)]
    for cut in (1, 7, len(events)):
        book = Book()
        for start in range(0, len(events), cut):
            book.apply(frame(events[start : start + cut]))
        book = Book.from_bytes(book.to_bytes())
        book.apply(frame(late[:1]))
        assert not book.is_known
        book.apply(frame(late[1:]))
        assert book.update_id == 139


# The horizon


def cut_side(best: float, away: int) -> list[Level]:
    return [(round(best + away * number * 0.1, 1), 1.0) for number in range(5)]


CUT = snapshot(100, cut_side(9.9, -1), cut_side(10.0, 1))  # bids to 9.5, asks to 10.4; five is a limit


def test_a_level_behind_the_horizon_is_not_shown_before_all_prices_up_to_it_have_been_heard_of() -> None:
    book = Book(levels=20)
    book.apply(frame([CUT, event(101, 101, 100, [(9.3, 7.0), (1.0, 1.0)])]))
    assert [price for price, _ in quoted(book)[1]] == [9.9, 9.8, 9.7, 9.6, 9.5]
    assert book.total == (7, 5)
    book.apply(frame([event(102, 102, 101, [(9.4, 0.0)])]))  # nobody is there: that is known now
    assert [price for price, _ in quoted(book)[1]] == [9.9, 9.8, 9.7, 9.6, 9.5, 9.3]


def test_a_finer_step_of_prices_leaves_more_of_them_unheard_of() -> None:
    book = Book(levels=20)
    halves = [(9.5 - number / 2, 1.0) for number in range(5)]
    book.apply(frame([snapshot(100, halves, [(10.0, 1.0)]), event(101, 101, 100, [(7.0, 1.0)])]))
    assert [price for price, _ in quoted(book)[1]] == [9.5, 9.0, 8.5, 8.0, 7.5, 7.0]
    book.apply(frame([event(102, 102, 101, [(5.1, 1.0)])]))
    assert [price for price, _ in quoted(book)[1]] == [9.5, 9.0, 8.5, 8.0, 7.5]


def test_bids_are_known_from_the_lowest_price_on_at_which_somebody_has_asked() -> None:
    gone = [(price, 0.0) for price, _ in cut_side(9.9, -1)]
    fall = event(101, 101, 100, [*gone, (9.0, 5.0)], [(9.2, 1.0)])
    book = Book(levels=20)
    book.apply(frame([CUT, fall]))
    assert book.best() is None  # 9.1 may have been there all the time
    book.apply(frame([event(102, 102, 101, [(9.5, 2.0)], [(9.2, 0.0), (9.6, 1.0)])]))
    assert quoted(book)[1] == [[9.5, 2.0]]  # and 9.2 to 9.4 are empty, but 9.1 is not known
    book.apply(frame([event(103, 103, 102, [(9.1, 0.0)])]))
    assert quoted(book)[1] == [[9.5, 2.0], [9.0, 5.0]]


def test_a_side_with_another_number_of_levels_is_whole() -> None:
    row = event(101, 101, 100, [(1.0, 1.0), (9.9, 0.0)])
    assert quoted(chain_of(BASE | {"bids": levels(cut_side(9.9, -1)[:4])}, row))[1][-2:] == [[9.6, 1.0], [1.0, 1.0]]
    assert quoted(chain_of(snapshot(100, [(9.9, 1.0)], [(10.1, 1.0)]), row))[1] == [[1.0, 1.0]]
    assert quoted(chain_of(snapshot(100, [(9.9, 1.0)]), event(101, 101, 100, [(9.9, 0.0)]))) == (101, [], [])


# Crossed books and intervals


def test_a_book_that_stays_crossed_is_lost_and_told_once_until_a_snapshot() -> None:
    book = Book(levels=3, every_us=1)
    rows = [
        BASE, event(101, 101, 100, at=SECOND), event(102, 102, 101, [(10.3, 1.0)], at=2 * SECOND),
        event(103, 103, 102, at=2_900_000),
    ]  # fmt: skip
    made = shown(book.apply(frame(rows)))
    assert book.best() is None
    assert book.is_known
    made += shown(book.apply(frame([event(104, 104, 103, at=3 * SECOND), event(105, 105, 104, at=4 * SECOND)])))
    assert not book.is_known
    assert [tuple(each) for each in book.crossed] == [(2 * SECOND, 3 * SECOND, 102, 104, pytest.approx(0.2))]
    last = [snapshot(105, [(9.9, 1.0)], [(10.1, 1.0)]), event(106, 106, 105, at=5 * SECOND)]
    made += shown(book.apply(frame([*last, event(107, 107, 106, at=6 * SECOND)])))
    assert [update_id for _, update_id, *_ in made] == [101, 105, 106]
    assert len(book.crossed) == 1


def test_a_book_that_is_crossed_for_a_moment_goes_on() -> None:
    book = chain_of(BASE, event(101, 101, 100, [(10.3, 1.0)], at=0), event(102, 102, 101, [(10.3, 0.0)], at=SECOND * 9))
    assert quoted(book) == (102, [[9.9, 1.0]], [[10.1, 1.0]])
    assert book.crossed == []


def test_an_interval_shows_its_last_state_with_the_time_and_id_of_the_last_event_in_it() -> None:
    times = [1_000_000, 1_400_000, 1_999_999, 2_000_000, 5_000_000, 5_100_000]
    events = [event(n, n, n - 1, [(9.0, float(n))], at=at) for n, at in enumerate(times, 101)]
    book = Book(levels=2, every_us=SECOND)
    found = shown(book.apply(frame([BASE, *events])))
    assert [(at, update_id, bids[1][1]) for at, update_id, bids, _ in found] == [
        (1_999_999, 103, 103.0), (2_000_000, 104, 104.0),
    ]  # fmt: skip
    assert [(at, update_id) for at, update_id, *_ in shown(book.unfinished())] == [(5_100_000, 106)]


def test_a_hole_or_a_snapshot_inside_an_interval_makes_no_second_row_of_it() -> None:
    rows = [
        BASE, event(101, 101, 100, at=1_100_000), event(110, 110, 105, at=1_200_000),
        snapshot(110, [(9.5, 1.0)], [(10.5, 1.0)]), event(111, 111, 110, at=1_300_000),
        event(112, 112, 111, at=2_500_000), event(120, 120, 117, at=2_600_000), event(121, 121, 120, at=3_000_000),
        snapshot(121, [(9.6, 1.0)], [(10.6, 1.0)]), event(122, 122, 121, at=4_000_000),
    ]  # fmt: skip
    book, found = played(rows)
    assert [(at, update_id) for at, update_id, *_ in found + shown(book.unfinished())] == [
        (1_300_000, 111), (2_500_000, 112), (3_000_000, 121), (4_000_000, 122),
    ]  # fmt: skip


def test_time_does_not_go_back() -> None:
    rows = [
        BASE,
        event(101, 101, 100, at=2_500_000),
        event(102, 102, 101, at=1_500_000),
        event(103, 103, 102, at=3 * SECOND),
    ]
    _, found = played(rows)
    assert [(at, update_id) for at, update_id, *_ in found] == [(2_500_000, 102)]


def test_a_book_without_intervals_gives_no_rows() -> None:
    made = Book().apply(frame([BASE, event(101, 101, 100)]))
    assert made.is_empty()
    assert made.schema == SCHEMA


def test_what_is_no_book_is_said_to_be_none() -> None:
    with pytest.raises(ValueError, match="no state of a book"):
        Book.from_bytes(b"something else")


# Real ones


@pytest.mark.parametrize(("names", "fewest"), [(FUTURES_CAPTURES, 600), (SPOT_CAPTURES, 1000)], ids=["usd-m", "spot"])
def test_the_best_prices_of_a_real_book_are_those_that_the_venue_told(
    names: list[str], fewest: int, data: Path
) -> None:
    rows, tickers = captured([data / "captures" / name for name in names])
    for order in (frame(rows), in_order(frame(rows))):
        book = Book(levels=5, every_us=1)
        made = shown(book.apply(order))
        tops = {update_id: (*bids[0], *asks[0]) for _, update_id, bids, asks in made}
        both = [(tops[update_id], told) for update_id, told in tickers.items() if update_id in tops]
        assert len(both) > fewest
        assert all(mine == told for mine, told in both)
        assert book.is_known
        assert len(made) > 0.99 * (len(rows) - 10)


def test_a_real_book_is_the_same_slowly(data: Path) -> None:
    rows, _ = captured([data / "captures" / name for name in SPOT_CAPTURES[:1]])
    book, found = played(rows[:300], wanted=20)
    assert found + shown(book.unfinished()) == expected(rows[:300], wanted=20)[1]
