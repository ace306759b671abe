"""Making a batch: from journal records to rows for tables, and what is known of a dataset for that.

Nothing is written here, and nothing that a batch shows counts before it is committed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import polars as pl

from crypto_lake.config import COIN_M
from crypto_lake.journal import RESPONSE, Records
from crypto_lake.models import Dataset
from crypto_lake.models.frame import LAPSE, OTHERS, Lapse
from crypto_lake.models.gap import GAP, SILENCE
from crypto_lake.models.quality import QUALITY
from crypto_lake.models.rejected import REJECTED
from crypto_lake.processors.decode import NULL_FIELD, Decoded, Refused, decode, pages
from crypto_lake.processors.dedupe import Marks
from crypto_lake.processors.follow import Followed, Follower, Gone, Group, Hole, Page, gap_rows
from crypto_lake.processors.quality import PER_BATCH, Checks, Refusal
from crypto_lake.processors.shape import Finding, finding_rows, rejected_rows, shape
from crypto_lake.writers import Sink

# Two connections deliver out of order by less than this: what is missing for no longer is not missing.
REORDER_US: Final = 2_000_000

Ahead = Callable[[int], Records]
_LAPSES: Final = msgspec.json.Decoder(Lapse)


@dataclass(slots=True)
class Made:
    """A batch on its way to the tables: rows of the dataset (those already held among them), and of the side tables."""

    records: Records
    rows: pl.DataFrame
    followed: Followed
    sides: dict[str, pl.DataFrame]


@dataclass(frozen=True, slots=True)
class Early:
    """The batch shows a hole that may be only a matter of order: it has to end after so many records, or to wait."""

    records: int


class Maker:
    """What has to be known of a dataset's tables to make its batches; all of it comes from the tables."""

    def __init__(self, dataset: Dataset, sink: Sink) -> None:
        self.dataset, self.sink = dataset, sink
        sink.was_changed_by_others(dataset)  # what comes from here on is noticed
        self._marks, self._follower, self._checks = Marks(dataset), Follower(dataset), Checks(dataset)
        self._follower.restore(sink.rows(GAP, dataset=dataset.name))
        self._ask(self._named(self._follower.dark))

    @property
    def open_holes(self) -> list[Hole]:
        """Missing ids that may still be had, the oldest first."""
        return self._follower.open_holes

    @property
    def last_holes(self) -> list[Hole]:
        """The newest hole of each symbol, also where nothing can fill it."""
        return self._follower.last_holes

    def make(self, records: Records, ahead: Ahead, *, until_us: int) -> Made | Early:
        """The batch. `ahead` reads the records behind a position; before `until_us` nothing more will come there."""
        decoded = decode(self.dataset, records)
        rows = shape(self.dataset, decoded.frame)
        lapses = list(_lapses(records))
        self._learn(rows, lapses)
        # What is found is dated by the batch itself: made again it is the same.
        now_us = max(records.received_us, default=0)
        followed = self._follow(records, decoded, rows, lapses, now_us)
        place = self._settle(followed, records, ahead, until_us)
        if place is not None:
            return Early(int(decoded.frame["row"][place]))
        checked = self._checks.check(rows, found_us=now_us)
        if checked.refused:
            rows = self._refuse(checked.refused, decoded, rows, records)
            followed = self._follow(records, decoded, rows, lapses, now_us)
            self._settle(followed, records, ahead, now_us + 2 * REORDER_US)
        findings = [*_null_fields(decoded.refused), *_stale(lapses)]
        sides = {
            REJECTED.name: rejected_rows(self.dataset, decoded.refused),
            GAP.name: gap_rows(self.dataset, followed),
            QUALITY.name: pl.concat([checked.findings, finding_rows(self.dataset, findings, found_us=now_us)]),
        }
        return Made(records, rows, followed, sides)

    def new_rows(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Those whose key the table does not hold, in order, each once. Raises `CommitFailed`."""
        if rows.is_empty():
            return rows
        if self.sink.was_changed_by_others(self.dataset):
            self._marks.forget()
            self._learn(rows, [])
        new, doubtful, _ = self._marks.split(rows)
        if doubtful.is_empty():
            return new
        held = self.sink.known(self.dataset, doubtful)
        late = doubtful.join(held, on=list(self.dataset.key), how="anti", maintain_order="left")
        return pl.concat([late, new])

    def advance(self, made: Made, kept: pl.DataFrame) -> None:
        """The batch is in the tables; `kept` are its new rows."""
        self._marks.advance(kept)
        self._follower.advance(made.followed)

    def _learn(self, rows: pl.DataFrame, lapses: Sequence[Gone]) -> None:
        """Asks the table how far it holds symbols that were not seen before; a lapse may begin with their last row."""
        self._ask(pl.concat([rows.select(self.dataset.within), self._named(gone.group for gone in lapses)]))

    def _ask(self, wanted: pl.DataFrame) -> None:
        groups = self._marks.unknown(wanted.unique())
        if groups.is_empty():
            return
        tips = self.sink.marks(self.dataset, groups)
        self._marks.learn(tips, groups)
        if self.dataset.chain:
            tips = tips.filter(~pl.col(self.dataset.chain.apart))
        order = pl.col(self.dataset.order or "").cast(pl.Int64)
        newest = pl.col("newest").dt.epoch("us")
        self._follower.learn(tips.select("venue", "symbol", order, newest.alias("us")).iter_rows())
        if self.dataset.order != "time":
            tips = tips.rename({"newest": "time"})
        self._checks.learn(tips)

    def _named(self, groups: Iterable[Group]) -> pl.DataFrame:
        if self.dataset.charts:
            # Bars are of several origins, none of which stands for the others. Their lapses say all themselves.
            return pl.DataFrame(schema={name: self.dataset.schema[name] for name in self.dataset.within})
        frame = pl.DataFrame(list(groups), schema={"venue": pl.String, "symbol": pl.String}, orient="row")
        apart = self.dataset.chain.apart if self.dataset.chain else None
        return frame.with_columns(pl.lit(value=False).alias(apart)) if apart else frame

    def _follow(
        self, records: Records, decoded: Decoded, rows: pl.DataFrame, lapses: Sequence[Gone], now_us: int
    ) -> Followed:
        asked = [
            Page((venue, symbol), first_id, last_id)
            for venue, symbol, first_id, last_id in pages(self.dataset, records, decoded.frame)
        ]
        aside = None
        if decoded.aside.height:
            is_final = decoded.aside["is_final"] if "is_final" in decoded.aside.columns else pl.lit(value=True)
            aside = shape(self.dataset, decoded.aside).with_columns(is_final.alias("is_final"))
        return self._follower.follow(rows, now_us, aside=aside, lapses=lapses, pages=asked)

    def _settle(self, followed: Followed, records: Records, ahead: Ahead, until_us: int) -> int | None:
        """Looks behind the batch for what its new holes lack; the place of the row that has to wait, if one has to."""
        position, seen_us = records.end, max(records.received_us, default=0)
        while followed.fresh:
            deadline_us = max(fresh.revealed_us for fresh in followed.fresh) + REORDER_US
            behind = ahead(position) if seen_us < deadline_us else None
            if not behind:
                break
            position, seen_us = behind.end, max([seen_us, *behind.received_us])
            self._follower.patch(followed, self._fitting(behind), until_us=deadline_us)
        known_us = max(seen_us, until_us)
        waiting = [fresh.place for fresh in followed.fresh if fresh.revealed_us + REORDER_US > known_us]
        return min(waiting, default=None)

    def _fitting(self, behind: Records) -> pl.DataFrame:
        """The rows in records that no check of values will refuse when their turn comes."""
        rows = shape(self.dataset, decode(self.dataset, behind).frame)
        unfit = {place for place, _ in Checks(self.dataset).check(rows, found_us=0).refused}
        return rows.filter(pl.Series([place not in unfit for place in range(rows.height)])) if unfit else rows

    def _refuse(
        self, refusals: Sequence[Refusal], decoded: Decoded, rows: pl.DataFrame, records: Records
    ) -> pl.DataFrame:
        """The other rows; those refused go to where the decoder puts what it sets aside."""
        numbers, venues, symbols = decoded.frame["row"], rows["venue"], rows["symbol"]
        for place, reason in refusals:
            number = int(numbers[place])
            payload = _raw(self.dataset, records, number, rows, place)
            decoded.refused.append(Refused(venues[place], reason, payload, records.received_us[number], symbols[place]))
        unfit = pl.Series("unfit", [place for place, _ in refusals], pl.UInt32)
        is_unfit = pl.int_range(pl.len(), dtype=pl.UInt32).is_in(unfit.implode())
        aside = decoded.frame.filter(is_unfit).with_columns(pl.lit(value=False).alias("is_final"))
        known = decoded.aside.with_columns(pl.lit(value=True).alias("is_final")) if decoded.aside.height else None
        decoded.aside = aside if known is None else pl.concat([known, aside], how="diagonal")
        decoded.frame = decoded.frame.filter(~is_unfit)
        return rows.filter(~is_unfit)


def _lapses(records: Records) -> Iterator[Gone]:
    """The lapses in the records, symbol by symbol."""
    if LAPSE not in records.kinds:
        return
    for kind, origin, payload in zip(records.kinds, records.origins, records.payloads, strict=True):
        if kind == LAPSE:
            lapse, venue = _LAPSES.decode(payload), origin.partition(b" ")[0].decode()
            for symbol in lapse.symbols:
                yield Gone((COIN_M if symbol == OTHERS else venue, symbol), lapse)


def _stale(lapses: Sequence[Gone]) -> Iterator[Finding]:
    """Silence is a finding too, when it is noticed."""
    for (venue, symbol), lapse in lapses:
        if lapse.reason == SILENCE and lapse.to_us is None and lapse.from_us is not None:
            yield Finding(venue, symbol, "stale", "warn", lapse.from_us, lapse.from_us)


def _null_fields(refused: Sequence[Refused]) -> Iterator[Finding]:
    """One each, and when there are many of a symbol, the rest of them as one."""
    found: dict[Group, list[Refused]] = {}
    for each in refused:
        if each.check:
            found.setdefault((each.venue, each.symbol), []).append(each)
    for (venue, symbol), unfit in found.items():
        for each in unfit[:PER_BATCH]:
            yield Finding(venue, symbol, NULL_FIELD, "error", each.received_us, each.received_us)
        if rest := unfit[PER_BATCH:]:
            times = [each.received_us for each in rest]
            yield Finding(venue, symbol, NULL_FIELD, "error", min(times), max(times), observed=len(rest))


def _raw(dataset: Dataset, records: Records, number: int, rows: pl.DataFrame, place: int) -> bytes:
    """What the venue sent for a row: the message, or of an answer with many rows the one that became it."""
    payload = records.payloads[number]
    if records.kinds[number] != RESPONSE or dataset.sequence is None or dataset.poll is None:
        return payload
    identity = rows[dataset.sequence][place]
    for element in msgspec.json.decode(payload, type=list[msgspec.Raw]):
        body = msgspec.json.decode(element, type=dataset.poll.body)
        if getattr(body, dataset.sequence) == identity:
            return bytes(element)
    return payload
