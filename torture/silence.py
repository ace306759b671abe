"""Ten minutes of symbols as uneven as they come: nobody is called silent; then one really is, and is found."""

import asyncio
import json
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any, Final

import polars as pl
from rich.console import Console

from crypto_lake.simulator import GeneratedMarket, Simulator
from crypto_lake.simulator.scenario import Fault, Scenario
from torture.recorder import Recorder
from torture.truth import table

# Messages a second of each symbol, nearly all of them trades: from a hundred a second to one a minute.
RATES: Final = {"BTCUSDT": 100.0, "ETHUSDT": 20.0, "COIN003USDT": 2.0, "COIN004USDT": 0.2, "COIN005USDT": 1 / 60}
MIX: Final = {"aggTrade": 0.97, "forceOrder": 0.03}
CALM_S: Final = 600.0
FOUND_S: Final = 10.0
PATIENCE_S: Final = 40.0


async def run(calm_s: float = CALM_S) -> int:
    """Exit status 0 when nothing was called silent before, and the busiest symbol within ten seconds after it died."""
    console = Console()
    market = GeneratedMarket(futures=tuple(RATES), spot=(), rates=RATES, mix=MIX, seed=60, with_others=True)
    dies = Fault(
        kind="silent_stream", at_s=calm_s, for_s=60, streams=("aggTrade",), symbols=("BTCUSDT",), everywhere=True
    )
    with tempfile.TemporaryDirectory(prefix="crypto-lake-silence-") as folder:
        async with Simulator(market, faults=Scenario(faults=(dies,))) as exchange:
            recorder = Recorder(
                Path(folder),
                {
                    **exchange.environment,
                    "LAKE_SYMBOLS": ",".join(RATES),
                    "LAKE_DATASETS": "agg_trade,liquidation,mark_price",
                    "LAKE_COMMIT_EVERY_S": "1",
                },
            )
            await recorder.start()
            while not exchange.served:  # noqa: ASYNC110 - an exchange tells nobody
                await asyncio.sleep(0.1)
            began_s = time.monotonic()
            false_alarms = 0
            while time.monotonic() - began_s < calm_s - 1:
                await asyncio.sleep(1)
                false_alarms += len(await asyncio.to_thread(_silences, recorder.root))
            await asyncio.sleep(max(0.0, began_s + calm_s - time.monotonic()))
            died_s, found_s = time.monotonic(), None
            while found_s is None and time.monotonic() < died_s + PATIENCE_S:
                await asyncio.sleep(0.2)
                if "btcusdt@aggTrade" in json.dumps(await asyncio.to_thread(_health, recorder)):
                    found_s = time.monotonic() - died_s
            await asyncio.sleep(3)
            rows = await asyncio.to_thread(_silences, recorder.root)
            await recorder.stop()
    console.print(f"{calm_s:.0f} s with rates from 100/s to 1/min: {false_alarms} false alarms")
    found = "never" if found_s is None else f"{found_s:.1f} s"
    console.print(f"a symbol with 100 trades a second died: found after {found}; rows of gap: {rows}")
    passed = not false_alarms and found_s is not None and found_s <= FOUND_S and bool(rows)
    console.print("ok" if passed else "failed")
    return 0 if passed else 1


def _silences(root: Path) -> list[tuple[Any, ...]]:
    """The symbols and datasets that `gap` calls silent."""
    gaps = table(root, "gap")
    if gaps.is_empty():
        return []
    return gaps.filter(pl.col("reason") == "silence").select("dataset", "symbol").unique().rows()


def _health(recorder: Recorder) -> Any:
    running = json.loads((recorder.home / "var" / "daemon.json").read_bytes())
    with urllib.request.urlopen(f"http://127.0.0.1:{running['port']}/health", timeout=5) as page:
        return json.load(page)
