"""The only code that changes tables."""

from typing import Protocol

import polars as pl

from crypto_lake.config import ConfigError
from crypto_lake.models import Dataset


class CommitFailed(Exception):
    """Nothing was written; try again."""


class CommitConflict(CommitFailed):
    """Somebody else committed between the look into the table and the commit; look again and try at once."""


class CommitUnknown(Exception):
    """It cannot be told whether it was written; look at the position before trying again."""


class StoreAway(ConfigError):
    """The place for the tables cannot be written now; who has recorded into it before may expect it back."""


class Sink(Protocol):
    """Where a drain puts rows: Delta tables or files, all with the same rule.

    Rows and the journal position they pay for are committed together, under the name of the journal (`app`):
    after a crash `position` tells exactly which records are in the table.
    """

    def check(self, dataset: Dataset) -> None:
        """Makes the place ready. Raises `StoreAway`, or `ConfigError` when something else is there."""

    def position(self, dataset: Dataset, app: str) -> int:
        """The journal position up to which the table holds the records of `app`; 0 if it holds none."""

    def pending(self, dataset: Dataset, app: str) -> int:
        """The end of a commit that a crash interrupted and that must be made again exactly; 0 if there is none."""

    def append(self, dataset: Dataset, rows: pl.DataFrame, app: str, *, start: int, end: int) -> None:
        """Commits rows made from the records between two positions. Raises `CommitFailed`, `CommitUnknown`."""

    def marks(self, dataset: Dataset, groups: pl.DataFrame) -> pl.DataFrame:
        """Per group that has rows: the highest value of the dataset's order column, and as `newest` the latest time."""

    def known(self, dataset: Dataset, rows: pl.DataFrame) -> pl.DataFrame:
        """The keys among those of `rows` that the table holds."""

    def rows(self, table: Dataset, /, **equals: str) -> pl.DataFrame:
        """The rows of a small table whose columns have these values."""

    def was_changed_by_others(self, dataset: Dataset) -> bool:
        """Whether somebody else added rows since the last commit made here."""


def marks_of(dataset: Dataset) -> list[pl.Expr]:
    """What `Sink.marks` says of a group of rows."""
    assert dataset.order is not None
    return [pl.col(dataset.order).max(), pl.col("time").max().alias("newest")]


def no_marks(dataset: Dataset) -> list[pl.Expr]:
    """The columns of `marks_of`, empty."""
    assert dataset.order is not None
    order = pl.lit(None, dataset.schema[dataset.order]).alias(dataset.order)
    return [order, pl.lit(None, dataset.schema["time"]).alias("newest")]
