"""`coverage`: what each day of each symbol holds and lacks, and whether that can be proved."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

import polars as pl
from deltalake.exceptions import DeltaError

from crypto_lake.config import ConfigError, load
from crypto_lake.models import DATASETS, Dataset, dataset_named
from crypto_lake.models.coverage import COMPLETE, COVERAGE, INCOMPLETE, UNVERIFIABLE
from crypto_lake.models.dataset import TIME
from crypto_lake.models.frame import OTHERS
from crypto_lake.models.gap import NOT_AT_VENUE
from crypto_lake.processors.sequence import INTERVALS, columns_needed, has_sequence
from crypto_lake.query import holes
from crypto_lake.query.days import DAY, days_held, is_market, is_within, of_day, pieces
from crypto_lake.query.findings import first_line
from crypto_lake.query.gaps import gaps, missing
from crypto_lake.query.runs import WITHIN, between, joined, overlaps, runs
from crypto_lake.query.source import Source, find
from crypto_lake.query.span import TICK, Moment, span

# Called before each day that is read: the table, how many of its days are done, and how many there are.
OnStep = Callable[[str, int, int], None]

HELD: Final[dict[str, pl.DataType]] = {
    "venue": pl.String(),
    "symbol": pl.String(),
    "date": pl.Date(),
    "rows": pl.Int64(),
    "repaired_rows": pl.Int64(),
    "first_id": pl.Int64(),
    "last_id": pl.Int64(),
    "low": pl.Int64(),  # the lowest id that the day's rows account for; of a chain what its first event follows, + 1
}
ON_DAY: Final = [*WITHIN, "date"]
MIDNIGHT: Final = pl.col("date").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def coverage(
    dataset: str | None = None,
    /,
    *,
    symbols: Sequence[str] | None = None,
    start: Moment | None = None,
    end: Moment | None = None,
    root: str | None = None,
    now: datetime | None = None,
    on_step: OnStep = lambda _table, _done, _of: None,
) -> pl.DataFrame:
    """One row per dataset, venue, symbol and UTC day, from the first day known of to the last; columns as `coverage`.

    `missing_rows` are ids that the table lacks and the venue has: those of gap rows and those that nobody wrote down.
    The ids of a hole over midnight are shared out by the time that it spends on each day, since which of them were
    before midnight is not known. `missing_rows` is null where ids do not count rows. `downtime_s` is the time in which
    nobody delivered, be its rows here by now or not. A day is `complete` when it is over and its ids are contiguous
    and go on from the last id before the day to the first one behind it (but for ids that the venue does not have),
    `incomplete` when something is known to be missing, else `unverifiable`.

    Raises `ConfigError` when there is no table to look at, and when one cannot be read.
    """
    place = load().root if root is None else root
    since, until = span(start, end)
    moment = now or datetime.now(UTC)
    try:
        before = gaps(place)  # a recorder may fill a hole while its table is read
        sources = [source for each in _asked(dataset) if (source := find(place, each))]
        asked = Asked(place, symbols, since, until, moment, on_step)
        found = [_covered(source, before, asked) for source in sources]
    except (DeltaError, OSError, pl.exceptions.PolarsError) as error:
        raise ConfigError(f"tables under {place} cannot be read (`validate` says which): {first_line(error)}") from None
    if not found:
        raise ConfigError(f"no table {dataset} under {place}" if dataset else f"no tables under {place}")
    return pl.concat(found).sort("dataset", "venue", "symbol", "date")


def _asked(name: str | None) -> list[Dataset]:
    chosen = [dataset_named(name)] if name else [each for each in DATASETS.values() if is_market(each)]
    if name and not is_market(chosen[0]):
        raise ConfigError(f"{name} has no days to cover; name a dataset of a venue")
    return chosen


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be covered, as of when."""

    root: str
    symbols: Sequence[str] | None
    since: datetime | None
    until: datetime | None
    now: datetime
    on_step: OnStep


