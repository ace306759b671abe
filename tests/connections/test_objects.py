"""Files over HTTP: whole, resumed, refused and listed, against a server on loopback that knows Range and If-Range."""

import asyncio
import hashlib
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from aiohttp import web
from moto.server import ThreadedMotoServer

from crypto_lake.config import ConfigError
from crypto_lake.connections import SourceError
from crypto_lake.connections.objects import Fetched, Objects, checksum_in, discard, onward
from crypto_lake.monitoring.metrics import REGISTRY

PATH = "data/spot/daily/aggTrades/BTCUSDT/BTCUSDT-aggTrades-2024-01-15.zip"
NAME = "BTCUSDT-aggTrades-2024-01-15.zip"
FOLDER = "data/futures/um/daily/aggTrades/BTCUSDT/"
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
BODY = bytes(number * 31 % 251 for number in range(300_000))
OTHER = BODY[::-1]
PUBLISHED = "Tue, 16 Jan 2024 08:41:00 GMT"
PROCESS = """
import asyncio, sys
from pathlib import Path
from crypto_lake.connections.objects import Objects

async def main():
    async with Objects(sys.argv[1]) as objects:
        await objects.fetch(sys.argv[2], Path(sys.argv[3]))

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


# The server


@dataclass
class Stored:
    body: bytes
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"one"', "Last-Modified": PUBLISHED})

    def right(self, request: web.Request) -> tuple[int, dict[str, str], bytes]:
        """The answer of a server that does as it should."""
        wanted, condition = request.headers.get("Range"), request.headers.get("If-Range")
        if wanted is None or condition not in self.headers.values():
            return 200, self.headers, self.body
        return self.ranged(wanted)

    def ranged(self, wanted: str) -> tuple[int, dict[str, str], bytes]:
        start, total = int(wanted.removeprefix("bytes=").removesuffix("-")), len(self.body)
        if start >= total:
            return 416, {"Content-Range": f"bytes */{total}"}, b""
        return 206, {**self.headers, "Content-Range": f"bytes {start}-{total - 1}/{total}"}, self.body[start:]


Act = Callable[[web.Request, Stored], Awaitable[web.StreamResponse]]


async def send(request: web.Request, status: int, headers: dict[str, str], body: bytes) -> web.StreamResponse:
    return web.Response(status=status, headers=headers, body=body)


async def rightly(request: web.Request, stored: Stored) -> web.StreamResponse:
    return await send(request, *stored.right(request))


def says(status: int, text: str = "", **headers: str) -> Act:
    async def act(request: web.Request, stored: Stored) -> web.StreamResponse:
        return web.Response(status=status, text=text, headers={n.replace("_", "-"): v for n, v in headers.items()})

    return act


def sends(status: int, headers: dict[str, str], body: bytes) -> Act:
    async def act(request: web.Request, stored: Stored) -> web.StreamResponse:
        return await send(request, status, headers, body)

    return act


def stops(after: int, *, until: asyncio.Event | None = None, knows_ranges: bool = True, longer: int = 0) -> Act:
    """Sends so many bytes; then hangs up, or waits and sends the rest. Promises some bytes more than there are."""

    async def act(request: web.Request, stored: Stored) -> web.StreamResponse:
        status, headers, body = stored.right(request) if knows_ranges else (200, stored.headers, stored.body)
        begun = web.StreamResponse(status=status, headers={**headers, "Content-Length": str(len(body) + longer)})
        await begun.prepare(request)
        await begun.write(body[:after])
        if until is not None:
            await until.wait()
            await begun.write(body[after:])
        else:
            assert request.transport is not None
            request.transport.close()
        return begun

    return act


@dataclass
class Server:
    address: str = ""
    stored: dict[str, Stored] = field(default_factory=dict)
    acts: dict[str, list[Act]] = field(default_factory=dict)  # per path, in their order; then rightly
    always: Act | None = None
    asked: list[web.Request] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            path = request.path.removeprefix("/")
            stored = self.stored.get(path)
            acts = self.acts.get(path, [])
            act = acts.pop(0) if acts else self.always or rightly
            if stored is None and act is rightly:
                return web.Response(status=404, text="<Error><Code>NoSuchKey</Code></Error>")
            return await act(request, stored or Stored(b""))
        finally:
            self.under_way -= 1

    def header(self, name: str) -> list[str | None]:
        return [request.headers.get(name) for request in self.asked]


@asynccontextmanager
async def running(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with asyncio.timeout(40):  # no test waits for ever
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    it = Server(stored={PATH: Stored(BODY)})
    async with running(it.answer) as it.address:
        yield it


class Naps:
    """Sleeping takes no time."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


@pytest.fixture
def naps() -> Naps:
    return Naps()


@pytest.fixture
async def objects(server: Server, naps: Naps) -> AsyncIterator[Objects]:
    async with Objects(server.address, attempts=3, sleep=naps, draw=lambda: 0.5) as it:
        yield it


@pytest.fixture
async def impatient(server: Server, naps: Naps) -> AsyncIterator[Objects]:
    """Waits for a byte no longer than a moment."""
    async with Objects(server.address, attempts=2, stall_s=0.3, sleep=naps) as it:
        yield it


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "landing" / PATH


