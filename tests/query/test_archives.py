"""The ledger of official archives: sums that are missing or wrong, months that end early, archives that changed."""

import hashlib
import io
import json
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from crypto_lake.cli import main
from crypto_lake.config import ConfigError
from crypto_lake.query import Report, coverage, tables, validate

LATER = datetime(2024, 2, 15, tzinfo=UTC)
MONTH = "data/futures/um/monthly/aggTrades/BTCUSDT/BTCUSDT-aggTrades-2024-01.zip"
DAY = "data/futures/um/daily/aggTrades/BTCUSDT/BTCUSDT-aggTrades-2024-01-15.zip"


def check(lake: Any, level: Any = "advanced", **asked: Any) -> Report:
    return validate(lake.root, level=level, now=LATER, **asked)


def found(report: Report) -> list[tuple[str, str]]:
    return report.findings.filter(pl.col("severity") != "info").select("check", "severity").rows()


@pytest.mark.parametrize("level", ["quick", "advanced", "integrity"])
def test_a_ledger_in_order_has_no_finding(lake: Any, tmp_path: Path, level: str) -> None:
    lake.trades(range(9))
    lake.ledger(MONTH)
    lake.ledger(DAY)
    assert check(lake, level, landing=tmp_path).counts.is_empty()


def test_the_ledger_is_no_market(lake: Any) -> None:
    lake.ledger(MONTH)
    with pytest.raises(ConfigError, match="dump_file has no days to cover"):
        coverage("dump_file", root=lake.root)
    with pytest.raises(ConfigError, match="no tables under"):
        coverage(root=lake.root)
    assert tables(lake.root).select("dataset", "rows", "symbols", "duplicates", "holes").rows() == [
        ("dump_file", 1, None, None, None)
    ]


def test_an_archive_without_a_sum_is_an_error(lake: Any) -> None:
    lake.ledger(MONTH, sha256=None)
    lake.ledger(DAY, sha256=None, state="quarantined")
    report = check(lake, "quick")
    (row,) = report.findings.to_dicts()
    assert (row["check"], row["severity"], row["dataset"]) == ("sha256_missing", "error", "agg_trade")
    assert (row["venue"], row["symbol"]) == ("binance-futures", "BTCUSDT")
    assert (row["first_time"], row["last_time"]) == (
        datetime(2024, 1, 1, tzinfo=UTC),
        datetime(2024, 1, 31, tzinfo=UTC),
    )
    lake.ledger(MONTH, at=1)
    assert found(check(lake, "quick")) == []


@pytest.mark.parametrize(
    ("first", "last", "is_whole"),
    [
        (datetime(2024, 1, 1, 23, 59, tzinfo=UTC), datetime(2024, 1, 31, 0, 0, tzinfo=UTC), True),
        (datetime(2024, 1, 2, 0, 0, tzinfo=UTC), datetime(2024, 1, 31, 9, 0, tzinfo=UTC), False),
        (datetime(2024, 1, 1, 0, 0, tzinfo=UTC), datetime(2024, 1, 30, 23, 59, tzinfo=UTC), False),
        (None, None, False),
    ],
)
def test_a_month_that_does_not_reach_from_its_first_to_its_last_day_is_told(
    lake: Any, first: datetime | None, last: datetime | None, *, is_whole: bool
) -> None:
    lake.ledger(MONTH, first_time=first, last_time=last)
    assert found(check(lake, "quick")) == []
    report = check(lake)
    assert found(report) == ([] if is_whole else [("incomplete_month", "warn")])
    assert report.errors == 0


def test_the_first_month_of_spot_is_told_and_stops_nothing(lake: Any) -> None:
    lake.trades([1, 3])
    lake.ledger(
        "data/spot/monthly/aggTrades/BTCUSDT/BTCUSDT-aggTrades-2017-08.zip",
        first_time=datetime(2017, 8, 17, 4, tzinfo=UTC),
        last_time=datetime(2017, 8, 31, 23, tzinfo=UTC),
    )
    report = check(lake, "integrity")
    assert sorted(found(report)) == [("incomplete_month", "warn"), ("unknown_hole", "error")]
    row = report.findings.row(by_predicate=pl.col("check") == "incomplete_month", named=True)
    assert (row["venue"], row["observed"], row["threshold"]) == ("binance", 15.0, 31.0)
    assert "reaches from 2017-08-17 04:00 to 2017-08-31 23:00 only" in row["detail"]


