"""Generated flat files: the layout, the order and the oddities of the real ones, and always the same."""

import csv
import gzip
import io
from datetime import UTC, date, datetime, timedelta
from itertools import groupby, pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from crypto_lake.models.flatfile import FlatFile, folders, is_test, option_root
from crypto_lake.simulator.flatfiles import FlatMarket

SUMMER, WINTER = date(2026, 5, 22), date(2025, 12, 22)
MARKET = FlatMarket()
NEW_YORK = ZoneInfo("America/New_York")
AGGS = "ticker,volume,open,close,high,low,window_start,transactions"
HEADERS = {
    "us_indices/day_aggs_v1": "ticker,open,close,high,low,window_start",
    "us_indices/minute_aggs_v1": "ticker,open,close,high,low,window_start",
    "us_stocks_sip/trades_v1": "ticker,conditions,correction,exchange,id,participant_timestamp,price,sequence_number,"
    "sip_timestamp,size,tape,trf_id,trf_timestamp",
    "us_options_opra/trades_v1": "ticker,conditions,correction,exchange,price,sip_timestamp,size",
    "global_crypto/trades_v1": "ticker,conditions,exchange,id,participant_timestamp,price,size",
}
STOCK_MINUTES, OPTION_MINUTES = "us_stocks_sip/minute_aggs_v1", "us_options_opra/minute_aggs_v1"
SAMPLES = {
    "us_stocks_sip/day_aggs_v1": "stocks_day_aggs_v1_2026-05-22.sample.csv",
    STOCK_MINUTES: "stocks_minute_aggs_v1_2026.sample.csv",
    "us_stocks_sip/trades_v1": "stocks_trades_v1_2026.sample.csv",
    OPTION_MINUTES: "options_minute_aggs_v1_2026-05-22.sample.csv",
    "us_options_opra/trades_v1": "options_trades_v1_2026-05-22.sample.csv",
}


def lines_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def clock_of(folder: str) -> str:
    """The column by which a ticker's rows are sorted."""
    header = HEADERS.get(folder, AGGS).split(",")
    return next(name for name in ("window_start", "sip_timestamp", "participant_timestamp") if name in header)


def instant(ns: str | int) -> datetime:
    return datetime.fromtimestamp(int(ns) / 10**9, UTC)


@pytest.mark.parametrize("folder", folders())
def test_every_file_has_the_columns_of_its_kind_and_is_sorted_by_ticker_and_time(folder: str) -> None:
    text = MARKET.text(folder, SUMMER)
    assert text.partition("\n")[0] == HEADERS.get(folder, AGGS)
    rows = [(line["ticker"], int(line[clock_of(folder)])) for line in lines_of(text)]
    assert rows == sorted(rows)
    assert len({ticker for ticker, _ in rows}) > 2


@pytest.mark.parametrize("folder", folders())
def test_the_values_the_text_and_the_file_are_the_same_and_come_again(folder: str, tmp_path: Path) -> None:
    file = FlatFile(folder, SUMMER)
    text = MARKET.text(file.folder, file.day)
    again = FlatMarket()
    assert gzip.decompress(again.gz(folder, SUMMER)).decode() == text
    assert again.write(tmp_path / "a.csv.gz", folder, SUMMER) == len(MARKET.gz(folder, SUMMER))
    assert (tmp_path / "a.csv.gz").read_bytes() == MARKET.gz(folder, SUMMER)
    for line, row in zip(lines_of(text), MARKET.rows(folder, SUMMER), strict=True):
        for name, value in row.items():
            told = line[name]
            assert value == (type(value)(told) if value is not None else (None if told == "" else told)), (name, told)
    assert FlatMarket(seed=2).text(folder, SUMMER) != text
    assert MARKET.text(folder, SUMMER + timedelta(days=3)) != text


@pytest.mark.parametrize(("folder", "name"), SAMPLES.items())
def test_they_are_written_as_the_real_ones(folder: str, name: str, data: Path) -> None:
    """The same columns, and as many places behind each point."""
    real = lines_of((data / "massive" / name).read_text())[0]
    made = lines_of(MARKET.text(folder, SUMMER))
    assert list(made[0]) == list(real)
    has_six_places = {column: all(len(line[column].partition(".")[2]) == 6 for line in made) for column in real}
    assert has_six_places == {column: len(value.partition(".")[2]) == 6 for column, value in real.items()}


def test_times_are_those_of_new_york_in_summer_and_in_winter() -> None:
    days = "us_stocks_sip/day_aggs_v1"
    assert {row["window_start"] for row in MARKET.rows(days, SUMMER)} == {1779422400000000000}
    assert {instant(row["window_start"]).hour for row in MARKET.rows(days, WINTER)} == {5}
    for day in (SUMMER, WINTER):
        times = [instant(row["window_start"]).astimezone(NEW_YORK) for row in MARKET.rows(STOCK_MINUTES, day)]
        assert (f"{min(times):%d %H:%M}", f"{max(times):%d %H:%M}") == (f"{day:%d} 04:00", f"{day:%d} 19:59")
    assert max(instant(row["window_start"]) for row in MARKET.rows(STOCK_MINUTES, WINTER)).date() > WINTER
    options = [instant(row["window_start"]).astimezone(NEW_YORK) for row in MARKET.rows(OPTION_MINUTES, SUMMER)]
    assert "09:30" <= f"{min(options):%H:%M}" < f"{max(options):%H:%M}" < "16:00"


