"""What users ask for, in their words: a market, a dataset, symbols and a span."""

from datetime import date

from crypto_lake.backfill.plan import Wanted
from crypto_lake.config import ConfigError, nearest
from crypto_lake.models import DATASETS, dataset_named
from crypto_lake.models.bucket import DAY, MARKETS
from crypto_lake.query.span import span

# Binance's first market; nothing official is older.
FIRST_DAY = date(2017, 7, 14)
EVERY = "all"


def markets() -> list[str]:
    """The markets that have official files."""
    return list(MARKETS)


def datasets_of(market: str) -> list[str]:
    """The datasets that have official files on a market. Raises `ConfigError`."""
    venue = _venue(market)
    return [name for name, dataset in DATASETS.items() if dataset.dump and venue in dataset.dump.archives]


def wanted_of(
    market: str, dataset: str, symbols: str, start: str, end: str | None, timeframe: str, *, today: date
) -> Wanted:
    """The same in the terms of the plan; `symbols` is empty for all. Raises `ConfigError` for what there is not."""
    venue, asked = _venue(market), dataset_named(dataset)
    if asked.dump is None or venue not in asked.dump.archives:
        raise ConfigError(
            f"there are no official files of {dataset} on {market}{nearest(dataset, datasets_of(market))}"
        )
    intervals = asked.dump.archives[venue].intervals
    interval = "" if not intervals else timeframe if dataset == "bar" else intervals[0]
    if intervals and interval not in intervals:
        raise ConfigError(f"there are no files of {timeframe} bars on {market}{nearest(timeframe, intervals)}")
    names = tuple(dict.fromkeys(part.strip() for part in symbols.split(",") if part.strip()))
    if not names:
        raise ConfigError("--symbols: name at least one symbol, or all")
    since, until = span(start, end or (today - DAY).isoformat())
    assert since is not None
    assert until is not None
    first, last = max(since.date(), FIRST_DAY), min((until - DAY).date(), today)
    if first > last:
        raise ConfigError(f"--start {start}: there is nothing from then to {last}")
    return Wanted(asked, venue, () if names == (EVERY,) else names, interval, first, last)


def _venue(market: str) -> str:
    if market not in MARKETS:
        raise ConfigError(f"there is no market {market!r}{nearest(market, MARKETS)}")
    return MARKETS[market]
