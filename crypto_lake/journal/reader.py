"""Reads a journal from a position, whoever is writing it meanwhile."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from crypto_lake.journal.record import next_record, record_size, scan
from crypto_lake.models.frame import Records

SUFFIX: Final = ".journal"
MAGIC: Final = b"crypto_lake journal 1\n"
CHUNK_BYTES: Final = 8 * 2**20
# What one read holds in memory at the most, unless a single record is larger.
BATCH_BYTES: Final = 64 * 2**20


class Segment(NamedTuple):
    """One file of a journal: the positions `start` to `end` (exclusive; the file's size when it was looked at)."""

    path: Path
    start: int
    end: int


class Record(NamedTuple):
    """One record by itself, for those who replay a journal."""

    kind: int
    origin: str
    received_us: int
    payload: bytes


def segments(directory: Path) -> list[Segment]:
    """The files of a journal in the order of their positions; a file's name is its first position."""
    found = sorted(path for path in directory.glob(f"*{SUFFIX}") if path.stem.isdigit())
    return [Segment(path, int(path.stem), int(path.stem) + path.stat().st_size) for path in found]


def end_of(directory: Path) -> int:
    """The position behind the last byte written; 0 when there is no journal."""
    files = segments(directory)
    return files[-1].end if files else 0


def backlog(directory: Path, position: int) -> int:
    """How many bytes stand behind `position`."""
    return sum(max(0, segment.end - max(position, segment.start)) for segment in segments(directory))


def read(directory: Path, position: int, *, at_most: int = 1_000_000, until: int | None = None) -> Records:
    """The records from `position` on, as many as are whole, at most `at_most`, none behind `until`.

    Bytes that are no record are in `damaged`: in the last file they are not reported before something whole
    stands behind them, since they may be a record that is being written. `end` is where to go on; it equals
    `position` (or the start of the first file behind it) when there is nothing new.
    """
    records = Records(end=position)
    files = segments(directory)
    for segment in files:
        if segment.end <= records.end and segment is not files[-1]:
            continue
        if until is not None and segment.start >= until:
            break
        records.end = max(records.end, segment.start)
        end = segment.end if until is None else min(segment.end, until)
        _read_segment(segment._replace(end=end), records, at_most=at_most, is_last=segment is files[-1])
        if records:
            break
    return records


def read_all(directory: Path) -> Iterator[Record]:
    """Every whole record of a journal, oldest first."""
    position = 0
    while True:
        records = read(directory, position)
        for kind, origin, received_us, payload in zip(
            records.kinds, records.origins, records.received_us, records.payloads, strict=True
        ):
            yield Record(kind, origin.decode(), received_us, payload)
        if not records:
            return
        position = records.end


def _read_segment(segment: Segment, records: Records, *, at_most: int, is_last: bool) -> None:
    offset = max(records.end - segment.start, len(MAGIC))
    size, read_bytes, wanted = segment.end - segment.start, 0, CHUNK_BYTES
    with segment.path.open("rb") as file:
        while offset < size and len(records) < at_most and read_bytes < BATCH_BYTES:
            file.seek(offset)
            buffer = file.read(min(wanted, size - offset))
            done = scan(buffer, records, start=0, at_most=at_most - len(records))
            if not done and len(buffer) < record_size(buffer, 0) <= size - offset:
                wanted = record_size(buffer, 0)  # one record larger than a chunk
                continue
            if not done:
                done = _damage(buffer, is_end=is_last and offset + len(buffer) == size)
                if not done:
                    break
                records.damaged.append((segment.start + offset, buffer[:done]))
            offset, read_bytes, wanted = offset + done, read_bytes + done, CHUNK_BYTES
    if offset <= size:
        records.end = segment.start + offset


def _damage(buffer: bytes, *, is_end: bool) -> int:
    """How many bytes at the begin of `buffer` are no record; 0 if they may still become one."""
    found = next_record(buffer, 1)
    if found < 0:
        return 0 if is_end else len(buffer)
    return found
