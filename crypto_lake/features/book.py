"""An order book that batches of depth rows are played into, and what it shows at the end of every interval.

What it decides where the venue's rules (PROTOCOLS B) leave a choice:

*The chain.* An event with a `previous_update_id` (futures) must name the event before it, one without (spot) must begin
no later than behind it. What is not new is passed over. Where the chain breaks the book is lost until a snapshot comes
that the events behind it fit to; the newest events since then wait for one, so that it may also come late. A snapshot
replaces the book, unless it is older: so a book depends on nothing before its last snapshot. One without levels and
with the id -1 is of a book that does not exist yet, and whatever follows is its beginning.

*The horizon.* A side of a snapshot that has exactly as many levels as a venue gives at the most (`LIMITS`) ends there:
what lies beyond is not known, and not shown, until it is known that nothing is missing before it. That is so as far as
every price (multiples of the smallest step seen) has been heard of since the snapshot, and for bids down to the lowest
price at which somebody has asked since, for asks up to the highest bid. Sides are shorter than asked for where
knowledge ends; without a best price on both sides (and not because a whole side is empty) the book is not shown.

*Crossed books.* One that is crossed is not shown, and one that stays so for `LASTING_US` is lost; bid equal to ask is
the venue's business.
"""

from collections.abc import Iterator
from decimal import Decimal
from io import BytesIO
from typing import Final, NamedTuple

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa

from crypto_lake.features import ladder
from crypto_lake.features.ladder import NONE, Changes, Floats, Heads, Ints, Rows, Side
from crypto_lake.models.dataset import LEVELS, TIME

LIMITS: Final = (5, 10, 20, 50, 100, 500, 1000, 5000)
# Levels of the events that wait for a snapshot, which takes seconds: minutes of the busiest book.
MOST_WAITING: Final = 200_000
ROWS_AT_ONCE: Final = 1024
FIRST_ROOM: Final = 256
SCALES: Final = len(ladder.POWERS)
SCHEMA: Final[dict[str, pl.DataType]] = {"time": TIME, "update_id": pl.Int64(), "bids": LEVELS, "asks": LEVELS}
SAYS: Final = "_says"
HELD: Final[dict[str, pl.DataType]] = {**SCHEMA, SAYS: pl.Boolean()}
FORMAT: Final = 1


class Best(NamedTuple):
    """What a book shows: rows of (price, quantity), the best first; the time (µs) is that of the last row played."""

    update_id: int
    time_us: int
    bids: Floats
    asks: Floats


class Crossed(NamedTuple):
    """A book that stayed crossed: from the first such event to the one at which it was given up (times in µs)."""

    first_us: int
    last_us: int
    first_id: int
    last_id: int
    observed: float  # the best bid less the best ask


class _Levels(NamedTuple):
    """The levels of many rows, with prices."""

    starts: Ints
    prices: Floats
    quantities: Floats

    def part(self, first: int, end: int) -> "_Levels":
        low, high = self.starts[first], self.starts[end]
        return _Levels(self.starts[first : end + 1] - low, self.prices[low:high], self.quantities[low:high])


class _Events(NamedTuple):
    """Rows of depth as arrays."""

    heads: Heads
    bids: _Levels
    asks: _Levels

    def __len__(self) -> int:
        return len(self.heads.times)

    def part(self, first: int, end: int) -> "_Events":
        heads = Heads(*(each[first:end] for each in self.heads))
        return _Events(heads, self.bids.part(first, end), self.asks.part(first, end))


class _State(msgspec.Struct, array_like=True):
    """A book as it is kept."""

    format: int
    levels: int
    every_us: int
    marks: bytes
    bids: tuple[bytes, bytes]
    asks: tuple[bytes, bytes]
    held: bytes
    waiting: list[bytes]


