"""Streams that have stopped although their connection lives: each is measured by its own past.

A venue acknowledges a stream that it will never send, and a symbol can die while a hundred others speak. How long a
stream may be quiet follows from how long one had to wait for its next word, and from its longest pause.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

# No stream is silent before that: the venue batches, the network hiccups.
FLOOR_S: Final = 5.0
# If words come at random, a pause of 15 mean ones comes once in three million. Where they come in other ways, three
# times the longest pause is rare too. Both must be over.
MEAN_PAUSES: Final = 15.0
LONGEST_PAUSES: Final = 3.0
# Fewer seconds with a word teach nothing, nor does a time that is short beside the pauses in it: a few bursts.
ENOUGH_WORDS: Final = 20
ENOUGH_PAUSES: Final = 10
# How far back the past reaches: a market falls asleep within hours.
MEMORY_S: Final = 900.0
# A longest pause is kept for so long at least, and for ENOUGH_WORDS.
WINDOW_US: Final = 3 * 3_600_000_000
# A silence that ended within this many limits, and before new connections can have helped, was none: the stream is
# given twice the time from then on.
FALSE_LIMITS: Final = 3.0
MOST_PATIENCE: Final = 8.0
# A look sees no pauses within its second: a message in each of two looks means a pause of at most half of that, twice.
ADJACENT_US: Final = 1_500_000
# After a late look the messages of the meantime are still in the sockets: nobody is judged before they are read.
LATE_US: Final = 2_500_000
FIRST_PAUSE_US: Final = 60_000_000
MOST_PAUSE_US: Final = 3_600_000_000


@dataclass(slots=True, eq=False)
class Voice:
    """One stream. Whoever reads it counts into `count` and sets `heard_us`, our clock in microseconds, per message;
    `silent_us` is since when it is silent, 0 while it is not."""

    stream: str
    count: int = 0
    heard_us: int = 0
    silent_us: int = 0
    words: int = 0  # looks that found something new
    first_us: int = 0
    last_us: int = 0  # the last message at the last of them
    paused_s: float = 0.0  # the sum of its pauses, older ones fading
    squares_s2: float = 0.0  # the sum of their squares
    longest_us: int = 0
    longest_before_us: int = 0
    window_us: int = 0
    window_words: int = 0
    tries: int = 0
    next_try_us: int = 0
    back_us: int = 0
    patience: float = 1.0

    def learn(self, now_us: int, since_us: int) -> None:
        """It has spoken since the last look; before `since_us` nobody listened."""
        if self.words:
            pause_us = max(0, self.heard_us - max(self.last_us, since_us))
            pause_s, kept = pause_us / 1e6, math.exp(-pause_us / 1e6 / MEMORY_S)
            self.paused_s = self.paused_s * kept + pause_s
            self.squares_s2 = self.squares_s2 * kept + pause_s * pause_s * (0.5 if pause_us < ADJACENT_US else 1.0)
            self._remember(pause_us, now_us)
        else:
            self.first_us = self.heard_us
        self.words += 1
        self.last_us, self.count = self.heard_us, 0

    def _remember(self, pause_us: int, now_us: int) -> None:
        self.window_words += 1
        if now_us - self.window_us > WINDOW_US and self.window_words > ENOUGH_WORDS:
            self.longest_before_us, self.longest_us = self.longest_us, 0
            self.window_us, self.window_words = now_us, 0
        self.longest_us = max(self.longest_us, pause_us)

    def limit_s(self, first_word_s: float) -> float:
        """How long it may be quiet."""
        # How long one waits for the next word from any moment on: in bursts that is far more than the mean pause.
        mean_s = self.squares_s2 / (2 * self.paused_s) if self.paused_s else 0.0
        longest_s = max(self.longest_us, self.longest_before_us) / 1e6
        limit_s = max(FLOOR_S, MEAN_PAUSES * mean_s, LONGEST_PAUSES * longest_s)
        known_s = (self.last_us - self.first_us) / 1e6
        is_known = self.words >= ENOUGH_WORDS and known_s >= ENOUGH_PAUSES * longest_s
        return self.patience * limit_s if is_known else max(limit_s, first_word_s)


class Alarm(NamedTuple):
    """A stream that has fallen silent, and since when: its last message, or the begin of listening."""

    stream: str
    from_us: int
    limit_s: float


class Silence:
    """The streams of a feed. `first_word_s` is how long each may take to speak at all; None judges nobody."""

    def __init__(self, streams: Iterable[str], *, first_word_s: float | None) -> None:
        self._judges = first_word_s is not None
        self.voices = {stream.encode(): Voice(stream) for stream in streams} if self._judges else {}
        self._first_word_s = first_word_s or 0.0
        self._since_us = self._looked_us = self._renewed_us = 0
        self._silent: dict[str, Voice] = {}

    @property
    def silent(self) -> tuple[str, ...]:
        """The streams that are silent now."""
        return tuple(self._silent)

    @property
    def silent_voices(self) -> list[Voice]:
        """They, with what is known of them."""
        return list(self._silent.values())

    def add(self, streams: Iterable[str], now_us: int) -> None:
        """From now on these are listened to, too."""
        if self._judges:
            self.voices |= {stream.encode(): Voice(stream, heard_us=now_us) for stream in streams}

    def drop(self, streams: Iterable[str]) -> None:
        """These are not listened to any more."""
        for stream in streams:
            self.voices.pop(stream.encode(), None)
            self._silent.pop(stream, None)

    def shift(self, step_us: int) -> None:
        """The clock was set by so much: what is remembered of it moves along."""
        for voice in self.voices.values():
            for name in ("heard_us", "silent_us", "first_us", "last_us", "window_us", "next_try_us", "back_us"):
                if getattr(voice, name):
                    setattr(voice, name, getattr(voice, name) + step_us)
        self._since_us += step_us if self._since_us else 0
        self._looked_us += step_us if self._looked_us else 0
        self._renewed_us += step_us if self._renewed_us else 0

    def look(self, now_us: int, *, is_heard: bool) -> list[Alarm]:
        """Once a second: who has fallen silent. Without `is_heard` nobody listened, and nobody is judged."""
        ago_us, self._looked_us = now_us - self._looked_us, now_us
        if not is_heard:
            self._since_us = 0
            return []
        if not self._since_us:
            self._since_us, ago_us = now_us, 1_000_000
        since_us = self._since_us
        quiet = []
        for voice in self.voices.values():
            if voice.count:
                voice.learn(now_us, since_us)
            elif not voice.silent_us and now_us - max(voice.heard_us, since_us) > FLOOR_S * 1e6:
                quiet.append(voice)
        return [] if ago_us > LATE_US else [alarm for voice in quiet if (alarm := self._judge(voice, now_us))]

    def _judge(self, voice: Voice, now_us: int) -> Alarm | None:
        from_us, limit_s = max(voice.heard_us, self._since_us), voice.limit_s(self._first_word_s)
        if now_us - from_us <= limit_s * 1e6:
            return None
        if from_us - voice.back_us > MOST_PAUSE_US:
            voice.tries = 0
        voice.silent_us, voice.next_try_us = from_us, max(now_us, voice.next_try_us if voice.tries else 0)
        self._silent[voice.stream] = voice
        return Alarm(voice.stream, from_us, limit_s)

    def spoke(self, voice: Voice, now_us: int) -> int:
        """A silent one has spoken; returns since when it was silent."""
        from_us, voice.silent_us, voice.back_us = voice.silent_us, 0, now_us
        if voice.tries <= 1 and now_us - from_us < FALSE_LIMITS * 1e6 * voice.limit_s(self._first_word_s):
            voice.patience = min(MOST_PATIENCE, 2 * voice.patience)
        del self._silent[voice.stream]
        return from_us

    def wants_renewal(self, now_us: int) -> bool:
        """Whether new connections should be tried now for the sake of the silent; then the next time is later."""
        due = [voice for voice in self._silent.values() if voice.next_try_us <= now_us]
        if not due or now_us - self._renewed_us < FIRST_PAUSE_US:
            return False
        self._renewed_us = now_us
        for voice in self._silent.values():
            voice.next_try_us = now_us + min(MOST_PAUSE_US, FIRST_PAUSE_US << min(voice.tries, 10))
            voice.tries += 1
        return True
