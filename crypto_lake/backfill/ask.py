"""What users ask for, in their words: a market or a folder, a dataset, symbols and a span."""

from datetime import date

from crypto_lake.backfill.flat_plan import FlatWanted, began, symbol_asked
from crypto_lake.backfill.plan import Wanted
from crypto_lake.config import ConfigError, nearest
from crypto_lake.models import DATASETS, dataset_named
from crypto_lake.models.bucket import DAY, MARKETS
from crypto_lake.models.flatfile import flat_dataset
from crypto_lake.query.span import limits
from crypto_lake.query.symbols import active

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
    first, last = _days(start, end, today, FIRST_DAY, f"Binance began on {FIRST_DAY}")
    return Wanted(asked, venue, _symbols(symbols), interval, first, last)


def flat_wanted_of(folder: str, symbols: str, start: str, end: str | None, *, today: date) -> FlatWanted:
    """Flat files in the terms of their plan; `symbols` is empty for all. Raises `ConfigError` for what there is not."""
    venue = flat_dataset(folder).flat[folder].venue
    names = tuple(dict.fromkeys(symbol_asked(venue, name) for name in _names(symbols)))
    since = began(folder)
    first, last = _days(start, end, today, since, f"the files of {folder} begin in {since.year}")
    return FlatWanted(folder, names, first, last)


def symbols_to_collect(root: str, market: str) -> str:
    """The market's active symbols in the table `symbol`, separated by commas. Raises `ConfigError` if there is none."""
    names = active(root, _venue(market))
    if not names:
        raise ConfigError(
            f"--symbols: name symbols, or all; the table symbol of {root} has no active one of {_venue(market)} either"
        )
    return ",".join(names)


def _symbols(text: str) -> tuple[str, ...]:
    """The symbols of a list with commas, each once; none for all."""
    names = _names(text)
    for name in names:
        _check_symbol(name)
    return names


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if names == (EVERY,):
        return ()
    if not names:
        raise ConfigError("--symbols: name at least one symbol, or all")
    if EVERY in names:
        raise ConfigError(f"--symbols {text}: either all, or names")
    return names


def _check_symbol(name: str) -> None:
    if ":" in name:
        raise ConfigError(
            f"--symbols {name}: write {name.rpartition(':')[2]} alone; the venue is --market {', '.join(MARKETS)}"
        )
    if name != name.upper():
        raise ConfigError(f"--symbols {name}: symbols are written as the venue writes them: {name.upper()}")
    if any(not each.isprintable() or each.isspace() or each in "/\\?#%" for each in name) or not name.strip("."):
        raise ConfigError(f"--symbols {name!r}: that is no symbol; BTCUSDT is one, and BTCUSD_PERP on cm")


def _days(start: str, end: str | None, today: date, oldest: date, beginning: str) -> tuple[date, date]:
    """The first day and the last one; of what is yet to come nothing, and nothing of before the venue began."""
    first = limits("--start", start)[0]
    last = today - DAY if end is None else limits("--end", end)[1]
    if first > today:
        raise ConfigError(f"--start {start}: that is yet to come; today is {today} (UTC)")
    if first > last and end is None:
        raise ConfigError(f"--start {start}: the files of a day come on the next one; today is {today} (UTC)")
    if first > last:
        raise ConfigError(f"--start {start} is after --end {end}")
    if last < oldest:
        raise ConfigError(f"--end {end}: {beginning}")
    return max(first, oldest), min(last, today)


def _venue(market: str) -> str:
    if market not in MARKETS:
        raise ConfigError(f"there is no market {market!r}{nearest(market, MARKETS)}")
    return MARKETS[market]
