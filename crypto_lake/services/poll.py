"""Polling: what is asked over REST goes into the journal of its dataset, like everything else."""

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
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
from crypto_lake.services.leave_out import only
from crypto_lake.services.markets import Wanted

log = structlog.get_logger()

# One request for all symbols weighs 40 (spot 80), one for one symbol 1 (spot 2): above this all are cheaper.
FEW_SYMBOLS: Final = 20
# An answer may come late by half a period; after that one is missing.
LATE_PERIODS: Final = 1.5


class Answers:
    """When each symbol was answered for last; an answer that is missing leaves a lapse in front of the next one."""

    def __init__(self, dataset: Dataset, venue: str, journal: Journal, *, every_s: float) -> None:
        assert dataset.poll is not None
        self._dataset, self._venue, self._journal = dataset, venue, journal
        self._late_us = int(LATE_PERIODS * every_s * 1e6)
        self._origin = origin_of(venue, dataset.poll.requests[venue].path, {})
        # Whom an earlier run asked for: what nobody asked for before leaves no hole. None: nobody knows.
        self._before = None if journal.carried is None else frozenset(journal.carried.get(self._origin, ()))
        self._answered_us: dict[str, int] = {}

    def note(self, origin: bytes, symbols: Iterable[str], received_us: int) -> None:
        """An answer has come for these, our clock in µs."""
        lapses: dict[tuple[str, int | None], list[str]] = {}
        for symbol in symbols:
            before_us = self._answered_us.get(symbol)
            if before_us is None and (self._before is None or symbol in self._before):
                like = b"" if self._before is None else self._origin
                heard_us = self._journal.heard_us(origin, or_any=like)
                lapses.setdefault((RESTART, heard_us), []).append(symbol)
            elif before_us is not None and received_us - before_us > self._late_us:
                lapses.setdefault((DISCONNECT, before_us), []).append(symbol)
            self._answered_us[symbol] = received_us
        for (reason, from_us), missed in lapses.items():
            lapse = Lapse(missed, reason, from_us, received_us)
            self._journal.append(LAPSE, origin, msgspec.json.encode(lapse), received_us)
            metrics.lapses_total.labels(self._dataset.name, self._venue, reason).inc()

    def keep(self, symbols: Sequence[str], now_us: int) -> None:
        """These are asked for and no others, from now on; nobody misses what is not asked for any more."""
        self._before = frozenset()  # all of them were answered for: who is new from here on was not wanted before
        self._answered_us = {name: self._answered_us[name] for name in symbols}
        known = (self._journal.carried or {}).get(self._origin, ())
        if frozenset(known) != frozenset(symbols):
            self._journal.carry(self._origin, symbols, now_us)


async def poll(
    dataset: Dataset,
    venue: str,
    markets: Mapping[str, Wanted],
    rest: Rest,
    journal: Journal,
    may_read: asyncio.Event,
    *,
    every_s: float,
) -> None:
    """Asks now and at every full `every_s` since 1970, for ever; what gets no answer is asked again next time.

    What `markets` says may change from one time to the next. While `may_read` is not set nothing is asked: the disk
    would not take the answers.
    """
    answers = Answers(dataset, venue, journal, every_s=every_s)
    while True:
        await may_read.wait()
        wanted = markets.get(venue, Wanted(venue, ()))
        try:
            if wanted.symbols:
                await snapshot(dataset, wanted, rest, journal, answers)
            answers.keep(wanted.symbols, time.time_ns() // 1000)
        except SourceError as error:
            log.warning("poll_failed", dataset=dataset.name, venue=venue, reason=str(error))
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
            asked = (params["symbol"],) if "symbol" in params else wanted.symbols
            answers.note(origin_of(wanted.venue, request.path, params), asked, answer.received_us)
        if "symbol" not in params and (wanted.removed or not wanted.every):
            answer = replace(answer, body=only(answer.body, wanted.has))
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
    """What is polled: datasets that have no stream, on every venue that answers for them and is wanted."""
    return [
        (dataset, wanted)
        for dataset in datasets
        if dataset.poll and not dataset.live
        for venue, wanted in markets.items()
        if venue in dataset.poll.requests
    ]
