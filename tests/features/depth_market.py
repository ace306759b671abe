"""A market whose book is known at every update, what a stream makes of it, and real streams; as rows of depth."""

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import polars as pl

from crypto_lake.models.dataset import LEVELS, TIME

Row = dict[str, Any]
Level = tuple[float, float]
FUTURES_CAPTURES = ["usdm_btcusdt_20240718.gz", "usdm_btcusdt_20240719.gz"]
SPOT_CAPTURES = ["spot_btcusdt_20240808.gz", "spot_btcusdt_20240809.gz"]

ROWS = {
    "time": pl.Int64, "first_update_id": pl.Int64, "final_update_id": pl.Int64, "previous_update_id": pl.Int64,
    "is_snapshot": pl.Boolean, "bids": LEVELS, "asks": LEVELS,
}  # fmt: skip


def frame(rows: Sequence[Row]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=ROWS).with_columns(pl.col("time").cast(TIME))


def event(first: int, final: int, previous: int | None, bids: Any = (), asks: Any = (), at: int = 0) -> Row:
    return {
        "time": at, "first_update_id": first, "final_update_id": final, "previous_update_id": previous,
        "is_snapshot": False, "bids": levels(bids), "asks": levels(asks),
    }  # fmt: skip


def snapshot(final: int, bids: Any = (), asks: Any = (), at: int = 0) -> Row:
    return {
        "time": at, "first_update_id": None, "final_update_id": final, "previous_update_id": None,
        "is_snapshot": True, "bids": levels(bids), "asks": levels(asks),
    }  # fmt: skip


def levels(pairs: Any) -> list[dict[str, float]]:
    return [{"price": price, "quantity": quantity} for price, quantity in pairs]


def pairs(side: list[dict[str, float]]) -> list[Level]:
    return [(level["price"], level["quantity"]) for level in side]


@dataclass
class Market:
    """Bids and asks in ticks that move at random; every update has an id, and every event tells of some updates."""

    random: Random
    tick: Decimal
    has_previous: bool
    depth: int
    bids: dict[int, int] = field(default_factory=dict)
    asks: dict[int, int] = field(default_factory=dict)
    at: int = 1_700_000_000_000_000
    last: int = 1000

    def __post_init__(self) -> None:
        self.middle = self.random.randint(60, 300)
        for number in range(self.depth):
            self.bids[self.middle - 1 - number * self.random.randint(1, 2)] = 1 + number
            self.asks[self.middle + 1 + number * self.random.randint(1, 2)] = 1 + number
        self.truth: dict[int, tuple[list[Level], list[Level]]] = {}

    def price(self, ticks: int) -> float:
        return float(ticks * self.tick)

    def side(self, book: dict[int, int], *, rising: bool) -> list[Level]:
        return [(self.price(each), book[each] / 8) for each in sorted(book, reverse=not rising)]

    def state(self) -> tuple[list[Level], list[Level]]:
        return self.side(self.bids, rising=False), self.side(self.asks, rising=True)

    def rows(self, events: int) -> Iterator[Row]:
        """Events, and snapshots now and then, each at its place."""
        for number in range(events):
            yield from self.step(wants_snapshot=number == 3 or self.random.random() < 0.04)

    def step(self, *, wants_snapshot: bool) -> Iterator[Row]:
        self.at += self.random.choice((0, 1_000, 90_000, 100_000, 400_000, 1_300_000))
        previous = self.last
        first = self.last + (self.random.randint(1, 9) if self.has_previous else 1)
        self.last = first - 1
        changed: tuple[dict[int, int], dict[int, int]] = ({}, {})
        updates = self.random.randint(1, 5)
        cut = self.random.randint(1, updates) if wants_snapshot else 0
        for number in range(1, updates + 1):
            self.last += 1
            self.update(changed)
            if number == cut:
                limit = self.random.choice((5, 10, 10, 20, 37))
                bids, asks = (side[:limit] for side in self.state())
                # Where a side ends before the limit it may look as if it ended at one: that makes a book too careful.
                # Where the venue does not say its time it is that of its receipt.
                away = 0 if self.has_previous else self.random.randint(-200_000, 200_000)
                yield snapshot(self.last, bids, asks, self.at + away)
        sides = ([(self.price(each), quantity / 8) for each, quantity in side.items()] for side in changed)
        self.truth[self.last] = self.state()
        yield event(first, self.last, previous if self.has_previous else None, *sides, self.at)

    def update(self, changed: tuple[dict[int, int], dict[int, int]]) -> None:
        """A few levels change; the market drifts, and those who are in its way are gone."""
        self.middle = max(40, self.middle + self.random.choice((-2, -1, 0, 0, 1, 2)))
        for number, book in enumerate((self.bids, self.asks)):
            away = -1 if number == 0 else 1
            for price in [each for each in book if (each - self.middle) * away <= 0]:
                del book[price]
                changed[number][price] = 0
            for _ in range(self.random.randint(0, 3)):
                price = self.middle + away * self.random.choice((1, 1, 2, 2, 3, 4, 5, 7, 9, 12, 25))
                quantity = self.random.choice((0, 0, 1, 5, 8, 800))
                changed[number][price] = quantity  # a deleted level may never have been there
                book[price] = quantity
                if not quantity:
                    del book[price]


def received(rows: Sequence[Row], random: Random) -> list[Row]:
    """As a client gets them: some lost, some twice, snapshots early or late."""
    found: list[tuple[float, Row]] = []
    for number, row in enumerate(rows):
        if row["is_snapshot"]:
            found.append((number + random.choice((0, 0, 0, -2.5, 1.5, 6.5)), row))
        elif random.random() > 0.03:
            found.append((number, row))
            if random.random() < 0.05:
                found.append((number + random.choice((0.5, 2.5)), row))
    return [row for _, row in sorted(found, key=lambda each: each[0])]


def captured(paths: Sequence[Path]) -> tuple[list[Row], dict[int, tuple[float, ...]]]:
    """Rows of depth as they came, and best prices and quantities by update id as `bookTicker` told them."""
    rows, tickers = [], {}
    for path in paths:
        with gzip.open(path, "rt") as lines:
            for line in lines:
                message = json.loads(line.partition(" ")[2])
                if "lastUpdateId" in message:
                    sides = ([(float(p), float(q)) for p, q in message[side]] for side in ("bids", "asks"))
                    rows.append(snapshot(message["lastUpdateId"], *sides))
                elif "@depth" in message["stream"]:
                    body = message["data"]
                    sides = ([(float(p), float(q)) for p, q in body[side]] for side in ("b", "a"))
                    ids = body["U"], body["u"], body.get("pu")
                    rows.append(event(*ids, *sides, body.get("T", body["E"]) * 1000))
                elif "@bookTicker" in message["stream"]:
                    body = message["data"]
                    tickers[body["u"]] = tuple(float(body[name]) for name in "bBaA")
    return rows, tickers
