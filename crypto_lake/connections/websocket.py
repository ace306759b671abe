"""WebSocket connections: which addresses carry which streams, and the life of one connection as frames."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple
from urllib.parse import quote

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from crypto_lake.connections import SourceError

# The venue allows 1024 streams (older texts: 200) and about 16 KiB of request line; half of that is always taken.
MAX_STREAMS: Final = 512
MAX_URL_BYTES: Final = 12_000
IN_MICROSECONDS: Final = "&timeUnit=MICROSECOND"
# Larger than any message seen by far; what is larger ends the connection instead of the memory.
MAX_FRAME_BYTES: Final = 32 * 2**20
MAX_QUEUE_FRAMES: Final = 512
OPEN_S: Final = 10.0
PING_S: Final = 60.0
PONG_S: Final = 30.0
# How often within its time a silence is looked for.
LOOKS: Final = 10
# What a handshake's refusal asks for when it does not say: a firewall or a restricted place is not asked quickly again.
REFUSED_S: Final = {403: 300.0, 418: 300.0, 429: 60.0, 451: 3600.0}


class Address(NamedTuple):
    """A combined-stream URL and the streams in it."""

    url: str
    streams: tuple[str, ...]


class Frame(NamedTuple):
    """A message as it came, and when (our clock, µs since 1970)."""

    received_us: int
    payload: bytes


def combined(
    address: str, route: str, streams: Iterable[str], *, also: str = "", in_microseconds: bool = False
) -> list[Address]:
    """The addresses of one route that carry the streams, each within the venue's limits; all of them carry `also`.

    Only spot can tell its times in microseconds.
    """
    base = f"{address}/{route}/stream?streams=" if route else f"{address}/stream?streams="
    last, unit = (also,) if also else (), IN_MICROSECONDS if in_microseconds else ""
    room = MAX_URL_BYTES - len(base) - len(_quoted(also)) - 1 - len(unit)
    chunks = _chunks(list(streams), MAX_STREAMS - len(last), room)
    return [Address(base + "/".join(map(_quoted, (*chunk, *last))) + unit, (*chunk, *last)) for chunk in chunks]


def _chunks(streams: list[str], most: int, most_bytes: int) -> Iterator[tuple[str, ...]]:
    chunk: list[str] = []
    size = 0
    for stream in streams:
        if chunk and (len(chunk) == most or size + len(_quoted(stream)) + 1 > most_bytes):
            yield tuple(chunk)
            chunk, size = [], 0
        chunk.append(stream)
        size += len(_quoted(stream)) + 1
    if chunk:
        yield tuple(chunk)


def _quoted(stream: str) -> str:
    return quote(stream, safe="@!_")


def stream_of(payload: bytes) -> bytes:
    """The stream's name in a combined message, without parsing the rest; empty if it is none."""
    return payload[11 : payload.find(b'"', 11)] if payload.startswith(b'{"stream":"') else b""


class Connection:
    """An open connection. `frames()` ends when it closes; then `reason` says why."""

    def __init__(self, socket: ClientConnection, *, silence_s: float) -> None:
        self._socket = socket
        self._silence_s = silence_s
        self.heard_us = time.time_ns() // 1000
        self.is_resting = False  # set by a reader that does not want to read now: then silence is not the venue's
        self.reason = ""
        self.was_silent = False  # whether it was ended because nothing came, not because it broke

    async def frames(self) -> AsyncIterator[Frame]:
        """The messages, stamped as they are taken from the socket."""
        watch = asyncio.create_task(self._watch())
        receive = self._socket.recv
        try:
            while True:
                payload = await receive(decode=False)
                self.heard_us = time.time_ns() // 1000
                yield Frame(self.heard_us, payload)
        except ConnectionClosed as closed:
            self.reason = self.reason or _why(closed)
        finally:
            watch.cancel()

    async def close(self, reason: str) -> None:
        """Says good-bye; what has arrived before is still given out by `frames()`."""
        self.reason = self.reason or reason
        await self._socket.close()

    def give_up(self, reason: str) -> None:
        """Ends it because nothing comes; what has arrived before is still given out."""
        self.reason, self.was_silent = self.reason or reason, True
        # No closing handshake: who is silent will not answer that either.
        self._socket.transport.abort()

    async def _watch(self) -> None:
        """Ends a connection on which nothing comes although its socket is alive: a wrong route is like that."""
        # By the clock that only runs: the one that stamps may be set.
        heard_us, since_s = self.heard_us, time.monotonic()
        while True:
            await asyncio.sleep(self._silence_s / LOOKS)
            if self.is_resting or self.heard_us != heard_us:
                heard_us, since_s = self.heard_us, time.monotonic()
            elif (silent_s := time.monotonic() - since_s) >= self._silence_s:
                self.give_up(f"silent for {silent_s:.0f} s")
                return


def _why(closed: ConnectionClosed) -> str:
    if closed.rcvd is None and closed.sent is None:
        return "the connection broke"
    frame = closed.rcvd or closed.sent
    assert frame is not None
    side = "the venue" if closed.rcvd and closed.rcvd_then_sent else "we"
    return f"{side} closed it: {frame.code} {frame.reason}".strip()


@asynccontextmanager
async def connected(url: str, *, silence_s: float) -> AsyncIterator[Connection]:
    """A connection to `url`, closed at the end.

    Raises `SourceError` when it cannot be opened, with `retry_after_s` when the venue wants to be left alone.
    """
    try:
        socket = await connect(
            url,
            compression=None,  # inflating costs more than the wire saves (LIBRARIES 1)
            max_size=MAX_FRAME_BYTES,
            max_queue=MAX_QUEUE_FRAMES,
            open_timeout=OPEN_S,
            ping_interval=PING_S,
            ping_timeout=PONG_S,
            close_timeout=1,
        )
    except InvalidStatus as refused:
        raise _refusal(url, refused) from None
    except (OSError, InvalidHandshake, InvalidURI) as error:  # a TimeoutError is an OSError
        raise SourceError(f"cannot connect to {_host(url)}: {error or type(error).__name__}") from None
    try:
        yield Connection(socket, silence_s=silence_s)
    finally:
        await socket.close()


def _refusal(url: str, refused: InvalidStatus) -> SourceError:
    status = refused.response.status_code
    asked = refused.response.headers.get("Retry-After", "")
    wait_s = float(asked) if asked.isdecimal() else REFUSED_S.get(status)
    return SourceError(f"{_host(url)} refused the connection: HTTP {status}", retry_after_s=wait_s)


def _host(url: str) -> str:
    return "/".join(url.split("/", 3)[:3])
