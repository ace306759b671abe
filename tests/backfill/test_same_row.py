"""One table: the same fact by socket, by REST and by official file is the same row, column by column."""

import asyncio
import itertools
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from crypto_lake.backfill.ask import wanted_of
from crypto_lake.backfill.binance import backfill
from crypto_lake.config import COIN_M, FUTURES, SPOT, load
from crypto_lake.journal import FRAME, RESPONSE, Journal
from crypto_lake.models import DATASETS, Dataset
from crypto_lake.models.bucket import MARKETS
from crypto_lake.models.dataset import OPTION_COLUMNS
from crypto_lake.models.trade import TRADE
from crypto_lake.query import read
from crypto_lake.services.drain import Drain
from crypto_lake.simulator import Dumps, GeneratedMarket, Simulator
from crypto_lake.simulator.market import Question, combined
from crypto_lake.simulator.streams import kind_of
from crypto_lake.writers.delta import Lake

DAY = date(2026, 3, 1)
BEGIN_MS = int(datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp() * 1000)
RECEIVED_US = (BEGIN_MS + 3_600_000) * 1000
SYMBOLS = {FUTURES: "BTCUSDT", SPOT: "BTCUSDT", COIN_M: "BTCUSD_PERP"}
KINDS = {"agg_trade": "aggTrade", "trade": "trade", "book_ticker": "bookTicker", "liquidation": "forceOrder"}

# What a road says of itself; all other columns are facts.
OF_THE_ROAD = ["received_time", "source"]
# What a road does not know is null in all of its rows; every other column it must know as the others do.
UNKNOWN: Mapping[tuple[str, str], set[str]] = {
    ("agg_trade", "rest"): {"event_time"},
    ("agg_trade", "dump"): {"event_time", "quantity_without_rpi"},
    ("trade", "dump"): {"event_time"},
    ("book_ticker", "dump"): set(),
    ("liquidation", "dump"): {"event_time"},
}
# Only venues of flat files say these of a trade.
OF_FLAT_FILES = {name for kind in TRADE.flat.values() for name in kind.columns.values()} - {
    "symbol",
    "price",
    "quantity",
}
OF_FLAT_FILES |= {column.name for column in OPTION_COLUMNS}
# Spot has no trades that are hidden from its own streams, so no road has a word for the others there.
NEVER_TOLD = {
    ("agg_trade", SPOT): {"quantity_without_rpi"},
    ("trade", FUTURES): OF_FLAT_FILES,
    ("trade", SPOT): OF_FLAT_FILES,
}


def roads(dataset: Dataset, venue: str) -> set[str]:
    """The roads by which rows of a venue come; what is liquidated on COIN-M is told in the stream of all of USD-M."""
    streams = dataset.live.streams if dataset.live else {}
    by_all = venue == COIN_M and FUTURES in streams and streams[FUTURES].every
    found = {"live"} if venue in streams or by_all else set()
    found |= {"rest"} if dataset.poll and venue in dataset.poll.requests else set()
    return found | ({"dump"} if dataset.dump and venue in dataset.dump.archives else set())


# Of the book REST gives snapshots, which are rows of their own beside the events (is_snapshot is in the key); rows of
# mark_price by socket and by file are not about the same moment, and are held against each other below.
APART = {"depth", "mark_price"}
CASES = [
    (name, venue, sorted(by))
    for name, dataset in DATASETS.items()
    for venue in (FUTURES, SPOT, COIN_M)
    if len(by := roads(dataset, venue)) > 1 and name not in APART
]


def test_the_cases_are_all_there_are() -> None:
    assert CASES == [
        ("liquidation", COIN_M, ["dump", "live"]),
        ("agg_trade", FUTURES, ["dump", "live", "rest"]),
        ("agg_trade", SPOT, ["dump", "live", "rest"]),
        ("trade", FUTURES, ["dump", "live"]),
        ("trade", SPOT, ["dump", "live"]),
        ("book_ticker", FUTURES, ["dump", "live"]),
    ]


@pytest.fixture(scope="module")
def market() -> GeneratedMarket:
    """A quarter of an hour of everything that is told by two roads."""
    mix = {"aggTrade": 0.5, "bookTicker": 0.3, "forceOrder": 0.2}
    made = GeneratedMarket(
        ("BTCUSDT",), ("BTCUSDT",), rate=2, mix=mix, start_ms=BEGIN_MS, others_every_ms=5_000, record=True, dumps=True
    )
    while made.clock_ms < BEGIN_MS + 900_000:
        list(made.frames(100))
    return made


