"""Collecting: pauses between connections, replacement without a hole, snapshots that are not too old."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from crypto_lake.config import ALL_SYMBOLS, FUTURES, SPOT, ConfigError, Settings
from crypto_lake.connections.rest import Rest
from crypto_lake.journal import ALIVE, CARRIES, CLOSED, FRAME, LAPSE, OPENED, RESPONSE, Journal, read_all
from crypto_lake.models import DATASETS
from crypto_lake.services.collect import Feed, Policy, keep, plan, replan
from crypto_lake.services.markets import Wanted, chosen, parse
from crypto_lake.services.snapshots import Snapshots
from crypto_lake.simulator import GeneratedMarket, Simulator

Wait = Callable[..., Any]


def settings(**changes: Any) -> Settings:
    return Settings(_env_file=None, **changes)


def planned(datasets: str, symbols: str, **changes: Any) -> list[Feed]:
    wanted = {
        venue: Wanted(venue, ("BTCUSDT", "ETHUSDT"), every=True) if each.every else each
        for venue, each in parse(symbols.split(",")).items()
    }
    return plan(chosen(datasets.split(",")), wanted, settings(**changes))


def test_each_dataset_goes_to_its_route() -> None:
    feeds = planned("agg_trade,depth,liquidation", "BTCUSDT,binance:BTCUSDT")
    urls = {(feed.dataset.name, feed.venue): feed.url.partition("streams=")[0] for feed in feeds}
    assert urls == {
        ("agg_trade", FUTURES): "wss://fstream.binance.com/market/stream?",
        ("agg_trade", SPOT): "wss://data-stream.binance.vision/stream?",
        ("depth", FUTURES): "wss://fstream.binance.com/public/stream?",
        ("depth", SPOT): "wss://data-stream.binance.vision/stream?",
        ("liquidation", FUTURES): "wss://fstream.binance.com/market/stream?",
    }


def test_only_spot_is_asked_for_microseconds() -> None:
    feeds = planned("agg_trade,depth,trade,book_ticker", "BTCUSDT,binance:BTCUSDT")
    assert {feed.venue for feed in feeds if "timeUnit" in feed.url} == {SPOT}
    assert all(feed.url.endswith("&timeUnit=MICROSECOND") for feed in feeds if feed.venue == SPOT)


def test_all_symbols_are_one_stream_where_the_venue_has_one() -> None:
    (every,) = planned("liquidation", ALL_SYMBOLS)
    assert every.streams == ("!forceOrder@arr", "btcusdt@markPrice@1s")
    assert every.symbols == {"!forceOrder@arr": ("BTCUSDT", "ETHUSDT", "*")}
    (named,) = planned("liquidation", "ETHUSDT")
    assert named.symbols == {"ethusdt@forceOrder": ("ETHUSDT",)}
    assert named.streams == ("ethusdt@forceOrder", "ethusdt@markPrice@1s")


def test_a_feed_has_the_same_name_in_the_journal_until_other_streams_are_wanted() -> None:
    (one,), (again,), (more,) = (planned("agg_trade", symbols) for symbols in ("BTCUSDT", "BTCUSDT", "BTCUSDT,ETHUSDT"))
    assert one.origin == again.origin != more.origin
    assert one.origin.startswith(b"binance-futures agg_trade 0 ")


@pytest.mark.parametrize(
    ("venue", "speed", "name"),
    [("", "100ms", "btcusdt@depth@100ms"), ("", "250ms", "btcusdt@depth"), ("binance:", "1000ms", "btcusdt@depth")],
)
def test_the_default_speed_of_a_venue_has_no_name(venue: str, speed: Any, name: str) -> None:
    (feed,) = planned("depth", f"{venue}BTCUSDT", depth_speed=speed)
    assert feed.streams == (name,)


def test_words_that_name_nothing_are_said() -> None:
    with pytest.raises(ConfigError, match="no dataset 'depht'; did you mean 'depth'"):
        chosen(["depht"])
    with pytest.raises(ConfigError, match="no dataset 'gap'"):
        chosen(["gap"])
    with pytest.raises(ConfigError, match="no venue 'binanc'; did you mean 'binance'"):
        parse(["binanc:BTCUSDT"])
    with pytest.raises(ConfigError, match="LAKE_SYMBOLS is empty"):
        parse([])


class Venue:
    """A venue that treats its connections as the test says, and counts them."""

    def __init__(self, messages: int, *, close: bool) -> None:
        self.connections = 0
        self._messages, self._close = messages, close

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.connections += 1
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for number in range(self._messages):
            await socket.send_str(json.dumps({"stream": "btcusdt@aggTrade", "data": number}))
        if self._close:
            await socket.close()
        else:
            await socket.receive()
        return socket


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Any], Any]]:
    runners: list[web.AppRunner] = []

    async def start(handler: Any) -> str:
        app = web.Application()
        app.router.add_get("/{path:.*}", handler)
        runners.append(web.AppRunner(app, shutdown_timeout=0.1))
        await runners[-1].setup()
        await web.TCPSite(runners[-1], "127.0.0.1", 0).start()
        return f"127.0.0.1:{runners[-1].addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


async def test_a_venue_that_closes_at_once_is_asked_less_and_less(
    journal: Journal, gate: asyncio.Event, serve: Any, wait_for: Wait
) -> None:
    waits: list[float] = []

    def draw() -> float:
        waits.append(1.0)
        return 1.0

    venue = Venue(0, close=True)
    (feed,) = planned("agg_trade", "BTCUSDT", futures_ws=f"ws://{await serve(venue.answer)}")
    stop = asyncio.Event()
    policy = Policy(first_backoff_s=0.05, most_backoff_s=10, draw=draw)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    task = asyncio.create_task(keep(feed, journal, gate, stop, policy=policy))
    await wait_for(lambda: venue.connections == 5)
    assert loop.time() - began_s > 0.1 + 0.2 + 0.4 + 0.8
    stop.set()
    await task
    journal.flush()
    kinds = [record.kind for record in read_all(journal.directory)]
    assert kinds.count(OPENED) == kinds.count(CLOSED) == venue.connections


async def test_the_pauses_begin_anew_only_after_data_has_flowed_for_a_while(
    journal: Journal, gate: asyncio.Event, serve: Any, wait_for: Wait
) -> None:
    venue = Venue(3, close=True)
    (feed,) = planned("agg_trade", "BTCUSDT", futures_ws=f"ws://{await serve(venue.answer)}")
    pauses = {}
    for steady_s in (0.0, 60.0):
        venue.connections, stop = 0, asyncio.Event()
        policy = Policy(first_backoff_s=0.02, most_backoff_s=10, steady_s=steady_s, draw=lambda: 1.0)
        began_s = asyncio.get_running_loop().time()
        task = asyncio.create_task(keep(feed, journal, gate, stop, policy=policy))
        await wait_for(lambda: venue.connections == 7)
        pauses[steady_s] = asyncio.get_running_loop().time() - began_s
        stop.set()
        await task
    assert pauses[0.0] < pauses[60.0] / 2


async def test_a_planned_reconnect_leaves_no_hole(journal: Journal, gate: asyncio.Event, wait_for: Wait) -> None:
    market = GeneratedMarket(futures=("BTCUSDT",), rate=300)
    async with Simulator(market) as exchange:
        (feed,) = planned("agg_trade", "BTCUSDT", futures_ws=exchange.ws_url)
        stop = asyncio.Event()
        policy = Policy(life_s=0.3, shortest_life=1.0)
        task = asyncio.create_task(keep(feed, journal, gate, stop, policy=policy))

        def reasons() -> list[str]:
            journal.flush()
            return [json.loads(r.payload)["reason"] for r in read_all(journal.directory) if r.kind == CLOSED]

        await wait_for(lambda: len(reasons()) >= 4)
        assert set(reasons()) == {"replaced by a new connection"}
        stop.set()
        await task
    journal.flush()
    frames = [json.loads(r.payload)["data"]["a"] for r in read_all(journal.directory) if r.kind == FRAME]
    ids = sorted(set(frames))
    assert ids == list(range(ids[0], ids[-1] + 1))


@pytest.mark.parametrize("redundancy", [1, 2])
async def test_other_streams_are_taken_on_without_a_hole_in_those_that_stay(
    journal: Journal, gate: asyncio.Event, wait_for: Wait, redundancy: int
) -> None:
    market = GeneratedMarket(futures=("BTCUSDT", "ETHUSDT", "SOLUSDT"), rate=600, record=True)

    def ids(symbol: str) -> list[int]:
        journal.flush()
        data = [json.loads(r.payload)["data"] for r in read_all(journal.directory) if r.kind == FRAME]
        return sorted({each["a"] for each in data if each["s"] == symbol})

    async with Simulator(market) as exchange:
        (feed,) = planned("agg_trade", "BTCUSDT,ETHUSDT", futures_ws=exchange.ws_url)
        stop = asyncio.Event()
        policy = Policy(redundancy=redundancy, stagger_s=0.1, look_every_s=0.1)
        task = asyncio.create_task(keep(feed, journal, gate, stop, policy=policy))
        await wait_for(lambda: feed.delivering == redundancy)
        for symbols in (("BTCUSDT", "ETHUSDT", "SOLUSDT"), ("BTCUSDT", "SOLUSDT"), ("SOLUSDT", "BTCUSDT", "ETHUSDT")):
            wanted = {FUTURES: Wanted(FUTURES, symbols)}
            assert replan([feed], chosen(["agg_trade"]), wanted, settings(futures_ws=exchange.ws_url)) == []
            await wait_for(lambda symbols=symbols: set((journal.carried or {}).get(feed.origin, ())) == set(symbols))
            await wait_for(lambda url=feed.url: {c.streams for c in exchange.connections} == {feed.streams})
            frames = feed.frames
            await wait_for(lambda frames=frames: feed.frames > frames + 50)
        assert feed.open == redundancy
        stop.set()
        await task
    for symbol in ("BTCUSDT", "SOLUSDT"):
        held = ids(symbol)
        assert held == list(range(held[0], held[-1] + 1))
    ethereum = ids("ETHUSDT")
    assert len(ethereum) < ethereum[-1] - ethereum[0] + 1  # it was away for a while
    lapses = [json.loads(r.payload) for r in read_all(journal.directory) if r.kind == LAPSE]
    assert [(each["symbols"], each["from_us"] == each["to_us"]) for each in lapses] == [
        (["BTCUSDT", "ETHUSDT"], False),
        (["SOLUSDT"], False),
        (["ETHUSDT"], True),
        (["ETHUSDT"], False),
    ]


async def test_a_pulse_keeps_a_quiet_feed_alive_and_is_not_recorded(
    journal: Journal, gate: asyncio.Event, wait_for: Wait
) -> None:
    market = GeneratedMarket(futures=("BTCUSDT",), rate=50, mix={"aggTrade": 1.0})
    async with Simulator(market) as exchange:
        (feed,) = planned("liquidation", "BTCUSDT", futures_ws=exchange.ws_url)
        stop = asyncio.Event()
        task = asyncio.create_task(keep(feed, journal, gate, stop, policy=Policy(silence_s=4)))
        await wait_for(lambda: feed.heard_us > 0)
        first_us = feed.heard_us
        await wait_for(lambda: feed.heard_us > first_us + 2_000_000)
        stop.set()
        await task
    journal.flush()
    assert [r.kind for r in read_all(journal.directory)] == [OPENED, LAPSE, CARRIES, ALIVE, CLOSED, ALIVE]


async def test_a_closed_gate_leaves_the_data_with_the_venue(
    journal: Journal, gate: asyncio.Event, wait_for: Wait
) -> None:
    market = GeneratedMarket(futures=("BTCUSDT",), rate=500)
    async with Simulator(market) as exchange:
        (feed,) = planned("agg_trade", "BTCUSDT", futures_ws=exchange.ws_url)
        stop = asyncio.Event()
        task = asyncio.create_task(keep(feed, journal, gate, stop, policy=Policy()))
        await wait_for(lambda: feed.frames > 50)
        gate.clear()
        await asyncio.sleep(0)
        frames, made = feed.frames, market.made
        await wait_for(lambda: market.made > made + 500)
        assert feed.frames <= frames + 1
        gate.set()
        await wait_for(lambda: feed.frames > frames + 200)
        stop.set()
        await task


async def test_a_gate_that_stays_closed_does_not_hold_up_the_stop(
    journal: Journal, gate: asyncio.Event, wait_for: Wait
) -> None:
    async with Simulator(GeneratedMarket(futures=("BTCUSDT",), rate=500)) as exchange:
        (feed,) = planned("agg_trade", "BTCUSDT", futures_ws=exchange.ws_url)
        stop = asyncio.Event()
        task = asyncio.create_task(keep(feed, journal, gate, stop, policy=Policy()))
        await wait_for(lambda: feed.frames > 20)
        gate.clear()
        frames = feed.frames
        await wait_for(lambda: feed.frames > frames)  # the one that was on its way; now it rests
        stop.set()
        await asyncio.wait_for(task, 10)


async def test_a_snapshot_older_than_its_stream_is_fetched_again(
    journal: Journal, gate: asyncio.Event, serve: Any, wait_for: Wait
) -> None:
    asked: list[str] = []

    async def depth(request: web.Request) -> web.Response:
        asked.append(request.query["symbol"])
        return web.json_response({"lastUpdateId": 90 + 5 * len(asked), "bids": [], "asks": []})

    address = await serve(depth)
    (feed,) = planned("depth", "BTCUSDT")
    async with Rest(lambda _: f"http://{address}") as rest:
        books = Snapshots()
        books.ask(feed, b'{"stream":"btcusdt@depth@100ms","data":{"s":"BTCUSDT","U":100,"u":110}}')
        task = asyncio.create_task(books.fetch(rest, journal, gate))

        def ids() -> list[int]:
            journal.flush()
            bodies = [json.loads(each.payload) for each in read_all(journal.directory) if each.kind == RESPONSE]
            return [body["lastUpdateId"] for body in bodies]

        await wait_for(lambda: len(ids()) == 2)
        task.cancel()
        await asyncio.wait([task])
    assert ids() == [95, 100]
    assert len(asked) == 2


async def test_a_book_is_fetched_again_every_so_often_and_only_newer_ones_count(
    journal: Journal, gate: asyncio.Event, serve: Any, wait_for: Wait
) -> None:
    asked: list[str] = []

    async def depth(request: web.Request) -> web.Response:
        asked.append(request.query["symbol"])
        return web.json_response({"lastUpdateId": 100 + len(asked), "bids": [], "asks": []})

    address = await serve(depth)
    (feed,) = planned("depth", "BTCUSDT")
    async with Rest(lambda _: f"http://{address}") as rest:
        books = Snapshots()
        books.ask(feed, b'{"stream":"btcusdt@depth@100ms","data":{"s":"BTCUSDT","U":100,"u":110}}')
        task = asyncio.create_task(books.fetch(rest, journal, gate, every_s=0.02))
        await wait_for(lambda: len(asked) >= 4)
        task.cancel()
        await asyncio.wait([task])
    journal.flush()
    kept = [json.loads(each.payload)["lastUpdateId"] for each in read_all(journal.directory) if each.kind == RESPONSE]
    assert kept[:3] == [101, 102, 103]


async def test_every_symbol_of_a_fresh_depth_connection_gets_a_book(
    tmp_path: Path, gate: asyncio.Event, wait_for: Wait
) -> None:
    assert DATASETS["depth"].poll is not None
    journal = Journal(tmp_path / "depth")
    market = GeneratedMarket(futures=("BTCUSDT", "ETHUSDT", "币安人生USDT"), rate=300)
    async with Simulator(market) as exchange:
        (feed,) = plan(
            chosen(["depth"]),
            {FUTURES: Wanted(FUTURES, ("BTCUSDT", "ETHUSDT", "币安人生USDT"))},
            settings(futures_ws=exchange.ws_url),
        )
        stop = asyncio.Event()
        async with Rest(lambda _: exchange.rest_url) as rest:
            books = Snapshots()
            fetching = asyncio.create_task(books.fetch(rest, journal, gate))
            keeping = asyncio.create_task(keep(feed, journal, gate, stop, policy=Policy(), on_stream=books.ask))

            def snapshots() -> list[str]:
                journal.flush()
                return [r.origin for r in read_all(journal.directory) if r.kind == RESPONSE]

            await wait_for(lambda: len(snapshots()) == 3)
            stop.set()
            fetching.cancel()
            await asyncio.wait([fetching, keeping])
    assert len(set(snapshots())) == 3
    journal.close()
