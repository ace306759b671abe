"""Killed at twenty moments, a backfill ends with the same tables as one that nobody disturbed."""

import asyncio
import os
import random
import select
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import polars as pl
import pytest

from crypto_lake.backfill.plan import mark_name
from crypto_lake.config import FUTURES
from crypto_lake.models import DATASETS
from crypto_lake.models.gap import FILLED, GAP
from crypto_lake.models.rejected import REJECTED
from crypto_lake.processors.shape import shape
from crypto_lake.query.gaps import gaps
from crypto_lake.query.runs import overlaps
from crypto_lake.simulator import Dumps
from crypto_lake.writers import CommitFailed
from crypto_lake.writers.bulk import marked
from crypto_lake.writers.delta import Lake

AGG_TRADE = DATASETS["agg_trade"]
SYMBOLS: Final = ("BTCUSDT", "ETHUSDT")
MONTH: Final = date(2024, 1, 1)
FIRST: Final = date(2024, 1, 8)
DAYS: Final = 16
ROWS: Final = 1_200
STEP_MS: Final = 60_000
HEADER: Final = "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker"
NO_TRADE: Final = "this is no trade"
SLOW: Final = 60_000  # bytes a second
LOOK_EVERY_S, LATEST_S = 0.003, 0.02

# What is waited for before a kill: bytes that came, an archive being sorted, a file of rows that no log names yet, and
# a new version of a table, in the order in which they come.
MOMENTS: Final = (
    *("download",) * 4,
    *("sort",) * 3,
    *("rows",) * 3,
    *("rejected", "quality", "dump_file", "dump_file"),
    *("agg_trade", "agg_trade", "agg_trade", "gap", "coverage", "coverage"),
)


def day(number: int) -> date:
    return FIRST + timedelta(days=number)


WANTED: Final = ("um", "agg_trade", ",".join(SYMBOLS), day(0), day(DAYS - 1))


def id_of(number: int, place: int) -> int:
    return 100_000 + number * ROWS + place


def path_of(symbol: str, number: int) -> str:
    return f"data/futures/um/daily/aggTrades/{symbol}/{symbol}-aggTrades-{day(number)}.zip"


def fields(number: int, place: int) -> dict[str, Any]:
    """The trade in that place of a day."""
    identity = id_of(number, place)
    midnight_ms = int(datetime.combine(day(number), datetime.min.time(), UTC).timestamp() * 1000)
    return {
        "agg_trade_id": identity,
        "price": 60_000 + identity % 997 / 10,
        "quantity": 1 + identity % 7 / 1000,
        "first_trade_id": 3 * identity,
        "last_trade_id": 3 * identity + 2,
        "time": midnight_ms + place * STEP_MS,
        "is_buyer_maker": identity % 3 == 0,
    }


def line(number: int, place: int) -> str:
    return (
        ",".join(str(value) for value in fields(number, place).values())
        .replace("False", "false")
        .replace("True", "true")
    )


def csv(number: int, *, places: Iterable[int] = range(ROWS), is_flawed: bool = False, mixed: int = 0) -> str:
    """A day's lines. With flaws: ids are missing, in the day and at its end, a line is no trade, one has no price.

    `mixed`: not in order, each line so many times.
    """
    lines = [line(number, place) for place in places if not (is_flawed and (300 <= place < 320 or place >= ROWS - 5))]
    if is_flawed:
        lines[100], lines[200] = NO_TRADE, line(number, 200).replace(",60", ",-60")
    if mixed:
        other = line(number, 50).replace(",60", ",61")
        lines = [*lines[600:], *lines[:600], other] * mixed
    return "\n".join(lines) + "\n"


def live(symbol: str, number: int, places: Iterable[int]) -> pl.DataFrame:
    """The same trades as a recorder has them."""
    told = pl.DataFrame([fields(number, place) for place in places])
    times = pl.from_epoch("time", "ms").dt.replace_time_zone("UTC")
    frame = told.with_columns(
        *(times.alias(name) for name in ("time", "event_time", "received_time")),
        pl.col("quantity").alias("quantity_without_rpi"),
        venue=pl.lit(FUTURES),
        symbol=pl.lit(symbol),
        source=pl.lit("live"),
    )
    return shape(AGG_TRADE, frame)


def hole(symbol: str, before: tuple[int, int], behind: tuple[int, int]) -> dict[str, Any]:
    """What is missing between two trades that are held."""
    start, end = (datetime.fromtimestamp(fields(*place)["time"] / 1000, UTC) for place in (before, behind))
    return {
        "venue": FUTURES, "symbol": symbol, "dataset": "agg_trade", "first_id": id_of(*before) + 1,
        "last_id": id_of(*behind) - 1, "start_time": start, "end_time": end, "reason": "disconnect", "state": "open",
        "filled_rows": 0, "state_time": end, "date": start.date(),
    }  # fmt: skip


HOLES: Final = [
    hole("BTCUSDT", (2, 249), (2, 400)),
    hole("BTCUSDT", (2, 409), (3, 1_000)),
    hole("BTCUSDT", (3, 1_099), (4, 50)),
]


