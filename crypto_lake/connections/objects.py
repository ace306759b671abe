"""The one road for files over HTTP: many at once, resumed where they broke, hashed on the way."""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote, urlencode, urljoin, urlsplit

import aiohttp

from crypto_lake.config import ConfigError
from crypto_lake.connections import SourceError
from crypto_lake.connections.listing import page_in
from crypto_lake.connections.part import Fetched, Hear, Part, Said, discard, fill, landed
from crypto_lake.connections.patience import ATTEMPTS, AgainError, Got, Patience
from crypto_lake.connections.rest import unreachable
from crypto_lake.monitoring import metrics

__all__ = ["Fetched", "Objects", "checksum_in", "discard"]

AT_ONCE, SMALL_AT_ONCE = 4, 8
CONNECT_S = 10.0
# A file may take hours as long as bytes come; a small object may not drip.
STALL_S, SMALL_TOTAL_S = 30.0, 60.0
REDIRECTS = 3
# A .CHECKSUM has some 120 bytes; a page of a listing has at most 1000 names of at most 1024 bytes.
TEXT_BYTES, PAGE_BYTES, PAGE_NAMES = 64 << 10, 4 << 20, 1000
MOST_PAGES = 1000
REFUSAL_BYTES = 2048

TRIED_AGAIN = frozenset({408, 429, *range(500, 600)})
ELSEWHERE = frozenset({301, 302, 303, 307, 308})
RANGED = frozenset({206, 416})
IN_WORDS: Final = {403: "access is refused", 451: "not given out at this location"}
CONTENT_RANGE: Final = re.compile(r"bytes (?P<start>\d+)-\d+/(?P<total>\d+|\*)")
S3_ERROR: Final = re.compile(r"<Code>(?P<code>[^<]*)</Code>\s*<Message>(?P<message>[^<]*)</Message>")
SHA256_LINE: Final = re.compile(r"([0-9a-fA-F]{64})[ \t]+\*?(.+)")


def _unheard(number: int) -> None:
    pass


