"""Faults of connections and of the venue as a whole, as clients see them."""

import json
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from crypto_lake.config import FUTURES, SPOT
from crypto_lake.connections import SourceError
from crypto_lake.connections.websocket import connected
from crypto_lake.simulator import Fault, GeneratedMarket, Scenario, Simulator

TRADES = "/market/stream?streams=btcusdt@aggTrade"
OF_SPOT = "/stream?streams=btcusdt@aggTrade"


def an_exchange(*faults: Fault, **settings: Any) -> Simulator:
    market = GeneratedMarket(("BTCUSDT",), rate=500, record=True, with_others=False, seed=4)
    return Simulator(market, faults=Scenario(faults=faults), **settings)


async def test_a_share_of_the_connections_is_cut(talk: Any, wait_for: Callable[..., Any]) -> None:
    async with an_exchange(Fault(kind="cut", at_s=0.5, every_s=0.5, share=0.5)) as exchange:
        async with (
            talk.listening(exchange.ws_url + TRADES) as one,
            talk.listening(exchange.ws_url + TRADES) as two,
            talk.listening(exchange.ws_url + OF_SPOT) as three,
        ):
            for socket in (one, two, three):
                assert (await talk.closed(socket)).rcvd is None
        done, served = exchange.faults.done, exchange.served
        await wait_for(lambda: all(each.closed_s for each in served))
    assert sorted(each.connection for each in done) == [1, 2, 3]
    for moment in {round(each.time_s * 4) for each in done}:
        cut = [each for each in done if round(each.time_s * 4) == moment]
        alive = [each for each in served if each.opened_s < cut[0].time_s <= each.closed_s]
        assert len(cut) == max(1, round(len(alive) / 2))
    assert {each.number: each.route for each in served} == {1: "market", 2: "market", 3: ""}
    assert {each.streams for each in served} == {("btcusdt@aggTrade",)}
    closed_s = {each.number: each.closed_s for each in served}
    assert all(0 <= closed_s[each.connection] - each.time_s < 5 for each in done)


async def test_only_connections_with_the_named_streams_are_cut(talk: Any) -> None:
    fault = Fault(kind="cut", every_s=0.1, streams=("depth",), symbols=("BTCUSDT",), venue=FUTURES)
    async with an_exchange(fault) as exchange, talk.listening(exchange.ws_url + TRADES) as kept:
        async with talk.listening(exchange.ws_url + "/public/stream?streams=btcusdt@depth@100ms") as cut:
            assert (await talk.closed(cut)).rcvd is None
        await talk.received(kept)
        assert {each.connection for each in exchange.faults.done} == {2}


async def test_a_half_open_connection_gets_nothing_and_its_tcp_stays_up(
    talk: Any, wait_for: Callable[..., Any]
) -> None:
    fault = Fault(kind="half_open", at_s=0.5, every_s=0.5, venue=FUTURES)
    async with an_exchange(fault, ping_every_s=0.3) as exchange:
        async with talk.listening(exchange.ws_url + TRADES) as dead, talk.listening(exchange.ws_url + OF_SPOT) as alive:
            await wait_for(lambda: exchange.faults.done)
            sent = exchange.connections[0].sent_frames
            pong, answered = await dead.ping(), await alive.ping()
            await dead.send(json.dumps({"method": "LIST_SUBSCRIPTIONS", "id": 1}))
            heard = 0
            for _ in range(200):
                await talk.received(alive)
            while heard < sent:
                await talk.received(dead)
                heard += 1
            await talk.patiently(answered)
            assert not pong.done()
            assert exchange.connections[0].sent_frames == sent
            assert dead.state.name == "OPEN"
            assert exchange.served[0].half_open_s == pytest.approx(exchange.faults.done[0].time_s, abs=0.1)
            assert exchange.served[0].closed_s is None
        # The client's good-bye was not answered: its end of TCP is what ended it.
        await wait_for(lambda: exchange.served[0].closed_s)
        assert dead.close_code == 1006


async def test_a_half_open_connection_is_not_pinged() -> None:
    fault = Fault(kind="half_open", at_s=0.3, every_s=0.3, venue=FUTURES)
    async with (
        an_exchange(fault, ping_every_s=0.7) as exchange,
        aiohttp.ClientSession() as session,
        session.ws_connect(exchange.ws_url + "/market/ws", autoping=False) as dead,
        session.ws_connect(exchange.ws_url + "/ws", autoping=False) as alive,
    ):
        for _ in range(2):
            assert (await alive.receive(20)).type is aiohttp.WSMsgType.PING
        await exchange.cut()
        assert (await dead.receive(20)).type is not aiohttp.WSMsgType.PING


