"""Snapshots of the book: one per symbol after a hole, not older than the stream it is for, and one every so often.

All within the weight budget. A snapshot knows the levels near the price of its time; when the price has left them a
book is not whole any more without another one.
"""

import asyncio
import random
from typing import Final

import msgspec
import structlog
from msgspec import Struct, field

from crypto_lake.connections import SourceError
from crypto_lake.connections.backoff import backoff_s
from crypto_lake.connections.rest import Rest
from crypto_lake.journal import Journal
from crypto_lake.models.depth import DEPTH, DepthSnapshot
from crypto_lake.models.frame import UNDECODABLE
from crypto_lake.services.collect import Feed
from crypto_lake.services.contract import Holes
from crypto_lake.services.poll import record

log = structlog.get_logger()

# Each answer is up to some megabytes and heavy; a few at a time keep the budget busy without holding it.
AT_ONCE: Final = 4
TRIES: Final = 6
# Of a minute's request weight: the rest is for trades and prices, which must not wait for three hundred books.
SHARE: Final = 0.8


class _First(Struct):
    symbol: str = field(name="s")
    first_update_id: int = field(name="U")


class _FirstMessage(Struct):
    data: _First


Book = tuple[str, str]  # venue and symbol


class Snapshots:
    """The books to be fetched: for each the update id that its snapshot must not be older than."""

    def __init__(self) -> None:
        self._needs: dict[Book, int] = {}
        self._queue: asyncio.Queue[Book] = asyncio.Queue()  # bounded by the number of symbols
        self._newest: dict[Book, int] = {}

    def ask(self, feed: Feed, payload: bytes) -> None:
        """A depth stream has begun with this message."""
        try:
            first = msgspec.json.decode(payload, type=_FirstMessage).data
        except UNDECODABLE:
            return  # the drain sets the message aside; without its ids there is nothing to attach a book to
        # Whatever was fetched before: the ids of a stream that begins anew may have begun anew too.
        self._newest.pop((feed.venue, first.symbol), None)
        self.need(feed.venue, first.symbol, first.first_update_id)

    def hear(self, holes: Holes) -> None:
        """The drain has found holes in the chain of events: behind each a book is needed."""
        if holes.dataset == DEPTH.name:
            for hole in holes.missing:
                self.need(hole.venue, hole.symbol, hole.last_id)

    def need(self, venue: str, symbol: str, update_id: int) -> None:
        """The book is wanted as it is at this update or later; one that was fetched already will do."""
        book = venue, symbol
        assert DEPTH.poll is not None
        if venue not in DEPTH.poll.requests:
            return
        if self._newest.get(book, -1) >= update_id:
            return
        if book not in self._needs:
            self._queue.put_nowait(book)
        self._needs[book] = max(update_id, self._needs.get(book, update_id))

    @property
    def waiting(self) -> int:
        """How many books are still to be fetched."""
        return len(self._needs)

    async def fetch(self, rest: Rest, journal: Journal, may_read: asyncio.Event, *, every_s: float = 0) -> None:
        """Fetches what is asked for, some at a time, for ever; not while the disk would not take the answers.

        With `every_s` each book is fetched again after about so long.
        """
        async with asyncio.TaskGroup() as group:
            if every_s:
                group.create_task(self._renew(every_s))
            for _ in range(AT_ONCE):
                group.create_task(self._work(rest, journal, may_read))

    async def _renew(self, every_s: float) -> None:
        """All books in turns, evenly: the budget is for holes in the first place."""
        while True:
            books = sorted(self._newest)
            await asyncio.sleep(0 if books else every_s)
            for book in books:
                await asyncio.sleep(every_s / len(books))
                if book in self._newest:
                    self.need(*book, self._newest[book] + 1)

    async def _work(self, rest: Rest, journal: Journal, may_read: asyncio.Event) -> None:
        while True:
            book = await self._queue.get()
            await may_read.wait()
            newest = await self._fetch(book, rest, journal)
            if newest is None:
                log.error("no_snapshot", venue=book[0], symbol=book[1], effect="its book cannot be rebuilt yet")
                self._queue.put_nowait(book)  # behind all others
                continue
            wanted = self._needs.pop(book)
            self._newest[book] = newest
            if wanted > newest:  # another hole meanwhile
                self.need(*book, wanted)

    async def _fetch(self, book: Book, rest: Rest, journal: Journal) -> int | None:
        """The update id of a snapshot that is not too old; None if there was none to be had."""
        assert DEPTH.poll is not None
        venue, symbol = book
        request = DEPTH.poll.requests[venue]
        params = {"symbol": symbol, **request.params}
        for attempt in range(TRIES):
            try:
                answer = await rest.get(venue, request.path, params, weight=request.weight, share=SHARE)
                record(journal, venue, request.path, params, answer)
                found = msgspec.json.decode(answer.body, type=DepthSnapshot).final_update_id
                if found >= self._needs[book]:
                    return found
            except UNDECODABLE as error:
                log.warning("snapshot_unreadable", venue=venue, symbol=symbol, reason=str(error))
            except SourceError as error:
                log.warning("snapshot_failed", venue=venue, symbol=symbol, reason=str(error))
                if error.is_final:
                    return self._needs[book]  # the venue has no such book, and never will
                await asyncio.sleep(error.retry_after_s or 0)
            await asyncio.sleep(backoff_s(attempt, random.random))
        return None
