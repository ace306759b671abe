"""What a feature is: cell by cell what plain Python makes of the definitions, null exactly where null is wanted."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from crypto_lake.features.features import features
from crypto_lake.models.feature import FEATURE, FEATURES, GROUPS, LOOKBACK, NAMES, page, reach
from tests.features.feature_market import (
    BEGIN,
    Market,
    bars_of,
    books_of,
    frame,
    instants,
    liquidations_of,
    market,
    marks_of,
)
from tests.features.plain_features import plain_features

RTOL, ATOL = 1e-6, 1e-9
TINY = ("amihud_30", "illiq_hl_30", "hasbrouck_lambda_60", "bipower_60", "semivar_down_60", "semivar_up_60")
ATOLS = dict.fromkeys(TINY, 1e-15) | {"zclose_60": 1e-7, "ratio_z_60": 1e-7, "roll_spread_60": 1e-3}
# The order in which a table has them, as it is promised.
ORDER = re.findall(
    r"\w+",
    """
    ret_1 logret_1 logret_5 logret_15 logret_30 logret_60 logret_240 gap_open logret_oc
    rv_15 rv_60 rv_240 std_30 skew_60 kurt_60 bipower_60 jump_share_60 semivar_down_60 semivar_up_60 parkinson_30
    garman_klass_30 rogers_satchell_30 yang_zhang_30 vol_ratio_15_60 vol_of_vol_60
    kmid klen kmid2 kup kup2 klow klow2 ksft ksft2
    ma_ratio_20 ma_ratio_60 zclose_60 slope_20 rsqr_20 rsv_20 dist_high_60 dist_low_60 bars_since_high_60
    bars_since_low_60 rank_20 up_share_20 sumd_20 autocorr1_60 var_ratio_5_60 efficiency_20
    log_volume volume_z_60 count_z_60 rel_volume_60 avg_trade_size taker_buy_ratio flow_imb cvd_60 flow_imb_60
    dollar_imb_15 vwap_dev vwap_dev_60 corr_r_vol_30 vpin_50 trade_intensity_15 empty_share_60
    amihud_30 roll_spread_60 kyle_lambda_60 hasbrouck_lambda_60 corwin_schultz_30 zero_ret_share_30 illiq_hl_30
    spread_bps microprice_dev_bps imb_l1 imb_l5 imb_w5 depth5_quote bid_slope5 ask_slope5 ofi_l1 ofi_l5
    spread_mean_bps book_age_ms
    basis_bps mark_dev_bps funding_rate basis_z_60 minutes_to_funding oi_change_60 funding_chg_60
    liq_count_15 liq_long_usd_15 liq_short_usd_15 liq_imb_60 liq_intensity_60 secs_since_liq
    tod_sin tod_cos dow_sin dow_cos is_weekend minute_of_hour session_us
    eth_logret_1 eth_logret_5 corr_eth_60 beta_eth_60 lead_eth_60 ratio_z_60
    """,
)


def made_of(made: Market, wanted: int | None = None) -> pl.DataFrame:
    return features(made.bars, wanted=wanted, **made.inputs)


def check(made: Market) -> pl.DataFrame:
    """Holds every cell against plain Python's; returns what was made."""
    got = made_of(made)
    others = {name: value for name, value in made.inputs.items() if name != "timeframe"}
    for name, wanted in plain_features(made.bars, made.timeframe, **others).items():
        for row, (ours, theirs) in enumerate(zip(got[name].to_list(), wanted, strict=True)):
            where = f"{name} of row {row}: {ours}, not {theirs}"
            assert (ours is None) == (theirs is None), where
            if ours is not None and theirs is not None:
                assert abs(ours - theirs) <= ATOLS.get(name, ATOL) + RTOL * abs(theirs), where
    return got


def same(ours: pl.DataFrame, theirs: pl.DataFrame) -> None:
    """Bit by bit."""
    assert [name for name in ours.columns if not ours[name].equals(theirs[name], null_equal=True)] == []


