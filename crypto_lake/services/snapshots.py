"""Snapshots of the book: one per symbol after a hole, not older than the stream it is for, within the weight budget."""

import asyncio
import random
from typing import Final, NamedTuple

import msgspec
import structlog
from msgspec import Struct, field

from crypto_lake.connections import SourceError
from crypto_lake.connections.backoff import backoff_s
from crypto_lake.connections.rest import Rest
from crypto_lake.journal import Journal
from crypto_lake.models.depth import DEPTH, DepthSnapshot
from crypto_lake.services.collect import Feed
from crypto_lake.services.poll import record

log = structlog.get_logger()

# Each answer is up to some megabytes and heavy; a few at a time keep the budget busy without holding it.
AT_ONCE: Final = 4
TRIES: Final = 6


class _First(Struct):
    symbol: str = field(name="s")
    first_update_id: int = field(name="U")


class _FirstMessage(Struct):
    data: _First


class Need(NamedTuple):
    """A symbol whose stream began at `first_update_id`: the snapshot must not be older."""

    venue: str
    symbol: str
    first_update_id: int


class Snapshots:
    """The queue of books to be fetched."""

    def __init__(self) -> None:
        self._needs: asyncio.Queue[Need] = asyncio.Queue()  # bounded by the number of symbols

    def ask(self, feed: Feed, payload: bytes) -> None:
        """A depth stream has begun with this message."""
        try:
            first = msgspec.json.decode(payload, type=_FirstMessage).data
        except msgspec.DecodeError:
            return  # the drain sets the message aside; without its ids there is nothing to attach a book to
        self._needs.put_nowait(Need(feed.venue, first.symbol, first.first_update_id))

    async def fetch(self, rest: Rest, journal: Journal) -> None:
        """Fetches what is asked for, some at a time, for ever."""
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(self._work(rest, journal))

    async def _work(self, rest: Rest, journal: Journal) -> None:
        while True:
            need = await self._needs.get()
            if not await _fetch(need, rest, journal):
                log.error("no_snapshot", venue=need.venue, symbol=need.symbol, effect="its book cannot be rebuilt yet")


async def _fetch(need: Need, rest: Rest, journal: Journal) -> bool:
    """Whether a snapshot that is not too old was to be had."""
    assert DEPTH.poll is not None
    request = DEPTH.poll.requests[need.venue]
    params = {"symbol": need.symbol, **request.params}
    for attempt in range(TRIES):
        try:
            answer = await rest.get(need.venue, request.path, params, weight=request.weight)
            record(journal, need.venue, request.path, params, answer)
            if msgspec.json.decode(answer.body, type=DepthSnapshot).final_update_id >= need.first_update_id:
                return True
        except msgspec.DecodeError as error:
            log.warning("snapshot_unreadable", venue=need.venue, symbol=need.symbol, reason=str(error))
        except SourceError as error:
            log.warning("snapshot_failed", venue=need.venue, symbol=need.symbol, reason=str(error))
            await asyncio.sleep(error.retry_after_s or 0)
        await asyncio.sleep(backoff_s(attempt, random.random))
    return False
