"""The table of indicators: brought up to date in any steps it is what one run over all bars makes, bit by bit."""

import json
import shutil
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pytest
from deltalake import DeltaTable

from crypto_lake.build.farm import farm
from crypto_lake.build.flow import Built
from crypto_lake.build.indicators import Stretch, Wanted, build, is_settled
from crypto_lake.build.inputs import filled
from crypto_lake.cli import main
from crypto_lake.config import ConfigError
from crypto_lake.features.indicators import indicators
from crypto_lake.models import DATASETS
from crypto_lake.models.bar import TIMEFRAMES_US
from crypto_lake.models.indicator import STATES, VALUES
from crypto_lake.processors.shape import shape
from crypto_lake.writers.delta import Lake
from crypto_lake.writers.derived import Derived
from tests.build.killing import killed

BAR, INDICATOR = DATASETS["bar"], DATASETS["indicator"]
FIRST: Final = datetime(2024, 1, 15, tzinfo=UTC)
FUTURES, SPOT, STOCKS = "binance-futures", "binance", "us-stocks"
DAY: Final = timedelta(days=1)


def bars(count: int, *, timeframe: str = "15m", seed: int = 1, start: datetime = FIRST, **columns: Any) -> pl.DataFrame:
    """A random walk, one bar after the other."""
    dice, length = np.random.default_rng(seed), timedelta(microseconds=TIMEFRAMES_US[timeframe])
    close = np.round(60_000 + np.cumsum(dice.normal(0, 20, count)), 2)
    opened, spread = np.concatenate([close[:1], close[:-1]]), np.round(np.abs(dice.normal(0, 5, count)), 2)
    rows = {
        "time": [start + number * length for number in range(count)],
        "open": opened,
        "high": np.maximum(opened, close) + spread,
        "low": np.minimum(opened, close) - spread,
        "close": close,
        "volume": np.round(np.abs(dice.normal(0, 30, count)), 3),
    }
    said = {
        "venue": FUTURES, "symbol": "BTCUSDT", "source": "derived", "timeframe": timeframe, "count": 7,
        "complete": True, "revision": 0, "origin": "trades",
    }  # fmt: skip
    return shape(
        BAR, pl.DataFrame(rows).with_columns(pl.lit(value).alias(name) for name, value in (said | columns).items())
    )


def nightly(count: int, **columns: Any) -> pl.DataFrame:
    """Of stocks, with nights and holes."""
    clock = pl.col("time")
    is_day = clock.dt.hour().is_between(13, 19) & (clock.dt.weekday() < 6) & (clock.dt.minute() % 7 > 0)
    said = {"timeframe": "1m", "venue": STOCKS, "symbol": "AAPL", "origin": "flatfile", "source": "flatfile"}
    return bars(count, **said, **columns).filter(is_day)


class Tables:
    """A root with bars, and what is made of them."""

    def __init__(self, path: Path) -> None:
        self.path, self.root = path, str(path)
        self.commits = 0

    def put(self, *frames: pl.DataFrame) -> None:
        lake = Lake(self.root)
        lake.check(BAR)
        for frame in frames:
            self.commits += 1
            lake.append(BAR, frame, "test", start=self.commits - 1, end=self.commits)

    def revise(self, *where: pl.Expr, **values: Any) -> None:
        """Some bars have other values now."""
        into = Derived(Lake(self.root), BAR)
        old = into.held(date.min, date.max, *where)
        assert old.height
        changed = [pl.lit(value).cast(BAR.schema[name]).alias(name) for name, value in values.items()]
        into.put(old.with_columns(pl.col("revision") + 1, *changed), old)
        into.settle(all=True)

    def remove(self, *where: pl.Expr) -> None:
        """Some bars are there no more."""
        into = Derived(Lake(self.root), BAR)
        old = into.held(date.min, date.max, *where)
        assert old.height
        into.put(old.clear(), old)
        into.settle(all=True)

    def build(self, workers: int = 1, **wanted: Any) -> Built:
        with farm(None, workers) as (executor, at_once):
            return build(self.root, Wanted(**wanted), executor, at_once)

    @property
    def rows(self) -> pl.DataFrame:
        return Lake(self.root).rows(INDICATOR).sort(INDICATOR.key)

    @property
    def version(self) -> int:
        return DeltaTable(f"{self.root}/indicator").version()

    def made_anew(self, place: Path, **wanted: Any) -> pl.DataFrame:
        """What one run makes of the bars as they are."""
        shutil.copytree(self.path / "bar", place / "bar")
        other = Tables(place)
        other.build(**wanted)
        return other.rows