async def taken(objects: Objects, target: Path, **more: Callable[[int], None]) -> Fetched:
    """The file, which is there."""
    fetched = await objects.fetch(PATH, target, **more)
    assert fetched is not None
    return fetched


def body_of(path: Path) -> bytes:
    return path.read_bytes()


def sum_of(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def left(target: Path) -> list[str]:
    return sorted(path.name.removeprefix(target.name) for path in target.parent.iterdir())


async def lies_begun(server: Server, target: Path, count: int) -> None:
    """An earlier run has left so many bytes."""
    server.acts[PATH] = [stops(count), says(403)]
    async with Objects(server.address, sleep=Naps()) as earlier:
        with pytest.raises(SourceError):
            await earlier.fetch(PATH, target)
    assert target.with_name(NAME + ".part").read_bytes() == BODY[:count]
    server.asked.clear()


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"crypto_lake_{name}", labels) or 0.0


# Whole files


async def test_a_file_arrives_under_its_name_with_its_sum_and_what_the_server_said(
    server: Server, objects: Objects, target: Path
) -> None:
    published = datetime(2024, 1, 16, 8, 41, tzinfo=UTC)
    assert await objects.fetch(PATH, target) == Fetched(target, sum_of(BODY), len(BODY), '"one"', published)
    assert body_of(target) == BODY
    assert server.header("Accept-Encoding") == ["identity"]


async def test_a_file_that_is_not_there_is_none_and_leaves_nothing(objects: Objects, target: Path) -> None:
    assert await objects.fetch("data/none.zip", target) is None
    assert left(target) == []


async def test_an_empty_file_is_a_file(server: Server, objects: Objects, target: Path) -> None:
    server.stored[PATH] = Stored(b"")
    fetched = await taken(objects, target)
    assert (fetched.size, fetched.sha256, body_of(target)) == (0, sum_of(b""), b"")


async def test_a_file_without_a_length_or_a_word_about_it_is_taken_as_it_comes(
    server: Server, objects: Objects, target: Path
) -> None:
    async def chunked(request: web.Request, stored: Stored) -> web.StreamResponse:
        begun = web.StreamResponse()
        begun.enable_chunked_encoding()
        await begun.prepare(request)
        await begun.write(BODY)
        return begun

    server.acts[PATH] = [chunked]
    assert await objects.fetch(PATH, target) == Fetched(target, sum_of(BODY), len(BODY), None, None)


async def test_a_finished_file_is_not_asked_for_again_and_is_still_known(
    server: Server, objects: Objects, target: Path
) -> None:
    first = await objects.fetch(PATH, target)
    heard: list[int] = []
    async with Objects("http://127.0.0.1:1") as later:  # nobody is there
        assert await later.fetch(PATH, target, on_bytes=heard.append, on_size=heard.append) == first
    assert heard == [len(BODY), len(BODY)]


async def test_a_file_put_there_by_hand_is_hashed_and_nothing_is_said_of_it(objects: Objects, target: Path) -> None:
    await objects.fetch(PATH, target)
    await asyncio.to_thread(target.write_bytes, b"mine")
    assert await objects.fetch(PATH, target) == Fetched(target, sum_of(b"mine"), 4, None, None)


async def test_a_discarded_file_is_gone_with_what_lay_beside_it(objects: Objects, target: Path) -> None:
    await objects.fetch(PATH, target)
    assert left(target) == ["", ".json"]
    discard(target)
    discard(target)
    assert left(target) == []


async def test_the_listener_hears_every_byte_and_the_size(objects: Objects, target: Path) -> None:
    came: list[int] = []
    sizes: set[int] = set()
    await objects.fetch(PATH, target, on_bytes=came.append, on_size=sizes.add)
    assert sum(came) == len(BODY)
    assert sizes == {len(BODY)}


async def test_names_that_are_not_ascii_or_mean_something_in_an_address_are_quoted(
    server: Server, objects: Objects, tmp_path: Path
) -> None:
    path = "data/币安人生USDT/1000% + ä?b#c.zip"
    server.stored[path] = Stored(BODY)
    fetched = await objects.fetch(path, tmp_path / path)
    assert fetched is not None
    assert fetched.sha256 == sum_of(BODY)
    assert "%E5%B8%81" in server.asked[0].raw_path


async def test_an_address_may_have_a_folder_and_a_slash_at_its_end(server: Server, target: Path) -> None:
    server.stored["bucket/" + PATH] = Stored(BODY)
    async with Objects(f"{server.address}/bucket/") as objects:
        assert await objects.fetch(PATH, target) is not None


@pytest.mark.parametrize("address", ["", "data.binance.vision", "ftp://127.0.0.1", "http://", "http://a:99999"])
def test_an_address_that_is_none_is_said_at_once(address: str) -> None:
    with pytest.raises(ConfigError, match="is no web address"):
        Objects(address)


