"""Imbalance bars are those of ANALYTICS 2, to the last bit, however the trades are cut and whatever runs the loop."""

import gzip
import importlib.util
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Final

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import apart
from benchmarks import imbalance as contest
from crypto_lake.features import compiled, imbalance
from crypto_lake.features.imbalance import Counts, Fed, Parameters, State, begin, feed
from crypto_lake.models.dataset import TIME

START_US: Final = 1_763_640_000_000_000
COLUMNS: Final = (
    "bar", "open_time", "close_time", "open", "high", "low", "close", "volume", "dollar_value", "buy_volume",
    "buy_dollar_value", "ticks", "theta", "exp_ticks", "exp_imbalance", "threshold", "first_id", "last_id", "tick_num",
)  # fmt: skip
SMALL: Final = Parameters(init_ticks=5, imbalance_window=8, num_prev_bars=3, min_ticks=2, max_ticks=7)
EXAMPLES: Final = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

Row = dict[str, Any]


# The reference: the text of ANALYTICS 2 with lists, one trade after the other


def weighted_mean(values: Sequence[float], span: float) -> float:
    """EW of 2.2."""
    a = 2 / (span + 1)
    y = values[0]
    for x in values[1:]:
        y = y * (1 - a) + x
    d = 1.0
    for i in range(1, len(values)):
        d = d + (1 - a) ** i
    return y / d


def opened(trade: Row) -> Row:
    sums = dict.fromkeys(("volume", "dollar_value", "buy_volume", "buy_dollar_value", "theta"), 0.0)
    price = trade["price"]
    ends = {"open_time": trade["time"], "first_id": trade["id"], "open": price, "high": price, "low": price}
    return {**ends, **sums, "ticks": 0}


def added(bar: Row, trade: Row, sign: int, x: float) -> None:
    price, quantity = trade["price"], trade["quantity"]
    bar["high"], bar["low"], bar["close"] = max(bar["high"], price), min(bar["low"], price), price
    bar["close_time"], bar["last_id"] = trade["time"], trade["id"]
    bar["volume"] += quantity
    bar["dollar_value"] += price * quantity
    if sign == 1:
        bar["buy_volume"] += quantity
        bar["buy_dollar_value"] += price * quantity
    bar["ticks"] += 1
    bar["theta"] += x


def signs(trades: Sequence[Row], side: str) -> Iterator[int]:
    sign, last = 0, None
    for trade in trades:
        if side == "aggressor":
            sign = -1 if trade["is_buyer_maker"] else 1
        elif last is not None and trade["price"] != last:
            sign = 1 if trade["price"] > last else -1
        last = trade["price"]
        yield sign


def reference(trades: Sequence[Row], p: Parameters) -> list[Row]:
    """Steps 1 to 7 of 2.2, and the floor of 2.4."""
    expected_ticks, expected, size = float(p.init_ticks), None, 0.0
    values: list[float] = []
    lengths: list[float] = []
    bars: list[Row] = []
    bar: Row | None = None
    for number, (trade, sign) in enumerate(zip(trades, signs(trades, p.side), strict=True), 1):
        bar = bar or opened(trade)
        w = {"tick": 1.0, "volume": trade["quantity"], "dollar": trade["price"] * trade["quantity"]}[p.kind]
        values.append(sign * w)
        added(bar, trade, sign, sign * w)
        m = min(len(values), p.imbalance_window)
        if expected is None and number >= expected_ticks:
            expected, size = (weighted_mean(some, m) for some in (values[-m:], [abs(x) for x in values[-m:]]))
        if expected is None:
            continue
        threshold = expected_ticks * max(abs(expected), p.min_imbalance_share * size)
        if abs(bar["theta"]) > threshold or (p.compare == "ge" and abs(bar["theta"]) == threshold):
            tested = {"exp_ticks": expected_ticks, "exp_imbalance": expected, "threshold": threshold}
            bars.append({**bar, **tested, "bar": len(bars), "tick_num": number})
            lengths.append(float(bar["ticks"]))
            if p.mode == "ema":
                expected_ticks = weighted_mean(lengths[-p.num_prev_bars :], p.num_prev_bars)
                expected_ticks = float(min(max(expected_ticks, p.min_ticks), p.max_ticks))
            expected, size = (weighted_mean(some, m) for some in (values[-m:], [abs(x) for x in values[-m:]]))
            bar = None
    return bars


