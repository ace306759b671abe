"""Repair: rows that a table lacks are asked for by their ids, and come by the journal like everything else."""

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import structlog
from msgspec.structs import replace

from crypto_lake.connections import SourceError
from crypto_lake.connections.backoff import backoff_s
from crypto_lake.connections.rest import Rest
from crypto_lake.journal import Journal
from crypto_lake.models import DATASETS, Dataset
from crypto_lake.models.dataset import Poll
from crypto_lake.models.frame import UNDECODABLE
from crypto_lake.monitoring import metrics
from crypto_lake.services.contract import Holes, Missing
from crypto_lake.services.poll import record

log = structlog.get_logger()

# Holes are filled side by side, so that a long one does not keep the short ones waiting.
AT_ONCE: Final = 4
# What was asked for and is still missing is asked for again: soon (it may be on its way through the journal), and then
# rarely: what is older than the venue's reach never comes, and waits for the official dumps.
AGAIN_S: Final = (60.0, 600.0, 3600.0)
# The oldest row is looked for in the first hour that is safely within the venue's reach.
HOUR_S: Final = 3600.0
WINDOW_MS: Final = 3_599_000
FIRST_BACKOFF_S, MOST_BACKOFF_S = 2.0, 60.0
# Of a minute's request weight: the rest is for prices and what else must be on time.
SHARE: Final = 0.9


Place = tuple[str, str, str]  # dataset, venue and symbol


@dataclass(slots=True)
class Asked:
    """A stretch of ids that was asked for, how often, and when it may be asked for again (monotonic seconds)."""

    first_id: int
    last_id: int
    times: int
    again_s: float


class Repair:
    """What is missing of all datasets that can be asked for, and who is asking for it."""

    def __init__(self, *, clock_s: Callable[[], float] = time.monotonic, again_s: Sequence[float] = AGAIN_S) -> None:
        self._clock_s, self._again_s = clock_s, again_s
        self._missing: dict[str, list[Missing]] = {}
        self._asked: dict[Place, list[Asked]] = {}
        self._working: set[Place] = set()
        # Failures in a row, and when to try again (monotonic seconds).
        self._postponed: dict[Place, tuple[int, float]] = {}
        self._heard = asyncio.Event()

    def hear(self, holes: Holes) -> None:
        """The drain says what is missing now."""
        dataset = DATASETS[holes.dataset]
        if dataset.poll and dataset.poll.from_id:
            self._missing[dataset.name] = [hole for hole in holes.missing if hole.venue in dataset.poll.requests]
            self._heard.set()

    async def run(self, rest: Rest, journals: Mapping[str, Journal], may_read: asyncio.Event) -> None:
        """Asks for what is missing, for ever; not while the disk would not take the answers."""
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(self._work(rest, journals, may_read))

    async def _work(self, rest: Rest, journals: Mapping[str, Journal], may_read: asyncio.Event) -> None:
        while True:
            await may_read.wait()
            found = self._next()
            if found is None:
                await self._wait()
                continue
            dataset, hole = found
            place = (dataset.name, hole.venue, hole.symbol)
            self._working.add(place)
            try:
                rows = await _ask(dataset, hole, rest, journals[dataset.name])
            except SourceError as error:
                self._postpone(place, error)
                continue
            finally:
                self._working.discard(place)
            self._postponed.pop(place, None)
            self._note(place, hole)
            log.info(
                "repaired" if rows else "not_repaired",
                dataset=dataset.name,
                venue=hole.venue,
                symbol=hole.symbol,
                first_id=hole.first_id,
                last_id=hole.last_id,
                rows=rows,
            )

    def _postpone(self, place: Place, error: SourceError) -> None:
        """No answer: others go first, and this symbol is asked for again after a pause that grows."""
        attempt, _ = self._postponed.get(place, (0, 0.0))
        own_s = backoff_s(attempt, random.random, first_s=FIRST_BACKOFF_S, most_s=MOST_BACKOFF_S)
        wait_s = max(own_s, error.retry_after_s or 0.0)
        self._postponed[place] = attempt + 1, self._clock_s() + wait_s
        log.warning("repair_waits", dataset=place[0], symbol=place[2], again_in_s=round(wait_s), reason=str(error))

    def _next(self) -> tuple[Dataset, Missing] | None:
        """The oldest hole that nobody works on and that is due; one at a time of a symbol."""
        now_s = self._clock_s()
        for name, missing in self._missing.items():
            for hole in missing:
                place = (name, hole.venue, hole.symbol)
                _, again_s = self._postponed.get(place, (0, 0.0))
                if again_s <= now_s and place not in self._working and self._is_due(place, hole, now_s):
                    return DATASETS[name], self._with_neighbours(DATASETS[name], hole, now_s)
        return None

    def _with_neighbours(self, dataset: Dataset, hole: Missing, now_s: float) -> Missing:
        """The hole and the next ones of the symbol, as far as one page reaches: a page of one row costs as much."""
        assert dataset.poll is not None
        place = (dataset.name, hole.venue, hole.symbol)
        reach = hole.first_id + dataset.poll.at_most - 3  # with the rows on both sides
        last = max(
            (
                other
                for other in self._missing[dataset.name]
                if (other.venue, other.symbol) == place[1:]
                and hole.first_id <= other.first_id
                and other.last_id <= reach
                and self._is_due(place, other, now_s)
            ),
            key=lambda other: other.last_id,
            default=hole,
        )
        return hole if last.last_id <= hole.last_id else replace(hole, last_id=last.last_id, end_us=last.end_us)

    def _is_due(self, place: Place, hole: Missing, now_s: float) -> bool:
        return all(asked.again_s <= now_s for asked in self._of(place, hole))

    def _of(self, place: Place, hole: Missing) -> Iterable[Asked]:
        asked = self._asked.get(place, ())
        return (each for each in asked if each.first_id <= hole.first_id and hole.last_id <= each.last_id)

    def _note(self, place: Place, hole: Missing) -> None:
        times = max((each.times for each in self._of(place, hole)), default=0)
        again_s = self._clock_s() + self._again_s[min(times, len(self._again_s) - 1)]
        missing = [each for each in self._missing.get(place[0], ()) if (each.venue, each.symbol) == place[1:]]
        # What is no longer missing needs no memory.
        still = [
            each
            for each in self._asked.get(place, ())
            if any(each.first_id <= other.last_id and other.first_id <= each.last_id for other in missing)
        ]
        self._asked[place] = [*still, Asked(hole.first_id, hole.last_id, times + 1, again_s)]

    async def _wait(self) -> None:
        """Until the drain says something new, or the next hole may be due."""
        self._heard.clear()
        try:
            async with asyncio.timeout(1.0):
                await self._heard.wait()
        except TimeoutError:
            return


