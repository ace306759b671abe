"""Flat files into their table: every value as it is written, whatever order, tickers and hours the rows have."""

import csv
import gzip
import hashlib
import io
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from deltalake import DeltaTable

from crypto_lake.backfill.flat import FlatJob, FlatLanded, FlatTaken, heal, ingest_flat
from crypto_lake.backfill.ingest import Stopped, Told, Unfit
from crypto_lake.connections.objects import Fetched
from crypto_lake.models import DATASETS
from crypto_lake.models.bar import BAR
from crypto_lake.models.flatfile import FlatFile
from crypto_lake.models.trade import TRADE
from crypto_lake.query import read
from crypto_lake.writers.delta import Lake
from crypto_lake.writers.maintenance import sort_day

NOW = datetime(2026, 5, 24, 12, tzinfo=UTC)
DAY = date(2026, 5, 22)
STOCKS_DAY, STOCKS_MINUTE = "us_stocks_sip/day_aggs_v1", "us_stocks_sip/minute_aggs_v1"
OPTIONS_MINUTE = "us_options_opra/minute_aggs_v1"
AGGS = "ticker,volume,open,close,high,low,window_start,transactions"
TABLES = ("bar", "trade", "rejected", "quality", "coverage", "dump_file")


class Desk:
    """A lake, and files on their way into it."""

    def __init__(self, home: Path) -> None:
        self.root, self.landing = str(home / "tables"), home / "landing"
        self.landing.mkdir()
        self.now = NOW
        self.lake = Lake(self.root)
        for name in TABLES:
            self.lake.check(DATASETS[name])

    def land(self, folder: str, day: date, lines: Iterable[str], **job: Any) -> FlatLanded:
        """A file with these lines, the first of them its header."""
        return self.land_bytes(folder, day, gzip.compress("".join(f"{line}\n" for line in lines).encode(), 1), **job)

    def land_bytes(self, folder: str, day: date, body: bytes, **job: Any) -> FlatLanded:
        file = FlatFile(folder, day)
        path = self.landing / file.path.replace("/", "-")
        path.write_bytes(body)
        sha256 = hashlib.sha256(body).hexdigest()
        fetched = Fetched(path, sha256, len(body), sha256[:8], None)
        return FlatLanded(FlatJob(file, sha256[:8], len(body), **job), fetched)

    def take(self, *landed: FlatLanded, **how: Any) -> list[FlatTaken]:
        self.now += timedelta(minutes=1)
        return ingest_flat(self.lake, landed, known={}, now=self.now, told=how.pop("told", Told()), **how)

    def bars(self, **equals: Any) -> pl.DataFrame:
        return read("bar", root=self.root, **equals).collect().sort("venue", "timeframe", "symbol", "time")

    def trades(self) -> pl.DataFrame:
        return read("trade", root=self.root).collect().sort("venue", "symbol", "trade_id")

    def table(self, name: str) -> pl.DataFrame:
        return read(name, root=self.root).collect()


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def ns(moment: datetime) -> int:
    return int(moment.timestamp()) * 10**9


def new_york(day: date, hour: int = 0, minute: int = 0) -> datetime:
    return datetime(day.year, day.month, day.day, hour, minute, tzinfo=ZoneInfo("America/New_York"))


def line(ticker: str, moment: datetime, close: float = 10.5, volume: str = "100.250000") -> str:
    return f"{ticker},{volume},10.000000,{close:.6f},11.000000,9.990000,{ns(moment)},7"


def minutes(tickers: Sequence[str], day: date = DAY, hours: Sequence[int] = (9, 10, 11)) -> list[str]:
    return [AGGS, *(line(ticker, new_york(day, hour, 30)) for ticker in tickers for hour in hours)]


# Samples


