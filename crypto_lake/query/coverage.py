"""`coverage`: what each day of each symbol holds and lacks, and whether that can be proved."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import polars as pl
from deltalake.exceptions import DeltaError

from crypto_lake.config import ConfigError, load
from crypto_lake.models import DATASETS, Dataset, dataset_named
from crypto_lake.models.bar import BAR
from crypto_lake.models.coverage import COMPLETE, COVERAGE, DIFFERS, EVERY_SYMBOL, INCOMPLETE, UNVERIFIABLE
from crypto_lake.models.dataset import TIME
from crypto_lake.models.frame import OTHERS
from crypto_lake.models.gap import NOT_AT_VENUE
from crypto_lake.processors.sequence import INTERVALS, by_symbol, has_sequence
from crypto_lake.query import holes
from crypto_lake.query.days import DAY, is_market
from crypto_lake.query.findings import first_line
from crypto_lake.query.gaps import gaps, missing
from crypto_lake.query.held import ON_DAY, Held, OnStep, held
from crypto_lake.query.runs import WITHIN, between, joined, overlaps
from crypto_lake.query.source import Source, find
from crypto_lake.query.span import TICK, Moment, span

# What a comparison with the official dump of a day says of it.
FACTS: Final[dict[str, pl.DataType]] = {
    name: COVERAGE.schema[name] for name in (*ON_DAY, "dump_sha256", "dump_rows", "dump_missing_rows", "differing_rows")
}


def _silent(_table: str, _done: int, _of: int) -> None:
    """Tells nobody."""


def coverage(
    dataset: str | None = None,
    /,
    *,
    symbols: Sequence[str] | None = None,
    start: Moment | None = None,
    end: Moment | None = None,
    root: str | None = None,
    now: datetime | None = None,
    facts: pl.DataFrame | None = None,
    on_step: OnStep = _silent,
) -> pl.DataFrame:
    """One row per dataset, venue, symbol and UTC day, from the first day known of to the last; columns as `coverage`.

    `missing_rows` are ids that the table lacks and the venue has: those of gap rows and those that nobody wrote down.
    The ids of a hole over midnight are shared out by the time that it spends on each day, since which of them were
    before midnight is not known. `missing_rows` is null where ids do not count rows. `downtime_s` is the time in which
    nobody delivered, be its rows here by now or not. What is known of a day's dump is that of the newest row of table
    `coverage` about it; `facts` (columns `FACTS`, of the one `dataset`) is for who has just compared, and counts more.

    The verdict is the first that applies. `differs`: rows are not what the dump says. `incomplete`: something is known
    to be missing. `complete`: the day is over, and its ids are contiguous (but for ids that the venue does not have),
    from the last id before the day to the first one behind it, or, where its dump is known, within the day. Without
    ids a known dump is the proof, of bars only when the day has all of each timeframe (the first day of a symbol: from
    the first one on). Else `unverifiable`.

    Venues that come in flat files (`Dataset.by_file`) are covered file by file: a row per day and `timeframe` under the
    symbol `*`, whatever `symbols` says, and one per symbol where only some were wanted of a file. They are the newest
    ones that table `coverage` has; no row of theirs is looked at, and there are none of them with `facts`.

    Raises `ConfigError` when there is no table to look at, and when one cannot be read.
    """
    place = load().root if root is None else root
    since, until = span(start, end)
    moment = now or datetime.now(UTC)
    assert facts is None or dataset, "facts are about one dataset"
    try:
        before = gaps(place)  # a recorder may fill a hole while its table is read
        sources = [source for each in _asked(dataset) if (source := find(place, each))]
        asked = Asked(place, symbols, since, until, moment, facts, on_step)
        found = [part for source in sources for part in (_covered(source, before, asked), _files(source, asked))]
    except (DeltaError, OSError, pl.exceptions.PolarsError) as error:
        raise ConfigError(f"tables under {place} cannot be read (`validate` says which): {first_line(error)}") from None
    if not found:
        raise ConfigError(f"no table {dataset} under {place}" if dataset else f"no tables under {place}")
    return pl.concat(found).sort("dataset", "venue", "symbol", "timeframe", "date")


def _asked(name: str | None) -> list[Dataset]:
    if name is None:
        return [each for each in DATASETS.values() if is_market(each) and not each.is_derived]
    if not is_market(dataset_named(name)):
        raise ConfigError(f"{name} has no days to cover; name a dataset of a venue")
    return [dataset_named(name)]


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be covered, as of when."""

    root: str
    symbols: Sequence[str] | None
    since: datetime | None
    until: datetime | None
    now: datetime
    facts: pl.DataFrame | None
    on_step: OnStep


