"""Follows a dataset from batch to batch: which ids are missing, which came after all, when nobody delivered.

A row with ids covers an interval of them: a trade its own, an event of a chain those behind the one it follows. What
lies between the highest id held (the tip) and a row above it is a hole; a row that falls into a hole fills a part of
it. So the memory is a tip per symbol and the holes that are open, and the tables give both back after a restart.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl

from crypto_lake.models.dataset import TIME, Dataset
from crypto_lake.models.frame import Lapse
from crypto_lake.models.gap import FILLED, GAP, NOT_AT_VENUE, OPEN, SEQUENCE, UNFILLABLE
from crypto_lake.processors.sequence import has_sequence, links
from crypto_lake.processors.states import newest

Group = tuple[str, str]  # venue and symbol

WITHIN: Final = ["venue", "symbol"]
# A hole that nothing can fill is remembered for so long, in case its rows are only late.
LATE_US: Final = 3_600_000_000
# Lapses give holes their reasons; the newest ones of a symbol are enough for that.
KEPT_LAPSES: Final = 8
# So many rows are asked for behind the last one of a mute symbol.
TAIL_IDS: Final = 900
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Hole:
    """A row of `gap` in the making: missing ids, or without ids a time in which nobody delivered (µs since 1970)."""

    venue: str
    symbol: str
    first_id: int | None
    last_id: int | None
    start_us: int
    end_us: int | None
    reason: str
    state: str
    filled_rows: int = 0

    @property
    def group(self) -> Group:
        return self.venue, self.symbol

    @property
    def ids(self) -> tuple[int, int]:
        """First and last missing id."""
        assert self.first_id is not None
        assert self.last_id is not None
        return self.first_id, self.last_id


class Tip(NamedTuple):
    """The highest id held of a symbol, the venue's time of its row, and when the row came (µs since 1970)."""

    last: int
    time_us: int
    received_us: int


class Page(NamedTuple):
    """What the venue was asked for: of the ids `first_id` to `last_id` it has given all that it has."""

    group: Group
    first_id: int
    last_id: int


class Gone(NamedTuple):
    """A lapse of one symbol."""

    group: Group
    lapse: Lapse


class Fresh(NamedTuple):
    """A hole that the row at `place` revealed, which came at `revealed_us`; the row before the hole at `since_us`."""

    hole: Hole
    since_us: int
    revealed_us: int
    place: int


@dataclass(slots=True)
class Followed:
    """What a batch changes once it is in the tables: new holes, new states of old ones and of lapses, tips.

    `state_us` dates the states: it is later than that of every state before it, for the newest one counts.
    """

    state_us: int = 0
    fresh: list[Fresh] = field(default_factory=list)
    changed: list[Hole] = field(default_factory=list)
    tips: dict[Group, Tip] = field(default_factory=dict)
    kept: dict[Group, list[Hole]] = field(default_factory=dict)
    lapses: dict[Group, list[Lapse]] = field(default_factory=dict)
    dark: dict[Group, list[Hole]] = field(default_factory=dict)
    aside: pl.DataFrame | None = None

    @property
    def holes(self) -> list[Hole]:
        """What has to be written down: of each hole its last state."""
        states = [*self.changed, *(each.hole for each in self.fresh)]
        return list({(hole.group, hole.first_id, hole.start_us): hole for hole in states}.values())


