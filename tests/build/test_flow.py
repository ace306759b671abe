"""How builds go on: tasks on a farm, commits in between, and what is asked for."""

import threading
from concurrent.futures import Executor
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest

from crypto_lake.build import select
from crypto_lake.build.changes import difference
from crypto_lake.build.farm import farm
from crypto_lake.build.flow import Built, Call, Steps, drive, settled
from crypto_lake.build.select import Days, Market
from crypto_lake.config import ConfigError
from crypto_lake.models import DATASETS
from crypto_lake.models.dataset import TIME
from crypto_lake.processors.shape import shape
from crypto_lake.writers import CommitConflict
from crypto_lake.writers.delta import Lake

AGG_TRADE, BAR = DATASETS["agg_trade"], DATASETS["bar"]


def double(number: int) -> int:
    return 2 * number


def fail(number: int) -> int:
    raise ValueError(f"no {number}")


def series(start: int, steps: int, seen: list[int]) -> Steps:
    value = start
    for _ in range(steps):
        value = yield Call(double, (value,))
        seen.append(value)


@pytest.mark.parametrize("workers", [1, 2])
def test_each_series_goes_on_from_what_its_last_task_returned(workers: int) -> None:
    seen: dict[int, list[int]] = {start: [] for start in (1, 10, 100)}
    commits = []
    with farm(None, workers) as (executor, at_once):
        drive((series(start, 3, seen[start]) for start in seen), executor, at_once, on_done=lambda: commits.append(1))
    assert seen == {1: [2, 4, 8], 10: [20, 40, 80], 100: [200, 400, 800]}
    assert len(commits) == 3 + 9


def test_a_series_without_tasks_is_done_at_once() -> None:
    with farm(None, 1) as (executor, at_once):
        drive([series(1, 0, [])], executor, at_once)


def test_what_a_task_raises_ends_the_build() -> None:
    def failing() -> Steps:
        yield Call(fail, (7,))

    with farm(None, 1) as (executor, at_once), pytest.raises(ValueError, match="no 7"):
        drive([failing()], executor, at_once)


def test_a_build_that_is_told_to_stop_begins_no_new_task() -> None:
    stop, seen = threading.Event(), []  # type: ignore[var-annotated]

    def stopping() -> Steps:
        value = yield Call(double, (1,))
        seen.append(value)
        stop.set()
        yield Call(double, (value,))
        seen.append("too far")

    with farm(None, 1) as (executor, at_once):
        drive([stopping(), series(1, 3, seen)], executor, at_once, stop=stop)
    assert seen == [2]


def test_no_more_series_are_under_way_than_the_farm_has_hands() -> None:
    begun = 0

    def counted() -> Steps:
        nonlocal begun
        begun += 1
        assert begun <= 3
        yield Call(double, (1,))
        begun -= 1

    with farm(None, 1) as (executor, _):
        _assert_executor(executor)
        drive([counted() for _ in range(10)], executor, 3)
    assert begun == 0


def _assert_executor(executor: Executor) -> None:
    assert executor.submit(double, 4).result() == 8


# What was made against what is held


def bars(closes: dict[int, float], **more: object) -> pl.DataFrame:
    frame = pl.DataFrame(
        {"time": [datetime(2026, 3, 1, 0, minute, tzinfo=UTC) for minute in closes], "close": list(closes.values())},
        schema={"time": TIME, "close": pl.Float64},
    )
    said = {"venue": "binance", "symbol": "BTCUSDT", "timeframe": "1m", "origin": "trades", "revision": 0, **more}
    return shape(BAR, frame.with_columns(pl.lit(value).alias(name) for name, value in said.items()))


def test_only_what_differs_is_written_and_a_changed_bar_counts_its_revisions() -> None:
    held = bars({0: 1.0, 1: 2.0, 2: 3.0}, revision=4)
    found = difference(BAR, held, bars({0: 1.0, 1: 2.5, 3: 4.0}))
    assert sorted(found.added.select("close", "revision").rows()) == [(2.5, 5), (4.0, 0)]
    assert sorted(found.gone["close"]) == [2.0, 3.0]
    assert (found.same, found.revised) == (1, 1)


def test_the_last_bit_counts_and_null_is_a_value() -> None:
    assert difference(BAR, bars({0: 0.3}), bars({0: 0.1 + 0.2})).revised == 1
    held = bars({0: 1.0}, taker_buy_volume=1.0)
    assert difference(BAR, held, bars({0: 1.0})).revised == 1
    assert difference(BAR, held, held).added.is_empty()


# What is asked for

HELD = [Market("binance", "BTCUSDT"), Market("binance-futures", "BTCUSDT"), Market("binance-futures", "ETHUSDT")]


