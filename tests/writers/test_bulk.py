"""History goes into a table beside whoever writes there: no key twice, no commit lost, nothing half."""

import threading
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable

from crypto_lake.config import FUTURES
from crypto_lake.models import DATASETS
from crypto_lake.processors.shape import shape
from crypto_lake.query.findings import Findings
from crypto_lake.query.quick import look
from crypto_lake.query.source import find
from crypto_lake.writers import CommitConflict, CommitUnknown
from crypto_lake.writers.bulk import Bulk, Mark, marked
from crypto_lake.writers.delta import Lake
from crypto_lake.writers.maintenance import compact, sort_day, unsorted_days

AGG_TRADE, LIQUIDATION = DATASETS["agg_trade"], DATASETS["liquidation"]
DAY, NEXT = date(2024, 1, 15), date(2024, 1, 16)
MIDNIGHT = datetime(2024, 1, 15, tzinfo=UTC)
SAYS = {"venue": FUTURES, "symbol": "BTCUSDT", "source": "dump"}


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(str(tmp_path / "tables"))
    lake.check(AGG_TRADE)
    return lake


def trades(start: int, count: int, *, symbol: str = "BTCUSDT", source: str = "dump", day: date = DAY) -> pl.DataFrame:
    ids = range(start, start + count)
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return shape(
        AGG_TRADE,
        pl.DataFrame(
            {
                "venue": FUTURES,
                "symbol": symbol,
                "source": source,
                "time": [midnight + timedelta(milliseconds=n % 86_400_000) for n in ids],
                "agg_trade_id": list(ids),
                "price": [60_000 + n / 10 for n in ids],
                "quantity": [n / 1000 for n in ids],
                "first_trade_id": list(ids),
                "last_trade_id": list(ids),
                "is_buyer_maker": [n % 2 == 0 for n in ids],
            }
        ),
    )


def bulk(lake: Lake, *rows: tuple[date, pl.DataFrame]) -> Bulk:
    made = Bulk(lake, AGG_TRADE)
    made.speak(**SAYS)
    for day, some in rows:
        made.add(day, some)
    return made


def held(lake: Lake) -> pl.DataFrame:
    table = lake.table(AGG_TRADE)
    assert table is not None
    return pl.scan_delta(table).select(*AGG_TRADE.schema).collect().sort("symbol", "agg_trade_id")


def files_on_disk(lake: Lake) -> int:
    return len(list(Path(lake.root, "agg_trade").glob("date=*/*.parquet")))


def test_rows_come_back_as_they_went_in(lake: Lake) -> None:
    made = bulk(lake, (DAY, trades(1, 70_000)), (DAY, trades(70_001, 5)), (NEXT, trades(80_000, 3, day=NEXT)))
    assert made.commit([Mark("dump/a", 0b11)]) == 70_008
    wanted = pl.concat([trades(1, 70_005), trades(80_000, 3, day=NEXT)])
    assert held(lake).equals(wanted.sort("symbol", "agg_trade_id"))


def test_the_log_says_of_the_files_what_is_in_them(lake: Lake) -> None:
    bulk(lake, (DAY, trades(1, 40_000)), (DAY, trades(40_001, 7))).commit([])
    source, findings = find(lake.root, AGG_TRADE), Findings()
    assert source is not None
    seen = look(source, findings, since=None, until=None, now=MIDNIGHT + timedelta(days=9))
    assert findings.rows == []
    assert seen.rows == 40_007
    table = lake.table(AGG_TRADE)
    assert table is not None
    (said,) = pl.DataFrame(table.get_add_actions(flatten=True)).to_dicts()
    assert (said["min.agg_trade_id"], said["max.agg_trade_id"]) == (1, 40_007)
    assert (said["min.symbol"], said["max.symbol"], said["min.source"]) == ("BTCUSDT", "BTCUSDT", "dump")
    assert (said["min.time"], said["null_count.received_time"]) == (MIDNIGHT + timedelta(milliseconds=1), None)