def test_the_registry_has_all_features_in_their_order() -> None:
    assert list(NAMES) == ORDER
    assert len(NAMES) == 111
    columns = list(FEATURE.schema)
    first = columns.index("ret_1")
    assert columns[first : first + 111] == ORDER
    assert {FEATURE.schema[name] for name in NAMES} == {pl.Float64()}
    assert all(FEATURE.column(name).nullable for name in NAMES)
    assert {each.group for each in FEATURES} == set(GROUPS)


def test_the_page_is_made_from_the_registry() -> None:
    assert (Path(__file__).parents[2] / "docs" / "features.md").read_text() == page()
    assert re.findall(r"^\| `(\w+)` \|", page(), re.MULTILINE) == ORDER


@pytest.mark.parametrize(("timeframe", "rows"), [("1m", 420), ("5m", 150), ("1d", 150)])
def test_every_cell_is_what_plain_python_makes_of_the_definition(timeframe: str, rows: int) -> None:
    got = check(market(len(timeframe) + rows, rows, timeframe))
    assert got.columns == ["time", *ORDER]
    empty = [name for name in NAMES if not got[name].drop_nulls().len()]
    assert empty == (["logret_240", "rv_240"] if rows < 240 else [])


def test_a_cheap_symbol_is_no_other_case() -> None:
    check(market(8, 300, price=0.000123, idle=0.4))


def flat(made: Market, first: int, rows: int) -> Market:
    """With a stretch in which nobody trades and nothing moves."""
    bars, close = made.bars, made.bars["close"][first - 1]
    inside = pl.int_range(pl.len()).is_between(first, first + rows - 1)
    prices = (
        pl.when(inside).then(close).otherwise(pl.col(name)).alias(name) for name in ("open", "high", "low", "close")
    )
    sums = ("volume", "quote_volume", "count", "taker_buy_volume", "taker_buy_quote_volume")
    return made.but(
        bars=bars.with_columns(*prices, *(pl.when(inside).then(0).otherwise(pl.col(name)).alias(name) for name in sums))
    )


@pytest.mark.parametrize("price", [60_000.0, 0.1])
def test_three_hundred_bars_without_a_trade_make_nulls_and_no_infinities(price: float) -> None:
    got = check(flat(market(2, 420, price=price), 80, 300))
    for name in NAMES:
        values = got[name].drop_nulls()
        assert values.is_finite().all(), name
    dead = got[360]
    for name in ("zclose_60", "skew_60", "rsqr_20", "corr_r_vol_30", "kyle_lambda_60", "amihud_30", "jump_share_60"):
        assert dead[name][0] is None, name
    assert dead["rv_60"][0] == dead["klen"][0] == dead["roll_spread_60"][0] == 0


def test_a_million_leaves_nothing_behind_in_the_windows_of_ones() -> None:
    rng = np.random.default_rng(3)
    high, low = bars_of(rng, 100, "1m", price=1e6, idle=0), bars_of(rng, 200, "1m", price=1.0, idle=0, start=100)
    large = high.with_columns(pl.col("volume", "quote_volume", "taker_buy_volume", "taker_buy_quote_volume") * 1e6)
    both = market(3, 300).but(bars=pl.concat([large, low]))
    got = check(both)
    alone = made_of(both.but(bars=low))
    short = [each.name for each in FEATURES if each.lookback <= 100]
    same(got.select(short).tail(100), alone.select(short).tail(100))


def test_a_missing_input_makes_its_features_null_and_no_others() -> None:
    made = market(4, 320, idle=0.0)
    full = made_of(made)
    for name, tables in {
        "reference": ["reference"],
        "books": ["book_snapshot"],
        "marks": ["mark_price"],
        "open_interest": ["open_interest"],
        "liquidations": ["liquidation"],
    }.items():
        null = {each.name for each in FEATURES if any(map(each.reads, tables))}
        expect(made_of(made.but(**{name: None})), full, null)
    for column in ("volume", "quote_volume", "count", "taker_buy_volume", "taker_buy_quote_volume"):
        without = made.bars.with_columns(pl.lit(None, made.bars.schema[column]).alias(column))
        null = {each.name for each in FEATURES if f"bar.{column}" in each.inputs}
        expect(made_of(made.but(bars=without)), full, null)
    assert made.marks is not None
    for column in ("index_price", "funding_rate", "next_funding_time"):
        without = made.marks.with_columns(pl.lit(None, made.marks.schema[column]).alias(column))
        null = {each.name for each in FEATURES if f"mark_price.{column}" in each.inputs}
        expect(made_of(made.but(marks=without)), full, null)


