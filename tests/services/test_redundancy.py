"""Several connections carry the same streams: one may be cut at any moment, and nothing is lost, doubled or alarmed."""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from crypto_lake.config import FUTURES, Settings
from crypto_lake.journal import ALIVE, FRAME, LAPSE, Journal, read_all
from crypto_lake.models.frame import Lapse
from crypto_lake.services.collect import Feed, Policy, keep, plan
from crypto_lake.services.load import Load
from crypto_lake.services.markets import Wanted, chosen
from crypto_lake.simulator import GeneratedMarket, Simulator

Wait = Callable[..., Any]


def planned(dataset: str, *symbols: str, **changes: Any) -> Feed:
    (feed,) = plan(chosen([dataset]), {FUTURES: Wanted(FUTURES, symbols)}, Settings(_env_file=None, **changes))
    return feed


def told(journal: Journal, kind: int) -> list[Any]:
    journal.flush()
    return told_of(journal, kind)


def told_of(journal: Journal, kind: int) -> list[Any]:
    return [json.loads(each.payload) for each in read_all(journal.directory) if each.kind == kind]


@pytest.mark.slow
async def test_a_hundred_cuts_of_one_of_two_connections_lose_nothing_and_repeat_nothing(
    journal: Journal, gate: asyncio.Event, wait_for: Wait
) -> None:
    rng = random.Random(7)
    market = GeneratedMarket(futures=("BTCUSDT", "ETHUSDT"), rate=1000, record=True)
    async with Simulator(market) as exchange:
        feed = planned("agg_trade", "BTCUSDT", "ETHUSDT", futures_ws=exchange.ws_url)
        stop = asyncio.Event()
        policy = Policy(redundancy=2, first_backoff_s=0.02, most_backoff_s=0.05)
        task = asyncio.create_task(keep(feed, journal, gate, stop, policy=policy))
        for cuts in range(100):
            await wait_for(lambda cuts=cuts: feed.opened == 2 + cuts and feed.delivering == 2)
            await exchange.cut(rng.choice(exchange.connections))
        await wait_for(lambda: feed.opened == 102 and feed.delivering == 2)
        stop.set()
        await task
    ids: dict[str, list[int]] = {}
    for message in told(journal, FRAME):
        ids.setdefault(message["data"]["s"], []).append(message["data"]["a"])
    sent = [json.loads(each) for each in market.sent(FUTURES, "aggTrade")]
    for symbol, held in ids.items():
        wanted = [each["a"] for each in sent if each["s"] == symbol and held[0] <= each["a"] <= held[-1]]
        assert held == wanted
    assert [lapse["reason"] for lapse in told(journal, LAPSE)] == ["restart"]
    assert feed.repeats > 100


