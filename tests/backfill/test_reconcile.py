"""Reconciliation: the table, the official file and REST say the same, or it is said who says what."""

import asyncio
import json
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import polars as pl
import pytest

from crypto_lake.backfill import binance
from crypto_lake.backfill.ask import wanted_of
from crypto_lake.backfill.plan import Wanted
from crypto_lake.backfill.reconcile import (
    ASKED,
    NO_ANSWER,
    NO_ROAD,
    NOT_ASKED,
    NOTHING_TO_ASK,
    OTHER_DAYS,
    OUT_OF_REACH,
    Outcome,
    Reconciled,
    day_or_month,
    reconcile,
)
from crypto_lake.backfill.witness import stretches
from crypto_lake.config import COIN_M, FUTURES, SPOT, ConfigError, Settings
from crypto_lake.models import DATASETS
from crypto_lake.models.bucket import File
from crypto_lake.models.dataset import Dataset
from crypto_lake.processors.shape import shape
from crypto_lake.simulator import GeneratedMarket, Simulator
from crypto_lake.simulator.market import Question
from crypto_lake.writers import CommitFailed
from crypto_lake.writers.delta import Lake

DAY = date(2024, 1, 15)
NOON = datetime(2024, 1, 15, 12, tzinfo=UTC)
NEXT_DAY = datetime(2024, 1, 16, 10, tzinfo=UTC)
LATER = datetime(2024, 3, 1, tzinfo=UTC)
AGG_TRADE = DATASETS["agg_trade"]
COUNT = 300
EVERY_TABLE = ("agg_trade", "gap", "quality", "rejected", "dump_file")

Row = dict[str, Any]


class Skipping(GeneratedMarket):
    """A venue that has no row under some ids, and never had; of others it tells something else."""

    skipped: frozenset[int] = frozenset()
    altered: Mapping[int, Row] = MappingProxyType({})

    async def answer(self, question: Question) -> bytes:
        body = await super().answer(question)
        if question.endpoint != "aggTrades":
            return body
        rows = [row for row in json.loads(body) if row["a"] not in self.skipped]
        return json.dumps([row | self.altered.get(row["a"], {}) for row in rows]).encode()


@pytest.fixture
def market() -> Skipping:
    """A few minutes at noon, on both venues, in which nothing but trades happened."""
    made = Skipping(
        ("BTCUSDT",), ("BTCUSDT",), rate=20, seed=3, mix={"aggTrade": 1}, with_others=False, start_ms=us(NOON) // 1000
    )
    for _ in made.frames(2 * COUNT + 100):
        pass
    return made


def us(instant: datetime) -> int:
    return int(instant.timestamp() * 1e6)


def trades(market: GeneratedMarket, venue: str = FUTURES) -> list[Row]:
    """The market's first trades as REST tells them."""
    rows = market.instrument(venue, "BTCUSDT").agg_trades
    return [json.loads(row) for row in rows.from_id(rows.oldest_id, COUNT, 0)]


def without(rows: Iterable[Row], *places: int) -> list[Row]:
    return [row for place, row in enumerate(rows) if place not in places]


def changed(rows: Iterable[Row], place: int, **values: Any) -> list[Row]:
    return [row | values if number == place else row for number, row in enumerate(rows)]


def live(rows: Sequence[Row], venue: str = FUTURES, symbol: str = "BTCUSDT") -> pl.DataFrame:
    """Trades as the table has them when they came by a stream."""
    unit = 1000 if venue == FUTURES or rows[0]["T"] < 10**14 else 1
    times = [datetime.fromtimestamp(0, UTC) + timedelta(microseconds=row["T"] * unit) for row in rows]
    columns = {
        "venue": venue,
        "symbol": symbol,
        "time": times,
        "received_time": [time + timedelta(milliseconds=30) for time in times],
        "source": "live",
        "event_time": [time + timedelta(milliseconds=4) for time in times],
        "agg_trade_id": [row["a"] for row in rows],
        "price": [float(row["p"]) for row in rows],
        "quantity": [float(row["q"]) for row in rows],
        "quantity_without_rpi": [float(row["nq"]) if "nq" in row else None for row in rows],
        "first_trade_id": [row["f"] for row in rows],
        "last_trade_id": [row["l"] for row in rows],
        "is_buyer_maker": [row["m"] for row in rows],
    }
    return shape(AGG_TRADE, pl.DataFrame(columns, schema_overrides={"quantity_without_rpi": pl.Float64}))


def lines(rows: Iterable[Row], venue: str = FUTURES) -> list[str]:
    """The same trades as the lines of an official file."""
    if venue == SPOT:
        return [f"{r['a']},{r['p']},{r['q']},{r['f']},{r['l']},{r['T']},{r['m']},True" for r in rows]
    header = "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker"
    text = [f"{r['a']},{r['p']},{r['q']},{r['f']},{r['l']},{r['T']},{str(r['m']).lower()}" for r in rows]
    return [header, *text]


def daily(venue: str = FUTURES, day: date = DAY, kind: str = "aggTrades") -> File:
    return File(venue, kind, "BTCUSDT", "", "daily", day)


def record(settings: Settings, frame: pl.DataFrame, dataset: Dataset = AGG_TRADE) -> None:
    """Rows into the table, as a recorder would."""
    lake = Lake(settings.root)
    lake.check(dataset)
    lake.add(dataset, frame)


def held(settings: Settings, name: str) -> pl.DataFrame:
    """A table's rows in an order of their own."""
    found = pl.read_delta(f"{settings.root}/{name}")
    flat = [column for column, dtype in found.schema.items() if not dtype.is_nested()]
    return found.sort(flat)


def ids(settings: Settings) -> list[int]:
    return held(settings, "agg_trade").sort("agg_trade_id")["agg_trade_id"].to_list()


def wanted(market: str = "um", dataset: str = "agg_trade", day: str = "2024-01-15", timeframe: str = "1m") -> Wanted:
    symbol = "BTCUSD_PERP" if market == "cm" else "BTCUSDT"
    return wanted_of(market, dataset, symbol, day, day, timeframe, today=date(2024, 12, 31))


