"""Depth frames of one busy symbol, as the socket gives them, into an order book that knows its best prices after each.

Ours decodes batches of frames, checks the chain, and gives the best level behind every event. cryptofeed's handler for
Binance futures gets the same frames in an environment of its own, one message after the other as it does live, with the
snapshot where it asks REST for it, and a callback that looks at the best level. Both must end with the same book.
"""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import polars as pl

from benchmarks import apart, contest
from benchmarks.report import Findings, Line
from crypto_lake.simulator.book import Book as MadeUpBook

EVENTS, THEIR_EVENTS, PLAIN_EVENTS, FEW = 60_000, 4_000, 4_000, 1_000
RUNS: Final = 3
TIMES: Final = 50
BATCH: Final = 2_000
CONTENDERS: Final = {"ours": EVENTS, "ours-plain": PLAIN_EVENTS}
CRYPTOFEED: Final = ("cryptofeed==2.4.1",)
FRAMES, SNAPSHOT = "frames.txt", "snapshot.json"
SYMBOL: Final = "BTCUSDT"
START_MS: Final = 1_763_640_000_000
# A book of 90,000 with a step of 0.1, of which REST tells so many levels a side.
ANCHOR, LEVELS = 900_000, 1000
# Near the best price so many changes a side are drawn, those that fall on one price are one; and some far away, on one
# of so many prices. A recorded book (USD-M BTCUSDT, 2024) had 5,200 levels a side after eight minutes.
FEWEST, MOST = 15, 38
FAR_CHANGES, FAR = 10, 6_000

CRYPTOFEED_SCRIPT: Final = """
import asyncio, json, sys, time
from cryptofeed.defines import ASK, BID, L2_BOOK
from cryptofeed.exchanges import BinanceFutures
from cryptofeed.symbols import Symbols

asked = json.loads(sys.argv[1])
with open(asked["frames"]) as file:
    frames = [line.rstrip() for _, line in zip(range(asked["events"]), file)]
with open(asked["snapshot"]) as file:
    snapshot = file.read()
last, seen = None, 0

async def look(book, receipt_timestamp):
    global last, seen
    last, seen = (book.book.bids.index(0), book.book.asks.index(0)), seen + 1

class Rest:
    async def read(self, address):
        return snapshot

async def main():
    Symbols.set("BINANCE_FUTURES", {"BTC-USDT-PERP": "BTCUSDT"}, {})
    feed = BinanceFutures(symbols=["BTC-USDT-PERP"], channels=[L2_BOOK], callbacks={L2_BOOK: look})
    feed.http_conn = Rest()
    began = time.process_time()
    for frame in frames:
        await feed.message_handler(frame, None, 0.0)
    took = time.process_time() - began
    book = feed._l2_book["BTC-USDT-PERP"].book
    sides = [[[float(price), float(side[price])] for price in side] for side in (book.bids, book.asks)]
    print(json.dumps({"cpu_s": took, "seen": seen, "sides": sides}))

asyncio.run(main())
"""


def measure(_frames: Path, folder: Path) -> Findings:
    """Ours, with and without Numba, and cryptofeed."""
    python = apart.python_with("cryptofeed", *CRYPTOFEED)
    levels = write(folder, EVENTS)
    runs = contest.in_turns("benchmarks.books", tuple(CONTENDERS), folder, times=RUNS)
    theirs = [cryptofeed(python, folder) for _ in range(RUNS)]
    ours = contest.child("benchmarks.books", "book", str(folder))
    for run in theirs:
        assert run["seen"] == THEIR_EVENTS + 1, "cryptofeed lost a frame"  # the snapshot is one, too
        # What is beyond the snapshot it shows too, with or without what lies before it.
        heads = [side[: len(known)] for side, known in zip(run["sides"], ours["sides"], strict=True)]
        assert heads == ours["sides"], "cryptofeed has another book"
        assert [len(side) for side in run["sides"]] == ours["total"], "cryptofeed has other levels"
    return _findings(runs, THEIR_EVENTS / min(run["cpu_s"] for run in theirs), levels, ours)


