"""Who heard what when: the time in which a feed's connections prove that nothing was lost, and the holes between.

TCP is in order: two frames on one connection prove that it lost nothing in between. So what is covered is the union of
the stretches from the first to the last frame of each connection; what lies between two of them is a hole.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

from crypto_lake.models.gap import RESTART

# A feed that is dark for so long says so before it knows the end: a glance at the tables must not look whole.
DARK_US: Final = 2_000_000
# Connections that ended while an older one was mute, and may yet prove to have missed nothing; no more are kept.
MOST_PENDING: Final = 64


@dataclass(slots=True, eq=False)
class Line:
    """One connection of a feed; times are our clock, microseconds since 1970, and 0 before the first frame.

    Whoever reads it sets `last_us` at each frame, and then `Delivery.proven_us` to the same if the line `is_joined`;
    if not, it calls `Delivery.join`. That is all there is to do per frame.
    """

    first_us: int = 0
    last_us: int = 0
    frames: int = 0
    # Since when what is read may have waited in the socket, so that its time of reading proves nothing; 0: it does.
    doubt_us: int = 0
    is_open: bool = True
    is_joined: bool = False  # whether its stretch is connected to what is proven
    reason: str = ""


class Hole(NamedTuple):
    """A time that no connection covers; no begin: nothing was ever heard; no end: it lasts."""

    from_us: int | None
    to_us: int | None
    reason: str


class Delivery:
    """What a feed's connections have proven up to now. A first frame ends the hole that the start has left."""

    def __init__(self, heard_us: int | None, *, started_us: int) -> None:
        self.proven_us = started_us if heard_us is None else min(heard_us, started_us)
        self._has_begin = heard_us is not None
        self._is_starting, self._is_told = True, False
        self._dark_since_us = started_us
        self._reason = RESTART
        self._open: list[Line] = []  # and joined
        self._pending: list[Line] = []

    @property
    def delivering(self) -> int:
        """How many connections hear everything, as far as we know."""
        return len(self._open)

    @property
    def lines(self) -> list[Line]:
        """They."""
        return self._open

    @property
    def is_pending(self) -> bool:
        """Whether something was heard that does not join what is proven, and an older line may still bridge it."""
        return bool(self._open and self._pending)

    @property
    def is_dark(self) -> bool:
        """Whether there is none."""
        return not self._open

    @property
    def has_begun(self) -> bool:
        """Whether anything has come since the start."""
        return not self._is_starting

    def join(self, line: Line) -> list[Hole]:
        """A line that is not joined has heard something, at its `last_us`. Returns the holes that this shows."""
        if not line.first_us:
            line.first_us = line.last_us
            self._pending.append(line)
        line.first_us = min(line.first_us, line.last_us)  # the clock was set back
        if not self._open or len(self._pending) > MOST_PENDING:
            return self._resolve()
        if line.first_us <= self.proven_us:
            self._admit(line)
            self._pending = [each for each in self._pending if self._may_matter(each)]
        return []

    def ended(self, line: Line, reason: str) -> list[Hole]:
        """A line is not open any more. Returns the holes that this shows: those that only it could have covered."""
        line.is_open, line.reason = False, reason
        if not line.is_joined:
            return []
        self._open.remove(line)
        if line.last_us >= self.proven_us:
            self._reason = reason
        if self._open:
            return []
        if line.doubt_us:
            self.proven_us = min(self.proven_us, line.doubt_us)
        self._dark_since_us = self.proven_us
        return self._resolve()

    def lasting(self, now_us: int) -> Hole | None:
        """The hole that lasts now and that nobody has been told of; asked about once a second."""
        if self._open or self._is_told or now_us - self._dark_since_us < DARK_US:
            return None
        self._is_told = True
        return Hole(self._begin_us(now_us), None, self._reason)

    def _resolve(self) -> list[Hole]:
        """No older line will say any more what it heard: whoever has heard something is believed, oldest first."""
        holes = []
        for line in sorted(self._pending, key=lambda each: each.first_us):
            if self._is_starting or self._is_told or line.first_us > self.proven_us:
                holes.append(Hole(self._begin_us(line.first_us), line.first_us, self._reason))
            self._admit(line)
            if self._open:
                break
        self._pending = [line for line in self._pending if self._may_matter(line)]
        return holes

    def _admit(self, line: Line) -> None:
        line.is_joined = True
        self.proven_us = line.last_us if self._is_starting else max(self.proven_us, line.last_us)
        self._is_starting = self._is_told = False
        self._has_begin = True
        if line.is_open:
            self._open.append(line)
        else:
            self._reason, self._dark_since_us = line.reason, self.proven_us

    def _may_matter(self, line: Line) -> bool:
        return not line.is_joined and (line.is_open or line.last_us > self.proven_us)

    def _begin_us(self, at_most_us: int) -> int | None:
        """Never behind the end, also when the clock was set back in between."""
        return min(self.proven_us, at_most_us) if self._has_begin else None
