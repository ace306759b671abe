"""Backfills beside a recorder, and beside each other: nothing twice, nothing missing, no commit that fails for good."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import psutil

from crypto_lake.config import FUTURES, SPOT
from crypto_lake.models import DATASETS
from crypto_lake.models.bucket import CHECKSUM
from crypto_lake.query import coverage, read
from crypto_lake.query.gaps import gaps
from crypto_lake.simulator import Dumps, GeneratedMarket, Simulator
from crypto_lake.simulator.dumps import Stored
from crypto_lake.writers.delta import Lake

# The market lives through a midnight that is long past by our clock: both of its days are over whenever it ends.
TODAY = datetime.now(UTC).date()
DAYS = [TODAY - timedelta(days=2), TODAY - timedelta(days=1)]
MIDNIGHT_MS = int(datetime.combine(DAYS[1], datetime.min.time(), UTC).timestamp() * 1000)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Road(NamedTuple):
    """A dataset on a venue: how its files, streams and columns are called."""

    market: str
    venue: str
    dataset: str
    kind: str
    folder: str
    identity: str
    facts: tuple[str, ...]

    @property
    def has_parts(self) -> bool:
        """Whether a row is made of trades."""
        return self.dataset == "agg_trade"


AGG_TRADE = ("time", "price", "quantity", "is_buyer_maker", "first_trade_id", "last_trade_id")
TRADE = ("time", "price", "quantity", "is_buyer_maker", "quote_quantity")
UM = (
    Road("um", FUTURES, "agg_trade", "aggTrade", "data/futures/um/daily/aggTrades/", "agg_trade_id", AGG_TRADE),
    Road("um", FUTURES, "trade", "trade", "data/futures/um/daily/trades/", "trade_id", TRADE),
)
SPOT_TOO = (
    *UM,
    Road("spot", SPOT, "agg_trade", "aggTrade", "data/spot/daily/aggTrades/", "agg_trade_id", AGG_TRADE),
    Road("spot", SPOT, "trade", "trade", "data/spot/daily/trades/", "trade_id", TRADE),
)
Key = tuple[str, int]  # symbol and id
Values = tuple[Any, ...]


# What must be in the table, read from the files and from what was sent, with nothing of ours


def instant(told: int | str) -> datetime:
    """Of milliseconds or, where there are more digits, of microseconds."""
    number = int(told)
    return EPOCH + timedelta(microseconds=number if number > 10**14 else number * 1000)


def filed(dumps: Dumps, road: Road) -> dict[Key, Values]:
    """By symbol and id what the daily files say of each row, in the order of `facts`."""
    paths = [path for path in dumps.paths() if path.startswith(road.folder)]
    lines = [(path.split("/")[-2], line.split(",")) for path in paths for line in dumps.rows(path)]
    found: dict[Key, Values] = {}
    for symbol, (identity, price, quantity, *rest) in lines:
        if road.has_parts:
            first, last, time, maker = rest[:4]
            beside: Values = int(first), int(last)
        else:
            _value, time, maker = rest[:3]
            beside = (float(price) * float(quantity),)
        found[symbol, int(identity)] = instant(time), float(price), float(quantity), maker.lower() == "true", *beside
    assert len(found) == len(lines)
    return found


def told(market: GeneratedMarket, road: Road) -> dict[Key, tuple[Values, Values]]:
    """By symbol and id the same of what was sent, and what only a stream says: when it was sent, and without RPI."""
    found = {}
    for each in map(json.loads, market.sent(road.venue, road.kind)):
        price, quantity = float(each["p"]), float(each["q"])
        beside = (each["f"], each["l"]) if road.has_parts else (price * quantity,)
        alone = instant(each["E"]), float(each["nq"]) if "nq" in each else None
        fact = instant(each["T"]), price, quantity, each["m"], *beside
        found[each["s"], each["a" if road.has_parts else "t"]] = fact, alone
    return found


def assert_is_the_market(rows: pl.DataFrame, road: Road, market: GeneratedMarket, dumps: Dumps) -> None:
    """The rows are the market, none twice, in every column; and each says by which road it came."""
    lines, sent = filed(dumps, road), told(market, road)
    of_market = {key: fact for key, fact in lines.items() if fact[0].date() in DAYS}
    assert of_market == {key: fact for key, (fact, _) in sent.items()}
    keys = list(zip(rows["symbol"], rows[road.identity], strict=True))
    held = dict(zip(keys, rows.select(road.facts).rows(), strict=True))
    assert len(held) == len(keys), f"{len(keys) - len(held)} rows twice"
    assert held == lines
    assert rows["date"].equals(rows["time"].dt.date())
    assert set(rows["source"]) <= {"live", "rest", "dump"}
    assert (rows["received_time"].is_null() == (rows["source"] == "dump")).all()
    only_live = (pl.col("event_time"), pl.col("quantity_without_rpi") if road.has_parts else pl.lit(None))
    for key, source, (event_time, without_rpi) in zip(keys, rows["source"], rows.select(only_live).rows(), strict=True):
        _, alone = sent.get(key, (None, (None, None)))  # nobody was told of the days before
        assert event_time == (alone[0] if source == "live" else None)
        assert without_rpi == (alone[1] if source != "dump" and road.has_parts else None)


def held(root: Path, road: Road) -> pl.DataFrame:
    """What the table holds of the market's days."""
    return read(road.dataset, root=str(root), venue=road.venue, start=DAYS[0], end=DAYS[-1]).collect()