def _findings(runs: dict[str, Any], rate: float, levels: float, book: dict[str, Any]) -> Findings:
    best = contest.best_of(runs)
    ratios = {name: run["per_cpu_s"] / rate for name, run in best.items()}
    lines = [
        *(Line(_WORDS[name], f"{run['per_cpu_s']:,.0f}/s") for name, run in best.items()),
        Line("cryptofeed", f"{rate:,.0f}/s"),
        Line("ours: times cryptofeed", f"{ratios['ours']:.0f}x", f">= {TIMES}x", ratios["ours"] >= TIMES),
        Line("ours without Numba: times cryptofeed", f"{ratios['ours-plain']:.1f}x"),
        Line("ours: levels per CPU-second", f"{best['ours']['per_cpu_s'] * levels / 1e6:.1f} million/s"),
        Line("ours: peak RSS", f"{max(run['rss_mb'] for run in runs['ours']):.0f} MB"),
    ]
    notes = [
        f"{EVENTS:,} frames with {levels:.0f} levels each; cryptofeed {THEIR_EVENTS:,} of them, and then the same book "
        f"({book['total'][0]:,} bids, {book['total'][1]:,} asks).",
        f"Best of {RUNS} processes each, warmed up, frames in memory.",
    ]
    figures = {
        "ratios": {"times_cryptofeed": round(ratios["ours"], 1)},
        "runs": runs,
        "cryptofeed_per_cpu_s": round(rate),
    }
    return Findings("books: depth frames to an order book, frames per CPU-second", lines, figures, notes)


_WORDS: Final = {
    "ours": "ours, from bytes to the best level after each event",
    "ours-plain": "ours without Numba",
}


def write(folder: Path, events: int) -> float:
    """Frames and the snapshot before them, always the same; the levels per frame."""
    noise = random.Random(1)
    book = MadeUpBook(ANCHOR, 5_000_000_000, has_foreign_updates=True)
    # As deep as a snapshot reaches.
    for away in range(1, LEVELS + 1):
        book.bids.setdefault(ANCHOR + 1 - away, away)
        book.asks.setdefault(ANCHOR + away, away)
    bids, asks = book.top(LEVELS)
    body = {"lastUpdateId": book.update_id, "E": START_MS, "T": START_MS, "bids": _side(bids), "asks": _side(asks)}
    (folder / SNAPSHOT).write_bytes(msgspec.json.encode(body))
    levels = 0
    with (folder / FRAMES).open("wb") as file:
        for number in range(1, events + 1):
            book.stir(noise.randbytes(4 * noise.randint(FEWEST, MOST)))
            changed = book.flush()
            changed.bids.update(_far(noise, -1))
            changed.asks.update(_far(noise, 1))
            levels += len(changed.bids) + len(changed.asks)
            event = {
                "e": "depthUpdate", "E": START_MS + 100 * number + 2, "T": START_MS + 100 * number, "s": SYMBOL,
                "ps": SYMBOL, "U": changed.first_id, "u": changed.final_id, "pu": changed.previous_id,
                "b": _side(sorted(changed.bids.items())), "a": _side(sorted(changed.asks.items())), "st": 1,
            }  # fmt: skip
            file.write(msgspec.json.encode({"stream": "btcusdt@depth@100ms", "data": event}) + b"\n")
    return levels / events


def _far(noise: random.Random, away: int) -> dict[int, int]:
    """Changes a long way off, of which there are many: a book knows more of those levels with every event."""
    places = (noise.randrange(FAR) for _ in range(FAR_CHANGES))
    return {ANCHOR + away * (2 * LEVELS + 37 * place): noise.choice((0, 40, 700, 9_000)) for place in places}


