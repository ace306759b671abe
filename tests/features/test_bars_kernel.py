"""Time bars by the letter of ANALYTICS 1, against a reference written from its text; the properties of section 8."""

import gzip
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from crypto_lake.features import bars as kernel
from crypto_lake.features.bars import PRICES, SCHEMA, Totals, Trades, all_bars, bars, filled, roll_up, trades_of
from crypto_lake.features.compiled import plain
from crypto_lake.models import AGG_TRADE
from crypto_lake.models.bar import TIMEFRAMES_US
from crypto_lake.models.dataset import TIME

MINUTE = 60_000_000
# Half a minute before midnight, so that trades lie on both sides of every edge.
START = 1_717_200_000_000_000 + 86_400_000_000 - MINUTE // 2
LONGER = ["5m", "15m", "1h", "4h", "1d"]
# For each of our widths those that divide it.
CHAINS = [(short, long) for at, long in enumerate(LONGER) for short in LONGER[:at]]
few = settings(max_examples=40, deadline=None)


@dataclass(frozen=True)
class Fill:
    """An aggregated trade; `time` in µs."""

    id: int
    time: int
    price: float | None
    quantity: float | None
    count: int = 1
    is_buyer_maker: bool | None = False


def rows_of(fills: Sequence[Fill]) -> pl.DataFrame:
    """As the table has them."""
    columns = {
        "agg_trade_id": [fill.id for fill in fills],
        "time": [fill.time for fill in fills],
        "price": [fill.price for fill in fills],
        "quantity": [fill.quantity for fill in fills],
        "first_trade_id": [fill.id * 100 for fill in fills],
        "last_trade_id": [fill.id * 100 + fill.count - 1 for fill in fills],
        "is_buyer_maker": [fill.is_buyer_maker for fill in fills],
    }
    schema = {name: pl.Int64 if name == "time" else AGG_TRADE.schema[name] for name in columns}
    return pl.DataFrame(columns, schema=schema).with_columns(pl.col("time").cast(TIME))


def made(fills: Sequence[Fill], width: int = MINUTE) -> pl.DataFrame:
    return bars(trades_of(rows_of(fills)), width)


# The reference: ANALYTICS 1.1 and 1.2 in plain words, sums of decimals without an error


def exact(value: float | None) -> Fraction:
    assert value is not None
    return Fraction(repr(value))


