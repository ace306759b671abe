"""What a feed's connections deliver goes into the journal, once; what none of them delivered goes in as a lapse."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
import structlog

from crypto_lake.journal import ALIVE, CLOSED, DOUBT, FRAME, LAPSE, OPENED, Journal
from crypto_lake.models.frame import Lapse
from crypto_lake.models.gap import DISCONNECT, OVERLOAD, RESTART, SILENCE
from crypto_lake.monitoring import metrics
from crypto_lake.processors.sequence import has_sequence
from crypto_lake.services.delivery import DARK_US, Delivery, Hole, Line
from crypto_lake.services.feeds import Carries, Feed
from crypto_lake.services.leave_out import Omission
from crypto_lake.services.load import Load
from crypto_lake.services.seen import Seen, has_ids
from crypto_lake.services.silence import Alarm, Silence, Voice

log = structlog.get_logger()

# A quiet feed that is heard leaves a sign so often: after a crash the hole begins there, not at the last message.
ALIVE_EVERY_US: Final = 10_000_000
# Where the stream's name begins in a combined message.
NAME_AT: Final = len(b'{"stream":"')
OnStream = Callable[[Feed, bytes], None]


class _Past(NamedTuple):
    """What an earlier run collected by one origin, and when it heard something by it at last (None: never)."""

    symbols: list[str]
    origin: bytes
    heard_us: int | None


class Intake:
    """The one door of a feed to its journal, for all its connections. Times are our clock, microseconds since 1970."""

    def __init__(
        self, feed: Feed, journal: Journal, *, now_us: int, load: Load, shares: bool, on_stream: OnStream | None = None
    ) -> None:
        """`shares`: whether several connections deliver the same."""
        assert feed.dataset.live is not None
        self.carries = feed.carries
        self._before, self._is_starting, self.is_settled = _before(feed, journal), True, True
        begin_us = min((each.heard_us for each in self._before if each.heard_us is not None), default=None)
        self.delivery = Delivery(begin_us, started_us=now_us)
        self.silence = Silence(feed.symbols, first_word_s=feed.dataset.live.first_word_s)
        self._feed, self._journal, self._load, self._on_stream = feed, journal, load, on_stream
        self._origin = feed.origin
        self._symbols = self.carries.names
        # Streams that connections bring although they do not count: not any more, or not yet.
        self._deaf: set[bytes] = set()
        self._omission = Omission(self.carries.left_out)
        # What may be given up is counted, and while one connection replaces another both of them deliver.
        is_counted = shares or feed.dataset.sacrifice > 0
        self._seen = Seen(ignore_event_time=has_ids(feed.dataset)) if is_counted else None
        self._unseen: set[bytes] = set()  # streams whose first message after a hole is still to come
        self._written_us = 0
        self._shed, self._shed_from_us, self._shed_is_told = 0, 0, False
        self._alive_due_us = now_us + ALIVE_EVERY_US
        for each in self._before:
            if doubt := journal.doubt_us(each.origin):
                self._write(Lapse(each.symbols, DISCONNECT, *doubt), now_us)

    # What happens on a connection

    def opened(self, carries: Carries, now_us: int) -> Line:
        """A connection is open, and brings what it was asked for; whoever reads it tells this line."""
        self._feed.open += 1
        self._feed.opened += 1
        note = msgspec.json.encode({"url": carries.url, "streams": carries.streams})
        self._journal.append(OPENED, self._origin, note, now_us)
        return Line()

    def closed(self, line: Line, reason: str, now_us: int, *, was_silent: bool) -> None:
        """A connection has ended, and `reason` says why; `was_silent`: it was there, but nothing came."""
        self._feed.open -= 1
        self._journal.append(CLOSED, self._origin, msgspec.json.encode({"reason": reason}), now_us)
        self._note(self.delivery.ended(line, SILENCE if was_silent else DISCONNECT), now_us)
        self._feed.delivering = self.delivery.delivering

    def join(self, line: Line) -> None:
        """A line has heard something that is not joined to what is proven."""
        was_pending = self.delivery.is_pending
        self._note(self.delivery.join(line), line.last_us)
        if self.delivery.is_pending and not was_pending:
            # After a crash the dark time would be lost with us: what comes from here on proves nothing.
            self._journal.append(ALIVE, self._origin, DOUBT, self.delivery.proven_us)
        elif was_pending and not self.delivery.is_pending:
            self._journal.append(ALIVE, self._origin, b"", self.delivery.proven_us)
        self._feed.delivering = self.delivery.delivering

    def take(self, payload: bytes, received_us: int) -> None:
        """A message of one of the streams: written, unless it has come already or must be given up."""
        feed = self._feed
        if self._seen is not None and self._seen.is_repeat(payload):
            feed.repeats += 1
            return
        # `stream_of` without the call, which costs as much as all the counting; what has no envelope is no voice's.
        stream = payload[NAME_AT : payload.find(b'"', NAME_AT)]
        if self._deaf and stream in self._deaf:
            return
        if self._omission.symbols and not (payload := self._omission.of(payload)):
            return
        voice = self.silence.voices.get(stream)
        if voice is not None:
            voice.count += 1
            voice.heard_us = received_us
            if voice.silent_us:
                self._speaks_again(voice, received_us)
        if self._load.level and 0 < feed.dataset.sacrifice <= self._load.level:
            self._give_up(received_us)
            return
        if self._shed:
            self._end_shedding(received_us)
        self._journal.append(FRAME, self._origin, payload, received_us)
        self._written_us = received_us
        feed.frames += 1
        feed.size_bytes += len(payload)
        if self._unseen and stream in self._unseen:
            self._unseen.discard(stream)
            assert self._on_stream is not None
            self._on_stream(feed, payload)

    # Other streams

    def turn(self, carries: Carries, now_us: int) -> None:
        """Other streams are wanted. Those that are not wanted any more end now; new ones count from `settle` on."""
        before, self.carries, self.is_settled = self.carries, carries, False
        self._deaf |= {stream.encode() for stream in before.symbols.keys() ^ carries.symbols.keys()}
        self._omission = Omission(carries.left_out)
        self.silence.drop(before.symbols.keys() - carries.symbols.keys())
        self._feed.silent = self.silence.silent
        wanted = frozenset(carries.names)
        ended = [symbol for symbol in self._symbols if symbol not in wanted]
        self._symbols = [symbol for symbol in self._symbols if symbol in wanted]
        if ended:
            self._journal.append(LAPSE, self._origin, _ended(ended, now_us), now_us)
            self._journal.drop(self._feed.venue, ended, now_us)

    def settle(self, now_us: int) -> None:
        """Every connection that is open carries what is wanted: from now on new streams count, if anything is heard.

        Not before: a hole of the new ones would go unnoticed while a connection that lacks them is heard.
        """
        if self.delivery.is_dark or self.delivery.is_pending:
            return
        new = [symbol for symbol in self.carries.names if symbol not in self._symbols]
        streams = [name for name, symbols in self.carries.symbols.items() if name.encode() in self._deaf]
        self._deaf.clear()
        self.is_settled = True
        self.silence.add(streams, now_us)
        if not new:
            return
        if self._shed:
            self._end_shedding(now_us)
        self._symbols += new
        self._carry(now_us)
        self._begin(new, now_us)
        if self._on_stream is not None:
            self._unseen |= {stream.encode() for stream in streams}

    def _begin(self, symbols: list[str], now_us: int) -> None:
        """Nobody collected these before: that they did not come is no hole, unless there are ids that say so."""
        if symbols and has_sequence(self._feed.dataset):
            self._write(Lapse(symbols, RESTART, None, now_us), now_us)

    def _carry(self, now_us: int) -> None:
        self._journal.carry(self._origin, self._symbols, now_us)

    # Once a second, and at the end

    def look(self, now_us: int, *, is_reading: bool) -> bool:
        """Holes that last, streams that are silent, a sign of life; returns whether new connections should be tried.

        Without `is_reading` the sockets rest, and what is not heard says nothing about the venue.
        """
        if lasting := self.delivery.lasting(now_us):
            self._note([lasting], now_us)
        if self._shed and not self._is_shedding():
            self._end_shedding(now_us)
        elif self._shed and not self._shed_is_told and now_us - self._shed_from_us > DARK_US:
            self._shed_is_told = True
            self._write(Lapse(self._symbols, OVERLOAD, self._shed_from_us, None, self._shed), now_us)
        alarms = self.silence.look(now_us, is_heard=is_reading and not self.delivery.is_dark)
        for alarm in alarms:
            self._falls_silent(alarm, now_us)
        self._feed.silent = self.silence.silent
        if not self._alive_due_us - ALIVE_EVERY_US <= now_us < self._alive_due_us:
            self.show_life()
            self._alive_due_us = now_us + ALIVE_EVERY_US
        return self.silence.wants_renewal(now_us)

    def show_life(self) -> None:
        """Writes up to when nothing was lost, where the messages do not say it themselves."""
        delivery = self.delivery
        is_sure = delivery.has_begun and not delivery.is_pending and not any(line.doubt_us for line in delivery.lines)
        if is_sure and delivery.proven_us != self._written_us and not self._shed:
            self._journal.append(ALIVE, self._origin, b"", delivery.proven_us)
            self._written_us = delivery.proven_us

    def end(self, now_us: int) -> None:
        """The last word of a clean stop."""
        if self._shed:
            self._end_shedding(now_us)
        self.show_life()

    # Lapses

    def _note(self, holes: Iterable[Hole], now_us: int) -> None:
        for hole in holes:
            if self._is_starting:
                self._note_start(hole, now_us)
            else:
                self._write(Lapse(self._symbols, hole.reason, hole.from_us, hole.to_us), now_us)
            if hole.to_us is not None:
                self._still_silent(now_us)
                # After a crash within seconds this was the last that was heard.
                self._journal.append(ALIVE, self._origin, b"", self.delivery.proven_us)
            if self._on_stream is not None:
                self._unseen = {stream.encode() for stream in self.carries.symbols} - self._deaf

    def _note_start(self, hole: Hole, now_us: int) -> None:
        """The time from the last run to this one: for each symbol from when something was heard of it."""
        end_us, known = now_us if hole.to_us is None else hole.to_us, set[str]()
        for each in self._before:
            known.update(each.symbols)
            from_us = None if each.heard_us is None else min(each.heard_us, end_us)
            if symbols := [symbol for symbol in each.symbols if symbol in self._symbols]:
                self._write(Lapse(symbols, hole.reason, from_us, hole.to_us), now_us)
        if hole.to_us is not None:
            self._is_starting = False
            self._begin([symbol for symbol in self._symbols if symbol not in known], hole.to_us)
            self._carry(now_us)

    def _still_silent(self, now_us: int) -> None:
        """The end of a hole is the end of all that was said of these symbols before, but not of their silence."""
        for voice in self.silence.silent_voices:
            self._write(Lapse(list(self.carries.symbols[voice.stream]), SILENCE, voice.silent_us, None), now_us)

    def _write(self, lapse: Lapse, now_us: int) -> None:
        feed = self._feed
        self._journal.append(LAPSE, self._origin, msgspec.json.encode(lapse), now_us)
        if lapse.to_us is not None:
            feed.lapses += 1
            metrics.lapses_total.labels(feed.dataset.name, feed.venue, lapse.reason).inc()

    def _falls_silent(self, alarm: Alarm, now_us: int) -> None:
        symbols = list(self.carries.symbols[alarm.stream])
        log.warning("stream_silent", feed=self._feed.name, stream=alarm.stream, for_more_than_s=round(alarm.limit_s, 1))
        self._write(Lapse(symbols, SILENCE, alarm.from_us, None), now_us)

    def _speaks_again(self, voice: Voice, now_us: int) -> None:
        from_us = self.silence.spoke(voice, now_us)
        self._feed.silent = self.silence.silent
        log.info(
            "stream_speaks_again", feed=self._feed.name, stream=voice.stream, after_s=round((now_us - from_us) / 1e6)
        )
        self._write(Lapse(list(self.carries.symbols[voice.stream]), SILENCE, from_us, now_us), now_us)

    # Shedding

    def _is_shedding(self) -> bool:
        return 0 < self._feed.dataset.sacrifice <= self._load.level

    def _give_up(self, received_us: int) -> None:
        if not self._shed:
            self._feed.is_shedding = True
            self._shed_from_us = self._written_us or received_us
            log.warning("shedding", feed=self._feed.name, level=self._load.level, reason=self._load.reason)
        self._shed += 1
        self._feed.shed += 1

    def _end_shedding(self, now_us: int) -> None:
        log.warning("shedding_ended", feed=self._feed.name, messages=self._shed)
        self._write(Lapse(self._symbols, OVERLOAD, self._shed_from_us, now_us, self._shed), now_us)
        self._shed, self._shed_is_told, self._feed.is_shedding = 0, False, False


def part(journal: Journal, wanted: Mapping[str, Container[str]], now_us: int) -> None:
    """Ends what an earlier run collected and nobody wants any more; `wanted` are symbols by venue."""
    for origin, symbols in list((journal.carried or {}).items()):
        venue = origin.partition(b" ")[0].decode()
        if ended := [symbol for symbol in symbols if symbol not in wanted.get(venue, ())]:
            heard_us = journal.heard_us(origin)
            journal.append(LAPSE, origin, _ended(ended, now_us if heard_us is None else heard_us), now_us)
            journal.drop(venue, ended, now_us)


def _before(feed: Feed, journal: Journal) -> list[_Past]:
    """What earlier runs collected of a feed's symbols; if nobody knows, then all of them."""
    names = feed.carries.names
    if journal.carried is None:
        return [_Past(names, feed.origin, journal.heard_us(feed.origin, or_any=feed.origins))]
    found = []
    for origin, symbols in journal.carried.items():
        both = frozenset(symbols) & frozenset(names)
        if both and origin.startswith(feed.origins):
            heard_us = journal.heard_us(origin, or_any=feed.origins)
            found.append(_Past([name for name in names if name in both], origin, heard_us))
    return found


def _ended(symbols: Sequence[str], at_us: int) -> bytes:
    """The lapse that ends what lasts of symbols that are not collected any more."""
    return msgspec.json.encode(Lapse(list(symbols), RESTART, at_us, at_us))
