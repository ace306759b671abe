"""A bucket of flat files: listed and fetched from a real S3 server, and every failure of one that does as told."""

import asyncio
import hashlib
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web

from crypto_lake.config import ConfigError
from crypto_lake.connections import SourceError
from crypto_lake.connections.part import discard
from crypto_lake.connections.s3 import Bucket, Fetched, Listed, NotEntitled
from crypto_lake.monitoring.metrics import REGISTRY
from tests.s3 import KEY_ID, SECRET, FakeS3, Flatfiles, Held, refuses, running, says, stops

MONTH = "us_stocks_sip/day_aggs_v1/2026/05/"
PATH = MONTH + "2026-05-22.csv.gz"
NAME = "2026-05-22.csv.gz"
BODY = bytes(number * 31 % 251 for number in range(300_000))
OTHER = BODY[::-1]
PUBLISHED = datetime(2026, 5, 26, 15, 2, 11, tzinfo=UTC)
PROCESS = """
import asyncio, sys
from pathlib import Path
from crypto_lake.connections.s3 import Bucket

async def main():
    async with Bucket(sys.argv[1], "key", "secret") as bucket:
        await bucket.fetch(sys.argv[2], Path(sys.argv[3]))

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


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
async def server(fake_s3: FakeS3) -> FakeS3:
    fake_s3.put(PATH, BODY)
    return fake_s3


@pytest.fixture
async def bucket(server: FakeS3, naps: Naps) -> AsyncIterator[Bucket]:
    async with server.bucket(attempts=3, sleep=naps, draw=lambda: 0.5) as it:
        yield it


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "landing" / PATH


async def taken(bucket: Bucket, target: Path, **more: Callable[[int], None]) -> Fetched:
    """The file, which is there."""
    fetched = await bucket.fetch(PATH, target, **more)
    assert fetched is not None
    return fetched


async def lies_begun(server: FakeS3, target: Path, count: int) -> None:
    """An earlier run has left so many bytes."""
    server.acts[PATH] = [stops(count), refuses(403, "AccessDenied")]
    async with server.bucket(sleep=Naps()) as earlier:
        with pytest.raises(NotEntitled):
            await earlier.fetch(PATH, target)
    assert target.with_name(NAME + ".part").read_bytes() == BODY[:count]
    server.asked.clear()


def body_of(path: Path) -> bytes:
    return path.read_bytes()


def sum_of(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def md5_of(body: bytes) -> str:
    return hashlib.md5(body).hexdigest()


def left(target: Path) -> list[str]:
    return sorted(path.name.removeprefix(target.name) for path in target.parent.iterdir())


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"crypto_lake_{name}", labels) or 0.0


# A real server


def real(flatfiles: Flatfiles) -> Bucket:
    return Bucket(flatfiles.address, KEY_ID, SECRET)


async def test_a_month_is_listed_in_order_with_sizes_and_etags_without_quotes(flatfiles: Flatfiles) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    for day in (22, 1, 5):
        flatfiles.put(f"{MONTH}2026-05-{day:02}.csv.gz", BODY[:day])
    flatfiles.put("us_stocks_sip/day_aggs_v1/2026/06/2026-06-01.csv.gz", b"")
    flatfiles.put("us_stocks_sip/day_aggs_v1_other/2026/05/2026-05-01.csv.gz", b"")
    async with real(flatfiles) as bucket:
        listed = await bucket.listed(MONTH)
    assert [(each.path, each.size, each.etag) for each in listed] == [
        (f"{MONTH}2026-05-{day:02}.csv.gz", day, md5_of(BODY[:day])) for day in (1, 5, 22)
    ]
    assert all(each.last_modified and before <= each.last_modified <= datetime.now(UTC) for each in listed)


async def test_a_real_file_arrives_whole_and_its_etag_is_the_one_that_is_listed(
    flatfiles: Flatfiles,
    target: Path,
) -> None:
    etag = flatfiles.put(PATH, BODY)
    async with real(flatfiles) as bucket:
        (listed,) = await bucket.listed(MONTH)
        fetched = await taken(bucket, target)
        assert await bucket.fetch(MONTH + "2026-05-23.csv.gz", target.with_name("none")) is None
    assert fetched == Fetched(target, sum_of(BODY), len(BODY), etag, listed.last_modified)
    assert listed == Listed(PATH, len(BODY), etag, listed.last_modified)
    assert body_of(target) == BODY


async def test_a_real_server_goes_on_where_a_download_broke_off_unless_the_file_is_another(
    flatfiles: Flatfiles,
    server: FakeS3,
    target: Path,
) -> None:
    flatfiles.put(PATH, BODY)
    async with real(flatfiles) as bucket:
        (listed,) = await bucket.listed(MONTH)
        assert listed.last_modified is not None
        server.files[PATH] = Held(BODY, f"{listed.last_modified:%a, %d %b %Y %H:%M:%S} GMT")
        came: list[int] = []
        await lies_begun(server, target, 100_000)
        assert (await taken(bucket, target, on_bytes=came.append)).sha256 == sum_of(BODY)
        assert (came[0], min(came) > 0) == (100_000, True)
        discard(target)
        await lies_begun(server, target, 100_000)
        flatfiles.put(PATH, OTHER)
        assert (await taken(bucket, target)).sha256 == sum_of(OTHER)


async def test_the_address_may_name_the_bucket(flatfiles: Flatfiles) -> None:
    other = Flatfiles(flatfiles.address, "other")
    other.make()
    other.put(PATH, BODY)
    async with Bucket(f"{flatfiles.address}/other/", KEY_ID, SECRET) as bucket:
        assert len(await bucket.listed(MONTH)) == 1


async def test_a_bucket_that_is_not_there_is_said_with_the_setting(flatfiles: Flatfiles, target: Path) -> None:
    async with Bucket(f"{flatfiles.address}/nowhere", KEY_ID, SECRET) as bucket:
        with pytest.raises(ConfigError, match=r"LAKE_MASSIVE_S3=http://.*/nowhere: there is no bucket 'nowhere'"):
            await bucket.listed(MONTH)
        with pytest.raises(ConfigError, match="there is no bucket 'nowhere'"):
            await bucket.fetch(PATH, target)


# Listings


async def test_all_pages_of_a_listing_are_read(server: FakeS3, bucket: Bucket) -> None:
    server.page = 7
    for day in range(1, 31):
        server.put(f"{MONTH}2026-05-{day:02}.csv.gz", BODY[:day])
    assert [each.path for each in await bucket.listed(MONTH)] == sorted(server.files)
    assert len(server.asked) == 5


async def test_a_month_without_files_is_empty(server: FakeS3, bucket: Bucket) -> None:
    assert await bucket.listed("us_stocks_sip/day_aggs_v1/2027/01/") == []


async def test_a_page_that_lists_nothing_anywhere_is_no_bucket(server: FakeS3, bucket: Bucket) -> None:
    server.always = says(200, "<html><body>Welcome</body></html>")
    with pytest.raises(ConfigError, match=r"LAKE_MASSIVE_S3=.*: nothing at all is listed in the bucket 'flatfiles'"):
        await bucket.listed(MONTH)


async def test_a_page_that_breaks_is_asked_for_again(server: FakeS3, bucket: Bucket) -> None:
    server.acts["?"] = [refuses(503, "SlowDown"), refuses(500, "InternalError")]
    assert len(await bucket.listed(MONTH)) == 1


async def test_a_listing_that_is_refused_is_not_asked_for_again(server: FakeS3, bucket: Bucket) -> None:
    server.acts["?"] = [refuses(403, "AccessDenied")]
    with pytest.raises(NotEntitled, match=f"the listing of .*/{MONTH} is not allowed with these keys .*AccessDenied"):
        await bucket.listed(MONTH)
    assert len(server.asked) == 1


async def test_what_is_no_listing_is_an_error(server: FakeS3, bucket: Bucket) -> None:
    server.acts["?"] = [says(200, "")]
    with pytest.raises(SourceError, match=r"the listing of .* cannot be read"):
        await bucket.listed(MONTH)


# Whole files


async def test_a_file_is_asked_for_with_a_signature_of_version_4(server: FakeS3, bucket: Bucket, target: Path) -> None:
    await bucket.fetch(PATH, target)
    (signed,) = server.header("Authorization")
    assert signed is not None
    assert signed.startswith(f"AWS4-HMAC-SHA256 Credential={KEY_ID}/")
    assert "/us-east-1/s3/aws4_request" in signed


async def test_what_the_environment_says_of_the_tables_store_is_not_for_this_one(
    server: FakeS3, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "ACCESS_KEY_ID": "another",
        "SECRET_ACCESS_KEY": "another",
        "SESSION_TOKEN": "token",
        "ENDPOINT_URL": "http://127.0.0.1:1",
        "SKIP_SIGNATURE": "true",
        "S3_EXPRESS": "true",
        "REQUEST_PAYER": "true",
        "VIRTUAL_HOSTED_STYLE_REQUEST": "true",
        "REGION": "eu-west-1",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    async with server.bucket() as bucket:
        assert (await taken(bucket, target)).sha256 == sum_of(BODY)
    (request,) = server.asked
    assert request.path == f"/flatfiles/{PATH}"
    assert f"Credential={KEY_ID}/" in request.headers["Authorization"]
    assert "/us-east-1/" in request.headers["Authorization"]
    assert not {"x-amz-security-token", "x-amz-request-payer"} & {name.lower() for name in request.headers}


async def test_an_empty_file_is_a_file(server: FakeS3, bucket: Bucket, target: Path) -> None:
    server.put(PATH, b"")
    fetched = await taken(bucket, target)
    assert (fetched.size, fetched.sha256, body_of(target)) == (0, sum_of(b""), b"")


async def test_a_file_that_is_not_there_is_none_and_leaves_nothing(bucket: Bucket, target: Path) -> None:
    assert await bucket.fetch(MONTH + "none.csv.gz", target) is None
    assert left(target) == []


async def test_a_finished_file_is_known_and_nobody_is_asked(server: FakeS3, bucket: Bucket, target: Path) -> None:
    first = await bucket.fetch(PATH, target)
    heard: list[int] = []
    async with Bucket("http://127.0.0.1:1", KEY_ID, SECRET) as later:  # nobody is there
        assert await later.fetch(PATH, target, on_bytes=heard.append, on_size=heard.append) == first
    assert heard == [len(BODY), len(BODY)]


async def test_the_listener_hears_every_byte_and_the_size(bucket: Bucket, target: Path) -> None:
    came: list[int] = []
    sizes: set[int] = set()
    await bucket.fetch(PATH, target, on_bytes=came.append, on_size=sizes.add)
    assert sum(came) == len(BODY)
    assert sizes == {len(BODY)}


async def test_requests_and_bytes_are_counted(server: FakeS3, bucket: Bucket, target: Path) -> None:
    names = ["200", "206", "503", "none"]
    before = [metric("download_bytes_total"), *(metric("download_requests_total", status=name) for name in names)]
    server.acts[PATH] = [refuses(503, "SlowDown"), stops(100_000)]
    await bucket.fetch(PATH, target)
    after = [metric("download_bytes_total"), *(metric("download_requests_total", status=name) for name in names)]
    assert [late - early for late, early in zip(after, before, strict=True)] == [len(BODY), 1, 1, 1, 0]


async def test_two_files_at_a_time(server: FakeS3, target: Path, wait_for: Callable[..., Awaitable[None]]) -> None:
    go_on = asyncio.Event()
    for number in range(5):
        server.put(f"{number}.csv.gz", BODY)
        server.acts[f"{number}.csv.gz"] = [stops(1000, until=go_on)]
    async with server.bucket() as bucket:
        downloads = [
            asyncio.create_task(bucket.fetch(f"{number}.csv.gz", target.with_name(str(number)))) for number in range(5)
        ]
        await wait_for(lambda: server.under_way == 2)
        go_on.set()
        fetched = await asyncio.gather(*downloads)
    assert {each.sha256 for each in fetched if each} == {sum_of(BODY)}
    assert server.most_under_way == 2


# Broken off, and gone on with


async def test_a_download_that_breaks_goes_on_where_it_broke(server: FakeS3, bucket: Bucket, target: Path) -> None:
    server.acts[PATH] = [stops(100_000)]
    came: list[int] = []
    fetched = await taken(bucket, target, on_bytes=came.append)
    assert (fetched.sha256, body_of(target)) == (sum_of(BODY), BODY)
    assert server.header("Range") == [None, "bytes=100000-"]
    assert server.header("If-Match") == [None, f'"{md5_of(BODY)}"']
    assert sum(came) == len(BODY)
    assert min(came) > 0


async def test_whoever_gets_on_may_break_as_often_as_it_takes(server: FakeS3, bucket: Bucket, target: Path) -> None:
    server.always = stops(10_000)
    assert (await taken(bucket, target)).sha256 == sum_of(BODY)
    assert len(server.asked) == len(BODY) // 10_000


async def test_who_never_gets_on_is_given_up(server: FakeS3, bucket: Bucket, naps: Naps, target: Path) -> None:
    server.always = stops(0)
    with pytest.raises(SourceError, match=r"the connection to .* broke"):
        await bucket.fetch(PATH, target)
    assert len(server.asked) == 3
    assert naps.slept == [0.5, 1.0]
    assert left(target) == []


async def test_a_later_run_goes_on_with_what_an_earlier_one_left(server: FakeS3, bucket: Bucket, target: Path) -> None:
    await lies_begun(server, target, 200_000)
    came: list[int] = []
    fetched = await taken(bucket, target, on_bytes=came.append)
    assert fetched == Fetched(target, sum_of(BODY), len(BODY), md5_of(BODY), PUBLISHED)
    assert server.header("Range") == ["bytes=200000-"]
    assert came[0] == 200_000
    assert sum(came) == len(BODY)
    assert left(target) == ["", ".json"]


async def test_a_file_that_was_replaced_between_two_parts_is_begun_anew(
    server: FakeS3, bucket: Bucket, target: Path
) -> None:
    await lies_begun(server, target, 200_000)
    server.put(PATH, OTHER)
    came: list[int] = []
    fetched = await taken(bucket, target, on_bytes=came.append)
    assert (fetched.sha256, fetched.etag) == (sum_of(OTHER), md5_of(OTHER))
    assert -200_000 in came
    assert sum(came) == len(OTHER)


async def test_a_file_that_shrank_below_what_is_held_is_begun_anew(
    server: FakeS3, bucket: Bucket, target: Path
) -> None:
    await lies_begun(server, target, 200_000)
    server.files[PATH] = Held(b"short", etag=f'"{md5_of(BODY)}"')
    assert (await taken(bucket, target)).sha256 == sum_of(b"short")


RIGHT = {"ETag": f'"{md5_of(BODY)}"', "Last-Modified": "Tue, 26 May 2026 15:02:11 GMT"}


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (206, {**RIGHT, "ETag": '"two"', "Content-Range": "bytes 200000-299999/300000"}),
        (
            206,
            {**RIGHT, "Last-Modified": "Wed, 27 May 2026 01:00:00 GMT", "Content-Range": "bytes 200000-299999/300000"},
        ),
        (206, {**RIGHT, "Content-Range": "bytes 100000-199999/300000"}),
        (206, {**RIGHT, "Content-Range": "bytes 200000-299999/400000"}),
        (206, RIGHT),
        (200, RIGHT),
    ],
    ids=["other ETag", "other date", "other place", "other length", "no place", "all of it"],
)
async def test_a_rest_that_is_not_the_rest_of_ours_is_not_taken(
    server: FakeS3, bucket: Bucket, target: Path, status: int, headers: dict[str, str]
) -> None:
    await lies_begun(server, target, 200_000)

    async def act(request: web.Request, held: Held | None) -> web.StreamResponse:
        return web.Response(status=status, headers=headers, body=OTHER[200_000:])

    server.acts[PATH] = [act]
    assert (await taken(bucket, target)).sha256 == sum_of(BODY)
    assert server.header("Range") == ["bytes=200000-", None]


async def test_a_body_that_stalls_is_left_and_gone_on_with(server: FakeS3, naps: Naps, target: Path) -> None:
    server.acts[PATH] = [stops(100_000, until=asyncio.Event())]
    async with server.bucket(stall_s=0.3, sleep=naps) as impatient:
        assert (await taken(impatient, target)).sha256 == sum_of(BODY)
    assert server.header("Range") == [None, "bytes=100000-"]


async def test_a_server_that_never_answers_is_given_up(server: FakeS3, naps: Naps, target: Path) -> None:
    async def silent(request: web.Request, held: Held | None) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    server.always = silent
    async with server.bucket(stall_s=0.2, attempts=2, sleep=naps) as impatient:
        with pytest.raises(SourceError, match=f"no byte of .*/{PATH} came for 0.2 s"):
            await impatient.fetch(PATH, target)
    assert len(server.asked) == 2


async def test_a_kill_in_the_middle_costs_nothing(
    server: FakeS3, bucket: Bucket, target: Path, wait_for: Callable[..., Awaitable[None]]
) -> None:
    server.acts[PATH] = [stops(150_000, until=asyncio.Event())]
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", PROCESS, server.address, PATH, str(target))
    part = target.with_name(NAME + ".part")
    await wait_for(lambda: part.exists() and part.stat().st_size == 150_000)
    child.send_signal(signal.SIGKILL)
    await child.wait()
    assert (await taken(bucket, target)).sha256 == sum_of(BODY)
    assert server.header("Range")[-1] == "bytes=150000-"


async def test_of_two_who_want_the_same_file_one_downloads(server: FakeS3, bucket: Bucket, target: Path) -> None:
    async with server.bucket(sleep=Naps()) as other:
        fetched = await asyncio.gather(taken(bucket, target), taken(other, target))
    assert [each.sha256 for each in fetched] == [sum_of(BODY)] * 2
    assert len(server.asked) == 1


async def test_a_cancelled_download_hangs_up_lets_go_and_is_gone_on_with(
    server: FakeS3, bucket: Bucket, target: Path, wait_for: Callable[..., Awaitable[None]]
) -> None:
    server.acts[PATH] = [stops(100_000, until=asyncio.Event())]
    before = asyncio.all_tasks()
    download = asyncio.create_task(bucket.fetch(PATH, target))
    part = target.with_name(NAME + ".part")
    await wait_for(lambda: part.exists() and part.stat().st_size == 100_000)
    download.cancel()
    with pytest.raises(asyncio.CancelledError):
        await download
    await wait_for(lambda: server.under_way == 0)
    await wait_for(lambda: asyncio.all_tasks() <= before)
    assert (await taken(bucket, target)).sha256 == sum_of(BODY)
    assert server.header("Range") == [None, "bytes=100000-"]


# Refused


async def test_a_file_that_is_not_in_the_plan_is_said_once(server: FakeS3, bucket: Bucket, target: Path) -> None:
    server.always = refuses(403, "AccessDenied", "Access Denied")
    with pytest.raises(
        NotEntitled, match=rf"/{PATH} is not in your plan \(HTTP 403: Access Denied \(AccessDenied\)\)$"
    ):
        await bucket.fetch(PATH, target)
    assert len(server.asked) == 1
    assert left(target) == []


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "InvalidAccessKeyId", "LAKE_MASSIVE_KEY_ID: .* does not know this key"),
        (401, "Unauthorized", "LAKE_MASSIVE_KEY_ID: .* does not know this key"),
        (400, "AuthorizationHeaderMalformed", "LAKE_MASSIVE_KEY_ID: .* does not know this key"),
        (403, "SignatureDoesNotMatch", "LAKE_MASSIVE_SECRET: it is not the secret of LAKE_MASSIVE_KEY_ID"),
        (403, "RequestTimeTooSkewed", "the clock of this machine is wrong"),
        (404, "NoSuchBucket", "LAKE_MASSIVE_S3=.*: there is no bucket 'flatfiles'"),
    ],
)
async def test_what_is_set_wrong_is_said_with_its_setting(
    server: FakeS3, bucket: Bucket, target: Path, status: int, code: str, words: str
) -> None:
    server.always = refuses(status, code, f"what is {KEY_ID} with {SECRET}?")
    for ask in (bucket.listed(MONTH), bucket.fetch(PATH, target)):
        with pytest.raises(ConfigError, match=words) as refused:
            await ask
        assert "\n" not in str(refused.value)
        assert SECRET not in str(refused.value)
        assert KEY_ID not in str(refused.value)
    assert len(server.asked) == 2


@pytest.mark.parametrize(("status", "code"), [(429, "TooManyRequests"), (500, "InternalError"), (503, "SlowDown")])
async def test_a_server_that_fails_is_asked_again_and_in_the_end_given_up(
    server: FakeS3, bucket: Bucket, target: Path, status: int, code: str
) -> None:
    server.acts[PATH] = [refuses(status, code, Retry_After="1")]
    assert (await taken(bucket, target)).sha256 == sum_of(BODY)
    discard(target)
    server.asked.clear()
    server.always = refuses(status, code, "not now", Retry_After="1")
    with pytest.raises(SourceError, match=rf"answered HTTP {status}: not now \({code}\)") as failed:
        await bucket.fetch(PATH, target)
    assert failed.value.status == status
    assert len(server.asked) == 3


async def test_where_one_is_told_to_slow_down_all_wait(
    server: FakeS3, target: Path, wait_for: Callable[..., Awaitable[None]]
) -> None:
    go_on = asyncio.Event()

    async def sleep(seconds: float) -> None:
        await go_on.wait()

    server.acts[PATH] = [refuses(429, "SlowDown")]
    async with server.bucket(sleep=sleep) as bucket:
        first = asyncio.create_task(bucket.fetch(PATH, target))
        await wait_for(lambda: server.under_way == 0 and len(server.asked) == 1)
        await asyncio.sleep(0.05)
        second = asyncio.create_task(bucket.listed(MONTH))
        await asyncio.sleep(0.2)
        assert len(server.asked) == 1
        go_on.set()
        await asyncio.gather(first, second)
    assert len(server.asked) == 3


async def test_an_answer_that_no_second_try_will_change_is_final(server: FakeS3, bucket: Bucket, target: Path) -> None:
    server.always = refuses(400, "InvalidRequest", "what?")
    with pytest.raises(SourceError, match=r"answered HTTP 400: what\? \(InvalidRequest\)"):
        await bucket.fetch(PATH, target)
    assert len(server.asked) == 1


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


async def test_an_address_where_nobody_listens_is_said_with_the_setting(naps: Naps, target: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    before = metric("download_requests_total", status="none")
    async with Bucket(address, KEY_ID, SECRET, attempts=2, sleep=naps) as bucket:
        with pytest.raises(
            ConfigError, match=f"LAKE_MASSIVE_S3={address}: cannot reach {address}: Connection refused$"
        ):
            await bucket.listed(MONTH)
    assert metric("download_requests_total", status="none") - before == 2


async def test_a_server_that_goes_away_later_is_no_wrong_setting(fake_s3: FakeS3, naps: Naps, target: Path) -> None:
    async with running(FakeS3()) as server:
        server.put(PATH, BODY)
        bucket = server.bucket(attempts=2, sleep=naps)
        await bucket.__aenter__()
        await bucket.listed(MONTH)
    with pytest.raises(SourceError, match="cannot reach"):
        await bucket.fetch(PATH, target)
    await bucket.__aexit__(None, None, None)


# Settings


@pytest.mark.parametrize(
    ("key_id", "secret", "words"),
    [
        ("", "x", "^LAKE_MASSIVE_KEY_ID: not set"),
        ("x", " ", "^LAKE_MASSIVE_SECRET: not set"),
        ("", "", "^LAKE_MASSIVE_KEY_ID and LAKE_MASSIVE_SECRET: not set"),
        ("a\nb", "x", "LAKE_MASSIVE_KEY_ID: it has characters that no key has"),
        ("x", "ä", "LAKE_MASSIVE_SECRET: it has characters that no key has"),
    ],
)
def test_a_key_that_is_missing_or_none_is_said(key_id: str, secret: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Bucket("https://files.massive.com", key_id, secret)


@pytest.mark.parametrize(
    "address", ["", "files.massive.com", "s3://flatfiles", "http://", "https://a:99999", "https://a/b/c", "https://a?b"]
)
def test_an_address_that_is_none_is_said(address: str) -> None:
    with pytest.raises(ConfigError, match=r"LAKE_MASSIVE_S3=.* is no address of a bucket"):
        Bucket(address, KEY_ID, SECRET)


def test_a_password_in_the_address_is_not_repeated() -> None:
    with pytest.raises(ConfigError, match="LAKE_MASSIVE_S3: keys do not stand in the address") as refused:
        Bucket("https://me:hidden@files.massive.com", KEY_ID, SECRET)
    assert "hidden" not in str(refused.value)


async def test_without_the_extra_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ConfigError, match=r"need the extra `stocks`: pip install 'crypto-lake\[stocks\]'"):
        async with Bucket("https://files.massive.com", KEY_ID, SECRET):
            pass
