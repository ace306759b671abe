"""`backfill yahoo`: what Yahoo reaches into the table, once, beside a recorder too, and a sentence for the rest."""

import json
import threading
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from crypto_lake.backfill.yahoo import Summary, Wanted, backfill, wanted_of
from crypto_lake.cli import main
from crypto_lake.config import CRYPTO, FOREX, US_INDICES, US_STOCKS, ConfigError, Settings, load
from crypto_lake.connections import SourceError
from crypto_lake.journal import RESPONSE, Journal
from crypto_lake.models.bar import BAR
from crypto_lake.models.chart import ChartQuestion
from crypto_lake.models.gap import GAP
from crypto_lake.query import gaps
from crypto_lake.services.drain import Drain
from crypto_lake.simulator import Fault, GeneratedMarket, Listed, Quotes, Scenario, Simulator
from crypto_lake.simulator.quotes import LISTED
from crypto_lake.writers.delta import Lake

DAY = timedelta(days=1)
NOW = datetime.now(UTC)
TODAY = NOW.date()
BITCOIN, APPLE, INDEX, EURO = (CRYPTO, "BTC-USD"), (US_STOCKS, "AAPL"), (US_INDICES, "^GSPC"), (FOREX, "EURUSD=X")
YOUNG = Listed("YOUNG", "EQUITY", 20.0, since=TODAY - 400 * DAY)


@dataclass
class Watched:
    """Whoever watches."""

    files: int = 0
    rows: int = 0
    ends: list[tuple[str, str, str]] = field(default_factory=list)

    def planned(self, days: int) -> None: ...

    def found(self, files: int) -> None:
        self.files += files

    def sized(self, path: str, size_bytes: int, days: int) -> None: ...

    def fetched(self, count: int) -> None: ...

    def read(self, rows: int) -> None:
        self.rows += rows

    def done(self, path: str, state: str, detail: str) -> None:
        self.ends.append((path, state, detail))


@dataclass
class Place:
    """An exchange, and tables of our own."""

    exchange: Simulator
    settings: Settings
    watched: Watched = field(default_factory=Watched)

    @property
    def quotes(self) -> Quotes:
        return self.exchange.quotes

    async def take(self, wanted: Wanted, **more: Any) -> Summary:
        return await backfill(self.settings, wanted, self.watched, **more)

    def rows(self) -> pl.DataFrame:
        return pl.read_delta(f"{self.settings.root}/bar")

    def held(self) -> list[tuple[Any, ...]]:
        names = ("venue", "symbol", "timeframe", pl.col("time").dt.epoch("s"), "open", "high", "low", "close", "volume")
        return sorted(self.rows().select(*names).rows())

    def true(self, symbols: Iterable[tuple[str, str]], timeframe: str, first: date, last: date) -> list[Any]:
        """What the ledger says of these days, which are the exchange's own where bars are days."""
        found: list[Any] = []
        for venue, symbol in symbols:
            more = 0 if timeframe == "1m" else 86_400
            bars = self.quotes.true_bars(symbol, timeframe, seconds(first) - more, seconds(last + DAY) + more)
            found += [
                (venue, symbol, timeframe, bar.begin_s, bar.open, bar.high, bar.low, bar.close, bar.volume)
                for bar in bars
                if timeframe == "1m" or first <= datetime.fromtimestamp(bar.begin_s + 13 * 3600, UTC).date() <= last
            ]
        return sorted(found)


