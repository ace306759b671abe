"""A day is complete only when ids or a dump prove it; what is missing is counted, and shared out over midnight."""

import builtins
import json
import os
import random
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console

from crypto_lake import calendar
from crypto_lake.cli import main
from crypto_lake.config import ConfigError
from crypto_lake.models import DATASETS
from crypto_lake.models.coverage import COVERAGE
from crypto_lake.query import coverage, days, held, logged, read, tables
from crypto_lake.query.coverage import FACTS, held_runs
from crypto_lake.query.source import find
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


# Days whose dump is known


def facts(*numbers: int, venue: str = "binance-futures", symbol: str = "BTCUSDT", **columns: Any) -> pl.DataFrame:
    """What a comparison says of the days with these numbers, counted from the first one."""
    row = {"venue": venue, "symbol": symbol, "dump_sha256": "ab" * 32, "dump_rows": DAY, "dump_missing_rows": 0,
           "differing_rows": 0} | columns  # fmt: skip
    return pl.DataFrame([row | {"date": (FIRST + timedelta(days=n)).date()} for n in numbers], schema=FACTS)


def test_within_a_day_whose_dump_is_known_contiguous_ids_are_proof_enough(lake: Any) -> None:
    lake.trades(range(DAY))
    lake.trades(range(DAY + 7, 2 * DAY), "ETHUSDT")
    both = pl.concat([facts(0), facts(1, symbol="ETHUSDT", dump_rows=5)])
    found = look(lake, facts=both)
    assert dict(found.schema) == COVERAGE.schema
    assert column(found, "verdict") == ["complete", "complete"]
    assert column(found, "dump_rows") == [DAY, 5]
    assert column(look(lake), "verdict") == ["unverifiable", "unverifiable"]
    assert column(look(lake, facts=both, now=FIRST + timedelta(days=1.5)), "verdict") == ["complete", "unverifiable"]


def test_a_dump_does_not_make_a_day_with_a_hole_complete(lake: Any) -> None:
    lake.trades([n for n in range(2 * DAY) if n not in (5, DAY + 5)])
    assert column(look(lake, facts=facts(0, 1)), "verdict") == ["incomplete", "incomplete"]
    lake.gap((5, 5), (4, 6), state="unfillable", reason="venue")
    assert column(look(lake, facts=facts(0, 1)), "verdict") == ["complete", "incomplete"]
    lake.gap(None, (9, 12), symbol="*")
    assert column(look(lake, facts=facts(0, 1)), "verdict") == ["incomplete", "incomplete"]


def test_ids_that_are_missing_between_days_are_not_missing_from_those_whose_dump_is_known(lake: Any) -> None:
    lake.trades([*range(DAY), *range(3 * DAY, 4 * DAY)])
    assert column(look(lake), "verdict") == ["incomplete"] * 4
    found = look(lake, facts=facts(0, 3))
    assert column(found, "verdict") == ["complete", "incomplete", "incomplete", "complete"]
    assert column(found, "missing_rows") == [0, DAY, DAY, 0]
    assert look(lake, facts=facts(0, 0, 3)).equals(found)
    assert look(lake, facts=pl.concat([facts(0, 3), facts(0, symbol="ETHUSDT")]), symbols=["BTCUSDT"]).equals(found)
    assert column(look(lake, facts=facts(3)), "verdict") == ["incomplete"] * 3 + ["complete"]
    lake.trades(range(DAY + 7, 3 * DAY))
    lake.put("coverage", look(lake, facts=facts(0, 1)))
    assert column(look(lake, start="2024-01-16", end="2024-01-16"), "verdict") == ["incomplete"], "either may lack them"
    assert column(look(lake, facts=facts(0, 1, 2)), "verdict")[:3] == ["incomplete", "incomplete", "complete"]


