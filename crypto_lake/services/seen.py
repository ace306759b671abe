"""First seen wins: which messages have come already, by this connection of a feed or by another one."""

from typing import Final

import polars as pl

from crypto_lake.models import Dataset

# Connections of one feed are milliseconds apart, some hundred after a hiccup. At 20,000 messages a second on one feed
# a generation is three seconds, and takes 6 MB. What comes later still is dropped by the drain.
MOST_SEEN: Final = 65_536

EVENT_TIME: Final = b'"E":'
# Of the 13 digits of an event time (16 in microseconds) the last ones tell connections apart. Those before them stay a
# part of the message: a frame that is damaged there would be refused, and must not stand in the way of the good one.
FREE_DIGIT, LAST_DIGIT, LAST_OF_MICROSECONDS = len(EVENT_TIME) + 8, len(EVENT_TIME) + 13, len(EVENT_TIME) + 16


def has_ids(dataset: Dataset) -> bool:
    """Whether the venue numbers the facts, so that two of them differ in more than the time of the message."""
    return dataset.order is not None and dataset.column(dataset.order).dtype == pl.Int64()


class Seen:
    """Hashes of the last messages, in two generations of at most `most` each.

    The whole message counts, and never the id alone. With `ignore_event_time` the same fact may come in messages that
    were made some seconds apart.
    """

    def __init__(self, *, ignore_event_time: bool, most: int = MOST_SEEN) -> None:
        self._ignores = ignore_event_time
        self._most = most
        self._young: set[int] = set()
        self._old: set[int] = set()

    def is_repeat(self, payload: bytes) -> bool:
        """Whether it has come before; from now on it has."""
        if (
            self._ignores
            and (at := payload.find(EVENT_TIME)) >= 0
            and payload[at + FREE_DIGIT : at + LAST_DIGIT].isdigit()
        ):
            last = at + LAST_DIGIT
            if payload[last : at + LAST_OF_MICROSECONDS].isdigit():
                last = at + LAST_OF_MICROSECONDS
            key = hash(payload[: at + FREE_DIGIT] + payload[last:])
        else:
            key = hash(payload)
        if key in self._young or key in self._old:
            return True
        if len(self._young) >= self._most:
            self._old, self._young = self._young, set()
        self._young.add(key)
        return False