@pytest.fixture
def lake(tmp_path: Path) -> Tables:
    return Tables(tmp_path / "tables")


@pytest.fixture
def assert_whole(lake: Tables, tmp_path: Path) -> Callable[..., None]:
    """The table is what one run over all bars makes, and another run finds nothing to do."""
    count = 0

    def check(**wanted: Any) -> None:
        nonlocal count
        count += 1
        rows = lake.rows
        assert rows.select(INDICATOR.key).is_unique().all()
        assert rows.equals(lake.made_anew(tmp_path / f"anew-{count}", **wanted))
        version = lake.version
        again = lake.build(**wanted)
        assert (again.computed, again.added, again.removed, lake.version) == (0, 0, 0, version)

    return check


def of(rows: pl.DataFrame, **said: str) -> pl.DataFrame:
    return rows.filter(pl.col(name) == value for name, value in said.items())


def at(rows: pl.DataFrame, number: int) -> datetime:
    return rows["time"][number]


# One run


@pytest.mark.parametrize("timeframe", ["1m", "15m", "4h", "1d"])
def test_the_rows_of_a_series_are_those_of_the_whole_series_at_once(lake: Tables, timeframe: str) -> None:
    """Over more days than are made at a time."""
    made = bars({"1m": 3000, "15m": 8000, "4h": 450, "1d": 90}[timeframe], timeframe=timeframe)
    lake.put(made.sample(fraction=1, shuffle=True, seed=1))
    done = lake.build()
    assert (done.series, done.computed, done.added, done.removed) == (1, made.height, made.height, 0)
    assert lake.rows.select("time", *VALUES, *STATES).equals(indicators(made))
    row = lake.rows.row(-1, named=True)
    assert (row["venue"], row["symbol"], row["timeframe"]) == (FUTURES, "BTCUSDT", timeframe)
    assert (row["source"], row["origin"], row["received_time"]) == ("derived", "trades", None)
    assert row["date"] == row["time"].date()


@pytest.mark.parametrize("workers", [1, 2])
def test_series_know_nothing_of_each_other(lake: Tables, tmp_path: Path, workers: int) -> None:
    series = [bars(500, seed=seed, symbol=symbol, timeframe=timeframe, venue=venue) for seed, (symbol, timeframe, venue)
              in enumerate([("BTCUSDT", "1m", FUTURES), ("BTCUSDT", "1h", FUTURES), ("BTCUSDT", "1m", SPOT),
                            ("ETHUSDT", "1m", FUTURES)])]  # fmt: skip
    lake.put(*series)
    assert lake.build(workers).series == 4
    for each in series:
        alone = of(lake.rows, **{name: each[name][0] for name in ("venue", "symbol", "timeframe")})
        assert alone.select("time", *VALUES, *STATES).equals(indicators(each))


def test_intervals_without_a_bar_have_a_row_where_trade_never_rests(lake: Tables) -> None:
    made = bars(900)
    held = pl.concat([made[:200], made[210:400], made[700:]])
    lake.put(held)
    lake.build()
    begin, end = (int(at(made, number).timestamp()) * 1_000_000 for number in (0, -1))
    assert lake.rows.select("time", *VALUES, *STATES).equals(indicators(filled(held, "15m", begin, end)))
    assert lake.rows.height == 900


def test_stocks_have_rows_for_the_bars_that_are_there(lake: Tables) -> None:
    made = nightly(6 * 1440)
    assert made["time"].diff().max() > timedelta(hours=17)
    lake.put(made)
    lake.build()
    assert lake.rows.select("time", *VALUES, *STATES).equals(indicators(made))
    assert set(lake.rows["origin"]) == {"flatfile"}


