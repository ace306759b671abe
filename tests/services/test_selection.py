"""What is collected: LAKE_SYMBOLS and the table `symbol` together, what the venues list of it, and on which streams."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web

from crypto_lake.config import FUTURES, SPOT, US_STOCKS, ConfigError, Settings
from crypto_lake.connections.rest import Rest
from crypto_lake.models.symbol import Named
from crypto_lake.services import roster, symbols
from crypto_lake.services.collect import Feed, plan, replan
from crypto_lake.services.leave_out import Omission, only
from crypto_lake.services.look import Look
from crypto_lake.services.markets import Wanted, chosen, united
from crypto_lake.services.selection import Selection

SETTINGS = Settings(_env_file=None)
NOW = datetime(2026, 3, 1, tzinfo=UTC)


def names(words: str, **table: Named) -> dict[str, tuple[str, ...]]:
    venues = {venue.replace("_", "-"): named for venue, named in table.items()}
    return {venue: each.symbols for venue, each in united(words.split(",") if words else [], venues).items()}


def test_the_table_has_the_last_word_on_what_it_knows_and_the_setting_on_the_rest() -> None:
    table = Named(active=("SOLUSDT", "BTCUSDT"), removed=("ETHUSDT", "XRPUSDT"))
    assert names("BTCUSDT,ETHUSDT") == {FUTURES: ("BTCUSDT", "ETHUSDT")}
    assert names("BTCUSDT,ETHUSDT", binance_futures=table) == {FUTURES: ("BTCUSDT", "SOLUSDT")}
    assert names("", binance_futures=table) == {FUTURES: ("SOLUSDT", "BTCUSDT")}
    assert names("ETHUSDT", binance_futures=table, binance=Named(("BTCUSDT",))) == {
        FUTURES: ("SOLUSDT", "BTCUSDT"),
        SPOT: ("BTCUSDT",),
    }
    assert names("BTCUSDT", us_stocks=Named(("AAPL", "brk.b")))[US_STOCKS] == ("AAPL", "brk.b")
    assert names("ETHUSDT", binance_futures=Named(removed=("ETHUSDT",))) == {}
    assert names("BTCUSDT", us_options=Named(("O:SPY",))) == {FUTURES: ("BTCUSDT",)}  # nobody records these


class Exchange:
    """A venue that lists what the test says, and counts how often it is asked; `is_deaf` refuses."""

    def __init__(self) -> None:
        self.listed = ["BTCUSDT", "ETHUSDT", "SOLUSDT"]
        self.asked = 0
        self.is_deaf = False

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        if self.is_deaf:
            assert request.transport is not None
            request.transport.abort()
        of_all = [{"symbol": name, "status": "TRADING", "contractType": "PERPETUAL"} for name in self.listed]
        return web.json_response({"symbols": of_all})


@pytest.fixture
async def exchange() -> AsyncIterator[tuple[Exchange, Rest]]:
    venue = Exchange()
    app = web.Application()
    app.router.add_get("/{path:.*}", venue.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with Rest(lambda _: f"http://127.0.0.1:{runner.addresses[0][1]}", attempts=1) as rest:
        yield venue, rest
    await runner.cleanup()


def selection(state: Path, words: str, clock_s: Callable[[], float] = lambda: 0.0) -> Selection:
    made = Settings(_env_file=None, symbols=words, state=state)
    made.journals.mkdir(parents=True, exist_ok=True)
    return Selection(made, clock_s=clock_s)


def of_futures(chosen_now: Selection) -> tuple[str, ...]:
    return chosen_now.markets[FUTURES].symbols if FUTURES in chosen_now.markets else ()


async def test_a_change_asks_the_venue_for_what_is_new_and_for_nothing_else(
    exchange: tuple[Exchange, Rest], tmp_path: Path
) -> None:
    venue, rest = exchange
    now = selection(tmp_path, "BTCUSDT,ETHUSDT")
    markets = now.markets
    await now.begin(rest)
    assert not await now.turn(rest)
    venue.listed.remove("BTCUSDT")  # an odd answer must not end what is recorded
    now.hear({FUTURES: Named(("SOLUSDT", "NEWUSDT"), ("ETHUSDT",))})
    assert await now.turn(rest)
    assert of_futures(now) == ("BTCUSDT", "SOLUSDT")
    assert list(now.unlisted) == [(FUTURES, "NEWUSDT")]
    asked = venue.asked
    now.hear({FUTURES: Named(("NEWUSDT",), ("ETHUSDT", "SOLUSDT"))})
    assert await now.turn(rest)
    assert venue.asked == asked
    now.hear({FUTURES: Named((), ("ETHUSDT", "SOLUSDT", "NEWUSDT", "BTCUSDT"))})
    assert await now.turn(rest)
    assert (of_futures(now), now.unlisted) == ((), {})
    assert now.markets is markets


async def test_a_symbol_that_is_listed_later_is_collected_then(exchange: tuple[Exchange, Rest], tmp_path: Path) -> None:
    venue, rest = exchange
    clock = [0.0]
    now = selection(tmp_path, "BTCUSDT", lambda: clock[0])
    now.hear({FUTURES: Named(("NEWUSDT",))})
    await now.begin(rest)  # only a word of the setting is a mistake at the start
    assert list(now.unlisted) == [(FUTURES, "NEWUSDT")]
    venue.listed.append("NEWUSDT")
    assert not await now.turn(rest)
    clock[0] = 3601.0
    assert await now.turn(rest)
    assert (of_futures(now), now.unlisted) == (("BTCUSDT", "NEWUSDT"), {})


async def test_a_venue_that_does_not_answer_is_asked_again_and_removes_all_the_same(
    exchange: tuple[Exchange, Rest], tmp_path: Path
) -> None:
    venue, rest = exchange
    now = selection(tmp_path, "BTCUSDT,ETHUSDT")
    await now.begin(rest)
    venue.is_deaf = True
    now.hear({FUTURES: Named(("SOLUSDT",), ("ETHUSDT",))})
    assert await now.turn(rest)
    assert (of_futures(now), now.unlisted) == (("BTCUSDT",), {})
    venue.is_deaf = False
    assert await now.turn(rest)
    assert of_futures(now) == ("BTCUSDT", "SOLUSDT")


async def test_all_but_what_was_removed(exchange: tuple[Exchange, Rest], tmp_path: Path) -> None:
    _, rest = exchange
    now = selection(tmp_path, "all")
    now.hear({FUTURES: Named(("NOSUCH",), ("ETHUSDT",))})
    await now.begin(rest)
    assert of_futures(now) == ("BTCUSDT", "SOLUSDT")
    now.hear({FUTURES: Named(("ETHUSDT",), ("BTCUSDT",))})
    assert await now.turn(rest)
    assert of_futures(now) == ("SOLUSDT", "ETHUSDT")


async def test_nothing_at_all_is_a_mistake_at_the_start_only(exchange: tuple[Exchange, Rest], tmp_path: Path) -> None:
    _, rest = exchange
    now = selection(tmp_path, "BTCUSDT")
    now.hear({FUTURES: Named((), ("BTCUSDT",))})
    with pytest.raises(ConfigError, match="nothing to collect: LAKE_SYMBOLS"):
        await now.begin(rest)


async def test_a_table_that_cannot_be_read_at_the_start_is_as_it_was(
    exchange: tuple[Exchange, Rest], tmp_path: Path
) -> None:
    _, rest = exchange
    selection(tmp_path, "BTCUSDT").hear({FUTURES: Named(("SOLUSDT",), ("BTCUSDT",))})
    now = selection(tmp_path, "BTCUSDT")
    now.hear(None)
    await now.begin(rest)
    assert of_futures(now) == ("SOLUSDT",)


def test_the_table_is_read_when_it_has_changed_and_one_that_is_gone_says_nothing(tmp_path: Path) -> None:
    root = tmp_path / "tables"
    look = Look(str(root), every_s=0)
    assert look.now() == {}
    assert look.again() is None
    symbols.add(str(root), symbols.names(["BTCUSDT"]), asset_type=None, now=NOW)
    assert look.again() == {FUTURES: Named(("BTCUSDT",))}
    assert look.again() is None
    (root / "symbol").rename(tmp_path / "away")
    assert look.again() is None
    (tmp_path / "away").rename(root / "symbol")
    symbols.remove(str(root), symbols.names(["BTCUSDT"]), (), now=NOW)
    assert look.again() == {FUTURES: Named((), ("BTCUSDT",))}
    assert roster.kept(tmp_path) == {}


# Streams


def feeds_of(dataset: str, wanted: Wanted) -> list[Feed]:
    return plan(chosen([dataset]), {FUTURES: wanted}, SETTINGS)


def test_streams_that_stay_stay_where_they_are_and_new_ones_go_where_there_is_room() -> None:
    many = [f"COIN{number:04d}USDT" for number in range(600)]
    feeds = feeds_of("agg_trade", Wanted(FUTURES, tuple(many)))
    assert len(feeds) == 2
    before = [feed.symbols for feed in feeds]
    origins = [feed.origin for feed in feeds]
    more = Wanted(FUTURES, (many[0], *many[2:], "NEWUSDT"))
    assert replan(feeds, chosen(["agg_trade"]), {FUTURES: more}, SETTINGS) == []
    assert [feed.origin for feed in feeds] == origins
    # The one that has lost a stream has room for the new one.
    assert set(feeds[0].symbols) == {*before[0], "newusdt@aggTrade"} - {"coin0001usdt@aggTrade"}
    assert feeds[1].symbols == before[1]
    assert [feed.changed.is_set() for feed in feeds] == [True, False]
    assert all(name in feeds[0].url for name in feeds[0].streams)

    third, *_ = replan(
        feeds,
        chosen(["agg_trade"]),
        {FUTURES: Wanted(FUTURES, (*many, *(f"X{each}" for each in range(900))))},
        SETTINGS,
    )
    assert third.name == f"agg_trade {FUTURES} 2"
    assert replan(feeds, chosen(["agg_trade"]), {}, SETTINGS) == []
    assert not any(feed.streams or feed.url for feed in feeds)


def test_the_pulse_of_a_quiet_feed_follows_what_is_wanted() -> None:
    (feed,) = feeds_of("liquidation", Wanted(FUTURES, ("BTCUSDT", "ETHUSDT")))
    assert feed.streams[-1] == "btcusdt@markPrice@1s"
    replan([feed], chosen(["liquidation"]), {FUTURES: Wanted(FUTURES, ("ETHUSDT",))}, SETTINGS)
    assert feed.streams == ("ethusdt@forceOrder", "ethusdt@markPrice@1s")
    assert feed.carries.pulse == b'{"stream":"ethusdt@markPrice@1s"'


# Leaving out


def test_of_messages_about_all_what_was_removed_is_left_out() -> None:
    leave_out = Omission(["ETHUSDT"])
    other = b'{"stream":"!forceOrder@arr","data":{"o":{"s":"BTCUSDT"}}}'
    assert leave_out.of(other) is other
    assert leave_out.of(other.replace(b"BTC", b"ETH")) == b""
    array = (
        b'{"stream":"!markPrice@arr@1s","data":[{"s":"BTCUSDT","p":"1.50"},{"s":"ETHUSDT","p":"2"},{"s":"ETHUSDT2"}]}'
    )
    left = leave_out.of(array)
    assert left == array.replace(b'{"s":"ETHUSDT","p":"2"},', b"")
    assert leave_out.of(array[:-9]) == array[:-9]  # what is broken is set aside, where everybody can see it


def test_of_answers_about_all_what_nobody_wants_is_left_out() -> None:
    body = b'[{"symbol":"BTCUSDT","lastPrice":"1.50"},{"symbol":"ETHUSDT"}]'
    assert only(body, lambda _: True) is body
    assert json.loads(only(body, Wanted(FUTURES, ("BTCUSDT",)).has)) == [{"symbol": "BTCUSDT", "lastPrice": "1.50"}]
    assert json.loads(only(body, Wanted(FUTURES, (), every=True, removed=("BTCUSDT",)).has)) == [{"symbol": "ETHUSDT"}]
    assert only(b'{"code":-1}', lambda _: False) == b'{"code":-1}'


def test_a_recorder_starts_without_the_library_of_the_tables() -> None:
    code = "import sys, crypto_lake.cli, crypto_lake.services.daemon; sys.exit('deltalake' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
