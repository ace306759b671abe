"""Three hundred books at once: what that costs of the venue's budget, and whether trades wait for it."""

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Final

import polars as pl
from rich.console import Console

from crypto_lake.config import FUTURES
from crypto_lake.simulator import GeneratedMarket, Simulator
from torture.recorder import Recorder
from torture.truth import table

SYMBOLS: Final = 300
RATE: Final = 900.0
CUT_AT_S: Final = 20.0
PATIENCE_S: Final = 600.0
LIMIT: Final = 2400  # of the venue, a minute


async def run() -> int:
    """Records 300 symbols, cuts every connection when all have begun, and waits until all books are whole again."""
    console = Console()
    market = GeneratedMarket(futures=SYMBOLS, spot=(), rate=RATE, seed=300, with_others=False, record=True)
    with tempfile.TemporaryDirectory(prefix="crypto-lake-resync-") as folder:
        async with Simulator(market) as exchange:
            recorder = Recorder(
                Path(folder),
                {
                    **exchange.environment,
                    "LAKE_SYMBOLS": "all",
                    "LAKE_DATASETS": "agg_trade,depth",
                    "LAKE_COMMIT_EVERY_S": "2",
                    "LAKE_REDUNDANCY": "1",
                },
            )
            await recorder.start()
            began_s = time.monotonic()
            await asyncio.sleep(CUT_AT_S)
            await exchange.cut()
            cut_s, cut_us = time.monotonic(), time.time_ns() // 1000
            cut_at = {name: _update_id(market, name) for name in market.symbols(FUTURES)}
            trades_s = books_s = None
            while time.monotonic() < began_s + PATIENCE_S and (trades_s is None or books_s is None):
                await asyncio.sleep(1)
                if trades_s is None and await asyncio.to_thread(_trades_are_whole, recorder.root, cut_us):
                    trades_s = time.monotonic() - cut_s
                    console.print(f"agg_trade of {SYMBOLS} symbols whole {trades_s:.0f} s after the cut")
                if books_s is None and await asyncio.to_thread(_books_are_whole, recorder.root, cut_at):
                    books_s = time.monotonic() - cut_s
                    console.print(f"all {SYMBOLS} books whole {books_s:.0f} s after the cut")
            by_minute = exchange.meters[FUTURES].by_minute
            await recorder.stop()
    used = max(by_minute.values())
    console.print(f"request weight by minute, as the exchange counted: {list(by_minute.values())}, limit {LIMIT}")
    passed = books_s is not None and trades_s is not None and used < LIMIT
    console.print("ok" if passed else "failed")
    return 0 if passed else 1


def _update_id(market: GeneratedMarket, symbol: str) -> int:
    return market.instrument(FUTURES, symbol).book.update_id


def _trades_are_whole(root: Path, cut_us: int) -> bool:
    rows = table(root, "agg_trade")
    if rows.is_empty():
        return False
    ids = rows.group_by("symbol").agg(
        pl.col("agg_trade_id").n_unique().alias("held"),
        (pl.col("agg_trade_id").max() - pl.col("agg_trade_id").min() + 1).alias("all"),
        pl.col("received_time").max().alias("newest"),
    )
    is_new = pl.col("newest").dt.epoch("us") > cut_us  # before that nobody can know what is missing
    return ids.height == SYMBOLS and bool(ids.select(((pl.col("held") == pl.col("all")) & is_new).all()).item())


def _books_are_whole(root: Path, since: dict[str, int]) -> bool:
    """Whether every symbol has a snapshot from behind the cut."""
    rows = table(root, "depth")
    if rows.is_empty():
        return False
    newest = rows.filter(pl.col("is_snapshot")).group_by("symbol").agg(pl.col("final_update_id").max())
    ids = dict(newest.iter_rows())
    return all(ids.get(symbol, -1) >= update_id for symbol, update_id in since.items())
