"""Bars in the table are those of all trades that it is made from, whatever came when."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from threading import Event

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from crypto_lake.build.bar_rows import Rules, late_of, lateness_us
from crypto_lake.build.bars import Wanted, build
from crypto_lake.build.farm import farm
from crypto_lake.config import ConfigError
from crypto_lake.models import BAR, TRADE
from crypto_lake.processors.shape import shape
from tests.build.tape import DAY_S, FIRST, FUTURES, USUAL, Fill, Market, busy, dropped, straggling


@pytest.fixture
def market(tmp_path: Path) -> Market:
    return Market(tmp_path / "tables")


# What is made


def test_bars_of_many_days_and_symbols_are_those_of_all_trades_at_once(market: Market) -> None:
    market.put(busy(1, 80_000, 1500))
    market.put([*busy(1, 3 * DAY_S, 300, symbol="ETHUSDT"), *busy(2000, 5.5 * DAY_S, 200)])
    done = market.build()
    market.assert_bars()
    assert done.series == 2
    assert done.added == done.computed == market.lake.rows(BAR).height
    assert market.bars()["revision"].unique().to_list() == [0]
    assert market.bars()["complete"].all()


def test_a_second_build_writes_nothing(market: Market) -> None:
    market.put(busy(1, 80_000, 300))
    market.build()
    version = market.version()
    done = market.build()
    assert (done.computed, done.added) == (0, 0)
    assert market.version() == version
    market.put(busy(5, 10, 3, symbol="ETHUSDT"))
    market.build(symbols="BTCUSDT", start="2024-03-04")
    market.assert_bars(market.fills[:300])


def test_the_days_of_a_symbol_are_made_by_several_processes_as_by_one(market: Market, tmp_path: Path) -> None:
    market.put(busy(1, 0, 2500))
    alone = Market(tmp_path / "alone")
    alone.put(market.fills)
    market.build(workers=2)
    alone.build()
    assert_frame_equal(market.bars(), alone.bars())


def test_new_trades_are_read_from_their_minute_on_and_the_bars_are_those_of_all(market: Market) -> None:
    fills = busy(1, 1000, 600, step_s=30)
    for start in range(0, 600, 100):
        market.put(fills[start : start + 100])
        market.build()
        market.assert_bars()


def test_a_new_day_gives_the_day_before_the_rest_of_its_fillers(market: Market) -> None:
    market.put([Fill(1, 36_000), Fill(2, DAY_S + 3600, 11.0)])
    market.build()
    market.put([Fill(3, 3 * DAY_S, 12.0)])
    market.build()
    market.assert_bars()


def test_one_late_trade_revises_its_bar_the_fillers_behind_it_and_the_longer_ones(market: Market) -> None:
    market.put([Fill(1, 10), Fill(2, 70, 11.0), Fill(9, 250, 12.0), Fill(10, DAY_S + 5, 13.0)])
    market.build()
    before = market.bars()
    market.put([Fill(3, 80, 11.5)])
    done = market.build()
    market.assert_bars()
    revised = market.bars().filter(pl.col("revision") > 0)
    minutes = revised.filter(pl.col("timeframe") == "1m")["time"]
    # The bar of minute 1, its fillers 2 and 3; the trade of minute 4 has said its own price before.
    assert [(each - FIRST).total_seconds() / 60 for each in minutes] == [1, 2, 3]
    assert set(revised["timeframe"]) == set(USUAL)
    assert set(revised["revision"]) == {1}
    assert done.added == done.revised == revised.height == 3 + 5
    assert market.bars().height == before.height


def test_a_late_trade_at_the_end_of_a_day_revises_fillers_up_to_the_next_trade_days_later(market: Market) -> None:
    market.put([Fill(1, 10), Fill(2, 3 * DAY_S + 600, 11.0), Fill(3, 5 * DAY_S, 12.0)])
    market.build()
    market.assert_bars()
    market.put([Fill(5, 30, 10.5)])
    market.build()
    market.assert_bars()
    revised = market.bars("1d").filter(pl.col("revision") > 0)["time"]
    # The fourth day begins with fillers, and so is what it was: they do not speak for it.
    assert [each.date() for each in revised] == [date(2024, 3, 4), date(2024, 3, 5), date(2024, 3, 6)]


def test_history_that_comes_later_is_joined_by_fillers(market: Market) -> None:
    live = busy(9000, 4 * DAY_S + 3000, 50)
    market.put(live)
    market.build()
    market.put(busy(1, 100, 50))
    market.build()
    market.assert_bars()
    market.put(busy(4000, 2 * DAY_S + 100, 50))
    market.build()
    market.assert_bars()


def test_a_span_is_made_alone_and_the_rest_later(market: Market) -> None:
    market.put(busy(1, 0, 4000))
    market.build(start="2024-03-05", end="2024-03-06", timeframes="1m")
    days = market.bars()["date"]
    assert (days.min(), days.max()) == (date(2024, 3, 5), date(2024, 3, 6))
    market.build(end="2024-03-04", timeframes="1m")
    market.build(timeframes="1m")
    market.assert_bars(timeframes=["1m"])


def test_a_day_that_is_made_again_alone_stays_joined_to_its_neighbours(market: Market) -> None:
    market.put([*busy(1, 0, 40), *busy(500, 2 * DAY_S, 40), *busy(900, 4 * DAY_S, 40)])
    # On the days between, others trade.
    market.put([Fill(day, day * DAY_S, symbol=symbol) for day in range(5) for symbol in ("AUSDT", "ZUSDT")])
    market.build()
    market.build(symbols="BTCUSDT", start="2024-03-06", end="2024-03-06", rules=Rules(lateness_us=1, late="drop"))
    market.assert_bars()


def test_a_span_that_is_made_alone_is_joined_across_a_day_on_which_only_others_trade(market: Market) -> None:
    others = [Fill(day, day * DAY_S + 10, symbol=symbol) for day in range(3) for symbol in ("AUSDT", "ZUSDT")]
    market.put([Fill(1, 10), *others[:2]])
    # Files of their own days: that of the second one may hold BTCUSDT by its first and its last symbol.
    market.put(others[2:4])
    market.put([*others[4:], Fill(3, 2 * DAY_S + 600, 12.0)])
    market.build(timeframes="1m")
    market.put([Fill(2, 30, 11.0)])
    market.build(timeframes="1m", start="2024-03-04", end="2024-03-04")
    market.assert_bars(timeframes=["1m"])


def test_longer_bars_bring_the_minutes_that_they_are_made_of(market: Market) -> None:
    market.put(busy(1, 0, 50))
    market.build(timeframes="1s,4h")
    market.assert_bars(timeframes=["1s", "1m", "4h"])


def test_without_fillers_there_are_only_bars_with_trades_and_they_can_be_had_later(market: Market) -> None:
    market.put([*busy(1, 0, 80), *busy(500, 3 * DAY_S, 80)])
    for fill in (False, True, False):
        market.build(rules=Rules(fill=fill))
        market.assert_bars(fill=fill)


def test_what_a_stopped_build_left_of_other_rules_is_made_again(market: Market) -> None:
    market.put(busy(1, 0, 1500, step_s=200))
    market.build()
    stop = Event()
    other = Wanted(rules=Rules(fill=False))
    with farm(None, 1) as (executor, at_once):
        done = build(market.root, other, executor, at_once, on_step=lambda *_: stop.set(), stop=stop)
    assert done.is_stopped
    assert done.removed
    market.build()
    market.assert_bars()


def test_trades_of_stocks_become_bars_without_a_taker(market: Market) -> None:
    rows = pl.DataFrame(
        {
            "venue": "us-stocks", "symbol": "AAPL", "source": "flatfile",
            "time": [FIRST + timedelta(hours=15, seconds=at) for at in (0, 5, 130)],
            "trade_id": [7, 8, 9], "price": [170.0, 171.0, 169.5], "quantity": [100.0, 5.0, 1.0],
        }
    )  # fmt: skip
    market.lake.check(TRADE)
    market.lake.add(TRADE, shape(TRADE, rows))
    market.build(source="trade", timeframes="1m")
    found = market.bars(symbol="AAPL")
    assert found["count"].to_list() == [2, 0, 1]
    assert found["quote_volume"].to_list() == [17855.0, 0.0, 169.5]
    assert found["taker_buy_volume"].to_list() == [None, 0.0, None]


# Late trades that are dropped


def test_late_trades_are_dropped_with_a_finding_each(market: Market) -> None:
    rules = Rules("drop")
    fills = straggling(600, 20)
    late = dropped(fills, 5)
    assert 20 < len(late) < 300
    for start in range(0, 600, 200):
        market.put(sorted(fills, key=lambda fill: fill.at_s + (fill.lag_s or 0))[start : start + 200])
        market.build(rules=rules)
    market.assert_bars([fill for fill in fills if fill.id not in late])
    found = market.findings("late_dropped")
    assert found["first_id"].sort().to_list() == found["last_id"].sort().to_list() == sorted(late)
    assert found.select("dataset", "severity", "venue", "symbol").unique().row(0) == ("bar", "warn", FUTURES, "BTCUSDT")
    version = market.version()
    market.build(rules=rules)
    assert market.version() == version
    assert market.findings("late_dropped").height == len(late)
    market.build()
    market.assert_bars(fills)


def test_what_is_late_depends_on_the_lateness_that_is_allowed(market: Market) -> None:
    fills = straggling(300, 20)
    market.put(fills)
    for lateness in (600.0, 5.0):
        market.build(rules=Rules("drop", int(lateness * 1e6)))
        late = dropped(fills, lateness)
        market.assert_bars([fill for fill in fills if fill.id not in late])


def test_a_trade_that_comes_when_the_next_day_has_begun_is_late_for_the_old_one(market: Market) -> None:
    market.put([
        Fill(1, DAY_S - 30, lag_s=0.1), Fill(2, DAY_S - 20, 11.0, lag_s=24.0), Fill(3, DAY_S + 4.9, lag_s=0.1),
        Fill(4, DAY_S - 10, 12.0, lag_s=40.0), Fill(5, DAY_S + 5, lag_s=0.1),
    ])  # fmt: skip
    market.build(rules=Rules("drop"))
    assert market.findings("late_dropped")["first_id"].to_list() == [4]
    assert market.bars("1m")["close"].to_list() == [11.0, 10.0]


def test_a_trade_becomes_late_when_earlier_messages_of_the_next_day_turn_up(market: Market) -> None:
    market.put([Fill(1, DAY_S - 30, lag_s=0.1), Fill(2, DAY_S - 10, 11.0, lag_s=190.0)])
    market.build(rules=Rules("drop"))
    assert market.bars("1m")["close"].to_list() == [11.0]
    market.put([Fill(3, DAY_S + 90, 12.0, lag_s=0.1)])
    market.build(rules=Rules("drop"))
    market.assert_bars([fill for fill in market.fills if fill.id != 2])


@pytest.mark.parametrize(("text", "wanted"), [("5s", 5_000_000), ("500ms", 500_000), ("2m", 120_000_000), ("0", 0)])
def test_a_lateness_is_a_duration(text: str, wanted: int) -> None:
    assert lateness_us(text) == wanted


# Outages


def test_bars_that_a_hole_touches_are_not_complete_and_say_so_once(market: Market) -> None:
    market.put([Fill(1, 10), Fill(2, 150), Fill(3, 330)])
    market.gap(150, 330)
    market.gap(10_000, 10_010, symbol="ETHUSDT")
    for _ in range(2):
        market.build(timeframes="1m,5m")
    minutes = market.bars("1m")
    assert minutes["complete"].to_list() == [True, True, False, False, False, False]
    assert market.bars("5m")["complete"].to_list() == [False, False]
    found = market.findings("bar_in_gap")
    assert found["first_time"].to_list() == minutes["time"].to_list()[2:]
    assert found["last_time"].to_list() == minutes["close_time"].to_list()[2:]
    assert found.select("dataset", "severity").unique().row(0) == ("bar", "warn")
    market.assert_bars(timeframes=["1m", "5m"])


def test_facts_at_the_ends_of_a_hole_are_touched_by_it(market: Market) -> None:
    market.put([Fill(1, 10), Fill(2, 59.999), Fill(3, 120), Fill(4, 180)])
    market.gap(59.999, 120)
    market.build(timeframes="1m")
    assert market.bars("1m")["complete"].to_list() == [False, False, False, True]


def test_a_hole_that_lasts_touches_all_bars_from_its_start_on(market: Market) -> None:
    market.put([Fill(1, 10), Fill(2, 150)])
    market.gap(61, None, state="unfillable", symbol="*")
    market.build(timeframes="1m")
    assert market.bars("1m")["complete"].to_list() == [True, False, False]


def test_a_hole_that_becomes_known_or_is_filled_changes_bars_that_are_there(market: Market) -> None:
    market.put([Fill(1, 10), Fill(2, 150), Fill(3, 2 * DAY_S)])
    market.build(timeframes="1m")
    for state, complete in (("open", False), ("filled", True)):
        market.gap(20, 100, state)
        market.build(timeframes="1m")
        assert market.bars("1m")["complete"].to_list()[:3] == [complete, complete, True]
    assert market.bars("1m")["revision"].to_list()[:3] == [2, 2, 0]
    assert market.findings("bar_in_gap").height == 2


def test_a_hole_on_a_day_without_trades_changes_the_fillers_of_that_day(market: Market) -> None:
    market.put([Fill(1, 10), Fill(2, 3 * DAY_S)])
    market.build(timeframes="1m")
    market.gap(DAY_S + 3600, DAY_S + 7200)
    market.build(timeframes="1m")
    touched = market.bars("1m").filter(~pl.col("complete"))["time"]
    assert touched.to_list() == [FIRST + timedelta(seconds=DAY_S + 3600 + 60 * number) for number in range(61)]


def test_a_hole_without_an_end_gives_back_all_bars_behind_its_end(market: Market) -> None:
    market.put(busy(1, 0, 300, step_s=1000))
    market.gap(3600, None)
    market.build(timeframes="1m")
    assert not market.bars("1m")["complete"][-1]
    market.gap(3600, 7200)
    market.build(timeframes="1m")
    touched = market.bars("1m").filter(~pl.col("complete"))["time"]
    assert touched.to_list() == [FIRST + timedelta(seconds=3600 + 60 * number) for number in range(61)]


def test_findings_are_not_said_twice_when_a_build_died_before_its_bars_were_written(market: Market) -> None:
    market.put([Fill(1, 10), Fill(2, 150)])
    market.gap(20, 100)
    market.build(timeframes="1m")
    shutil.rmtree(market.path / "bar")
    market.build(timeframes="1m")
    assert market.findings("bar_in_gap").height == 2


# What a user can get wrong


async def call(home: Path, *words: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "crypto_lake", "build", "bars", *words),
        cwd=home, env={**os.environ, "LAKE_ROOT": str(home / "tables")}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    _, err = await process.communicate()
    return process.returncode or 0, err.decode()


async def test_a_timeframe_that_is_none_is_one_sentence(market: Market) -> None:
    market.put([Fill(1, 10)])
    status, err = await call(market.path.parent, "--timeframes", "1m,7m")
    assert status == 1
    assert err == "crypto-lake: --timeframes: there is no '7m'; there are 1s, 1m, 5m, 15m, 1h, 4h, 1d\n"
    assert not (market.path / "bar").exists()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"source": "trade"}, "there is no table trade under .*: .*--from agg_trade"),
        ({"source": "depth"}, "--from: there is no 'depth'; there are agg_trade, trade"),
        ({"symbols": "BTCUSD"}, "--symbols BTCUSD: table agg_trade has no rows of it; did you mean 'BTCUSDT'?"),
        ({"start": "yesterday"}, "--start yesterday: write a day"),
    ],
)
def test_a_mistake_is_named(market: Market, asked: dict[str, str], said: str) -> None:
    market.put([Fill(1, 10)])
    with pytest.raises(ConfigError, match=said.replace("?", "[?]")):
        market.build(**asked)
    assert not (market.path / "bar").exists()


@pytest.mark.parametrize(("word", "parse"), [("keep", late_of), ("soon", lateness_us), ("-1s", lateness_us)])
def test_words_that_are_no_rule_are_refused(word: str, parse: Callable[[str], object]) -> None:
    with pytest.raises(ConfigError, match=f"--late.*{word}"):
        parse(word)


def test_a_table_that_is_not_there_is_named(market: Market) -> None:
    with pytest.raises(ConfigError, match=r"no table agg_trade under .*: record or backfill agg_trade first"):
        market.build()
