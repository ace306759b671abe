"""What a market is to the simulator: it yields timed frames and answers REST questions."""

import math
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from crypto_lake.config import FUTURES
from crypto_lake.simulator.streams import PUBLIC, route_of

# A clock that fell behind (a busy machine, a server that was down) catches up in pieces, so that sockets are served.
BATCH_FRAMES = 2_000


class Frame(NamedTuple):
    """One message as the venue sends it, before it is wrapped under the name that somebody subscribed to."""

    time_ms: int
    venue: str
    stream: str
    payload: bytes

    @property
    def route(self) -> str:
        """The path in front of `/ws` and `/stream` that carries it: `/public` or `/market`, nothing on spot."""
        if self.venue != FUTURES:
            return ""
        return "/public" if route_of(self.stream) == PUBLIC else "/market"

    def combined(self, name: str | None = None) -> bytes:
        """As a combined connection delivers it, under `name` (`btcusdt@depth@100ms`) or its own."""
        return combined(name or self.stream, self.payload)


def combined(name: str, payload: bytes) -> bytes:
    """The envelope of combined connections around untouched payload bytes."""
    return b'{"stream":"' + name.encode() + b'","data":' + payload + b"}"


@dataclass(frozen=True, slots=True)
class Question:
    """A REST request whose parameters have been checked against the endpoint's rules."""

    venue: str
    endpoint: str
    symbols: tuple[str, ...]
    is_list: bool
    limit: int
    from_id: int | None = None
    start_ms: int | None = None
    end_ms: int | None = None
    interval: str = ""

    @property
    def symbol(self) -> str:
        """The one symbol of an endpoint that asks for one."""
        return self.symbols[0]


class Refusal(Exception):
    """An error answer: HTTP status, the venue's code and its words."""

    def __init__(self, code: int, words: str, status: int = 400) -> None:
        super().__init__(words)
        self.code, self.words, self.status = code, words, status


class Market(Protocol):
    """What happens on the exchange, on a clock of its own."""

    @property
    def waits_for_readers(self) -> bool:
        """True: nothing more is played while a client has not read; False: a client that does not read is cut off."""

    @property
    def over(self) -> bool:
        """Nothing will come any more."""

    @property
    def clock_ms(self) -> int:
        """The exchange's time."""

    def symbols(self, venue: str) -> tuple[str, ...]:
        """What is traded there."""

    def ready(self, kinds: Set[str], waited_s: float) -> bool:
        """May it begin, with listeners to these kinds of stream, the first of them since so many seconds?"""

    def due(self, now_s: float) -> Iterator[Frame]:
        """The next frames whose time has come by the reading of a monotonic clock."""

    def delist(self, venue: str, symbol: str) -> None:
        """From now on its streams are silent; REST still has its history, and says that it is not traded."""

    async def answer(self, question: Question) -> bytes:
        """The JSON body of a REST answer; raises `Refusal`."""


def is_unpaced(speed: float) -> bool:
    """Speed 0 and infinity both mean: as fast as the clients read."""
    return speed == 0 or math.isinf(speed)
