"""What is missing, to the id: rows come lost, late, twice, out of order, and the rows of `gap` say what lacks."""

from collections.abc import Iterable, Sequence

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from crypto_lake.models import DATASETS
from crypto_lake.models.dataset import TIME
from crypto_lake.models.frame import Lapse
from crypto_lake.models.gap import FILLED, GAP, NOT_AT_VENUE, OPEN, UNFILLABLE
from crypto_lake.processors.follow import Followed, Follower, Gone, Hole, Page, gap_rows
from crypto_lake.processors.states import newest

AGG_TRADE, DEPTH, LIQUIDATION = DATASETS["agg_trade"], DATASETS["depth"], DATASETS["liquidation"]
BTC = ("binance-futures", "BTCUSDT")
SECOND_US = 1_000_000


def trades(ids: Sequence[int], *, symbol: str = "BTCUSDT", received: Sequence[int] | None = None) -> pl.DataFrame:
    """Rows of trades: the trade of id n happened at second n, and came at that second unless said otherwise."""
    return pl.DataFrame(
        {
            "venue": ["binance-futures"] * len(ids),
            "symbol": [symbol] * len(ids),
            "time": [each * SECOND_US for each in ids],
            "received_time": [each * SECOND_US for each in (received or ids)],
            "agg_trade_id": list(ids),
        },
        schema_overrides={"time": pl.Int64, "received_time": pl.Int64, "agg_trade_id": pl.Int64},
    ).with_columns(pl.col("time", "received_time").cast(TIME))


def events(links: Sequence[tuple[int | None, int, int]], *, is_snapshot: bool = False) -> pl.DataFrame:
    """Rows of depth: previous, first and final update id."""
    count = len(links)
    return pl.DataFrame(
        {
            "venue": ["binance-futures"] * count,
            "symbol": ["BTCUSDT"] * count,
            "time": [final * SECOND_US for _, _, final in links],
            "received_time": [final * SECOND_US for _, _, final in links],
            "previous_update_id": [previous for previous, _, _ in links],
            "first_update_id": [first for _, first, _ in links],
            "final_update_id": [final for _, _, final in links],
            "is_snapshot": [is_snapshot] * count,
        },
        schema_overrides={"previous_update_id": pl.Int64, "time": pl.Int64, "received_time": pl.Int64},
    ).with_columns(pl.col("time", "received_time").cast(TIME))


def step(follower: Follower, rows: pl.DataFrame, **more: object) -> list[Hole]:
    """One batch, committed; what has to be written down."""
    found = follower.follow(rows, 0, **more)  # type: ignore[arg-type]
    follower.advance(found)
    return found.holes


def said(holes: Iterable[Hole]) -> list[tuple[int | None, int | None, str]]:
    return [(hole.first_id, hole.last_id, hole.state) for hole in holes]


def following(*ids: int) -> Follower:
    follower = Follower(AGG_TRADE)
    assert step(follower, trades(ids)) == []
    return follower


def test_ids_in_order_leave_nothing_to_say() -> None:
    follower = following(1, 2, 3)
    assert step(follower, trades([4, 5])) == []
    assert step(follower, trades([5, 4, 6])) == []


def test_a_jump_is_a_hole_between_the_rows_on_either_side() -> None:
    (hole,) = step(following(1, 2), trades([3, 7, 8]))
    assert (hole.ids, hole.start_us, hole.end_us) == ((4, 6), 3 * SECOND_US, 7 * SECOND_US)
    assert (hole.reason, hole.state, hole.group) == ("sequence", OPEN, BTC)


def test_a_jump_between_batches_is_a_hole_too() -> None:
    (hole,) = step(following(1, 2), trades([5]))
    assert (hole.ids, hole.start_us) == ((3, 4), 2 * SECOND_US)


def test_the_first_row_ever_follows_nothing() -> None:
    assert step(Follower(AGG_TRADE), trades([100, 101])) == []


def test_after_a_restart_the_hole_reaches_from_the_last_row_held() -> None:
    follower = Follower(AGG_TRADE)
    follower.learn([(*BTC, 10, 10 * SECOND_US)])
    (hole,) = step(follower, trades([15]), lapses=[lapse("restart", 10, 14)])[-1:]
    assert (hole.ids, hole.reason, hole.start_us) == ((11, 14), "restart", 10 * SECOND_US)


