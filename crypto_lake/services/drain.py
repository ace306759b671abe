"""The drain: the only road from a journal into tables, and the reason why a crash is no special case."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from crypto_lake.journal import Records, read
from crypto_lake.models import Dataset
from crypto_lake.models.rejected import REJECTED
from crypto_lake.processors.decode import decode
from crypto_lake.processors.dedupe import Marks
from crypto_lake.processors.shape import rejected_rows, shape
from crypto_lake.writers import CommitConflict, Sink


@dataclass(frozen=True, slots=True)
class Drained:
    """What one batch became. `position` is where the journal is read next."""

    records: int
    rows: int
    duplicates: int
    rejected: int
    position: int


class Drain:
    """Moves one dataset's journal into its table, batch by batch, exactly once.

    A batch writes `rejected` first and the dataset's own table last. Each commit carries the position, so after a
    crash the batch is made again (it depends on nothing but the journal and the rows before it) and the tables that
    have it already are skipped.
    """

    def __init__(
        self, dataset: Dataset, journal: Path, sink: Sink, *, collector: str, batch_messages: int = 50_000
    ) -> None:
        self.dataset = dataset
        self.journal = journal
        self.sink = sink
        self.app = f"{collector}/{dataset.name}"
        self.batch_messages = batch_messages
        self.position = 0
        self._marks: Marks | None = None
        self._stops: list[int] = []

    def open(self) -> None:
        """Finds the place to go on. Raises `CommitFailed` when the tables cannot be asked."""
        main = self.sink.position(self.dataset, self.app)
        side = self.sink.position(REJECTED, self.app)
        ends = {side, self.sink.pending(self.dataset, self.app), self.sink.pending(REJECTED, self.app)}
        self.position = main
        # A table that is ahead has its rows up to there: the batch has to end at the same record again.
        self._stops = sorted(end for end in ends if end > main)
        self._side = side
        self._marks = Marks(self.dataset)

    def step(self) -> Drained:
        """One batch: reads, decodes, sorts out, commits. Raises `CommitFailed` or `CommitUnknown`; then call `open`."""
        if self._marks is None:
            self.open()
        records = self._read()
        while not records and self._stops:
            # A power cut took the records up to there from the journal, but the other table has what they became.
            self._reached(self._stops[0])
            records = self._read()
        if not records:
            return Drained(0, 0, 0, 0, self._reached(records.end))
        try:
            for _ in range(CONFLICTS):
                with contextlib.suppress(CommitConflict):
                    return self._commit(records)
            return self._commit(records)
        except Exception:
            self._marks = None
            raise

    def run_dry(self) -> Drained:
        """Batches until the journal has nothing more; what they became, together."""
        records = rows = duplicates = rejected = 0
        while (done := self.step()).records or done.rejected:
            records, rows = records + done.records, rows + done.rows
            duplicates, rejected = duplicates + done.duplicates, rejected + done.rejected
        return Drained(records, rows, duplicates, rejected, self.position)

    def _read(self) -> Records:
        until = self._stops[0] if self._stops else None
        return read(self.journal, self.position, at_most=NO_LIMIT if until else self.batch_messages, until=until)

    def _commit(self, records: Records) -> Drained:
        decoded = decode(self.dataset, records)
        rows = shape(self.dataset, decoded.frame)
        kept, duplicates = self._new(rows)
        start, end = self.position, records.end
        if decoded.refused and self._side < end:
            refused = rejected_rows(self.dataset, decoded.refused)
            self.sink.append(REJECTED, refused, self.app, start=start, end=end)
            self._side = end
        if kept.height:
            self.sink.append(self.dataset, kept, self.app, start=start, end=end)
        assert self._marks is not None
        self._marks.advance(kept)
        return Drained(len(records), kept.height, duplicates, len(decoded.refused), self._reached(end))

    def _new(self, rows: pl.DataFrame) -> tuple[pl.DataFrame, int]:
        """The rows whose key the table does not hold, in order, and how many it does."""
        marks = self._marks
        assert marks is not None
        if rows.is_empty():
            return rows, 0
        if self.sink.was_changed_by_others(self.dataset):
            marks.forget()
        groups = marks.unknown(rows)
        if groups.height:
            marks.learn(self.sink.marks(self.dataset, groups), groups)
        new, doubtful, duplicates = marks.split(rows)
        if doubtful.is_empty():
            return new, duplicates
        held = self.sink.known(self.dataset, doubtful)
        late = doubtful.join(held, on=list(self.dataset.key), how="anti", maintain_order="left")
        return pl.concat([late, new]), duplicates + doubtful.height - late.height

    def _reached(self, position: int) -> int:
        self.position = max(self.position, position)
        while self._stops and self._stops[0] <= self.position:
            self._stops.pop(0)
        return self.position


# Others commit every some seconds at the most; so many conflicts in a row are no chance.
CONFLICTS = 10
NO_LIMIT = 10**9
