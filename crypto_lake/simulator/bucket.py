"""The bucket over HTTP: official files, their sums and their listing, with what can go wrong on the way."""

import asyncio
import math
import re
from collections.abc import Mapping
from email.utils import formatdate
from typing import Final, NamedTuple

from aiohttp import web

from crypto_lake.models.bucket import CHECKSUM
from crypto_lake.simulator.bucket_listing import Asked, Entry, Wrong, error_xml, page_of, xml_of
from crypto_lake.simulator.dumps import Dumps, Request, Stored
from crypto_lake.simulator.scenario import Fault

ROOT: Final = "data/"
_RANGE: Final = re.compile(r"bytes=(\d*)-(\d*)")
# A slow download comes in so many pieces a second.
_PIECES_PER_S: Final = 20


class Answer(NamedTuple):
    """What a request is given, if nothing happens to it on its way."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


class Bucket:
    """Serves the files of `Dumps` as S3 would."""

    def __init__(self, dumps: Dumps) -> None:
        self._dumps = dumps

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """The listing at the root, the files under their own paths."""
        router.add_get("/", self._listing)
        router.add_get(f"/{ROOT}{{rest:.+}}", self._object)

    # The listing

    async def _listing(self, request: web.Request) -> web.Response:
        try:
            answer = _xml(200, await self._page(Asked.of(request.query)))
        except Wrong as wrong:
            answer = _xml(400, error_xml("InvalidArgument", str(wrong)))
        self._note(request, f"?{request.query_string}", answer.status)
        return web.Response(status=answer.status, headers=answer.headers, body=answer.body)

    async def _page(self, asked: Asked) -> str:
        page = page_of([key for path in self._dumps.paths() for key in (path, path + CHECKSUM)], asked)
        found = [(key, await self._dumps.stored(key)) for key in page.keys]
        entries = [Entry(key, each.modified_ms, each.etag, len(each.body)) for key, each in found if each]
        return xml_of(page, asked, entries)

    # The files

    async def _object(self, request: web.Request) -> web.StreamResponse:
        key, faults = ROOT + request.match_info["rest"], self._dumps.faults
        if turned_away := faults.met("unavailable", key):
            answer = _unavailable(turned_away)
        else:
            answer = await self._answer(request, key)
        self._note(request, key, answer.status)
        is_download = request.method == "GET" and answer.status in (200, 206)
        slow = faults.met("slow_download", key) if is_download else None
        cut = faults.met("cut_download", key) if is_download else None
        if slow or cut:
            return await _trickled(request, answer, slow=slow, cut=cut)
        return web.Response(status=answer.status, headers=answer.headers, body=answer.body)

    async def _answer(self, request: web.Request, key: str) -> Answer:
        stored = await self._dumps.stored(key, noted=request.method == "GET")
        if stored is None:
            return _xml(404, error_xml("NoSuchKey", "The specified key does not exist.", key))
        return answer_of(stored, request.headers)

    def _note(self, request: web.Request, path: str, status: int) -> None:
        self._dumps.served.append(Request(request.method, path, status, request.headers.get("Range")))


def answer_of(stored: Stored, asked: Mapping[str, str]) -> Answer:
    """What S3 answers when there is such an object."""
    headers = {
        "ETag": stored.etag,
        "Last-Modified": formatdate(stored.modified_ms // 1000, usegmt=True),
        "Accept-Ranges": "bytes",
        "Content-Type": "binary/octet-stream",
    }
    if asked.get("If-None-Match") in (stored.etag, "*"):
        return Answer(304, headers)
    if asked.get("If-Match", stored.etag) not in (stored.etag, "*"):
        return _xml(
            412, error_xml("PreconditionFailed", "At least one of the pre-conditions you specified did not hold")
        )
    size = len(stored.body)
    wanted = None
    if asked.get("If-Range", stored.etag) in (stored.etag, headers["Last-Modified"]):
        wanted = span_of(asked.get("Range", ""), size)
    if wanted is None:
        return Answer(200, headers, stored.body)
    if not wanted:
        answer = _xml(416, error_xml("InvalidRange", "The requested range is not satisfiable"))
        return answer._replace(headers={**answer.headers, "Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{size}"
    return Answer(206, headers, stored.body[wanted.start : wanted.stop])


def span_of(text: str, size: int) -> range | None:
    """The bytes that a `Range` header asks for, empty when there are none; None = all, as without such a header."""
    found = _RANGE.fullmatch(text)
    if found is None or found[0] == "bytes=-":
        return None
    first, last = found[1], found[2]
    if not first:
        return range(max(0, size - int(last)), size)
    if last and int(last) < int(first):
        return None
    return range(int(first), min(int(last) + 1 if last else size, size))


async def _trickled(
    request: web.Request, answer: Answer, *, slow: Fault | None, cut: Fault | None
) -> web.StreamResponse:
    """Not as fast as it could be, and perhaps not to its end."""
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    response.content_length = len(answer.body)
    await response.prepare(request)
    body = answer.body[: cut.after_bytes] if cut else answer.body
    rate = (slow.bytes_per_s if slow else None) or len(body)
    piece_bytes = max(1, rate // _PIECES_PER_S) if slow else len(body)
    for start in range(0, len(body), piece_bytes):
        await response.write(body[start : start + piece_bytes])
        if slow:
            await asyncio.sleep(piece_bytes / rate)
    if cut and request.transport is not None:
        request.transport.close()  # what is written goes out, and nothing more
    return response


def _unavailable(fault: Fault) -> Answer:
    assert fault.status is not None
    answer = _xml(fault.status, error_xml("SlowDown", "Please reduce your request rate."))
    if fault.retry_after_s is None:
        return answer
    return answer._replace(headers={**answer.headers, "Retry-After": str(math.ceil(fault.retry_after_s))})


def _xml(status: int, text: str) -> Answer:
    return Answer(status, {"Content-Type": "application/xml"}, text.encode())
