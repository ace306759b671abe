"""Derived tables: rows that replace rows, notes and states, one commit for all of them."""

import os
import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from crypto_lake.models.bar import BAR, TRADES
from crypto_lake.models.dataset import TIME
from crypto_lake.processors.shape import shape
from crypto_lake.query.snapshot import VERSIONS, snapshot, touched
from crypto_lake.writers import CommitConflict, maintenance
from crypto_lake.writers.delta import Lake
from crypto_lake.writers.derived import STATES, Derived

DAY = date(2026, 3, 2)
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


def bars(minutes: range, *, symbol: str = "BTCUSDT", close: float = 1.0, start: datetime = NOON) -> pl.DataFrame:
    times = [start + timedelta(minutes=minute) for minute in minutes]
    frame = pl.DataFrame({"time": times}, schema={"time": TIME})
    return shape(
        BAR,
        frame.with_columns(
            pl.lit("binance-futures").alias("venue"),
            pl.lit(symbol).alias("symbol"),
            pl.lit("derived").alias("source"),
            pl.lit("1m").alias("timeframe"),
            pl.lit(TRADES).alias("origin"),
            (pl.col("time") + pl.duration(seconds=60) - pl.duration(microseconds=1)).alias("close_time"),
            *(pl.lit(close).alias(name) for name in ("open", "high", "low", "close")),
            *(pl.lit(2.0).alias(name) for name in ("volume", "quote_volume")),
            pl.lit(1).alias("count"),
            pl.lit(value=True).alias("complete"),
            pl.lit(0).alias("revision"),
        ),
    )


def closes(derived: Derived) -> dict[tuple[str, int], float]:
    held = derived.held(DAY, DAY)
    return {(symbol, time.minute): close for symbol, time, close in held.select("symbol", "time", "close").iter_rows()}


@pytest.fixture
def derived(tmp_path: Path) -> Derived:
    return Derived(Lake(str(tmp_path)), BAR)


def test_rows_notes_and_states_come_with_one_commit(derived: Derived, tmp_path: Path) -> None:
    derived.put(bars(range(3)))
    derived.note("build/bars/BTCUSDT", 7)
    derived.keep("state/BTCUSDT", b"what comes next")
    assert closes(derived) == {}, "nothing is there before the commit"
    before = snapshot(str(tmp_path), BAR)
    derived.settle(all=True)
    again = Derived(Lake(str(tmp_path)), BAR)
    assert len(closes(again)) == 3
    assert again.noted("build/bars/BTCUSDT") == 7
    assert again.state("state/BTCUSDT") == b"what comes next"
    after = snapshot(str(tmp_path), BAR)
    assert before is not None
    assert after is not None
    assert after.version == before.version + 1


def test_a_changed_row_takes_the_place_of_the_old_one_and_its_neighbours_stay(derived: Derived) -> None:
    derived.put(pl.concat([bars(range(5)), bars(range(5), symbol="ETHUSDT")]))
    derived.settle(all=True)
    old = derived.held(DAY, DAY, pl.col("symbol") == "BTCUSDT").filter(pl.col("time").dt.minute() == 2)
    derived.put(old.with_columns(pl.lit(9.0).alias("close")), gone=old)
    derived.settle(all=True)
    found = closes(derived)
    assert len(found) == 10
    assert {key for key, close in found.items() if close == 9.0} == {("BTCUSDT", 2)}


def test_rows_can_leave_for_good(derived: Derived) -> None:
    derived.put(bars(range(3)))
    derived.settle(all=True)
    derived.put(bars(range(0)), gone=derived.held(DAY, DAY))
    derived.settle(all=True)
    assert closes(derived) == {}


def test_small_things_wait_for_each_other(derived: Derived, tmp_path: Path) -> None:
    before = snapshot(str(tmp_path), BAR)
    derived.put(bars(range(3)))
    derived.settle()
    after = snapshot(str(tmp_path), BAR)
    assert before is not None
    assert after is not None
    assert after.version == before.version