def held_runs(
    root: str,
    dataset: Dataset,
    *,
    symbols: Sequence[str] | None = None,
    start: Moment | None = None,
    end: Moment | None = None,
) -> pl.DataFrame:
    """The runs of ids (`query.runs`) on the days from `start` to `end` and on the nearest ones around them."""
    source, (since, until) = find(root, dataset), span(start, end)
    if source is None:
        return pl.DataFrame(schema=INTERVALS)
    return held(source, symbols, since, until, on_step=_silent).runs


def _covered(source: Source, before: pl.DataFrame, asked: Asked) -> pl.DataFrame:
    dataset, now = source.dataset, asked.now
    there = held(source, asked.symbols, asked.since, asked.until, on_step=asked.on_step)
    newest = gaps(asked.root, dataset.name, symbols=asked.symbols).with_columns(pl.col("end_time").fill_null(now))
    facts = _facts(dataset, asked)
    found = holes.compare(dataset, there.runs, newest, before=before)
    days = _days(there.counts, newest, facts, asked)
    known = days.select(WITHIN).unique()
    lacking = _by_day(_beside(found.ids, facts), is_closed=True)
    dark = _by_day(_time_runs(found.dark, known), is_closed=False)
    silent = newest.filter(pl.col("first_id").is_null())
    down = _by_day(_time_runs(silent, known), is_closed=False)
    seconds = (pl.col("ids") / 1e6).alias("downtime_s")
    rows = (
        days.join(there.counts, on=ON_DAY, how="left")
        .join(facts, on=ON_DAY, how="left")
        .join(lacking.select(*ON_DAY, missing_rows="ids"), on=ON_DAY, how="left")
        .join(dark.select(*ON_DAY, is_dark=pl.lit(value=True)), on=ON_DAY, how="left")
        .join(down.select(*ON_DAY, seconds), on=ON_DAY, how="left")
    )
    judged = _proved(rows, source, there, newest, asked).with_columns(
        _verdict(now).alias("verdict"),
        _missing_rows(dataset).alias("missing_rows"),
        pl.col("rows", "repaired_rows").fill_null(0),
        pl.col("downtime_s").fill_null(0.0),
        pl.lit(dataset.name).alias("dataset"),
        _midnight("date").alias("time"),
        pl.lit(now, TIME).alias("checked_time"),
        pl.lit(None, pl.String()).alias("timeframe"),
    )
    return judged.select(pl.col(name).cast(dtype) for name, dtype in COVERAGE.schema.items())


def _files(source: Source, asked: Asked) -> pl.DataFrame:
    """What the certificates say of venues that come in flat files: of each file the newest one."""
    if asked.facts is not None or not source.dataset.by_file or (certificates := find(asked.root, COVERAGE)) is None:
        return pl.DataFrame(schema=COVERAGE.schema)
    first = asked.since.date() if asked.since else None
    last = (asked.until - TICK).date() if asked.until else None
    about = certificates.scan(first, last).filter(pl.col("dataset") == source.dataset.name, ~by_symbol(source.dataset))
    if asked.symbols is not None:
        about = about.filter(pl.col("symbol").is_in([*asked.symbols, EVERY_SYMBOL]))
    rows = about.collect(engine="streaming").sort("checked_time", *FACTS)
    return rows.unique([*ON_DAY, "timeframe"], keep="last", maintain_order=True)


