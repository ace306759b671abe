"""A Qlib root under way: files grow at their ends, and count when the calendar says so."""

import struct
from pathlib import Path

import numpy as np
import pytest

from crypto_lake.config import ConfigError
from crypto_lake.models import qlib
from crypto_lake.models.qlib import Asked, Manifest, Member, Span
from crypto_lake.writers.qlib import Root, taken

MINUTE_US = 60_000_000


def values(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def calendar(slots: int) -> qlib.Calendar:
    return np.arange(slots, dtype=np.int64) * MINUTE_US


def manifest(root: Root, slots: int) -> Manifest:
    members = {name: Member("binance", "trades", *span) for name, span in root.spans.items()}
    asked = Asked(None, None, None)
    return Manifest("1m", ("close", "open"), members, slots, qlib.digest(calendar(slots)), None, asked, {})


def grow(root: Root, symbol: str, slot: int, *numbers: float) -> None:
    root.append(symbol, slot, {"close": values(*numbers)})
    root.append(symbol, slot, {"open": -values(*numbers)})
    root.advance(symbol, slot, len(numbers))


def floats(path: Path) -> tuple[float | None, ...]:
    content = path.read_bytes()
    return tuple(None if value != value else value for value in struct.unpack(f"<{len(content) // 4}f", content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A root with slots 1 to 3 of A."""
    with taken(tmp_path / "q", "1min"):
        root = Root(tmp_path / "q", "1min", None)
        grow(root, "A", 1, 10, 11)
        grow(root, "A", 3, 13)
        root.finish(calendar(4), manifest(root, 4))
    return tmp_path / "q"


def test_a_file_has_its_first_slot_and_a_value_for_each_from_there_on(folder: Path) -> None:
    assert floats(folder / "features/a/close.1min.bin") == (1, 10, 11, 13)
    assert floats(folder / "features/a/open.1min.bin") == (1, -10, -11, -13)
    assert (folder / "calendars/1min.txt").read_text().splitlines()[-1] == "1970-01-01 00:03:00"
    assert (folder / "instruments/all.txt").read_text() == "A\t1970-01-01 00:01:00\t1970-01-01 00:03:00\n"


def test_slots_that_were_left_out_have_no_value(folder: Path) -> None:
    held = qlib.decoded((folder / qlib.MANIFEST).read_bytes())
    with taken(folder, "1min"):
        root = Root(folder, "1min", held)
        grow(root, "A", 6, 16)
        grow(root, "B", 5, 25, 26)
        assert root.spans == {"A": Span(1, 6), "B": Span(5, 2)}
        assert len((folder / "calendars/1min.txt").read_text().splitlines()) == 4
        root.finish(calendar(7), manifest(root, 7))
    assert floats(folder / "features/a/close.1min.bin") == (1, 10, 11, 13, None, None, 16)
    assert floats(folder / "features/b/close.1min.bin") == (5, 25, 26)
    assert len((folder / "calendars/1min.txt").read_text().splitlines()) == 7


def test_what_was_appended_can_be_taken_back(folder: Path) -> None:
    held = qlib.decoded((folder / qlib.MANIFEST).read_bytes())
    before = (folder / "features/a/close.1min.bin").read_bytes()
    root = Root(folder, "1min", held)
    grow(root, "A", 4, 14)
    assert root.undo()
    assert root.spans == {"A": Span(1, 3)}
    assert (folder / "features/a/close.1min.bin").read_bytes() == before
    (folder / "features/a/open.1min.bin").write_bytes(before[:-4])
    assert not Root(folder, "1min", held).undo()


def test_a_root_made_anew_takes_the_place_of_the_old_one_at_its_end(folder: Path) -> None:
    with taken(folder, "1min"):
        root = Root(folder, "1min", None)
        grow(root, "B", 0, 20)
        assert floats(folder / "features/a/close.1min.bin") == (1, 10, 11, 13)
        root.finish(calendar(1), manifest(root, 1))
    assert sorted(path.name for path in (folder / "features").iterdir()) == ["b"]
    assert not {".new", ".old"} & {path.name for path in folder.iterdir()}


def test_only_a_folder_of_exports_is_written_into(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a root of 1min"), taken(folder, "day"):
        pass
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "features").mkdir()
    with pytest.raises(ConfigError, match="holds features, which is not of an export"), taken(tmp_path / "mine", "day"):
        pass
