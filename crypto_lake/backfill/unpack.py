"""The CSV inside an official ZIP or .gz as pieces of whole lines: the one member that is meant, bounded, checked.

A deflated member is a gzip stream but for its frame. So it is given that frame, and a gzip reader inflates it and
checks its sum and its length; the one of `isal` (the extra `fast`) in a third of the standard library's time.
"""

import gzip
import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Reader = type[gzip.GzipFile]
# What readers raise at bytes that are no such stream, that end too early, or have another sum or length.
BROKEN: list[Any] = [gzip.BadGzipFile, EOFError, zlib.error]
try:
    from isal import igzip, isal_zlib
except ImportError:
    FASTEST: Reader = gzip.GzipFile
    crc32 = zlib.crc32
else:
    FASTEST = igzip.IGzipFile
    crc32 = isal_zlib.crc32
    BROKEN.append(isal_zlib.error)

# A piece is large enough that what is done once per piece does not count, and stays in a processor's cache.
PIECE_BYTES: Final = 8 << 20
# What is inflated at once; more does not make it faster.
STEP_BYTES: Final = 256 << 10
# The largest real files (a month of trades) have some 20 GB, and none is packed better than 12:1.
LARGEST_BYTES: Final = 64 << 30
HIGHEST_RATIO: Final = 200

LOCAL_HEADER: Final = struct.Struct("<4s22xHH")
GZIP_HEADER: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
ENCRYPTED: Final = 0x1 | 0x40 | 0x2000
UTF_8: Final = 0x800
# What the standard library raises at a directory that makes no sense.
SENSELESS: Final = (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, struct.error, ValueError)


class Damaged(Exception):
    """A ZIP cannot be used; the text says which one and why."""


class _Bytes(Protocol):
    def readinto(self, target: memoryview, /) -> int: ...


@dataclass(frozen=True, slots=True)
class Member:
    """The member of a ZIP that is meant: where its bytes are, and what the directory says of them.

    `ignored` are the names of all other members.
    """

    path: Path
    name: str
    start: int
    packed_bytes: int
    size_bytes: int
    crc: int
    is_deflated: bool
    ignored: tuple[str, ...]


def pieces(path: Path, *, piece_bytes: int = PIECE_BYTES, reader: Reader = FASTEST) -> Iterator[memoryview]:
    """The CSV of the ZIP at `path` from its begin to its end, in pieces of whole lines.

    A piece is valid until the next one is asked for. Only the last line of the last piece may lack its end.
    Raises `Damaged`, as late as after the last but one piece: **what was read is good only when the iterator has
    ended**, for the sum is over all of it. Raises `OSError` when the file cannot be read.
    """
    member = wanted_member(path)
    with path.open("rb") as file:
        file.seek(member.start)
        source = _inflated(file, member, reader) if member.is_deflated else _Stored(file, member)
        try:
            name, size_bytes = f"{path.name}: {member.name}", member.size_bytes
            says = f"is longer than the {size_bytes} bytes it says"
            yield from _lines(source, name, piece_bytes, size_bytes, says, least_bytes=size_bytes)
        except tuple(BROKEN) as error:
            raise Damaged(f"{path.name}: {member.name} is truncated or altered: {error}") from None


def gz_pieces(path: Path, *, piece_bytes: int = PIECE_BYTES, reader: Reader = FASTEST) -> Iterator[memoryview]:
    """The text of the .gz at `path`, as `pieces`. Raises `Damaged`, too, when it ends half-way, and `OSError`."""
    size_bytes = path.stat().st_size
    most = min(LARGEST_BYTES, HIGHEST_RATIO * size_bytes)
    if not size_bytes:
        raise Damaged(f"{path.name} is empty")
    with path.open("rb") as file, reader(fileobj=file, mode="rb") as source:
        try:
            yield from _lines(source, path.name, piece_bytes, most, f"is longer than the {most} bytes that it may have")
        except tuple(BROKEN) as error:
            raise Damaged(f"{path.name} is truncated or altered: {error}") from None


