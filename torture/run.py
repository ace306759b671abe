"""One trial from start to verdict."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import polars as pl

from crypto_lake.config import FUTURES, SPOT
from crypto_lake.simulator import Frame, GeneratedMarket, Simulator
from crypto_lake.simulator.hub import Served
from torture.recorder import Recorder
from torture.trial import CALM_S, Trial
from torture.truth import KEYS, check, table

# A hole that REST still has must be whole so long after the last fault.
REPAIR_S: Final = 75.0
BEGIN_S: Final = 30.0
LOOK_EVERY_S: Final = 0.5
PULSE_S: Final = 2.0


class Told(GeneratedMarket):
    """A market that knows when it told of everything: behind its own clock when the machine is busy."""

    def __init__(self, **settings: Any) -> None:
        self.told: list[Frame] = []
        super().__init__(**settings)

    def _noted(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        kept, now_ms = list(super()._noted(frames)), time.time_ns() // 1_000_000
        self.told += [frame._replace(time_ms=now_ms) for frame in kept]
        return iter(kept)


class Outcome(msgspec.Struct):
    """A line of the table."""

    seed: int
    redundancy: int
    faults: str
    kills: int
    sent: int
    lost: int
    known: int
    repaired: int
    unfillable: int
    repair_s: float | None
    wrong: list[str]


async def run(trial: Trial, home: Path) -> Outcome:
    """Records a market under faults and kills, waits for repair, then holds the tables against the market."""
    market = Told(
        futures=trial.symbols, spot=("BTCUSDT",), rate=trial.rate, seed=trial.seed, record=True, history=trial.history
    )
    async with Simulator(market, faults=trial.scenario) as exchange:
        names = [*market.symbols(FUTURES), *(f"{SPOT}:{symbol}" for symbol in market.symbols(SPOT))]
        recorder = Recorder(
            home,
            {
                **exchange.environment,
                "LAKE_SYMBOLS": ",".join(names),
                "LAKE_DATASETS": ",".join(KEYS),
                "LAKE_REDUNDANCY": str(trial.redundancy),
                "LAKE_COMMIT_EVERY_S": "0.5",
                "LAKE_PRICE_EVERY_S": "1",
                "LAKE_SILENCE_S": "4",
                "LOG_TO_TERMINAL": "true",
            },
        )
        await recorder.start()
        await _begun(recorder)
        wrong = await _disturb(trial, recorder, time.monotonic())
        repair_s = await _whole(market, recorder, trial)
        await _books(recorder)
        stopped_s = time.time()
        if status := await recorder.stop():
            wrong.append(f"the recorder ended with {status}")
        # A connection on which nothing ever comes is no begin of a recording.
        liquidations = [each for each in exchange.served if any("@forceOrder" in name for name in each.streams)]
        served = [each.opened_s for each in liquidations if each.mute_s is None and _spoke(each)]
    verdict = await asyncio.to_thread(
        check,
        recorder.root,
        market.told,
        since_s=min(served, default=stopped_s),
        until_s=stopped_s,
        skewed="clock_skew" in trial.has,
    )
    if repair_s is None:
        wrong.append(f"agg_trade is not whole {REPAIR_S:.0f} s after the last fault, though REST has the ids")
    return Outcome(
        trial.seed,
        trial.redundancy,
        trial.faults,
        len(trial.kills),
        len(market.ledger or ()),
        verdict.lost,
        verdict.known,
        verdict.repaired,
        verdict.unfillable,
        repair_s,
        [*wrong, *verdict.wrong],
    )


def _spoke(served: Served) -> bool:
    """Whether a connection lived for long enough to deliver its pulse before it was half open."""
    return served.half_open_s is None or served.half_open_s - served.opened_s > PULSE_S


async def _begun(recorder: Recorder) -> None:
    """Returns when the first rows are in a table: a kill before that would disturb nothing."""
    until_s = time.monotonic() + BEGIN_S
    while not await asyncio.to_thread(lambda: table(recorder.root, "agg_trade").height):
        assert time.monotonic() < until_s, f"no row after {BEGIN_S:.0f} s; see {recorder.log}"
        await asyncio.sleep(LOOK_EVERY_S)


async def _disturb(trial: Trial, recorder: Recorder, began_s: float) -> list[str]:
    """Kills and starts it again as ordered, until it is calm; what went wrong meanwhile."""
    wrong = []
    for kill in trial.kills:
        await asyncio.sleep(max(0.0, began_s + kill.at_s - time.monotonic()))
        if not recorder.is_running:
            wrong.append("the recorder ended by itself")
        await recorder.kill(with_worker=kill.with_worker)
        await recorder.start()
    await asyncio.sleep(max(0.0, began_s + CALM_S - time.monotonic()))
    return wrong


async def _whole(market: GeneratedMarket, recorder: Recorder, trial: Trial) -> float | None:
    """Seconds from the last fault until no trade is missing that REST still has; None if that does not come."""
    calm_s = time.time()
    while time.time() < calm_s + REPAIR_S:
        if recorder.root.exists() and await asyncio.to_thread(_is_whole, market, recorder.root, trial, calm_s):
            return round(time.time() - calm_s, 1)
        await asyncio.sleep(LOOK_EVERY_S)
    return None


def _is_whole(market: GeneratedMarket, root: Path, trial: Trial, calm_s: float) -> bool:
    held = table(root, "agg_trade")
    if held.is_empty() or held.select("venue", "symbol").n_unique() <= trial.symbols:
        return False
    for (venue, symbol), part in held.group_by(["venue", "symbol"]):
        # Before a row has come in the calm, what is missing in front of it cannot be known.
        newest_us = part["received_time"].dt.epoch("us").max()
        if newest_us < calm_s * 1e6 and not (symbol == "ETHUSDT" and "delisted" in trial.has):  # type: ignore[operator]
            return False
        oldest = market.instrument(str(venue), str(symbol)).agg_trades.oldest_id
        ids = part["agg_trade_id"].filter(part["agg_trade_id"] >= oldest)
        if ids.len() and ids.n_unique() != int(ids.max()) - max(int(part["agg_trade_id"].min()), oldest) + 1:  # type: ignore[arg-type]
            return False
    return True


async def _books(recorder: Recorder) -> None:
    """Returns when every book has a snapshot from behind its last hole, or when that does not come."""
    until_s = time.monotonic() + BEGIN_S
    while time.monotonic() < until_s and not await asyncio.to_thread(_books_are_whole, recorder.root):  # noqa: ASYNC110 - a table tells nobody
        await asyncio.sleep(LOOK_EVERY_S)


def _books_are_whole(root: Path) -> bool:
    gaps, depth = table(root, "gap"), table(root, "depth")
    if gaps.is_empty():
        return True
    holes = gaps.filter(pl.col("dataset") == "depth").group_by("venue", "symbol").agg(pl.col("last_id").max())
    books = depth.filter(pl.col("is_snapshot")).group_by("venue", "symbol").agg(pl.col("final_update_id").max())
    both = holes.drop_nulls("last_id").join(books, on=["venue", "symbol"], how="left")
    return bool((both["final_update_id"].fill_null(-1) >= both["last_id"]).all())
