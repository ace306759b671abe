"""Symbols that come and go while a recorder runs: the others lose nothing, and what is not wanted is not missed."""

import asyncio
import contextlib
import json
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from crypto_lake.config import FUTURES, SPOT
from crypto_lake.journal import Journal
from crypto_lake.query import gaps, read
from crypto_lake.services import symbols
from crypto_lake.simulator import GeneratedMarket, Simulator

MakeRecorder = Callable[..., Any]
Wait = Callable[..., Any]
NAMES = ("agg_trade", "depth", "mark_price")


def add(root: Path, *words: str) -> None:
    symbols.add(str(root), symbols.names(words), asset_type=None, now=datetime.now(UTC))


def remove(root: Path, *words: str, setting: str) -> None:
    symbols.remove(str(root), symbols.names(words), setting.split(","), now=datetime.now(UTC))


def rows_of(root: Path, dataset: str, symbol: str, venue: str = FUTURES) -> pl.DataFrame:
    return read(dataset, symbols=symbol, venue=venue, root=str(root)).collect()


async def come(condition: Callable[[], object]) -> None:
    """Returns when the condition holds, which reads tables and so is not asked for all the time."""
    for _ in range(300):
        if await asyncio.to_thread(condition):
            return
        await asyncio.sleep(0.2)
    raise AssertionError("not within a minute")


async def health_of(daemon: Any) -> dict[str, Any]:
    def ask() -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{daemon.port}/health") as page:
            answer: dict[str, Any] = json.loads(page.read())
            return answer

    return await asyncio.to_thread(ask)


def assert_whole(market: GeneratedMarket, root: Path, symbol: str) -> None:
    """Every trade and every update between the first and the last one held, as the exchange has made them."""
    trades = rows_of(root, "agg_trade", symbol).sort("agg_trade_id")
    first_id, last_id = trades["agg_trade_id"][0], trades["agg_trade_id"][-1]
    made = [json.loads(each) for each in market.sent(FUTURES, "aggTrade", symbol)]
    assert trades.select("agg_trade_id", "price", "quantity", pl.col("time").dt.epoch("ms")).rows() == [
        (each["a"], float(each["p"]), float(each["q"]), each["T"]) for each in made if first_id <= each["a"] <= last_id
    ]
    assert last_id - first_id + 1 == trades.height
    book = rows_of(root, "depth", symbol)
    updates = book.filter(~pl.col("is_snapshot"))["final_update_id"].sort().to_list()
    sent = [json.loads(each) for each in market.sent(FUTURES, "depth", symbol)]
    assert updates == [each["u"] for each in sent if updates[0] <= each["u"] <= updates[-1]]
    assert book["is_snapshot"].any()


async def test_symbols_come_and_go_while_the_others_are_recorded_without_a_hole(
    recorder: MakeRecorder, wait_for: Wait
) -> None:
    setting = "BTCUSDT,ETHUSDT"
    market = GeneratedMarket(
        futures=("BTCUSDT", "ETHUSDT", "SOLUSDT", "XRPUSDT"), rate=150, others_every_ms=250, record=True
    )
    async with Simulator(market) as exchange:
        daemon = recorder({**exchange.environment, "LAKE_SYMBOLS": setting, "LAKE_DATASETS": ",".join(NAMES)})
        root = daemon.root

        def has(*symbols: str) -> bool:
            return all(rows_of(root, name, symbol).height for name in NAMES for symbol in symbols)

        await daemon.start()
        await wait_for(lambda: daemon.port)
        await come(lambda: has("BTCUSDT", "ETHUSDT"))
        add(root, "SOLUSDT", "XRPUSDT", "NOSUCHUSDT", "binance:BTCUSDT")
        await come(lambda: has("SOLUSDT", "XRPUSDT") and rows_of(root, "depth", "SOLUSDT")["is_snapshot"].any())
        await come(lambda: all(rows_of(root, name, "BTCUSDT", SPOT).height for name in ("agg_trade", "depth")))
        remove(root, "ETHUSDT", "binance:BTCUSDT", setting=setting)
        await wait_for(lambda: len(daemon.events("symbols_changed")) == 2)
        removed_ms = time.time() * 1000
        await wait_for(lambda: streams_of(exchange) == [{"btcusdt", "solusdt", "xrpusdt"}] * 6)
        marks = rows_of(root, "mark_price", "SOLUSDT").height
        await come(lambda: rows_of(root, "mark_price", "SOLUSDT").height > marks + 2)

        health = await health_of(daemon)
        assert health["reasons"] == [f"no venue lists {FUTURES}:NOSUCHUSDT: not collected"]
        assert health["details"]["symbols"] == {FUTURES: 3}
        assert [feed["connections"] for feed in health["details"]["feeds"].values()] == [2, 2, 2]
        assert await daemon.stop() == 0

        for symbol in ("BTCUSDT", "ETHUSDT", "SOLUSDT", "XRPUSDT"):
            assert_whole(market, root, symbol)
        for name in NAMES:
            assert rows_of(root, name, "ETHUSDT")["time"].dt.epoch("ms").max() <= removed_ms
        assert gaps(str(root)).is_empty()

        remove(root, "XRPUSDT", setting=setting)
        await daemon.start()
        await wait_for(lambda: daemon.port)
        marks = rows_of(root, "mark_price", "SOLUSDT").height
        await come(lambda: rows_of(root, "mark_price", "SOLUSDT").height > marks)
        await come(lambda: not gaps(str(root), "agg_trade").filter(pl.col("state") != "filled").height)
        add(root, "ETHUSDT")  # what it missed meanwhile is asked for by its ids
        await come(lambda: rows_of(root, "mark_price", "ETHUSDT")["time"].dt.epoch("ms").max() > removed_ms)
        await come(lambda: all(is_contiguous(root, symbol) for symbol in ("BTCUSDT", "ETHUSDT", "SOLUSDT")))
        assert await daemon.stop() == 0
    missing = gaps(str(root))
    assert set(missing["symbol"]) == {"BTCUSDT", "ETHUSDT", "SOLUSDT"}
    dark = missing.filter(pl.col("dataset") == "mark_price")
    assert dark.select("symbol", "reason").sort("symbol").rows() == [("BTCUSDT", "restart"), ("SOLUSDT", "restart")]
    with contextlib.closing(Journal(daemon.journal("depth"))) as journal:
        assert {name for names in (journal.carried or {}).values() for name in names} == {
            "BTCUSDT",
            "ETHUSDT",
            "SOLUSDT",
        }


def streams_of(exchange: Simulator) -> list[set[str]]:
    """The symbols that each connection asks for."""
    return [{name.partition("@")[0] for name in connection.streams} for connection in exchange.connections]


def is_contiguous(root: Path, symbol: str) -> bool:
    ids = rows_of(root, "agg_trade", symbol)["agg_trade_id"].sort()
    return bool(ids[-1] - ids[0] + 1 == ids.len())
