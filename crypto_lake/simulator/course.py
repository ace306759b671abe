"""The course of a scenario: its clock, its draws, and what was done."""

import time
from collections.abc import Iterator
from hashlib import blake2b
from typing import Final, NamedTuple

from crypto_lake.simulator.market import Frame
from crypto_lake.simulator.scenario import Fault, Scenario

# Frames are kept with what was done to them: about a kilobyte each at the worst.
KEPT_DONE: Final = 200_000


class Done(NamedTuple):
    """Something that went wrong on purpose."""

    time_s: float  # since 1970
    kind: str
    what: str
    fault: int  # its place in the scenario, from 1
    connection: int | None = None  # `Served.number`
    frame: Frame | None = None  # as the venue told it


class Numbered(NamedTuple):
    """A fault and its place in the scenario, from 1."""

    number: int
    fault: Fault


class Course:
    """Begins once, when the simulator is first served, and runs on in between."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.done: list[Done] = []
        self._began_s: float | None = None

    def begin(self) -> None:
        """The second time changes nothing."""
        if self._began_s is None:
            self._began_s = time.monotonic()

    @property
    def now_s(self) -> float:
        """Seconds since it began; before, -1."""
        return -1.0 if self._began_s is None else time.monotonic() - self._began_s

    def of(self, *kinds: str) -> list[Numbered]:
        """The faults of these kinds, by kind in this order."""
        numbered = [Numbered(number, fault) for number, fault in enumerate(self.scenario.faults, 1)]
        return [each for kind in kinds for each in numbered if each.fault.kind == kind]

    def draw(self, number: int, *about: object) -> float:
        """From 0 to 1, always the same for the same seed, fault and subject: no draw depends on those before it."""
        text = f"{self.scenario.seed} {number} {about}"
        return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64

    def note(self, numbered: Numbered, what: str, connection: int | None = None, frame: Frame | None = None) -> None:
        """It has been done, now."""
        number, fault = numbered
        self.done.append(Done(time.time(), fault.kind, what, number, connection, frame))
        if len(self.done) > KEPT_DONE * 5 // 4:
            del self.done[:-KEPT_DONE]

    def in_force(self, faults: list[Numbered]) -> Iterator[Numbered]:
        """Those whose window is open now."""
        now_s = self.now_s
        return (each for each in faults if each.fault.occurrence(now_s) is not None)
