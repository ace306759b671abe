"""What goes wrong with connections and with the venue as a whole, at moments and at handshakes."""

import asyncio
import heapq
import math
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from aiohttp import web

from crypto_lake.config import FUTURES, SPOT
from crypto_lake.simulator.course import Course, Numbered
from crypto_lake.simulator.faulty_frames import FaultyFrames
from crypto_lake.simulator.hub import Connection, Hub
from crypto_lake.simulator.market import Market
from crypto_lake.simulator.scenario import Fault
from crypto_lake.simulator.streams import UNROUTED, kind_of, stream_of

GOING_AWAY: Final = 1001
_VENUES: Final = (FUTURES, SPOT)
_AT_MOMENTS: Final = ("cut", "half_open", "oversized", "clock_skew", "new_fields", "shutdown", "delisted")


class _Moment(NamedTuple):
    """When a fault is to do something; `is_end` = to leave off."""

    at_s: float
    number: int
    occurrence: int
    is_end: bool
    numbered: Numbered


class FaultyConnections:
    """The faults of connections, at work; `run` does what happens at moments."""

    def __init__(self, course: Course, frames: FaultyFrames, market: Market) -> None:
        self._course, self._frames, self._market = course, frames, market
        self._mute, self._life = course.of("mute"), course.of("life")
        self._refused, self._shutdown = course.of("refused"), course.of("shutdown")
        self._handshakes = 0
        self._moments = [_first(each) for each in course.of(*_AT_MOMENTS)]
        heapq.heapify(self._moments)
        self._deeds: dict[str, Callable[[_Moment, Hub], None]] = {
            "cut": self._cut,
            "half_open": self._half_open,
            "oversized": self._oversize,
            "clock_skew": self._skew,
            "new_fields": self._note_new_fields,
            "shutdown": self._shut_down,
            "delisted": self._delist,
        }

    async def run(self, hub: Hub) -> None:
        """Do each thing at its moment; ends when there is nothing more to come."""
        while self._moments:
            await asyncio.sleep(max(0.0, self._moments[0].at_s - self._course.now_s))
            if self._moments[0].at_s > self._course.now_s:
                continue  # a sleep may end a little early
            moment = heapq.heappop(self._moments)
            self._deeds[moment.numbered.fault.kind](moment, hub)
            for later in _after(moment, self._course.now_s):
                heapq.heappush(self._moments, later)

    def handshake(self, request: web.Request, route: str) -> web.StreamResponse | None:
        """The answer to a WebSocket request that is not accepted; None = it is."""
        self._handshakes += 1
        venue = venue_of(route)
        for each in self._course.in_force(self._shutdown):
            if each.fault.concerns(venue, ""):
                self._course.note(each, f"/{route}: nothing accepted")
                assert request.transport is not None
                request.transport.abort()
                return web.Response(status=503)
        for each in self._course.in_force(self._refused):
            number, fault = each
            if fault.concerns(venue, "") and self._course.draw(number, "handshake", self._handshakes) < fault.share:
                self._course.note(each, f"/{route}: {fault.status}")
                return _refusal(fault)
        return None

    def opened(self, connection: Connection) -> None:
        """Decide what will become of a new connection."""
        venue, mine = venue_of(connection.route), connection.served.number
        for each in self._course.in_force(self._mute):
            if each.fault.concerns(venue, "") and self._course.draw(each.number, mine) < each.fault.share:
                connection.served.mute_s = connection.served.opened_s
                self._course.note(each, f"/{connection.route}", mine)
        for each in self._life:
            if each.fault.concerns(venue, "") and self._course.draw(each.number, mine) < each.fault.share:
                self._limit_life(each, connection)

    def _limit_life(self, each: Numbered, connection: Connection) -> None:
        fault, now_s = each.fault, self._course.now_s
        assert fault.life_s is not None
        due_s = max(now_s + fault.life_s, fault.at_s)
        if fault.occurrence(due_s) is not None:
            asyncio.get_running_loop().call_later(due_s - now_s, self._end_life, each, connection)

    def _end_life(self, each: Numbered, connection: Connection) -> None:
        if not connection.closed.is_set() and not connection.is_half_open:
            self._course.note(each, f"/{connection.route}: closed", connection.served.number)
            connection.say_good_bye(GOING_AWAY, "as old as a connection may be")

    # At moments

    def _drawn(self, moment: _Moment, hub: Hub) -> list[Connection]:
        """A share of the connections that are concerned and alive: one at least, unless the share is 0."""
        number, fault = moment.numbered
        there = [each for each in hub.connections if not each.is_half_open and _concerns(fault, each)]
        wanted = min(len(there), max(1, round(fault.share * len(there)))) if fault.share else 0
        there.sort(key=lambda each: self._course.draw(number, moment.occurrence, each.served.number))
        return there[:wanted]

    def _cut(self, moment: _Moment, hub: Hub) -> None:
        for connection in self._drawn(moment, hub):
            self._course.note(moment.numbered, f"/{connection.route}", connection.served.number)
            connection.abort()

    def _half_open(self, moment: _Moment, hub: Hub) -> None:
        for connection in self._drawn(moment, hub):
            self._course.note(moment.numbered, f"/{connection.route}", connection.served.number)
            connection.go_dumb()

    def _oversize(self, moment: _Moment, hub: Hub) -> None:
        self._frames.arm(moment.numbered, {each.served.number for each in self._drawn(moment, hub)})

    def _skew(self, moment: _Moment, hub: Hub) -> None:
        """All that the market has told lies before its clock; what it tells from now on lies after it."""
        skew_ms = round((moment.numbered.fault.skew_s or 0) * 1000)
        if moment.is_end:
            self._frames.skew.end(skew_ms, self._market.clock_ms)
            self._course.note(moment.numbered, "right again")
        else:
            self._frames.skew.begin(self._market.clock_ms, skew_ms)
            self._course.note(moment.numbered, f"off by {skew_ms} ms")

    def _note_new_fields(self, moment: _Moment, hub: Hub) -> None:
        self._course.note(moment.numbered, "begins")

    def _shut_down(self, moment: _Moment, hub: Hub) -> None:
        fault = moment.numbered.fault
        assert fault.delay_s is not None
        for connection in [each for each in hub.connections if _concerns(fault, each)]:
            now_ms = self._frames.skew.shifted(self._market.clock_ms)
            event = b'{"e":"serverShutdown","E":%d}' % (now_ms * 1000 if connection.in_microseconds else now_ms)
            connection.reply(b'{"stream":"!serverShutdown","data":' + event + b"}" if connection.combined else event)
            self._course.note(moment.numbered, f"/{connection.route}: serverShutdown", connection.served.number)
            asyncio.get_running_loop().call_later(fault.delay_s, self._send_away, connection)

    def _send_away(self, connection: Connection) -> None:
        if not connection.closed.is_set():
            connection.say_good_bye(GOING_AWAY, "the server goes away")

    def _delist(self, moment: _Moment, hub: Hub) -> None:
        fault = moment.numbered.fault
        for venue in [each for each in _VENUES if fault.venue in (None, each)]:
            for symbol in [each for each in fault.symbols if each in self._market.symbols(venue)]:
                self._market.delist(venue, symbol)
                self._course.note(moment.numbered, f"{venue} {symbol}")


