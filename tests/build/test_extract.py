"""A table in files for other programs: the same rows, in order, in one file or in one for each day."""

from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from crypto_lake.build.extract import Part, extract
from crypto_lake.config import ConfigError
from crypto_lake.models import DATASETS
from crypto_lake.processors.shape import shape
from crypto_lake.query import days, read
from crypto_lake.writers import extract as writer
from crypto_lake.writers.delta import Lake

MIDNIGHT = datetime(2024, 1, 15, tzinfo=UTC)
READERS = {"parquet": pl.read_parquet, "csv": pl.read_csv, "jsonl": pl.read_ndjson}


def trades(ids: list[int], symbol: str, **columns: Any) -> pl.DataFrame:
    """A trade every six hours."""
    rows = {
        "venue": "binance-futures",
        "symbol": symbol,
        "time": [MIDNIGHT + number * timedelta(hours=6) for number in ids],
        "source": "dump",
        "agg_trade_id": ids,
        "price": [number + 0.1 for number in ids],
        "quantity": 1.0,
        "first_trade_id": ids,
        "last_trade_id": ids,
        "is_buyer_maker": True,
    }
    return shape(DATASETS["agg_trade"], pl.DataFrame(rows | columns))


def put(root: Path, name: str, *frames: pl.DataFrame) -> None:
    lake = Lake(str(root))
    lake.check(DATASETS[name])
    for number, frame in enumerate(frames):
        lake.append(DATASETS[name], frame, f"{root} {number}", start=0, end=1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three days, out of order."""
    lake = tmp_path / "tables"
    put(lake, "agg_trade", trades([9, 3, 1, 5], "ETHUSDT"), trades([8, 0, 2, 10, 1], "BTCUSDT"))
    return lake


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("at_once", [1, 2**30])
def test_a_file_has_all_rows_day_by_day(
    form: writer.Form, at_once: int, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "GATHER_BYTES", at_once)
    monkeypatch.setattr(days, "PIECE_ROWS", 1)
    steps: list[tuple[str, int, int]] = []
    out = tmp_path / f"rows.{form}"
    done = extract(str(root), "agg_trade", form, out, on_step=lambda *step: steps.append(step))
    assert (done.rows, done.files, done.days, done.left_out) == (9, 1, 3, [])
    found = READERS[form](out).select("date", "symbol", "agg_trade_id", "price")
    ids = {"BTCUSDT": [0, 1, 2, 8, 10], "ETHUSDT": [1, 3, 5, 9]}
    wanted = [(str((MIDNIGHT + id_ * timedelta(hours=6)).date()), symbol, id_, id_ + 0.1)
              for symbol in ids for id_ in ids[symbol]]  # fmt: skip
    rows = [(str(day), *rest) for day, *rest in found.rows()]
    assert [row[0] for row in rows] == sorted(row[0] for row in wanted)
    assert sorted(rows) == sorted(wanted)
    of_one = [(key, [row[2] for row in some]) for key, some in groupby(rows, lambda row: row[:2])]
    assert len(of_one) == len(dict(of_one)) == 5  # a symbol's rows of a day are not in two places
    assert all(some == sorted(some) for _, some in of_one)
    assert steps == [("agg_trade", done, 3) for done in (1, 2, 3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, "tables"]


def test_parquet_keeps_every_column_and_type(root: Path, tmp_path: Path) -> None:
    extract(str(root), "agg_trade", "parquet", tmp_path / "rows.parquet")
    by = ["symbol", "agg_trade_id"]
    assert (
        pl.read_parquet(tmp_path / "rows.parquet").sort(by).equals(read("agg_trade", root=str(root)).collect().sort(by))
    )


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_a_folder_has_a_file_for_each_day(form: writer.Form, root: Path, tmp_path: Path) -> None:
    done = extract(str(root), "agg_trade", form, tmp_path / "rows", Part(symbols=["ETHUSDT"], start="2024-01-16"))
    assert (done.rows, done.files) == (2, 2)
    found = {str(path.relative_to(tmp_path / "rows")): READERS[form](path)["agg_trade_id"].to_list()
             for path in (tmp_path / "rows").rglob("*.*")}  # fmt: skip
    assert found == {f"date=2024-01-16/agg_trade.{form}": [5], f"date=2024-01-17/agg_trade.{form}": [9]}


def test_a_part_has_the_rows_and_columns_that_were_named(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    part = Part(["BTCUSDT"], "binance-futures", "2024-01-15T06:00", "2024-01-16", ["price", "symbol"])
    extract(str(root), "agg_trade", "csv", out, part)
    assert out.read_text() == "price,symbol\n1.1,BTCUSDT\n2.1,BTCUSDT\n"


def test_a_symbol_may_be_of_one_venue(root: Path, tmp_path: Path) -> None:
    put(root, "agg_trade", trades([4], "BTCUSDT", venue="binance"), trades([7], "ETHUSDT", venue="binance"))
    part = Part(["binance:BTCUSDT", "ETHUSDT"], columns=["venue", "symbol", "agg_trade_id"])
    extract(str(root), "agg_trade", "parquet", tmp_path / "rows.parquet", part)
    futures = [("binance-futures", "ETHUSDT", number) for number in (1, 3, 5, 9)]
    wanted = sorted([("binance", "BTCUSDT", 4), ("binance", "ETHUSDT", 7), *futures])
    assert sorted(pl.read_parquet(tmp_path / "rows.parquet").rows()) == wanted


def test_nothing_is_a_file_with_columns_and_without_rows(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.parquet"
    done = extract(str(root), "agg_trade", "parquet", out, Part(venue="binance"))
    assert (done.rows, done.files) == (0, 1)
    assert pl.read_parquet(out).columns == list(DATASETS["agg_trade"].schema)


def test_csv_says_which_lists_it_left_out(tmp_path: Path) -> None:
    levels = [{"price": 1.0, "quantity": 2.0}]
    rows = {"venue": ["binance"], "symbol": "BTCUSDT", "time": MIDNIGHT, "source": "derived", "update_id": 1}
    frame = pl.DataFrame(rows).with_columns(bids=pl.lit(pl.Series([levels])), asks=pl.lit(pl.Series([levels])))
    put(tmp_path, "book_snapshot", shape(DATASETS["book_snapshot"], frame))
    done = extract(str(tmp_path), "book_snapshot", "csv", tmp_path / "rows.csv")
    assert done.left_out == ["bids", "asks"]
    assert pl.read_csv(tmp_path / "rows.csv")["update_id"].to_list() == [1]
    extract(str(tmp_path), "book_snapshot", "jsonl", tmp_path / "rows.jsonl")
    assert pl.read_ndjson(tmp_path / "rows.jsonl")["bids"].to_list() == [levels]


def test_tables_without_symbols_can_be_had_too(tmp_path: Path) -> None:
    rows = {"path": ["b", "a"], "size": [1, 2], "state": "ingested", "state_time": MIDNIGHT, "date": MIDNIGHT.date()}
    dataset = DATASETS["dump_file"]
    nothing = {name: pl.lit(None, dtype).alias(name) for name, dtype in dataset.schema.items() if name not in rows}
    frame = pl.DataFrame(rows).with_columns(*nothing.values()).select(
        pl.col(name).cast(dtype) for name, dtype in dataset.schema.items()
    )  # fmt: skip
    put(tmp_path, "dump_file", frame)
    extract(str(tmp_path), "dump_file", "csv", tmp_path / "rows.csv", Part(columns=["path", "size"]))
    assert (tmp_path / "rows.csv").read_text() == "path,size\na,2\nb,1\n"


@pytest.mark.parametrize(
    ("name", "out", "part", "words"),
    [
        ("agg_trades", "x.csv", Part(), "did you mean 'agg_trade'"),
        ("trade", "x.csv", Part(), "no table trade"),
        ("agg_trade", "x.parquet", Part(), r"name a file that ends in \.csv, or a folder"),
        ("agg_trade", "x.csv", Part(columns=["prize"]), "no column 'prize'; did you mean 'price'"),
        ("agg_trade", "no folder/x.csv", Part(), "cannot be written"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(
    name: str, out: str, part: Part, words: str, root: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        extract(str(root), name, "csv", tmp_path / out, part)


def test_a_file_has_its_name_only_when_it_is_whole(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    out.write_text("old")

    def stop(*_: object) -> None:
        assert out.read_text() == "old"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(str(root), "agg_trade", "csv", out, on_step=stop)
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.csv", "tables"]
