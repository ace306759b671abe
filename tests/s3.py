"""A bucket of flat files for tests: a real S3 server in a process of its own, and one on loopback that does as told."""

import asyncio
import atexit
import functools
import hashlib
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote
from xml.sax.saxutils import escape

import pytest
from aiohttp import web

from crypto_lake.connections.s3 import Bucket

KEY_ID, SECRET = "ThisIsTheKeyId", "ThisIsTheSecret"
# The server looks at who signs, not at whether the signature is right.
SIGNED = f"AWS4-HMAC-SHA256 Credential={KEY_ID}/20260526/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
# It ends with its standard input, so it does not outlive who started it, however that one ends.
SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer

logging.disable()
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print("http://{}:{}".format(*server.get_host_and_port()), flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Flatfiles:
    """A bucket on that server, filled by plain HTTP; `address` is what LAKE_MASSIVE_S3 says, without the name."""

    address: str
    name: str = "flatfiles"

    @property
    def environment(self) -> dict[str, str]:
        """The settings of a program that shall read it."""
        return {
            "LAKE_MASSIVE_S3": f"{self.address}/{self.name}",
            "LAKE_MASSIVE_KEY_ID": KEY_ID,
            "LAKE_MASSIVE_SECRET": SECRET,
        }

    def make(self) -> None:
        """Makes the bucket."""
        self._request("PUT", "")

    def put(self, path: str, body: bytes | Path) -> str:
        """Puts a file there, in place of the one that was; its ETag without quotes."""
        if isinstance(body, bytes):
            return self._request("PUT", path, body)
        with body.open("rb") as file:
            return self._request("PUT", path, file, length=body.stat().st_size)

    def delete(self, path: str) -> None:
        """Takes a file away; one that is not there is no error."""
        self._request("DELETE", path)

    def _request(self, method: str, path: str, body: object = None, *, length: int | None = None) -> str:
        headers = {"Content-Type": "application/octet-stream", "Authorization": SIGNED}
        if length is not None:
            headers["Content-Length"] = str(length)
        url = f"{self.address}/{self.name}" + (f"/{quote(path)}" if path else "")
        asked = urllib.request.Request(url, method=method, data=body, headers=headers)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked) as answer:
            return (answer.headers["ETag"] or "").strip('"')


@functools.cache
def s3_address() -> str:
    """Where the server is, which is started by the first who asks and ends with this process."""
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(_end, server)
    assert server.stdout is not None
    return server.stdout.readline().strip()


def _end(server: subprocess.Popen[str]) -> None:
    assert server.stdin is not None
    server.stdin.close()
    server.kill()
    server.wait()


def reset() -> None:
    """Empties the server: no buckets, no files."""
    asked = urllib.request.Request(f"{s3_address()}/moto-api/reset", method="POST")
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked).close()


@pytest.fixture
def flatfiles() -> Flatfiles:
    """A fresh bucket `flatfiles` on a real S3 server."""
    reset()
    bucket = Flatfiles(s3_address())
    bucket.make()
    return bucket


# A server that does as told: real enough for a client, and it can fail.

Act = Callable[[web.Request, "Held | None"], Awaitable[web.StreamResponse]]
PUBLISHED = "Tue, 26 May 2026 15:02:11 GMT"


@dataclass
class Held:
    """A file of such a server."""

    body: bytes
    last_modified: str = PUBLISHED
    etag: str = ""

    def __post_init__(self) -> None:
        self.etag = self.etag or f'"{hashlib.md5(self.body).hexdigest()}"'

    @property
    def headers(self) -> dict[str, str]:
        return {"ETag": self.etag, "Last-Modified": self.last_modified}

    def right(self, request: web.Request) -> web.Response:
        """The answer of a server that does as it should."""
        wanted, condition = request.headers.get("Range"), request.headers.get("If-Match")
        if condition not in (None, self.etag):
            return refused(412, "PreconditionFailed")
        if wanted is None:
            return web.Response(body=self.body, headers=self.headers)
        start, total = int(wanted.removeprefix("bytes=").removesuffix("-")), len(self.body)
        if start >= total:
            return refused(416, "InvalidRange")
        place = {"Content-Range": f"bytes {start}-{total - 1}/{total}"}
        return web.Response(status=206, body=self.body[start:], headers={**self.headers, **place})