def _covered(source: Source, before: pl.DataFrame, asked: Asked) -> pl.DataFrame:
    dataset, now = source.dataset, asked.now
    held, held_runs = _held(source, asked)
    newest = gaps(asked.root, dataset.name, symbols=asked.symbols).with_columns(pl.col("end_time").fill_null(now))
    found = holes.compare(dataset, held_runs, newest, before=before)
    days = _days(held, newest, asked)
    known = days.select(WITHIN).unique()
    lacking = _by_day(found.ids, is_closed=True)
    dark = _by_day(_time_runs(found.dark, known), is_closed=False)
    silent = newest.filter(pl.col("first_id").is_null())
    down = _by_day(_time_runs(silent, known), is_closed=False)
    seconds = (pl.col("ids") / 1e6).alias("downtime_s")
    rows = (
        days.join(held, on=ON_DAY, how="left")
        .join(lacking.select(*ON_DAY, missing_rows="ids"), on=ON_DAY, how="left")
        .join(dark.select(*ON_DAY, is_dark=pl.lit(value=True)), on=ON_DAY, how="left")
        .join(down.select(*ON_DAY, seconds), on=ON_DAY, how="left")
    )
    rows = _linked(rows, held, _whole(held_runs, newest))
    judged = rows.with_columns(
        _verdict(dataset, now).alias("verdict"),
        _missing_rows(dataset).alias("missing_rows"),
        pl.col("rows", "repaired_rows").fill_null(0),
        pl.col("downtime_s").fill_null(0.0),
        pl.lit(dataset.name).alias("dataset"),
        MIDNIGHT.alias("time"),
        pl.lit(now, TIME).alias("checked_time"),
    )
    return judged.select(
        pl.col(name).cast(dtype) if name in judged.columns else pl.lit(None, dtype).alias(name)
        for name, dtype in COVERAGE.schema.items()
    )


# What is there


