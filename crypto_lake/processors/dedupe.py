"""Which rows are new: no key twice, without remembering every key.

The ids (or times) of a dataset rise within a symbol. Above the highest one that the table holds a row is new; at or
below it the row is doubtful, and whoever asks must look into the table. So the memory is one number per symbol, and
what it says is exact.
"""

from typing import NamedTuple

import polars as pl

from crypto_lake.models.dataset import Dataset


class Split(NamedTuple):
    """Rows by what is known of them; `duplicates` counts the ones that are certainly there already."""

    new: pl.DataFrame
    doubtful: pl.DataFrame
    duplicates: int


class Marks:
    """The highest value of the order column that the table holds, per venue and symbol."""

    def __init__(self, dataset: Dataset) -> None:
        assert dataset.order is not None, "a dataset without an order has no marks"
        self.dataset = dataset
        self.order = dataset.order
        self.within = list(dataset.within)
        self._marks = pl.DataFrame(schema={name: dataset.schema[name] for name in (*self.within, self.order)})

    def unknown(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The groups in `rows` of which no mark is held yet; the table has to be asked for theirs."""
        groups = rows.select(self.within).unique()
        return groups.join(self._marks, on=self.within, how="anti") if groups.height else groups

    def learn(self, marks: pl.DataFrame, groups: pl.DataFrame) -> None:
        """Takes the table's marks of `groups`; a group that the table does not know gets the lowest mark there is."""
        known = groups.join(marks, on=self.within, how="left").select(self._marks.columns)
        self._raise(known)

    def split(self, rows: pl.DataFrame) -> Split:
        """Divides rows whose groups are all known; within `rows` the first of a key counts."""
        nothing = rows.clear()
        if rows.is_empty() or self._all_new(rows):
            return Split(rows, nothing, 0)
        unique = rows.unique(self.dataset.key, keep="first", maintain_order=True)
        marked = unique.join(
            self._marks.rename({self.order: "mark"}), on=self.within, how="left", maintain_order="left"
        )
        is_new = (pl.col("mark").is_null() | (pl.col(self.order) > pl.col("mark"))).alias("new")
        if set(self.dataset.key) == {*self.within, self.order}:
            marked = marked.filter((pl.col("mark").is_null()) | (pl.col(self.order) != pl.col("mark")))
        new, doubtful = marked.filter(is_new), marked.filter(~is_new)
        duplicates = rows.height - new.height - doubtful.height
        return Split(new.select(rows.columns), doubtful.select(rows.columns), duplicates)

    def advance(self, rows: pl.DataFrame) -> None:
        """Raises the marks to what is in the table now. Call it when the rows are committed, not before."""
        if rows.height:
            self._raise(rows.group_by(self.within).agg(pl.col(self.order).max()))

    def forget(self) -> None:
        """Drops all marks: somebody else wrote to the table."""
        self._marks = self._marks.clear()

    def _all_new(self, rows: pl.DataFrame) -> bool:
        """Whether every group begins above its mark and only rises: the case nearly always, and cheap to see."""
        order = pl.col(self.order)
        groups = rows.group_by(self.within).agg(
            order.first().alias("first"), (order.diff().cast(pl.Int64) > 0).all().alias("rises")
        )
        if not groups["rises"].all():
            return False
        marked = groups.join(self._marks, on=self.within, how="left")
        return bool((marked[self.order].is_null() | (marked["first"] > marked[self.order])).all())

    def _raise(self, marks: pl.DataFrame) -> None:
        both = pl.concat([self._marks, marks.select(self._marks.columns)])
        self._marks = both.group_by(self.within).agg(pl.col(self.order).max())
