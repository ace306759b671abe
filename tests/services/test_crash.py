"""Crashes: whatever is killed whenever, every journalled message is in its table exactly once."""

import asyncio
import contextlib
import json
import random
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import polars as pl
import psutil
import pytest

from crypto_lake.journal import FRAME, RESPONSE, Record, read_all
from crypto_lake.simulator import GeneratedMarket, Simulator

KEYS: dict[str, list[str]] = {
    "agg_trade": ["venue", "symbol", "agg_trade_id"],
    "depth": ["venue", "symbol", "is_snapshot", "final_update_id"],
    "liquidation": ["venue", "symbol", "time", "side", "price", "quantity"],
    "prices": ["venue", "symbol", "time"],
}


# What is asked for after a hole holds more than is missing, and only that is taken.
ASKED: dict[str, set[int]] = {"agg_trade": {RESPONSE}}


def keys_in_journal(dataset: str, journal: Path, kinds: set[int]) -> set[tuple[Any, ...]]:
    """The keys that the journal's messages must become, read without any of our decoders."""
    return {key for record in read_all(journal) if record.kind in kinds for key in keys_of(dataset, record)}


def keys_of(dataset: str, record: Record) -> Iterator[tuple[Any, ...]]:
    venue = record.origin.split(" ")[0]
    if record.kind == FRAME:
        data = json.loads(record.payload)["data"]
        if dataset == "agg_trade":
            yield venue, data["s"], data["a"]
        elif dataset == "depth":
            yield venue, data["s"], False, data["u"]
        else:
            order = data["o"]
            is_coin_m = order["s"].split("_")[0].endswith("USD")
            venue = "binance-delivery" if is_coin_m else venue
            yield venue, order["s"], order["T"], order["S"], float(order["p"]), float(order["q"])
    elif record.kind == RESPONSE:
        body = json.loads(record.payload)
        symbol = unquote(record.origin.partition("symbol=")[2].partition("&")[0])
        if dataset == "depth":
            yield venue, symbol, True, body["lastUpdateId"]
        elif dataset == "agg_trade":
            yield from ((venue, symbol, row["a"]) for row in body)
        else:
            yield from ((venue, row["symbol"], row["closeTime"]) for row in (body if symbol == "" else [body]))


def keys_in_table(dataset: str, root: Path) -> list[tuple[Any, ...]]:
    rows = pl.read_delta(str(root / dataset)).select(KEYS[dataset])
    if "time" in rows.columns:
        rows = rows.with_columns(pl.col("time").dt.epoch("ms"))
    return rows.rows()


def assert_exactly_once(daemon: Any) -> None:
    for dataset in KEYS:
        held = keys_in_table(dataset, daemon.root)
        twice = [key for key, count in Counter(held).items() if count > 1]
        assert not twice, f"{dataset}: {len(twice)} keys more than once, such as {twice[0]}"
        sent = keys_in_journal(dataset, daemon.journal(dataset), {FRAME, RESPONSE} - ASKED.get(dataset, set()))
        came = keys_in_journal(dataset, daemon.journal(dataset), {FRAME, RESPONSE})
        assert sent <= set(held), f"{dataset}: {len(sent - set(held))} missing"
        assert set(held) <= came, f"{dataset}: {len(set(held) - came)} from nowhere"
        assert held, dataset


@pytest.mark.slow
async def test_twenty_kills_lose_nothing_and_repeat_nothing(
    recorder: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    rng = random.Random(20)
    market = GeneratedMarket(futures=5, rate=1000, seed=20)
    async with Simulator(market) as exchange:
        daemon = recorder(
            {**exchange.environment, "LAKE_SYMBOLS": "all", "LAKE_PRICE_EVERY_S": "0.5", "LAKE_COMMIT_EVERY_S": "0.5"}
        )
        for round_ in range(20):
            written = daemon.journal_bytes
            await daemon.start()
            await wait_for(lambda before=written: daemon.journal_bytes > before + 50_000)
            await asyncio.sleep(rng.uniform(0, 0.8))  # the moment is what the test is about
            daemon.kill(with_worker=bool(round_ % 2))
            await daemon.wait()
        await daemon.start()
        await wait_for(lambda: daemon.port)
        assert await daemon.stop() == 0
    assert_exactly_once(daemon)
    assert daemon.events("stopped")[-1]["journal_bytes_for_the_next_start"] == 0


async def test_a_store_that_is_away_costs_nothing_but_time(
    recorder: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    market = GeneratedMarket(futures=5, rate=800, seed=21)
    async with Simulator(market) as exchange:
        daemon = recorder({**exchange.environment, "LAKE_SYMBOLS": "all", "LAKE_DATASETS": ",".join(KEYS)})
        await daemon.start()
        await wait_for(lambda: (daemon.root / "agg_trade").exists() and daemon.port)
        with away(daemon.root):
            await wait_for(lambda: daemon.events("store_does_not_take_commits"))
            before, memory = daemon.journal_bytes, resident_bytes(daemon)
            await wait_for(lambda: daemon.journal_bytes > before + 2_000_000)
            assert resident_bytes(daemon) < 1.1 * memory
            health = await asyncio.to_thread(read_health, daemon.port)
            assert health["status"] == "degraded"
            assert "store has been failing" in health["reasons"][0]
        await wait_for(lambda: daemon.events("store_takes_commits_again"))
        assert await daemon.stop() == 0
    assert_exactly_once(daemon)


async def test_a_store_that_is_away_at_a_restart_is_waited_for(
    recorder: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    market = GeneratedMarket(futures=5, rate=400, seed=22)
    async with Simulator(market) as exchange:
        daemon = recorder({**exchange.environment, "LAKE_SYMBOLS": "all", "LAKE_DATASETS": ",".join(KEYS)})
        await daemon.start("--for", "2s")
        assert await daemon.wait() == 0
        before = daemon.journal_bytes
        with away(daemon.root):
            await daemon.start()
            await wait_for(lambda: daemon.journal_bytes > before + 50_000)
            await wait_for(lambda: daemon.events("store_does_not_take_commits"))
        await wait_for(lambda: daemon.events("store_takes_commits_again"))
        assert await daemon.stop() == 0
    assert_exactly_once(daemon)


async def test_what_is_committed_and_old_enough_leaves_the_journal(
    recorder: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    async with Simulator(GeneratedMarket(rate=300)) as exchange:
        daemon = recorder({**exchange.environment, "LAKE_DATASETS": "agg_trade", "LAKE_JOURNAL_KEEP_H": "0"})
        await daemon.start("--for", "2s")
        assert await daemon.wait() == 0
        (first,) = daemon.journal("agg_trade").glob("*.journal")
        await daemon.start()
        await wait_for(lambda: not first.exists())
        assert await daemon.stop() == 0
    ids = pl.read_delta(str(daemon.root / "agg_trade"))
    assert ids.height == ids.unique(KEYS["agg_trade"]).height > 0


@contextlib.contextmanager
def away(root: Path) -> Iterator[None]:
    """The store is not to be had: something else stands where it was (also root cannot write there)."""
    hidden = root.with_name("away")
    root.rename(hidden)
    root.touch()
    try:
        yield
    finally:
        root.unlink()
        hidden.rename(root)


def resident_bytes(daemon: Any) -> int:
    """Memory of the daemon and of its worker."""
    process = psutil.Process(daemon.process.pid)
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))


def read_health(port: int) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
        return json.load(answer)