async def test_requests_and_bytes_are_counted(server: Server, objects: Objects, target: Path) -> None:
    before = metric("download_bytes_total"), metric("download_requests_total", status="200")
    await objects.fetch(PATH, target)
    assert metric("download_bytes_total") - before[0] == len(BODY)
    assert metric("download_requests_total", status="200") - before[1] == 1


# Broken off, and gone on with


async def test_a_download_that_breaks_goes_on_where_it_broke(server: Server, objects: Objects, target: Path) -> None:
    server.acts[PATH] = [stops(100_000)]
    came: list[int] = []
    fetched = await taken(objects, target, on_bytes=came.append)
    assert (fetched.sha256, body_of(target)) == (sum_of(BODY), BODY)
    (first, rest), (none, condition) = server.header("Range"), server.header("If-Range")
    assert (first, none) == (None, None)
    assert (rest, condition) == ("bytes=100000-", '"one"')
    assert sum(came) == len(BODY)
    assert min(came) > 0


async def test_whoever_gets_on_may_break_as_often_as_it_takes(server: Server, objects: Objects, target: Path) -> None:
    server.always = stops(10_000)
    fetched = await taken(objects, target)
    assert fetched.sha256 == sum_of(BODY)
    assert len(server.asked) == len(BODY) // 10_000


async def test_who_never_gets_on_is_given_up(server: Server, objects: Objects, naps: Naps, target: Path) -> None:
    server.always = stops(0)
    with pytest.raises(SourceError, match="broke"):
        await objects.fetch(PATH, target)
    assert len(server.asked) == 3
    assert naps.slept == [0.5, 1.0]
    assert left(target) == []


async def test_a_server_without_ranges_that_always_breaks_at_the_same_place_is_given_up(
    server: Server, objects: Objects, target: Path
) -> None:
    server.always = stops(100_000, knows_ranges=False)
    came: list[int] = []
    with pytest.raises(SourceError, match="broke"):
        await objects.fetch(PATH, target, on_bytes=came.append)
    assert len(server.asked) == 4  # the first one got on
    assert sum(came) == 100_000


async def test_a_later_run_goes_on_with_what_an_earlier_one_left(
    server: Server, objects: Objects, target: Path
) -> None:
    await lies_begun(server, target, 200_000)
    came: list[int] = []
    fetched = await taken(objects, target, on_bytes=came.append)
    assert (fetched.sha256, fetched.etag, body_of(target)) == (sum_of(BODY), '"one"', BODY)
    assert server.header("Range") == ["bytes=200000-"]
    assert came[0] == 200_000
    assert sum(came) == len(BODY)
    assert left(target) == ["", ".json"]


async def test_a_file_that_was_replaced_meanwhile_is_begun_anew(server: Server, objects: Objects, target: Path) -> None:
    await lies_begun(server, target, 200_000)
    server.stored[PATH] = Stored(OTHER, {"ETag": '"two"'})
    came: list[int] = []
    fetched = await taken(objects, target, on_bytes=came.append)
    assert (fetched.sha256, fetched.etag, fetched.last_modified) == (sum_of(OTHER), '"two"', None)
    assert server.header("If-Range") == ['"one"']
    assert -200_000 in came
    assert sum(came) == len(OTHER)


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": '"two"', "Content-Range": "bytes 200000-299999/300000"},
        {"Last-Modified": "Wed, 17 Jan 2024 08:41:00 GMT", "Content-Range": "bytes 200000-299999/300000"},
        {"ETag": '"one"', "Content-Range": "bytes 100000-299999/300000"},
        {"ETag": '"one"', "Content-Range": "bytes 200000-299999/400000"},
        {"ETag": '"one"'},
    ],
    ids=["other ETag", "other date", "other place", "other length", "no place"],
)
async def test_a_rest_that_is_not_the_rest_of_ours_is_not_taken(
    server: Server, objects: Objects, target: Path, headers: dict[str, str]
) -> None:
    await lies_begun(server, target, 200_000)
    server.acts[PATH] = [sends(206, headers, OTHER[200_000:])]
    fetched = await taken(objects, target)
    assert fetched.sha256 == sum_of(BODY)
    assert server.header("Range") == ["bytes=200000-", None]


@pytest.mark.parametrize(
    "kept", [None, b"", b'{"size":3', b"[]", b"\xff", b'{"size":100,"etag":"x"}', b'{"size":300000}']
)
async def test_begun_bytes_of_which_nothing_is_known_are_thrown_away(
    server: Server, objects: Objects, target: Path, kept: bytes | None
) -> None:
    await lies_begun(server, target, 200_000)
    beside = target.with_name(NAME + ".json")
    beside.unlink() if kept is None else beside.write_bytes(kept)
    fetched = await taken(objects, target)
    assert fetched.sha256 == sum_of(BODY)
    assert server.header("Range") == [None]


@pytest.mark.parametrize(
    ("headers", "condition"),
    [
        ({"ETag": 'W/"one"', "Last-Modified": PUBLISHED}, PUBLISHED),
        ({"Last-Modified": PUBLISHED}, PUBLISHED),
        ({"ETag": 'W/"one"'}, None),
        ({}, None),
    ],
)
async def test_only_what_proves_that_it_is_the_same_file_lets_it_go_on(
    server: Server, objects: Objects, target: Path, headers: dict[str, str], condition: str | None
) -> None:
    server.stored[PATH] = Stored(BODY, headers)
    server.acts[PATH] = [stops(100_000)]
    fetched = await taken(objects, target)
    assert fetched.sha256 == sum_of(BODY)
    assert server.header("If-Range") == [None, condition]