def test_a_symbol_is_of_every_venue_unless_one_is_named() -> None:
    assert select.chosen(HELD, None, None, table="agg_trade") == HELD
    assert select.chosen(HELD, "BTCUSDT", None, table="agg_trade") == HELD[:2]
    assert select.chosen(HELD, "binance:BTCUSDT", None, table="agg_trade") == HELD[:1]
    assert select.chosen(HELD, "all", "binance-futures", table="agg_trade") == HELD[1:]


@pytest.mark.parametrize(
    ("symbols", "venue", "words"),
    [
        ("BTCUSD", None, "--symbols BTCUSD: table agg_trade has no rows of it; did you mean 'BTCUSDT'"),
        ("binance:ETHUSDT", None, "--symbols binance:ETHUSDT: table agg_trade has no rows of it"),
        (None, "binance-future", "holds no rows of venue 'binance-future'; did you mean 'binance-futures'"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(symbols: str | None, venue: str | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        select.chosen(HELD, symbols, venue, table="agg_trade")


def test_a_table_that_cannot_be_read_and_an_address_that_is_none_are_said(tmp_path: Path) -> None:
    log = tmp_path / "agg_trade" / "_delta_log"
    log.mkdir(parents=True)
    (log / f"{0:020}.json").write_text("no JSON")
    with pytest.raises(ConfigError, match=f"LAKE_ROOT={tmp_path}: table agg_trade cannot be read: "):
        select.source(str(tmp_path), AGG_TRADE, how="record some")
    with pytest.raises(ConfigError, match="--scheduler nonsense: that is no address"), farm("nonsense", 1):
        pass


def test_who_was_overtaken_begins_again_and_gives_up_in_the_end() -> None:
    tries = iter([CommitConflict("first"), CommitConflict("second"), None])

    def make() -> Built:
        if error := next(tries):
            raise error
        return Built("bar", added=3)

    assert settled(make).added == 3

    def never() -> Built:
        raise CommitConflict("always")

    with pytest.raises(CommitConflict, match="always"):
        settled(never)


def test_bars_are_made_of_the_trades_that_there_are(tmp_path: Path) -> None:
    root, lake = str(tmp_path), Lake(str(tmp_path))
    assert select.table_of_trades(root, None) == "agg_trade"
    lake.check(DATASETS["trade"])
    assert select.table_of_trades(root, None) == "trade"
    lake.check(AGG_TRADE)
    assert select.table_of_trades(root, None) == "agg_trade"
    assert select.table_of_trades(root, "trade") == "trade"


def test_days_are_inside_at_both_ends() -> None:
    assert select.span_of_days("2024-01", "2024-02-03") == Days(date(2024, 1, 1), date(2024, 2, 3))
    assert date(2030, 1, 1) in select.span_of_days("2024-01", None)
    with pytest.raises(ConfigError, match="--start 2024-03 is after --end 2024-02"):
        select.span_of_days("2024-03", "2024-02")


def test_words_of_a_list_are_known_or_named() -> None:
    assert select.one_of("--timeframes", "5m,1m", ["1m", "5m", "1h"]) == ("1m", "5m")
    with pytest.raises(ConfigError, match="--timeframes: there is no '2m'; there are 1m, 5m, 1h"):
        select.one_of("--timeframes", "1m,2m", ["1m", "5m", "1h"])


def test_markets_of_a_table_and_their_days(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    with pytest.raises(ConfigError, match=f"there is no table agg_trade under {tmp_path}: record some"):
        select.source(str(tmp_path), AGG_TRADE, how="record some")
    lake.check(AGG_TRADE)
    for day in (1, 3):
        frame = pl.DataFrame({"time": [datetime(2026, 3, day, tzinfo=UTC)], "agg_trade_id": [day]})
        said = {"venue": "binance", "symbol": "BTCUSDT", "source": "live", "is_buyer_maker": True}
        numbers = dict.fromkeys(("price", "quantity", "first_trade_id", "last_trade_id"), 1)
        rows = frame.with_columns(pl.lit(value).alias(name) for name, value in {**said, **numbers}.items())
        lake.add(AGG_TRADE, shape(AGG_TRADE, rows))
    table = select.source(str(tmp_path), AGG_TRADE, how="record some")
    found = select.asked(table, Days(date.min, date.max), None, None)
    assert found == {HELD[0]: [date(2026, 3, 1), date(2026, 3, 3)]}
    assert select.asked(table, Days(date(2026, 3, 2), date.max), "BTCUSDT", None)[HELD[0]] == [date(2026, 3, 3)]
    with pytest.raises(
        ConfigError, match="--symbols BTCUSD: table agg_trade has no rows of it; did you mean 'BTCUSDT'"
    ):
        select.asked(table, Days(date.min, date.max), "BTCUSD", None)
