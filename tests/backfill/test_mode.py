"""How much of a machine a backfill uses: by free memory and cores, and by the user's own word."""

from pathlib import Path

import pytest

from crypto_lake.backfill.mode import CAREFUL_BYTES, GIB, MOST_READERS, READER_BYTES, Mode, free_bytes, mode_of

MIB = 1 << 20


@pytest.mark.parametrize(
    ("free", "cores", "word", "readers"),
    [
        (GIB - 1, 64, "streaming", 1),
        (GIB, 1, "batch", 1),
        (64 * GIB, 2, "batch", 1),  # one core is left to what else there is to do
        (64 * GIB, 3, "parallel", 2),
        (64 * GIB, 64, "parallel", MOST_READERS),
        (3 * READER_BYTES, 64, "parallel", 3),
    ],
)
def test_free_memory_and_cores_say_how_much_goes_on_at_once(free: int, cores: int, word: str, readers: int) -> None:
    mode = mode_of(free, cores)
    assert (mode.word, mode.readers) == (word, readers)


def test_the_user_s_own_word_counts_more() -> None:
    assert mode_of(64 * GIB, 64, "streaming") == mode_of(GIB // 4, 1)
    assert mode_of(64 * GIB, 64, "batch").readers == 1
    forced = mode_of(GIB // 4, 1, "parallel")
    assert forced.readers == 2


def test_streaming_takes_little_and_the_others_work_ahead() -> None:
    streaming, batch, parallel = (mode_of(8 * GIB, 8, word) for word in ("streaming", "batch", "parallel"))

    def size(mode: Mode) -> list[int]:
        return [mode.downloads, mode.readers, mode.piece_bytes, mode.ahead, mode.together_bytes]

    assert all(small <= large for small, large in zip(size(streaming), size(batch), strict=True))
    assert (streaming.downloads, streaming.ahead, streaming.together_bytes) == (1, 1, 0)
    assert streaming.piece_bytes < batch.piece_bytes == parallel.piece_bytes
    assert str(batch) == "batch"
    assert str(parallel) == "parallel, 7 files at once"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine that says that 4 GiB are free, in a control group of its own."""
    write(tmp_path / "proc" / "meminfo", "MemTotal: 8388608 kB\nMemFree: 100 kB\nMemAvailable:    4194304 kB\n")
    write(tmp_path / "proc" / "self" / "cgroup", "0::/work/job\n")
    return tmp_path


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def free(machine: Path) -> int:
    return free_bytes(machine / "proc", machine / "cgroup")


def test_free_is_what_the_machine_can_give(machine: Path) -> None:
    assert free(machine) == 4 * GIB


@pytest.mark.parametrize("group", ["work/job", "work", "."])
def test_a_control_group_may_have_less_and_so_may_the_ones_above_it(machine: Path, group: str) -> None:
    folder = machine / "cgroup" / group
    write(folder / "memory.max", 1000 * MIB)
    write(folder / "memory.current", 900 * MIB)
    write(folder / "memory.stat", f"anon 1\ninactive_file {300 * MIB}")
    assert free(machine) == 400 * MIB


def test_a_group_without_a_limit_limits_nothing(machine: Path) -> None:
    write(machine / "cgroup" / "work" / "memory.max", "max")
    write(machine / "cgroup" / "work" / "memory.current", 900 * MIB)
    assert free(machine) == 4 * GIB


def test_the_older_control_groups_are_understood_too(machine: Path) -> None:
    write(machine / "proc" / "self" / "cgroup", "7:cpu,cpuacct:/a\n4:memory:/docker/abc\n0::/\n")
    # In a container the group is the top of what is to be seen, whatever its path says.
    write(machine / "cgroup" / "memory" / "memory.limit_in_bytes", 500 * MIB)
    write(machine / "cgroup" / "memory" / "memory.usage_in_bytes", 200 * MIB)
    write(machine / "cgroup" / "memory" / "memory.stat", f"inactive_file 5\ntotal_inactive_file {50 * MIB}")
    assert free(machine) == 350 * MIB


def test_where_nobody_says_it_is_careful(tmp_path: Path) -> None:
    assert free(tmp_path) == CAREFUL_BYTES
    assert mode_of(CAREFUL_BYTES, 2).word == "batch"
