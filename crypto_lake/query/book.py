"""`book_at`: the whole order book of a symbol as it was at an instant, out of the table `depth`."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

import polars as pl

from crypto_lake.config import ConfigError, load, nearest
from crypto_lake.models.depth import DEPTH
from crypto_lake.query.days import DAY
from crypto_lake.query.depth import DepthRows
from crypto_lake.query.snapshot import EPOCH, Snapshot, snapshot
from crypto_lake.query.span import Moment, span

if TYPE_CHECKING:
    from crypto_lake.features.book import Book

MICROSECOND: Final = timedelta(microseconds=1)
# Days looked through at once for a snapshot, growing: a stream is renewed every day, and with it comes one.
LONGEST_STEP_DAYS: Final = 64
NOTHING: Final = -2


@dataclass(frozen=True, slots=True, eq=False)
class BookAt:
    """An order book at an instant. `time` is that of its last change (of a snapshot without a change behind it, the
    snapshot's); `bids` and `asks` have the columns price and quantity, the best first."""

    venue: str
    symbol: str
    update_id: int
    time: datetime
    bids: pl.DataFrame
    asks: pl.DataFrame


def book_at(
    symbol: str, time: Moment, *, venue: str | None = None, levels: int | None = None, root: str | None = None
) -> BookAt | None:
    """The book of a symbol as it was at that instant, after the last event whose `time` is not later; of a day that
    is named, at its first instant.

    All levels that are known, or the best `levels` of them: a snapshot reaches so far only (1000 levels of USD-M), and
    what lies beyond is not shown before it is known that nothing is missing in front of it (features.book). None when
    the book was not known then: before the first snapshot, in a hole until the next one, while it was crossed.

        book_at("BTCUSDT", "2024-07-19T00:01:30", venue="binance-futures").bids

    It plays what came since the newest snapshot, and reads no other day. Raises `ConfigError` for a time that is none,
    a missing table, a symbol that `depth` does not have, and one of more than one venue when `venue` is not said.
    """
    if levels is not None and levels < 1:
        raise ConfigError(f"levels={levels}: say at least 1, or nothing for all of them")
    at_us = _instant_us(time)
    place = load().root if root is None else root
    of = snapshot(place, DEPTH)
    if of is None:
        raise ConfigError(f"no table depth under {place}")
    said, _, name = symbol.rpartition(":")
    rows = DepthRows(of, venue or said or _only_venue(of, name, _day_of(at_us)), name)
    days = [day for day in rows.days() if day <= _day_of(at_us)]
    last = _last(rows, days, at_us)
    best = _played(rows, days, last.update_id, at_us).best(levels)
    if best is None:
        _check_held(rows)
        return None
    # A snapshot behind which nothing came has the time of its last event; its own may be that of its receipt.
    time_us = last.time_us if best.update_id == last.update_id else best.time_us
    sides = [pl.DataFrame({"price": side[:, 0], "quantity": side[:, 1]}) for side in (best.bids, best.asks)]
    return BookAt(rows.venue, rows.symbol, best.update_id, EPOCH + time_us * MICROSECOND, *sides)


def _instant_us(time: Moment) -> int:
    try:
        since, _ = span(time, None)
    except ConfigError as error:
        raise ConfigError(str(error).replace("start=", "time=", 1)) from None
    assert since is not None
    return (since - EPOCH) // MICROSECOND


def _day_of(at_us: int) -> date:
    return (EPOCH + at_us * MICROSECOND).date()


def _only_venue(of: Snapshot, symbol: str, day: date) -> str:
    """The venue of a symbol on a day, or on any; that it is not there at all is said elsewhere."""
    for first, last in ((day, day), (date.min, date.max)):
        venues = sorted(venue for venue, _ in of.markets(first, last, symbols=(symbol,)))
        if len(venues) > 1:
            raise ConfigError(f"depth has {symbol} of {', '.join(venues)}: say venue=")
        if venues:
            return venues[0]
    raise ConfigError(f"depth has no rows of {symbol!r}{nearest(symbol, _symbols(of))}")


def _check_held(rows: DepthRows) -> None:
    """Not to be known at an instant is one thing, not to be there another."""
    held = rows.of.markets(date.min, date.max, symbols=(rows.symbol,))
    if (rows.venue, rows.symbol) not in held:
        raise ConfigError(f"depth has no rows of {rows.venue}:{rows.symbol}{nearest(rows.symbol, _symbols(rows.of))}")


def _symbols(of: Snapshot) -> set[str]:
    return {symbol for _, symbol in of.markets(date.min, date.max)}


class _Last(NamedTuple):
    """The last event that is not later; NOTHING, below every id, without one."""

    update_id: int
    time_us: int


def _last(rows: DepthRows, days: list[date], at_us: int) -> _Last:
    for day in reversed(days):
        events = rows.ids(day, day, until_us=at_us + 1)
        if events.height:
            return _Last(*events.row(-1))
    return _Last(NOTHING, at_us)


def _played(rows: DepthRows, days: list[date], last_id: int, at_us: int) -> "Book":
    """The book after the last event."""
    from crypto_lake.features.book import Book  # brings a compiler

    book = Book(levels=1)
    begin = _begin(rows, days, last_id, at_us)
    if begin.is_empty():
        return book
    update_id, begin_us, is_timed = begin.select("final_update_id", "time_us", "is_timed").row(0)
    # Where the venue does not say a snapshot's time ours stands in, so what follows it may be of the day before.
    first = _day_of(begin_us) if is_timed else _day_of(begin_us) - DAY
    events = rows.ids(first, _day_of(at_us), until_us=at_us + 1)
    events = events.filter(pl.col("final_update_id") >= update_id)
    for piece in rows.play(events, begin):
        book.apply(piece)
    return book


def _begin(rows: DepthRows, days: list[date], last_id: int, at_us: int) -> pl.DataFrame:
    """The newest snapshot of the book as it was then or earlier: one row, or none."""
    is_earlier = pl.col("final_update_id") <= last_id
    is_earlier |= pl.col("is_timed") & (pl.col("time_us") <= at_us)
    # One without an id begins a book only where there was none (features.book).
    for kind in (pl.col("final_update_id") >= 0, (pl.col("final_update_id") < 0) & (pl.col("time_us") <= at_us)):
        for first, last in _back(days):
            # Ours may be the next day already.
            found = rows.snapshots(first, last + DAY).filter(is_earlier & kind)
            if found.height:
                return found.tail(1)
    return rows.snapshots(date.max, date.max)


def _back(days: list[date]) -> Iterator[tuple[date, date]]:
    """All the days, the latest first, in growing steps."""
    left, past = list(days), 0
    while left:
        count = min(max(1, past), LONGEST_STEP_DAYS)
        yield left[-count:][0], left[-1]
        del left[-count:]
        past += count
