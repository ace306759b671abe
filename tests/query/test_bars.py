"""Bars that cannot be, bars that are missing, and bars made here that are not the venue's."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from crypto_lake.models import DATASETS
from crypto_lake.processors.shape import shape
from crypto_lake.query import Report, klines, tables, validate
from crypto_lake.query.klines import compare
from tests.query.conftest import bars

FIRST = datetime(2024, 1, 15, tzinfo=UTC)
LATER = datetime(2024, 2, 15, tzinfo=UTC)
DAY = 1440
FUTURES, SPOT, COIN_M = "binance-futures", "binance", "binance-delivery"


def minute(number: float) -> datetime:
    return FIRST + timedelta(minutes=number)


def check(lake: Any, level: Any = "advanced", **asked: Any) -> Report:
    return validate(lake.root, level=level, now=LATER, **asked)


def found(report: Report, check: str) -> list[dict[str, Any]]:
    return report.findings.filter(pl.col("check") == check).sort("symbol", "first_time").to_dicts()


@pytest.mark.parametrize("level", ["quick", "advanced", "integrity"])
def test_bars_that_are_whole_have_no_finding(lake: Any, level: str) -> None:
    for origin in ("kline", "trades"):
        lake.bars(range(2 * DAY), origin=origin)
        lake.bars(range(0, 2 * DAY, 60), timeframe="1h", origin=origin)
    lake.bars([5, 6, 7], symbol="ETHUSDT", volume=0.0, count=0, quote_volume=0.0, taker_buy_volume=0.0)
    report = check(lake, level)
    assert report.counts.filter(pl.col("severity") != "info").is_empty()
    assert tables(lake.root)["duplicates"].to_list() == [0]


# Invariants


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"low": 10.5, "high": 11.0, "close": 11.0, "quote_volume": 21.5}, "low is above open or close"),
        ({"low": 9.5, "close": 9.0, "quote_volume": 19.5}, "low is above open or close"),
        ({"high": 9.5, "low": 9.0, "close": 9.2, "quote_volume": 19.0}, "high is below open or close"),
        ({"high": 10.5, "close": 11.0}, "high is below open or close"),
        ({"taker_buy_volume": 2.1}, "taker_buy_volume is not within 0 and volume"),
        ({"taker_buy_volume": -0.1}, "taker_buy_volume is not within 0 and volume"),
        ({"count": 0}, "of count and volume one is 0"),
        ({"volume": 0.0, "taker_buy_volume": 0.0}, "of count and volume one is 0"),
        ({"quote_volume": 20.001}, "quote_volume / volume is not within low and high"),
        ({"quote_volume": 19.999}, "quote_volume / volume is not within low and high"),
    ],
)
def test_a_bar_that_cannot_be_is_an_error(lake: Any, values: dict[str, Any], words: str) -> None:
    lake.bars([1])
    lake.bars([2], **values)
    (finding,) = found(check(lake), "bar_invariant")
    assert finding["detail"] == f"1m: {words}"
    assert (finding["severity"], finding["venue"], finding["symbol"]) == ("error", SPOT, "BTCUSDT")
    assert (finding["first_time"], finding["last_time"]) == (minute(2), minute(3) - timedelta(microseconds=1))


@pytest.mark.parametrize(
    "values",
    [
        # each trade's quote volume is rounded to eight digits
        {"volume": 0.002, "taker_buy_volume": 0.001, "quote_volume": 0.020000009},
        {"volume": 0.002, "taker_buy_volume": 0.001, "quote_volume": 0.019999991},
        {"quote_volume": None, "count": None, "taker_buy_volume": None},
        {"venue": COIN_M, "quote_volume": 0.2},
        {"volume": 0.0, "count": 0, "quote_volume": 0.0, "taker_buy_volume": 0.0},
    ],
)
def test_a_bar_that_may_be_is_none(lake: Any, values: dict[str, Any]) -> None:
    lake.bars([2], **values)
    assert found(check(lake), "bar_invariant") == []


def test_what_is_wrong_with_a_bar_is_one_finding_of_one_day(lake: Any) -> None:
    lake.bars([1, 2], high=9.0, count=0)
    report = check(lake, "integrity")
    assert report.errors == 2
    assert "; " in found(report, "bar_invariant")[0]["detail"]
    assert report.days["condition"].to_list() == ["degraded"]
    assert report.days["min_price"].to_list() == [10.0]


# Holes


def test_each_hole_between_bars_is_a_finding(lake: Any) -> None:
    lake.bars([n for n in range(3 * DAY) if n not in (7, 8, 9) and not DAY - 5 <= n < 2 * DAY + 5])
    lake.bars([0, 60, 180], timeframe="1h")
    lake.bars([4, 5], symbol="ETHUSDT")
    report = check(lake)
    assert [(each["first_time"], each["last_time"], each["observed"], each["severity"])
            for each in found(report, "bar_gap")] == [
        (minute(7), minute(9), 3.0, "warn"),
        (minute(120), minute(120), 1.0, "warn"),
        (minute(DAY - 5), minute(2 * DAY + 4), DAY + 10.0, "warn"),
    ]  # fmt: skip
    assert found(report, "bar_gap")[0]["detail"] == "3 bars of 1m (kline) are missing"
    assert report.errors == 0


def test_series_that_pause_at_night_have_no_holes(lake: Any) -> None:
    lake.bars([0, 400], origin="flatfile", venue="us-stocks")
    lake.bars([200], origin="trades")
    assert found(check(lake), "bar_gap") == []


def test_the_hole_of_2023_03_24_in_the_official_klines_is_found(lake: Any, data: Path) -> None:
    rows = pl.read_csv(data / "dumps" / "spot_BTCUSDT-1h-2023-03.with-hole.csv").select(
        pl.from_epoch("open_time", "ms").cast(pl.Datetime("us")).dt.replace_time_zone("UTC").alias("time"),
        *("open", "high", "low", "close", "volume", "quote_volume", "count"),
        *("taker_buy_volume", "taker_buy_quote_volume"),
        **{name: pl.lit(word) for name, word in {"venue": SPOT, "symbol": "BTCUSDT", "timeframe": "1h",
                                                 "source": "dump", "origin": "kline"}.items()},
        complete=pl.lit(value=True), revision=pl.lit(0),
    )  # fmt: skip
    lake.put("bar", shape(DATASETS["bar"], rows))
    report = check(lake, "integrity")
    (hole,) = found(report, "bar_gap")
    assert hole["first_time"] == hole["last_time"] == datetime(2023, 3, 24, 13, tzinfo=UTC)
    assert report.errors == 0


# Against the venue's klines


def both(lake: Any, minutes: range, **columns: Any) -> None:
    lake.bars(minutes, origin="kline", **columns)
    lake.bars(minutes, origin="trades", **columns)


def test_on_spot_every_bar_has_to_be_equal(lake: Any) -> None:
    both(lake, range(100))
    lake.bars([100], origin="kline")
    lake.bars([100], origin="trades", volume=2.5, quote_volume=25.0, count=3)
    (finding,) = found(check(lake), "volume_reconcile")
    assert (finding["severity"], finding["first_time"]) == ("error", minute(100))
    assert finding["detail"] == "1m: volume 2.5, not 2.0, count 3, not 2, quote_volume 25.0, not 20.0"
    assert (finding["observed"], finding["threshold"]) == (2.5, 2.0)


@pytest.mark.parametrize(
    ("values", "is_equal"),
    [
        ({"open": 10.0 + 1e-12}, False),
        ({"taker_buy_volume": 1.0000001}, False),
        ({"count": 3}, False),
        ({"quote_volume": 20.0 * (1 + 5e-10)}, True),
        ({"quote_volume": 20.0 * (1 + 5e-9)}, False),
        ({"taker_buy_quote_volume": 10.0 * (1 + 5e-9)}, False),
        ({"taker_buy_quote_volume": None}, False),
        ({"complete": False, "source": "live"}, True),
    ],
)
def test_prices_volumes_and_counts_are_exact_and_quote_volumes_rounded(
    values: dict[str, Any], *, is_equal: bool
) -> None:
    compared = compare(bars([1], origin="trades", **values), bars([1]), venue=SPOT)
    assert compared.bars.is_empty() == is_equal
    assert compared.days["passes"].to_list() == [is_equal]


def test_on_futures_a_day_passes_by_its_volume_and_its_bars_are_told(lake: Any) -> None:
    both(lake, range(2000), venue=FUTURES)
    lake.bars([2001], venue=FUTURES)
    lake.bars([2001], venue=FUTURES, origin="trades", volume=2.4, quote_volume=24.0)
    report = check(lake)
    assert [each["severity"] for each in found(report, "volume_reconcile")] == ["warn"]
    lake.bars([DAY - 1 - n for n in range(2)], venue=FUTURES, symbol="ETHUSDT")
    lake.bars([DAY - 1], venue=FUTURES, symbol="ETHUSDT", origin="trades")
    lake.bars([DAY - 2], venue=FUTURES, symbol="ETHUSDT", origin="trades", volume=2.01, quote_volume=20.1)
    day, bar = (each for each in found(check(lake), "volume_reconcile") if each["symbol"] == "ETHUSDT")
    assert (day["severity"], bar["severity"]) == ("error", "warn")
    assert day["detail"] == "1m: 2024-01-15 fails: volume 4.01, not 4 (0.250% off), 1 of 2 bars differ"


def test_a_bar_that_one_side_lacks_is_none_that_differs_when_nobody_traded() -> None:
    empty = {"volume": 0.0, "count": 0, "quote_volume": 0.0, "taker_buy_volume": 0.0}
    ours = pl.concat([bars([1, 2], origin="trades"), bars([3], origin="trades", **empty)])
    theirs = pl.concat([bars([2, 4]), bars([5], **empty)])
    compared = compare(ours, theirs, venue=SPOT)
    assert compared.bars.select("time", "what").rows() == [(minute(1), "only ours"), (minute(4), "only theirs")]
    assert compared.days.select("bars", "differing", "passes").rows() == [(5, 2, False)]


def test_a_missing_bar_is_told_with_its_trades(lake: Any) -> None:
    both(lake, range(3))
    lake.bars([3], origin="kline")
    lake.bars([4], origin="trades")
    said = [each["detail"] for each in found(check(lake), "volume_reconcile")]
    assert said == ["1m: no bar here, and 2 trades in the official kline", "1m: no official kline, and 2 trades here"]


def test_days_that_one_side_lacks_and_other_timeframes_are_not_compared(lake: Any) -> None:
    both(lake, range(10))
    lake.bars(range(DAY, DAY + 10), origin="trades")
    lake.bars([0], origin="trades", timeframe="1h")
    lake.bars([5], origin="trades", symbol="ETHUSDT")
    assert found(check(lake), "volume_reconcile") == []


def test_a_revised_bar_is_the_one_that_is_compared() -> None:
    old, new = bars([1], origin="trades", volume=1.5), bars([1], origin="trades", revision=1)
    assert compare(pl.concat([new, old]), bars([1]), venue=SPOT).bars.is_empty()


def test_more_bars_than_a_person_reads_are_counted(lake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(klines, "BARS_TOLD", 3)
    lake.bars(range(10), origin="kline")
    lake.bars(range(10), origin="trades", volume=2.0000001)
    told = found(check(lake), "volume_reconcile")
    assert len(told) == 4
    assert sorted(each["observed"] for each in told) == [2.0000001, 2.0000001, 2.0000001, 7.0]
    assert [each["severity"] for each in told] == ["error"] * 4
    assert "1m: and 7 more bars of 2024-01-15 differ" in [each["detail"] for each in told]