# What is there


def _facts(dataset: Dataset, asked: Asked) -> pl.DataFrame:
    """What is known of the dumps of days, a row each; also of the days right before and behind those asked for."""
    given = pl.DataFrame(schema=FACTS) if asked.facts is None else asked.facts.select(*FACTS)
    noted = _noted_facts(dataset, asked).join(given, on=ON_DAY, how="anti")
    facts = pl.concat([given.unique(ON_DAY, keep="last", maintain_order=True), noted])
    return facts if asked.symbols is None else facts.filter(pl.col("symbol").is_in(list(asked.symbols)))


def _noted_facts(dataset: Dataset, asked: Asked) -> pl.DataFrame:
    """Those of the newest row of table `coverage` about each day."""
    source = find(asked.root, COVERAGE)
    if source is None:
        return pl.DataFrame(schema=FACTS)
    first = asked.since.date() - DAY if asked.since else None
    last = (asked.until - TICK).date() + DAY if asked.until else None
    about = source.scan(first, last).filter(
        pl.col("dataset") == dataset.name, pl.col("dump_sha256").is_not_null(), by_symbol(dataset)
    )
    rows = about.select(*FACTS, "checked_time").collect(engine="streaming").sort("checked_time", *FACTS)
    return rows.unique(ON_DAY, keep="last", maintain_order=True).select(*FACTS)


def _days(counts: pl.DataFrame, newest: pl.DataFrame, facts: pl.DataFrame, asked: Asked) -> pl.DataFrame:
    """Every day of each symbol from the first that is known of to the last, inside the span."""
    begin, end = pl.col("start_time").dt.date(), pl.col("end_time").dt.date()
    own = newest.filter(pl.col("symbol") != OTHERS).select(*WITHIN, begin.alias("first"), end.alias("last"))
    each = [days.select(*WITHIN, first="date", last="date") for days in (counts, facts)]
    spans = pl.concat([*each, own])
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


def _beside(ids: pl.DataFrame, facts: pl.DataFrame) -> pl.DataFrame:
    """Missing ids, moved out of days whose dump is known: what is missing behind the last id of one is of the next day.

    Between two such days that follow each other nobody knows which of them lacks the ids; they stay with both.
    """
    first, last = (pl.col(name).dt.date() for name in ("start_time", "end_time"))
    known = facts.select(ON_DAY).unique()
    marked = (
        ids.with_columns(first.alias("first_day"), last.alias("last_day"))
        .join(known.select(*WITHIN, first_day="date", begins=pl.lit(value=True)), on=[*WITHIN, "first_day"], how="left")
        .join(known.select(*WITHIN, last_day="date", ends=pl.lit(value=True)), on=[*WITHIN, "last_day"], how="left")
    )
    start = pl.when("begins").then(_midnight("first_day") + DAY).otherwise("start_time")
    end = pl.when("ends").then(_midnight("last_day") - TICK).otherwise("end_time")
    is_between = (pl.col("first_day") < pl.col("last_day")) & (start <= end)
    moved = marked.with_columns(
        pl.when(is_between).then(start).otherwise("start_time").alias("start_time"),
        pl.when(is_between).then(end).otherwise("end_time").alias("end_time"),
    )
    return moved.select(ids.columns)


def _midnight(name: str) -> pl.Expr:
    return pl.col(name).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


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
    passed = (pl.min_horizontal(_midnight("date") + DAY, "end") - pl.col("begin")).dt.total_microseconds()
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


