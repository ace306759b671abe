"""Overload by a real cause: the daemon gets no processor, and gives up what it may give up, in order and by count."""

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from crypto_lake.config import FUTURES
from crypto_lake.journal import FRAME, LAPSE, read_all
from crypto_lake.query import gaps, read
from crypto_lake.simulator import GeneratedMarket, Simulator

# Longer than what raises the level to 2, three times in a row, with some breath between.
SYMBOLS = ("BTCUSDT", "ETHUSDT")
STARVED_S, BREATH_S, TIMES = 2.4, 0.03, 5


@pytest.mark.slow
async def test_a_starved_recorder_gives_up_books_and_keeps_every_trade(
    recorder: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    market = GeneratedMarket(futures=SYMBOLS, spot=(), rate=400, seed=9, record=True)
    async with Simulator(market) as exchange:
        daemon = recorder(
            {**exchange.environment, "LAKE_DATASETS": "agg_trade,liquidation,depth,book_ticker",
             "LAKE_SYMBOLS": "BTCUSDT,ETHUSDT"}
        )  # fmt: skip
        await daemon.start()
        await wait_for(lambda: daemon.port and (daemon.root / "agg_trade").exists() and daemon.journal_bytes > 100_000)
        for _ in range(TIMES):
            os.kill(daemon.process.pid, signal.SIGSTOP)
            await asyncio.sleep(STARVED_S)
            os.kill(daemon.process.pid, signal.SIGCONT)
            await asyncio.sleep(BREATH_S)
        await wait_for(lambda: len(daemon.events("shedding_ended")) >= 2)
        after = {name: len(frames(daemon.journal(name))) for name in ("depth", "book_ticker")}
        await wait_for(lambda: all(len(frames(daemon.journal(name))) > count + 20 for name, count in after.items()))
        assert await daemon.stop() == 0
    given_up = {event["feed"].split(" ")[0]: event["messages"] for event in daemon.events("shedding_ended")}
    assert set(given_up) == {"book_ticker", "depth"}
    for symbol in SYMBOLS:
        ids = read("agg_trade", symbols=symbol, root=str(daemon.root)).collect()["agg_trade_id"]
        assert ids.n_unique() == ids.max() - ids.min() + 1  # type: ignore[operator]
    overloaded = gaps(str(daemon.root)).filter(pl.col("reason") == "overload")
    assert set(overloaded["dataset"]) == {"book_ticker", "depth"}
    for dataset, kind in (("depth", "depth"), ("book_ticker", "bookTicker")):
        shed = sum(each["shed"] for each in lapses(daemon.journal(dataset)) if each["to_us"])
        assert shed == given_up[dataset], dataset
        written = [facts(json.loads(each)["data"]) for each in frames(daemon.journal(dataset))]
        sent = [facts(json.loads(each)) for each in market.sent(FUTURES, kind)]
        between = [each for each in sent[sent.index(written[0]) : sent.index(written[-1]) + 1] if each[0] in SYMBOLS]
        assert len(between) - len(written) == shed, dataset


def facts(event: dict[str, Any]) -> tuple[str, int, int]:
    """What tells events apart; a book that does not move is told twice under one id."""
    return event["s"], event["u"], event["T"]


def frames(journal: Path) -> list[bytes]:
    return [record.payload for record in read_all(journal) if record.kind == FRAME]


def lapses(journal: Path) -> list[dict[str, Any]]:
    found = [json.loads(record.payload) for record in read_all(journal) if record.kind == LAPSE]
    return [each for each in found if each["reason"] == "overload"]