def test_who_makes_the_same_series_at_the_same_time_is_refused(derived: Derived, tmp_path: Path) -> None:
    other = Derived(Lake(str(tmp_path)), BAR)
    for each in (other, derived):
        each.put(bars(range(3)))
        each.note("build/bars/BTCUSDT", 7)
    other.settle(all=True)
    with pytest.raises(CommitConflict):
        derived.settle(all=True)
    assert len(closes(Derived(Lake(str(tmp_path)), BAR))) == 3
    named = {file.path for file in _files(tmp_path)}
    on_disk = {str(path.relative_to(tmp_path / "bar")) for path in (tmp_path / "bar").rglob("date=*/*.parquet")}
    assert on_disk == named, "what the loser wrote is gone"


def test_the_same_keys_without_a_note_are_refused_too(derived: Derived, tmp_path: Path) -> None:
    other = Derived(Lake(str(tmp_path)), BAR)
    other.put(bars(range(3)))
    derived.put(bars(range(2, 5)))
    other.settle(all=True)
    with pytest.raises(CommitConflict):
        derived.settle(all=True)


def test_who_makes_something_else_is_not_in_the_way(derived: Derived, tmp_path: Path) -> None:
    other = Derived(Lake(str(tmp_path)), BAR)
    other.put(bars(range(3), symbol="ETHUSDT"))
    other.keep("state/ETHUSDT", b"e")
    derived.put(bars(range(3)))
    derived.keep("state/BTCUSDT", b"b")
    other.settle(all=True)
    derived.settle(all=True)
    again = Derived(Lake(str(tmp_path)), BAR)
    assert len(closes(again)) == 6
    assert (again.state("state/ETHUSDT"), again.state("state/BTCUSDT")) == (b"e", b"b")


def test_maintenance_between_looking_and_replacing_is_a_conflict_and_nothing_is_lost(
    derived: Derived, tmp_path: Path
) -> None:
    for minutes in (range(3), range(3, 6)):
        derived.put(bars(minutes))
        derived.settle(all=True)
    old = derived.held(DAY, DAY)
    derived.put(old.with_columns(pl.lit(9.0).alias("close")), gone=old)
    maintenance.sort_day(str(tmp_path), BAR, DAY)
    with pytest.raises(CommitConflict):
        derived.settle(all=True)
    assert sorted(set(closes(derived).values())) == [1.0]
    old = derived.held(DAY, DAY)
    derived.put(old.with_columns(pl.lit(9.0).alias("close")), gone=old)
    derived.settle(all=True)
    assert sorted(set(closes(derived).values())) == [9.0]
    assert len(closes(derived)) == 6


def test_only_the_newest_state_stays_and_a_full_vacuum_leaves_it(derived: Derived, tmp_path: Path) -> None:
    for text in (b"one", b"two"):
        derived.keep("state/BTCUSDT", text)
        derived.put(bars(range(1), start=NOON + timedelta(hours=len(text))) if text == b"one" else bars(range(0)))
        derived.settle(all=True)
    (kept,) = (tmp_path / "bar" / STATES).iterdir()
    os.utime(kept, (0, 0))
    later = datetime.now(UTC) + timedelta(days=30)
    maintenance.vacuum(str(tmp_path), BAR, retention_h=0, full=True, now=later)
    assert Derived(Lake(str(tmp_path)), BAR).state("state/BTCUSDT") == b"two"


# What changed since then


def test_a_snapshot_reads_only_what_was_there_when_it_was_taken(derived: Derived, tmp_path: Path) -> None:
    derived.put(pl.concat([bars(range(3)), bars(range(3), symbol="ETHUSDT")]))
    derived.settle(all=True)
    seen = snapshot(str(tmp_path), BAR)
    assert seen is not None
    derived.put(bars(range(3, 6)))
    derived.settle(all=True)
    assert seen.scan(DAY, DAY).collect().height == 6
    assert seen.scan(DAY, DAY, symbols=["ETHUSDT"]).collect().height == 3
    assert seen.scan(DAY + timedelta(days=1), DAY + timedelta(days=2)).collect().height == 0
    assert seen.days("BTCUSDT") == [DAY]
    assert list(seen.scan(DAY, DAY).collect_schema()) == list(BAR.schema)


