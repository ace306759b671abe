"""Flat files become rows: every line of them, each once; what should be there and is not is known."""

import asyncio
import csv
import gzip
import itertools
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from aiohttp import web

from crypto_lake.backfill.ask import flat_wanted_of
from crypto_lake.backfill.flow import GOING, Summary
from crypto_lake.backfill.massive import backfill
from crypto_lake.backfill.mode import Mode, mode_of
from crypto_lake.config import ConfigError, Settings
from crypto_lake.models import DATASETS
from crypto_lake.models.bucket import DAY
from crypto_lake.models.flatfile import FlatFile
from crypto_lake.query import read
from crypto_lake.simulator.flatfiles import FlatMarket
from crypto_lake.writers.delta import Lake
from tests.conftest import PATIENCE_S
from tests.s3 import FakeS3, Flatfiles, Held, stops

# The calendars' own use of pandas.
pytestmark = pytest.mark.filterwarnings("ignore:Series.values returning:DeprecationWarning")

STOCKS, MINUTES = "us_stocks_sip/day_aggs_v1", "us_stocks_sip/minute_aggs_v1"
OPTIONS, CRYPTO = "us_options_opra/day_aggs_v1", "global_crypto/minute_aggs_v1"
FOREX = "global_forex/day_aggs_v1"
FIRST, MEMORIAL_DAY = date(2026, 5, 1), date(2026, 5, 25)
MONTH = [day for number in range(31) if (day := FIRST + number * DAY).weekday() < 5 and day != MEMORIAL_DAY]
LATER = datetime(2026, 6, 10, tzinfo=UTC)
SECONDS = (timedelta(seconds=number) for number in itertools.count())
NEW_YORK = ZoneInfo("America/New_York")
OPTION = re.compile(r"O:(.+)(\d{6})([CP])(\d{8})")
TESTS = {"ZBZX", "ZVZZT", "ZXZZT"}
HEADER = "ticker,volume,open,close,high,low,window_start,transactions"


@pytest.fixture(scope="module")
def market() -> FlatMarket:
    return FlatMarket(seed=3)


@pytest.fixture
def here(flatfiles: Flatfiles, tmp_path: Path, monkeypatch: Any) -> Settings:
    """Settings with empty folders, and the bucket's."""
    for name, value in flatfiles.environment.items():
        monkeypatch.setenv(name, value)
    return Settings(_env_file=None, root=str(tmp_path / "tables"), state=tmp_path / "var")


@pytest.fixture
def publish(flatfiles: Flatfiles, market: FlatMarket) -> Callable[..., None]:
    """Puts the files of some days into the bucket."""

    def put(folder: str, *days: date) -> None:
        for day in days:
            flatfiles.put(FlatFile(folder, day).path, market.gz(folder, day))

    return put


async def taken(
    settings: Settings,
    watched: Any,
    folder: str,
    *span: date,
    symbols: str = "all",
    now: datetime = LATER,
    mode: Mode | None = None,
    **how: Any,
) -> Summary:
    """A backfill from the first to the last day of `span`, or of May 2026."""
    start, end = (str(span[0]), str(span[-1])) if span else ("2026-05", "2026-05")
    wanted = flat_wanted_of(folder, symbols, start, end, today=now.date())
    return await backfill(
        settings, wanted, watched, mode=mode or mode_of(8 << 30, 2), clock=lambda: now + next(SECONDS), **how
    )


def rows(settings: Settings, table: str = "bar", **equals: Any) -> pl.DataFrame:
    return read(table, root=settings.root, **equals).collect()


def files(settings: Settings) -> dict[Path, int]:
    """All files under the lake, with their sizes."""
    return {path: path.stat().st_size for path in Path(settings.root).rglob("*") if path.is_file()}


def certificates(settings: Settings) -> dict[date, tuple[Any, ...]]:
    """The newest one of each day."""
    newest = rows(settings, "coverage").sort("checked_time").unique(["date", "symbol"], keep="last").sort("date")
    return {day: said for day, *said in newest.select("date", "symbol", "verdict", "rows").iter_rows()}


def lines(market: FlatMarket, folder: str, *days: date) -> list[dict[str, str]]:
    """What the files say, independently of our reading."""
    return [line for day in days for line in csv.DictReader(market.text(folder, day).splitlines())]


def nanoseconds(moment: datetime) -> int:
    return (int(moment.timestamp()) * 1_000_000 + moment.microsecond) * 1000


