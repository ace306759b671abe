"""What comes in flat files is judged file by file: no hole, no day and no verdict per symbol is made of it."""

import gzip
import hashlib
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from crypto_lake import calendar, report
from crypto_lake.models import DATASETS
from crypto_lake.models.coverage import COVERAGE
from crypto_lake.models.flatfile import FlatFile
from crypto_lake.processors.follow import Follower
from crypto_lake.processors.sequence import holes
from crypto_lake.processors.shape import shape
from crypto_lake.query import Report, coverage, read, tables, validate
from crypto_lake.query.coverage import FACTS

MONDAY = datetime(2024, 1, 15, tzinfo=UTC)  # the first midnight of the lake that tests write to
FRIDAY = -3 * 1440  # in minutes before it
OPEN = 870  # half past nine in New York
LATER = datetime(2024, 2, 15, tzinfo=UTC)
SHA256 = "ab" * 32
LEVELS = ["quick", "advanced", "integrity"]


def stock_bars(lake: Any, minutes: Iterable[int], symbol: str = "AAPL", **columns: Any) -> None:
    flat = {"venue": "us-stocks", "source": "flatfile", "origin": "flatfile", "quote_volume": None}
    flat |= {"taker_buy_volume": None, "taker_buy_quote_volume": None, "symbol": symbol}
    lake.bars(minutes, **flat | columns)


def stock_trades(lake: Any, days: Iterable[int], *, places: Iterable[int] = (0, 1, 2), **columns: Any) -> None:
    """Trades of stocks: the ids begin anew each day, a billion further."""
    some = [(day, place) for day in days for place in places]
    times = [MONDAY + timedelta(days=day, hours=15, seconds=place) for day, place in some]
    rows = {
        "venue": "us-stocks",
        "symbol": "AAPL",
        "time": times,
        "source": "flatfile",
        "trade_id": [(19_737 + day) * 10**9 + place for day, place in some],
        "price": 100.0,
        "quantity": 1.5,
        "sequence_number": [1000 + 7 * place for _, place in some],
    }
    lake.put("trade", shape(DATASETS["trade"], pl.DataFrame(rows | columns)))


def certificate(lake: Any, day: date, *, timeframe: str | None = "1m", at: int = 0, **columns: Any) -> None:
    """A row of coverage as a backfill writes it of a flat file; looked at so many seconds after noon."""
    row = {
        "venue": "us-stocks",
        "symbol": "*",
        "time": datetime(day.year, day.month, day.day, tzinfo=UTC),
        "dataset": "bar",
        "rows": 10,
        "missing_rows": 0,
        "repaired_rows": 10,
        "downtime_s": 0.0,
        "dump_sha256": SHA256,
        "dump_rows": 10,
        "verdict": "complete",
        "checked_time": datetime(2024, 2, 1, 12, 0, at, tzinfo=UTC),
        "timeframe": timeframe,
        "date": day,
    }
    lake.put("coverage", pl.DataFrame([row | columns], schema=COVERAGE.schema))


def spoil(lake: Any, name: str) -> None:
    """Files whose rows cannot be read any more."""
    for file in lake.path.glob(f"{name}/date=*/*.parquet"):
        file.write_bytes(b"x" * file.stat().st_size)


def look(lake: Any, dataset: str | None = "bar", **asked: Any) -> pl.DataFrame:
    return coverage(dataset, root=lake.root, now=LATER, **asked)


def check(lake: Any, level: Any = "integrity", **asked: Any) -> Report:
    return validate(lake.root, level=level, now=LATER, **asked)


def told(found: Report) -> list[tuple[str, str]]:
    return found.counts.filter(pl.col("severity") != "info").select("check", "severity").sort("check").rows()


# Ids


def trade_rows(venue: str, ids: list[int]) -> pl.DataFrame:
    times = [MONDAY + timedelta(seconds=n) for n in range(len(ids))]
    rows = {"venue": venue, "symbol": "AAPL", "time": times, "received_time": times, "trade_id": ids, "source": "live"}
    return shape(DATASETS["trade"], pl.DataFrame(rows | {"price": 1.0, "quantity": 1.0}))