class Follower:
    """The tips, holes and lapses of one dataset, as the tables have them; `dark` are lapses that may still change."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._tips: dict[Group, Tip] = {}
        self._holes: dict[Group, list[Hole]] = {}
        self._lapses: dict[Group, list[Lapse]] = {}
        self._dark: dict[Group, list[Hole]] = {}
        self._aside: pl.DataFrame | None = None  # rows set aside that no row of the table has passed yet
        self._state_us = 0

    @property
    def open_holes(self) -> list[Hole]:
        """The missing ids that may still be had, the oldest first; at the end what symbols that are mute may lack."""
        found = [hole for holes in self._holes.values() for hole in holes if hole.state == OPEN]
        return [*sorted(found, key=lambda hole: hole.start_us), *self._tails()]

    @property
    def dark(self) -> list[Group]:
        """Whose dark times may still change."""
        return [group for group, holes in self._dark.items() if holes]

    @property
    def last_holes(self) -> list[Hole]:
        """The newest hole of each symbol that is remembered, whether or not anything can fill it."""
        return [max(holes, key=lambda hole: hole.ids) for holes in self._holes.values() if holes]

    def _tails(self) -> Iterator[Hole]:
        """Behind the tip of a mute symbol there may be rows that no later one will reveal: the venue can be asked."""
        if not (self.dataset.is_fillable and has_sequence(self.dataset)):
            return
        for group, dark in self._dark.items():
            if dark and (tip := self._tips.get(group)):
                yield replace(dark[-1], first_id=tip.last + 1, last_id=tip.last + TAIL_IDS)

    def learn(self, tips: Iterable[tuple[str, str, int, int]]) -> None:
        """Takes what the table holds: venue, symbol, highest id, and its time (µs)."""
        for venue, symbol, last, time_us in tips:
            known = self._tips.get((venue, symbol))
            if known is None or known.last < last:
                self._tips[venue, symbol] = Tip(last, time_us, time_us)

    def restore(self, gaps: pl.DataFrame) -> None:
        """Takes the rows of `gap` about this dataset."""
        self._state_us = max(gaps["state_time"].dt.epoch("us"), default=0)
        states = newest(gaps).sort("state_time", maintain_order=True)
        is_recent = pl.col("state_time").dt.epoch("us") > self._state_us - LATE_US
        is_lapse, state = pl.col("first_id").is_null(), pl.col("state")
        matters = pl.when(is_lapse).then(is_recent | (state != FILLED)).otherwise(is_recent & (state == UNFILLABLE))
        for row in states.filter((state == OPEN) | matters).iter_rows(named=True):
            hole = _hole(row)
            if hole.first_id is None:
                self._restore_lapse(hole)
            else:
                self._holes.setdefault(hole.group, []).append(hole)

    def _restore_lapse(self, hole: Hole) -> None:
        lapse = Lapse([hole.symbol], hole.reason, hole.start_us, hole.end_us)
        self._lapses[hole.group] = [*self._lapses.get(hole.group, ()), lapse][-KEPT_LAPSES:]
        if hole.state != FILLED and self._may_be_proven(hole):
            self._dark.setdefault(hole.group, []).append(hole)

    def follow(
        self,
        rows: pl.DataFrame,
        now_us: int,
        *,
        aside: pl.DataFrame | None = None,
        lapses: Sequence[Gone] = (),
        pages: Sequence[Page] = (),
    ) -> Followed:
        """What a batch shows at `now_us`; it counts from `advance` on.

        `rows` are in the order received, those that are held already among them. `aside` are rows that came under
        ids of the sequence and are none of the table; in its column `is_final` stands whether asking again is in vain.
        """
        found = Followed(max(now_us, self._state_us + 1))
        found.aside = aside = _both(self._aside, aside)
        for gone in lapses:
            self._lapse(gone, found)
        if has_sequence(self.dataset) and rows.height:
            self._follow_ids(_linked(self.dataset, rows), aside, pages, found)
            self._prove(found)
        return found

    def patch(self, found: Followed, rows: pl.DataFrame, *, until_us: int) -> None:
        """Takes out of the new holes what rows behind the batch bring until that time: it was only out of order."""
        later = _linked(self.dataset, rows).filter(pl.col("received_us") <= until_us)
        parts = {_group(key): _Links(part) for key, part in later.group_by(WITHIN)}
        found.fresh = [
            each._replace(hole=piece)
            for each in found.fresh
            for piece in _divided(each.hole, parts.get(each.hole.group))
            if piece.state != FILLED
        ]

    def advance(self, found: Followed) -> None:
        """The batch is in the tables."""
        if found.holes:
            self._state_us = found.state_us
        self._tips |= found.tips
        self._aside = self._above_tips(found.aside)
        self._lapses |= found.lapses
        self._dark |= found.dark
        self._holes |= found.kept
        fresh: dict[Group, list[Hole]] = {}
        for each in found.fresh:
            fresh.setdefault(each.hole.group, []).append(each.hole)
        for group in {*found.kept, *fresh}:
            holes = self._holes.get(group, [])
            known = {hole.ids for hole in holes}
            holes = [*holes, *(hole for hole in fresh.get(group, ()) if hole.ids not in known)]
            self._holes[group] = [hole for hole in holes if self._may_come(hole)]

    def _above_tips(self, aside: pl.DataFrame | None) -> pl.DataFrame | None:
        if aside is None or aside.is_empty():
            return None
        column = self.dataset.sequence or (self.dataset.chain.last if self.dataset.chain else "")
        tips = [self._tips.get((venue, symbol)) for venue, symbol in aside.select(WITHIN).iter_rows()]
        passed = [tip is not None and tip.last >= last for tip, last in zip(tips, aside[column], strict=True)]
        return aside.filter(~pl.Series(passed, dtype=pl.Boolean))

    def _may_come(self, hole: Hole) -> bool:
        tip = self._tips.get(hole.group)
        return hole.state == OPEN or tip is None or tip.time_us - (hole.end_us or hole.start_us) < LATE_US

    def _follow_ids(
        self, linked: pl.DataFrame, aside: pl.DataFrame | None, pages: Sequence[Page], found: Followed
    ) -> None:
        doubtful = []
        for venue, symbol, follows, last, in_order, time_us, received_us in _summary(linked).iter_rows():
            tip = self._tips.get((venue, symbol))
            if in_order and (tip is None or tip.last == follows):
                found.tips[venue, symbol] = Tip(last, time_us, received_us)
            else:
                doubtful.append((venue, symbol))
        if not doubtful:
            return
        set_aside = _links_by_group(self.dataset, aside)
        names = pl.DataFrame(doubtful, schema=WITHIN, orient="row")
        for key, part in linked.join(names, on=WITHIN, how="semi", maintain_order="left").group_by(WITHIN):
            group = _group(key)
            self._follow_group(group, _Links(part), set_aside.get(group), found)
            self._fill(group, _Links(part), [page for page in pages if page.group == group], found)

    def _follow_group(self, group: Group, part: "_Links", aside: "_Links | None", found: Followed) -> None:
        tip = self._tips.get(group)
        found.tips[group] = part.tip(tip)
        lapses = found.lapses.get(group, self._lapses.get(group, ()))
        for fresh in part.jumps(group, tip, self._state):
            reasoned = fresh._replace(hole=replace(fresh.hole, reason=_reason(fresh, lapses)))
            found.fresh += [reasoned._replace(hole=piece) for piece in _set_aside(reasoned.hole, aside)]

    def _fill(self, group: Group, part: "_Links", pages: Sequence[Page], found: Followed) -> None:
        kept = []
        low = min([int(part.follows.min()) + 1, *(page.first_id for page in pages)])
        high = max([int(part.last[-1]), *(page.last_id for page in pages)])
        for hole in self._holes.get(group, ()):
            if hole.ids[1] < low or hole.ids[0] > high:
                kept.append(hole)
                continue
            pieces = [each for piece in _divided(hole, part) for each in _not_there(piece, pages)]
            if pieces != [hole]:
                found.changed += pieces
            kept += [piece for piece in pieces if piece.state != FILLED]
        found.kept[group] = kept

    @property
    def _state(self) -> str:
        return OPEN if self.dataset.is_fillable else UNFILLABLE

    def _lapse(self, gone: Gone, found: Followed) -> None:
        group, lapse = gone
        from_us = self._since(group) if lapse.from_us is None else lapse.from_us
        if from_us is None and lapse.to_us is not None and self._lasting(group, found):
            from_us = lapse.to_us  # nothing is known of its begin, but that it ends what was said before
        if from_us is None:
            return
        if lapse.from_us is None and lapse.to_us is not None and from_us > lapse.to_us:
            return  # another recorder heard it meanwhile
        known = found.lapses.get(group, self._lapses.get(group, []))
        found.lapses[group] = [*known, Lapse([group[1]], lapse.reason, from_us, lapse.to_us)][-KEPT_LAPSES:]
        dark = found.dark.get(group, self._dark.get(group, []))
        lasting = self._lasting(group, found)
        told = Hole(*group, None, None, from_us, lapse.to_us, lapse.reason, self._state)
        if lapse.to_us is None:
            new = [] if any(hole.start_us == from_us for hole in lasting) else [told]
        else:
            new = [replace(hole, end_us=max(hole.start_us, lapse.to_us)) for hole in lasting]
            is_told = from_us == lapse.to_us or any(hole.start_us <= from_us for hole in lasting)
            new += [] if is_told else [told]
            dark = [hole for hole in dark if hole.end_us is not None]
        found.changed += new
        found.dark[group] = [hole for hole in [*dark, *new] if self._may_be_proven(hole)]

    def _lasting(self, group: Group, found: Followed) -> list[Hole]:
        """The dark times of a symbol that have no end yet."""
        return [hole for hole in found.dark.get(group, self._dark.get(group, [])) if hole.end_us is None]

    def _may_be_proven(self, hole: Hole) -> bool:
        """Whether something may still be said of a dark time: its end, or by a row with an id, what it has cost."""
        return hole.end_us is None or has_sequence(self.dataset)

    def _prove(self, found: Followed) -> None:
        """A row from behind a dark time says by its id what was missed in it: the time itself has no more to say."""
        for group, tip in found.tips.items():
            dark = found.dark.get(group, self._dark.get(group, []))
            proven = [hole for hole in dark if hole.end_us is not None and hole.end_us <= tip.received_us]
            if proven:
                found.changed += [replace(hole, state=FILLED) for hole in proven]
                found.dark[group] = [hole for hole in dark if hole not in proven]

    def _since(self, group: Group) -> int | None:
        """The time of the last row held; none: it is the very first start, and nothing is missing."""
        tip = self._tips.get(group)
        return None if tip is None else tip.time_us


class _Links:
    """The intervals of ids that a symbol's rows cover, as arrays in the order of ids."""

    def __init__(self, part: pl.DataFrame) -> None:
        part = part.sort("last", "follows")
        self.last, self.follows = part["last"].to_numpy(), part["follows"].to_numpy()
        self.time_us, self.received_us = part["time_us"].to_numpy(), part["received_us"].to_numpy()
        self.place = part["place"].to_numpy()
        self.is_final = bool(part["is_final"].all()) if "is_final" in part.columns else False

    def tip(self, before: Tip | None) -> Tip:
        # A row below the tip (an answer about an older hole) says nothing about the time behind it.
        at_tip = self.last >= (self.last[-1] if before is None else before.last)
        if not at_tip.any():
            assert before is not None
            return before
        received_us, last = int(self.received_us[at_tip].max()), int(self.last[-1])
        if before is not None and before.last >= last:
            return before._replace(received_us=max(before.received_us, received_us))
        return Tip(last, int(self.time_us[-1]), received_us)

    def jumps(self, group: Group, tip: Tip | None, state: str) -> Iterator[Fresh]:
        """The holes above the tip, or without one above the first row."""
        floor = int(self.follows[0]) if tip is None else tip.last
        before = np.maximum(np.concatenate(([floor], self.last[:-1])), floor)
        for at in np.flatnonzero(self.follows > before).tolist():
            is_first = tip is not None and before[at] == tip.last and (at == 0 or self.last[at - 1] <= tip.last)
            start_us = tip.time_us if is_first and tip else int(self.time_us[at - 1])
            since_us = tip.received_us if is_first and tip else int(self.received_us[at - 1])
            first_id, last_id = int(before[at]) + 1, int(self.follows[at])
            hole = Hole(*group, first_id, last_id, start_us, int(self.time_us[at]), SEQUENCE, state)
            yield Fresh(hole, since_us, int(self.received_us[at]), int(self.place[at]))

    def runs(self, first_id: int, last_id: int) -> Iterator[tuple[int, int, int, int, int]]:
        """What of the ids is covered, in contiguous runs: first and last id, rows, and their times (µs)."""
        begin = int(np.searchsorted(self.last, first_id))
        end = int(np.searchsorted(self.last, last_id, side="right")) + 1
        places = np.flatnonzero(self.follows[begin:end] < last_id) + begin
        if not len(places):
            return
        last, follows = self.last[places], self.follows[places]
        starts = np.flatnonzero(np.concatenate(([True], follows[1:] > last[:-1])))
        for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(places)], strict=True):
            low, high = max(first_id, int(follows[start]) + 1), min(last_id, int(last[stop - 1]))
            rows = len(np.unique(last[start:stop]))
            yield low, high, rows, int(self.time_us[places[start]]), int(self.time_us[places[stop - 1]])