def test_minutes_without_a_trade_are_left_out_and_none_comes_twice() -> None:
    minutes = {
        ticker: [row["window_start"] for row in rows]
        for ticker, rows in groupby(MARKET.rows(STOCK_MINUTES, SUMMER), key=lambda row: row["ticker"])
    }
    assert len(minutes["AAPL"]) == 960
    assert len(minutes["NA"]) < 900
    assert all(early < late for times in minutes.values() for early, late in pairwise(times))


def test_tickers_are_as_odd_as_the_real_ones_and_some_are_tests() -> None:
    tickers = {row["ticker"] for row in MARKET.rows(STOCK_MINUTES, SUMMER)}
    assert {"NA", "NAN", "NULL", "TRUE", "BRK.B", "BApA"} <= tickers
    assert len([ticker for ticker in tickers if is_test("us-stocks", ticker)]) == 3
    options = [row["ticker"] for row in MARKET.rows(OPTION_MINUTES, SUMMER)]
    roots = [root for root, _ in groupby(options, key=option_root)]
    assert len(roots) == len(set(roots)) > 5
    assert roots.index("AAPL1") + 1 == roots.index("AAPL")
    assert any(is_test("us-options", ticker) for ticker in options)


@pytest.mark.parametrize("place", ["us_stocks_sip", "us_options_opra", "us_indices", "global_crypto", "global_forex"])
def test_day_bars_are_what_the_minute_bars_make(place: str) -> None:
    minutes = MARKET.rows(f"{place}/minute_aggs_v1", SUMMER)
    made = [list(rows) for _, rows in groupby(minutes, key=lambda row: row["ticker"])]
    for bars, day in zip(made, MARKET.rows(f"{place}/day_aggs_v1", SUMMER), strict=True):
        assert day["ticker"] == bars[0]["ticker"]
        assert (day["open"], day["close"]) == (bars[0]["open"], bars[-1]["close"])
        assert (day["high"], day["low"]) == (max(bar["high"] for bar in bars), min(bar["low"] for bar in bars))
        for amount in {"volume", "transactions"} & set(day):
            assert day[amount] == pytest.approx(sum(bar[amount] for bar in bars), rel=1e-12)
    assert all(0 < bar["low"] <= bar["open"] <= bar["high"] >= bar["close"] >= bar["low"] for bar in minutes)


def test_shares_have_fractions_since_february_2026_only() -> None:
    line = MARKET.text(STOCK_MINUTES, date(2026, 2, 23)).splitlines()[1]
    assert all(len(value.partition(".")[2]) == 6 for value in line.split(",")[1:6])
    assert any(row["volume"] % 1 for row in MARKET.rows(STOCK_MINUTES, date(2026, 2, 23)))
    for row in lines_of(MARKET.text(STOCK_MINUTES, date(2026, 2, 20))):
        assert row["volume"].isdecimal()


def test_prices_of_options_have_no_more_places_than_they_need() -> None:
    prices = {line["open"] for line in lines_of(MARKET.text(OPTION_MINUTES, SUMMER))}
    assert any(price.isdecimal() for price in prices)
    assert not any(price.endswith("0") and "." in price for price in prices)


def test_trades_have_quoted_lists_of_conditions_and_nanoseconds() -> None:
    text = MARKET.text("us_stocks_sip/trades_v1", SUMMER)
    assert ',"12,37",' in text
    rows = lines_of(text)
    assert {row["conditions"] for row in rows} > {"", "37", "12,37"}
    assert any(int(row["sip_timestamp"]) % 1000 for row in rows)
    assert all(row["participant_timestamp"] <= row["sip_timestamp"] for row in rows)
    assert {(row["exchange"] == "4", row["trf_id"] != "0", row["trf_timestamp"] != "0") for row in rows} == {
        (True, True, True),
        (False, False, False),
    }
    for _, each in groupby(rows, key=lambda row: row["ticker"]):
        assert all(int(early["sequence_number"]) < int(late["sequence_number"]) for early, late in pairwise(each))


@pytest.mark.parametrize("folder", folders())
def test_a_file_has_as_many_rows_as_were_asked_for(folder: str) -> None:
    for rows in (1, 7, 5_000):
        lines = lines_of(MARKET.text(folder, SUMMER, rows=rows))
        assert len(lines) == rows
        order = [(line["ticker"], int(line[clock_of(folder)])) for line in lines]
        assert order == sorted(order)
        if not folder.endswith("trades_v1"):
            assert len(set(order)) == rows


def test_a_large_file_is_written_in_pieces_that_join_without_a_seam(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crypto_lake.simulator.flatfiles.PIECE_ROWS", 3_000)
    for folder in (STOCK_MINUTES, OPTION_MINUTES):
        path = tmp_path / "large.csv.gz"
        assert MARKET.write(path, folder, SUMMER, rows=40_000) == path.stat().st_size
        lines = lines_of(gzip.decompress(path.read_bytes()).decode())
        order = [(line["ticker"], line["window_start"]) for line in lines]
        assert len(order) == len(set(order)) == 40_000
        assert order == sorted(order)