def test_ids_out_of_flat_files_have_no_holes() -> None:
    both = pl.concat([trade_rows("us-stocks", [1, 5, 10**9]), trade_rows("binance", [1, 5])])
    assert holes(DATASETS["trade"], both).select("venue", "first_id", "last_id").rows() == [("binance", 2, 4)]


def test_nobody_follows_the_ids_of_flat_files() -> None:
    follower = Follower(DATASETS["trade"])
    for ids in ([1, 5], [10**9]):
        found = follower.follow(trade_rows("us-stocks", ids), now_us=0)
        assert found.holes == []
        follower.advance(found)
    assert len(follower.follow(trade_rows("binance", [1, 5]), now_us=0).holes) == 1


# Coverage


def test_a_venue_with_flat_files_is_covered_file_by_file(lake: Any) -> None:
    for symbol in ("A", "AAPL", "NULL"):
        stock_bars(lake, [FRIDAY + OPEN, OPEN, OPEN + 7], symbol)
    certificate(lake, date(2024, 1, 12))
    certificate(lake, date(2024, 1, 15), verdict="incomplete", dump_sha256=None, rows=0)
    certificate(lake, date(2024, 1, 15), at=5)
    certificate(lake, date(2024, 1, 15), timeframe="1d")
    certificate(lake, date(2024, 1, 16), verdict="incomplete", dump_sha256=None, rows=0, missing_rows=None)
    spoil(lake, "bar")
    steps: list[tuple[str, int, int]] = []
    found = look(lake, on_step=lambda *step: steps.append(step))
    assert dict(found.schema) == COVERAGE.schema
    assert found.select("venue", "symbol", "timeframe", "date", "verdict").rows() == [
        ("us-stocks", "*", "1d", date(2024, 1, 15), "complete"),
        ("us-stocks", "*", "1m", date(2024, 1, 12), "complete"),
        ("us-stocks", "*", "1m", date(2024, 1, 15), "complete"),
        ("us-stocks", "*", "1m", date(2024, 1, 16), "incomplete"),
    ]
    assert steps == []
    assert look(lake, start="2024-01-16")["date"].to_list() == [date(2024, 1, 16)]
    assert look(lake, end="2024-01-12")["date"].to_list() == [date(2024, 1, 12)]


def test_other_venues_of_the_table_are_covered_as_ever(lake: Any) -> None:
    lake.bars(range(1440))
    alone = look(lake)
    stock_bars(lake, [OPEN, OPEN + 9])
    stock_bars(lake, [FRIDAY + OPEN])
    certificate(lake, date(2024, 1, 15))
    both = look(lake)
    assert both.filter(pl.col("venue") == "binance").equals(alone)
    assert both.select("venue", "symbol").unique().sort("venue").rows() == [("binance", "BTCUSDT"), ("us-stocks", "*")]


def test_a_file_with_rows_of_both_kinds_of_venue_is_read(lake: Any) -> None:
    both = [trade_rows(venue, [1, 2]) for venue in ("crypto", "kraken")]
    lake.put("trade", pl.concat(both))
    assert look(lake, "trade").select("venue", "rows").rows() == [("kraken", 2)]


def test_certificates_of_some_symbols_of_a_file_are_shown_for_these(lake: Any) -> None:
    stock_bars(lake, [OPEN])
    certificate(lake, date(2024, 1, 15), symbol="AAPL", verdict="incomplete")
    certificate(lake, date(2024, 1, 16), symbol="MSFT", verdict="incomplete")
    certificate(lake, date(2024, 1, 17))
    assert look(lake)["symbol"].to_list() == ["*", "AAPL", "MSFT"]
    assert look(lake, symbols=["AAPL"])["symbol"].to_list() == ["*", "AAPL"]


