"""What a feed's connections deliver goes into the journal, once; what none of them delivered goes in as a lapse."""

from collections.abc import Callable, Iterable
from typing import Final

import msgspec
import structlog

from crypto_lake.journal import ALIVE, CLOSED, DOUBT, FRAME, LAPSE, OPENED, Journal
from crypto_lake.models.frame import Lapse
from crypto_lake.models.gap import DISCONNECT, OVERLOAD, SILENCE
from crypto_lake.monitoring import metrics
from crypto_lake.services.delivery import DARK_US, Delivery, Hole, Line
from crypto_lake.services.feeds import Feed
from crypto_lake.services.load import Load
from crypto_lake.services.seen import Seen, has_ids
from crypto_lake.services.silence import Alarm, Silence, Voice

log = structlog.get_logger()

# A quiet feed that is heard leaves a sign so often: after a crash the hole begins there, not at the last message.
ALIVE_EVERY_US: Final = 10_000_000
# Where the stream's name begins in a combined message.
NAME_AT: Final = len(b'{"stream":"')
OnStream = Callable[[Feed, bytes], None]


class Intake:
    """The one door of a feed to its journal, for all its connections. Times are our clock, microseconds since 1970."""

    def __init__(
        self, feed: Feed, journal: Journal, *, now_us: int, load: Load, shares: bool, on_stream: OnStream | None = None
    ) -> None:
        """`shares`: whether several connections deliver the same."""
        assert feed.dataset.live is not None
        self.delivery = Delivery(journal.heard_us(feed.origin, or_any=feed.origins), started_us=now_us)
        self.silence = Silence(feed.symbols, first_word_s=feed.dataset.live.first_word_s)
        self._feed, self._journal, self._load, self._on_stream = feed, journal, load, on_stream
        self._origin = feed.origin
        self._symbols = list(dict.fromkeys(symbol for symbols in feed.symbols.values() for symbol in symbols))
        self._streams = frozenset(stream.encode() for stream in feed.symbols)
        # What may be given up is counted, and while one connection replaces another both of them deliver.
        is_counted = shares or feed.dataset.sacrifice > 0
        self._seen = Seen(ignore_event_time=has_ids(feed.dataset)) if is_counted else None
        self._unseen: set[bytes] = set()  # streams whose first message after a hole is still to come
        self._written_us = 0
        self._shed, self._shed_from_us, self._shed_is_told = 0, 0, False
        self._alive_due_us = now_us + ALIVE_EVERY_US
        if doubt := journal.doubt_us(feed.origin):
            self._write(Lapse(self._symbols, DISCONNECT, *doubt), now_us)

    # What happens on a connection

    def opened(self, now_us: int) -> Line:
        """A connection is open; whoever reads it tells this line."""
        self._feed.open += 1
        self._feed.opened += 1
        note = msgspec.json.encode({"url": self._feed.url, "streams": self._feed.streams})
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
            self._write(Lapse(self._symbols, hole.reason, hole.from_us, hole.to_us), now_us)
            if hole.to_us is not None:
                self._still_silent(now_us)
                # After a crash within seconds this was the last that was heard.
                self._journal.append(ALIVE, self._origin, b"", self.delivery.proven_us)
            if self._on_stream is not None:
                self._unseen = set(self._streams)

    def _still_silent(self, now_us: int) -> None:
        """The end of a hole is the end of all that was said of these symbols before, but not of their silence."""
        for voice in self.silence.silent_voices:
            self._write(Lapse(list(self._feed.symbols[voice.stream]), SILENCE, voice.silent_us, None), now_us)

    def _write(self, lapse: Lapse, now_us: int) -> None:
        feed = self._feed
        self._journal.append(LAPSE, self._origin, msgspec.json.encode(lapse), now_us)
        if lapse.to_us is not None:
            feed.lapses += 1
            metrics.lapses_total.labels(feed.dataset.name, feed.venue, lapse.reason).inc()

    def _falls_silent(self, alarm: Alarm, now_us: int) -> None:
        symbols = list(self._feed.symbols[alarm.stream])
        log.warning("stream_silent", feed=self._feed.name, stream=alarm.stream, for_more_than_s=round(alarm.limit_s, 1))
        self._write(Lapse(symbols, SILENCE, alarm.from_us, None), now_us)

    def _speaks_again(self, voice: Voice, now_us: int) -> None:
        from_us = self.silence.spoke(voice, now_us)
        self._feed.silent = self.silence.silent
        log.info(
            "stream_speaks_again", feed=self._feed.name, stream=voice.stream, after_s=round((now_us - from_us) / 1e6)
        )
        self._write(Lapse(list(self._feed.symbols[voice.stream]), SILENCE, from_us, now_us), now_us)

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