def expect(got: pl.DataFrame, full: pl.DataFrame, null: set[str]) -> None:
    """These are null, the others are as they were."""
    assert {name for name in NAMES if got[name].is_null().all()} == null
    rest = ["time", *(name for name in NAMES if name not in null)]
    same(got.select(rest), full.select(rest))


def test_no_liquidation_at_all_is_zero_not_null() -> None:
    made = market(4, 320)
    assert made.liquidations is not None
    got = check(made.but(liquidations=made.liquidations.clear()))
    assert got["liq_count_15"].drop_nulls().unique().to_list() == [0.0]
    assert got["secs_since_liq"].is_null().all()


def test_a_null_in_a_level_reaches_what_uses_it() -> None:
    made = market(6, 60, idle=0.0)
    assert made.books is not None
    books = made.books.sort("time", "update_id")
    rng = np.random.default_rng(1)
    odd = [
        [
            {"price": None if rng.random() < 0.05 else level["price"], "quantity": level["quantity"]}
            if rng.random() < 0.7
            else None
            for level in levels
        ]
        if rng.random() < 0.3
        else levels
        for levels in books["asks"].to_list()
    ]
    got = check(made.but(books=books.with_columns(pl.Series("asks", odd, dtype=books.schema["asks"]))))
    assert got["imb_l1"].drop_nulls().len() > got["imb_l5"].drop_nulls().len() > 0


def test_the_first_row_of_every_feature_is_the_one_of_the_registry() -> None:
    """On bars that all trade, with records of all kinds from before the first bar on."""
    rng = np.random.default_rng(7)
    rows = 300
    seconds = np.arange(-90, rows * 60, 15) * 1_000_000
    base = market(7, rows, idle=0.0)
    made = base.but(
        reference=bars_of(rng, rows, "1m", price=2_500.0, idle=0),
        books=books_of(rng, seconds, 60_000.0),
        marks=market_marks(rng, seconds),
        open_interest=open_contracts(instants(seconds), rng.uniform(1, 2, len(seconds)).tolist()),
        liquidations=liquidated(rng, seconds),
    )
    got = made_of(made)
    for each in FEATURES:
        known = got[each.name].is_not_null()
        assert known.arg_max() == each.first, each.name
        assert known[each.first :].all(), each.name
    assert reach(["bar"]) == LOOKBACK == max(each.lookback for each in FEATURES) == 240


def open_contracts(at: Any, held: list[float]) -> pl.DataFrame:
    return frame("open_interest", {"time": at, "open_interest": held})


def market_marks(rng: np.random.Generator, us: np.ndarray) -> pl.DataFrame:
    filled = pl.col("index_price", "funding_rate", "next_funding_time").forward_fill().backward_fill()
    return marks_of(rng, us, 60_000.0).with_columns(filled)


def liquidated(rng: np.random.Generator, us: np.ndarray) -> pl.DataFrame:
    return liquidations_of(rng, us, 60_000.0)


# Single cases: each a few bars and what must come of them


def steps(count: int, closes: list[float] | None = None) -> pl.DataFrame:
    """Bars of one close each."""
    found = closes or [100.0] * count
    columns: dict[str, Any] = dict.fromkeys(("open", "high", "low", "close"), found)
    for name in ("volume", "quote_volume", "taker_buy_volume", "taker_buy_quote_volume"):
        columns[name] = [1.0] * count
    return frame(
        "bar", {"time": [BEGIN + timedelta(minutes=at) for at in range(count)], **columns, "count": [1] * count}
    )


