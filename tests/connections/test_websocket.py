"""WebSocket connections: addresses within the venue's limits, and lives that end for a reason."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from crypto_lake.connections import SourceError
from crypto_lake.connections.websocket import MAX_STREAMS, MAX_URL_BYTES, combined, connected, stream_of

Handler = Callable[[web.WebSocketResponse], Awaitable[Any]]


async def served(handle: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> tuple[web.AppRunner, str]:
    app = web.Application()
    app.router.add_get("/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"ws://127.0.0.1:{runner.addresses[0][1]}/market/stream?streams=a@trade"


def socket_handler(handle: Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def serve(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await handle(socket)
        return socket

    return serve


names = st.text("abc币安@_!0", min_size=1, max_size=60).map(lambda name: f"{name}@aggTrade")


@given(st.lists(names, max_size=1500), st.sampled_from(["", "btcusdt@markPrice@1s"]), st.booleans())
def test_every_stream_is_asked_for_once_within_the_limits(streams: list[str], pulse: str, fine: bool) -> None:
    addresses = combined("wss://venue", "market", streams, also=pulse, in_microseconds=fine)
    assert [stream for address in addresses for stream in address.streams if stream != pulse] == streams
    for address in addresses:
        assert not pulse or address.streams[-1] == pulse
        assert len(address.streams) <= MAX_STREAMS
        assert len(address.url) <= MAX_URL_BYTES
        assert address.url.isascii()


def test_an_address_has_its_route_and_its_streams() -> None:
    (one,) = combined("wss://v", "public", ["btcusdt@depth@100ms", "币usdt@bookTicker"])
    assert one.url == "wss://v/public/stream?streams=btcusdt@depth@100ms/%E5%B8%81usdt@bookTicker"
    (spot,) = combined("wss://v", "", ["btcusdt@trade"])
    assert spot.url == "wss://v/stream?streams=btcusdt@trade"
    (fine,) = combined("wss://v", "", ["btcusdt@trade"], in_microseconds=True)
    assert fine == ("wss://v/stream?streams=btcusdt@trade&timeUnit=MICROSECOND", spot.streams)


def test_a_streams_name_is_read_without_parsing() -> None:
    assert stream_of(b'{"stream":"btcusdt@trade","data":{}}') == b"btcusdt@trade"
    assert stream_of(b'{"e":"trade"}') == b""


async def test_frames_come_stamped_in_order_and_the_venues_reason_is_kept() -> None:
    async def speak(socket: web.WebSocketResponse) -> None:
        for number in range(5):
            await socket.send_str(str(number))
        await socket.close(code=1008, message=b"too many requests")

    runner, url = await served(socket_handler(speak))
    async with connected(url, silence_s=30) as connection:
        frames = [frame async for frame in connection.frames()]
    assert [frame.payload for frame in frames] == [b"0", b"1", b"2", b"3", b"4"]
    assert [frame.received_us for frame in frames] == sorted(frame.received_us for frame in frames)
    assert connection.reason == "the venue closed it: 1008 too many requests"
    await runner.cleanup()


async def test_what_has_arrived_before_we_close_is_still_given_out() -> None:
    async def speak(socket: web.WebSocketResponse) -> None:
        for number in range(100):
            await socket.send_str(str(number))
        await socket.receive()

    runner, url = await served(socket_handler(speak))
    async with connected(url, silence_s=30) as connection:
        got = []
        async for frame in connection.frames():
            if not got:
                await connection.close("stopping")
            got.append(frame.payload)
    assert got == [str(number).encode() for number in range(100)]
    assert connection.reason == "stopping"
    await runner.cleanup()


async def test_a_connection_that_says_nothing_is_dead() -> None:
    async def be_silent(socket: web.WebSocketResponse) -> None:
        await socket.send_str("once")
        await socket.receive()  # answers pings, as a wrong route does

    runner, url = await served(socket_handler(be_silent))
    async with connected(url, silence_s=0.2) as connection:
        assert [frame.payload async for frame in connection.frames()] == [b"once"]
    assert connection.reason.startswith("silent for")
    await runner.cleanup()


@pytest.mark.parametrize(("status", "wait_s"), [(451, 3600), (403, 300), (429, 7), (418, 7), (500, None)])
async def test_a_refused_handshake_says_how_long_to_wait(status: int, wait_s: float | None) -> None:
    async def refuse(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers={"Retry-After": "7"} if wait_s == 7 else {})

    runner, url = await served(refuse)
    with pytest.raises(SourceError, match=f"ws://127.0.0.1:.* refused the connection: HTTP {status}") as caught:
        async with connected(url, silence_s=1):
            pass
    assert caught.value.retry_after_s == wait_s
    await runner.cleanup()


@pytest.mark.parametrize("url", ["ws://127.0.0.1:9/x", "ws://no.such.host.invalid/x"])
async def test_a_host_that_is_not_there_is_one_sentence(url: str) -> None:
    with pytest.raises(SourceError, match="cannot connect to ws://"):
        async with connected(url, silence_s=1):
            pass
