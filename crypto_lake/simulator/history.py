"""What REST remembers of a symbol: a bounded number of rows by id and time, and minute bars."""

from array import array
from bisect import bisect_left
from dataclasses import dataclass

DAY_MINUTES = 24 * 60
KEPT_BARS = 3 * DAY_MINUTES


class Rows:
    """JSON rows with consecutive ids and ascending times; the oldest go when there are too many."""

    def __init__(self, first_id: int, keep: int) -> None:
        self._first_id, self._keep = first_id, keep
        self._rows: list[bytes] = []
        self._times = array("q")

    @property
    def next_id(self) -> int:
        """Of the row to come."""
        return self._first_id + len(self._rows)

    def append(self, time_ms: int, row: bytes) -> None:
        """The row of `next_id`."""
        self._rows.append(row)
        self._times.append(time_ms)
        if len(self._rows) > self._keep * 5 // 4:  # in large pieces: cutting off the head moves all the rest
            surplus = len(self._rows) - self._keep
            del self._rows[:surplus], self._times[:surplus]
            self._first_id += surplus

    @property
    def oldest_id(self) -> int:
        """The first id that is still given out."""
        return self._first_id + self._oldest

    @property
    def _oldest(self) -> int:
        """The place of the oldest row that is still given out; those before it only wait to be cut off."""
        return max(0, len(self._rows) - self._keep)

    def from_id(self, identity: int, limit: int, not_before_ms: int) -> list[bytes]:
        """Rows from this id on, ascending; from the oldest there is when it is gone, none when it is to come."""
        start = max(self._oldest, identity - self._first_id, bisect_left(self._times, not_before_ms))
        return self._rows[start : start + limit]

    def between(self, start_ms: int, end_ms: int, limit: int) -> list[bytes]:
        """The first rows of a time window, both ends included."""
        start, stop = max(self._oldest, bisect_left(self._times, start_ms)), bisect_left(self._times, end_ms + 1)
        return self._rows[start : min(stop, start + limit)]

    def latest(self, limit: int, not_before_ms: int, until_ms: int | None = None) -> list[bytes]:
        """The last rows, or the last up to an instant."""
        stop = len(self._rows) if until_ms is None else bisect_left(self._times, until_ms + 1)
        start = max(self._oldest, stop - limit, bisect_left(self._times, not_before_ms))
        return self._rows[start:stop]


@dataclass(slots=True)
class Bar:
    """Trades of one span; prices in ticks, volumes in steps, quote volumes in ticks times steps."""

    open_ms: int
    open: int
    high: int
    low: int
    close: int
    first_id: int
    last_id: int = 0
    count: int = 0
    last_quantity: int = 0
    volume: int = 0
    quote: int = 0
    taker_volume: int = 0
    taker_quote: int = 0

    def add(self, other: "Bar") -> None:
        """Append a later bar."""
        self.high, self.low, self.close = max(self.high, other.high), min(self.low, other.low), other.close
        self.last_id, self.last_quantity = other.last_id, other.last_quantity
        self.count += other.count
        self.volume += other.volume
        self.quote += other.quote
        self.taker_volume += other.taker_volume
        self.taker_quote += other.taker_quote


def merged(bars: list[Bar], span_ms: int) -> list[Bar]:
    """Minute bars as bars of a longer span."""
    result: list[Bar] = []
    for bar in bars:
        open_ms = bar.open_ms - bar.open_ms % span_ms
        if not result or result[-1].open_ms != open_ms:
            result.append(Bar(open_ms, bar.open, bar.high, bar.low, bar.close, bar.first_id))
        result[-1].add(bar)
    return result
