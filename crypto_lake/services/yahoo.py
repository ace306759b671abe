"""Yahoo's charts, asked for in turns: what is answered goes into the journal of `bar`, like everything else.

A question reaches back to the newest complete bar that was seen, so an answer that is missing costs nothing as long as
the next one comes within Yahoo's reach; beyond it there is a lapse.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import structlog

from crypto_lake.config import ALL_SYMBOLS, ConfigError, Settings, Timeframe
from crypto_lake.connections import SourceError
from crypto_lake.connections.rest import Answer
from crypto_lake.connections.yahoo import NoChart, Yahoo
from crypto_lake.journal import LAPSE, RESPONSE, Journal
from crypto_lake.models.bar import BAR
from crypto_lake.models.chart import CHARTED_S, DAY_S, ChartQuestion
from crypto_lake.models.frame import Lapse
from crypto_lake.models.gap import DISCONNECT, RESTART
from crypto_lake.monitoring import metrics
from crypto_lake.processors.chart import NoBars, bars_in
from crypto_lake.services.markets import Wanted

log = structlog.get_logger()

# How far back a question goes at the most: of minutes Yahoo gives about eight days at a time.
REACH_S: Final = {"1m": 7 * DAY_S, "1d": 30 * DAY_S}
# So much is asked for once more: an interval that is empty at first may be filled a little later.
AGAIN_S: Final = {"1m": 3600, "1d": 5 * DAY_S}
# What is of no use now may be of use later: a symbol is listed some day.
FRUITLESS_S: Final = 3600.0
# The breaker must be open again when a sleep of its length is over.
MARGIN_S: Final = 0.05

Symbols = Callable[[], Sequence[tuple[str, str]]]


@dataclass(slots=True)
class _Known:
    """What is known of a symbol: when its newest complete bar begins, when it was answered, and how long it rests.

    `is_of_before`: it was an earlier run that was answered.
    """

    newest_s: int | None = None
    answered_s: float | None = None
    is_of_before: bool = False
    rests_until_s: float = 0.0
    is_told: bool = False


class Turns:
    """Whose turn it is, and from where on each symbol is asked for. `clock` reads epoch seconds."""

    def __init__(
        self, yahoo: Yahoo, journal: Journal, *, timeframe: Timeframe, clock: Callable[[], float] = time.time
    ) -> None:
        self._yahoo, self._journal, self._timeframe, self._clock = yahoo, journal, timeframe, clock
        self._known: dict[tuple[str, str], _Known] | None = None

    def due(self, symbols: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those of them that may be asked for now; of all others nothing is known any more, they were not wanted."""
        if self._known is None:
            self._known = {each: self._before(*each) for each in symbols}
        self._known = {each: self._known.get(each) or _Known() for each in symbols}
        now_s = self._clock()
        return [each for each, known in self._known.items() if known.rests_until_s <= now_s]

    async def take(self, venue: str, symbol: str) -> None:
        """Asks for a symbol's bars. Raises `SourceError` when Yahoo wants to be left alone."""
        question = self._question(venue, symbol)
        try:
            answer = await self._yahoo.ask(question)
        except NoChart as error:
            self._rest(venue, symbol, str(error))
            return
        self._note_lapse(question, answer)
        self._journal.append(RESPONSE, question.origin, answer.body, answer.received_us)
        self._learn(question, answer)

    def _of(self, venue: str, symbol: str) -> _Known:
        assert self._known is not None, "first it is looked who is due"
        return self._known[venue, symbol]

    def _before(self, venue: str, symbol: str) -> _Known:
        """What the journal says of an earlier run."""
        heard_us = self._journal.heard_us(b"", or_any=ChartQuestion(venue, symbol, self._timeframe, 0, 0).about)
        return _Known() if heard_us is None else _Known(answered_s=heard_us / 1e6, is_of_before=True)

    def _question(self, venue: str, symbol: str) -> ChartQuestion:
        known, now_s, length_s = self._of(venue, symbol), int(self._clock()), CHARTED_S[self._timeframe]
        since_s = now_s - REACH_S[self._timeframe]
        if known.newest_s is not None:
            since_s = max(since_s, known.newest_s - AGAIN_S[self._timeframe])
        return ChartQuestion(venue, symbol, self._timeframe, since_s - since_s % length_s, now_s + length_s)

    def _learn(self, question: ChartQuestion, answer: Answer) -> None:
        """How far the answer reaches; one that is of no use is in the journal, and from there in `rejected`."""
        known = self._of(question.venue, question.symbol)
        try:
            bars = bars_in(answer.body, question).frame
        except NoBars as error:
            self._rest(question.venue, question.symbol, str(error))
            return
        known.answered_s, known.is_of_before, known.is_told = answer.received_us / 1e6, False, False
        known.newest_s = max([known.newest_s or 0, *bars["time"].dt.epoch("s")]) or None

    def _rest(self, venue: str, symbol: str, reason: str) -> None:
        known = self._of(venue, symbol)
        known.rests_until_s = self._clock() + FRUITLESS_S
        if not known.is_told:
            log.warning("yahoo_has_no_chart", venue=venue, symbol=symbol, reason=reason, again_in_s=FRUITLESS_S)
        known.is_told = True

    def _note_lapse(self, question: ChartQuestion, answer: Answer) -> None:
        """What was traded between the last answer, maybe of an earlier run, and the begin of this one is not had."""
        known = self._of(question.venue, question.symbol)
        goes_on = known.newest_s is not None and known.newest_s >= question.since_s
        if goes_on or known.answered_s is None or known.answered_s >= question.since_s:
            return
        reason = RESTART if known.is_of_before else DISCONNECT
        lapse = Lapse([question.symbol], reason, int(known.answered_s * 1e6), question.since_s * 1_000_000)
        self._journal.append(LAPSE, question.origin, msgspec.json.encode(lapse), answer.received_us)
        metrics.lapses_total.labels(BAR.name, question.venue, reason).inc()