def _held(source: Source, asked: Asked) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows per day and the runs of ids, of the days asked for and of the nearest ones around them."""
    dataset = source.dataset
    wanted = _with_neighbours(days_held(source, None, None), asked.since, asked.until)
    counts, held = [pl.DataFrame(schema=HELD)], pl.DataFrame(schema=INTERVALS)
    needed = columns_needed(dataset) if has_sequence(dataset) else ["venue", "symbol", "time"]
    for number, day in enumerate(wanted):
        asked.on_step(dataset.name, number, len(wanted))
        for piece in pieces(dataset, of_day(source, day, asked.symbols), [*dict.fromkeys([*needed, "source"])]):
            counts.append(_counted(dataset, piece, day))
            if has_sequence(dataset):
                held = joined(pl.concat([held, runs(dataset, piece)]))
    summed = (
        pl.concat(counts)
        .group_by(ON_DAY)
        .agg(pl.col("rows", "repaired_rows").sum(), pl.col("first_id", "low").min(), pl.col("last_id").max())
    )
    return summed, held


def _with_neighbours(held: list[date], since: datetime | None, until: datetime | None) -> list[date]:
    within = [day for day in held if is_within(day, since, until)]
    before = [day for day in held if since and day < since.date()]
    behind = [day for day in held if until and day > (until - TICK).date()]
    return [*before[-1:], *within, *behind[:1]]


def _counted(dataset: Dataset, piece: pl.DataFrame, day: date) -> pl.DataFrame:
    # Where the only road is REST its rows are not late; snapshots come by REST and repair nothing.
    usual = ["live"] if dataset.live else ["live", "rest"]
    is_late = ~pl.col("source").is_in(usual)
    if dataset.chain:
        is_late &= ~pl.col(dataset.chain.apart)
    first, last, low = _id_columns(dataset)
    return piece.group_by(WITHIN).agg(
        pl.lit(day).alias("date"),
        pl.len().cast(pl.Int64).alias("rows"),
        is_late.sum().cast(pl.Int64).alias("repaired_rows"),
        first.min().alias("first_id"),
        last.max().alias("last_id"),
        low.min().alias("low"),
    )


def _id_columns(dataset: Dataset) -> tuple[pl.Expr, pl.Expr, pl.Expr]:
    """First id, last id, and the first one accounted for."""
    if dataset.sequence:
        own = pl.col(dataset.sequence)
        return own, own, own
    if (chain := dataset.chain) is None:
        nothing = pl.lit(None, pl.Int64)
        return nothing, nothing, nothing
    is_link = ~pl.col(chain.apart)
    follows = pl.coalesce(chain.previous, pl.col(chain.first) - 1)
    return tuple(each.filter(is_link) for each in (pl.col(chain.first), pl.col(chain.last), follows + 1))  # type: ignore[return-value]


def _days(held: pl.DataFrame, newest: pl.DataFrame, asked: Asked) -> pl.DataFrame:
    """Every day of each symbol from the first that is known of to the last, inside the span."""
    begin, end = pl.col("start_time").dt.date(), pl.col("end_time").dt.date()
    own = newest.filter(pl.col("symbol") != OTHERS).select(*WITHIN, begin.alias("first"), end.alias("last"))
    spans = pl.concat([held.select(*WITHIN, first="date", last="date"), own])
    last = pl.max_horizontal("first", "last").max().alias("last")
    every = (
        spans.group_by(WITHIN)
        .agg(pl.col("first").min(), last)
        .select(*WITHIN, pl.date_ranges("first", "last").alias("date"))
        .explode("date")
    )
    limits = [pl.col("date") <= asked.now.date()]
    limits += [pl.col("date") >= asked.since.date()] if asked.since else []
    limits += [pl.col("date") <= (asked.until - TICK).date()] if asked.until else []
    return every.filter(*limits)


# What is not


def _time_runs(gone: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """Times without delivery per symbol, none twice; microseconds stand for ids, so that a share is a time."""
    own = gone.filter(pl.col("symbol") != OTHERS).select(*WITHIN, "start_time", "end_time")
    of_all = gone.filter(pl.col("symbol") == OTHERS).select("venue", "start_time", "end_time")
    both = pl.concat([own, of_all.join(known, on="venue").select(own.columns)])
    first, last = pl.col("start_time").dt.epoch("us"), pl.col("end_time").dt.epoch("us") - 1
    timed = both.with_columns(first.alias("first_id"), last.alias("last_id"))
    return joined(timed.filter(pl.col("first_id") <= pl.col("last_id")))


def _by_day(intervals: pl.DataFrame, *, is_closed: bool) -> pl.DataFrame:
    """The `ids` of intervals on each day that they touch, shared out by time; all of an interval's are given out.

    With `is_closed` what ends at midnight sharp touches the day that begins then: an id that is missing before a row
    may have that row's time. A time without delivery is over at its end.
    """
    begin = pl.col("start_time")
    end = pl.max_horizontal("start_time", "end_time")
    numbered = intervals.with_row_index("interval").with_columns(begin=begin, end=end)
    last_day = pl.max_horizontal("begin", pl.col("end") - (timedelta(0) if is_closed else TICK)).dt.date()
    days = numbered.with_columns(pl.date_ranges(begin.dt.date(), last_day).alias("date")).explode("date")
    length = (pl.col("end") - pl.col("begin")).dt.total_microseconds()
    passed = (pl.min_horizontal(MIDNIGHT + DAY, "end") - pl.col("begin")).dt.total_microseconds()
    count = pl.col("last_id") - pl.col("first_id") + 1
    until_now = pl.when(length > 0).then((count * (passed / length)).round()).otherwise(count).cast(pl.Int64)
    shared = days.with_columns(until_now.alias("until_now"))
    ids = (pl.col("until_now") - pl.col("until_now").shift(1, fill_value=0)).over("interval")
    return shared.with_columns(ids.alias("ids")).group_by(ON_DAY).agg(pl.col("ids").sum())


def _missing_rows(dataset: Dataset) -> pl.Expr:
    if dataset.sequence:
        return pl.col("missing_rows").fill_null(0)
    if dataset.chain:  # between two events there are as many updates as there are, in some unknown number of events
        return pl.when(pl.col("missing_rows").is_null()).then(pl.lit(0, pl.Int64))
    return pl.lit(None, pl.Int64)


# What that means


def _whole(held: pl.DataFrame, newest: pl.DataFrame) -> pl.DataFrame:
    """The runs that are left when ids which the venue does not have count as held."""
    not_there = missing(newest).filter(pl.col("reason") == NOT_AT_VENUE).select(*INTERVALS)
    return joined(pl.concat([held, overlaps(between(held), not_there)]))


def _linked(rows: pl.DataFrame, held: pl.DataFrame, whole: pl.DataFrame) -> pl.DataFrame:
    """With `is_linked`: the day's ids are inside one run which begins before and ends behind them.

    A day without a row is linked when it lies between days that have some: nothing is missing if no hole touches it.
    """
    spans = (
        held.drop_nulls("low")
        .group_by(WITHIN)
        .agg(pl.col("date").min().alias("from"), pl.col("date").max().alias("to"))
    )
    is_between = pl.col("low").is_null() & pl.col("date").is_between("from", "to")
    near = whole.select(*WITHIN, begin="first_id", behind="last_id").sort("begin")
    some = rows.drop_nulls("low").sort("low")
    placed = some.join_asof(near, left_on="low", right_on="begin", by=WITHIN, check_sortedness=False)
    inside = (pl.col("begin") < pl.col("low")) & (pl.col("behind") > pl.col("last_id"))
    linked = placed.select(*ON_DAY, inside.fill_null(value=False).alias("is_linked"))
    both = rows.join(linked, on=ON_DAY, how="left").join(spans, on=WITHIN, how="left")
    return both.with_columns(pl.coalesce("is_linked", is_between.fill_null(value=False)).alias("is_linked"))


def _verdict(dataset: Dataset, now: datetime) -> pl.Expr:
    lacks = pl.col("missing_rows").is_not_null() | pl.col("is_dark").is_not_null()
    is_over = pl.lit(now) >= MIDNIGHT + DAY
    proved = is_over & pl.col("is_linked") if has_sequence(dataset) else pl.lit(value=False)
    return pl.when(lacks).then(pl.lit(INCOMPLETE)).when(proved).then(pl.lit(COMPLETE)).otherwise(pl.lit(UNVERIFIABLE))
