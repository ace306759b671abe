"""How much of a machine a backfill uses, in three words: streaming, batch, parallel."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from crypto_lake.config import Mode as Word

GIB: Final = 1 << 30
# What a process takes that reads one file in large pieces, its libraries and the file that it writes included.
READER_BYTES: Final = GIB // 2
# With less than this a large piece, and what becomes of it, may be too much: others want to live on the machine, too.
LITTLE_BYTES: Final = GIB
# Where nobody says how much is free: enough for one file at a time.
CAREFUL_BYTES: Final = 2 * GIB
# Side by side they wait for each other's commits, and for the disk.
MOST_READERS: Final = 8
# In smaller ones the compiled reader is not worth while; in large ones what is done once per piece does not count.
SMALL_PIECE_BYTES, LARGE_PIECE_BYTES = 2 << 20, 16 << 20
# Archives that wait for being read, besides those that are being fetched.
AHEAD: Final = 16
DOWNLOADS: Final = 4
# Small archives that are ready together (AHEAD and one at the most) make one commit, up to so many bytes.
TOGETHER_BYTES: Final = 32_000_000

PROC: Final = Path("/proc")
CGROUPS: Final = Path("/sys/fs/cgroup")
# In a hierarchy of control groups: what a group may have, what it has, and by what name `memory.stat` has the part of
# it that the kernel gives back when asked. The second version first.
LIMITS: Final = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


@dataclass(frozen=True, slots=True)
class Mode:
    """What goes on side by side: `downloads`, and `readers`, each of which reads a file in pieces of `piece_bytes`.

    `ahead` files may wait for being read; those that are ready together share a commit up to `together_bytes`.
    """

    word: Word
    downloads: int
    readers: int
    piece_bytes: int
    ahead: int
    together_bytes: int

    def __str__(self) -> str:
        return self.word if self.readers == 1 else f"{self.word}, {self.readers} files at once"


def mode_of(free_bytes: int, cores: int, override: Word | Literal[""] = "") -> Mode:
    """How a backfill uses a machine with so much free memory and so many cores; `override` is the user's own word.

    streaming: one file after the other in small pieces. batch: one at a time in large ones, the next ones are fetched
    meanwhile. parallel: several are read at once, a core is left to fetching them.
    """
    fitting = min(cores - 1, free_bytes // READER_BYTES, MOST_READERS)
    word = override or _word_for(free_bytes, fitting)
    if word == "streaming":
        return Mode(word, downloads=1, readers=1, piece_bytes=SMALL_PIECE_BYTES, ahead=1, together_bytes=0)
    readers = 1 if word == "batch" else max(2, fitting)
    return Mode(word, DOWNLOADS, readers, LARGE_PIECE_BYTES, AHEAD, TOGETHER_BYTES)


def _word_for(free_bytes: int, fitting: int) -> Word:
    if free_bytes < LITTLE_BYTES:
        return "streaming"
    return "parallel" if fitting > 1 else "batch"


def mode_here(override: Word | Literal[""] = "") -> Mode:
    """The same for this machine as it is now."""
    return mode_of(free_bytes(), cores(), override)


def cores() -> int:
    """The cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux says
        return os.cpu_count() or 1


def free_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Memory that this process may still take, of the machine or of a control group; where nobody says, 2 GiB."""
    return min([_available(proc / "meminfo"), *_left_in_groups(proc, cgroups)])


def _available(meminfo: Path) -> int:
    """Of the machine."""
    fields = dict(line.split(":", 1) for line in _lines(meminfo) if ":" in line)
    number = fields.get("MemAvailable", "").removesuffix("kB").strip()
    return int(number) * 1024 if number.isdecimal() else CAREFUL_BYTES


def _left_in_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """Of each group with a limit that this process is in."""
    for line in _lines(proc / "self" / "cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, own = rest.partition(":")
        if controllers not in ("", "memory"):
            continue
        top = cgroups / controllers
        # Inside a container the path may be the host's, and the group is the top of what is to be seen.
        for group in dict.fromkeys(top / part for part in (own.strip("/"), *_parents(own))):
            yield from _left_in(group)


def _parents(own: str) -> list[str]:
    parts = own.strip("/").split("/")
    return ["/".join(parts[:number]) for number in range(len(parts) - 1, -1, -1)]


def _left_in(group: Path) -> Iterator[int]:
    for limit_name, used_name, reclaimed_name in LIMITS:
        limit, used = (_number(group / name) for name in (limit_name, used_name))
        if limit is None or used is None:
            continue
        stat = dict(line.split(" ", 1) for line in _lines(group / "memory.stat") if " " in line)
        yield max(0, limit - used + int(stat.get(reclaimed_name, 0)))


def _number(path: Path) -> int | None:
    """The number that a file holds; None for another word ("max"), and where there is no such file."""
    word = "".join(_lines(path)).strip()
    return int(word) if word.isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