def book(us: int, update_id: int, *, bid: float = 99.0, size: float = 1.0) -> dict[str, Any]:
    """A snapshot so many µs after the begin."""
    return {
        "time": BEGIN + timedelta(microseconds=us),
        "update_id": update_id,
        "bids": [{"price": bid - level, "quantity": size} for level in range(5)],
        "asks": [{"price": 101.0 + level, "quantity": 2.0} for level in range(5)],
    }


def books(*rows: dict[str, Any]) -> pl.DataFrame:
    return frame("book_snapshot", {name: [row[name] for row in rows] for name in rows[0]})


MINUTE = 60_000_000


def test_a_snapshot_of_the_last_microsecond_is_of_the_bar_and_one_of_the_next_is_not() -> None:
    held = books(book(-1, 1), book(MINUTE - 1, 2, size=3.0), book(MINUTE, 3, size=4.0))
    got = features(steps(2), timeframe="1m", books=held)
    assert got["book_age_ms"].to_list() == [0.0, 59_999.0]
    assert got["imb_l1"].to_list() == [1 / 5, 2 / 6]
    assert got["ofi_l1"].to_list() == [2.0, 1.0]


def test_a_book_of_sixty_seconds_is_used_and_an_older_one_is_not() -> None:
    edge = books(book(-1_000, 1))
    assert features(steps(1), timeframe="1m", books=edge)["book_age_ms"].to_list() == [60_000.0]
    old = books(book(-1_001, 1))
    got = features(steps(1), timeframe="1m", books=old)
    assert all(got[each.name][0] is None for each in FEATURES if each.group == "G")


def test_a_first_snapshot_has_nothing_to_flow_from() -> None:
    got = features(steps(2), timeframe="1m", books=books(book(0, 1), book(1_000_000, 2), book(MINUTE, 3)))
    assert got["ofi_l1"].to_list() == [None, 0.0]
    assert got["spread_mean_bps"].to_list() == [200.0, 200.0]


def test_snapshots_of_one_millisecond_are_ordered_by_their_ids() -> None:
    got = features(steps(1), timeframe="1m", books=books(book(500, 8, size=8.0), book(900, 7, size=7.0)))
    assert got["imb_l1"].to_list() == [6 / 10]


def test_a_bar_of_an_hour_without_a_fresh_book_has_none() -> None:
    bars = steps(1)
    got = features(bars, timeframe="1h", books=books(book(-5, 1), book(0, 2), book(58 * MINUTE, 3)))
    assert got["ofi_l1"].to_list() == [None]
    fresh = features(bars, timeframe="1h", books=books(book(-5, 1), book(0, 2), book(59 * MINUTE, 3, size=3.0)))
    assert fresh["ofi_l1"].to_list() == [2.0]


def test_a_mark_is_the_last_one_of_any_age_and_says_all_or_nothing() -> None:
    marks = frame(
        "mark_price",
        {
            "time": [BEGIN - timedelta(days=400), BEGIN + timedelta(microseconds=MINUTE - 1)],
            "mark_price": [100.0, 110.0],
            "index_price": [100.0, None],
            "funding_rate": [1e-4, None],
            "next_funding_time": [BEGIN, None],
        },
    )
    held = frame(
        "open_interest",
        {"time": [BEGIN - timedelta(days=500), BEGIN - timedelta(days=399)], "open_interest": [1.0, 2.0]},
    )
    got = features(steps(2), timeframe="1m", marks=marks, open_interest=held)
    assert got["mark_dev_bps"].round(6).to_list() == [round((100 / 110 - 1) * 1e4, 6)] * 2
    assert got["funding_rate"].is_null().all()
    early = features(steps(1), timeframe="1m", marks=marks.head(1), open_interest=held)
    assert early["funding_rate"].to_list() == [1e-4]
    assert early["minutes_to_funding"].to_list() == [-1.0]


