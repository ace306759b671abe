"""What new rows mean for the table `gap`: holes that they fill, and holes that they show."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import polars as pl

from crypto_lake.models import Dataset
from crypto_lake.models.bucket import DAY
from crypto_lake.models.gap import FILLED, GAP, NOT_AT_VENUE, OPEN, SEQUENCE, UNFILLABLE
from crypto_lake.processors.sequence import has_sequence
from crypto_lake.query.gaps import gaps, missing
from crypto_lake.query.runs import between, without

# Whether the archive of a symbol's day is in the table.
IsTaken = Callable[[str, date], bool]


def settle(
    root: str,
    dataset: Dataset,
    held: pl.DataFrame,
    *,
    venue: str,
    days: dict[str, set[date]],
    is_taken: IsTaken,
    now: datetime,
) -> pl.DataFrame:
    """Rows of `gap` to append: the new states of holes near these `days` of each symbol, and holes nobody named.

    `held` are the runs of ids that the table holds there (`query.runs`), with those of the nearest days around.
    """
    symbols = sorted(days)
    known = gaps(root, dataset.name, venue=venue, symbols=symbols)
    if not has_sequence(dataset):
        # A sample does not fill a time without delivery.
        return state_rows([] if dataset.is_sampled(venue) else list(_bright(known, is_taken)), now)
    open_ones = missing(known).filter(pl.col("symbol").is_in(symbols))
    lost = _Lost(dataset, is_taken, now)
    changed = [state for hole in open_ones.iter_rows(named=True) for state in _changed(hole, held, lost)]
    unknown = without(between(held), missing(known)).iter_rows(named=True)
    fresh = [lost.given_up(_fresh(dataset, hole)) for hole in unknown if _is_shown(hole, days, is_taken)]
    return state_rows([*changed, *fresh], now)


def _bright(known: pl.DataFrame, is_taken: IsTaken) -> Iterator[dict[str, Any]]:
    """Times without delivery of a dataset without ids, all of whose days are here now."""
    for hole in known.filter(pl.col("state") != FILLED, pl.col("end_time").is_not_null()).iter_rows(named=True):
        if all(is_taken(hole["symbol"], day) for day in _touched(hole)):
            yield hole | {"state": FILLED}


def _touched(hole: dict[str, Any]) -> list[date]:
    first, last = hole["start_time"].date(), hole["end_time"].date()
    return [first + number * DAY for number in range((last - first).days + 1)]


def _is_shown(hole: dict[str, Any], days: dict[str, set[date]], is_taken: IsTaken) -> bool:
    """Whether a hole is between rows that belong together: of days that nobody asked for nothing is missing."""
    symbol, touched = hole["symbol"], _touched(hole)
    here = days[symbol]
    is_near = touched[0] in here or touched[-1] in here
    return is_near and all(day in here or is_taken(symbol, day) for day in touched[1:-1])


def _changed(hole: dict[str, Any], held: pl.DataFrame, lost: "_Lost") -> list[dict[str, Any]]:
    """The new states of a known hole, if it has any."""
    pieces = [lost.given_up(piece) for piece in _divided(hole, held)] or [lost.given_up(hole)]
    return [] if pieces == [hole] else pieces


@dataclass(frozen=True, slots=True)
class _Lost:
    """Knows which holes no road leads to any more: their archives are in, and REST does not reach them."""

    dataset: Dataset
    is_taken: IsTaken
    now: datetime

    def given_up(self, hole: dict[str, Any]) -> dict[str, Any]:
        """The hole; as unfillable when it is lost."""
        if hole["state"] != OPEN or hole["end_time"] is None:
            return hole
        if can_be_asked(self.dataset, hole["venue"], hole["start_time"], self.now):
            return hole
        is_lost = all(self.is_taken(hole["symbol"], day) for day in _touched(hole))
        return hole | {"state": UNFILLABLE} if is_lost else hole


def _divided(hole: dict[str, Any], held: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """The hole in pieces, those that are held and those that are still missing; nothing if none of it is held."""
    first_id, last_id = hole["first_id"], hole["last_id"]
    inside = held.filter(
        pl.col("venue") == hole["venue"], pl.col("symbol") == hole["symbol"],
        pl.col("first_id") <= last_id, pl.col("last_id") >= first_id,
    ).sort("first_id")  # fmt: skip
    at, since = first_id, hole["start_time"]
    for run in inside.iter_rows(named=True):
        low, high = max(first_id, run["first_id"]), min(last_id, run["last_id"])
        # Of a run that reaches beyond the hole the times are not those of the piece; the hole's own are nearer.
        begin = run["start_time"] if low == run["first_id"] else hole["start_time"]
        end = run["end_time"] if high == run["last_id"] else hole["end_time"]
        if low > at:
            yield hole | {"first_id": at, "last_id": low - 1, "start_time": since, "end_time": begin}
        start = hole["start_time"] if low == first_id else begin
        yield hole | {
            "first_id": low, "last_id": high, "start_time": start, "end_time": end,
            "state": FILLED, "filled_rows": high - low + 1,
        }  # fmt: skip
        at, since = high + 1, end
    if first_id < at <= last_id:
        yield hole | {"first_id": at, "start_time": since}


def _fresh(dataset: Dataset, hole: dict[str, Any]) -> dict[str, Any]:
    """A hole that nobody named."""
    return hole | {"dataset": dataset.name, "reason": SEQUENCE, "filled_rows": 0, "state": OPEN}


def not_at_venue(dataset: Dataset, holes: pl.DataFrame, now: datetime) -> pl.DataFrame:
    """Rows of `gap` about ids that the venue does not have, as it says itself."""
    state = {"state": UNFILLABLE, "reason": NOT_AT_VENUE}
    return state_rows([_fresh(dataset, hole) | state for hole in holes.iter_rows(named=True)], now)


def can_be_asked(dataset: Dataset, venue: str, since: datetime, now: datetime) -> bool:
    """Whether REST still has rows of that time."""
    request = dataset.poll.requests.get(venue) if dataset.poll and dataset.poll.from_id else None
    return request is not None and (request.reach_s is None or since > now - timedelta(seconds=request.reach_s))


def state_rows(holes: Sequence[dict[str, Any]], now: datetime) -> pl.DataFrame:
    """Holes in the state they are in as of now, as rows of `gap`."""
    rows = [{**hole, "state_time": now, "date": hole["start_time"].date()} for hole in holes]
    return pl.DataFrame(rows, schema=GAP.schema).select(*GAP.schema)
