"""The table `symbol`, edited: every symbol that is added or removed is a row, for recorders that run or will run."""

import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import polars as pl

from crypto_lake.config import ALL_SYMBOLS, COIN_M, FUTURES, SPOT, ConfigError, nearest
from crypto_lake.models.symbol import ASSET_TYPE_OF, ASSET_TYPES, SYMBOL_TABLE
from crypto_lake.query.symbols import states
from crypto_lake.services.markets import Wanted, parse
from crypto_lake.writers import CommitFailed
from crypto_lake.writers.delta import STORE_ERRORS, Lake, reason

UPPER_CASE: Final = (FUTURES, SPOT, COIN_M)
LONGEST: Final = 40
# A store that refuses a commit now may take it at once, or not at all.
TRIES: Final = 5
FIRST_PAUSE_S: Final = 0.2
MICROSECOND: Final = timedelta(microseconds=1)
SETTING: Final = "LAKE_SYMBOLS"
TABLE: Final = "table"


class Name(NamedTuple):
    """A symbol of a venue."""

    venue: str
    symbol: str

    def __str__(self) -> str:
        return f"{self.venue}:{self.symbol}"


def names(words: Iterable[str]) -> list[Name]:
    """What words such as `BTCUSDT`, `binance:BTCUSDT` or `us-stocks:AAPL` name, each once. Raises `ConfigError`."""
    found = [_name(part.strip()) for word in words for part in word.split(",") if part.strip()]
    if not found:
        raise ConfigError("name at least one symbol, such as BTCUSDT, binance:BTCUSDT or us-stocks:AAPL")
    return list(dict.fromkeys(found))


def _name(word: str) -> Name:
    head, colon, rest = word.partition(":")
    venue, symbol = (head, rest) if colon else (FUTURES, word)
    if venue not in ASSET_TYPE_OF:
        raise ConfigError(f"{word!r}: there is no venue {venue!r}{nearest(venue, ASSET_TYPE_OF)}")
    if symbol.lower() == ALL_SYMBOLS:
        raise ConfigError(f"{word!r}: name symbols one by one; every one there is, is a word of LAKE_SYMBOLS")
    if not symbol or len(symbol) > LONGEST or any(not each.isprintable() or each.isspace() for each in symbol):
        raise ConfigError(f"{word!r}: that is no symbol; BTCUSDT is one, and us-stocks:AAPL")
    return Name(venue, symbol.upper() if venue in UPPER_CASE else symbol)


def add(root: str, wanted: Sequence[Name], *, asset_type: str | None, now: datetime) -> list[Name]:
    """Adds symbols to the table; returns those that were not there as they are wanted.

    Raises `ConfigError` for a type there is not or a place that cannot be written, `CommitFailed`.
    """
    if asset_type is not None and asset_type not in ASSET_TYPES:
        raise ConfigError(f"--asset-type {asset_type}: there is no such type{nearest(asset_type, ASSET_TYPES)}")
    held = _held(root)
    active = {Name(row["venue"], row["symbol"]): row["asset_type"] for row in held.rows(named=True) if row["is_active"]}
    new = [name for name in wanted if name not in active or (asset_type is not None and active[name] != asset_type)]
    types = [asset_type or ASSET_TYPE_OF[name.venue] for name in new]
    _append(root, held, new, types, is_active=True, now=now)
    return new


def remove(root: str, unwanted: Sequence[Name], words: Sequence[str], *, now: datetime) -> None:
    """Removes symbols that the table or the `words` of LAKE_SYMBOLS name.

    Raises `ConfigError` when one of them is not there, and then removes none; `CommitFailed`.
    """
    held = _held(root)
    known = {Name(row["venue"], row["symbol"]): row for row in held.rows(named=True)}
    by_setting = parse(words) if words else {}
    for name in unwanted:
        is_there = known[name]["is_active"] if name in known else by_setting.get(name.venue, NOTHING).has(name.symbol)
        if not is_there:
            raise ConfigError(f"{name} is not there: neither the table symbol nor LAKE_SYMBOLS names it")
    types = [known[name]["asset_type"] if name in known else ASSET_TYPE_OF[name.venue] for name in unwanted]
    _append(root, held, unwanted, types, is_active=False, now=now)


NOTHING: Final = Wanted("", ())


def listed(root: str, words: Sequence[str]) -> pl.DataFrame:
    """What the table and the `words` of LAKE_SYMBOLS name: venue, symbol, asset_type, is_active, added_time, and in
    `from` who says so."""
    held = _held(root)
    known = set(held.select("venue", "symbol").iter_rows())
    rows = [
        (venue, symbol, ASSET_TYPE_OF[venue], True, None, None)
        for venue, wanted in (parse(words) if words else {}).items()
        for symbol in ([ALL_SYMBOLS] if wanted.every else wanted.symbols)
        if (venue, symbol) not in known
    ]
    by_setting = pl.DataFrame(rows, schema=held.schema, orient="row").with_columns(pl.lit(SETTING).alias("from"))
    return pl.concat([by_setting, held.with_columns(pl.lit(TABLE).alias("from"))]).drop("date")


def _held(root: str) -> pl.DataFrame:
    try:
        return states(root)
    except STORE_ERRORS as error:
        raise ConfigError(f"LAKE_ROOT={root}: the table symbol cannot be read: {reason(error)}") from None


def _append(
    root: str, held: pl.DataFrame, named: Sequence[Name], types: Sequence[str], *, is_active: bool, now: datetime
) -> None:
    if not named:
        return
    newest = held["added_time"].max()
    # The newest row counts, also after the clock was set back.
    at = max(now, newest + MICROSECOND) if isinstance(newest, datetime) else now
    rows = [(*name, asset_type, is_active, at, at.date()) for name, asset_type in zip(named, types, strict=True)]
    lake, frame = Lake(root), pl.DataFrame(rows, schema=SYMBOL_TABLE.schema, orient="row")
    lake.check(SYMBOL_TABLE)
    for tries_left in reversed(range(TRIES)):
        try:
            lake.add(SYMBOL_TABLE, frame)
        except CommitFailed:
            if not tries_left:
                raise
            time.sleep(FIRST_PAUSE_S * (TRIES - tries_left))
        else:
            return