class Venue:
    """A venue whose connections do what the test says: each sends what is put into its queue."""

    def __init__(self) -> None:
        self.queues: list[asyncio.Queue[str]] = []
        self.port = 0

    async def __aenter__(self) -> "Venue":
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        queue: asyncio.Queue[str] = asyncio.Queue()
        self.queues.append(queue)
        reading = asyncio.create_task(socket.receive())  # so that a closing handshake is answered
        while not reading.done() and not socket.closed:
            asking = asyncio.create_task(queue.get())
            await asyncio.wait([asking, reading], return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                asking.cancel()
                break
            if (message := asking.result()) == "cut":
                assert request.transport is not None
                request.transport.abort()
                break
            await socket.send_str(message)
        reading.cancel()
        return socket

    def say(self, number: int, *which: int, symbol: str = "BTCUSDT") -> None:
        """A trade, to some connections."""
        for each in which:
            self.queues[each].put_nowait(trade(number, symbol))

    def cut(self, which: int) -> None:
        self.queues[which].put_nowait("cut")


def trade(number: int, symbol: str = "BTCUSDT") -> str:
    data = {"e": "aggTrade", "E": 1_790_000_000_000 + number, "s": symbol, "a": number, "p": "1", "q": "1",
            "f": number, "l": number, "T": 1_790_000_000_000 + number, "m": True}  # fmt: skip
    return json.dumps({"stream": f"{symbol.lower()}@aggTrade", "data": data}, separators=(",", ":"))


@contextlib.asynccontextmanager
async def kept(feed: Feed, journal: Journal, gate: asyncio.Event, **more: Any) -> AsyncIterator[None]:
    """The feed collected for the time of the block."""
    stop = asyncio.Event()
    task = asyncio.create_task(keep(feed, journal, gate, stop, **more))
    try:
        yield
    finally:
        stop.set()
        await task


async def test_what_both_connections_deliver_is_written_once(
    journal: Journal, gate: asyncio.Event, wait_for: Wait
) -> None:
    async with Venue() as venue:
        feed = planned("agg_trade", "BTCUSDT", futures_ws=f"ws://127.0.0.1:{venue.port}")
        async with kept(feed, journal, gate, policy=Policy(redundancy=2, stagger_s=0.01)):
            await wait_for(lambda: feed.open == 2)
            for number in range(5):
                venue.say(number, 0, 1)
            venue.say(5, 1)
            await wait_for(lambda: feed.frames == 6 and feed.repeats == 5)
    assert [each["data"]["a"] for each in told(journal, FRAME)] == list(range(6))


async def test_with_one_connection_a_cut_is_a_lapse_in_front_of_the_first_frame_after_it(
    journal: Journal, gate: asyncio.Event, wait_for: Wait
) -> None:
    async with Venue() as venue:
        feed = planned("agg_trade", "BTCUSDT", "ETHUSDT", futures_ws=f"ws://127.0.0.1:{venue.port}")
        async with kept(feed, journal, gate, policy=Policy(first_backoff_s=0.01)):
            await wait_for(lambda: feed.open == 1)
            venue.say(1, 0)
            await wait_for(lambda: feed.frames == 1)
            venue.cut(0)
            await wait_for(lambda: feed.opened == 2)
            venue.say(2, 1)
            await wait_for(lambda: feed.frames == 2)
    journal.flush()
    records = [each for each in read_all(journal.directory) if each.kind in (FRAME, LAPSE)]
    assert [each.kind for each in records] == [LAPSE, FRAME, LAPSE, FRAME]
    assert msgspec.json.decode(records[2].payload, type=Lapse) == Lapse(
        ["BTCUSDT", "ETHUSDT"], "disconnect", records[1].received_us, records[3].received_us
    )
    assert feed.lapses == 2


async def test_a_hole_that_lasts_is_written_while_it_lasts(
    journal: Journal, gate: asyncio.Event, wait_for: Wait
) -> None:
    async with Venue() as venue:
        feed = planned("agg_trade", "BTCUSDT", futures_ws=f"ws://127.0.0.1:{venue.port}")
        async with kept(feed, journal, gate, policy=Policy(first_backoff_s=0.01, look_every_s=0.05)):
            await wait_for(lambda: feed.open == 1)
            venue.say(1, 0)
            await wait_for(lambda: feed.frames == 1)
            venue.cut(0)
            await wait_for(lambda: [each for each in told(journal, LAPSE) if each["to_us"] is None])
            venue.say(2, 1)
            await wait_for(lambda: feed.frames == 2)
    _, lasting, ended = told(journal, LAPSE)
    assert lasting == {**ended, "to_us": None}
    assert ended["to_us"] - ended["from_us"] > 2_000_000


async def test_a_half_open_sibling_does_not_hide_the_hole_of_the_other(
    journal: Journal, gate: asyncio.Event, wait_for: Wait
) -> None:
    async with Venue() as venue:
        feed = planned("agg_trade", "BTCUSDT", futures_ws=f"ws://127.0.0.1:{venue.port}")
        policy = Policy(redundancy=2, stagger_s=0.01, first_backoff_s=0.01, mute_s=0.5, look_every_s=0.05)
        async with kept(feed, journal, gate, policy=policy):
            await wait_for(lambda: feed.open == 2)
            for number in range(3):
                venue.say(number, 0, 1)
                await wait_for(lambda number=number: feed.frames + feed.repeats == 2 * number + 2)
            assert feed.delivering == 2
            venue.say(3, 1)  # from here on the first one is half open
            await wait_for(lambda: feed.frames == 4)
            venue.cut(1)
            await wait_for(lambda: feed.opened == 3)
            for number in range(5, 40):
                venue.say(number, 2)
            await wait_for(lambda: feed.opened == 4)  # the mute one is given up, and replaced
            assert feed.trouble.startswith("mute")
    frames = [each["data"]["a"] for each in told(journal, FRAME)]
    assert frames == [0, 1, 2, 3, *range(5, 40)]
    assert [each["reason"] for each in told(journal, LAPSE)] == ["restart", "disconnect"]


async def test_a_mute_connection_ends_in_silence(journal: Journal, gate: asyncio.Event, wait_for: Wait) -> None:
    async with Venue() as venue:
        feed = planned("agg_trade", "BTCUSDT", futures_ws=f"ws://127.0.0.1:{venue.port}")
        async with kept(feed, journal, gate, policy=Policy(first_backoff_s=0.01, silence_s=0.3)):
            await wait_for(lambda: feed.open == 1)
            venue.say(1, 0)
            await wait_for(lambda: feed.opened == 2 and feed.open == 1)
            venue.say(2, 1)
            await wait_for(lambda: feed.frames == 2)
    assert [each["reason"] for each in told(journal, LAPSE)] == ["restart", "silence"]


async def test_after_a_restart_the_hole_begins_with_the_last_sign_of_life(
    tmp_path: Path, gate: asyncio.Event, wait_for: Wait
) -> None:
    async with Venue() as venue:
        feed = planned("agg_trade", "BTCUSDT", futures_ws=f"ws://127.0.0.1:{venue.port}")
        for run in range(2):
            journal = Journal(tmp_path / "journal")
            async with kept(feed, journal, gate, policy=Policy()):
                await wait_for(lambda: feed.open == 1)
                venue.say(run, -1)
                await wait_for(lambda run=run: feed.frames == run + 1)
                before_us = feed.heard_us
                venue.queues[-1].put_nowait('{"stream":"btcusdt@markPrice@1s","data":{}}')
                await wait_for(lambda before_us=before_us: feed.heard_us > before_us)
            journal.close()
    first, second = told_of(journal, LAPSE)
    # Each run leaves one behind the hole in front of it, and one when it stops.
    (_, alive, _, _) = [each.received_us for each in read_all(journal.directory) if each.kind == ALIVE]
    frames = [each.received_us for each in read_all(journal.directory) if each.kind == FRAME]
    assert first == {"symbols": ["BTCUSDT"], "reason": "restart", "from_us": None, "to_us": frames[0], "shed": 0}
    assert second == {**first, "from_us": alive, "to_us": frames[1]}
    assert alive > frames[0]


async def test_books_are_asked_for_after_a_hole_and_not_after_a_siblings_cut(
    journal: Journal, gate: asyncio.Event, wait_for: Wait
) -> None:
    asked: list[int] = []
    async with Venue() as venue:
        feed = planned("agg_trade", "BTCUSDT", "ETHUSDT", futures_ws=f"ws://127.0.0.1:{venue.port}")
        policy = Policy(redundancy=2, stagger_s=0.01, first_backoff_s=0.01)
        ask = lambda _, payload: asked.append(json.loads(payload)["data"]["a"])  # noqa: E731
        async with kept(feed, journal, gate, policy=policy, on_stream=ask):
            await wait_for(lambda: feed.open == 2)
            venue.say(1, 0, 1)
            venue.say(2, 0, 1)
            venue.say(3, 0, 1, symbol="ETHUSDT")
            await wait_for(lambda: feed.delivering == 2 and feed.frames == 3)
            venue.cut(0)
            await wait_for(lambda: feed.opened == 3)
            venue.say(4, 2, 1)
            venue.say(5, 2, 1)
            await wait_for(lambda: feed.delivering == 2 and feed.frames == 5)
            assert asked == [1, 3]
            venue.cut(1)
            venue.cut(2)
            await wait_for(lambda: feed.opened == 5)
            venue.say(6, 3, 4)
            venue.say(7, 3, 4)
            await wait_for(lambda: feed.frames == 7)
    assert asked == [1, 3, 6]


async def test_a_symbol_that_goes_quiet_is_told_and_new_connections_are_tried(
    journal: Journal, gate: asyncio.Event, wait_for: Wait
) -> None:
    market = GeneratedMarket(futures=("BTCUSDT", "ETHUSDT"), rate=300, mix={"aggTrade": 1.0})
    async with Simulator(market) as exchange:
        feed = planned("agg_trade", "BTCUSDT", "ETHUSDT", futures_ws=exchange.ws_url)
        async with kept(feed, journal, gate, policy=Policy(redundancy=2, stagger_s=0.1)):
            await wait_for(lambda: feed.delivering == 2 and feed.frames > 22 * 200)
            for connection in exchange.connections:
                connection.unsubscribe("ethusdt@aggTrade")
            quiet_us = time.time_ns() // 1000
            # That it is silent lasts only until the new connections speak: what was written of it says more.
            await wait_for(lambda: feed.opened >= 4 and not feed.silent)
    journal.flush()
    lapses = [(each, json.loads(each.payload)) for each in read_all(journal.directory) if each.kind == LAPSE]
    silences = [(each.received_us, lapse) for each, lapse in lapses if lapse["reason"] == "silence"]
    (told_us, lasting), (_, ended) = silences
    assert told_us - quiet_us < 10_000_000
    assert lasting["symbols"] == ended["symbols"] == ["ETHUSDT"]
    assert lasting["from_us"] == ended["from_us"] <= quiet_us + 200_000
    assert lasting["to_us"] is None
    assert ended["to_us"] > quiet_us + 5_000_000


async def test_under_load_book_ticker_and_depth_are_given_up_and_all_trades_kept(
    tmp_path: Path, gate: asyncio.Event, wait_for: Wait
) -> None:
    market = GeneratedMarket(futures=("BTCUSDT",), rate=800, record=True)
    journals = {name: Journal(tmp_path / name) for name in ("book_ticker", "depth", "agg_trade")}
    load = Load()
    calm = {"loop_delay_s": 0.0, "free_bytes": 1e12}
    async with Simulator(market) as exchange, contextlib.AsyncExitStack() as stack:
        feeds = {name: planned(name, "BTCUSDT", futures_ws=exchange.ws_url) for name in journals}
        for name, feed in feeds.items():
            policy = Policy(redundancy=2, stagger_s=0.01, look_every_s=0.05)
            await stack.enter_async_context(kept(feed, journals[name], gate, policy=policy, load=load))
        await wait_for(lambda: all(feed.frames > 20 for feed in feeds.values()))
        load.observe(0.0, waiting_share=0.3, **calm)
        await wait_for(lambda: feeds["book_ticker"].shed > 20)
        assert not feeds["depth"].is_shedding
        load.observe(1.0, waiting_share=0.7, **calm)
        await wait_for(lambda: feeds["depth"].shed > 20)
        await wait_for(lambda: [each for each in told(journals["depth"], LAPSE) if each["to_us"] is None])
        for second in (2.0, 8.0, 9.0, 15.0):
            load.observe(second, waiting_share=0.0, **calm)
        written = {name: feed.frames for name, feed in feeds.items()}
        await wait_for(lambda: all(feed.frames > written[name] + 20 for name, feed in feeds.items()))
    for name, (kind, key) in {
        "book_ticker": ("bookTicker", "u"),
        "depth": ("depth", "u"),
        "agg_trade": ("aggTrade", "a"),
    }.items():
        # A book that does not move is told twice under one id.
        held = [(each["data"][key], each["data"]["T"]) for each in told(journals[name], FRAME)]
        told_by_market = [json.loads(each) for each in market.sent(FUTURES, kind, "BTCUSDT")]
        sent = [(each[key], each["T"]) for each in told_by_market]
        sent = sent[sent.index(held[0]) : sent.index(held[-1]) + 1]
        overload = [each for each in told(journals[name], LAPSE) if each["reason"] == "overload" and each["to_us"]]
        assert len(sent) - len(held) == feeds[name].shed == sum(each["shed"] for each in overload)
        assert (feeds[name].shed > 0) == (len(overload) == 1) == (name != "agg_trade")
        journals[name].close()
