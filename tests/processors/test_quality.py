"""The checks say what ANALYTICS 5.1 says, cell by cell, however the rows are cut and whatever comes between them."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from math import isfinite, nan
from random import Random
from statistics import median
from typing import Any, NamedTuple

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_lake.models import DATASETS, Dataset
from crypto_lake.models.dataset import integer, levels, market
from crypto_lake.models.quality import QUALITY
from crypto_lake.processors.quality import NAMES, Checked, Checks, Limits

AGG_TRADE, TRADE, DEPTH = DATASETS["agg_trade"], DATASETS["trade"], DATASETS["depth"]
BOOK_TICKER, MARK_PRICE = DATASETS["book_ticker"], DATASETS["mark_price"]
BOOK_SNAPSHOT = market(
    "book_snapshot",
    "the best levels of the book",
    integer("update_id", "the last update in it"),
    levels("bids", "best first"),
    levels("asks", "best first"),
    key=("venue", "symbol", "time", "update_id"),
    order="update_id",
)
START = datetime(2024, 1, 15, tzinfo=UTC)
FOUND_US = 1_705_363_200_123_456
Row = dict[str, Any]


def at(ms: float) -> datetime:
    return START + timedelta(milliseconds=ms)


def agg_trade(trade_id: int, **other: Any) -> Row:
    """A clean aggregated trade of two fills; every millisecond one."""
    row = {
        "venue": "binance-futures",
        "symbol": "BTCUSDT",
        "time": at(trade_id),
        "received_time": at(trade_id + 5),
        "source": "live",
        "agg_trade_id": trade_id,
        "price": 100.0,
        "quantity": 1.0,
        "first_trade_id": 2 * trade_id,
        "last_trade_id": 2 * trade_id + 1,
        "is_buyer_maker": False,
    }
    return row | other


def trade(trade_id: int, **other: Any) -> Row:
    row = agg_trade(trade_id)
    return {name: row[name] for name in row if name in TRADE.schema} | {"trade_id": trade_id} | other


def diff(first: int, last: int, previous: int | None, **other: Any) -> Row:
    """A change of the book; the first and the last update in it, and the one before."""
    return {
        "venue": "binance-futures",
        "symbol": "BTCUSDT",
        "time": at(last),
        "received_time": at(last + 5),
        "source": "live",
        "first_update_id": first,
        "final_update_id": last,
        "previous_update_id": previous,
        "is_snapshot": False,
        "bids": [],
        "asks": [],
    } | other


Level = tuple[float | None, float | None]
BIDS: list[Level] = [(100.0 - n / 10, 1.0) for n in range(5)]
ASKS: list[Level] = [(100.1 + n / 10, 1.0) for n in range(5)]


def side(each: Iterable[Level]) -> list[dict[str, float | None]]:
    return [{"price": price, "quantity": quantity} for price, quantity in each]


def snapshot(bids: Sequence[Level] = BIDS, asks: Sequence[Level] = ASKS, **other: Any) -> Row:
    whole = {"is_snapshot": True, "source": "rest", "bids": side(bids), "asks": side(asks)}
    return diff(0, 7, None) | whole | other


def ticker(bid: float | None, bid_size: float | None, ask: float | None, ask_size: float | None, **other: Any) -> Row:
    best = {"bid_price": bid, "bid_quantity": bid_size, "ask_price": ask, "ask_quantity": ask_size}
    row = agg_trade(1) | {"update_id": 7} | best | other
    return {name: row[name] for name in row if name in BOOK_TICKER.schema}


def frame(dataset: Dataset, rows: Iterable[Row]) -> pl.DataFrame:
    """The rows with all the columns of the table."""
    filled = [{name: row.get(name) for name in dataset.schema} | {"date": row["time"].date()} for row in rows]
    return pl.DataFrame(filled, schema=dataset.schema)


def check(dataset: Dataset, *rows: Row, limits: Limits | None = None, **how: Any) -> Checked:
    how = {"found_us": FOUND_US, "numbered": True} | how
    return Checks(dataset, limits).check(frame(dataset, rows), **how)


def failed(checked: Checked) -> list[tuple[int, str]]:
    return checked.findings.select("row", "check").rows()


# ---- the specification, row by row


class Finding(NamedTuple):
    row: int
    check: str
    first_id: int
    last_id: int
    observed: float | None = None
    threshold: float | None = None


@dataclass
class State:
    seen: set[int] = field(default_factory=set)
    hi: int | None = None
    tmax: int = 0
    lmax: int | None = None
    is_after_bad_range: bool = False
    prices: list[float] = field(default_factory=list)


def ms(time: datetime) -> int:
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def number(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None


def trade_findings(rows: Sequence[Row], *, at_rest: bool = False) -> list[Finding]:
    """ANALYTICS 5.1 for trades, as it stands there."""
    states: dict[tuple[str, str], State] = defaultdict(State)
    found = []
    for place, row in enumerate(rows):
        state = states[row["venue"], row["symbol"]]
        fails = _trade_fails(row, state, ordered=at_rest or row["source"] == "live")
        own = row.get("agg_trade_id", row.get("trade_id"))
        each = [Finding(place, name, *(more if len(more) == 4 else (own, own, *more))) for name, *more in fails]
        found += sorted(each, key=lambda finding: NAMES.index(finding.check))
    return found


def _trade_fails(row: Row, state: State, *, ordered: bool) -> Iterator[tuple[Any, ...]]:
    price, quantity, time = number(row["price"]), number(row["quantity"]), ms(row["time"])
    is_agg = "agg_trade_id" in row
    own = row["agg_trade_id"] if is_agg else row["trade_id"]
    first, last = (row["first_trade_id"], row["last_trade_id"]) if is_agg else (own, own)
    is_bad_range = last < first
    if is_bad_range:
        yield "bad_range", first - last, 0
    if price is None or quantity is None:
        yield ("null_field",)
    if price is not None and price <= 0:
        yield "price_nonpositive", price, 0
    if quantity is not None and quantity <= 0:
        yield "qty_nonpositive", quantity, 0
    if not ordered:
        return
    is_duplicate = own in state.seen
    if is_duplicate:
        yield ("duplicate",)
    if state.hi is not None and own <= state.hi:
        yield "id_regress", state.hi - own + 1, 0
    if state.hi is not None and own > state.hi + 1:
        yield "id_gap", state.hi + 1, own - 1, own - state.hi - 1, 0
    is_tested = is_agg and not is_bad_range and not state.is_after_bad_range
    if is_tested and state.lmax is not None and first > state.lmax + 1:
        yield "trade_id_gap", state.lmax + 1, first - 1, first - state.lmax - 1, 0
    if time < state.tmax:
        yield "time_backwards", state.tmax - time, 0
    if row["received_time"] is not None:
        lag = ms(row["received_time"]) - time
        if -lag > 1000:
            yield "clock_skew_future", -lag, 1000
        if lag > 10_000:
            yield "late_receive", lag, 10_000
    is_outlier = False
    if price is not None and price > 0 and not is_duplicate and len(state.prices) >= 25:
        middle = median(state.prices)
        spread = median(abs(each - middle) for each in state.prices)
        bound = max(10 * 1.4826 * spread, 0.005 * middle)
        is_outlier = abs(price - middle) > bound
        if is_outlier:
            yield "price_outlier", abs(price - middle), bound
    if price is not None and price > 0 and not is_outlier:
        state.prices = [*state.prices, price][-50:]
    state.seen.add(own)
    state.hi = own if state.hi is None else max(state.hi, own)
    state.tmax = max(state.tmax, time)
    if not is_bad_range:
        state.lmax = last if state.lmax is None else max(state.lmax, last)
    state.is_after_bad_range = is_bad_range


def cells(checked: Checked) -> list[Finding]:
    names = Finding._fields
    return [Finding(*row) for row in checked.findings.select(names).iter_rows()]


# ---- made-up streams

TROUBLES = (
    *("duplicate", "replay", "back", "gap", "bad_range", "trade_gap", "late", "ahead", "time", "null", "nan", "inf"),
    *("free", "negative", "no_quantity", "jump", "spike", "drift", "rest"),
)


def stream(seed: int, rows: int, trouble: float, symbols: int) -> list[Row]:
    """Trades of some symbols in turns, each with a walk of its own, now and then with one of `TROUBLES`."""
    random = Random(seed)
    wanted = random.sample(TROUBLES, random.randint(1, len(TROUBLES)))
    groups = [("binance" if n % 2 else "binance-futures", f"S{n // 2}USDT") for n in range(symbols)]
    made: dict[tuple[str, str], list[Row]] = defaultdict(list)
    prices = dict.fromkeys(groups, 100.0)
    stream = []
    for n in range(rows):
        group = random.choice(groups)
        earlier = made[group]
        last = max((row["agg_trade_id"] for row in earlier), default=random.choice((-1, 0, 500)))
        prices[group] = max(1.0, prices[group] + random.choice((0, 0, 0, 0.01, -0.01)))
        row = agg_trade(last + 1, venue=group[0], symbol=group[1], time=at(n), price=prices[group])
        row["received_time"] = row["time"] + timedelta(microseconds=random.choice((0, 300, 5_000)))
        if random.random() < trouble:
            row = _spoilt(random, random.choice(wanted), row, earlier, prices, group)
        earlier.append(row)
        stream.append(row)
    return stream


def _spoilt(
    random: Random, how: str, row: Row, earlier: list[Row], prices: dict[tuple[str, str], float], group: tuple[str, str]
) -> Row:
    own, time, price = row["agg_trade_id"], row["time"], row["price"]
    edge_us = random.choice((-1000, -1, 0, 1, 999, 1000, 5_000_000))
    if how == "duplicate" and earlier:
        return dict(random.choice(earlier[-5:]))
    if how == "replay" and earlier:
        return random.choice(earlier) | {"received_time": row["received_time"] + timedelta(seconds=20)}
    if how == "drift":
        prices[group] = price * random.choice((0.97, 1.004, 1.02))
    spoilt: Row = {
        "back": {"agg_trade_id": own - random.randint(0, 12)},
        "gap": {"agg_trade_id": own + random.randint(1, 5)},
        "bad_range": {"last_trade_id": row["first_trade_id"] - random.choice((1, 1, 9))},
        "trade_gap": {"first_trade_id": 2 * own + 1, "last_trade_id": 2 * own + random.randint(1, 9)},
        "late": {"received_time": time + timedelta(seconds=10, microseconds=edge_us)},
        "ahead": {"received_time": time - timedelta(seconds=1, microseconds=edge_us)},
        "time": {"time": time - timedelta(microseconds=random.choice((1, 400, 1000, 90_000)))},
        "null": {random.choice(("price", "quantity", "received_time")): None},
        "nan": {random.choice(("price", "quantity")): nan},
        "inf": {"price": float("inf")},
        "free": {"price": random.choice((0.0, -0.0))},
        "negative": {"price": -price},
        "no_quantity": {"quantity": random.choice((0.0, -1.0))},
        "jump": {"price": price * random.choice((1.004, 1.0051, 0.9949, 1.02))},
        "spike": {"price": price * random.choice((0.01, 2, 1e6))},
        "rest": {"source": "rest"},
    }.get(how, {})
    return row | spoilt


streams = st.builds(
    stream,
    seed=st.integers(0, 2**32),
    rows=st.integers(0, 400),
    trouble=st.sampled_from((0.0, 0.005, 0.05, 0.3, 1.0)),
    symbols=st.integers(1, 4),
)


@given(streams, st.booleans())
@settings(max_examples=200, deadline=None)
def test_trades_are_checked_as_it_is_written(rows: list[Row], at_rest: bool) -> None:
    checked = check(AGG_TRADE, *rows, at_rest=at_rest, at_most=None)
    assert cells(checked) == trade_findings(rows, at_rest=at_rest)


@given(streams)
@settings(max_examples=60, deadline=None)
def test_a_trade_is_an_aggregated_one_of_one_trade(rows: list[Row]) -> None:
    single = [trade(row["agg_trade_id"]) | {name: row[name] for name in row if name in TRADE.schema} for row in rows]
    assert cells(check(TRADE, *single, at_most=None)) == trade_findings(single)


def in_pieces(dataset: Dataset, rows: Sequence[Row], cuts: Sequence[int]) -> pl.DataFrame:
    """The findings of rows checked piece by piece, numbered as if they had come in one."""
    checks, whole, parts = Checks(dataset), frame(dataset, rows), []
    edges = [0, *sorted(cut for cut in cuts if cut < len(rows)), len(rows)]
    for start, end in pairwise(edges):
        found = checks.check(whole[start:end], found_us=FOUND_US, numbered=True, at_most=None).findings
        parts.append(found.with_columns(pl.col("row") + start))
    return pl.concat(parts)


@given(streams, st.lists(st.integers(0, 400), max_size=8))
@settings(max_examples=100, deadline=None)
def test_pieces_give_what_the_whole_gives(rows: list[Row], cuts: list[int]) -> None:
    whole = check(AGG_TRADE, *rows, at_most=None).findings
    assert in_pieces(AGG_TRADE, rows, cuts).equals(whole)


def test_rows_one_by_one_give_what_the_whole_gives() -> None:
    rows = stream(seed=7, rows=300, trouble=0.3, symbols=3)
    assert in_pieces(AGG_TRADE, rows, range(300)).equals(check(AGG_TRADE, *rows, at_most=None).findings)


def test_time_may_go_back_for_long() -> None:
    rows = [agg_trade(n, time=at(time)) for n, time in enumerate((10, 5, 7, 9, 10, 11))]
    found = in_pieces(AGG_TRADE, rows, range(6))
    assert found.select("row", "check", "observed").rows() == [
        (n, "time_backwards", 10.0 - t) for n, t in ((1, 5), (2, 7), (3, 9))
    ]
    assert found.equals(check(AGG_TRADE, *rows).findings)


@given(streams, st.integers(0, 400))
@settings(max_examples=50, deadline=None)
def test_what_comes_later_changes_nothing(rows: list[Row], cut: int) -> None:
    whole = check(AGG_TRADE, *rows, at_most=None).findings
    assert check(AGG_TRADE, *rows[:cut], at_most=None).findings.equals(whole.filter(pl.col("row") < cut))


@given(streams)
@settings(max_examples=50, deadline=None)
def test_symbols_and_venues_do_not_see_each_other(rows: list[Row]) -> None:
    together = check(AGG_TRADE, *rows, at_most=None).findings.drop("row")
    for venue, symbol in {(row["venue"], row["symbol"]) for row in rows}:
        alone = [row for row in rows if (row["venue"], row["symbol"]) == (venue, symbol)]
        theirs = together.filter(venue=venue, symbol=symbol)
        assert check(AGG_TRADE, *alone, at_most=None).findings.drop("row").equals(theirs)


def test_the_made_up_streams_fail_every_check_of_trades() -> None:
    seen = {each.check for seed in range(20) for each in trade_findings(stream(seed, 400, 0.05, 2))}
    assert seen == set(NAMES[:12])


# ---- every check, by hand


def flat(count: int) -> list[Row]:
    """Clean trades at one price, ids from 1."""
    return [agg_trade(n) for n in range(1, count + 1)]


CASES: dict[str, tuple[list[Row], list[tuple[int, str]]]] = {
    "clean rows": (flat(60), []),
    "the first row has nothing before it": ([agg_trade(500)], []),
    "the same row again": (
        [agg_trade(1), agg_trade(2), agg_trade(2)],
        [(2, "duplicate"), (2, "id_regress")],
    ),
    "ids the wrong way round": (
        [agg_trade(1), agg_trade(3), agg_trade(2)],
        [(1, "id_gap"), (1, "trade_id_gap"), (2, "id_regress"), (2, "time_backwards")],
    ),
    "a late row in a hole counts as seen from then on": (
        [agg_trade(1), agg_trade(5), agg_trade(3, time=at(5)), agg_trade(3, time=at(5)), agg_trade(4, time=at(5))],
        [
            *((1, "id_gap"), (1, "trade_id_gap"), (2, "id_regress")),
            *((3, "duplicate"), (3, "id_regress"), (4, "id_regress")),
        ],
    ),
    "an id below the first one was not seen": (
        [agg_trade(9), agg_trade(5, time=at(9)), agg_trade(5, time=at(9))],
        [(1, "id_regress"), (2, "duplicate"), (2, "id_regress")],
    ),
    "a lost message": ([agg_trade(1), agg_trade(3)], [(1, "id_gap"), (1, "trade_id_gap")]),
    "an old message replayed": (
        [*flat(9), agg_trade(2, received_time=at(30_000))],
        [(9, "duplicate"), (9, "id_regress"), (9, "time_backwards"), (9, "late_receive")],
    ),
    "last below first": ([agg_trade(1, last_trade_id=1)], [(0, "bad_range")]),
    "one trade only is a range": ([agg_trade(1, last_trade_id=2)], []),
    "trade ids are not tested right after a bad range": (
        [agg_trade(1), agg_trade(2, last_trade_id=3), agg_trade(3, first_trade_id=90, last_trade_id=91)],
        [(1, "bad_range")],
    ),
    "a bad range does not raise the last trade id": (
        [agg_trade(1), agg_trade(2, first_trade_id=99, last_trade_id=98), agg_trade(3), agg_trade(4)],
        [(1, "bad_range")],
    ),
    "after two bad ranges the next but one is tested": (
        [
            *(agg_trade(1), agg_trade(2, last_trade_id=0), agg_trade(3, last_trade_id=0)),
            *(agg_trade(4, first_trade_id=4, last_trade_id=4), agg_trade(5)),
        ],
        [(1, "bad_range"), (2, "bad_range"), (4, "trade_id_gap")],
    ),
    "fills left out between aggregated trades": (
        [agg_trade(1), agg_trade(2, first_trade_id=5)],
        [(1, "trade_id_gap")],
    ),
    "fills that overlap are no gap": ([agg_trade(1), agg_trade(2, first_trade_id=3)], []),
    "time going back": ([agg_trade(1, time=at(9)), agg_trade(2)], [(1, "time_backwards")]),
    "time going back within a millisecond": ([agg_trade(1, time=at(1.9)), agg_trade(2, time=at(1.1))], []),
    "no price": ([agg_trade(1, price=None)], [(0, "null_field")]),
    "no quantity, and a price of 0": (
        [agg_trade(1, price=0.0, quantity=None)],
        [(0, "null_field"), (0, "price_nonpositive")],
    ),
    "prices that are no numbers": (
        [agg_trade(1, price=nan), agg_trade(2, price=float("-inf"))],
        [(0, "null_field"), (1, "null_field")],
    ),
    "a price below 0": ([agg_trade(1, price=-1.0)], [(0, "price_nonpositive")]),
    "a quantity of 0": ([agg_trade(1, quantity=0.0)], [(0, "qty_nonpositive")]),
    "our clock just right": ([agg_trade(1, received_time=at(1) - timedelta(seconds=1))], []),
    "our clock behind": ([agg_trade(1, received_time=at(0) - timedelta(seconds=1))], [(0, "clock_skew_future")]),
    "just not late": ([agg_trade(1, received_time=at(10_001))], []),
    "late": ([agg_trade(1, received_time=at(10_002))], [(0, "late_receive")]),
    "no time of receipt": ([agg_trade(1, received_time=None)], []),
    "24 prices tell no outlier": ([*flat(24), agg_trade(25, price=200.0)], []),
    "25 prices do": ([*flat(25), agg_trade(26, price=200.0)], [(25, "price_outlier")]),
    "just within the share": ([*flat(25), agg_trade(26, price=100.5)], []),
    "outliers do not become the rule": (
        [*flat(25), *(agg_trade(26 + n, price=101.0) for n in range(60))],
        [(25 + n, "price_outlier") for n in range(60)],
    ),
    "a wide market has wide limits": (
        [*(agg_trade(n, price=100.0 + n % 9) for n in range(1, 51)), agg_trade(51, price=130.0)],
        [],
    ),
    "a refused row may be an outlier too": (
        [*flat(25), agg_trade(26, price=200.0, quantity=0.0)],
        [(25, "qty_nonpositive"), (25, "price_outlier")],
    ),
    "a duplicate is no outlier, but its price counts": (
        [
            *flat(26),
            agg_trade(27, price=200.0),
            *[agg_trade(27, price=200.0)] * 30,
            agg_trade(28, price=200.0),
        ],
        [(26, "price_outlier")] + [(27 + n, name) for n in range(30) for name in ("duplicate", "id_regress")],
    ),
    "a price of 0 does not count for the window": (
        [*flat(24), agg_trade(25, price=0.0), agg_trade(26, price=200.0)],
        [(24, "price_nonpositive")],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_by_hand(case: str) -> None:
    rows, wanted = CASES[case]
    assert failed(check(AGG_TRADE, *rows)) == wanted
    assert [(each.row, each.check) for each in trade_findings(rows)] == wanted


def test_a_finding_says_what_it_covers() -> None:
    found = check(AGG_TRADE, agg_trade(1), agg_trade(5)).findings
    assert found.row(0, named=True) == {
        "venue": "binance-futures",
        "symbol": "BTCUSDT",
        "dataset": "agg_trade",
        "check": "id_gap",
        "severity": "error",
        "row": 1,
        "first_time": at(5),
        "last_time": at(5),
        "first_id": 2,
        "last_id": 4,
        "observed": 3.0,
        "threshold": 0.0,
        "found_time": datetime(2024, 1, 16, 0, 0, 0, 123456, tzinfo=UTC),
        "date": date(2024, 1, 16),
    }
    assert dict(found.schema) == QUALITY.schema


def test_findings_have_no_row_unless_it_is_asked_for() -> None:
    found = check(AGG_TRADE, agg_trade(1), agg_trade(5), numbered=False).findings
    assert found["row"].to_list() == [None, None]
    assert dict(found.schema) == QUALITY.schema


@pytest.mark.parametrize("rows", [[], flat(3)])
def test_nothing_found_is_a_table_without_rows(rows: list[Row]) -> None:
    checked = check(AGG_TRADE, *rows)
    assert dict(checked.findings.schema) == QUALITY.schema
    assert (checked.findings.height, checked.refused) == (0, [])


@pytest.mark.parametrize(("venue", "severity"), [("binance", "error"), ("binance-futures", "info")])
def test_fills_left_out_are_an_error_on_spot_only(venue: str, severity: str) -> None:
    rows = agg_trade(1, venue=venue), agg_trade(2, venue=venue, first_trade_id=5)
    assert check(AGG_TRADE, *rows).findings["severity"].to_list() == [severity]


def test_single_trades_have_no_trade_id_gap_beside_the_id_gap() -> None:
    assert failed(check(TRADE, trade(1), trade(3))) == [(1, "id_gap")]


def test_the_largest_ids_are_told_apart() -> None:
    largest = 2**63 - 1
    rows = [agg_trade(1, agg_trade_id=each) for each in (-1, largest, largest)]
    found = check(AGG_TRADE, *rows).findings
    assert found.select("row", "check", "first_id", "last_id").rows() == [
        (1, "id_gap", 0, largest - 1),
        (2, "duplicate", largest, largest),
        (2, "id_regress", largest, largest),
    ]


# ---- rows to refuse


def test_a_row_is_refused_for_the_first_reason_there_is() -> None:
    rows = [
        *(agg_trade(1, last_trade_id=1, price=None), agg_trade(2), agg_trade(3, price=-0.5, quantity=0.0)),
        *(agg_trade(4, quantity=-2.0), agg_trade(4), agg_trade(5, price=None)),
    ]
    assert check(AGG_TRADE, *rows).refused == [
        (0, "bad_range: first_trade_id 2, last_trade_id 1"),
        (2, "price_nonpositive: price -0.5"),
        (3, "qty_nonpositive: quantity -2.0"),
        (5, "null_field: price None, quantity 1.0"),
    ]


def test_every_row_to_refuse_is_named_however_few_findings_are_written() -> None:
    rows = [agg_trade(n, price=0.0) for n in range(300)]
    checked = check(AGG_TRADE, *rows, at_most=10)
    assert [each.row for each in checked.refused] == list(range(300))
    assert checked.findings.height == 11


def test_books_are_refused_too() -> None:
    rows = snapshot(bids=[(100.0, 1.0), (100.0, 1.0)]), snapshot(), snapshot(asks=[(101.0, 0.0)])
    assert check(DEPTH, *rows).refused == [(0, "unsorted_levels"), (2, "nonpositive_size: 0.0")]


# ---- rows by REST


def test_rows_by_rest_are_checked_for_their_values_only() -> None:
    late = {"source": "rest", "received_time": at(60_000)}
    rows = [*flat(30), agg_trade(3, price=500.0, **late), agg_trade(4, price=0.0, last_trade_id=1, **late)]
    assert failed(check(AGG_TRADE, *rows)) == [(31, "bad_range"), (31, "price_nonpositive")]


def test_rows_by_rest_move_no_state() -> None:
    rows = [
        agg_trade(1),
        agg_trade(9, source="rest"),
        agg_trade(2),
        agg_trade(7, source="rest", last_trade_id=0),
        agg_trade(3),
    ]
    assert failed(check(AGG_TRADE, *rows)) == [(3, "bad_range")]


def test_at_rest_all_rows_are_alike() -> None:
    rows = [agg_trade(1, source="dump"), agg_trade(2, source="rest"), agg_trade(2, source="dump")]
    assert failed(check(AGG_TRADE, *rows)) == []
    assert failed(check(AGG_TRADE, *rows, at_rest=True)) == [(2, "duplicate"), (2, "id_regress")]


# ---- limits


def test_findings_without_end_are_counted_in_one() -> None:
    rows = [agg_trade(n, received_time=at(n + 20_000)) for n in range(250)]
    rows += [agg_trade(n, symbol="ETHUSDT", received_time=at(n + 20_000)) for n in range(50)]
    found = check(AGG_TRADE, *rows).findings
    assert found["row"].to_list() == [*range(100), *range(250, 300), None]
    rest = found.row(-1, named=True)
    assert (rest["symbol"], rest["check"], rest["severity"]) == ("BTCUSDT", "late_receive", "warn")
    assert (rest["observed"], rest["threshold"]) == (150.0, None)
    assert (rest["first_id"], rest["last_id"]) == (100, 249)
    assert (rest["first_time"], rest["last_time"]) == (at(100), at(249))


def test_a_report_has_all_findings() -> None:
    rows = [agg_trade(n, received_time=at(n + 20_000)) for n in range(250)]
    assert check(AGG_TRADE, *rows, at_most=None).findings["row"].to_list() == list(range(250))


def test_the_thresholds_can_be_others() -> None:
    rows = [*(agg_trade(n) for n in range(4)), agg_trade(4, price=102.0, received_time=at(7))]
    assert failed(check(AGG_TRADE, *rows)) == []
    limits = Limits(late_ms=2, window=3, window_least=3, share=0.01)
    found = check(AGG_TRADE, *rows, limits=limits).findings
    assert found["check"].to_list() == [*["late_receive"] * 5, "price_outlier"]
    assert failed(check(BOOK_TICKER, ticker(100.0, 1.0, 100.2, 1.0), limits=Limits(spread=0.001))) == [
        (0, "wide_spread")
    ]
    early = agg_trade(5, received_time=at(4))
    assert failed(check(AGG_TRADE, early, limits=Limits(skew_ms=0))) == [(0, "clock_skew_future")]
    wide = [agg_trade(n, price=100.0 + n % 2) for n in range(50)]
    assert failed(
        check(AGG_TRADE, *wide, agg_trade(50, price=102.0), limits=Limits(mad_factor=1.0, window_least=50))
    ) == [(50, "price_outlier")]


def test_beyond_the_holes_remembered_ids_count_as_seen() -> None:
    rows = [agg_trade(n, time=at(100)) for n in (10, 20, 30, 15, 25)]
    assert (3, "duplicate") not in failed(check(AGG_TRADE, *rows))
    forgetful = failed(check(AGG_TRADE, *rows, limits=Limits(holes=1)))
    assert ((3, "duplicate") in forgetful, (4, "duplicate") in forgetful) == (True, False)


# ---- after a restart


def tips(*rows: tuple[str, int | None, datetime | None]) -> pl.DataFrame:
    schema = {"venue": pl.String, "symbol": pl.String, "agg_trade_id": pl.Int64, "time": QUALITY.schema["found_time"]}
    return pl.DataFrame([("binance-futures", *row) for row in rows], schema=schema, orient="row")


def test_what_the_table_holds_is_gone_on_from() -> None:
    checks = Checks(AGG_TRADE)
    checks.learn(tips(("BTCUSDT", 7, at(50))))
    rows = frame(AGG_TRADE, [agg_trade(7, time=at(49)), agg_trade(9, time=at(50)), agg_trade(3, time=at(50))])
    found = checks.check(rows, found_us=FOUND_US, numbered=True)
    assert failed(found) == [
        *((0, "duplicate"), (0, "id_regress"), (0, "time_backwards"), (1, "id_gap"), (1, "trade_id_gap")),
        *((2, "duplicate"), (2, "id_regress")),
    ]


def test_a_table_without_rows_has_nothing_to_go_on_from() -> None:
    checks = Checks(AGG_TRADE)
    checks.learn(tips(("BTCUSDT", None, None)))
    found = checks.check(frame(AGG_TRADE, [agg_trade(7), agg_trade(3, time=at(7))]), found_us=FOUND_US, numbered=True)
    assert failed(found) == [(1, "id_regress")]


def test_what_was_seen_weighs_more_than_what_is_learnt() -> None:
    checks = Checks(AGG_TRADE)
    checks.check(frame(AGG_TRADE, [agg_trade(7)]), found_us=FOUND_US)
    checks.learn(tips(("BTCUSDT", 3, at(3))))
    assert failed(checks.check(frame(AGG_TRADE, [agg_trade(8)]), found_us=FOUND_US)) == []


def test_a_chain_goes_on_from_the_last_change_in_the_table() -> None:
    checks = Checks(DEPTH)
    marks = frame(DEPTH, [snapshot(final_update_id=50), diff(1, 9, 0)])
    checks.learn(marks.select("venue", "symbol", "is_snapshot", "final_update_id"))
    rows = frame(DEPTH, [diff(12, 15, 10)])
    found = checks.check(rows, found_us=FOUND_US).findings
    assert found.select("check", "first_id", "last_id", "observed").rows() == [("book_seq_gap", 10, 10, 1.0)]


# ---- books


links = st.tuples(
    st.sampled_from("AB"), st.booleans(), st.integers(0, 9), st.integers(0, 9), st.none() | st.integers(0, 9)
)


@given(st.lists(links, max_size=40), st.lists(st.integers(0, 40), max_size=8))
@settings(max_examples=100, deadline=None)
def test_changes_of_books_are_checked_as_it_is_written(made: list[Any], cuts: list[int]) -> None:
    rows, wanted = [], []
    held: dict[str, int] = {}
    for place, (symbol, by_rest, first, last, previous) in enumerate(made):
        if by_rest:
            rows.append(snapshot(symbol=symbol, final_update_id=last))
            continue
        rows.append(diff(first, last, previous, symbol=symbol))
        follows = first - 1 if previous is None else previous
        if held.get(symbol, follows) != follows:
            wanted.append((place, follows - held[symbol]))
        held[symbol] = last
    found = in_pieces(DEPTH, rows, cuts)
    assert found.select("row", "observed").rows() == wanted
    assert set(found["check"]) <= {"book_seq_gap"}


def test_changes_of_a_book_follow_each_other() -> None:
    rows = [diff(1, 5, 0), diff(8, 9, 5), snapshot(), diff(10, 14, 9), diff(30, 31, 20), diff(40, 41, 31)]
    found = check(DEPTH, *rows).findings
    assert found.select("row", "check", "first_id", "last_id", "observed").rows() == [(4, "book_seq_gap", 15, 20, 6.0)]


def test_on_spot_the_first_update_says_what_came_before() -> None:
    rows = [diff(1, 5, None), diff(6, 9, None), diff(11, 12, None), diff(11, 12, None)]
    found = check(DEPTH, *rows).findings
    assert found.select("row", "check", "first_id", "last_id", "observed").rows() == [
        (2, "book_seq_gap", 10, 10, 1.0),
        (3, "book_seq_gap", 12, 12, -2.0),
    ]


def test_a_book_by_rest_is_no_link_even_at_rest() -> None:
    rows = [diff(1, 5, 0), snapshot(final_update_id=90), diff(6, 9, 5)]
    assert failed(check(DEPTH, *rows, at_rest=True)) == []


ONE_OFF = [*ASKS[:3], (100.2, 1.0), *ASKS[4:]]
BOOKS: dict[str, tuple[Sequence[Level], Sequence[Level], list[str]]] = {
    "a good book": (BIDS, ASKS, []),
    "one level each": (BIDS[:1], ASKS[:1], []),
    "no levels": ([], [], []),
    "crossed": ([(101.0, 1.0)], ASKS, ["crossed"]),
    "locked": ([(100.1, 1.0)], ASKS, ["locked"]),
    "an ask twice": (BIDS, ONE_OFF, ["unsorted_levels"]),
    "bids ascending": ([BIDS[1], BIDS[0]], ASKS, ["unsorted_levels"]),
    "the fifth bid above the fourth": ([*BIDS[:4], (99.95, 1.0)], ASKS, ["unsorted_levels"]),
    "the sixth level is not looked at": ([*BIDS, (200.0, 0.0)], ASKS, []),
    "an empty fifth level": (BIDS, [*ASKS[:4], (100.5, 0.0)], ["nonpositive_size"]),
    "less than nothing": ([(100.0, -1.0)], ASKS, ["nonpositive_size"]),
    "a spread of one in a hundred": ([(99.5, 1.0)], [(100.5, 1.0)], []),
    "a spread below it": ([(99.51, 1.0)], [(100.5, 1.0)], []),
    "an empty side": ([(0.0, 1.0)], [(100.0, 1.0)], ["wide_spread"]),
    "a price and a size missing": ([(None, 1.0)], [(100.0, None)], []),
    "nothing but zeros": ([(0.0, 0.0)], [(0.0, 0.0)], ["locked", "nonpositive_size"]),
}


@pytest.mark.parametrize("case", BOOKS)
def test_a_snapshot_by_hand(case: str) -> None:
    bids, asks, wanted = BOOKS[case]
    rows = [snapshot(), diff(6, 9, 5, bids=side(bids), asks=side(asks)), snapshot(bids, asks)]
    assert failed(check(DEPTH, *rows)) == [(2, name) for name in wanted]


@pytest.mark.parametrize("case", BOOKS)
def test_a_derived_snapshot_by_hand(case: str) -> None:
    bids, asks, wanted = BOOKS[case]
    rows = [snapshot(bids, asks, source="derived", update_id=n) for n in range(2)]
    assert failed(check(BOOK_SNAPSHOT, *rows)) == [(n, name) for n in range(2) for name in wanted]


def test_a_snapshot_may_have_a_column_per_level() -> None:
    row: Row = {"venue": "v", "symbol": "s", "time": at(1), "update_id": 7, "prev_update_id": 3}
    names = [f"{name}_{level}" for name in ("bid_px", "bid_sz", "ask_px", "ask_sz") for level in range(1, 6)]
    good = row | dict(zip(names, [*(5, 4, 3, 2, 1), *[1] * 5, *(5.01, 6, 7, 8, 9), *[1] * 5], strict=True))
    bad = good | {"ask_px_5": 8, "bid_sz_2": 0, "prev_update_id": 6}
    rows = pl.DataFrame([good, good | {"prev_update_id": 7}, good | {"prev_update_id": None}, bad])
    rows = rows.cast({"time": BOOK_SNAPSHOT.schema["time"]})
    checked = Checks(BOOK_SNAPSHOT).check(rows, found_us=FOUND_US, numbered=True, at_rest=True)
    assert failed(checked) == [(3, "unsorted_levels"), (3, "nonpositive_size"), (3, "book_seq_gap")]


@pytest.mark.parametrize(
    ("best", "wanted"),
    [
        ((100.0, 1.0, 100.1, 1.0), []),
        ((100.2, 1.0, 100.1, 1.0), ["crossed"]),
        ((100.1, 1.0, 100.1, 1.0), ["locked"]),
        ((100.0, 0.0, 100.1, 1.0), ["nonpositive_size"]),
        ((100.0, 1.0, 100.1, -1.0), ["nonpositive_size"]),
        ((90.0, 1.0, 100.1, 1.0), ["wide_spread"]),
        ((None, None, 100.1, 1.0), []),
    ],
)
def test_the_best_bid_and_ask_by_hand(best: tuple[float, float, float, float], wanted: list[str]) -> None:
    rows = [ticker(100.0, 1.0, 100.1, 1.0), ticker(*best)]
    assert failed(check(BOOK_TICKER, *rows)) == [(1, name) for name in wanted]


def test_what_is_seen_of_a_book_is_told() -> None:
    rows = [ticker(101.0, 1.0, 100.0, -2.0), ticker(99.0, 1.0, 101.0, 1.0), ticker(100.0, 1.0, 100.0, 1.0)]
    found = check(BOOK_TICKER, *rows).findings
    assert found.select("check", "first_id", "observed", "threshold").rows() == [
        ("crossed", 7, 1.0, 0.0),
        ("nonpositive_size", 7, -2.0, 0.0),
        ("wide_spread", 7, 0.02, 0.01),
        ("locked", 7, 100.0, None),
    ]


def test_every_stream_is_checked_for_its_clocks() -> None:
    late = {"received_time": at(20_000)}
    mark = frame(MARK_PRICE, [agg_trade(1, **late), agg_trade(1, source="rest", **late)])
    found = Checks(MARK_PRICE).check(mark, found_us=FOUND_US, numbered=True).findings
    assert found.select("row", "check", "first_id").rows() == [(0, "late_receive", None)]
    assert failed(check(BOOK_TICKER, ticker(1.0, 1.0, 1.001, 1.0, **late))) == [(0, "late_receive")]
    assert failed(check(DEPTH, diff(1, 2, 0, **late), snapshot(**late))) == [(0, "late_receive")]