def lapse(reason: str, since_s: float | None, until_s: float | None, symbol: str = "BTCUSDT") -> Gone:
    us = [None if each is None else int(each * SECOND_US) for each in (since_s, until_s)]
    return Gone(("binance-futures", symbol), Lapse([symbol], reason, *us))


def test_symbols_do_not_mix() -> None:
    rows = pl.concat([trades([1, 2, 3]), trades([7, 9], symbol="ETHUSDT")])
    (hole,) = step(Follower(AGG_TRADE), rows)
    assert (hole.symbol, hole.ids) == ("ETHUSDT", (8, 8))


def test_what_comes_later_fills_the_hole() -> None:
    follower = following(1)
    step(follower, trades([5]))
    (hole,) = step(follower, trades([3, 2, 4]))
    assert (hole.ids, hole.state, hole.filled_rows) == ((2, 4), FILLED, 3)
    assert follower.open_holes == []


def test_a_part_filled_divides_the_hole() -> None:
    follower = following(1)
    step(follower, trades([10]))
    holes = step(follower, trades([4, 5]))
    assert said(holes) == [(2, 3, OPEN), (4, 5, FILLED), (6, 9, OPEN)]
    assert holes[0].start_us == SECOND_US, "the row of the same key is the new state of the old one"
    assert said(follower.open_holes) == [(2, 3, OPEN), (6, 9, OPEN)]
    assert said(step(follower, trades([2, 3, 6, 7, 8]))) == [(2, 3, FILLED), (6, 8, FILLED), (9, 9, OPEN)]


def test_what_was_asked_for_and_did_not_come_is_nowhere() -> None:
    follower = following(1)
    step(follower, trades([10]))
    holes = step(follower, trades([4, 5, 8]), pages=[Page(BTC, 4, 8)])
    assert said(holes) == [
        (2, 3, OPEN), (4, 5, FILLED), (6, 7, UNFILLABLE), (8, 8, FILLED), (9, 9, OPEN),
    ]  # fmt: skip
    assert [hole.reason for hole in holes if hole.state == UNFILLABLE] == [NOT_AT_VENUE]


def test_rows_set_aside_are_missing_because_of_the_venue() -> None:
    aside = trades([3]).with_columns(is_final=pl.lit(value=True))
    holes = step(following(1), trades([5]), aside=aside)
    assert [(hole.ids, hole.state, hole.reason) for hole in holes] == [
        ((2, 2), OPEN, "sequence"), ((3, 3), UNFILLABLE, NOT_AT_VENUE), ((4, 4), OPEN, "sequence"),
    ]  # fmt: skip


def test_what_stands_right_behind_the_batch_was_only_out_of_order() -> None:
    follower = following(1)
    found = follower.follow(trades([5]), 0)
    follower.patch(found, trades([3, 4], received=[6, 60]), until_us=7 * SECOND_US)
    assert said(found.holes) == [(2, 2, OPEN), (4, 4, OPEN)], "in time for 3, too late for 4"


def test_events_chain_by_what_they_say_that_they_follow() -> None:
    follower = Follower(DEPTH)
    assert step(follower, events([(10, 12, 15), (15, 18, 20)])) == [], "on futures U is not the last u + 1"
    (hole,) = step(follower, events([(31, 33, 40)]))
    assert (hole.ids, hole.state) == ((21, 31), UNFILLABLE)
    assert step(follower, events([(None, 0, 99)], is_snapshot=True)) == [], "a snapshot fills nothing"
    (late,) = step(follower, events([(20, 22, 31)]))
    assert (late.ids, late.state, late.filled_rows) == ((21, 31), FILLED, 1)


def test_spot_events_chain_by_their_first_id() -> None:
    follower = Follower(DEPTH)
    assert step(follower, events([(None, 1, 4), (None, 5, 6)])) == []
    assert said(step(follower, events([(None, 9, 9)]))) == [(7, 8, UNFILLABLE)]


