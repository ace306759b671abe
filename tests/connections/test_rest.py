"""Asking over HTTP: the pure rules, and the whole road against a scripted venue on loopback."""

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from aiohttp import web

from crypto_lake.config import FUTURES, SPOT
from crypto_lake.connections import SourceError
from crypto_lake.connections.rest import Breaker, Pause, Rest, WeightBudget, pause_s
from crypto_lake.monitoring.metrics import REGISTRY

START_S = 600.0  # the beginning of a clock minute
HTML = "<html>\n<head><title>403 Forbidden</title></head></html>"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class QuickClock:
    """Sleeping takes no time but moves the clock."""

    def __init__(self) -> None:
        self.now_s = START_S
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds
        await asyncio.sleep(0)


class HandClock:
    """Time passes only by `advance`."""

    def __init__(self) -> None:
        self.now_s = START_S
        self._sleepers: list[tuple[float, asyncio.Event]] = []
        self._changed = asyncio.Event()

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        awake = asyncio.Event()
        self._sleepers.append((self.now_s + seconds, awake))
        self._changed.set()
        await awake.wait()

    async def until_asleep(self, count: int) -> None:
        while len(self._sleepers) != count:
            self._changed.clear()
            await self._changed.wait()

    def advance(self, seconds: float) -> None:
        self.now_s += seconds
        for _, awake in (due := [each for each in self._sleepers if each[0] <= self.now_s]):
            awake.set()
        self._sleepers = [each for each in self._sleepers if each not in due]


@dataclass
class Reply:
    status: int = 200
    body: str = "[]"
    headers: dict[str, str] = field(default_factory=dict)
    after: asyncio.Event | None = None
    hang_up: Literal["never", "before the answer", "in the body"] = "never"


IN_THE_BODY = Reply(hang_up="in the body")
REFUSED = Reply(400, '{"code":-1121,"msg":"Invalid symbol."}')


@dataclass
class VenueOnLoopback:
    """Answers with the replies in their order, the last one again and again, and keeps the requests."""

    address: str
    replies: list[Reply]
    asked: list[web.Request] = field(default_factory=list)
    was_asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        self.was_asked.set()
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if reply.after:
            await reply.after.wait()
        if reply.hang_up == "in the body":
            begun = web.StreamResponse(headers={"Content-Length": "100"})
            await begun.prepare(request)
            await begun.write(b"[1,")
        if reply.hang_up != "never":
            assert request.transport is not None
            request.transport.close()
        return web.Response(status=reply.status, text=reply.body, headers=reply.headers)