def assert_bars(settings: Settings, theirs: list[dict[str, str]], **equals: Any) -> None:
    """Every line is one row, with all it says, and there are no others."""
    ours = rows(settings, **equals)
    assert ours.select("venue", "symbol", "timeframe", "time", "origin").is_unique().all()
    found = {(row["symbol"], nanoseconds(row["time"])): row for row in ours.iter_rows(named=True)}
    assert len(found) == ours.height == len(theirs) > 0
    for line in theirs:
        row = found[line["ticker"], int(line["window_start"])]
        said = [float(line[name]) for name in ("open", "high", "low", "close", "volume")]
        assert [row[name] for name in ("open", "high", "low", "close", "volume")] == said, line
        assert row["count"] == int(line["transactions"])
        assert (row["source"], row["origin"], row["complete"], row["revision"]) == ("flatfile", "flatfile", True, 0)


async def test_a_month_of_stocks_and_a_day_of_options_are_rows_and_a_second_run_writes_nothing(
    here: Settings, publish: Any, market: FlatMarket, watched: Any
) -> None:
    publish(STOCKS, *MONTH)
    publish(MINUTES, *MONTH)
    publish(OPTIONS, MONTH[-1])
    runs = [(STOCKS,), (MINUTES,), (OPTIONS, MONTH[-1])]
    done = [await taken(here, watched, *run) for run in runs]
    assert all(each.is_good and not each.absent and not each.refused for each in done)
    assert [each.days for each in done] == [20, 20, 1]
    for folder, timeframe in ((STOCKS, "1d"), (MINUTES, "1m")):
        theirs = lines(market, folder, *MONTH)
        real = [line for line in theirs if line["ticker"] not in TESTS]
        assert len(real) < len(theirs)
        assert_bars(here, real, venue="us-stocks", timeframe=timeframe)
    assert {"NA", "NAN", "NULL", "TRUE", "BApA"} <= set(rows(here, venue="us-stocks")["symbol"])
    options = [line for line in lines(market, OPTIONS, MONTH[-1]) if not line["ticker"].startswith("O:ZVZZT")]
    assert_bars(here, options, venue="us-options")
    for row in rows(here, venue="us-options").iter_rows(named=True):
        root, expiry, right, strike = OPTION.fullmatch(row["symbol"]).groups()  # type: ignore[union-attr]
        assert (row["underlying"], row["right"], row["strike"]) == (root, right, int(strike) / 1000)
        assert f"{row['expiry']:%y%m%d}" == expiry
    before = files(here)
    again = [await taken(here, watched, *run) for run in runs]
    assert files(here) == before
    assert [(each.files, each.added, each.held_days) for each in again] == [(0, 0, 20), (0, 0, 20), (0, 0, 1)]
    assert not [path for path in here.state.rglob("*") if path.is_file()]


async def test_the_day_of_a_bar_is_that_of_new_york(here: Settings, publish: Any, watched: Any) -> None:
    winter = date(2026, 1, 15)
    publish(STOCKS, winter, MONTH[0])
    await taken(here, watched, STOCKS, winter)
    await taken(here, watched, STOCKS, MONTH[0])
    times = set(rows(here, timeframe="1d")["time"])
    assert times == {datetime(2026, 1, 15, 5, tzinfo=UTC), datetime(2026, 5, 1, 4, tzinfo=UTC)}


async def test_a_session_without_a_file_is_a_hole_and_a_holiday_is_none(
    here: Settings, publish: Any, watched: Any
) -> None:
    missing = MONTH[8]
    publish(STOCKS, *(day for day in MONTH if day != missing))
    done = await taken(here, watched, STOCKS)
    assert done.is_good
    assert [(each.symbol, each.days) for each in done.absent] == [(STOCKS, (missing,))]
    said = certificates(here)
    assert set(said) == set(MONTH), "nothing is said of the holiday, nor of weekends"
    assert said.pop(missing) == ["*", "incomplete", 0]
    assert {verdict for _, verdict, _ in said.values()} == {"complete"}
    before = files(here)
    assert (await taken(here, watched, STOCKS)).absent == done.absent
    assert files(here) == before, "a hole is said once"
    publish(STOCKS, missing)
    assert (await taken(here, watched, STOCKS)).absent == []
    assert certificates(here)[missing][1] == "complete"