def test_a_lapse_of_a_dataset_without_ids_stays_for_good() -> None:
    follower = Follower(LIQUIDATION)
    (begun,) = step(follower, pl.DataFrame(), lapses=[lapse("disconnect", 5, None)])
    assert (begun.first_id, begun.start_us, begun.end_us, begun.state) == (None, 5 * SECOND_US, None, UNFILLABLE)
    (over,) = step(follower, pl.DataFrame(), lapses=[lapse("disconnect", 5, 9)])
    assert (over.start_us, over.end_us, over.state) == (5 * SECOND_US, 9 * SECOND_US, UNFILLABLE)


def test_a_lapse_of_a_dataset_with_ids_gives_the_holes_their_reason() -> None:
    follower = following(1, 2)
    (over, hole) = step(follower, trades([6]), lapses=[lapse("silence", 2, 6)])
    assert (over.first_id, over.end_us, over.state) == (None, 6 * SECOND_US, FILLED)
    assert (hole.ids, hole.reason) == ((3, 5), "silence")
    (later,) = step(follower, trades([7, 9]))
    assert later.reason == "sequence", "that lapse is over"


def test_behind_the_last_row_of_a_mute_symbol_the_venue_can_be_asked() -> None:
    follower = following(1, 2)
    step(follower, pl.DataFrame(), lapses=[lapse("silence", 2, None)])
    (tail,) = follower.open_holes
    assert tail.ids[0] == 3
    step(follower, trades([3, 4]))  # by REST: it is still mute
    assert follower.open_holes[0].ids[0] == 5
    step(follower, trades([5], received=[9]), lapses=[lapse("silence", 2, 9)])
    assert follower.open_holes == []


def test_a_lapse_stays_open_until_a_row_from_behind_it_says_what_was_missed() -> None:
    follower = following(1, 2)
    (ended,) = step(follower, pl.DataFrame(), lapses=[lapse("restart", 2, 6)])
    assert (ended.state, ended.end_us) == (OPEN, 6 * SECOND_US)
    assert [hole.ids[0] for hole in follower.open_holes] == [3], "the venue is asked for what may be there"
    assert step(follower, trades([3], received=[5])) == [], "that row was received before"
    (proven,) = step(follower, trades([4], received=[7]))
    assert (proven.start_us, proven.state) == (ended.start_us, FILLED)
    assert follower.open_holes == []


def test_a_lapse_of_no_length_ends_what_lasts_and_says_nothing_else() -> None:
    for dataset in (LIQUIDATION, AGG_TRADE):
        follower = Follower(dataset)
        rows = trades([])
        (lasting,) = step(follower, rows, lapses=[lapse("silence", 10, None)])
        (ended,) = step(follower, rows, lapses=[lapse("restart", 30, 30)])
        assert (ended.reason, ended.start_us, ended.end_us) == ("silence", lasting.start_us, 30 * SECOND_US)
        assert step(follower, rows, lapses=[lapse("restart", 40, 40)]) == []
        assert step(follower, rows, lapses=[lapse("restart", 50, 50, "ETHUSDT")]) == []


