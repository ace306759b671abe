"""An order book on the price grid that random events move, and the diffs that tell of it."""

from heapq import nlargest, nsmallest
from typing import NamedTuple

# Where a change falls, in ticks from the best price, and the size that it leaves: looked up by one random byte each,
# because a call of the random generator per level would cost more than all the rest.
REACH_TICKS = 300
_PLACES = tuple(i * i * REACH_TICKS // 65_025 for i in range(256))
_SIZES = tuple(0 if i < 48 else 1 + (i * i * i) // 4_000 for i in range(256))

_FIRST_LEVELS = 500
_FEWEST_LEVELS = 40
# On futures all symbols share one counter of updates, so one symbol's ids leave holes between its events.
_MOST_FOREIGN_UPDATES = 64


class Diff(NamedTuple):
    """The levels that changed since the diff before, with the update ids around them."""

    first_id: int
    final_id: int
    previous_id: int
    bids: dict[int, int]
    asks: dict[int, int]


class Book:
    """Bids and asks as ticks -> steps; every change since the last `flush` belongs to the next diff."""

    def __init__(self, anchor: int, update_id: int, *, has_foreign_updates: bool) -> None:
        self.bids = {anchor - i: _SIZES[60 + i * 7 % 190] for i in range(_FIRST_LEVELS)}
        self.asks = {anchor + 1 + i: _SIZES[60 + i * 11 % 190] for i in range(_FIRST_LEVELS)}
        self.best_bid, self.best_ask = anchor, anchor + 1
        self.update_id = update_id
        self._anchor, self._has_foreign_updates = anchor, has_foreign_updates
        self._first_id, self._flushed_id = 0, update_id
        self._changed_bids: dict[int, int] = {}
        self._changed_asks: dict[int, int] = {}

    @property
    def middle(self) -> float:
        """In ticks."""
        return (self.best_bid + self.best_ask) / 2

    def stir(self, noise: bytes) -> None:
        """Change some levels on both sides: two bytes of noise are one level."""
        half = len(noise) // 4 * 2
        self._close_spread(noise[0])
        _scatter(self.bids, self._changed_bids, self.best_bid, -1, noise[:half])
        _scatter(self.asks, self._changed_asks, self.best_ask, 1, noise[half:])
        self._settle()
        self._count(max(1, len(self._changed_bids) + len(self._changed_asks)), noise[-1])

    def take(self, *, buys: bool, wanted: int, noise: int) -> tuple[int, int]:
        """A taker order at the best price: price and the quantity it got."""
        price = self.best_ask if buys else self.best_bid
        there = (self.asks if buys else self.bids)[price]
        taken = min(wanted, there)
        if buys:
            self._set_ask(price, there - taken)
        else:
            self._set_bid(price, there - taken)
        self._settle()
        self._count(1, noise)
        return price, taken

    def flush(self) -> Diff:
        """What changed since the last call."""
        diff = Diff(self._first_id, self.update_id, self._flushed_id, self._changed_bids, self._changed_asks)
        self._first_id, self._flushed_id = 0, self.update_id
        self._changed_bids, self._changed_asks = {}, {}
        return diff

    def top(self, count: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """The best levels of both sides, best first."""
        return nlargest(count, self.bids.items()), nsmallest(count, self.asks.items())

    def _close_spread(self, noise: int) -> None:
        """Put an order inside a wide spread, rather on the side that leads back to where the market began."""
        spread = self.best_ask - self.best_bid
        if spread < 2:
            return
        pull = (self._anchor - self.middle) / (self._anchor * 0.02)
        if noise < 128 + 128 * pull:
            self.best_bid += (spread + 1) // 2
            self._set_bid(self.best_bid, _SIZES[noise | 64])
        else:
            self.best_ask -= (spread + 1) // 2
            self._set_ask(self.best_ask, _SIZES[noise | 64])

    def _set_bid(self, price: int, quantity: int) -> None:
        if quantity:
            self.bids[price] = quantity
        elif len(self.bids) > _FEWEST_LEVELS:
            self.bids.pop(price, None)
        else:
            self.bids[price] = quantity = 1
        self._changed_bids[price] = quantity

    def _set_ask(self, price: int, quantity: int) -> None:
        if quantity:
            self.asks[price] = quantity
        elif len(self.asks) > _FEWEST_LEVELS:
            self.asks.pop(price, None)
        else:
            self.asks[price] = quantity = 1
        self._changed_asks[price] = quantity

    def _settle(self) -> None:
        while self.best_bid not in self.bids:
            self.best_bid -= 1
        while self.best_ask not in self.asks:
            self.best_ask += 1

    def _count(self, changes: int, noise: int) -> None:
        if not self._first_id:
            foreign = noise % _MOST_FOREIGN_UPDATES if self._has_foreign_updates else 0
            self._first_id = self.update_id + 1 + foreign
            self.update_id = self._first_id + changes - 1
        else:
            self.update_id += changes


def _scatter(levels: dict[int, int], changed: dict[int, int], best: int, away: int, noise: bytes) -> None:
    """Change levels of one side around the best price, all at once: this is where a busy market spends its time."""
    prices = [best + away * _PLACES[each] for each in noise[::2]]
    moved = dict(zip(prices, [_SIZES[each] for each in noise[1::2]], strict=True))
    gone = [price for price, quantity in moved.items() if not quantity]
    if len(levels) - len(gone) < _FEWEST_LEVELS:
        moved |= dict.fromkeys(gone, 1)
        gone = []
    changed.update(moved)
    levels.update(moved)
    for price in gone:
        del levels[price]
