"""Who listens to what, and the delivery of frames: each is built once however many hear it."""

import asyncio
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from crypto_lake.config import SPOT
from crypto_lake.simulator.market import Frame, combined
from crypto_lake.simulator.payloads import in_milliseconds
from crypto_lake.simulator.streams import ALL_MARKET, kind_of, source_of

# A reader so far behind a live market is cut off, as the venue does; memory stays bounded.
MAX_UNREAD_BYTES = 64 * 1024 * 1024
# A replay waits for its readers from here on: some hundred milliseconds of a busy feed.
UNREAD_ENOUGH_BYTES = 1024 * 1024

# Who does not answer our good-bye within this time is cut off.
GOOD_BYE_S = 1.0

_TEXT, _CLOSE, _PING, _PONG = 0x81, 0x88, 0x89, 0x8A


@dataclass(slots=True)
class Served:
    """What became of a connection; times are seconds since 1970, None = it did not come to that."""

    number: int  # in the order of opening, from 1
    route: str
    opened_s: float
    names: dict[str, None] = field(default_factory=dict, repr=False)
    closed_s: float | None = None
    half_open_s: float | None = None
    mute_s: float | None = None

    @property
    def streams(self) -> tuple[str, ...]:
        """All that were ever subscribed, in the order of asking."""
        return tuple(self.names)


@dataclass(slots=True, eq=False)
class Held:
    """A message that waits until so many others have passed it."""

    message: bytes
    behind: int


class FrameFaults(Protocol):
    """What goes wrong with frames on their way."""

    def told(self, frame: Frame) -> Frame:
        """A frame of the market as the venue tells it to everybody."""

    def deliver(self, connection: "Connection", message: bytes, frame: Frame, name: str) -> None:
        """One frame for one connection."""


class Connection:
    """One open WebSocket as the exchange sees it."""

    def __init__(
        self,
        hub: "Hub",
        transport: asyncio.Transport,
        *,
        route: str,
        combined: bool,
        in_microseconds: bool = False,
    ) -> None:
        self.route, self.combined, self.in_microseconds = route, combined, in_microseconds
        self.served = Served(hub.next_number(), route, time.time())
        self.closed = asyncio.Event()
        self.sent_frames = 0
        self._faults, self._is_dumb = hub.faults, False
        self._opened_s = time.monotonic()
        self._held: list[Held] = []
        self._hub, self._transport = hub, transport
        self._names: dict[str, None] = {}
        self._pending: list[bytes] = []

    def __repr__(self) -> str:
        return f"Connection(route={self.route!r}, streams={list(self._names)!r})"

    @property
    def streams(self) -> tuple[str, ...]:
        """The subscribed names, in the order of asking."""
        return tuple(self._names)

    @property
    def age_s(self) -> float:
        """Since it was opened."""
        return time.monotonic() - self._opened_s

    @property
    def unread_bytes(self) -> int:
        """What was written and the network has not taken yet."""
        return self._transport.get_write_buffer_size()

    def subscribe(self, name: str) -> None:
        """Hear a stream, if it exists on this route; a name that does not is remembered and stays silent."""
        if name not in self._names:
            self._names[name] = None
            self.served.names[name] = None
            self._hub.listen(self, name)

    def unsubscribe(self, name: str) -> None:
        """Hear it no longer."""
        if name in self._names:
            del self._names[name]
            self._hub.leave(self, name)

    def deliver(self, message: bytes, frame: Frame, name: str) -> None:
        """Queue one market message for the next `flush`, unless something goes wrong with it here."""
        if self._faults is None:
            self._pending.append(message)
            self.sent_frames += 1
        else:
            self._faults.deliver(self, message, frame, name)

    def queue(self, message: bytes) -> None:
        """What `deliver` does when nothing goes wrong."""
        self._pending.append(message)
        self.sent_frames += 1

    def hold(self, message: bytes, behind: int) -> Held:
        """Keep a message back behind so many others."""
        self._held.append(Held(message, behind))
        return self._held[-1]

    def let_go(self) -> None:
        """One more has passed: queue what has waited for it."""
        if self._held:
            for held in self._held:
                held.behind -= 1
            for held in [each for each in self._held if each.behind <= 0]:
                self._held.remove(held)
                self.queue(held.message)

    def let_go_late(self, held: Held) -> None:
        """It has waited long enough, if it still waits."""
        if held in self._held:
            self._held.remove(held)
            self.queue(held.message)
            self.flush()

    def reply(self, payload: bytes) -> None:
        """Answer a client's own message, after the market messages before it."""
        self._pending.append(websocket_frame(payload))
        self.flush()

    def ping(self, payload: bytes) -> None:
        """Ask for a sign of life."""
        self._write(websocket_frame(payload, _PING))

    def pong(self, payload: bytes) -> None:
        """Give one."""
        self._write(websocket_frame(payload, _PONG))

    def flush(self) -> None:
        """Write what is queued in one piece: a write per frame would cost more than making the frame."""
        if self._pending:
            self._write(b"".join(self._pending))
            self._pending.clear()

    def go_dumb(self) -> None:
        """From now on nothing at all is written, no pong and no good-bye either; TCP stays up."""
        self._is_dumb = True
        self.served.half_open_s = time.time()

    @property
    def is_half_open(self) -> bool:
        """It was told to `go_dumb`."""
        return self.served.half_open_s is not None

    def say_good_bye(self, code: int, words: str) -> None:
        """Close it as the venue does; it is cut off when the client does not answer."""
        self.flush()
        self._write(websocket_frame(struct.pack("!H", code) + words.encode(), _CLOSE))
        self._is_dumb = True
        asyncio.get_running_loop().call_later(GOOD_BYE_S, self.abort)

    def abort(self) -> None:
        """Cut the TCP connection at once, without a closing handshake."""
        self._transport.abort()

    def _write(self, piece: bytes) -> None:
        if not self._is_dumb and not self._transport.is_closing():
            self._transport.write(piece)


