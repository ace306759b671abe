"""`build features`: what it makes of the tables there are, and what it says of those that are not there."""

from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pytest

from crypto_lake.build.farm import farm
from crypto_lake.build.features import Wanted, build
from crypto_lake.config import ConfigError
from crypto_lake.features.features import features
from crypto_lake.models.feature import FEATURES, NAMES
from tests.build.feature_lake import (  # noqa: F401  (fixtures)
    VENUE,
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
from tests.features.feature_market import Market, market


def filled(bars: pl.DataFrame | None) -> pl.DataFrame:
    """The minutes that bars leave out have the close before them."""
    assert bars is not None
    minutes = pl.DataFrame({"time": pl.datetime_range(bars["time"][0], bars["time"][-1], "1m", eager=True)})
    return minutes.join(bars.select("time", "close"), on="time", how="left").with_columns(
        pl.col("close").forward_fill()
    )


def test_the_table_is_what_the_features_of_all_bars_are(
    made: Market, tables: dict[str, pl.DataFrame], tmp_path: Path
) -> None:
    built = whole(tmp_path, tables)
    last = tables["bar"].filter(pl.col("symbol") == "BTCUSDT")["time"].max()
    inputs = made.but(reference=filled(made.reference)).inputs
    direct = features(made.bars.filter(pl.col("time") <= last), **inputs)
    assert [name for name in NAMES if not built[name].equals(direct[name], null_equal=True)] == []
    assert built["time"].equals(direct["time"])
    assert built.select("venue", "source", "timeframe", "origin", "reference").unique().rows() == [
        (VENUE, "derived", "1m", "trades", "ETHUSDT")
    ]
    assert all(built[name].drop_nulls().len() for name in NAMES)


def test_a_table_that_comes_later_fills_its_columns(tables: dict[str, pl.DataFrame], tmp_path: Path) -> None:
    without = {name: rows for name, rows in tables.items() if name in ("bar", "mark_price")}
    for name, rows in without.items():
        add(tmp_path / "later", name, rows)
    assert [note for note in run(tmp_path / "later").notes if "no table" in note] == [
        f"there is no table {name}: features made from it are null"
        for name in ("book_snapshot", "open_interest", "liquidation")
    ]
    null = {name for name in NAMES if table(tmp_path / "later")[name].is_null().all()}
    reads = ("book_snapshot", "open_interest", "liquidation")
    assert null == {each.name for each in FEATURES if any(each.reads(name) for name in reads)}
    for name, rows in tables.items():
        if name not in without:
            add(tmp_path / "later", name, rows)
    assert run(tmp_path / "later").revised > 0
    same(table(tmp_path / "later"), whole(tmp_path / "whole", tables))


def test_a_column_that_the_table_lacks_is_null_and_said(tables: dict[str, pl.DataFrame], tmp_path: Path) -> None:
    older = tables["mark_price"].drop("index_price")
    older.write_delta(str(tmp_path / "mark_price"), delta_write_options={"partition_by": "date"})
    add(tmp_path, "bar", tables["bar"])
    notes = run(tmp_path, symbols="BTCUSDT").notes
    assert "table mark_price has no index_price: features made from it are null" in notes
    rows = table(tmp_path)
    assert rows["basis_bps"].is_null().all()
    assert rows["mark_dev_bps"].drop_nulls().len()


def test_another_reference_is_another_table_and_the_way_back_too(
    tables: dict[str, pl.DataFrame], tmp_path: Path
) -> None:
    first = whole(tmp_path, tables, symbols="BTCUSDT")
    other = tables["bar"].filter(pl.col("symbol") == "ETHUSDT").with_columns(pl.col("close").reverse())
    add(tmp_path, "bar", other.with_columns(symbol=pl.lit("SOLUSDT")))
    assert run(tmp_path, symbols="BTCUSDT").computed == 0
    assert run(tmp_path, symbols="BTCUSDT", reference="SOLUSDT").revised > 0
    assert table(tmp_path)["reference"].unique().to_list() == ["SOLUSDT"]
    assert run(tmp_path, symbols="BTCUSDT", reference="none").revised > 0
    none = table(tmp_path)
    assert none["reference"].is_null().all()
    assert [name for name in NAMES if none[name].is_null().all()] == [
        each.name for each in FEATURES if each.group == "K"
    ]
    run(tmp_path, symbols="BTCUSDT")
    same(table(tmp_path), first)


def test_days_made_with_another_reference_are_made_again_with_the_whole(
    tables: dict[str, pl.DataFrame], once: pl.DataFrame, tmp_path: Path
) -> None:
    whole(tmp_path, tables)
    day = str(once["date"].min())
    assert run(tmp_path, reference="none", start=day, end=day).added
    run(tmp_path)
    same(table(tmp_path), once)


def test_open_interest_of_the_millisecond_of_a_mark_is_of_the_same_time(made: Market, tmp_path: Path) -> None:
    bars = made.bars.head(100)
    first, us = bars["time"][0], timedelta(microseconds=1)
    before = first - timedelta(minutes=5)
    marks = pl.DataFrame({"time": [before + 200 * us, first + timedelta(minutes=69)], "mark_price": 1.0})
    held = {before - 1_000_000 * us: 5.0, before + 500 * us: 7.0, before + 60_000_000 * us: 9.0}
    interest = pl.DataFrame({"time": held.keys(), "open_interest": held.values()})
    for name, rows in (("bar", bars), ("mark_price", marks), ("open_interest", interest)):
        add(tmp_path, name, rows_of(name, rows, "BTCUSDT"))
    run(tmp_path)
    assert table(tmp_path)["oi_change_60"][69] == pytest.approx(9 / 7 - 1)


def test_the_reference_itself_is_held_against_bitcoin(tables: dict[str, pl.DataFrame], tmp_path: Path) -> None:
    whole(tmp_path, tables)
    other = table(tmp_path, "ETHUSDT")
    assert other["reference"].unique().to_list() == ["BTCUSDT"]
    assert other["corr_eth_60"].drop_nulls().len()


def test_a_reference_without_bars_is_said_once(tables: dict[str, pl.DataFrame], tmp_path: Path) -> None:
    bars = tables["bar"].filter(pl.col("symbol") == "BTCUSDT")
    others = [bars.with_columns(symbol=pl.lit(name)) for name in ("XRPUSDT", "SOLUSDT")]
    add(tmp_path, "bar", pl.concat([bars, *others]))
    notes = run(tmp_path, timeframes="1m").notes
    assert [note for note in notes if "reference" in note] == [
        "there are no 1m bars of the reference binance-futures:ETHUSDT: group K is null"
    ]
    assert table(tmp_path)["eth_logret_1"].is_null().all()


def test_another_symbol_changes_nothing(tables: dict[str, pl.DataFrame], tmp_path: Path) -> None:
    first = whole(tmp_path, tables, symbols="BTCUSDT")
    other = tables_of(market(9, 700, price=0.5), "XRPUSDT")
    for name, rows in other.items():
        add(tmp_path, name, rows.filter(pl.col("symbol") == "XRPUSDT"))
    again = run(tmp_path, symbols="BTCUSDT,XRPUSDT")
    assert again.computed == 700
    same(table(tmp_path), first)


def test_only_the_days_asked_for_are_made(tables: dict[str, pl.DataFrame], once: pl.DataFrame, tmp_path: Path) -> None:
    for name, rows in tables.items():
        add(tmp_path / "days", name, rows)
    run(tmp_path / "days", start="2026-03-07", end="2026-03-07", symbols="BTCUSDT")
    assert table(tmp_path / "days")["date"].unique().to_list() == [date(2026, 3, 7)]
    run(tmp_path / "days", symbols="BTCUSDT")
    same(table(tmp_path / "days"), once)


def test_two_processes_make_what_one_makes(tables: dict[str, pl.DataFrame], once: pl.DataFrame, tmp_path: Path) -> None:
    for name, rows in tables.items():
        add(tmp_path / "two", name, rows)
    with farm(None, 2) as (executor, at_once):
        build(str(tmp_path / "two"), Wanted(symbols="BTCUSDT"), executor, at_once)
    same(table(tmp_path / "two"), once)


def stocks(days: int) -> pl.DataFrame:
    """Bars of a stock as they come in flat files: none at night, none in an idle minute, nothing of the aggressor."""
    bars = market(5, days * 1440, idle=0.3).bars.filter(
        pl.col("time").dt.hour().is_between(14, 20), pl.col("count") > 0
    )
    nothing = (pl.lit(None, pl.Float64()).alias(name) for name in ("quote_volume", *TAKER))
    return rows_of("bar", bars.with_columns(nothing), "AAPL", "us-stocks", origin="flatfile")


TAKER = ("taker_buy_volume", "taker_buy_quote_volume")


def test_stocks_have_the_features_that_their_bars_allow(tmp_path: Path) -> None:
    bars = stocks(4)
    add(tmp_path / "stocks", "bar", bars.filter(pl.col("date") < date(2026, 3, 8)))
    run(tmp_path / "stocks")
    add(tmp_path / "stocks", "bar", bars.filter(pl.col("date") >= date(2026, 3, 8)))
    built = run(tmp_path / "stocks")
    add(tmp_path / "whole", "bar", bars)
    run(tmp_path / "whole")
    rows = table(tmp_path / "stocks", "AAPL")
    same(rows, table(tmp_path / "whole", "AAPL"))
    assert rows["time"].equals(bars["time"])
    assert rows["origin"].unique().to_list() == ["flatfile"]
    unknown = {"bar.quote_volume", *(f"bar.{name}" for name in TAKER)}
    absent = ("reference", "book_snapshot", "mark_price", "open_interest", "liquidation")
    null = {each.name for each in FEATURES if unknown & set(each.inputs) or any(map(each.reads, absent))}
    assert {name for name in NAMES if rows[name].is_null().all()} == null
    assert built.computed < rows.height


def test_no_liquidation_of_a_symbol_is_zero_where_they_are_recorded_and_unknown_elsewhere(
    tables: dict[str, pl.DataFrame], tmp_path: Path
) -> None:
    other = rows_of("liquidation", tables["liquidation"].head(5).drop("symbol", "venue", "date"), "XRPUSDT")
    add(tmp_path, "liquidation", other)
    add(tmp_path, "bar", pl.concat([tables["bar"].filter(pl.col("symbol") == "BTCUSDT"), stocks(1)]))
    run(tmp_path)
    assert table(tmp_path)["liq_count_15"].drop_nulls().unique().to_list() == [0.0]
    assert table(tmp_path, "AAPL")["liq_count_15"].is_null().all()


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"timeframes": "2m"}, "--timeframes: there is no '2m'; there are 1m, 5m, 15m, 1h, 4h, 1d"),
        ({"timeframes": "5m"}, "table bar (5m) holds no rows"),
        ({"symbols": "BTCUSD"}, "--symbols BTCUSD: table bar (1m) has no rows of it"),
        ({"origin": "trade"}, "--origin trade: there are trades, kline, flatfile, yahoo"),
        ({"start": "2026-03-08", "end": "2026-03-07"}, "--start 2026-03-08 is after --end 2026-03-07"),
    ],
)
def test_what_is_asked_for_wrongly_is_said(
    tables: dict[str, pl.DataFrame], tmp_path: Path, wanted: dict[str, str], said: str
) -> None:
    add(tmp_path, "bar", tables["bar"])
    with pytest.raises(ConfigError) as error:
        run(tmp_path, **wanted)
    assert said in str(error.value)
    assert not (tmp_path / "feature").exists()


def test_without_bars_it_is_said_where_they_come_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no table bar under .*: backfill bars"):
        run(tmp_path)


def test_the_rows_of_a_series_whose_bars_are_gone_are_gone(tables: dict[str, pl.DataFrame], tmp_path: Path) -> None:
    whole(tmp_path, {"bar": tables["bar"]})
    add(tmp_path, "bar", tables["bar"].clear(), gone=tables["bar"].filter(pl.col("symbol") == "ETHUSDT"))
    assert run(tmp_path, symbols="BTCUSDT").removed == 0
    assert run(tmp_path, symbols="all").removed > 0
    assert table(tmp_path, "ETHUSDT").is_empty()
    assert table(tmp_path)["eth_logret_1"].is_null().all()