async def test_our_client_leaves_a_half_open_connection_for_its_silence() -> None:
    async with an_exchange(Fault(kind="half_open", at_s=0.3, every_s=0.3)) as exchange:
        async with connected(exchange.ws_url + TRADES, silence_s=0.5) as connection:
            frames = [frame async for frame in connection.frames()]
        assert connection.reason.startswith("silent for")
    assert all(b"aggTrade" in frame.payload for frame in frames)


async def test_a_mute_connection_acknowledges_and_answers_and_sends_no_data(talk: Any) -> None:
    async with (
        an_exchange(Fault(kind="mute", venue=FUTURES)) as exchange,
        talk.listening(exchange.ws_url + TRADES) as mute,
        talk.listening(exchange.ws_url + OF_SPOT) as other,
    ):
        await mute.send(json.dumps({"method": "SUBSCRIBE", "params": ["ethusdt@aggTrade"], "id": 1}))
        for _ in range(100):
            await talk.received(other)
        assert await talk.heard(mute) == {"result": None, "id": 1}
        await talk.patiently(await mute.ping())
        await mute.send(json.dumps({"method": "LIST_SUBSCRIPTIONS", "id": 2}))
        assert (await talk.heard(mute))["id"] == 2
        assert [each.mute_s is not None for each in exchange.served] == [True, False]
        assert [(each.kind, each.connection) for each in exchange.faults.done] == [("mute", 1)]


async def test_connections_opened_before_and_after_the_window_are_not_mute(talk: Any) -> None:
    for fault in (Fault(kind="mute", at_s=1000.0), Fault(kind="mute", for_s=0.001)):
        async with an_exchange(fault) as exchange, talk.listening(exchange.ws_url + TRADES) as socket:
            await talk.received(socket)


@pytest.mark.parametrize(
    ("path", "name", "digits"),
    [
        (OF_SPOT, "!serverShutdown", 13),
        (OF_SPOT + "&timeUnit=MICROSECOND", "!serverShutdown", 16),
        ("/ws/btcusdt@aggTrade", None, 13),
    ],
)
async def test_a_shutdown_is_told_then_closed_with_1001_then_nothing_is_accepted(
    talk: Any, path: str, name: str | None, digits: int
) -> None:
    fault = Fault(kind="shutdown", at_s=0.5, for_s=2.0, every_s=4.0, delay_s=0.1, venue=SPOT)
    async with an_exchange(fault) as exchange:
        async with talk.listening(exchange.ws_url + path) as socket:
            message = {}
            while message.get("e") != "serverShutdown":
                message = await talk.heard(socket)
                assert message.get("stream") in (None, name, "btcusdt@aggTrade")
                message = message.get("data", message)
            assert len(str(message["E"])) == digits
            assert (await talk.closed(socket)).rcvd.code == 1001
        with pytest.raises(SourceError, match="cannot connect"):
            async with connected(exchange.ws_url + path, silence_s=1):
                pass
        async with talk.listening(exchange.ws_url + TRADES) as futures:
            await talk.received(futures)
        assert await talk.patiently(_accepted(exchange, path))


async def _accepted(exchange: Simulator, path: str) -> bool:
    while True:
        try:
            async with connected(exchange.ws_url + path, silence_s=10) as connection:
                return bool([frame async for frame in connection.frames()])
        except SourceError:
            continue


async def test_a_life_has_an_end(talk: Any) -> None:
    async with an_exchange(Fault(kind="life", life_s=0.5, venue=FUTURES)) as exchange:
        async with (
            talk.listening(exchange.ws_url + TRADES) as socket,
            talk.listening(exchange.ws_url + OF_SPOT) as other,
        ):
            assert (await talk.closed(socket)).rcvd.code == 1001
            await talk.received(other)
        (done,) = exchange.faults.done
        assert done.time_s - exchange.served[0].opened_s == pytest.approx(0.5, abs=0.3)
    async with an_exchange(Fault(kind="life", life_s=0.2, at_s=0.6)) as exchange:
        async with talk.listening(exchange.ws_url + TRADES) as socket:
            await talk.closed(socket)
        (done,) = exchange.faults.done
        assert done.time_s - exchange.served[0].opened_s > 0.3


