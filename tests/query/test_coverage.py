"""A day is complete only when its ids prove it; what is missing is counted, and shared out over midnight."""

import builtins
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from crypto_lake.cli import main
from crypto_lake.config import ConfigError
from crypto_lake.models.coverage import COVERAGE
from crypto_lake.query import coverage, days, read, tables
from crypto_lake.writers import maintenance

FIRST = datetime(2024, 1, 15, tzinfo=UTC)
LATER = datetime(2024, 2, 15, tzinfo=UTC)
DAY = 1440
FOUR_DAYS = range(4 * DAY)


def look(lake: Any, dataset: str | None = "agg_trade", **asked: Any) -> pl.DataFrame:
    return coverage(dataset, root=lake.root, **{"now": LATER, **asked})


def column(found: pl.DataFrame, name: str) -> list[Any]:
    return found.sort("venue", "symbol", "date")[name].to_list()


def test_a_day_is_complete_when_its_ids_go_on_on_both_sides(lake: Any) -> None:
    lake.trades(FOUR_DAYS)
    found = look(lake)
    assert dict(found.schema) == COVERAGE.schema
    assert column(found, "verdict") == ["unverifiable", "complete", "complete", "unverifiable"]
    assert column(found, "missing_rows") == [0, 0, 0, 0]
    second = found.row(1, named=True)
    assert (second["first_id"], second["last_id"], second["rows"]) == (DAY, 2 * DAY - 1, DAY)
    assert second["time"] == FIRST + timedelta(days=1)
    assert second["checked_time"] == LATER


def test_a_hole_spoils_its_day_written_down_or_not(lake: Any) -> None:
    lake.trades([n for n in FOUR_DAYS if n not in (DAY + 5, DAY + 6, 2 * DAY + 9)])
    lake.gap((DAY + 5, DAY + 6), (DAY + 4, DAY + 7))
    found = look(lake)
    assert column(found, "verdict") == ["unverifiable", "incomplete", "incomplete", "unverifiable"]
    assert column(found, "missing_rows") == [0, 2, 1, 0]


@pytest.mark.parametrize(
    ("state", "reason", "verdict", "missing"),
    [
        ("open", "disconnect", "incomplete", 1),
        ("unfillable", "restart", "incomplete", 1),
        ("unfillable", "venue", "complete", 0),
    ],
)
def test_ids_that_the_venue_does_not_have_are_not_missing(
    lake: Any, state: str, reason: str, verdict: str, missing: int
) -> None:
    lake.trades([n for n in FOUR_DAYS if n != DAY + 5])
    lake.gap((DAY + 5, DAY + 5), (DAY + 4, DAY + 6), state=state, reason=reason)
    found = look(lake)
    assert (column(found, "verdict")[1], column(found, "missing_rows")[1]) == (verdict, missing)


def test_a_gap_that_was_filled_is_history_and_its_rows_are_counted_as_repaired(lake: Any) -> None:
    lake.trades([n for n in FOUR_DAYS if n != DAY + 5])
    lake.gap((DAY + 5, DAY + 5), (DAY + 4, DAY + 6))
    assert column(look(lake), "verdict")[1] == "incomplete"
    lake.trades([DAY + 5], source="rest")
    lake.gap((DAY + 5, DAY + 5), (DAY + 4, DAY + 6), state="filled", at=1)
    found = look(lake)
    assert column(found, "verdict")[1] == "complete"
    assert column(found, "repaired_rows") == [0, 1, 0, 0]


def test_a_hole_over_midnight_is_shared_out_by_time_and_spoils_both_days(lake: Any) -> None:
    lake.trades([*range(DAY - 99), *range(DAY + 300, 2 * DAY)])
    lake.gap((DAY - 99, DAY + 299), (DAY - 100, DAY + 300))
    found = look(lake)
    assert column(found, "missing_rows") == [100, 299]
    assert column(found, "verdict") == ["incomplete", "incomplete"]


