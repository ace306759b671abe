"""Stream names: which exist, on which route they are served, and which of them are the same frames."""

import re
from functools import lru_cache

from crypto_lake.config import FUTURES, SPOT

PUBLIC, MARKET, PRIVATE, UNROUTED = "public", "market", "private", ""

_PUBLIC_KINDS = frozenset({"depth", "depth5", "depth10", "depth20", "bookTicker", "trade", "!bookTicker"})
_DEPTH_SPEEDS = frozenset({None, "0ms", "100ms", "250ms", "500ms"})
_FUTURES_ONLY = frozenset({"markPrice", "forceOrder"})

# What `kind_of` gives for the streams that are there: names of kinds for those who choose among streams.
STREAM_KINDS = (
    *("aggTrade", "trade", "depth", "depth5", "depth10", "depth20", "bookTicker", "forceOrder", "markPrice"),
    *("ticker", "miniTicker", "kline_1m", "!ticker@arr", "!miniTicker@arr", "!markPrice@arr"),
)

# What a client of spot says who wants microseconds, in the address (`timeUnit`) or in the header of a request.
MICROSECOND = frozenset({"MICROSECOND", "microsecond"})

# All-market streams whose messages are those of the single symbols; the `arr` in the name of the first is a lie.
ALL_MARKET = {"forceOrder": "!forceOrder@arr", "bookTicker": "!bookTicker"}

_OF_SYMBOL = re.compile(
    r"(?P<symbol>[^@!]+)@(?P<kind>aggTrade|trade|bookTicker|forceOrder|ticker|miniTicker|kline_1m|markPrice"
    r"|depth(?:5|10|20)?)(?:@(?P<speed>[0-9a-z]+))?"
)
_OF_ALL = re.compile(
    r"(?P<stream>!bookTicker|!forceOrder@arr|!ticker@arr|!miniTicker@arr(?=$|@1000ms)|!markPrice@arr(?=$|@1s))(?:@.*)?"
)


def kind_of(stream: str) -> str:
    """`btcusdt@depth` -> `depth`; all-market streams of single messages count as their kind."""
    if not stream.startswith("!"):
        return stream.rpartition("@")[2]
    return next((kind for kind, name in ALL_MARKET.items() if name == stream), stream)


def route_of(stream: str) -> str:
    """The futures route that serves a stream."""
    return PUBLIC if kind_of(stream) in _PUBLIC_KINDS else MARKET


@lru_cache(maxsize=65_536)
def stream_of(name: str, venue: str) -> str | None:
    """The stream behind a subscribed name, without its speed; None where the venue has no such stream.

    All speeds of a stream carry the same frames here, so `btcusdt@depth@100ms` is `btcusdt@depth`.
    """
    if name.startswith("!"):
        of_all = _OF_ALL.fullmatch(name)
        return of_all["stream"] if of_all else None
    found = _OF_SYMBOL.fullmatch(name)
    if not found or found["symbol"] != found["symbol"].lower():
        return None
    kind = found["kind"]
    if (venue == SPOT and kind in _FUTURES_ONLY) or not _speed_exists(kind, found["speed"], venue):
        return None
    return f"{found['symbol']}@{kind}"


def _speed_exists(kind: str, speed: str | None, venue: str) -> bool:
    if kind.startswith("depth"):
        return speed in _DEPTH_SPEEDS or (speed == "1000ms" and venue == SPOT)
    return speed is None or (kind == "markPrice" and speed == "1s")


def source_of(name: str, route: str) -> tuple[str, str] | None:
    """Venue and stream that feed a name subscribed on a route; None = acknowledged and silent for ever.

    Silence is what the real venue gives to a stream on the wrong route, and to a name that does not exist.
    """
    if route == PRIVATE:
        return None
    venue = SPOT if route == UNROUTED else FUTURES
    stream = stream_of(name, venue)
    if stream is None or (venue == FUTURES and route_of(stream) != route):
        return None
    return venue, stream
