"""Live bars: whatever the order in which trades come, what is told at last is what all trades make at once."""

import itertools
import math
import random
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_lake.features.bars import all_bars, filled, trades_of
from crypto_lake.features.live_bars import DAY_US, STRETCHES, Dropped, Ids, LiveBar, LiveBars, Older
from crypto_lake.models.bar import TIMEFRAMES_US

SECOND, MINUTE = 1_000_000, 60_000_000
NOON = 1_790_164_800 * SECOND
LATENESS = 5 * SECOND
PRICES = ("open", "high", "low", "close")
SUMS = ("volume", "quote_volume", "count", "taker_buy_volume", "taker_buy_quote_volume")
FEW = settings(max_examples=40, deadline=None)


class Tick(NamedTuple):
    trade_id: int
    time_us: int
    price: float = 1.5
    quantity: str = "2"
    trades: int = 1
    is_buyer_maker: bool = False


def at(trade_id: int, second: float, **rest: Any) -> Tick:
    """A trade so many seconds past noon."""
    return Tick(trade_id, NOON + int(second * SECOND), **rest)


def widths(*names: str) -> dict[str, int]:
    return {name: TIMEFRAMES_US[name] for name in names}


def put(bars: LiveBars, ticks: Iterable[Tick]) -> list[Any]:
    return [news for tick in ticks for news in bars.add(*tick._replace(quantity=Decimal(tick.quantity)))]  # type: ignore[arg-type]


def told(*ticks: Tick, timeframes: Sequence[str] = ("1m",), **rest: Any) -> list[Any]:
    return put(LiveBars(widths(*timeframes), **rest), ticks)


