"""Recordings that can be played again: capture files and our own journals, line by line in the order of arrival."""

import gzip
import heapq
import re
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec

from crypto_lake import journal
from crypto_lake.config import FUTURES, SPOT
from crypto_lake.simulator.streams import kind_of, stream_of

_COMBINED, _DATA = b'{"stream":"', b'","data":'
_SNAPSHOT = b'{"lastUpdateId":'
_SYMBOL = re.compile(rb'"s":"([^"]+)"')
_ASKED_SYMBOL = re.compile(r"symbol=([^&\s]+)")
_EVENT_KINDS = {
    "aggTrade": "aggTrade",
    "trade": "trade",
    "depthUpdate": "depth",
    "bookTicker": "bookTicker",
    "forceOrder": "forceOrder",
    "markPriceUpdate": "markPrice",
    "24hrTicker": "ticker",
    "24hrMiniTicker": "miniTicker",
}


class Line(NamedTuple):
    """One thing that was received: a message, or the body of a REST answer."""

    received_ns: int
    raw: bytes
    origin: str = ""

    @property
    def venue(self) -> str | None:
        """Our journals know it; captures do not."""
        venue = self.origin.partition(" ")[0]
        return venue if venue in (FUTURES, SPOT) else None

    @property
    def is_snapshot(self) -> bool:
        """The body of a REST depth request."""
        return self.raw.startswith(_SNAPSHOT)

    @property
    def asked_symbol(self) -> str | None:
        """Of a REST answer whose request is known."""
        found = _ASKED_SYMBOL.search(self.origin)
        return unquote(found[1]) if found else None


class Message(NamedTuple):
    """A message without its envelope, with the stream that carries it."""

    stream: str
    payload: bytes


def lines_of(paths: Iterable[Path]) -> Iterator[Line]:
    """The lines of captures and journals, one path after the other; journals side by side in a folder are merged."""
    for path in paths:
        if path.is_file():
            yield from _capture(path)
        else:
            yield from _journals(path)


def _capture(path: Path) -> Iterator[Line]:
    with closing(gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as file:
        try:
            for number, text in enumerate(file, 1):
                yield _line(text, f"{path}:{number}")
        except EOFError:
            raise ValueError(f"{path} is cut short") from None


def _line(text: bytes, place: str) -> Line:
    received, _, raw = text.rstrip(b"\r\n").partition(b" ")
    if not received.isdigit():
        raise ValueError(f"{place} is not `<receive time ns> <JSON>`")
    return Line(int(received), raw)


def _journals(path: Path) -> Iterator[Line]:
    folders = sorted({file.parent for file in path.rglob("*.journal")})
    if not folders:
        raise FileNotFoundError(f"{path} is neither a capture nor a folder with journals")
    yield from heapq.merge(*(_journal(folder) for folder in folders), key=lambda line: line.received_ns)


def _journal(folder: Path) -> Iterator[Line]:
    for record in journal.read_all(folder):
        if record.kind in (journal.FRAME, journal.RESPONSE):
            yield Line(record.received_us * 1000, record.payload, record.origin)


def message_of(raw: bytes, venue: str) -> Message | None:
    """What a received message is; None when no stream of the venue carries such a thing."""
    if raw.startswith(_COMBINED):
        end = raw.index(b'"', len(_COMBINED))
        name = raw[len(_COMBINED) : end].decode()
        if raw[end : end + len(_DATA)] != _DATA:
            return None
        payload = raw[end + len(_DATA) : -1]
        stream = stream_of(name, venue)
    else:
        payload = raw
        stream = stream_of(_raw_name(raw), venue)
    return Message(_of_symbol(stream, payload), payload) if stream else None


def _of_symbol(stream: str, payload: bytes) -> str:
    """All-market streams of single messages carry the streams of their symbols."""
    kind = kind_of(stream)
    if stream.startswith("!") and not kind.startswith("!") and (found := _SYMBOL.search(payload)):
        return f"{found[1].decode().lower()}@{kind}"
    return stream


def _raw_name(raw: bytes) -> str:
    """The stream name of a message that came without an envelope, by its fields; empty when they tell nothing."""
    try:
        fields = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return ""
    if isinstance(fields, list):
        first = fields[0] if fields and isinstance(fields[0], dict) else {}
        return f"!{_EVENT_KINDS.get(first.get('e', ''))}@arr"
    return _raw_name_of(fields) if isinstance(fields, dict) else ""


def _raw_name_of(fields: dict[str, Any]) -> str:
    inner = fields.get("o") if fields.get("e") == "forceOrder" else fields
    symbol = inner.get("s", "") if isinstance(inner, dict) else ""
    if isinstance(candle := fields.get("k"), dict):
        return f"{symbol.lower()}@kline_{candle.get('i')}"
    is_spot_ticker = "e" not in fields and {"u", "b", "B", "a", "A"} <= fields.keys()
    kind = "bookTicker" if is_spot_ticker else _EVENT_KINDS.get(fields.get("e", ""))
    return f"{symbol.lower()}@{kind}"


def shortened(snapshot: bytes, limit: int) -> bytes:
    """A recorded depth snapshot with at most `limit` levels a side; untouched when it has no more than that."""
    fields = msgspec.json.decode(snapshot, type=dict[str, msgspec.Raw])
    sides = {side: msgspec.json.decode(fields[side], type=list[msgspec.Raw]) for side in ("bids", "asks")}
    if all(len(levels) <= limit for levels in sides.values()):
        return snapshot
    short = {side: msgspec.Raw(msgspec.json.encode(levels[:limit])) for side, levels in sides.items()}
    return msgspec.json.encode({**fields, **short})


def continued(snapshot: bytes, events: Iterable[bytes], limit: int) -> bytes:
    """A recorded depth snapshot with the depth events behind it applied, at most `limit` levels a side.

    Prices are kept as the venue writes them: in one recording a price has one spelling.
    """
    fields = msgspec.json.decode(snapshot)
    sides = {side: dict(fields[side]) for side in ("bids", "asks")}
    for payload in events:
        event = msgspec.json.decode(payload)
        if event["u"] <= fields["lastUpdateId"]:
            continue
        fields["lastUpdateId"] = event["u"]
        fields |= {name: event[name] for name in ("E", "T") if name in fields}
        for side, changes in (("bids", event["b"]), ("asks", event["a"])):
            for price, quantity in changes:
                if float(quantity):
                    sides[side][price] = quantity
                else:
                    sides[side].pop(price, None)
    for side, levels in sides.items():
        best = sorted(levels.items(), key=lambda level: float(level[0]), reverse=side == "bids")
        fields[side] = best[:limit]
    return msgspec.json.encode(fields)


def venue_of(lines: Iterable[Line]) -> str:
    """Futures or spot, by the data: spot's depth has no `pu`, its trades have an `M`."""
    for line in lines:
        if line.venue:
            return line.venue
        if b'"depthUpdate"' in line.raw:
            return FUTURES if b'"pu":' in line.raw else SPOT
        if b'"e":"trade"' in line.raw or b'"e":"aggTrade"' in line.raw:
            return SPOT if b'"M":' in line.raw else FUTURES
    raise ValueError("nothing in the recording tells the venue; say which it is")