def test_a_day_that_was_empty_needs_no_sorting_afterwards(lake: Lake) -> None:
    bulk(lake, (DAY, trades(1, 10))).commit([])
    later = MIDNIGHT + timedelta(days=9)
    assert unsorted_days(lake.root, AGG_TRADE, later) == []
    for start in (100, 200):
        bulk(lake, (DAY, trades(start, 10))).commit([])
    assert unsorted_days(lake.root, AGG_TRADE, later) == [DAY]


def test_nothing_is_in_the_table_before_the_commit_and_nothing_is_left_of_what_is_discarded(lake: Lake) -> None:
    made = bulk(lake, (DAY, trades(1, 40_000)))
    assert held(lake).is_empty()
    made.discard()
    assert held(lake).is_empty()
    assert files_on_disk(lake) == 0


def test_marks_grow_day_by_day_and_are_in_the_commit_of_the_rows(lake: Lake) -> None:
    bulk(lake, (DAY, trades(1, 5))).commit([Mark("dump/a", 0b01)])
    bulk(lake, (NEXT, trades(6, 5, day=NEXT))).commit([Mark("dump/a", 0b10), Mark("dump/b", 0b1)])
    assert marked(lake.table(AGG_TRADE), ["dump/a", "dump/b", "dump/c"]) == {"dump/a": 0b11, "dump/b": 0b1, "dump/c": 0}


def test_a_day_without_a_new_row_is_marked_all_the_same(lake: Lake) -> None:
    assert bulk(lake).commit([Mark("dump/a", 0b100)]) == 0
    assert marked(lake.table(AGG_TRADE), ["dump/a"]) == {"dump/a": 0b100}


def test_rows_that_somebody_adds_elsewhere_meanwhile_are_no_conflict(lake: Lake) -> None:
    made = bulk(lake, (DAY, trades(1, 1_000)))
    lake.append(AGG_TRADE, trades(1, 1_000, symbol="ETHUSDT", source="live"), "recorder", start=0, end=1)
    lake.append(AGG_TRADE, trades(2_000, 10, source="live"), "recorder", start=1, end=2)
    lake.append(AGG_TRADE, trades(1, 10, source="live", day=NEXT), "recorder", start=2, end=3)
    made.commit([Mark("dump/a", 1)])
    assert held(lake).height == 2_020


def test_the_same_rows_by_somebody_else_meanwhile_are_found_and_nothing_is_written(lake: Lake) -> None:
    made = bulk(lake, (DAY, trades(1, 1_000)))
    lake.append(AGG_TRADE, trades(1_000, 5, source="live"), "recorder", start=0, end=1)
    with pytest.raises(CommitConflict, match="somebody else added the same rows"):
        made.commit([Mark("dump/a", 1)])
    made.discard()
    assert held(lake)["agg_trade_id"].to_list() == [1_000, 1_001, 1_002, 1_003, 1_004]
    assert marked(lake.table(AGG_TRADE), ["dump/a"]) == {"dump/a": 0}
    assert files_on_disk(lake) == 1


def test_files_that_maintenance_merged_meanwhile_hold_nothing_new(lake: Lake) -> None:
    for start in (1, 11):
        lake.append(AGG_TRADE, trades(start, 10, source="live"), "recorder", start=start, end=start + 1)
    made = bulk(lake, (DAY, trades(100, 10)))
    assert compact(lake.root, AGG_TRADE, DAY).files_after == 1
    made.commit([])
    assert held(lake).height == 30


def test_of_two_bulks_with_the_same_rows_one_is_told(lake: Lake) -> None:
    first, second = (bulk(lake, (DAY, trades(1, 100))) for _ in range(2))
    assert first.commit([Mark("dump/a", 1)]) == 100
    with pytest.raises(CommitConflict):
        second.commit([Mark("dump/a", 1)])
    second.discard()
    assert held(lake).height == 100