def summary(news: Iterable[Any]) -> list[tuple[str, int, float, int, int]]:
    """Timeframe, seconds past noon, close, count and revision of the bars told."""
    return [
        (bar.timeframe, (bar.time_us - NOON) // SECOND, bar.close, bar.count, bar.revision)
        for bar in news
        if isinstance(bar, LiveBar)
    ]


# The text, as plainly as it can be said (ANALYTICS 1)


def minute_bars(ticks: Iterable[Tick], width: int = MINUTE) -> dict[int, dict[str, Any]]:
    ordered = sorted({tick.trade_id: tick for tick in ticks}.values())
    found: dict[int, dict[str, Any]] = {}
    for start, group in itertools.groupby(
        sorted(ordered, key=lambda t: t.time_us // width), lambda t: t.time_us // width
    ):
        inside = list(group)  # by id: sorting is stable
        bought = [tick for tick in inside if not tick.is_buyer_maker]
        prices = [tick.price for tick in inside]
        found[start * width] = {
            "open": prices[0],
            "high": max(prices),
            "low": min(prices),
            "close": prices[-1],
            "volume": sum(Decimal(tick.quantity) for tick in inside),
            "quote_volume": math.fsum(tick.price * float(tick.quantity) for tick in inside),
            "count": sum(tick.trades for tick in inside),
            "taker_buy_volume": sum(Decimal(tick.quantity) for tick in bought),
            "taker_buy_quote_volume": math.fsum(tick.price * float(tick.quantity) for tick in bought),
        }
    return found


def rolled_up(minutes: dict[int, dict[str, Any]], width: int) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for start, group in itertools.groupby(sorted(minutes), lambda minute: minute // width * width):
        inside = [minutes[minute] for minute in group]
        found[start] = {
            "open": inside[0]["open"],
            "high": max(bar["high"] for bar in inside),
            "low": min(bar["low"] for bar in inside),
            "close": inside[-1]["close"],
            **{name: sum(bar[name] for bar in inside) for name in SUMS},
        }
    return found


def with_fillers(found: dict[int, dict[str, Any]], width: int) -> dict[int, dict[str, Any]]:
    rows: dict[int, dict[str, Any]] = {}
    for start in range(min(found), max(found) + width, width) if found else ():
        close = rows[start - width]["close"] if start not in found else 0.0
        rows[start] = found.get(start) or {**dict.fromkeys(PRICES, close), **dict.fromkeys(SUMS, 0)}
    return rows


def reference(ticks: Iterable[Tick], timeframe: str) -> dict[int, dict[str, Any]]:
    width = TIMEFRAMES_US[timeframe]
    if width <= MINUTE:
        return with_fillers(minute_bars(ticks, width), width)
    return with_fillers(rolled_up(minute_bars(ticks), width), width)


def closed_of(rows: dict[int, dict[str, Any]], width: int, watermark: int) -> dict[int, dict[str, Any]]:
    return {start: row for start, row in rows.items() if start + width + LATENESS <= watermark}


def without_late(ticks: Sequence[Tick]) -> tuple[list[Tick], list[int]]:
    """Those that the policy `drop` keeps, and the ids of the others."""
    kept: list[Tick] = []
    dropped, seen, watermark = [], set(), -math.inf
    for tick in ticks:
        if tick.trade_id not in seen:
            is_closed = tick.time_us // MINUTE * MINUTE + MINUTE + LATENESS <= watermark
            dropped += [tick.trade_id] if is_closed else []
            kept += [] if is_closed else [tick]
        seen.add(tick.trade_id)
        watermark = max(watermark, tick.time_us)
    return kept, dropped


def held(news: Iterable[Any], timeframe: str) -> dict[int, LiveBar]:
    """What is there at last: the newest word on each interval."""
    return {bar.time_us: bar for bar in news if isinstance(bar, LiveBar) and bar.timeframe == timeframe}


def assert_same(bars: dict[int, LiveBar], rows: dict[int, dict[str, Any]]) -> None:
    assert bars.keys() == rows.keys()
    for start, row in rows.items():
        for name, value in row.items():
            assert getattr(bars[start], name) == pytest.approx(float(value), rel=1e-9, abs=1e-12), (start, name)
        assert bars[start].volume == float(row["volume"])
        assert bars[start].is_final


@st.composite
def arrivals(draw: st.DrawFn) -> list[Tick]:
    """Trades of a quiet symbol, out of order by less and by much more than the lateness, some of them twice."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    time_us, ticks = NOON + rng.randrange(DAY_US), []
    step_s = draw(st.sampled_from([0.5, 5, 40, 400]))
    for trade_id in range(1, draw(st.integers(2, 120))):
        time_us += int(rng.expovariate(1 / step_s) * SECOND)
        price, quantity = rng.randrange(1, 2000) / 10, f"{rng.randrange(1, 10**6) / 1000:.3f}"
        ticks.append(Tick(trade_id, time_us, price, quantity, rng.randrange(1, 5), rng.random() < 0.5))
    ticks += rng.sample(ticks, len(ticks) // 10)
    delay_s = draw(st.sampled_from([0, 3, 30, 600]))
    share = draw(st.sampled_from([0.0, 0.1, 1.0]))
    delayed = [(t.time_us + (rng.random() < share) * rng.random() * delay_s * SECOND, t) for t in ticks]
    return [tick for _, tick in sorted(delayed, key=lambda each: each[0])]


ALL = ("1s", "1m", "5m", "15m", "1h", "4h", "1d")


@FEW
@given(arrivals())
def test_revised_bars_are_those_of_all_trades_at_once(ticks: list[Tick]) -> None:
    watermark = max(tick.time_us for tick in ticks)
    for timeframe in ALL[1:]:
        news = told(*ticks, timeframes=(timeframe,))
        rows = reference(ticks, timeframe)
        assert_same(held(news, timeframe), closed_of(rows, TIMEFRAMES_US[timeframe], watermark))


@FEW
@given(arrivals())
def test_with_drop_they_are_those_of_the_other_trades_and_each_dropped_one_is_named(ticks: list[Tick]) -> None:
    watermark = max(tick.time_us for tick in ticks)
    news = told(*ticks, timeframes=("1m", "5m", "1h"), late="drop")
    kept, dropped = without_late(ticks)
    assert [each.trade_id for each in news if isinstance(each, Dropped)] == dropped
    for timeframe in ("1m", "5m", "1h"):
        rows = closed_of(reference(kept, timeframe), TIMEFRAMES_US[timeframe], watermark)
        assert_same(held(news, timeframe), rows)


@FEW
@given(arrivals(), st.sampled_from(["revise", "drop"]))
def test_bars_of_seconds_are_closed_by_themselves_and_dropped_from_by_their_minute(
    ticks: list[Tick], late: str
) -> None:
    first = min(tick.time_us for tick in ticks)
    ticks = [tick for tick in ticks if tick.time_us < first + 300 * SECOND]
    news = told(*ticks, timeframes=("1s",), late=late)
    kept = ticks if late == "revise" else without_late(ticks)[0]
    rows = closed_of(reference(kept, "1s"), SECOND, max(tick.time_us for tick in ticks))
    assert_same(held(news, "1s"), rows)


@FEW
@given(arrivals(), st.integers(0, 2**32))
def test_the_order_of_arrival_changes_nothing_but_revisions(ticks: list[Tick], seed: int) -> None:
    # The last one of all closes what is closed in either order.
    last = max(ticks, key=lambda tick: tick.time_us)
    others = [tick for tick in ticks if tick.trade_id != last.trade_id]
    shuffled = random.Random(seed).sample(others, len(others))
    a, b = (held(told(*order, last, timeframes=("5m",)), "5m") for order in (others, shuffled))
    rows = closed_of(reference(ticks, "5m"), TIMEFRAMES_US["5m"], last.time_us)
    assert_same(a, rows)
    assert_same(b, rows)


@FEW
@given(arrivals(), st.integers(0, 100))
def test_after_a_restart_whole_bars_are_the_same_and_others_are_not_told(ticks: list[Tick], percent: int) -> None:
    again = LiveBars(widths("1m", "15m"), is_cut=True)
    behind = ticks[len(ticks) * percent // 100 :]
    news = put(again, behind)
    for timeframe in ("1m", "15m"):
        width, rows = TIMEFRAMES_US[timeframe], reference(ticks, timeframe)
        said = held(news, timeframe)
        whole_us = behind[0].time_us + LATENESS if behind else 0
        known = [start for start in said if start >= whole_us]
        assert known == list(said)
        late = [t.time_us for t in ticks[: len(ticks) - len(behind)] if t.time_us >= whole_us]
        if not late:  # otherwise the cut lost what no lateness foresees
            watermark = max((t.time_us for t in behind), default=0)
            expected = closed_of(rows, width, watermark)
            assert_same(said, {start: row for start, row in expected.items() if start >= whole_us})


@FEW
@given(arrivals())
def test_they_are_the_bars_of_the_batch_builder(ticks: list[Tick]) -> None:
    rows = pl.DataFrame(
        {
            "trade_id": [tick.trade_id for tick in ticks],
            "time": pl.Series([tick.time_us for tick in ticks]).cast(pl.Datetime("us", "UTC")),
            "price": [tick.price for tick in ticks],
            "quantity": [float(tick.quantity) for tick in ticks],
            "is_buyer_maker": [tick.is_buyer_maker for tick in ticks],
        }
    )
    made = all_bars(trades_of(rows), ["1m", "1h"])
    news = told(*(tick._replace(trades=1) for tick in ticks), timeframes=("1m", "1h"))
    for timeframe, found in made.items():
        width = TIMEFRAMES_US[timeframe]
        whole = filled(found, width).with_columns(pl.col("time").to_physical())
        batch = {row.pop("time"): row for row in whole.iter_rows(named=True)}
        assert_same(held(news, timeframe), closed_of(batch, width, max(t.time_us for t in ticks)))


# Rule by rule


def test_a_bar_is_closed_by_the_first_trade_whose_time_is_late_enough() -> None:
    assert told(at(1, 10), at(2, 64.999)) == []
    assert summary(told(at(1, 10), at(2, 65))) == [("1m", 0, 1.5, 1, 0)]


def test_the_trade_that_closes_an_interval_may_be_late_only_for_those_that_were_closed_before_it() -> None:
    # The watermark is what came before the record at hand: the second trade closes the minute, the third is late.
    news = told(at(1, 10), at(2, 65), at(3, 59), late="drop")
    assert [type(each) for each in news] == [LiveBar, Dropped]
    news = told(at(1, 10), at(2, 64.999), at(3, 59), at(4, 65), late="drop")
    assert summary(news) == [("1m", 0, 1.5, 2, 0)]


def test_a_trade_at_midnight_belongs_to_the_new_bar() -> None:
    assert summary(told(at(1, 59.999999), at(2, 60), at(3, 125)))[0][3] == 1


def test_inside_a_bar_ids_give_the_order() -> None:
    (bar,) = told(at(3, 1, price=3.0), at(1, 2, price=1.0), at(2, 3, price=2.0), at(9, 65))
    assert (bar.open, bar.close, bar.high, bar.low) == (1.0, 3.0, 3.0, 1.0)


def test_longer_bars_open_with_their_first_minute_whatever_the_ids() -> None:
    news = told(at(5, 1, price=5.0), at(1, 61, price=1.0), at(9, 310), timeframes=("5m",))
    assert (news[0].open, news[0].close) == (5.0, 1.0)


def test_the_sides_and_the_number_of_trades_are_counted() -> None:
    (bar,) = told(
        at(1, 1, price=2.0, quantity="0.1", trades=3),
        at(2, 2, price=4.0, quantity="0.2", is_buyer_maker=True),
        at(3, 65),
    )
    assert (bar.volume, bar.count, bar.taker_buy_volume, bar.taker_buy_quote_volume) == (0.3, 4, 0.1, 0.2)
    assert bar.quote_volume == pytest.approx(1.0)


def test_what_cannot_be_a_trade_is_in_no_bar_and_moves_no_watermark() -> None:
    wrong = [{"price": 0.0}, {"price": math.nan}, {"price": math.inf}, {"quantity": "0"}, {"quantity": "-1"},
             {"quantity": "NaN"}, {"trades": 0}]  # fmt: skip
    ticks = [at(2 + nth, 600, **each) for nth, each in enumerate(wrong)]
    assert told(at(1, 1), *ticks) == []


def test_fillers_repeat_the_close_once_their_interval_is_closed() -> None:
    news = told(at(1, 10), at(2, 185))
    assert summary(news) == [("1m", 0, 1.5, 1, 0), ("1m", 60, 1.5, 0, 0), ("1m", 120, 1.5, 0, 0)]
    assert {news[1].open, news[1].high, news[1].low} == {1.5}
    assert news[1].volume == news[1].quote_volume == 0


def test_a_late_trade_revises_its_bar_the_fillers_behind_it_and_all_longer_bars() -> None:
    bars = LiveBars(widths("1m", "5m", "1h"))
    put(bars, [at(1, 10), at(5, 200), at(6, 400)])
    news = put(bars, [at(2, 30, price=7.0)])
    assert summary(news) == [("1m", 0, 7.0, 2, 1), ("1m", 60, 7.0, 0, 1), ("1m", 120, 7.0, 0, 1), ("5m", 0, 1.5, 3, 1)]
    assert summary(put(bars, [at(3, 70, price=8.0)])) == [
        ("1m", 60, 8.0, 1, 2),
        ("1m", 120, 8.0, 0, 2),
        ("5m", 0, 1.5, 4, 2),
    ]


def test_a_late_trade_that_leaves_the_close_leaves_the_fillers() -> None:
    bars = LiveBars(widths("1m"))
    put(bars, [at(2, 10), at(5, 200)])
    assert summary(put(bars, [at(1, 30, price=7.0)])) == [("1m", 0, 1.5, 2, 1)]


def test_a_late_trade_before_the_first_one_begins_the_rows() -> None:
    bars = LiveBars(widths("1m"))
    put(bars, [at(5, 200), at(6, 400)])
    assert summary(put(bars, [at(1, 70, price=7.0)])) == [("1m", 60, 7.0, 1, 0), ("1m", 120, 7.0, 0, 0)]


def test_an_id_counts_once_also_when_it_was_dropped() -> None:
    assert summary(told(at(1, 10), at(1, 10), at(2, 65), at(1, 10))) == [("1m", 0, 1.5, 1, 0)]
    news = told(at(1, 10), at(3, 65), at(2, 10), at(2, 10), late="drop")
    assert [each.trade_id for each in news if isinstance(each, Dropped)] == [2]


def test_what_is_under_way_is_shown_and_not_final() -> None:
    bars = LiveBars(widths("1m", "5m"))
    put(bars, [at(1, 10), at(2, 62, price=3.0)])
    shown = bars.under_way("1m")
    assert summary(shown) == [("1m", 0, 1.5, 1, 0), ("1m", 60, 3.0, 1, 0)]
    assert not any(bar.is_final for bar in shown)
    assert summary(bars.under_way("5m")) == [("5m", 0, 3.0, 2, 0)]
    assert summary(bars.under_way("1m", 1)) == [("1m", 60, 3.0, 1, 0)]


def test_bars_that_are_too_old_to_be_kept_are_left_to_the_table() -> None:
    bars = LiveBars(widths("1m"), keep_us=3600 * SECOND)
    put(bars, [Tick(nth, NOON + nth * 60 * SECOND) for nth in range(1, 200)])
    assert put(bars, [at(500, 60)]) == [Older("1m", NOON + 60 * SECOND)]
    assert summary(put(bars, [at(501, 190 * 60)])) == [("1m", 190 * 60, 1.5, 2, 1)]
    (series,) = bars._series.values()
    assert len(series._bars) == len(series._opens) <= 62


def test_the_last_trade_of_what_is_not_kept_still_decides_what_fillers_repeat() -> None:
    bars = LiveBars(widths("1m"), keep_us=120 * SECOND)
    put(bars, [at(1, 10), at(9, 600)])
    news = put(bars, [at(2, 70, price=9.0)])
    assert isinstance(news[-1], Older)
    assert {bar[2] for bar in summary(news)} == {9.0}
    assert {bar[4] for bar in summary(news)} == {1}


def test_a_pause_of_the_venue_for_a_year_is_not_told_minute_by_minute() -> None:
    news = told(at(1, 10), at(2, 365 * 86400), timeframes=("1s", "1m"))
    assert len(news) < 1100
    assert summary(news)[0] == ("1s", 10, 1.5, 1, 0)


@FEW
@given(st.lists(st.integers(0, 60)))
def test_ids_come_once(ids: list[int]) -> None:
    known, seen = Ids(), set()
    for each in ids:
        assert known.add(each) == (each not in seen)
        seen.add(each)


def test_the_memory_of_ids_has_a_limit() -> None:
    ids = Ids()
    assert all(ids.add(2 * nth) for nth in range(3 * STRETCHES))
    assert len(ids._firsts) == len(ids._lasts) == STRETCHES
    assert not ids.add(6 * STRETCHES - 2)
    assert ids.add(6 * STRETCHES)
