"""WebSocket manners of the simulator: routes, names, control messages, limits, delivery."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from websockets.exceptions import InvalidStatus

from crypto_lake.config import FUTURES, SPOT
from crypto_lake.simulator import GeneratedMarket, Simulator


@pytest.fixture
async def exchange() -> AsyncIterator[Simulator]:
    async with Simulator(GeneratedMarket(rate=1_000, record=True, others_every_ms=100)) as exchange:
        yield exchange


async def test_a_combined_stream_wraps_the_payload_bytes_untouched(talk: Any, exchange: Simulator) -> None:
    async with talk.listening(exchange.ws_url + "/market/stream?streams=btcusdt@aggTrade") as socket:
        messages = [await talk.received(socket) for _ in range(50)]
    sent = exchange.market.sent(FUTURES, "aggTrade", "BTCUSDT")
    start = sent.index(messages[0][len('{"stream":"btcusdt@aggTrade","data":') : -1])
    assert messages == [b'{"stream":"btcusdt@aggTrade","data":' + each + b"}" for each in sent[start : start + 50]]


async def test_a_raw_stream_is_the_payload_alone(talk: Any, exchange: Simulator) -> None:
    async with talk.listening(exchange.ws_url + "/public/ws/btcusdt@depth@100ms/ethusdt@depth") as socket:
        messages = [await talk.received(socket) for _ in range(20)]
    sent = {*exchange.market.sent(FUTURES, "depth", "BTCUSDT"), *exchange.market.sent(FUTURES, "depth", "ETHUSDT")}
    assert set(messages) <= sent


@pytest.mark.parametrize("name", ["btcusdt@aggTrade", "btcusdt@trade", "btcusdt@depth", "!miniTicker@arr"])
@pytest.mark.parametrize(
    "form",
    ["/ws/{name}?timeUnit={unit}", "/stream?streams={name}&timeUnit={unit}", "/stream?timeUnit={unit}&streams={name}"],
)
async def test_a_connection_of_spot_hears_the_unit_that_it_asked_for(
    talk: Any, exchange: Simulator, name: str, form: str
) -> None:
    plain = exchange.ws_url + form.format(name=name, unit="MILLISECOND")
    async with (
        talk.listening(plain) as coarse,
        talk.listening(plain.replace("MILLISECOND", "MICROSECOND")) as fine,
        talk.listening(plain.replace("MILLISECOND", "microsecond")) as also_fine,
        talk.listening(exchange.ws_url + f"/ws/{name}") as unasked,
    ):
        heard = [[await _events(talk, socket) for _ in range(20)] for socket in (coarse, fine, also_fine, unasked)]
        sent = exchange.market.sent(SPOT, name.removeprefix("btcusdt@"))
    truth = _flat([json.loads(each) for each in sent])
    for events, unit in zip(map(_flat, heard), (1000, 1, 1, 1000), strict=True):
        assert {len(str(each["E"])) for each in events} == {13 if unit == 1000 else 16}
        told = [{**each, **{key: each[key] // unit for key in ("E", "T") if key in each}} for each in truth]
        at = told.index(events[0])
        assert events == told[at : at + len(events)]


async def test_futures_know_no_microseconds(talk: Any, exchange: Simulator) -> None:
    path = "/market/stream?streams=btcusdt@aggTrade&timeUnit=MICROSECOND"
    async with talk.listening(exchange.ws_url + path) as socket:
        (event,) = await _events(talk, socket)
    assert {len(str(event[key])) for key in ("E", "T")} == {13}


async def _events(talk: Any, socket: Any) -> list[dict[str, Any]]:
    """The events of the next message, without its envelope."""
    message = await talk.heard(socket)
    data = message.get("data", message) if isinstance(message, dict) else message
    return data if isinstance(data, list) else [data]


def _flat(messages: list[Any]) -> list[dict[str, Any]]:
    return [event for each in messages for event in (each if isinstance(each, list) else [each])]


@pytest.mark.parametrize(
    ("path", "silent"),
    [
        ("/public/stream", "btcusdt@aggTrade"),
        ("/public/stream", "!forceOrder@arr"),
        ("/market/stream", "btcusdt@depth@100ms"),
        ("/market/stream", "btcusdt@trade"),
        ("/market/ws", "btcusdt@bookTicker"),
        ("/public/ws", "btcusdt@depth50"),
        ("/public/ws", "btcusdt@depth@1000ms"),
        ("/market/ws", "btcusdt@aggTrades"),
        ("/market/ws", "BTCUSDT@aggTrade"),
        ("/market/ws", "nosuchusdt@aggTrade"),
        ("/private/ws", "btcusdt@aggTrade"),
        ("/stream", "ethusdt@aggTrade"),
        ("/stream", "btcusdt@forceOrder"),
        ("/stream", "!ticker@arr"),
    ],
)
async def test_a_stream_that_is_not_there_is_acknowledged_and_silent(
    talk: Any, exchange: Simulator, path: str, silent: str
) -> None:
    async with (
        talk.listening(exchange.ws_url + path) as socket,
        talk.listening(exchange.ws_url + "/market/stream?streams=!ticker@arr/btcusdt@aggTrade") as other,
    ):
        assert await talk.asked(socket, method="SUBSCRIBE", params=[silent], id=1) == {"result": None, "id": 1}
        for _ in range(30):
            await talk.heard(other)
        assert await talk.asked(socket, method="LIST_SUBSCRIPTIONS", id=2) == {"result": [silent], "id": 2}
        connection = next(each for each in exchange.connections if silent in each.streams)
        assert connection.sent_frames == 0


async def test_each_kind_of_stream_comes_on_its_own_route(talk: Any, exchange: Simulator) -> None:
    public = ("depth", "depth@100ms", "depth@250ms", "depth@500ms", "depth@0ms", "depth5", "depth10@100ms", "depth20")
    public += ("bookTicker", "trade")
    market = ("aggTrade", "markPrice", "markPrice@1s", "ticker", "miniTicker", "kline_1m", "forceOrder")
    of_spot = ("aggTrade", "trade", "depth", "depth@1000ms", "depth@100ms", "depth20@100ms", "bookTicker", "ticker")
    expected = {
        "/public": {*(f"btcusdt@{kind}" for kind in public), "!bookTicker"},
        "/market": {
            *(f"btcusdt@{kind}" for kind in market),
            *("!markPrice@arr", "!markPrice@arr@1s", "!forceOrder@arr", "!ticker@arr", "!miniTicker@arr"),
        },
        "": {f"btcusdt@{kind}" for kind in of_spot},
    }
    for route, names in expected.items():
        async with talk.listening(f"{exchange.ws_url}{route}/stream?streams={'/'.join(names)}") as socket:
            missing = set(names)
            while missing:
                missing.discard((await talk.heard(socket))["stream"])


async def test_all_liquidations_come_as_single_objects(talk: Any, exchange: Simulator) -> None:
    async with talk.listening(exchange.ws_url + "/market/ws/!forceOrder@arr") as socket:
        order = await talk.heard(socket)
    assert order["e"] == "forceOrder"
    assert order["o"]["X"] == "FILLED"


@pytest.mark.parametrize(
    "name", ["币安人生usdt@aggTrade", quote("币安人生usdt@aggTrade"), quote("币安人生usdt") + "@aggTrade"]
)
@pytest.mark.parametrize("form", ["/market/ws/{}", "/market/stream?streams={}"])
async def test_a_symbol_that_is_not_ascii_is_heard(talk: Any, exchange: Simulator, form: str, name: str) -> None:
    async with talk.listening(exchange.ws_url + form.format(name)) as socket:
        message = await talk.heard(socket)
    assert message.get("data", message)["s"] == "币安人生USDT"


async def test_control_messages_are_answered_as_the_venue_does(talk: Any, exchange: Simulator) -> None:
    async with talk.listening(exchange.ws_url + "/market/ws") as socket:
        assert await talk.asked(socket, method="GET_PROPERTY", params=["combined"], id=1) == {"result": False, "id": 1}
        assert await talk.asked(socket, method="SET_PROPERTY", params=["combined", True], id=2) == {
            "result": None,
            "id": 2,
        }
        assert await talk.asked(socket, method="SUBSCRIBE", params=["btcusdt@aggTrade"], id="a1") == {
            "result": None,
            "id": "a1",
        }
        assert (await talk.heard(socket))["stream"] == "btcusdt@aggTrade"
        assert await talk.asked(socket, method="UNSUBSCRIBE", params=["btcusdt@aggTrade"], id=None) == {
            "result": None,
            "id": None,
        }
        assert await talk.asked(socket, method="LIST_SUBSCRIPTIONS", id=3) == {"result": [], "id": 3}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("no json", 3),
        ("[]", 2),
        ('{"method":"SHOUT","id":1}', 2),
        ('{"method":"SUBSCRIBE","params":["a"],"id":-1}', 2),
        ('{"method":"SUBSCRIBE","params":"a","id":1}', 2),
        ('{"method":"SUBSCRIBE","params":[],"id":1}', 2),
        ('{"method":"SET_PROPERTY","params":["combined",1],"id":1}', 1),
        ('{"method":"GET_PROPERTY","params":["size"],"id":1}', 0),
        ('{"method":"GET_PROPERTY","params":["combined","b","c"],"id":1}', 2),
    ],
)
async def test_what_is_wrong_is_refused_with_code_and_words(
    talk: Any, exchange: Simulator, text: str, code: int
) -> None:
    async with talk.listening(exchange.ws_url + "/market/ws") as socket:
        await socket.send(text)
        answer = await talk.heard(socket)
    assert answer["code"] == code
    assert answer["msg"]


async def test_a_connection_carries_no_more_than_1024_streams(talk: Any, exchange: Simulator) -> None:
    names = [f"coin{i}@depth" for i in range(1025)]
    with pytest.raises(InvalidStatus) as refused:
        async with talk.listening(f"{exchange.ws_url}/public/ws/{'/'.join(names)}"):
            pass
    assert refused.value.response.status_code in (400, 414)
    async with talk.listening(exchange.ws_url + "/public/ws") as socket:
        assert (await talk.asked(socket, method="SUBSCRIBE", params=names[:1024], id=1))["result"] is None
        assert (await talk.asked(socket, method="SUBSCRIBE", params=names[1024:], id=2))["code"] == 2


async def test_a_request_line_over_16_kib_is_refused_with_414(exchange: Simulator) -> None:
    async with aiohttp.ClientSession() as session:
        names = "/".join(f"{'x' * 60}{i:03d}@depth" for i in range(240))
        async with session.get(f"{exchange.rest_url}/public/stream?streams={names}") as response:
            assert response.status == 414


async def test_who_talks_too_much_is_closed_with_1008(talk: Any) -> None:
    async with (
        Simulator(GeneratedMarket(rate=1), client_messages_per_s=3) as exchange,
        talk.listening(exchange.ws_url + "/market/ws") as socket,
    ):
        for number in range(4):
            await socket.send(json.dumps({"method": "LIST_SUBSCRIPTIONS", "id": number}))
        assert (await talk.closed(socket)).rcvd.code == 1008
        await talk.patiently(exchange.cut())
        assert not exchange.connections


async def test_the_server_pings_and_answers_pings(talk: Any) -> None:
    async with (
        Simulator(GeneratedMarket(rate=1), ping_every_s=0.05) as exchange,
        aiohttp.ClientSession() as session,
        session.ws_connect(exchange.ws_url + "/market/ws", autoping=False) as socket,
    ):
        await socket.ping(b"mine")
        kinds = {(await talk.patiently(socket.receive())).type for _ in range(3)}
        assert kinds == {aiohttp.WSMsgType.PING, aiohttp.WSMsgType.PONG}


async def test_cut_ends_connections_at_once(talk: Any, exchange: Simulator) -> None:
    async with (
        talk.listening(exchange.ws_url + "/market/ws/btcusdt@aggTrade") as cut,
        talk.listening(exchange.ws_url + "/public/ws/btcusdt@depth") as kept,
    ):
        await talk.heard(cut)
        victim = next(each for each in exchange.connections if each.route == "market")
        await exchange.cut(victim)
        assert [each.route for each in exchange.connections] == ["public"]
        assert (await talk.closed(cut)).rcvd is None
        await talk.heard(kept)


async def test_who_does_not_read_a_live_market_is_cut_off(talk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crypto_lake.simulator.server.MAX_UNREAD_BYTES", 100_000)
    market = GeneratedMarket(rate=20_000, with_others=False, mix={"depth": 1})
    names = "/".join(f"{symbol.lower()}@depth" for symbol in market.symbols(FUTURES))
    async with (
        Simulator(market) as exchange,
        talk.listening(f"{exchange.ws_url}/public/ws/{names}"),
    ):
        (connection,) = exchange.connections
        await talk.patiently(connection.closed.wait())
        assert not exchange.connections


async def test_the_market_goes_on_while_nobody_can_reach_it(talk: Any) -> None:
    market = GeneratedMarket(rate=1_000, record=True)
    async with (
        Simulator(market) as exchange,
        talk.listening(exchange.ws_url + "/market/ws/btcusdt@aggTrade") as socket,
    ):
        port, last = exchange.port, (await talk.heard(socket))["a"]
    made = market.made
    await asyncio.sleep(0.2)
    async with (
        Simulator(market, port) as exchange,
        talk.listening(exchange.ws_url + "/market/ws/btcusdt@aggTrade") as socket,
    ):
        assert (await talk.heard(socket))["a"] > last + 1
        assert market.made - made >= 200


async def test_a_total_finishes_and_everything_of_it_was_delivered(talk: Any) -> None:
    market = GeneratedMarket(rate=5_000, total=10_000, with_others=False, record=True)
    async with (
        Simulator(market) as exchange,
        talk.listening(exchange.ws_url + "/stream?streams=btcusdt@depth&timeUnit=MICROSECOND") as socket,
    ):
        first = await talk.received(socket)
        await talk.patiently(exchange.finished)
        received = [first]
        sent = market.sent(SPOT, "depth")
        while received[-1][len('{"stream":"btcusdt@depth","data":') : -1] != sent[-1]:
            received.append(await talk.received(socket))
        assert len(received) > 100
        assert [json.loads(each)["data"] for each in received] == [json.loads(p) for p in sent[-len(received) :]]


def test_each_frame_is_sent_once_per_name_it_was_asked_under(talk: Any) -> None:
    async def count() -> set[str]:
        async with (
            Simulator(GeneratedMarket(rate=500)) as exchange,
            talk.listening(exchange.ws_url + "/public/stream?streams=btcusdt@depth/btcusdt@depth@100ms") as socket,
        ):
            messages = [await talk.heard(socket) for _ in range(20)]
            assert [m["data"]["u"] for m in messages[::2]] == [m["data"]["u"] for m in messages[1::2]]
            return {m["stream"] for m in messages}

    assert asyncio.run(count()) == {"btcusdt@depth", "btcusdt@depth@100ms"}
