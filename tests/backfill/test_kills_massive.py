"""Killed wherever it may be, a backfill of flat files ends with the same tables as one that nobody disturbed."""

import asyncio
import gzip
import os
import select
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Final

import polars as pl
import pytest

from crypto_lake.models import DATASETS
from crypto_lake.models.bar import BAR
from crypto_lake.models.bucket import DAY
from crypto_lake.models.flatfile import FlatFile, flat_app
from crypto_lake.simulator.flatfiles import FlatMarket
from crypto_lake.writers.bulk import marked
from crypto_lake.writers.delta import Lake
from tests.s3 import Flatfiles

FOLDER: Final = "us_stocks_sip/minute_aggs_v1"
FIRST: Final = date(2026, 5, 1)
DAYS: Final = [day for number in range(28) if (day := FIRST + number * DAY).weekday() < 5 and day.day != 25]
ROWS: Final = 8_000
ASKED: Final = ("--dataset", FOLDER, "--start", "2026-05", "--end", DAYS[-1])
MARKET, OTHER = FlatMarket(seed=5), FlatMarket(seed=6)
LOOK_EVERY_S: Final = 0.002
# What is waited for before a kill: bytes that came, a file of rows that no log names yet, and a new version of a table,
# in the order in which they come.
MOMENTS: Final = ("download", "download", "rows", "rejected", "dump_file", "bar", "bar", "coverage")


