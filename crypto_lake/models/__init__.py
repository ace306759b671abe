"""The registry: every dataset there is. A new one is one file beside this and one line here."""

from typing import Final

from crypto_lake.config import ConfigError, nearest
from crypto_lake.models.agg_trade import AGG_TRADE
from crypto_lake.models.bar import BAR
from crypto_lake.models.book_snapshot import BOOK_SNAPSHOT
from crypto_lake.models.book_ticker import BOOK_TICKER
from crypto_lake.models.coverage import COVERAGE
from crypto_lake.models.dataset import Dataset
from crypto_lake.models.depth import DEPTH
from crypto_lake.models.dump_file import DUMP_FILE
from crypto_lake.models.feature import FEATURE
from crypto_lake.models.funding_rate import FUNDING_RATE
from crypto_lake.models.gap import GAP
from crypto_lake.models.imbalance_bar import IMBALANCE_BAR
from crypto_lake.models.indicator import INDICATOR
from crypto_lake.models.liquidation import LIQUIDATION
from crypto_lake.models.mark_price import MARK_PRICE
from crypto_lake.models.open_interest import OPEN_INTEREST
from crypto_lake.models.prices import PRICES
from crypto_lake.models.quality import QUALITY
from crypto_lake.models.rejected import REJECTED
from crypto_lake.models.symbol import SYMBOL_TABLE
from crypto_lake.models.trade import TRADE

DATASETS: Final[dict[str, Dataset]] = {
    dataset.name: dataset
    for dataset in (
        *(LIQUIDATION, DEPTH, AGG_TRADE, PRICES, TRADE, BOOK_TICKER, MARK_PRICE),
        *(FUNDING_RATE, OPEN_INTEREST),
        *(BAR, BOOK_SNAPSHOT, IMBALANCE_BAR, INDICATOR, FEATURE),
        *(GAP, REJECTED, QUALITY, COVERAGE, DUMP_FILE, SYMBOL_TABLE),
    )
}


# What is written beside a dataset's own table, in the order in which it is committed.
SIDES: Final = (REJECTED, GAP, QUALITY)


def dataset_named(name: str) -> Dataset:
    """The dataset of that name. Raises `ConfigError` with the nearest one."""
    if name not in DATASETS:
        raise ConfigError(f"there is no dataset {name!r}{nearest(name, DATASETS)}")
    return DATASETS[name]


__all__ = ["DATASETS", "SIDES", "Dataset", "dataset_named"]
