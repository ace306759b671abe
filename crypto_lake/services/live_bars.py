"""The process of the live bars: follows a journal while it is written, and says each bar when it is closed or revised.

Decoding trades one by one is work that must not make the receiving process wait: so it is a process of its own, without
any of what writes tables. The first line on standard input is the order, later ones are
questions; when it closes, because the daemon ends or died, the process ends. It holds nothing that could be lost: after
a start it reads the end of the journal again.
"""

import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from crypto_lake.features.live_bars import DAY_US, MINUTE_US, Dropped, LiveBar, LiveBars, News, Older
from crypto_lake.journal import CARRIES, FRAME, Records, Segment, read, segments
from crypto_lake.models import DATASETS
from crypto_lake.services.live_contract import Ask, Closed, LiveOrder, LiveReport, Outdated, TooLate, UnderWay
from crypto_lake.services.live_trades import Trades

# The journal is written every 50 ms; a look at two sizes costs microseconds.
LOOK_EVERY_S: Final = 0.015
# So much of the journal is read again after a start: a second or two of work.
LOOK_BACK_BYTES: Final = 64 * 2**20
# Records at a time: what is under way is asked for in between.
AT_MOST: Final = 5_000
# Closed minutes that can be revised, of all symbols together; a symbol has at least an hour of them.
KEPT_MINUTES: Final = 50_000
LEAST_KEPT_US: Final = 3_600_000_000
# The receiving process goes first when both want the processor, and the drain after both.
NICENESS: Final = 2
CHUNK_BYTES: Final = 64 * 1024

ASKS: Final = msgspec.json.Decoder(Ask)
Group = tuple[str, str]


class Tail:
    """The records of a journal that is being written, from near its end on."""

    def __init__(self, directory: Path, *, look_back_bytes: int = LOOK_BACK_BYTES) -> None:
        self.directory = directory
        self.position, self.is_cut = beginning(directory, look_back_bytes)
        # Whether everything that was there at the start has been read: what comes now is new.
        self.is_live = False
        self._newest: Path | None = None
        self._seen: tuple[int, int] | None = None

    def more(self) -> Records | None:
        """What has come since the last time; None when there is nothing more now."""
        try:
            sizes = self._sizes()
            if sizes == self._seen:
                return None
            records = read(self.directory, self.position, at_most=AT_MOST)
        except FileNotFoundError:
            return None  # an old file was deleted while we looked; the next look does not see it
        self.position = records.end
        if records:
            return records
        # Not before the look: what is written meanwhile shows in the sizes of the next one.
        self._seen, self.is_live = sizes, True
        return None

    def _sizes(self) -> tuple[int, int]:
        """Changes when the journal has grown: with a new file the folder changes, else the newest file."""
        folder = self.directory.stat().st_mtime_ns
        if self._seen is None or folder != self._seen[0]:
            files = segments(self.directory)
            self._newest = files[-1].path if files else None
        return folder, self._newest.stat().st_size if self._newest else 0


def beginning(directory: Path, look_back_bytes: int) -> tuple[int, bool]:
    """Where to read from: so many bytes in front of the journal's end. And whether there was something before that."""
    position, left = 0, look_back_bytes
    files = segments(directory)
    for segment in reversed(files):
        position = max(segment.start, segment.end - left)
        left -= segment.end - position
        if not left:
            break
    return position, bool(files) and (position > files[0].start or _has_predecessor(files[0]))


def _has_predecessor(segment: Segment) -> bool:
    """Every file but the first one of a journal begins with what the recorder knew already."""
    first = read(segment.path.parent, segment.start, at_most=1, until=segment.end)
    return CARRIES in first.kinds


class Follower:
    """The live bars of all symbols whose trades come in one journal."""

    def __init__(self, order: LiveOrder, *, is_cut: bool) -> None:
        self._order, self._is_cut = order, is_cut
        self._trades = Trades(DATASETS[order.dataset])
        self._bars: dict[Group, LiveBars] = {}

    def take(self, records: Records, *, is_new: bool) -> Iterator[LiveReport]:
        """What the trades in the records close and change."""
        for row, venue, symbol, tick in self._trades.find(records):
            bars = self._bars.get((venue, symbol))
            if bars is None:
                if self._is_cut and records.kinds[row] != FRAME:
                    continue  # asked for because of a hole that we did not see: no beginning
                bars = self._begin((venue, symbol))
            for news in bars.add(*tick):
                yield _report(venue, symbol, news, records.received_us[row] if is_new else None)

    def answer(self, ask: Ask) -> UnderWay:
        """What is under way of a symbol."""
        bars = self._bars.get((ask.venue, ask.symbol))
        return UnderWay(ask.nth, bars.under_way(ask.timeframe, ask.at_most) if bars else None)

    def _begin(self, group: Group) -> LiveBars:
        order = self._order
        bars = self._bars[group] = LiveBars(
            order.timeframes, lateness_us=order.lateness_us, late=order.late, is_cut=self._is_cut
        )
        keep_us = max(LEAST_KEPT_US, min(DAY_US, KEPT_MINUTES // len(self._bars) * MINUTE_US))
        for each in self._bars.values():
            each.keep_us = keep_us
        return bars


def _report(venue: str, symbol: str, news: News, received_us: int | None) -> LiveReport:
    match news:
        case LiveBar():
            return Closed(venue, symbol, news, received_us)
        case Dropped(trade_id, time_us):
            return TooLate(venue, symbol, trade_id, time_us, received_us is not None)
        case Older(timeframe, time_us):
            return Outdated(venue, symbol, timeframe, time_us)


class Lines:
    """Lines that come through a pipe, without waiting for any."""

    def __init__(self, handle: int) -> None:
        self.is_open = True
        self._handle, self._rest = handle, b""

    def read(self, timeout_s: float | None) -> list[bytes]:
        """What has come whole within the time; as soon as there is something."""
        if not select.select([self._handle], [], [], timeout_s)[0]:
            return []
        chunk = os.read(self._handle, CHUNK_BYTES)
        self.is_open = bool(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return lines


def follow(order: LiveOrder, asked: Lines) -> None:
    """Follows the journal until nobody asks any more."""
    tail = Tail(Path(order.journal))
    follower = Follower(order, is_cut=tail.is_cut)
    wait_s = 0.0
    while True:
        asks = asked.read(wait_s)
        if not asked.is_open:
            return
        records = tail.more()
        wait_s = LOOK_EVERY_S if records is None else 0.0
        reports = list(follower.take(records, is_new=tail.is_live)) if records else []
        reports += [follower.answer(ASKS.decode(line)) for line in asks]
        if reports:
            _say(reports)


def _say(reports: list[LiveReport]) -> None:
    said = memoryview(b"".join(msgspec.json.encode(each) + b"\n" for each in reports))
    while said:
        said = said[os.write(sys.stdout.fileno(), said) :]


def main() -> int:
    """The process; nobody to listen is a way to be told to end."""
    # Ctrl-C goes to the whole terminal: the parent decides when it is time to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    asked = Lines(sys.stdin.fileno())
    ordered: list[bytes] = []
    while asked.is_open and not ordered:
        ordered = asked.read(None)
    if ordered:
        try:
            follow(msgspec.json.decode(ordered[0], type=LiveOrder), asked)
        except BrokenPipeError:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