async def test_when_there_are_fewer_bytes_than_we_hold_it_is_begun_anew(
    server: Server, objects: Objects, target: Path
) -> None:
    await lies_begun(server, target, 200_000)
    server.stored[PATH] = Stored(OTHER[:1000])  # with the old ETag: a server that is not to be trusted
    server.acts[PATH] = [sends(*server.stored[PATH].ranged("bytes=200000-"))]
    fetched = await taken(objects, target)
    assert (fetched.sha256, body_of(target)) == (sum_of(OTHER[:1000]), OTHER[:1000])
    assert server.header("Range") == ["bytes=200000-", None]


async def test_begun_bytes_of_a_file_that_is_gone_go_too(server: Server, objects: Objects, target: Path) -> None:
    await lies_begun(server, target, 200_000)
    server.stored.clear()
    assert await objects.fetch(PATH, target) is None
    assert left(target) == []


async def test_a_download_that_only_lacks_its_name_gets_it_without_a_question(
    server: Server, objects: Objects, target: Path
) -> None:
    await lies_begun(server, target, 200_000)
    target.with_name(NAME + ".part").write_bytes(BODY)
    fetched = await taken(objects, target)
    assert (fetched.sha256, fetched.etag) == (sum_of(BODY), '"one"')
    assert server.asked == []


async def test_a_promise_of_more_bytes_than_come_is_broken(server: Server, objects: Objects, target: Path) -> None:
    server.always = stops(len(BODY), longer=10)
    with pytest.raises(SourceError):
        await objects.fetch(PATH, target)
    assert "" not in left(target)
    server.always = None
    assert (await taken(objects, target)).sha256 == sum_of(BODY)


@pytest.mark.parametrize("count", [50_000, 150_000], ids=["fewer", "more"])
async def test_a_rest_of_another_length_than_promised_is_asked_for_again(
    server: Server, objects: Objects, target: Path, count: int
) -> None:
    await lies_begun(server, target, 200_000)
    headers = {"ETag": '"one"', "Content-Range": "bytes 200000-299999/300000"}
    server.acts[PATH] = [sends(206, headers, (BODY[200_000:] + BODY)[:count])]
    came: list[int] = []
    fetched = await taken(objects, target, on_bytes=came.append)
    assert (fetched.sha256, fetched.size) == (sum_of(BODY), len(BODY))
    assert sum(came) == len(BODY)


async def test_a_part_that_nobody_asked_for_is_refused(server: Server, objects: Objects, target: Path) -> None:
    server.always = sends(206, {"Content-Range": "bytes 0-9/300000"}, BODY[:10])
    with pytest.raises(SourceError, match="HTTP 206"):
        await objects.fetch(PATH, target)


async def test_a_server_that_falls_silent_is_left_and_asked_for_the_rest(
    server: Server, impatient: Objects, target: Path
) -> None:
    server.acts[PATH] = [stops(100_000, until=asyncio.Event())]
    fetched = await taken(impatient, target)
    assert fetched.sha256 == sum_of(BODY)
    assert server.header("Range") == [None, "bytes=100000-"]


async def test_a_server_that_stays_silent_is_given_up_in_words(
    server: Server, impatient: Objects, target: Path
) -> None:
    server.always = stops(0, until=asyncio.Event())
    with pytest.raises(SourceError, match=rf"no byte of {server.address}/{PATH} came for 0.3 s"):
        await impatient.fetch(PATH, target)
    with pytest.raises(SourceError, match=rf"no byte of {server.address}/{PATH} came for 0.3 s"):
        await impatient.text(PATH)


async def test_a_download_may_take_longer_than_a_silence_may(server: Server, target: Path) -> None:
    async def slowly(request: web.Request, stored: Stored) -> web.StreamResponse:
        begun = web.StreamResponse(headers={"Content-Length": "10"})
        await begun.prepare(request)
        for number in range(10):
            await begun.write(BODY[number : number + 1])
            await asyncio.sleep(0.2)
        return begun

    server.acts[PATH] = [slowly]
    async with Objects(server.address, stall_s=1.5, attempts=1) as objects:
        await taken(objects, target)
    assert body_of(target) == BODY[:10]


async def test_a_cancelled_download_goes_on_later(
    server: Server, objects: Objects, target: Path, wait_for: Callable[..., Awaitable[None]]
) -> None:
    server.acts[PATH] = [stops(100_000, until=asyncio.Event())]
    came: list[int] = []
    begun = asyncio.create_task(objects.fetch(PATH, target, on_bytes=came.append))
    await wait_for(lambda: sum(came) == 100_000)
    begun.cancel()
    with pytest.raises(asyncio.CancelledError):
        await begun
    assert left(target) == [".json", ".part"]
    fetched = await taken(objects, target)
    assert fetched.sha256 == sum_of(BODY)
    assert server.header("Range") == [None, "bytes=100000-"]