async def test_what_is_not_published_yet_is_no_hole(here: Settings, publish: Any, watched: Any) -> None:
    publish(STOCKS, *MONTH[:5])
    yesterday, eleven = MONTH[5], datetime(2026, 5, 11, 11, tzinfo=NEW_YORK)
    assert yesterday == date(2026, 5, 8)
    done = await taken(here, watched, STOCKS, MONTH[0], yesterday, now=datetime(2026, 5, 9, 10, 30, tzinfo=NEW_YORK))
    assert (done.absent, [each.days for each in done.awaited]) == ([], [(yesterday,)])
    assert yesterday not in certificates(here)
    done = await taken(here, watched, STOCKS, MONTH[0], yesterday, now=eleven)
    assert ([each.days for each in done.absent], done.awaited) == ([(yesterday,)], [])


async def test_before_the_first_file_nothing_is_missing(here: Settings, publish: Any, watched: Any) -> None:
    begin = date(2003, 9, 10)
    publish(STOCKS, begin, begin + 2 * DAY)
    done = await taken(here, watched, STOCKS, date(2003, 8, 1), begin + 2 * DAY)
    assert [each.days for each in done.absent] == [(begin + DAY,)]


async def test_a_file_on_a_day_without_a_session_is_taken_all_the_same(
    here: Settings, publish: Any, watched: Any
) -> None:
    publish(STOCKS, MONTH[0], MEMORIAL_DAY)
    assert (await taken(here, watched, STOCKS)).days == 2


async def test_a_sunday_of_currencies_is_asked_for(here: Settings, publish: Any, watched: Any) -> None:
    """Their calendar has none, and their files begin on Sunday evening in New York."""
    sunday = date(2026, 5, 17)
    publish(FOREX, sunday)
    assert (await taken(here, watched, FOREX, sunday)).days == 1


async def test_a_file_that_was_replaced_is_taken_in_place_of_the_other(
    here: Settings, flatfiles: Flatfiles, watched: Any
) -> None:
    day, other = MONTH[3], MONTH[4]
    midnight_ns = nanoseconds(datetime(day.year, day.month, day.day, tzinfo=NEW_YORK))

    def put(*bars: str) -> None:
        text = "\n".join([HEADER, *(bar.replace("@", str(midnight_ns)) for bar in bars), ""])
        flatfiles.put(FlatFile(STOCKS, day).path, packed(text))

    put("A,1,10,10,10,10,@,1", "B,1,20,20,20,20,@,1", "C,1,30,30,30,30,@,1")
    flatfiles.put(FlatFile(STOCKS, other).path, packed(f"{HEADER}\nA,1,11,11,11,11,{midnight_ns + 86_400 * 10**9},1\n"))
    assert (await taken(here, watched, STOCKS, day, other)).rows == 4
    put("A,1,10,10,10,10,@,1", "B,1,20,21,21,20,@,1", "D,1,40,40,40,40,@,1")
    unasked = await taken(here, watched, STOCKS, day, other + DAY, recheck=False)  # of which one is not there
    assert (unasked.files, unasked.replaced) == (0, [])
    done = await taken(here, watched, STOCKS, day, other)
    assert done.is_good
    assert (done.replaced, done.files, done.changed) == ([FlatFile(STOCKS, day).path], 1, 3)
    bars = rows(here, timeframe="1d").sort("time", "symbol")
    assert bars.select("symbol", "close").rows() == [("A", 10), ("B", 21), ("D", 40), ("A", 11)]
    assert rows(here, "quality").filter(pl.col("check") == "file_replaced")["observed"].to_list() == [3.0]
    lost = [payload for payload in rows(here, "rejected")["payload"] if "30.0" in payload]
    assert len(lost) == 1, "what the table does not say any more can still be read"
    assert states(here, FlatFile(STOCKS, day).path) == ["ingested", "replaced", "ingested"]
    before = files(here)
    assert (await taken(here, watched, STOCKS, day, other)).replaced == []
    assert files(here) == before


def packed(text: str) -> bytes:
    return gzip.compress(text.encode(), mtime=0)


def states(settings: Settings, path: str) -> list[str]:
    """What the ledger said of a file, from the first to the last word."""
    found = rows(settings, "dump_file").filter(pl.col("path") == path).sort("state_time", maintain_order=True)
    return found["state"].to_list()


