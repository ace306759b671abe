"""First rows of real official files, zipped here and served by the simulator: every value is that of the text."""

from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from crypto_lake.backfill.ask import wanted_of
from crypto_lake.backfill.binance import Summary, backfill
from crypto_lake.config import COIN_M, SPOT, Settings, load
from crypto_lake.connections.objects import checksum_in
from crypto_lake.models.bucket import CHECKSUM, File
from crypto_lake.query import read, validate
from crypto_lake.simulator import Dumps

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TODAY = date(2026, 11, 20)
NOW = datetime(2026, 11, 20, tzinfo=UTC)
SPOT_TRADES_2019 = File(SPOT, "aggTrades", "BTCUSDT", "", "daily", date(2019, 6, 1))
SPOT_TRADES_2026 = File(SPOT, "aggTrades", "BTCUSDT", "", "daily", date(2026, 9, 5))
SECONDS = File(SPOT, "klines", "BTCUSDT", "1s", "daily", date(2026, 9, 5))
HOURS = File(SPOT, "klines", "BTCUSDT", "1h", "monthly", date(2023, 3, 1))
METRICS = File(COIN_M, "metrics", "BTCUSD_PERP", "", "daily", date(2023, 6, 25))
LIQUIDATIONS = {
    File(COIN_M, "liquidationSnapshot", "BTCUSD_PERP", "", "daily", date(2023, 6, 25)): "2023-06-25.head3",
    File(COIN_M, "liquidationSnapshot", "BTCUSD_PERP", "", "daily", date(2024, 10, 1)): "2024-10-01.rows",
}


class Samples:
    """Real files in a bucket on loopback, and a lake that they are taken into."""

    def __init__(self, folder: Path, dumps: Dumps, settings: Settings) -> None:
        self._folder, self._dumps = folder, dumps
        self.settings = settings

    def publish(self, file: File, sample: str) -> list[list[str]]:
        """Serves a sample as that file; the fields of its lines, without a header."""
        text = (self._folder / sample).read_text()
        self._dumps.add(file.path, text)
        lines = [[field.strip('"') for field in line.split(",")] for line in text.splitlines()]
        return lines if lines[0][0][0].isdigit() else lines[1:]

    async def take(self, watched: Any, market: str, dataset: str, symbol: str, *span: str, **more: str) -> Summary:
        """Backfills from the first to the last of a span."""
        wanted = wanted_of(market, dataset, symbol, span[0], span[-1], more.get("timeframe", "1m"), today=TODAY)
        return await backfill(self.settings, wanted, watched)

    def rows(self, dataset: str) -> list[dict[str, Any]]:
        """What is in the table, in the order of time."""
        return read(dataset, root=self.settings.root).sort("time").collect().to_dicts()


@pytest.fixture
async def samples(data: Path, served: Callable[[Dumps], Awaitable[str]], tmp_path: Path) -> Samples:
    dumps = Dumps()
    settings = load(root=str(tmp_path / "tables"), state=tmp_path / "var", dumps=await served(dumps))
    return Samples(data / "dumps", dumps, settings)


def moment(text: str, unit: str) -> datetime:
    """The instant that a number of that unit names, by whole numbers alone."""
    return EPOCH + timedelta(microseconds=int(text) * {"ms": 1000, "us": 1}[unit])


def same(rows: Iterable[dict[str, Any]], **columns: list[Any]) -> None:
    """Every row has what it should have in these columns."""
    found = pl.DataFrame(list(rows))
    for name, values in columns.items():
        assert found[name].to_list() == values, name


async def test_spot_trades_in_milliseconds_and_in_microseconds_are_read_right_in_one_range(
    samples: Samples, backfills: Any, tmp_path: Path
) -> None:
    old = samples.publish(SPOT_TRADES_2019, "spot_BTCUSDT-aggTrades-2019-06-01.head5.csv")
    new = samples.publish(SPOT_TRADES_2026, "spot_BTCUSDT-aggTrades-2026-09-05.head5.csv")
    program = backfills(tmp_path, samples.settings.dumps)
    done = await program.run("spot", "agg_trade", "BTCUSDT", "2019-06-01", "2026-09-05")
    assert (done["files"], done["rows"], done["added_rows"], done["refused_rows"]) == (2, 10, 10, 0)
    lines = old + new
    same(
        samples.rows("agg_trade"),
        time=[*(moment(line[5], "ms") for line in old), *(moment(line[5], "us") for line in new)],
        date=[SPOT_TRADES_2019.first] * 5 + [SPOT_TRADES_2026.first] * 5,
        agg_trade_id=[int(line[0]) for line in lines],
        price=[float(line[1]) for line in lines],
        quantity=[float(line[2]) for line in lines],
        first_trade_id=[int(line[3]) for line in lines],
        last_trade_id=[int(line[4]) for line in lines],
        is_buyer_maker=[line[6] == "True" for line in lines],
        venue=[SPOT] * 10,
        symbol=["BTCUSDT"] * 10,
        source=["dump"] * 10,
        received_time=[None] * 10,
    )


async def test_bars_of_a_second_without_a_header_in_microseconds(samples: Samples, watched: Any) -> None:
    lines = samples.publish(SECONDS, "spot_BTCUSDT-1s-2026-09-05.head5.csv")
    done = await samples.take(watched, "spot", "bar", "BTCUSDT", "2026-09-05", timeframe="1s")
    assert (done.rows, done.added) == (5, 5)
    rows = samples.rows("bar")
    assert_bars(rows, lines, "us")
    assert {row["timeframe"] for row in rows} == {"1s"}
    # What ends in ...999999 in the file is not read from it: the end is that of the interval.
    assert [row["close_time"] for row in rows] == [moment(line[6], "us") for line in lines]