def record(lake: Lake) -> None:
    """What a recorder left: rows of some days, and holes in a day and over midnight, some of which the files fill."""
    for name in ("agg_trade", "gap"):
        lake.check(DATASETS[name])
    for number, (symbol, held, places) in enumerate(
        [
            ("BTCUSDT", 2, range(250)),
            ("BTCUSDT", 2, range(400, 410)),
            ("BTCUSDT", 3, range(1_000, 1_100)),
            ("BTCUSDT", 4, range(50, 60)),
            ("ETHUSDT", 5, range(700, 800)),
        ]
    ):
        lake.append(AGG_TRADE, live(symbol, held, places), "recorder", start=number, end=number + 1)
    lake.append(GAP, pl.DataFrame(HOLES, schema=GAP.schema), "recorder", start=0, end=1)


class Watcher:
    """Sees from outside how far a backfill is, and kills it there."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def seen(self, moment: str) -> dict[Path, int]:
        """The files by which this moment is known, and their sizes: one is new or grows when it comes."""
        patterns = {
            "download": "var/landing/**/*.part",
            "sort": "var/landing/**/*.sort-*/*/*.arrow",
            "rows": "tables/agg_trade/date=*/*.parquet",
        }
        found = self._home.glob(patterns.get(moment, f"tables/{moment}/_delta_log/*.json"))
        return {path: size_of(path) for path in found}

    def kill(self, pid: int, moment: str, before: dict[Path, int], wait_s: float) -> None:
        """`kill -9`, a little after the moment, if the process is still there then."""
        end = os.pidfd_open(pid)
        try:
            while all(size <= before.get(path, -1) for path, size in self.seen(moment).items()):
                if select.select([end], [], [], LOOK_EVERY_S)[0]:
                    return
            time.sleep(wait_s)
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


def trades(root: Path) -> pl.DataFrame:
    return rows_of(root, "agg_trade").sort(AGG_TRADE.key)


def marks(root: Path) -> dict[str, int]:
    return marked(Lake(str(root)).table(AGG_TRADE), [mark_name(FUTURES, symbol, MONTH) for symbol in SYMBOLS])


def missing(root: Path) -> list[tuple[Any, ...]]:
    """Every hole that is one, and its state."""
    left = gaps(str(root)).filter(pl.col("state") != FILLED)
    return left.drop("state_time").sort("dataset", "symbol", "first_id", "start_time").rows()


def filled(root: Path) -> list[tuple[Any, ...]]:
    """The ids that the recorder missed and that came: of a hole that two commits fill there are two rows.

    What lay open between one file and the next is history, too, but depends on which of them came first.
    """
    once = gaps(str(root)).filter(pl.col("state") == FILLED)
    came = overlaps(pl.DataFrame(HOLES, schema=GAP.schema), once)
    return came.select("venue", "symbol", "first_id", "last_id").rows()


def ledger(root: Path) -> list[tuple[Any, ...]]:
    """The newest state of every path."""
    states = rows_of(root, "dump_file").sort("state_time", maintain_order=True).unique("path", keep="last")
    return states.drop("state_time", "date").sort("path").rows()


def certificates(root: Path) -> list[tuple[Any, ...]]:
    """The newest one of every day."""
    return newest(root).drop("checked_time").rows()


def newest(root: Path) -> pl.DataFrame:
    found = rows_of(root, "coverage").sort("checked_time").unique(["symbol", "date"], keep="last")
    return found.sort("symbol", "date")


def verdicts(root: Path) -> set[str]:
    return set(newest(root)["verdict"])


def rejected(root: Path) -> Counter[tuple[Any, ...]]:
    return Counter(rows_of(root, "rejected").drop("received_time", "date").rows())


def findings(root: Path) -> Counter[tuple[Any, ...]]:
    return Counter(rows_of(root, "quality").drop("found_time", "date").rows())


@dataclass(frozen=True)
class Course:
    """What a backfill is about: a bucket that fills, and a lake in which there is something already."""

    dumps: Dumps
    disturbed: Any
    whole: Any

    def begin(self) -> tuple[int, Path]:
        """A backfill of the lake that is disturbed."""
        begun: tuple[int, Path] = self.disturbed.begin(*WANTED)
        return begun

    async def end(self) -> None:
        """One more backfill of the disturbed lake, and the only one of the other."""
        for each in (self.disturbed, self.whole):
            await each.run(*WANTED)

    def publish(self, symbol: str, number: int, **how: Any) -> None:
        """The file of a day."""
        self.dumps.add(path_of(symbol, number), csv(number, **how), HEADER)


@pytest.fixture
async def course(tmp_path: Path, served: Callable[[Dumps], Awaitable[str]], backfills: Callable[..., Any]) -> Course:
    """A recorder has left something, a first file was taken, and the venue has replaced it since."""
    dumps = Dumps()
    address = await served(dumps)
    disturbed, whole = (backfills(tmp_path / name, address) for name in ("disturbed", "whole"))
    record(Lake(str(disturbed.root)))
    dumps.add(path_of("BTCUSDT", 0), csv(0, places=range(ROWS - 50)), HEADER)
    await disturbed.run("um", "agg_trade", "BTCUSDT", day(0))
    dumps.add(path_of("BTCUSDT", 0), csv(0).replace(line(0, 700), line(0, 700).replace(",60", ",59")), HEADER)
    shutil.copytree(disturbed.root, whole.root)
    for each in (disturbed, whole):
        (each.home / "tmp").mkdir()
        each.environment["TMPDIR"] = str(each.home / "tmp")
    return Course(dumps, disturbed, whole)


def assert_same(course: Course) -> None:
    """Nobody can tell the two lakes apart, and nothing is left beside the tables."""
    ours, theirs = (trades(each.root) for each in (course.disturbed, course.whole))
    assert ours.select(AGG_TRADE.key).is_unique().all()
    assert ours.equals(theirs, null_equal=True)
    for what in (marks, missing, filled, ledger, certificates, rejected, findings):
        assert what(course.disturbed.root) == what(course.whole.root), what.__name__
    assert rows_of(course.disturbed.root, "dump_file").select("path", "state_time").is_unique().all()
    assert not [path for path in course.disturbed.state.rglob("*") if path.is_file()]
    assert not list((course.disturbed.home / "tmp").iterdir())


def assert_is_much(root: Path) -> None:
    """There was something to get wrong."""
    assert trades(root).height > 8_000
    assert all(marks(root).values())
    assert verdicts(root) == {"complete", "incomplete", "differs"}
    assert missing(root)
    assert filled(root)
    assert rejected(root)
    assert findings(root)


@pytest.mark.parametrize("seed", [1])
async def test_twenty_kills_change_nothing(course: Course, forks: Any, seed: int) -> None:
    rng, watcher = random.Random(seed), Watcher(course.disturbed.home)
    days = [(symbol, number) for symbol in SYMBOLS for number in range(DAYS)][1:]
    files = iter(rng.sample(days, len(days)))
    slow = course.dumps.fail("slow_download", bytes_per_s=SLOW)
    for moment in rng.sample(MOMENTS, 20):
        status = 0
        while status == 0:  # once more when it was faster than we
            # A day after the other is published: whatever was done before, there is something to do.
            mixed = 20 if moment == "sort" else 0  # so often that sorting takes a moment
            course.publish(*next(files), mixed=mixed, is_flawed=moment in ("rejected", "quality", "gap"))
            before = watcher.seen(moment)
            pid, desk = course.begin()
            await asyncio.to_thread(watcher.kill, pid, moment, before, rng.choice((0, rng.uniform(0, LATEST_S))))
            status = await forks.end(pid)
        assert status == -signal.SIGKILL, (desk / "errors").read_text()
    course.dumps.mend(slow)
    await course.end()
    assert_same(course)
    assert_is_much(course.whole.root)


async def test_a_file_that_took_another_s_place_is_taken_whole_wherever_that_is_killed(
    course: Course, forks: Any
) -> None:
    """Its days are marked and certified already, so they do not say how far it is."""
    watcher = Watcher(course.disturbed.home)
    for moment in ("dump_file", "quality", "agg_trade", "coverage", "dump_file"):
        before = watcher.seen(moment)
        pid, desk = course.begin()
        await asyncio.to_thread(watcher.kill, pid, moment, before, 0)
        assert await forks.end(pid) == -signal.SIGKILL, f"{moment}: {(desk / 'errors').read_text()}"
    await course.end()
    assert_same(course)
    assert verdicts(course.whole.root) == {"differs"}


@pytest.mark.parametrize("is_shared", [True, False], ids=["one landing", "two landings"])
async def test_two_backfills_at_once_are_one(course: Course, forks: Any, is_shared: bool) -> None:
    for symbol in SYMBOLS:
        for number in range(1, 5):
            course.publish(symbol, number, is_flawed=number == 2, mixed=number == 3)
    one = course.begin()
    if not is_shared:
        course.disturbed.environment["LAKE_STATE"] += "/other"
    for pid, desk in (one, course.begin()):
        assert await forks.end(pid) == 0, (desk / "errors").read_text()
    await course.whole.run(*WANTED)
    assert_same(course)
    assert_is_much(course.whole.root)


def test_what_two_say_at_one_moment_is_said_once(tmp_path: Path) -> None:
    """Two backfills read one archive, and both have words about the same lines."""
    root, barrier, errors = str(tmp_path / "tables"), threading.Barrier(2), []
    Lake(root).check(REJECTED)
    row = {"venue": FUTURES, "dataset": "agg_trade", "reason": "no trade", "payload": NO_TRADE}
    words = pl.DataFrame([row | {"received_time": datetime.now(UTC), "date": day(0)}], schema=REJECTED.schema)

    def say() -> None:
        for number in range(10):
            barrier.wait()
            try:
                Lake(root).append_once(REJECTED, words, {"dump/one": number + 1})
            except CommitFailed as error:
                errors.append(error)

    threads = [threading.Thread(target=say) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert Lake(root).rows(REJECTED).height == 10