def holes(root: Path, road: Road) -> pl.DataFrame:
    """Ids that are missing by the table `gap`."""
    found = gaps(str(root), road.dataset, venue=road.venue)
    return found.filter(pl.col("state") != "filled", pl.col("first_id").is_not_null())


def everything(root: Path) -> dict[str, int]:
    """Every file under the tables, with its size."""
    return {str(path.relative_to(root)): path.stat().st_size for path in root.rglob("*") if path.is_file()}


def count(root: Path, *names: str) -> int:
    """Rows in some tables by their logs; 0 while there is one without."""
    tables = [Lake(str(root)).table(DATASETS[name]) for name in names]
    counts = [sum(pl.DataFrame(each.get_add_actions(flatten=True))["num_records"]) for each in tables if each]
    return sum(counts) if len(counts) == len(names) and all(counts) else 0


def recorded(root: Path) -> int:
    """Rows that came live."""
    tables = [read(road.dataset, root=str(root)).filter(source="live").select(pl.len()) for road in UM]
    return sum(table.collect().item() for table in tables)


def a_market(**settings: Any) -> GeneratedMarket:
    mix = {"aggTrade": 1.0}
    return GeneratedMarket(mix=mix, start_ms=MIDNIGHT_MS - 4_000, record=True, dumps=True, **settings)


TABLES = {"LAKE_DATASETS": "agg_trade,trade", "LAKE_REDUNDANCY": "1", "LAKE_COMMIT_EVERY_S": "0.2"}


async def test_a_hole_that_nothing_else_fills_is_filled_from_the_files_and_the_days_are_complete(
    recorder: Callable[..., Any],
    wait_for: Callable[..., Any],
    served: Callable[[Dumps], Awaitable[str]],
    backfills: Callable[..., Any],
) -> None:
    # REST has the trades of half a second.
    market = a_market(futures=("BTCUSDT",), spot=("BTCUSDT",), rate=300, history=80)
    async with Simulator(market) as exchange:
        daemon = recorder({**exchange.environment, **TABLES, "LAKE_SYMBOLS": "BTCUSDT,binance:BTCUSDT"})
        await daemon.start()
        await wait_for(lambda: count(daemon.root, "agg_trade", "trade") > 200)
        await exchange.cut()
        cut_at = count(daemon.root, "trade")
        await wait_for(lambda: count(daemon.root, "trade") > cut_at + 100)
        assert await daemon.stop() == 0
        stopped_at, made = count(daemon.root, "trade"), market.made
        await wait_for(lambda: market.made > made + 600)
        await daemon.start()
        await wait_for(lambda: count(daemon.root, "trade") > stopped_at + 200)
        assert await daemon.stop() == 0
    for road in SPOT_TOO:
        assert holes(daemon.root, road).height
        assert held(daemon.root, road).height < len(told(market, road)) - 500

    dumps = Dumps(publish="all").of(market)
    takes = backfills(daemon.home, await served(dumps))
    done = [takes.run(road.market, road.dataset, "BTCUSDT", *DAYS) for road in SPOT_TOO]
    assert [each["verdicts"] for each in await asyncio.gather(*done)] == [{"complete": 2}] * 4
    for road in SPOT_TOO:
        assert_is_the_market(held(daemon.root, road), road, market, dumps)
        assert holes(daemon.root, road).is_empty()
        days = coverage(road.dataset, root=str(daemon.root), start=DAYS[0], end=DAYS[1]).filter(venue=road.venue)
        assert days.select("date", "verdict", "missing_rows").rows() == [(day, "complete", 0) for day in DAYS]
    before = everything(daemon.root)
    done = [takes.run(road.market, road.dataset, "BTCUSDT", *DAYS) for road in SPOT_TOO]
    assert [(each["files"], each["held_days"]) for each in await asyncio.gather(*done)] == [(0, 2)] * 4
    assert everything(daemon.root) == before


