"""Polling: answers go into the journal, and an answer that is missing leaves a lapse in front of the next one."""

import asyncio
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from crypto_lake.config import FUTURES
from crypto_lake.connections.rest import Rest
from crypto_lake.journal import LAPSE, RESPONSE, Journal, Record, read_all
from crypto_lake.models.prices import PRICES
from crypto_lake.services.markets import Wanted
from crypto_lake.services.poll import poll

Wait = Callable[..., Any]
EVERY_S = 0.2


def told(journal: Journal, kind: int) -> list[Record]:
    journal.flush()
    return [each for each in read_all(journal.directory) if each.kind == kind]


async def test_a_time_without_answers_is_a_lapse_of_the_symbols_asked_for(
    tmp_path: Path, gate: asyncio.Event, wait_for: Wait
) -> None:
    well = asyncio.Event()
    well.set()
    refused: list[str] = []

    async def ticker(request: web.Request) -> web.Response:
        if not well.is_set():
            refused.append(request.query["symbol"])
            return web.json_response({}, status=400)
        return web.json_response({"symbol": request.query["symbol"]})

    app = web.Application()
    app.router.add_get("/{path:.*}", ticker)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    for _ in range(2):
        journal = Journal(tmp_path / "prices")
        async with Rest(lambda _: address) as rest:
            wanted = Wanted(FUTURES, ("BTCUSDT", "ETHUSDT"))
            answers = len(told(journal, RESPONSE))
            task = asyncio.create_task(poll(PRICES, wanted, rest, journal, gate, every_s=EVERY_S))
            await wait_for(lambda journal=journal, answers=answers: len(told(journal, RESPONSE)) > answers + 4)
            well.clear()
            refused.clear()
            await wait_for(lambda: len(refused) > 3)
            well.set()
            answers = len(told(journal, RESPONSE))
            await wait_for(lambda journal=journal, answers=answers: len(told(journal, RESPONSE)) > answers + 2)
            task.cancel()
            await asyncio.wait([task])
        journal.close()
    await runner.cleanup()
    lapses = [json.loads(each.payload) for each in told(journal, LAPSE) if "BTCUSDT" in each.origin]
    times = [each.received_us for each in told(journal, RESPONSE) if "BTCUSDT" in each.origin]
    assert {tuple(each["symbols"]) for each in lapses} == {("BTCUSDT",)}
    restarts = [(each["from_us"], each["to_us"]) for each in lapses if each["reason"] == "restart"]
    missed = [(each["from_us"], each["to_us"]) for each in lapses if each["reason"] == "disconnect"]
    assert restarts[0] == (None, times[0])
    assert len(restarts) == 2
    pairs = list(itertools.pairwise(times))
    assert restarts[1] in pairs
    assert missed == [pair for pair in pairs if pair[1] - pair[0] > 1.5 * EVERY_S * 1e6 and pair != restarts[1]]
    assert len(missed) >= 2
