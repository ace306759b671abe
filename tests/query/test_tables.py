"""The summary counts what is there layer by layer, finds what was planted, and says how far each series goes."""

import json
import os
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from crypto_lake.cli import main
from crypto_lake.models import DATASETS
from crypto_lake.processors.shape import shape
from crypto_lake.query import layers, tables
from crypto_lake.query.source import find
from crypto_lake.query.tables import TABLES
from crypto_lake.query.watermarks import laggards, watermarks
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
    found = tables(str(tmp_path), now=MIDNIGHT + timedelta(hours=31))
    assert dict(found.schema) == TABLES
    summary = row(found, "agg_trade")
    assert summary.pop("bytes", 0)
    assert summary == {
        "dataset": "agg_trade",
        "layer": "bronze",
        "rows": 5,
        "symbols": 2,
        "first_time": MIDNIGHT + timedelta(hours=1),
        "last_time": MIDNIGHT + timedelta(hours=30),
        "files": 3,
        "duplicates": 0,
        "holes": 1,
        "age_s": 3600.0,
    }


def test_planted_duplicates_and_holes_are_found(tmp_path: Path) -> None:
    append(tmp_path, "agg_trade", agg_trades([1, 2, 3, 7, 9]), agg_trades([2, 9]), agg_trades([2, 3], "ETHUSDT"))
    summary = row(tables(str(tmp_path)), "agg_trade")
    assert (summary["duplicates"], summary["holes"]) == (4, 2)


def test_quick_reads_the_log_and_no_file(tmp_path: Path) -> None:
    append(tmp_path, "agg_trade", agg_trades([1, 1, 5]), agg_trades([3]))
    now = MIDNIGHT + timedelta(days=1)
    whole = row(tables(str(tmp_path), now=now), "agg_trade")
    for file in (tmp_path / "agg_trade").glob("date=*/*.parquet"):
        file.write_bytes(b"x" * file.stat().st_size)
    quick = row(tables(str(tmp_path), quick=True, now=now), "agg_trade")
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


