"""Appends to a journal: one writer, files of bounded size, and a place for every byte for ever."""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from crypto_lake.config import ConfigError
from crypto_lake.journal.lock import take
from crypto_lake.journal.reader import MAGIC, SUFFIX, Segment, read, segments
from crypto_lake.journal.record import pack
from crypto_lake.models.frame import ALIVE, CARRIES, DOUBT, FRAME, LAPSE, RESPONSE

SEGMENT_BYTES: Final = 256 * 2**20
# What may wait for the disk; above it the sockets are not read until the disk has caught up.
MAX_WAITING_BYTES: Final = 64 * 2**20
# Records that say that something was heard at their time.
HEARD: Final = (FRAME, RESPONSE, ALIVE)


class Journal:
    """The append end of one dataset's journal.

    Not thread-safe but for this: `flush` and `sync` may run in another thread than `append`, one at a time.
    Raises `ConfigError` when the folder cannot be written or another process appends to it.
    """

    def __init__(
        self, directory: Path, *, segment_bytes: int = SEGMENT_BYTES, clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self.directory = directory
        self.cut_bytes = 0
        self._heard_us: dict[bytes, int] = {}
        self._doubts: dict[bytes, tuple[int, int | None]] = {}
        self._carried: dict[bytes, tuple[str, ...]] | None = None
        self._standing: Mapping[bytes, tuple[str, ...]] = {}  # what the file has still to begin with
        self._segment_bytes = segment_bytes
        self._clock_ns = clock_ns
        self._waiting: list[bytes] = []
        self._unwritten = b""
        self._closed = False
        # Two counters, each with one thread that writes it: a shared one would lose updates.
        self._taken_bytes = self._written_bytes = 0
        self._own_bytes = 0  # of what is waiting nobody gave us
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = take(
                directory / "writer.lock",
                busy=f"LAKE_STATE: another crypto-lake is writing {directory}; give this one its own LAKE_STATE",
            )
            self.cut_bytes = self._look_back()
            self._open_segment()
        except OSError as error:
            raise ConfigError(f"LAKE_STATE: {directory} cannot be written: {error.strerror}") from None

    def append(self, kind: int, origin: bytes, payload: bytes, received_us: int) -> None:
        """Takes a record; it is on its way to disk with the next `flush`."""
        record = pack(kind, origin, payload, received_us)
        self._waiting.append(record)
        self._taken_bytes += len(record)

    def heard_us(self, origin: bytes, *, or_any: bytes = b"") -> int | None:
        """When an earlier writer heard something by that origin for the last time (µs); None if never.

        An origin that was never heard is taken for the newest of those that begin with `or_any`, if there is one.

        Only the last file in which anything was heard is looked at: in a file of a running recorder every origin
        leaves signs of life.
        """
        like = (heard for name, heard in self._heard_us.items() if or_any and name.startswith(or_any))
        return self._heard_us.get(origin, max(like, default=None))

    def doubt_us(self, origin: bytes) -> tuple[int, int] | None:
        """A time of which an earlier writer could not say, when it ended, whether anything was delivered (µs)."""
        since_us, until_us = self._doubts.get(origin, (0, None))
        return None if until_us is None else (since_us, until_us)

    @property
    def carried(self) -> Mapping[bytes, tuple[str, ...]] | None:
        """By which origin which symbols come, or came to an earlier writer at last; None: nobody has ever said."""
        return self._carried

    def carry(self, origin: bytes, symbols: Sequence[str], now_us: int) -> None:
        """From here on these symbols, and no others, come by `origin`, and by no other origin of its venue."""
        self._carried = _moved(self._carried or {}, origin, symbols)
        self.append(CARRIES, origin, msgspec.json.encode(symbols), now_us)

    def drop(self, venue: str, symbols: Sequence[str], now_us: int) -> None:
        """From here on these symbols of a venue come by no origin."""
        gone = frozenset(symbols)
        for origin, held in (self._carried or {}).items():
            if origin.partition(b" ")[0] == venue.encode() and not gone.isdisjoint(held):
                self.carry(origin, [symbol for symbol in held if symbol not in gone], now_us)

    @property
    def waiting_bytes(self) -> int:
        """What was appended and is not written yet."""
        return self._taken_bytes - self._written_bytes

    @property
    def is_full(self) -> bool:
        """Whether the sockets should rest until `flush` has caught up."""
        return self.waiting_bytes >= MAX_WAITING_BYTES

    @property
    def end(self) -> int:
        """The position behind the last written byte."""
        return self._start + self._size

    def flush(self) -> None:
        """Writes what waits. Raises `OSError` when the disk will not take it; then everything still waits."""
        if self._closed:
            return
        if self._size >= self._segment_bytes:
            self._rotate()
        taken, self._waiting = self._waiting, []
        if taken and self._standing:
            taken, self._standing = [*self._repeated(), *taken], {}
        self._unwritten += b"".join(taken)
        if not self._unwritten:
            return
        try:
            written = os.write(self._file, self._unwritten)
            while written < len(self._unwritten):
                written += os.write(self._file, memoryview(self._unwritten)[written:])
        except OSError:
            # Half a record must not stand in front of the second try.
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, self._size, os.SEEK_SET)
            raise
        self._size += written
        self._written_bytes += written - self._own_bytes
        self._own_bytes = 0
        self._unwritten = b""

    def sync(self) -> None:
        """Makes what is written outlive a power cut."""
        os.fdatasync(self._file)

    def forget(self, position: int, *, older_than_us: int) -> int:
        """Deletes the files that end at or before `position` and were last written before `older_than_us`.

        Returns how many bytes that freed. The file being written always stays.
        """
        freed = 0
        for segment in segments(self.directory):
            done = segment.end <= position and segment.start != self._start
            if done and segment.path.stat().st_mtime_ns // 1000 < older_than_us:
                segment.path.unlink()
                freed += segment.end - segment.start
        return freed

    def close(self) -> None:
        """Writes and syncs what waits, and lets the next writer in; a second call does nothing."""
        if self._closed:
            return
        try:
            self.flush()
            self.sync()
        finally:
            self._closed = True
            os.close(self._file)
            if self._size <= len(MAGIC):
                self._path.unlink()  # nothing came: leave nothing behind
            os.close(self._lock)

    def _look_back(self) -> int:
        """Reads what earlier writers left, and cuts what stands behind the last whole record; returns its bytes."""
        files = segments(self.directory)
        if not files:
            return 0
        last = files[-1]
        whole = self._read_back(last)
        torn = last.end - whole
        if torn:
            os.truncate(last.path, whole - last.start)
        if whole - last.start <= len(MAGIC):
            last.path.unlink()  # no record in it: a name less for every start
        while not self._heard_us and (files := files[:-1]):
            self._read_back(files[-1])
        return torn

    def _read_back(self, segment: Segment) -> int:
        """Learns when what was heard last in a file; returns the position behind its last whole record."""
        position = segment.start
        carried: dict[bytes, tuple[str, ...]] | None = None
        while True:
            records = read(self.directory, position, until=segment.end)
            if records.end <= position or not records:
                self._carried = _those_left(carried) if self._carried is None else self._carried
                return max(position, min(segment.end, segment.start + len(MAGIC)))
            for kind, origin, received_us, payload in zip(
                records.kinds, records.origins, records.received_us, records.payloads, strict=True
            ):
                if kind in HEARD:
                    self._heard_us[origin] = received_us
                if kind == CARRIES:
                    carried = _moved(carried or {}, origin, msgspec.json.decode(payload, type=list[str]))
                if payload == DOUBT and kind == ALIVE:
                    self._doubts[origin] = (received_us, None)
                elif kind in (ALIVE, LAPSE):
                    self._doubts.pop(origin, None)
                elif kind == FRAME and origin in self._doubts and self._doubts[origin][1] is None:
                    self._doubts[origin] = (self._doubts[origin][0], received_us)
            position = records.end

    def _rotate(self) -> None:
        self.sync()
        full = self._file
        self._open_segment()
        os.close(full)

    def _open_segment(self) -> None:
        # Nanoseconds outrun bytes: below 1 GB/s a new file starts behind every position ever given out, also behind
        # those of a tail that a power cut took after its rows were committed. So no position is used twice.
        files = segments(self.directory)
        start = max(self._clock_ns(), files[-1].end if files else 0)
        path = self.directory / f"{start:020d}{SUFFIX}"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.write(file, MAGIC)
            sync_directory(self.directory)
        except OSError:
            os.close(file)
            path.unlink()
            raise
        self._file, self._path, self._start, self._size = file, path, start, len(MAGIC)
        self._standing = self._carried or {}

    def _repeated(self) -> list[bytes]:
        """What every file says first: the one before it will be deleted."""
        now_us = self._clock_ns() // 1000
        carried = self._standing.items()
        records = [pack(CARRIES, origin, msgspec.json.encode(symbols), now_us) for origin, symbols in carried]
        self._own_bytes += sum(map(len, records))
        return records


def _moved(
    carried: Mapping[bytes, tuple[str, ...]], origin: bytes, symbols: Iterable[str]
) -> dict[bytes, tuple[str, ...]]:
    """The symbols come by `origin` now; an origin of the same venue that has none left is forgotten."""
    venue, moved = origin.partition(b" ")[0], frozenset(symbols)
    left = {
        other: tuple(each for each in held if each not in moved) if other.partition(b" ")[0] == venue else held
        for other, held in carried.items()
        if other != origin
    }
    return {other: held for other, held in left.items() if held} | {origin: tuple(symbols)}


def _those_left(carried: Mapping[bytes, tuple[str, ...]] | None) -> dict[bytes, tuple[str, ...]] | None:
    """Without origins that carry nothing; one stays if there is no other, for that is known too."""
    filled = {origin: symbols for origin, symbols in (carried or {}).items() if symbols}
    return filled or (dict(list(carried.items())[-1:]) if carried else None)


def sync_directory(directory: Path) -> None:
    """Makes names in a folder (new, renamed, deleted) outlive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