class Roads:
    """Each road of a market into a lake of its own, in all the steps that it has."""

    def __init__(self, home: Path, market: GeneratedMarket, watched: Any) -> None:
        self._home, self._market, self._watched = home, market, watched

    async def rows(self, road: str, dataset: str, venue: str) -> pl.DataFrame:
        """What the table has of the venue's symbol after everything has come by this road, in the order of the key."""
        root = self._home / f"{road}-{dataset}"
        if road == "dump":
            await self._backfill(root, dataset, venue)
        else:
            messages = self._told(dataset) if road == "live" else await self._asked(dataset, venue)
            await asyncio.to_thread(_drained, root, DATASETS[dataset], messages)
        found = read(dataset, root=str(root), venue=venue, symbols=[SYMBOLS[venue]])
        return found.collect().sort(DATASETS[dataset].key)

    def _told(self, dataset: str) -> Iterable[tuple[int, str, bytes]]:
        assert self._market.ledger is not None
        for frame in self._market.ledger:
            if kind_of(frame.stream) == KINDS.get(dataset, "markPrice") and frame.stream != "!markPrice@arr":
                yield FRAME, f"{frame.venue} {frame.route}/stream", combined(frame.stream, frame.payload)

    async def _asked(self, dataset: str, venue: str) -> list[tuple[int, str, bytes]]:
        poll, symbol = DATASETS[dataset].poll, SYMBOLS[venue]
        assert poll is not None
        first, pages = self._market.instrument(venue, symbol).agg_trades.oldest_id, []
        while first < self._market.instrument(venue, symbol).agg_trades.next_id:
            question = Question(venue, "aggTrades", (symbol,), is_list=False, limit=poll.at_most, from_id=first)
            origin = f"{venue} {poll.requests[venue].path}?symbol={symbol}&{poll.from_id}={first}"
            pages.append((RESPONSE, origin, await self._market.answer(question)))
            first += poll.at_most
        return pages

    async def _backfill(self, root: Path, dataset: str, venue: str) -> None:
        name = next(name for name, its in MARKETS.items() if its == venue)
        wanted = wanted_of(name, dataset, SYMBOLS[venue], str(DAY), str(DAY), "1m", today=DAY + timedelta(days=9))
        async with Simulator(self._market, dumps=Dumps(publish="all")) as exchange:
            settings = load(root=str(root), state=root.with_name("var")).model_copy(update={"dumps": exchange.rest_url})
            done = await backfill(settings, wanted, self._watched)
        assert done.is_good
        assert done.added


def _drained(root: Path, dataset: Dataset, messages: Iterable[tuple[int, str, bytes]]) -> None:
    lake, journal = Lake(str(root)), Journal(root.with_name(f"{root.name}-journal"))
    for each in (dataset, *(DATASETS[name] for name in ("rejected", "gap", "quality"))):
        lake.check(each)
    for number, (kind, origin, payload) in enumerate(messages):
        journal.append(kind, origin.encode(), payload, RECEIVED_US + number)
    journal.close()
    done = Drain(dataset, journal.directory, lake, collector="test").run_dry()
    assert done.rejected == 0


@pytest.fixture
def by(tmp_path: Path, market: GeneratedMarket, watched: Any) -> Roads:
    return Roads(tmp_path, market, watched)


@pytest.mark.parametrize(("dataset", "venue", "names"), CASES, ids=lambda case: case if isinstance(case, str) else "")
async def test_the_same_fact_is_the_same_row_whichever_way_it_came(
    by: Roads, dataset: str, venue: str, names: list[str]
) -> None:
    found = {road: await by.rows(road, dataset, venue) for road in names}
    heights = {road: rows.height for road, rows in found.items()}
    assert min(heights.values()) == max(heights.values()) > 20, heights
    for road, rows in found.items():
        assert rows["source"].unique().to_list() == [road]
        assert rows["received_time"].null_count() == (rows.height if road == "dump" else 0)
    unheard = NEVER_TOLD.get((dataset, venue), set())
    for one, other in itertools.combinations(names, 2):
        unknown = UNKNOWN.get((dataset, one), set()) | UNKNOWN.get((dataset, other), set()) | unheard
        facts = [name for name in DATASETS[dataset].schema if name not in {*OF_THE_ROAD, *unknown}]
        unlike = [name for name in facts if not found[one][name].equals(found[other][name], null_equal=True)]
        assert unlike == [], f"{one} and {other} differ"
        assert not any(found[one][facts].null_count().row(0)), "nothing that both know is left out by both"
    for road, rows in found.items():
        nothing = {name for name in rows.columns if rows[name].null_count() == rows.height}
        assert nothing - set(OF_THE_ROAD) == UNKNOWN.get((dataset, road), set()) | unheard


async def test_a_minute_s_mark_price_by_file_is_the_last_one_that_was_told_in_it(by: Roads) -> None:
    """By socket a row is of a second, by file of a minute's end (…59.999): no two have one key, so none is twice.

    Funding is not in the files; prices are those of the last second before.
    """
    told, filed = [await by.rows(road, "mark_price", FUTURES) for road in ("live", "dump")]
    assert filed.height >= 14
    assert told.join(filed, on=["venue", "symbol", "time"]).is_empty()
    assert filed["time"].dt.microsecond().unique().to_list() == [999_000]
    assert filed["time"].dt.second().unique().to_list() == [59]
    near = filed.join_asof(told, on="time", by=["venue", "symbol"], suffix="_told", check_sortedness=False)
    for name in ("mark_price", "index_price"):
        assert near[name].equals(near[f"{name}_told"])
        assert near[name].n_unique() > 1
    for name in ("estimated_settle_price", "funding_rate", "next_funding_time"):
        assert filed[name].null_count() == filed.height
        assert told[name].null_count() < told.height