def _linked(dataset: Dataset, rows: pl.DataFrame) -> pl.DataFrame:
    received_us = pl.col("received_time").dt.epoch("us").alias("received_us")
    also = [name for name in ("is_final",) if name in rows.columns]
    linked = links(dataset, rows.with_row_index("place"), received_us, "place", *also).drop_nulls("follows")
    return linked.with_columns(pl.col("time").dt.epoch("us").alias("time_us"))


def _both(old: pl.DataFrame | None, new: pl.DataFrame | None) -> pl.DataFrame | None:
    if old is None or new is None:
        return old if new is None else new
    return pl.concat([old, new])


def _links_by_group(dataset: Dataset, rows: pl.DataFrame | None) -> dict[Group, _Links]:
    if rows is None or rows.is_empty():
        return {}
    return {_group(key): _Links(part) for key, part in _linked(dataset, rows).group_by(WITHIN)}


def _summary(linked: pl.DataFrame) -> pl.DataFrame:
    """Per symbol what it follows, its last id, whether each row follows the one before, and times of the last row."""
    in_order = (pl.col("follows") == pl.col("last").shift(1)).fill_null(value=True).all()
    return linked.group_by(WITHIN).agg(
        pl.col("follows").first(),
        pl.col("last").last(),
        in_order.alias("in_order"),
        pl.col("time_us").last(),
        pl.col("received_us").last(),
    )