async def test_a_file_that_was_replaced_and_new_ones_are_ready_at_once(
    here: Settings, fake_s3: FakeS3, market: FlatMarket, watched: Any
) -> None:
    here, days, other = here.model_copy(update={"massive_s3": fake_s3.address}), MONTH[:4], FlatMarket(seed=4)
    paths = [FlatFile(MINUTES, day).path for day in days]
    fake_s3.put(paths[1], market.gz(MINUTES, days[1]))
    await taken(here, watched, MINUTES, *days)
    for path, day in zip(paths, days, strict=True):
        fake_s3.put(path, (other if day == days[1] else market).gz(MINUTES, day))
    loop, is_read = asyncio.get_running_loop(), asyncio.Event()
    for path in paths[1:]:
        fake_s3.acts[path] = [stops(100, until=is_read)]

    def wait_for_the_others() -> None:
        watched.on_read = lambda: None
        loop.call_soon_threadsafe(is_read.set)
        until = time.monotonic() + PATIENCE_S
        while not all((here.landing / "massive" / path).exists() for path in paths[1:]) and time.monotonic() < until:
            time.sleep(0.01)

    watched.on_read = wait_for_the_others
    assert (await taken(here, watched, MINUTES, *days)).files == 4
    theirs = [*lines(market, MINUTES, days[0], *days[2:]), *lines(other, MINUTES, days[1])]
    assert_bars(here, [line for line in theirs if line["ticker"] not in TESTS])


async def test_some_symbols_and_then_all_of_them_are_all_of_them(
    here: Settings, publish: Any, market: FlatMarket, watched: Any
) -> None:
    days = MONTH[:3]
    publish(MINUTES, *days)
    done = await taken(here, watched, MINUTES, *days, symbols="AAPL,BApA")
    theirs = lines(market, MINUTES, *days)
    assert_bars(here, [line for line in theirs if line["ticker"] in ("AAPL", "BApA")])
    assert done.held_days == 0
    again = await taken(here, watched, MINUTES, *days, symbols="BApA")
    assert (again.files, again.held_days) == (0, 3)
    more = await taken(here, watched, MINUTES, *days, symbols="BApA,MSFT,BAPA")
    assert more.files == 3
    assert more.added == len([line for line in theirs if line["ticker"] == "MSFT"]), "case matters"
    assert (done.unseen, more.unseen) == ([], ["BAPA"])
    await taken(here, watched, MINUTES, *days)
    assert_bars(here, [line for line in theirs if line["ticker"] not in TESTS])
    before = files(here)
    assert (await taken(here, watched, MINUTES, *days, symbols="NVDA")).files == 0
    assert files(here) == before


async def test_a_file_that_is_replaced_changes_the_symbols_that_were_taken_of_it(
    here: Settings, flatfiles: Flatfiles, publish: Any, watched: Any
) -> None:
    day = MONTH[0]
    publish(MINUTES, day)
    await taken(here, watched, MINUTES, day, symbols="AAPL")
    other = FlatMarket(seed=4)
    flatfiles.put(FlatFile(MINUTES, day).path, other.gz(MINUTES, day))
    await taken(here, watched, MINUTES, day, symbols="MSFT")
    theirs = lines(other, MINUTES, day)
    assert_bars(here, [line for line in theirs if line["ticker"] in ("AAPL", "MSFT")])
    flatfiles.put(FlatFile(MINUTES, day).path, (last := FlatMarket(seed=5)).gz(MINUTES, day))
    assert (await taken(here, watched, MINUTES, day, symbols="MSFT")).replaced
    theirs = lines(last, MINUTES, day)
    assert_bars(here, [line for line in theirs if line["ticker"] in ("AAPL", "MSFT")])
    await taken(here, watched, MINUTES, day)
    assert_bars(here, [line for line in theirs if line["ticker"] not in TESTS])


async def test_of_options_a_root_is_all_of_its_contracts(
    here: Settings, publish: Any, market: FlatMarket, watched: Any
) -> None:
    day = MONTH[0]
    publish(OPTIONS, day)
    theirs = lines(market, OPTIONS, day)
    one = next(line["ticker"] for line in theirs if line["ticker"].startswith("O:TSLA"))
    await taken(here, watched, OPTIONS, day, symbols=f"AAPL,{one}")
    of_root = [line for line in theirs if re.fullmatch(r"O:AAPL\d{6}[CP]\d{8}", line["ticker"])]
    assert len(of_root) > 1
    assert_bars(here, [*of_root, *(line for line in theirs if line["ticker"] == one)])


@pytest.mark.parametrize("written", ["BTC-USD", "BTCUSD", "X:BTC-USD", "X:BTCUSD"])
async def test_a_pair_may_be_written_as_one_likes(
    here: Settings, publish: Any, market: FlatMarket, watched: Any, written: str
) -> None:
    saturday = date(2026, 5, 2)
    publish(CRYPTO, saturday)
    await taken(here, watched, CRYPTO, saturday, symbols=written)
    theirs = [line | {"ticker": "X:BTCUSD"} for line in lines(market, CRYPTO, saturday) if "BTC" in line["ticker"]]
    assert_bars(here, theirs, venue="crypto")
    assert (await taken(here, watched, CRYPTO, saturday, symbols="BTCUSD,X:BTC-USD")).files == 0