class Hub:
    """The open connections and their subscriptions."""

    def __init__(self, faults: FrameFaults | None = None) -> None:
        self.connections: list[Connection] = []
        self.served: list[Served] = []
        self.faults = faults
        self._listeners: dict[tuple[str, str], list[tuple[Connection, str]]] = {}

    def open(self, connection: Connection) -> None:
        """From now on it is served."""
        self.connections.append(connection)
        self.served.append(connection.served)

    def next_number(self) -> int:
        """Of the connection to come."""
        return len(self.served) + 1

    def close(self, connection: Connection) -> None:
        """It has gone; nothing more is written to it."""
        if connection in self.connections:
            self.connections.remove(connection)
            for name in connection.streams:
                connection.unsubscribe(name)
            connection.served.closed_s = time.time()
            connection.closed.set()

    def listen(self, connection: Connection, name: str) -> None:
        """Bind a subscribed name to the frames behind it."""
        if source := source_of(name, connection.route):
            self._listeners.setdefault(source, []).append((connection, name))

    def leave(self, connection: Connection, name: str) -> None:
        """Undo `listen`."""
        source = source_of(name, connection.route)
        if source and source in self._listeners:
            self._listeners[source].remove((connection, name))
            if not self._listeners[source]:
                del self._listeners[source]

    def kinds(self) -> set[str]:
        """The kinds of stream that somebody listens to."""
        return {kind_of(stream) for _, stream in self._listeners}

    def publish(self, frame: Frame) -> None:
        """Queue a frame for everybody who listens to it."""
        if self.faults is not None:
            frame = self.faults.told(frame)
        listeners = self._listeners.get((frame.venue, frame.stream))
        if listeners:
            _deliver(frame, listeners)
        everything = ALL_MARKET.get(frame.stream[frame.stream.rfind("@") + 1 :])
        if everything and (listeners := self._listeners.get((frame.venue, everything))):
            _deliver(frame, listeners)

    def flush(self) -> None:
        """Write all that was queued."""
        for connection in self.connections:
            connection.flush()

    def behind(self, unread_bytes: int) -> Iterator[Connection]:
        """Connections with more than so many bytes still to read."""
        return (each for each in self.connections if each.unread_bytes > unread_bytes)


def _deliver(frame: Frame, listeners: list[tuple[Connection, str]]) -> None:
    """A frame of spot in the unit that each connection asked for; the other is made only if somebody wants it."""
    if frame.venue == SPOT and not all(connection.in_microseconds for connection, _ in listeners):
        others = [each for each in listeners if not each[0].in_microseconds]
        _hand_round(frame._replace(payload=in_milliseconds(frame.payload)), others)
        listeners = [each for each in listeners if each[0].in_microseconds]
    _hand_round(frame, listeners)


def _hand_round(frame: Frame, listeners: list[tuple[Connection, str]]) -> None:
    built: dict[str, bytes] = {}
    payload = frame.payload
    for connection, name in listeners:
        key = name if connection.combined else ""
        message = built.get(key)
        if message is None:
            message = built[key] = websocket_frame(combined(name, payload) if key else payload)
        connection.deliver(message, frame, name)


def websocket_frame(payload: bytes, first_byte: int = _TEXT) -> bytes:
    """An unmasked, unfragmented WebSocket frame (RFC 6455, 5.2)."""
    size = len(payload)
    if size < 126:
        return bytes((first_byte, size)) + payload
    if size < 65_536:
        return struct.pack("!BBH", first_byte, 126, size) + payload
    return struct.pack("!BBQ", first_byte, 127, size) + payload
