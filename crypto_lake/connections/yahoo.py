"""Yahoo's charts over HTTP: one question at a time, at a pace, and none while Yahoo does not want to be asked.

Nobody promises this interface (PROTOCOLS F), and no limit of it is known. So whatever is no answer (too many requests,
a page instead of JSON, a consent that is asked for) opens the breaker, for longer each time.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Final, Self

import aiohttp
import msgspec
from msgspec import Struct
from yarl import URL

from crypto_lake.connections import SourceError
from crypto_lake.connections.rest import CONNECT_S, TOTAL_S, Answer, Breaker, unreachable
from crypto_lake.models.chart import ChartQuestion, Fault
from crypto_lake.models.frame import UNDECODABLE
from crypto_lake.monitoring import metrics

YAHOO: Final = "yahoo"
# A client that names itself as a program is turned away.
AGENT: Final = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/139.0.0.0 Safari/537.36"
HEADERS: Final = {"User-Agent": AGENT, "Accept": "application/json"}
FIRST_PAUSE_S: Final = 60.0
MOST_PAUSE_S: Final = 3600.0
# Ten years of days have 200 kB, a week of minutes less than a megabyte.
MOST_BYTES: Final = 16_000_000
# With these an answer that says what is wrong with the question is about the question, not about who asks.
ABOUT_THE_QUESTION: Final = frozenset({HTTPStatus.OK, 400, 404, 422})


class NoChart(SourceError):
    """Yahoo has understood, and has no such bars: an unknown symbol, or a time out of its reach."""


class _Why(Struct):
    error: Fault | None = None


class _Told(Struct):
    """As much of an answer as is needed to see whether it is one."""

    chart: _Why


class Yahoo:
    """The one road of a process to Yahoo; questions leave `every_s` seconds apart. `clock` rises, and is in seconds."""

    def __init__(
        self,
        address: str,
        *,
        every_s: float,
        first_pause_s: float = FIRST_PAUSE_S,
        total_s: float = TOTAL_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._address, self._every_s, self._first_pause_s = address, every_s, first_pause_s
        self._timeout = aiohttp.ClientTimeout(total=total_s, sock_connect=CONNECT_S)
        self._clock, self._sleep = clock, sleep
        self._breaker = Breaker(failures=1, open_s=0.0)
        self._next_s = 0.0
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=self._timeout, headers=HEADERS, trust_env=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()
        self._session = None

    async def ask(self, question: ChartQuestion) -> Answer:
        """The answer, a chart that may be empty. Raises `NoChart`, else `SourceError` with `retry_after_s`."""
        await self._turn()
        try:
            status, headers, body = await self._exchange(question)
        except (aiohttp.ClientError, OSError) as error:
            metrics.rest_requests_total.labels(YAHOO, "none").inc()
            raise self._shut(unreachable(self._address, error)) from None
        metrics.rest_requests_total.labels(YAHOO, str(status)).inc()
        answer = Answer(status, body, time.time_ns() // 1000)
        return self._judge(question, answer, headers.get("Retry-After"))

    async def _turn(self) -> None:
        """Waits until the next question may leave; raises `SourceError` while none may."""
        if not self._breaker.allow(now_s := self._clock()):
            wait_s = self._breaker.wait_s(now_s)
            raise SourceError(f"{self._address} is left alone for {wait_s:,.0f} s", retry_after_s=wait_s)
        departs_s = max(now_s, self._next_s)
        self._next_s = departs_s + self._every_s
        if departs_s > now_s:
            await self._sleep(departs_s - now_s)

    async def _exchange(self, question: ChartQuestion) -> tuple[int, Mapping[str, str], bytes]:
        assert self._session is not None, "Yahoo is used inside `async with`"
        # A redirect leads to the page that asks for consent, never to a chart. The path is encoded as it has to be.
        url = URL(self._address + question.path, encoded=True).with_query(question.params)
        async with self._session.get(url, allow_redirects=False) as response:
            return response.status, response.headers, await _whole(response)

    def _judge(self, question: ChartQuestion, answer: Answer, retry_after: str | None) -> Answer:
        """The answer when it is one, else raises what it stands for."""
        try:
            fault = msgspec.json.decode(answer.body, type=_Told).chart.error
        except UNDECODABLE:
            raise self._shut(_refusal(self._address, answer), answer.status, retry_after) from None
        if answer.status not in ABOUT_THE_QUESTION or (fault is None and answer.status != HTTPStatus.OK):
            raise self._shut(_refusal(self._address, answer), answer.status, retry_after)
        self._breaker.succeeded()
        self._breaker.open_s = 0.0
        if fault is not None:
            raise NoChart(f"{question.venue}:{question.symbol}: Yahoo says {fault.text}", status=answer.status)
        return answer

    def _shut(self, reason: str, status: int | None = None, retry_after: str | None = None) -> SourceError:
        """Opens the breaker, for twice as long as the last time and as long as Yahoo wants; the error to raise."""
        own_s = min(MOST_PAUSE_S, max(self._first_pause_s, 2 * self._breaker.open_s))
        told_s = float(retry_after) if retry_after and retry_after.strip().isdecimal() else 0.0
        self._breaker.open_s = max(own_s, told_s)
        self._breaker.failed(self._clock())
        return SourceError(reason, retry_after_s=self._breaker.open_s, status=status)


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > MOST_BYTES:
            raise aiohttp.ClientPayloadError(f"an answer of more than {MOST_BYTES:,} bytes")
    return bytes(body)


def _refusal(address: str, answer: Answer) -> str:
    """One line on an answer that is none."""
    begin = " ".join(answer.body[:300].decode(errors="replace").split())[:120]
    return f"{address} answered HTTP {answer.status} instead of a chart: {begin or '(empty)'}"
