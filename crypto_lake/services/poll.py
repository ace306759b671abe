"""Polling: what is asked over REST goes into the journal of its dataset, like everything else."""

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Final
from urllib.parse import urlencode

import msgspec
import structlog

from crypto_lake.connections import SourceError
from crypto_lake.connections.rest import Answer, Rest
from crypto_lake.journal import LAPSE, RESPONSE, Journal
from crypto_lake.models import Dataset
from crypto_lake.models.dataset import Request
from crypto_lake.models.frame import Lapse
from crypto_lake.models.gap import DISCONNECT, RESTART
from crypto_lake.monitoring import metrics
from crypto_lake.services.markets import Wanted

log = structlog.get_logger()

# One request for all symbols weighs 40 (spot 80), one for one symbol 1 (spot 2): above this all are cheaper.
FEW_SYMBOLS: Final = 20
# An answer may come late by half a period; after that one is missing.
LATE_PERIODS: Final = 1.5


class Answers:
    """When each question was answered last; an answer that is missing leaves a lapse in front of the next one."""

    def __init__(self, dataset: Dataset, wanted: Wanted, journal: Journal, *, every_s: float) -> None:
        self._dataset, self._wanted, self._journal = dataset, wanted, journal
        self._late_us = int(LATE_PERIODS * every_s * 1e6)
        self._answered_us: dict[bytes, int] = {}

    def note(self, origin: bytes, symbol: str, received_us: int) -> None:
        """An answer has come, our clock in µs; `symbol` is empty where the question was for all of them."""
        before_us = self._answered_us.get(origin)
        if before_us is None:
            self._write(origin, symbol, Lapse([], RESTART, self._journal.heard_us(origin), received_us))
        elif received_us - before_us > self._late_us:
            self._write(origin, symbol, Lapse([], DISCONNECT, before_us, received_us))
        self._answered_us[origin] = received_us

    def _write(self, origin: bytes, symbol: str, lapse: Lapse) -> None:
        assert lapse.to_us is not None
        lapse.symbols = [symbol] if symbol else list(self._wanted.symbols)
        self._journal.append(LAPSE, origin, msgspec.json.encode(lapse), lapse.to_us)
        metrics.lapses_total.labels(self._dataset.name, self._wanted.venue, lapse.reason).inc()


async def poll(
    dataset: Dataset, wanted: Wanted, rest: Rest, journal: Journal, may_read: asyncio.Event, *, every_s: float
) -> None:
    """Asks now and at every full `every_s` since 1970, for ever; what gets no answer is asked again next time.

    While `may_read` is not set nothing is asked: the disk would not take the answers.
    """
    answers = Answers(dataset, wanted, journal, every_s=every_s)
    while True:
        await may_read.wait()
        try:
            await snapshot(dataset, wanted, rest, journal, answers)
        except SourceError as error:
            log.warning("poll_failed", dataset=dataset.name, venue=wanted.venue, reason=str(error))
        await asyncio.sleep(every_s - time.time() % every_s)


async def snapshot(
    dataset: Dataset, wanted: Wanted, rest: Rest, journal: Journal, answers: Answers | None = None
) -> None:
    """Asks once for every wanted symbol. Raises `SourceError`."""
    assert dataset.poll is not None
    request = dataset.poll.requests[wanted.venue]
    for weight, params in _questions(request, wanted):
        answer = await rest.get(wanted.venue, request.path, params, weight=weight)
        if answers is not None:
            answers.note(origin_of(wanted.venue, request.path, params), params.get("symbol", ""), answer.received_us)
        record(journal, wanted.venue, request.path, params, answer)


def _questions(request: Request, wanted: Wanted) -> Iterator[tuple[int, Mapping[str, str]]]:
    if wanted.every or len(wanted.symbols) > FEW_SYMBOLS:
        yield request.weight, request.params
        return
    for symbol in wanted.symbols:
        yield 2, {**request.params, "symbol": symbol}


def record(journal: Journal, venue: str, path: str, params: Mapping[str, str], answer: Answer) -> None:
    """Appends an answer, under the question that it answers."""
    journal.append(RESPONSE, origin_of(venue, path, params), answer.body, answer.received_us)


def origin_of(venue: str, path: str, params: Mapping[str, str]) -> bytes:
    """The name of a question in the journal."""
    return (f"{venue} {path}?{urlencode(params)}" if params else f"{venue} {path}").encode()


def polled(datasets: Iterable[Dataset], markets: Mapping[str, Wanted]) -> list[tuple[Dataset, Wanted]]:
    """What is polled: datasets that have no stream, on every venue that answers for them."""
    return [
        (dataset, wanted)
        for dataset in datasets
        if dataset.poll and not dataset.live
        for venue, wanted in markets.items()
        if venue in dataset.poll.requests
    ]
