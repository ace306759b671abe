"""Lakes for tests of features: what was made up as rows of tables, committed as others commit them, and builds."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from crypto_lake.build.farm import farm
from crypto_lake.build.features import Wanted, build
from crypto_lake.build.flow import Built
from crypto_lake.models import DATASETS
from crypto_lake.models.bar import TIMEFRAMES_US
from crypto_lake.models.feature import FEATURE
from crypto_lake.processors.shape import shape
from crypto_lake.writers.delta import Lake
from crypto_lake.writers.derived import Derived
from tests.features.feature_market import Market, market

VENUE = "binance-futures"
SAID: dict[str, dict[str, Any]] = {
    "bar": {"timeframe": "1m", "complete": True, "revision": 0, "origin": "trades"},
    "liquidation": {
        "order_type": "LIMIT",
        "time_in_force": "IOC",
        "last_filled_quantity": 1.0,
        "status": "FILLED",
    },
}
FIELDS = ("books", "marks", "open_interest", "liquidations")
ROWS = 1200
TABLES = ("bar", "book_snapshot", "mark_price", "open_interest", "liquidation")


def rows_of(table: str, frame: pl.DataFrame, symbol: str, venue: str = VENUE, **said: Any) -> pl.DataFrame:
    """Rows of a table out of what was made up."""
    more = {"venue": venue, "symbol": symbol, "source": "dump", **SAID.get(table, {}), **said}
    frame = frame.with_columns(pl.lit(value).alias(name) for name, value in more.items() if name not in frame.columns)
    if table == "bar":
        length = timedelta(microseconds=TIMEFRAMES_US[more["timeframe"]] - 1)
        frame = frame.with_columns(close_time=pl.col("time") + length)
    return shape(DATASETS[table], frame)


def add(root: Path, table: str, rows: pl.DataFrame, gone: pl.DataFrame | None = None) -> None:
    """A commit of its own to a table."""
    derived = Derived(Lake(str(root)), DATASETS[table])
    derived.put(rows, gone)
    derived.settle(all=True)


def tables_of(made: Market, symbol: str = "BTCUSDT", venue: str = VENUE) -> dict[str, pl.DataFrame]:
    """A market as rows of tables, the reference's bars among them."""
    assert made.reference is not None
    bars = [
        rows_of("bar", each, name, venue, timeframe=made.timeframe)
        for each, name in ((made.bars, symbol), (made.reference, "ETHUSDT"))
    ]
    others = {table: getattr(made, field) for table, field in zip(TABLES[1:], FIELDS, strict=True)}
    return {"bar": pl.concat(bars)} | {table: rows_of(table, each, symbol, venue) for table, each in others.items()}


def run(root: Path, **wanted: Any) -> Built:
    with farm(None, 1) as (executor, at_once):
        return build(str(root), Wanted(**wanted), executor, at_once)


def table(root: Path, symbol: str = "BTCUSDT") -> pl.DataFrame:
    rows = Lake(str(root)).rows(FEATURE).filter(pl.col("symbol") == symbol)
    return rows.sort(*FEATURE.key)


def same(ours: pl.DataFrame, theirs: pl.DataFrame) -> None:
    """Bit by bit, and says which columns are not."""
    assert ours.height == theirs.height
    unlike = [name for name in ours.columns if not ours[name].equals(theirs[name], null_equal=True)]
    assert not unlike
    assert ours.select(FEATURE.key).is_unique().all()


@pytest.fixture(scope="module", name="made")
def made_up() -> Market:
    """Minutes around a midnight, with stretches without a trade and so without a bar."""
    return market(1, ROWS, idle=0.05)


@pytest.fixture(scope="module", name="tables")
def made_tables(made: Market) -> dict[str, pl.DataFrame]:
    """The same as rows of tables."""
    held = tables_of(made)
    traded = (pl.col("count") > 0) | (pl.col("symbol") == "ETHUSDT")
    return {**held, "bar": held["bar"].filter(traded)}


def whole(root: Path, tables: dict[str, pl.DataFrame], **wanted: Any) -> pl.DataFrame:
    """What one run over such tables makes."""
    for name, rows in tables.items():
        add(root, name, rows)
    run(root, **wanted)
    return table(root)


@pytest.fixture(scope="module", name="once")
def made_once(tables: dict[str, pl.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """What one run over the tables makes of BTCUSDT."""
    return whole(tmp_path_factory.mktemp("once"), tables, symbols="BTCUSDT")


@pytest.fixture(scope="module", name="short")
def short_tables(tables: dict[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    """The tables with records that end before the bars do."""
    late = tables["bar"]["time"].max() - timedelta(hours=2)  # type: ignore[operator]
    return {name: rows if name == "bar" else rows.filter(pl.col("time") < late) for name, rows in tables.items()}


@pytest.fixture(scope="module", name="once_short")
def made_short(short: dict[str, pl.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """What one run over these makes of BTCUSDT."""
    return whole(tmp_path_factory.mktemp("once"), short, symbols="BTCUSDT")
