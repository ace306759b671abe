"""Only the CSV that is meant comes out of a ZIP, in whole lines and to its end; whatever else is there is refused."""

import gzip
import io
import random
import stat
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_lake.backfill.unpack import FASTEST, LARGEST_BYTES, Damaged, Reader, crc32, pieces, wanted_member

STEM = "BTCUSDT-aggTrades-2024-01"
NAME = f"{STEM}.csv"
CSV = b"".join(b"%d,%d.5,0.%03d,true\n" % (number, number * 7919 % 65536, number % 1000) for number in range(3000))
READERS = {"zlib": gzip.GzipFile, "fastest": FASTEST}
Member = tuple[str | zipfile.ZipInfo, bytes]
# Where fields are in the headers of a member, behind `PK\x03\x04` and `PK\x01\x02`.
FLAGS, METHOD, CRC, PACKED, SIZE, START = (2, 4), (4, 6), (10, 12), (14, 16), (18, 20), (None, 38)


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest) -> Reader:
    return READERS[request.param]


@pytest.fixture
def keep(tmp_path: Path) -> Callable[[bytes], Path]:
    """Puts bytes where a download would be."""

    def keep(content: bytes, stem: str = STEM) -> Path:
        path = tmp_path / f"{stem}.zip"
        path.write_bytes(content)
        return path

    return keep


def zipped(*members: Member, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content, method)
    return target.getvalue()


def altered(content: bytes, field: tuple[int | None, int], value: int, size: int) -> bytes:
    """The ZIP with another value in a field of the first member's headers."""
    changed = bytearray(content)
    for place, signature in zip(field, (b"PK\x03\x04", b"PK\x01\x02"), strict=True):
        if place is not None:
            at = content.index(signature) + 4 + place
            changed[at : at + size] = value.to_bytes(size, "little")
    return bytes(changed)


def read(path: Path, **how: object) -> bytes:
    return b"".join(map(bytes, pieces(path, **how)))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("content", [CSV, CSV[:-1], CSV.replace(b"\n", b"\r\n"), b"1\n", b"1", b"\n\n", b""])
def test_the_pieces_are_the_csv(content: bytes, method: int, reader: Reader, keep: Callable[[bytes], Path]) -> None:
    path = keep(zipped((NAME, content), method=method))
    assert read(path, reader=reader) == content
    assert read(path, reader=reader, piece_bytes=100) == content


@pytest.mark.parametrize("piece_bytes", [30, 100, 4096, 65537])
def test_a_piece_ends_with_a_line_and_is_not_larger_than_was_said(
    piece_bytes: int, reader: Reader, keep: Callable[[bytes], Path]
) -> None:
    got = [bytes(piece) for piece in pieces(keep(zipped((NAME, CSV[:-1]))), piece_bytes=piece_bytes, reader=reader)]
    assert max(map(len, got)) <= piece_bytes
    assert all(piece.endswith(b"\n") for piece in got[:-1])
    assert all(len(piece) > piece_bytes - 30 for piece in got[:-1])


def test_other_members_are_ignored_and_named(keep: Callable[[bytes], Path]) -> None:
    beside = f"fsx-data/collector_data/{NAME}"
    path = keep(zipped(("fsx-data/", b""), (beside, b"other\n"), (NAME, CSV), ("README.txt", b"hello")))
    assert read(path) == CSV
    assert wanted_member(path).ignored == ("fsx-data/", beside, "README.txt")


def test_a_name_may_be_of_any_script_and_say_so_or_not(keep: Callable[..., Path]) -> None:
    stem = "币安人生USDT-aggTrades-2026-01"
    content = zipped((f"{stem}.csv", CSV))
    assert read(keep(content, stem)) == CSV
    assert read(keep(altered(content, FLAGS, 0, 2), stem)) == CSV


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_sizes_beyond_four_gigabytes_have_fields_of_their_own(
    method: int, reader: Reader, keep: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)  # so that the library writes the large format
    content = zipped(("other", b"x" * 100), (NAME, CSV), method=method)
    assert b"PK\x06\x06" in content
    assert read(keep(content), reader=reader) == CSV