def seconds(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


def at(day: date, hour: int) -> datetime:
    return datetime.fromtimestamp(seconds(day) + 3600 * hour, UTC)


@pytest.fixture
async def place(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    faults = Scenario(faults=getattr(request, "param", ()))
    quotes = Quotes((*LISTED, YOUNG), now_s=NOW.timestamp)
    async with Simulator(GeneratedMarket(1, rate=1), quotes=quotes, faults=faults) as exchange:
        places = {"root": str(tmp_path / "tables"), "state": str(tmp_path / "var")}
        yield Place(exchange, load(**places, yahoo=exchange.rest_url, yahoo_every_s=0.001))


async def test_minutes_of_many_days_come_once_whatever_is_asked_again(place: Place) -> None:
    symbols = (APPLE, INDEX)
    first = TODAY - 9 * DAY
    done = await place.take(Wanted(symbols, "1m", first, TODAY))
    assert place.held() == place.true(symbols, "1m", first, TODAY)
    assert done.is_good
    assert (done.answers, done.rows, done.added) == (4, len(place.held()), len(place.held()))
    assert place.watched.files == len(place.watched.ends) == 4
    again = await place.take(Wanted(symbols, "1m", first - 8 * DAY, TODAY))
    assert place.held() == place.true(symbols, "1m", first - 8 * DAY, TODAY)
    assert again.rows - again.added == done.rows
    before = pl.read_delta(f"{place.settings.root}/bar").height
    third = await place.take(Wanted(symbols, "1m", first - 8 * DAY, TODAY))
    assert (third.added, place.rows().height) == (0, before)
    assert place.rows().select("source", "origin", "complete", "received_time").unique().rows() == [
        ("rest", "yahoo", True, None)
    ]


# In London summer has begun on the last day, or lasts on the first: there days begin on the day before of UTC.
@pytest.mark.parametrize(
    ("first", "last"), [(date(2025, 3, 3), date(2025, 4, 10)), (date(2025, 10, 1), date(2025, 11, 6))]
)
async def test_days_are_those_of_the_exchange_also_in_summer(place: Place, first: date, last: date) -> None:
    symbols = (APPLE, INDEX, EURO)
    await place.take(Wanted(symbols, "1d", first, last))
    assert place.held() == place.true(symbols, "1d", first, last)
    begins = {symbol: set(place.rows().filter(symbol=symbol)["time"].dt.hour()) for _, symbol in symbols}
    assert begins == {"AAPL": {4, 5}, "^GSPC": {4, 5}, "EURUSD=X": {0, 23}}
    weekdays = {day for day in (first + number * DAY for number in range((last - first).days + 1)) if day.weekday() < 5}
    euro = set((place.rows().filter(symbol="EURUSD=X")["time"] + timedelta(hours=1)).dt.date())
    assert euro <= weekdays
    assert len(weekdays - euro) < 6
    assert {first, last} <= euro


async def test_what_a_recorder_has_is_left_as_it_is(place: Place) -> None:
    first = TODAY - 2 * DAY
    question = ChartQuestion(*BITCOIN, "1m", seconds(first), seconds(TODAY))
    journal = Journal(Path(place.settings.state) / "journal")
    _, body = place.quotes.answer("BTC-USD", question.params)
    journal.append(RESPONSE, question.origin, body, 1_790_000_000_000_000)
    journal.close()
    lake = Lake(place.settings.root)
    await place.take(Wanted((APPLE,), "1m", TODAY - 4 * DAY, TODAY))  # makes the tables
    Drain(BAR, journal.directory, lake, collector="test").run_dry()
    place.quotes.revised = {("BTC-USD", second): 1.0 for second in range(seconds(first), seconds(TODAY), 60)}
    done = await place.take(Wanted((BITCOIN,), "1m", first - DAY, TODAY))
    rows = place.rows().filter(symbol="BTC-USD")
    live = rows.filter(pl.col("received_time").is_not_null())
    assert live.height > 2000
    assert done.rows - done.added == live.height
    assert rows.height == rows["time"].n_unique() == done.rows
    assert 1.0 not in rows["close"].to_list()


async def test_holes_that_a_recorder_left_are_filled_when_all_of_their_days_are_answered_for(place: Place) -> None:
    lake = Lake(place.settings.root)
    lake.check(GAP)
    begins = {"inside": TODAY - 12 * DAY, "on both sides": TODAY - 16 * DAY, "of another": TODAY - 12 * DAY}
    holes = [
        {
            "venue": BITCOIN[0],
            "symbol": "ETH-USD" if name == "of another" else "BTC-USD",
            "dataset": "bar",
            "start_time": at(begin, 7),
            "end_time": at(begin + 3 * DAY, 7),
            "reason": "restart",
            "state": "open",
            "filled_rows": 0,
            "state_time": NOW - DAY,
            "date": begin,
        }
        for name, begin in begins.items()
    ]
    lake.add(GAP, pl.DataFrame(holes, schema=GAP.schema))

    def states() -> dict[tuple[str, date], str]:
        found = gaps(place.settings.root, "bar").select("symbol", pl.col("start_time").dt.date(), "state")
        return {(symbol, day): state for symbol, day, state in found.iter_rows()}

    nothing = dict.fromkeys([("BTC-USD", begins["inside"]), ("BTC-USD", begins["on both sides"])], "open")
    nothing["ETH-USD", begins["of another"]] = "open"
    await place.take(Wanted((BITCOIN,), "1d", TODAY - 20 * DAY, TODAY))
    assert states() == nothing, "of other bars than those that are recorded nothing is said"
    for _ in range(2):
        await place.take(Wanted((BITCOIN,), "1m", TODAY - 14 * DAY, TODAY))
        assert states() == nothing | {("BTC-USD", begins["inside"]): "filled"}
    assert lake.rows(GAP).height == len(holes) + 1


async def test_an_answer_that_is_unfit_fills_no_hole(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = Lake(place.settings.root)
    lake.check(GAP)
    begin = TODAY - 3 * DAY
    hole = {"venue": BITCOIN[0], "symbol": "BTC-USD", "dataset": "bar", "reason": "restart", "state": "open"}
    times = {"start_time": at(begin, 7), "end_time": at(begin, 9), "state_time": NOW - DAY, "date": begin}
    lake.add(GAP, pl.DataFrame([hole | times | {"filled_rows": 0}], schema=GAP.schema))
    monkeypatch.setattr(place.quotes, "answer", lambda symbol, params: (200, b'{"chart":{"result":[],"error":null}}'))
    done = await place.take(Wanted((BITCOIN,), "1m", begin, TODAY))
    assert not done.is_good
    assert gaps(place.settings.root, "bar")["state"].to_list() == ["open"]


async def test_where_nothing_is_older_it_is_said_and_nothing_failed(place: Place) -> None:
    done = await place.take(Wanted(((US_STOCKS, "YOUNG"),), "1d", date(1999, 1, 1), TODAY))
    assert done.is_good
    assert [each.partition(" startDate")[0] for each in done.ends] == [
        "us-stocks:YOUNG: Yahoo says Bad Request: Data doesn't exist for"
    ]
    assert 260 < done.added < 290
    assert place.watched.files == len(place.watched.ends) == 2


async def test_an_unknown_symbol_fails_and_the_others_are_taken(place: Place) -> None:
    done = await place.take(Wanted(((US_STOCKS, "NOBODY"), APPLE), "1m", TODAY - 20 * DAY, TODAY))
    (wrong,) = done.wrong
    assert not done.is_good
    assert "us-stocks:NOBODY: Yahoo says Not Found" in wrong.reason
    assert set(place.rows()["symbol"]) == {"AAPL"}
    assert place.watched.files == len(place.watched.ends)


SOMETIMES = (Fault(kind="too_many", venue="yahoo", share=0.3, retry_after_s=0),)
ALWAYS = (Fault(kind="html", endpoints=("chart",)),)
LONG = (Fault(kind="too_many", venue="yahoo", retry_after_s=900),)


@pytest.mark.parametrize("place", [SOMETIMES], indirect=True)
async def test_a_short_pause_is_kept_and_then_it_goes_on(place: Place) -> None:
    done = await place.take(Wanted((APPLE, INDEX), "1m", TODAY - 25 * DAY, TODAY), first_pause_s=0.05)
    assert done.is_good
    assert place.exchange.faults.done
    assert place.held() == place.true((APPLE, INDEX), "1m", TODAY - 25 * DAY, TODAY)


@pytest.mark.parametrize(
    ("place", "words"),
    [(ALWAYS, "instead of a chart: <html>"), (LONG, "HTTP 429 instead of a chart")],
    indirect=["place"],
)
async def test_yahoo_that_does_not_want_to_be_asked_ends_it_with_a_sentence(place: Place, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        await place.take(Wanted((APPLE,), "1m", TODAY - DAY, TODAY), first_pause_s=0.01)


async def test_an_answer_that_is_unfit_is_set_aside_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.quotes.listed["AAPL"] = Listed("AAPL", "EQUITY", 1.0, zone="Mars/Olympus")
    answer = place.quotes.answer
    odd = json.dumps({"chart": {"result": [{"meta": {"symbol": "MSFT"}, "timestamp": [1]}], "error": None}}).encode()
    monkeypatch.setattr(
        place.quotes, "answer", lambda symbol, query: (200, odd) if symbol == "AAPL" else answer(symbol, query)
    )
    for _ in range(2):
        done = await place.take(Wanted((APPLE, INDEX), "1m", TODAY - 5 * DAY, TODAY))
        assert [each.reason for each in done.wrong] == ["us-stocks:AAPL: a chart of MSFT, and AAPL was asked for"]
        assert done.refused == 1
    (rejected,) = pl.read_delta(f"{place.settings.root}/rejected").to_dicts()
    assert rejected["payload"].encode() == odd
    assert set(place.rows()["symbol"]) == {"^GSPC"}


async def test_who_stops_it_finds_what_was_done_until_then(place: Place) -> None:
    stop = threading.Event()

    class Stopping(Watched):
        def done(self, path: str, state: str, detail: str) -> None:
            super().done(path, state, detail)
            stop.set()

    place.watched = Stopping()
    done = await place.take(Wanted((APPLE, INDEX), "1m", TODAY - 20 * DAY, TODAY), stop=stop)
    assert (done.is_stopped, done.is_good, done.answers) == (True, False, 1)
    assert place.rows().height == done.added > 0
    place.watched = Watched()
    assert (await place.take(Wanted((APPLE, INDEX), "1m", TODAY - 20 * DAY, TODAY))).is_good
    assert place.held() == place.true((APPLE, INDEX), "1m", TODAY - 20 * DAY, TODAY)


EARLIEST = (NOW - 30 * DAY).date() + DAY


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (("us-stocks:AAPL", "2024-01-15", None, "1m"), f"of 1m bars Yahoo has the last 30 days; begin on {EARLIEST}"),
        (("AAPL", "2024-01", None, "1d"), "--symbols AAPL: write the venue in front, such as us-stocks:AAPL"),
        (("stocks:AAPL", "2024-01", None, "1d"), "Yahoo has no venue 'stocks'; did you mean 'us-stocks'"),
        (("binance-futures:BTCUSDT", "2024-01", None, "1d"), "Yahoo has no venue 'binance-futures'"),
        ((" ,", "2024-01", None, "1d"), "--symbols: name at least one symbol"),
        (("us-stocks:AAPL", "2024-01", None, "5m"), "--timeframe 5m: Yahoo is asked for 1m and 1d"),
        (("us-stocks:AAPL", "soon", None, "1d"), "--start soon: write a day"),
        (("us-stocks:AAPL", "2024-01-15T10:00", None, "1d"), "--start 2024-01-15T10:00: write a day"),
        (("us-stocks:AAPL", "2024-02", "2024-01", "1d"), "--start 2024-02 is after --end 2024-01"),
        (("us-stocks:AAPL", "2090-01", None, "1d"), "--start 2090-01 is yet to come"),
    ],
)  # fmt: skip
def test_what_there_is_not_is_a_sentence(asked: Any, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        wanted_of(*asked, now=NOW)
    assert str(error.value).startswith(sentence) or sentence in str(error.value)


def test_spans_are_walked_back_in_steps_that_yahoo_answers() -> None:
    named = "us-stocks:AAPL, us-indices:^GSPC,us-stocks:AAPL"
    wanted = wanted_of(named, str(EARLIEST), None, "1m", now=NOW)
    assert wanted.symbols == (APPLE, INDEX)
    spans = list(wanted.spans())
    assert (spans[0][1], spans[-1][0]) == (TODAY, EARLIEST)
    assert all(later[0] - earlier[1] == DAY for later, earlier in pairwise(spans))
    assert max(last - first for first, last in spans) == 6 * DAY
    old = wanted_of("us-indices:^GSPC", "1900-01", "2024-01", "1d", now=NOW)
    assert (old.first, old.last) == (date(1927, 1, 1), date(2024, 1, 31))
    assert len(list(old.spans())) < 12


async def test_the_command_line_says_what_it_did(place: Place, forks: Any, tmp_path: Path) -> None:
    environment = {"LAKE_ROOT": place.settings.root, "LAKE_STATE": str(place.settings.state),
                   "LAKE_YAHOO": place.exchange.rest_url, "LAKE_YAHOO_EVERY_S": "0.001"}  # fmt: skip
    start = str(TODAY - 3 * DAY)
    said: list[tuple[int, str, str]] = []
    for number, words in enumerate((["--json"], ["--symbols", "us-stocks:AAPL,us-stocks:NOBODY"])):
        desk = tmp_path / f"desk-{number}"
        desk.mkdir()
        asked = ["backfill", "yahoo", "--symbols", "us-stocks:AAPL,us-indices:^GSPC", "--start", start, *words]
        status = await forks.end(forks.begin(environment, desk, *asked))
        said.append((status, (desk / "out").read_text(), (desk / "errors").read_text()))
    assert [status for status, *_ in said] == [0, 1]
    done = json.loads(said[0][1])
    assert done["added_rows"] == done["rows"] == place.rows().height > 0
    apple = place.rows().filter(symbol="AAPL").height
    assert "1 answer, " in said[1][1]
    assert f" {apple:,} bars, 0 of them new\n" in said[1][1]
    assert "failed; the same command tries again:\n  us-stocks:NOBODY: Yahoo says Not Found" in said[1][1]
    assert "failed: us-stocks:NOBODY: Yahoo says Not Found" in said[1][2]
    assert "Traceback" not in "".join(errors for *_, errors in said)


def test_a_wrong_question_ends_with_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["backfill", "yahoo", "--symbols", "AAPL", "--start", "2024-01"])
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("crypto-lake: --symbols AAPL: write the venue in front")
