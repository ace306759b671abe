"""The replayed market: a recording, message by message, at any speed."""

import asyncio
import re
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from crypto_lake.config import FUTURES
from crypto_lake.simulator import answers
from crypto_lake.simulator.grid import Grid
from crypto_lake.simulator.market import BATCH_FRAMES, Frame, Question, Refusal, is_unpaced
from crypto_lake.simulator.payloads import USD_M, Listing
from crypto_lake.simulator.recording import Line, Message, continued, lines_of, message_of, shortened, venue_of
from crypto_lake.simulator.streams import kind_of

_FINAL_ID = re.compile(rb'"u":(\d+)')
_SNAPSHOT_ID = re.compile(rb'\{"lastUpdateId":(-?\d+)')
_PRICE = re.compile(rb'"[pba]":(?:\[\[)?"(\d+)\.?(\d*)"')

Key = tuple[str, str]  # venue, symbol


@dataclass(slots=True)
class _Contents:
    """What a first look through the recording finds."""

    kinds: set[str] = field(default_factory=set)
    price_decimals: dict[Key, int] = field(default_factory=dict)
    final_ids: dict[Key, int] = field(default_factory=dict)  # newest update id, to tell whose snapshot one is
    snapshots: dict[int, Key] = field(default_factory=dict)  # by lastUpdateId
    messages: int = 0
    unknown: int = 0

    def note(self, venue: str, message: Message) -> None:
        """Take a message into account."""
        self.messages += 1
        self.kinds.add(kind_of(message.stream))
        if message.stream.startswith("!"):
            return
        lower, _, kind = message.stream.rpartition("@")
        key = (venue, lower.upper())
        price = _PRICE.search(message.payload)
        self.price_decimals[key] = max(self.price_decimals.get(key, 0), len(price[2]) if price else 0)
        if kind == "depth" and (final := _FINAL_ID.search(message.payload)):
            self.final_ids[key] = int(final[1])


