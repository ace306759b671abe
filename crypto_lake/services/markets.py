"""What is to be collected: the words of LAKE_SYMBOLS and LAKE_DATASETS against what the venues list."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
import structlog
from msgspec import Struct, field

from crypto_lake.config import ALL_SYMBOLS, FUTURES, SPOT, ConfigError, nearest
from crypto_lake.connections import SourceError
from crypto_lake.connections.rest import Rest
from crypto_lake.models import DATASETS, Dataset
from crypto_lake.models.dataset import Request

log = structlog.get_logger()

EXCHANGE_INFO: Final = {FUTURES: Request("/fapi/v1/exchangeInfo", 1), SPOT: Request("/api/v3/exchangeInfo", 20)}
PERPETUAL: Final = ("PERPETUAL", "TRADIFI_PERPETUAL")


@dataclass(frozen=True, slots=True)
class Wanted:
    """The symbols of a venue that were named; `every` when it is all there are."""

    venue: str
    symbols: tuple[str, ...]
    every: bool = False


class _Symbol(Struct):
    symbol: str
    status: str = ""
    contract_type: str = field(name="contractType", default="")


class _ExchangeInfo(Struct):
    symbols: list[_Symbol]


def recordable() -> list[str]:
    """The datasets that a collector can be told to record."""
    return [name for name, dataset in DATASETS.items() if dataset.live or dataset.poll]


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
    named: dict[str, list[str]] = {}
    for word in words:
        venue, colon, symbol = word.rpartition(":")
        venue = venue if colon else FUTURES
        if venue not in EXCHANGE_INFO:
            raise ConfigError(f"LAKE_SYMBOLS: {word!r}: there is no venue {venue!r}{nearest(venue, EXCHANGE_INFO)}")
        named.setdefault(venue, []).append(symbol)
    if not named:
        raise ConfigError("LAKE_SYMBOLS is empty: name symbols, or say all")
    return {venue: _wanted(venue, symbols) for venue, symbols in named.items()}


def _wanted(venue: str, symbols: list[str]) -> Wanted:
    if ALL_SYMBOLS in (symbol.lower() for symbol in symbols):
        return Wanted(venue, (), every=True)
    return Wanted(venue, tuple(dict.fromkeys(symbol.upper() for symbol in symbols)))


async def resolve(wanted: Mapping[str, Wanted], rest: Rest) -> dict[str, Wanted]:
    """The symbols as the venues list them now.

    Raises `ConfigError` for a symbol that a venue does not have, `SourceError` when it cannot be asked.
    """
    return {venue: await _resolve(each, rest) for venue, each in wanted.items()}


async def _resolve(wanted: Wanted, rest: Rest) -> Wanted:
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
        return Wanted(wanted.venue, tuple(each.symbol for each in listed if _is_trading(each)), every=True)
    return _checked(wanted, {each.symbol: each for each in listed})


def _is_trading(symbol: _Symbol) -> bool:
    return symbol.status == "TRADING" and (not symbol.contract_type or symbol.contract_type in PERPETUAL)


def _checked(wanted: Wanted, listed: Mapping[str, _Symbol]) -> Wanted:
    for symbol in wanted.symbols:
        if symbol not in listed:
            raise ConfigError(f"LAKE_SYMBOLS: {wanted.venue} has no symbol {symbol!r}{nearest(symbol, listed)}")
        if listed[symbol].status not in ("", "TRADING"):
            log.warning("symbol_not_trading", venue=wanted.venue, symbol=symbol, status=listed[symbol].status)
    return wanted
