"""`build features` again: whatever comes late or is revised, the table is what one run over all of it makes."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from crypto_lake.features.features import features
from crypto_lake.models.bar import BAR
from crypto_lake.models.feature import FEATURE, NAMES
from crypto_lake.writers.delta import Lake
from tests.build.feature_lake import (  # noqa: F401  (fixtures)
    FIELDS,
    ROWS,
    TABLES,
    add,
    made_once,
    made_short,
    made_tables,
    made_up,
    rows_of,
    run,
    same,
    short_tables,
    table,
    tables_of,
    whole,
)
from tests.features.feature_market import BEGIN, Market, market

MINUTE = timedelta(minutes=1)


def test_a_second_run_computes_and_writes_nothing(tables: dict[str, pl.DataFrame], tmp_path: Path) -> None:
    whole(tmp_path, tables)
    before = Lake(str(tmp_path)).table(FEATURE)
    again = run(tmp_path)
    assert (again.series, again.computed, again.added) == (0, 0, 0)
    after = Lake(str(tmp_path)).table(FEATURE)
    assert before is not None
    assert after is not None
    assert before.version() == after.version()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_comes_in_pieces_gives_the_table_of_one_run(
    tables: dict[str, pl.DataFrame], once: pl.DataFrame, tmp_path: Path, seed: int
) -> None:
    """Most of it in the order of time, some of it late, and each source as far as it happens to be."""
    rng = np.random.default_rng(seed)
    rounds = 6
    begin, span = tables["bar"]["time"].min(), ROWS * 60e6
    pieces: dict[str, pl.DataFrame] = {}
    for name, rows in tables.items():
        cuts = np.sort(rng.random(rounds - 1)) * span
        turns = np.searchsorted(cuts, (rows["time"] - begin).dt.total_microseconds().to_numpy())
        late = rng.random(rows.height) < 0.02
        turns[late] = np.maximum(turns[late], rng.integers(0, rounds, late.sum()))
        pieces[name] = rows.with_columns(pl.Series("turn", turns))
    computed = []
    for turn in range(rounds):
        for name, rows in pieces.items():
            add(tmp_path / "pieces", name, rows.filter(pl.col("turn") == turn).drop("turn"))
        computed.append(run(tmp_path / "pieces", symbols="BTCUSDT").computed)
    same(table(tmp_path / "pieces"), once)
    assert sum(computed[1:]) < rounds * once.height


def before_idle(bars: pl.DataFrame) -> int:
    """A bar that is followed by two minutes or more without one."""
    found = np.flatnonzero((bars["time"].shift(-1) - bars["time"] > 2 * MINUTE).fill_null(value=False))
    return int(found[found > 300][0])


def test_bars_one_by_one_are_computed_one_by_one(made: Market, tables: dict[str, pl.DataFrame], tmp_path: Path) -> None:
    """The first of them comes after minutes without one, which become rows then, whatever else is in the table."""
    bars = tables["bar"].filter(pl.col("symbol") == "BTCUSDT").sort("time")
    root, rest = tmp_path / "live", {name: rows for name, rows in tables.items() if name != "bar"}
    begin = before_idle(bars) + 1
    add(root, "bar", rows_of("bar", made.bars, "BTCUSDT", timeframe="1s"))
    add(root, "bar", bars.head(begin))
    for name, rows in rest.items():
        add(root, name, rows)
    assert run(root).computed == (bars["time"][begin - 1] - bars["time"][0]) // MINUTE + 1
    for at in range(begin, begin + 4):
        add(root, "bar", bars[at : at + 1])
        new = (bars["time"][at] - bars["time"][at - 1]) // MINUTE
        assert new <= run(root).computed <= new + 1
    same(table(root), whole(tmp_path / "whole", {"bar": bars.head(begin + 4), **rest}))


@pytest.mark.parametrize("symbol", ["BTCUSDT", "ETHUSDT"])
def test_a_revised_bar_changes_what_looks_back_on_it_and_nothing_else(
    tables: dict[str, pl.DataFrame], tmp_path: Path, symbol: str
) -> None:
    bars = tables["bar"].filter(pl.col("symbol") == symbol).sort("time")
    old = bars[(at := before_idle(bars) if symbol == "BTCUSDT" else 900) : at + 1]
    new = old.with_columns(close=pl.col("low"), revision=pl.lit(1, pl.Int64()))
    before = whole(tmp_path / "revised", tables, symbols="BTCUSDT")
    add(tmp_path / "revised", "bar", new, gone=old)
    again = run(tmp_path / "revised", symbols="BTCUSDT")
    revised = {**tables, "bar": pl.concat([tables["bar"].join(old, on=BAR.key, how="anti"), new])}
    after = table(tmp_path / "revised")
    same(after, whole(tmp_path / "whole", revised, symbols="BTCUSDT"))
    # The log tells which files were rewritten, not which of their rows: that day is looked at.
    assert again.computed < after.height
    assert 0 < again.revised < 300
    differs = pl.any_horizontal(pl.col(name).ne_missing(before[name]) for name in NAMES)
    assert after.filter(differs)["time"].min() == old["time"][0]


@pytest.mark.parametrize("name", TABLES[1:])
@pytest.mark.parametrize("which", ["some", "a stretch", "the last"])
def test_a_late_record_changes_the_rows_that_it_was_the_last_for(
    short: dict[str, pl.DataFrame], once_short: pl.DataFrame, tmp_path: Path, name: str, which: str
) -> None:
    rows = short[name].sort("time")
    late = {"some": rows[rows.height // 2 :][:5], "a stretch": rows[rows.height // 3 :][:50], "the last": rows.tail(2)}
    first = rows.join(late[which], on="time", how="anti")
    before = whole(tmp_path / "late", {**short, name: first}, symbols="BTCUSDT")
    add(tmp_path / "late", name, late[which])
    again = run(tmp_path / "late", symbols="BTCUSDT")
    after = table(tmp_path / "late")
    same(after, once_short)
    assert again.removed == 0
    assert 0 < again.revised == again.added <= again.computed < (1100 if which == "a stretch" else 400)
    assert not before.equals(after)


def test_the_last_record_may_be_days_away(made: Market, tmp_path: Path) -> None:
    """Marks, open interest and liquidations are from before the bars, and then none for hours; a book now and then."""
    far = made.bars.with_columns(pl.col("time") + timedelta(days=6))
    days = {
        "mark_price": (0.2, 3.1, 6.3, 6.7, 6.9),
        "open_interest": (0.1, 2, 6.2, 6.32, 6.9),
        "liquidation": (0.7, 6.4),
    }
    books = made.books.unique("time").sort("time").gather_every(40)  # type: ignore[union-attr]
    sparse = {"book_snapshot": books.with_columns(pl.col("time") + timedelta(days=6))}
    sparse |= {name: at_days(made, name, of) for name, of in days.items()}
    late = {name: rows[rows.height // 2 :][:1] for name, rows in sparse.items()}
    held = {name: rows.join(late[name], on="time", how="anti") for name, rows in sparse.items()}
    add(tmp_path, "bar", rows_of("bar", far, "BTCUSDT"))
    for name, rows in held.items():
        add(tmp_path, name, rows_of(name, rows, "BTCUSDT"))
    run(tmp_path)
    fields = dict(zip(TABLES[1:], FIELDS, strict=True))
    for name, rows in late.items():
        add(tmp_path, name, rows_of(name, rows, "BTCUSDT"))
        assert run(tmp_path).revised > 0, name
        held[name] = sparse[name]
        direct = features(far, timeframe="1m", **{fields[each]: there for each, there in held.items()})
        built = table(tmp_path)
        assert [each for each in NAMES if not built[each].equals(direct[each], null_equal=True)] == [], name
    assert built["oi_change_60"].drop_nulls().n_unique() > 2
    assert built["ofi_l1"].drop_nulls().len() > 50


def at_days(made: Market, name: str, days: tuple[float, ...]) -> pl.DataFrame:
    """Some records of a table, so many days after the begin."""
    held = getattr(made, dict(zip(TABLES[1:], FIELDS, strict=True))[name]).head(len(days))
    return held.with_columns(
        pl.Series("time", [BEGIN + timedelta(days=each) for each in days]).cast(held.schema["time"])
    )


def test_a_late_bar_of_the_reference_is_seen_as_far_as_windows_reach(
    tables: dict[str, pl.DataFrame], once: pl.DataFrame, tmp_path: Path
) -> None:
    reference = tables["bar"].filter(pl.col("symbol") == "ETHUSDT").sort("time")
    late = reference[700:701]
    whole(tmp_path, {**tables, "bar": tables["bar"].join(late, on=BAR.key, how="anti")}, symbols="BTCUSDT")
    add(tmp_path, "bar", late)
    assert 60 < run(tmp_path, symbols="BTCUSDT").computed < 80
    same(table(tmp_path), once)


def test_bars_that_are_gone_take_their_rows_along(tables: dict[str, pl.DataFrame], tmp_path: Path) -> None:
    bars = tables["bar"].filter(pl.col("symbol") == "BTCUSDT").sort("time")
    gone = pl.concat([bars.head(20), bars[600:620], bars.tail(30)])
    whole(tmp_path / "gone", {**tables, "bar": bars})
    add(tmp_path / "gone", "bar", bars.clear(), gone=gone)
    assert run(tmp_path / "gone").removed > 0
    rest = {**tables, "bar": bars.join(gone, on="time", how="anti")}
    same(table(tmp_path / "gone"), whole(tmp_path / "whole", rest))


def test_an_earlier_begin_gives_windows_what_they_had_not(tables: dict[str, pl.DataFrame], tmp_path: Path) -> None:
    bars = tables["bar"].filter(pl.col("symbol") == "BTCUSDT").sort("time")
    whole(tmp_path / "later", {**tables, "bar": bars[500:]})
    add(tmp_path / "later", "bar", bars[:500])
    run(tmp_path / "later")
    same(table(tmp_path / "later"), whole(tmp_path / "whole", {**tables, "bar": bars}))


@pytest.mark.parametrize("timeframe", ["5m", "1h", "1d"])
def test_longer_bars_come_in_pieces_too(tmp_path: Path, timeframe: str) -> None:
    made = tables_of(market(4, 90 if timeframe == "1d" else 500, timeframe, idle=0.0))
    middle = made["bar"]["time"].median()
    for is_late in (False, True):
        for name, rows in made.items():
            add(tmp_path / "pieces", name, rows.filter((pl.col("time") > middle) == is_late))
        run(tmp_path / "pieces", timeframes=timeframe, symbols="BTCUSDT")
    same(table(tmp_path / "pieces"), whole(tmp_path / "whole", made, timeframes=timeframe, symbols="BTCUSDT"))


def test_a_reference_that_comes_later_or_goes_is_seen(tables: dict[str, pl.DataFrame], tmp_path: Path) -> None:
    bars = tables["bar"].filter(pl.col("symbol") == "BTCUSDT")
    reference = tables["bar"].filter(pl.col("symbol") == "ETHUSDT")
    alone = whole(tmp_path / "alone", {"bar": bars})
    assert alone["eth_logret_1"].is_null().all()
    add(tmp_path / "alone", "bar", reference)
    run(tmp_path / "alone", symbols="BTCUSDT")
    same(table(tmp_path / "alone"), whole(tmp_path / "both", {"bar": tables["bar"]}, symbols="BTCUSDT"))
    add(tmp_path / "alone", "bar", bars.clear(), gone=reference)
    run(tmp_path / "alone", symbols="BTCUSDT")
    same(table(tmp_path / "alone"), alone)
