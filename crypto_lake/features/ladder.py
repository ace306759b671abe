"""Both sides of an order book as sorted arrays, and the loop that plays events into them: the chain, levels, rows.

A side is an array of integer keys that rise towards the best price, which is at the end, where changes are cheap: bids
by price, asks by minus the price; so one text serves both. A price is its decimal times a power of ten (the scale).
"""

from math import gcd
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from crypto_lake.features.compiled import compiled

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

NONE: Final = -(2**63)
# Whole numbers below it are floats without loss, and powers of ten up to the 22nd: the quotient of two of them is the
# float nearest to the decimal, the same that a parser makes of its text.
EXACT: Final = 2.0**53
POWERS: Final = 10.0 ** np.arange(23)
# A book that has been crossed for so long by the venue's clock is wrong; for a moment it happens while it settles.
LASTING_US: Final = 1_000_000
# So many are moved one by one; of more a copy is made first, which is quicker then.
FEW: Final = 64

# What `marks` holds, by place.
STATE, LAST, CLOCK, TIME_US, IS_FRESH, BIDS, ASKS, BIDS_END, ASKS_END, STEP, SCALE, CROSSED_US, CROSSED_ID = range(13)
ROWS, WHY, MARKS = 13, 14, 15
# STATE: not known; a snapshot without an event behind it; a chain of events.
LOST, SEEDED, FOLLOWING = range(3)
# WHY a loop came back: it is through, or the event there does not fit, a side or the rows are full, or it is crossed.
DONE, BROKEN, NO_ROOM, ROWS_FULL, CROSSED = range(5)
# What an event is to the chain.
PASSED, FITS, MISSED = range(3)


class Side(NamedTuple):
    """Keys that rise, and the quantity at each; a key with quantity 0 is one that is known to be empty."""

    keys: Ints
    quantities: Floats


class Changes(NamedTuple):
    """Levels of many events: those of event i are `starts[i]` to `starts[i + 1]`."""

    starts: Ints
    keys: Ints
    quantities: Floats


class Heads(NamedTuple):
    """Of each event its time (µs) and its ids; `previous` is NONE where the venue does not say."""

    times: Ints
    firsts: Ints
    finals: Ints
    previous: Ints


class Rows(NamedTuple):
    """Rows being made: their time, update id, how many levels each side has, and the levels, best first."""

    times: Ints
    ids: Ints
    counts: Ints  # rows x 2; -1: the best price is not known
    prices: Floats  # rows x 2 x levels
    quantities: Floats


@compiled
def scaled(prices: Floats, scale: int, sign: int, keys: Ints, start: int) -> int:
    """Keys of the prices from `start` on; the place of the first one that it cannot make exactly, or their number."""
    power = POWERS[scale]
    for at in range(start, len(prices)):
        whole = np.rint(prices[at] * power)
        # Not "unequal": what is no number equals nothing.
        if not (abs(whole) < EXACT and whole / power == prices[at]):
            return at
        keys[at] = sign * int(whole)
    return len(prices)


@compiled
def price_of(key: int, scale: int) -> float:
    """The price of a key, asks as they are (negative)."""
    while abs(key) >= EXACT and key % 10 == 0:
        key //= 10
        scale -= 1
    return float(key / POWERS[scale] if scale >= 0 else key * POWERS[-scale])


@compiled
def place(keys: Ints, count: int, key: int, near: int) -> int:
    """Where the key is, or would be inserted. It is looked for from a place near by, in growing steps."""
    step = 1
    if near < count and keys[near] < key:
        low = near + 1
        high = low
        while high < count and keys[high] < key:
            low = high + 1
            high += step
            step *= 2
        high = min(high, count)
    else:
        high = min(near, count)
        low = high - step
        while low > 0 and keys[low] >= key:
            high = low
            step *= 2
            low -= step
        low = max(low, 0)
    while low < high:
        middle = (low + high) // 2
        if keys[middle] < key:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def put(side: Side, count: int, end: int, key: int, quantity: float, at: int) -> int:
    """Sets a level whose place is known; the number of keys then.

    A level that goes stays as an empty one: it mostly comes back, and then nothing has to be moved.
    """
    keys, quantities = side
    if at < count and keys[at] == key:
        quantities[at] = quantity
        return count
    if quantity == 0 and key >= end:
        return count
    if count - at > FEW:
        keys[at + 1 : count + 1] = keys[at:count]
        quantities[at + 1 : count + 1] = quantities[at:count]
    else:
        for each in range(count, at, -1):
            keys[each] = keys[each - 1]
            quantities[each] = quantities[each - 1]
    keys[at] = key
    quantities[at] = quantity
    return count + 1


@compiled
def step_with(step: int, key: int) -> int:
    """The step of prices when there is this one, too."""
    return gcd(step, abs(key)) if step == 0 or key % step else step


@compiled
def change(side: Side, changes: Changes, event: int, marks: Ints, is_asks: int) -> None:
    """The levels of one event into one side."""
    count, end, step = marks[BIDS + is_asks], marks[BIDS_END + is_asks], marks[STEP]
    near = count
    for number in range(changes.starts[event], changes.starts[event + 1]):
        key = changes.keys[number]
        if key < end:
            step = step_with(step, key)
        near = place(side.keys, count, key, near)
        count = put(side, count, end, key, changes.quantities[number], near)
    marks[BIDS + is_asks], marks[STEP] = count, step


@compiled
def top(side: Side, count: int) -> int:
    """The place of the best level that is there; -1 if there is none."""
    at = count - 1
    while at >= 0 and side.quantities[at] == 0:
        at -= 1
    return at