@asynccontextmanager
async def venue(*replies: Reply, tls: ssl.SSLContext | None = None) -> AsyncIterator[VenueOnLoopback]:
    it = VenueOnLoopback("", list(replies) or [Reply()])
    app = web.Application()
    app.router.add_get("/{path:.*}", it.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    it.address = f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with asyncio.timeout(20):  # no test waits for ever
            yield it
    finally:
        await runner.cleanup()


def rest(address: str | Mapping[str, str], clock: QuickClock | HandClock | None = None, **more: object) -> Rest:
    clock = clock or QuickClock()

    def of_venue(name: str) -> str:
        return address if isinstance(address, str) else address[name]

    return Rest(of_venue, clock=clock, sleep=clock.sleep, draw=lambda: 0.5, **more)  # type: ignore[arg-type]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


# --- the weight budget


def test_a_budget_holds_requests_back_until_the_next_clock_minute() -> None:
    budget = WeightBudget(100, share=0.6)
    budget.spend(50, 610)
    assert budget.wait_s(10, 615) == 0
    assert budget.wait_s(11, 615) == 45
    budget.landed(50)
    assert budget.wait_s(11, 659.5) == 0.5
    assert budget.wait_s(60, 660) == 0


def test_a_budget_counts_what_others_on_this_address_used() -> None:
    budget = WeightBudget(100, share=0.6)
    budget.spend(5, 610)
    budget.landed(5)
    budget.seen("55", 610, 611)
    assert budget.wait_s(5, 611) == 0
    assert budget.wait_s(6, 611) > 0


def test_a_budget_adds_what_is_under_way_to_what_the_venue_counted() -> None:
    budget = WeightBudget(100, share=0.6)
    budget.spend(20, 610)
    budget.seen("40", 610, 611)
    assert budget.wait_s(1, 611) > 0


def test_an_older_count_that_arrives_late_does_not_lower_the_budgets_count() -> None:
    budget = WeightBudget(100, share=0.6)
    budget.seen("60", 610, 611)
    budget.seen("10", 609, 612)
    assert budget.wait_s(1, 612) > 0


def test_what_is_under_way_at_the_minute_counts_in_the_new_one() -> None:
    budget = WeightBudget(100, share=0.6)
    budget.spend(60, 659)
    assert budget.wait_s(1, 660) == 60
    budget.landed(60)  # nobody knows in which of the two minutes the venue counted it
    assert budget.wait_s(1, 660.5) == 59.5


def test_a_count_of_the_last_minute_does_not_block_the_new_one() -> None:
    budget = WeightBudget(100, share=0.6)
    budget.seen("60", 659.9, 660.1)
    assert budget.wait_s(1, 660.1) == 0


@pytest.mark.parametrize("header", [None, "", "many", "-1"])
def test_a_missing_or_odd_count_is_passed_over(header: str | None) -> None:
    budget = WeightBudget(100)
    budget.seen(header, 610, 610)
    assert budget.wait_s(60, 610) == 0


# --- the breaker and the pause


def test_a_breaker_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker(failures=3, open_s=30)
    for now_s in (1, 2):
        breaker.failed(now_s)
    breaker.succeeded()
    for now_s in (3, 4):
        breaker.failed(now_s)
    assert breaker.state == "closed"
    breaker.failed(5)
    assert breaker.state == "open"
    assert not breaker.allow(34.9)


def test_a_half_open_breaker_lets_one_through_and_believes_it() -> None:
    breaker = Breaker(failures=1, open_s=30)
    breaker.failed(0)
    assert breaker.allow(30)
    assert breaker.state == "half-open"
    assert not breaker.allow(30)
    breaker.failed(31)
    assert breaker.state == "open"
    assert not breaker.allow(60)
    assert breaker.allow(61)
    breaker.succeeded()
    assert breaker.state == "closed"
    assert breaker.allow(61)
    assert breaker.allow(61)


def test_a_probe_that_is_never_heard_of_does_not_keep_the_breaker_shut() -> None:
    breaker = Breaker(failures=1, open_s=30)
    breaker.failed(0)
    assert breaker.allow(30)
    assert not breaker.allow(59)
    assert breaker.allow(60)


def test_a_shorter_pause_does_not_end_a_longer_one() -> None:
    pause = Pause()
    pause.begin(100, 0, "banned")
    pause.begin(10, 50, "too many")
    assert pause.wait_s(50) == 50
    assert pause.reason == "banned"
    assert pause.wait_s(100) == 0


def test_a_clock_set_back_by_an_hour_does_not_make_a_pause_an_hour_long() -> None:
    pause, breaker = Pause(), Breaker(failures=1, open_s=30)
    pause.begin(10, 7200, "too many")
    breaker.failed(7200)
    assert pause.wait_s(3600) == 10
    assert breaker.wait_s(3600) == 30


@pytest.mark.parametrize(
    ("status", "retry_after", "wanted"),
    [
        (200, "9", None),
        (400, "9", None),
        (503, "9", None),
        (429, "9", 9),
        (429, "0", 1),
        (429, None, 60),
        (429, "Wed, 21 Oct 2026 07:28:00 GMT", 60),
        (418, "259200", 259200),
        (418, None, 600),
        (403, None, 300),
        (403, "5", 300),
        (403, "900", 900),
        (451, None, 3600),
    ],
)
def test_how_long_a_status_silences_us(status: int, retry_after: str | None, wanted: float | None) -> None:
    assert pause_s(status, retry_after) == wanted


# --- the whole road


async def test_an_answer_is_the_body_as_it_came_and_our_time_of_it() -> None:
    async with venue(Reply(body='[{"a": 1}]')) as it, rest(it.address, api_key="secret") as asked:
        answer = await asked.get(FUTURES, "/fapi/v1/aggTrades", {"symbol": "币安人生USDT", "limit": 5})
    assert (answer.status, answer.body, answer.received_us) == (200, b'[{"a": 1}]', 600_000_000)
    assert it.asked[0].path == "/fapi/v1/aggTrades"
    assert dict(it.asked[0].query) == {"symbol": "币安人生USDT", "limit": "5"}
    assert it.asked[0].headers["X-MBX-APIKEY"] == "secret"


async def test_without_a_key_none_is_sent() -> None:
    async with venue() as it, rest(it.address) as asked:
        await asked.get(FUTURES, "/x")
    assert "X-MBX-APIKEY" not in it.asked[0].headers


async def test_a_venue_that_counted_others_makes_us_wait_for_its_next_minute() -> None:
    clock = QuickClock()
    clock.now_s = START_S + 20
    async with venue(Reply(headers={"x-mbx-used-weight-1m": "1430"})) as it, rest(it.address, clock) as asked:
        await asked.get(FUTURES, "/x", weight=10)
        await asked.get(FUTURES, "/x", weight=10)
        assert clock.slept == []
        await asked.get(FUTURES, "/x", weight=20)
    assert clock.slept == [40]
    assert REGISTRY.get_sample_value("crypto_lake_rest_used_weight", {"venue": FUTURES}) == 1430


async def test_requests_at_the_same_time_do_not_overdraw_the_budget() -> None:
    clock, gate = HandClock(), asyncio.Event()
    async with venue(Reply(after=gate)) as it, rest(it.address, clock, limits_per_min={FUTURES: 100}) as asked:
        tasks = [asyncio.create_task(asked.get(FUTURES, "/x", weight=20)) for _ in range(8)]
        await clock.until_asleep(5)
        gate.set()
        await asyncio.gather(*tasks[:3])
        assert len(it.asked) == 3
        clock.advance(60)
        await clock.until_asleep(2)
        await asyncio.gather(*tasks[3:6])
        clock.advance(60)
        await asyncio.gather(*tasks)
    assert len(it.asked) == 8


@pytest.mark.parametrize("status", [429, 418])
async def test_a_limit_stops_the_whole_process_also_those_who_wait_already(status: int) -> None:
    clock = HandClock()
    stop = Reply(status, '{"code":-1003,"msg":"Too many requests."}', {"Retry-After": "100"})
    limits = {FUTURES: 2400, SPOT: 100}
    async with (
        venue(stop, Reply()) as futures,
        venue() as spot,
        rest({FUTURES: futures.address, SPOT: spot.address}, clock, limits_per_min=limits) as it,
    ):
        await it.get(SPOT, "/x", weight=50)
        waiting = asyncio.create_task(it.get(SPOT, "/x", weight=50))
        await clock.until_asleep(1)
        limited = asyncio.create_task(it.get(FUTURES, "/x"))
        await clock.until_asleep(2)
        clock.advance(1)  # the back-off of the one that was told
        fresh = asyncio.create_task(it.get(SPOT, "/x"))
        await clock.until_asleep(3)
        clock.advance(59)  # the minute is over, the pause is not
        await clock.until_asleep(3)
        assert (len(futures.asked), len(spot.asked)) == (1, 1)
        clock.advance(40)
        await asyncio.gather(waiting, limited, fresh)
    assert (len(futures.asked), len(spot.asked)) == (2, 3)
    assert REGISTRY.get_sample_value("crypto_lake_rest_stopped_until_seconds") == 700


@pytest.mark.parametrize(
    ("reply", "seconds"),
    [(Reply(418, "{}", {"Retry-After": "7200"}), 7200), (Reply(403, HTML), 300)],
)
async def test_a_long_stop_is_said_at_once_and_nobody_asks_meanwhile(reply: Reply, seconds: float) -> None:
    clock = QuickClock()
    async with venue(reply, Reply()) as it, rest(it.address, clock) as asked:
        with pytest.raises(SourceError, match=f"HTTP {reply.status}") as stopped:
            await asked.get(FUTURES, "/x")
        assert stopped.value.retry_after_s == seconds
        clock.now_s += 150
        with pytest.raises(SourceError, match=f"HTTP {reply.status}.*nothing is asked for {seconds - 150:.0f} s"):
            await asked.get(SPOT, "/x")
        assert len(it.asked) == 1
        clock.now_s += seconds - 150
        await asked.get(SPOT, "/x")
    assert clock.slept == []


async def test_a_restricted_location_stops_that_venue_only() -> None:
    words = '{"code":0,"msg":"Service unavailable from a restricted location according to Terms."}'
    async with (
        venue(Reply(451, words)) as futures,
        venue() as spot,
        rest({FUTURES: futures.address, SPOT: spot.address}) as it,
    ):
        with pytest.raises(SourceError, match="restricted location") as stopped:
            await it.get(FUTURES, "/x")
        with pytest.raises(SourceError, match="restricted location"):
            await it.get(FUTURES, "/x")
        await it.get(SPOT, "/x")
    assert stopped.value.retry_after_s == 3600
    assert len(futures.asked) == 1


async def test_a_refused_request_is_not_repeated_and_says_code_and_message() -> None:
    async with venue(REFUSED) as it, rest(it.address) as asked:
        with pytest.raises(SourceError) as refused:
            await asked.get(FUTURES, "/fapi/v1/depth", {"symbol": "NOPE"})
    assert str(refused.value) == f"{it.address}/fapi/v1/depth refused: -1121 Invalid symbol. (HTTP 400)"
    assert (refused.value.code, refused.value.retry_after_s) == (-1121, None)
    assert len(it.asked) == 1


@pytest.mark.parametrize("trouble", [Reply(500, "oops"), Reply(503, HTML), Reply(408), IN_THE_BODY])
async def test_trouble_at_the_venue_is_tried_again_with_growing_waits(trouble: Reply) -> None:
    clock = QuickClock()
    async with venue(trouble, trouble, Reply(body="{}")) as it, rest(it.address, clock) as asked:
        assert (await asked.get(FUTURES, "/x")).body == b"{}"
    assert clock.slept == [0.5, 1.0]


async def test_trouble_that_lasts_is_given_up_after_a_few_tries() -> None:
    clock = QuickClock()
    async with venue(Reply(502, HTML)) as it, rest(it.address, clock, attempts=3) as asked:
        with pytest.raises(SourceError, match="HTTP 502"):
            await asked.get(FUTURES, "/x")
    assert len(it.asked) == 3
    assert clock.slept == [0.5, 1.0]


@pytest.mark.parametrize("status", [200, 302, 404])
async def test_a_page_instead_of_json_is_one_clear_line(status: int) -> None:
    page = Reply(status, "\n<html>\n  <h1>Welcome to  our hotel</h1>" + "x" * 5000, {"Location": "/login"})
    async with venue(page) as it, rest(it.address) as asked:
        with pytest.raises(SourceError) as odd:
            await asked.get(FUTURES, "/fapi/v1/time")
    message = str(odd.value)
    assert message.startswith(f"{it.address}/fapi/v1/time answered HTTP {status} ")
    assert "<html> <h1>Welcome to our hotel</h1>" in message
    assert "\n" not in message
    assert len(message) < 250
    assert len(it.asked) == 1


@pytest.mark.parametrize("body", ["", "   ", '"text"', "null"])
async def test_an_answer_that_is_neither_object_nor_array_is_refused(body: str) -> None:
    async with venue(Reply(body=body)) as it, rest(it.address) as asked:
        with pytest.raises(SourceError, match="instead of JSON"):
            await asked.get(FUTURES, "/x")


async def test_a_refused_connection_is_one_clear_sentence() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    async with rest(address, attempts=2) as asked:
        with pytest.raises(SourceError) as cut:
            await asked.get(FUTURES, "/x")
    assert str(cut.value) == f"cannot reach {address}: Connection refused"


async def test_a_name_with_both_kinds_of_address_is_refused_in_the_same_words() -> None:
    address = f"http://localhost:{free_port()}"
    async with rest(address, attempts=1) as asked:
        with pytest.raises(SourceError) as cut:
            await asked.get(FUTURES, "/x")
    assert str(cut.value) == f"cannot reach {address}: Connection refused"


async def test_a_name_that_nobody_knows_is_one_clear_sentence() -> None:
    async with rest("https://venue.invalid", attempts=1) as asked:
        with pytest.raises(SourceError, match=r"^cannot reach https://venue\.invalid: \w.*") as cut:
            await asked.get(FUTURES, "/x")
    assert "\n" not in str(cut.value)


async def test_a_venue_that_does_not_speak_tls_is_one_clear_sentence() -> None:
    async with venue() as it, rest(it.address.replace("http:", "https:"), attempts=1) as asked:
        with pytest.raises(SourceError, match=r"^cannot reach https://127\.0\.0\.1:\d+: \[SSL") as cut:
            await asked.get(FUTURES, "/x")
    assert "\n" not in str(cut.value)


@pytest.fixture
def unsigned(tmp_path: Path) -> ssl.SSLContext:
    if shutil.which("openssl") is None:
        pytest.skip("the certificate is made with openssl, which is not here")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    made += ["-subj", "/CN=venue", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    return tls


async def test_a_certificate_that_nobody_signed_is_one_clear_sentence(unsigned: ssl.SSLContext) -> None:
    async with venue(tls=unsigned) as it, rest(it.address, attempts=1) as asked:
        with pytest.raises(SourceError, match=r"^cannot trust https://127\.0\.0\.1:\d+: .*self.signed") as cut:
            await asked.get(FUTURES, "/x")
    assert "\n" not in str(cut.value)
    assert not it.asked


async def test_a_proxy_that_is_down_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    async with rest("http://fapi.invalid", attempts=1) as asked:
        with pytest.raises(SourceError) as cut:
            await asked.get(FUTURES, "/x")
    assert str(cut.value) == f"cannot reach http://fapi.invalid: proxy 127.0.0.1:{port}: Connection refused"


async def test_a_venue_that_never_answers_is_given_up() -> None:
    gate = asyncio.Event()
    async with venue(Reply(after=gate)) as it, rest(it.address, attempts=2, total_s=0.05) as asked:
        with pytest.raises(SourceError, match="no answer from http://"):
            await asked.get(FUTURES, "/x")
        gate.set()
    assert len(it.asked) == 2


async def test_a_venue_that_fails_and_fails_is_left_alone_for_a_while() -> None:
    clock = QuickClock()
    async with venue(*[Reply(500, "oops")] * 5, Reply()) as it, rest(it.address, clock, attempts=1) as asked:
        for _ in range(5):
            with pytest.raises(SourceError, match="HTTP 500"):
                await asked.get(FUTURES, "/x")
        with pytest.raises(SourceError, match="failed 5 times in a row") as spared:
            await asked.get(FUTURES, "/x")
        assert (spared.value.retry_after_s, len(it.asked)) == (30, 5)
        await asked.get(SPOT, "/x")
        clock.now_s += 30
        await asked.get(FUTURES, "/x")
        await asked.get(FUTURES, "/x")


async def test_a_cancelled_request_gives_its_weight_back() -> None:
    clock, gate = HandClock(), asyncio.Event()
    async with venue(Reply(after=gate)) as it, rest(it.address, clock, limits_per_min={FUTURES: 100}) as asked:
        doomed = asyncio.create_task(asked.get(FUTURES, "/x", weight=60))
        await it.was_asked.wait()
        doomed.cancel()
        await asyncio.wait([doomed])
        gate.set()
        clock.advance(60)
        await asked.get(FUTURES, "/x", weight=60)


@pytest.mark.parametrize("moment", ["before the answer", "in the body"])
async def test_a_venue_that_hangs_up_is_one_clear_sentence(moment: Literal["before the answer", "in the body"]) -> None:
    async with venue(Reply(hang_up=moment)) as it, rest(it.address, attempts=1) as asked:
        with pytest.raises(SourceError, match=f"^the connection to {it.address} broke: ") as cut:
            await asked.get(FUTURES, "/x")
    assert "\n" not in str(cut.value)


async def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with venue(Reply(body="{}")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.address)
        async with rest("http://fapi.invalid") as asked:
            assert (await asked.get(FUTURES, "/x")).status == 200
    assert proxy.asked[0].headers["Host"] == "fapi.invalid"


async def test_only_spot_is_asked_for_microseconds() -> None:
    async with venue(Reply(500), Reply()) as it, rest(it.address, api_key="key") as asked:
        await asked.get(SPOT, "/x")
        await asked.get(FUTURES, "/x")
    units = [each.headers.get("X-MBX-TIME-UNIT") for each in it.asked]
    assert units == ["MICROSECOND", "MICROSECOND", None]
    assert all(each.headers["X-MBX-APIKEY"] == "key" for each in it.asked)


async def test_every_request_is_counted_by_its_status() -> None:
    def count(status: str) -> float:
        labels = {"venue": SPOT, "status": status}
        return REGISTRY.get_sample_value("crypto_lake_rest_requests_total", labels) or 0

    before = {status: count(status) for status in ("200", "500", "none")}
    async with venue(IN_THE_BODY, Reply(500), Reply()) as it, rest(it.address) as asked:
        await asked.get(SPOT, "/x")
    assert {status: count(status) - was for status, was in before.items()} == {"200": 1, "500": 1, "none": 1}
