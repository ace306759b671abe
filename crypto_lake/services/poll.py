"""Polling: what is asked over REST goes into the journal of its dataset, like everything else."""

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Final
from urllib.parse import urlencode

import structlog

from crypto_lake.connections import SourceError
from crypto_lake.connections.rest import Answer, Rest
from crypto_lake.journal import RESPONSE, Journal
from crypto_lake.models import Dataset
from crypto_lake.models.dataset import Request
from crypto_lake.services.markets import Wanted

log = structlog.get_logger()

# One request for all symbols weighs 40 (spot 80), one for one symbol 1 (spot 2): above this all are cheaper.
FEW_SYMBOLS: Final = 20


async def poll(dataset: Dataset, wanted: Wanted, rest: Rest, journal: Journal, *, every_s: float) -> None:
    """Asks now and at every full `every_s` since 1970, for ever; what gets no answer is asked again next time."""
    while True:
        try:
            await snapshot(dataset, wanted, rest, journal)
        except SourceError as error:
            log.warning("poll_failed", dataset=dataset.name, venue=wanted.venue, reason=str(error))
        await asyncio.sleep(every_s - time.time() % every_s)


async def snapshot(dataset: Dataset, wanted: Wanted, rest: Rest, journal: Journal) -> None:
    """Asks once for every wanted symbol. Raises `SourceError`."""
    assert dataset.poll is not None
    request = dataset.poll.requests[wanted.venue]
    for weight, params in _questions(request, wanted):
        answer = await rest.get(wanted.venue, request.path, params, weight=weight)
        record(journal, wanted.venue, request.path, params, answer)


def _questions(request: Request, wanted: Wanted) -> Iterator[tuple[int, Mapping[str, str]]]:
    if wanted.every or len(wanted.symbols) > FEW_SYMBOLS:
        yield request.weight, request.params
        return
    for symbol in wanted.symbols:
        yield 2, {**request.params, "symbol": symbol}


def record(journal: Journal, venue: str, path: str, params: Mapping[str, str], answer: Answer) -> None:
    """Appends an answer, under the question that it answers."""
    origin = f"{venue} {path}?{urlencode(params)}" if params else f"{venue} {path}"
    journal.append(RESPONSE, origin.encode(), answer.body, answer.received_us)


def polled(datasets: Iterable[Dataset], markets: Mapping[str, Wanted]) -> list[tuple[Dataset, Wanted]]:
    """What is polled: datasets that have no stream, on every venue that answers for them."""
    return [
        (dataset, wanted)
        for dataset in datasets
        if dataset.poll and not dataset.live
        for venue, wanted in markets.items()
        if venue in dataset.poll.requests
    ]