def share_reference(trades: Sequence[Row], p: Parameters) -> list[Row]:
    """The variant usd_share of 2.4."""
    dollars, share = p.init_dollars, 1.0
    bars: list[Row] = []
    bar: Row | None = None
    for number, (trade, sign) in enumerate(zip(trades, signs(trades, "aggressor"), strict=True), 1):
        bar = bar or opened(trade)
        added(bar, trade, sign, sign * (trade["price"] * trade["quantity"]))
        threshold = dollars * abs(share)
        if abs(bar["theta"]) >= threshold:
            tested = {"exp_dollar": dollars, "exp_share": share, "threshold": threshold}
            bars.append({**bar, **tested, "bar": len(bars), "tick_num": number})
            of_bar = abs(2 * bar["buy_dollar_value"] / bar["dollar_value"] - 1)
            if share == 1.0:
                dollars, share = bar["dollar_value"], of_bar
            else:
                dollars += p.alpha_d * (bar["dollar_value"] - dollars)
                share += p.alpha_s * (of_bar - share)
            bar = None
    return bars


# Markets


def frame(rows: Sequence[Row]) -> pl.DataFrame:
    schema = {
        "id": pl.Int64,
        "time": pl.Int64,
        "price": pl.Float64,
        "quantity": pl.Float64,
        "is_buyer_maker": pl.Boolean,
    }
    return pl.DataFrame(rows, schema=schema).with_columns(pl.col("time").cast(TIME))


def rows_of(trades: pl.DataFrame) -> list[Row]:
    return trades.with_columns(pl.col("time").to_physical()).to_dicts()


def market(prices: Sequence[float], *, sold: Sequence[bool] | None = None) -> pl.DataFrame:
    """One unit at each of these prices, a second apart."""
    flags = sold or [False] * len(prices)
    return frame(
        [
            {"id": n, "time": START_US + n * 10**6, "price": price, "quantity": 1.0, "is_buyer_maker": flag}
            for n, (price, flag) in enumerate(zip(prices, flags, strict=True), 1)
        ]
    )


@st.composite
def markets(draw: st.DrawFn, *, most: int = 120) -> pl.DataFrame:
    """Few prices and quantities, so that much is equal; ids with holes, times that may stand still."""
    step = st.tuples(st.integers(-2, 2), st.integers(1, 30), st.booleans(), st.integers(1, 3), st.integers(0, 2))
    price, number, at = 1000, 0, START_US
    rows = []
    for move, lots, is_sold, jump, wait in draw(st.lists(step, max_size=most)):
        price, number, at = max(price + move, 1), number + jump, at + wait * 250_000
        rows.append({"id": number, "time": at, "price": price / 10, "quantity": lots / 1000, "is_buyer_maker": is_sold})
    return frame(rows)


def any_parameters() -> st.SearchStrategy[Parameters]:
    return st.builds(
        Parameters,
        kind=st.sampled_from(["tick", "volume", "dollar"]),
        side=st.sampled_from(["aggressor", "tick"]),
        mode=st.sampled_from(["const", "ema"]),
        compare=st.sampled_from(["ge", "gt"]),
        init_ticks=st.sampled_from([0.5, 1, 3, 7.5]),
        imbalance_window=st.sampled_from([1, 2, 5, 40]),
        num_prev_bars=st.integers(1, 4),
        min_ticks=st.sampled_from([0, 1.5, 4]),
        max_ticks=st.sampled_from([4, 6.5, math.inf]),
        min_imbalance_share=st.sampled_from([0, 0.02, 0.7]),
    )


