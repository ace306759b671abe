"""What new rows mean for the table `gap`: holes that they fill, and holes that they show."""

from collections.abc import Iterator, Sequence
from datetime import date, datetime, timedelta
from typing import Any, Final

import polars as pl

from crypto_lake.models import Dataset
from crypto_lake.models.gap import FILLED, GAP, OPEN, SEQUENCE, UNFILLABLE
from crypto_lake.processors.sequence import has_sequence
from crypto_lake.query.gaps import gaps, missing
from crypto_lake.query.runs import between, without

DAY: Final = timedelta(days=1)


def settle(
    root: str, dataset: Dataset, held: pl.DataFrame, *, venue: str, days: dict[str, set[date]], now: datetime
) -> pl.DataFrame:
    """Rows of `gap` to append: the new states of holes near these `days` of each symbol, and holes nobody named.

    `held` are the runs of ids that the table holds there (`query.runs`), with those of the nearest days around.
    """
    symbols = sorted(days)
    known = gaps(root, dataset.name, venue=venue, symbols=symbols)
    if not has_sequence(dataset):
        return _states(list(_bright(known, days)), now)
    open_ones = missing(known).filter(pl.col("symbol").is_in(symbols))
    changed = [state for hole in open_ones.iter_rows(named=True) for state in _divided(hole, held)]
    unknown = without(between(held), missing(known))
    fresh = [_fresh(dataset, hole, now) for hole in unknown.iter_rows(named=True)]
    return _states([*changed, *fresh], now)


def _bright(known: pl.DataFrame, days: dict[str, set[date]]) -> Iterator[dict[str, Any]]:
    """Times without delivery of a dataset without ids, all of whose days are here now."""
    for hole in known.filter(pl.col("state") != FILLED, pl.col("end_time").is_not_null()).iter_rows(named=True):
        first, last = hole["start_time"].date(), hole["end_time"].date()
        touched = {first + number * DAY for number in range((last - first).days + 1)}
        if touched <= days.get(hole["symbol"], set()):
            yield hole | {"state": FILLED}


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


def _fresh(dataset: Dataset, hole: dict[str, Any], now: datetime) -> dict[str, Any]:
    """A hole that nobody named: the archive lacks these ids too, so REST is what is left."""
    return hole | {
        "dataset": dataset.name, "reason": SEQUENCE, "filled_rows": 0,
        "state": OPEN if can_be_asked(dataset, hole["venue"], hole["start_time"], now) else UNFILLABLE,
    }  # fmt: skip


def can_be_asked(dataset: Dataset, venue: str, since: datetime, now: datetime) -> bool:
    """Whether REST still has rows of that time."""
    request = dataset.poll.requests.get(venue) if dataset.poll and dataset.poll.from_id else None
    return request is not None and (request.reach_s is None or since > now - timedelta(seconds=request.reach_s))


def _states(holes: Sequence[dict[str, Any]], now: datetime) -> pl.DataFrame:
    rows = [{**hole, "state_time": now, "date": hole["start_time"].date()} for hole in holes]
    return pl.DataFrame(rows, schema=GAP.schema).select(*GAP.schema)
