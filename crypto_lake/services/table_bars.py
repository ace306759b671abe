"""The worker's end of live bars: when the trades in the table have closed or changed bars, the table `bar` follows."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import polars as pl

from crypto_lake.features.live_bars import MINUTE_US
from crypto_lake.models import DATASETS, Dataset
from crypto_lake.services.contract import BarOrder, BarsMade, BarsNotMade
from crypto_lake.writers import CommitConflict
from crypto_lake.writers.delta import Lake

Group = tuple[str, str]


@dataclass(slots=True)
class Due:
    """Whether trades that were committed have closed a minute, or came for one that was closed; nothing else is worth a
    look into the tables. Seconds are written with their minute."""

    lateness_us: int
    # What an earlier run has left undone is not known.
    is_due: bool = True
    _latest_us: dict[Group, int] = field(default_factory=dict)

    def hear(self, rows: pl.DataFrame) -> None:
        """Rows are in the table now."""
        time_us = pl.col("time").dt.epoch("us")
        spans = rows.group_by("venue", "symbol").agg(time_us.min().alias("low"), time_us.max().alias("high"))
        for venue, symbol, low_us, high_us in spans.iter_rows():
            # The first rows of a symbol may have closed something among themselves.
            before_us = self._latest_us.get((venue, symbol), low_us)
            after_us = self._latest_us[venue, symbol] = max(before_us, high_us)
            closed_us = self._closed(before_us)
            self.is_due |= closed_us < self._closed(after_us) or low_us < closed_us

    def _closed(self, watermark_us: int) -> int:
        """What begins before it is closed."""
        return (watermark_us - self.lateness_us) // MINUTE_US * MINUTE_US


class HeardLake(Lake):
    """A lake that tells which rows of one dataset were committed."""

    def __init__(self, root: str, dataset: Dataset, hear: Callable[[pl.DataFrame], None]) -> None:
        super().__init__(root)
        self._dataset, self._hear = dataset, hear

    def append(self, dataset: Dataset, rows: pl.DataFrame, app: str, *, start: int, end: int) -> None:
        """As `Lake.append`."""
        super().append(dataset, rows, app, start=start, end=end)
        if dataset is self._dataset:
            self._hear(rows)


class TableBars:
    """Keeps the table `bar` up to date, beside the drain: what fails here or takes long does not hold up any rows."""

    def __init__(self, root: str, order: BarOrder) -> None:
        self._root, self._order = root, order
        self.source = DATASETS[order.source]
        self.due = Due(order.lateness_us)
        self._making: threading.Thread | None = None
        self._said: BarsMade | BarsNotMade | None = None

    def lake(self) -> HeardLake:
        """Where the drain is to write, so that it is noticed."""
        return HeardLake(self._root, self.source, self.due.hear)

    @property
    def is_making(self) -> bool:
        """Whether it is at work."""
        return self._making is not None and self._making.is_alive()

    def step(self) -> list[BarsMade | BarsNotMade]:
        """Begins to make what is due, unless that is under way; returns what has become of the step before."""
        if self.is_making:
            return []
        said = self._ended()
        if self.due.is_due:
            self.due.is_due = False
            self._making = threading.Thread(target=self._make, name="bars", daemon=True)
            self._making.start()
        return said

    def finish(self, within_s: float) -> list[BarsMade | BarsNotMade]:
        """Makes what is due and waits for it; what is not done by then is done after the next start."""
        until_s, said = time.monotonic() + within_s, []
        for _ in range(2):  # what is under way does not know the last rows
            self._wait(until_s)
            said += self.step()
        self._wait(until_s)
        return said + ([] if self.is_making else self._ended())

    def _wait(self, until_s: float) -> None:
        if self._making is not None:
            self._making.join(max(0.0, until_s - time.monotonic()))

    def _ended(self) -> list[BarsMade | BarsNotMade]:
        """What the step that has ended says, once; one that did not get there is due again."""
        if self._making is None:
            return []
        said, self._making, self._said = self._said, None, None
        self.due.is_due |= not isinstance(said, BarsMade)
        return [said] if said else []

    def _make(self) -> None:
        # Imported here, and not with the others: who records no trades, or wants no bars, does not pay for it.
        order, began_s = self._order, time.monotonic()
        try:
            from crypto_lake.build.fresh_bars import refresh

            built = refresh(
                Lake(self._root),
                self.source,
                timeframes=order.timeframes,
                late=order.late,
                lateness_us=order.lateness_us,
            )
        except CommitConflict:
            pass  # somebody else makes bars too: with the next round
        except Exception as error:  # noqa: BLE001  (it is reported; rows are recorded whatever is wrong with bars)
            self._said = BarsNotMade(f"{type(error).__name__}: {error}")
        else:
            seconds = round(time.monotonic() - began_s, 4)
            self._said = BarsMade(built.added - built.revised, built.revised, built.findings, seconds, built.notes)
