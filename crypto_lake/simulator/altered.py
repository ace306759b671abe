"""Payloads and answers changed as faults want them: bytes in, bytes out."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

# The only times that are on the venue's clock: funding and klines are due at times of their own.
_EVENT_TIMES: Final = re.compile(rb'"[ETOC]":(\d{16}|\d{13})(?=[,}])')
_EVENT_TIME: Final = re.compile(rb'"E":(\d{16}|\d{13})(?=[,}])')
_EVENT_TIME_ONLY: Final = ("markPrice", "!markPrice@arr", "kline_1m")
_ROW_TIMES: Final = re.compile(rb'"(?:E|T|time|openTime|closeTime|serverTime)":(\d{16}|\d{13})(?=[,}])')
# Until the year 2286; microseconds, which spot is told in, have three more.
MILLISECOND_DIGITS: Final = 13

_NEW_FIELDS: Final = {"newField": "1.50", "Z9": {"deep": [1, "2", None]}}
_DECIMAL: Final = re.compile(r"-?\d+(?:\.\d+)?")
_IDS: Final = frozenset({"a", "f", "l", "t", "u", "U", "pu"})
_IDENTITY: Final = re.compile(rb'"[aut]":(\d+)')

# Four quotes in a row are no JSON wherever they stand, inside of a string or outside.
_RUBBISH: Final = b'""""'


@dataclass(slots=True)
class Skew:
    """By how much the venue's clock was off, and when: (after, until or None, ms), times on the true clock in ms."""

    spans: list[tuple[int, int | None, int]] = field(default_factory=list)

    def begin(self, after_ms: int, skew_ms: int) -> None:
        """Times after this one are off by so much."""
        self.spans.append((after_ms, None, skew_ms))

    def end(self, skew_ms: int, until_ms: int) -> None:
        """And those after that one no longer."""
        place = next(i for i, (_, until, ms) in enumerate(self.spans) if until is None and ms == skew_ms)
        self.spans[place] = (self.spans[place][0], until_ms, skew_ms)

    def shifted(self, time_ms: int) -> int:
        """What the venue's clock said at a true time."""
        return time_ms + sum(
            skew for after, until, skew in self.spans if after < time_ms and (until is None or time_ms <= until)
        )

    def of_event(self, payload: bytes, stream_kind: str) -> bytes:
        """A stream's payload with the venue's times."""
        pattern = _EVENT_TIME if stream_kind in _EVENT_TIME_ONLY else _EVENT_TIMES
        return pattern.sub(self._shift, payload) if self.spans else payload

    def of_answer(self, body: bytes) -> bytes:
        """A REST answer with the venue's times: a trade has the one under which the stream told of it."""
        return _ROW_TIMES.sub(self._shift, body) if self.spans else body

    def _shift(self, found: re.Match[bytes]) -> bytes:
        whole, time = found[0], int(found[1])
        unit = 1 if len(found[1]) == MILLISECOND_DIGITS else 1000
        return whole[: -len(found[1])] + b"%d" % (self.shifted(time // unit) * unit + time % unit)


def with_new_fields(body: bytes) -> bytes:
    """Fields that no documentation knows, in every object that is an event, a row or a symbol's rules."""
    return msgspec.json.encode(_extended(msgspec.json.decode(body)))


def _extended(value: Any) -> Any:
    if isinstance(value, list):
        return [_extended(each) if isinstance(each, dict) else each for each in value]
    inner = {name: _extended(value[name]) for name in ("o", "k", "symbols") if isinstance(value.get(name), dict | list)}
    return {**value, **inner, **_NEW_FIELDS}


def in_other_form(payload: bytes, form: str) -> bytes:
    """The same event as a venue might write it one day: with a field renamed, or with other JSON types."""
    return msgspec.json.encode(_each(msgspec.json.decode(payload), _renamed if form == "renamed" else _retyped))


def _each(value: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    return [change(each) for each in value] if isinstance(value, list) else change(value)


def _renamed(event: dict[str, Any]) -> dict[str, Any]:
    """The symbol, which every event must have; of a liquidation, the order that holds it."""
    old, new = ("s", "symbol") if "s" in event else ("o", "order")
    return {new if name == old else name: value for name, value in event.items()}


def _retyped(event: dict[str, Any]) -> dict[str, Any]:
    """Numbers in place of decimal strings, strings in place of ids."""
    return {
        name: str(value) if name in _IDS and isinstance(value, int) else _bare(value) for name, value in event.items()
    }


def _bare(value: Any) -> Any:
    if isinstance(value, str) and _DECIMAL.fullmatch(value):
        return msgspec.Raw(value.encode())
    if isinstance(value, list):
        return [_bare(each) for each in value]
    return _retyped(value) if isinstance(value, dict) else value


def corrupted(text: bytes, form: str, draw: float) -> bytes:
    """No JSON any more, but still UTF-8: a client that checks text frames must not see a protocol error instead."""
    if form == "short":
        return text[: 1 + int(draw * (len(text) - 2))].decode(errors="ignore").encode()
    middle = len(text) // 2
    while not text[middle : middle + len(_RUBBISH)].isascii():
        middle -= 1
    return text[:middle] + _RUBBISH + text[middle + len(_RUBBISH) :]


def padded(payload: bytes, size_bytes: int) -> bytes:
    """An event of at least this size: still JSON, with a long field."""
    return payload[:-1] + b',"padding":"' + b"x" * size_bytes + b'"}'


def words_for(stream: str, payload: bytes) -> str:
    """`btcusdt@aggTrade 1000017`: a frame in a list of what was done."""
    found = _IDENTITY.search(payload)
    return f"{stream} {found[1].decode()}" if found else stream
