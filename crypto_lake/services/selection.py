"""What is collected now: what the settings and the table `symbol` name, as far as the venues list it."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import structlog

from crypto_lake.config import ConfigError, Settings
from crypto_lake.connections import SourceError
from crypto_lake.connections.rest import Rest
from crypto_lake.models.symbol import Named
from crypto_lake.services.markets import Wanted, parse, resolve, united
from crypto_lake.services.roster import Roster, keep, kept

log = structlog.get_logger()

# A venue that did not answer is asked again soon; a symbol that it does not list may be listed some day.
AGAIN_S: Final = 5.0
UNLISTED_AGAIN_S: Final = 3600.0


class Selection:
    """The symbols by venue: `markets`, always the same mapping, changes with the table; no venue has the `unlisted`.

    Raises `ConfigError` for words of LAKE_SYMBOLS that name no venue.
    """

    def __init__(self, settings: Settings, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.markets: dict[str, Wanted] = parse(settings.symbols) if settings.symbols else {}
        self.unlisted: dict[tuple[str, str], float] = {}
        self._settings, self._clock_s = settings, clock_s
        self._roster: Roster = {}
        self._news = asyncio.Event()
        self._is_owing = False  # a venue has not answered

    def hear(self, roster: Roster | None) -> None:
        """What the table says now; None: it cannot be read, and what it said last counts."""
        if roster is None:
            self._roster = self._roster or kept(self._settings.journals)
        elif roster != self._roster:
            self._roster = roster
            keep(self._settings.journals, roster)
        self._news.set()

    async def begin(self, rest: Rest) -> None:
        """Asks the venues for what is named. Raises `ConfigError` and `SourceError` as `resolve` does."""
        named = united(self._settings.symbols, self._roster)
        if not named:
            raise ConfigError("nothing to collect: LAKE_SYMBOLS is empty, and the table symbol names no active symbol")
        self._news.clear()
        self._put(await resolve(named, rest))
        for venue, wanted in named.items():
            self._note_unlisted(venue, wanted.symbols)

    async def news(self) -> None:
        """Until the table has changed, or a venue should be asked again."""
        wait_s = AGAIN_S if self._is_owing else UNLISTED_AGAIN_S if self.unlisted else None
        try:
            async with asyncio.timeout(wait_s):
                await self._news.wait()
        except TimeoutError:
            return

    async def turn(self, rest: Rest) -> bool:
        """Makes `markets` what the table says now; returns whether that is something else than before.

        Symbols that stay are not asked for again: an odd answer must not end what is recorded.
        """
        self._news.clear()
        self._is_owing = False
        named = united(self._settings.symbols, self._roster)
        self.unlisted = {each: at_s for each, at_s in self.unlisted.items() if each[1] in _symbols(named, each[0])}
        markets = {}
        for venue in dict.fromkeys([*self.markets, *named]):
            removed = self._roster.get(venue, Named()).removed
            wanted = await self._turned(named.get(venue, Wanted(venue, (), removed=removed)), rest)
            if wanted.symbols or wanted.every:
                markets[venue] = wanted
        return self._put(markets)

    def _put(self, markets: dict[str, Wanted]) -> bool:
        is_new = markets != self.markets
        self.markets.clear()
        self.markets.update(markets)
        return is_new

    async def _turned(self, named: Wanted, rest: Rest) -> Wanted:
        present = self.markets.get(named.venue, Wanted(named.venue, ()))
        stay = [symbol for symbol in present.symbols if named.has(symbol)]
        new = [symbol for symbol in named.symbols if symbol not in stay and self._is_due(named.venue, symbol)]
        listed = await self._listed(named.venue, new, rest) if new else ()
        return replace(named, symbols=(*stay, *listed))

    async def _listed(self, venue: str, symbols: list[str], rest: Rest) -> tuple[str, ...]:
        asked = Wanted(venue, tuple(symbols), by_table=frozenset(symbols))
        try:
            found = (await resolve({venue: asked}, rest))[venue].symbols
        except SourceError as error:
            log.warning("symbols_wait", venue=venue, symbols=symbols, again_in_s=AGAIN_S, reason=str(error))
            self._is_owing = True
            return ()
        for symbol in symbols:
            self.unlisted.pop((venue, symbol), None)
            if symbol not in found:
                self.unlisted[venue, symbol] = self._clock_s()
        return found

    def _note_unlisted(self, venue: str, symbols: tuple[str, ...]) -> None:
        missing = [symbol for symbol in symbols if symbol not in self.markets[venue].symbols]
        self.unlisted |= {(venue, symbol): self._clock_s() for symbol in missing}

    def _is_due(self, venue: str, symbol: str) -> bool:
        asked_s = self.unlisted.get((venue, symbol))
        return asked_s is None or self._clock_s() - asked_s >= UNLISTED_AGAIN_S


def _symbols(markets: dict[str, Wanted], venue: str) -> tuple[str, ...]:
    return markets[venue].symbols if venue in markets else ()