def test_a_day_is_no_month(lake: Any) -> None:
    lake.ledger(DAY, first_time=None, last_time=None)
    assert found(check(lake)) == []


def test_only_archives_of_what_is_asked_for_are_looked_at(lake: Any) -> None:
    lake.trades([1])
    lake.liquidations([1])
    lake.ledger(MONTH, sha256=None)
    lake.ledger("something/else.zip", sha256=None)
    for asked, count in (
        ({}, 2),
        ({"datasets": ["agg_trade"]}, 1),
        ({"datasets": ["liquidation"]}, 0),
        ({"datasets": ["dump_file"]}, 2),
        ({"symbols": ["ETHUSDT"]}, 1),
        ({"start": "2024-01-31", "datasets": ["agg_trade"]}, 1),
        ({"start": "2024-02-01", "datasets": ["agg_trade"]}, 0),
    ):
        report = check(lake, "quick", **asked)
        assert report.findings.filter(pl.col("check") == "sha256_missing").height == count, asked


# Archives that are kept


def kept(landing: Path, text: str, path: str = DAY, member: str = "") -> str:
    """Puts an archive where a backfill keeps it; its SHA-256."""
    place = landing / path
    place.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member or f"{place.stem}.csv", text)
    place.write_bytes(content.getvalue())
    return hashlib.sha256(content.getvalue()).hexdigest()


@pytest.mark.parametrize(
    "text", ["1,a\n2,b\n3,c\n", "1,a\n2,b\n3,c", "id,what\n1,a\n2,b\n3,c\n", "1,a\r\n2,b\r\n3,c\r\n"]
)
def test_an_archive_that_is_as_it_was_has_no_finding(lake: Any, tmp_path: Path, text: str) -> None:
    lake.ledger(DAY, sha256=kept(tmp_path, text), rows=3)
    assert found(check(lake, "integrity", landing=tmp_path)) == []


def test_an_archive_that_changed_is_an_error_for_who_looks_into_it(lake: Any, tmp_path: Path) -> None:
    kept(tmp_path, "1\n")
    lake.ledger(DAY)
    assert found(check(lake, "advanced", landing=tmp_path)) == []
    assert found(check(lake, "integrity")) == []
    assert found(check(lake, "integrity", landing=tmp_path)) == [("sha256_differs", "error")]


@pytest.mark.parametrize(("rows", "severity"), [(4, "error"), (2, "warn")])
def test_an_archive_with_other_rows_than_the_ledger_says_is_told(
    lake: Any, tmp_path: Path, rows: int, severity: str
) -> None:
    lake.ledger(DAY, sha256=kept(tmp_path, "id\n1\n2\n3\n"), rows=rows)
    report = check(lake, "integrity", landing=tmp_path)
    assert found(report) == [("archive_rows", severity)]
    assert report.findings["observed"].to_list() == [3.0]


def test_an_archive_without_its_table_cannot_be_read(lake: Any, tmp_path: Path) -> None:
    lake.ledger(DAY, sha256=kept(tmp_path, "1\n", member="fsx-data/other.csv"))
    assert found(check(lake, "integrity", landing=tmp_path)) == [("archive_unreadable", "error")]
    (tmp_path / DAY).write_bytes(b"no archive")
    lake.ledger(DAY, sha256=hashlib.sha256(b"no archive").hexdigest(), at=1)
    assert found(check(lake, "integrity", landing=tmp_path)) == [("archive_unreadable", "error")]


def test_a_ledger_that_cannot_be_read_does_not_stop_a_validation(lake: Any) -> None:
    lake.trades([1, 3])
    lake.ledger(DAY)
    next((lake.path / "dump_file").glob("date=*/*.parquet")).unlink()
    names = sorted(name for name, _ in found(check(lake, "integrity")))
    assert names == ["day_unreadable", "file_missing", "ledger_unreadable", "unknown_hole"]


def test_the_command_looks_for_archives_where_a_backfill_keeps_them(
    lake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAKE_STATE", str(tmp_path / "var"))
    monkeypatch.setenv("LAKE_ROOT", lake.root)
    monkeypatch.chdir(tmp_path)
    kept(tmp_path / "var" / "landing", "1\n")
    lake.ledger(DAY)
    with pytest.raises(SystemExit) as ended:
        main(["validate", "--integrity", "--json"])
    assert ended.value.code == 1
    assert [each["check"] for each in json.loads(capsys.readouterr().out)["findings"]] == ["sha256_differs"]
