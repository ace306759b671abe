"""The depth of one market out of a table: in the order of the chain, in pieces that fit into memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from crypto_lake.query.snapshot import Snapshot

Times = npt.NDArray[np.int64]

COLUMNS: Final = (
    "time", "first_update_id", "final_update_id", "previous_update_id", "is_snapshot", "bids", "asks",
)  # fmt: skip
# Events of a piece: some fifty levels each, 16 bytes a level, and several copies on the way.
PIECE_EVENTS: Final = 50_000
CLOCK: Final = pl.col("time").to_physical().alias("time_us")


@dataclass(frozen=True, slots=True)
class DepthRows:
    """The rows of `depth` of one venue and symbol. It can be sent to another process."""

    of: Snapshot
    venue: str
    symbol: str

    def part(self, first: date, last: date) -> "DepthRows":
        """The same with the files of these days alone, both inclusive."""
        return DepthRows(self.of.part(first, last, symbols=(self.symbol,)), self.venue, self.symbol)

    def days(self) -> list[date]:
        """The days that may have rows, in order."""
        return self.of.days(self.symbol)

    def ids(self, first: date, last: date, *, until_us: int | None = None) -> pl.DataFrame:
        """The events of these days (both inclusive) in the order of the chain: final_update_id and time_us."""
        rows = self._scan(first, last, until_us=until_us).filter(~pl.col("is_snapshot"))
        return rows.select("final_update_id", CLOCK).sort("final_update_id").collect()

    def snapshots(self, first: date, last: date) -> pl.DataFrame:
        """The snapshots of these days, without their levels: final_update_id, time_us, date, and `is_timed`, whether
        the venue said their time; else it is that of their receipt."""
        rows = self._scan(first, last).filter("is_snapshot")
        is_timed = pl.col("event_time").is_not_null().alias("is_timed")
        return rows.select("final_update_id", CLOCK, "date", is_timed).sort("time_us", "final_update_id").collect()

    def play(self, events: pl.DataFrame, snapshots: pl.DataFrame) -> Iterator[pl.DataFrame]:
        """The rows of some of `ids` and some of `snapshots`, in the order of the chain, piece by piece."""
        from crypto_lake.features.book import in_order  # brings a compiler

        books = self._books(snapshots)
        if events.is_empty():
            if books.height:
                yield in_order(books)
            return
        times, ids = events["time_us"].to_numpy(), events["final_update_id"].to_numpy()
        cuts = _cuts(times)
        for number, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(times)], strict=True)):
            is_ours = pl.col("final_update_id") <= int(ids[end - 1])
            # The snapshot of a book that did not exist yet has no place in the chain but its time.
            is_ours &= (pl.col("final_update_id") >= 0) | (pl.col("time").to_physical() <= int(times[:end].max()))
            is_ours |= pl.lit(number == len(cuts))
            rows = self._events(times[start:end], int(ids[start]))
            yield in_order(pl.concat([rows, books.filter(is_ours)]))
            books = books.filter(~is_ours)

    def _events(self, times: Times, first_id: int) -> pl.DataFrame:
        since_us, until_us = int(times.min()), int(times.max()) + 1
        first, last = (pl.Series([each]).cast(pl.Datetime("us")).dt.date()[0] for each in (since_us, until_us - 1))
        rows = self._scan(first, last, since_us=since_us, until_us=until_us)
        is_event = ~pl.col("is_snapshot") & (pl.col("final_update_id") >= first_id)
        return rows.filter(is_event).select(COLUMNS).collect()

    def _books(self, wanted: pl.DataFrame) -> pl.DataFrame:
        if wanted.is_empty():
            return pl.DataFrame(schema={name: self.of.columns[name] for name in COLUMNS})
        first, last = wanted["date"].min(), wanted["date"].max()
        assert isinstance(first, date)
        assert isinstance(last, date)
        rows = self._scan(first, last).filter("is_snapshot")
        return rows.join(wanted.lazy(), on=["final_update_id", "date"], how="semi").select(COLUMNS).collect()

    def _scan(
        self, first: date, last: date, *, since_us: int | None = None, until_us: int | None = None
    ) -> pl.LazyFrame:
        rows = self.of.scan(first, last, symbols=(self.symbol,), since_us=since_us, until_us=until_us)
        return rows.filter(pl.col("venue") == self.venue)


def _cuts(times: Times) -> list[int]:
    """Where events can be cut so that those before are earlier than those behind, about `PIECE_EVENTS` apart."""
    latest_before = np.maximum.accumulate(times)
    earliest_behind = np.minimum.accumulate(times[::-1])[::-1]
    possible = np.flatnonzero(latest_before[:-1] < earliest_behind[1:]) + 1
    found, at = [], 0
    while (place := int(np.searchsorted(possible, at + PIECE_EVENTS))) < len(possible):
        at = int(possible[place])
        found.append(at)
    return found
