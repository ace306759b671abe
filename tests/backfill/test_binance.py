"""Official files become rows: all of them, each once, whatever is wrong with a file or missing in the bucket."""

import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from crypto_lake.backfill.ask import wanted_of
from crypto_lake.backfill.binance import Summary, backfill
from crypto_lake.backfill.mode import mode_of
from crypto_lake.backfill.plan import Wanted
from crypto_lake.config import ConfigError, Settings, load
from crypto_lake.models import DATASETS
from crypto_lake.query import coverage, read
from crypto_lake.simulator import GeneratedMarket, Simulator
from crypto_lake.simulator.dumps import Dumps
from crypto_lake.writers.bulk import Bulk, Mark
from crypto_lake.writers.delta import Lake
from crypto_lake.writers.maintenance import UNCHECKED_COMMITS

# A market that lives from the evening of one day to the first minutes of the next but one, over the end of a month.
BEGIN = datetime(2025, 11, 29, 23, 30, tzinfo=UTC)
DAYS = [date(2025, 11, 29), date(2025, 11, 30), date(2025, 12, 1)]
LATER = datetime(2026, 3, 1, tzinfo=UTC)
SECONDS = (timedelta(seconds=number) for number in itertools.count())


class Quiet:
    """Nobody watches."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.bytes = 0
        self.on_read: Callable[[], None] = lambda: None

    def planned(self, days: int) -> None: ...

    def found(self, files: int) -> None: ...

    def sized(self, path: str, size_bytes: int, days: int) -> None: ...

    def fetched(self, count: int) -> None:
        self.bytes += count

    def read(self, rows: int) -> None:
        self.on_read()

    def done(self, path: str, state: str, detail: str) -> None:
        self.states[path] = state


@pytest.fixture(scope="module")
def market() -> GeneratedMarket:
    """A day and an hour, with a message every ten seconds."""
    made = GeneratedMarket(
        futures=("BTCUSDT", "ETHUSDT"),
        rate=0.1,
        seed=5,
        start_ms=int(BEGIN.timestamp() * 1000),
        others_every_ms=60_000,
        dumps=True,
    )
    while made.clock_ms < (BEGIN + timedelta(hours=25)).timestamp() * 1000:
        list(made.frames(1_000))
    return made


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(root=str(tmp_path / "tables"), state=tmp_path / "var")


def wanted(
    dataset: str = "agg_trade",
    market: str = "um",
    symbols: str = "BTCUSDT",
    span: tuple[str, str] = ("2025-11", "2025-12"),
) -> Wanted:
    return wanted_of(market, dataset, symbols, *span, "1m", today=LATER.date())


async def taken(settings: Settings, exchange: Simulator, asked: Wanted, **how: Any) -> tuple[Summary, Quiet]:
    watcher = Quiet()
    here = settings.model_copy(update={"dumps": exchange.environment["LAKE_BINANCE_DUMPS"]})
    done = await backfill(here, asked, how.pop("watcher", watcher), clock=lambda: LATER + next(SECONDS), **how)
    return done, watcher


def rows(settings: Settings, dataset: str = "agg_trade", **equals: Any) -> pl.DataFrame:
    return read(dataset, root=settings.root, **equals).collect().sort("symbol", "time")


def versions(settings: Settings) -> dict[str, int]:
    tables = {name: Lake(settings.root).table(dataset) for name, dataset in DATASETS.items()}
    return {name: table.version() for name, table in tables.items() if table}


def lines(exchange: Simulator, kind: str, *days: date) -> list[list[str]]:
    """What the daily files of a kind of USD-M say, independently of our reading."""
    days_of = f"data/futures/um/daily/{kind}/"
    paths = [path for path in exchange.dumps.paths() if path.startswith(days_of) and path[-14:-4] in map(str, days)]
    return [line.split(",") for path in paths for line in exchange.dumps.rows(path)]


def ledger(settings: Settings) -> dict[str, str]:
    found = read("dump_file", root=settings.root).collect().sort("state_time", maintain_order=True)
    return dict(found.select("path", "state").rows())


async def test_every_line_of_a_month_and_of_the_days_behind_it_is_a_row(
    market: GeneratedMarket, settings: Settings
) -> None:
    async with Simulator(market, dumps=Dumps(publish="all")) as exchange:
        done, watcher = await taken(settings, exchange, wanted())
        theirs = lines(exchange, "aggTrades/BTCUSDT", *DAYS)
    assert done.is_good
    assert [path.split("/")[3] for path in watcher.states] == ["monthly"] * 2
    ours = rows(settings)
    assert ours.height == len(theirs) == done.rows == done.added > 500
    by_id = {int(line[0]): line for line in theirs}
    for row in ours.iter_rows(named=True):
        line = by_id.pop(row["agg_trade_id"])
        identity, price, quantity, first, last, time_ms, is_maker = line
        assert row["agg_trade_id"] == int(identity)
        assert (row["price"], row["quantity"]) == (float(price), float(quantity))
        assert (row["first_trade_id"], row["last_trade_id"]) == (int(first), int(last))
        assert int(row["time"].timestamp() * 1000 + 0.5) == int(time_ms)
        assert row["is_buyer_maker"] == (is_maker == "true")
        assert (row["venue"], row["symbol"], row["source"]) == ("binance-futures", "BTCUSDT", "dump")
        assert row["received_time"] is None
    assert done.verdicts == {"complete": 3}


@pytest.mark.parametrize("word", ["streaming", "parallel"])
async def test_the_rows_are_the_same_however_many_files_are_read_at_once(
    market: GeneratedMarket, settings: Settings, tmp_path: Path, word: Any
) -> None:
    here, there = settings, settings.model_copy(update={"root": str(tmp_path / "other")})
    asked = wanted("book_ticker", symbols="BTCUSDT,ETHUSDT")
    async with Simulator(market, dumps=Dumps(publish="all")) as exchange:
        done = [
            await taken(here, exchange, asked),
            await taken(there, exchange, asked, mode=mode_of(64 << 30, 4, word)),
        ]
    assert [each.mode for each, _ in done][1] == word
    assert rows(there, "book_ticker").equals(rows(here, "book_ticker"), null_equal=True)
    assert done[0][0].verdicts == done[1][0].verdicts


async def test_a_second_backfill_writes_nothing(market: GeneratedMarket, settings: Settings) -> None:
    async with Simulator(market, dumps=Dumps(publish="all")) as exchange:
        await taken(settings, exchange, wanted(symbols="BTCUSDT,ETHUSDT"))
        before, asked = versions(settings), len(exchange.dumps.served)
        done, watcher = await taken(settings, exchange, wanted(symbols="BTCUSDT,ETHUSDT"))
        assert not [
            each for each in list(exchange.dumps.served)[asked:] if each.path.endswith(".zip") and each.status < 400
        ]
    assert versions(settings) == before
    assert (done.files, done.added, watcher.bytes) == (0, 0, 0)
    assert done.held_days == 6
    assert not list(settings.landing.rglob("*.zip*"))


async def test_days_are_taken_one_by_one_where_there_is_no_month_and_the_month_where_there_are_no_days(
    market: GeneratedMarket, settings: Settings
) -> None:
    async with Simulator(market, dumps=Dumps(publish="all", monthly=False)) as exchange:
        done, watcher = await taken(settings, exchange, wanted())
        assert len(watcher.states) == 3
        whole = rows(settings)
    other = settings.model_copy(update={"root": f"{settings.root}-other"})
    months = Dumps(publish="all")
    months.fail("unavailable", "*daily*2025-11*", status=404)
    async with Simulator(market, dumps=months) as exchange:
        # A part of a month is a matter of days, as long as there are any.
        done, watcher = await taken(other, exchange, wanted(span=("2025-11-30", "2025-11-30")))
    assert [path.split("/")[3] for path in watcher.states] == ["monthly"]
    assert done.days == 1
    assert rows(other).equals(whole.filter(date=DAYS[1]))


async def test_a_month_that_lacks_a_day_is_said_and_the_day_has_a_file_of_its_own(
    market: GeneratedMarket, settings: Settings
) -> None:
    async with Simulator(market, dumps=Dumps(publish="all", missing_days=[DAYS[1]])) as exchange:
        done, _ = await taken(settings, exchange, wanted(span=("2025-11", "2025-11")))
        assert rows(settings).height == len(lines(exchange, "aggTrades/BTCUSDT", *DAYS[:2]))
    assert done.short == ["data/futures/um/monthly/aggTrades/BTCUSDT/BTCUSDT-aggTrades-2025-11.zip"]
    assert done.verdicts == {"complete": 2}
    found = read("quality", root=settings.root, check="incomplete_month").collect()
    assert found.select("severity", "observed", "threshold").rows() == [("warn", 1.0, 30.0)]


async def test_a_month_s_file_that_was_taken_for_a_day_is_taken_again_for_the_others(
    market: GeneratedMarket, settings: Settings
) -> None:
    dumps = Dumps(publish="all")
    dumps.fail("unavailable", "*daily*", status=404)
    async with Simulator(market, dumps=dumps) as exchange:
        for span, added in (
            (("2025-11-30", "2025-11-30"), True),
            (("2025-11", "2025-11"), True),
            (("2025-11",) * 2, False),
        ):
            done, _ = await taken(settings, exchange, wanted(span=span))
            assert bool(done.added) == added
            assert done.files == added
        assert rows(settings).height == len(
            exchange.dumps.rows("data/futures/um/monthly/aggTrades/BTCUSDT/BTCUSDT-aggTrades-2025-11.zip")
        )


async def test_a_sum_that_is_wrong_once_costs_a_second_look(market: GeneratedMarket, settings: Settings) -> None:
    async with Simulator(market, dumps=Dumps(publish="all")) as exchange:
        exchange.dumps.fail("wrong_checksum", "*-2025-11.zip*", times=1)
        done, _ = await taken(settings, exchange, wanted())
        assert rows(settings).height == len(lines(exchange, "aggTrades/BTCUSDT", *DAYS))
    assert done.is_good


@pytest.mark.parametrize("kind", ["wrong_checksum", "truncated_zip"])
async def test_a_file_that_stays_wrong_is_put_aside_and_the_others_go_on(
    market: GeneratedMarket, settings: Settings, kind: str
) -> None:
    month = "data/futures/um/monthly/aggTrades/BTCUSDT/BTCUSDT-aggTrades-2025-11.zip"
    async with Simulator(market, dumps=Dumps(publish="all")) as exchange:
        fault = exchange.dumps.fail(kind, f"{month}*")
        done, watcher = await taken(settings, exchange, wanted(symbols="BTCUSDT,ETHUSDT"))
        assert not done.is_good
        assert [each.path for each in done.wrong] == [month]
        assert watcher.states[month] == ledger(settings)[month] == "quarantined"
        assert (settings.state / "quarantine" / month).exists()
        assert set(rows(settings)["date"].unique()) == set(DAYS)
        assert set(rows(settings, symbols="BTCUSDT")["date"].unique()) == {DAYS[2]}
        exchange.dumps.mend(fault)
        done, _ = await taken(settings, exchange, wanted(symbols="BTCUSDT,ETHUSDT"))
        assert done.is_good
        assert rows(settings, symbols="BTCUSDT").height == len(lines(exchange, "aggTrades/BTCUSDT", *DAYS))
    assert ledger(settings)[month] == "ingested"


async def test_what_breaks_on_the_way_goes_on_where_it_broke(market: GeneratedMarket, settings: Settings) -> None:
    async with Simulator(market, dumps=Dumps(publish="all")) as exchange:
        exchange.dumps.fail("cut_download", "*.zip", times=2, after_bytes=1_000)
        exchange.dumps.fail("unavailable", "*.zip", times=1, status=503, retry_after_s=1)
        done, watcher = await taken(settings, exchange, wanted())
        assert rows(settings).height == len(lines(exchange, "aggTrades/BTCUSDT", *DAYS))
        assert [each for each in exchange.dumps.served if each.status == 206]
    assert done.is_good
    assert watcher.bytes == done.size


async def test_the_copy_inside_an_archive_is_not_read(market: GeneratedMarket, settings: Settings) -> None:
    async with Simulator(market, dumps=Dumps(publish="all")) as exchange:
        exchange.dumps.fail("duplicate_csv", "*.zip*")
        done, _ = await taken(settings, exchange, wanted())
        assert rows(settings).height == len(lines(exchange, "aggTrades/BTCUSDT", *DAYS)) == done.rows


async def test_a_file_that_was_replaced_is_noticed_and_compared(market: GeneratedMarket, settings: Settings) -> None:
    month = "data/futures/um/monthly/aggTrades/BTCUSDT/BTCUSDT-aggTrades-2025-11.zip"
    async with Simulator(market, dumps=Dumps(publish="all")) as exchange:
        await taken(settings, exchange, wanted())
        before = rows(settings)
        header = "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker"
        known = exchange.dumps.rows(month)
        cells = known[3].split(",")
        cells[1] = "1.5"
        exchange.dumps.add(month, "\n".join([*known[:3], ",".join(cells), *known[4:]]) + "\n", header)
        done, _ = await taken(settings, exchange, wanted())
        assert done.replaced == [month]
        # What we have stays; that it differs is what the day is worth.
        assert rows(settings).equals(before)
        found = coverage("agg_trade", root=settings.root, now=LATER).sort("date")
        assert found["verdict"].to_list() == ["differs", "complete", "complete"]
        assert found["differing_rows"].to_list() == [1, 0, None]
        states = read("dump_file", root=settings.root, path=month).collect().sort("state_time", maintain_order=True)
        assert states["state"].to_list() == ["ingested", "replaced", "ingested"]
        assert states["sha256"].n_unique() == 2
        done, _ = await taken(settings, exchange, wanted())
        assert done.replaced == []


async def test_it_can_be_stopped_and_goes_on(market: GeneratedMarket, settings: Settings) -> None:
    asked = wanted("trade", symbols="BTCUSDT,ETHUSDT")
    async with Simulator(market, dumps=Dumps(publish="all", monthly=False)) as exchange:
        stop, watcher = threading.Event(), Quiet()
        watcher.on_read = stop.set
        done, _ = await taken(settings, exchange, asked, stop=stop, watcher=watcher)
        assert done.is_stopped
        assert not done.is_good
        assert rows(settings, "trade").is_empty()
        done, _ = await taken(settings, exchange, asked)
        assert rows(settings, "trade").height == sum(
            len(lines(exchange, f"trades/{symbol}", *DAYS)) for symbol in asked.symbols
        )
    assert done.is_good


async def test_all_symbols_are_those_that_have_files(market: GeneratedMarket, settings: Settings) -> None:
    async with Simulator(market, dumps=Dumps(publish="all")) as exchange:
        await taken(settings, exchange, wanted(symbols="all"))
        assert rows(settings)["symbol"].unique().sort().to_list() == ["BTCUSDT", "ETHUSDT"]
        with pytest.raises(ConfigError, match="no symbol has aggTrades files there"):
            await taken(settings, exchange, wanted(market="cm", symbols="all"))


async def test_days_without_a_file_are_said(market: GeneratedMarket, settings: Settings) -> None:
    async with Simulator(market, dumps=Dumps(publish="all")) as exchange:
        done, _ = await taken(settings, exchange, wanted(symbols="NOSUCHUSDT", span=("2025-11-29", "2025-12-02")))
    assert done.is_good
    assert [(each.symbol, each.days) for each in done.absent] == [
        ("NOSUCHUSDT", (DAYS[0], DAYS[1])),
        ("NOSUCHUSDT", (DAYS[2], date(2025, 12, 2))),
    ]


KINDS = {
    ("um", "agg_trade"): ("aggTrades", "agg_trade_id"),
    ("um", "trade"): ("trades", "trade_id"),
    ("um", "book_ticker"): ("bookTicker", "update_id"),
    ("um", "mark_price"): ("markPriceKlines", None),
    ("um", "bar"): ("klines", None),
    ("um", "open_interest"): ("metrics", None),
    ("spot", "agg_trade"): ("aggTrades", "agg_trade_id"),
    ("spot", "trade"): ("trades", "trade_id"),
    ("spot", "bar"): ("klines", None),
    ("cm", "liquidation"): ("liquidationSnapshot", None),
}


@pytest.mark.parametrize(("where", "dataset"), KINDS)
async def test_every_dataset_has_the_rows_of_its_files_once(
    market: GeneratedMarket, settings: Settings, where: str, dataset: str
) -> None:
    kind, identity = KINDS[where, dataset]
    symbol = "BTCUSD_PERP" if where == "cm" else "BTCUSDT"
    folder = {"um": "futures/um", "cm": "futures/cm", "spot": "spot"}[where]
    interval = "/1m" if kind in ("klines", "markPriceKlines") else ""
    async with Simulator(market, dumps=Dumps(publish="all")) as exchange:
        done, _ = await taken(settings, exchange, wanted(dataset, where, symbol))
        prefix = f"data/{folder}/daily/{kind}/{symbol}{interval}/"
        theirs = [
            line for path in exchange.dumps.paths() if path.startswith(prefix) for line in exchange.dumps.rows(path)
        ]
    ours = rows(settings, dataset)
    wanted_rows = {line.split(",")[0] for line in theirs} if identity == "update_id" else set(theirs)
    assert ours.height == len(wanted_rows) > 0
    assert ours.select(DATASETS[dataset].key).is_unique().all()
    if identity:
        assert set(ours[identity]) == {int(line.split(",")[0]) for line in theirs}
    assert done.is_good
    assert done.refused == 0
    needed = [column.name for column in DATASETS[dataset].columns if not column.nullable]
    assert ours.select(needed).null_count().sum_horizontal().item() == 0


async def test_of_a_minute_the_mark_price_is_what_it_was_at_its_end_and_the_index_price_stands_beside_it(
    market: GeneratedMarket, settings: Settings
) -> None:
    async with Simulator(market, dumps=Dumps(publish="all")) as exchange:
        await taken(settings, exchange, wanted("mark_price", span=("2025-11-30", "2025-11-30")))
        day = "-1m-2025-11-30.zip"
        paths = [path for path in exchange.dumps.paths() if "um/daily" in path and path.endswith(f"BTCUSDT{day}")]
        said = {path.split("/")[4]: [line.split(",") for line in exchange.dumps.rows(path)] for path in paths}
    ours = rows(settings, "mark_price")
    assert ours["mark_price"].to_list() == [float(line[4]) for line in said["markPriceKlines"]]
    assert ours["index_price"].to_list() == [float(line[4]) for line in said["indexPriceKlines"]]
    assert ours["time"].dt.epoch("ms").to_list() == [int(line[6]) for line in said["markPriceKlines"]]


async def test_of_bars_another_timeframe_is_another_backfill(market: GeneratedMarket, settings: Settings) -> None:
    async with Simulator(market, dumps=Dumps(publish="all")) as exchange:
        for timeframe, count in (("1h", 24), ("1d", 1)):
            asked = replace(wanted("bar", span=("2025-11-30", "2025-11-30")), interval=timeframe)
            done, _ = await taken(settings, exchange, asked)
            assert done.added == count
    bars = rows(settings, "bar")
    assert bars.group_by("timeframe").len().sort("len").rows() == [("1d", 1), ("1h", 24)]
    assert bars.select(
        (pl.col("close_time") - pl.col("time")).dt.total_microseconds().unique().sort()
    ).to_series().to_list() == [
        3_600_000_000 - 1,
        86_400_000_000 - 1,
    ]
    assert set(bars["origin"]) == {"kline"}
    assert bars["complete"].all()


def has_checkpoint(root: str) -> bool:
    return Path(root, "agg_trade", "_delta_log", "_last_checkpoint").exists()


async def test_the_log_of_a_table_that_nobody_records_into_gets_its_checkpoint(
    market: GeneratedMarket, settings: Settings
) -> None:
    lake, dataset = Lake(settings.root), DATASETS["agg_trade"]
    lake.check(dataset)
    for number in range(UNCHECKED_COMMITS):
        Bulk(lake, dataset).commit([Mark("dump/other", 1 << number % 28)])
    async with Simulator(market, dumps=Dumps(publish="all")) as exchange:
        await taken(settings, exchange, wanted(span=("2025-11-30", "2025-11-30")))
    assert has_checkpoint(settings.root)
