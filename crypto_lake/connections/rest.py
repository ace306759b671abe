"""Everything that is asked over HTTP: at a pace below the venue's limits, and silent when told to be."""

import asyncio
import os
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from types import TracebackType
from typing import Literal, Self

import aiohttp
import msgspec
import structlog

from crypto_lake.config import FUTURES, SPOT
from crypto_lake.connections import SourceError
from crypto_lake.connections.backoff import backoff_s
from crypto_lake.monitoring import metrics

log = structlog.get_logger()

LIMITS_PER_MIN = {FUTURES: 2400, SPOT: 6000}
USED_WEIGHT = "X-MBX-USED-WEIGHT-1M"
# Spot tells microseconds to who asks for them. In questions it takes either unit all the same.
HEADERS = {SPOT: {"X-MBX-TIME-UNIT": "MICROSECOND"}}
MINUTE_S = 60
TOTAL_S, CONNECT_S = 30.0, 5.0
CONNECTIONS = 20
ATTEMPTS = 4
# A longer pause than this is the caller's business: it gets a SourceError at once, with `retry_after_s`.
PATIENCE_S = 120.0

TOO_MANY, BANNED, FIREWALL, RESTRICTED = 429, 418, 403, 451
# Without a Retry-After: the clock minute of a 429; bans begin at two minutes and grow when probed, so rather longer.
PAUSE_S = {TOO_MANY: 60.0, BANNED: 600.0, FIREWALL: 300.0, RESTRICTED: 3600.0}
TRIED_AGAIN = frozenset({408, *range(500, 600)})