async def test_a_killed_process_leaves_what_the_next_one_goes_on_with(
    server: Server, objects: Objects, target: Path, wait_for: Callable[..., Awaitable[None]]
) -> None:
    server.acts[PATH] = [stops(100_000, until=asyncio.Event())]
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROCESS, server.address, PATH, str(target))
    part = target.with_name(NAME + ".part")
    await wait_for(lambda: part.exists() and part.stat().st_size == 100_000)
    process.send_signal(signal.SIGKILL)
    await process.wait()
    fetched = await taken(objects, target)
    assert (fetched.sha256, fetched.etag) == (sum_of(BODY), '"one"')
    assert server.header("Range") == [None, "bytes=100000-"]


async def test_of_two_processes_one_downloads_and_the_other_waits(
    server: Server, objects: Objects, target: Path, wait_for: Callable[..., Awaitable[None]]
) -> None:
    go_on = asyncio.Event()
    server.acts[PATH] = [stops(100_000, until=go_on)]
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROCESS, server.address, PATH, str(target))
    part = target.with_name(NAME + ".part")
    await wait_for(lambda: part.exists() and part.stat().st_size == 100_000)
    looks = 0

    async def look(seconds: float) -> None:
        nonlocal looks
        looks += 1
        await asyncio.sleep(0.02)

    async with Objects(server.address, sleep=look) as waiting:
        second = asyncio.create_task(waiting.fetch(PATH, target))
        await wait_for(lambda: looks > 2)
        go_on.set()
        fetched = await second
    assert fetched is not None
    assert (fetched.sha256, fetched.etag) == (sum_of(BODY), '"one"')
    assert await process.wait() == 0
    assert len(server.asked) == 1


async def test_many_who_want_one_file_cause_one_download(server: Server, objects: Objects, target: Path) -> None:
    fetched = await asyncio.gather(*(objects.fetch(PATH, target) for _ in range(8)))
    assert len(set(fetched)) == 1
    assert len(server.asked) == 1
    assert left(target) == ["", ".json"]


async def test_the_folder_may_be_swept_away_between_two_downloads(
    server: Server, objects: Objects, target: Path
) -> None:
    for _ in range(2):
        assert await objects.fetch(PATH, target) is not None
        discard(target)
        target.parent.rmdir()


# Refused


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_a_server_in_trouble_is_asked_again(
    server: Server, objects: Objects, naps: Naps, target: Path, status: int
) -> None:
    server.acts[PATH] = [says(status)]
    assert await objects.fetch(PATH, target) is not None
    assert naps.slept == [0.5]


async def test_when_the_server_says_when_it_is_asked_then(
    server: Server, objects: Objects, naps: Naps, target: Path
) -> None:
    server.acts[PATH] = [says(503, Retry_After="7")]
    assert await objects.fetch(PATH, target) is not None
    assert naps.slept == [7.0]


async def test_when_the_server_says_when_all_of_us_wait(
    server: Server, tmp_path: Path, wait_for: Callable[..., Awaitable[None]]
) -> None:
    server.stored["sum"] = Stored(b"sum")
    server.acts[PATH] = [says(429, Retry_After="7")]
    asleep, awake = asyncio.Event(), asyncio.Event()

    async def sleep(seconds: float) -> None:
        asleep.set()
        await awake.wait()

    async with Objects(server.address, sleep=sleep) as objects, asyncio.TaskGroup() as group:
        group.create_task(objects.fetch(PATH, tmp_path / "file"))
        await asleep.wait()
        other = group.create_task(objects.text("sum"))
        async with Objects(server.address) as stranger:
            for _ in range(5):
                assert await stranger.text("sum") == "sum"  # in this time the other would have been answered too
        assert not other.done()
        assert len(server.asked) == 6
        awake.set()
        assert await other == "sum"


async def test_a_wait_beyond_patience_is_for_the_caller(
    server: Server, objects: Objects, naps: Naps, target: Path
) -> None:
    server.acts[PATH] = [says(503, Retry_After="3600")]
    with pytest.raises(SourceError) as refused:
        await objects.fetch(PATH, target)
    assert (refused.value.retry_after_s, refused.value.status) == (3600.0, 503)
    assert naps.slept == []


async def test_a_server_that_stays_in_trouble_is_given_up(server: Server, objects: Objects, target: Path) -> None:
    server.always = says(503, "<Error><Code>SlowDown</Code><Message>Please reduce your rate</Message></Error>")
    with pytest.raises(SourceError, match=r"HTTP 503: Please reduce your rate \(SlowDown\)") as refused:
        await objects.fetch(PATH, target)
    assert refused.value.status == 503
    assert len(server.asked) == 3
    assert left(target) == []


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (403, "HTTP 403: access is refused: no"),
        (451, "HTTP 451: not given out at this location"),
        (400, "HTTP 400: no"),
    ],
)
async def test_a_refusal_is_final_and_said_in_words(
    server: Server, objects: Objects, target: Path, status: int, words: str
) -> None:
    server.always = says(status, "no")
    with pytest.raises(SourceError, match=words) as refused:
        await objects.fetch(PATH, target)
    assert (refused.value.status, refused.value.retry_after_s) == (status, None)
    with pytest.raises(SourceError, match=words):
        await objects.text(PATH)
    assert len(server.asked) == 2
    assert left(target) == []


