"""What holds of features whatever the market: no look ahead, no scale, no memory but their windows."""

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_lake.features import features as computing
from crypto_lake.features.features import features
from crypto_lake.models.bar import TIMEFRAMES_US
from crypto_lake.models.feature import FEATURES, LOOKBACK, NAMES
from tests.features.feature_market import Market, market

PRICES = ("open", "high", "low", "close")
QUOTES = ("quote_volume", "taker_buy_quote_volume")
TABLES = ("reference", "books", "marks", "open_interest", "liquidations")


def made_of(made: Market, wanted: int | None = None) -> pl.DataFrame:
    return features(made.bars, wanted=wanted, **made.inputs)


def same(ours: pl.DataFrame, theirs: pl.DataFrame, names: list[str] | None = None) -> None:
    """Bit by bit."""
    unlike = [name for name in names or ours.columns if not ours[name].equals(theirs[name], null_equal=True)]
    assert unlike == []


def until(made: Market, us: int) -> Market:
    """What had happened before an instant."""
    clock = pl.col("time").dt.epoch("us")
    tables = {name: getattr(made, name).filter(clock < us) for name in TABLES}
    length = TIMEFRAMES_US[made.timeframe]
    return made.but(bars=made.bars.filter(clock + length <= us), **tables)


def opens(made: Market, row: int) -> int:
    return int(made.bars["time"].dt.epoch("us")[row])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), row=st.integers(1, 299), timeframe=st.sampled_from(["1m", "15m"]))
def test_what_comes_later_changes_no_row(seed: int, row: int, timeframe: str) -> None:
    """The features of a prefix of everything are a prefix of the features of everything."""
    made = market(seed, 300, timeframe)
    same(made_of(until(made, opens(made, row))), made_of(made).head(row))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), row=st.integers(1, 299))
def test_poison_reaches_no_row_before_it(seed: int, row: int) -> None:
    """All prices and volumes from an instant on times three."""
    made = market(seed, 300)
    late = pl.col("time").dt.epoch("us") >= opens(made, row)

    def poisoned(rows: pl.DataFrame) -> pl.DataFrame:
        numbers = [name for name, dtype in rows.schema.items() if dtype == pl.Float64()]
        levels = [name for name in ("bids", "asks") if name in rows.columns]
        fields = pl.struct(pl.element().struct.field("price") * 3, pl.element().struct.field("quantity") * 3)
        return rows.with_columns(
            *(pl.when(late).then(pl.col(name) * 3).otherwise(pl.col(name)).alias(name) for name in numbers),
            *(
                pl.when(late).then(pl.col(name).list.eval(fields)).otherwise(pl.col(name)).alias(name)
                for name in levels
            ),
        )

    bad = made.but(bars=poisoned(made.bars), **{name: poisoned(getattr(made, name)) for name in TABLES})
    clean, poison = made_of(made), made_of(bad)
    same(poison.head(row), clean.head(row))
    assert not poison.equals(clean)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), end=st.integers(LOOKBACK + 2, LOOKBACK + 120), wanted=st.integers(1, 100))
def test_a_part_with_its_lookback_is_the_same_part_of_the_whole(seed: int, end: int, wanted: int) -> None:
    made = market(seed, LOOKBACK + 120)
    whole = made_of(made)
    wanted = min(wanted, end - LOOKBACK)
    part = made.but(bars=made.bars[end - wanted - LOOKBACK : end])
    same(made_of(part, wanted), whole[end - wanted : end])


def test_no_feature_looks_further_back_than_the_registry_says() -> None:
    """And no less far: with one bar less before it, it is not what it is."""
    made = market(11, 500, idle=0.0)
    whole = made_of(made)
    row = int((whole["jump_share_60"][300:] > 0).arg_max() or 0) + 300
    for lookback in sorted({each.lookback for each in FEATURES}):
        names = [each.name for each in FEATURES if each.lookback == lookback]
        same(made_of(made.but(bars=made.bars[row - lookback : row + 1]), 1), whole[row : row + 1], names)
        if lookback:
            short = made_of(made.but(bars=made.bars[row + 1 - lookback : row + 1]), 1)
            assert [name for name in names if short[name].equals(whole[name][row : row + 1], null_equal=True)] == []


