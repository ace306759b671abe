"""Connections that hear nothing while their siblings hear plenty: dead, and alive to all appearance."""

from collections.abc import Hashable, Mapping
from typing import Final, Generic, TypeVar

# So many messages on a sibling are no coincidence.
PLENTY: Final = 20

Who = TypeVar("Who", bound=Hashable)


class Mute(Generic[Who]):
    """Compares the connections of a feed, once a second."""

    def __init__(self, mute_s: float) -> None:
        self._mute_s = mute_s
        # Per connection: its count, since when it has that, and the sum of all that the others had heard then.
        self._known: dict[Who, tuple[int, float, int]] = {}
        self._sum = 0
        self._before: dict[Who, int] = {}

    def look(self, frames: Mapping[Who, int], now_s: float) -> list[Who]:
        """Who is mute, by the count of messages that each open connection has heard."""
        self._sum += sum(max(0, count - self._before.get(who, 0)) for who, count in frames.items())
        self._before = dict(frames)
        known = {}
        for who, count in frames.items():
            before = self._known.get(who)
            known[who] = before if before is not None and before[0] == count else (count, now_s, self._sum)
        self._known = known
        return [
            who
            for who, (_, since_s, total) in known.items()
            if now_s - since_s >= self._mute_s and self._sum - total >= PLENTY
        ]
