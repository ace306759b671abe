"""Holes in ids are found where they are, and nowhere else."""

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_lake.models import DATASETS
from crypto_lake.processors.sequence import INTERVALS, columns_needed, has_sequence, holes

START = datetime(2024, 1, 15, tzinfo=UTC)
AGG_TRADE, DEPTH = DATASETS["agg_trade"], DATASETS["depth"]


def at(second: int) -> datetime:
    return START + timedelta(seconds=second)


def trades(*ids: int, venue: str = "binance-futures", symbol: str = "BTCUSDT") -> pl.DataFrame:
    rows: dict[str, Any] = {"venue": venue, "symbol": symbol, "time": [at(n) for n in ids], "agg_trade_id": list(ids)}
    return pl.DataFrame(rows, schema_overrides={name: AGG_TRADE.schema[name] for name in columns_needed(AGG_TRADE)})


def events(*links: tuple[int | None, int, int | None], is_snapshot: bool = False, symbol: str = "B") -> pl.DataFrame:
    """Depth rows of (first, final, previous); the time is the final id in seconds."""
    first, final, previous = zip(*links, strict=True)
    return pl.DataFrame(
        {
            "venue": "v",
            "symbol": symbol,
            "time": [at(n) for n in final],
            "first_update_id": first,
            "final_update_id": final,
            "previous_update_id": previous,
            "is_snapshot": is_snapshot,
        },
        schema={name: DEPTH.schema[name] for name in columns_needed(DEPTH)},
    )


def ids(found: pl.DataFrame) -> list[tuple[int, int]]:
    return found.select("first_id", "last_id").sort("first_id").rows()


def test_a_hole_lies_between_the_rows_on_either_side() -> None:
    found = holes(AGG_TRADE, trades(1, 2, 6))
    assert found.to_dicts() == [
        {
            "venue": "binance-futures",
            "symbol": "BTCUSDT",
            "first_id": 3,
            "last_id": 5,
            "start_time": at(2),
            "end_time": at(6),
        }
    ]
    assert dict(found.schema) == INTERVALS


def test_every_venue_and_symbol_counts_for_itself() -> None:
    frame = pl.concat([trades(1, 2), trades(9, 10, symbol="ETHUSDT"), trades(5, 7, venue="binance")])
    assert holes(AGG_TRADE, frame).select("venue", "first_id", "last_id").rows() == [("binance", 6, 6)]


@given(st.sets(st.integers(0, 60), max_size=40), st.randoms(use_true_random=False))
def test_holes_and_rows_together_are_all_the_ids(held: set[int], random: Any) -> None:
    shuffled = [*held, *list(held)[:3]]
    random.shuffle(shuffled)
    found = holes(AGG_TRADE, trades(*shuffled))
    missing = [n for first, last in ids(found) for n in range(first, last + 1)]
    assert missing == ([n for n in range(min(held), max(held)) if n not in held] if held else [])


def test_a_broken_chain_of_futures_depth_is_a_hole_up_to_what_the_next_event_follows() -> None:
    assert ids(holes(DEPTH, events((11, 15, 10), (17, 20, 15), (31, 35, 28)))) == [(21, 28)]


def test_spot_depth_has_no_previous_id_and_must_go_on_with_the_next_one() -> None:
    assert ids(holes(DEPTH, events((11, 15, None), (16, 20, None), (25, 26, None)))) == [(21, 24)]


def test_a_snapshot_is_no_link_of_the_chain() -> None:
    chain, snapshot = events((11, 15, 10), (31, 35, 28)), events((None, 30, None), is_snapshot=True)
    assert ids(holes(DEPTH, pl.concat([snapshot, chain]))) == [(16, 28)]


def test_an_event_that_reaches_back_leaves_nothing_out() -> None:
    assert ids(holes(DEPTH, events((11, 15, 10), (14, 22, 13), (23, 25, 22)))) == []


def test_the_order_of_the_rows_does_not_matter() -> None:
    frame = pl.concat([events((11, 15, 10), (31, 35, 28)), events((17, 20, 15))])
    assert holes(DEPTH, frame.reverse()).equals(holes(DEPTH, frame))


def test_no_rows_have_no_holes() -> None:
    assert holes(AGG_TRADE, trades()).is_empty()


def test_a_dataset_without_ids_in_sequence_is_not_asked() -> None:
    assert not has_sequence(DATASETS["prices"])
    with pytest.raises(AssertionError):
        holes(DATASETS["prices"], pl.DataFrame())