def test_a_snapshot_skips_files_by_time(derived: Derived, tmp_path: Path) -> None:
    for minutes in (range(3), range(3, 6)):
        derived.put(bars(minutes))
        derived.settle(all=True)
    seen = snapshot(str(tmp_path), BAR)
    assert seen is not None
    since_us = int((NOON + timedelta(minutes=4)).timestamp()) * 1_000_000
    assert seen.scan(DAY, DAY, since_us=since_us).collect()["time"].dt.minute().sort().to_list() == [4, 5]
    assert seen.scan(DAY, DAY, until_us=since_us).collect()["time"].dt.minute().sort().to_list() == [0, 1, 2, 3]


def test_what_came_and_went_is_told_and_what_was_moved_is_not(derived: Derived, tmp_path: Path) -> None:
    for minutes in (range(3), range(3, 6)):
        derived.put(bars(minutes))
        derived.settle(all=True)
    before = _snapshot(tmp_path)
    assert touched(before, before.version) == []
    maintenance.sort_day(str(tmp_path), BAR, DAY)
    assert touched(_snapshot(tmp_path), before.version) == []
    derived = Derived(Lake(str(tmp_path)), BAR)
    derived.put(bars(range(1), symbol="ETHUSDT", start=NOON + timedelta(days=1)))
    derived.settle(all=True)
    (change,) = touched(_snapshot(tmp_path), before.version) or []
    assert change.day == DAY + timedelta(days=1)
    assert (change.low_symbol, change.high_symbol) == ("ETHUSDT", "ETHUSDT")
    assert change.low_us == int((NOON + timedelta(days=1)).timestamp()) * 1_000_000
    old = derived.held(DAY, DAY).head(1)
    derived.put(bars(range(0)), gone=old)
    derived.settle(all=True)
    assert DAY in {each.day for each in touched(_snapshot(tmp_path), before.version) or []}


def test_a_log_that_does_not_reach_back_says_so(derived: Derived, tmp_path: Path) -> None:
    for minute in range(3):
        derived.put(bars(range(minute, minute + 1)))
        derived.settle(all=True)
    now = _snapshot(tmp_path)
    (tmp_path / "bar" / "_delta_log" / f"{now.version % VERSIONS - 1:020}.json").unlink()
    assert touched(now, now.version - 2) is None
    assert touched(now, now.version + 5) is None
    assert len(touched(now, now.version - 1) or []) == 1


def _snapshot(root: Path) -> Any:
    found = snapshot(str(root), BAR)
    assert found is not None
    return found


def _files(root: Path) -> Any:
    return _snapshot(root).files


def test_a_table_made_anew_is_another_one_whatever_its_version(derived: Derived, tmp_path: Path) -> None:
    derived.put(bars(range(1)))
    derived.settle(all=True)
    old = _snapshot(tmp_path)
    shutil.rmtree(tmp_path / "bar")
    again = Derived(Lake(str(tmp_path)), BAR)
    for minute in range(3):
        assert touched(_snapshot(tmp_path), old.version) is None
        again.put(bars(range(minute, minute + 1)))
        again.settle(all=True)


def test_a_state_that_is_lost_is_none(derived: Derived, tmp_path: Path) -> None:
    derived.keep("state/BTCUSDT", b"one")
    derived.settle(all=True)
    (kept,) = (tmp_path / "bar" / STATES).iterdir()
    kept.write_bytes(b"")
    assert derived.state("state/BTCUSDT") is None
    kept.unlink()
    assert derived.state("state/BTCUSDT") is None


def test_a_state_that_somebody_else_has_replaced_is_a_conflict(derived: Derived, tmp_path: Path) -> None:
    derived.keep("state/BTCUSDT", b"one")
    derived.settle(all=True)
    other = Derived(Lake(str(tmp_path)), BAR)
    other.keep("state/BTCUSDT", b"two")
    other.settle(all=True)
    with pytest.raises(CommitConflict):
        derived.state("state/BTCUSDT")
