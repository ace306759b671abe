"""How a build goes on: series side by side, each a list of steps, and one process that commits."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Final, NamedTuple, TypeVar

from crypto_lake.writers import CommitConflict

# Others commit to the table every some seconds at the most; so many conflicts in a row are no chance.
CONFLICTS: Final = 10


class Call(NamedTuple):
    """A task for the farm: a function that can be found by its name, and what it is called with."""

    function: Callable[..., Any]
    args: tuple[Any, ...]


# One series: it yields tasks, is sent what they return, and in between puts what is to be committed.
Steps = Generator[Call, Any, None]
# Called with a table, how many days or series are done, and how many there are.
OnStep = Callable[[str, int, int], None]


def silently(table: str, done: int, of: int) -> None:
    """Tells nobody how far a build is."""


@dataclass(slots=True)
class Built:
    """What a build did. `computed` rows were made, of which `added` were not held as they are."""

    dataset: str
    series: int = 0
    days: int = 0
    computed: int = 0
    added: int = 0
    revised: int = 0
    removed: int = 0
    findings: int = 0
    # What a user should know, each said once.
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    is_stopped: bool = False

    def say(self, note: str) -> None:
        """Notes it, unless it was said before."""
        if note not in self.notes:
            self.notes.append(note)


B = TypeVar("B", bound=Built)


def settled(make: Callable[[], B]) -> B:
    """What `make` has built; from the tables anew as often as somebody else was faster. Raises `CommitConflict`."""
    began_s = time.monotonic()
    for left in reversed(range(CONFLICTS)):
        try:
            built = make()
        except CommitConflict:
            if not left:
                raise
        else:
            break
    built.seconds = time.monotonic() - began_s
    return built


def drive(
    works: Iterable[Steps],
    executor: Executor,
    at_once: int,
    *,
    on_done: Callable[[], None] = lambda: None,
    stop: Event | None = None,
) -> None:
    """Carries all series to their end, `at_once` of them at a time, each one task after the other.

    `on_done` is called after each step, when everything that was put belongs together: the moment for a commit. When
    `stop` is set no new task is begun, and what was under way is left where the last commit left it.
    """
    waiting = deque(works)
    under_way: dict[Future[Any], Steps] = {}
    while waiting or under_way:
        if stop is not None and stop.is_set():
            break
        while waiting and len(under_way) < at_once:
            _go_on(waiting.popleft(), None, executor, under_way)
            on_done()
        done, _ = wait(under_way, return_when=FIRST_COMPLETED)
        for future in done:
            _go_on(under_way.pop(future), future.result(), executor, under_way)
            on_done()
    for future in under_way:
        future.cancel()


def _go_on(steps: Steps, result: Any, executor: Executor, under_way: dict[Future[Any], Steps]) -> None:
    """To the next task of a series, which is handed to the farm, or to its end."""
    try:
        call = steps.send(result)
    except StopIteration:
        return
    under_way[executor.submit(call.function, *call.args)] = steps