def test_who_certifies_the_days_of_a_symbol_gets_nothing_about_files(lake: Any) -> None:
    lake.bars([1])
    certificate(lake, date(2024, 1, 15))
    facts = pl.DataFrame([{"venue": "binance", "symbol": "BTCUSDT", "date": date(2024, 1, 15)}], schema=FACTS)
    assert look(lake, facts=facts, symbols=["BTCUSDT"])["venue"].to_list() == ["binance"]


def test_a_table_coverage_from_before_there_were_timeframes_is_read(lake: Any) -> None:
    lake.trades(range(1440))
    facts = {"venue": "binance-futures", "symbol": "BTCUSDT", "dataset": "agg_trade", "timeframe": None}
    certificate(lake, date(2024, 1, 15), **facts)
    old = pl.read_delta(f"{lake.root}/coverage").drop("timeframe")
    old.write_delta(f"{lake.root}/coverage", mode="overwrite", delta_write_options={"schema_mode": "overwrite"})
    assert "timeframe" not in pl.read_delta(f"{lake.root}/coverage").columns
    found = look(lake, "agg_trade")
    assert found.select("verdict", "dump_sha256", "timeframe").rows() == [("complete", SHA256, None)]
    schema = check(lake, "quick", datasets=["coverage"]).findings.filter(pl.col("check") == "schema")
    assert schema["severity"].to_list() == ["info"]
    assert "column timeframe is not there yet" in schema["detail"].item()


def test_the_calendar_shows_files_and_says_which_is_not_there(lake: Any) -> None:
    stock_bars(lake, [OPEN])
    certificate(lake, date(2024, 1, 15))
    certificate(lake, date(2024, 1, 15), timeframe="1d")
    missing = {"verdict": "incomplete", "dump_sha256": None, "dump_rows": None, "rows": 0, "missing_rows": None}
    certificate(lake, date(2024, 1, 16), **missing)
    found = look(lake)
    shown = "\n".join(line.plain for line in calendar.calendar(found, calendar.PLAIN))
    assert "bar us-stocks * 1d  2024-01-15 to 2024-01-15: 1 of 1 days complete, 1 certified" in shown
    assert "bar us-stocks * 1m  2024-01-15 to 2024-01-16: 1 of 2 days complete" in shown
    assert "2024-01-16                bar us-stocks * 1m  incomplete: its file is not there" in shown
    assert "3 days of 2 series" in shown
    assert [name for name, _ in report.lines(found)] == ["bar us-stocks * 1d", "bar us-stocks * 1m"]


# Tables


def test_summaries_count_no_holes_of_flat_files(lake: Any) -> None:
    stock_trades(lake, [0, 1])
    summary = tables(lake.root).row(0, named=True)
    assert (summary["rows"], summary["duplicates"], summary["holes"]) == (6, None, None)
    stock_trades(lake, [0], venue="binance", trade_id=[1, 2, 9])
    summary = tables(lake.root).row(0, named=True)
    assert (summary["rows"], summary["duplicates"], summary["holes"]) == (9, 0, 1)


# Validation


@pytest.mark.parametrize("level", LEVELS)
def test_nights_weekends_and_minutes_without_a_trade_are_no_finding(lake: Any, level: str) -> None:
    for minutes in ([FRIDAY + OPEN, FRIDAY + OPEN + 300], [OPEN, OPEN + 1, OPEN + 30], [1440 + 240]):
        stock_bars(lake, minutes)
        stock_bars(lake, minutes[:1], "THIN")
    stock_bars(lake, [FRIDAY + 300], timeframe="1d")
    stock_bars(lake, [300], timeframe="1d")
    stock_bars(lake, [200 * 1440 + 240], timeframe="1d")
    stock_trades(lake, [-3, 0, 1])
    found = check(lake, level)
    assert told(found) == []
    assert found.tables["missing_days"].to_list() == [0, 0]
    assert told(check(lake, level, start="2024-01-12", end="2024-01-16")) == []
    assert told(check(lake, level, start="2024-01-13", end="2024-01-14", datasets=["bar"])) == [("empty_table", "warn")]