def test_a_day_without_any_row_has_all_its_ids_missing(lake: Any) -> None:
    lake.trades([n for n in FOUR_DAYS if n // DAY != 1])
    found = look(lake)
    assert column(found, "rows") == [DAY, 0, DAY, DAY]
    assert sum(column(found, "missing_rows")) == DAY
    assert column(found, "verdict")[:3] == ["incomplete"] * 3


def test_a_day_on_which_nobody_traded_is_complete_when_the_ids_go_on(lake: Any) -> None:
    lake.trades([1, 2], time=[FIRST, FIRST + timedelta(hours=1)])
    lake.trades([3], time=[FIRST + timedelta(days=2)])
    found = look(lake)
    assert column(found, "rows") == [2, 0, 1]
    assert column(found, "verdict") == ["unverifiable", "complete", "unverifiable"]


def test_a_day_that_is_not_over_proves_nothing(lake: Any) -> None:
    lake.trades(FOUR_DAYS)
    now = FIRST + timedelta(days=2) - timedelta(seconds=1)
    assert column(look(lake, now=now), "verdict") == ["unverifiable", "unverifiable"]
    assert column(look(lake, now=now + timedelta(seconds=1)), "verdict")[1] == "complete"


def test_downtime_is_the_union_of_the_times_without_delivery(lake: Any) -> None:
    lake.trades(FOUR_DAYS)
    lake.gap(None, (10, 20), state="filled")
    lake.gap(None, (15, 30), state="filled")
    lake.gap(None, (DAY - 60, DAY + 30), state="filled", symbol="*")
    lake.gap(None, (DAY, DAY + 40), state="filled", symbol="*", venue="binance")
    found = look(lake)
    assert column(found, "downtime_s") == [(20 + 60) * 60.0, 30 * 60.0, 0.0, 0.0]
    assert column(found, "verdict")[1] == "complete"


def test_a_time_without_delivery_that_lasts_reaches_up_to_now(lake: Any) -> None:
    lake.trades(range(2 * DAY))
    lake.gap(None, (2 * DAY - 1, None))
    now = FIRST + timedelta(days=3, hours=1)
    found = look(lake, now=now)
    assert column(found, "downtime_s") == [0.0, 60.0, 86400.0, 3600.0]
    assert column(found, "verdict") == ["unverifiable", "incomplete", "incomplete", "incomplete"]


def test_without_ids_a_day_is_incomplete_or_nobody_can_tell(lake: Any) -> None:
    lake.liquidations([1, DAY + 1, 2 * DAY + 1])
    lake.gap(None, (DAY + 100, DAY + 110), state="unfillable", dataset="liquidation")
    found = look(lake, "liquidation")
    assert column(found, "verdict") == ["unverifiable", "incomplete", "unverifiable"]
    assert column(found, "downtime_s") == [0.0, 600.0, 0.0]
    assert column(found, "missing_rows") == [None, None, None]
    assert column(found, "first_id") == [None, None, None]


def test_the_book_is_covered_by_its_chain(lake: Any) -> None:
    lake.events([(0, 5, 100), (100, 101, 1500), (1500, 1600, 2000), (2000, 2001, 2900)])
    lake.events([(0, 0, 1700)], source="rest", previous_update_id=[None], first_update_id=[None])
    found = look(lake, "depth")
    assert column(found, "verdict") == ["unverifiable", "complete", "unverifiable"]
    assert column(found, "rows") == [1, 3, 1]
    assert column(found, "repaired_rows") == [0, 0, 0]
    assert column(found, "missing_rows") == [0, 0, 0]
    lake.events([(2950, 2960, 3000)])
    found = look(lake, "depth")
    assert column(found, "verdict")[2] == "incomplete"
    assert column(found, "missing_rows") == [0, 0, None]


def test_the_days_asked_for_are_joined_to_those_around_them(lake: Any) -> None:
    lake.trades(FOUR_DAYS)
    lake.trades([5], "ETHUSDT")
    found = look(lake, start="2024-01-16", end="2024-01-17", symbols=["BTCUSDT"])
    assert column(found, "verdict") == ["complete", "complete"]
    assert look(lake, None).height == 5


def test_large_symbols_are_looked_at_in_pieces(lake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lake.trades([n for n in FOUR_DAYS if n not in (2 * DAY + 9, DAY - 1)])
    lake.trades([3, 4], "ETHUSDT", source="rest")
    whole = look(lake)
    monkeypatch.setattr(days, "PIECE_ROWS", 100)
    assert look(lake).equals(whole)


def test_the_result_is_a_table_like_any_other(lake: Any) -> None:
    lake.trades(FOUR_DAYS)
    lake.put("coverage", look(lake), look(lake, now=LATER + timedelta(days=1)))
    rows = read("coverage", start="2024-01-16", end="2024-01-17", verdict="complete", root=lake.root).collect()
    assert rows["date"].unique().sort().dt.day().to_list() == [16, 17]
    assert rows.height == 4
    summed = tables(lake.root).row(by_predicate=pl.col("dataset") == "coverage", named=True)
    assert (summed["rows"], summed["first_time"]) == (8, FIRST)
    assert tables(lake.root, quick=True).filter(pl.col("dataset") == "coverage")["rows"].item() == 8
    done = maintenance.maintain(lake.root, [COVERAGE], datetime.now(UTC), retention_h=168)
    assert [step.error for step in done if step.error] == []
    assert read("coverage", root=lake.root).collect().height == 8


def test_what_cannot_be_covered_is_said(lake: Any) -> None:
    with pytest.raises(ConfigError, match="no tables under"):
        look(lake, None)
    with pytest.raises(ConfigError, match="no table agg_trade under"):
        look(lake)
    with pytest.raises(ConfigError, match="gap has no days to cover"):
        look(lake, "gap")
    lake.trades([1])
    next((lake.path / "agg_trade").glob("date=*/*.parquet")).unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        look(lake)


# The command line


@pytest.fixture
def command(lake: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Exit status of `crypto-lake coverage` with these words, in an empty folder."""
    for name in [name for name in os.environ if name.startswith("LAKE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["coverage", *words])
        return int(ended.value.code or 0)

    return call


def test_the_calendar_has_a_cell_per_day(lake: Any, command: Any, capsys: Any) -> None:
    lake.trades([n for n in FOUR_DAYS if n != 2 * DAY + 9])
    assert command() == 0
    said = capsys.readouterr().out
    assert "agg_trade binance-futures:BTCUSDT   ·■✗·" in said
    assert "4 days of 1 series: 1 complete, 1 incomplete, 2 unverifiable; 1 rows missing" in said


def test_the_calendar_for_programs(lake: Any, command: Any, capsys: Any) -> None:
    lake.trades(FOUR_DAYS)
    assert command("--json", "--dataset", "agg_trade", "--start", "2024-01-16", "--end", "2024-01-16") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["date"], row["verdict"], row["rows"]) == ("2024-01-16", "complete", DAY)


@pytest.mark.parametrize("ending", ["png", "html"])
def test_the_calendar_as_a_picture(lake: Any, command: Any, tmp_path: Path, ending: str) -> None:
    lake.trades([n for n in FOUR_DAYS if n != 2 * DAY + 9])
    assert command("--out", f"days.{ending}") == 0
    picture = (tmp_path / f"days.{ending}").read_bytes()
    if ending == "png":
        assert picture.startswith(b"\x89PNG")
    else:
        assert b"2024-01-17: incomplete, 1,439 rows, 1 missing" in picture


def test_a_picture_without_matplotlib_is_one_sentence(
    lake: Any, command: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **more)

    lake.trades([1])
    monkeypatch.setattr(builtins, "__import__", without)
    assert command("--out", "days.png") == 1
    assert "a picture needs matplotlib: pip install 'crypto-lake[plot]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "no tables under tables"),
        (("--dataset", "dept"), "did you mean 'depth'?"),
        (("--out", "days.gif"), "the ending says what it becomes: .png, .html"),
    ],
)
def test_a_mistake_is_one_sentence(command: Any, capsys: Any, words: Any, sentence: str) -> None:
    assert command(*words) == 1
    assert sentence in capsys.readouterr().err
