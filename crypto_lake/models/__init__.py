"""The registry: every dataset there is. A new one is one file beside this and one line here."""

from typing import Final

from crypto_lake.models.agg_trade import AGG_TRADE
from crypto_lake.models.book_ticker import BOOK_TICKER
from crypto_lake.models.dataset import Dataset
from crypto_lake.models.depth import DEPTH
from crypto_lake.models.gap import GAP
from crypto_lake.models.liquidation import LIQUIDATION
from crypto_lake.models.mark_price import MARK_PRICE
from crypto_lake.models.prices import PRICES
from crypto_lake.models.rejected import REJECTED
from crypto_lake.models.trade import TRADE

DATASETS: Final[dict[str, Dataset]] = {
    dataset.name: dataset
    for dataset in (LIQUIDATION, DEPTH, AGG_TRADE, PRICES, TRADE, BOOK_TICKER, MARK_PRICE, GAP, REJECTED)
}

__all__ = ["DATASETS", "Dataset"]