@compiled
def is_crossed(bids: Side, asks: Side, marks: Ints) -> bool:
    """Whether somebody bids more than another one asks."""
    bid, ask = top(bids, marks[BIDS]), top(asks, marks[ASKS])
    return bool(bid >= 0 and ask >= 0 and bids.keys[bid] > -asks.keys[ask])


@compiled
def learn(bids: Side, asks: Side, marks: Ints) -> None:
    """Where somebody asks a price nobody bids as much: from there up bids are known, and asks likewise."""
    bid, ask = top(bids, marks[BIDS]), top(asks, marks[ASKS])
    if bid < 0 or ask < 0 or bids.keys[bid] >= -asks.keys[ask]:
        return
    marks[BIDS_END] = min(marks[BIDS_END], -asks.keys[ask])
    marks[ASKS_END] = min(marks[ASKS_END], -bids.keys[bid])
    # What is known as a whole needs no empty levels.
    marks[BIDS] = trimmed(bids, marks[BIDS], marks[BIDS_END])
    marks[ASKS] = trimmed(asks, marks[ASKS], marks[ASKS_END])


@compiled
def trimmed(side: Side, count: int, end: int) -> int:
    """The number of keys without the empty ones before the best."""
    while count > 0 and side.quantities[count - 1] == 0 and side.keys[count - 1] >= end:
        count -= 1
    return count


@compiled
def show(side: Side, marks: Ints, is_asks: int, prices: Floats, quantities: Floats) -> int:
    """Writes the best levels, as many as are asked for and known; how many, or -1 when the best itself is not known."""
    count, end, step, scale = marks[BIDS + is_asks], marks[BIDS_END + is_asks], marks[STEP], marks[SCALE]
    sign, known, made = 1 - 2 * is_asks, end, 0
    for at in range(count - 1, -1, -1):
        key = side.keys[at]
        if key < end:
            # Beyond the end a level counts as long as every price up to it has been heard of.
            if key != known - step:
                break
            known = key
        if side.quantities[at] != 0:
            if made == len(prices):
                break
            prices[made] = sign * price_of(key, scale)
            quantities[made] = side.quantities[at]
            made += 1
    return -1 if made == 0 and end != NONE else made


@compiled
def write(bids: Side, asks: Side, marks: Ints, rows: Rows) -> None:
    """The next row. Of a crossed book, or without both best prices, it says nothing: a side has -1 levels then."""
    row = marks[ROWS]
    rows.times[row], rows.ids[row] = marks[CLOCK], marks[LAST]
    rows.counts[row] = -1
    if not is_crossed(bids, asks, marks):
        rows.counts[row, 0] = show(bids, marks, 0, rows.prices[row, 0], rows.quantities[row, 0])
        rows.counts[row, 1] = show(asks, marks, 1, rows.prices[row, 1], rows.quantities[row, 1])
    marks[ROWS] += 1


@compiled
def chained(marks: Ints, first: int, final: int, previous: int) -> int:
    """What an event is to the chain (PROTOCOLS B.1; without `previous` B.2)."""
    last = marks[LAST]
    if marks[STATE] == SEEDED:
        if last == -1:  # the snapshot of a book that did not exist yet: whatever comes is its beginning
            return FITS
        if previous == NONE:
            return PASSED if final <= last else FITS if first <= last + 1 else MISSED
        if final < last:
            return PASSED
        return FITS if first <= last or previous == last else MISSED
    if final <= last:
        return PASSED
    if previous == NONE:
        return FITS if first <= last + 1 else MISSED
    return FITS if previous == last else MISSED


@compiled
def follow(
    at: int, heads: Heads, bid_changes: Changes, ask_changes: Changes, bids: Side, asks: Side, marks: Ints,
    every_us: int, rows: Rows,
) -> int:  # fmt: skip
    """Plays the events from `at` on and makes rows; the place where it stopped, and in `marks` why."""
    while at < len(heads.times):
        verdict = chained(marks, heads.firsts[at], heads.finals[at], heads.previous[at])
        if verdict == PASSED:
            at += 1
            continue
        if verdict == MISSED:
            marks[WHY] = BROKEN
            return at
        n_bids = bid_changes.starts[at + 1] - bid_changes.starts[at]
        n_asks = ask_changes.starts[at + 1] - ask_changes.starts[at]
        if marks[BIDS] + n_bids > len(bids.keys) or marks[ASKS] + n_asks > len(asks.keys):
            marks[WHY] = NO_ROOM
            return at
        clock = max(marks[CLOCK], heads.times[at])
        if every_us and marks[IS_FRESH] and clock // every_us != marks[CLOCK] // every_us:
            if marks[ROWS] == len(rows.times):
                marks[WHY] = ROWS_FULL
                return at
            write(bids, asks, marks, rows)
        change(bids, bid_changes, at, marks, 0)
        change(asks, ask_changes, at, marks, 1)
        marks[STATE], marks[LAST], marks[CLOCK], marks[IS_FRESH] = FOLLOWING, heads.finals[at], clock, 1
        marks[TIME_US] = heads.times[at]
        at += 1
        if not is_crossed(bids, asks, marks):
            marks[CROSSED_US] = NONE
            learn(bids, asks, marks)
        elif marks[CROSSED_US] == NONE:
            marks[CROSSED_US], marks[CROSSED_ID] = clock, marks[LAST]
        elif clock - marks[CROSSED_US] >= LASTING_US:
            marks[WHY] = CROSSED
            return at
    marks[WHY] = DONE
    return at


KERNELS: Final[tuple[Any, ...]] = (
    scaled, price_of, place, put, step_with, change, top, is_crossed, learn, trimmed, show, write, chained, follow,
)  # fmt: skip
