"""A venue that does nothing but send on time: pre-encoded WebSocket frames, a stamp in each, one thread.

It says its ports on standard output, then that all connections are there; a line on standard input starts it. The
stamp is the last member of a message's envelope, where a decoder passes over it.
"""

import base64
import hashlib
import json
import select
import socket
import struct
import sys
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import workload

HOST: Final = "127.0.0.1"
TICK_S: Final = 0.0005
GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
# What a connection is asked for, in the order of workload.KINDS.
CONNECTIONS: Final = (b"@depth", b"@aggTrade", b"@forceOrder")
STAMP: Final = b',"sent":%019d}'
STAMP_BYTES: Final = len(STAMP % 0)
CLOSE: Final = 0x8
MOST_SMALL_BYTES: Final = 125


def sent_ns(payload: bytes) -> int:
    """The stamp in a message."""
    return int(payload[-20:-1])


def framed(payload: bytes) -> bytes:
    """A combined message as a WebSocket frame, all but its last bytes: the stamp and the closing brace."""
    size = len(payload) - 1 + STAMP_BYTES
    assert MOST_SMALL_BYTES < size < 2**16
    return struct.pack("!BBH", 0x81, 126, size) + payload[:-1]


class Sender:
    """The frames of each connection, and how many of them are due when `n` messages are due in all."""

    def __init__(self, messages: workload.Workload) -> None:
        self.count = len(messages)
        kinds = np.array(messages.kinds)
        self.frames: list[list[bytes]] = [[] for _ in CONNECTIONS]
        for kind, payload in zip(messages.kinds, messages.payloads, strict=True):
            self.frames[kind].append(framed(payload))
        self.due = [np.concatenate(([0], np.cumsum(kinds == kind))).tolist() for kind in range(len(CONNECTIONS))]

    def send(self, sockets: list[list[socket.socket]], rate: int) -> dict[str, Any]:
        """Everything, evenly. A tick that comes late sends what has become due; nothing is left out."""
        late_ns: list[int] = []
        sent, cpu_s, began_ns = 0, time.process_time(), time.perf_counter_ns()
        tick_ns, per_ns = int(TICK_S * 1e9), rate / 1e9
        next_ns = began_ns
        while sent < self.count:
            next_ns += tick_ns
            wait_ns = next_ns - time.perf_counter_ns()
            if wait_ns > 0:
                time.sleep(wait_ns / 1e9)
            now_ns = time.perf_counter_ns()
            late_ns.append(now_ns - next_ns)
            due = min(self.count, int((now_ns - began_ns) * per_ns))
            for listeners, frames, before in zip(sockets, self.frames, self.due, strict=True):
                if part := frames[before[sent] : before[due]]:
                    stamp = STAMP % time.time_ns()
                    piece = stamp.join(part) + stamp
                    for each in listeners:
                        each.sendall(piece)
            sent = due
            next_ns = max(next_ns, now_ns - tick_ns)
        return {
            "messages": sent,
            "seconds": (time.perf_counter_ns() - began_ns) / 1e9,
            "cpu_s": time.process_time() - cpu_s,
            "ticks": len(late_ns),
            "late_p99_ms": float(np.percentile(late_ns, 99)) / 1e6,
            "late_max_ms": max(late_ns) / 1e6,
        }


def accept(listener: socket.socket, redundancy: int) -> list[list[socket.socket]]:
    """So many connections of each kind, whatever the order they come in."""
    found: list[list[socket.socket]] = [[] for _ in CONNECTIONS]
    while any(len(each) < redundancy for each in found):
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(65_536)
        line, *headers = request.split(b"\r\n")
        names = {name.strip().lower(): value.strip() for name, _, value in (each.partition(b":") for each in headers)}
        answer = base64.b64encode(hashlib.sha1(names[b"sec-websocket-key"] + GUID, usedforsecurity=False).digest())
        connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + answer + b"\r\n\r\n"
        )
        found[next(kind for kind, name in enumerate(CONNECTIONS) if name in line)].append(connection)
    return found


def see_off(sockets: list[socket.socket]) -> None:
    """Answers each connection's close."""
    left = list(sockets)
    while left:
        for each in select.select(left, [], [])[0]:
            words = each.recv(4096)
            if words and words[0] & 0x0F != CLOSE:
                continue
            if words:
                each.sendall(b"\x88\x02\x03\xe8")
            each.close()
            left.remove(each)


class Rest(BaseHTTPRequestHandler):
    """The two requests that a daemon makes: which symbols there are, and the book of one."""

    protocol_version = "HTTP/1.1"

    def __init__(self, symbols: bytes, *arguments: Any) -> None:
        self._symbols = symbols
        super().__init__(*arguments)

    def do_GET(self) -> None:
        is_book = self.path.startswith("/fapi/v1/depth")
        body = BOOK if is_book else self._symbols
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        """Quiet."""


BOOK: Final = json.dumps(
    {
        "lastUpdateId": 1,
        "E": workload.START_MS - 1000,
        "T": workload.START_MS - 1000,
        "bids": [[f"{10_000 - number}.50", "1.250"] for number in range(1000)],
        "asks": [[f"{10_001 + number}.50", "1.250"] for number in range(1000)],
    },
    separators=(",", ":"),
).encode()


def main() -> None:
    """`feed FRAMES RATE SECONDS REDUNDANCY`."""
    frames, (rate, seconds, redundancy) = Path(sys.argv[1]), map(int, sys.argv[2:])
    sender = Sender(workload.load(frames).part(0, rate * seconds))
    listed = [{"symbol": each, "status": "TRADING", "contractType": "PERPETUAL"} for each in workload.SYMBOLS]
    rest = ThreadingHTTPServer((HOST, 0), partial(Rest, json.dumps({"symbols": listed}).encode()))
    threading.Thread(target=rest.serve_forever, daemon=True).start()
    with socket.create_server((HOST, 0)) as listener:
        print(json.dumps({"ws": listener.getsockname()[1], "rest": rest.server_address[1]}), flush=True)
        sockets = accept(listener, redundancy)
    print(json.dumps({"connected": sum(map(len, sockets))}), flush=True)
    sys.stdin.readline()
    print(json.dumps(sender.send(sockets, rate)), flush=True)
    see_off([each for listeners in sockets for each in listeners])
    sys.stdin.readline()
    rest.shutdown()


if __name__ == "__main__":
    main()