@pytest.fixture
def look(settings: Any, watched: Any) -> Callable[..., Any]:
    """Reconciles the one day, with REST answered by nobody or by a market."""

    async def one(
        asked: Wanted | None = None, *, now: datetime = NEXT_DAY, rest: str = "http://127.0.0.1:9"
    ) -> Reconciled:
        outcome = await many(asked or wanted(), now=now, rest=rest)
        (found,) = outcome.days
        return found

    async def many(asked: Wanted, *, now: datetime = NEXT_DAY, rest: str = "http://127.0.0.1:9") -> Outcome:
        told = settings(futures_rest=rest, spot_rest=rest)
        return await reconcile(told, asked, watched, clock=lambda: now)

    one.many = many  # type: ignore[attr-defined]
    return one


@asynccontextmanager
async def answering(market: GeneratedMarket) -> AsyncIterator[Simulator]:
    async with Simulator(market) as exchange:
        yield exchange


def found_of(settings: Settings, check: str) -> list[Row]:
    rows = held(settings, "quality")
    return rows.filter(pl.col("check") == check).to_dicts()


# Both say the same, or one has what the other lacks


async def test_a_day_that_is_whole_and_equal_is_complete_and_nobody_is_asked(
    look: Any, bucket: Any, settings: Any, market: Any
) -> None:
    rows = trades(market)
    record(settings(), live(rows))
    bucket.put(daily(), lines(rows))
    found = await look()
    assert (found.verdict, found.is_good) == ("complete", True)
    assert (found.rows, found.dump_rows, found.filled_by_dump, found.filled_by_rest) == (COUNT, COUNT, 0, 0)
    assert (found.differences.only_ours, found.differences.differing) == (0, 0)
    assert (found.rest, found.rest_pages) == (NOTHING_TO_ASK, 0)
    assert held(settings(), "quality").is_empty()
    (row,) = held(settings(), "coverage").to_dicts()
    assert (row["verdict"], row["dump_rows"], row["dump_missing_rows"], row["differing_rows"]) == (
        "complete",
        COUNT,
        0,
        0,
    )
    assert row["dump_sha256"] == found.sha256


async def test_a_hole_on_our_side_is_filled_from_the_file(look: Any, bucket: Any, settings: Any, market: Any) -> None:
    rows = trades(market)
    record(settings(), live(without(rows, 10, 11, 12, 40)))
    note_gap(settings(), rows, 10, 12)
    bucket.put(daily(), lines(rows))
    found = await look()
    assert (found.verdict, found.rows, found.filled_by_dump, found.missing_rows) == ("complete", COUNT, 4, 0)
    assert ids(settings()) == [row["a"] for row in rows]
    assert held(settings(), "agg_trade").filter(pl.col("source") == "dump").height == 4
    state = held(settings(), "gap").filter(pl.col("first_id") == rows[10]["a"]).sort("state_time")
    assert state["state"].to_list() == ["open", "filled"]


def note_gap(settings: Settings, rows: Sequence[Row], first: int, last: int) -> None:
    """A hole as a recorder names it."""
    begin, end = (datetime.fromtimestamp(rows[place]["T"] / 1000, UTC) for place in (first - 1, last + 1))
    row = {
        "venue": FUTURES,
        "symbol": "BTCUSDT",
        "dataset": "agg_trade",
        "first_id": rows[first]["a"],
        "last_id": rows[last]["a"],
        "start_time": begin,
        "end_time": end,
        "reason": "disconnect",
        "state": "open",
        "filled_rows": 0,
        "state_time": NOON,
        "date": DAY,
    }
    record(settings, pl.DataFrame([row], schema=DATASETS["gap"].schema), DATASETS["gap"])


async def test_a_row_that_the_file_lacks_is_kept_and_noted_and_rest_has_it_too(
    look: Any, bucket: Any, settings: Any, market: Any
) -> None:
    rows = trades(market)
    record(settings(), live(rows))
    bucket.put(daily(), lines(without(rows, 7, 8, COUNT - 1)))
    async with answering(market) as exchange:
        found = await look(rest=exchange.rest_url)
    assert (found.verdict, found.rows, found.dump_rows, found.differences.only_ours) == (
        "complete",
        COUNT,
        COUNT - 3,
        3,
    )
    assert [each.key["agg_trade_id"] for each in found.differences.lone] == [rows[n]["a"] for n in (7, 8, COUNT - 1)]
    assert [each.rest for each in found.differences.lone] == ["ours"] * 3
    assert (found.rest, found.rest_pages) == (ASKED, 1)
    assert ids(settings()) == [row["a"] for row in rows]
    (told,) = found_of(settings(), "dump_lacks_rows")
    assert (told["severity"], told["observed"]) == ("warn", 3.0)
    assert (told["first_id"], told["last_id"]) == (rows[7]["a"], rows[-1]["a"])


async def test_a_row_that_only_we_have_is_one_that_rest_has_not_either(
    look: Any, bucket: Any, settings: Any, market: Any
) -> None:
    rows = trades(market)
    record(settings(), live(rows))
    bucket.put(daily(), lines(without(rows, 7)))
    market.skipped = frozenset([rows[7]["a"]])
    async with answering(market) as exchange:
        found = await look(rest=exchange.rest_url)
    assert [each.rest for each in found.differences.lone] == ["dump"]


@pytest.mark.parametrize("whose", ["ours", "dump", "neither"])
async def test_a_differing_row_is_shown_from_both_sides_and_changed_on_none(
    whose: str, look: Any, bucket: Any, settings: Any, market: Any
) -> None:
    rows = trades(market)
    other = {"p": "1.5", "m": not rows[20]["m"]}
    ours = rows if whose == "ours" else changed(rows, 20, p="2.5") if whose == "neither" else changed(rows, 20, **other)
    theirs = rows if whose == "dump" else changed(rows, 20, **other)
    record(settings(), live(ours))
    before = held(settings(), "agg_trade")
    bucket.put(daily(), lines(theirs))
    async with answering(market) as exchange:
        found = await look(rest=exchange.rest_url)
    assert (found.verdict, found.is_good, found.differences.differing) == ("differs", False, 1)
    (pair,) = found.differences.pairs
    assert pair.key == {"agg_trade_id": rows[20]["a"]}
    assert pair.ours["price"] == float(ours[20]["p"])
    assert pair.dump["price"] == float(theirs[20]["p"])
    assert set(pair.ours) == set(pair.dump) == {"price", "is_buyer_maker"}
    assert pair.rest == whose
    assert held(settings(), "agg_trade").equals(before)
    (told,) = found_of(settings(), "row_differs")
    assert (told["severity"], told["first_id"], told["last_id"]) == ("error", rows[20]["a"], rows[20]["a"])
    assert held(settings(), "coverage")["differing_rows"].to_list() == [1]