def test_open_interest_is_that_of_the_time_of_the_mark() -> None:
    minutes = [BEGIN + timedelta(minutes=at, seconds=1) for at in range(61)]
    marks = frame("mark_price", {"time": minutes, "mark_price": [100.0] * 61, "index_price": [100.0] * 61,
                                 "funding_rate": [0.0] * 61, "next_funding_time": minutes})  # fmt: skip
    times = [BEGIN, BEGIN + timedelta(seconds=2), BEGIN + timedelta(minutes=60, seconds=1)]
    held = open_contracts(times, [10.0, 20.0, 40.0])
    got = features(steps(61), timeframe="1m", marks=marks, open_interest=held)
    assert got["oi_change_60"][60] == 3.0


def test_a_liquidation_counts_in_the_bar_of_its_time() -> None:
    us = [0, MINUTE - 1, MINUTE, 40 * MINUTE]
    held = frame(
        "liquidation",
        {
            "time": [BEGIN + timedelta(microseconds=each) for each in us],
            "side": ["SELL", "BUY", "SELL", "BUY"],
            "price": [1.0] * 4,
            "average_price": [100.0, 50.0, 10.0, 1.0],
            "quantity": [9.0] * 4,
            "filled_quantity": [1.0, 2.0, 3.0, 4.0],
        },
    )
    got = features(steps(61), timeframe="1m", liquidations=held)
    assert (got["liq_count_15"][14], got["liq_count_15"][15], got["liq_count_15"][16]) == (3.0, 1.0, 0.0)
    assert (got["liq_long_usd_15"][14], got["liq_short_usd_15"][14]) == (130.0, 100.0)
    assert got["liq_imb_60"][59] == (104 - 130) / 234
    assert got["liq_intensity_60"][59] == 234 / 60
    assert got["secs_since_liq"][:3].to_list() == [0.001, 60.0, 120.0]


def test_row_sixty_has_no_jump_since_its_bipower_variation_is_not_known() -> None:
    made = market(9, 70, idle=0.0)
    got = made_of(made)
    assert got["bipower_60"][60] is None
    assert got["jump_share_60"][59:61].to_list() == [None, 0.0]


def test_the_clock_is_that_of_the_open() -> None:
    bars = steps(3)
    friday = [BEGIN.replace(hour=13, minute=29), BEGIN.replace(hour=13, minute=30), BEGIN.replace(day=7, hour=0)]
    got = features(bars.with_columns(pl.Series("time", friday).cast(pl.Datetime("us", "UTC"))), timeframe="1m")
    assert got["session_us"].to_list() == [0.0, 1.0, 0.0]
    assert got["is_weekend"].to_list() == [0.0, 0.0, 1.0]
    assert got["minute_of_hour"].to_list() == [29.0, 30.0, 0.0]
    assert got["tod_cos"][2] == 1.0
    assert got["dow_sin"][0] == pytest.approx(np.sin(2 * np.pi * 4 / 7))


def test_ranks_and_ages_share_ties_as_they_are_told_to() -> None:
    rising = features(steps(60, [float(at + 1) for at in range(60)]), timeframe="1m")
    assert rising["rank_20"][19] == (19 + (1 + 1) / 2) / 20
    assert (rising["bars_since_high_60"][59], rising["bars_since_low_60"][59]) == (0.0, 59.0)
    level = features(steps(60), timeframe="1m")
    assert level["rank_20"][19] == (20 + 1) / 2 / 20
    assert (level["bars_since_high_60"][59], level["bars_since_low_60"][59]) == (0.0, 0.0)


def test_a_price_of_nothing_is_null_and_not_infinite() -> None:
    got = features(steps(62, [100.0] * 30 + [0.0] + [100.0] * 31), timeframe="1m")
    assert got["ret_1"][31] is None
    assert got["rogers_satchell_30"][45] is None
    assert all(got[name].drop_nulls().is_finite().all() for name in NAMES)


def test_no_bars_make_no_rows() -> None:
    got = features(steps(1).clear(), timeframe="1m")
    assert got.columns == ["time", *ORDER]
    assert got.is_empty()