class WeightBudget:
    """The share of a venue's request weight that we allow ourselves in one clock minute.

    The limit is per IP address, so the venue's own count wins where it is higher than ours: other programs on
    this machine spend from it too.
    """

    def __init__(self, limit_per_min: int, share: float = 0.6) -> None:
        self.allowed = int(limit_per_min * share)
        self._minute = -1
        self._seen = self._spent = self._in_flight = 0

    def wait_s(self, weight: int, now_s: float, *, share: float = 1.0) -> float:
        """Nothing when a request of this weight may go now, else the seconds to the next minute.

        With a smaller `share` it leaves the rest of the minute to others.
        """
        allowed = int(self.allowed * share)
        assert weight <= allowed, f"a request of weight {weight} never fits into {allowed} a minute"
        self._turn_to(now_s)
        used = max(self._spent, self._seen + self._in_flight)
        return 0.0 if used + weight <= allowed else MINUTE_S - now_s % MINUTE_S

    def spend(self, weight: int, now_s: float) -> None:
        """A request of this weight leaves; every one needs its `landed`, whatever becomes of it."""
        self._turn_to(now_s)
        self._spent += weight
        self._in_flight += weight

    def landed(self, weight: int) -> None:
        """A request of this weight is no longer under way."""
        self._in_flight -= weight

    def seen(self, used: str | None, sent_s: float, now_s: float) -> None:
        """The venue's count as the header of an answer gives it; `sent_s` is when the request left."""
        self._turn_to(now_s)
        # An answer to a request of the last minute may carry the last minute's count: it would block this one.
        if used is not None and used.isdecimal() and sent_s // MINUTE_S == self._minute:
            self._seen = max(self._seen, int(used))

    def _turn_to(self, now_s: float) -> None:
        if now_s // MINUTE_S != self._minute:
            self._minute = int(now_s // MINUTE_S)
            self._seen, self._spent = 0, self._in_flight


class Breaker:
    """Spares a venue that does not answer: after some failures in a row nobody asks, then one at a time tries."""

    def __init__(self, failures: int = 5, open_s: float = 30.0) -> None:
        self.state: Literal["closed", "open", "half-open"] = "closed"
        self.failures, self.open_s = failures, open_s
        self._failed = 0
        self._since_s = 0.0

    def allow(self, now_s: float) -> bool:
        """Whether a request may go. In half-open it is the one probe; if that is never heard of, another may follow."""
        if self.state == "closed":
            return True
        if self.wait_s(now_s) > 0:
            return False
        self.state, self._since_s = "half-open", now_s
        return True

    def wait_s(self, now_s: float) -> float:
        """Seconds until the next probe may go."""
        # Not more than the whole time, also when the clock was set back meanwhile.
        return 0.0 if self.state == "closed" else min(self.open_s, max(0.0, self._since_s + self.open_s - now_s))

    def succeeded(self) -> None:
        self.state, self._failed = "closed", 0

    def failed(self, now_s: float) -> None:
        self._failed += 1  # only a success takes it back, so a failed probe is always one too many
        if self._failed >= self.failures:
            self.state, self._since_s = "open", now_s


class Pause:
    """A time in which nobody may ask, and why."""

    def __init__(self) -> None:
        self.reason = ""
        self._length_s = self._until_s = 0.0

    def begin(self, length_s: float, now_s: float, reason: str) -> float:
        """Pause for so long from now, or until the end of a longer pause that already runs; returns the end."""
        if now_s + length_s > self._until_s:
            self._length_s, self._until_s, self.reason = length_s, now_s + length_s, reason
        return self._until_s

    def wait_s(self, now_s: float) -> float:
        """Seconds until it is over."""
        # A clock that is set back must not make an hour's pause of a minute's; it never makes it shorter.
        return max(0.0, min(self._until_s - now_s, self._length_s))


class Complaint(msgspec.Struct):
    """How Binance says no."""

    code: int
    msg: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The body of a successful answer, as received, and when (µs since the epoch)."""

    status: int
    body: bytes
    received_us: int


@dataclass(slots=True)
class Venue:
    """What we must remember of one venue between two requests."""

    name: str
    address: str
    budget: WeightBudget
    breaker: Breaker = field(default_factory=Breaker)
    pause: Pause = field(default_factory=Pause)


class Rest:
    """The one road of a process to every REST interface; there is one, because a ban is for the whole machine.

    `address` gives the base address of a venue, as `Settings.rest_address` does. `clock` reads epoch seconds.
    """

    def __init__(
        self,
        address: Callable[[str], str],
        *,
        api_key: str = "",
        limits_per_min: Mapping[str, int] = LIMITS_PER_MIN,
        attempts: int = ATTEMPTS,
        total_s: float = TOTAL_S,
        connect_s: float = CONNECT_S,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._address, self._limits_per_min, self._attempts = address, limits_per_min, attempts
        self._headers = {"X-MBX-APIKEY": api_key} if api_key else {}
        self._timeout = aiohttp.ClientTimeout(total=total_s, sock_connect=connect_s)
        self._clock, self._sleep, self._draw = clock, sleep, draw
        self._venues: dict[str, Venue] = {}
        self._pause = Pause()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            timeout=self._timeout,
            headers=self._headers,
            connector=aiohttp.TCPConnector(limit=CONNECTIONS),
            trust_env=True,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()
        self._session = None

    async def get(
        self,
        venue: str,
        path: str,
        params: Mapping[str, str | int] | None = None,
        *,
        weight: int = 1,
        share: float = 1.0,
    ) -> Answer:
        """The answer to one question, asked again a few times where that may help.

        Waits until the venue's budget has room (of a minute's budget it takes no more than `share`, so that many
        heavy questions leave room for others) and no pause is on. Raises `SourceError`; with `retry_after_s` when
        asking earlier would be pointless or harmful.
        """
        place = self._venue(venue)
        for attempt in range(self._attempts - 1):
            await self._turn(place, weight, share)
            try:
                return await self._ask(place, path, params or {}, weight)
            except _AskAgainError:
                await self._sleep(backoff_s(attempt, self._draw))
        await self._turn(place, weight, share)
        return await self._ask(place, path, params or {}, weight)

    def _venue(self, name: str) -> Venue:
        if name not in self._venues:
            self._venues[name] = Venue(name, self._address(name), WeightBudget(self._limits_per_min[name]))
        return self._venues[name]

    async def _turn(self, venue: Venue, weight: int, share: float) -> None:
        """Wait until this request may leave. Every wait is followed by a fresh look: a pause may have begun."""
        while wait_s := self._wait_s(venue, weight, share):
            await self._sleep(wait_s)
        if not venue.breaker.allow(now_s := self._clock()):
            raise SourceError(
                f"{venue.address} failed {venue.breaker.failures} times in a row and is left alone for a moment",
                retry_after_s=venue.breaker.wait_s(now_s),
            )

    def _wait_s(self, venue: Venue, weight: int, share: float) -> float:
        now_s = self._clock()
        for pause in (self._pause, venue.pause):
            if (wait_s := pause.wait_s(now_s)) > PATIENCE_S:
                raise SourceError(f"{pause.reason}; nothing is asked for {wait_s:.0f} s", retry_after_s=wait_s)
            if wait_s > 0:
                return wait_s
        return venue.budget.wait_s(weight, now_s, share=share)

    async def _ask(self, venue: Venue, path: str, params: Mapping[str, str | int], weight: int) -> Answer:
        # No await between `_turn`'s last look and this line: two requests cannot take the same room.
        venue.budget.spend(weight, sent_s := self._clock())
        try:
            status, headers, body = await self._exchange(venue, path, params)
        except (aiohttp.ClientError, OSError) as error:  # a TimeoutError is an OSError
            metrics.rest_requests_total.labels(venue.name, "none").inc()
            venue.breaker.failed(self._clock())
            raise _AskAgainError(unreachable(venue.address, error)) from None
        finally:
            venue.budget.landed(weight)
        answer = Answer(status, body, int(self._clock() * 1_000_000))
        self._count(venue, answer, headers.get(USED_WEIGHT), sent_s)
        return self._judge(venue, path, answer, headers)

    async def _exchange(
        self, venue: Venue, path: str, params: Mapping[str, str | int]
    ) -> tuple[int, Mapping[str, str], bytes]:
        assert self._session is not None, "Rest is used inside `async with`"
        # aiohttp by itself asks once more when a connection breaks before the answer; the budget learns of that from
        # the venue's count. No redirects: these interfaces have none, and one would carry the API key to another host.
        async with self._session.get(
            venue.address + path, params=params, headers=HEADERS.get(venue.name), allow_redirects=False
        ) as response:
            return response.status, response.headers, await response.read()

    def _count(self, venue: Venue, answer: Answer, used: str | None, sent_s: float) -> None:
        venue.budget.seen(used, sent_s, self._clock())
        metrics.rest_requests_total.labels(venue.name, str(answer.status)).inc()
        if used is not None and used.isdecimal():
            metrics.rest_used_weight.labels(venue.name).set(int(used))

    def _judge(self, venue: Venue, path: str, answer: Answer, headers: Mapping[str, str]) -> Answer:
        """The answer when it is one, else the error that it stands for."""
        if answer.status in TRIED_AGAIN:
            venue.breaker.failed(self._clock())
            raise _AskAgainError(refusal(venue.address + path, answer.status, answer.body), status=answer.status)
        venue.breaker.succeeded()
        if (length_s := pause_s(answer.status, headers.get("Retry-After"))) is not None:
            raise self._stop(venue, answer, length_s, refusal(venue.address + path, answer.status, answer.body))
        if answer.status != HTTPStatus.OK or not looks_like_json(answer.body):
            raise SourceError(
                refusal(venue.address + path, answer.status, answer.body),
                code=complaint_code(answer.body),
                status=answer.status,
            )
        return answer

    def _stop(self, venue: Venue, answer: Answer, length_s: float, reason: str) -> SourceError:
        """Begin the pause that the answer demands; returns the error to raise."""
        # "Restricted location" is said by one venue; limits and bans are for the address that all of us share.
        pause = venue.pause if answer.status == RESTRICTED else self._pause
        until_s = pause.begin(length_s, self._clock(), reason)
        log.warning("requests_stopped", venue=venue.name, status=answer.status, seconds=length_s, reason=reason)
        if pause is self._pause:
            metrics.rest_stopped_until_seconds.set(until_s)
        return (SourceError if length_s > PATIENCE_S else _AskAgainError)(
            reason, retry_after_s=length_s, status=answer.status
        )


class _AskAgainError(SourceError):
    """The same question may find an answer soon."""


def pause_s(status: int, retry_after: str | None) -> float | None:
    """How long everybody must be silent after this status; None for a status that stops nobody."""
    if status not in PAUSE_S:
        return None
    told = float(retry_after) if retry_after and retry_after.strip().isdecimal() else None
    if status in (TOO_MANY, BANNED):
        return PAUSE_S[status] if told is None else max(1.0, told)
    return max(PAUSE_S[status], told or 0.0)


def looks_like_json(body: bytes) -> bool:
    """Whether this may be an object or an array, which is all that these interfaces answer."""
    return body.lstrip()[:1] in (b"{", b"[")


def refusal(url: str, status: int, body: bytes) -> str:
    """One line on an answer that is none: the venue's own words where it has some."""
    if complaint := _complaint(body):
        return f"{url} refused: {complaint.code} {complaint.msg} (HTTP {status})"
    begin = " ".join(body[:300].decode(errors="replace").split())[:120]
    kind = "instead of JSON" if status == HTTPStatus.OK else "without a Binance error code"
    return f"{url} answered HTTP {status} {kind}: {begin or '(empty)'}"


def complaint_code(body: bytes) -> int | None:
    """Binance's error number in this body, if it has one."""
    complaint = _complaint(body)
    return complaint.code if complaint else None


def _complaint(body: bytes) -> Complaint | None:
    try:
        return msgspec.json.decode(body, type=Complaint)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def unreachable(address: str, error: Exception) -> str:
    """One sentence on a request that got no answer."""
    if isinstance(error, TimeoutError):
        return f"no answer from {address} in time"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"cannot trust {address}: {error.certificate_error}"
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return f"cannot reach {address}: proxy {error.host}:{error.port}: {_reason(error.os_error)}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot reach {address}: {_reason(error.os_error)}"
    return f"the connection to {address} broke: {str(error) or type(error).__name__}"


def _reason(error: OSError) -> str:
    # asyncio writes "Connect call failed ('127.0.0.1', 443)" into strerror; the number keeps the plain words.
    # Numbers below 0 are the resolver's and those of TLS its own: there strerror is right.
    if error.errno is not None and error.errno > 0 and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno)
    return error.strerror or str(error)