def _group(key: tuple[Any, ...]) -> Group:
    return key[0], key[1]


def _reason(fresh: Fresh, lapses: Sequence[Lapse]) -> str:
    """That of the newest lapse between the row before the hole and the one behind it."""
    for lapse in reversed(lapses):
        ends_us = fresh.revealed_us if lapse.to_us is None else lapse.to_us
        if (lapse.from_us or 0) <= fresh.revealed_us and ends_us >= fresh.since_us:
            return lapse.reason
    return fresh.hole.reason


def _divided(hole: Hole, part: _Links | None) -> Iterator[Hole]:
    """The hole in pieces: what the rows fill, and what is still missing."""
    first_id, last_id = hole.ids
    at, before_us = first_id, hole.start_us
    for low, high, rows, first_us, last_us in part.runs(first_id, last_id) if part else ():
        if low > at:
            yield replace(hole, first_id=at, last_id=low - 1, start_us=before_us, end_us=first_us)
        start_us = hole.start_us if low == first_id else first_us
        end_us = hole.end_us if high == last_id else last_us
        yield Hole(*hole.group, low, high, start_us, end_us, hole.reason, FILLED, rows)
        at, before_us = high + 1, last_us
    if at <= last_id:
        yield replace(hole, first_id=at, start_us=before_us)