def test_rows_that_differ_come_before_everything_else(lake: Any) -> None:
    lake.trades([n for n in FOUR_DAYS if n != 2 * DAY + 5])
    found = look(lake, facts=pl.concat([facts(0, 3), facts(1, 2, differing_rows=2)]))
    assert column(found, "verdict") == ["complete", "differs", "differs", "complete"]
    assert column(found, "differing_rows") == [0, 2, 2, 0]


def test_what_was_compared_once_is_known_from_then_on_and_a_new_comparison_counts_more(lake: Any) -> None:
    lake.trades(range(2 * DAY))
    lake.trades([5], "ETHUSDT")
    first = look(lake, facts=facts(0, 1, differing_rows=3))
    assert first.height == 3
    lake.put("coverage", first)
    assert column(look(lake, symbols=["BTCUSDT"]), "verdict") == ["differs", "differs"]
    again = look(lake, facts=facts(1, dump_sha256="cd"), now=LATER + timedelta(days=1))
    assert column(again, "verdict") == ["differs", "complete", "unverifiable"]
    lake.put("coverage", again)
    found = look(lake, symbols=["BTCUSDT"], now=LATER + timedelta(days=2))
    assert column(found, "verdict") == ["differs", "complete"]
    assert column(found, "dump_sha256") == ["ab" * 32, "cd"]
    lake.put("coverage", look(lake, now=LATER + timedelta(days=3)).with_columns(dump_sha256=pl.lit(None, pl.String)))
    assert column(look(lake, symbols=["BTCUSDT"]), "verdict") == ["differs", "complete"]
    assert column(look(lake, start="2024-01-16", end="2024-01-16"), "verdict") == ["complete"]


def test_a_day_whose_dump_is_empty_is_complete_without_a_row(lake: Any) -> None:
    lake.trades([1])
    lake.liquidations([1])
    for name in ("agg_trade", "liquidation"):
        found = look(lake, name, facts=pl.concat([facts(1, dump_rows=0), facts(2, dump_rows=9)]))
        assert column(found, "verdict") == ["unverifiable", "complete", "unverifiable"]
        assert column(found, "rows") == [1, 0, 0]


def test_without_ids_a_known_dump_is_the_proof(lake: Any) -> None:
    lake.liquidations([1, DAY + 1, 2 * DAY + 1])
    lake.gap(None, (DAY + 100, DAY + 110), state="unfillable", dataset="liquidation")
    compared = facts(1, 2)
    assert column(look(lake, "liquidation", facts=compared), "verdict") == ["unverifiable", "incomplete", "complete"]
    lake.gap(None, (DAY + 100, DAY + 110), state="filled", dataset="liquidation", at=1)
    found = look(lake, "liquidation", facts=compared)
    assert column(found, "verdict") == ["unverifiable", "complete", "complete"]
    assert column(found, "downtime_s") == [0.0, 600.0, 0.0]


def bar_verdicts(lake: Any, *numbers: int, **asked: Any) -> list[str]:
    return column(look(lake, "bar", facts=facts(*numbers, venue="binance"), **asked), "verdict")


def test_of_bars_every_timeframe_has_to_be_whole(lake: Any) -> None:
    lake.bars(range(3 * DAY))
    lake.bars(range(DAY, 3 * DAY, 60), timeframe="1h")
    assert bar_verdicts(lake, 0, 1) == ["complete", "complete", "unverifiable"]
    assert look(lake, "bar").height == 3, "all timeframes of a day are one row"
    assert column(look(lake, "bar"), "repaired_rows") == [0, 0, 0], "klines come by files only"
    lake.bars([3 * DAY + n for n in range(DAY) if n != 7])
    lake.bars(range(4 * DAY, 5 * DAY))
    lake.bars([4 * DAY + n for n in range(0, DAY, 60) if n != 120], timeframe="1h")
    assert bar_verdicts(lake, 0, 1, 2, 3, 4) == ["complete", "complete", "complete", "unverifiable", "unverifiable"]