@pytest.mark.parametrize("tile", [7, 100])
def test_tiles_leave_no_seams(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = market(12, 330)
    whole = made_of(made)
    monkeypatch.setattr(computing, "TILE", tile)
    same(made_of(made), whole)


def test_the_order_of_records_does_not_matter() -> None:
    made = market(13, 200)
    mixed = {name: getattr(made, name).sample(fraction=1, shuffle=True, seed=3) for name in TABLES}
    same(made_of(made.but(**mixed)), made_of(made))


def changed(made: Market, **columns: Callable[[pl.Expr], pl.Expr]) -> Market:
    """With columns of all tables made into others."""

    def of(rows: pl.DataFrame) -> pl.DataFrame:
        return rows.with_columns(
            make(pl.col(name)).alias(name) for name, make in columns.items() if name in rows.columns
        )

    return made.but(bars=of(made.bars), **{name: of(getattr(made, name)) for name in TABLES})


def close_to(ours: pl.Series, theirs: pl.Series, rtol: float = 1e-9) -> bool:
    nulls = ours.is_null().to_list() == theirs.is_null().to_list()
    return nulls and bool(((ours - theirs).abs() <= 1e-12 + rtol * theirs.abs()).fill_null(value=True).all())


def test_prices_times_two_change_only_what_has_a_unit() -> None:
    def double(column: pl.Expr) -> pl.Expr:
        return column * 2

    def level(column: pl.Expr) -> pl.Expr:
        return column.list.eval(
            pl.struct((pl.element().struct.field("price") * 2).alias("price"), pl.element().struct.field("quantity"))
        )

    made = market(14, 420)
    priced = (*PRICES, *QUOTES, "price", "average_price", "mark_price", "index_price")
    twice = changed(made, **dict.fromkeys(priced, double), bids=level, asks=level)
    factors = {
        **dict.fromkeys(
            ("depth5_quote", "liq_long_usd_15", "liq_short_usd_15", "roll_spread_60", "kyle_lambda_60"), 2.0
        ),
        **dict.fromkeys(("amihud_30", "illiq_hl_30"), 0.5),
        "hasbrouck_lambda_60": 0.5**0.5,
    }
    before, after = made_of(made), made_of(twice)
    assert [name for name in NAMES if not close_to(after[name], before[name] * factors.get(name, 1.0))] == []


def test_the_other_side_of_every_trade_changes_the_sign_of_what_has_one() -> None:
    made = market(15, 420)
    mirrored = made.but(
        bars=made.bars.with_columns(
            taker_buy_volume=pl.col("volume") - pl.col("taker_buy_volume"),
            taker_buy_quote_volume=pl.col("quote_volume") - pl.col("taker_buy_quote_volume"),
        )
    )
    signed = {"cvd_60", "flow_imb", "flow_imb_60", "dollar_imb_15", "kyle_lambda_60", "hasbrouck_lambda_60"}
    before, after = made_of(made), made_of(mirrored)
    for name in NAMES:
        wanted = 1 - before[name] if name == "taker_buy_ratio" else before[name] * (-1 if name in signed else 1)
        # Of what adds up to nearly nothing, what is left of the parts' rounding is no difference.
        slack = 1e-6 if name in ("kyle_lambda_60", "hasbrouck_lambda_60", "cvd_60") else 1e-9
        assert close_to(after[name], wanted, slack), name


def test_records_far_from_the_bars_change_nothing() -> None:
    made = market(16, 330)
    rows, first = slice(250, 330), opens(made, 250 - 60)
    clock = pl.col("time").dt.epoch("us")
    near = {
        name: pl.concat([held.filter(clock < first).sort("time").tail(3), held.filter(clock >= first)])
        for name in TABLES
        if (held := getattr(made, name)) is not None
    }
    same(made_of(made.but(**near))[rows], made_of(made)[rows])


def test_windows_of_random_walks_agree_with_numpy() -> None:
    """A second opinion on a length that nobody wrote by hand: 5,000 bars, across tiles."""
    made = market(17, 5_000, idle=0.0).but(books=None, liquidations=None)
    got = made_of(made)
    close = made.bars["close"].to_numpy()
    returns = np.log(close[1:] / close[:-1])
    windows = np.lib.stride_tricks.sliding_window_view(returns, 30)
    assert np.allclose(got["std_30"].to_numpy()[30:], windows.std(axis=1, ddof=1), rtol=1e-10)
    highs = np.lib.stride_tricks.sliding_window_view(made.bars["high"].to_numpy(), 60)
    assert np.array_equal(got["bars_since_high_60"].to_numpy()[59:], np.argmax(highs[:, ::-1], axis=1))