def test_bars_made_here_of_trades_of_stocks_have_no_grid_either(lake: Any) -> None:
    stock_bars(lake, [OPEN, OPEN + 5], origin="trades", source="derived")
    assert told(check(lake)) == []
    lake.bars([1, 5], origin="trades")
    assert told(check(lake)) == [("bar_gap", "warn")]


def test_missing_days_of_other_venues_are_told_beside_flat_files(lake: Any) -> None:
    stock_bars(lake, [FRIDAY + OPEN, 1440 + OPEN])
    stock_bars(lake, [20 * 1440 + OPEN])
    lake.bars([1])
    lake.bars([2 * 1440])
    found = check(lake, "quick")
    assert found.findings.filter(pl.col("check") == "missing_day")["observed"].to_list() == [1.0]
    assert told(check(lake, "quick", start="2024-01-13", end="2024-01-14", datasets=["bar"])) == [
        ("empty_table", "warn"),
        ("missing_day", "warn"),
    ]


def test_the_days_of_flat_files_are_a_line_for_all_symbols(lake: Any) -> None:
    for symbol in ("A", "B", "C"):
        stock_bars(lake, [FRIDAY + OPEN, OPEN], symbol)
        stock_trades(lake, [0], symbol=symbol)
    lake.bars([1])
    found = check(lake).days
    lines = found.select("dataset", "venue", "symbol", "date", "rows", "duplicates", "longest_pause_s", "condition")
    assert lines.rows() == [
        ("trade", "us-stocks", "*", date(2024, 1, 15), 9, 0, None, "available"),
        ("bar", "binance", "BTCUSDT", date(2024, 1, 15), 1, 0, None, "available"),
        ("bar", "us-stocks", "*", date(2024, 1, 12), 3, 0, None, "available"),
        ("bar", "us-stocks", "*", date(2024, 1, 15), 3, 0, None, "available"),
    ]
    assert found["mean_price"].to_list() == [None, 10.0, None, None]


def test_rows_out_of_flat_files_that_cannot_be_are_found(lake: Any) -> None:
    stock_bars(lake, [OPEN], high=9.0)
    stock_bars(lake, [FRIDAY + OPEN])
    stock_trades(lake, [0], price=-1.0)
    found = check(lake)
    assert told(found) == [("bar_invariant", "error"), ("price_nonpositive", "error")]
    spoilt = found.days.filter(pl.col("condition") == "degraded").select("dataset", "symbol", "date").rows()
    assert spoilt == [("trade", "*", date(2024, 1, 15)), ("bar", "*", date(2024, 1, 15))]


@pytest.mark.parametrize("level", ["advanced", "integrity"])
def test_rows_that_are_there_twice_are_one_finding_for_the_venue(lake: Any, level: str) -> None:
    for symbol in ("A", "B", "C"):
        stock_bars(lake, [OPEN, OPEN + 1], symbol)
    for symbol in ("A", "B"):
        stock_bars(lake, [OPEN], symbol)
    found = check(lake, level)
    (row,) = found.findings.filter(pl.col("check") == "duplicate_key").to_dicts()
    assert (row["venue"], row["symbol"], row["observed"]) == ("us-stocks", "*", 4.0)
    assert found.days["duplicates"].to_list() == [4]


# The ledger


def stock_file(lake: Any, tmp_path: Path, text: str, *, rows: int, folder: str = "us_stocks_sip/minute_aggs_v1") -> str:
    """A flat file that is kept and stands in the ledger; its sum."""
    file = FlatFile(folder, date(2024, 1, 15))
    kept = tmp_path / file.path
    kept.parent.mkdir(parents=True)
    kept.write_bytes(gzip.compress(text.encode()))
    sha256 = hashlib.sha256(kept.read_bytes()).hexdigest()
    lake.ledger(file.path, sha256=sha256, rows=rows)
    return sha256


