"""The trades in journal records, one by one in the order of arrival, as the drain would decode them.

What the drain sets aside is left out here without a word: it is in the table `rejected`.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from math import isfinite
from operator import attrgetter
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, urlsplit

import msgspec

from crypto_lake.config import COIN_M, FUTURES
from crypto_lake.models import Dataset
from crypto_lake.models.dataset import EARLIEST_US, LATEST_US
from crypto_lake.models.frame import FRAME, RESPONSE, UNDECODABLE, Records

Decode = Callable[[bytes | msgspec.Raw], Any]

# As `processors.decode` and `models.trade` have it; a test keeps them equal.
COIN_M_SYMBOL: Final = re.compile(r"USD_(PERP|\d{6})$")
COIN_M_TYPE: Final = 2
NO_PRINT: Final = "NA"
NUMBER: Final = re.compile(r"[0-9.eE+-]+")


class Tick(NamedTuple):
    """A trade, as `LiveBars.add` wants it."""

    trade_id: int
    time_us: int
    price: float
    quantity: Decimal
    trades: int
    is_buyer_maker: bool


# The number of the record that it came in, its venue and symbol, and the trade.
Found = tuple[int, str, str, Tick]


class Trades:
    """Finds the trades of a dataset in records."""

    def __init__(self, dataset: Dataset) -> None:
        assert dataset.live is not None
        assert dataset.sequence is not None
        event: Any = dataset.live.event
        envelope = msgspec.defstruct("Combined", [("data", event)], gc=False)
        self._envelope: Decode = msgspec.json.Decoder(envelope).decode
        self._event: Decode = msgspec.json.Decoder(event).decode
        self._body: Decode | None = msgspec.json.Decoder(dataset.poll.body).decode if dataset.poll else None
        self._id = attrgetter(dataset.sequence)
        self._is_joined = "first_trade_id" in event.__struct_fields__
        self._times = [name for name in event.__struct_fields__ if name in ("time", "event_time")]

    def find(self, records: Records) -> Iterator[Found]:
        """In the order of arrival."""
        for row, kind in enumerate(records.kinds):
            if kind == FRAME:
                yield from self._in_frame(records.payloads[row], _venue(records.origins[row]), row)
            elif kind == RESPONSE and self._body:
                yield from self._in_answer(records.payloads[row], records.origins[row], row)

    def _in_frame(self, payload: bytes, venue: str, row: int) -> Iterator[Found]:
        try:
            events: Sequence[Any] = (self._envelope(payload).data,)
        except UNDECODABLE:
            events = self._slowly(payload)
        for event in events:
            if found := self._found(event, venue, event.symbol, row):
                yield found

    def _slowly(self, payload: bytes) -> list[Any]:
        """The events in what is not one event in an envelope: none in it, or several."""
        content: bytes | msgspec.Raw = payload
        with contextlib.suppress(*UNDECODABLE):
            content = msgspec.json.decode(payload, type=dict[str, msgspec.Raw]).get("data", payload)
        return _fitting(self._event, content)

    def _in_answer(self, payload: bytes, origin: bytes, row: int) -> Iterator[Found]:
        assert self._body is not None
        for element in _fitting(self._body, payload):
            if found := self._found(element, _venue(origin), _requested_symbol(origin), row):
                yield found

    def _found(self, event: Any, venue: str, symbol: str, row: int) -> Found | None:
        if getattr(event, "fill", None) == NO_PRINT:
            return None
        if venue == FUTURES and (getattr(event, "market_type", None) == COIN_M_TYPE or COIN_M_SYMBOL.search(symbol)):
            venue = COIN_M
        try:
            price, quantity = float(event.price), Decimal(event.quantity)
        except (ValueError, InvalidOperation):
            return None
        if not (_is_plain(event.price, price) and _is_plain(event.quantity, float(quantity))):
            return None
        for name in self._times:
            given = getattr(event, name, None)
            if given is not None and _us(given) > LATEST_US:
                return None
        trades = event.last_trade_id - event.first_trade_id + 1 if self._is_joined else 1
        tick = Tick(self._id(event), _us(event.time), price, quantity, trades, event.is_buyer_maker)
        return row, venue, symbol, tick


def _us(given: int) -> int:
    """Milliseconds or microseconds: the size of the number tells."""
    return given if given >= EARLIEST_US else given * 1000


def _is_plain(text: str, value: float) -> bool:
    """Whether it is a number for everybody: Python reads more than that (`1_0`, ` 1`, `nan`)."""
    return NUMBER.fullmatch(text) is not None and isfinite(value)


def _fitting(decode: Decode, content: bytes | msgspec.Raw) -> list[Any]:
    """The elements of an array, or the one thing there is, without those that do not fit."""
    try:
        elements = msgspec.json.decode(content, type=list[msgspec.Raw])
    except UNDECODABLE:
        elements = [msgspec.Raw(content)]
    fitting: list[Any] = []
    for element in elements:
        try:
            fitting.append(decode(element))
        except UNDECODABLE:
            continue
    return fitting


@lru_cache(maxsize=4096)
def _venue(origin: bytes) -> str:
    return origin.partition(b" ")[0].decode()


@lru_cache(maxsize=4096)
def _requested_symbol(origin: bytes) -> str:
    query = parse_qs(urlsplit(origin.decode().partition(" ")[2]).query)
    return query.get("symbol", [""])[0]
