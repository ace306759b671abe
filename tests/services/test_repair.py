"""Repair: what is missing is asked for by id, all of it, once, and within the venue's budget."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from crypto_lake.config import FUTURES, SPOT
from crypto_lake.connections.rest import Rest
from crypto_lake.journal import RESPONSE, Journal, read_all
from crypto_lake.services.contract import Holes, Missing
from crypto_lake.services.repair import Repair
from crypto_lake.services.snapshots import Snapshots
from crypto_lake.simulator import GeneratedMarket, Simulator
from crypto_lake.simulator.scenario import Fault, Scenario

MINUTE_S = 60.0
TIMES = 60


class QuickClock:
    """A clock that runs sixty times as fast as ours: a minute of the venue is a second here."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()

    def __call__(self) -> float:
        return 600.0 + (time.monotonic() - self._began_s) * TIMES

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / TIMES)


def made(futures: int = 2, *, frames: int = 4000, history: int = 50_000) -> GeneratedMarket:
    """A market in which something has happened already, and hardly anything happens now."""
    market = GeneratedMarket(futures=futures, spot=("BTCUSDT",), rate=1, seed=5, with_others=False, history=history)
    for _ in market.frames(frames):
        pass
    return market


def missing(first_id: int, last_id: int, *, venue: str = FUTURES, symbol: str = "BTCUSDT", age_s: float = 5) -> Missing:
    now_us = int((time.time() - age_s) * 1e6)
    return Missing(venue, symbol, first_id, last_id, now_us, now_us)


def fetched(journal: Journal) -> list[list[int]]:
    """The ids in each answer that the journal holds."""
    journal.flush()
    found = []
    for record in read_all(journal.directory):
        assert record.kind == RESPONSE
        assert "fromId=" in record.origin
        found.append([row["a"] for row in json.loads(record.payload)])
    return found


def ids_of(market: GeneratedMarket, venue: str = FUTURES) -> tuple[int, int]:
    rows = market.instrument(venue, "BTCUSDT").agg_trades
    return rows.oldest_id, rows.next_id - 1


@contextlib.asynccontextmanager
async def repairing(
    exchange: Simulator, journal: Journal, *, again_s: tuple[float, ...] = (60.0,)
) -> AsyncIterator[Repair]:
    repair, gate = Repair(again_s=again_s), asyncio.Event()
    gate.set()
    async with Rest(lambda _: exchange.rest_url) as rest:
        task = asyncio.create_task(repair.run(rest, {"agg_trade": journal}, gate))
        yield repair
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_long_hole_is_fetched_page_by_page_from_the_row_before_to_the_row_behind(
    journal: Journal, wait_for: Callable[..., Any]
) -> None:
    market = made(1, frames=20_000)
    first, last = ids_of(market)
    assert last - first > 2500
    async with Simulator(market) as exchange, repairing(exchange, journal) as repair:
        repair.hear(Holes("agg_trade", [missing(first + 10, first + 2400)]))
        await wait_for(lambda: sum(map(len, fetched(journal))) >= 2392)
        pages = fetched(journal)
    assert [len(page) for page in pages] == [1000, 1000, 395]
    assert sorted({id_ for page in pages for id_ in page}) == list(range(first + 9, first + 2402))
    assert pages[0][-1] == pages[1][0], "pages overlap by one row: between them nothing can hide"


async def test_spot_has_its_own_address_and_weight(journal: Journal, wait_for: Callable[..., Any]) -> None:
    market = made()
    first, _ = ids_of(market, SPOT)
    async with Simulator(market) as exchange, repairing(exchange, journal) as repair:
        repair.hear(Holes("agg_trade", [missing(first + 3, first + 4, venue=SPOT)]))
        await wait_for(lambda: fetched(journal))
        assert exchange.used_weight == {FUTURES: 0, SPOT: 4}
    assert fetched(journal) == [[first + 2, first + 3, first + 4, first + 5]]


async def test_what_rest_no_longer_has_is_left_and_the_rest_of_the_hole_comes(
    journal: Journal, wait_for: Callable[..., Any]
) -> None:
    market = made(1, history=300)
    first, _ = ids_of(market)
    async with Simulator(market) as exchange, repairing(exchange, journal) as repair:
        repair.hear(Holes("agg_trade", [missing(first - 100, first + 20)]))
        await wait_for(lambda: fetched(journal))
    ids = [id_ for page in fetched(journal) for id_ in page]
    assert min(ids) == first
    assert max(ids) >= first + 20