HEADER = "ticker,volume,open,close,high,low,window_start,transactions\n"
LINES = "".join(f"{name},1,1,1,1,1,1705327200000000000,1\n" for name in ("AAPL", "ZVZZT", "ZVZZT1", "NTEST", "NULL"))


def test_the_ledger_of_flat_files_is_understood(lake: Any, tmp_path: Path) -> None:
    stock_bars(lake, [OPEN])
    sha256 = stock_file(lake, tmp_path, HEADER + LINES, rows=3)
    certificate(lake, date(2024, 1, 15), dump_sha256=sha256)
    assert told(check(lake, landing=tmp_path)) == []
    certificate(lake, date(2024, 1, 16))
    assert told(check(lake, landing=tmp_path)) == []


def test_options_on_test_tickers_are_none_of_the_rows(lake: Any, tmp_path: Path) -> None:
    lines = "".join(f"{name},1,1,1,1,1,1,1\n" for name in ("O:AAPL240119C00100000", "O:ZVZZT240119C00100000"))
    sha256 = stock_file(lake, tmp_path, HEADER + lines[:-1], rows=1, folder="us_options_opra/minute_aggs_v1")
    certificate(lake, date(2024, 1, 15), venue="us-options", dump_sha256=sha256)
    assert told(check(lake, landing=tmp_path)) == []


@pytest.mark.parametrize(("rows", "severity"), [(4, "error"), (2, "warn")])
def test_a_flat_file_with_other_rows_than_the_ledger_says_is_told(
    lake: Any, tmp_path: Path, rows: int, severity: str
) -> None:
    sha256 = stock_file(lake, tmp_path, HEADER + LINES, rows=rows)
    certificate(lake, date(2024, 1, 15), dump_sha256=sha256)
    assert told(check(lake, landing=tmp_path)) == [("archive_rows", severity)]


def test_of_a_file_of_which_some_symbols_were_wanted_other_lines_are_no_finding(lake: Any, tmp_path: Path) -> None:
    sha256 = stock_file(lake, tmp_path, HEADER + LINES, rows=1)
    certificate(lake, date(2024, 1, 15), symbol="AAPL", dump_sha256=sha256)
    assert told(check(lake, landing=tmp_path)) == []


def test_a_flat_file_that_changed_or_has_no_certificate_is_told(lake: Any, tmp_path: Path) -> None:
    stock_file(lake, tmp_path, HEADER + LINES, rows=3)
    (row,) = check(lake, "advanced").findings.to_dicts()
    assert (row["check"], row["dataset"], row["venue"], row["symbol"]) == (
        "certificate_missing",
        "bar",
        "us-stocks",
        "*",
    )
    assert row["first_time"] == MONDAY
    assert check(lake, "advanced", start="2024-01-16").counts.is_empty()
    (tmp_path / FlatFile("us_stocks_sip/minute_aggs_v1", date(2024, 1, 15)).path).write_bytes(b"x")
    assert told(check(lake, landing=tmp_path)) == [("certificate_missing", "warn"), ("sha256_differs", "error")]


# Reading


def test_one_symbol_of_a_month_opens_only_the_files_that_may_have_it(lake: Any) -> None:
    stock_bars(lake, [FRIDAY + OPEN, OPEN])
    stock_bars(lake, [OPEN], "ZZZZ")
    lake.bars([1], symbol="AAPL")
    for file in lake.path.glob("bar/date=*/*.parquet"):
        if pl.read_parquet(file).row(0, named=True)["symbol"] == "ZZZZ":
            file.write_bytes(b"x" * file.stat().st_size)
    month = {"timeframe": "1m", "start": "2024-01", "end": "2024-01"}
    rows = read("bar", venue="us-stocks", symbols=["AAPL"], root=lake.root, **month).collect().sort("time")
    assert rows.select("venue", "time").rows() == [
        ("us-stocks", MONDAY + timedelta(minutes=FRIDAY + OPEN)),
        ("us-stocks", MONDAY + timedelta(minutes=OPEN)),
    ]