async def test_a_server_that_is_not_there_is_one_clear_sentence(target: Path, naps: Naps) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        before = metric("download_requests_total", status="none")
        async with Objects(f"http://127.0.0.1:{port}", attempts=2, sleep=naps) as objects:
            with pytest.raises(SourceError, match=rf"cannot reach http://127.0.0.1:{port}/{PATH}: Connection refused"):
                await objects.fetch(PATH, target)
    assert metric("download_requests_total", status="none") - before == 2


async def test_redirects_are_followed_and_what_was_asked_for_goes_with_them(
    server: Server, objects: Objects, target: Path
) -> None:
    await lies_begun(server, target, 200_000)
    server.stored["other/place.zip"] = Stored(BODY)
    server.acts[PATH] = [says(302, Location="/moved?to=1")]
    server.acts["moved"] = [says(307, Location=f"{server.address}/other/place.zip")]
    fetched = await taken(objects, target)
    assert fetched.sha256 == sum_of(BODY)
    assert server.header("Range") == ["bytes=200000-"] * 3


async def test_a_redirect_in_circles_ends(server: Server, objects: Objects, target: Path) -> None:
    server.always = says(301, Location="/" + PATH)
    with pytest.raises(SourceError, match="moved on more than 3 times"):
        await objects.fetch(PATH, target)
    assert len(server.asked) == 4


@pytest.mark.parametrize(
    ("url", "location", "to"),
    [
        ("http://a/b/c", "d", "http://a/b/d"),
        ("http://a/b/c", "/d?e=f", "http://a/d?e=f"),
        ("http://a/b", "https://c/d", "https://c/d"),
        ("https://a/b", "//c/d", "https://c/d"),
    ],
)
def test_a_redirect_leads_where_it_says(url: str, location: str, to: str) -> None:
    assert onward(url, location) == to


@pytest.mark.parametrize(
    "location", ["", "http://a/b", "file:///etc/passwd", "https://:80/b", "https://[", "ftp://a/b"]
)
def test_a_redirect_out_of_protection_or_to_nowhere_is_not_followed(location: str) -> None:
    with pytest.raises(SourceError, match="not followed"):
        onward("https://a/b", location)


async def test_a_full_disk_is_said_in_words(objects: Objects, target: Path) -> None:
    target.parent.mkdir(parents=True)
    target.with_name(NAME + ".part").symlink_to("/dev/full")
    with pytest.raises(ConfigError, match=rf"LAKE_STATE: .*{NAME}.part cannot be written: No space left on device"):
        await objects.fetch(PATH, target)


async def test_a_folder_that_cannot_be_made_is_said_in_words(objects: Objects, tmp_path: Path) -> None:
    (tmp_path / "landing").write_text("a file")
    with pytest.raises(ConfigError, match=r"LAKE_STATE: .* cannot be written: "):
        await objects.fetch(PATH, tmp_path / "landing" / PATH)


# Many at once


async def test_four_downloads_at_a_time_and_small_things_go_past_them(
    server: Server, target: Path, wait_for: Callable[..., Awaitable[None]]
) -> None:
    paths = [f"file-{number}" for number in range(9)]
    go_on = asyncio.Event()
    for path in paths:
        server.stored[path] = Stored(BODY)
        server.acts[path] = [stops(1000, until=go_on)]
    server.stored["sum"] = Stored(b"sum")
    async with Objects(server.address) as objects:
        downloads = [asyncio.create_task(objects.fetch(path, target.with_name(path))) for path in paths]
        await wait_for(lambda: server.under_way == 4)
        assert await objects.text("sum") == "sum"
        assert server.most_under_way == 5
        go_on.set()
        fetched = await asyncio.gather(*downloads)
    assert {each.sha256 for each in fetched if each} == {sum_of(BODY)}
    assert server.most_under_way == 5


async def test_small_things_have_a_limit_too(server: Server, wait_for: Callable[..., Awaitable[None]]) -> None:
    go_on = asyncio.Event()
    server.stored["sum"] = Stored(b"sum")
    server.always = stops(0, until=go_on)
    async with Objects(server.address, small_at_once=3) as objects:
        asked = [asyncio.create_task(objects.text("sum")) for _ in range(9)]
        await wait_for(lambda: server.under_way == 3)
        go_on.set()
        assert await asyncio.gather(*asked) == ["sum"] * 9
    assert server.most_under_way == 3


# Small things


async def test_a_small_thing_is_its_text_or_none(server: Server, objects: Objects) -> None:
    server.stored["a.CHECKSUM"] = Stored("ä  b\n".encode())
    assert await objects.text("a.CHECKSUM") == "ä  b\n"
    assert await objects.text("b.CHECKSUM") is None