@pytest.mark.parametrize(("status", "asked", "wait_s"), [(429, 7.0, 7), (451, None, 3600), (503, None, None)])
async def test_handshakes_are_refused_with_a_status(status: int, asked: float | None, wait_s: float | None) -> None:
    fault = Fault(kind="refused", status=status, retry_after_s=asked, venue=FUTURES)
    async with an_exchange(fault) as exchange:
        with pytest.raises(SourceError, match=f"HTTP {status}") as refused:
            async with connected(exchange.ws_url + TRADES, silence_s=1):
                pass
        assert refused.value.retry_after_s == wait_s
        async with connected(exchange.ws_url + OF_SPOT, silence_s=30):
            pass
        assert [each.kind for each in exchange.faults.done] == ["refused"]


async def test_a_share_of_the_handshakes_is_refused_by_the_seed() -> None:
    outcomes = []
    for _ in range(2):
        async with an_exchange(Fault(kind="refused", share=0.5)) as exchange:
            accepted = []
            for _ in range(20):
                try:
                    async with connected(exchange.ws_url + TRADES, silence_s=30):
                        accepted.append(True)
                except SourceError:
                    accepted.append(False)
        outcomes.append(accepted)
    assert outcomes[0] == outcomes[1]
    assert 3 <= sum(outcomes[0]) <= 17


async def test_a_delisted_symbol_is_silent_for_ever_and_rest_has_its_history(
    talk: Any, wait_for: Callable[..., Any]
) -> None:
    fault = Fault(kind="delisted", at_s=0.5, symbols=("BTCUSDT",))
    market = GeneratedMarket(("BTCUSDT", "ETHUSDT"), rate=1_000, record=True, others_every_ms=100)
    streams = "/market/stream?streams=btcusdt@aggTrade/ethusdt@aggTrade/!ticker@arr/btcusdt@ticker/!forceOrder@arr"
    async with Simulator(market, faults=Scenario(faults=(fault,))) as exchange:
        await wait_for(lambda: len(exchange.faults.done) == 2)
        assert [each.what for each in exchange.faults.done] == [f"{FUTURES} BTCUSDT", f"{SPOT} BTCUSDT"]
        last = json.loads(market.sent(FUTURES, "aggTrade", "BTCUSDT")[-1])["a"]
        async with talk.listening(exchange.ws_url + streams) as socket:
            for _ in range(300):
                event = (await talk.heard(socket))["data"]
                for row in event if isinstance(event, list) else [event]:
                    assert (row["o"] if row["e"] == "forceOrder" else row)["s"] != "BTCUSDT"
        _, rows, _ = await talk.got(exchange.rest_url + "/fapi/v1/aggTrades", symbol="BTCUSDT", fromId=last - 9)
        assert [row["a"] for row in rows] == list(range(last - 9, last + 1))
        for path, status in (("/fapi/v1", "SETTLING"), ("/api/v3", "BREAK")):
            _, listed, _ = await talk.got(exchange.rest_url + path + "/exchangeInfo")
            states = {each["symbol"]: each["status"] for each in listed["symbols"]}
            assert states.pop("BTCUSDT") == status
            assert set(states.values()) <= {"TRADING"}


async def test_the_seconds_run_on_while_nobody_is_served(talk: Any, wait_for: Callable[..., Any]) -> None:
    exchange = an_exchange(Fault(kind="cut", at_s=0.3), Fault(kind="clock_skew", at_s=0.3, skew_s=1.0))
    async with exchange:
        pass
    async with exchange:
        await wait_for(lambda: [each.kind for each in exchange.faults.done] == ["clock_skew"])
        async with talk.listening(exchange.ws_url + TRADES) as socket:
            await talk.received(socket)


async def test_without_faults_nothing_is_done_and_connections_are_known(talk: Any) -> None:
    async with an_exchange() as exchange, talk.listening(exchange.ws_url + TRADES) as socket:
        await talk.received(socket)
    (served,) = exchange.served
    assert served.opened_s < served.closed_s
    assert (served.half_open_s, served.mute_s) == (None, None)
    assert list(exchange.faults.done) == []
