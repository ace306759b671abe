"""Books built from depth: the table is what one book shows that got all rows in order, however the build went on."""

import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable

from crypto_lake.build import books
from crypto_lake.build.books import Wanted
from crypto_lake.build.farm import farm
from crypto_lake.build.flow import Built
from crypto_lake.config import ConfigError
from crypto_lake.features.book import Book, in_order
from crypto_lake.models import DATASETS
from crypto_lake.processors.shape import shape
from crypto_lake.query import read
from crypto_lake.writers.delta import Lake
from tests.features.depth_market import Market, Row, event, frame, snapshot

DEPTH = DATASETS["depth"]
FUTURES, SPOT = "binance-futures", "binance"
SECOND = 1_000_000
HOUR, DAY = 3600 * SECOND, 86_400 * SECOND
MIDNIGHT = int(datetime(2024, 1, 15, tzinfo=UTC).timestamp()) * SECOND
SHOWN = ["time", "update_id", "bids", "asks"]


def made_up(seed: int, *, days: int = 3, events: int = 150, has_previous: bool = True) -> list[Row]:
    """Events around the midnights of some days, and the snapshots for them."""
    market = Market(Random(seed), Decimal("0.1"), has_previous, 12)
    rows = []
    for day in range(days):
        market.at = MIDNIGHT + day * DAY - 20 * SECOND
        rows += list(market.rows(events))
    return rows


def put(root: Path, rows: Sequence[Row], *, venue: str = FUTURES, symbol: str = "BTCUSDT") -> None:
    """One commit."""
    lake = Lake(str(root))
    lake.check(DEPTH)
    source = pl.when("is_snapshot").then(pl.lit("rest")).otherwise(pl.lit("live"))
    event_time = pl.col("time") if venue == FUTURES else pl.when(~pl.col("is_snapshot")).then("time")
    columns = {"venue": pl.lit(venue), "symbol": pl.lit(symbol), "source": source, "event_time": event_time}
    lake.add(DEPTH, shape(DEPTH, frame(rows).with_columns(**columns)))


def build(root: Path, *, workers: int = 1, **wanted: Any) -> Built:
    with farm(None, workers) as (executor, at_once):
        return books.build(str(root), Wanted(**wanted), executor, at_once)


def held(root: Path, symbol: str = "BTCUSDT", venue: str = FUTURES) -> pl.DataFrame:
    rows = read("book_snapshot", symbols=symbol, venue=venue, root=str(root)).sort("time", "update_id").collect()
    assert set(rows["source"].unique()) <= {"derived"}
    return rows.select(SHOWN)


def wanted(rows: Sequence[Row], *, levels: int = 20, every_us: int = SECOND) -> pl.DataFrame:
    book = Book(levels=levels, every_us=every_us)
    return pl.concat([book.apply(in_order(frame(rows))), book.unfinished()])


def without(rows: Iterable[Row], left_out: Sequence[Row]) -> list[Row]:
    return [row for row in rows if not any(row is each for each in left_out)]


@pytest.mark.parametrize("venue", [FUTURES, SPOT])
@pytest.mark.parametrize("every", ["1s", "100ms", "1m"])
def test_the_table_holds_what_one_book_shows(tmp_path: Path, venue: str, every: str) -> None:
    rows = made_up(1, has_previous=venue == FUTURES)
    for part in (rows[::2], rows[1::2]):
        put(tmp_path, part, venue=venue)
    done = build(tmp_path, levels=5, every=every)
    truth = wanted(rows, levels=5, every_us=books.Grid.of(5, every).every_us)
    assert held(tmp_path, venue=venue).equals(truth)
    assert done.computed == done.added == truth.height > 5
    assert truth["time"].dt.date().n_unique() == 4


def test_a_second_run_writes_nothing(tmp_path: Path) -> None:
    put(tmp_path, made_up(2))
    build(tmp_path)
    version = DeltaTable(str(tmp_path / "book_snapshot")).version()
    done = build(tmp_path)
    assert (done.computed, done.added, done.removed) == (0, 0, 0)
    assert DeltaTable(str(tmp_path / "book_snapshot")).version() == version


@pytest.mark.parametrize("seed", range(4))
def test_built_in_pieces_it_is_the_same_table(tmp_path: Path, seed: int) -> None:
    rows, random = made_up(seed, days=2, has_previous=seed % 2 == 0), Random(seed)
    venue = FUTURES if seed % 2 == 0 else SPOT
    borders = sorted({0, *random.sample(range(len(rows)), 4), len(rows)})
    for start, end in pairwise(borders):
        put(tmp_path, rows[start:end], venue=venue)
        build(tmp_path)
        assert held(tmp_path, venue=venue).equals(wanted(rows[:end]))


