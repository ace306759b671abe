"""What archives mean for times without delivery of datasets without ids."""

from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest

from crypto_lake.backfill.settle import settle
from crypto_lake.config import COIN_M
from crypto_lake.models import DATASETS
from crypto_lake.models.gap import FILLED, GAP, OPEN
from crypto_lake.processors.sequence import INTERVALS
from crypto_lake.writers.delta import Lake

DAY = date(2024, 1, 15)
NOON = datetime(2024, 1, 15, 12, tzinfo=UTC)


def dark(dataset: str) -> pl.DataFrame:
    """Ten minutes in which nobody delivered."""
    row = {
        "venue": COIN_M,
        "symbol": "BTCUSD_PERP",
        "dataset": dataset,
        "start_time": NOON,
        "end_time": NOON.replace(minute=10),
        "reason": "disconnect",
        "state": OPEN,
        "filled_rows": 0,
        "state_time": NOON,
        "date": DAY,
    }
    return pl.DataFrame([row], schema=GAP.schema)


@pytest.mark.parametrize(("dataset", "states"), [("liquidation", [FILLED]), ("mark_price", [])])
def test_a_file_with_every_row_fills_a_time_without_delivery_and_one_with_a_row_a_minute_does_not(
    tmp_path: Path, dataset: str, states: list[str]
) -> None:
    lake = Lake(str(tmp_path / "tables"))
    lake.check(GAP)
    lake.add(GAP, dark(dataset))
    told = settle(
        lake.root,
        DATASETS[dataset],
        pl.DataFrame(schema=INTERVALS),
        venue=COIN_M,
        days={"BTCUSD_PERP": {DAY}},
        is_taken=lambda _symbol, _day: True,
        now=NOON,
    )
    assert told["state"].to_list() == states
