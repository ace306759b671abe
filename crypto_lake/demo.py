"""The demonstration: an exchange on loopback, a recorder beside it, and a look at what landed."""

import asyncio
import shutil
import sys
import time
from pathlib import Path
from typing import Final

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from crypto_lake import show
from crypto_lake.config import ConfigError, child_environment, load
from crypto_lake.connections import SourceError
from crypto_lake.query import read, tables
from crypto_lake.services.daemon import ask_health
from crypto_lake.simulator import GeneratedMarket, Simulator

DATASETS: Final = "liquidation,depth,agg_trade,prices,trade,book_ticker,mark_price"
SYMBOL: Final = "BTCUSDT"
RATE: Final = 2_000.0
# What marks a folder as ours to empty.
MARKER: Final = ".crypto-lake-demo"


async def run(folder: Path, record_s: float) -> None:
    """Records a made-up market for `record_s` seconds into `folder` and shows what is there then.

    Raises `ConfigError` when the folder holds anything else, `SourceError` when the recorder fails.
    """
    _empty(folder)
    market = GeneratedMarket(futures=8, spot=("BTCUSDT", "ETHUSDT"), rate=RATE, seed=time.time_ns() % 2**32)
    environment = {
        "LAKE_ROOT": str(folder / "tables"),
        "LAKE_STATE": str(folder / "var"),
        "LAKE_DATASETS": DATASETS,
        "LAKE_SYMBOLS": "all,binance:all",
        "LAKE_COMMIT_EVERY_S": "2",
        "LAKE_PRICE_EVERY_S": "2",
        "LAKE_METRICS_PORT": "0",
        "LOG_TO_TERMINAL": "true",
    }
    async with Simulator(market) as exchange:
        typer.echo(f"an exchange at {exchange.ws_url}, {RATE:,.0f} messages a second; recording into {folder}/tables")
        log = folder / "recorder.jsonl"
        with log.open("wb") as output:
            recorder = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "crypto_lake", "run"),
                env=child_environment(**environment, **exchange.environment),
                stderr=output,
            )
            await _watch(recorder, environment, record_s)
            recorder.terminate()
            if status := await recorder.wait():
                raise SourceError(f"the recorder ended with {status}; its log is {log}")
    _look(folder)


def _empty(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
        raise ConfigError(f"--out {folder}: holds something that is not a demo's; name another folder")
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        (folder / MARKER).touch()
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be written: {error.strerror}") from None


async def _watch(recorder: asyncio.subprocess.Process, environment: dict[str, str], record_s: float) -> None:
    """A progress bar with the rows in the tables, for so long from the first connection on."""
    settings = load(state=environment["LAKE_STATE"])
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rows]:,} rows"))
    with Progress(*columns, TimeElapsedColumn(), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("starting", total=record_s, rows=0)
        began_s = None
        while began_s is None or time.monotonic() - began_s < record_s:
            if recorder.returncode is not None:
                raise SourceError(f"the recorder ended with {recorder.returncode} at its start")
            await asyncio.sleep(0.25)
            try:
                health = await asyncio.to_thread(ask_health, settings)
            except ConfigError:
                continue
            began_s = began_s or time.monotonic()
            rows = sum(health["details"]["rows"].values())
            done_s = time.monotonic() - began_s
            progress.update(task, description="recording", completed=done_s, rows=rows)


def _look(folder: Path) -> None:
    root = str(folder / "tables")
    show.tables(tables(root), title="what landed")
    trades = read("agg_trade", symbols=SYMBOL, venue="binance-futures", root=root).sort("agg_trade_id").collect()
    liquidations = read("liquidation", symbols=SYMBOL, venue="binance-futures", root=root).collect()
    if trades.is_empty():
        raise SourceError(f"no trades of {SYMBOL} landed; the recorder's log is {folder}/recorder.jsonl")
    prices = trades["price"].to_list()
    typer.echo(f"{SYMBOL} {_sparkline(prices)}  {min(prices):,} to {max(prices):,}")
    path = folder / "demo.png"
    if show.picture(trades, liquidations, path, title=f"{SYMBOL} on the simulated exchange, {trades.height:,} trades"):
        typer.echo(f"picture: {path}")
    else:
        typer.echo("a picture needs matplotlib: pip install 'crypto-lake[plot]'")


def _sparkline(prices: list[float], width: int = 60) -> str:
    """The course of a price in one line."""
    some = prices[:: max(1, len(prices) // width)]
    low, span = min(some), max(some) - min(some) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[int((price - low) / span * 7)] for price in some)