@dataclass
class FakeS3:
    """Files by path; `acts` say for a path (`?` = the listing) what is done instead, one after the other."""

    address: str = ""
    files: dict[str, Held] = field(default_factory=dict)
    acts: dict[str, list[Act]] = field(default_factory=dict)
    always: Act | None = None
    page: int = 1000
    asked: list[web.Request] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0

    def put(self, path: str, body: bytes) -> None:
        """Puts a file there, in place of the one that was."""
        self.files[path] = Held(body)

    def paths(self) -> list[str]:
        """What was asked for, in its order: paths, and ? with the prefix of a listing."""
        return [f"?{request.query['prefix']}" if "prefix" in request.query else _key(request) for request in self.asked]

    def header(self, name: str) -> list[str | None]:
        """A header of all requests."""
        return [request.headers.get(name) for request in self.asked]

    def bucket(self, **more: object) -> Bucket:
        """The client for it."""
        return Bucket(self.address, KEY_ID, SECRET, **more)  # type: ignore[arg-type]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            path = _key(request)
            acts = self.acts.get(path or "?", [])
            act = acts.pop(0) if acts else self.always
            if act is not None:
                return await act(request, self.files.get(path))
            if not path:
                return self.listing(request)
            held = self.files.get(path)
            return held.right(request) if held else refused(404, "NoSuchKey")
        finally:
            self.under_way -= 1

    def listing(self, request: web.Request) -> web.Response:
        """A page of ListObjectsV2."""
        asked = request.query
        after = max(asked.get("continuation-token", ""), asked.get("start-after", ""))
        paths = sorted(path for path in self.files if path.startswith(asked.get("prefix", "")) and path > after)
        names = paths[: self.page]
        entries = "".join(
            f"<Contents><Key>{escape(name)}</Key><LastModified>2026-05-26T15:02:11.000Z</LastModified>"
            f"<ETag>{escape(self.files[name].etag)}</ETag><Size>{len(self.files[name].body)}</Size></Contents>"
            for name in names
        )
        is_cut = len(names) < len(paths)
        token = f"<NextContinuationToken>{escape(names[-1])}</NextContinuationToken>" if is_cut else ""
        return web.Response(
            text=f"<ListBucketResult><IsTruncated>{str(is_cut).lower()}</IsTruncated>{token}{entries}</ListBucketResult>",
            content_type="application/xml",
        )


def _key(request: web.Request) -> str:
    return unquote(request.path).partition("/flatfiles")[2].removeprefix("/")


def refused(status: int, code: str, message: str = "it is so", **headers: str) -> web.Response:
    """An answer of S3 that is an error."""
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return web.Response(status=status, text=text, headers=named, content_type="application/xml")


def refuses(status: int, code: str, message: str = "it is so", **headers: str) -> Act:
    """Answers with such an error."""

    async def act(request: web.Request, held: Held | None) -> web.StreamResponse:
        return refused(status, code, message, **headers)

    return act


def says(status: int, text: str = "", **headers: str) -> Act:
    """Answers so."""

    async def act(request: web.Request, held: Held | None) -> web.StreamResponse:
        return web.Response(status=status, text=text, headers={n.replace("_", "-"): v for n, v in headers.items()})

    return act


def stops(after: int, *, until: asyncio.Event | None = None) -> Act:
    """Sends so many bytes; then hangs up, or waits and sends the rest."""

    async def act(request: web.Request, held: Held | None) -> web.StreamResponse:
        assert held is not None
        right = held.right(request)
        assert isinstance(right.body, bytes)
        begun = web.StreamResponse(
            status=right.status, headers={**right.headers, "Content-Length": str(len(right.body))}
        )
        await begun.prepare(request)
        await begun.write(right.body[:after])
        if until is not None:
            await until.wait()
            await begun.write(right.body[after:])
        else:
            assert request.transport is not None
            request.transport.close()
        return begun

    return act


@asynccontextmanager
async def running(server: FakeS3) -> AsyncIterator[FakeS3]:
    """The server, while it runs."""
    app = web.Application()
    app.router.add_get("/{path:.*}", server.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()


@pytest.fixture
async def fake_s3() -> AsyncIterator[FakeS3]:
    """A bucket `flatfiles` that can fail."""
    async with running(FakeS3()) as server:
        yield server
