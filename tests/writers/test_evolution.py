"""A table that an earlier program made gets the columns that came since, while others go on writing into it."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable

from crypto_lake.config import ConfigError
from crypto_lake.models import DATASETS
from crypto_lake.models.dataset import Dataset
from crypto_lake.models.trade import TRADE
from crypto_lake.query import read
from crypto_lake.writers.delta import Lake
from crypto_lake.writers.maintenance import sort_day

DAY = date(2026, 1, 1)
SINCE = {"venue_trade_id", "sequence_number", "exchange", "conditions", "correction", "tape", "sip_timestamp"}
SINCE |= {"participant_timestamp", "trf_id", "trf_timestamp", "underlying", "expiry", "right", "strike"}
BEFORE = replace(TRADE, columns=tuple(each for each in TRADE.columns if each.name not in SINCE))


def row(trade_id: int, **more: Any) -> dict[str, Any]:
    return {
        "venue": "binance",
        "symbol": "BTCUSDT",
        "time": datetime(2026, 1, 1, tzinfo=UTC),
        "source": "live",
        "trade_id": trade_id,
        "price": 1.5,
        "quantity": 2.0,
        "is_buyer_maker": True,
        "date": DAY,
        **more,
    }


def append(lake: Lake, dataset: Dataset, trade_id: int, **more: Any) -> None:
    frame = pl.DataFrame([row(trade_id, **more)], schema=dataset.schema)
    lake.append(dataset, frame, "recorder", start=trade_id - 1, end=trade_id)


def test_an_existing_table_gets_new_columns_and_its_rows_are_null_there(tmp_path: Path) -> None:
    root = str(tmp_path / "tables")
    earlier, later = Lake(root), Lake(root)
    earlier.check(BEFORE)
    append(earlier, BEFORE, 1)
    later.check(TRADE)
    append(later, TRADE, 2, strike=12.5, expiry=date(2026, 6, 18), sip_timestamp=1_767_225_600_000_000_123)
    held = read("trade", root=root).collect().sort("trade_id")
    assert held.schema == pl.Schema(TRADE.schema)
    assert held["strike"].to_list() == [None, 12.5]
    assert held["sip_timestamp"].to_list() == [None, 1_767_225_600_000_000_123]
    assert later.position(TRADE, "recorder") == 2


def test_a_recorder_of_the_earlier_program_goes_on(tmp_path: Path) -> None:
    root = str(tmp_path / "tables")
    earlier = Lake(root)
    earlier.check(BEFORE)
    append(earlier, BEFORE, 1)
    Lake(root).check(TRADE)
    append(earlier, BEFORE, 2)
    sort_day(root, TRADE, DAY)
    held = read("trade", root=root).collect().sort("trade_id")
    assert held["trade_id"].to_list() == [1, 2]
    assert held["strike"].is_null().all()


def test_what_has_all_columns_is_not_touched(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "tables"))
    lake.check(TRADE)
    lake.check(TRADE)
    assert DeltaTable(lake.uri(TRADE)).version() == 0


def test_a_column_that_may_not_be_null_cannot_be_added(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "tables"))
    lake.check(replace(TRADE, columns=tuple(each for each in TRADE.columns if each.name != "price")))
    with pytest.raises(ConfigError, match="column price is missing"):
        lake.check(TRADE)


def test_of_many_who_begin_at_once_each_finds_the_table(tmp_path: Path) -> None:
    root = str(tmp_path / "tables")
    Lake(root).check(BEFORE)
    names = [dataset for dataset in DATASETS.values() if dataset is not TRADE][:4]
    with ThreadPoolExecutor(8) as many:
        for dataset in (*names, TRADE):
            list(many.map(lambda _, dataset=dataset: Lake(root).check(dataset), range(8)))
    assert set(pl.Schema(DeltaTable(f"{root}/trade").schema())) == set(TRADE.schema)