async def test_when_the_difference_is_gone_the_next_look_says_so(
    look: Any, bucket: Any, settings: Any, market: Any
) -> None:
    rows = trades(market)
    record(settings(), live(rows))
    bucket.put(daily(), lines(changed(rows, 20, p="1.5")))
    assert (await look()).verdict == "differs"
    bucket.put(daily(), lines(rows))
    assert (await look(now=NEXT_DAY + timedelta(hours=1))).verdict == "complete"
    states = held(settings(), "coverage").sort("checked_time")
    assert states["verdict"].to_list() == ["differs", "complete"]
    assert held(settings(), "dump_file")["sha256"].n_unique() == 2


async def test_many_differing_rows_are_a_hundred_findings_and_one_for_the_rest(
    look: Any, bucket: Any, settings: Any, market: Any
) -> None:
    rows = trades(market)
    record(settings(), live(rows))
    bucket.put(daily(), lines([row | {"p": "1.5"} for row in rows]))
    async with answering(market) as exchange:
        found = await look(rest=exchange.rest_url)
    assert (found.differences.differing, len(found.differences.pairs)) == (COUNT, 100)
    assert {pair.rest for pair in found.differences.pairs} == {"ours"}
    assert found.rest_pages == 1
    told = found_of(settings(), "row_differs")
    assert len(told) == 101
    assert [each["observed"] for each in told if each["observed"]] == [COUNT - 100.0]


# Ids that neither has


async def test_ids_that_the_venue_never_gave_are_no_hole(look: Any, bucket: Any, settings: Any, market: Any) -> None:
    rows = without(trades(market), 50, 51, 52, 90)
    market.skipped = frozenset(row["a"] for row in trades(market)) - frozenset(row["a"] for row in rows)
    record(settings(), live(rows))
    bucket.put(daily(), lines(rows))
    async with answering(market) as exchange:
        found = await look(rest=exchange.rest_url)
    assert (found.verdict, found.not_at_venue, found.missing_rows) == ("complete", 4, 0)
    assert (found.rest, found.rest_pages) == (ASKED, 1)
    gaps = held(settings(), "gap").sort("first_id").select("first_id", "last_id", "state", "reason").rows()
    skipped = sorted(market.skipped)
    assert gaps == [(skipped[0], skipped[2], "unfillable", "venue"), (skipped[3], skipped[3], "unfillable", "venue")]
    async with answering(market) as exchange:
        again = await look(rest=exchange.rest_url, now=NEXT_DAY + timedelta(hours=1))
    assert (again.not_at_venue, again.rest, again.rest_pages) == (4, NOTHING_TO_ASK, 0)


async def test_what_only_rest_has_is_added(look: Any, bucket: Any, settings: Any, market: Any) -> None:
    rows = trades(market)
    some = without(rows, 50, 51, 90)
    record(settings(), live(some))
    note_gap(settings(), rows, 50, 51)
    bucket.put(daily(), lines(some))
    async with answering(market) as exchange:
        found = await look(rest=exchange.rest_url)
    assert (found.verdict, found.filled_by_rest, found.not_at_venue, found.rows) == ("complete", 3, 0, COUNT)
    assert ids(settings()) == [row["a"] for row in rows]
    table = held(settings(), "agg_trade")
    assert table.filter(pl.col("source") == "rest")["agg_trade_id"].to_list() == [rows[n]["a"] for n in (50, 51, 90)]
    facts = ["price", "quantity", "first_trade_id", "last_trade_id", "is_buyer_maker", "time", "quantity_without_rpi"]
    assert table.sort("agg_trade_id").select(facts).equals(live(rows).sort("agg_trade_id").select(facts))
    # The file lacks them: that is said, and that they came from REST is witness enough.
    assert [each.rest for each in found.differences.lone] == ["ours"] * 3
    assert [told["observed"] for told in found_of(settings(), "dump_lacks_rows")] == [3.0]
    assert held(settings(), "gap").sort("state_time")["state"].to_list() == ["open", "filled"]
    assert (await look()).verdict == "complete"


async def test_what_is_older_than_rest_reaches_is_not_asked(look: Any, bucket: Any, settings: Any, market: Any) -> None:
    rows = trades(market)
    record(settings(), live(without(rows, 50, 51)))
    bucket.put(daily(), lines(changed(without(rows, 50, 51, 3), 100, p="1.5")))
    async with answering(market) as exchange:
        found = await look(rest=exchange.rest_url, now=LATER)
        assert exchange.used_weight[FUTURES] == 0
    assert (found.rest, found.rest_reason, found.rest_pages) == (NOT_ASKED, OUT_OF_REACH, 0)
    assert found.verdict == "differs"
    assert [each.rest for each in [*found.differences.lone, *found.differences.pairs]] == ["", ""]
    assert held(settings(), "gap")["state"].to_list() == ["unfillable"]


async def test_a_hole_that_a_recorder_named_is_given_up_when_no_road_is_left(
    look: Any, bucket: Any, settings: Any, market: Any
) -> None:
    rows = trades(market)
    record(settings(), live(without(rows, 50, 51)))
    note_gap(settings(), rows, 50, 51)
    assert (await look(now=LATER)).verdict == "incomplete"
    assert held(settings(), "gap")["state"].to_list() == ["open"], "its file may be published one day"
    bucket.put(daily(), lines(without(rows, 50, 51)))
    assert (await look(now=LATER + timedelta(hours=1))).verdict == "incomplete"
    assert held(settings(), "gap").sort("state_time")["state"].to_list() == ["open", "unfillable"]