def test_new_rows_are_all_that_is_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = made_up(3)
    put(tmp_path, rows[:-5])
    first = build(tmp_path)
    put(tmp_path, rows[-5:])
    played = []
    plain = Book.apply
    monkeypatch.setattr(Book, "apply", lambda book, rows: (played.append(rows.height), plain(book, rows))[1])
    done = build(tmp_path)
    assert sum(played) == 5
    assert done.computed < 10 < first.computed
    assert done.notes == []
    assert held(tmp_path).equals(wanted(rows))


@pytest.mark.parametrize("seed", range(3))
def test_rows_that_come_late_change_what_follows_them(tmp_path: Path, seed: int) -> None:
    rows, random = made_up(10 + seed), Random(seed)
    events = [row for row in rows if not row["is_snapshot"]]
    late = [*random.sample(events[10:300], 3), random.choice([row for row in rows if row["is_snapshot"]])]
    put(tmp_path, without(rows, late))
    build(tmp_path)
    assert held(tmp_path).equals(wanted(without(rows, late)))
    put(tmp_path, late)
    done = build(tmp_path)
    assert held(tmp_path).equals(wanted(rows))
    assert any("came late" in note for note in done.notes)


def test_a_snapshot_that_was_received_behind_midnight_belongs_to_the_day_of_its_events(tmp_path: Path) -> None:
    before = [
        event(n, n, None, [(9.0, float(n))], [(10.0, 1.0)], MIDNIGHT - (110 - n) * SECOND) for n in range(101, 110)
    ]
    after = [event(n, n, None, [(9.0, float(n))], [], MIDNIGHT + (n - 109) * SECOND) for n in range(110, 115)]
    late = snapshot(104, [(8.0, 1.0)], [(10.0, 1.0)], MIDNIGHT + 2 * SECOND)
    put(tmp_path, [*before, *after], venue=SPOT)
    build(tmp_path)
    assert held(tmp_path, venue=SPOT).is_empty()
    put(tmp_path, [late], venue=SPOT)
    build(tmp_path)
    assert held(tmp_path, venue=SPOT)["update_id"].to_list() == list(range(105, 115))
    early = snapshot(111, [(8.5, 1.0)], [(10.0, 1.0)], MIDNIGHT - 2 * SECOND)
    put(tmp_path, [early], venue=SPOT)
    build(tmp_path)
    assert held(tmp_path, venue=SPOT).equals(wanted([*before, *after, late, early]))
    assert held(tmp_path, venue=SPOT)["bids"].list.len().to_list() == [2] * 10


def test_a_book_is_made_anew_from_a_snapshot_that_was_received_behind_midnight(tmp_path: Path) -> None:
    rows = [
        event(n, n, None, [(9.0, float(n))], [], begin + (n - first) * SECOND)
        for first, begin in ((105, MIDNIGHT - 20 * SECOND), (115, MIDNIGHT + HOUR), (125, MIDNIGHT + DAY))
        for n in range(first, first + 10)
    ]
    book = snapshot(107, [(8.0, 1.0)], [(10.0, 1.0)], MIDNIGHT + SECOND)
    late = rows[25]
    put(tmp_path, [*without(rows, [late]), book], venue=SPOT)
    build(tmp_path)
    assert held(tmp_path, venue=SPOT)["update_id"].to_list() == list(range(108, 130))
    put(tmp_path, [late], venue=SPOT)
    build(tmp_path)
    assert held(tmp_path, venue=SPOT).equals(wanted([*rows, book]))
    assert held(tmp_path, venue=SPOT)["update_id"].to_list() == list(range(108, 135))


def test_symbols_are_apart_whoever_works_and_however_many(tmp_path: Path) -> None:
    symbols = {"AUSDT": 20, "BUSDT": 21, "CUSDT": 22}
    for symbol, seed in symbols.items():
        put(tmp_path, made_up(seed), symbol=symbol)
    build(tmp_path, workers=2)
    for symbol, seed in symbols.items():
        assert held(tmp_path, symbol).equals(wanted(made_up(seed)))


def test_a_part_of_the_days_can_be_built_first(tmp_path: Path) -> None:
    rows = made_up(5)
    put(tmp_path, rows)
    build(tmp_path, start="2024-01-15", end="2024-01-15")
    truth = wanted(rows)
    assert held(tmp_path).equals(truth.filter(pl.col("time").dt.date() == date(2024, 1, 15)))
    done = build(tmp_path)
    assert held(tmp_path).equals(truth)
    assert 0 < done.added < done.computed


