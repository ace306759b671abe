"""Bars beside a recorder: those that are closed, each at its time, and revised by what comes late."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from crypto_lake.build.bar_rows import MIXED, Rules, made_by, rules_app
from crypto_lake.build.flow import Built
from crypto_lake.build.fresh_bars import refresh
from crypto_lake.build.select import Market as Of
from crypto_lake.features.bars import all_bars, filled, roll_up, trades_of
from crypto_lake.models import AGG_TRADE, BAR
from crypto_lake.models.bar import TIMEFRAMES_US
from crypto_lake.writers.derived import Derived
from tests.build.tape import DAY_S, FIRST, FUTURES, Fill, Market, agg_trades, busy, dropped, straggling


@pytest.fixture
def market(tmp_path: Path) -> Market:
    return Market(tmp_path / "tables")


def closed(fills: Sequence[Fill], lateness_s: float = 5) -> dict[str, pl.DataFrame]:
    """The bars whose intervals are closed when all of these have come."""
    wanted = all_bars(trades_of(agg_trades(fills)), ["1m", "5m", "1h", "1d"])
    until = FIRST + timedelta(seconds=(max(fill.at_s for fill in fills) - lateness_s) // 60 * 60)
    minutes = filled(wanted["1m"], TIMEFRAMES_US["1m"]).filter(pl.col("time") < until)
    rolled = {name: roll_up(minutes, TIMEFRAMES_US[name]) for name in ("5m", "1h", "1d")}
    return {"1m": minutes} | {
        name: some.filter(pl.col("time") + pl.duration(microseconds=TIMEFRAMES_US[name]) <= until)
        for name, some in rolled.items()
    }


def follow(market: Market, fills: Sequence[Fill], every: int, **rules: Any) -> list[Built]:
    """Commits of a recorder, with a look at the bars after each."""
    done = []
    for start in range(0, len(fills), every):
        market.put(fills[start : start + every])
        done.append(refresh(market.lake, AGG_TRADE, timeframes=("1m", "5m", "1h", "1d"), **rules))
    return done


def test_closed_bars_follow_the_commits_of_a_recorder(market: Market) -> None:
    eth = busy(1, 84_000, 40, step_s=400, symbol="ETHUSDT")
    btc = busy(1, 84_000, 700, step_s=20)
    fills = sorted([*btc, *eth], key=lambda fill: fill.at_s)
    follow(market, fills, 20)
    for symbol, some in (("BTCUSDT", btc), ("ETHUSDT", eth)):
        for name, wanted in closed(some).items():
            assert_frame_equal(market.values(name, symbol), wanted, check_exact=True)
    # Nothing was written before its time, so nothing had to be revised.
    assert market.lake.rows(BAR)["revision"].unique().to_list() == [0]
    market.build(timeframes="1m,5m,1h,1d")
    market.assert_bars(timeframes=["1m", "5m", "1h", "1d"])


def assert_closed(market: Market, symbol: str) -> None:
    for name, wanted in closed([fill for fill in market.fills if fill.symbol == symbol]).items():
        assert_frame_equal(market.values(name, symbol), wanted, check_exact=True)


def test_a_symbol_that_comes_later_has_its_bars_from_its_first_trade_on(market: Market) -> None:
    follow(market, [Fill(number, number * 5.0) for number in range(36)], 12)
    for minute in range(3, 30):
        seldom = [Fill(minute, minute * 60 + 30.0, symbol="NEWUSDT")] if minute in (4, 10, 11, 20) else []
        market.put([*(Fill(minute * 12 + at, minute * 60 + at * 5.0) for at in range(12)), *seldom])
        refresh(market.lake, AGG_TRADE, timeframes=("1m", "5m", "1h", "1d"))
    assert_closed(market, "NEWUSDT")
    assert_closed(market, "BTCUSDT")


def test_symbols_that_seldom_trade_have_all_their_bars(market: Market) -> None:
    steps_s = {"BTCUSDT": 80, "AUSDT": 3000, "BUSDT": 9000, "CUSDT": 15_000}
    fills = [
        fill
        for symbol, step_s in steps_s.items()
        for fill in busy(1, 50_000, 60_000 // step_s, step_s=step_s, symbol=symbol)
    ]
    follow(market, sorted(fills, key=lambda fill: fill.at_s), 25)
    for symbol in steps_s:
        assert_closed(market, symbol)


def test_a_last_trade_before_midnight_has_its_bar_when_the_symbol_trades_again(market: Market) -> None:
    market.put([Fill(1, DAY_S - 2, symbol="ETHUSDT"), Fill(1, DAY_S + 10)])
    follow(market, [Fill(2, DAY_S + 200), Fill(3, DAY_S + 310, 11.0, symbol="ETHUSDT")], 1)
    follow(market, [Fill(4, DAY_S + 400, symbol="ETHUSDT")], 1)
    assert_closed(market, "ETHUSDT")


def test_late_trades_revise_bars_that_are_there(market: Market) -> None:
    fills = busy(1, 70_000, 900, step_s=20)
    late = [fill for number, fill in enumerate(fills[50:400]) if number % 37 == 0]
    on_time = [fill for fill in fills if fill not in late]
    arriving = [*on_time[:500], *late[:4], *on_time[500:520], *late[4:], *on_time[520:]]
    follow(market, arriving, 25)
    for name, wanted in closed(fills).items():
        assert_frame_equal(market.values(name), wanted, check_exact=True)
    assert market.bars()["revision"].max() > 0


def test_late_trades_are_dropped_beside_a_recorder_too(market: Market) -> None:
    fills = sorted(
        (replace(fill, lag_s=fill.lag_s or 0.1) for fill in straggling(500, 20)),
        key=lambda fill: fill.at_s + (fill.lag_s or 0),
    )
    follow(market, fills, 25, late="drop")
    late = dropped(fills, 5)
    assert market.findings("late_dropped")["first_id"].sort().to_list() == sorted(late)
    for name, wanted in closed([fill for fill in fills if fill.id not in late]).items():
        assert_frame_equal(market.values(name), wanted, check_exact=True)


def test_nothing_is_committed_when_nothing_has_closed(market: Market) -> None:
    market.put([Fill(1, 1), Fill(2, 70)])
    refresh(market.lake, AGG_TRADE)
    version = market.version()
    market.put([Fill(3, 124.999)])
    assert refresh(market.lake, AGG_TRADE).computed == 0
    assert refresh(market.lake, AGG_TRADE).computed == 0
    assert market.version() == version
    market.put([Fill(4, 125)])
    assert refresh(market.lake, AGG_TRADE).added == 1
    assert market.bars("1m")["count"].to_list() == [2, 1]


def test_a_recorder_s_holes_are_in_its_bars(market: Market) -> None:
    follow(market, [Fill(1, 10), Fill(2, 150), Fill(3, 400)], 1)
    assert market.bars("1m")["complete"].all()
    market.gap(70, 100)
    market.put([Fill(4, 401)])
    refresh(market.lake, AGG_TRADE, timeframes=("1m", "5m", "1h", "1d"))
    assert market.bars("1m")["complete"].to_list() == [True, False, True, True, True, True]
    assert market.bars("5m")["complete"].to_list() == [False]
    assert market.findings("bar_in_gap").height == 1


def test_a_build_and_a_recorder_make_the_same_table_in_turns(market: Market) -> None:
    fills = busy(1, 60_000, 800, step_s=40)
    for start in range(0, 800, 100):
        follow(market, fills[start : start + 60], 20)
        market.put(fills[start + 60 : start + 100])
        market.build(timeframes="1m,5m,1h,1d")
        market.assert_bars(timeframes=["1m", "5m", "1h", "1d"])


def noted(market: Market) -> int:
    return Derived(market.lake, BAR).noted(rules_app(Of(FUTURES, "BTCUSDT")))


def test_a_build_makes_again_what_a_recorder_with_other_rules_has_made(market: Market) -> None:
    market.put([Fill(number, number * 600.0, lag_s=0.1) for number in range(1, 80)])
    market.put([Fill(100, 18_000, 99.0, lag_s=3000)])
    market.build(timeframes="1m,5m,1h,1d")
    refresh(market.lake, AGG_TRADE, timeframes=("1m",), late="drop")
    assert noted(market) == MIXED
    assert 99.0 not in market.bars("1m")["high"]
    market.build(timeframes="1m,5m,1h,1d")
    market.assert_bars(timeframes=["1m", "5m", "1h", "1d"])


def test_a_recorder_with_the_rules_of_the_build_leaves_its_note_alone(market: Market) -> None:
    fills = busy(1, 60_000, 100, step_s=40)
    market.put(fills[:50])
    market.build(timeframes="1m,5m,1h,1d")
    follow(market, fills[50:], 10)
    assert noted(market) == made_by("agg_trade", Rules())
    version = market.version()
    assert refresh(market.lake, AGG_TRADE, timeframes=("1m", "5m", "1h", "1d")).computed == 0
    assert market.version() == version


def test_without_trades_there_is_nothing_to_follow(market: Market) -> None:
    assert refresh(market.lake, AGG_TRADE).computed == 0
