"""The archives of the bucket: ZIPs with one CSV inside, and what may be wrong with them; pure."""

import hashlib
import io
import re
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Final, NamedTuple

from crypto_lake.simulator.dumps_kept import Pieces

# Archives of the same text are the same bytes, whenever they are made.
_WRITTEN: Final = (2026, 1, 1, 0, 0, 0)
# Nobody waits for loopback, but everybody for the packing.
_LEVEL: Final = 1
# Where some files have a second copy of their CSV (PROTOCOLS D.7).
COPIES: Final = "fsx-data/collector_data/"
_DECIMAL: Final = re.compile(rb"(\.\d*)(\d)")


class Variant(NamedTuple):
    """How an archive differs from what it should be."""

    without: tuple[date, ...] = ()
    row: str = ""  # a form of the fault `replaced_file`
    has_copy: bool = False
    is_truncated: bool = False
    is_summed: bool = True  # the sum is the one of what is there


class Archive(NamedTuple):
    """A file as it is handed out."""

    body: bytes
    etag: str  # as in the header, with its quotes
    sha256: str


@dataclass(frozen=True, slots=True)
class Source:
    """What a file is made of, as it is at one moment: the lines of its days, or an archive that was given."""

    path: str
    version: int  # another one: another content
    published_ms: int
    header: bytes = b""
    days: Mapping[date, Pieces] = field(default_factory=dict)
    given: bytes = b""

    def csv(self, without: Collection[date] = ()) -> bytes:
        """All of it, or without some days; dear."""
        if self.given:
            return csv_in(self.given, stem_of(self.path))
        return self.header + b"".join(pieces.whole() for day, pieces in self.days.items() if day not in without)

    def archive(self, variant: Variant) -> Archive:
        """The file itself; dear."""
        body = self._zip(variant)
        if variant.is_truncated:
            body = body[: len(body) * 2 // 3]
        return Archive(body, etag_of(body), hashlib.sha256(body).hexdigest())

    def _zip(self, variant: Variant) -> bytes:
        if self.given and not (variant.row or variant.has_copy):
            return self.given
        csv = self.csv(variant.without)
        if variant.row:
            csv = _ROWS[variant.row](csv)
        return zipped(stem_of(self.path), csv, with_copy=variant.has_copy)


def stem_of(path: str) -> str:
    """A file's name without its ending, which is also the one of the CSV inside."""
    return path.rpartition("/")[2].removesuffix(".zip")


def etag_of(body: bytes) -> str:
    """As in the header, with its quotes."""
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'


def zipped(stem: str, csv: bytes, *, with_copy: bool = False) -> bytes:
    """An archive with `<stem>.csv` at its root; the byte-identical copy stands before it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as archive:
        for folder in (COPIES, "") if with_copy else ("",):
            entry = zipfile.ZipInfo(f"{folder}{stem}.csv", _WRITTEN)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, csv, compresslevel=_LEVEL)
    return file.getvalue()


def csv_in(archive: bytes, stem: str) -> bytes:
    """The CSV of a whole archive."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return opened.read(f"{stem}.csv")


def with_a_row_less(csv: bytes) -> bytes:
    """Without a row in the middle; one that is in there twice is gone twice."""
    lines, victim = _opened(csv)
    return b"".join(line for line in lines if line != victim)


def with_a_row_changed(csv: bytes) -> bytes:
    """A row in the middle has another last digit in its first decimal number, wherever it stands."""
    lines, victim = _opened(csv)
    changed = _DECIMAL.sub(lambda found: found[1] + b"%d" % ((int(found[2]) + 1) % 10), victim, count=1)
    return b"".join(changed if line == victim else line for line in lines)


def _opened(csv: bytes) -> tuple[list[bytes], bytes]:
    """All lines, and the one in the middle, which is not the header where there is any other."""
    lines = csv.splitlines(keepends=True)
    return lines, lines[len(lines) // 2]


_ROWS: Final = {"row_changed": with_a_row_changed, "row_less": with_a_row_less}
