"""Polling: answers go into the journal, and an answer that is missing leaves a lapse in front of the next one."""

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from crypto_lake.config import FUTURES
from crypto_lake.connections.rest import Rest
from crypto_lake.journal import LAPSE, RESPONSE, Journal, Record, read_all
from crypto_lake.models.prices import PRICES
from crypto_lake.services.markets import Wanted
from crypto_lake.services.poll import Answers, poll, snapshot

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
            wanted = {FUTURES: Wanted(FUTURES, ("BTCUSDT", "ETHUSDT"))}
            answers = len(told(journal, RESPONSE))
            task = asyncio.create_task(poll(PRICES, FUTURES, wanted, rest, journal, gate, every_s=EVERY_S))
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


async def test_who_is_asked_for_may_change_and_nobody_misses_what_was_not_wanted(
    tmp_path: Path, gate: asyncio.Event, wait_for: Wait
) -> None:
    async def ticker(request: web.Request) -> web.Response:
        return web.json_response({"symbol": request.query["symbol"]})

    app = web.Application()
    app.router.add_get("/{path:.*}", ticker)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    markets: dict[str, Wanted] = {}

    every_s = 0.05
    unwanted_us: list[int] = []

    async def run(*turns: tuple[str, ...]) -> None:
        """Asks for each choice of symbols three times; for nobody so long that an answer would be missing."""
        journal = Journal(tmp_path / "prices")
        async with Rest(lambda _: address) as rest:
            task = asyncio.create_task(poll(PRICES, FUTURES, markets, rest, journal, gate, every_s=every_s))
            for wanted in turns:
                markets[FUTURES] = Wanted(FUTURES, wanted)
                enough, late_s = len(told(journal, RESPONSE)) + 3 * len(wanted), time.monotonic() + 4 * every_s
                await wait_for(lambda enough=enough: len(told(journal, RESPONSE)) >= enough)
                await wait_for(lambda late_s=late_s, wanted=wanted: wanted or time.monotonic() > late_s)
                unwanted_us.extend([] if wanted else [time.time_ns() // 1000])
            task.cancel()
            await asyncio.wait([task])
        journal.close()

    await run(("BTC", "ETH"), ("BTC",), ("BTC", "ETH", "SOL"))
    await run(("SOL", "XRP"), (), ("SOL", "XRP"))
    await runner.cleanup()
    with contextlib.closing(Journal(tmp_path / "prices")) as journal:
        lapses = [json.loads(each.payload) for each in told(journal, LAPSE)]
        lapses = [each for each in lapses if each["from_us"] != each["to_us"]]
        assert journal.carried == {b"binance-futures /fapi/v1/ticker/24hr": ("SOL", "XRP")}
    restarts = [each["symbols"] for each in lapses if each["reason"] == "restart"]
    assert restarts == [["BTC"], ["ETH"], ["SOL"]]  # at the first start nobody knows what was before
    assert lapses[-1]["from_us"] is not None
    late = [each for each in lapses if each["reason"] == "disconnect"]  # of a busy machine
    assert not [each for each in late if each["from_us"] < unwanted_us[0] < each["to_us"]]


def test_a_time_in_which_nobody_asked_for_a_symbol_is_no_lapse(journal: Journal) -> None:
    answers = Answers(PRICES, FUTURES, journal, every_s=1)
    for second, symbols in enumerate((["BTC", "ETH"], ["BTC", "ETH"], ["BTC"], ["BTC"], ["BTC"], ["BTC", "ETH"])):
        answers.note(b"binance-futures x", symbols, second * 1_000_000)
        answers.keep(symbols, second * 1_000_000)
    answers.note(b"binance-futures x", ["BTC", "ETH"], 10_000_000)
    lapses = [json.loads(each.payload) for each in told(journal, LAPSE)]
    assert [(each["symbols"], each["reason"], each["from_us"]) for each in lapses] == [
        (["BTC", "ETH"], "restart", None),
        (["BTC", "ETH"], "disconnect", 5_000_000),
    ]


async def test_an_answer_about_all_is_cut_down_to_what_is_wanted(tmp_path: Path) -> None:
    async def ticker(request: web.Request) -> web.Response:
        assert "symbol" not in request.query
        return web.json_response([{"symbol": f"S{number}"} for number in range(40)])

    app = web.Application()
    app.router.add_get("/{path:.*}", ticker)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    with contextlib.closing(Journal(tmp_path / "prices")) as journal:
        async with Rest(lambda _: f"http://127.0.0.1:{runner.addresses[0][1]}") as rest:
            named = tuple(f"S{number}" for number in range(30))
            for wanted in (Wanted(FUTURES, named), Wanted(FUTURES, (), every=True, removed=named)):
                await snapshot(PRICES, wanted, rest, journal)
        bodies = [json.loads(each.payload) for each in told(journal, RESPONSE)]
    await runner.cleanup()
    assert [[row["symbol"] for row in body] for body in bodies] == [
        list(named),
        [f"S{number}" for number in range(30, 40)],
    ]
