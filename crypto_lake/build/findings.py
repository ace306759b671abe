"""What builds find (ANALYTICS 5), in the table `quality`: each thing once, however often it is looked at again."""

from typing import Final

import polars as pl

from crypto_lake.models import Dataset
from crypto_lake.models.dataset import TIME
from crypto_lake.models.quality import QUALITY
from crypto_lake.writers.delta import Lake

SAME: Final = ["venue", "symbol", "check", "first_time", "last_time", "first_id"]


class Findings:
    """Findings about one dataset on their way into the table. `now_us` is when they are found."""

    def __init__(self, lake: Lake, dataset: Dataset, now_us: int) -> None:
        self.added = 0
        self._lake, self._dataset, self._now_us = lake, dataset, now_us
        self._waiting: list[pl.DataFrame] = []

    def add(self, rows: pl.DataFrame, check: str, severity: str, **facts: pl.Expr) -> None:
        """One for each of the rows, which have a venue and a symbol; `facts` are further columns of `quality`."""
        if rows.is_empty():
            return
        found = pl.lit(self._now_us).cast(TIME)
        said = {"dataset": pl.lit(self._dataset.name), "check": pl.lit(check), "severity": pl.lit(severity)}
        said |= {"found_time": found, "date": found.dt.date(), **facts}
        known = rows.select("venue", "symbol", *(value.alias(name) for name, value in said.items()))
        self._waiting.append(
            known.select(
                pl.col(name).cast(dtype) if name in known.columns else pl.lit(None, dtype).alias(name)
                for name, dtype in QUALITY.schema.items()
            )
        )

    def flush(self) -> None:
        """Writes what is not written yet. To be called before the rows that were found are committed: whoever dies in
        between makes them again, and finds that all is said."""
        if not self._waiting:
            return
        self._lake.check(QUALITY)
        told = self._lake.rows(QUALITY, dataset=self._dataset.name).select(SAME)
        fresh = pl.concat(self._waiting).unique(SAME, keep="first", maintain_order=True)
        fresh = fresh.join(told, on=SAME, how="anti", nulls_equal=True, maintain_order="left")
        self._lake.add(QUALITY, fresh)
        self._waiting.clear()
        self.added += fresh.height