def test_klines_alone_are_bars_like_others(lake: Tables) -> None:
    made = bars(300, origin="kline", source="dump")
    lake.put(made)
    assert lake.build().computed == 300
    assert lake.rows.select("time", *VALUES, *STATES).equals(indicators(made))
    assert set(lake.rows["origin"]) == {"kline"}


def test_a_history_of_klines_goes_on_with_bars_of_trades(lake: Tables, assert_whole: Callable[..., None]) -> None:
    klines, trades = bars(400, origin="kline", source="dump"), bars(400, seed=2)[300:]
    lake.put(klines)
    lake.build()
    lake.put(trades)
    done = lake.build()
    assert done.computed == done.added == done.revised == 100
    want = indicators(pl.concat([klines[:300], trades]))
    assert lake.rows.select("time", *VALUES, *STATES).equals(want)
    assert lake.rows["origin"].to_list() == ["kline"] * 300 + ["trades"] * 100
    assert_whole()


def test_an_origin_may_be_chosen_and_given_up_again(lake: Tables, assert_whole: Callable[..., None]) -> None:
    klines, trades = bars(400, origin="kline", source="dump"), bars(420, seed=2)[300:]
    lake.put(klines, trades)
    lake.build()
    assert lake.build(origin="kline").added == 100
    assert lake.rows.select("time", *VALUES, *STATES).equals(indicators(klines))
    assert_whole(origin="kline")
    lake.build(origin="trades")
    assert lake.rows.select("time", *VALUES, *STATES).equals(indicators(trades))
    lake.build()
    assert lake.rows.height == 420
    assert_whole()


def test_without_volumes_the_rest_is_made_and_that_is_said_once(lake: Tables) -> None:
    made = bars(300, venue="us-indices", symbol="SPX", origin="flatfile").with_columns(volume=None)
    lake.put(
        made.cast({"volume": pl.Float64}), bars(300, venue="us-indices", symbol="NDX", origin="flatfile", volume=None)
    )
    done = lake.build()
    assert done.notes == ["us-indices: there are bars without a volume: obv, vwap and mfi_14 are null there"]
    rows = lake.rows
    assert rows.select("obv", "vwap", "mfi_14").null_count().row(0) == (600, 600, 600)
    assert rows["macd"].null_count() == 66


# Step by step


@pytest.mark.parametrize("step", [1, 7, 96, 250])
def test_what_is_new_is_added_and_nothing_else_is_computed(
    lake: Tables, assert_whole: Callable[..., None], step: int
) -> None:
    made, before = bars(500), 150
    lake.put(made[:before])
    lake.build()
    for end in [*[*range(before + step, 500, step)][:4], 500]:
        lake.put(made[before:end])
        done = lake.build()
        assert done.computed == done.added == end - before
        assert done.revised == done.removed == 0
        before = end
    assert lake.rows.select("time", *VALUES, *STATES).equals(indicators(made))
    assert_whole()


@pytest.mark.parametrize("kind", ["around the clock", "stocks"])
def test_day_by_day_and_series_by_series_it_is_one_run(
    lake: Tables, assert_whole: Callable[..., None], kind: str
) -> None:
    """Short series have too few rows yet to be gone on from."""
    some = [nightly(5 * 1440), nightly(5 * 1440, seed=2)[::40].with_columns(symbol=pl.lit("RARE"))]
    if kind != "stocks":
        some = [bars(480), bars(120, timeframe="1h", seed=2), bars(30, timeframe="4h"), bars(5, timeframe="1d")]
    for day in sorted({day for each in some for day in each["date"]}):
        for each in some:
            if len(today := each.filter(pl.col("date") == day)):
                lake.put(today)
                lake.build()
    assert lake.rows.height == sum(map(len, some))
    assert_whole()


def test_the_hole_before_a_new_bar_is_filled_when_it_comes(lake: Tables, assert_whole: Callable[..., None]) -> None:
    made = bars(1500)
    lake.put(made[:200])
    lake.build()
    lake.put(made[1400:])
    assert lake.build().computed == 1300
    assert_whole()
    lake.put(made[600:610])
    done = lake.build()
    assert (done.computed, done.removed) == (900, 0)
    assert_whole()