async def test_spot_is_asked_however_old_it_is(look: Any, bucket: Any, settings: Any, market: Any) -> None:
    rows = trades(market, SPOT)
    in_ms = [row | {"T": row["T"] // 1000} for row in rows]
    record(settings(), live(without(rows, 50), SPOT))
    bucket.put(daily(SPOT), lines(without(in_ms, 50), SPOT))
    async with answering(market) as exchange:
        found = await look(wanted("spot"), rest=exchange.rest_url, now=LATER)
    assert (found.verdict, found.filled_by_rest) == ("complete", 1)


async def test_rest_that_does_not_answer_leaves_the_hole_open(
    look: Any, bucket: Any, settings: Any, market: Any
) -> None:
    rows = trades(market)
    record(settings(), live(without(rows, 50)))
    bucket.put(daily(), lines(without(rows, 50)))
    found = await look()
    assert (found.rest, found.verdict, found.missing_rows) == (NO_ANSWER, "incomplete", 1)
    assert "cannot reach http://127.0.0.1:9" in found.rest_reason
    assert held(settings(), "gap")["state"].to_list() == ["open"]


async def test_a_hole_of_the_last_minutes_is_the_recorders_business(look: Any, settings: Any, market: Any) -> None:
    rows = trades(market)
    record(settings(), live(without(rows, 50)))
    async with answering(market) as exchange:
        found = await look(rest=exchange.rest_url, now=NOON + timedelta(minutes=10))
        assert (found.filled_by_rest, found.rest) == (0, NOTHING_TO_ASK)
        found = await look(rest=exchange.rest_url, now=NOON + timedelta(minutes=20))
    assert (found.filled_by_rest, found.rest) == (1, ASKED)


@pytest.mark.parametrize("length", [20, 12_000])
async def test_a_hole_over_midnight_is_asked_for_when_it_is_short(
    length: int, look: Any, bucket: Any, settings: Any
) -> None:
    """Of a long one most ids are the other day's, whose file may have them."""
    begin_ms = us(datetime(2024, 1, 15, tzinfo=UTC)) // 1000 - (length // 2 + 10) * 50
    market = Skipping(("BTCUSDT",), rate=20, mix={"aggTrade": 1}, with_others=False, start_ms=begin_ms)
    for _ in market.frames(4 * length + 300):  # a good half of it is spot
        pass
    every = market.instrument(FUTURES, "BTCUSDT").agg_trades
    rows = [json.loads(row) for row in every.from_id(every.oldest_id, length + 100, 0)]
    own = [row for row in rows[length + 20 :] if row["T"] >= us(datetime(2024, 1, 15, tzinfo=UTC)) // 1000]
    record(settings(), live([*rows[:5], *own]))
    bucket.put(daily(), lines(own))
    async with answering(market) as exchange:
        found = await look(rest=exchange.rest_url)
    is_short = length == 20
    assert (found.verdict, found.rest) == ("complete", ASKED if is_short else NOT_ASKED)
    assert found.rest_reason == ("" if is_short else OTHER_DAYS)
    assert len(ids(settings())) == (len(rows) if is_short else 5 + len(own))
    assert held(settings(), "gap")["state"].to_list() == ([] if is_short else ["open"])


# Days without a file


async def test_a_day_without_a_file_is_filled_from_rest_and_nobody_can_tell_whether_it_is_whole(
    look: Any, settings: Any, market: Any
) -> None:
    rows = trades(market)
    record(settings(), live(without(rows, 50, 51)))
    async with answering(market) as exchange:
        found = await look(rest=exchange.rest_url)
    assert (found.verdict, found.is_good, found.path, found.dump_rows) == ("unverifiable", True, None, None)
    assert (found.rows, found.filled_by_rest, found.differences) == (COUNT, 2, None)
    (row,) = held(settings(), "coverage").to_dicts()
    assert (row["dump_sha256"], row["differing_rows"], row["verdict"]) == (None, None, "unverifiable")


async def test_a_symbol_that_nobody_knows_is_no_success(look: Any) -> None:
    outcome = await look.many(wanted())
    assert [(day.verdict, day.rows) for day in outcome.days] == [("unverifiable", 0)]
    assert not outcome.is_good


async def test_days_without_rows_and_files_before_the_day_are_none_of_its_business(
    look: Any, bucket: Any, settings: Any, market: Any
) -> None:
    rows = trades(market)
    week = 7 * 86_400_000
    early = [row | {"a": row["a"] - 20, "T": row["T"] - week} for row in rows[:5]]
    record(settings(), live([*early, *without(rows, 50)]))
    bucket.put(daily(), lines(without(rows, 50)))
    async with answering(market) as exchange:
        found = await look(rest=exchange.rest_url)
    assert (found.filled_by_rest, found.rest, found.rest_pages, found.verdict) == (1, ASKED, 1, "complete")
    assert held(settings(), "gap").is_empty()


async def test_holes_between_days_that_were_taken_one_after_the_other_are_given_up(
    look: Any, bucket: Any, settings: Any, market: Any
) -> None:
    rows = trades(market)
    next_day = [row | {"a": row["a"] + COUNT + 5, "T": row["T"] + 86_400_000} for row in rows]
    bucket.put(daily(), lines(rows))
    bucket.put(daily(day=date(2024, 1, 16)), lines(next_day))
    record(settings(), live([*rows, *next_day]))
    assert (await look(now=LATER)).verdict == "complete"
    assert held(settings(), "gap")["state"].to_list() == ["open"], "the next day's file may have these ids"
    assert (await look(wanted(day="2024-01-16"), now=LATER + timedelta(hours=1))).verdict == "incomplete"
    assert held(settings(), "gap").sort("state_time")["state"].to_list() == ["open", "unfillable"]


# Once more


async def test_done_again_nothing_is_written_but_one_more_certificate(
    look: Any, bucket: Any, settings: Any, market: Any
) -> None:
    rows = trades(market)
    skipped = rows[200]["a"]
    market.skipped = frozenset([skipped])
    record(settings(), live(without(rows, 10, 50, 51, 200)))
    bucket.put(daily(), lines(changed(without(rows, 8, 50, 51, 200), 100, p="1.5")))
    async with answering(market) as exchange:
        first = await look(rest=exchange.rest_url)
        assert (first.filled_by_dump, first.filled_by_rest, first.not_at_venue) == (1, 2, 1)
        assert (first.differences.only_ours, first.differences.differing) == (3, 1)
        before = {name: held(settings(), name) for name in EVERY_TABLE}
        again = await look(rest=exchange.rest_url, now=NEXT_DAY + timedelta(hours=1))
    assert (again.filled_by_dump, again.filled_by_rest, again.not_at_venue) == (0, 0, 1)
    assert (again.differences.only_ours, again.differences.differing) == (3, 1)
    for name, rows_before in before.items():
        assert held(settings(), name).equals(rows_before), name
    assert held(settings(), "coverage")["verdict"].to_list() == ["differs", "differs"]
    assert len(found_of(settings(), "row_differs")) == len(found_of(settings(), "dump_lacks_rows")) == 1


async def test_after_backfill_the_findings_of_the_same_file_are_not_doubled(
    look: Any, bucket: Any, settings: Any, watched: Any, market: Any
) -> None:
    rows = trades(market)
    record(settings(), live(changed(rows, 20, p="1.5")))
    bucket.put(daily(), lines(rows))
    await binance.backfill(settings(), wanted(), watched, clock=lambda: NEXT_DAY)
    assert held(settings(), "quality").is_empty(), "only keys were compared"
    assert (await look()).verdict == "differs"
    assert len(found_of(settings(), "row_differs")) == 1
    assert held(settings(), "dump_file").height == 1


# Other markets and datasets


async def test_milliseconds_and_microseconds_of_the_same_time_are_no_difference(
    look: Any, bucket: Any, settings: Any
) -> None:
    day, begin = date(2025, 3, 4), datetime(2025, 3, 4, 12, tzinfo=UTC)
    market = GeneratedMarket(
        (), ("BTCUSDT",), rate=20, mix={"aggTrade": 1}, with_others=False, start_ms=us(begin) // 1000
    )
    for _ in market.frames(COUNT):
        pass
    in_us = trades(market, SPOT)
    assert any(row["T"] % 1000 for row in in_us)
    record(settings(), live([row | {"T": row["T"] // 1000} for row in in_us], SPOT))
    bucket.put(daily(SPOT, day), lines(in_us, SPOT))
    asked = wanted_of("spot", "agg_trade", "BTCUSDT", str(day), str(day), "1m", today=date(2025, 12, 31))
    found = await look(asked, now=begin + timedelta(days=1))
    assert (found.verdict, found.rows, found.differences.differing) == ("complete", len(in_us), 0)


async def test_the_same_symbol_on_another_market_is_left_alone(
    look: Any, bucket: Any, settings: Any, market: Any
) -> None:
    rows, other = trades(market), trades(market, SPOT)
    record(settings(), live(rows))
    record(settings(), live(without(other, 50), SPOT))
    bucket.put(daily(), lines(rows))
    found = await look()
    assert (found.verdict, found.rest) == ("complete", NOTHING_TO_ASK)
    assert held(settings(), "gap").is_empty()
    assert held(settings(), "coverage")["venue"].to_list() == [FUTURES]


def liquidation(minute: int, **others: Any) -> Row:
    return {
        "venue": COIN_M,
        "symbol": "BTCUSD_PERP",
        "time": NOON + timedelta(minutes=minute),
        "source": "live",
        "side": "SELL",
        "order_type": "LIMIT",
        "time_in_force": "IOC",
        "price": 42000.5,
        "average_price": 42010.1,
        "quantity": 30.0,
        "last_filled_quantity": 10.0,
        "filled_quantity": 30.0,
        "status": "FILLED",
    } | others


def as_line(row: Row) -> str:
    names = ("side", "order_type", "time_in_force", "quantity", "price", "average_price", "status")
    middle = ",".join(str(row[name]) for name in names)
    return f"{us(row['time']) // 1000},{middle},{row['last_filled_quantity']},{row['filled_quantity']}"


async def test_liquidations_of_coin_m_are_compared_by_their_key_and_rest_is_no_witness(
    look: Any, bucket: Any, settings: Any
) -> None:
    dataset = DATASETS["liquidation"]
    ours = [liquidation(1), liquidation(2), liquidation(4, average_price=1.0)]
    theirs = [liquidation(1), liquidation(3), liquidation(4)]
    record(settings(), shape(dataset, pl.DataFrame(ours)), dataset)
    header = (
        "time,side,order_type,time_in_force,original_quantity,price,average_price,order_status,last_fill_quantity,"
        "accumulated_fill_quantity"
    )
    file = File(COIN_M, "liquidationSnapshot", "BTCUSD_PERP", "", "daily", DAY)
    bucket.put(file, [header, *(as_line(row) for row in theirs for _ in range(2))])
    found = await look(wanted("cm", "liquidation"))
    assert (found.verdict, found.rows, found.dump_rows, found.filled_by_dump) == ("differs", 4, 3, 1)
    assert (found.rest, found.rest_reason, found.missing_rows) == (NOT_ASKED, NO_ROAD, None)
    (lone,), (pair,) = found.differences.lone, found.differences.pairs
    assert (lone.time, lone.rest) == (NOON + timedelta(minutes=2), "")
    assert (pair.ours, pair.dump, pair.rest) == ({"average_price": 1.0}, {"average_price": 42010.1}, "")
    (told,) = found_of(settings(), "dump_lacks_rows")
    assert (told["first_time"], told["first_id"]) == (NOON + timedelta(minutes=2), None)
    assert held(settings(), "liquidation").height == 4


def bars(timeframe: str, minutes: Iterable[int], **others: Any) -> pl.DataFrame:
    midnight = datetime(2024, 1, 15, tzinfo=UTC)
    rows = [
        {
            **dict.fromkeys(("open", "high", "low", "close"), 10.0),
            "venue": FUTURES,
            "symbol": "BTCUSDT",
            "source": "dump",
            "timeframe": timeframe,
            "origin": "kline",
            "time": midnight + timedelta(minutes=minute),
            "volume": 2.0,
            "quote_volume": 20.0,
            "count": 4,
            "taker_buy_volume": 1.0,
            "taker_buy_quote_volume": 10.0,
            "complete": True,
            "revision": 0,
        }
        | others
        for minute in minutes
    ]
    return shape(DATASETS["bar"], pl.DataFrame(rows))


async def test_of_bars_those_of_the_timeframe_and_of_the_venue_are_compared(
    look: Any, bucket: Any, settings: Any
) -> None:
    record(settings(), bars("1h", range(0, 1440, 60)), DATASETS["bar"])
    record(settings(), bars("1m", [0, 1], close=11.0, high=11.0), DATASETS["bar"])
    record(settings(), bars("1h", [0], close=9.0, low=9.0, origin="trades"), DATASETS["bar"])
    begin_ms = us(NOON) // 1000 - 12 * 3_600_000
    text = [
        f"{begin_ms + hour * 3_600_000},10,10,10,10,{3 if hour == 5 else 2},{begin_ms + hour * 3_600_000 + 3_599_999},"
        f"{30 if hour == 5 else 20},4,1,10,0"
        for hour in range(24)
    ]
    bucket.put(File(FUTURES, "klines", "BTCUSDT", "1h", "daily", DAY), text)
    found = await look(wanted(dataset="bar", timeframe="1h"))
    assert (found.verdict, found.rows, found.dump_rows, found.differences.only_ours) == ("differs", 24, 24, 0)
    (pair,) = found.differences.pairs
    assert pair.key == {"timeframe": "1h", "time": datetime(2024, 1, 15, 5, tzinfo=UTC), "origin": "kline"}
    assert (pair.ours, pair.dump) == ({"volume": 2.0, "quote_volume": 20.0}, {"volume": 3.0, "quote_volume": 30.0})


async def test_that_a_file_has_a_row_a_minute_is_no_finding_where_the_table_has_one_a_second(
    look: Any, bucket: Any, settings: Any
) -> None:
    dataset, begin = DATASETS["mark_price"], datetime(2024, 1, 15, tzinfo=UTC)
    columns = {"venue": FUTURES, "symbol": "BTCUSDT", "source": "live", "mark_price": 5.0}
    rows = [columns | {"time": begin + timedelta(seconds=second)} for second in range(120)]
    record(settings(), shape(dataset, pl.DataFrame(rows)), dataset)
    start_ms = us(begin) // 1000
    text = [f"{start_ms + n * 60_000},5,5,5,5,0,{start_ms + n * 60_000 + 59_999},0,60,0,0,0" for n in range(2)]
    bucket.put(File(FUTURES, "markPriceKlines", "BTCUSDT", "1m", "daily", DAY), text)
    found = await look(wanted(dataset="mark_price"))
    assert (found.verdict, found.filled_by_dump, found.differences.only_ours) == ("complete", 2, 120)
    assert held(settings(), "quality").is_empty()


# Pages


def test_neighbours_share_a_page_and_long_ones_have_their_own() -> None:
    assert stretches([(30, 30), (10, 12), (500, 900), (96, 108)], 100) == [(10, 30), (96, 108), (500, 900)]
    assert stretches([(1, 1), (98, 98)], 100) == [(1, 98)]
    assert stretches([(1, 1), (99, 99)], 100) == [(1, 1), (99, 99)], "the rows on both sides are in the page, too"
    assert stretches([], 100) == []


async def test_a_long_hole_is_asked_for_page_by_page(look: Any, bucket: Any, settings: Any) -> None:
    market = Skipping(("BTCUSDT",), rate=20, mix={"aggTrade": 1}, with_others=False, start_ms=us(NOON) // 1000)
    for _ in market.frames(8000):
        pass
    rows = market.instrument(FUTURES, "BTCUSDT").agg_trades
    every = [json.loads(row) for row in rows.from_id(rows.oldest_id, 2600, 0)]
    some = without(every, *range(10, 2590))
    market.skipped = frozenset([every[1000]["a"], every[2000]["a"]])
    record(settings(), live(some))
    bucket.put(daily(), lines(some))
    async with answering(market) as exchange:
        found = await look(rest=exchange.rest_url)
    assert (found.verdict, found.filled_by_rest, found.not_at_venue, found.rest_pages) == ("complete", 2578, 2, 3)
    assert ids(settings()) == [row["a"] for row in every if row["a"] not in market.skipped]


async def test_a_row_of_rest_that_no_check_lets_pass_is_set_aside(
    look: Any, bucket: Any, settings: Any, market: Any
) -> None:
    rows = trades(market)
    some = without(rows, 50)
    market.altered = {rows[50]["a"]: {"p": "0"}}
    record(settings(), live(some))
    bucket.put(daily(), lines(some))
    async with answering(market) as exchange:
        for hours in range(2):
            found = await look(rest=exchange.rest_url, now=NEXT_DAY + timedelta(hours=hours))
            assert (found.verdict, found.filled_by_rest, found.not_at_venue) == ("complete", 0, 1)
    (told,) = held(settings(), "rejected").to_dicts()
    assert "price_nonpositive" in told["reason"]
    assert str(rows[50]["a"]) in told["payload"]


# Files


async def test_a_day_without_its_own_file_is_in_that_of_its_month(
    look: Any, bucket: Any, settings: Any, market: Any
) -> None:
    rows = trades(market)
    other_day = [row | {"a": row["a"] - COUNT, "T": row["T"] - 2 * 86_400_000} for row in rows]
    record(settings(), live(without(rows, 5)))
    path = bucket.put(
        File(FUTURES, "aggTrades", "BTCUSDT", "", "monthly", date(2024, 1, 1)), lines([*other_day, *rows])
    )
    found = await look(now=LATER)
    assert (found.verdict, found.path, found.filled_by_dump, found.dump_rows) == ("complete", path, 1, COUNT)
    assert ids(settings()) == [row["a"] for row in rows], "of other days nothing was asked for"


async def test_a_month_is_every_day_of_it(look: Any, bucket: Any, settings: Any, market: Any) -> None:
    rows = trades(market)
    next_day = [row | {"a": row["a"] + COUNT, "T": row["T"] + 86_400_000} for row in rows]
    record(settings(), live([*rows, *without(next_day, 3)]))
    bucket.put(daily(), lines(rows))
    bucket.put(daily(day=date(2024, 1, 16)), lines(next_day))
    outcome = await look.many(wanted(day="2024-01"), now=LATER)
    assert len(outcome.days) == 31
    assert outcome.is_good
    found = {day.date.day: day.verdict for day in outcome.days if day.dump_rows is not None}
    assert found == {15: "complete", 16: "complete"}
    assert held(settings(), "coverage").height == 31


async def test_a_file_with_another_sum_is_of_no_use_and_the_next_day_goes_on(
    look: Any, bucket: Any, settings: Any, market: Any, watched: Any
) -> None:
    rows = trades(market)
    record(settings(), live(rows))
    path = bucket.put(daily(), lines(rows), sha256="0" * 64)
    bucket.put(
        daily(day=date(2024, 1, 16)), lines([rows[-1] | {"a": rows[-1]["a"] + 1, "T": rows[-1]["T"] + 86_400_000}])
    )
    outcome = await look.many(
        wanted_of("um", "agg_trade", "BTCUSDT", "2024-01-15", "2024-01-16", "1m", today=LATER.date())
    )
    bad, good = outcome.days
    assert (bad.verdict, bad.is_good, bad.dump_rows) == ("unverifiable", False, None)
    assert "its .CHECKSUM says 000" in bad.fault
    assert bucket.asked.count(path) == 2
    assert good.filled_by_dump == 1
    assert sorted(state for _, state, _ in watched.told) == ["failed", "ingested"]
    assert not list((settings().landing).rglob("*.zip"))


async def test_an_archive_that_lies_there_already_is_used_and_left_there(
    look: Any, bucket: Any, settings: Any, market: Any
) -> None:
    rows = trades(market)
    record(settings(), live(rows))
    path = bucket.put(daily(), lines(rows))
    place = settings().landing / path
    place.parent.mkdir(parents=True)
    place.write_bytes(bucket.files[path])
    assert (await look()).verdict == "complete"
    assert path not in bucket.asked
    assert place.exists()


# Whatever happens meanwhile


async def test_what_a_broken_store_has_stopped_is_done_the_next_time(
    look: Any, bucket: Any, settings: Any, market: Any, watched: Any, tmp_path: Path
) -> None:
    rows = trades(market)
    market.skipped = frozenset([rows[200]["a"]])
    record(settings(), live(changed(without(rows, 10, 50, 200), 100, p="1.5")))
    bucket.put(daily(), lines(without(rows, 8, 50, 200)))
    table, away = tmp_path / "tables" / "gap", tmp_path / "gap"

    def break_store() -> None:
        table.rename(away)

    watched.on_done = break_store
    async with answering(market) as exchange:
        with pytest.raises(CommitFailed, match="gap"):
            await look(rest=exchange.rest_url)
        away.rename(table)
        assert ids(settings()) == [row["a"] for row in without(rows, 200)], "rows come before what is said of them"
        watched.on_done = lambda: None
        found = await look(rest=exchange.rest_url)
    assert (found.verdict, found.not_at_venue, found.rows) == ("differs", 1, COUNT - 1)
    assert ids(settings()) == [row["a"] for row in without(rows, 200)]
    assert held(settings(), "gap")["reason"].to_list() == ["venue"]
    assert len(found_of(settings(), "row_differs")) == len(found_of(settings(), "dump_lacks_rows")) == 1


async def test_rows_that_a_recorder_adds_meanwhile_are_not_added_twice(
    look: Any, bucket: Any, settings: Any, market: Any, watched: Any
) -> None:
    rows = trades(market)
    record(settings(), live(without(rows, *range(10, 20))))
    bucket.put(daily(), lines(rows))
    late = [live(rows[10:20])]
    watched.on_read = lambda: record(settings(), late.pop()) if late else None
    found = await look()
    assert (found.verdict, found.filled_by_dump) == ("complete", 0)
    assert ids(settings()) == [row["a"] for row in rows]
    assert held(settings(), "agg_trade")["source"].unique().to_list() == ["live"]


async def test_rows_that_a_repair_adds_while_rest_is_asked_are_not_added_twice(
    look: Any, settings: Any, market: Any, watched: Any
) -> None:
    rows = trades(market)
    record(settings(), live(without(rows, 50)))
    watched.on_read = lambda: record(settings(), live([rows[50]]))
    async with answering(market) as exchange:
        found = await look(rest=exchange.rest_url)
    assert (found.rest_pages, found.filled_by_rest) == (1, 0)
    assert ids(settings()) == [row["a"] for row in rows]


async def test_a_row_that_the_table_has_on_another_day_is_not_added_again(
    look: Any, settings: Any, market: Any
) -> None:
    rows = trades(market)
    some = changed(rows, 49, T=rows[49]["T"] - 86_400_000)
    record(settings(), live(without(some, 50)))
    async with answering(market) as exchange:
        found = await look(rest=exchange.rest_url)
    assert (found.rest_pages, found.filled_by_rest) == (1, 1)
    assert ids(settings()) == [row["a"] for row in rows]


async def test_whoever_stops_it_gets_what_was_done(bucket: Any, settings: Any, market: Any, watched: Any) -> None:
    rows, stop = trades(market), threading.Event()
    record(settings(), live(without(rows, 5)))
    bucket.put(daily(), lines(rows))
    watched.on_read = stop.set
    outcome = await reconcile(settings(), wanted(), watched, stop=stop, clock=lambda: NEXT_DAY)
    assert (outcome.is_stopped, outcome.is_good, outcome.days) == (True, False, [])
    assert len(ids(settings())) == COUNT - 1
    watched.on_read = lambda: None
    outcome = await reconcile(settings(), wanted(), watched, clock=lambda: NEXT_DAY)
    assert [day.filled_by_dump for day in outcome.days] == [1]


# A file that was replaced is compared by backfill, too


async def test_backfill_says_how_a_replaced_file_differs_and_notes_it_once(
    look: Any, bucket: Any, settings: Any, market: Any, watched: Any
) -> None:
    rows = trades(market)
    bucket.put(daily(), lines(rows))
    await binance.backfill(settings(), wanted(), watched, clock=lambda: NEXT_DAY)
    bucket.put(daily(), lines(changed(without(rows, 3), 99, p="1.5")))
    done = await binance.backfill(settings(), wanted(), watched, clock=lambda: NEXT_DAY + timedelta(hours=1))
    (told,) = done.compared
    assert (told.symbol, told.date, told.only_ours, told.differing) == ("BTCUSDT", DAY, 1, 1)
    assert [pair.dump for pair in told.pairs] == [{"price": 1.5}]
    assert done.verdicts == {"differs": 1}
    assert [each["first_id"] for each in found_of(settings(), "row_differs")] == [rows[100]["a"]]
    again = await look(now=NEXT_DAY + timedelta(hours=2))
    assert again.verdict == "differs"
    assert len(found_of(settings(), "row_differs")) == len(found_of(settings(), "dump_lacks_rows")) == 1


async def test_a_replaced_file_that_was_noticed_and_not_taken_is_taken_the_next_time(
    bucket: Any, settings: Any, market: Any, watched: Any
) -> None:
    rows = trades(market)
    bucket.put(daily(), lines(without(rows, 3)))
    await binance.backfill(settings(), wanted(), watched, clock=lambda: NEXT_DAY)
    bucket.put(daily(), lines(rows))
    stop = threading.Event()
    watched.on_read = stop.set
    hour = timedelta(hours=1)
    await binance.backfill(settings(), wanted(), watched, clock=lambda: NEXT_DAY + hour, stop=stop)
    assert held(settings(), "dump_file").sort("state_time")["state"].to_list() == ["ingested", "replaced"]
    watched.on_read = lambda: None
    done = await binance.backfill(settings(), wanted(), watched, clock=lambda: NEXT_DAY + 2 * hour)
    assert (done.added, done.verdicts) == (1, {"complete": 1})
    assert ids(settings()) == [row["a"] for row in rows]
    states = held(settings(), "dump_file").sort("state_time")["state"].to_list()
    assert states == ["ingested", "replaced", "ingested"]


async def test_a_replaced_file_whose_commit_failed_is_taken_the_next_time(
    bucket: Any, settings: Any, market: Any, watched: Any
) -> None:
    rows = trades(market)
    bucket.put(daily(), lines(rows[:-40]))
    await binance.backfill(settings(), wanted(), watched, clock=lambda: NEXT_DAY)
    bucket.put(daily(), lines(rows))
    late = list(rows[-40:-10])
    # However often it tries, somebody else has just added one of its rows.
    watched.on_read = lambda: record(settings(), live([late.pop(0)]))
    hour = timedelta(hours=1)
    with pytest.raises(CommitFailed, match="keeps adding"):
        await binance.backfill(settings(), wanted(), watched, clock=lambda: NEXT_DAY + hour)
    watched.on_read = lambda: None
    done = await binance.backfill(settings(), wanted(), watched, clock=lambda: NEXT_DAY + 2 * hour)
    assert done.verdicts == {"complete": 1}
    assert ids(settings()) == [row["a"] for row in rows]


# The command line


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("2024-13", "write a day (2024-01-15) or a month (2024-01)"),
        ("yesterday", "write a day (2024-01-15) or a month (2024-01)"),
        ("2024-01-15T10:00", "write a day (2024-01-15) or a month (2024-01)"),
        ("2024-02-03", "that is yet to come; today is 2024-02-02 (UTC)"),
        ("2016-01", "Binance began on 2017-07-14"),
    ],
)
def test_a_date_that_is_none_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match="--date") as raised:
        day_or_month(text, today=date(2024, 2, 2))
    assert sentence in str(raised.value)
    assert day_or_month("2024-02", today=date(2024, 2, 2)) == "2024-02"


async def command(home: Path, bucket: Any, *words: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of `crypto-lake reconcile` with these words."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LAKE_")}
    nobody = "http://127.0.0.1:9"
    own = {"LAKE_BINANCE_DUMPS": bucket.address, "LAKE_BINANCE_FUTURES_REST": nobody, "LAKE_BINANCE_REST": nobody}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "crypto_lake", "reconcile", *words),
        cwd=home,
        env={**clean, **own},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert b"Traceback" not in err, err.decode()
    return process.returncode or 0, out.decode(), err.decode()


ONE_DAY = ("--dataset", "agg_trade", "--symbols", "BTCUSDT", "--date", "2024-01-15")


async def test_the_table_shows_both_sides_and_the_status_says_that_they_differ(
    bucket: Any, settings: Any, market: Any, tmp_path: Path
) -> None:
    rows = trades(market)
    record(settings(), live(without(rows, 5)))
    bucket.put(daily(), lines(changed(without(rows, 8), 99, p="1.5")))
    status, out, _ = await command(tmp_path, bucket, *ONE_DAY)
    assert status == 1
    (line,) = [line.split() for line in out.splitlines() if line.strip().startswith("BTCUSDT   2024-01-15")]
    assert line == ["BTCUSDT", "2024-01-15", "differs", "300", "299", "1", "0", "1", "1", "0", "0"]
    assert f"agg_trade_id {rows[100]['a']} at 12:0" in out
    assert f"ours price {float(rows[100]['p'])}, file price 1.5; REST was not asked" in out
    assert "BTCUSDT 2024-01-15: REST: not asked: older than what REST still has" in out
    assert "BTCUSDT 2024-01-15: 1 row only we have:" in out


async def test_the_same_for_programs(bucket: Any, settings: Any, market: Any, tmp_path: Path) -> None:
    rows = trades(market)
    record(settings(), live(without(rows, 5)))
    bucket.put(daily(), lines(without(rows, 8)))
    status, out, _ = await command(tmp_path, bucket, *ONE_DAY, "--json")
    (day,) = json.loads(out)
    assert status == 0
    assert (day["symbol"], day["date"], day["verdict"], day["rows"]) == ("BTCUSDT", "2024-01-15", "complete", COUNT)
    assert (day["filled_by_dump"], day["only_ours"], day["differing"], day["rest"]) == (1, 1, 0, "not asked")
    (lone,) = day["rows_only_ours"]
    assert lone["key"] == {"agg_trade_id": rows[8]["a"]}
    assert lone["row"]["price"] == float(rows[8]["p"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--dataset", "depth", "--symbols", "BTCUSDT", "--date", "2024-01"), "there are no official files of depth"),
        ((*ONE_DAY[:4], "--date", "2024-1-1"), "write a day (2024-01-15) or a month (2024-01)"),
        ((*ONE_DAY, "--market", "umm"), "did you mean 'um'?"),
    ],
)
async def test_a_mistake_is_one_sentence(bucket: Any, tmp_path: Path, words: Any, sentence: str) -> None:
    status, out, err = await command(tmp_path, bucket, *words)
    assert (status, out) == (1, "")
    assert err.startswith("crypto-lake: ")
    assert sentence in err
    assert err.count("\n") == 1


async def test_nothing_anywhere_is_said_and_is_no_success(bucket: Any, tmp_path: Path) -> None:
    status, out, _ = await command(tmp_path, bucket, *ONE_DAY)
    assert status == 1
    assert "no official file is published, and the table has no row" in out