def venue_of(route: str) -> str:
    """The venue that a route belongs to."""
    return SPOT if route == UNROUTED else FUTURES


def _first(each: Numbered) -> _Moment:
    return _Moment(each.fault.at_s, each.number, 0, False, each)


def _after(moment: _Moment, now_s: float) -> Iterator[_Moment]:
    """The end of what has begun, and the next time; times that passed while nobody was served are left out."""
    fault = moment.numbered.fault
    if fault.kind == "clock_skew" and fault.for_s is not None and not moment.is_end:
        yield moment._replace(at_s=moment.at_s + fault.for_s, is_end=True)
    if fault.every_s:
        occurrence = max(moment.occurrence + 1, math.ceil((now_s - fault.at_s) / fault.every_s))
        yield moment._replace(at_s=fault.begins_s(occurrence), occurrence=occurrence)


def _concerns(fault: Fault, connection: Connection) -> bool:
    """By its venue, and by any of its streams when streams or symbols are named."""
    venue = venue_of(connection.route)
    if not fault.streams and not fault.symbols:
        return fault.concerns(venue, "")
    heard = (stream_of(name, venue) for name in connection.streams)
    return any(fault.concerns(venue, _symbol_of(stream), kind_of(stream)) for stream in heard if stream)


def _symbol_of(stream: str) -> str:
    return "" if stream.startswith("!") else stream.rpartition("@")[0].upper()


def _refusal(fault: Fault) -> web.Response:
    assert fault.status is not None
    headers = {} if fault.retry_after_s is None else {"Retry-After": str(math.ceil(fault.retry_after_s))}
    return web.Response(status=fault.status, headers=headers, text="not now")