def test_a_restart_ends_what_was_still_open() -> None:
    follower = Follower(LIQUIDATION)
    step(follower, pl.DataFrame(), lapses=[lapse("disconnect", 5, None)])
    holes = step(follower, pl.DataFrame(), lapses=[lapse("restart", 8, 20)])
    assert [(hole.start_us // SECOND_US, (hole.end_us or 0) // SECOND_US) for hole in holes] == [(5, 20)]


def test_the_very_first_start_is_no_gap_and_every_later_one_is() -> None:
    follower = Follower(LIQUIDATION)
    assert step(follower, pl.DataFrame(), lapses=[lapse("restart", None, 20)]) == []
    follower.learn([(*BTC, 7 * SECOND_US, 7 * SECOND_US)])
    (hole,) = step(follower, pl.DataFrame(), lapses=[lapse("restart", None, 20)])
    assert (hole.start_us, hole.end_us) == (7 * SECOND_US, 20 * SECOND_US)


def test_a_first_start_beside_another_recorder_that_was_faster_is_no_gap() -> None:
    follower = Follower(LIQUIDATION)
    follower.learn([(*BTC, 21 * SECOND_US, 21 * SECOND_US)])
    assert step(follower, pl.DataFrame(), lapses=[lapse("restart", None, 20)]) == []


def test_a_batch_that_is_not_committed_has_changed_nothing() -> None:
    follower = following(1)
    first = follower.follow(trades([5]), 0, lapses=[lapse("silence", 1, None)])
    second = follower.follow(trades([5]), 0, lapses=[lapse("silence", 1, None)])
    assert first.holes == second.holes
    assert follower.open_holes == []


def test_what_somebody_else_filled_is_not_asked_for_after_a_restart() -> None:
    """A backfill wrote into the middle of a hole that the recorder knows as one."""
    found = following(1).follow(trades([10]), 0)
    theirs = Followed(state_us=1, changed=[Hole(*BTC, 4, 5, 4 * SECOND_US, 5 * SECOND_US, "sequence", FILLED, 2)])
    restored = Follower(AGG_TRADE)
    restored.learn([(*BTC, 10, 10 * SECOND_US)])
    restored.restore(pl.concat([gap_rows(AGG_TRADE, found), gap_rows(AGG_TRADE, theirs)]))
    assert said(restored.open_holes) == [(2, 3, OPEN), (6, 9, OPEN)]
    assert said(step(restored, trades([3, 6]))) == [(2, 2, OPEN), (3, 3, FILLED), (6, 6, FILLED), (7, 9, OPEN)]


class Lake:
    """A table of ids and a table of gaps, fed by a follower that is thrown away now and then."""

    def __init__(self) -> None:
        self.held: set[int] = set()
        self.gaps = gap_rows(AGG_TRADE, Followed())
        self.follower = Follower(AGG_TRADE)

    def restart(self) -> None:
        self.follower = Follower(AGG_TRADE)
        if self.held:
            last = max(self.held)
            self.follower.learn([(*BTC, last, last * SECOND_US)])
        self.follower.restore(self.gaps)

    def take(self, ids: Sequence[int], *, page: Page | None) -> Followed:
        found = self.follower.follow(trades(ids), 0, pages=[page] if page else [])
        self.gaps = pl.concat([self.gaps, gap_rows(AGG_TRADE, found)])
        self.follower.advance(found)
        self.held |= set(ids)
        return found

    def states(self) -> dict[str, set[int]]:
        rows = self.gaps.sort("state_time", maintain_order=True).unique(GAP.key, keep="last", maintain_order=True)
        states: dict[str, set[int]] = {OPEN: set(), UNFILLABLE: set(), FILLED: set()}
        for row in rows.iter_rows(named=True):
            ids = set(range(row["first_id"], row["last_id"] + 1))
            if row["state"] != FILLED:
                assert not ids & (states[OPEN] | states[UNFILLABLE]), "holes that are open do not overlap"
            states[row["state"]] |= ids
        left = newest(self.gaps).filter(pl.col("state") != FILLED)
        assert left.sort(GAP.key).equals(rows.filter(pl.col("state") != FILLED).sort(GAP.key)), "as one writer says it"
        return states


@given(st.lists(st.tuples(st.lists(st.integers(1, 60), max_size=8), st.booleans(), st.booleans()), max_size=12))
def test_the_rows_of_gap_name_exactly_the_missing_ids(batches: list[tuple[list[int], bool, bool]]) -> None:
    lake = Lake()
    for ids, restarts, is_page in batches:
        if restarts:
            lake.restart()
        page = Page(BTC, min(ids), max(ids)) if is_page and ids else None
        # A page is an answer to a question about what lies below the newest row.
        lake.take(ids, page=page if page and lake.held and page.last_id <= max(lake.held) else None)
    states = lake.states()
    if lake.held:
        reach = set(range(min(_from_first_batch(batches)), max(lake.held) + 1))
        assert states[OPEN] | states[UNFILLABLE] == reach - lake.held


def _from_first_batch(batches: list[tuple[list[int], bool, bool]]) -> list[int]:
    """Recording begins with the first batch that holds anything; what is older was never promised."""
    return next(ids for ids, *_ in batches if ids)
