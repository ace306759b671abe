"""Series of bars out of a table: the best bar of each time, and no interval without one where trade never rests."""

import random
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import polars as pl
import pytest

from crypto_lake.build.inputs import Series, all_series, best, series
from crypto_lake.models import DATASETS
from crypto_lake.models.bar import TIMEFRAMES_US
from crypto_lake.processors.shape import shape
from crypto_lake.query.snapshot import Snapshot, snapshot
from crypto_lake.writers.delta import Lake

BAR: Final = DATASETS["bar"]
FIRST: Final = datetime(2024, 1, 15, tzinfo=UTC)
FUTURES, SPOT, STOCKS, CRYPTO = "binance-futures", "binance", "us-stocks", "crypto"
SUMS: Final = ("volume", "quote_volume", "count", "taker_buy_volume", "taker_buy_quote_volume")


def day(number: int) -> date:
    return FIRST.date() + timedelta(days=number)


def at(number: int, timeframe: str = "4h") -> datetime:
    """The open time of an interval, counted from the first midnight."""
    return FIRST + number * timedelta(microseconds=TIMEFRAMES_US[timeframe])


def bars(numbers: Iterable[int], *, timeframe: str = "4h", **columns: Any) -> pl.DataFrame:
    """Bars that close at 100 and their number."""
    chosen = list(numbers)
    close = pl.Series([100.0 + number for number in chosen], dtype=pl.Float64)
    rows = pl.DataFrame({"time": [at(number, timeframe) for number in chosen], "close": close})
    said = {
        "venue": FUTURES, "symbol": "BTCUSDT", "source": "derived", "timeframe": timeframe, "open": 99.0,
        "high": 9999.0, "low": 1.0, "volume": 2.0, "quote_volume": 200.0, "count": 3, "taker_buy_volume": 1.0,
        "taker_buy_quote_volume": 100.0, "complete": True, "revision": 0, "origin": "trades",
    }  # fmt: skip
    return shape(BAR, rows.with_columns(pl.lit(value).alias(name) for name, value in (said | columns).items()))


def table(root: Path, *frames: pl.DataFrame) -> Snapshot:
    """A table with these rows, a commit for each frame."""
    lake = Lake(str(root))
    lake.check(BAR)
    for number, frame in enumerate(frames):
        lake.append(BAR, frame, "test", start=number, end=number + 1)
    found = snapshot(str(root), BAR)
    assert found is not None
    return found


