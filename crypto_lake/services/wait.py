"""Waiting for whichever comes first: an event, a task, or the end of a time."""

import asyncio
from typing import Any


async def first_of(event: asyncio.Event, *tasks: "asyncio.Task[Any]", timeout_s: float | None = None) -> None:
    """Returns when the event is set, a task is done, or the time is over, whichever is first; cancels no task."""
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait([waiting, *tasks], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
