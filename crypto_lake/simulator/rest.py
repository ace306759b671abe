"""The REST endpoints: parameters and their limits, request weights, and the penalty for using too much."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from crypto_lake.config import FUTURES, SPOT
from crypto_lake.simulator.market import Market, Question, Refusal

HOUR_MS = 3_600_000
KEPT_MINUTES = 60
_FIRST_MICROSECONDS = 10**14  # 1973 in microseconds, the year 5138 in milliseconds
INTERVALS_MS = {
    **{f"{n}m": n * 60_000 for n in (1, 3, 5, 15, 30)},
    **{f"{n}h": n * HOUR_MS for n in (1, 2, 4, 6, 8, 12)},
    "1d": 24 * HOUR_MS,
}

YAHOO = "yahoo"

Weigh = Callable[[Question], int]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What one path asks for and costs."""

    venue: str
    name: str
    weigh: Weigh
    symbol: str = "required"  # required, optional (one symbol or all) or none
    default_limit: int = 0
    max_limit: int = 0
    limits: frozenset[int] = frozenset()  # when only certain values are allowed


def _always(weight: int) -> Weigh:
    return lambda _: weight


def _one_or_all(one: int, everything: int) -> Weigh:
    return lambda question: everything if question.is_list else one


def _by_limit(*steps: tuple[int, int]) -> Weigh:
    return lambda question: next(weight for up_to, weight in steps if question.limit <= up_to)


def _spot_ticker(question: Question) -> int:
    count = len(question.symbols)
    return 2 if count <= 20 and (not question.is_list or count) else 40 if count <= 100 else 80


_FUTURES_DEPTH = _by_limit((50, 2), (100, 5), (500, 10), (1000, 20))
_FUTURES_KLINES = _by_limit((99, 1), (499, 2), (1000, 5), (1500, 10))
_SPOT_DEPTH = _by_limit((100, 5), (500, 25), (1000, 50), (5000, 250))
_DEPTH_LIMITS = frozenset({5, 10, 20, 50, 100, 500, 1000})

ENDPOINTS = {
    "/fapi/v1/ping": Endpoint(FUTURES, "ping", _always(1), "none"),
    "/fapi/v1/time": Endpoint(FUTURES, "time", _always(1), "none"),
    "/fapi/v1/exchangeInfo": Endpoint(FUTURES, "exchangeInfo", _always(1), "none"),
    "/fapi/v1/depth": Endpoint(FUTURES, "depth", _FUTURES_DEPTH, "required", 500, 1000, _DEPTH_LIMITS),
    "/fapi/v1/aggTrades": Endpoint(FUTURES, "aggTrades", _always(20), "required", 500, 1000),
    "/fapi/v1/trades": Endpoint(FUTURES, "trades", _always(5), "required", 500, 1000),
    "/fapi/v1/klines": Endpoint(FUTURES, "klines", _FUTURES_KLINES, "required", 500, 1500),
    "/fapi/v1/premiumIndex": Endpoint(FUTURES, "premiumIndex", _one_or_all(1, 10), "optional"),
    "/fapi/v1/ticker/24hr": Endpoint(FUTURES, "ticker/24hr", _one_or_all(1, 40), "optional"),
    "/fapi/v1/ticker/price": Endpoint(FUTURES, "ticker/price", _one_or_all(1, 2), "optional"),
    "/fapi/v2/ticker/price": Endpoint(FUTURES, "ticker/price", _one_or_all(1, 2), "optional"),
    "/fapi/v1/ticker/bookTicker": Endpoint(FUTURES, "ticker/bookTicker", _one_or_all(2, 5), "optional"),
    "/fapi/v1/openInterest": Endpoint(FUTURES, "openInterest", _always(1)),
    "/api/v3/ping": Endpoint(SPOT, "ping", _always(1), "none"),
    "/api/v3/time": Endpoint(SPOT, "time", _always(1), "none"),
    "/api/v3/exchangeInfo": Endpoint(SPOT, "exchangeInfo", _always(20), "optional"),
    "/api/v3/depth": Endpoint(SPOT, "depth", _SPOT_DEPTH, "required", 100, 5000),
    "/api/v3/aggTrades": Endpoint(SPOT, "aggTrades", _always(4), "required", 500, 1000),
    "/api/v3/trades": Endpoint(SPOT, "trades", _always(25), "required", 500, 1000),
    "/api/v3/klines": Endpoint(SPOT, "klines", _always(2), "required", 500, 1000),
    "/api/v3/ticker/24hr": Endpoint(SPOT, "ticker/24hr", _spot_ticker, "optional"),
    "/api/v3/ticker/price": Endpoint(SPOT, "ticker/price", _one_or_all(2, 4), "optional"),
    "/api/v3/ticker/bookTicker": Endpoint(SPOT, "ticker/bookTicker", _one_or_all(2, 4), "optional"),
}

# Not the exchange's, but faults may concern it as well.
CHART = Endpoint(YAHOO, "chart", _always(0), "none")


def question_of(endpoint: Endpoint, query: Mapping[str, str], market: Market) -> Question:
    """The checked question behind a query string; raises `Refusal`."""
    symbols, is_list = _symbols(endpoint, query, market.symbols(endpoint.venue))
    question = Question(
        venue=endpoint.venue,
        endpoint=endpoint.name,
        symbols=symbols,
        is_list=is_list,
        limit=_limit(endpoint, query),
        from_id=_integer(query, "fromId"),
        start_ms=_time_ms(endpoint, query, "startTime"),
        end_ms=_time_ms(endpoint, query, "endTime"),
        interval=_interval(query) if endpoint.name == "klines" else "",
    )
    _check_window(question)
    return question