async def test_a_hole_is_asked_for_once_until_its_pause_is_over(journal: Journal, wait_for: Callable[..., Any]) -> None:
    market = made()
    first, _ = ids_of(market)
    hole = missing(first + 3, first + 4)
    async with Simulator(market) as exchange, repairing(exchange, journal, again_s=(0.4,)) as repair:
        repair.hear(Holes("agg_trade", [hole]))
        await wait_for(lambda: len(fetched(journal)) == 1)
        repair.hear(Holes("agg_trade", [hole]))  # the page is still on its way through the journal
        repair.hear(Holes("agg_trade", [missing(first + 4, first + 4)]))  # and now a part of it
        assert len(fetched(journal)) == 1
        await wait_for(lambda: len(fetched(journal)) == 2)
        repair.hear(Holes("agg_trade", []))


async def test_neighbouring_holes_share_a_page(journal: Journal, wait_for: Callable[..., Any]) -> None:
    market = made(1, frames=20_000)
    first, _ = ids_of(market)
    async with Simulator(market) as exchange, repairing(exchange, journal) as repair:
        holes = [missing(first + 10 * number, first + 10 * number) for number in range(1, 150)]
        repair.hear(Holes("agg_trade", holes))
        await wait_for(lambda: sum(map(len, fetched(journal))) > 1470)
        assert exchange.used_weight[FUTURES] <= 3 * 20
    assert {id_ for page in fetched(journal) for id_ in page} >= {hole.first_id for hole in holes}


async def test_limits_pages_of_html_and_slow_answers_only_take_time(
    journal: Journal, wait_for: Callable[..., Any]
) -> None:
    market = made()
    first, _ = ids_of(market)
    faults = (
        Fault(kind="too_many", for_s=1.0, retry_after_s=1.0),
        Fault(kind="html", at_s=1.0, for_s=1.0, status=200),
        Fault(kind="slow", at_s=2.0, for_s=1.0, delay_s=0.3),
    )
    async with Simulator(market, faults=Scenario(faults=faults)) as exchange, repairing(exchange, journal) as repair:
        repair.hear(Holes("agg_trade", [missing(first + 3, first + 4)]))
        await wait_for(lambda: fetched(journal))
    assert fetched(journal) == [[first + 2, first + 3, first + 4, first + 5]]


@pytest.mark.slow
async def test_three_hundred_books_stay_in_the_budget_and_trades_do_not_wait_for_them(
    journal: Journal, gate: asyncio.Event, tmp_path: Path, wait_for: Callable[..., Any]
) -> None:
    clock, market = QuickClock(), made(300, frames=60_000)
    books, repair = Snapshots(), Repair()
    depth = Journal(tmp_path / "depth")
    async with (
        Simulator(market, clock=clock) as exchange,
        Rest(lambda _: exchange.rest_url, clock=clock, sleep=clock.sleep) as rest,
    ):
        for symbol in market.symbols(FUTURES):
            books.need(FUTURES, symbol, market.instrument(FUTURES, symbol).book.update_id)
        tasks = [
            asyncio.create_task(books.fetch(rest, depth, gate)),
            asyncio.create_task(repair.run(rest, {"agg_trade": journal}, gate)),
        ]
        await wait_for(lambda: books.waiting < 290)
        symbols = market.symbols(FUTURES)[:40]
        firsts = [market.instrument(FUTURES, symbol).agg_trades.oldest_id for symbol in symbols]
        holes = [missing(first + 2, first + 3, symbol=symbol) for symbol, first in zip(symbols, firsts, strict=True)]
        asked_s = clock()
        repair.hear(Holes("agg_trade", holes))
        await wait_for(lambda: len(fetched(journal)) == 40)
        repaired_s, still_waiting = clock() - asked_s, books.waiting
        await wait_for(lambda: books.waiting == 0)
        by_minute = exchange.meters[FUTURES].by_minute
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    depth.close()
    assert max(by_minute.values()) <= 1440
    assert still_waiting > 100
    assert repaired_s < 3.5 * MINUTE_S
