"""What goes wrong with REST answers: refusals, pages that are no JSON, delays, and books that are out of date."""

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Final

from aiohttp import web

from crypto_lake.simulator import altered
from crypto_lake.simulator.course import Course, Numbered
from crypto_lake.simulator.market import Market, Question, Refusal
from crypto_lake.simulator.recording import shortened
from crypto_lake.simulator.rest import Endpoint, TooMuch

# In the order in which they are looked at: a delay first, it may end in a refusal.
_INSTEAD: Final = ("slow", "banned", "too_many", "restricted", "html")
_RESTRICTED: Final = "Service unavailable from a restricted location according to 'b. Eligibility' in the terms."
_PAGE: Final = "<html><head><title>{status}</title></head><body><center><h1>{status}</h1></center></body></html>"
# Books are kept so many times per age, so that the one given out is not much older than asked.
_BOOKS_PER_AGE: Final = 5
_LEAST_EVERY_S: Final = 0.05
_MOST_LEVELS: Final = {"binance-futures": 1000, "binance": 5000}

Key = tuple[str, str]  # venue, symbol


class FaultyAnswers:
    """The faults of REST, at work; draws go by the number of the answer among those that a fault concerns."""

    def __init__(self, course: Course, skew: altered.Skew, market: Market) -> None:
        self._course, self._skew, self._market = course, skew, market
        self._instead, self._stale = course.of(*_INSTEAD), course.of("stale_snapshot")
        self._new_fields = course.of("new_fields")
        self._asked: dict[int, int] = {}
        self._age_s = max((each.fault.age_s or 0 for each in self._stale), default=0.0)
        self._books: dict[Key, deque[tuple[float, bytes]]] = {}

    async def instead(self, endpoint: Endpoint, query: Mapping[str, str]) -> web.Response | None:
        """What comes in place of an answer, if anything does; raises `Refusal` for what the venue says itself."""
        symbol = query.get("symbol", "")
        for each in list(self._course.in_force(self._instead)):
            fault = each.fault
            if fault.endpoints and endpoint.name not in fault.endpoints:
                continue
            if not fault.concerns(endpoint.venue, symbol) or not self._is_drawn(each):
                continue
            self._course.note(each, f"{endpoint.venue} {endpoint.name} {symbol}".rstrip())
            if fault.kind == "slow":
                await asyncio.sleep(fault.delay_s or 0)
            else:
                return _page_or_refusal(each)
        return None

    def altered(self, question: Question, body: bytes) -> bytes:
        """The answer as the venue gives it now."""
        if question.endpoint == "depth":
            body = self._out_of_date(question, body)
        body = self._skew.of_answer(body)
        if any(each.fault.concerns(question.venue, "") for each in self._course.in_force(self._new_fields)):
            body = altered.with_new_fields(body)
        return body

    async def keep_books(self) -> None:
        """Remember books while some fault may want an old one; returns at once when none does."""
        while self._stale:
            for venue in _MOST_LEVELS:
                for symbol in self._market.symbols(venue):
                    if any(each.fault.concerns(venue, symbol) for each in self._stale):
                        await self._keep(venue, symbol)
            await asyncio.sleep(max(_LEAST_EVERY_S, self._age_s / _BOOKS_PER_AGE))

    async def _keep(self, venue: str, symbol: str) -> None:
        question = Question(venue, "depth", (symbol,), False, limit=_MOST_LEVELS[venue])
        try:
            body = await asyncio.wait_for(self._market.answer(question), _LEAST_EVERY_S)
        except (Refusal, TimeoutError):  # a replay has no book before it has played one
            return
        now_s, books = self._course.now_s, self._books.setdefault((venue, symbol), deque())
        books.append((now_s, body))
        while len(books) > 1 and books[1][0] <= now_s - self._age_s:
            books.popleft()

    def _out_of_date(self, question: Question, body: bytes) -> bytes:
        for each in self._course.in_force(self._stale):
            books = self._books.get((question.venue, question.symbol))
            if books and each.fault.concerns(question.venue, question.symbol) and self._is_drawn(each):
                until_s = self._course.now_s - (each.fault.age_s or 0)
                old = next((book for time_s, book in reversed(books) if time_s <= until_s), books[0][1])
                self._course.note(each, f"{question.venue} depth {question.symbol}")
                return shortened(old, question.limit)
        return body

    def _is_drawn(self, each: Numbered) -> bool:
        number, fault = each
        self._asked[number] = self._asked.get(number, 0) + 1
        return self._course.draw(number, self._asked[number]) < fault.share


def _page_or_refusal(each: Numbered) -> web.Response:
    fault = each.fault
    match fault.kind:
        case "too_many":
            raise TooMuch(429, "Too many requests; please use the websocket.", retry_after_s=fault.retry_after_s or 0)
        case "banned":
            words = "Way too many requests; IP(127.0.0.1) banned."
            raise TooMuch(418, words, retry_after_s=fault.retry_after_s or 0)
        case "restricted":
            raise Refusal(0, _RESTRICTED, 451)
    assert fault.status is not None
    return web.Response(status=fault.status, text=_PAGE.format(status=fault.status), content_type="text/html")
