"""What the simulator's tests say to it and wait for; every wait has an end."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as connect_and_block

PATIENCE_S = 20.0


class Talk:
    """A client's side of the conversation."""

    async def received(self, socket: ClientConnection) -> bytes:
        """The next message as it came."""
        return await asyncio.wait_for(socket.recv(decode=False), PATIENCE_S)

    async def heard(self, socket: ClientConnection) -> Any:
        """The next message, decoded."""
        return json.loads(await self.received(socket))

    async def collected(self, url: str, count: int) -> list[bytes]:
        """So many messages, read by a thread: on this loop, in debug mode, a capture would take a minute."""
        return await asyncio.to_thread(_collected, url, count)

    async def asked(self, socket: ClientConnection, **request: Any) -> Any:
        """The answer to a control message; market messages that come before it are passed over."""
        await socket.send(json.dumps(request))
        while True:
            message = await self.heard(socket)
            if isinstance(message, dict) and ("result" in message or "code" in message):
                return message

    @asynccontextmanager
    async def listening(self, url: str) -> AsyncIterator[ClientConnection]:
        """A WebSocket client that does not think of its own pings."""
        async with connect(url, ping_interval=None, close_timeout=1) as socket:
            yield socket

    async def got(
        self, url: str, *, headers: dict[str, str] | None = None, **query: Any
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, decoded body and headers of a GET."""
        async with aiohttp.ClientSession() as session, session.get(url, params=query, headers=headers) as response:
            return response.status, await response.json(), dict(response.headers)

    async def closed(self, socket: ClientConnection) -> ConnectionClosed:
        """How it ended; what came before is passed over."""
        try:
            for _ in self.tries():
                await self.received(socket)
        except ConnectionClosed as closed:
            return closed
        raise AssertionError("unreachable")

    def tries(self) -> Iterator[None]:
        """As many as there is time for; when it is over, what was waited for has not come, and the test fails."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            yield
        pytest.fail(f"not within {PATIENCE_S} s")

    async def patiently(self, awaitable: Any) -> Any:
        """Its result, within the time that everything here has."""
        return await asyncio.wait_for(awaitable, PATIENCE_S)


def _collected(url: str, count: int) -> list[bytes]:
    with connect_and_block(url, ping_interval=None, close_timeout=1) as socket:
        return [socket.recv(PATIENCE_S, decode=False) for _ in range(count)]


@pytest.fixture
def talk() -> Talk:
    return Talk()