async def test_trades_are_rows_too(here: Settings, publish: Any, market: FlatMarket, watched: Any) -> None:
    folder, day = "us_stocks_sip/trades_v1", MONTH[0]
    publish(folder, day)
    done = await taken(here, watched, folder, day)
    theirs = [line for line in lines(market, folder, day) if line["ticker"] not in TESTS]
    assert done.rows == len(theirs)
    ours = rows(here, "trade").sort("symbol", "trade_id")
    assert ours.select("symbol", "price", "quantity", "sip_timestamp").rows() == [
        (line["ticker"], float(line["price"]), float(line["size"]), int(line["sip_timestamp"]))
        for line in sorted(theirs, key=lambda line: line["ticker"])
    ]
    before = files(here)
    assert (await taken(here, watched, folder, day)).files == 0
    assert files(here) == before


@pytest.mark.parametrize("word", ["streaming", "batch", "parallel"])
async def test_in_every_mode_the_rows_are_the_same(
    here: Settings, publish: Any, market: FlatMarket, watched: Any, word: Any
) -> None:
    days = MONTH[:8]
    publish(MINUTES, *days)
    meeting, met = threading.Barrier(2), list[int]()

    def meet() -> None:
        with suppress(threading.BrokenBarrierError):
            if not met:
                met.append(meeting.wait(PATIENCE_S if word == "parallel" else 0.3))

    watched.on_read = meet
    done = await taken(here, watched, MINUTES, *days, mode=mode_of(64 << 30, 3, word))
    watched.on_read = lambda: None
    assert done.mode == word
    assert bool(met) == (word == "parallel")
    assert_bars(here, [line for line in lines(market, MINUTES, *days) if line["ticker"] not in TESTS])
    assert (await taken(here, watched, MINUTES, *days)).files == 0


async def test_folders_may_be_taken_side_by_side_into_one_table(here: Settings, publish: Any, watched: Any) -> None:
    day = MONTH[0]
    publish(STOCKS, MONTH[1])
    await taken(here, watched, STOCKS, MEMORIAL_DAY)  # the tables are there
    for folder in (STOCKS, MINUTES, OPTIONS):
        publish(folder, day)
    done = await asyncio.gather(*(taken(here, watched, folder, day) for folder in (STOCKS, MINUTES, OPTIONS)))
    assert rows(here).height == sum(each.rows for each in done)
    assert rows(here).select("venue", "symbol", "timeframe", "time").is_unique().all()


async def test_who_asks_to_stop_keeps_what_is_done_and_goes_on_later(
    here: Settings, publish: Any, market: FlatMarket, watched: Any
) -> None:
    publish(MINUTES, *MONTH)
    stop = threading.Event()
    watched.on_done = stop.set
    done = await taken(here, watched, MINUTES, stop=stop, mode=mode_of(1 << 29, 1))
    assert done.is_stopped
    assert not done.is_good
    assert 0 < done.days < len(MONTH)
    rest = await taken(here, watched, MINUTES)
    assert (rest.held_days, rest.days) == (done.days, len(MONTH) - done.days)
    assert_bars(here, [line for line in lines(market, MINUTES, *MONTH) if line["ticker"] not in TESTS])


def with_other_columns(body: bytes) -> bytes:
    return packed(gzip.decompress(body).decode().replace("window_start", "window_end"))


def of_another_day(body: bytes) -> bytes:
    return FlatMarket(seed=3).gz(STOCKS, MONTH[0])


def not_packed(body: bytes) -> bytes:
    return b"<html>be right back</html>"