async def ask_in_turns(
    yahoo: Yahoo,
    symbols: Symbols,
    journal: Journal,
    may_read: asyncio.Event,
    *,
    timeframe: Timeframe,
    every_s: float,
) -> None:
    """Asks for one symbol after the other, for ever; not while the disk would not take the answers (`may_read`)."""
    turns = Turns(yahoo, journal, timeframe=timeframe)
    while True:
        due = turns.due(symbols())
        for venue, symbol in due:
            await may_read.wait()
            try:
                await turns.take(venue, symbol)
            except SourceError as error:
                wait_s = max(error.retry_after_s or 0.0, every_s)
                log.warning("yahoo_refuses", reason=str(error), again_in_s=round(wait_s, 1))
                await asyncio.sleep(wait_s + MARGIN_S)
        if not due:
            await asyncio.sleep(every_s)


async def record(settings: Settings, symbols: Symbols, journal: Journal, may_read: asyncio.Event) -> None:
    """Asks as the settings say, for ever."""
    every_s = settings.yahoo_every_s
    async with Yahoo(settings.yahoo, every_s=every_s) as yahoo:
        await ask_in_turns(yahoo, symbols, journal, may_read, timeframe=settings.yahoo_timeframe, every_s=every_s)


def charted(markets: Mapping[str, Wanted], settings: Settings) -> list[tuple[str, str]]:
    """Venue and symbol of what Yahoo is asked for; none when it is not to be asked. Raises `ConfigError`."""
    assert BAR.charts is not None
    if not settings.yahoo_every_s:
        return []
    found = {venue: wanted for venue, wanted in markets.items() if venue in BAR.charts.venues}
    for venue, wanted in found.items():
        if wanted.every:
            raise ConfigError(f"LAKE_SYMBOLS: {venue}:{ALL_SYMBOLS}: Yahoo is asked symbol by symbol; name them")
    return [(venue, symbol) for venue, wanted in found.items() for symbol in wanted.symbols]
