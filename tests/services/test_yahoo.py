"""Yahoo in turns: every complete bar within reach is in the table once, whatever is killed or refused meanwhile."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from structlog.testing import capture_logs

from crypto_lake.config import CRYPTO, FOREX, US_INDICES, US_STOCKS, ConfigError, load
from crypto_lake.connections.yahoo import Yahoo
from crypto_lake.journal import Journal
from crypto_lake.models import SIDES
from crypto_lake.models.bar import BAR
from crypto_lake.models.chart import DAY_S
from crypto_lake.services.drain import Drain
from crypto_lake.services.markets import parse
from crypto_lake.services.yahoo import AGAIN_S, FRUITLESS_S, REACH_S, Turns, ask_in_turns, charted
from crypto_lake.simulator import Fault, GeneratedMarket, Quotes, Scenario, Simulator, TrueBar
from crypto_lake.writers.delta import Lake

Wait = Callable[..., Any]
BITCOIN, APPLE, INDEX, EURO = (CRYPTO, "BTC-USD"), (US_STOCKS, "AAPL"), (US_INDICES, "^GSPC"), (FOREX, "EURUSD=X")
ALL = [BITCOIN, APPLE, INDEX, EURO]


class Clock:
    """Everybody's time, which moves by hand alone."""

    def __init__(self) -> None:
        # An afternoon on which every exchange is open, whenever the test runs.
        self.now_s = datetime(2026, 11, 18, 18, tzinfo=UTC).timestamp()

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quotes(clock: Clock) -> Quotes:
    return Quotes(now_s=clock)


def an_exchange(quotes: Quotes, *faults: Fault) -> Simulator:
    return Simulator(GeneratedMarket(1, rate=1), quotes=quotes, faults=Scenario(faults=faults))


class Recording:
    """A journal, asked into and drained by hand, again and again."""

    def __init__(self, home: Path, exchange: Simulator, clock: Clock, *, timeframe: Any = "1m") -> None:
        self._home, self._address, self._clock, self._timeframe = home, exchange.rest_url, clock, timeframe
        self.lake = Lake(str(home / "tables"))
        for dataset in (BAR, *SIDES):
            self.lake.check(dataset)

    @contextlib.asynccontextmanager
    async def running(self) -> Any:
        """A recorder's life; what it has asked for is in the tables behind it."""
        journal = Journal(self._home / "journal")
        try:
            async with Yahoo(self._address, every_s=0) as yahoo:
                yield Turns(yahoo, journal, timeframe=self._timeframe, clock=self._clock)
        finally:
            journal.close()
        Drain(BAR, self._home / "journal", self.lake, collector="test").run_dry()

    async def ask(self, *symbols: tuple[str, str], times: int = 1) -> None:
        """A life in which everybody has so many turns, a minute apart."""
        async with self.running() as turns:
            for number in range(times):
                self._clock.now_s += 60 if number else 0
                for symbol in turns.due(symbols):
                    await turns.take(*symbol)

    def rows(self, name: str = "bar") -> pl.DataFrame:
        return pl.read_delta(f"{self.lake.root}/{name}")


def as_true(quotes: Quotes, symbols: Iterable[tuple[str, str]], timeframe: str = "1m") -> list[tuple[Any, ...]]:
    """The rows that the ledger says there must be, of all times that were asked for."""
    found: list[tuple[Any, ...]] = []
    for venue, symbol in symbols:
        asked = [each for each in quotes.asked if each.symbol == symbol]
        bars: dict[int, TrueBar] = {}
        for each in asked:
            bars |= {bar.begin_s: bar for bar in quotes.true_bars(symbol, timeframe, each.since_s, each.until_s)}
        found += [
            (venue, symbol, timeframe, bar.begin_s, bar.open, bar.high, bar.low, bar.close, bar.volume)
            for bar in bars.values()
        ]
    return sorted(found)


def as_held(rows: pl.DataFrame) -> list[tuple[Any, ...]]:
    names = ("venue", "symbol", "timeframe", pl.col("time").dt.epoch("s"), "open", "high", "low", "close", "volume")
    return sorted(rows.select(*names).rows())


async def test_every_true_bar_is_in_the_table_once(tmp_path: Path, clock: Clock, quotes: Quotes) -> None:
    async with an_exchange(quotes) as exchange:
        recording = Recording(tmp_path, exchange, clock)
        for _ in range(3):
            await recording.ask(*ALL, times=3)
            clock.now_s += 2000
        await recording.ask(*ALL)
    rows = recording.rows()
    assert as_held(rows) == as_true(quotes, ALL)
    assert rows.select("source", "origin", "complete", "revision").unique().rows() == [("rest", "yahoo", True, 0)]
    assert not rows["received_time"].null_count()
    assert recording.rows("gap").is_empty()
    assert recording.rows("rejected").is_empty()
    # No trade, no row: the test would see one that is made up.
    bitcoin = rows.filter(symbol="BTC-USD")["time"].sort()
    assert bitcoin.diff().n_unique() > 2


