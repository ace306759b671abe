"""The rows of gap say the same in any order, whoever wrote them: what is filled stays filled, no id is told twice."""

from datetime import UTC, datetime, timedelta
from itertools import product
from random import Random
from typing import Any

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from crypto_lake.models.gap import FILLED, GAP, NOT_AT_VENUE, OPEN, UNFILLABLE
from crypto_lake.processors.states import newest

MIDNIGHT = datetime(2024, 1, 15, tzinfo=UTC)


def minute(number: float) -> datetime:
    return MIDNIGHT + timedelta(minutes=number)


def row(
    ids: tuple[int, int] | None, state: str = OPEN, *, at: int = 0, minutes: tuple[float, float | None] | None = None,
    **columns: Any,
) -> dict[str, Any]:  # fmt: skip
    """A row of gap whose state came about in second `at`; the fact with id n is in minute n."""
    first_id, last_id = ids or (None, None)
    start, end = minutes or ((ids or (0, 0))[0] - 1, (ids or (0, 0))[1] + 1)
    return {
        "venue": "binance",
        "symbol": "BTCUSDT",
        "dataset": "agg_trade",
        "first_id": first_id,
        "last_id": last_id,
        "start_time": minute(start),
        "end_time": None if end is None else minute(end),
        "reason": "disconnect",
        "state": state,
        "filled_rows": 0,
        "state_time": MIDNIGHT + timedelta(seconds=at),
        "date": minute(start).date(),
    } | columns


def states(*rows: dict[str, Any]) -> pl.DataFrame:
    return newest(pl.DataFrame(list(rows), schema=GAP.schema))


def said(*rows: dict[str, Any]) -> list[tuple[int | None, int | None, str]]:
    return states(*rows).select("first_id", "last_id", "state").rows()


def lacking(*rows: dict[str, Any]) -> list[tuple[int | None, int | None, str]]:
    return [each for each in said(*rows) if each[2] != FILLED]


def test_without_rows_there_is_nothing_to_say() -> None:
    assert dict(states().schema) == GAP.schema


def test_what_one_writer_filled_no_other_makes_missing_again() -> None:
    filled = row((10, 20), FILLED, at=5)
    for at in (1, 5, 9):
        for ids in ((10, 20), (12, 15)):
            for state in (OPEN, UNFILLABLE):
                assert lacking(row(ids, state, at=at), filled) == []


def test_a_row_of_which_a_part_was_filled_divides() -> None:
    found = states(row((10, 20), at=9, reason="silence"), row((13, 14), FILLED, at=1), row((20, 30), FILLED, at=1))
    left = found.filter(pl.col("state") == OPEN)
    assert left.select("first_id", "last_id").rows() == [(10, 12), (15, 19)]
    assert left.select("start_time", "end_time").rows() == [(minute(9), minute(12)), (minute(15), minute(19))]
    assert set(left["reason"]) == {"silence"}
    assert left["date"].to_list() == [MIDNIGHT.date()] * 2
    assert dict(found.schema) == GAP.schema


def test_a_piece_over_midnight_is_of_the_day_on_which_it_begins() -> None:
    hole = row((10, 20), minutes=(1430, 1500))
    left = states(hole, row((10, 12), FILLED, minutes=(1430, 1450))).filter(pl.col("state") == OPEN)
    assert left.select("first_id", "start_time", "date").rows() == [(13, minute(1450), minute(1450).date())]


def test_the_times_of_a_piece_are_never_outside_of_its_row() -> None:
    hole = row((10, 20), minutes=(100, 200))
    left = states(hole, row((12, 13), FILLED, minutes=(50, 60)), row((15, 16), FILLED, minutes=(300, 400)))
    for start, end in left.filter(pl.col("state") == OPEN).select("start_time", "end_time").iter_rows():
        assert minute(100) <= start <= end <= minute(200)


def test_symbols_venues_and_datasets_are_apart() -> None:
    for other in ({"symbol": "ETHUSDT"}, {"venue": "binance-futures"}, {"dataset": "trade"}):
        assert lacking(row((10, 20)), row((12, 14), FILLED, **other)) == [(10, 20, OPEN)]


def test_the_newest_row_of_a_key_is_its_state() -> None:
    assert lacking(row((10, 15), at=2), row((10, 20), at=1)) == [(10, 15, OPEN)]
    assert lacking(row((10, 15), at=1), row((10, 20), at=1)) == [(10, 15, OPEN)], "of one time it is the shorter one"
    assert lacking(row((10, 20), at=1), row((10, 20), UNFILLABLE, at=1)) == [(10, 20, UNFILLABLE)]


def test_ids_that_two_writers_miss_are_told_once_by_the_newer_row() -> None:
    found = states(row((10, 20), at=1, reason="restart"), row((15, 30), at=2, reason="sequence"))
    assert found.select("first_id", "last_id", "reason").rows() == [(10, 14, "restart"), (15, 30, "sequence")]
    assert lacking(row((10, 20), at=3), row((15, 17), at=2)) == [(10, 20, OPEN)]