SHARES: Final = st.builds(
    Parameters,
    kind=st.just("usd_share"),
    init_dollars=st.sampled_from([0.5, 10.0, 60.0]),
    alpha_d=st.sampled_from([0, 0.1, 1]),
    alpha_s=st.sampled_from([0.1, 0.4]),
)
ANY: Final = st.one_of(any_parameters(), SHARES)


def made(trades: pl.DataFrame, p: Parameters) -> pl.DataFrame:
    return feed(trades, p, begin(p)).bars


def assert_same(ours: pl.DataFrame, wanted: Sequence[Row]) -> None:
    """Equal bit by bit; a zero has a sign, too."""
    found = ours.with_columns(pl.col("open_time", "close_time").to_physical()).to_dicts()
    assert [{name: repr(bar[name]) for name in ours.columns} for bar in wanted] == [
        {name: repr(value) for name, value in bar.items()} for bar in found
    ]


@pytest.fixture(scope="module")
def plainly() -> Callable[..., Fed]:
    """`feed` as it is where there is no Numba: the same file, not compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "compiled", lambda function: function)
        patch.setattr(compiled, "IS_COMPILED", False)
        spec = importlib.util.spec_from_file_location("imbalance_in_plain_python", imbalance.__file__)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module.feed


# What a bar is


@EXAMPLES
@given(markets(), any_parameters())
def test_the_bars_are_those_of_the_text(trades: pl.DataFrame, p: Parameters) -> None:
    bars = made(trades, p)
    assert tuple(bars.columns) == COLUMNS
    assert_same(bars, reference(rows_of(trades), p))


@EXAMPLES
@given(markets(), SHARES)
def test_the_bars_of_usd_share_are_those_of_the_text(trades: pl.DataFrame, p: Parameters) -> None:
    bars = made(trades, p)
    assert {"exp_dollar", "exp_share", "last_id"} <= set(bars.columns)
    assert_same(bars, share_reference(rows_of(trades), p))


@EXAMPLES
@given(markets(), ANY)
def test_plain_python_makes_the_bars_of_the_compiled_loop(
    plainly: Callable[..., Fed], trades: pl.DataFrame, p: Parameters
) -> None:
    ours, theirs = feed(trades, p, begin(p)), plainly(trades, p, begin(p))
    assert ours.bars.equals(theirs.bars)
    assert ours.state.to_bytes() == theirs.state.to_bytes()
    assert ours.counts == theirs.counts


LARGE: Final = [
    Parameters(init_ticks=500, imbalance_window=1000, min_ticks=250, max_ticks=1000),
    Parameters("tick", "tick", "ema", "gt", 400, 1500, 3, 300, 1200),
    Parameters("volume", "tick", "const", "ge", 300, 700),
    Parameters("dollar", "aggressor", "ema", "ge", 500, 2000, 5, 500, 2000, 0.02),
    Parameters("usd_share", init_dollars=2e5),
]


@pytest.mark.parametrize("p", LARGE, ids=lambda p: f"{p.kind}-{p.side}-{p.mode}-{p.compare}")
def test_a_long_market_has_the_bars_of_the_text(plainly: Callable[..., Fed], p: Parameters) -> None:
    """Rings go round, and pieces end, many times."""
    trades = contest.market(60_000)
    bars = made(trades, p)
    assert bars.height > 30
    assert_same(bars, (share_reference if p.kind == "usd_share" else reference)(rows_of(trades), p))
    assert plainly(trades, p, begin(p)).bars.equals(bars)


def test_the_pieces_in_which_trades_are_read_are_not_to_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    trades, p = contest.market(20_000), replace(SMALL, mode="ema")
    whole = feed(trades, p, begin(p))
    monkeypatch.setattr(imbalance, "PIECE", 777)
    monkeypatch.setattr(imbalance, "ROOM", 2)
    in_pieces = feed(trades, p, begin(p))
    assert in_pieces.bars.equals(whole.bars)
    assert in_pieces[1:] == whole[1:]


def test_the_first_bar_begins_with_the_first_trade_and_ends_at_the_earliest_with_the_warm_up() -> None:
    sold = [False] * 4 + [True] * 4
    first = made(market([10.0] * 8, sold=sold), replace(SMALL, kind="tick")).row(0, named=True)
    assert (first["first_id"], first["last_id"], first["ticks"]) == (1, 5, 5)
    assert (first["theta"], first["exp_ticks"]) == (3.0, 5.0)


@pytest.mark.parametrize(("compare", "ends"), [("ge", [5, 6, 7, 8, 9, 10, 11]), ("gt", [8])])
def test_with_nothing_expected_every_trade_is_a_bar_or_none_until_a_sign_comes(compare: Any, ends: list[int]) -> None:
    """By the tick rule a price that stands still has no sign."""
    p = replace(SMALL, kind="tick", side="tick", compare=compare)
    bars = made(market([10.0] * 7 + [11.0] * 4), p)
    assert bars.filter(pl.col("threshold") == 0)["last_id"].to_list() == ends[: 4 if compare == "ge" else 1]
    assert_same(bars, reference(rows_of(market([10.0] * 7 + [11.0] * 4)), p))


def test_the_sign_of_the_tick_rule_lives_on_across_bars() -> None:
    p = Parameters("tick", "tick", "const", "ge", 1, 1)
    bars = made(market([10, 11, 11, 11, 10, 10, 12]), p)
    assert bars["theta"].to_list() == [0.0, 1.0, 1.0, 1.0, -1.0, -1.0, 1.0]
    assert bars["buy_volume"].to_list() == [0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0]


def test_refreshes_that_hit_a_limit_and_bars_of_one_trade_are_counted() -> None:
    p = Parameters("tick", "aggressor", "ema", "ge", 1, 1, 1, 2, 3)
    fed = feed(market([10.0] * 9), p, begin(p))
    assert fed.bars["ticks"].to_list() == [1, 2, 2, 2, 2]
    assert fed.counts == Counts(clamped=1, one_tick_bars=1, skipped=0, refused=0)


# What enters


def test_an_id_enters_once_in_its_order_and_what_is_no_trade_does_not(plainly: Callable[..., Fed]) -> None:
    clean = contest.market(3_000).with_columns(pl.col("time").cast(TIME))
    bad = clean.head(5).with_columns(
        pl.Series("id", [50_001, 50_002, 50_003, 50_004, None]),
        pl.Series("price", [None, 0.0, math.nan, 1.0, 1.0], strict=False),
        pl.Series("quantity", [1.0, 1.0, 1.0, -1.0, 1.0]),
    )
    # A row that is no trade does not use up an id.
    worse = clean.slice(10, 1).with_columns(pl.lit(0.0).alias("price"))
    shuffled = pl.concat([worse, clean, clean.slice(100, 50), bad]).sample(fraction=1, shuffle=True, seed=3)
    for fed in (feed(shuffled, SMALL, begin(SMALL)), plainly(shuffled, SMALL, begin(SMALL))):
        assert fed.bars.equals(made(clean, SMALL))
        assert fed.counts.skipped == 50
        assert fed.counts.refused == 6


def test_trades_that_were_used_are_skipped() -> None:
    trades = contest.market(2_000)
    half = feed(trades.head(1_000), SMALL, begin(SMALL))
    again = feed(trades.slice(600), SMALL, half.state)
    assert again.counts.skipped == 400
    assert again.state == feed(trades, SMALL, begin(SMALL)).state


def test_a_trade_that_does_not_say_who_was_the_aggressor_has_a_sign_by_the_tick_rule_only() -> None:
    trades = contest.market(100).with_columns(pl.lit(None, pl.Boolean).alias("is_buyer_maker"))
    with pytest.raises(ValueError, match="is_buyer_maker is null"):
        feed(trades, SMALL, begin(SMALL))
    assert made(trades.drop("is_buyer_maker"), replace(SMALL, side="tick")).height


def test_nothing_makes_nothing() -> None:
    fed = feed(frame([]), SMALL, begin(SMALL))
    assert fed.state == begin(SMALL)
    assert dict(fed.bars.schema) == dict(made(contest.market(100), SMALL).schema)


# Properties (ANALYTICS 8)


@EXAMPLES
@given(markets(), ANY, st.data())
def test_a_beginning_has_the_bars_of_the_whole_that_end_in_it(trades: pl.DataFrame, p: Parameters, data: Any) -> None:
    count = data.draw(st.integers(0, trades.height))
    bars = made(trades, p)
    assert made(trades.head(count), p).equals(bars.filter(pl.col("tick_num") <= count))


@EXAMPLES
@given(markets(), ANY, st.data())
def test_what_comes_later_changes_no_bar(trades: pl.DataFrame, p: Parameters, data: Any) -> None:
    at_us = START_US + data.draw(st.integers(0, 240)) * 250_000
    poisoned = pl.when(pl.col("time").to_physical() >= at_us).then(3.0).otherwise(1.0)
    before = pl.col("close_time").to_physical() < at_us
    ours, theirs = made(trades, p), made(trades.with_columns(pl.col("price", "quantity") * poisoned), p)
    assert ours.filter(before).equals(theirs.filter(before))


@EXAMPLES
@given(markets(), ANY, st.data())
def test_trades_may_be_cut_anywhere(trades: pl.DataFrame, p: Parameters, data: Any) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, trades.height), max_size=5)))
    state, bars = begin(p), [made(trades.head(0), p)]
    for start, end in pairwise([0, *cuts, trades.height]):
        fed = feed(trades.slice(start, end - start), p, State.from_bytes(state.to_bytes()))
        bars.append(fed.bars)
        state = fed.state
    whole = feed(trades, p, begin(p))
    assert pl.concat(bars).equals(whole.bars)
    assert state == whole.state


@EXAMPLES
@given(markets(), ANY)
def test_a_mirrored_market_has_the_same_bars_with_other_signs(trades: pl.DataFrame, p: Parameters) -> None:
    p = replace(p, side="aggressor")
    mirrored = made(trades.with_columns(~pl.col("is_buyer_maker")), p)
    signed = [name for name in ("theta", "exp_imbalance") if name in mirrored.columns]
    bars = made(trades, p)
    same = [name for name in bars.columns if name not in signed and not name.startswith("buy_")]
    if p.kind == "usd_share":  # its share is made of the bought dollars, and those of the sold ones are other floats
        same = ["bar", "first_id", "last_id", "ticks", "volume", "open", "high", "low", "close"]
    assert mirrored.select(same).equals(bars.select(same))
    assert mirrored.select(signed).equals(bars.select(-pl.col(signed)))


@EXAMPLES
@given(markets(), ANY)
def test_states_are_kept_to_the_last_bit(trades: pl.DataFrame, p: Parameters) -> None:
    state = feed(trades, p, begin(p)).state
    assert State.from_bytes(state.to_bytes()) == state


def test_a_state_of_another_version_is_refused() -> None:
    kept = begin(SMALL).to_bytes()
    with pytest.raises(ValueError, match="version 99"):
        State.from_bytes(b"\x63" + kept[1:])
    with pytest.raises(ValueError, match="version none"):
        State.from_bytes(b"")


def test_most_ticks_of_0_are_no_limit() -> None:
    assert Parameters(max_ticks=0) == Parameters(max_ticks=math.inf)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"kind": "trick"}, "kind=trick is none of tick, volume, dollar, usd_share"),
        ({"side": "maker"}, "side=maker is none of aggressor, tick"),
        ({"mode": "sma"}, "mode=sma is none of const, ema"),
        ({"compare": "lt"}, "compare=lt is none of ge, gt"),
        ({"init_ticks": 0}, "init_ticks=0 is not above 0"),
        ({"init_ticks": math.nan}, "init_ticks=nan is not above 0"),
        ({"imbalance_window": 0}, "imbalance_window=0 is not from 1 to 10000000"),
        ({"num_prev_bars": 0}, "num_prev_bars=0 is not from 1 to 10000000"),
        ({"min_ticks": -1}, "min_ticks=-1 is not at least 0"),
        ({"min_ticks": 5, "max_ticks": 4}, "min_ticks=5 is above max_ticks=4"),
        ({"min_ticks": 0, "max_ticks": -1}, "max_ticks=-1 is not above 0"),
        ({"min_imbalance_share": -0.1}, "min_imbalance_share=-0.1 is not at least 0"),
        ({"init_dollars": -5}, "init_dollars=-5 is not above 0"),
        ({"alpha_s": 1.5}, "alpha_s=1.5 is not from 0 to 1"),
        ({"kind": "usd_share", "side": "tick"}, "kind=usd_share knows side=aggressor only"),
        ({"kind": "usd_share", "compare": "gt"}, "kind=usd_share knows compare=ge only"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Parameters(**wrong)


# Real trades, and what others make of made-up ones


def captured(paths: Sequence[Path]) -> pl.DataFrame:
    """The trades of captures, read with json and nothing of ours."""
    found = {}
    for path in paths:
        with gzip.open(path, "rt") as lines:
            for line in lines:
                told = json.loads(line.partition(" ")[2])
                trade = told.get("data", {})
                if told.get("stream", "").endswith("@trade") and trade.get("X") != "NA":
                    found[trade["t"]] = trade
    return frame(
        [
            {
                "id": number,
                "time": trade["T"] * 1000,
                "price": float(trade["p"]),
                "quantity": float(trade["q"]),
                "is_buyer_maker": trade["m"],
            }
            for number, trade in sorted(found.items())
        ]
    )


@pytest.mark.parametrize("names", ["usdm_btcusdt_20240718", "spot_btcusdt_20240808"])
def test_captured_trades_have_the_bars_of_the_text(data: Path, names: str) -> None:
    """Two days of each, over midnight."""
    first, day = data / "captures" / f"{names}.gz", int(names[-8:])
    trades = captured([first, first.with_name(f"{names[:-8]}{day + 1}.gz")])
    assert trades.height > 1000
    for p in (
        Parameters(init_ticks=200, imbalance_window=400, min_ticks=100, max_ticks=400),
        Parameters("volume", "tick", "ema", "gt", 200, 400, 3, 100, 400, 0.02),
        Parameters("tick", "aggressor", "ema", "ge", 50, 200, 3, 50, 200),
    ):
        bars = made(trades, p)
        assert bars.height > 3
        assert_same(bars, reference(rows_of(trades), p))
    p = Parameters("usd_share", init_dollars=1e5)
    assert_same(made(trades, p), share_reference(rows_of(trades), p))


OTHERS: Final[dict[str, tuple[tuple[str, ...], str, imbalance.Compare]]] = {
    "mlfinpy": (contest.MLFINPY, contest.MLFINPY_SCRIPT, "gt"),
    "risklabai": (contest.RISKLABAI, contest.RISKLABAI_SCRIPT, "ge"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_another_library_makes_the_same_bars(tmp_path: Path, name: str) -> None:
    requirements, script, compare = OTHERS[name]
    try:
        python = apart.python_with(name, *requirements)
    except apart.NotMade as error:
        pytest.skip(f"{name} cannot be had: {error}")
    trades = contest.market(30_000, seed=7)
    sets = [
        Parameters(kind, "tick", mode, compare, 500, 1000, 3, 250, 1000)
        for kind, mode in product(("tick", "volume", "dollar"), ("const", "ema"))
    ]
    contest.save(trades, tmp_path)
    theirs = contest.asked(python, script, sets, tmp_path, trades.height)
    for p, answer in zip(sets, theirs, strict=True):
        ends = made(trades, p)["tick_num"].to_list()
        assert len(ends) > 15
        assert ends == answer["ends"], p