async def test_a_question_reaches_back_to_the_newest_bar_that_was_seen(
    tmp_path: Path, clock: Clock, quotes: Quotes
) -> None:
    async with an_exchange(quotes) as exchange:
        recording = Recording(tmp_path, exchange, clock)
        await recording.ask(BITCOIN, times=2)
        first, second = quotes.asked
        newest_s = int(recording.rows()["time"].max().timestamp())  # type: ignore[union-attr]
        assert 0 <= clock.now_s - 60 - REACH_S["1m"] - first.since_s < 60
        assert newest_s - AGAIN_S["1m"] - second.since_s in (0, 60, 120)
        clock.now_s += 3 * DAY_S
        await recording.ask(BITCOIN)
        assert quotes.asked[-1].since_s < newest_s  # a new run knows nothing, and so asks for all
    assert as_held(recording.rows()) == as_true(quotes, [BITCOIN])


async def test_days_come_when_their_midnight_is_over(tmp_path: Path, clock: Clock, quotes: Quotes) -> None:
    async with an_exchange(quotes) as exchange:
        recording = Recording(tmp_path, exchange, clock, timeframe="1d")
        for _ in range(4):
            await recording.ask(*ALL, times=2)
            clock.now_s += DAY_S
        await recording.ask(*ALL)
    assert as_held(recording.rows()) == as_true(quotes, ALL, "1d")
    assert recording.rows().filter(symbol="BTC-USD").height > 30


async def test_a_value_that_is_revised_stays_out(tmp_path: Path, clock: Clock, quotes: Quotes) -> None:
    async with an_exchange(quotes) as exchange:
        recording = Recording(tmp_path, exchange, clock)
        await recording.ask(BITCOIN)
        before = as_held(recording.rows())
        newest = quotes.true_bars("BTC-USD", "1m", int(clock.now_s) - 1200, int(clock.now_s))
        quotes.revised = {("BTC-USD", bar.stamp_s): 1.0 for bar in newest}
        await recording.ask(BITCOIN, times=8)  # of two minutes both may be without a trade
    held = as_held(recording.rows())
    assert len(newest) > 10
    assert set(before) < set(held)
    assert all(row[7] != 1.0 for row in held)


async def test_what_is_out_of_reach_is_a_gap(tmp_path: Path, clock: Clock, quotes: Quotes) -> None:
    async with an_exchange(quotes) as exchange:
        recording = Recording(tmp_path, exchange, clock)
        began_s = time.time()
        await recording.ask(*ALL)
        clock.now_s += 6 * DAY_S
        await recording.ask(*ALL)  # away for a week less a day: nothing is missing
        assert recording.rows("gap").is_empty()
        clock.now_s += 4 * DAY_S
        async with recording.running() as turns:
            for symbol in turns.due([BITCOIN]):
                await turns.take(*symbol)
            clock.now_s += 20 * DAY_S
            for symbol in turns.due([BITCOIN]):
                await turns.take(*symbol)
    gaps = recording.rows("gap").sort("start_time").to_dicts()
    questions = [each for each in quotes.asked if each.symbol == "BTC-USD"]
    told = [(each["venue"], each["symbol"], each["dataset"], each["reason"], each["state"]) for each in gaps]
    assert told == [(*BITCOIN, "bar", "restart", "open"), (*BITCOIN, "bar", "disconnect", "open")]
    # By the clock of this machine, which did not move, the answers came in one second.
    assert [each["end_time"].timestamp() for each in gaps] == [questions[-2].since_s, questions[-1].since_s]
    assert all(0 <= each["start_time"].timestamp() - began_s < 60 for each in gaps)


async def test_what_was_not_wanted_is_no_gap(tmp_path: Path, clock: Clock, quotes: Quotes) -> None:
    async with an_exchange(quotes) as exchange:
        recording = Recording(tmp_path, exchange, clock)
        async with recording.running() as turns:
            for wanted in ([BITCOIN, APPLE], [APPLE], [BITCOIN, APPLE]):
                for symbol in turns.due(wanted):
                    await turns.take(*symbol)
                clock.now_s += 8 * DAY_S
    assert set(recording.rows("gap")["symbol"]) == {"AAPL"}


async def test_an_unknown_symbol_is_said_once_and_leaves_the_others_alone(
    tmp_path: Path, clock: Clock, quotes: Quotes
) -> None:
    nobody = (US_STOCKS, "NOBODY")
    async with an_exchange(quotes) as exchange:
        recording = Recording(tmp_path, exchange, clock)
        with capture_logs() as said:
            async with recording.running() as turns:
                for _ in range(4):
                    for symbol in turns.due([nobody, BITCOIN]):
                        await turns.take(*symbol)
                    assert turns.due([nobody, BITCOIN]) == [BITCOIN]
                    clock.now_s += FRUITLESS_S
    (warning,) = [each for each in said if each["log_level"] == "warning"]
    assert (warning["event"], warning["symbol"]) == ("yahoo_has_no_chart", "NOBODY")
    assert "No data found, symbol may be delisted" in warning["reason"]
    assert set(recording.rows()["symbol"]) == {"BTC-USD"}