def test_what_the_venue_does_not_have_stays_so_while_another_still_waits_for_it() -> None:
    nowhere = row((13, 14), UNFILLABLE, at=1, reason=NOT_AT_VENUE)
    for at in (0, 5):
        assert lacking(row((10, 20), at=at), nowhere) == [(10, 12, OPEN), (13, 14, UNFILLABLE), (15, 20, OPEN)]


def test_a_filled_beginning_under_the_same_key_leaves_the_rest_missing() -> None:
    for at in (1, 3):
        both = said(row((10, 20), at=at), row((10, 12), FILLED, at=2))
        assert both == [(10, 12, FILLED), (13, 20, OPEN)]


def test_pieces_that_were_written_again_are_not_told_twice() -> None:
    rows = [row((10, 20)), row((12, 13), FILLED, at=1), row((14, 20), at=2, minutes=(13, 21)),
            row((14, 16), FILLED, at=3), row((17, 20), at=3, minutes=(16, 21))]  # fmt: skip
    assert lacking(*rows) == [(10, 11, OPEN), (17, 20, OPEN)]


# Without ids


def test_a_time_without_delivery_is_what_the_newest_row_of_its_key_says() -> None:
    begun, ended = row(None, at=1, minutes=(5, None)), row(None, at=2, minutes=(5, 9))
    assert states(begun, ended)["end_time"].to_list() == [minute(9)]
    assert said(begun, ended, row(None, FILLED, at=3, minutes=(5, 9))) == [(None, None, FILLED)]
    assert said(begun, ended, row(None, FILLED, at=3, minutes=(6, 9))) == [(None, None, OPEN), (None, None, FILLED)]


def test_a_time_that_was_filled_stays_filled_unless_it_went_on() -> None:
    filled = row(None, FILLED, at=3, minutes=(5, 9))
    assert said(filled, row(None, at=9, minutes=(5, 9))) == [(None, None, FILLED)]
    assert said(filled, row(None, at=9, minutes=(5, 8))) == [(None, None, FILLED)]
    assert said(filled, row(None, at=9, minutes=(5, 30))) == [(None, None, OPEN)]
    assert said(filled, row(None, at=9, minutes=(5, None))) == [(None, None, OPEN)]
    assert said(filled, row(None, at=1, minutes=(5, None))) == [(None, None, FILLED)]


# Whatever the rows and their order


SPANS = st.tuples(st.integers(1, 30), st.integers(0, 8)).map(lambda span: (span[0], span[0] + span[1]))
ROWS = st.lists(
    st.builds(
        lambda ids, state, at, reason, symbol, begin: row(
            ids, state, at=at, reason=reason, symbol=symbol, minutes=(begin, begin + 40)
        ),
        st.none() | SPANS,
        st.sampled_from([OPEN, UNFILLABLE, FILLED]),
        st.integers(0, 3),
        st.sampled_from(["disconnect", NOT_AT_VENUE]),
        st.sampled_from(["BTCUSDT", "ETHUSDT"]),
        st.integers(0, 2),
    ),
    max_size=12,
)


@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(rows: list[dict[str, Any]], random: Random) -> None:
    before = states(*rows)
    random.shuffle(rows)
    assert states(*rows).equals(before)


@given(ROWS)
def test_every_id_is_told_once_and_those_that_are_filled_are_not(rows: list[dict[str, Any]]) -> None:
    found = states(*rows).drop_nulls("first_id")
    for symbol in ("BTCUSDT", "ETHUSDT"):
        own = [each for each in rows if each["symbol"] == symbol and each["first_id"] is not None]
        filled = named(each for each in own if each["state"] == FILLED)
        told = [
            each for state in (OPEN, UNFILLABLE)
            for each in listed(found.filter(pl.col("symbol") == symbol, pl.col("state") == state).to_dicts())
        ]  # fmt: skip
        assert len(told) == len(set(told))
        assert set(told) == named(_newest_claims(own)) - filled


def listed(rows: Any) -> list[int]:
    return [id_ for each in rows for id_ in range(each["first_id"], each["last_id"] + 1)]


def named(rows: Any) -> set[int]:
    return set(listed(rows))


def _newest_claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each key that row which calls ids missing and is the newest, the furthest, the shortest one."""
    keys = product({each["first_id"] for each in rows}, {each["start_time"] for each in rows})
    claims = []
    for first_id, start in keys:
        own = [
            each for each in rows
            if (each["first_id"], each["start_time"]) == (first_id, start) and each["state"] != FILLED
        ]  # fmt: skip
        if own:
            claims.append(
                max(own, key=lambda each: (each["state_time"], each["state"] == UNFILLABLE, -each["last_id"]))
            )
    return claims