async def test_a_small_thing_that_breaks_is_asked_for_again(server: Server, objects: Objects) -> None:
    server.stored["sum"] = Stored(b"sum")
    server.acts["sum"] = [stops(1), says(503), stops(2)]
    with pytest.raises(SourceError, match="broke"):
        await objects.text("sum")
    assert await objects.text("sum") == "sum"


@pytest.mark.parametrize(("body", "words"), [(b"\xff\xfe", "is no text"), (bytes(70_000), "is longer than the 65536")])
async def test_a_small_thing_that_is_no_small_text_is_refused(
    server: Server, objects: Objects, body: bytes, words: str
) -> None:
    server.stored["sum"] = Stored(body)
    with pytest.raises(SourceError, match=words):
        await objects.text("sum")


SUM = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "text",
    [
        f"{SUM}  {NAME}",
        f"{SUM}  {NAME}\n",
        f"{SUM}  {NAME}\r\n",
        f"{SUM.upper()}  {NAME}\n",
        f"{SUM} *{NAME}\n",
        f"{'f' * 64}  other.zip\n{SUM}  {NAME}\n",
    ],
)
def test_the_sum_of_a_file_is_found(text: str) -> None:
    assert checksum_in(text, NAME) == SUM


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        ("\n", "it is empty"),
        ("<html>\n  <body>", "it begins with '<html> <body>'"),
        (f"{SUM}  other.zip", "it is about 'other.zip'"),
        (f"{SUM[:-1]}  {NAME}", "it begins with"),
        (f"{SUM}0  {NAME}", "it begins with"),
        (SUM, "it begins with"),
        (f"{SUM}  x{NAME}", "it is about"),
    ],
)
def test_a_checksum_that_is_none_is_said_in_words(text: str, words: str) -> None:
    with pytest.raises(SourceError, match=f"the .CHECKSUM of {NAME} has no SHA-256 of it: {words}"):
        checksum_in(text, NAME)


def test_the_sums_of_real_files_are_found(data: Path) -> None:
    found = sorted((data / "dumps").glob("*.CHECKSUM"))
    assert found
    for path in found:
        assert checksum_in(path.read_text(), path.name.removesuffix(".CHECKSUM")) == path.read_text()[:64]


# Listings


