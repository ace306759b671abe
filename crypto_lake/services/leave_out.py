"""Leaving out: of what comes of all symbols in one message, or one answer, those that somebody does not want."""

from collections.abc import Callable, Iterable
from typing import Final

import msgspec
from msgspec import Raw, Struct

from crypto_lake.models.frame import UNDECODABLE

SYMBOL_AT: Final = b'"s":"'


class _Message(Struct):
    stream: str
    data: Raw


class _Row(Struct):
    symbol: str = ""


_MESSAGES: Final = msgspec.json.Decoder(_Message)
_ELEMENTS: Final = msgspec.json.Decoder(list[Raw])
_ROWS: Final = msgspec.json.Decoder(list[_Row])


class Omission:
    """Symbols to be left out of the messages of streams that carry all of them."""

    def __init__(self, symbols: Iterable[str]) -> None:
        self.symbols = tuple(symbols)
        self._marks = tuple(SYMBOL_AT + symbol.encode() + b'"' for symbol in self.symbols)

    def of(self, payload: bytes) -> bytes:
        """What is left of a combined message; nothing when it is about one of the symbols alone.

        What cannot be read stays as it is, and goes the way of all such messages.
        """
        if not any(mark in payload for mark in self._marks):
            return payload
        try:
            message = _MESSAGES.decode(payload)
            elements = _ELEMENTS.decode(message.data) if bytes(message.data).startswith(b"[") else []
        except UNDECODABLE:
            return payload
        kept = [each for each in elements if not any(mark in bytes(each) for mark in self._marks)]
        message.data = Raw(msgspec.json.encode(kept))
        return msgspec.json.encode(message) if kept else b""


def only(body: bytes, is_wanted: Callable[[str], bool]) -> bytes:
    """The rows of an answer that are of wanted symbols; what is no list of rows stays as it is."""
    try:
        elements, rows = _ELEMENTS.decode(body), _ROWS.decode(body)
    except UNDECODABLE:
        return body
    kept = [element for element, row in zip(elements, rows, strict=True) if is_wanted(row.symbol)]
    return body if len(kept) == len(elements) else msgspec.json.encode(kept)