def _proved(rows: pl.DataFrame, source: Source, there: Held, newest: pl.DataFrame, asked: Asked) -> pl.DataFrame:
    """With `is_proved`: that day lacks nothing, if nothing is known to be missing and it is over."""
    dataset = source.dataset
    is_compared = pl.col("dump_sha256").is_not_null()
    if has_sequence(dataset):
        linked = _linked(rows, there.counts, _whole(there.runs, newest))
        proof = pl.col("is_linked") | (is_compared & pl.col("is_whole"))
        return linked.with_columns(proof.alias("is_proved"))
    if dataset.name == BAR.name:
        begun = rows.join(_first_days(source, there.counts, asked), on=ON_DAY, how="left")
        proof = pl.col("is_full") | (pl.col("is_full_from_first") & pl.col("is_first"))
        return begun.with_columns((is_compared & proof.fill_null(value=False)).alias("is_proved"))
    has_all = (pl.col("rows") > 0).fill_null(value=False) | (pl.col("dump_rows") == 0).fill_null(value=False)
    return rows.with_columns((is_compared & has_all).alias("is_proved"))


def _whole(runs: pl.DataFrame, newest: pl.DataFrame) -> pl.DataFrame:
    """The runs that are left when ids which the venue does not have count as held."""
    not_there = missing(newest).filter(pl.col("reason") == NOT_AT_VENUE).select(*INTERVALS)
    return joined(pl.concat([runs, overlaps(between(runs), not_there)]))


def _linked(rows: pl.DataFrame, counts: pl.DataFrame, whole: pl.DataFrame) -> pl.DataFrame:
    """With `is_whole`: the day's ids are inside one run; and `is_linked`: it begins before and ends behind them.

    A day without a row is linked when it lies between days that have some: nothing is missing if no hole touches it.
    It is whole when its dump has no row.
    """
    spans = (
        counts.drop_nulls("low")
        .group_by(WITHIN)
        .agg(pl.col("date").min().alias("from"), pl.col("date").max().alias("to"))
    )
    is_between = pl.col("low").is_null() & pl.col("date").is_between("from", "to")
    near = whole.select(*WITHIN, begin="first_id", behind="last_id").sort("begin")
    some = rows.drop_nulls("low").sort("low")
    placed = some.join_asof(near, left_on="low", right_on="begin", by=WITHIN, check_sortedness=False)
    inside = (pl.col("begin") < pl.col("low")) & (pl.col("behind") > pl.col("last_id"))
    linked = placed.select(
        *ON_DAY,
        inside.fill_null(value=False).alias("is_linked"),
        (pl.col("behind") >= pl.col("last_id")).fill_null(value=False).alias("is_whole"),
    )
    both = rows.join(linked, on=ON_DAY, how="left").join(spans, on=WITHIN, how="left")
    return both.with_columns(
        pl.coalesce("is_linked", is_between.fill_null(value=False)).alias("is_linked"),
        pl.coalesce("is_whole", (pl.col("dump_rows") == 0).fill_null(value=False)).alias("is_whole"),
    )


def _first_days(source: Source, counts: pl.DataFrame, asked: Asked) -> pl.DataFrame:
    """With `is_first`: days without an earlier one of the symbol, if their bars begin late."""
    first = counts.group_by(WITHIN).agg(pl.col("date").min())
    late = counts.filter("is_full_from_first", ~pl.col("is_full")).join(first, on=ON_DAY, how="semi")
    if asked.since is not None and late.height:
        before = source.scan(None, asked.since.date() - DAY).filter(pl.col("symbol").is_in(late["symbol"].implode()))
        known = before.select(WITHIN).unique().collect(engine="streaming")
        late = late.join(known, on=WITHIN, how="anti")
    return late.select(*ON_DAY, is_first=pl.lit(value=True))


def _verdict(now: datetime) -> pl.Expr:
    lacks = pl.col("missing_rows").is_not_null() | pl.col("is_dark").is_not_null()
    is_over = pl.lit(now) >= _midnight("date") + DAY
    return (
        pl.when(pl.col("differing_rows") > 0)
        .then(pl.lit(DIFFERS))
        .when(lacks)
        .then(pl.lit(INCOMPLETE))
        .when(is_over & pl.col("is_proved"))
        .then(pl.lit(COMPLETE))
        .otherwise(pl.lit(UNVERIFIABLE))
    )