async def test_pages_and_refusals_cost_nothing_but_time(
    tmp_path: Path, clock: Clock, quotes: Quotes, gate: asyncio.Event, wait_for: Wait
) -> None:
    faults = (
        Fault(kind="html", share=0.3, endpoints=("chart",)),
        Fault(kind="html", share=0.2, status=999, venue="yahoo"),
        Fault(kind="too_many", share=0.3, retry_after_s=0, venue="yahoo"),
    )
    symbols = [APPLE, INDEX]

    def are_asked_twice(before: int) -> bool:
        asked = [each.symbol for each in quotes.asked[before:]]
        return all(asked.count(symbol) > 1 for _, symbol in symbols)

    async with an_exchange(quotes, *faults) as exchange:
        recording = Recording(tmp_path, exchange, clock)
        journal = Journal(tmp_path / "journal")
        with capture_logs() as said:
            async with Yahoo(exchange.rest_url, every_s=0.001, first_pause_s=0.001) as yahoo:
                work = ask_in_turns(yahoo, lambda: symbols, journal, gate, timeframe="1m", every_s=0.001)
                task = asyncio.create_task(work)
                for _ in range(5):
                    clock.now_s += 60
                    before = len(quotes.asked)
                    await wait_for(lambda before=before: are_asked_twice(before))
                task.cancel()
                await asyncio.wait([task])
        journal.close()
        Drain(BAR, tmp_path / "journal", recording.lake, collector="test").run_dry()
        kinds = {each.kind for each in exchange.faults.done}
    assert kinds == {"html", "too_many"}
    assert {each["event"] for each in said} == {"yahoo_refuses"}
    assert as_held(recording.rows()) == as_true(quotes, symbols)
    assert recording.rows("rejected").is_empty()


def exactly_once(root: Path, quotes: Quotes, symbols: Sequence[tuple[str, str]]) -> None:
    held = as_held(pl.read_delta(str(root / "bar")))
    assert len(held) == len(set(held))
    assert set(held) <= set(as_true(quotes, symbols))


async def test_a_killed_recorder_writes_no_bar_twice_and_loses_none(
    recorder: Callable[..., Any], wait_for: Wait
) -> None:
    clock, symbols = Clock(), [APPLE, INDEX, BITCOIN]
    clock.now_s -= 3600  # so that what is asked for by our clock is still to come
    quotes = Quotes(now_s=clock)
    async with an_exchange(quotes) as exchange:
        daemon = recorder(
            {
                **exchange.environment,
                "LAKE_SYMBOLS": ",".join(f"{venue}:{symbol}" for venue, symbol in (*symbols, (US_STOCKS, "NOBODY"))),
                "LAKE_YAHOO_EVERY_S": "0.03",
                "LAKE_COMMIT_EVERY_S": "0.1",
            }
        )
        for with_worker in (True, False):
            asked = len(quotes.asked)
            await daemon.start()
            for step in range(1, 4):
                await wait_for(lambda asked=asked, step=step: len(quotes.asked) > asked + 6 * step)
                clock.now_s += 90
            daemon.kill(with_worker=with_worker)
            await daemon.wait()
            if (daemon.root / "bar").exists():
                exactly_once(daemon.root, quotes, symbols)
        asked = len(quotes.asked)
        await daemon.start()
        await wait_for(lambda: len(quotes.asked) > asked + 2 * len(symbols))
        assert await daemon.stop() == 0
    assert as_held(pl.read_delta(str(daemon.root / "bar"))) == as_true(quotes, symbols)
    assert len(daemon.events("yahoo_has_no_chart")) == 3  # once in each life
    assert daemon.events("stopped")[-1]["journal_bytes_for_the_next_start"] == 0


async def test_yahoo_is_not_asked_unless_somebody_says_so(recorder: Callable[..., Any], wait_for: Wait) -> None:
    async with Simulator(GeneratedMarket(1, rate=100)) as exchange:
        words = {"LAKE_SYMBOLS": "BTCUSDT,us-stocks:AAPL", "LAKE_DATASETS": "agg_trade"}
        daemon = recorder({**exchange.environment, **words})
        await daemon.start()
        await wait_for(lambda: daemon.journal_bytes > 10_000)
        assert await daemon.stop() == 0
        assert not exchange.quotes.asked
    assert not (daemon.root / "bar").exists()


def test_what_yahoo_is_asked_for_is_named_symbol_by_symbol() -> None:
    settings = load(yahoo_every_s=1.0)
    words = ["us-stocks:BRK-B", "us-indices:^GSPC", "crypto:BTC-USD", "forex:EURUSD=X", "BTCUSDT", "us-stocks:AAPL"]
    assert charted(parse(words), settings) == [
        (US_STOCKS, "BRK-B"),
        (US_STOCKS, "AAPL"),
        INDEX,
        BITCOIN,
        EURO,
    ]
    assert charted(parse(words), load(yahoo_every_s=0.0)) == []
    with pytest.raises(ConfigError, match="us-stocks:all: Yahoo is asked symbol by symbol"):
        charted(parse(["us-stocks:all"]), settings)