@pytest.mark.parametrize("number", [0, 20, 33, 34, 500, 999])
def test_after_a_revised_bar_all_rows_are_those_of_the_new_bar(
    lake: Tables, assert_whole: Callable[..., None], number: int
) -> None:
    made = bars(1000)
    lake.put(made)
    lake.build()
    old = lake.rows
    lake.revise(pl.col("time") == at(made, number), close=59_000.0, low=58_000.0)
    done = lake.build()
    rows = lake.rows
    begin = at(made, number).replace(hour=0, minute=0)  # of the day's file, within which nobody says what is new
    assert done.computed <= rows.filter(pl.col("time") >= begin).height or number < 96
    assert rows[:number].equals(old[:number])
    assert done.added == done.revised == sum(a != b for a, b in zip(rows.rows(), old.rows(), strict=True))
    assert_whole()


def test_only_what_follows_from_a_change_is_computed(lake: Tables, assert_whole: Callable[..., None]) -> None:
    """What came for others on old days is looked at, and costs those days."""
    lake.put(bars(140 * 24, timeframe="1h"))
    lake.build()
    lake.put(bars(6, timeframe="4h", start=FIRST + 10 * DAY))
    version = lake.version
    done = lake.build(timeframes="1h")
    assert done.added == 0
    assert 24 <= done.computed <= 65 * 24
    lake.put(*(bars(6, timeframe="4h", start=FIRST + day * DAY) for day in (130, 12)))
    done = lake.build(timeframes="1h")
    assert done.added == 0
    assert 2 * 24 <= done.computed <= 75 * 24
    assert lake.version <= version + 2
    assert lake.build().added == 121 * 6  # bars of four hours, with those that are filled in
    assert_whole()


@pytest.mark.parametrize(
    ("first", "last", "rows", "is_so"),
    [
        (0, 30, 96, True),
        (0, 76, 96, True),
        (0, 77, 96, False),
        (90, 90, 96, False),
        (97, 99, 96, True),
        (0, 1, 18, False),
    ],
)
def test_rows_go_on_as_they_are_held_once_no_change_is_in_their_windows(
    first: int, last: int, rows: int, *, is_so: bool
) -> None:
    made = bars(100)
    changes = [Stretch(at(made, first), at(made, last))]
    assert is_settled(changes, made[:rows], at(made, rows)) == is_so


def test_a_rare_series_has_too_few_rows_for_many_days(lake: Tables, assert_whole: Callable[..., None]) -> None:
    made = bars(280, timeframe="1d", venue=STOCKS)[::4]
    lake.put(made[:-3])
    lake.build()
    lake.put(made[-3:])
    assert lake.build().computed == 3
    assert lake.rows.select("time", *VALUES, *STATES).equals(indicators(made))
    assert_whole()


def test_what_a_run_that_came_to_no_end_left_is_made_to_the_end(
    lake: Tables, assert_whole: Callable[..., None]
) -> None:
    """Its first rows are there, and say nothing of those behind them."""
    made, rounds = bars(140, timeframe="1d"), 0
    lake.put(made)
    lake.build()

    def crash(table: str, done: int, of_all: int) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 2:
            raise InterruptedError

    lake.revise(pl.col("time") == at(made, 0), volume=1e6)
    version = lake.version
    with farm(None, 1) as (executor, at_once), pytest.raises(InterruptedError):
        build(lake.root, Wanted(), executor, at_once, on_step=crash)
    assert lake.version == version + 1
    lake.build()
    assert_whole()


@pytest.mark.parametrize(("first", "last"), [(0, 40), (0, 500), (300, 301), (479, 480), (100, 480)])
@pytest.mark.parametrize("kind", ["around the clock", "stocks"])
def test_where_bars_vanish_rows_vanish(
    lake: Tables, assert_whole: Callable[..., None], first: int, last: int, kind: str
) -> None:
    made = bars(480) if kind != "stocks" else nightly(3 * 1440)[:480]
    other = bars(50, symbol="ETHUSDT")
    lake.put(made, other)
    lake.build()
    lake.remove(pl.col("symbol") != "ETHUSDT", pl.col("time").is_in(made["time"][first:last].implode()))
    done = lake.build()
    left = len(made) - len(made[first:last])
    if kind == "stocks":
        assert lake.rows.filter(pl.col("symbol") == "AAPL").height == left
        assert done.removed == len(made) - left
    assert_whole()


