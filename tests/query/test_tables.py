"""The summary counts what is there, and finds what was planted."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from crypto_lake.models import DATASETS
from crypto_lake.processors.shape import shape
from crypto_lake.query import tables
from crypto_lake.query.tables import TABLES
from crypto_lake.writers.delta import Lake
from crypto_lake.writers.files import Files

MIDNIGHT = datetime(2024, 1, 15, tzinfo=UTC)


def agg_trades(ids: list[int], symbol: str = "BTCUSDT") -> pl.DataFrame:
    return shape(
        DATASETS["agg_trade"],
        pl.DataFrame(
            {
                "venue": "binance-futures",
                "symbol": symbol,
                "time": [MIDNIGHT + timedelta(hours=n) for n in ids],
                "source": "live",
                "agg_trade_id": ids,
                "is_buyer_maker": True,
            }
        ),
    )


def append(root: Path, name: str, *frames: pl.DataFrame) -> None:
    lake = Lake(str(root))
    lake.check(DATASETS[name])
    for number, frame in enumerate(frames):
        lake.append(DATASETS[name], frame, "test", start=number, end=number + 1)


def row(summary: pl.DataFrame, name: str) -> dict[str, object]:
    return summary.row(by_predicate=pl.col("dataset") == name, named=True)


def test_a_table_is_summed_up(tmp_path: Path) -> None:
    append(tmp_path, "agg_trade", agg_trades([1, 2, 30]), agg_trades([7, 8], "ETHUSDT"))
    found = tables(str(tmp_path))
    assert dict(found.schema) == TABLES
    summary = row(found, "agg_trade")
    assert summary.pop("bytes", 0)
    assert summary == {
        "dataset": "agg_trade",
        "rows": 5,
        "symbols": 2,
        "first_time": MIDNIGHT + timedelta(hours=1),
        "last_time": MIDNIGHT + timedelta(hours=30),
        "files": 3,
        "duplicates": 0,
        "holes": 1,
    }


def test_planted_duplicates_and_holes_are_found(tmp_path: Path) -> None:
    append(tmp_path, "agg_trade", agg_trades([1, 2, 3, 7, 9]), agg_trades([2, 9]), agg_trades([2, 3], "ETHUSDT"))
    summary = row(tables(str(tmp_path)), "agg_trade")
    assert (summary["duplicates"], summary["holes"]) == (4, 2)


def test_quick_reads_the_log_and_no_file(tmp_path: Path) -> None:
    append(tmp_path, "agg_trade", agg_trades([1, 1, 5]), agg_trades([3]))
    whole = row(tables(str(tmp_path)), "agg_trade")
    for file in (tmp_path / "agg_trade").glob("date=*/*.parquet"):
        file.write_bytes(b"x" * file.stat().st_size)
    quick = row(tables(str(tmp_path), quick=True), "agg_trade")
    assert quick == whole | {"symbols": None, "duplicates": None, "holes": None}


def test_what_a_dataset_does_not_have_is_null(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    for name in ("rejected", "gap", "prices"):
        lake.check(DATASETS[name])
    found = tables(str(tmp_path))
    assert found.select("dataset", "rows", "symbols", "duplicates", "holes").sort("dataset").rows() == [
        ("gap", 0, 0, None, None),
        ("prices", 0, 0, 0, None),
        ("rejected", 0, None, None, None),
    ]


def test_an_empty_root_has_no_tables(tmp_path: Path) -> None:
    assert tables(str(tmp_path)).is_empty()
    assert tables(str(tmp_path / "nowhere")).is_empty()


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_the_files_of_a_sink_are_summed_up_too(tmp_path: Path, form: str) -> None:
    files = Files(str(tmp_path), "parquet" if form == "parquet" else "jsonl")
    files.check(DATASETS["agg_trade"])
    files.append(DATASETS["agg_trade"], agg_trades([1, 2, 30]), "test", start=0, end=1)
    summary = row(tables(str(tmp_path)), "agg_trade")
    assert (summary["rows"], summary["files"], summary["holes"]) == (3, 2, 1)