@pytest.mark.parametrize("spoil", [with_other_columns, of_another_day, not_packed])
async def test_a_file_that_is_unfit_is_put_aside_until_there_is_a_better_one(
    here: Settings, flatfiles: Flatfiles, publish: Any, market: FlatMarket, watched: Any, spoil: Any
) -> None:
    days, unfit = MONTH[:3], MONTH[1]
    path = FlatFile(STOCKS, unfit).path
    publish(STOCKS, *days)
    flatfiles.put(path, spoilt := spoil(market.gz(STOCKS, unfit)))
    done = await taken(here, watched, STOCKS, *days)
    assert (done.is_good, done.days, [each.path for each in done.wrong]) == (False, 2, [path])
    aside = here.state / "quarantine" / "massive" / path
    assert aside.read_bytes() == spoilt
    assert done.wrong[0].reason.endswith(f"; put aside as {aside}")
    assert states(here, path) == ["quarantined"]
    assert rows(here)["date"].unique().sort().to_list() == [days[0], days[2]]
    assert not [each for each in here.landing.rglob("*") if each.is_file()]
    publish(STOCKS, unfit)
    done = await taken(here, watched, STOCKS, *days)
    assert (done.is_good, done.days, done.changed) == (True, 1, 0)
    assert_bars(here, [line for line in lines(market, STOCKS, *days) if line["ticker"] not in TESTS])


async def test_a_quarantine_that_cannot_be_written_is_said(
    here: Settings, flatfiles: Flatfiles, publish: Any, watched: Any
) -> None:
    publish(STOCKS, *MONTH[:2])
    flatfiles.put(FlatFile(STOCKS, MONTH[0]).path, not_packed(b""))
    aside = here.state / "quarantine"
    here.state.mkdir()
    aside.write_text("this is no folder")
    with pytest.raises(ConfigError, match=f"LAKE_STATE: {aside}/massive/.* cannot be written: Not a directory"):
        await taken(here, watched, STOCKS, *MONTH[:2])
    aside.unlink()
    done = await taken(here, watched, STOCKS, *MONTH[:2])
    assert [each.path for each in done.wrong] == [FlatFile(STOCKS, MONTH[0]).path]


async def test_what_is_there_is_read_also_when_it_cannot_be_noted_that_it_goes(
    here: Settings, fake_s3: FakeS3, market: FlatMarket, watched: Any
) -> None:
    """The disk may be full, and what goes makes room."""
    path = FlatFile(STOCKS, MONTH[0]).path
    fake_s3.put(path, market.gz(STOCKS, MONTH[0]))

    async def fill_the_disk(request: web.Request, held: Held | None) -> web.StreamResponse:
        going = here.landing / "massive" / (path + GOING)
        going.symlink_to("/dev/null/is no folder")
        assert held is not None
        return held.right(request)

    fake_s3.acts[path] = [fill_the_disk]
    settings = here.model_copy(update={"massive_s3": fake_s3.address})
    assert (await taken(settings, watched, STOCKS, MONTH[0])).days == 1
    assert not [each for each in here.landing.rglob("*") if each.is_file()]


async def test_archives_are_kept_for_who_wants_them(here: Settings, publish: Any, watched: Any) -> None:
    publish(STOCKS, *MONTH[:2])
    await taken(here, watched, STOCKS, *MONTH[:2], keep_archives=True)
    kept = [here.landing / "massive" / FlatFile(STOCKS, day).path for day in MONTH[:2]]
    assert sorted(here.landing.rglob("*.gz")) == kept
    await taken(here, watched, STOCKS, *MONTH[:2])
    assert sorted(here.landing.rglob("*.gz")) == kept, "they are not ours to remove"


async def test_an_archive_that_lies_there_and_is_not_the_listed_one_is_fetched_anew(
    here: Settings, flatfiles: Flatfiles, publish: Any, market: FlatMarket, watched: Any
) -> None:
    day = MONTH[0]
    flatfiles.put(FlatFile(STOCKS, day).path, FlatMarket(seed=9).gz(STOCKS, day))
    await taken(here, watched, STOCKS, day, keep_archives=True)
    publish(STOCKS, day)
    done = await taken(here, watched, STOCKS, day)
    assert done.is_good
    assert_bars(here, [line for line in lines(market, STOCKS, day) if line["ticker"] not in TESTS])


@pytest.mark.parametrize("before", ["", "AAPL"], ids=["at once", "symbol by symbol"])
async def test_a_certificate_that_a_crash_left_out_is_written_by_the_next_run(
    here: Settings, publish: Any, watched: Any, before: str
) -> None:
    publish(STOCKS, *MONTH[:2])
    if before:
        await taken(here, watched, STOCKS, *MONTH[:2], symbols=before)
    await taken(here, watched, STOCKS, *MONTH[:2])
    table = Lake(here.root).table(DATASETS["coverage"])
    assert table is not None
    table.delete("symbol != '*'")
    said = certificates(here)
    assert {verdict for _, verdict, _ in said.values()} == {"complete"}
    table.delete()
    assert certificates(here) == {}
    await taken(here, watched, STOCKS, *MONTH[:2])
    assert certificates(here) == said
