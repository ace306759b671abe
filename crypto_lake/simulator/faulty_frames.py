"""What goes wrong with frames: on every connection alike, or on each by a draw of its own."""

import asyncio
from dataclasses import dataclass

from crypto_lake.simulator import altered
from crypto_lake.simulator.course import Course, Numbered
from crypto_lake.simulator.hub import Connection, websocket_frame
from crypto_lake.simulator.market import Frame, combined
from crypto_lake.simulator.scenario import FORMS
from crypto_lake.simulator.streams import kind_of

# What keeps a frame away comes first: it need not be changed then.
_PER_CONNECTION = ("silent_stream", "lost", "corrupted", "repeated", "reordered")


@dataclass(slots=True)
class _Armed:
    """Connections that get their next frame too large; `frame` is the one chosen for everybody."""

    numbered: Numbered
    connections: set[int]
    frame: Frame | None = None


class FaultyFrames:
    """The faults of frames, at work; draws go by the number of a frame in its stream, not by when it came."""

    def __init__(self, course: Course) -> None:
        self.skew = altered.Skew()
        self._course = course
        self._faults = course.of(*_PER_CONNECTION)
        self._format_changes = course.of("format_change")
        self._new_fields = course.of("new_fields")
        self._concerning: dict[tuple[str, str], list[Numbered]] = {}
        self._places: dict[tuple[str, str], int] = {}
        self._place = 0
        self._now: list[Numbered] = []
        self._armed: list[_Armed] = []

    def arm(self, numbered: Numbered, connections: set[int]) -> None:
        """The next frame of each of these connections will be too large."""
        self._armed.append(_Armed(numbered, connections))

    def told(self, frame: Frame) -> Frame:
        """The frame as the venue tells it to everybody; takes note of its number and of what is in force for it."""
        key = (frame.venue, frame.stream)
        self._place = self._places[key] = self._places.get(key, 0) + 1
        self._armed = [each for each in self._armed if each.connections and each.frame is None]
        self._now = list(self._course.in_force(self._faults_of(frame)))
        kind = kind_of(frame.stream)
        payload = self._in_other_form(frame, self.skew.of_event(frame.payload, kind))
        if any(each.fault.concerns(frame.venue, "") for each in self._course.in_force(self._new_fields)):
            payload = altered.with_new_fields(payload)
        return frame if payload is frame.payload else frame._replace(payload=payload)

    def deliver(self, connection: Connection, message: bytes, frame: Frame, name: str) -> None:
        """Give a frame to a connection, or do not, or do worse."""
        if connection.served.mute_s is not None or connection.is_half_open:
            return
        hits = [each for each in self._now if self._hits(each, connection, frame)]
        for each in hits:
            self._course.note(each, altered.words_for(frame.stream, frame.payload), connection.served.number, frame)
            if each.fault.kind in ("silent_stream", "lost"):
                return
        if self._armed and (large := self._oversized(connection, frame, name)):
            message = large
        for number, fault in hits:
            if fault.kind == "corrupted":
                message = self._corrupted(Numbered(number, fault), connection, frame, name)
        self._queue(connection, message, hits)

    def _faults_of(self, frame: Frame) -> list[Numbered]:
        key = (frame.venue, frame.stream)
        found = self._concerning.get(key)
        if found is None:
            found = self._concerning[key] = [each for each in self._faults if _concerns(each, frame)]
        return found

    def _in_other_form(self, frame: Frame, payload: bytes) -> bytes:
        for each in self._course.in_force(self._format_changes):
            number, fault = each
            if _concerns(each, frame) and self._course.draw(number, frame.stream, self._place) < fault.share:
                self._course.note(each, altered.words_for(frame.stream, payload), frame=frame)
                return altered.in_other_form(payload, fault.form or "")
        return payload

    def _hits(self, each: Numbered, connection: Connection, frame: Frame) -> bool:
        number, fault = each
        if fault.kind == "silent_stream":
            return fault.everywhere or self._is_silenced(each, connection)
        whose = "all" if fault.everywhere else connection.served.number
        return self._course.draw(number, whose, frame.venue, frame.stream, self._place) < fault.share

    def _is_silenced(self, each: Numbered, connection: Connection) -> bool:
        """Those that were there before it began; a new connection hears the stream."""
        number, fault = each
        now_s = self._course.now_s
        occurrence = fault.occurrence(now_s)
        if occurrence is None or connection.age_s < now_s - fault.begins_s(occurrence):
            return False
        return self._course.draw(number, occurrence, connection.served.number) < fault.share

    def _oversized(self, connection: Connection, frame: Frame, name: str) -> bytes | None:
        mine = connection.served.number
        for armed in self._armed:
            if mine in armed.connections and _concerns(armed.numbered, frame):
                armed.connections.discard(mine)
                fault = armed.numbered.fault
                armed.frame = frame if fault.everywhere else None
                self._course.note(armed.numbered, altered.words_for(frame.stream, frame.payload), mine, frame)
                return _framed(connection, name, altered.padded(frame.payload, fault.size_bytes or 0))
        return None

    def _corrupted(self, each: Numbered, connection: Connection, frame: Frame, name: str) -> bytes:
        number, fault = each
        draw = self._course.draw(number, "form", frame.venue, frame.stream, self._place)
        form = fault.form or FORMS["corrupted"][draw < 0.5]
        text = combined(name, frame.payload) if connection.combined else frame.payload
        return websocket_frame(altered.corrupted(text, form, draw))

    def _queue(self, connection: Connection, message: bytes, hits: list[Numbered]) -> None:
        late = next((each for each in hits if each.fault.kind == "reordered"), None)
        if late is None:
            connection.queue(message)
        if any(each.fault.kind == "repeated" for each in hits):
            connection.queue(message)
        connection.let_go()
        if late is not None:
            self._hold(late, connection, message)

    def _hold(self, each: Numbered, connection: Connection, message: bytes) -> None:
        number, fault = each
        assert fault.behind is not None
        assert fault.delay_s is not None
        behind = 1 + int(self._course.draw(number, "behind", connection.served.number, self._place) * fault.behind)
        held = connection.hold(message, behind)
        asyncio.get_running_loop().call_later(fault.delay_s, connection.let_go_late, held)


def _concerns(each: Numbered, frame: Frame) -> bool:
    symbol = "" if frame.stream.startswith("!") else frame.stream.rpartition("@")[0].upper()
    return each.fault.concerns(frame.venue, symbol, kind_of(frame.stream))


def _framed(connection: Connection, name: str, payload: bytes) -> bytes:
    return websocket_frame(combined(name, payload) if connection.combined else payload)