def _side(levels: Sequence[tuple[int, int]]) -> list[tuple[str, str]]:
    """In ticks of 0.1 and steps of 0.001."""
    return [(f"{ticks // 10}.{ticks % 10}0", f"{steps // 1000}.{steps % 1000:03}") for ticks, steps in levels]


def cryptofeed(python: Path, folder: Path) -> Any:
    """What its handler makes of the first frames: CPU time, calls, and the book at the end."""
    asked = {"frames": str(folder / FRAMES), "snapshot": str(folder / SNAPSHOT), "events": THEIR_EVENTS}
    words = [str(python), "-W", "ignore", "-c", CRYPTOFEED_SCRIPT, json.dumps(asked)]
    # Its log is made where it runs.
    done = subprocess.run(words, stdout=subprocess.PIPE, check=True, timeout=600, cwd=folder)
    return json.loads(done.stdout)


# What runs in the child processes


def _snapshot(folder: Path) -> pl.DataFrame:
    from crypto_lake.models.depth import DepthSnapshot

    body = msgspec.json.decode((folder / SNAPSHOT).read_bytes(), type=DepthSnapshot)
    return _rows([body]).with_columns(pl.lit(value=True).alias("is_snapshot"))


def _batches(frames: Sequence[bytes]) -> Iterator[pl.DataFrame]:
    from crypto_lake.models.depth import Depth
    from crypto_lake.processors.decode import Combined

    decode = msgspec.json.Decoder(Combined[Depth]).decode
    for start in range(0, len(frames), BATCH):
        rows = _rows([decode(frame).data for frame in frames[start : start + BATCH]])
        yield rows.with_columns(pl.lit(value=False).alias("is_snapshot"))


def _rows(events: Sequence[Any]) -> pl.DataFrame:
    from crypto_lake.models.dataset import TIME
    from crypto_lake.processors.levels import level_lists

    ids = {
        name: pl.Series([getattr(each, name, None) for each in events], dtype=pl.Int64)
        for name in ("first_update_id", "final_update_id", "previous_update_id")
    }
    times = (pl.Series([each.time for each in events], dtype=pl.Int64) * 1000).cast(TIME)
    bids, asks = (level_lists(side, [getattr(each, side) for each in events]) for side in ("bids", "asks"))
    return pl.DataFrame({"time": times, **ids, "bids": bids, "asks": asks})


def _played(frames: Sequence[bytes], folder: Path) -> Any:
    """The book, and the rows that it gave."""
    from crypto_lake.features.book import Book

    book = Book(levels=1, every_us=1)
    book.apply(_snapshot(folder))
    return book, sum(book.apply(rows).height for rows in _batches(frames)) + book.unfinished().height


def _run(name: str, folder: Path) -> dict[str, Any]:
    with (folder / FRAMES).open("rb") as file:
        frames = [line.rstrip() for _, line in zip(range(CONTENDERS[name]), file, strict=False)]
    _played(frames[:FEW], folder)
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    _, rows = _played(frames, folder)
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    assert rows == len(frames), "a best level after each event"
    found = {"cpu_s": round(cpu_s, 3), "wall_s": round(wall_s, 3), "per_cpu_s": len(frames) / cpu_s}
    return {**found, "rss_mb": contest.peak_rss_mb()}


def _book(folder: Path) -> dict[str, Any]:
    with (folder / FRAMES).open("rb") as file:
        book, _ = _played([line.rstrip() for _, line in zip(range(THEIR_EVENTS), file, strict=False)], folder)
    best = book.best()
    return {"sides": [best.bids.tolist(), best.asks.tolist()], "total": list(book.total)}


def main() -> None:
    """One contender in this process, or the book that ours has where cryptofeed ends."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    if name == "ours-plain":
        sys.modules["numba"] = None  # type: ignore[assignment]
        contest.without_extras()
    print(json.dumps(_book(folder) if name == "book" else _run(name, folder)))


if __name__ == "__main__":
    main()