@pytest.mark.slow
def test_more_than_four_gigabytes_are_read_to_their_end(keep: Callable[[bytes], Path]) -> None:
    block = b"".join(random.Random(number).randbytes(30).hex().encode() + b"\n" for number in range(500)) * 300
    packer = zlib.compressobj(wbits=-15)
    # Packed up to a flush it may be followed by itself.
    packed, count, crc = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH), 3 * 2**31 // len(block) + 2, 0
    for _ in range(count):
        crc = crc32(block, crc)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(NAME, packed * count + packer.flush())
        entry = archive.filelist[0]
        entry.compress_type, entry.file_size, entry.CRC = zipfile.ZIP_DEFLATED, len(block) * count, crc
    assert sum(map(len, pieces(keep(target.getvalue())))) == len(block) * count > 2**32


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([], f"there are 0 members '{NAME}'; beside there is nothing"),
        ([("other.csv", CSV)], f"there are 0 members '{NAME}'; beside there is 'other.csv'"),
        ([(f"folder/{NAME}", CSV)], f"there are 0 members '{NAME}'; beside there is 'folder/"),
        ([(f"{STEM}.CSV", CSV)], "there are 0 members"),
        ([(NAME, CSV), (f"../{NAME}", CSV)], rf"'../{NAME}' leads out of the folder"),
        ([(f"/{NAME}", CSV), (NAME, CSV)], "leads out of the folder"),
        ([(f"a/../../{NAME}", CSV)], "leads out of the folder"),
        ([(f"..\\{NAME}", CSV)], "leads out of the folder"),
        ([(f"C:\\{NAME}", CSV)], "leads out of the folder"),
        ([(f"{NAME}\0.txt", CSV)], "there are 0 members"),
    ],
)
def test_a_zip_without_the_member_that_is_meant_is_refused(
    members: list[Member], why: str, keep: Callable[[bytes], Path]
) -> None:
    # The library would write a NUL and what is behind it in no name.
    content = zipped(*((name.replace("\0", "~"), csv) for name, csv in members if isinstance(name, str)))
    with pytest.raises(Damaged, match=why):
        read(keep(content.replace(b"~", b"\0")))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_the_name_are_refused(keep: Callable[[bytes], Path]) -> None:
    with pytest.raises(Damaged, match="there are 2 members"):
        read(keep(zipped((NAME, CSV), (NAME, CSV))))


def test_a_link_is_refused(keep: Callable[[bytes], Path]) -> None:
    link = zipfile.ZipInfo(NAME)
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(Damaged, match="is a link"):
        read(keep(zipped((link, b"/etc/passwd"))))


PACKED_BYTES = len(zlib.compress(CSV)) - 6


@pytest.mark.parametrize(
    ("field", "value", "size", "why"),
    [
        (FLAGS, 1, 2, "is encrypted"),
        (METHOD, 12, 2, r"is packed in a way that is not known here \(12\)"),
        (CRC, 1, 4, "is truncated or altered"),
        (SIZE, len(CSV) + 1, 4, "is truncated or altered"),
        (SIZE, len(CSV) - 1, 4, "is truncated or altered"),
        (SIZE, 2**32 - 2, 4, "says it is packed [0-9]+:1, which no real file is"),
        (PACKED, PACKED_BYTES - 100, 4, "is truncated or altered"),
        (PACKED, 2**32 - 2, 4, "is not where the directory says it is"),
        (START, 10, 4, "is not where the directory says it is"),
        (START, 2**32 - 2, 4, "is not where the directory says it is"),
    ],
)
def test_a_member_that_is_not_what_it_says_is_refused(
    field: tuple[int | None, int], value: int, size: int, why: str, reader: Reader, keep: Callable[[bytes], Path]
) -> None:
    content = zipped((NAME, CSV))
    with pytest.raises(Damaged, match=f"{STEM}.*{why}"):
        read(keep(altered(content, field, value, size)), reader=reader)


@pytest.mark.parametrize("value", [0x00, 0x55, 0xFF])
def test_bytes_that_are_not_packed_ones_are_refused(value: int, reader: Reader, keep: Callable[[bytes], Path]) -> None:
    content = bytearray(zipped((NAME, CSV)))
    content[2000:10_000] = bytes([value]) * 8000
    with pytest.raises(Damaged, match="is truncated or altered"):
        read(keep(bytes(content)), reader=reader)


def test_a_size_that_is_wrong_by_four_gigabytes_is_noticed(reader: Reader, keep: Callable[[bytes], Path]) -> None:
    content, target = random.Random(1).randbytes(23 << 20), io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=0) as archive:
        archive.writestr(NAME, content)
        archive.filelist[0].file_size += 2**32
    with pytest.raises(Damaged, match=f"has {len(content)} bytes instead of {len(content) + 2**32}"):
        read(keep(target.getvalue()), reader=reader)


def test_a_directory_that_points_in_front_of_the_file_is_refused(keep: Callable[[bytes], Path]) -> None:
    content = bytearray(zipped((NAME, CSV)))
    at = content.rindex(b"PK\x05\x06") + 16
    content[at] ^= 1  # where the directory is; members are counted from there
    with pytest.raises(Damaged):
        read(keep(bytes(content)))


