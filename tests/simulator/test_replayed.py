"""Recordings played again: every frame once, byte for byte, at any speed, with its snapshot at its place."""

import asyncio
import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from crypto_lake.config import FUTURES, SPOT
from crypto_lake.journal import FRAME, RESPONSE, Journal
from crypto_lake.simulator import ReplayedMarket, Simulator
from crypto_lake.simulator.hub import UNREAD_ENOUGH_BYTES
from crypto_lake.simulator.recording import message_of
from crypto_lake.simulator.streams import kind_of


def depth(u: int, symbol: str = "BTCUSDT") -> bytes:
    return b'{"e":"depthUpdate","E":1,"T":1,"s":"%s","U":%d,"u":%d,"pu":%d,"b":[["1.50", "2"]],"a":[]}' % (
        symbol.encode(),
        u,
        u,
        u - 1,
    )


def wrapped(stream: str, payload: bytes) -> bytes:
    return b'{"stream":"%s","data":%s}' % (stream.encode(), payload)


def capture(path: Path, lines: Iterable[tuple[int, bytes]]) -> Path:
    text = b"".join(b"%d %s\n" % line for line in lines)
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def recorded_frames(paths: Iterable[Path]) -> list[bytes]:
    lines = [line.split(b" ", 1)[1] for path in paths for line in gzip.decompress(path.read_bytes()).splitlines()]
    return [line for line in lines if not line.startswith(b'{"lastUpdateId"')]


@pytest.mark.parametrize(
    ("names", "venue", "path", "speed_in_name"),
    [
        (["usdm_btcusdt_20240718.gz", "usdm_btcusdt_20240719.gz"], FUTURES, "/public/stream", "0ms"),
        (["spot_btcusdt_20240808.gz", "spot_btcusdt_20240809.gz"], SPOT, "/stream", "100ms"),
    ],
)
async def test_a_capture_is_delivered_whole_and_byte_exact(
    talk: Any, data: Path, names: list[str], venue: str, path: str, speed_in_name: str
) -> None:
    files = [data / "captures" / name for name in names]
    expected = recorded_frames(files)
    market = ReplayedMarket(*files, speed=0, start_after_s=None)
    assert market.messages == len(expected)
    assert market.symbols(venue) == ("BTCUSDT",)
    streams = f"btcusdt@depth@{speed_in_name}/btcusdt@trade/btcusdt@bookTicker"
    async with Simulator(market) as exchange:
        received = await talk.collected(f"{exchange.ws_url}{path}?streams={streams}", len(expected))
        await talk.patiently(exchange.finished)
    assert received == expected


async def test_a_recorded_snapshot_joins_the_recorded_stream(talk: Any, data: Path) -> None:
    market = ReplayedMarket(data / "captures" / "usdm_btcusdt_20240718.gz", speed=50)
    async with (
        Simulator(market) as exchange,
        talk.listening(f"{exchange.ws_url}/public/ws/btcusdt@depth@100ms/btcusdt@trade/btcusdt@bookTicker") as socket,
    ):
        _, snapshot, _ = await talk.got(exchange.rest_url + "/fapi/v1/depth", symbol="BTCUSDT", limit=1000)
        identity, joined = snapshot["lastUpdateId"], False
        while not joined:
            event = await talk.heard(socket)
            joined = event["e"] == "depthUpdate" and event["U"] <= identity <= event["u"]
        _, info, _ = await talk.got(exchange.rest_url + "/fapi/v1/exchangeInfo")
    assert [symbol["symbol"] for symbol in info["symbols"]] == ["BTCUSDT"]


async def test_a_stream_is_delivered_under_the_name_that_was_asked_for(talk: Any, tmp_path: Path) -> None:
    payloads = [depth(u) for u in range(1, 6)]
    path = capture(tmp_path / "c.gz", ((u, wrapped("btcusdt@depth@0ms", p)) for u, p in enumerate(payloads)))
    async with (
        Simulator(ReplayedMarket(path, speed=0)) as exchange,
        talk.listening(exchange.ws_url + "/public/stream?streams=btcusdt@depth@100ms") as socket,
    ):
        assert [await talk.received(socket) for _ in payloads] == [wrapped("btcusdt@depth@100ms", p) for p in payloads]