def wanted_member(path: Path) -> Member:
    """The one member that is meant: in the root, `<name of the ZIP without .zip>.csv`.

    Raises `Damaged` if there is none that can be read without danger, `OSError` when the file cannot be read.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                entries, end = archive.infolist(), archive.start_dir
        except SENSELESS as error:
            raise Damaged(f"{path.name} is no ZIP: {error}") from None
        wanted = f"{path.stem}.csv"
        found = [entry for entry in entries if _name(entry) == wanted]
        ignored = tuple(_name(entry) for entry in entries if _name(entry) != wanted)
        if tricks := [name for name in ignored if _is_trick(name, wanted)]:
            raise Damaged(f"{path.name}: the name {tricks[0]!r} leads out of the folder it is unpacked in")
        if len(found) != 1:
            there = ", ".join(map(repr, ignored[:5])) or "nothing"
            raise Damaged(f"{path.name}: there are {len(found)} members {wanted!r}; beside there is {there}")
        if fault := _fault(found[0]):
            raise Damaged(f"{path.name}: {wanted} {fault}")
        start = _start(file, found[0], end)
        if start is None:
            raise Damaged(f"{path.name}: {wanted} is not where the directory says it is")
    entry, is_deflated = found[0], found[0].compress_type == zipfile.ZIP_DEFLATED
    return Member(path, wanted, start, entry.compress_size, entry.file_size, entry.CRC, is_deflated, ignored)


def _name(entry: zipfile.ZipInfo) -> str:
    """The name as it was written: some tools write UTF-8 and do not say so."""
    if entry.flag_bits & UTF_8:
        return entry.orig_filename
    raw = entry.orig_filename.encode("cp437")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return entry.orig_filename


def _is_trick(name: str, wanted: str) -> bool:
    """Whether a name means the wanted member by an absolute path or one that goes up."""
    parts = name.replace("\\", "/").split("/")
    return parts[-1] == wanted and (parts[0] == "" or parts[0].endswith(":") or ".." in parts)


def _fault(entry: zipfile.ZipInfo) -> str:
    """Why an entry is not one that we read; empty if it is."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if entry.flag_bits & ENCRYPTED:
        return "is encrypted"
    if kind not in (0, stat.S_IFREG):
        return "is a link or another thing that is no file"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is packed in a way that is not known here ({entry.compress_type})"
    if entry.file_size > LARGEST_BYTES:
        return f"says it has {entry.file_size} bytes, more than {LARGEST_BYTES}"
    if entry.file_size > HIGHEST_RATIO * entry.compress_size:
        return f"says it is packed {entry.file_size / max(entry.compress_size, 1):.0f}:1, which no real file is"
    if entry.compress_type == zipfile.ZIP_STORED and entry.file_size != entry.compress_size:
        return "is stored, and says it has two different sizes"
    return ""


def _start(file: io.BufferedReader, entry: zipfile.ZipInfo, end: int) -> int | None:
    """Where the bytes of an entry begin; None if they, and their header, are not in front of the directory at `end`."""
    if not 0 <= entry.header_offset < end:
        return None
    file.seek(entry.header_offset)
    header = file.read(LOCAL_HEADER.size)
    if len(header) < LOCAL_HEADER.size:
        return None
    signature, name_bytes, extra_bytes = LOCAL_HEADER.unpack(header)
    name = file.read(name_bytes)
    encoding = "utf-8" if entry.flag_bits & UTF_8 else "cp437"
    if signature != b"PK\x03\x04" or name != entry.orig_filename.encode(encoding):
        return None
    start = file.tell() + int(extra_bytes)
    return start if start + entry.compress_size <= end else None


def _lines(
    source: _Bytes, name: str, piece_bytes: int, most_bytes: int, too_long: str, least_bytes: int = 0
) -> Iterator[memoryview]:
    """Whole lines out of one buffer; the rest of a line moves to its front."""
    buffer = bytearray(piece_bytes)
    view = memoryview(buffer)
    filled = total = 0
    while read := source.readinto(view[filled : filled + STEP_BYTES]):
        filled += read
        total += read
        if total > most_bytes:
            raise Damaged(f"{name} {too_long}")
        if filled == piece_bytes:
            end = buffer.rfind(b"\n") + 1
            if not end:
                raise Damaged(f"{name} has a line of more than {piece_bytes} bytes")
            yield view[:end]
            view[: filled - end] = view[end:filled]
            filled -= end
    if total < least_bytes:
        raise Damaged(f"{name} has {total} bytes instead of {least_bytes}")
    if filled:
        yield view[:filled]


def _inflated(file: io.BufferedReader, member: Member, reader: Reader) -> gzip.GzipFile:
    return reader(fileobj=_Framed(file, member), mode="rb")


class _Framed(io.RawIOBase):
    """The bytes of a deflated member, with the header and the end of a gzip stream around them."""

    def __init__(self, file: io.BufferedReader, member: Member) -> None:
        trailer = struct.pack("<II", member.crc, member.size_bytes % 2**32)
        self._parts: list[tuple[_Bytes, int]] = [
            (io.BytesIO(GZIP_HEADER), 10),
            (file, member.packed_bytes),
            (io.BytesIO(trailer), 8),
        ]

    def readable(self) -> bool:
        return True

    def readinto(self, target: "WriteableBuffer") -> int:
        with memoryview(target) as view:
            while self._parts:
                part, left = self._parts[0]
                read = part.readinto(view[:left]) if left else 0
                if read:
                    self._parts[0] = part, left - read
                    return read
                self._parts.pop(0)
        return 0


class _Stored:
    """The bytes of a member that is not packed, and their sum."""

    def __init__(self, file: io.BufferedReader, member: Member) -> None:
        self._file, self._member = file, member
        self._left, self._crc = member.size_bytes, 0

    def readinto(self, target: memoryview) -> int:
        read = self._file.readinto(target[: self._left])
        self._left -= read
        self._crc = crc32(target[:read], self._crc)
        if not read and (self._left or self._crc != self._member.crc):
            raise EOFError("its sum is another one")
        return read