def sample_rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def day_of(row: dict[str, str], column: str) -> date:
    moment = datetime.fromtimestamp(int(row[column]) // 10**9, UTC)
    return moment.astimezone(ZoneInfo("America/New_York")).date()


FOLDERS = {
    "stocks_day_aggs_v1": STOCKS_DAY,
    "stocks_minute_aggs_v1": STOCKS_MINUTE,
    "options_day_aggs_v1": "us_options_opra/day_aggs_v1",
    "options_minute_aggs_v1": OPTIONS_MINUTE,
    "stocks_trades_v1": "us_stocks_sip/trades_v1",
    "options_trades_v1": "us_options_opra/trades_v1",
}
NAMES = {"ticker": "symbol", "transactions": "count", "size": "quantity", "id": "venue_trade_id"}


@pytest.mark.parametrize("kind", FOLDERS)
def test_every_value_of_the_samples_is_that_of_its_text(kind: str, desk: Desk, data: Path) -> None:
    folder, seen = FOLDERS[kind], 0
    clock = "window_start" if "aggs" in kind else "sip_timestamp"
    for path in sorted((data / "massive").glob(f"{kind}_*.csv")):
        rows = sample_rows(path)
        header, *lines = path.read_text().splitlines()
        for day in sorted({day_of(row, clock) for row in rows}):
            own = [(row, text) for row, text in zip(rows, lines, strict=True) if day_of(row, clock) == day]
            desk.take(desk.land(folder, day, [header, *(text for _, text in own)]))
            for row, _ in own:
                assert_held(desk, row, clock)
                seen += 1
    assert seen
    assert desk.table("rejected").is_empty()
    assert set(desk.table("coverage")["verdict"]) == {"complete"}


def assert_held(desk: Desk, row: dict[str, str], clock: str) -> None:
    """A row of a file is one row of the table, and says the same to the last digit and nanosecond."""
    frame = desk.bars() if clock == "window_start" else desk.trades()
    time_us = int(row[clock]) // 1000
    (held,) = frame.filter(pl.col("symbol") == row["ticker"], pl.col("time").dt.epoch("us") == time_us).iter_rows(
        named=True
    )
    for name, text in row.items():
        if name == "window_start":
            assert int(text) % 1000 == 0
            continue
        value = held[NAMES.get(name, name)]
        if isinstance(value, float):
            assert Decimal(text) == Decimal(repr(value)), name
        else:
            assert str(value) == text, name


# Bars


def test_a_bar_has_the_columns_of_its_road(desk: Desk) -> None:
    (taken,) = desk.take(desk.land(STOCKS_DAY, DAY, [AGGS, line("AAPL", new_york(DAY))]))
    (bar,) = desk.bars().iter_rows(named=True)
    opens = datetime(2026, 5, 22, 4, tzinfo=UTC)
    assert bar == {
        **dict.fromkeys(BAR.schema),
        "venue": "us-stocks",
        "symbol": "AAPL",
        "time": opens,
        "source": "flatfile",
        "timeframe": "1d",
        "close_time": opens + timedelta(days=1, microseconds=-1),
        "complete": True,
        "revision": 0,
        "open": 10.0,
        "high": 11.0,
        "low": 9.99,
        "close": 10.5,
        "volume": 100.25,
        "count": 7,
        "origin": "flatfile",
        "date": DAY,
    }
    assert (taken.rows, taken.added, taken.symbols) == (1, 1, 1)


def test_tickers_that_look_like_something_else_are_tickers_and_case_matters(desk: Desk) -> None:
    tickers = ["BApA", "BRK.B", "FALSE", "INF", "NA", "NAN", "NULL", "None", "TRUE", "bapa", "null"]
    desk.take(desk.land(STOCKS_DAY, DAY, [AGGS, *(line(ticker, new_york(DAY)) for ticker in tickers)]))
    assert desk.bars()["symbol"].to_list() == tickers


def test_the_exchanges_test_tickers_are_dropped_and_counted(desk: Desk) -> None:
    (taken,) = desk.take(desk.land(STOCKS_MINUTE, DAY, minutes(["AAPL", "NTEST.A", "ZVZZT", "ZVZZTX"])))
    assert desk.bars()["symbol"].unique().sort().to_list() == ["AAPL", "ZVZZTX"]
    assert (taken.tests, taken.rows, taken.symbols) == (6, 6, 2)


def test_columns_may_come_in_any_order_and_with_others(desk: Desk) -> None:
    header = "otc,transactions,window_start,low,high,close,open,volume,ticker"
    row = f"true,7,{ns(new_york(DAY))},9.99,11,10.5,10,100.25,AAPL"
    desk.take(desk.land(STOCKS_DAY, DAY, [header, row]))
    assert desk.bars().select("open", "high", "low", "close", "volume", "count").row(0) == (
        *(10.0, 11.0, 9.99, 10.5, 100.25, 7),
    )


def test_bars_of_indices_have_neither_volume_nor_count(desk: Desk) -> None:
    header = "ticker,open,close,high,low,window_start"
    desk.take(desk.land("us_indices/day_aggs_v1", DAY, [header, f"I:SPX,5,6,7,4,{ns(new_york(DAY, 2))}"]))
    (bar,) = desk.bars(venue="us-indices").iter_rows(named=True)
    assert (bar["symbol"], bar["volume"], bar["count"], bar["close"]) == ("I:SPX", None, None, 6.0)


@pytest.mark.parametrize("ticker", ["X:BTC-USD", "X:BTCUSD"])
def test_a_pair_has_one_name_with_or_without_its_dash(ticker: str, desk: Desk) -> None:
    noon = datetime(2026, 5, 22, 12, tzinfo=UTC)
    desk.take(desk.land("global_crypto/minute_aggs_v1", DAY, [AGGS, line(ticker, noon)]))
    assert desk.bars(venue="crypto")["symbol"].to_list() == ["X:BTCUSD"]


def test_an_evening_in_winter_belongs_to_the_day_before(desk: Desk) -> None:
    monday, tuesday = date(2026, 1, 12), date(2026, 1, 13)
    files = [
        desk.land(STOCKS_MINUTE, day, [AGGS, line("AAPL", new_york(day, 4)), line("AAPL", new_york(day, 19, 59))])
        for day in (monday, tuesday)
    ]
    desk.take(files[1])  # in either order
    desk.take(files[0])
    hours = [(time.day, time.hour) for time in desk.bars()["time"]]
    assert hours == [(12, 9), (13, 0), (13, 9), (14, 0)]
    assert desk.bars()["date"].to_list() == [monday, tuesday, tuesday, date(2026, 1, 14)]
    assert set(desk.table("coverage").select("date", "rows", "verdict").rows()) == {
        (monday, 2, "complete"),
        (tuesday, 2, "complete"),
    }


def test_two_timeframes_of_a_day_stand_side_by_side(desk: Desk) -> None:
    desk.take(desk.land(STOCKS_DAY, DAY, [AGGS, line("AAPL", new_york(DAY))]))
    desk.take(desk.land(STOCKS_MINUTE, DAY, [AGGS, line("AAPL", new_york(DAY))]))
    assert desk.bars()["timeframe"].to_list() == ["1d", "1m"]
    assert sorted(desk.table("coverage").select("symbol", "timeframe").rows()) == [("*", "1d"), ("*", "1m")]


def test_some_days_share_a_commit(desk: Desk) -> None:
    days = [date(2026, 5, 18) + timedelta(days=number) for number in range(5)]
    before = DeltaTable(f"{desk.root}/bar").version()
    desk.take(*(desk.land(STOCKS_DAY, day, [AGGS, line("AAPL", new_york(day))]) for day in days))
    assert desk.bars()["date"].to_list() == days
    assert DeltaTable(f"{desk.root}/bar").version() == before + 1


def test_two_files_of_pairs_that_have_a_minute_in_common_have_it_once(desk: Desk) -> None:
    midnight = datetime(2026, 5, 22, tzinfo=UTC)
    lines = [line("X:BTCUSD", midnight + timedelta(minutes=number)) for number in (-2, -1, 0, 1, 2)]
    folder, before = "global_crypto/minute_aggs_v1", date(2026, 5, 21)
    taken = desk.take(desk.land(folder, before, [AGGS, *lines[:4]]), desk.land(folder, DAY, [AGGS, *lines[2:]]))
    assert desk.bars()["time"].n_unique() == desk.bars().height == 5
    assert [each.added for each in taken] == [4, 1]


@pytest.mark.parametrize("piece_bytes", [200, 5000, 1 << 20])
def test_the_pieces_a_file_is_read_in_change_nothing(piece_bytes: int, desk: Desk) -> None:
    tickers = [f"T{number:03}" for number in range(60)]
    (taken,) = desk.take(desk.land(STOCKS_MINUTE, DAY, minutes(tickers, hours=range(5, 19))), piece_bytes=piece_bytes)
    bars = desk.bars()
    assert bars.height == 60 * 14
    assert bars.select("symbol", "time").n_unique() == 60 * 14
    assert desk.table("coverage")["rows"].to_list() == [60 * 14]
    assert taken.symbols == 60


@pytest.mark.parametrize(
    "shuffled",
    [
        lambda lines: list(reversed(lines)),
        lambda lines: lines[::2] + lines[1::2],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: lines + lines[:5],
    ],
    ids=["backwards", "tickers come back", "a time before", "rows twice"],
)
def test_a_file_in_disorder_gives_the_same_rows_each_once(
    shuffled: Callable[[list[str]], list[str]], desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crypto_lake.backfill.flat.BUCKET_ROWS", 10)
    header, *lines = minutes([f"T{number:03}" for number in range(20)])
    (taken,) = desk.take(desk.land(STOCKS_MINUTE, DAY, [header, *shuffled(lines)]), piece_bytes=1000)
    bars = desk.bars()
    expected = {(f"T{number:03}", hour) for number in range(20) for hour in (13, 14, 15)}
    assert {(symbol, time.hour) for symbol, time in bars.select("symbol", "time").rows()} == expected
    assert (bars.height, taken.refused) == (60, [])
    assert not list(desk.landing.glob("*.sort-*"))


def test_a_file_in_order_is_read_once(desk: Desk) -> None:
    read_rows: list[int] = []
    tickers = [f"T{number:03}" for number in range(60)]
    file = desk.land(STOCKS_MINUTE, DAY, minutes(tickers, hours=range(5, 19)))
    desk.take(file, told=Told(on_rows=read_rows.append), piece_bytes=5000)
    assert sum(read_rows) == 60 * 14


def test_two_bars_of_one_ticker_and_minute_that_differ_are_not_both_true(desk: Desk) -> None:
    at = new_york(DAY, 10)
    (taken,) = desk.take(desk.land(STOCKS_MINUTE, DAY, [AGGS, line("A", at, 10.5), line("A", at, 10.6), line("B", at)]))
    assert desk.bars().select("symbol", "close").rows() == [("A", 10.5), ("B", 10.5)]
    (refused,) = desk.table("rejected").iter_rows(named=True)
    assert "same ticker and time" in refused["reason"]
    assert "10.6" in refused["payload"]
    assert len(taken.refused) == 1
    assert desk.table("coverage").select("verdict", "missing_rows").rows() == [("incomplete", 1)]


def test_a_line_that_is_no_row_is_set_aside_and_the_day_is_not_called_complete(desk: Desk) -> None:
    bad = f"A,100,10,x,11,9,{ns(new_york(DAY, 11))},7"
    desk.take(desk.land(STOCKS_MINUTE, DAY, [AGGS, line("A", new_york(DAY, 10)), bad]))
    assert desk.bars().height == 1
    (refused,) = desk.table("rejected").iter_rows(named=True)
    assert (refused["payload"], refused["venue"], refused["dataset"]) == (bad, "us-stocks", "bar")
    assert desk.table("coverage")["verdict"].to_list() == ["incomplete"]
    assert desk.table("dump_file").select("rows", "refused_rows").rows() == [(1, 1)]


def test_a_row_of_another_day_is_set_aside(desk: Desk) -> None:
    rows = [line("A", new_york(DAY, 10)), line("A", new_york(DAY + timedelta(days=1), 4))]
    desk.take(desk.land(STOCKS_MINUTE, DAY, [AGGS, *rows]))
    assert desk.bars().height == 1
    assert desk.table("rejected")["reason"].to_list() == ["its time is not of 2026-05-22"]


def test_a_file_with_too_many_rows_of_another_day_is_another_file(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crypto_lake.backfill.flat.REFUSED_AT_MOST", 5)
    rows = [*minutes(["A"]), *minutes(["B", "C"], DAY + timedelta(days=1))[1:]]
    with pytest.raises(Unfit, match=r"more than 5 rows .* are set aside"):
        desk.take(desk.land(STOCKS_MINUTE, DAY, rows))
    assert desk.table("rejected").is_empty()


def test_a_bar_that_cannot_be_is_told_and_stays(desk: Desk) -> None:
    at = new_york(DAY, 10)
    desk.take(desk.land(STOCKS_MINUTE, DAY, [AGGS, f"A,100,10,12,11,9,{ns(at)},7", line("B", at)]))
    assert desk.bars().height == 2
    told = desk.table("quality").select("check", "symbol", "severity", "first_time").rows()
    assert told == [("bar_invariant", "A", "error", at.astimezone(UTC))]


# Files that are not what they should be


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (gzip.compress("\n".join(minutes(["A", "B"])).encode())[:-10], "truncated or altered"),
        (b"", "is empty"),
        (b"<Error>no gzip</Error>", "truncated or altered"),
        (gzip.compress(b""), "has no line"),
        (gzip.compress(b"ticker,volume,open\nA,1,2\n"), "the header lacks close, high, low, window_start"),
        (gzip.compress(f"{AGGS}\nA,1,1,1,1,1,{ns(new_york(date(2026, 5, 20)))},1\n".encode()), "not of 2026-05-22"),
        (gzip.compress(f"{AGGS}\nA,1,1,1,1,1,12,1\n".encode()), "no line fits"),
    ],
    ids=["half-written", "empty", "no gzip", "nothing inside", "other columns", "another day", "no time"],
)
def test_a_file_that_is_not_one_leaves_nothing_behind(body: bytes, says: str, desk: Desk) -> None:
    with pytest.raises(Unfit, match=says):
        desk.take(desk.land_bytes(STOCKS_MINUTE, DAY, body))
    assert desk.bars().is_empty()
    assert desk.table("coverage").is_empty()
    assert desk.table("dump_file").is_empty()
    assert not list(Path(desk.root, "bar").rglob("*.parquet"))


def test_asked_to_stop_it_leaves_nothing_behind(desk: Desk) -> None:
    stop = threading.Event()
    told = Told(on_rows=lambda _: stop.set(), stop=stop)
    with pytest.raises(Stopped):
        desk.take(desk.land(STOCKS_MINUTE, DAY, minutes([f"T{n:03}" for n in range(100)])), told=told, piece_bytes=1000)
    assert desk.bars().is_empty()
    assert not list(Path(desk.root, "bar").rglob("*.parquet"))


# Again, and in parts


def test_the_same_file_again_adds_nothing(desk: Desk) -> None:
    file = desk.land(STOCKS_MINUTE, DAY, minutes(["A", "B"]))
    desk.take(file)
    (taken,) = desk.take(file)
    assert (taken.rows, taken.added) == (6, 0)
    assert desk.bars().height == 6


def test_some_symbols_first_and_all_of_them_later_are_each_there_once(desk: Desk) -> None:
    lines = minutes(["A", "B", "C", "a"])
    desk.take(desk.land(STOCKS_MINUTE, DAY, lines, symbols=("B", "a", "NONE")))
    assert desk.bars()["symbol"].unique().sort().to_list() == ["B", "a"]
    assert sorted(desk.table("coverage").select("symbol", "rows", "verdict").rows()) == [
        ("B", 3, "complete"),
        ("NONE", 0, "complete"),
        ("a", 3, "complete"),
    ]
    (taken,) = desk.take(desk.land(STOCKS_MINUTE, DAY, lines))
    assert (taken.rows, taken.added) == (12, 6)
    bars = desk.bars()
    assert (bars.height, bars.select("symbol", "time").n_unique()) == (12, 12)


def test_a_symbol_without_a_row_in_a_file_with_a_bad_line_is_no_reason_to_put_the_file_aside(desk: Desk) -> None:
    bad = f"A,100,10,x,11,9,{ns(new_york(DAY, 12))},7"
    (taken,) = desk.take(desk.land(STOCKS_MINUTE, DAY, [*minutes(["A"]), bad], symbols=("B",)))
    assert (taken.rows, len(taken.refused)) == (0, 1)
    assert desk.table("coverage").select("symbol", "rows", "verdict").rows() == [("B", 0, "incomplete")]


def test_a_certificate_that_a_crash_left_out_is_made_up_for_by_counting(desk: Desk) -> None:
    for day, tickers in ((DAY, ["A", "B"]), (date(2026, 5, 21), ["A"])):
        desk.take(desk.land(STOCKS_MINUTE, day, minutes(tickers, day)))
    before = desk.table("coverage").drop("checked_time")
    table = DeltaTable(f"{desk.root}/coverage")
    table.delete("date = '2026-05-22'")
    assert heal(desk.lake, STOCKS_MINUTE, [DAY, date(2026, 5, 21), date(2026, 5, 20)], now=NOW) == [DAY]
    after = desk.table("coverage").drop("checked_time")
    assert after.sort("date").equals(before.sort("date"))
    assert heal(desk.lake, STOCKS_MINUTE, [DAY], now=NOW) == []


# A file in another's place


def test_the_rows_of_a_replaced_file_are_replaced_and_the_change_is_recorded(desk: Desk) -> None:
    at = [new_york(DAY, hour) for hour in (10, 11, 12)]
    desk.take(desk.land(STOCKS_DAY, DAY, [AGGS, line("A", new_york(DAY))]))
    desk.take(desk.land(STOCKS_MINUTE, DAY, [AGGS, line("A", at[0]), line("A", at[1], 10.6), line("B", at[0])]))
    for day in (date(2026, 5, 21), date(2026, 5, 25)):
        desk.take(desk.land(STOCKS_MINUTE, day, minutes(["A"], day)))
    others = desk.bars().filter((pl.col("date") != DAY) | (pl.col("timeframe") == "1d"))
    replacement = [AGGS, line("A", at[0]), line("A", at[1], 10.7), line("C", at[2])]
    (taken,) = desk.take(desk.land(STOCKS_MINUTE, DAY, replacement, replaces=True))
    bars = desk.bars().filter(pl.col("date") == DAY, pl.col("timeframe") == "1m")
    assert bars.select("symbol", "close").rows() == [("A", 10.5), ("A", 10.7), ("C", 10.5)]
    assert desk.bars().filter((pl.col("date") != DAY) | (pl.col("timeframe") == "1d")).equals(others)
    assert taken.changed == 3  # one is new, one gone, one another
    found = desk.table("quality").filter(pl.col("check") == "file_replaced")
    assert found.select("symbol", "observed", "severity").rows() == [("*", 3.0, "warn")]
    lost = desk.table("rejected").sort("payload")
    assert lost["reason"].str.contains("replaced upstream").all()
    assert ["10.6" in lost["payload"][0], '"B"' in lost["payload"][1]] == [True, True]
    newest = desk.table("dump_file").filter(pl.col("path").str.contains("minute.*22")).sort("state_time")
    assert newest["sha256"].last() == taken.landed.fetched.sha256
    assert newest.height == 2
    assert set(desk.table("coverage")["verdict"]) == {"complete"}


def test_a_replaced_file_leaves_others_rows_where_maintenance_has_put_them_together(desk: Desk) -> None:
    desk.take(desk.land(STOCKS_DAY, DAY, [AGGS, line("A", new_york(DAY)), line("Z", new_york(DAY))]))
    desk.take(desk.land(STOCKS_MINUTE, DAY, minutes(["A", "M"])))
    desk.take(desk.land(OPTIONS_MINUTE, DAY, minutes(["O:A260618C00100000"])))
    sort_day(desk.root, BAR, DAY)
    before = desk.bars()
    desk.take(desk.land(STOCKS_MINUTE, DAY, minutes(["A", "M"])[:-1], replaces=True))
    after = desk.bars()
    assert after.height == before.height - 1
    assert after.equals(before.filter(~((pl.col("symbol") == "M") & (pl.col("time").dt.hour() == 15))))


def test_of_a_replaced_file_only_symbols_that_were_wanted_come_back(desk: Desk) -> None:
    lines = minutes(["A", "B", "C"])
    desk.take(desk.land(STOCKS_MINUTE, DAY, lines, symbols=("A",)))
    desk.take(desk.land(STOCKS_MINUTE, DAY, lines, symbols=("B",), replaces=True))
    assert desk.bars()["symbol"].unique().sort().to_list() == ["A", "B"]


def test_a_file_replaced_before_all_of_it_was_wanted_comes_whole(desk: Desk) -> None:
    desk.take(desk.land(STOCKS_MINUTE, DAY, minutes(["A", "B"]), symbols=("A",)))
    desk.take(desk.land(STOCKS_MINUTE, DAY, minutes(["A", "B", "C"]), replaces=True))
    assert desk.bars()["symbol"].unique().sort().to_list() == ["A", "B", "C"]
    assert ("*", 9) in desk.table("coverage").select("symbol", "rows").rows()


def test_a_file_replaced_before_any_of_its_rows_came_is_taken_like_any_other(desk: Desk) -> None:
    (taken,) = desk.take(desk.land(STOCKS_MINUTE, DAY, minutes(["A", "B"]), replaces=True))
    assert (desk.bars().height, taken.added, taken.changed) == (6, 6, 6)


def test_a_replaced_file_of_which_all_is_here_comes_back_whole_whoever_asks(desk: Desk) -> None:
    desk.take(desk.land(STOCKS_MINUTE, DAY, minutes(["A", "B"])))
    desk.take(desk.land(STOCKS_MINUTE, DAY, minutes(["A", "B", "C"]), symbols=("B",), replaces=True))
    assert desk.bars()["symbol"].unique().sort().to_list() == ["A", "B", "C"]
    assert desk.table("coverage").filter(rows=9)["symbol"].to_list() == ["*"]


def test_of_a_replaced_file_everybody_gets_what_is_new(desk: Desk) -> None:
    contracts = [f"O:{root}260618C00{strike}000" for root in "AB" for strike in (100, 200)]
    desk.take(desk.land(OPTIONS_MINUTE, DAY, minutes(contracts[::2]), symbols=("A",)))
    desk.take(desk.land(OPTIONS_MINUTE, DAY, minutes(contracts), symbols=(contracts[2],), replaces=True))
    assert desk.bars()["symbol"].unique().sort().to_list() == contracts[:3]
    newest = desk.table("coverage").sort("checked_time").unique("symbol", keep="last")
    assert sorted(newest.select("symbol", "rows").rows()) == [("A", 6), (contracts[2], 3)]


def test_a_replacement_without_rows_takes_all_of_them_out_and_says_so(desk: Desk) -> None:
    desk.take(desk.land(STOCKS_MINUTE, DAY, minutes(["A"])))
    (taken,) = desk.take(desk.land(STOCKS_MINUTE, DAY, [AGGS], replaces=True))
    assert (desk.bars().height, taken.changed) == (0, 3)
    found = desk.table("quality").filter(pl.col("check") == "file_replaced")
    assert found.select("observed", "first_time").rows() == [(3.0, new_york(DAY).astimezone(UTC))]
    assert desk.table("rejected").height == 3


def test_a_value_that_a_replaced_file_lacks_is_a_change(desk: Desk) -> None:
    whole = line("A", new_york(DAY, 10))
    desk.take(desk.land(STOCKS_MINUTE, DAY, [AGGS, whole]))
    (taken,) = desk.take(desk.land(STOCKS_MINUTE, DAY, [AGGS, whole.removesuffix("7")], replaces=True))
    assert (taken.changed, desk.bars()["count"].to_list()) == (1, [None])


def test_what_is_lost_when_the_first_content_comes_back_is_kept_too(desk: Desk) -> None:
    bad = f"A,100,10,x,11,9,{ns(new_york(DAY, 12))},7"
    desk.take(desk.land(STOCKS_MINUTE, DAY, [*minutes(["A"]), bad]))
    desk.take(desk.land(STOCKS_MINUTE, DAY, minutes(["A", "B"]), replaces=True))
    desk.take(desk.land(STOCKS_MINUTE, DAY, [*minutes(["A"]), bad], replaces=True))
    assert desk.bars()["symbol"].to_list() == ["A", "A", "A"]
    assert desk.table("rejected")["reason"].str.contains("replaced upstream").sum() == 3


PAIRS_MINUTE, PAIRS_DAY = "global_crypto/minute_aggs_v1", date(2026, 5, 22)


def pairs(first: int, behind: int, ticker: str = "X:BTCUSD") -> list[str]:
    """Minutes of a pair, counted from midnight of `PAIRS_DAY`."""
    midnight = datetime(2026, 5, 22, tzinfo=UTC)
    return [line(ticker, midnight + timedelta(minutes=number)) for number in range(first, behind)]


def test_a_replaced_file_of_pairs_replaces_the_rows_of_all_who_asked(desk: Desk) -> None:
    lines = [AGGS, *pairs(0, 50), *pairs(20, 22, "X:FOOUSD")]
    rare = desk.land(PAIRS_MINUTE, PAIRS_DAY, lines, symbols=("X:FOOUSD",))
    desk.take(rare)
    busy = FlatLanded(replace(rare.job, symbols=("X:BTCUSD",)), rare.fetched)
    known = {rare.job.path: rare.fetched.sha256}
    ingest_flat(desk.lake, [busy], known=known, now=NOW, told=Told())
    desk.take(desk.land(PAIRS_MINUTE, PAIRS_DAY, lines[:-1], symbols=("X:BTCUSD",), replaces=True))
    bars = desk.bars()
    assert (bars.height, bars.select("symbol", "time").n_unique()) == (51, 51)


def test_a_replaced_file_of_pairs_of_which_there_was_no_row_is_taken(desk: Desk) -> None:
    desk.take(desk.land(PAIRS_MINUTE, PAIRS_DAY, [AGGS, *pairs(0, 3)], symbols=("X:NONE",)))
    desk.take(desk.land(PAIRS_MINUTE, PAIRS_DAY, [AGGS, *pairs(0, 3), *pairs(0, 1, "X:NONE")], replaces=True))
    assert desk.bars().height == 4


def test_a_replaced_file_of_pairs_leaves_the_minutes_of_the_day_beside_it(desk: Desk) -> None:
    before = PAIRS_DAY - timedelta(days=1)
    desk.take(desk.land(PAIRS_MINUTE, before, [AGGS, *pairs(-5, 0)]))
    desk.take(desk.land(PAIRS_MINUTE, PAIRS_DAY, [AGGS, *pairs(0, 5)]))
    for behind in (2, -1):
        desk.take(desk.land(PAIRS_MINUTE, before, [AGGS, *pairs(-5, behind)], replaces=True))
        bars = desk.bars()
        assert (bars.height, bars["time"].n_unique()) == (min(behind, 0) + 10, min(behind, 0) + 10)


# Options


def test_the_symbol_of_an_option_is_also_told_in_parts(desk: Desk) -> None:
    tickers = ["O:A260618C00100000", "O:BRKB270115P00012500", "O:SPXW260522C07000000", "O:XYZ1260618C00000500", "O:ODD"]
    tickers += ["O:XYZ19260618C00000500", "O:XYZ1290618C00000500"]  # of one root, and another one's between them
    desk.take(desk.land(OPTIONS_MINUTE, DAY, minutes(tickers, hours=[10])))
    parts = desk.bars(venue="us-options").select("symbol", "underlying", "expiry", "right", "strike").sort("symbol")
    assert parts.rows() == [
        ("O:A260618C00100000", "A", date(2026, 6, 18), "C", 100.0),
        ("O:BRKB270115P00012500", "BRKB", date(2027, 1, 15), "P", 12.5),
        ("O:ODD", None, None, None, None),
        ("O:SPXW260522C07000000", "SPXW", date(2026, 5, 22), "C", 7000.0),
        ("O:XYZ1260618C00000500", "XYZ1", date(2026, 6, 18), "C", 0.5),
        ("O:XYZ1290618C00000500", "XYZ1", date(2029, 6, 18), "C", 0.5),
        ("O:XYZ19260618C00000500", "XYZ19", date(2026, 6, 18), "C", 0.5),
    ]
    assert desk.bars(underlying="SPXW").height == 1


def test_of_options_a_root_is_all_its_contracts_and_test_roots_are_none(desk: Desk) -> None:
    tickers = ["O:A260618C00100000", "O:A260618P00100000", "O:AA260618C00100000", "O:B260618C00100000"]
    tickers += ["O:ZVZZT260618C00100000"]
    asked = ("A", "O:B260618C00100000")
    desk.take(desk.land(OPTIONS_MINUTE, DAY, minutes(tickers, hours=[10]), symbols=asked))
    assert desk.bars()["symbol"].to_list() == [tickers[0], tickers[1], tickers[3]]


def test_strikes_are_the_doubles_nearest_to_their_texts(desk: Desk) -> None:
    strikes = [number * 5 for number in range(1, 400)] + [7, 12_345_678, 99_999_999]
    tickers = sorted(f"O:A260618C{strike:08}" for strike in strikes)
    desk.take(desk.land(OPTIONS_MINUTE, DAY, minutes(tickers, hours=[10])))
    held = desk.bars().select("symbol", "strike").rows()
    assert held == [(ticker, int(ticker[-8:]) / 1000) for ticker in tickers]


# Trades

STOCK_TRADES = (
    "ticker,conditions,correction,exchange,id,participant_timestamp,price,sequence_number,sip_timestamp,size,tape,"
    "trf_id,trf_timestamp"
)


def trade(ticker: str, at_ns: int, number: int, *, conditions: str = '"12,37"', ours: str = "71675222901845") -> str:
    return f"{ticker},{conditions},0,4,{ours},{at_ns - 7},114.790000,{number},{at_ns},4.500000,1,201,{at_ns - 3}"


def test_trades_keep_every_column_and_the_nanoseconds_and_are_numbered_in_their_order(desk: Desk) -> None:
    at = ns(new_york(DAY, 10))
    lines = [trade("A", at + 1, 3), trade("A", at + 1, 4, conditions=""), trade("B", at + 123456789, 9)]
    desk.take(desk.land("us_stocks_sip/trades_v1", DAY, [STOCK_TRADES, *lines]), piece_bytes=260)
    day_number = (DAY - date(1970, 1, 1)).days
    trades = desk.trades()
    assert trades["trade_id"].to_list() == [day_number * 10**9 + place for place in (1, 2, 1)]
    first, second, third = trades.iter_rows(named=True)
    assert first == {
        **dict.fromkeys(TRADE.schema),
        "venue": "us-stocks",
        "symbol": "A",
        "time": new_york(DAY, 10),
        "source": "flatfile",
        "date": DAY,
        "trade_id": day_number * 10**9 + 1,
        "price": 114.79,
        "quantity": 4.5,
        "quote_quantity": 114.79 * 4.5,
        "venue_trade_id": "71675222901845",
        "sequence_number": 3,
        "exchange": 4,
        "conditions": "12,37",
        "correction": 0,
        "tape": 1,
        "sip_timestamp": at + 1,
        "participant_timestamp": at - 6,
        "trf_id": 201,
        "trf_timestamp": at - 2,
    }
    assert second["conditions"] is None
    assert third["sip_timestamp"] == at + 123456789
    assert third["time"] == new_york(DAY, 10) + timedelta(microseconds=123456)


def test_trades_of_the_same_nanosecond_are_all_kept_in_the_order_of_the_file(desk: Desk) -> None:
    at = ns(new_york(DAY, 10))
    header = "ticker,conditions,correction,exchange,price,sip_timestamp,size"
    lines = [f"O:A260618C00100000,227,0,309,{price},{at},3" for price in (16.2, 16.3, 16.2)]
    desk.take(desk.land("us_options_opra/trades_v1", DAY, [header, *lines]))
    trades = desk.trades()
    assert trades["price"].to_list() == [16.2, 16.3, 16.2]
    assert trades["strike"].to_list() == [100.0] * 3


def test_trades_whose_tickers_do_not_stand_together_are_numbered_in_the_order_of_the_file(desk: Desk) -> None:
    at = ns(new_york(DAY, 10))
    lines = [trade("B", at + 2, 1), trade("A", at + 9, 2), trade("B", at + 1, 3), trade("A", at + 8, 1)]
    desk.take(desk.land("us_stocks_sip/trades_v1", DAY, [STOCK_TRADES, *lines]))
    assert desk.trades().select("symbol", "sequence_number").rows() == [("A", 2), ("A", 1), ("B", 1), ("B", 3)]


def test_trades_have_one_number_whether_some_or_all_were_asked_for(desk: Desk) -> None:
    monday, folder = date(2026, 1, 12), "us_stocks_sip/trades_v1"
    evening, afternoon = ns(new_york(monday, 19, 30)), ns(new_york(monday, 15))  # the evening is on Tuesday in UTC
    lines = [STOCK_TRADES, trade("B", afternoon, 9), trade("A", evening, 2), trade("A", afternoon, 1)]
    desk.take(desk.land(folder, monday, lines, symbols=("A",)))
    desk.take(desk.land(folder, monday, lines))
    assert desk.trades().select("symbol", "sequence_number").rows() == [("A", 2), ("A", 1), ("B", 9)]


def test_a_trade_that_did_not_come_by_the_sip_has_the_time_of_its_exchange_and_without_any_it_is_none(
    desk: Desk,
) -> None:
    at = ns(new_york(DAY, 10))
    unseen = trade("A", at, 2).replace(f",{at},", ",,")
    lines = [trade("A", at, 1), unseen, unseen.replace(f",{at - 7},", ",,")]
    (taken,) = desk.take(desk.land("us_stocks_sip/trades_v1", DAY, [STOCK_TRADES, *lines]))
    assert desk.trades()["time"].to_list() == [new_york(DAY, 10), new_york(DAY, 10) - timedelta(microseconds=1)]
    assert [each.reason for each in taken.refused] == ["its time is not of 2026-05-22"]


def test_of_crypto_trades_a_condition_says_who_was_the_aggressor(desk: Desk) -> None:
    at = ns(datetime(2026, 5, 22, 1, tzinfo=UTC))
    header = "ticker,conditions,exchange,id,participant_timestamp,price,size"
    lines = [f"X:BTC-USD,{condition},1,abc-{condition},{at},1.5,2" for condition in (1, 2, 7)]
    desk.take(desk.land("global_crypto/trades_v1", DAY, [header, *lines]))
    assert desk.trades().select("is_buyer_maker", "venue_trade_id", "symbol").rows() == [
        (True, "abc-1", "X:BTCUSD"),
        (False, "abc-2", "X:BTCUSD"),
        (None, "abc-7", "X:BTCUSD"),
    ]


# Beside others


def test_somebody_elses_bars_of_the_same_day_do_not_disturb_and_the_same_ones_are_found(desk: Desk) -> None:
    ours = desk.land(STOCKS_MINUTE, DAY, minutes(["A", "B"]))
    day_file = desk.land(STOCKS_DAY, DAY, [AGGS, line("A", new_york(DAY))])
    same = FlatLanded(replace(ours.job, symbols=("A",)), ours.fetched)
    waiting = [day_file, same]

    def others(_rows: int) -> None:
        # Between the look into the table and the commit others are faster.
        while waiting:
            desk.take(waiting.pop())

    (taken,) = desk.take(ours, told=Told(on_rows=others))
    bars = desk.bars(timeframe="1m")
    assert (bars.height, bars.select("symbol", "time").n_unique()) == (6, 6)
    assert desk.bars(timeframe="1d").height == 1
    assert taken.added == 3
    entries = desk.table("dump_file").select("path", "state_time")
    assert entries.height == entries.n_unique() == 3
