"""What lies on this machine and is no table: archives, those set aside, journals; and what was exported."""

import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

# Beside the tables. Whoever exports to another place knows where; a lake does not.
EXPORTS: Final = "exports"
FOLDERS: Final = ("archives", "quarantine", "journals")


def landing(state: Path, journals: Path) -> list[dict[str, Any]]:
    """A row for each kind of file that is no table yet: `dataset` (what they are), `files`, `bytes`, and in
    `first_time` and `last_time` when the oldest and the newest of them was last written.

    `state` is LAKE_STATE, `journals` the folder of this lake's.
    """
    places = (state / "landing", state / "quarantine", journals)
    return [_summed(name, "landing", place) for name, place in zip(FOLDERS, places, strict=True)]


def exports(root: str) -> list[dict[str, Any]]:
    """The same of the folder `exports` beside the tables. Of a lake in an object store nothing is known."""
    return [] if "://" in root else [_summed(EXPORTS, "gold", Path(root).parent / EXPORTS)]


def _summed(name: str, layer: str, folder: Path) -> dict[str, Any]:
    found = list(_files(folder))
    times = [datetime.fromtimestamp(written_s, UTC) for _, written_s in found]
    return {
        "dataset": name,
        "layer": layer,
        "files": len(found),
        "bytes": sum(size for size, _ in found),
        "first_time": min(times, default=None),
        "last_time": max(times, default=None),
    }


def _files(folder: Path) -> Iterator[tuple[int, float]]:
    """Sizes, and when they were written. A file may go while its folder is read: its rows are in a table by then."""
    for path in folder.rglob("*"):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        if stat.S_ISREG(found.st_mode):
            yield found.st_size, found.st_mtime
