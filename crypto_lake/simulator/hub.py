"""Who listens to what, and the delivery of frames: each is built once however many hear it."""

import asyncio
import struct
from collections.abc import Iterator

from crypto_lake.simulator.market import Frame, combined
from crypto_lake.simulator.streams import ALL_MARKET, kind_of, source_of

# A reader so far behind a live market is cut off, as the venue does; memory stays bounded.
MAX_UNREAD_BYTES = 64 * 1024 * 1024
# A replay waits for its readers from here on: some hundred milliseconds of a busy feed.
UNREAD_ENOUGH_BYTES = 1024 * 1024

_TEXT, _PING, _PONG = 0x81, 0x89, 0x8A


class Connection:
    """One open WebSocket as the exchange sees it."""

    def __init__(self, hub: "Hub", transport: asyncio.Transport, *, route: str, combined: bool) -> None:
        self.route, self.combined = route, combined
        self.closed = asyncio.Event()
        self.sent_frames = 0
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
    def unread_bytes(self) -> int:
        """What was written and the network has not taken yet."""
        return self._transport.get_write_buffer_size()

    def subscribe(self, name: str) -> None:
        """Hear a stream, if it exists on this route; a name that does not is remembered and stays silent."""
        if name not in self._names:
            self._names[name] = None
            self._hub.listen(self, name)

    def unsubscribe(self, name: str) -> None:
        """Hear it no longer."""
        if name in self._names:
            del self._names[name]
            self._hub.leave(self, name)

    def deliver(self, message: bytes) -> None:
        """Queue one market message for the next `flush`: the place where faults of this connection belong."""
        self._pending.append(message)
        self.sent_frames += 1

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

    def abort(self) -> None:
        """Cut the TCP connection at once, without a closing handshake."""
        self._transport.abort()

    def _write(self, piece: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(piece)


class Hub:
    """The open connections and their subscriptions."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self._listeners: dict[tuple[str, str], list[tuple[Connection, str]]] = {}

    def open(self, connection: Connection) -> None:
        """From now on it is served."""
        self.connections.append(connection)

    def close(self, connection: Connection) -> None:
        """It has gone; nothing more is written to it."""
        if connection in self.connections:
            self.connections.remove(connection)
            for name in connection.streams:
                connection.unsubscribe(name)
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
        listeners = self._listeners.get((frame.venue, frame.stream))
        if listeners:
            _deliver(frame.payload, listeners)
        everything = ALL_MARKET.get(frame.stream[frame.stream.rfind("@") + 1 :])
        if everything and (listeners := self._listeners.get((frame.venue, everything))):
            _deliver(frame.payload, listeners)

    def flush(self) -> None:
        """Write all that was queued."""
        for connection in self.connections:
            connection.flush()

    def behind(self, unread_bytes: int) -> Iterator[Connection]:
        """Connections with more than so many bytes still to read."""
        return (each for each in self.connections if each.unread_bytes > unread_bytes)


def _deliver(payload: bytes, listeners: list[tuple[Connection, str]]) -> None:
    built: dict[str, bytes] = {}
    for connection, name in listeners:
        key = name if connection.combined else ""
        message = built.get(key)
        if message is None:
            message = built[key] = websocket_frame(combined(name, payload) if key else payload)
        connection.deliver(message)


def websocket_frame(payload: bytes, first_byte: int = _TEXT) -> bytes:
    """An unmasked, unfragmented WebSocket frame (RFC 6455, 5.2)."""
    size = len(payload)
    if size < 126:
        return bytes((first_byte, size)) + payload
    if size < 65_536:
        return struct.pack("!BBH", first_byte, 126, size) + payload
    return struct.pack("!BBQ", first_byte, 127, size) + payload