def test_no_more_is_inflated_than_the_directory_says(reader: Reader, keep: Callable[[bytes], Path]) -> None:
    long = random.Random(1).randbytes(1 << 20).hex(sep="\n").encode()
    with pytest.raises(Damaged, match="is longer than the 100000 bytes it says"):
        read(keep(altered(zipped((NAME, long)), SIZE, 100_000, 4)), reader=reader)


def test_a_stored_member_with_another_sum_is_refused(keep: Callable[[bytes], Path]) -> None:
    with pytest.raises(Damaged, match="its sum is another one"):
        read(keep(altered(zipped((NAME, CSV), method=zipfile.ZIP_STORED), CRC, 1, 4)))


def test_a_member_larger_than_any_real_one_is_refused(
    keep: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    said = len(CSV).to_bytes(8, "little")
    content = zipped((NAME, CSV)).replace(said, (LARGEST_BYTES + 1).to_bytes(8, "little"))
    with pytest.raises(Damaged, match=f"says it has {LARGEST_BYTES + 1} bytes, more than {LARGEST_BYTES}"):
        read(keep(content))


def test_a_bomb_is_refused_before_anything_is_inflated(keep: Callable[[bytes], Path]) -> None:
    with pytest.raises(Damaged, match=r"says it is packed \d+:1"):
        next(pieces(keep(zipped((NAME, b"0" * 10_000_000)))))


def test_what_is_no_zip_is_refused(keep: Callable[[bytes], Path]) -> None:
    for content in (b"", b"<html>no such file</html>", zipped((NAME, CSV))[:-30]):
        with pytest.raises(Damaged, match="is no ZIP"):
            read(keep(content))


def test_a_line_that_is_larger_than_a_piece_is_refused(keep: Callable[[bytes], Path]) -> None:
    with pytest.raises(Damaged, match="has a line of more than 100 bytes"):
        read(keep(zipped((NAME, b"1\n" + b"2" * 200))), piece_bytes=100)


def test_the_sum_is_known_only_at_the_end(reader: Reader, keep: Callable[[bytes], Path]) -> None:
    source = pieces(keep(altered(zipped((NAME, CSV)), CRC, 1, 4)), piece_bytes=1000, reader=reader)
    assert bytes(next(source)) == CSV[: CSV.rindex(b"\n", 0, 1000) + 1]
    with pytest.raises(Damaged):
        list(source)


@settings(deadline=None, max_examples=400)
@given(name=st.sampled_from(list(READERS)), is_stored=st.booleans(), draws=st.data())
def test_of_a_zip_with_bytes_altered_comes_the_very_csv_or_nothing(
    name: str, is_stored: bool, draws: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(zipped((f"fsx-data/{NAME}", CSV[:500]), (NAME, CSV[:500]), method=0 if is_stored else 8))
    for _ in range(draws.draw(st.integers(1, 3))):
        content[draws.draw(st.integers(0, len(content) - 1))] = draws.draw(st.integers(0, 255))
    cut = draws.draw(st.integers(0, len(content)) | st.just(len(content)))
    path = tmp_path_factory.getbasetemp() / f"{STEM}.zip"
    path.write_bytes(content[:cut])
    try:
        got = read(path, reader=READERS[name])
    except Damaged:
        return
    assert got == CSV[:500]


MEASURE = """
import re, sys
from pathlib import Path
from crypto_lake.backfill.unpack import pieces
from crypto_lake.models.agg_trade import AGG_TRADE
from crypto_lake.processors.delimited import Layout
layout, rows = None, 0
for text in pieces(Path(sys.argv[1])):
    layout = layout or Layout.of(AGG_TRADE, AGG_TRADE.dump.archives["binance-futures"], text)
    rows += layout.parse(text).frame.height
print(rows, int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(keep: Callable[[bytes], Path]) -> None:
    line = "%d,64999.9,0.0%d,5000000001,5000000002,%d,false\n"
    block = "".join(line % (2 * 10**9 + n, n * 7919 % 9973, 1704067200000 + n) for n in range(50_000)).encode()
    peaks = []
    for blocks in (10, 100):
        path = keep(zipped((NAME, block * blocks)))
        out = subprocess.run([sys.executable, "-c", MEASURE, path], check=True, capture_output=True, timeout=300).stdout
        rows, peak_mb = map(int, out.split())
        assert rows == 50_000 * blocks
        peaks.append(peak_mb)
    assert peaks[1] < peaks[0] + 40
    assert peaks[1] < 350