async def _ask(dataset: Dataset, hole: Missing, rest: Rest, journal: Journal) -> int:
    """Asks page by page until the hole's end; returns how many of its rows came. Raises `SourceError`."""
    # From the row before the hole to the row behind it: between two rows that are there, what is not there is nowhere.
    at, rows = max(0, hole.first_id - 1), 0
    while at <= hole.last_id:
        try:
            ids = await _page(dataset, hole, at, rest, journal) or await _beyond(dataset, hole, at, rest, journal)
        except SourceError as error:
            if not error.is_final:
                raise
            log.warning("repair_refused", dataset=dataset.name, symbol=hole.symbol, reason=str(error))
            break
        wanted = sum(max(hole.first_id, at + 1) <= each <= hole.last_id for each in ids)
        metrics.repair_rows_total.labels(dataset.name, hole.venue).inc(wanted)
        rows += wanted
        if not ids or max(ids) <= at:
            break
        at = max(ids)
    return rows


async def _page(dataset: Dataset, hole: Missing, from_id: int, rest: Rest, journal: Journal) -> list[int]:
    """The ids of the rows that the venue gives from an id on; the answer itself goes into the journal."""
    poll = dataset.poll
    assert poll is not None
    # To the row behind the hole, and always more than the row that it begins with.
    limit = min(poll.at_most, hole.last_id - from_id + 2)
    params = {"symbol": hole.symbol, poll.from_id: str(from_id), "limit": str(limit)}
    request = poll.requests[hole.venue]
    answer = await rest.get(hole.venue, request.path, params, weight=request.weight, share=SHARE)
    ids = _ids(dataset, poll, answer.body)
    if ids:
        record(journal, hole.venue, request.path, params, answer)
    return ids


async def _beyond(dataset: Dataset, hole: Missing, at: int, rest: Rest, journal: Journal) -> list[int]:
    """The same from the oldest row that the venue still has, when it has none where the hole begins."""
    oldest = await _oldest(dataset, hole, rest)
    return await _page(dataset, hole, oldest[0], rest, journal) if oldest and at < oldest[0] <= hole.last_id else []


async def _oldest(dataset: Dataset, hole: Missing, rest: Rest) -> list[int]:
    """The id of the oldest row that the venue still has, if the hole is older than its reach; none if it has none."""
    poll = dataset.poll
    assert poll is not None
    request = poll.requests[hole.venue]
    if request.reach_s is None:
        return []
    start_ms = int((time.time() - request.reach_s + HOUR_S) * 1000)
    if hole.start_us // 1000 >= start_ms:
        return []
    params = {"symbol": hole.symbol, "startTime": str(start_ms), "endTime": str(start_ms + WINDOW_MS), "limit": "1"}
    answer = await rest.get(hole.venue, request.path, params, weight=request.weight, share=SHARE)
    return _ids(dataset, poll, answer.body)[:1]


def _ids(dataset: Dataset, poll: Poll, body: bytes) -> list[int]:
    """Raises `SourceError` when the answer is no list of rows."""
    assert dataset.sequence is not None
    try:
        rows = [msgspec.json.decode(row, type=poll.body) for row in msgspec.json.decode(body, type=list[msgspec.Raw])]
    except UNDECODABLE as error:
        raise SourceError(f"the answer to a request for {dataset.name} cannot be read: {error}") from None
    return [getattr(row, dataset.sequence) for row in rows]
