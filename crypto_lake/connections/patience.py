"""The one place where anything is asked again: how often in vain, how long between, and who waits with whom."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from crypto_lake.connections import SourceError
from crypto_lake.connections.backoff import backoff_s

# Only tries that brought no byte count, so this bounds how long we hope, not how long a file may be.
ATTEMPTS = 6
# A longer wait than this is the caller's business: it gets a SourceError at once, with `retry_after_s`.
PATIENCE_S = 120.0

Got = TypeVar("Got")


class AgainError(SourceError):
    """The same question may find an answer soon; `is_for_all`: whoever asks this server is to wait, not only we."""

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        status: int | None = None,
        is_for_all: bool = False,
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s, status=status)
        self.is_for_all = is_for_all or retry_after_s is not None


class Patience:
    """What the questions to one server share: `attempts` tries in a row that got no farther, and the server's pauses.

    `draw` gives numbers from 0 up to 1, as `random.random` does.
    """

    def __init__(self, attempts: int, sleep: Callable[[float], Awaitable[None]], draw: Callable[[], float]) -> None:
        self._attempts, self._sleep, self._draw = attempts, sleep, draw
        self._pauses, self._may_ask = 0, asyncio.Event()
        self._may_ask.set()

    async def may_ask(self) -> None:
        """Returns when nobody has been told to wait: to be awaited before each single request."""
        await self._may_ask.wait()

    async def answer(self, ask: Callable[[], Awaitable[Got]], held: Callable[[], int] = lambda: 0) -> Got:
        """What `ask` gives in the end; who holds more than ever before may always try again.

        Raises the last `AgainError` when it has been in vain too often, or is to wait for too long.
        """
        in_vain, farthest = 0, held()
        while True:
            try:
                return await ask()
            except AgainError as error:
                failure = error
            in_vain = 0 if held() > farthest else in_vain + 1
            farthest = max(farthest, held())
            if in_vain >= self._attempts or (failure.retry_after_s or 0.0) > PATIENCE_S:
                raise failure
            await self._wait(failure, backoff_s(max(0, in_vain - 1), self._draw))

    async def _wait(self, failure: AgainError, own_s: float) -> None:
        if not failure.is_for_all:
            await self._sleep(own_s)
            return
        self._pauses += 1
        self._may_ask.clear()
        try:
            await self._sleep(max(failure.retry_after_s or 0.0, own_s))
        finally:
            self._pauses -= 1
            if not self._pauses:
                self._may_ask.set()