def test_a_table_that_was_made_anew_is_looked_at_from_its_begin(
    lake: Tables, assert_whole: Callable[..., None]
) -> None:
    lake.put(*(bars(100, start=FIRST + number * DAY) for number in range(3)))
    lake.build()
    shutil.rmtree(lake.path / "bar")
    lake.commits = 0
    lake.put(bars(300, seed=9))
    lake.build()
    assert_whole()


def test_symbols_and_timeframes_may_be_chosen(lake: Tables, assert_whole: Callable[..., None]) -> None:
    for seed, symbol in enumerate(("BTCUSDT", "ETHUSDT")):
        lake.put(bars(100, symbol=symbol, seed=seed), bars(100, symbol=symbol, seed=seed, timeframe="1m"))
    lake.build(symbols="ETHUSDT", timeframes="1m")
    assert lake.rows.select("symbol", "timeframe").unique().rows() == [("ETHUSDT", "1m")]
    done = lake.build(timeframes="1h,1m")
    assert done.notes == ["table bar has no bars of 1h"]
    assert lake.rows.height == 200
    assert lake.build(venue=FUTURES).added == 200
    assert_whole()


# Words


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"timeframes": "2m"}, "--timeframes: there is no '2m'; there are 1s, 1m, 5m, 15m, 1h, 4h, 1d"),
        ({"timeframes": "1h"}, "--timeframes 1h: table bar has no such bars"),
        ({"origin": "klines"}, "--origin: there is no 'klines'; there are trades, kline, flatfile, yahoo"),
        ({"origin": "yahoo"}, "--origin yahoo: table bar has no bars of that origin"),
        ({"symbols": "BTCUSD"}, "--symbols BTCUSD: table bar has no rows of it"),
        ({"venue": "nowhere"}, "table bar holds no rows of venue 'nowhere'"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(lake: Tables, asked: dict[str, str], words: str) -> None:
    lake.put(bars(40))
    with pytest.raises(ConfigError, match=words):
        lake.build(**asked)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["build", "indicators", *arguments])
    return int(ended.value.code or 0)


def test_the_command_line_says_what_was_done_and_what_is_missing(lake: Tables, capsys: Any) -> None:
    assert run("--root", lake.root) == 1
    said = capsys.readouterr()
    assert f"there is no table bar under {lake.root}: make some with `crypto-lake build bars`" in said.err
    assert said.err.count("\n") == 1
    lake.put(bars(40))
    assert run("--root", lake.root, "--timeframes", "3m") == 1
    assert capsys.readouterr().err == (
        "crypto-lake: --timeframes: there is no '3m'; there are 1s, 1m, 5m, 15m, 1h, 4h, 1d\n"
    )
    assert run("--root", lake.root, "--json") == 0
    assert json.loads(capsys.readouterr().out)["added"] == 40
    assert run("--root", lake.root, "--symbols", "BTCUSDT", "--timeframes", "15m") == 0
    assert "indicator: 1 series, 0 rows computed, 0 written" in capsys.readouterr().out


# Killed


ROWS, COMMITS = "indicator/date=*/*.parquet", "indicator/_delta_log/*.json"


def test_killed_wherever_it_may_be_it_ends_with_the_same_table(lake: Tables, assert_whole: Callable[..., None]) -> None:
    """First from nothing, then after a bar was revised on which all rows depend, and with new ones."""
    made = [bars(130 * 6, timeframe="4h"), bars(130, timeframe="1d", seed=3)]
    lake.put(*(each[: len(each) - 5] for each in made))
    dies = partial(killed, lake.path, ("indicators",))
    assert [dies(*moment) for moment in ((ROWS, 20), (COMMITS, 2))] == [True] * 2
    assert 0 < lake.rows.height < sum(map(len, made))
    lake.build()
    assert_whole()
    # What was traded is in all later sums.
    lake.revise(pl.col("time") == at(made[0], 50), pl.col("timeframe") == "4h", volume=1e6)
    lake.put(*(each[len(each) - 5 :] for each in made))
    assert [dies(*moment) for moment in ((ROWS, 1), (COMMITS, 1))] == [True] * 2
    lake.build()
    assert_whole()