# Layers


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Exit status of `crypto-lake` with these words, in an empty folder."""
    for name in [name for name in os.environ if name.startswith("LAKE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        return int(ended.value.code or 0)

    return call


def test_every_dataset_has_its_layer_and_files_that_are_no_table_have_theirs(lake: Any, tmp_path: Path) -> None:
    lake.trades([1])
    lake.bars([1])
    lake.gap((2, 3), (1, 4))
    state, journals = tmp_path / "var", tmp_path / "var" / "journal" / "delta-x"
    for path, size in ((state / "landing/a/b.zip", 10), (state / "quarantine/c.zip", 3), (journals / "d/1.journal", 5)):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" * size)
    found = layers(lake.root, state, journals, now=datetime.now(UTC))
    assert found.select("layer", "dataset").rows() == [
        ("landing", "archives"),
        ("landing", "quarantine"),
        ("landing", "journals"),
        ("bronze", "agg_trade"),
        ("bronze", "gap"),
        ("silver", "bar"),
        ("gold", "exports"),
    ]
    sizes = found.filter(pl.col("layer") == "landing").select("files", "bytes").rows()
    assert sizes == [(1, 10), (1, 3), (1, 5)]
    assert found.filter(pl.col("layer") == "landing")["age_s"].is_between(-1, 60).all()
    assert (found["files"][-1], found["first_time"][-1], found["age_s"][-1]) == (0, None, None)


def test_what_is_exported_beside_the_tables_is_gold(lake: Any, tmp_path: Path) -> None:
    lake.trades([1])
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "btc.csv").write_text("time\n")
    found = layers(lake.root, tmp_path / "var", tmp_path / "var", now=MIDNIGHT)
    assert row(found, "exports")["files"] == 1


def test_the_command_shows_the_layers(lake: Any, command: Any, capsys: Any) -> None:
    lake.trades([1])
    assert command("tables", "--root", lake.root) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("landing", "bronze", "gold", "agg_trade", "exports", "newest"))


def test_a_table_that_cannot_be_read_is_one_sentence(lake: Any, command: Any, capsys: Any) -> None:
    lake.trades([1])
    (lake.path / "agg_trade" / "_delta_log" / "00000000000000000001.json").write_text("{garbage")
    for words in (["tables"], ["tables", "agg_trade"]):
        assert command(*words, "--root", lake.root) == 1
        assert f"tables under {lake.root} cannot be read" in capsys.readouterr().err


# Watermarks


def marks(lake: Any, name: str, **asked: Any) -> Any:
    return watermarks(find(lake.root, DATASETS[name]), **asked)


def test_each_series_has_its_watermark(lake: Any) -> None:
    lake.bars([1, 2, 1500])
    lake.bars([0], timeframe="1d")
    lake.bars([3], origin="trades", symbol="ETHUSDT")
    lake.bars([4], venue="us-stocks", origin="flatfile", source="flatfile", symbol="NULL")
    found = marks(lake, "bar")
    assert found.since is None
    assert found.rows.drop("dataset").rows() == [
        ("binance", "BTCUSDT", "1d", "kline", MIDNIGHT),
        ("binance", "BTCUSDT", "1m", "kline", MIDNIGHT + timedelta(minutes=1500)),
        ("binance", "ETHUSDT", "1m", "trades", MIDNIGHT + timedelta(minutes=3)),
        ("us-stocks", "NULL", "1m", "flatfile", MIDNIGHT + timedelta(minutes=4)),
    ]


def test_files_of_several_series_on_one_day_are_told_apart(lake: Any) -> None:
    lake.put("bar", pl.concat([some_bars([1], "A"), some_bars([2], "B")]))
    lake.bars([3], symbol="A")
    found = marks(lake, "bar").rows.select("venue", "symbol", "origin").rows()
    assert found == [("binance", "A", "kline"), ("us-stocks", "A", "flatfile"), ("us-stocks", "B", "flatfile")]


def test_a_word_that_some_rows_lack_is_none_of_all(lake: Any) -> None:
    rows = {"venue": "v", "symbol": "*", "time": MIDNIGHT, "timeframe": ["1m", None], "date": MIDNIGHT.date()}
    schema = DATASETS["coverage"].schema
    lake.put("coverage", pl.DataFrame({name: rows.get(name) for name in schema}, schema=schema))
    assert marks(lake, "coverage").rows["timeframe"].to_list() == [None, "1m"]


def test_a_watermark_is_read_from_the_log_where_it_says_enough(lake: Any) -> None:
    lake.trades([1, 2, 1500])
    lake.trades([7], "ETHUSDT")
    for file in lake.path.glob("agg_trade/date=*/*.parquet"):
        file.write_bytes(b"x" * file.stat().st_size)
    assert marks(lake, "agg_trade").rows["watermark"].to_list() == [
        MIDNIGHT + timedelta(minutes=1500),
        MIDNIGHT + timedelta(minutes=7),
    ]


def test_old_days_are_not_read_when_the_new_ones_are_large_and_that_is_said(lake: Any) -> None:
    for day in range(4):
        lake.put("bar", pl.concat([some_bars([day * 1440, day * 1440 + 1], "B"), some_bars([day * 1440], f"A{day}")]))
    found = marks(lake, "bar", read_rows=5)
    assert found.rows["symbol"].to_list() == ["A2", "A3", "B"]
    assert found.since == date(2024, 1, 17)
    assert marks(lake, "bar").rows["symbol"].to_list() == ["A0", "A1", "A2", "A3", "B"]
    assert marks(lake, "bar", read_rows=0).since == date(2024, 1, 18)


def some_bars(minutes: list[int], symbol: str) -> pl.DataFrame:
    rows = {
        "venue": "us-stocks",
        "symbol": symbol,
        "time": [MIDNIGHT + timedelta(minutes=n) for n in minutes],
        "source": "flatfile",
        "timeframe": "1m",
        "origin": "flatfile",
        "complete": True,
        "revision": 0,
    }
    return shape(DATASETS["bar"], pl.DataFrame(rows))


def test_tables_without_symbols_have_watermarks_too(lake: Any) -> None:
    lake.ledger("data/x.zip")
    lake.gap((2, 3), (1, 4))
    assert marks(lake, "dump_file").rows.rows() == [("dump_file", None, None, None, None, MIDNIGHT)]
    assert marks(lake, "gap").rows["symbol"].to_list() == ["BTCUSDT"]


def test_a_session_over_midnight_leaves_nobody_behind() -> None:
    times = [MIDNIGHT - timedelta(hours=23, minutes=59), MIDNIGHT]
    group = pl.DataFrame({"venue": "us-stocks", "symbol": ["THIN", "AAPL"], "watermark": times})
    assert laggards(group).is_empty()


def test_who_ends_on_an_earlier_day_is_behind_but_no_expired_option() -> None:
    names = ["O:A240114C00001000", "O:A240116C00001000", "O:B240116P00001000"]
    group = pl.DataFrame(
        {"venue": "us-options", "symbol": names, "watermark": [MIDNIGHT - timedelta(days=1)] * 2 + [MIDNIGHT]}
    )
    assert laggards(group)["symbol"].to_list() == ["O:A240116C00001000"]


def test_many_symbols_are_summed_up_and_the_laggards_named(lake: Any, command: Any, capsys: Any) -> None:
    late = [some_bars([0], f"L{n:02}") for n in range(12)]
    lake.put("bar", pl.concat([*late, *(some_bars([1440], f"S{n:02}") for n in range(40))]))
    assert command("tables", "bar", "--root", lake.root) == 0
    shown = capsys.readouterr().out
    assert "52 symbols" in shown
    assert "bar us-stocks 1m flatfile: 12 of 52 symbols end a day or more earlier: L00 2024-01-15, L01" in shown
    assert "and 2 more" in shown
    assert command("tables", "--watermarks", "--json", "--root", lake.root) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["dataset"], found["looked_back_to"], len(found["series"])) == ("bar", None, 52)
    assert command("tables", "trade", "--root", lake.root) == 1
    assert "no table trade" in capsys.readouterr().err


def test_few_symbols_are_listed(lake: Any, command: Any, capsys: Any) -> None:
    lake.trades([1])
    lake.trades([2], "ETHUSDT")
    assert command("tables", "agg_trade", "--root", lake.root) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("ETHUSDT" in line and "2024-01-15 00:02:00" in line for line in lines)
