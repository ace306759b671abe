"""The table of imbalance bars: brought up to date in any steps it is what one run over all trades makes, bit by bit."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_lake.build.farm import farm
from crypto_lake.build.imbalance import BuiltBars, Record, Wanted, build, parameters
from crypto_lake.cli import main
from crypto_lake.config import ConfigError
from crypto_lake.features.imbalance import Parameters, begin, feed
from crypto_lake.models import DATASETS, Dataset
from crypto_lake.models.imbalance_bar import IMBALANCE_BAR
from crypto_lake.processors.shape import shape
from crypto_lake.writers.delta import Lake
from crypto_lake.writers.derived import Derived
from tests.build.killing import killed

AGG_TRADE, TRADE = DATASETS["agg_trade"], DATASETS["trade"]
FIRST: Final = datetime(2024, 1, 15, tzinfo=UTC)
FUTURES, SPOT = "binance-futures", "binance"
SMALL: Final = Parameters(
    mode="ema", init_ticks=20, imbalance_window=50, min_ticks=5, max_ticks=40, min_imbalance_share=0.25
)
WORDS: Final = (
    *("--mode", "ema", "--init-ticks", "20", "--imbalance-window", "50", "--min-ticks", "5", "--max-ticks", "40"),
    *("--min-imbalance-share", "0.25"),
)
PER_DAY: Final = 400
BAR_AT: Final = list(IMBALANCE_BAR.schema).index("bar")
APPS: Final = "build/imbalance/binance-futures/BTCUSDT/dollar/default"


def trades(
    days: int,
    *,
    per_day: int = PER_DAY,
    seed: int = 1,
    start: datetime = FIRST,
    dataset: Dataset = AGG_TRADE,
    **said: Any,
) -> pl.DataFrame:
    """Trades of that many days, evenly over each; around midnight some that were made a moment later have smaller ids,
    as it is on the wire."""
    dice, count = np.random.default_rng(seed), days * per_day
    step_us = 86_400_000_000 // per_day
    at_us = np.minimum(np.arange(count) * step_us + dice.integers(0, 5 * step_us, count), count * step_us - 1)
    order = dataset.order
    assert order
    rows = {
        "time": [start + timedelta(microseconds=int(each)) for each in at_us],
        order: np.arange(1, count + 1),
        "price": np.round(60_000 + 0.1 * np.cumsum(dice.integers(-2, 3, count)), 1),
        "quantity": np.round(dice.exponential(0.05, count) + 0.001, 3),
        "is_buyer_maker": dice.random(count) < 0.5 + 0.2 * np.sin(np.arange(count) / 90),
    }
    ids = {"first_trade_id": 1, "last_trade_id": 1} if dataset is AGG_TRADE else {}
    columns = {"venue": FUTURES, "symbol": "BTCUSDT", "source": "dump", **ids, **said}
    return shape(dataset, pl.DataFrame(rows).with_columns(pl.lit(value).alias(name) for name, value in columns.items()))


class Tables:
    """A root with trades, and what is made of them."""

    def __init__(self, path: Path) -> None:
        self.path, self.root = path, str(path)
        self.commits = 0

    def put(self, *frames: pl.DataFrame, dataset: Dataset = AGG_TRADE) -> None:
        lake = Lake(self.root)
        lake.check(dataset)
        for frame in frames:
            self.commits += 1
            lake.append(dataset, frame, "test", start=self.commits - 1, end=self.commits)

    def change(self, *where: pl.Expr, by: Callable[[pl.DataFrame], pl.DataFrame] = pl.DataFrame.clear) -> None:
        """Some trades are other ones now, or none."""
        into = Derived(Lake(self.root), AGG_TRADE)
        old = into.held(date.min, date.max, *where)
        assert old.height
        into.put(by(old), old)
        into.settle(all=True)

    def build(self, p: Parameters = SMALL, workers: int = 1, **wanted: Any) -> BuiltBars:
        with farm(None, workers) as (executor, at_once):
            return build(self.root, Wanted(p, **wanted), executor, at_once)

    @property
    def rows(self) -> pl.DataFrame:
        return Lake(self.root).rows(IMBALANCE_BAR).sort(IMBALANCE_BAR.key)

    def bars(self, symbol: str = "BTCUSDT") -> pl.DataFrame:
        return self.rows.filter(pl.col("symbol") == symbol)

    @property
    def version(self) -> int:
        return DeltaTable(f"{self.root}/imbalance_bar").version()

    def kept(self, app: str = APPS) -> bytes | None:
        return Derived(Lake(self.root), IMBALANCE_BAR).state(app)


def in_one_run(some: pl.DataFrame, p: Parameters = SMALL) -> pl.DataFrame:
    """What the loop makes of all trades at once."""
    return feed(some.with_columns(pl.col("agg_trade_id").alias("id")), p, begin(p)).bars


def assert_made_of(table: pl.DataFrame, some: pl.DataFrame, p: Parameters = SMALL) -> None:
    """The rows are the bars of these trades, and what else a row says."""
    wanted = in_one_run(some, p)
    assert wanted.height > 5
    assert table.select(wanted.columns).equals(wanted)
    assert (table["time"] == table["close_time"]).all()
    assert table.select("venue", "source", "kind", "settings", "received_time").unique().rows() == [
        (FUTURES, "derived", p.kind, "default", None)
    ]


@pytest.fixture
def lake(tmp_path: Path) -> Tables:
    return Tables(tmp_path / "tables")


@pytest.fixture
def assert_whole(lake: Tables, tmp_path: Path) -> Callable[..., None]:
    """Table and states are what one run over all trades makes, and another run finds nothing to do."""

    def check(**wanted: Any) -> None:
        place = tmp_path / f"anew-{lake.version}"
        shutil.copytree(lake.path / "agg_trade", place / "agg_trade")
        anew = Tables(place)
        anew.build(**wanted)
        assert lake.rows.equals(anew.rows, null_equal=True)
        assert lake.kept() == anew.kept()
        version = lake.version
        assert lake.build(**wanted).computed == 0
        assert lake.version == version

    return check


# Day after day


@pytest.mark.parametrize("p", [SMALL, Parameters("usd_share", init_dollars=2e4), replace(SMALL, side="tick")])
def test_day_by_day_it_is_one_run(lake: Tables, p: Parameters) -> None:
    made = trades(6)
    assert made.sort("agg_trade_id")["date"].is_sorted() is False
    lake.put(made.sample(fraction=1, shuffle=True, seed=1))
    done = lake.build(p)
    assert (done.series, done.days, done.notes) == (1, 6, [])
    assert done.added == done.computed == lake.rows.height
    assert_made_of(lake.rows, made, p)
    counts = feed(made.with_columns(pl.col("agg_trade_id").alias("id")), p, begin(p)).counts
    assert (done.clamped, done.one_tick_bars) == (counts.clamped, counts.one_tick_bars)
    assert counts.clamped or p.kind == "usd_share"


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(1, 4 * PER_DAY - 1), min_size=1, max_size=4, unique=True))
def test_built_in_between_at_any_time_it_is_one_run(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    """Trades come by id; a day that grows is gone on with behind the last one."""
    lake, made = Tables(tmp_path_factory.mktemp("tables")), trades(4)
    cuts = sorted({*cuts, 2 * PER_DAY - 2, 2 * PER_DAY + 1})
    for start, end in zip([0, *cuts], [*cuts, made.height], strict=True):
        lake.put(made[start:end])
        assert lake.build().notes == []
    assert_made_of(lake.rows, made)


def test_days_that_are_asked_for_one_after_the_other_are_one_run(
    lake: Tables, assert_whole: Callable[..., None]
) -> None:
    made = trades(5)
    lake.put(made)
    for number in range(5):
        day = str(FIRST.date() + timedelta(days=number))
        lake.build(start=day, end=day)
    assert_made_of(lake.rows, made)
    assert_whole(start="2024-01-15")
    assert lake.build(start="2024-01-19").computed == 0


def test_a_span_that_leaves_out_days_takes_them_along(lake: Tables) -> None:
    """Nothing begins in the middle."""
    made = trades(5)
    lake.put(made)
    lake.build(end="2024-01-16")
    lake.build(start="2024-01-19")
    assert_made_of(lake.rows, made)


def test_a_series_may_begin_late_and_then_knows_nothing_from_before(lake: Tables) -> None:
    made = trades(5)
    lake.put(made[: 4 * PER_DAY])
    lake.build(start="2024-01-17")
    lake.put(made[4 * PER_DAY :], trades(3, start=FIRST - timedelta(days=9), seed=4))
    assert lake.build().notes == []
    assert_made_of(lake.rows, made.filter(pl.col("date") >= date(2024, 1, 17)))
    with pytest.raises(ConfigError, match=r"begin with --start 2024-01-17, not 2024-01-15: choose another name"):
        lake.build(start="2024-01-15")


@pytest.mark.parametrize("workers", [1, 2])
def test_symbols_are_made_side_by_side(lake: Tables, workers: int) -> None:
    made = {
        symbol: trades(3, seed=seed, symbol=symbol) for seed, symbol in enumerate(("BTCUSDT", "ETHUSDT", "币安人生"))
    }
    lake.put(*made.values(), trades(2, seed=9, venue=SPOT))
    done = lake.build(workers=workers, venue=FUTURES)
    assert done.series == 3
    for symbol, some in made.items():
        assert_made_of(lake.bars(symbol), some)
    assert lake.build(symbols="ETHUSDT,binance:BTCUSDT").series == 2
    assert lake.rows.filter(pl.col("venue") == SPOT).height


def test_when_nothing_came_nothing_is_written(lake: Tables) -> None:
    made = trades(4)
    lake.put(made[: 3 * PER_DAY])
    lake.build()
    kept, version, files = lake.kept(), lake.version, set(lake.path.glob("imbalance_bar/date=*/*"))
    assert lake.build().computed == 0
    assert lake.version == version
    # Another symbol's rows are in the same day: it is looked at, and is the same.
    lake.put(trades(3, symbol="ETHUSDT"))
    assert lake.build(symbols="BTCUSDT").computed == 0
    assert lake.kept() == kept
    assert set(lake.path.glob("imbalance_bar/date=*/*")) == files


def test_rows_that_only_moved_are_not_looked_at_again(lake: Tables, assert_whole: Callable[..., None]) -> None:
    made = trades(3)
    lake.put(*(made[start : start + 100] for start in range(0, made.height, 100)))
    lake.build()
    DeltaTable(f"{lake.root}/agg_trade").optimize.compact()
    told: list[tuple[str, int, int]] = []
    with farm(None, 1) as (executor, at_once):
        build(lake.root, Wanted(SMALL), executor, at_once, on_step=lambda *step: told.append(step))
    assert told == []
    assert_whole()


# What comes behind


def anew(symbol: str = "BTCUSDT") -> str:
    return (
        f"{FUTURES}:{symbol}: trades came or changed behind bars that were made, so the series 'default' is made anew"
    )


def test_a_hole_that_is_filled_makes_the_series_anew(lake: Tables, assert_whole: Callable[..., None]) -> None:
    made, other = trades(5), trades(5, seed=2, symbol="ETHUSDT")
    is_hole = pl.col("agg_trade_id").is_between(2 * PER_DAY + 50, 2 * PER_DAY + 80)
    lake.put(made.filter(~is_hole), other)
    lake.build()
    before = lake.bars()
    assert_made_of(before, made.filter(~is_hole))
    lake.put(made.filter(is_hole))
    done = lake.build()
    assert done.notes == [f"{anew()} from 2024-01-15"]
    assert_made_of(lake.bars(), made)
    assert_made_of(lake.bars("ETHUSDT"), other)
    # The bars in front of the hole stand as they are.
    first = min(set(lake.bars().rows()) ^ set(before.rows()), key=lambda row: row[BAR_AT])[BAR_AT]
    assert first > 5
    assert done.removed == before.height - first
    assert done.added == lake.bars().height - first
    assert_whole()


def in_front(made: pl.DataFrame) -> tuple[pl.DataFrame, ...]:
    """The first day comes last."""
    return made[PER_DAY:], made[:PER_DAY]


def over_midnight(made: pl.DataFrame) -> tuple[pl.DataFrame, ...]:
    """A trade of the next day whose id is within the day that is done."""
    is_late = (pl.col("date") == date(2024, 1, 17)) & (pl.col("agg_trade_id") < 2 * PER_DAY)
    assert made.filter(is_late).height
    first = pl.col("date") <= date(2024, 1, 16)
    return made.filter(first), made.filter(~first & ~is_late), made.filter(is_late)


def in_the_last_day(made: pl.DataFrame) -> tuple[pl.DataFrame, ...]:
    is_late = pl.col("agg_trade_id") == made.height - 30
    return made.filter(~is_late), made.filter(is_late)


def a_day_without_any(made: pl.DataFrame) -> tuple[pl.DataFrame, ...]:
    is_late = pl.col("date") == date(2024, 1, 17)
    return made.filter(~is_late), made.filter(is_late)


@pytest.mark.parametrize("parts", [in_front, over_midnight, in_the_last_day, a_day_without_any])
def test_wherever_trades_come_late_it_is_one_run(
    lake: Tables, assert_whole: Callable[..., None], parts: Callable[[pl.DataFrame], Sequence[pl.DataFrame]]
) -> None:
    made = trades(4)
    for part in parts(made):
        lake.put(part)
        lake.build()
    assert_made_of(lake.rows, made)
    assert_whole()


def test_trades_that_come_late_over_midnight_with_the_next_day_are_seen(lake: Tables) -> None:
    """They are of a day that no bar was made of yet, and belong into one that is done."""
    made = trades(4)
    first, rest, late = over_midnight(made)
    lake.put(first)
    lake.build()
    lake.put(pl.concat([rest, late]))
    assert lake.build().notes == [f"{anew()} from 2024-01-15"]
    assert_made_of(lake.rows, made)


def test_what_was_made_before_a_late_trade_was_seen_is_not_there_twice(
    lake: Tables, assert_whole: Callable[..., None]
) -> None:
    """The day goes on, and bars are made of that; then the next day has a trade that belongs in front of them."""
    number, midnight = 2 * PER_DAY - 150, datetime(2024, 1, 17, tzinfo=UTC)
    is_late = pl.col("agg_trade_id") == number
    late = trades(4).filter(is_late).with_columns(pl.lit(midnight).alias("time"), pl.lit(midnight.date()).alias("date"))
    made = pl.concat([trades(4).filter(~is_late), late.select(*AGG_TRADE.schema)])
    is_first = (pl.col("agg_trade_id") < number + 50) & ~is_late
    lake.put(made.filter(is_first))
    lake.build()
    lake.put(made.filter(~is_first))
    assert lake.build().notes == [f"{anew()} from 2024-01-15"]
    assert_made_of(lake.rows, made)
    assert_whole()


def test_a_day_that_is_asked_for_does_not_hide_what_came_behind_it(lake: Tables) -> None:
    made = trades(4)
    first, late = a_day_without_any(made)
    lake.put(first)
    lake.build()
    lake.put(late)
    assert lake.build(end="2024-01-15").notes == [f"{anew()} from 2024-01-15"]
    assert_made_of(lake.rows, made)
    assert lake.build().computed == 0


def dearer(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(pl.col("price") + 0.1)


@pytest.mark.parametrize("by", [pl.DataFrame.clear, dearer], ids=["gone", "revised"])
@pytest.mark.parametrize("number", [1, PER_DAY + 7, 4 * PER_DAY - 1])
def test_a_trade_that_is_another_one_now_makes_the_series_anew(
    lake: Tables, assert_whole: Callable[..., None], by: Callable[[pl.DataFrame], pl.DataFrame], number: int
) -> None:
    lake.put(trades(4))
    lake.build()
    lake.change(pl.col("agg_trade_id") == number, by=by)
    assert lake.build().notes == [f"{anew()} from 2024-01-15"]
    assert_whole()


def test_a_trade_that_is_said_again_changes_nothing(lake: Tables) -> None:
    lake.put(trades(4))
    lake.build()
    lake.change(pl.col("agg_trade_id") == 700, by=lambda rows: rows.with_columns(pl.lit("rest").alias("source")))
    done = lake.build()
    assert (done.computed, done.notes) == (0, [])


def test_trades_at_the_end_that_are_gone_take_their_bars_along(lake: Tables, assert_whole: Callable[..., None]) -> None:
    lake.put(trades(4))
    lake.build()
    before = lake.rows
    lake.change(pl.col("time") >= datetime(2024, 1, 17, tzinfo=UTC))
    lake.build()
    assert lake.rows.equals(before.head(lake.rows.height))
    assert 0 < lake.rows.height < before.height
    assert_whole()


# Names of parameters


def test_a_name_stands_for_one_set_of_parameters(lake: Tables) -> None:
    made = trades(3)
    lake.put(made)
    lake.build()
    other = replace(SMALL, init_ticks=30, max_ticks=36.5)
    with pytest.raises(ConfigError) as refused:
        lake.build(other)
    assert str(refused.value) == (
        "imbalance bars 'default' of binance-futures:BTCUSDT were made with --init-ticks 20, not 30; --max-ticks 40, "
        "not 36.5: choose another name with --settings, or make them anew with --again"
    )
    lake.build(other, settings="longer")
    assert set(lake.rows["settings"]) == {"default", "longer"}
    tick = parameters(kind="tick", init_ticks=20, imbalance_window=50)
    lake.build(tick)
    assert set(lake.rows["kind"]) == {"dollar", "tick"}
    default, others = (pl.col("settings") == "default") & (pl.col("kind") == "dollar"), lake.rows
    assert lake.build(other, again=True).notes == []
    assert_made_of(lake.rows.filter(default), made, other)
    assert lake.rows.filter(~default).equals(others.filter(~default))
    with pytest.raises(ConfigError, match="made with --init-ticks 30, not 20"):
        lake.build()


def test_again_with_the_same_parameters_writes_no_bar_again(lake: Tables, assert_whole: Callable[..., None]) -> None:
    lake.put(trades(3))
    lake.build()
    done = lake.build(again=True)
    assert (done.computed, done.added, done.removed) == (lake.rows.height, 0, 0)
    assert_whole()


def test_again_may_end_earlier_or_begin_later(lake: Tables) -> None:
    made = trades(4)
    lake.put(made)
    lake.build()
    lake.build(again=True, end="2024-01-16")
    assert lake.rows["date"].max() == date(2024, 1, 16)
    lake.build(again=True, start="2024-01-16")
    assert_made_of(lake.rows, made.filter(pl.col("date") >= date(2024, 1, 16)))


def test_again_behind_all_trades_takes_nothing_away(lake: Tables, assert_whole: Callable[..., None]) -> None:
    lake.put(trades(3))
    lake.build()
    with pytest.raises(ConfigError, match="holds nothing of what is asked for on these days"):
        lake.build(again=True, start="2030-01-01")
    assert_whole()


def test_what_another_version_kept_is_made_anew(lake: Tables, assert_whole: Callable[..., None]) -> None:
    lake.put(trades(3))
    lake.build()
    into = Derived(Lake(lake.root), IMBALANCE_BAR)
    into.keep(APPS, b"\x81\xa1x\x01")
    into.settle(all=True)
    lake.build()
    assert_whole()
    assert Record.__struct_fields__[-1] == "version"


# What a user should know


def test_many_bars_of_one_trade_are_said(lake: Tables) -> None:
    lake.put(trades(3)[:-200])
    short = parameters(kind="tick", init_ticks=1, imbalance_window=1)
    (note,) = lake.build(short).notes
    assert note.startswith(
        f"{FUTURES}:BTCUSDT: on 3 days, first 2024-01-15, more than 20% of the bars have one trade: --min-imbalance"
    )
    lake.put(trades(3)[-200:])
    assert "on 2024-01-17 more than 20%" in lake.build(short).notes[0]


def test_of_a_day_that_grows_all_bars_count(lake: Tables) -> None:
    """Two large trades at its end: the first one ends a bar, the second one is one."""
    made = trades(1)
    is_end = pl.col("agg_trade_id") > PER_DAY - 2
    size = pl.when(pl.col("agg_trade_id") == PER_DAY).then(9e6).otherwise(9e3)
    large = made.with_columns(pl.when(is_end).then(size).otherwise("quantity").alias("quantity"))
    lake.put(large.filter(~is_end))
    assert lake.build().notes == []
    lake.put(large.filter(is_end))
    done = lake.build()
    assert (done.computed, done.one_tick_bars, done.notes) == (2, 1, [])


def test_rows_that_are_no_trades_are_said(lake: Tables) -> None:
    made = trades(2)
    bad = made.head(3).with_columns(pl.lit(0.0).alias("quantity"), pl.col("agg_trade_id") + 5000)
    lake.put(made, bad)
    assert lake.build().notes == [f"{FUTURES}:BTCUSDT: 3 rows without a price or a quantity are in no bar"]
    assert_made_of(lake.rows, made)


def test_trades_without_an_aggressor_are_left_out_unless_the_tick_rule_is_asked_for(lake: Tables) -> None:
    silent = trades(2, dataset=TRADE, venue="us-stocks", symbol="AAPL", is_buyer_maker=None)
    lake.put(silent, dataset=TRADE)
    with pytest.raises(ConfigError, match="us-stocks:AAPL: its trades do not say who was the aggressor"):
        lake.build(source="trade")
    lake.put(trades(2, dataset=TRADE, quote_quantity=1.0), dataset=TRADE)
    done = lake.build(source="trade")
    assert [note[:14] for note in done.notes] == ["us-stocks:AAPL"]
    assert set(lake.rows["symbol"]) == {"BTCUSDT"}
    lake.build(parameters(side="tick", init_ticks=20, imbalance_window=50), source="trade", settings="by-tick")
    assert set(lake.rows["symbol"]) == {"AAPL", "BTCUSDT"}


def test_a_series_of_one_source_is_not_gone_on_with_from_another(lake: Tables) -> None:
    lake.put(trades(2))
    lake.put(trades(2, dataset=TRADE, quote_quantity=1.0), dataset=TRADE)
    lake.build(source="trade")
    with pytest.raises(ConfigError, match="were made with --from trade, not agg_trade"):
        lake.build()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"source": "depth"}, "--from: there is no 'depth'; there are agg_trade, trade"),
        ({"source": "trade"}, "there is no table trade under .*: record or backfill trade first, or say --from"),
        ({"settings": "my set"}, "--settings 'my set' is no name"),
        ({"settings": ""}, "--settings '' is no name"),
        ({"symbols": "BTCUSD"}, "--symbols BTCUSD: table agg_trade has no rows of it"),
        ({"venue": "nowhere"}, "table agg_trade holds no rows of venue 'nowhere'"),
        ({"end": "2023"}, "--end"),
        ({"start": "2024-02-01", "end": "2024-01-01"}, "--start 2024-02-01 is after --end 2024-01-01"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(lake: Tables, asked: dict[str, str], words: str) -> None:
    lake.put(trades(1))
    with pytest.raises(ConfigError, match=words):
        lake.build(**asked)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["build", "imbalance", *arguments])
    return int(ended.value.code or 0)


def test_the_command_line_says_what_was_done_and_what_is_wrong(lake: Tables, capsys: Any) -> None:
    assert run("--root", lake.root) == 1
    said = capsys.readouterr()
    assert f"there is no table agg_trade under {lake.root}: record or backfill agg_trade first" in said.err
    assert said.err.count("\n") == 1
    made = trades(3)
    lake.put(made)
    for wrong, words in (
        (("--kind", "dolar"), "--kind dolar is none of tick, volume, dollar, usd_share"),
        (("--min-ticks", "7", "--max-ticks", "5"), "--min-ticks 7 is above --max-ticks 5"),
        (("--imbalance-window", "0"), "--imbalance-window 0 is not from 1 to 10000000"),
        (("--kind", "usd_share", "--side", "tick"), "--kind usd_share knows --side aggressor only"),
    ):
        assert run("--root", lake.root, *wrong) == 1
        assert capsys.readouterr().err == f"crypto-lake: {words}\n"
    assert run("--root", lake.root, *WORDS, "--json") == 0
    assert json.loads(capsys.readouterr().out)["added"] == lake.rows.height
    assert_made_of(lake.rows, made)
    assert run("--root", lake.root, *WORDS) == 0
    assert "imbalance_bar: 1 series, 0 rows computed, 0 written" in capsys.readouterr().out
    assert run("--root", lake.root, "--settings", "free", "--max-ticks", "inf", "--min-ticks", "0") == 0
    assert run("--root", lake.root) == 1
    assert "were made with --mode ema, not const; --init-ticks 20, not 5000" in capsys.readouterr().err


# Killed


ROWS, STATES, COMMITS = (f"imbalance_bar/{each}" for each in ("date=*/*.parquet", "_state/*", "_delta_log/*.json"))


def test_killed_wherever_it_may_be_it_ends_with_the_same_table(lake: Tables, assert_whole: Callable[..., None]) -> None:
    """First from nothing, then with a hole filled and new days: what stands is always the bars of the first trades."""
    make = partial(trades, 100, per_day=100)
    made, days = [make(), make(seed=2, symbol="ETHUSDT")], 80 * 100
    is_hole = pl.col("agg_trade_id").is_between(2000, 2100)
    lake.put(made[0][:days].filter(~is_hole), made[1][:days])
    dies = partial(killed, lake.path, ("imbalance", *WORDS))
    assert [dies(*moment) for moment in ((ROWS, 20), (COMMITS, 1), (ROWS, 30))] == [True] * 3
    held, whole = lake.bars(), in_one_run(made[0][:days].filter(~is_hole))
    assert held.height
    assert held.select(whole.columns).equals(whole.head(held.height))
    lake.build()
    assert_whole()
    lake.put(made[0].filter(is_hole), made[0][days:], made[1][days:])
    assert [dies(*moment) for moment in ((STATES, 1), (COMMITS, 1))] == [True] * 2
    lake.build()
    assert_whole()
    assert_made_of(lake.bars(), made[0])
    assert_made_of(lake.bars("ETHUSDT"), made[1])