class ReplayedMarket:
    """Recordings played in the order given: capture files (`<receive time ns> <JSON>`, gz or not) or journal folders.

    It begins when every kind of stream in it has a listener, or `start_after_s` after the first listener came (None:
    only when all are there). `speed` 1 is as recorded; 0 and infinity as fast as the clients read. Nothing is ever
    dropped: a client that does not read holds up the replay. Who asks for microseconds gets them where they were
    recorded; out of milliseconds nobody can make them. Raises `ValueError` or `OSError` for what is no recording.
    """

    waits_for_readers = True

    def __init__(
        self,
        *paths: str | Path,
        speed: float = 1,
        venue: str | None = None,
        start_after_s: float | None = 5.0,
    ) -> None:
        assert paths, "a replay needs a recording"
        assert speed >= 0
        self._paths = [Path(path) for path in paths]
        self._speed, self._start_after_s = speed, start_after_s
        self._venue = venue or venue_of(lines_of(self._paths))
        self._contents = _look_through(lines_of(self._paths), self._venue)
        self._snapshots: dict[Key, bytes] = {}
        self._passed = {key: asyncio.Event() for key in self._contents.snapshots.values()}
        self._given: set[bytes] = set()
        self._played = 0
        self._delisted: set[Key] = set()
        self._origin: tuple[float, int] | None = None
        self._lines = lines_of(self._paths)
        self._ahead = next(self._lines, None)
        self.clock_ms = self._ahead.received_ns // 1_000_000 if self._ahead else 0

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of stream in the recording."""
        return frozenset(self._contents.kinds)

    @property
    def messages(self) -> int:
        """How many messages it will play."""
        return self._contents.messages

    @property
    def unknown(self) -> int:
        """How many lines are no message of a stream that we serve, and no depth snapshot: they are passed over."""
        return self._contents.unknown

    @property
    def over(self) -> bool:
        """All has been played."""
        return self._ahead is None

    def symbols(self, venue: str) -> tuple[str, ...]:
        """Seen in the recording."""
        return tuple(symbol for at, symbol in self._contents.price_decimals if at == venue)

    def ready(self, kinds: Set[str], waited_s: float) -> bool:
        """All kinds have a listener, or we have waited long enough for the rest."""
        if not kinds:
            return False
        return self._contents.kinds <= kinds or (self._start_after_s is not None and waited_s >= self._start_after_s)

    def due(self, now_s: float) -> Iterator[Frame]:
        """The next messages, those of their time when there is a pace."""
        for _ in range(BATCH_FRAMES):
            line = self._ahead
            if line is None or not self._has_come(line, now_s):
                return
            self._ahead = next(self._lines, None)
            self._played += 1
            self.clock_ms = line.received_ns // 1_000_000
            if frame := self._play(line):
                yield frame

    def delist(self, venue: str, symbol: str) -> None:
        """What the recording still has of it is passed over."""
        self._delisted.add((venue, symbol))

    async def answer(self, question: Question) -> bytes:
        """Depth and the symbols that were seen.

        The newest snapshot that was passed (the first is waited for) is given once as it was recorded; who asks again
        gets the book as it is now.
        """
        if question.endpoint == "exchangeInfo":
            listings = (_listing(key, decimals) for key, decimals in self._contents.price_decimals.items())
            return answers.exchange_info(question, listings, self.clock_ms, self._delisted)
        if question.endpoint != "depth":
            raise answers.not_here(question)
        key = (question.venue, question.symbol)
        if key not in self._passed:
            raise Refusal(-1000, f"The recording has no depth snapshot of {question.symbol}.", 404)
        await self._passed[key].wait()
        snapshot = self._snapshots[key]
        if snapshot not in self._given:
            self._given.add(snapshot)
            return shortened(snapshot, question.limit)
        events = self._events_of(f"{question.symbol.lower()}@depth", question.venue)
        return await asyncio.to_thread(continued, snapshot, events, question.limit)

    def _events_of(self, stream: str, venue: str) -> Iterator[bytes]:
        """What was played of a stream of depth, read once more."""
        for line in islice(lines_of(self._paths), self._played):
            if not line.is_snapshot and (line.venue or self._venue) == venue and b'"depthUpdate"' in line.raw:
                message = message_of(line.raw, venue)
                if message and message.stream == stream:
                    yield message.payload

    def _has_come(self, line: Line, now_s: float) -> bool:
        if is_unpaced(self._speed):
            return True
        if self._origin is None:
            self._origin = (now_s, line.received_ns)
        began_s, first_ns = self._origin
        return line.received_ns - first_ns <= (now_s - began_s) * self._speed * 1e9

    def _play(self, line: Line) -> Frame | None:
        venue = line.venue or self._venue
        if line.is_snapshot:
            key = self._contents.snapshots[_snapshot_id(line)]
            self._snapshots[key] = line.raw
            self._passed[key].set()
            return None
        message = message_of(line.raw, venue)
        if message and (venue, message.stream.rpartition("@")[0].upper()) in self._delisted:
            return None
        return message and Frame(line.received_ns // 1_000_000, venue, message.stream, message.payload)


def _look_through(lines: Iterator[Line], default_venue: str) -> _Contents:
    contents = _Contents()
    early: list[tuple[int, str]] = []
    for line in lines:
        venue = line.venue or default_venue
        if line.is_snapshot:
            early += _assign(contents, venue, line)
        elif message := message_of(line.raw, venue):
            contents.note(venue, message)
        else:
            contents.unknown += 1
    for identity, venue in early:
        contents.snapshots |= _nearest(contents, identity, venue)
    return contents


def _assign(contents: _Contents, venue: str, line: Line) -> list[tuple[int, str]]:
    """Note whose snapshot a line is; given back when it stands before the first message that could tell."""
    identity = _snapshot_id(line)
    if line.asked_symbol:
        contents.snapshots[identity] = (venue, line.asked_symbol)
        return []
    found = _nearest(contents, identity, venue)
    contents.snapshots |= found
    return [] if found else [(identity, venue)]


def _nearest(contents: _Contents, identity: int, venue: str) -> dict[int, Key]:
    """Recorded snapshots do not say their symbol: it is the one whose update ids are nearest."""
    candidates = [(abs(final - identity), key) for key, final in contents.final_ids.items() if key[0] == venue]
    return {identity: min(candidates)[1]} if candidates else {}


def _snapshot_id(line: Line) -> int:
    found = _SNAPSHOT_ID.match(line.raw)
    return int(found[1]) if found else -1


def _listing(key: Key, decimals: int) -> Listing:
    """As much of a symbol's rules as its messages show: prices have so many decimals, quantities may have all."""
    venue, symbol = key
    return Listing(venue, symbol, symbol.partition("_")[0], USD_M, Grid(1, decimals, 1, 8 if venue != FUTURES else 3))
