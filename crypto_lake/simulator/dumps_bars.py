"""The venue's own bars: shorter ones make up longer ones, and a span without a trade repeats the last price."""

from collections.abc import Callable
from typing import Final

from crypto_lake.simulator.history import Bar

SECOND_MS: Final = 1_000
LENGTHS_MS: Final = {
    "1s": SECOND_MS,
    "1m": 60 * SECOND_MS,
    "5m": 300 * SECOND_MS,
    "15m": 900 * SECOND_MS,
    "1h": 3_600 * SECOND_MS,
    "4h": 14_400 * SECOND_MS,
    "1d": 86_400 * SECOND_MS,
}

Write = Callable[[str, Bar], None]


class Bars:
    """The bars of one length, and of all longer ones; each is written once, when its span is over."""

    def __init__(self, interval: str, write: Write, longer: "Bars | None" = None) -> None:
        self._interval, self._write, self._longer = interval, write, longer
        self._span_ms = LENGTHS_MS[interval]
        self._open: Bar | None = None

    def add(self, part: Bar) -> None:
        """What was traded in a part of a span (a trade, a shorter bar); never before what is written."""
        open_ms = part.open_ms - part.open_ms % self._span_ms
        self.until(open_ms)
        if self._open is None or not self._open.count:
            self._open = Bar(open_ms, part.open, part.open, part.open, part.open, part.first_id)
        self._open.add(part)

    def until(self, time_ms: int) -> None:
        """Write what is over by then; nothing before the first trade."""
        if self._open is None or self._open.open_ms + self._span_ms > time_ms:
            return
        while self._open.open_ms + self._span_ms <= time_ms:
            self._open = self._close(self._open)
        if self._longer is not None:
            self._longer.until(time_ms)

    def _close(self, bar: Bar) -> Bar:
        """The bar of the span behind it, in which nothing has happened yet."""
        self._write(self._interval, bar)
        if self._longer is not None and bar.count:
            self._longer.add(bar)
        price, last_id = bar.close, bar.last_id
        return Bar(bar.open_ms + self._span_ms, price, price, price, price, last_id, last_id)


def bars_from(shortest: str, write: Write) -> Bars:
    """Bars of this length and all longer ones."""
    bars: Bars | None = None
    for interval in reversed(LENGTHS_MS):
        bars = Bars(interval, write, bars)
        if interval == shortest:
            return bars
    raise AssertionError(f"there are no bars of {shortest}")
