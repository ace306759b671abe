"""What is to be collected: LAKE_SYMBOLS and the table `symbol`, and LAKE_DATASETS, against what the venues list."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import msgspec
import structlog
from msgspec import Struct, field

from crypto_lake.config import ALL_SYMBOLS, FUTURES, SPOT, ConfigError, nearest
from crypto_lake.connections import SourceError
from crypto_lake.connections.rest import Rest
from crypto_lake.models import DATASETS, Dataset
from crypto_lake.models.bar import BAR
from crypto_lake.models.dataset import Request
from crypto_lake.models.symbol import Named

log = structlog.get_logger()

EXCHANGE_INFO: Final = {FUTURES: Request("/fapi/v1/exchangeInfo", 1), SPOT: Request("/api/v3/exchangeInfo", 20)}
# Their symbols are whatever Yahoo writes; there is no list of them.
UNLISTED: Final = BAR.charts.venues if BAR.charts else ()
PERPETUAL: Final = ("PERPETUAL", "TRADIFI_PERPETUAL")


@dataclass(frozen=True, slots=True)
class Wanted:
    """The symbols of a venue that were named; `every` when it is all there are, but for those `removed`.

    A venue may lack those that are `by_table` only: it was asked when they were added, or nobody was.
    """

    venue: str
    symbols: tuple[str, ...]
    every: bool = False
    removed: tuple[str, ...] = ()
    by_table: frozenset[str] = frozenset()

    def has(self, symbol: str) -> bool:
        """Whether it is to be collected, also when it is one that nobody has named."""
        return symbol in self.symbols or (self.every and symbol not in self.removed)


class _Symbol(Struct):
    symbol: str
    status: str = ""
    contract_type: str = field(name="contractType", default="")


class _ExchangeInfo(Struct):
    symbols: list[_Symbol]


def recordable() -> list[str]:
    """The datasets that a collector can be told to record."""
    return [name for name, dataset in DATASETS.items() if dataset.live or dataset.poll or dataset.charts]


def chosen(names: Iterable[str]) -> list[Dataset]:
    """The datasets of those names. Raises `ConfigError` naming the first that there is none of."""
    found = []
    for name in dict.fromkeys(names):
        if name not in recordable():
            raise ConfigError(f"LAKE_DATASETS: there is no dataset {name!r}{nearest(name, recordable())}")
        found.append(DATASETS[name])
    if not found:
        raise ConfigError(f"LAKE_DATASETS is empty: choose from {', '.join(recordable())}")
    return found


def parse(words: Iterable[str]) -> dict[str, Wanted]:
    """`BTCUSDT`, `binance:BTCUSDT`, `all`, `binance:all` by venue. Raises `ConfigError` for a venue there is not."""
    wanted = united(words, {})
    if not wanted:
        raise ConfigError("LAKE_SYMBOLS is empty: name symbols, or say all")
    return wanted


def united(words: Iterable[str], table: Mapping[str, Named]) -> dict[str, Wanted]:
    """What the words of LAKE_SYMBOLS name and what the table `symbol` says, by venue.

    The table has the last word on every symbol that it knows; on all others the setting has it. Raises `ConfigError`
    for a venue there is not.
    """
    by_setting = _parsed(words)
    venues = [*by_setting, *(venue for venue in table if venue in (*EXCHANGE_INFO, *UNLISTED))]
    found = {
        venue: _united(by_setting.get(venue, Wanted(venue, ())), table.get(venue, Named()))
        for venue in dict.fromkeys(venues)
    }
    return {venue: wanted for venue, wanted in found.items() if wanted.symbols or wanted.every}


def _united(wanted: Wanted, table: Named) -> Wanted:
    kept = [symbol for symbol in wanted.symbols if symbol not in table.removed]
    added = [symbol for symbol in table.active if symbol not in kept]
    return replace(wanted, symbols=(*kept, *added), removed=table.removed, by_table=frozenset(added))


def _parsed(words: Iterable[str]) -> dict[str, Wanted]:
    named: dict[str, list[str]] = {}
    for word in words:
        venue, colon, symbol = word.rpartition(":")
        venue = venue if colon else FUTURES
        if venue not in (*EXCHANGE_INFO, *UNLISTED):
            known = (*EXCHANGE_INFO, *UNLISTED)
            raise ConfigError(f"LAKE_SYMBOLS: {word!r}: there is no venue {venue!r}{nearest(venue, known)}")
        named.setdefault(venue, []).append(symbol)
    return {venue: _wanted(venue, symbols) for venue, symbols in named.items()}


def _wanted(venue: str, symbols: list[str]) -> Wanted:
    if ALL_SYMBOLS in (symbol.lower() for symbol in symbols):
        return Wanted(venue, (), every=True)
    if venue in UNLISTED:
        return Wanted(venue, tuple(dict.fromkeys(symbols)))
    return Wanted(venue, tuple(dict.fromkeys(symbol.upper() for symbol in symbols)))


async def resolve(wanted: Mapping[str, Wanted], rest: Rest) -> dict[str, Wanted]:
    """The symbols as the venues list them now.

    Without those that only the table names and a venue does not have, which is said. Raises `ConfigError` for another
    symbol that a venue does not have, `SourceError` when it cannot be asked.
    """
    return {venue: await _resolve(each, rest) for venue, each in wanted.items()}


async def _resolve(wanted: Wanted, rest: Rest) -> Wanted:
    if wanted.venue in UNLISTED:
        return wanted
    request = EXCHANGE_INFO[wanted.venue]
    try:
        answer = await rest.get(wanted.venue, request.path, request.params, weight=request.weight)
        listed = msgspec.json.decode(answer.body, type=_ExchangeInfo).symbols
    except (SourceError, msgspec.DecodeError) as error:
        is_no_answer = isinstance(error, SourceError) and error.status is None
        if wanted.every or is_no_answer:
            raise SourceError(f"the symbols of {wanted.venue} cannot be read: {error}") from None
        log.warning("symbols_not_checked", venue=wanted.venue, reason=str(error))
        return wanted
    if wanted.every:
        trading = [each.symbol for each in listed if _is_trading(each) and each.symbol not in wanted.removed]
        wanted = replace(wanted, symbols=tuple(dict.fromkeys([*trading, *wanted.symbols])))
    return _checked(wanted, {each.symbol: each for each in listed})


def _is_trading(symbol: _Symbol) -> bool:
    return symbol.status == "TRADING" and (not symbol.contract_type or symbol.contract_type in PERPETUAL)


def _checked(wanted: Wanted, listed: Mapping[str, _Symbol]) -> Wanted:
    for symbol in wanted.symbols:
        if symbol not in listed and symbol in wanted.by_table:
            log.warning("symbol_not_listed", venue=wanted.venue, symbol=symbol, effect="it is not collected")
        elif symbol not in listed:
            raise ConfigError(f"LAKE_SYMBOLS: {wanted.venue} has no symbol {symbol!r}{nearest(symbol, listed)}")
        elif listed[symbol].status not in ("", "TRADING"):
            log.warning("symbol_not_trading", venue=wanted.venue, symbol=symbol, status=listed[symbol].status)
    return replace(wanted, symbols=tuple(symbol for symbol in wanted.symbols if symbol in listed))