@dataclass
class Watcher:
    """Sees from outside how far a backfill is, and kills it there."""

    home: Path
    patterns: dict[str, str] = field(
        default_factory=lambda: {"download": "var/landing/**/*.part", "rows": "tables/bar/date=*/*.parquet"}
    )

    def seen(self, moment: str) -> dict[Path, int]:
        """The files by which this moment is known, and their sizes: one is new or grows when it comes."""
        found = self.home.glob(self.patterns.get(moment, f"tables/{moment}/_delta_log/*.json"))
        return {path: size for path in found if (size := size_of(path)) > 0}

    def kill(self, pid: int, moment: str, before: dict[Path, int]) -> None:
        """`kill -9` at that moment, if the process is still there then."""
        end = os.pidfd_open(pid)
        try:
            while all(size <= before.get(path, -1) for path, size in self.seen(moment).items()):
                if select.select([end], [], [], LOOK_EVERY_S)[0]:
                    return
            signal.pidfd_send_signal(end, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            os.close(end)


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


# What two lakes are held against each other by


def rows_of(root: Path, name: str) -> pl.DataFrame:
    return Lake(str(root)).rows(DATASETS[name])


def bars(root: Path) -> pl.DataFrame:
    return rows_of(root, "bar").sort(BAR.key)


def marks(root: Path) -> dict[str, int]:
    return marked(Lake(str(root)).table(BAR), [flat_app(FOLDER, FIRST)])


def ledger(root: Path) -> list[tuple[Any, ...]]:
    """The newest state of every path."""
    newest = rows_of(root, "dump_file").sort("state_time", maintain_order=True).unique("path", keep="last")
    return newest.drop("state_time", "date", "last_modified").sort("path").rows()


def certificates(root: Path) -> list[tuple[Any, ...]]:
    """The newest one of every day."""
    found = rows_of(root, "coverage").sort("checked_time").unique(["symbol", "date"], keep="last")
    return found.drop("checked_time").sort("symbol", "date").rows()


def rejected(root: Path) -> Counter[tuple[Any, ...]]:
    return Counter(rows_of(root, "rejected").drop("received_time", "date").rows())


def findings(root: Path) -> Counter[tuple[Any, ...]]:
    return Counter(rows_of(root, "quality").drop("found_time", "date").rows())


def flawed(text: str) -> str:
    """With a line that is none, and one that says what cannot be."""
    lines = text.splitlines()
    lines[100] = "AAPL,this is no bar"
    lines[200] = ",".join(each if number != 1 else "-5" for number, each in enumerate(lines[200].split(",")))
    return "\n".join([*lines, ""])


@dataclass
class Course:
    """A bucket that fills, a lake that is disturbed, and one that is not; something was taken before."""

    flatfiles: Flatfiles
    disturbed: Any
    whole: Any
    days: Iterator[date]

    def publish(self) -> date:
        """The file of the next day."""
        day = next(self.days)
        text = flawed(MARKET.text(FOLDER, day, rows=ROWS))
        self.flatfiles.put(FlatFile(FOLDER, day).path, gzip.compress(text.encode(), 1, mtime=0))
        return day

    async def end(self) -> None:
        """One more backfill of the disturbed lake, and the only one of the other."""
        for each in (self.disturbed, self.whole):
            said = await each.run(*ASKED)
            assert said.status == 0, said.err


@pytest.fixture
async def course(flatfiles: Flatfiles, flat_backfills: Callable[..., Any], tmp_path: Path) -> Course:
    """A first file was taken, and has been replaced since."""
    disturbed, whole = (flat_backfills(tmp_path / name) for name in ("disturbed", "whole"))
    made = Course(flatfiles, disturbed, whole, iter(DAYS))
    first = FlatFile(FOLDER, made.publish())
    assert (await disturbed.run(*ASKED)).status == 0
    flatfiles.put(first.path, OTHER.gz(FOLDER, first.day, rows=ROWS))
    shutil.copytree(disturbed.root, whole.root)
    return made


def assert_same_rows(course: Course) -> None:
    """Nobody can tell the rows of the two lakes apart, nor what is certified of them; nothing is left beside them."""
    ours, theirs = (bars(each.root) for each in (course.disturbed, course.whole))
    assert ours.select(BAR.key).is_unique().all()
    assert ours.equals(theirs, null_equal=True)
    for what in (marks, ledger, certificates):
        assert what(course.disturbed.root) == what(course.whole.root), what.__name__
    assert not [path for path in course.disturbed.state.rglob("*") if path.is_file()]
    assert findings(course.whole.root)
    assert rejected(course.whole.root)


def assert_same(course: Course) -> None:
    """And all is said once."""
    assert_same_rows(course)
    for what in (rejected, findings):
        assert what(course.disturbed.root) == what(course.whole.root), what.__name__
    assert rows_of(course.disturbed.root, "dump_file").select("path", "state_time").is_unique().all()


async def killed(course: Course, forks: Any, moment: str) -> int:
    watcher = Watcher(course.disturbed.home)
    before = watcher.seen(moment)
    pid, desk = course.disturbed.begin(*ASKED)
    await asyncio.to_thread(watcher.kill, pid, moment, before)
    status = await forks.end(pid)
    assert status in (0, -signal.SIGKILL), f"{moment}: {(desk / 'errors').read_text()}"
    return int(status)


async def test_eight_kills_change_nothing(course: Course, forks: Any) -> None:
    for moment in MOMENTS:
        course.publish()
        while await killed(course, forks, moment) == 0:  # once more when it was faster than we
            course.publish()
    await course.end()
    assert_same(course)
    assert bars(course.whole.root).height > ROWS * len(MOMENTS)


@pytest.mark.parametrize("moment", ["dump_file", "quality", "bar", "coverage"])
async def test_a_file_that_took_another_s_place_is_taken_whole_wherever_that_is_killed(
    course: Course, forks: Any, moment: str
) -> None:
    """Its day is marked and certified already, so they do not say how far it is."""
    assert await killed(course, forks, moment) == -signal.SIGKILL
    await course.end()
    assert_same(course)
    assert bars(course.whole.root).height > ROWS / 2


@pytest.mark.parametrize("is_shared", [True, False], ids=["one landing", "two landings"])
async def test_two_backfills_at_once_are_one(course: Course, is_shared: bool) -> None:
    for _ in range(4):
        course.publish()
    one = course.disturbed.begin(*ASKED)
    if not is_shared:
        course.disturbed.environment["LAKE_STATE"] += "/other"
    for begun in (one, course.disturbed.begin(*ASKED)):
        said = await course.disturbed.end(begun)
        assert said.status == 0, said.err
    await course.end()
    assert_same(course)