def _symbols(endpoint: Endpoint, query: Mapping[str, str], known: tuple[str, ...]) -> tuple[tuple[str, ...], bool]:
    """The symbols meant, and whether the answer is a list; the empty tuple means all."""
    if endpoint.symbol == "none":
        return (), True
    symbol, several = query.get("symbol"), query.get("symbols")
    if endpoint.symbol == "optional" and not symbol:
        asked = _several(several) if several and endpoint.venue == SPOT else ()
    elif not symbol:
        raise Refusal(-1102, "Mandatory parameter 'symbol' was not sent, was empty/null, or malformed.")
    else:
        asked = (symbol,)
    if any(each not in known for each in asked):
        raise Refusal(-1121, "Invalid symbol.")
    return asked, not symbol


def _several(text: str) -> tuple[str, ...]:
    try:
        return tuple(msgspec.json.decode(text, type=list[str]))
    except msgspec.DecodeError:
        raise Refusal(-1100, "Illegal characters found in parameter 'symbols'.") from None


def _limit(endpoint: Endpoint, query: Mapping[str, str]) -> int:
    asked = _integer(query, "limit")
    if asked is None:
        return endpoint.default_limit
    if endpoint.venue == SPOT and asked > endpoint.max_limit > 0:
        return endpoint.max_limit  # spot answers with what it has to give
    allowed = asked in endpoint.limits if endpoint.limits else 1 <= asked <= endpoint.max_limit
    if endpoint.max_limit and not allowed:
        raise Refusal(-1130, "Data sent for parameter 'limit' is not valid.")
    return asked


def _integer(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise Refusal(-1100, f"Illegal characters found in parameter '{name}'; legal range is '^[0-9]{{1,20}}$'.")
    return int(text)


def _time_ms(endpoint: Endpoint, query: Mapping[str, str], name: str) -> int | None:
    """Spot takes either unit, whatever unit it is to answer in; here a window is one of whole milliseconds."""
    time = _integer(query, name)
    if time is not None and endpoint.venue == SPOT and time >= _FIRST_MICROSECONDS:
        return time // 1000
    return time


def _interval(query: Mapping[str, str]) -> str:
    interval = query.get("interval")
    if not interval:
        raise Refusal(-1102, "Mandatory parameter 'interval' was not sent, was empty/null, or malformed.")
    if interval not in INTERVALS_MS:
        raise Refusal(-1120, "Invalid interval.")
    return interval


def _check_window(question: Question) -> None:
    start, end = question.start_ms, question.end_ms
    if start is not None and end is not None and start > end:
        raise Refusal(-1130, "Data sent for parameter 'startTime' is not valid.")
    if question.endpoint != "aggTrades":
        return
    if question.from_id is not None and (start is not None or end is not None):
        raise Refusal(-1128, "Combination of optional parameters invalid.")
    if question.venue == FUTURES and start is not None and end is not None and end - start >= HOUR_MS:
        raise Refusal(-1127, "More than 1 hours between startTime and endTime.")


@dataclass(slots=True)
class WeightMeter:
    """The request weight used on one venue, minute by minute of the real clock, and the ban that follows abuse."""

    limit: int
    ban_after: int = 5  # requests that still come in the minute after the first 429
    ban_s: float = 120.0
    clock: Callable[[], float] = time.time
    by_minute: dict[int, int] = field(default_factory=dict)
    _refused: dict[int, int] = field(default_factory=dict)
    _banned_until: float = 0.0

    @property
    def used(self) -> int:
        """Weight used in the minute that is now."""
        return self.by_minute.get(self._minute(), 0)

    def charge(self, weight: int) -> None:
        """Add a request to the minute; raises `TooMuch` instead when it does not fit."""
        self._check_ban()
        minute = self._minute()
        used = self.by_minute.get(minute, 0)
        if used + weight > self.limit:
            self._refuse(minute)
        self.by_minute[minute] = used + weight
        if len(self.by_minute) > KEPT_MINUTES:
            del self.by_minute[min(self.by_minute)]

    def _minute(self) -> int:
        return int(self.clock() // 60)

    def _check_ban(self) -> None:
        left_s = self._banned_until - self.clock()
        if left_s > 0:
            words = f"Way too many requests; IP(127.0.0.1) banned until {int(self._banned_until * 1000)}."
            raise TooMuch(418, words, retry_after_s=left_s)

    def _refuse(self, minute: int) -> None:
        refused = self._refused.get(minute, 0) + 1
        self._refused = {minute: refused}
        if refused > self.ban_after:
            self._banned_until = self.clock() + self.ban_s
            self._check_ban()
        words = f"Too many requests; current limit is {self.limit} request weight per 1 MINUTE."
        raise TooMuch(429, words, retry_after_s=60 - self.clock() % 60)


class TooMuch(Refusal):
    """429, or 418 for who goes on."""

    def __init__(self, status: int, words: str, *, retry_after_s: float) -> None:
        super().__init__(-1003, words, status)
        self.retry_after_s = retry_after_s
