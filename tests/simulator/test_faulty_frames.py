"""Faults of frames, as clients see them; what was lost on the way is still there for REST."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from crypto_lake.config import FUTURES, SPOT
from crypto_lake.connections.websocket import connected
from crypto_lake.models import DATASETS
from crypto_lake.simulator import Done, Fault, GeneratedMarket, Scenario, Simulator
from crypto_lake.simulator.altered import corrupted, in_other_form

TRADES = "/market/stream?streams=btcusdt@aggTrade"
MIX = {"aggTrade": 0.7, "depth": 0.1, "bookTicker": 0.1, "forceOrder": 0.1}
EVENTS = {
    f"btcusdt@{kind}": DATASETS[name].live.event
    for name, kind in (
        *(("agg_trade", "aggTrade"), ("depth", "depth"), ("trade", "trade"), ("book_ticker", "bookTicker")),
        *(("liquidation", "forceOrder"), ("mark_price", "markPrice")),
    )
}


def an_exchange(*faults: Fault, seed: int = 1, **market: object) -> Simulator:
    made = GeneratedMarket(
        **{
            "futures": ("BTCUSDT",),
            "rate": 1_000,
            "mix": MIX,
            "record": True,
            "with_others": False,
            "seed": 4,
            **market,
        }
    )
    return Simulator(made, faults=Scenario(faults=faults, seed=seed))


def ids(messages: list[bytes]) -> list[int]:
    return [json.loads(each)["data"]["a"] for each in messages]


def noted(done: list[Done] | tuple[Done, ...], connection: int | None = None) -> list[int]:
    """The trades in the list of what was done, of one connection or of all."""
    return [json.loads(each.frame.payload)["a"] for each in done if connection in (None, each.connection)]


async def two_lists(talk: Any, exchange: Simulator, count: int = 400) -> tuple[list[int], list[int]]:
    """What two connections hear at the same time."""
    async with (
        talk.listening(exchange.ws_url + TRADES) as one,
        talk.listening(exchange.ws_url + TRADES) as other,
    ):
        both = [(await talk.received(one), await talk.received(other)) for _ in range(count)]
    return ids([one for one, _ in both]), ids([other for _, other in both])


def within(numbers: list[int], heard: list[int]) -> list[int]:
    return [each for each in numbers if heard[0] < each < heard[-1]]


def missing(heard: list[int]) -> list[int]:
    return sorted({*range(heard[0], heard[-1])} - {*heard})


async def test_each_connection_loses_frames_of_its_own_and_rest_has_them(talk: Any) -> None:
    async with an_exchange(Fault(kind="lost", share=0.1, streams=("aggTrade",))) as exchange:
        one, other = await two_lists(talk, exchange)
        for number, heard in ((1, one), (2, other)):
            assert missing(heard) == within(noted(exchange.faults.done, number), heard)
            assert 10 <= len(missing(heard)) <= 90
        assert set(missing(one)) != set(missing(other))
        first = missing(one)[0]
        _, rows, _ = await talk.got(
            exchange.rest_url + "/fapi/v1/aggTrades", symbol="BTCUSDT", fromId=first - 1, limit=3
        )
        assert [row["a"] for row in rows] == [first - 1, first, first + 1]
        truth = [json.loads(each)["a"] for each in exchange.market.sent(FUTURES, "aggTrade", "BTCUSDT")]
        assert truth == list(range(truth[0], truth[-1] + 1))


async def test_lost_everywhere_is_lost_on_every_connection(talk: Any) -> None:
    async with an_exchange(Fault(kind="lost", share=0.1, everywhere=True)) as exchange:
        one, other = await two_lists(talk, exchange)
    assert missing(one)
    both = range(max(one[0], other[0]) + 1, min(one[-1], other[-1]))
    assert [each for each in missing(one) if each in both] == [each for each in missing(other) if each in both]


async def test_the_same_seed_loses_the_same_frames_and_another_seed_others(talk: Any) -> None:
    runs = []
    for seed in (5, 5, 6):
        async with an_exchange(Fault(kind="lost", share=0.1), seed=seed) as exchange:
            heard, _ = await two_lists(talk, exchange)
            runs.append((heard, missing(heard)))
    start, end = max(heard[0] for heard, _ in runs), min(heard[-1] for heard, _ in runs)
    assert end - start > 100
    first, again, other = ([each for each in gone if start < each < end] for _, gone in runs)
    assert first == again != other


async def test_repeated_frames_come_twice(talk: Any) -> None:
    async with an_exchange(Fault(kind="repeated", share=0.1)) as exchange:
        heard, _ = await two_lists(talk, exchange)
        twice = [a for a, b in itertools.pairwise(heard) if a == b]
        assert twice
        assert within(twice, heard) == within(noted(exchange.faults.done, 1), heard)
    assert missing(heard) == []


async def test_reordered_frames_come_a_few_frames_late_and_none_is_missing(talk: Any) -> None:
    late_by = 3
    async with an_exchange(Fault(kind="reordered", share=0.05, behind=late_by, delay_s=60.0)) as exchange:
        heard, _ = await two_lists(talk, exchange)
    late = [place for place, each in enumerate(heard) if each < max(heard[: place + 1])]
    assert late
    assert all(sum(before > heard[place] for before in heard[:place]) <= late_by for place in late)
    inner = sorted(heard)[late_by:-late_by]
    assert inner == list(range(inner[0], inner[-1] + 1))


async def test_a_frame_without_others_behind_it_is_held_back_no_longer_than_its_delay(talk: Any) -> None:
    fault = Fault(kind="reordered", delay_s=0.05, behind=100)
    async with (
        an_exchange(fault, rate=4, mix={"aggTrade": 1.0}, spot=()) as exchange,
        talk.listening(exchange.ws_url + TRADES) as socket,
    ):
        for count in range(1, 7):
            await talk.received(socket)
            # Not one more was made meanwhile, apart from the one that is held back now.
            assert len(exchange.faults.done) <= count + 1


@pytest.mark.parametrize("form", ["bytes", "short", None])
async def test_corrupted_frames_are_text_but_no_json(talk: Any, form: str | None) -> None:
    fault = Fault(kind="corrupted", share=0.2, form=form)
    async with (
        an_exchange(fault, futures=("币安人生USDT",)) as exchange,
        talk.listening(exchange.ws_url + "/market/stream?streams=币安人生usdt@aggTrade") as socket,
    ):
        messages = [await talk.received(socket) for _ in range(200)]
    broken, whole = [], []
    for message in messages:
        message.decode()
        try:
            whole.append(json.loads(message)["data"]["a"])
        except ValueError:
            broken.append(message)
    assert not {*whole} & {*noted(exchange.faults.done)}
    assert 10 <= len(broken) <= 90
    assert {message.endswith(b"}") for message in broken} == {"bytes": {True}, "short": {False}, None: {True, False}}[
        form
    ]
    event = EVENTS["btcusdt@aggTrade"]
    for message in broken:
        with pytest.raises(msgspec.DecodeError):
            msgspec.json.decode(message, type=dict[str, event | str])


@pytest.mark.parametrize("form", ["bytes", "short"])
def test_nothing_corrupted_is_json_wherever_it_is_hit(form: str) -> None:
    for text, number in itertools.product(("x" * n for n in range(0, 60, 3)), (10**n for n in range(0, 60, 3))):
        whole = json.dumps({"s": text, "n": number}).encode()
        with pytest.raises(ValueError, match="line 1"):
            json.loads(corrupted(whole, form, number % 7 / 7))


async def test_an_oversized_frame_ends_a_client_with_1009_and_another_size_is_read(talk: Any) -> None:
    async with an_exchange(Fault(kind="oversized", every_s=0.2)) as exchange:
        async with connected(exchange.ws_url + TRADES, silence_s=30) as connection:
            async for _ in connection.frames():
                pass
        assert connection.reason.startswith("we closed it: 1009")
        assert exchange.faults.done[0].kind == "oversized"
    async with (
        an_exchange(Fault(kind="oversized", every_s=0.2, size_bytes=300_000)) as exchange,
        talk.listening(exchange.ws_url + TRADES) as socket,
    ):
        message = b""
        while len(message) < 300_000:
            message = await talk.received(socket)
        assert json.loads(message)["data"]["e"] == "aggTrade"
        assert len(message) < 301_000


async def test_one_frame_is_oversized_on_every_connection(talk: Any) -> None:
    fault = Fault(kind="oversized", at_s=1.0, every_s=0.2, size_bytes=100_000, everywhere=True)
    async with (
        an_exchange(fault, futures=("BTCUSDT", "ETHUSDT")) as exchange,
        talk.listening(exchange.ws_url + TRADES + "/ethusdt@aggTrade") as both,
        talk.listening(exchange.ws_url + TRADES) as one,
    ):
        large: list[bytes] = []
        for _ in talk.tries():
            large += [each for each in [await talk.received(one)] if len(each) > 100_000]
            if len(large) == 4:
                break
        large_of_both: list[bytes] = []
        for _ in talk.tries():
            large_of_both += [each for each in [await talk.received(both)] if len(each) > 100_000]
            if large[-1] in large_of_both:
                break
    assert set(large) <= set(large_of_both)


async def test_a_stream_falls_silent_on_old_connections_only(talk: Any, wait_for: Callable[..., Any]) -> None:
    fault = Fault(kind="silent_stream", at_s=1.5, every_s=10.0, streams=("aggTrade",), symbols=("BTCUSDT",))
    both = TRADES + "/ethusdt@aggTrade"
    async with (
        an_exchange(fault, futures=("BTCUSDT", "ETHUSDT")) as exchange,
        talk.listening(exchange.ws_url + both) as old,
    ):
        while (await talk.heard(old))["data"]["s"] != "BTCUSDT":
            pass
        await wait_for(lambda: exchange.faults.done)
        lost_first = noted(exchange.faults.done)[0]
        async with talk.listening(exchange.ws_url + both) as new:
            for _ in talk.tries():
                if (heard := (await talk.heard(new))["data"])["s"] == "BTCUSDT":
                    break
            assert heard["a"] > lost_first
            of_old = [(await talk.heard(old))["data"] for _ in range(300)]
    assert all(event["a"] < lost_first for event in of_old if event["s"] == "BTCUSDT")
    assert {event["s"] for event in of_old} >= {"ETHUSDT"}
    assert {each.connection for each in exchange.faults.done} == {1}


async def test_a_stream_that_is_silent_everywhere_comes_back_after_its_time(talk: Any) -> None:
    fault = Fault(kind="silent_stream", at_s=0.3, for_s=0.7, everywhere=True, streams=("aggTrade",))
    async with (
        an_exchange(fault) as exchange,
        talk.listening(exchange.ws_url + TRADES) as socket,
    ):
        heard = ids([await talk.received(socket)])
        for _ in talk.tries():
            heard += ids([await talk.received(socket)])
            if gone := missing(heard):
                break
        assert gone == noted(exchange.faults.done)
        times = [each.time_s for each in exchange.faults.done]
        assert times[-1] - times[0] == pytest.approx(0.7, abs=0.2)


@pytest.mark.parametrize("form", ["renamed", "types"])
async def test_frames_of_a_changed_format_do_not_fit_and_rest_keeps_the_old_one(talk: Any, form: str) -> None:
    fault = Fault(kind="format_change", share=0.5, form=form)
    async with (
        an_exchange(fault) as exchange,
        talk.listening(exchange.ws_url + TRADES) as socket,
    ):
        events = [_data(await talk.received(socket)) for _ in range(100)]
        _, rows, _ = await talk.got(exchange.rest_url + "/fapi/v1/aggTrades", symbol="BTCUSDT")
        sent = set(exchange.market.sent(FUTURES, "aggTrade", "BTCUSDT"))
    fits = [event for event in events if _fits(event, EVENTS["btcusdt@aggTrade"])]
    assert 20 <= len(fits) <= 80
    assert fits == [event for event in events if event in sent]
    assert all(isinstance(row["p"], str) and isinstance(row["a"], int) for row in rows)


@pytest.mark.parametrize("form", ["renamed", "types"])
@pytest.mark.parametrize("venue", [FUTURES, SPOT])
def test_no_kind_of_event_fits_in_another_form(form: str, venue: str) -> None:
    checked = set()
    for frame in GeneratedMarket(("BTCUSDT",), ("BTCUSDT",), rate=1_000, seed=2).frames(5_000):
        expected = EVENTS.get(frame.stream)
        if frame.venue == venue and expected and frame.stream not in checked:
            checked.add(frame.stream)
            assert _fits(frame.payload, expected)
            assert not _fits(in_other_form(frame.payload, form), expected), frame
    assert checked == {*EVENTS} - ({"btcusdt@forceOrder", "btcusdt@markPrice"} if venue == SPOT else set())


def _data(message: bytes) -> bytes:
    return bytes(msgspec.json.decode(message, type=dict[str, msgspec.Raw])["data"])


def _fits(event: bytes, expected: Any) -> bool:
    try:
        msgspec.json.decode(event, type=expected)
    except msgspec.ValidationError:
        return False
    return True


@pytest.mark.parametrize("stream", [*EVENTS, "!ticker@arr"])
async def test_new_fields_are_in_every_event_and_hurt_nobody(talk: Any, stream: str) -> None:
    route = "/public" if stream.rpartition("@")[2] in ("depth", "trade", "bookTicker") else "/market"
    async with (
        an_exchange(Fault(kind="new_fields"), with_others=True, others_every_ms=20) as exchange,
        talk.listening(f"{exchange.ws_url}{route}/stream?streams={stream}") as socket,
    ):
        message = await talk.received(socket)
        assert exchange.faults.done[0].kind == "new_fields"
    event = json.loads(message)["data"]
    for row in event if isinstance(event, list) else [event]:
        assert "newField" in row
        assert "newField" in row.get("o", row) or stream == "!ticker@arr"
    if stream in EVENTS:
        assert _fits(_data(message), EVENTS[stream])


OF_SPOT = "/stream?streams=btcusdt@aggTrade"
MICROSECONDS = {"X-MBX-TIME-UNIT": "MICROSECOND"}


@pytest.mark.parametrize("skew_s", [-90.0, 3.5])
@pytest.mark.parametrize(
    ("venue", "stream", "path", "headers", "unit", "per_s"),
    [
        (FUTURES, TRADES, "/fapi/v1/aggTrades", {}, 1, 1000),
        (SPOT, OF_SPOT, "/api/v3/aggTrades", {}, 1000, 1000),
        (SPOT, OF_SPOT + "&timeUnit=MICROSECOND", "/api/v3/aggTrades", MICROSECONDS, 1, 1_000_000),
    ],
)
async def test_the_venues_clock_is_off_in_streams_and_in_the_rest_rows_of_the_same_trades(
    talk: Any, venue: str, stream: str, path: str, headers: dict[str, str], unit: int, per_s: int, skew_s: float
) -> None:
    async with (
        an_exchange(Fault(kind="clock_skew", at_s=1.5, for_s=0.5, skew_s=skew_s)) as exchange,
        talk.listening(exchange.ws_url + stream) as socket,
    ):
        told = {}
        while len(exchange.faults.done) < 2:  # it begins, it ends
            told |= await _a_trade(talk, socket)
        last = json.loads(exchange.market.sent(venue, "aggTrade", "BTCUSDT")[-1])["a"]
        while last + 100 not in told:
            told |= await _a_trade(talk, socket)
        trades = [json.loads(each) for each in exchange.market.sent(venue, "aggTrade", "BTCUSDT")]
        true = {each["a"]: each["T"] // unit for each in trades}
        by_rest, next_id = {}, min(told)
        while next_id <= max(told):
            query = {"symbol": "BTCUSDT", "fromId": next_id, "limit": 1000}
            _, rows, _ = await talk.got(exchange.rest_url + path, headers=headers, **query)
            by_rest |= {row["a"]: row["T"] for row in rows}
            next_id = rows[-1]["a"] + 1
    off = [told[each] - true[each] for each in sorted(told)]
    assert set(off) == {0, int(skew_s * per_s)}
    assert off[0] == off[-1] == 0
    assert {each: by_rest[each] for each in told} == told


async def _a_trade(talk: Any, socket: Any) -> dict[int, int]:
    event = (await talk.heard(socket))["data"]
    return {event["a"]: event["T"]}


async def test_the_skewed_clock_is_told_by_rest_too(talk: Any) -> None:
    async with an_exchange(Fault(kind="clock_skew", skew_s=3600.0)) as exchange:
        await talk.patiently(_seen(exchange))
        _, told, _ = await talk.got(exchange.rest_url + "/fapi/v1/time")
        _, book, _ = await talk.got(exchange.rest_url + "/fapi/v1/depth", symbol="BTCUSDT")
        assert told["serverTime"] - exchange.market.clock_ms == pytest.approx(3_600_000, abs=20_000)
        assert book["E"] - exchange.market.clock_ms == pytest.approx(3_600_000, abs=20_000)


async def _seen(exchange: Simulator) -> None:
    """A frame later, the clock has moved on from where the skew began."""
    async with connected(exchange.ws_url + TRADES, silence_s=30) as connection:
        async for _ in connection.frames():
            if exchange.faults.done:
                return


async def test_faults_keep_to_their_venue_and_stream(talk: Any) -> None:
    fault = Fault(kind="lost", venue=SPOT, streams=("aggTrade",))
    async with (
        an_exchange(fault) as exchange,
        talk.listening(exchange.ws_url + "/stream?streams=btcusdt@aggTrade/btcusdt@depth") as spot,
        talk.listening(exchange.ws_url + TRADES) as futures,
    ):
        assert {(await talk.heard(spot))["stream"] for _ in range(100)} == {"btcusdt@depth"}
        assert (await talk.heard(futures))["stream"] == "btcusdt@aggTrade"
