"""The drain: the only road from a journal into tables, and the reason why a crash is no special case."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from crypto_lake.journal import Records, read
from crypto_lake.models import SIDES, Dataset
from crypto_lake.models.quality import QUALITY
from crypto_lake.models.rejected import REJECTED
from crypto_lake.processors.follow import Hole
from crypto_lake.services.making import Early, Made, Maker
from crypto_lake.writers import CommitConflict, Sink

# Others commit every some seconds at the most; so many conflicts in a row are no chance.
CONFLICTS: Final = 10
NO_LIMIT: Final = 10**9
# From receiving to the journal a message takes some flushes; nothing older than this is still on its way.
FLUSHED_US: Final = 1_000_000
FOREVER_US: Final = 2**62


@dataclass(frozen=True, slots=True)
class Drained:
    """What one batch became. `position` is where the journal is read next, `revealed` the holes that it showed."""

    records: int
    rows: int
    duplicates: int
    rejected: int
    position: int
    revealed: list[Hole] = field(default_factory=list)
    findings: int = 0


class Drain:
    """Moves one dataset's journal into its table, batch by batch, exactly once.

    A batch writes the side tables first and the dataset's own table last. Each commit carries the position, so after
    a crash the batch is made again (it depends on nothing but the journal and the rows before it) and the tables that
    have it already are skipped. `clock_us` says when to wait no longer for what may be out of order, nothing else.
    """

    def __init__(
        self,
        dataset: Dataset,
        journal: Path,
        sink: Sink,
        *,
        collector: str,
        batch_messages: int = 50_000,
        clock_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self.dataset = dataset
        self.journal = journal
        self.sink = sink
        self.app = f"{collector}/{dataset.name}"
        self.batch_messages = batch_messages
        self.position = 0
        self.is_closed = False  # nobody appends any more, so there is nothing to wait for
        self._clock_us = clock_us
        self._maker: Maker | None = None
        self._stops: list[int] = []
        self._sides: dict[str, int] = {}

    @property
    def is_open(self) -> bool:
        """Whether it knows its place."""
        return self._maker is not None

    @property
    def last_holes(self) -> list[Hole]:
        """The newest hole of each symbol, also where nothing can fill it."""
        return self._maker.last_holes if self._maker else []

    @property
    def open_holes(self) -> list[Hole]:
        """Missing ids that may still be had, the oldest first."""
        return self._maker.open_holes if self._maker else []

    def open(self) -> None:
        """Finds the place to go on. Raises `CommitFailed` when the tables cannot be asked."""
        main = self.sink.position(self.dataset, self.app)
        self._sides = {side.name: self.sink.position(side, self.app) for side in SIDES}
        pending = [self.sink.pending(dataset, self.app) for dataset in (self.dataset, *SIDES)]
        self.position = main
        # A table that is ahead has its rows up to there: the batch has to end at the same record again.
        self._stops = sorted(end for end in {*self._sides.values(), *pending} if end > main)
        self._maker = Maker(self.dataset, self.sink)

    def step(self) -> Drained:
        """One batch: reads, decodes, sorts out, commits. Raises `CommitFailed` or `CommitUnknown`."""
        if self._maker is None:
            self.open()
        records = self._read()
        while not records and self._stops:
            # A power cut took the records up to there from the journal, but the other table has what they became.
            self._reached(self._stops[0])
            records = self._read()
        if not records:
            return Drained(0, 0, 0, 0, self._reached(records.end))
        try:
            made = self._make(records)
            return self._commit(made) if made else Drained(0, 0, 0, 0, self.position)
        except Exception:
            self._maker = None
            raise

    def run_dry(self) -> Drained:
        """Batches until the journal has nothing more; what they became, together. Nobody may append any more."""
        self.is_closed = True
        records = rows = duplicates = rejected = 0
        while (done := self.step()).records or done.rejected:
            records, rows = records + done.records, rows + done.rows
            duplicates, rejected = duplicates + done.duplicates, rejected + done.rejected
        return Drained(records, rows, duplicates, rejected, self.position)

    def _read(self) -> Records:
        until = self._stops[0] if self._stops else None
        return read(self.journal, self.position, at_most=NO_LIMIT if until else self.batch_messages, until=until)

    def _ahead(self, position: int) -> Records:
        return read(self.journal, position, at_most=self.batch_messages)

    def _make(self, records: Records) -> Made | None:
        """The batch, as long as it can be without waiting; None when its first record has to wait for others."""
        assert self._maker is not None
        now_us = self._clock_us()
        # A clock that was set back must not make us wait for a time that has been.
        is_future = max(records.received_us, default=0) > now_us + FLUSHED_US
        must_end_here = self.is_closed or bool(self._stops) or is_future
        until_us = FOREVER_US if must_end_here else now_us - FLUSHED_US
        made = self._maker.make(records, self._ahead, until_us=until_us)
        while isinstance(made, Early):
            if not made.records:
                return None
            records = read(self.journal, self.position, at_most=made.records)
            made = self._maker.make(records, self._ahead, until_us=until_us)
        return made

    def _commit(self, made: Made) -> Drained:
        for _ in range(CONFLICTS):
            with contextlib.suppress(CommitConflict):
                return self._append(made)
        return self._append(made)

    def _append(self, made: Made) -> Drained:
        assert self._maker is not None
        start, end = self.position, made.records.end
        kept = self._maker.new_rows(made.rows)
        for side in SIDES:
            rows = made.sides[side.name]
            if rows.height and self._sides[side.name] < end:
                self.sink.append(side, rows, self.app, start=start, end=end)
                self._sides[side.name] = end
        if kept.height:
            self.sink.append(self.dataset, kept, self.app, start=start, end=end)
        self._maker.advance(made, kept)
        return Drained(
            len(made.records),
            kept.height,
            made.rows.height - kept.height,
            made.sides[REJECTED.name].height,
            self._reached(end),
            [fresh.hole for fresh in made.followed.fresh],
            made.sides[QUALITY.name].height,
        )

    def _reached(self, position: int) -> int:
        self.position = max(self.position, position)
        while self._stops and self._stops[0] <= self.position:
            self._stops.pop(0)
        return self.position