def test_the_first_day_of_a_symbol_may_begin_late_and_no_other(lake: Any) -> None:
    lake.bars(range(DAY + 240, 3 * DAY))
    lake.bars(range(3 * DAY + 5, 4 * DAY))
    assert bar_verdicts(lake, 1, 2, 3) == ["complete", "complete", "unverifiable"]
    assert bar_verdicts(lake, 1, start="2024-01-16", end="2024-01-16") == ["complete"]
    lake.bars([3], symbol="ETHUSDT")
    assert bar_verdicts(lake, 1, start="2024-01-16", end="2024-01-16", symbols=["BTCUSDT"]) == ["complete"]
    lake.bars([-1])  # before the nearest day that has rows of anybody
    assert bar_verdicts(lake, 1, start="2024-01-16", end="2024-01-16") == ["unverifiable"]
    assert bar_verdicts(lake, 1, symbols=["BTCUSDT"])[2] == "unverifiable"


def test_bars_made_here_do_not_stand_in_for_klines(lake: Any) -> None:
    lake.bars(range(DAY), origin="trades")
    assert bar_verdicts(lake, 0) == ["unverifiable"]
    lake.bars(range(DAY - 1))
    assert bar_verdicts(lake, 0) == ["unverifiable"]
    lake.bars([DAY - 1])
    assert bar_verdicts(lake, 0) == ["complete"]


# The log


def unread(lake: Any, name: str = "agg_trade") -> list[Path]:
    """Every file of a table goes: only the log can answer now."""
    paths = sorted((lake.path / name).glob("date=*/*.parquet"))
    for path in paths:
        path.unlink()
    return paths


def test_days_whose_files_are_runs_of_one_symbol_are_answered_by_the_log(lake: Any) -> None:
    lake.trades(FOUR_DAYS)
    lake.trades([n + 7 for n in FOUR_DAYS], "ETHUSDT", source="dump")
    steps: list[str] = []
    before = look(lake, on_step=lambda *step: steps.append(step[0]))
    runs = held_runs(lake.root, DATASETS["agg_trade"])
    assert unread(lake)
    assert look(lake).equals(before)
    assert steps == []
    assert held_runs(lake.root, DATASETS["agg_trade"]).equals(runs)
    assert runs.select("symbol", "first_id", "last_id").rows() == [
        ("BTCUSDT", 0, 4 * DAY - 1), ("ETHUSDT", 7, 4 * DAY + 6),
    ]  # fmt: skip
    assert (
        look(lake, start="2024-01-16", end="2024-01-17", symbols=["ETHUSDT"])["verdict"].to_list() == ["complete"] * 2
    )


def test_only_files_that_may_hold_an_asked_symbol_have_to_be_clear(lake: Any) -> None:
    lake.trades(FOUR_DAYS, "BTCUSDT")
    both = pl.concat([read("agg_trade", root=lake.root).collect().head(5).with_columns(symbol=pl.lit(each))
                      for each in ("DOGEUSDT", "SOLUSDT")])  # fmt: skip
    lake.put("agg_trade", both)
    assert unread(lake)
    assert look(lake, symbols=["BTCUSDT", "XRPUSDT"]).height == 4
    for symbols in (["ETHUSDT"], ["SOLUSDT"], None):
        with pytest.raises(ConfigError, match="cannot be read"):
            look(lake, symbols=symbols)


@pytest.mark.parametrize(
    "rows",
    [
        {"agg_trade_id": [1, 2, 4]},
        {"agg_trade_id": [1, None, 3]},
        {"source": ["live", "live", "rest"]},
        {"venue": ["binance", "binance-futures", "binance"]},
        {"symbol": ["A", "A", "B"]},
    ],
)
def test_a_file_of_which_the_log_does_not_say_enough_is_read(lake: Any, rows: dict[str, Any]) -> None:
    lake.trades([1, 2, 3], **rows)
    source = find(lake.root, DATASETS["agg_trade"])
    assert source is not None
    assert logged.logged(source, [FIRST.date()], None).days == frozenset()
    assert logged.logged(source, [FIRST.date()], ["OTHER"]).days == frozenset([FIRST.date()])


