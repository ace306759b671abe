"""What a build is asked for: symbols of a table, maybe of one venue, and a span of days."""

from collections.abc import Collection, Iterable
from datetime import date
from typing import NamedTuple

import polars as pl

from crypto_lake.config import ConfigError, nearest
from crypto_lake.models import Dataset
from crypto_lake.models.agg_trade import AGG_TRADE
from crypto_lake.models.trade import TRADE
from crypto_lake.query.snapshot import Snapshot, snapshot
from crypto_lake.query.span import limits

EVERY = "all"


class Market(NamedTuple):
    """A venue and one of its symbols."""

    venue: str
    symbol: str

    def __str__(self) -> str:
        return f"{self.venue}:{self.symbol}"


class Days(NamedTuple):
    """The first and the last day of a span, both inside."""

    first: date
    last: date

    def __contains__(self, day: object) -> bool:
        return isinstance(day, date) and self.first <= day <= self.last


def source(root: str, dataset: Dataset, *, how: str) -> Snapshot:
    """The table that a build reads. Raises `ConfigError` that says `how` to get one."""
    found = snapshot(root, dataset)
    if found is None:
        raise ConfigError(f"there is no table {dataset.name} under {root}: {how}")
    return found


def table_of_trades(root: str, asked: str | None) -> str:
    """The table that bars are made of: the one asked for, else agg_trade, or trade where there is only that."""
    if asked is not None:
        return asked
    has_only_trade = snapshot(root, AGG_TRADE) is None and snapshot(root, TRADE) is not None
    return TRADE.name if has_only_trade else AGG_TRADE.name


def span_of_days(start: str | None, end: str | None) -> Days:
    """The days from `--start` to `--end`, each a day or a month; without one to where the table begins or ends."""
    first = date.min if start is None else limits("--start", start)[0]
    last = date.max if end is None else limits("--end", end)[1]
    if first > last:
        raise ConfigError(f"--start {start} is after --end {end}")
    return Days(first, last)


def chosen(held: Iterable[Market], symbols: str | None, venue: str | None, *, table: str) -> list[Market]:
    """Those of the markets in a table that are meant: `symbols` is a list with commas, in which binance:BTCUSDT is of
    one venue, BTCUSDT of every one that has it, and nothing or `all` is all.

    Raises `ConfigError` for a symbol that the table does not have.
    """
    there = sorted(market for market in held if venue in (None, market.venue))
    if not there:
        of_venue = f" of venue {venue!r}" if venue else ""
        raise ConfigError(f"table {table} holds no rows{of_venue}{_nearest_venue(held, venue)}")
    names = _names(symbols)
    if names == [EVERY]:
        return there
    found = {market: None for name in names for market in _meant(name, there, table)}
    return list(found)


def asked(of: Snapshot, days: Days, symbols: str | None, venue: str | None) -> dict[Market, list[date]]:
    """The same of the markets that a table holds on these days, each with its days there, in order."""
    held = {Market(*market): its for market, its in of.markets(*days, symbols=named(symbols)).items()}
    try:
        meant = chosen(held, symbols, venue, table=of.dataset)
    except ConfigError:
        # Who knows all names can say which one was meant.
        chosen((Market(*market) for market in of.markets(*days)), symbols, venue, table=of.dataset)
        raise
    return {market: held[market] for market in meant}


def named(symbols: str | None) -> set[str] | None:
    """The symbols of a list with commas, without their venues; None for all."""
    names = _names(symbols)
    return None if names == [EVERY] else {name.rpartition(":")[2] for name in names}


def one_of(option: str, words: str, known: Collection[str]) -> tuple[str, ...]:
    """The words of a list with commas, all of which are among `known`, in that order. Raises `ConfigError`."""
    asked = [part.strip() for part in words.split(",") if part.strip()]
    if unknown := [word for word in asked if word not in known]:
        raise ConfigError(f"{option}: there is no {unknown[0]!r}; there are {', '.join(known)}")
    if not asked:
        raise ConfigError(f"{option}: name at least one of {', '.join(known)}")
    return tuple(word for word in known if word in asked)


def is_meant(symbols: str | None, market: Market) -> bool:
    """Whether a list with commas names this market, or all."""
    return not {EVERY, market.symbol, str(market)}.isdisjoint(_names(symbols))


def _names(symbols: str | None) -> list[str]:
    return [part.strip() for part in (symbols or "").split(",") if part.strip()] or [EVERY]


def _meant(name: str, there: list[Market], table: str) -> list[Market]:
    venue, _, symbol = name.rpartition(":")
    found = [market for market in there if market.symbol == symbol and venue in ("", market.venue)]
    if not found:
        close = nearest(symbol, {market.symbol for market in there})
        raise ConfigError(f"--symbols {name}: table {table} has no rows of it{close}")
    return found


def _nearest_venue(held: Iterable[Market], venue: str | None) -> str:
    return nearest(venue, {market.venue for market in held}) if venue else ""


def only(markets: Iterable[Market]) -> pl.Expr:
    """The rows of these markets."""
    pairs = [(pl.col("venue") == venue) & (pl.col("symbol") == symbol) for venue, symbol in markets]
    return pl.any_horizontal(pairs) if pairs else pl.lit(value=False)