def test_nobody_s_commit_fails_while_many_write(lake: Lake) -> None:
    failures: list[BaseException] = []

    def noting(work: Callable[[], object]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                failures.append(error)

        return threading.Thread(target=run)

    def record() -> None:
        for number in range(25):
            rows = trades(10_000 + 10 * number, 10, source="live")
            lake.append(AGG_TRADE, rows, "recorder", start=number, end=number + 1)

    def load(start: int) -> Callable[[], None]:
        def work() -> None:
            for number in range(10):
                bulk(Lake(lake.root), (DAY, trades(start + 10 * number, 10))).commit(
                    [Mark(f"dump/{start}", 1 << number)]
                )

        return work

    threads = [noting(record), noting(load(100_000)), noting(load(200_000))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert held(lake).height == 450
    assert held(lake)["agg_trade_id"].n_unique() == 450
    ten = 2**10 - 1
    assert marked(lake.table(AGG_TRADE), ["dump/100000", "dump/200000"]) == {"dump/100000": ten, "dump/200000": ten}


def test_what_the_table_holds_is_read_between_two_ids(lake: Lake) -> None:
    bulk(lake, (DAY, trades(1, 100))).commit([])
    made = Bulk(lake, AGG_TRADE)
    found = made.held(DAY, ["agg_trade_id", "date"], above=10, up_to=13, symbol="BTCUSDT", venue=FUTURES)
    assert found.rows() == [(11, DAY), (12, DAY), (13, DAY)]
    assert made.held(DAY, ["agg_trade_id"], symbol="ETHUSDT").is_empty()
    assert made.held(NEXT, ["agg_trade_id"], symbol="BTCUSDT").is_empty()


def test_a_table_that_has_gone_is_not_made_anew(lake: Lake) -> None:
    made = bulk(lake, (DAY, trades(1, 10)))
    Path(lake.root, "agg_trade", "_delta_log").rename(Path(lake.root, "away"))
    with pytest.raises(Exception, match="agg_trade"):
        made.commit([])
    assert not DeltaTable.is_deltatable(lake.uri(AGG_TRADE))


# All symbols in one file

BAR = DATASETS["bar"]
OF_STOCKS = {"venue": "us-stocks", "source": "flatfile", "timeframe": "1m", "origin": "flatfile"}


def bars(*symbols: str, minutes: int = 3, timeframe: str = "1m", close: float = 2.0) -> pl.DataFrame:
    times = [MIDNIGHT + timedelta(hours=14, minutes=minute) for minute in range(minutes)]
    rows = [
        {**OF_STOCKS, "timeframe": timeframe, "symbol": symbol, "time": at, "open": 1.0, "high": 3.0, "low": 0.5,
         "close": close, "volume": 1.5, "complete": True, "revision": 0}
        for symbol in symbols
        for at in times
    ]  # fmt: skip
    return shape(BAR, pl.DataFrame(rows))


def bulk_of_bars(lake: Lake, rows: pl.DataFrame, timeframe: str = "1m", **how: Any) -> Bulk:
    lake.check(BAR)
    made = Bulk(lake, BAR, **how)
    made.speak(**OF_STOCKS | {"timeframe": timeframe})
    made.add(DAY, rows)
    return made


def held_bars(lake: Lake, **equals: str) -> pl.DataFrame:
    return lake.rows(BAR, **equals).sort("timeframe", "symbol", "time")


def test_rows_of_many_symbols_come_back_as_they_went_in(lake: Lake) -> None:
    rows = bars("A", "AAPL", "BRK.B").with_columns(
        pl.when(pl.col("symbol") != "A").then(pl.lit("X")).alias("underlying")
    )
    bulk_of_bars(lake, rows).commit([])
    assert held_bars(lake).equals(rows.select(*BAR.schema))


def test_columns_of_which_nothing_is_said_are_null_though_they_are_not_in_the_file(lake: Lake) -> None:
    silent = BAR.silent(["open", "high", "low", "close", "volume"])
    bulk_of_bars(lake, bars("A"), silent=silent).commit([])
    (path,) = Path(lake.root, "bar").rglob("*.parquet")
    assert {"received_time", "strike", "quote_volume"}.isdisjoint(pl.read_parquet_schema(path))
    assert held_bars(lake).equals(bars("A").select(*BAR.schema))


def test_rows_with_other_words_by_somebody_else_are_no_conflict_and_those_with_the_same_are(lake: Lake) -> None:
    ours, daily, theirs = (
        bulk_of_bars(lake, bars("A", "B")),
        bulk_of_bars(lake, bars("A", minutes=1, timeframe="1d"), "1d"),
        bulk_of_bars(lake, bars("C")),
    )
    daily.commit([])
    assert ours.commit([]) == 6
    with pytest.raises(CommitConflict):
        theirs.commit([])
    theirs.discard()
    assert held_bars(lake).height == 7


def test_rows_with_the_same_words_of_other_hours_are_no_conflict(lake: Lake) -> None:
    evening = bars("A", "B").with_columns(pl.col("time") - pl.duration(hours=14))
    ours, theirs = bulk_of_bars(lake, bars("A", "B")), bulk_of_bars(lake, evening)
    assert (theirs.commit([]), ours.commit([])) == (6, 6)


def test_rows_are_taken_out_and_others_put_in_with_one_commit(lake: Lake) -> None:
    bulk_of_bars(lake, bars("A", "B")).commit([])
    bulk_of_bars(lake, bars("A", minutes=1, timeframe="1d"), "1d").commit([])
    sort_day(lake.root, BAR, DAY)  # now both are in one file
    before = held_bars(lake, timeframe="1d")
    made = bulk_of_bars(lake, bars("A", close=2.5))
    (gone,) = made.replace([DAY, NEXT], pl.col("timeframe") == "1m")
    assert gone.select(pl.len()).collect().item() == 6
    assert held_bars(lake, timeframe="1m").height == 6  # nothing has happened yet
    version = DeltaTable(lake.uri(BAR)).version()
    made.commit([])
    assert DeltaTable(lake.uri(BAR)).version() == version + 1
    assert held_bars(lake, timeframe="1m").equals(bars("A", close=2.5).select(*BAR.schema))
    assert held_bars(lake, timeframe="1d").equals(before)


def test_a_replacement_that_is_discarded_changes_nothing_and_leaves_nothing(lake: Lake) -> None:
    bulk_of_bars(lake, bars("A", "B")).commit([])
    before, files = held_bars(lake), set(Path(lake.root).rglob("*.parquet"))
    made = bulk_of_bars(lake, bars("C"))
    made.replace([DAY], pl.col("symbol") == "A")
    made.discard()
    assert held_bars(lake).equals(before)
    assert set(Path(lake.root).rglob("*.parquet")) == files


def test_files_that_somebody_else_moved_meanwhile_are_not_replaced(lake: Lake) -> None:
    bulk_of_bars(lake, bars("A", "B")).commit([])
    made = bulk_of_bars(lake, bars("A", close=2.5))
    made.replace([DAY], pl.col("timeframe") == "1m")
    sort_day(lake.root, BAR, DAY)
    with pytest.raises(CommitConflict, match="replaced the same files"):
        made.commit([])
    made.discard()
    assert held_bars(lake).equals(bars("A", "B").select(*BAR.schema))


def test_files_of_a_commit_of_which_nobody_knows_whether_it_landed_stay(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bulk(lake, (DAY, trades(1, 10)))
    commit, log = made._commit, Path(lake.root, "agg_trade", "_delta_log")

    def lands_unheard(*given: Any) -> None:
        commit(*given)
        log.rename(log.with_name("away"))
        raise OSError("the answer was lost")

    monkeypatch.setattr(made, "_commit", lands_unheard)
    with pytest.raises(CommitUnknown):
        made.commit([])
    log.with_name("away").rename(log)
    made.discard()
    assert held(lake).equals(trades(1, 10))