@pytest.mark.parametrize("seed", range(5))
def test_the_log_says_what_the_rows_say(lake: Any, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    chance = random.Random(seed)
    for symbol in ("BTCUSDT", "ETHUSDT", "SOLUSDT"):
        at = 0
        while at < 4 * DAY:
            length = chance.randrange(1, DAY)
            ids = range(at, at + length)
            for part in (0, 1, 2, 3):
                own = [n for n in ids if n // DAY == part and not (chance.random() < 0.001 and seed % 2)]
                if own:
                    lake.trades(own, symbol, source=chance.choice(["live", "rest", "dump"]))
            at += length + chance.choice([0, 0, 1, 50])
    lake.liquidations([1, 2, DAY + 1])
    for asked in ({}, {"symbols": ["ETHUSDT"]}, {"start": "2024-01-16", "end": "2024-01-17"}):
        with monkeypatch.context() as patched:
            quick = [look(lake, name, **asked) for name in ("agg_trade", "liquidation")]
            patched.setattr(held, "logged", lambda *_: logged.NOTHING)
            slow = [look(lake, name, **asked) for name in ("agg_trade", "liquidation")]
        assert [a.equals(b) for a, b in zip(quick, slow, strict=True)] == [True, True]


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
    lake.trades([1, 3])
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


def test_the_calendar_has_a_letter_per_day_where_nobody_sees_colours(lake: Any, command: Any, capsys: Any) -> None:
    lake.trades([n for n in FOUR_DAYS if n != 2 * DAY + 9])
    lake.put("coverage", look(lake, facts=facts(0)))
    assert command("--dataset", "agg_trade") == 0
    said = capsys.readouterr().out
    assert said.isascii()
    assert "agg_trade binance-futures:BTCUSDT  2024-01-15 to 2024-01-18: 2 of 4 days complete, 1 certified" in said
    assert f"2024-01 {'.' * 14}CcIu{'.' * 13}  2 of 4" in said
    for total in ("C certified 1", "c complete 1", "I incomplete 1", "D differs 0", "u unverifiable 1"):
        assert total in said
    assert "4 days of 1 series: 2 complete, 1 unverifiable, 1 incomplete; 1 rows missing" in said
    assert "2024-01-17                agg_trade binance-futures:BTCUSDT  incomplete: 1 row missing" in said
    assert said.index("incomplete: 1 row") < said.index("unverifiable: not compared with a dump, and its ids")


def test_the_calendar_has_a_coloured_block_per_day_on_a_terminal(
    lake: Any, command: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake.trades([n for n in FOUR_DAYS if n != 2 * DAY + 9])
    lake.put("coverage", look(lake, facts=facts(0)))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert command("--dataset", "agg_trade") == 0
    said = capsys.readouterr().out
    colours = {"■": "\x1b[1;32m", "□": "\x1b[32m", "✗": "\x1b[1;31m", "·": "\x1b[90m"}
    cells = [f"{colour}{sign}\x1b[0m" for sign, colour in colours.items()]
    assert " ".join(cells) in said
    monkeypatch.setenv("NO_COLOR", "1")
    assert command("--dataset", "agg_trade") == 0
    assert "CcIu" in capsys.readouterr().out


def covered(*verdicts: tuple[date, int, str], **columns: Any) -> pl.DataFrame:
    """Coverage: so many days of a verdict from a day on."""
    rows = [
        {"venue": "binance", "symbol": "BTCUSDT", "dataset": "agg_trade", "date": first + timedelta(days=n),
         "verdict": verdict, "rows": 9, "missing_rows": 3 if verdict == "incomplete" else 0, "repaired_rows": 0,
         "downtime_s": 0.0, "checked_time": LATER} | columns
        for first, count, verdict in verdicts for n in range(count)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=COVERAGE.schema)


def printed(found: pl.DataFrame, look: calendar.Look = calendar.PLAIN) -> list[str]:
    return [line for text in calendar.calendar(found, look) for line in text.plain.split("\n")]


def test_of_years_a_line_is_a_year_and_a_cell_the_worst_day_of_a_week() -> None:
    found = covered(
        (date(2020, 1, 1), 8, "complete"), (date(2020, 1, 9), 1, "differs"), (date(2022, 2, 1), 2, "complete")
    )
    said = printed(found)
    assert f"2020    cD{'.' * 51}  8 of 9" in said
    assert f"2022    ....c{'.' * 48}  2 of 2" in said
    assert "        Jan Feb Mar Apr  May Jun Jul  Aug Sep  Oct Nov Dec" in said
    assert any("--start and --end for days" in line for line in said)


def test_a_calendar_fits_on_a_terminal_of_eighty_columns() -> None:
    found = covered((date(2024, 1, 1), 100, "complete"))
    console = Console(width=80, force_terminal=True)
    for text in list(calendar.calendar(found, calendar.COLOURED))[1:6]:
        assert console.measure(text).maximum <= 80


def test_bad_days_that_follow_each_other_are_one_line_and_many_lines_are_counted() -> None:
    bad = covered(
        (date(2024, 1, 1), 3, "incomplete"), (date(2024, 1, 4), 2, "complete"), (date(2024, 1, 6), 1, "incomplete")
    )
    said = printed(bad)
    assert "  2024-01-01 to 2024-01-03  agg_trade binance:BTCUSDT  incomplete: 9 rows missing" in said
    assert "  2024-01-06                agg_trade binance:BTCUSDT  incomplete: 3 rows missing" in said
    many = covered(*[(date(2023, 1, 1) + timedelta(days=2 * n), 1, "incomplete") for n in range(30)])
    assert any("... and 10 more" in line for line in printed(many))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"verdict": "differs", "differing_rows": 2, "dump_sha256": "ab"}, "differs: 2 rows not as in the dump"),
        ({"verdict": "incomplete", "missing_rows": None, "dataset": "depth"}, "updates of the book missing"),
        ({"verdict": "incomplete", "missing_rows": 0, "downtime_s": 3661.0}, "incomplete: 1:01:01 without delivery"),
        ({"verdict": "unverifiable", "checked_time": datetime(2024, 1, 1, 9, tzinfo=UTC)}, "the day is not over"),
        ({"verdict": "unverifiable", "dump_sha256": "ab", "dataset": "bar"}, "not all of its bars are here"),
        ({"verdict": "unverifiable", "dump_sha256": "ab"}, "not all of its dump is here"),
        ({"verdict": "unverifiable", "dataset": "prices"}, "no ids prove anything"),
    ],
)
def test_what_is_wrong_with_a_day_is_said_in_words(row: dict[str, Any], words: str) -> None:
    assert words in printed(covered((date(2024, 1, 1), 1, "complete"), **row))[-1]


def test_the_calendar_for_programs(lake: Any, command: Any, capsys: Any) -> None:
    lake.trades(FOUR_DAYS)
    assert command("--json", "--dataset", "agg_trade", "--start", "2024-01-16", "--end", "2024-01-16") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["date"], row["verdict"], row["rows"]) == ("2024-01-16", "complete", DAY)


@pytest.mark.parametrize("ending", ["png", "html"])
def test_the_calendar_as_a_picture(lake: Any, command: Any, tmp_path: Path, ending: str) -> None:
    lake.trades([n for n in FOUR_DAYS if n != 2 * DAY + 9])
    lake.put("coverage", look(lake, facts=facts(0)))
    assert command("--out", f"days.{ending}") == 0
    picture = (tmp_path / f"days.{ending}").read_bytes()
    if ending == "png":
        assert picture.startswith(b"\x89PNG")
    else:
        assert b"2024-01-17: incomplete, 1,439 rows, 1 missing" in picture
        assert b"2024-01-15: certified, 1,440 rows, 0 missing, 0 s without delivery, dump of 1,440 rows" in picture
        assert b"2024-01-16: complete, 1,440 rows" in picture


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