def older(day: date, first_id: int) -> str:
    """The lines of a day before the market began."""
    midnight_ms = int(datetime.combine(day, datetime.min.time(), UTC).timestamp() * 1000)
    lines = [f"{first_id + n},1.5,2.5,{first_id + n},{first_id + n},{midnight_ms + n * 100},true" for n in range(5_000)]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def held_up(daemon: Any) -> Iterator[None]:
    """What the recorder hears meanwhile is in its journal only: others are faster than its drain."""
    children = psutil.Process(daemon.process.pid).children()
    (worker,) = (each for each in children if "crypto_lake.services.worker" in each.cmdline())
    worker.suspend()
    try:
        yield
    finally:
        worker.resume()


class Growing(Dumps):
    """The files of a market that goes on, each as it was when its sum was asked for last: ahead of any recorder."""

    def __init__(self, files: Dumps) -> None:
        super().__init__()
        self._files = files

    async def stored(self, key: str, *, noted: bool = False) -> Stored | None:
        path = key.removesuffix(CHECKSUM)
        if key != path and path in self._files.paths():
            self.add(path, self._files.csv(path))
        return await super().stored(key, noted=noted)


async def test_backfills_beside_a_recorder_at_full_rate_are_in_nobody_s_way(
    recorder: Callable[..., Any],
    wait_for: Callable[..., Any],
    served: Callable[[Dumps], Awaitable[str]],
    backfills: Callable[..., Any],
    tmp_path: Path,
) -> None:
    symbols, old = ("BTCUSDT", "ETHUSDT"), [DAYS[0] - timedelta(days=n) for n in (3, 2, 1)]
    # As many trades, too: three thousand messages a second.
    market = a_market(futures=symbols, spot=(), rate=1_500)
    files = Dumps(publish="all").of(market)
    for symbol in symbols:
        first_id = market.instrument(FUTURES, symbol).agg_trades.next_id - 5_000 * len(old)
        for number, day in enumerate(old):
            files.add(f"{UM[0].folder}{symbol}/{symbol}-aggTrades-{day}.zip", older(day, first_id + 5_000 * number))
    async with Simulator(market) as exchange:
        daemon = recorder({**exchange.environment, **TABLES, "LAKE_SYMBOLS": ",".join(symbols)})
        takes = []
        # Two want the same at once, and with the recorder there are three who have it.
        for number, road in enumerate((*UM, UM[0])):
            each = backfills(tmp_path / f"backfill-{number}", await served(Growing(files)))
            each.environment["LAKE_ROOT"] = str(daemon.root)
            takes.append(partial(each.run, "um", road.dataset, ",".join(symbols), old[0], DAYS[-1]))
        await daemon.start()
        await wait_for(lambda: count(daemon.root, "agg_trade", "trade") > 3_000)
        before = recorded(daemon.root)
        await asyncio.gather(*(take() for take in takes))
        assert recorded(daemon.root) > before + 1_000, "the recorder went on all the while"
        with held_up(daemon):
            await asyncio.gather(*(take() for take in takes))
        assert await daemon.stop() == 0
    await asyncio.gather(*(take() for take in takes))
    for road in UM:
        assert_is_the_market(read(road.dataset, root=str(daemon.root)).collect(), road, market, files)
        assert holes(daemon.root, road).is_empty()
    assert not daemon.events("store_does_not_take_commits")
    assert not daemon.events("drain_died")