class Objects:
    """Every file below one `address`; used as `async with`, one per process.

    At most `at_once` files are downloaded at a time; small things go past them on roads of their own. Where a server
    says when to come back, all of us wait. Every method raises `SourceError`: at once when the server refuses, after
    `attempts` tries in a row that brought no byte when it fails, and with `retry_after_s` when it wants to be left
    alone for long. `stall_s` is for how long no byte may come.
    """

    def __init__(
        self,
        address: str,
        *,
        at_once: int = AT_ONCE,
        small_at_once: int = SMALL_AT_ONCE,
        attempts: int = ATTEMPTS,
        stall_s: float = STALL_S,
        connect_s: float = CONNECT_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Raises `ConfigError` when `address` is none."""
        self._address = _web_address(address).rstrip("/")
        self._stall_s = stall_s
        self._downloads, self._questions = asyncio.Semaphore(at_once), asyncio.Semaphore(small_at_once)
        self._connections = at_once + small_at_once
        self._long = aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=stall_s)
        self._short = aiohttp.ClientTimeout(total=SMALL_TOTAL_S, sock_connect=connect_s, sock_read=stall_s)
        self._sleep, self._patience = sleep, Patience(attempts, sleep, draw)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            # What is hashed is the file itself, so nothing may be packed on the way, nor unpacked here.
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=self._connections),
            trust_env=True,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()
        self._session = None

    async def text(self, path: str) -> str | None:
        """A small object, as the `.CHECKSUM` beside a file; None when it is not there."""
        url = self._url(path)
        body = await self._small(url, TEXT_BYTES)
        try:
            return None if body is None else body.decode()
        except UnicodeDecodeError:
            raise SourceError(f"{url} is no text") from None

    async def fetch(
        self, path: str, target: Path, *, on_bytes: Hear = _unheard, on_size: Hear = _unheard
    ) -> Fetched | None:
        """The file at `path` as `target`; None when it is not there.

        A `target` that is there is hashed and returned, and nobody is asked: whether it is still the right one is for
        the caller to see, who has its checksum; `discard` removes one that is not, and one that is done with.
        What is begun lies in `target`.part and goes on from there, in this process or in a later one; beside it, and
        later beside the finished file, `target`.json keeps what the server said. Of two who want the same `target`
        one downloads and the other waits.

        `on_bytes` hears how many bytes came to those that we hold (less than 0 when we begin anew: the sum is always
        what we hold), `on_size` how many there will be. Raises `ConfigError` when the disk refuses.
        """
        url = self._url(path)
        async with self._downloads:
            return await landed(
                target,
                lambda part: self._patiently(url, lambda: self._go_on(url, part), part.held),
                on_bytes=on_bytes,
                on_size=on_size,
                sleep=self._sleep,
            )

    async def keys(self, listing: str, prefix: str, *, delimiter: str = "/") -> AsyncIterator[str]:
        """The names that begin with `prefix`, ascending, from the S3 listing (version 1) at the address `listing`.

        With a delimiter what lies deeper is named by its folder only, which ends in the delimiter.
        """
        address, marker = _web_address(listing), ""
        for _ in range(MOST_PAGES):
            asked = {"prefix": prefix, "delimiter": delimiter, "max-keys": str(PAGE_NAMES), "marker": marker}
            url = f"{address}?{urlencode({name: value for name, value in asked.items() if value})}"
            if (body := await self._small(url, PAGE_BYTES)) is None:
                raise SourceError(f"{listing} is no listing (HTTP 404)", status=404)
            page = page_in(body, listing)
            for name in page.names:
                if name > marker:  # a folder that is the marker may be named once more
                    yield name
            if not page.is_cut:
                return
            # Whoever reads may want none of these names; the marker must move on all the same.
            if page.end <= marker:
                raise SourceError(f"the listing of {prefix} at {listing} does not get beyond {marker!r}")
            marker = page.end
        raise SourceError(f"the listing of {prefix} at {listing} has more than {MOST_PAGES} pages")

    def _url(self, path: str) -> str:
        return f"{self._address}/{quote(path)}"

    async def _small(self, url: str, most_bytes: int) -> bytes | None:
        async with self._questions:
            return await self._patiently(url, lambda: self._read(url, most_bytes))

    async def _read(self, url: str, most_bytes: int) -> bytes | None:
        async with self._ask(url, self._short) as answer:
            if answer.status == HTTPStatus.NOT_FOUND:
                return None
            if answer.status != HTTPStatus.OK:
                raise await _refusal(url, answer)
            return await _body(url, answer, most_bytes)

    async def _go_on(self, url: str, part: Part) -> bool:
        """Receive what is missing, or all of it; False when there is no such file."""
        rest = part.rest()
        async with self._ask(url, self._long, rest) as answer:
            if answer.status == HTTPStatus.NOT_FOUND:
                return False
            if answer.status == HTTPStatus.OK:
                part.begin(_said(answer))
            elif not rest or answer.status not in RANGED:
                raise await _refusal(url, answer)
            elif not _goes_on(answer, part):
                part.begin(None)
                raise AgainError(f"{url} does not go on where it broke off (HTTP {answer.status})")
            await fill(url, part, answer.content.iter_any())
        return True

    async def _patiently(self, url: str, ask: Callable[[], Awaitable[Got]], held: Callable[[], int] = lambda: 0) -> Got:
        async def once() -> Got:
            try:
                return await ask()
            except (aiohttp.ClientError, OSError) as error:  # the disk's are a ConfigError by now
                raise AgainError(self._broke(url, error)) from None

        return await self._patience.answer(once, held)

    @asynccontextmanager
    async def _ask(
        self, url: str, limits: aiohttp.ClientTimeout, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer, maybe from another address; its body is still to come."""
        await self._patience.may_ask()
        at = url
        for _ in range(REDIRECTS + 1):
            async with await self._request(at, limits, headers) as answer:
                if answer.status not in ELSEWHERE:
                    yield answer
                    return
                at = onward(at, answer.headers.get("Location", ""))
        raise SourceError(f"{url} is moved on more than {REDIRECTS} times")

    async def _request(
        self, url: str, limits: aiohttp.ClientTimeout, headers: Mapping[str, str] | None
    ) -> aiohttp.ClientResponse:
        assert self._session is not None, "Objects is used inside `async with`"
        try:
            answer = await self._session.get(url, headers=headers, timeout=limits, allow_redirects=False)
        except (aiohttp.ClientError, OSError):
            metrics.download_requests_total.labels("none").inc()
            raise
        metrics.download_requests_total.labels(str(answer.status)).inc()
        return answer

    def _broke(self, url: str, error: Exception) -> str:
        if isinstance(error, aiohttp.SocketTimeoutError):
            return f"no byte of {url} came for {self._stall_s:g} s"
        return unreachable(url, error)


def checksum_in(text: str, name: str) -> str:
    """The SHA-256 of the file `name`, in lower case, as the text of a `.CHECKSUM` has it.

    Raises `SourceError` when it has none.
    """
    lines = [found for line in text.split("\n") if (found := SHA256_LINE.fullmatch(line.strip()))]
    for found in lines:
        if found[2] == name:
            return found[1].lower()
    begin = " ".join(text[:300].split())[:80]
    wrong = f"it is about {lines[0][2]!r}" if lines else f"it begins with {begin!r}" if begin else "it is empty"
    raise SourceError(f"the .CHECKSUM of {name} has no SHA-256 of it: {wrong}")


def _said(answer: aiohttp.ClientResponse) -> Said:
    etag, last_modified = (
        value if (value := answer.headers.get(name)) and value.isascii() else None for name in ("ETag", "Last-Modified")
    )
    return Said(answer.content_length, etag, last_modified)


def _goes_on(answer: aiohttp.ClientResponse, part: Part) -> bool:
    """Whether this is the rest of what we hold: there are servers that do not look at If-Range."""
    told, said = CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", "")), _said(answer)
    return (
        answer.status == HTTPStatus.PARTIAL_CONTENT
        and told is not None
        and int(told["start"]) == part.held()
        and (part.said.size is None or told["total"] in ("*", str(part.said.size)))
        and said.etag in (None, part.said.etag)
        and said.last_modified in (None, part.said.last_modified)
    )


async def _body(url: str, answer: aiohttp.ClientResponse, most_bytes: int) -> bytes:
    body = bytearray()
    async for piece in answer.content.iter_any():
        metrics.download_bytes_total.inc(len(piece))
        body += piece
        if len(body) > most_bytes:
            raise SourceError(f"{url} is longer than the {most_bytes} bytes that such a thing may have")
    return bytes(body)


def onward(url: str, location: str) -> str:
    """Where an answer sends us that came from `url`. Raises `SourceError` when we do not go there."""
    try:
        address = urljoin(url, location)
        to = urlsplit(address)
        # What was asked for under the protection of TLS is not taken from where anybody may have changed it.
        is_followed = bool(location and to.hostname) and to.scheme in ("https", urlsplit(url).scheme)
    except ValueError:
        is_followed = False
    if not is_followed:
        raise SourceError(f"{url} is moved to {location!r}: not followed")
    return address


async def _refusal(url: str, answer: aiohttp.ClientResponse) -> SourceError:
    """The error that an answer stands for, with the server's own words where it has some."""
    body = (await answer.content.read(REFUSAL_BYTES)).decode(errors="replace")
    own = S3_ERROR.search(body)
    words = f"{own['message']} ({own['code']})" if own else " ".join(body.split())[:120]
    said = ": ".join(each for each in (IN_WORDS.get(answer.status), words) if each and each.isprintable())
    message = f"{url} answered HTTP {answer.status}: {said or '(nothing more)'}"
    if answer.status not in TRIED_AGAIN:
        return SourceError(message, status=answer.status)
    told = answer.headers.get("Retry-After", "").strip()
    return AgainError(message, status=answer.status, retry_after_s=float(told) if told.isdecimal() else None)


def _web_address(address: str) -> str:
    try:
        parts = urlsplit(address)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one:
        raise ConfigError(f"{address!r} is no web address, as https://data.binance.vision is one")
    return address