class Book:
    """The order book of one symbol.

    `apply` takes the columns first_update_id, final_update_id, previous_update_id, is_snapshot, time, bids and asks of
    `depth`, in the order of the chain (`in_order`) or in the order in which the rows came. With `every_us` it gives the
    best `levels` as they were at the end of each interval of so many microseconds in which there was an event.

    Prices come back as they were. Raises `ValueError` for one that cannot: with more than 15 significant digits, or
    where the largest and the smallest differ by more than 18.
    """

    def __init__(self, *, levels: int = 20, every_us: int | None = None) -> None:
        assert levels > 0
        assert every_us is None or every_us > 0
        self.crossed: list[Crossed] = []  # of the rows applied so far; whoever reads them may clear it
        self._levels, self._every_us = levels, every_us or 0
        self._marks = np.full(ladder.MARKS, NONE, np.int64)
        self._clear()
        self._marks[ladder.SCALE] = self._marks[ladder.ROWS] = 0
        self._rows = _rows_for(ROWS_AT_ONCE if every_us else 0, levels)
        self._made: list[pl.DataFrame] = []
        self._held = pl.DataFrame(schema=HELD)  # of the interval that is not over
        self._waiting: list[_Events] = []

    # What goes in

    def apply(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Plays rows of depth, in order.

        Returns the book at the end of each interval that is over by that (columns `SCHEMA`): `time` and `update_id`
        are those of the last event inside. Both rise: an event that is older than the one before it has its time.
        """
        events = _events(rows)
        start = 0
        for at in rows["is_snapshot"].arg_true().to_list():
            self._play(events.part(start, at))
            self._begin(events.part(at, at + 1))
            start = at + 1
        self._play(events.part(start, len(events)))
        return self._over()

    def _play(self, events: _Events) -> None:
        if not self.is_known:
            self._wait(events)
            return
        bids, asks = self._changes(events)
        at, marks = 0, self._marks
        while at < len(events):
            args = events.heads, bids, asks, *self._sides, marks, self._every_us, self._rows
            at = ladder.follow(at, *args)
            match marks[ladder.WHY]:
                case ladder.ROWS_FULL:
                    self._take_rows()
                case ladder.NO_ROOM:
                    self._make_room(int(max(np.diff(bids.starts).max(), np.diff(asks.starts).max())))
                case ladder.BROKEN | ladder.CROSSED:
                    self._lose()
                    self._wait(events.part(at, len(events)))
                    return

    def _begin(self, snapshot: _Events) -> None:
        """The book is that of the snapshot."""
        marks, update_id = self._marks, int(snapshot.heads.finals[0])
        if self.is_known and update_id < marks[ladder.LAST]:
            return
        self._show_for_now()
        self._clear()
        marks[ladder.STATE], marks[ladder.LAST] = ladder.SEEDED, update_id
        marks[ladder.TIME_US] = snapshot.heads.times[0]
        bids, asks = self._changes(snapshot)
        self._sides = _side(bids), _side(asks)
        for number, changes in enumerate((bids, asks)):
            marks[ladder.BIDS + number] = len(self._sides[number].keys)
            marks[ladder.BIDS_END + number] = changes.keys.min() if len(changes.keys) in LIMITS else NONE
        marks[ladder.STEP] = np.gcd.reduce(np.abs(np.concatenate([bids.keys, asks.keys])), initial=0)
        waiting, self._waiting = self._waited(), []
        for events in waiting:
            self._play(events)

    def _lose(self) -> None:
        marks = self._marks
        if marks[ladder.WHY] == ladder.CROSSED:
            self.crossed.append(self._crossed())
        self._show_for_now()
        self._clear()

    def _clear(self) -> None:
        marks = self._marks
        marks[ladder.STATE], marks[ladder.IS_FRESH], marks[ladder.STEP] = ladder.LOST, 0, 0
        marks[ladder.BIDS] = marks[ladder.ASKS] = 0
        marks[ladder.BIDS_END] = marks[ladder.ASKS_END] = marks[ladder.CROSSED_US] = NONE
        self._sides = Side(np.empty(0, np.int64), np.empty(0)), Side(np.empty(0, np.int64), np.empty(0))

    # Events that wait for a snapshot

    def _wait(self, events: _Events) -> None:
        self._waiting.append(events)
        if sum(map(_count, self._waiting)) > 2 * MOST_WAITING:
            # Copied: a part of a batch holds all of it.
            self._waiting = [_unpacked(_packed(each)) for each in self._waited()]

    def _waited(self) -> list[_Events]:
        """The newest events with no more than `MOST_WAITING` levels, wherever the batches were cut."""
        room, found = MOST_WAITING, []
        for events in reversed(self._waiting):
            sizes = np.diff(events.bids.starts) + np.diff(events.asks.starts)
            fitting = int(np.searchsorted(np.cumsum(sizes[::-1]), room, side="right"))
            found.append(events.part(len(events) - fitting, len(events)))
            room -= int(sizes[len(events) - fitting :].sum())
            if fitting < len(events):
                break
        return found[::-1]

    # What comes out

    @property
    def is_known(self) -> bool:
        """Whether there was a snapshot, and since then no hole."""
        return bool(self._marks[ladder.STATE] != ladder.LOST)

    @property
    def update_id(self) -> int | None:
        """The last update in it; None while it is not known."""
        return int(self._marks[ladder.LAST]) if self.is_known else None

    @property
    def interval_us(self) -> int | None:
        """When the interval began that is not over yet (µs since 1970); None before the first event."""
        clock = int(self._marks[ladder.CLOCK])
        return None if clock == NONE or not self._every_us else clock // self._every_us * self._every_us

    @property
    def total(self) -> tuple[int, int]:
        """How many bids and asks it holds, those beyond the horizon among them."""
        bids, asks = (np.count_nonzero(self._held_of(number).quantities) for number in (0, 1))
        return int(bids), int(asks)

    def best(self, levels: int | None = None) -> Best | None:
        """The best levels as of the last row, or all that are known; None when the book is not known, or crossed."""
        marks = self._marks
        if not self.is_known or ladder.is_crossed(*self._sides, marks):
            return None
        found = []
        for number in (0, 1):
            room = int(marks[ladder.BIDS + number]) if levels is None else levels
            prices, quantities = np.empty(room), np.empty(room)
            count = ladder.show(self._sides[number], marks, number, prices, quantities)
            if count < 0:
                return None
            found.append(np.stack([prices[:count], quantities[:count]], axis=1))
        return Best(int(marks[ladder.LAST]), int(marks[ladder.TIME_US]), *found)

    def unfinished(self) -> pl.DataFrame:
        """The row of the interval that is not over yet, as it would be if nothing came any more: one row or none."""
        held = self._held
        if self._every_us and self._marks[ladder.IS_FRESH]:
            rows, marks = _rows_for(1, self._levels), self._marks.copy()
            marks[ladder.ROWS] = 0
            ladder.write(*self._sides, marks, rows)
            held = _frame(rows, 1)
        return _said(held)

    def _show_for_now(self) -> None:
        """The last state before a hole or a snapshot is that of its interval, unless another one follows in it."""
        if self._every_us and self._marks[ladder.IS_FRESH]:
            if self._marks[ladder.ROWS] == ROWS_AT_ONCE:
                self._take_rows()
            ladder.write(*self._sides, self._marks, self._rows)
            self._marks[ladder.IS_FRESH] = 0

    def _take_rows(self) -> None:
        if count := int(self._marks[ladder.ROWS]):
            self._made.append(_frame(self._rows, count))
            self._marks[ladder.ROWS] = 0

    def _over(self) -> pl.DataFrame:
        """The rows of intervals that are over: the last one of each."""
        if not self._every_us:
            return pl.DataFrame(schema=SCHEMA)
        self._take_rows()
        found = pl.concat([self._held, *self._made])
        self._made = []
        interval = found["time"].dt.epoch("us") // self._every_us
        is_last = (interval != interval.shift(-1)).fill_null(value=True)
        is_over = interval < self._marks[ladder.CLOCK] // self._every_us
        self._held = found.filter(is_last & ~is_over)
        return _said(found.filter(is_last & is_over))

    def _crossed(self) -> Crossed:
        marks = self._marks
        bid, ask = (
            ladder.price_of(int(side.keys[ladder.top(side, marks[ladder.BIDS + number])]), int(marks[ladder.SCALE]))
            for number, side in enumerate(self._sides)
        )
        since, until = (int(marks[place]) for place in (ladder.CROSSED_US, ladder.CLOCK))
        return Crossed(since, until, int(marks[ladder.CROSSED_ID]), int(marks[ladder.LAST]), bid + ask)

    # Levels

    def _changes(self, events: _Events) -> tuple[Changes, Changes]:
        """The levels with keys; the scale grows where a price needs it."""
        while True:
            bids, scale = self._keyed(events.bids, 1), self._marks[ladder.SCALE]
            asks = self._keyed(events.asks, -1)
            if self._marks[ladder.SCALE] == scale:
                return bids, asks

    def _keyed(self, levels: _Levels, sign: int) -> Changes:
        keys = np.empty(len(levels.prices), np.int64)
        at = 0
        while (at := ladder.scaled(levels.prices, int(self._marks[ladder.SCALE]), sign, keys, at)) < len(keys):
            price = float(levels.prices[at])
            if (digits := _digits_behind_the_point(price)) > self._marks[ladder.SCALE]:
                keys[:at] *= self._grow(digits, keys[:at], price)
            keys[at] = sign * _key(price, int(self._marks[ladder.SCALE]))
            at += 1
        return Changes(levels.starts, keys, levels.quantities)

    def _grow(self, digits: int, keys: Ints, price: float) -> int:
        """Makes room for that many digits behind the point; the factor for keys made before."""
        marks = self._marks
        factor: int = 10 ** (digits - int(marks[ladder.SCALE]))
        sides = [self._held_of(number).keys for number in (0, 1)]
        ends = np.array(
            [marks[place] for place in (ladder.BIDS_END, ladder.ASKS_END) if marks[place] != NONE], np.int64
        )
        for each in (keys, *sides, ends):
            if len(each) and int(np.abs(each).max()) * factor >= 2**63:
                raise ValueError(f"{price!r} cannot be kept exactly among the prices of this book")
        for each in sides:
            np.multiply(each, factor, out=each)
        for place in (ladder.BIDS_END, ladder.ASKS_END):
            marks[place] *= factor if marks[place] != NONE else 1
        marks[ladder.STEP] *= factor
        marks[ladder.SCALE] = digits
        return factor

    def _held_of(self, number: int) -> Side:
        count, (keys, quantities) = self._marks[ladder.BIDS + number], self._sides[number]
        return Side(keys[:count], quantities[:count])

    def _swept(self, number: int) -> Side:
        """A side without the empty levels that are nothing but room for them to come back."""
        keys, quantities = self._held_of(number)
        is_said = (quantities != 0) | (keys < self._marks[ladder.BIDS_END + number])
        return Side(keys[is_said], quantities[is_said])

    def _make_room(self, levels: int) -> None:
        """So that both sides can take so many levels more."""
        bids, asks = self._swept(0), self._swept(1)
        self._sides = _with_room(bids, levels), _with_room(asks, levels)
        self._marks[ladder.BIDS], self._marks[ladder.ASKS] = len(bids.keys), len(asks.keys)

    # Kept and restored

    def to_bytes(self) -> bytes:
        """All of it, to go on from later."""
        sides, marks = (self._swept(0), self._swept(1)), self._marks.copy()
        marks[ladder.BIDS], marks[ladder.ASKS] = (len(side.keys) for side in sides)
        bids, asks = ((side.keys.tobytes(), side.quantities.tobytes()) for side in sides)
        waiting = [_packed(events) for events in self._waited()]
        held = BytesIO()
        self._held.write_ipc(held)
        state = _State(FORMAT, self._levels, self._every_us, marks.tobytes(), bids, asks, held.getvalue(), waiting)
        return msgspec.msgpack.encode(state)

    @classmethod
    def from_bytes(cls, state: bytes) -> "Book":
        """What `to_bytes` gave. Raises `ValueError` for what it did not."""
        try:
            kept = msgspec.msgpack.decode(state, type=_State)
        except msgspec.DecodeError as error:
            raise ValueError(f"no state of a book: {error}") from None
        if kept.format != FORMAT:
            raise ValueError(f"a book's state of format {kept.format}, not {FORMAT}")
        book = cls(levels=kept.levels, every_us=kept.every_us or None)
        book._marks = np.frombuffer(kept.marks, np.int64).copy()
        book._sides = _side_of(*kept.bids), _side_of(*kept.asks)
        book._held = pl.read_ipc(BytesIO(kept.held))
        book._waiting = [_unpacked(events) for events in kept.waiting]
        return book


def in_order(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of depth of one symbol in the order of the chain: by their last update, snapshots behind the event with it.

    A snapshot with the id -1 has no place in the chain: it comes behind the last event that is not later.
    """
    events = rows.filter(~pl.col("is_snapshot")).sort("final_update_id")
    snapshots = rows.filter("is_snapshot").with_columns(pl.col("final_update_id").alias("_place"))
    for number in (snapshots["final_update_id"] < 0).arg_true():
        before = events.filter(pl.col("time") <= snapshots["time"][number])["final_update_id"].max()
        snapshots[number, "_place"] = before if before is not None else -1
    both = pl.concat([events.with_columns(pl.col("final_update_id").alias("_place")), snapshots])
    return both.sort("_place", "is_snapshot", "time").drop("_place")


def list_column(name: str, counts: Ints, prices: Floats, quantities: Floats) -> pl.Series:
    """Levels of many rows, one row's after the other's, as a column of lists."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    levels = pa.StructArray.from_arrays([pa.array(prices), pa.array(quantities)], names=["price", "quantity"])
    series = pl.from_arrow(pa.LargeListArray.from_arrays(pa.array(offsets), levels))
    assert isinstance(series, pl.Series)
    return series.cast(LEVELS).alias(name)


def _rows_for(count: int, levels: int) -> Rows:
    sides = (count, 2, levels)
    return Rows(
        np.empty(count, np.int64), np.empty(count, np.int64), np.empty((count, 2), np.int64), np.empty(sides),
        np.empty(sides),
    )  # fmt: skip


def _frame(rows: Rows, count: int) -> pl.DataFrame:
    columns = []
    for number, name in enumerate(("bids", "asks")):
        counts = rows.counts[:count, number].clip(0)
        is_level = np.arange(rows.prices.shape[2]) < counts[:, None]
        prices, quantities = (each[:count, number][is_level] for each in (rows.prices, rows.quantities))
        columns.append(list_column(name, counts, prices, quantities))
    times = pl.Series("time", rows.times[:count].copy()).cast(TIME)
    says = pl.Series(SAYS, (rows.counts[:count] >= 0).all(axis=1))
    return pl.DataFrame([times, pl.Series("update_id", rows.ids[:count].copy()), *columns, says])


def _said(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.filter(SAYS).select(*SCHEMA)


def _events(rows: pl.DataFrame) -> _Events:
    """The rows as arrays. A level without a price or a quantity is none."""
    ids = [_ids(rows[f"{name}_update_id"]) for name in ("first", "final", "previous")]
    times = _ids(rows["time"].dt.epoch("us"))
    return _Events(Heads(times, *ids), _levels(rows["bids"]), _levels(rows["asks"]))


def _ids(column: pl.Series) -> Ints:
    return column.cast(pl.Int64).fill_null(NONE).to_numpy().astype(np.int64)


def _levels(column: pl.Series) -> _Levels:
    lists = column.rechunk().to_arrow()
    if isinstance(lists, pa.ChunkedArray):
        lists = lists.combine_chunks()
    if lists.null_count:
        lists = pl.Series(column.fill_null([])).to_arrow()
    offsets = lists.offsets.to_numpy()
    levels = lists.flatten()
    prices, quantities = (
        np.ascontiguousarray(levels.field(name).to_numpy(zero_copy_only=False), np.float64)
        for name in ("price", "quantity")
    )
    return _Levels(np.ascontiguousarray(offsets - offsets[0], np.int64), prices, quantities)


def _side(changes: Changes) -> Side:
    """The levels of a snapshot."""
    is_there = changes.quantities != 0
    keys, quantities = changes.keys[is_there], changes.quantities[is_there]
    order = np.argsort(keys, kind="stable")
    return Side(keys[order], quantities[order])


def _count(events: _Events) -> int:
    return len(events.bids.prices) + len(events.asks.prices)


def _digits_behind_the_point(price: float) -> int:
    exponent = Decimal(repr(price)).normalize().as_tuple().exponent
    if not isinstance(exponent, int) or -exponent >= SCALES:
        raise ValueError(f"{price!r} is no price that can be kept exactly")
    return max(0, -exponent)


def _key(price: float, scale: int) -> int:
    decimal = Decimal(repr(price))
    key = int(decimal.scaleb(scale))
    # What is too long for a float of its own is kept by its digits without the zeros behind them.
    if abs(key) >= 2**63 or len(decimal.normalize().as_tuple().digits) > 15:
        raise ValueError(f"{price!r} cannot be kept exactly among the prices of this book")
    return key


def _arrays(events: _Events) -> Iterator[Ints | Floats]:
    yield from events.heads
    yield from events.bids
    yield from events.asks


def _packed(events: _Events) -> bytes:
    return msgspec.msgpack.encode([each.tobytes() for each in _arrays(events)])


def _unpacked(packed: bytes) -> _Events:
    parts: list[bytes] = msgspec.msgpack.decode(packed, type=list[bytes])
    heads = Heads(*map(_ints, parts[:4]))
    bids, asks = (_Levels(_ints(part[0]), _given(part[1]), _given(part[2])) for part in (parts[4:7], parts[7:]))
    return _Events(heads, bids, asks)


def _side_of(keys: bytes, quantities: bytes) -> Side:
    return Side(_ints(keys), _floats(quantities))


def _ints(kept: bytes) -> Ints:
    return np.frombuffer(kept, np.int64).copy()


def _floats(kept: bytes) -> Floats:
    return np.frombuffer(kept, np.float64).copy()


def _given(kept: bytes) -> Floats:
    """Not to be written to, as what comes out of a frame: machine code is made for one of both."""
    return np.frombuffer(kept, np.float64)


def _with_room(side: Side, levels: int) -> Side:
    spare = max(FIRST_ROOM, len(side.keys) + 2 * levels)
    keys = np.concatenate([side.keys, np.empty(spare, np.int64)])
    return Side(keys, np.concatenate([side.quantities, np.empty(spare)]))