@dataclass
class Bucket:
    """An S3 listing, version 1; there are servers that look for the marker among the keys, not among the entries."""

    keys: list[str]
    page: int = 1000
    repeats_folders: bool = False
    asked: list[dict[str, str]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        question = dict(request.query)
        self.asked.append(question)
        assert len(self.asked) < 50, "an endless loop"
        prefix, delimiter = question.get("prefix", ""), question.get("delimiter", "")
        most = min(self.page, int(question.get("max-keys", 1000)))
        marker = question.get("marker", "")
        keys = [key for key in self.keys if key.startswith(prefix) and (key > marker or not self.repeats_folders)]
        entries = sorted({self.entry(key, prefix, delimiter) for key in keys})
        entries = entries if self.repeats_folders else [entry for entry in entries if entry > marker]
        return web.Response(
            body=self.xml(entries[:most], is_cut=len(entries) > most, delimiter=delimiter).encode(),
            content_type="application/xml",
        )

    @staticmethod
    def entry(key: str, prefix: str, delimiter: str) -> str:
        folder, found, _ = key.removeprefix(prefix).partition(delimiter) if delimiter else (key, "", "")
        return prefix + folder + delimiter if found else key

    @staticmethod
    def xml(entries: list[str], *, is_cut: bool, delimiter: str = "") -> str:
        folders = [entry for entry in entries if delimiter and entry.endswith(delimiter)]
        keys = "".join(
            f"<Contents><Key>{escape(entry)}</Key><Size>1</Size></Contents>"
            for entry in entries
            if entry not in folders
        )
        prefixes = "".join(f"<CommonPrefixes><Prefix>{escape(entry)}</Prefix></CommonPrefixes>" for entry in folders)
        following = f"<NextMarker>{escape(entries[-1])}</NextMarker>" if is_cut and delimiter else ""
        return (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="{NAMESPACE}"><Name>data.binance.vision'
            f"</Name><Prefix/><Marker/>{following}<MaxKeys>1000</MaxKeys><IsTruncated>{str(is_cut).lower()}"
            f"</IsTruncated>{keys}{prefixes}</ListBucketResult>"
        )


async def listed(bucket: Bucket, prefix: str, **more: str) -> list[str]:
    async with running(bucket.answer) as address, Objects(address) as objects:
        return [key async for key in objects.keys(f"{address}/data.binance.vision", prefix, **more)]


def days(count: int) -> list[str]:
    names = [
        f"{FOLDER}BTCUSDT-aggTrades-{2017 + day // 336}-{day // 28 % 12 + 1:02}-{day % 28 + 1:02}.zip"
        for day in range(count)
    ]
    return sorted(name + ending for name in names for ending in ("", ".CHECKSUM"))


async def test_a_listing_is_read_page_by_page_to_its_end() -> None:
    bucket = Bucket(days(1250))
    assert await listed(bucket, FOLDER) == days(1250)
    assert [question.get("marker") for question in bucket.asked] == [None, days(1250)[999], days(1250)[1999]]
    assert bucket.asked[0] == {"prefix": FOLDER, "delimiter": "/", "max-keys": "1000"}


async def test_without_a_delimiter_the_last_name_is_the_marker() -> None:
    bucket = Bucket([*days(1250), "data/spot/deeper/down.zip"])
    assert await listed(bucket, "data/", delimiter="") == sorted(bucket.keys)
    assert all("delimiter" not in question for question in bucket.asked)


async def test_pages_of_which_the_reader_wants_nothing_move_on_all_the_same() -> None:
    sums = [f"{FOLDER}{number:04}.CHECKSUM" for number in range(2500)]
    wanted = f"{FOLDER}9999.zip"
    assert [key for key in await listed(Bucket([*sums, wanted]), FOLDER) if key.endswith(".zip")] == [wanted]


async def test_folders_stand_among_the_names_and_none_comes_twice() -> None:
    keys = ["data/a.txt", "data/BTC/1.zip", "data/BTC/2.zip", "data/ETH/1.zip", "data/币安/1.zip", "data/a&b <c>/1.zip"]
    folders = ["data/BTC/", "data/ETH/", "data/a&b <c>/", "data/a.txt", "data/币安/"]
    for page in (1, 2, 1000):
        assert await listed(Bucket(keys, page=page), "data/") == folders
    assert await listed(Bucket(keys, page=2, repeats_folders=True), "data/") == folders


async def test_a_prefix_that_is_not_ascii_is_asked_for_as_it_is() -> None:
    bucket = Bucket(["data/币安 +&/1.zip"])
    assert await listed(bucket, "data/币安 +&/") == ["data/币安 +&/1.zip"]


async def test_nothing_listed_is_nothing() -> None:
    assert await listed(Bucket([]), "data/") == []


async def read_listing(server: Server, *answers: Act) -> list[str]:
    server.acts["list"] = list(answers)
    async with Objects(server.address, attempts=2, sleep=Naps()) as objects:
        return [key async for key in objects.keys(f"{server.address}/list", "data/")]


async def test_a_page_that_breaks_is_asked_for_again(server: Server) -> None:
    page = Bucket.xml(["data/a"], is_cut=False).encode()
    cut = sends(200, {}, page)
    assert await read_listing(server, says(503), cut) == ["data/a"]


@pytest.mark.parametrize("entries", [["data/a"], []], ids=["the same again", "nothing"])
async def test_a_listing_that_does_not_move_on_ends(server: Server, entries: list[str]) -> None:
    same = says(200, Bucket.xml(["data/a"], is_cut=True))
    last = says(200, Bucket.xml(entries, is_cut=True))
    with pytest.raises(SourceError, match="does not get beyond 'data/a'"):
        await read_listing(server, same, last, last)
    assert len(server.asked) == 2


BOMB = """<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]>
<ListBucketResult><Contents><Key>&c;</Key></Contents></ListBucketResult>"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "a document type is not read"),
        ("<html><body>sign in</body></html>", "answers with html"),
        ("<ListBucketResult><Contents>", "is no listing"),
        ('<?xml version="1.0" encoding="none-such"?><ListBucketResult/>', "is no listing"),
        ("", "is no listing"),
        ("<a>" + " " * (5 << 20) + "</a>", "is longer than"),
    ],
    ids=["entities", "html", "cut", "encoding", "empty", "endless"],
)
async def test_what_is_no_listing_is_refused(server: Server, text: str, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        await read_listing(server, sends(200, {}, text.encode()))


async def test_entities_are_refused_in_every_encoding(server: Server) -> None:
    bomb = BOMB.replace('version="1.0"', 'version="1.0" encoding="UTF-16"').encode("utf-16")
    with pytest.raises(SourceError, match="a document type is not read"):
        await read_listing(server, sends(200, {}, bomb))


async def test_a_listing_that_is_not_there_is_an_error(server: Server) -> None:
    with pytest.raises(SourceError, match="is no listing") as refused:
        await read_listing(server)
    assert refused.value.status == 404


# Against a server of somebody else


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    server = ThreadedMotoServer("127.0.0.1", port)
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of botocore, which only fills the bucket
async def test_an_s3_server_is_listed_and_read_alike(store: str, tmp_path: Path) -> None:
    import boto3

    def fill() -> None:
        client = boto3.client("s3", endpoint_url=store, region_name="us-east-1")
        client.create_bucket(Bucket="files", ACL="public-read")
        for number in range(12):
            client.put_object(Bucket="files", Key=f"data/币 {number:02}/a.zip", Body=BODY, ACL="public-read")

    await asyncio.to_thread(fill)
    async with Objects(f"{store}/files") as objects:
        folders = [f"data/币 {number:02}/" for number in range(12)]
        assert [key async for key in objects.keys(f"{store}/files", "data/")] == folders
        fetched = await objects.fetch("data/币 03/a.zip", tmp_path / "a.zip")
        assert await objects.fetch("data/币 99/a.zip", tmp_path / "b.zip") is None
    assert fetched is not None
    assert (fetched.sha256, fetched.etag) == (sum_of(BODY), f'"{hashlib.md5(BODY).hexdigest()}"')