def numbers(rows: pl.DataFrame, timeframe: str = "4h") -> list[int]:
    length = timedelta(microseconds=TIMEFRAMES_US[timeframe])
    return [(each - FIRST) // length for each in rows["time"]]


def read(
    of: Snapshot, first: int, last: int, *, venue: str = FUTURES, timeframe: str = "4h", **asked: Any
) -> pl.DataFrame:
    return series(of, venue, "BTCUSDT", timeframe, day(first), day(last), **asked)


def test_bars_come_in_the_order_of_time_with_the_columns_of_the_table(tmp_path: Path) -> None:
    of = table(tmp_path, bars(range(6, 12)), bars(range(6)))
    rows = read(of, 0, 1)
    assert numbers(rows) == list(range(12))
    assert rows.schema == BAR.schema
    assert rows.equals(bars(range(12)))


def test_an_interval_without_a_bar_repeats_the_close_before_it(tmp_path: Path) -> None:
    of = table(tmp_path, bars([0, 1, 4, 5]))
    rows = read(of, 0, 0)
    assert numbers(rows) == [0, 1, 2, 3, 4, 5]
    for row in rows[2:4].rows(named=True):
        assert {row[name] for name in ("open", "high", "low", "close")} == {101.0}
        assert {row[name] for name in SUMS} == {0}
        assert row["close_time"] == row["time"] + timedelta(hours=4) - timedelta(microseconds=1)
        assert (row["date"], row["origin"], row["complete"]) == (row["time"].date(), "trades", False)
    assert rows.filter("complete").equals(bars([0, 1, 4, 5]))


def test_days_between_bars_are_filled_and_those_before_and_behind_are_not(tmp_path: Path) -> None:
    """The next bar and the one before may be far away."""
    of = table(tmp_path, bars([8, 8 + 400 * 6]))
    assert numbers(read(of, 0, 0)) == []
    assert numbers(read(of, 0, 1)) == [8, 9, 10, 11]
    assert numbers(read(of, 200, 200)) == list(range(1200, 1206))
    assert read(of, 200, 200)["close"].unique().to_list() == [108.0]
    assert numbers(read(of, 401, 401)) == list(range(2406, 2409))
    assert numbers(read(of, 402, 500)) == []
    assert read(of, 0, 500).height == 401 + 400 * 5


def test_the_last_bar_may_be_said_instead_of_looked_for(tmp_path: Path) -> None:
    of = table(tmp_path, bars([0, 13]))
    (known,) = all_series(of)
    for first, last in ((0, 0), (1, 1), (0, 1), (2, 2), (0, 5)):
        assert read(of, first, last, end=known.last).equals(read(of, first, last))


@pytest.mark.parametrize("venue", [STOCKS, "us-options", "us-indices", "forex"])
def test_what_sleeps_has_the_bars_that_are_there(tmp_path: Path, venue: str) -> None:
    of = table(tmp_path, bars([0, 2, 20, 21, 200], venue=venue))
    assert numbers(read(of, 0, 3, venue=venue)) == [0, 2, 20, 21]
    assert numbers(read(of, 33, 33, venue=venue, before=2)) == [20, 21, 200]
    assert numbers(read(of, 33, 33, venue=venue, before=9)) == [0, 2, 20, 21, 200]
    assert numbers(read(of, 4, 4, venue=venue, before=1)) == [21]


@pytest.mark.parametrize("venue", [FUTURES, SPOT, "binance-delivery", CRYPTO])
def test_what_is_traded_around_the_clock_has_no_holes(tmp_path: Path, venue: str) -> None:
    of = table(tmp_path, bars([0, 20], venue=venue))
    assert numbers(read(of, 0, 3, venue=venue)) == list(range(21))
    assert numbers(read(of, 2, 2, venue=venue, before=5)) == list(range(7, 18))
    assert numbers(read(of, 1, 1, venue=venue, before=50)) == list(range(12))


@pytest.mark.parametrize("seed", range(3))
def test_any_stretch_is_that_stretch_of_the_whole(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    held = sorted(dice.sample(range(90), 30))
    of = table(tmp_path, bars(held))
    closes, close = {}, 0.0
    for number in range(held[0], held[-1] + 1):
        close = 100.0 + number if number in held else close
        closes[number] = close
    for _ in range(60):
        first = dice.randrange(-1, 16)
        last, before = first + dice.randrange(4), dice.choice((0, 0, 1, 2, 7, 40))
        want = {number: closes[number] for number in range(first * 6 - before, last * 6 + 6) if number in closes}
        rows = read(of, first, last, before=before)
        assert dict(zip(numbers(rows), rows["close"], strict=True)) == want


def test_sums_that_nobody_knows_stay_unknown_where_bars_are_filled_in(tmp_path: Path) -> None:
    of = table(tmp_path, bars([0, 3], venue=CRYPTO, origin="flatfile", quote_volume=None, taker_buy_volume=None))
    rows = read(of, 0, 0, venue=CRYPTO)
    assert rows["quote_volume"].null_count() == rows["taker_buy_volume"].null_count() == 4
    assert rows["volume"].to_list() == [2.0, 0.0, 0.0, 2.0]


def test_of_several_bars_of_a_time_the_best_is_taken(tmp_path: Path) -> None:
    of = table(
        tmp_path,
        bars(range(6), origin="kline", volume=1.0),
        bars([0, 1, 2], origin="trades", volume=2.0),
        bars([3], origin="trades", volume=3.0, complete=False),
        bars([4], origin="flatfile", volume=4.0),
        bars([4, 5, 6], origin="yahoo", volume=5.0),
    )
    rows = read(of, 0, 1)
    assert rows["volume"].to_list() == [2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 5.0]
    assert rows["origin"].to_list() == ["trades"] * 3 + ["kline"] * 3 + ["yahoo"]
    assert read(of, 0, 1, origin="kline")["volume"].to_list() == [1.0] * 6
    assert numbers(read(of, 0, 1, origin="yahoo")) == [4, 5, 6]
    assert read(of, 0, 0, origin="yahoo", before=3)["origin"].to_list() == ["yahoo", "yahoo"]


def test_an_incomplete_bar_is_better_than_none_and_origins_decide_among_the_incomplete() -> None:
    rows = pl.concat(bars([0], origin=name, complete=False) for name in ("yahoo", "kline", "trades", "flatfile"))
    assert best(rows)["origin"].to_list() == ["trades"]


def test_other_markets_and_timeframes_are_other_series(tmp_path: Path) -> None:
    others = (bars([0, 1], symbol="ETHUSDT"), bars([0, 1], venue=SPOT), bars(range(24), timeframe="1h"))
    of = table(tmp_path, bars([0, 5]), *others)
    assert read(of, 0, 0).equals(read(table(tmp_path / "alone", bars([0, 5])), 0, 0))


@pytest.mark.parametrize(("timeframe", "count"), [("1s", 86_400), ("1m", 1440), ("1h", 24), ("1d", 1)])
def test_a_day_has_as_many_intervals_as_it_is_long(tmp_path: Path, timeframe: str, count: int) -> None:
    of = table(tmp_path, bars([0, 3 * count], timeframe=timeframe))
    assert read(of, 1, 1, timeframe=timeframe).height == count
    assert read(of, 1, 2, timeframe=timeframe, before=2)["time"][0] == at(max(count - 2, 0), timeframe)


def test_all_series_are_found_with_their_ends(tmp_path: Path) -> None:
    of = table(
        tmp_path,
        bars([7, 3]),
        bars([30], origin="kline"),
        bars([1], timeframe="1m"),
        bars([2], symbol="ETHUSDT"),
        bars([4], venue=SPOT),
    )
    futures = Series(FUTURES, "BTCUSDT", "4h", at(3), at(30))
    assert all_series(of) == [
        Series(SPOT, "BTCUSDT", "4h", at(4), at(4)),
        Series(FUTURES, "BTCUSDT", "1m", at(1, "1m"), at(1, "1m")),
        futures,
        Series(FUTURES, "ETHUSDT", "4h", at(2), at(2)),
    ]
    assert all_series(of, symbols=["ETHUSDT"]) == [Series(FUTURES, "ETHUSDT", "4h", at(2), at(2))]
    assert all_series(of, timeframes=["4h"], origin="kline") == [Series(FUTURES, "BTCUSDT", "4h", at(30), at(30))]
    assert str(futures) == "binance-futures:BTCUSDT 4h"