def _set_aside(hole: Hole, aside: _Links | None) -> Iterator[Hole]:
    """The hole in pieces: the ids under which the venue sent what is no row, and the others."""
    for piece in _divided(hole, aside):
        if piece.state == FILLED and aside:
            state = UNFILLABLE if aside.is_final else hole.state
            yield replace(piece, state=state, reason=NOT_AT_VENUE, filled_rows=0)
        else:
            yield piece


def _not_there(hole: Hole, pages: Sequence[Page]) -> list[Hole]:
    """The hole in pieces: what the venue gave no row for when it was asked, and the rest."""
    pieces = [hole]
    for page in pages:
        pieces = [each for piece in pieces for each in _cut(piece, page)]
    return pieces


def _cut(hole: Hole, page: Page) -> Iterator[Hole]:
    first_id, last_id = hole.ids
    low, high = max(first_id, page.first_id), min(last_id, page.last_id)
    if hole.state != OPEN or low > high:
        yield hole
        return
    if low > first_id:
        yield replace(hole, last_id=low - 1)
    yield replace(hole, first_id=low, last_id=high, state=UNFILLABLE, reason=NOT_AT_VENUE)
    if high < last_id:
        yield replace(hole, first_id=high + 1)


def gap_rows(dataset: Dataset, found: Followed) -> pl.DataFrame:
    """What a batch changes as rows of `gap`."""
    holes = found.holes
    values: dict[str, list[Any]] = {
        name: [getattr(hole, name) for hole in holes]
        for name in ("venue", "symbol", "first_id", "last_id", "reason", "state", "filled_rows")
    }
    values |= {
        "dataset": [dataset.name] * len(holes),
        "start_time": [hole.start_us for hole in holes],
        "end_time": [hole.end_us for hole in holes],
        "state_time": [found.state_us] * len(holes),
    }
    schema = {name: pl.Int64() if dtype == TIME else dtype for name, dtype in GAP.schema.items() if name != "date"}
    frame = pl.DataFrame({name: values[name] for name in schema}, schema=schema)
    frame = frame.with_columns(pl.col("start_time", "end_time", "state_time").cast(TIME))
    return frame.with_columns(pl.col("start_time").dt.date().alias("date")).select(*GAP.schema)


def _hole(row: dict[str, Any]) -> Hole:
    return Hole(
        row["venue"],
        row["symbol"],
        row["first_id"],
        row["last_id"],
        _us(row["start_time"]),
        None if row["end_time"] is None else _us(row["end_time"]),
        row["reason"],
        row["state"],
        row["filled_rows"],
    )


def _us(instant: datetime) -> int:
    return (instant - EPOCH) // MICROSECOND
