"""Each check finds what was planted, and nothing in a table that is whole."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable
from deltalake.fs import DeltaStorageHandler
from pyarrow import fs

from crypto_lake.cli import main
from crypto_lake.config import ConfigError
from crypto_lake.models import DATASETS
from crypto_lake.query import Report, days, findings, gaps, holes, validate
from crypto_lake.query.runs import runs
from crypto_lake.writers import maintenance
from crypto_lake.writers.files import Files

FIRST = datetime(2024, 1, 15, tzinfo=UTC)
LATER = datetime(2024, 2, 15, tzinfo=UTC)
DAY = 1440
TWO_DAYS = range(2 * DAY)


def check(lake: Any, level: Any = "integrity", **asked: Any) -> Report:
    return validate(lake.root, level=level, **{"now": LATER, **asked})


def found(report: Report, severity: str = "error") -> list[str]:
    return report.findings.filter(pl.col("severity") == severity)["check"].to_list()


def ids_of(report: Report, name: str) -> list[tuple[int, int]]:
    return report.findings.filter(pl.col("check") == name).sort("first_id").select("first_id", "last_id").rows()


def files(lake: Any, name: str = "agg_trade") -> list[Path]:
    return sorted((lake.path / name).glob("date=*/*.parquet"))


def conditions(report: Report) -> dict[int, str]:
    rows = report.days.filter(pl.col("dataset") == "agg_trade").select("date", "condition").rows()
    return {day.day: condition for day, condition in rows}


@pytest.mark.parametrize("level", ["quick", "advanced", "integrity"])
def test_a_whole_table_has_no_finding(lake: Any, level: str) -> None:
    lake.trades(TWO_DAYS)
    lake.trades(range(5, 50), "ETHUSDT")
    lake.events([(n - 1, n, n) for n in range(1, 60)])
    lake.liquidations([1, 2, 2000])
    report = check(lake, level)
    assert report.counts.filter(pl.col("severity") != "info").is_empty()
    assert report.tables.sort("dataset").select("dataset", "rows", "errors").rows() == [
        ("agg_trade", 2 * DAY + 45, 0),
        ("depth", 59, 0),
        ("liquidation", 3, 0),
    ]


# Quick


def test_a_lost_a_cut_and_a_broken_file_are_found(lake: Any) -> None:
    for day in range(4):
        lake.trades(range(day * DAY, day * DAY + 9))
    lost, cut, broken, _ = files(lake)
    lost.unlink()
    os.truncate(cut, cut.stat().st_size - 1)
    broken.write_bytes(b"x" * broken.stat().st_size)
    report = check(lake, "quick")
    assert sorted(found(report)) == ["file_missing", "file_size", "file_unreadable"]
    assert str(lost.name) in report.findings["detail"].str.join(" ").item()


def test_a_file_with_other_rows_than_the_log_says_is_found(lake: Any) -> None:
    lake.trades(range(9))
    (path,) = files(lake)
    other = pl.read_parquet(path, hive_partitioning=False).head(5)
    (log,) = (lake.path / "agg_trade" / "_delta_log").glob("*1.json")
    other.write_parquet(path)
    size = path.stat().st_size
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        if "add" in line:
            line["add"]["size"] = size
    log.write_text("\n".join(map(json.dumps, lines)))
    assert found(check(lake, "quick")) == ["row_count"]


def test_rows_of_another_day_are_found_from_the_log_and_in_the_rows(lake: Any) -> None:
    lake.trades(range(3))
    rows = pl.read_delta(f"{lake.root}/agg_trade").with_columns(
        pl.col("time") + timedelta(days=1), pl.col("agg_trade_id") + 3
    )
    lake.put("agg_trade", rows)
    assert found(check(lake, "quick")) == ["wrong_day"]
    assert found(check(lake, "advanced")) == ["wrong_day", "wrong_date"]


def test_days_without_a_file_are_told_and_those_that_were_asked_for(lake: Any) -> None:
    lake.trades(range(9))
    lake.trades(range(3 * DAY, 3 * DAY + 9))
    missing = check(lake, "quick").findings.row(0, named=True)
    assert (missing["check"], missing["severity"], missing["observed"]) == ("missing_day", "warn", 2.0)
    assert (missing["first_time"], missing["last_time"]) == (FIRST + timedelta(days=1), FIRST + timedelta(days=3))
    report = check(lake, "quick", start="2024-01-13", end="2024-01-17")
    assert report.tables["missing_days"].to_list() == [4]
    assert check(lake, "quick", start="2024-01-15", end="2024-01-15").counts.is_empty()
    empty = check(lake, "quick", start="2024-01-16", end="2024-01-17")
    assert sorted(found(empty, "warn")) == ["empty_table", "missing_day"]


def test_a_table_with_other_columns_or_another_partition_is_found(lake: Any) -> None:
    lake.trades(range(9))
    rows = pl.read_delta(f"{lake.root}/agg_trade")
    changed = rows.drop("source").with_columns(pl.col("price").cast(pl.String), extra=1)
    changed.write_delta(f"{lake.root}/trade")
    report = check(lake, "quick", datasets=["trade"])
    said = report.findings.filter(pl.col("check") == "schema")["detail"].str.join(" ").item()
    for words in ("price is String, not Float64", "source is missing", "partitioned by []"):
        assert words in said
    assert report.findings.filter(pl.col("detail").str.contains("extra is not declared"))["severity"].item() == "info"


def test_a_log_that_does_not_open_is_a_finding_and_the_others_are_checked(lake: Any) -> None:
    lake.trades(range(9))
    lake.liquidations([1])
    (lake.path / "agg_trade" / "_delta_log" / "00000000000000000001.json").write_text("{garbage")
    report = check(lake, "quick")
    assert found(report) == ["table_unreadable"]
    assert report.tables.sort("dataset")["rows"].to_list() == [None, 1]


@pytest.mark.parametrize("name", ["gap", "rejected"])
def test_a_broken_record_of_ours_does_not_stop_a_validation(lake: Any, name: str) -> None:
    lake.trades(range(9))
    lake.gap((3, 3), (2, 4), state="filled")
    lake.put("rejected", pl.DataFrame(schema=DATASETS["rejected"].schema))
    (lake.path / name / "_delta_log" / "00000000000000000000.json").write_text("{garbage")
    assert found(check(lake)) == ["table_unreadable"]


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_the_files_of_a_sink_are_checked_too(lake: Any, form: Any) -> None:
    lake.trades([n for n in range(2 * DAY) if n != 7])
    rows = pl.read_delta(f"{lake.root}/agg_trade")
    sink = Files(str(lake.path.parent / "files"), form)
    sink.check(DATASETS["agg_trade"])
    sink.append(DATASETS["agg_trade"], rows, "test", start=0, end=1)
    report = validate(str(sink.root), level="integrity", now=LATER)
    assert found(report) == ["unknown_hole"]
    first, second = sorted(Path(sink.root).glob(f"agg_trade/date=*/*.{form}"))
    first.write_bytes(b"")
    assert "file_empty" in found(validate(str(sink.root), now=LATER)) or form == "parquet"
    os.truncate(second, 10)
    broken = validate(str(sink.root), level="advanced", now=LATER)
    assert "day_unreadable" in found(broken)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The root of an empty lake in an object store: a process, since the libraries wait for it with the GIL held."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = f"http://127.0.0.1:{port}"
    for name, value in {"ENDPOINT_URL": place, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret",
                        "REGION": "us-east-1", "ALLOW_HTTP": "true"}.items():  # fmt: skip
        monkeypatch.setenv(f"AWS_{name}", value)
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 60
        while not has_bucket(f"{place}/lake"):
            assert time.monotonic() < until, "the bucket did not come up"
            time.sleep(0.05)
        yield "s3://lake/tables"
    finally:
        server.terminate()
        server.wait(timeout=10)


def has_bucket(address: str) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="PUT"), timeout=10).close()
    except urllib.error.URLError:
        return False
    return True


def test_a_lake_in_an_object_store_is_checked_too(lake: Any, bucket: str) -> None:
    lake.root = bucket
    lake.trades([1, 2, 4])
    lake.trades([DAY + 5])
    assert ids_of(check(lake), "unknown_hole") == [(3, 3), (5, DAY + 4)]
    table = DeltaTable(f"{bucket}/agg_trade")
    store = fs.PyFileSystem(DeltaStorageHandler.from_table(table._table))
    store.delete_file(pl.DataFrame(table.get_add_actions(flatten=True))["path"][0])
    assert found(check(lake, "quick")) == ["file_missing"]
    with pytest.raises(ConfigError, match="no tables under s3://lake/elsewhere"):
        validate("s3://lake/elsewhere", now=LATER)


# Advanced


def test_a_day_is_described(lake: Any) -> None:
    lake.trades([1, 2, 10], price=[1.0, 2.0, 6.0], quantity=[1.0, 2.0, 3.0])
    day = check(lake, "advanced").days.row(0, named=True)
    assert day == {
        "dataset": "agg_trade",
        "venue": "binance-futures",
        "symbol": "BTCUSDT",
        "date": date(2024, 1, 15),
        "rows": 3,
        "nulls": 0,
        "wrong_date": 0,
        "duplicates": 0,
        "min_price": 1.0,
        "max_price": 6.0,
        "mean_price": 3.0,
        "volume": 6.0,
        "first_time": FIRST + timedelta(minutes=1),
        "last_time": FIRST + timedelta(minutes=10),
        "longest_pause_s": 480.0,
        "outliers": 0,
        "outlier_share": 0.0,
        "condition": None,
    }


def test_nulls_where_none_may_be_are_found(lake: Any) -> None:
    lake.trades(range(3), price=[1.0, None, 2.0], quantity_without_rpi=[None, None, 1.0])
    report = check(lake, "advanced")
    assert found(report) == ["null_column"]
    assert report.days["nulls"].to_list() == [1]
    lake.trades([], "ETHUSDT")
    lake.put("agg_trade", pl.read_delta(f"{lake.root}/agg_trade").with_columns(agg_trade_id=pl.lit(None, pl.Int64)))
    assert found(check(lake)).count("null_column") == 2


def test_a_key_that_is_there_twice_is_found_on_one_day_and_over_midnight(lake: Any) -> None:
    lake.trades([1, 2, 3, DAY, DAY + 1])
    assert found(check(lake, "advanced")) == []
    lake.trades([2])
    lake.trades([3], time=[FIRST + timedelta(days=1, minutes=5)])
    report = check(lake, "advanced")
    assert found(report) == ["duplicate_key", "duplicate_key"]
    assert ids_of(report, "duplicate_key") == [(2, 2), (3, 3)]
    assert report.days["duplicates"].to_list() == [2, 1]


def test_outliers_are_counted_from_advanced_on_and_told_with_integrity(lake: Any) -> None:
    prices = [100.0 + n % 2 / 100 for n in range(100)]
    lake.trades(range(100), price=[*prices[:60], 150.0, *prices[61:]])
    advanced, deep = check(lake, "advanced"), check(lake)
    assert advanced.days["outliers"].to_list() == deep.days["outliers"].to_list() == [1]
    assert advanced.days["outlier_share"].to_list() == [0.01]
    assert found(advanced, "warn") == []
    assert found(deep, "warn") == ["price_outlier"]


def test_a_day_unlike_the_one_before_is_noted(lake: Any) -> None:
    lake.trades([*range(100), *range(DAY, DAY + 10), *range(3 * DAY, 3 * DAY + 900)])
    report = check(lake, "advanced")
    assert report.findings.filter(pl.col("check") == "rows_jump")["observed"].to_list() == [0.1]


def test_pieces_of_a_large_symbol_say_what_the_whole_says(lake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lake.trades([n for n in range(1000) if n not in (499, 500, 501)])
    lake.trades([*range(DAY, DAY + 300), 17], "ETHUSDT")
    lake.trades([3, 700])
    whole = check(lake)
    monkeypatch.setattr(days, "PIECE_ROWS", 100)
    cut = check(lake)
    assert cut.days.equals(whole.days)
    assert cut.counts.filter(pl.col("check") == "unknown_hole").equals(
        whole.counts.filter(pl.col("check") == "unknown_hole")
    )
    assert ids_of(cut, "unknown_hole") == ids_of(whole, "unknown_hole")


# Integrity: rows


def test_rows_that_cannot_be_are_found(lake: Any) -> None:
    lake.trades(range(5), price=[1.0, -1.0, 1.0, 1.0, 1.0], quantity=[1.0, 1.0, 0.0, 1.0, 1.0])
    lake.trades([5], last_trade_id=[1])
    assert sorted(found(check(lake))) == ["bad_range", "price_nonpositive", "qty_nonpositive"]
    assert found(check(lake, "advanced")) == []


def test_trade_ids_missing_behind_a_known_hole_are_told_once(lake: Any) -> None:
    lake.trades([1, 2, 5, 6], venue="binance", first_trade_id=[1, 2, 5, 9], last_trade_id=[1, 2, 5, 9])
    report = check(lake)
    assert sorted(found(report)) == ["trade_id_gap", "unknown_hole"]
    assert ids_of(report, "unknown_hole") == [(3, 4)]
    assert report.findings.filter(pl.col("check") == "trade_id_gap")["last_id"].item() == 8
    lake.trades([7], venue="binance", first_trade_id=[12], last_trade_id=[12], time=[FIRST + timedelta(days=1)])
    assert found(check(lake)).count("trade_id_gap") == 2


def test_more_findings_than_a_person_reads_are_counted(lake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "KEPT", 3)
    lake.trades(range(0, 20, 2), price=[-1.0] * 10)
    report = check(lake)
    assert dict(report.counts.select("check", "found").iter_rows()) == {"price_nonpositive": 10, "unknown_hole": 9}
    assert report.findings.height == 6
    assert report.errors == 19


# Integrity: ids against gap


def test_a_hole_that_nobody_wrote_down_is_an_error(lake: Any) -> None:
    lake.trades([1, 2, 5, 6, DAY, DAY + 3])
    assert ids_of(check(lake), "unknown_hole") == [(3, 4), (7, DAY - 1), (DAY + 1, DAY + 2)]
    lake.gap((3, 4), (2, 5))
    lake.gap((7, 9), (6, DAY))
    lake.gap((DAY + 1, DAY + 2), (DAY, DAY + 3), state="filled")
    report = check(lake)
    assert ids_of(report, "unknown_hole") == [(10, DAY - 1), (DAY + 1, DAY + 2)]
    assert ids_of(report, "known_gap") == [(3, 4), (7, 9)]


def test_gaps_of_other_symbols_venues_and_datasets_explain_nothing(lake: Any) -> None:
    lake.trades([1, 3])
    for other in ({"symbol": "ETHUSDT"}, {"venue": "binance"}, {"dataset": "trade"}):
        lake.gap((2, 2), (1, 3), **other)
    assert found(check(lake)) == ["unknown_hole"]


@pytest.mark.parametrize("state", ["open", "unfillable"])
def test_a_gap_whose_rows_are_there_is_an_error(lake: Any, state: str) -> None:
    lake.trades([1, 2, 5, 6])
    lake.gap((2, 5), (1, 6), state=state)
    report = check(lake)
    assert found(report) == ["gap_not_real", "gap_not_real"]
    assert ids_of(report, "gap_not_real") == [(2, 2), (5, 5)]
    lake.gap((2, 2), (1, 3), state="filled", at=1)
    lake.gap((5, 5), (4, 6), state="filled", at=1)
    assert found(check(lake)) == []
    assert ids_of(check(lake), "known_gap") == [(3, 4)]


def test_what_a_recorder_does_meanwhile_is_no_finding(lake: Any) -> None:
    """Rows are of one moment, gaps of one before it and one behind it."""
    lake.trades([1, 3, 4])
    held = runs(DATASETS["agg_trade"], pl.read_delta(f"{lake.root}/agg_trade"))
    lake.gap((2, 2), (1, 3))
    opened = gaps(lake.root)
    lake.gap((2, 2), (1, 3), state="filled", at=1)
    filled = gaps(lake.root)
    lake.gap((4, 4), (3, 5), at=1)
    late = gaps(lake.root)
    for newest, before, unknown, lasting in (
        (filled, opened, 0, 0),
        (filled, filled, 1, 0),
        (opened, filled, 0, 0),
        (late, filled, 1, 0),
        (late, late, 1, 1),
    ):
        looked = holes.compare(DATASETS["agg_trade"], held, newest, before=before)
        assert (looked.unknown.height, looked.lasting.height) == (unknown, lasting)


def test_ids_that_two_writers_call_missing_are_one_hole(lake: Any) -> None:
    lake.trades([1, 10])
    lake.gap((2, 6), (1, 10))
    lake.gap((4, 9), (3, 10), at=1)
    report = check(lake)
    assert found(report) == []
    assert ids_of(report, "known_gap") == [(2, 3), (4, 9)]
    lake.trades([7, 8])
    lake.gap((7, 8), (6, 9), state="filled")
    report = check(lake)
    assert found(report) == []
    assert ids_of(report, "known_gap") == [(2, 3), (4, 6), (9, 9)]


@pytest.mark.parametrize(
    ("state", "reason", "severity"),
    [("open", "disconnect", "warn"), ("unfillable", "disconnect", "info"), ("unfillable", "venue", "info")],
)
def test_a_known_hole_is_told_by_how_bad_it_is(lake: Any, state: str, reason: str, severity: str) -> None:
    lake.trades([1, 4])
    lake.gap((2, 3), (1, 4), state=state, reason=reason)
    (row,) = check(lake).findings.to_dicts()
    assert (row["check"], row["severity"], row["observed"]) == ("known_gap", severity, 2.0)


def test_time_without_delivery_is_told_where_there_are_no_ids(lake: Any) -> None:
    lake.liquidations([1, 2])
    lake.gap(None, (3, 9), state="unfillable", dataset="liquidation", symbol="*")
    lake.gap(None, (20, 30), state="filled", dataset="liquidation")
    lake.gap(None, (40, None), dataset="liquidation")
    assert sorted(check(lake).findings["severity"]) == ["info", "warn"]


def test_a_row_that_came_a_day_late_leaves_no_hole(lake: Any) -> None:
    lake.trades([DAY - 3, DAY - 1, DAY, DAY + 1])
    assert found(check(lake)) == ["unknown_hole"]
    lake.trades([DAY - 2], time=[FIRST + timedelta(days=1, seconds=1)])
    assert found(check(lake)) == []


def test_the_chain_of_the_book_is_followed_over_midnight(lake: Any) -> None:
    lake.events([(1, 5, 9), (9, 12, 20), (20, 1500, 1510), (1510, 1511, 1520)])
    assert found(check(lake)) == []
    lake.events([(1530, 1531, 1540), (1512, 1513, 1515)])
    report = check(lake)
    assert ids_of(report, "unknown_hole") == [(1521, 1530)]
    lake.gap((1521, 1530), (1520, 1540), state="unfillable", dataset="depth")
    assert found(check(lake)) == []
    lake.events([(1530, 1531, 1545)])  # another connection cut the updates otherwise
    assert found(check(lake)) == []


def test_the_chain_of_spot_goes_by_first_and_last_id(lake: Any) -> None:
    spot = {"venue": "binance", "previous_update_id": pl.Series([None, None], dtype=pl.Int64)}
    lake.events([(0, 5, 9), (0, 10, 20)], **spot)
    assert found(check(lake)) == []
    lake.events([(0, 22, 30), (0, 31, 40)], **spot)
    assert ids_of(check(lake), "unknown_hole") == [(21, 21)]


def test_snapshots_are_no_links_of_the_chain(lake: Any) -> None:
    lake.events([(1, 5, 9), (9, 10, 20)])
    lake.events([(0, 0, 5000)], source="rest", previous_update_id=[None], first_update_id=[None])
    assert found(check(lake)) == []
    lake.events([(0, 0, 5001)], source="rest", asks=[[{"price": 0.5, "quantity": 1.0}]])
    assert found(check(lake)) == ["crossed"]


# Conditions


def test_the_condition_of_days(lake: Any) -> None:
    lake.trades([n for n in range(5 * DAY) if n not in (7, 8) and n // DAY != 3])
    lake.gap((3 * DAY, 4 * DAY - 1), (3 * DAY - 1, 4 * DAY), state="unfillable", reason="venue")
    assert conditions(check(lake)) == {15: "degraded", 16: "available", 17: "available", 18: "missing", 19: "available"}
    assert conditions(check(lake, now=FIRST + timedelta(days=4.9)))[19] == "pending"
    lake.gap((7, 8), (6, 9), reason="disconnect")
    assert conditions(check(lake))[15] == "degraded"
    lake.gap((7, 8), (6, 9), reason="venue", state="unfillable", at=1)
    assert conditions(check(lake))[15] == "available"


def test_a_day_is_pending_while_it_may_still_get_better(lake: Any) -> None:
    lake.trades([n for n in range(2 * DAY) if n != DAY + 7])
    lake.gap((DAY + 7, DAY + 7), (DAY + 6, DAY + 8))
    for hours, wanted in ((40, "pending"), (48 + 47, "pending"), (48 + 49, "degraded")):
        assert conditions(check(lake, now=FIRST + timedelta(hours=hours)))[16] == wanted
    assert conditions(check(lake, now=FIRST + timedelta(hours=30)))[15] == "available"


def test_rejected_messages_degrade_a_day_from_one_in_a_thousand_on(lake: Any) -> None:
    lake.trades(range(DAY))
    refused = pl.DataFrame(
        {"venue": "binance-futures", "dataset": "agg_trade", "reason": "x", "payload": "x", "received_time": FIRST,
         "date": FIRST.date()}
    ).select(pl.col(name).cast(dtype) for name, dtype in DATASETS["rejected"].schema.items())  # fmt: skip
    lake.put("rejected", refused)
    assert conditions(check(lake)) == {15: "available"}
    lake.put("rejected", refused)
    assert conditions(check(lake)) == {15: "degraded"}


# What is asked for


def test_only_what_was_asked_for_is_looked_at(lake: Any) -> None:
    lake.trades([1, 3, DAY, DAY + 2])
    lake.trades([5, 7], "ETHUSDT")
    assert ids_of(check(lake, symbols=["ETHUSDT"]), "unknown_hole") == [(6, 6)]
    assert ids_of(check(lake, start="2024-01-16"), "unknown_hole") == [(DAY + 1, DAY + 1)]
    assert ids_of(check(lake, symbols=["BTCUSDT"], end="2024-01-15"), "unknown_hole") == [(2, 2)]
    assert found(check(lake, datasets=["agg_trade"], level="advanced")) == []


def test_nothing_to_check_is_said(lake: Any) -> None:
    with pytest.raises(ConfigError, match="no tables under"):
        check(lake)
    lake.trades([1])
    with pytest.raises(ConfigError, match="no table depth under"):
        check(lake, datasets=["agg_trade", "depth"])
    with pytest.raises(ConfigError, match="did you mean 'agg_trade'"):
        check(lake, datasets=["agg_trad"])


def test_a_table_that_was_tidied_up_is_still_whole(lake: Any) -> None:
    for day in range(2):
        for part in range(4):
            lake.trades(range(day * DAY + part * 360, day * DAY + part * 360 + 360))
    assert maintenance.sort_day(lake.root, DATASETS["agg_trade"], FIRST.date()).changed
    assert maintenance.compact(lake.root, DATASETS["agg_trade"], FIRST.date() + timedelta(days=1)).changed
    assert check(lake).counts.is_empty()


# The state of holes


def test_the_newest_row_of_a_key_is_its_state_in_whatever_order_they_lie(lake: Any) -> None:
    lake.gap((5, 9), (4, 10), state="filled", at=9)
    lake.gap((5, 9), (4, 10))
    lake.gap((20, 24), (19, 30), at=1)
    lake.gap((20, 29), (19, 30), at=1)
    lake.gap((40, 44), (39, 45), state="filled", at=3)
    lake.gap((40, 44), (39, 45), state="unfillable", at=3)
    lake.gap((60, 61), (59, 62), state="unfillable", at=3)
    lake.gap((60, 61), (59, 62), state="filled", at=3)
    lake.gap((46, 47), (45, 48), state="open", at=5)
    lake.gap((46, 47), (45, 48), state="filled", at=4)
    lake.gap(None, (50, 60), at=2)
    lake.gap(None, (50, None), at=2)
    newest = gaps(lake.root, "agg_trade")
    assert newest.select("first_id", "last_id", "state").rows() == [
        (5, 9, "filled"),
        (20, 24, "open"),
        (40, 44, "filled"),
        (46, 47, "filled"),
        (None, None, "open"),
        (60, 61, "filled"),
    ]
    assert newest["end_time"].null_count() == 0
    assert gaps(lake.root, "depth").is_empty()
    assert gaps(lake.root, symbols=["ETHUSDT"]).is_empty()
    lake.gap(None, (70, 80), symbol="*")
    assert gaps(lake.root, symbols=["ETHUSDT"])["symbol"].to_list() == ["*"]
    assert gaps(lake.root + "/nowhere").is_empty()


# The command line


@pytest.fixture
def command(lake: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Exit status of `crypto-lake` with these words, in an empty folder."""
    for name in [name for name in os.environ if name.startswith("LAKE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        return int(ended.value.code or 0)

    return call


@pytest.mark.parametrize("level", ["--quick", "--advanced", "--integrity"])
def test_exit_status_0_without_an_error(lake: Any, command: Any, level: str) -> None:
    lake.trades(range(9))
    assert command("validate", level) == 0


def test_exit_status_1_with_an_error_that_the_level_sees(lake: Any, command: Any, capsys: Any) -> None:
    lake.trades([1, 3])
    assert [command("validate"), command("validate", "--quick"), command("validate", "--advanced")] == [0, 0, 0]
    assert command("validate", "--quick", "--integrity") == 1
    said = capsys.readouterr().out
    assert "error agg_trade binance-futures BTCUSDT unknown_hole: 1 ids are missing" in said
    assert "integrity: 1 table, 1 error, 0 warnings" in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "no tables under tables"),
        (("--root", "nowhere"), "no tables under nowhere"),
        (("--datasets", "dept"), "did you mean 'depth'?"),
        (("--report", "report.xlsx"), "the ending says what it becomes: .json, .md, .html"),
        (("--report", "nowhere/report.md"), "there is no folder nowhere"),
        (("--start", "2024-02-01", "--end", "2024-01-01"), "is after"),
    ],
)
def test_exit_status_2_when_it_could_not_run(command: Any, capsys: Any, words: Any, sentence: str) -> None:
    assert command("validate", *words) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.startswith("crypto-lake: ")
    assert said.count("\n") == 1


def test_the_report_for_programs(lake: Any, command: Any, capsys: Any) -> None:
    lake.trades([1, 3])
    assert command("validate", "--integrity", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["level"], report["errors"], report["warnings"]) == ("integrity", 1, 0)
    assert [finding["check"] for finding in report["findings"]] == ["unknown_hole"]
    assert report["days"][0]["condition"] == "degraded"
    assert report["tables"][0]["rows"] == 2


@pytest.mark.parametrize("ending", ["json", "md", "html"])
def test_the_report_as_a_file(lake: Any, command: Any, tmp_path: Path, ending: str) -> None:
    lake.trades([1, 3], "A|B<C")
    assert command("validate", "--integrity", "--report", f"report.{ending}") == 1
    text = (tmp_path / f"report.{ending}").read_text()
    assert "unknown_hole" in text
    assert "degraded" in text
    wanted = {"json": "A|B<C", "md": "A\\|B<C", "html": "A|B&lt;C"}[ending]
    assert wanted in text