async def test_bars_of_an_hour_with_a_header_and_with_the_hole_of_2023_03_24(samples: Samples, watched: Any) -> None:
    lines = samples.publish(HOURS, "spot_BTCUSDT-1h-2023-03.with-hole.csv")
    done = await samples.take(watched, "spot", "bar", "BTCUSDT", "2023-03", timeframe="1h")
    assert (done.files, done.days, done.rows, done.added) == (1, 31, len(lines), len(lines))
    assert len(lines) == 31 * 24 - 1
    assert_bars(samples.rows("bar"), lines, "ms")
    found = validate(samples.settings.root, level="advanced", datasets=["bar"], now=NOW).findings
    (hole,) = found.filter(pl.col("check") == "bar_gap").to_dicts()
    lost = datetime(2023, 3, 24, 13, tzinfo=UTC)
    assert (hole["first_time"], hole["last_time"], hole["symbol"]) == (lost, lost, "BTCUSDT")
    # The one of 12:00 is there: nobody traded, and it ends after 39 minutes.
    (halted,) = (row for row in samples.rows("bar") if row["time"] == lost - timedelta(hours=1))
    assert (halted["count"], halted["volume"]) == (0, 0.0)
    assert halted["close_time"] == lost - timedelta(microseconds=1)
    assert done.verdicts == {"complete": 30, "unverifiable": 1}
    days = read("coverage", root=samples.settings.root).collect()
    assert days.filter(pl.col("verdict") != "complete")["date"].to_list() == [lost.date()]


def assert_bars(rows: list[dict[str, Any]], lines: list[list[str]], unit: str) -> None:
    """Bars are those of the lines of a file of klines."""
    names = "open", "high", "low", "close", "volume"
    same(
        rows,
        time=[moment(line[0], unit) for line in lines],
        **{name: [float(line[place]) for line in lines] for place, name in enumerate(names, 1)},
        quote_volume=[float(line[7]) for line in lines],
        count=[int(line[8]) for line in lines],
        taker_buy_volume=[float(line[9]) for line in lines],
        taker_buy_quote_volume=[float(line[10]) for line in lines],
        origin=["kline"] * len(lines),
    )


async def test_open_interest_with_a_header_and_with_empty_texts_beside_it(samples: Samples, watched: Any) -> None:
    lines = samples.publish(METRICS, "cm_BTCUSD_PERP-metrics-2023-06-25.head3.csv")
    assert "" in lines[0]
    done = await samples.take(watched, "cm", "open_interest", "BTCUSD_PERP", "2023-06-25")
    assert (done.rows, done.refused) == (3, 0)
    same(
        samples.rows("open_interest"),
        time=[datetime.fromisoformat(line[0]).replace(tzinfo=UTC) for line in lines],
        open_interest=[float(line[2]) for line in lines],
        open_interest_value=[float(line[3]) for line in lines],
        venue=[COIN_M] * 3,
        symbol=["BTCUSD_PERP"] * 3,
    )


async def test_liquidations_are_rows_once_although_every_line_is_there_twice(samples: Samples, watched: Any) -> None:
    lines = [
        line
        for file, name in LIQUIDATIONS.items()
        for line in samples.publish(file, f"cm_BTCUSD_PERP-liquidationSnapshot-{name}.csv")
    ]
    for day in ("2023-06-25", "2024-10-01"):
        done = await samples.take(watched, "cm", "liquidation", "BTCUSD_PERP", day)
        assert (done.files, done.added, done.refused) == (1, 2, 0)
    once = list(dict.fromkeys(map(tuple, lines)))
    assert (len(lines), len(once)) == (7, 4)
    same(
        samples.rows("liquidation"),
        time=[moment(line[0], "ms") for line in once],
        side=[line[1] for line in once],
        order_type=[line[2] for line in once],
        time_in_force=[line[3] for line in once],
        quantity=[float(line[4]) for line in once],
        price=[float(line[5]) for line in once],
        average_price=[float(line[6]) for line in once],
        status=[line[7] for line in once],
        last_filled_quantity=[float(line[8]) for line in once],
        filled_quantity=[float(line[9]) for line in once],
    )


@pytest.mark.parametrize("newline", ["", "\n", "\r\n"], ids=["none", "one", "windows"])
async def test_a_sum_is_read_whatever_ends_its_line(
    newline: str, bucket: Any, settings: Callable[[], Settings], data: Path, watched: Any
) -> None:
    lines = (data / "dumps" / "spot_BTCUSDT-aggTrades-2026-09-05.head5.csv").read_text().splitlines()
    path = bucket.put(SPOT_TRADES_2026, lines)
    bucket.files[path + CHECKSUM] = bucket.files[path + CHECKSUM].rstrip() + newline.encode()
    wanted = wanted_of("spot", "agg_trade", "BTCUSDT", "2026-09-05", "2026-09-05", "1m", today=TODAY)
    done = await backfill(settings(), wanted, watched)
    assert (done.files, done.rows) == (1, 5)


def test_the_sums_of_the_venue_are_read_with_a_newline_and_without(data: Path) -> None:
    found = {path.name: path.read_text() for path in (data / "dumps").glob(f"*{CHECKSUM}")}
    assert {text.endswith("\n") for text in found.values()} == {False, True}
    for name, text in found.items():
        assert checksum_in(text, name.removesuffix(CHECKSUM)) == text[:64]
