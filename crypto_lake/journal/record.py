"""The bytes of a journal record: what a writer packs and a reader trusts only after its checksum.

offset  size
0       2     mark        0xC1A7, where a reader looks for the next record after damage
2       4     crc         CRC-32 of everything behind it, payload included
6       1     kind        FRAME, RESPONSE, OPENED, CLOSED, LAPSE, ALIVE, CARRIES
7       1     origin size
8       4     payload size
12      8     received    our clock, microseconds since 1970 UTC
20      ...   origin      UTF-8: the venue, a space, and the connection or request it came by
...     ...   payload     the bytes as they came
"""

import struct
from typing import Final
from zlib import crc32

from crypto_lake.models.frame import Records

MARK: Final = 0xC1A7
MARK_BYTES: Final = MARK.to_bytes(2, "little")
HEADER: Final = struct.Struct("<HIBBIq")
_CHECKED: Final = struct.Struct("<BBIq")
_CRC_END: Final = 6

# A frame is refused by the connection before it gets as large as this (`connections.websocket.MAX_FRAME_BYTES`).
MAX_PAYLOAD_BYTES: Final = 64 * 2**20


def pack(kind: int, origin: bytes, payload: bytes, received_us: int) -> bytes:
    """One record, ready to be appended."""
    assert len(origin) < 256, "an origin is a short name"
    assert len(payload) <= MAX_PAYLOAD_BYTES, "a payload has a limit"
    checked = _CHECKED.pack(kind, len(origin), len(payload), received_us)
    crc = crc32(payload, crc32(origin, crc32(checked)))
    return b"".join((MARK_BYTES, crc.to_bytes(4, "little"), checked, origin, payload))


def scan(buffer: bytes, records: Records, *, start: int, at_most: int) -> int:
    """Adds the records that stand in `buffer` from offset `start` on; returns the offset behind the last one.

    Stops before the first record that is incomplete or does not match its checksum, or after `at_most` records.
    """
    view, last = memoryview(buffer), len(buffer) - HEADER.size
    unpack, header_size, size = HEADER.unpack_from, HEADER.size, len(buffer)
    kinds, origins, received, payloads = records.kinds, records.origins, records.received_us, records.payloads
    offset = start
    for _ in range(at_most):
        if offset > last:
            break
        mark, crc, kind, origin_size, payload_size, received_us = unpack(buffer, offset)
        payload_at = offset + header_size + origin_size
        end = payload_at + payload_size
        if crc32(view[offset + _CRC_END : end]) != crc or mark != MARK or end > size:
            break
        kinds.append(kind)
        origins.append(buffer[offset + header_size : payload_at])
        received.append(received_us)
        payloads.append(buffer[payload_at:end])
        offset = end
    return offset


def record_size(buffer: bytes, offset: int) -> int:
    """The size that the header at `offset` gives its record, 0 if there is no header."""
    if len(buffer) - offset < HEADER.size:
        return 0
    mark, _, _, origin_size, payload_size, _ = HEADER.unpack_from(buffer, offset)
    if mark != MARK or payload_size > MAX_PAYLOAD_BYTES:
        return 0
    return HEADER.size + int(origin_size) + int(payload_size)


def next_record(buffer: bytes, start: int) -> int:
    """The offset of the first whole record at or after `start`; -1 if there is none.

    Used behind damage only: it looks at every mark, and a mark may also stand inside a payload by chance.
    """
    offset = buffer.find(MARK_BYTES, start)
    while offset >= 0:
        found = Records(end=0)
        if scan(buffer, found, start=offset, at_most=1) > offset:
            return offset
        offset = buffer.find(MARK_BYTES, offset + 1)
    return -1