def reference(fills: Sequence[Fill], width: int) -> list[tuple[Any, ...]]:
    once = {fill.id: fill for fill in reversed(fills) if fill.price and fill.quantity}
    valid = [fill for fill in once.values() if fill.price > 0 and fill.quantity > 0]  # type: ignore[operator]
    groups: dict[int, list[Fill]] = {}
    for fill in sorted(valid, key=lambda fill: fill.id):
        groups.setdefault(fill.time // width * width, []).append(fill)
    return [(start, *reference_bar(groups[start])) for start in sorted(groups)]


def reference_bar(fills: Sequence[Fill]) -> tuple[Any, ...]:
    prices = [fill.price for fill in fills]
    buys = [fill for fill in fills if fill.is_buyer_maker is False]
    is_known = all(fill.is_buyer_maker is not None for fill in fills)
    volume, quote = sum_up(fills)
    taker, taker_quote = sum_up(buys) if is_known else (None, None)
    return (
        prices[0], max(prices), min(prices), prices[-1], volume, quote, sum(fill.count for fill in fills),  # type: ignore[type-var]
        taker, taker_quote,
    )  # fmt: skip


def sum_up(fills: Sequence[Fill]) -> tuple[float, float]:
    volume = sum((exact(fill.quantity) for fill in fills), Fraction(0))
    quote = sum((exact(fill.quantity) * exact(fill.price) for fill in fills), Fraction(0))
    return float(volume), float(quote)


def as_frame(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    schema = {name: pl.Int64 if name == "time" else dtype for name, dtype in SCHEMA.items()}
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(pl.col("time").cast(TIME))


def assert_bars(found: pl.DataFrame, wanted: pl.DataFrame) -> None:
    """Volumes to the last bit, quote volumes within the tolerance of ANALYTICS 0.3."""
    quotes = ["quote_volume", "taker_buy_quote_volume"]
    assert_frame_equal(found.drop(quotes), wanted.drop(quotes), check_exact=True)
    assert_frame_equal(found.select(quotes), wanted.select(quotes), rel_tol=1e-9, abs_tol=1e-12)


# Markets


amounts = st.integers(1, 10**9).flatmap(lambda units: st.sampled_from([1e-8, 1e-3, 1.0]).map(lambda d: units * d))
prices = st.integers(1, 2000).map(lambda cents: cents / 100)


@st.composite
def markets(draw: st.DrawFn, *, most: int = 60, sides: Sequence[bool | None] = (True, False)) -> list[Fill]:
    """Trades by ascending id whose times step from microseconds to hours, and go back by milliseconds now and then."""
    decimals = draw(st.sampled_from([0, 3, 8]))
    steps = st.sampled_from([0, 1, 999_999, MINUTE // 2, MINUTE - 1, MINUTE, 5 * MINUTE, 250 * MINUTE, -3000, -40_000])
    fills, at = [], START
    for number in range(draw(st.integers(0, most))):
        at += draw(steps)
        quantity = draw(st.integers(1, 10**7)) / 10**decimals
        fills.append(
            Fill(1000 + number, at, draw(prices), quantity, draw(st.integers(1, 4)), draw(st.sampled_from(sides)))
        )
    return fills


@few
@given(markets(sides=(True, False, None)), st.sampled_from([1_000_000, MINUTE, *map(TIMEFRAMES_US.get, LONGER)]))
def test_bars_are_those_of_the_definition(fills: list[Fill], width: int) -> None:
    assert_bars(made(fills, width), as_frame(reference(fills, width)))


def test_a_trade_at_midnight_is_in_the_new_bar_and_one_a_microsecond_earlier_in_the_old() -> None:
    midnight = START + MINUTE // 2
    found = made([Fill(1, midnight - 1, 5.0, 1.0), Fill(2, midnight, 6.0, 2.0)])
    assert found["close"].to_list() == [5.0, 6.0]
    assert found["time"].to_physical().to_list() == [midnight - MINUTE, midnight]


def test_ids_give_the_order_inside_a_bar_whatever_the_times_say() -> None:
    found = made([Fill(1, START + 9, 5.0, 1.0), Fill(2, START + 3, 7.0, 1.0), Fill(3, START + 5, 6.0, 1.0)])
    assert found.select("open", "close").row(0) == (5.0, 6.0)


def test_what_is_no_trade_does_not_enter_a_bar() -> None:
    fills = [Fill(1, START, 5.0, 1.0), Fill(9, START, 5.0, 1.0)]
    wrong = [None, 0.0, -1.0, math.nan, math.inf]
    no_trades = [Fill(2 + at, START, price, 1.0) for at, price in enumerate(wrong)]
    no_trades += [Fill(20 + at, START, 9.0, quantity) for at, quantity in enumerate(wrong)]
    assert_frame_equal(made([*fills, *no_trades]), made(fills))


def test_volumes_are_the_decimals_that_the_venue_would_write() -> None:
    tenths = [Fill(at, START + at, 1.0, 0.1) for at in range(10)]
    assert made(tenths)["volume"].item() == 1.0 != sum([0.1] * 10)
    fills = [Fill(at, START + at, 1.0, 12345.00000001) for at in range(1000)]
    assert made(fills)["volume"].item() == 12345000.00001


def test_volumes_that_are_no_decimals_keep_their_last_digits() -> None:
    fills = [Fill(at, START + at, 1.0, 1e-9 / 3) for at in range(1, 1000)]
    assert made(fills)["volume"].item() == pytest.approx(999e-9 / 3, rel=1e-15)
    large = [Fill(at, START + at, 1.0, 1e17 + 64 * at) for at in range(1, 4)]
    assert made(large)["volume"].item() == 3e17 + 64 * 6


def test_taker_columns_are_null_where_a_side_is_not_known_and_nowhere_else() -> None:
    found = made([Fill(1, START, 5.0, 1.0), Fill(2, START, 5.0, 2.0, 1, None), Fill(3, START + MINUTE, 5.0, 4.0)])
    assert found["taker_buy_volume"].to_list() == [None, 4.0]
    assert found["volume"].to_list() == [3.0, 4.0]
    assert roll_up(found, TIMEFRAMES_US["1d"])["taker_buy_quote_volume"].to_list() == [None, 20.0]


def test_rows_of_trade_count_one_each() -> None:
    rows = rows_of([Fill(2, START, 5.0, 1.0, 7), Fill(1, START, 6.0, 1.0, 7)]).rename({"agg_trade_id": "trade_id"})
    found = bars(trades_of(rows.drop("first_trade_id", "last_trade_id")), MINUTE)
    assert found.select("count", "open").row(0) == (2, 6.0)


def test_trades_years_apart_need_no_place_for_every_second_between() -> None:
    fills = [Fill(at, START + at * 400_000 * MINUTE, 5.0, 1.0) for at in range(50)]
    assert_bars(made(fills, 1_000_000), as_frame(reference(fills, 1_000_000)))


# Section 8


@few
@given(markets(), st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter_nor_what_comes_twice(fills: list[Fill], order: random.Random) -> None:
    shuffled = [*fills, *fills[: len(fills) // 2]]
    order.shuffle(shuffled)
    assert_frame_equal(made(shuffled), made(fills), check_exact=True)


@few
@given(markets(), st.data())
def test_a_prefix_gives_the_same_bars_but_for_those_that_are_not_over(fills: list[Fill], draw: st.DataObject) -> None:
    length = draw.draw(st.integers(0, len(fills)))
    head, rest = fills[:length], fills[length:]
    first_later = min((fill.time // MINUTE * MINUTE for fill in rest), default=math.inf)
    before = made(head).filter(pl.col("time").to_physical() < first_later)
    whole = made(fills).filter(pl.col("time").to_physical() < first_later)
    assert_frame_equal(before, whole, check_exact=True)


@few
@given(markets(), st.integers(0, 60))
def test_poisoned_trades_change_no_bar_that_was_over_before(fills: list[Fill], minutes: int) -> None:
    since = START + minutes * 7 * MINUTE
    poisoned = [
        replace(fill, price=fill.price * 3, quantity=fill.quantity * 3) if fill.time >= since else fill  # type: ignore[operator]
        for fill in fills
    ]
    is_over = pl.col("time").to_physical() + MINUTE <= since
    assert_frame_equal(made(poisoned).filter(is_over), made(fills).filter(is_over), check_exact=True)


@few
@given(markets(), st.data())
def test_bars_of_a_stretch_are_those_of_the_whole(fills: list[Fill], draw: st.DataObject) -> None:
    """A build reads the trades from a minute on: what lies between them in the order of ids does not matter."""
    since = START // MINUTE * MINUTE + draw.draw(st.integers(0, 40)) * MINUTE
    later = made([fill for fill in fills if fill.time >= since])
    assert_frame_equal(later, made(fills).filter(pl.col("time").to_physical() >= since), check_exact=True)


def by_minute(fills: list[Fill]) -> list[Fill]:
    """The same trades with ids that do not go back over the edge of a minute. Where they do, a longer bar made from
    trades would close with another one than its last 1m bar does; longer bars are made from 1m bars (1.3)."""
    ordered = sorted(fills, key=lambda fill: (fill.time // MINUTE, fill.id))
    return [replace(fill, id=number) for number, fill in enumerate(ordered)]


@few
@given(markets())
def test_longer_bars_are_those_made_from_trades_by_whatever_way_they_come(fills: list[Fill]) -> None:
    direct = {name: made(by_minute(fills), TIMEFRAMES_US[name]) for name in LONGER}
    at_once = all_bars(trades_of(rows_of(fills)), ["1m", *LONGER])
    minutes = filled(at_once["1m"], MINUTE)
    for name in LONGER:
        width = TIMEFRAMES_US[name]
        assert_bars(at_once[name], direct[name])
        assert_bars(roll_up(minutes, width).filter(pl.col("count") > 0), direct[name])
        assert_frame_equal(roll_up(minutes, width), filled(roll_up(minutes, width), width))
    for short, long in CHAINS:
        assert_bars(roll_up(direct[short], TIMEFRAMES_US[long]), direct[long])


@few
@given(markets())
def test_prices_twice_as_high_are_the_same_bars_at_twice_the_price(fills: list[Fill]) -> None:
    doubled = made([replace(fill, price=fill.price * 2) for fill in fills])  # type: ignore[operator]
    twice = [*PRICES, "quote_volume", "taker_buy_quote_volume"]
    assert_frame_equal(doubled, made(fills).with_columns(pl.col(twice) * 2), check_exact=True)


# Fillers


def test_between_bars_every_interval_has_a_row_that_repeats_the_close() -> None:
    found = filled(made([Fill(1, START, 5.0, 1.0), Fill(2, START + 3 * MINUTE, 7.0, 1.0)]), MINUTE)
    assert found["close"].to_list() == [5.0, 5.0, 5.0, 7.0]
    assert found["count"].to_list() == [1, 0, 0, 1]
    filler = found.row(1, named=True)
    assert {filler[name] for name in PRICES} == {5.0}
    assert {filler[name] for name in SCHEMA if name.endswith("volume")} == {0.0}
    assert found.schema == pl.Schema(SCHEMA)


def test_a_close_from_before_fills_up_to_the_first_bar_and_a_limit_behind_the_last() -> None:
    first = START // MINUTE * MINUTE
    one = made([Fill(1, START + 2 * MINUTE, 7.0, 1.0)])
    found = filled(one, MINUTE, before=4.0, first=first, until=first + 5 * MINUTE)
    assert found["close"].to_list() == [4.0, 4.0, 7.0, 7.0, 7.0]
    assert filled(one, MINUTE).equals(one)
    assert filled(one, MINUTE, first=first).equals(one)
    empty = filled(made([]), MINUTE, before=4.0, first=first, until=first + 2 * MINUTE)
    assert empty["open"].to_list() == [4.0, 4.0]
    assert filled(made([]), MINUTE).is_empty()


def test_a_filler_at_the_start_of_a_window_does_not_say_its_price() -> None:
    first = TIMEFRAMES_US["5m"] * (START // TIMEFRAMES_US["5m"] + 1)
    fills = [Fill(1, first - 1, 100.0, 1.0), Fill(2, first + 3 * MINUTE, 7.0, 1.0)]
    longer = roll_up(filled(made(fills), MINUTE), TIMEFRAMES_US["5m"])
    assert longer.row(1, named=True)["high"] == longer.row(1, named=True)["open"] == 7.0


def test_a_window_of_fillers_is_a_filler() -> None:
    first = START // MINUTE * MINUTE
    fillers = filled(made([]), MINUTE, before=4.0, first=first, until=first + 3 * MINUTE)
    assert roll_up(fillers, TIMEFRAMES_US["1d"]).row(0)[1:] == (4.0, 4.0, 4.0, 4.0, 0.0, 0.0, 0, 0.0, 0.0)


def test_no_trades_are_no_bars() -> None:
    assert {name: found.height for name, found in all_bars(trades_of(rows_of([])), ["1s", "1d"]).items()} == {
        "1s": 0,
        "1d": 0,
    }
    assert made([]).schema == pl.Schema(SCHEMA)


# Compiled and plain


def ways() -> list[Callable[..., None]]:
    return [kernel._sum_up, plain(kernel._sum_up), kernel._sum_up_in_numpy]


def by_way(way: Callable[..., None], trades: Trades, width: int) -> pl.DataFrame:
    opens = kernel._opens(trades.time, width)
    totals = Totals.empty(len(opens))
    columns = (trades.time, trades.price, trades.quantity, trades.count, trades.is_buyer_maker)
    way(*columns, opens, width, totals.prices, totals.sums, totals.counts)
    return totals.frame(opens)


@few
@given(markets(most=200, sides=(True, False, None)).filter(len))
def test_machine_code_its_text_and_numpy_say_the_same(fills: list[Fill]) -> None:
    trades = trades_of(rows_of(fills))
    compiled, text, numpy = (by_way(way, trades, MINUTE) for way in ways())
    assert_frame_equal(compiled, text, check_exact=True)
    assert_bars(numpy, compiled)


@few
@given(markets().filter(len))
def test_longer_bars_by_machine_code_and_by_its_text_are_the_same(fills: list[Fill]) -> None:
    minutes = filled(made(fills), MINUTE)
    with pytest.MonkeyPatch.context() as patch:
        compiled = [roll_up(minutes, TIMEFRAMES_US[name]) for name in LONGER]
        patch.setattr(kernel, "_join", plain(kernel._join))
        for name, found in zip(LONGER, compiled, strict=True):
            assert_frame_equal(roll_up(minutes, TIMEFRAMES_US[name]), found, check_exact=True)


def test_without_numba_bars_are_made_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(5)
    fills = [
        Fill(at, START + at * 700_000, chance.randrange(1, 10**6) / 100, chance.randrange(1, 10**5) / 1000)
        for at in range(5000)
    ]
    compiled = made(fills)
    monkeypatch.setattr(kernel, "IS_COMPILED", False)
    assert_bars(made(fills), compiled)


# Real trades


def messages(path: Path, stream: str) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt") as lines:
        for line in lines:
            if f'@{stream}","data"' in line:
                yield json.loads(line[line.index("{") :])["data"]


def assert_real(fills: Sequence[Fill]) -> None:
    found = all_bars(trades_of(rows_of(fills)), ["1s", "1m", *LONGER])
    for name, made_here in found.items():
        assert_bars(made_here, as_frame(reference(fills, TIMEFRAMES_US[name])))


@pytest.mark.parametrize("name", ["usdm_btcusdt_20240718.gz", "spot_btcusdt_20240808.gz"])
def test_bars_of_recorded_trades_are_those_of_the_definition(name: str, data: Path) -> None:
    fills = [
        Fill(each["t"], each["T"] * 1000, float(each["p"]), float(each["q"]), 1, each["m"])
        for each in messages(data / "captures" / name, "trade")
        if each.get("X") != "NA"
    ]
    assert len(fills) > 500
    assert_real(fills)


def test_bars_of_recorded_aggregated_trades_are_those_of_the_definition(data: Path) -> None:
    found: dict[str, list[Fill]] = {}
    for each in messages(data / "captures" / "cryptofeed_usdm_20210722.ws.gz", "aggTrade"):
        fill = Fill(
            each["a"], each["T"] * 1000, float(each["p"]), float(each["q"]), each["l"] - each["f"] + 1, each["m"]
        )
        found.setdefault(each["s"], []).append(fill)
    assert len(found) > 2
    for fills in found.values():
        assert_real(fills)