def test_the_grid_of_a_symbol_is_kept_unless_all_of_it_is_made_again(tmp_path: Path) -> None:
    rows = made_up(6)
    put(tmp_path, rows)
    build(tmp_path)
    with pytest.raises(ConfigError, match=r"made with --levels 20 --every 1s, not --levels 5 --every 1m.*--again"):
        build(tmp_path, levels=5, every="1m")
    with pytest.raises(ConfigError, match="leave --start and --end out"):
        build(tmp_path, levels=5, every="1m", again=True, start="2024-01-15")
    build(tmp_path, levels=5, every="1m", again=True)
    assert held(tmp_path).equals(wanted(rows, levels=5, every_us=60 * SECOND))
    assert build(tmp_path, levels=5, every="1m").computed == 0
    put(tmp_path, rows[:100], symbol="ETHUSDT")
    build(tmp_path, symbols="ETHUSDT")  # each symbol has its own
    assert held(tmp_path, "ETHUSDT").equals(wanted(rows[:100]))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"every": "7s"}, "--every '7s'"), ({"every": "fast"}, "--every"), ({"levels": 0}, "--levels 0"),
        ({"symbols": "BTCUSD"}, "--symbols BTCUSD: table depth has no rows"),
        ({"start": "2024-01-17", "end": "2024-01-15"}, "is after"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused_in_one_sentence(tmp_path: Path, asked: dict[str, Any], said: str) -> None:
    put(tmp_path, made_up(7))
    with pytest.raises(ConfigError, match=said):
        build(tmp_path, **asked)
    with pytest.raises(ConfigError, match="there is no table depth"):
        build(tmp_path / "elsewhere")


def test_a_book_that_stays_crossed_is_found_once(tmp_path: Path) -> None:
    rows = [
        snapshot(100, [(9.9, 1.0)], [(10.1, 1.0)], MIDNIGHT), event(101, 101, 100, [(10.5, 1.0)], [], MIDNIGHT),
        *(event(n, n, n - 1, [], [], MIDNIGHT + (n - 101) * SECOND) for n in range(102, 106)),
    ]  # fmt: skip
    put(tmp_path, rows)
    done = build(tmp_path)
    assert held(tmp_path).is_empty()
    assert done.findings == 1
    build(tmp_path, again=True)
    found = read("quality", root=str(tmp_path)).collect()
    assert found.select("dataset", "check", "severity", "first_id", "last_id").rows() == [
        ("depth", "crossed", "error", 101, 102)
    ]
    assert found["observed"].item() == pytest.approx(0.4)
    assert found["last_time"].item() - found["first_time"].item() == pl.Series([SECOND]).cast(pl.Duration("us"))[0]


def test_rows_of_days_whose_depth_is_gone_stay(tmp_path: Path) -> None:
    rows = made_up(8)
    put(tmp_path, rows)
    build(tmp_path)
    before = held(tmp_path)
    DeltaTable(str(tmp_path / "depth")).delete("date = '2024-01-14'")
    build(tmp_path)
    gone = pl.col("time").dt.date() == date(2024, 1, 14)
    assert held(tmp_path).filter(gone).equals(before.filter(gone))
    assert before.filter(gone).height > 3


MOST_KILLS = 3
PROGRAM = """
import sys
from crypto_lake.writers import derived
derived.ENOUGH_ROWS = 1  # a commit after each day
from crypto_lake.build import books
from crypto_lake.build.farm import farm
with farm(None, 1) as (executor, at_once):
    books.build(sys.argv[1], books.Wanted(), executor, at_once)
"""


@pytest.mark.slow
def test_killed_at_any_time_and_run_again_it_is_the_same_table(tmp_path: Path) -> None:
    random = Random(5)
    markets = {"AUSDT": made_up(30, days=6, events=60), "BUSDT": made_up(31, days=6, events=60)}
    for symbol, rows in markets.items():
        put(tmp_path, rows, symbol=symbol)
    log = tmp_path / "book_snapshot" / "_delta_log"
    kills = 0
    while True:
        some = len(list(log.glob("*.json"))) + random.randint(2, 5)
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)])
        while process.poll() is None and (kills == MOST_KILLS or len(list(log.glob("*.json"))) < some):
            time.sleep(0.001)
        time.sleep(random.random() * 0.05)
        process.kill()
        if process.wait() == 0:
            break
        kills += 1
        if kills == 2:
            markets["CUSDT"] = made_up(32, days=2)
            put(tmp_path, markets["CUSDT"], symbol="CUSDT")
    assert kills >= 2
    for symbol, rows in markets.items():
        assert held(tmp_path, symbol).equals(wanted(rows))
    assert build(tmp_path).computed == 0