@pytest.mark.parametrize(
    ("recorded", "asked", "heard"),
    [
        (1_790_000_000_123, "MICROSECOND", 1_790_000_000_123),
        (1_790_000_000_123, "MILLISECOND", 1_790_000_000_123),
        (1_790_000_000_123_456, "MICROSECOND", 1_790_000_000_123_456),
        (1_790_000_000_123_456, "MILLISECOND", 1_790_000_000_123),
    ],
)
async def test_microseconds_are_replayed_where_they_were_recorded(
    talk: Any, tmp_path: Path, recorded: int, asked: str, heard: int
) -> None:
    trade = b'{"e":"trade","E":%d,"s":"BTCUSDT","t":5000000000,"p":"1.50","q":"1","T":%d,"m":true,"M":true}'
    path = capture(tmp_path / "c", [(1, wrapped("btcusdt@trade", trade % (recorded, recorded)))])
    async with (
        Simulator(ReplayedMarket(path, speed=0)) as exchange,
        talk.listening(f"{exchange.ws_url}/ws/btcusdt@trade?timeUnit={asked}") as socket,
    ):
        assert await talk.received(socket) == trade % (heard, heard)


async def test_the_replay_waits_for_a_listener_to_every_kind(talk: Any, tmp_path: Path) -> None:
    trade = b'{"e":"aggTrade","E":1,"a":1,"s":"BTCUSDT","p":"1.5","q":"1","f":1,"l":1,"T":1,"m":true}'
    path = capture(tmp_path / "c", [(1, depth(1)), (2, trade), (3, depth(2))])  # raw messages, no envelope
    market = ReplayedMarket(path, speed=0, start_after_s=None)
    async with (
        Simulator(market) as exchange,
        talk.listening(exchange.ws_url + "/public/ws/btcusdt@depth") as book,
    ):
        await asyncio.sleep(0.1)
        assert exchange.connections[0].sent_frames == 0
        async with talk.listening(exchange.ws_url + "/market/ws/btcusdt@aggTrade") as trades:
            assert await talk.received(trades) == trade
            assert [await talk.received(book) for _ in range(2)] == [depth(1), depth(2)]
            await talk.patiently(exchange.finished)
            assert len(exchange.connections) == 2


async def test_the_replay_does_not_wait_for_ever(talk: Any, tmp_path: Path) -> None:
    path = capture(tmp_path / "c", [(1, depth(1)), (2, wrapped("btcusdt@trade", b'{"e":"trade","s":"BTCUSDT"}'))])
    market = ReplayedMarket(path, speed=0, start_after_s=0.05)
    async with (
        Simulator(market) as exchange,
        talk.listening(exchange.ws_url + "/public/ws/btcusdt@depth") as socket,
    ):
        assert await talk.received(socket) == depth(1)


async def test_a_pace_is_kept(talk: Any, tmp_path: Path) -> None:
    path = capture(tmp_path / "c", ((u * 100_000_000, depth(u)) for u in range(1, 7)))
    loop = asyncio.get_running_loop()
    for speed, least_s, most_s in ((1, 0.5, 5.0), (10, 0.05, 0.5), (float("inf"), 0.0, 0.5)):
        async with (
            Simulator(ReplayedMarket(path, speed=speed)) as exchange,
            talk.listening(exchange.ws_url + "/public/ws/btcusdt@depth") as socket,
        ):
            await talk.received(socket)
            began = loop.time()
            for _ in range(5):
                await talk.received(socket)
            assert least_s - 0.02 <= loop.time() - began < most_s


async def test_depth_gives_the_newest_snapshot_that_was_passed(talk: Any, tmp_path: Path) -> None:
    bids = ",".join(f'["1.{tenth}","1"]' for tenth in (5, 4, 3, 2, 1, 0)).encode()
    snapshot = b'{"lastUpdateId":%d,"E":1,"T":1,"bids":[' + bids + b'],"asks":[]}'
    lines = [(1, depth(1)), (2, depth(11)), (3, snapshot % 12), (500_000_000, depth(13)), (500_000_001, snapshot % 14)]
    path = capture(tmp_path / "c", lines)
    async with (
        Simulator(ReplayedMarket(path)) as exchange,
        talk.listening(exchange.ws_url + "/public/ws/btcusdt@depth") as socket,
    ):
        url = exchange.rest_url + "/fapi/v1/depth"
        _, first, _ = await talk.got(url, symbol="BTCUSDT", limit=1000)
        for _ in range(3):
            await talk.received(socket)
        await talk.patiently(exchange.finished)
        _, second, _ = await talk.got(url, symbol="BTCUSDT", limit=5)
    assert (first["lastUpdateId"], len(first["bids"])) == (12, 6)
    assert (second["lastUpdateId"], len(second["bids"])) == (14, 5)


async def test_a_reader_that_pauses_holds_up_the_replay_and_loses_nothing(talk: Any, tmp_path: Path) -> None:
    padding = "x" * 2_000
    trades = [b'{"e":"aggTrade","s":"BTCUSDT","a":%d,"x":"%s"}' % (i, padding.encode()) for i in range(6_000)]
    path = capture(tmp_path / "c.gz", enumerate(trades))
    async with (
        Simulator(ReplayedMarket(path, speed=0)) as exchange,
        talk.listening(exchange.ws_url + "/market/ws/btcusdt@aggTrade") as socket,
    ):
        await talk.received(socket)
        connection = exchange.connections[0]
        while connection.unread_bytes < UNREAD_ENOUGH_BYTES:
            await talk.patiently(asyncio.sleep(0.01))
        await asyncio.sleep(0.3)  # time in which the rest would come if nothing held it up
        assert connection.sent_frames < len(trades)
        assert connection.unread_bytes < 8_000_000
        assert [await talk.received(socket) for _ in trades[1:]] == trades[1:]


async def test_our_own_journals_are_played_in_the_order_of_arrival(talk: Any, tmp_path: Path) -> None:
    order = b'{"e":"forceOrder","E":1,"o":{"s":"ETHUSDT","S":"SELL","o":"LIMIT","q":"1","p":"2","T":1}}'
    snapshot = b'{"lastUpdateId":1,"bids":[],"asks":[]}'
    asked = f"{FUTURES} /fapi/v1/depth?symbol={quote('币安人生USDT')}&limit=1000"
    for folder, records in {
        "depth": [
            (FRAME, f"{FUTURES} public/0", wrapped("币安人生usdt@depth@100ms", depth(1, "币安人生USDT")), 10),
            (
                RESPONSE,
                asked,
                snapshot,
                11,
            ),
            (FRAME, f"{FUTURES} public/0", wrapped("币安人生usdt@depth@100ms", depth(2, "币安人生USDT")), 30),
        ],
        "liquidation": [(FRAME, f"{FUTURES} market/0", wrapped("!forceOrder@arr", order), 20)],
    }.items():
        journal = Journal(tmp_path / folder)
        for kind, origin, payload, received_us in records:
            journal.append(kind, origin.encode(), payload, received_us)
        journal.flush()
        journal.close()
    market = ReplayedMarket(tmp_path, speed=0)
    frames = [(frame.stream, frame.payload) for frame in market.due(0.0)]
    assert frames == [
        ("币安人生usdt@depth", depth(1, "币安人生USDT")),
        ("ethusdt@forceOrder", order),
        ("币安人生usdt@depth", depth(2, "币安人生USDT")),
    ]
    async with (
        Simulator(ReplayedMarket(tmp_path, speed=0)) as exchange,
        talk.listening(exchange.ws_url + "/market/ws/!forceOrder@arr") as all_orders,
        talk.listening(exchange.ws_url + "/public/ws/币安人生usdt@depth@100ms") as book,
    ):
        assert await talk.received(all_orders) == order
        assert await talk.received(book) == depth(1, "币安人生USDT")
        _, body, _ = await talk.got(exchange.rest_url + "/fapi/v1/depth", symbol="币安人生USDT")
        assert body == json.loads(snapshot)


@pytest.mark.parametrize("text", [b"no recording\n", b"", b"1 {}\n"])
def test_what_is_no_recording_is_refused_with_words(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "c"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=r"is not `<receive time ns>|tells the venue"):
        ReplayedMarket(path)
    cut_short = tmp_path / "c.gz"
    cut_short.write_bytes(gzip.compress(b"".join(b"%d %s\n" % (u, depth(u)) for u in range(999)))[:-20])
    with pytest.raises(ValueError, match="cut short"):
        ReplayedMarket(cut_short)
    with pytest.raises(FileNotFoundError):
        ReplayedMarket(tmp_path / "nothing")


@pytest.mark.parametrize("year", ["2021_2022", "2026"])
def test_real_messages_of_all_years_find_their_stream(data: Path, year: str) -> None:
    known = set()
    for line in (data / "frames" / f"frames_{year}.jsonl").read_text().splitlines():
        raw = json.loads(line).get("raw", line).encode()
        for venue in (FUTURES, SPOT):
            if message := message_of(raw, venue):
                assert message.payload in raw
                known.add(kind_of(message.stream))
    assert known >= {"aggTrade", "depth", "bookTicker", "markPrice", "kline_1m"}
