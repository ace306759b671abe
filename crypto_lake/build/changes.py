"""What was made anew against what a table holds: only the difference is written, so a second run writes nothing."""

from typing import NamedTuple

import polars as pl

from crypto_lake.models import Dataset
from crypto_lake.processors.compare import compare


class Difference(NamedTuple):
    """Rows that come, and rows held that leave (of a changed row both); how many of the made ones are held as they are.

    `revised` are the rows of `added` that take the place of another.
    """

    added: pl.DataFrame
    gone: pl.DataFrame
    same: int
    revised: int


def difference(dataset: Dataset, held: pl.DataFrame, made: pl.DataFrame) -> Difference:
    """Holds what was made against all that a table holds of the same stretch, bit by bit.

    A changed row of a table with revisions counts one more than the row that it replaces.
    """
    compared = compare(dataset, held, made, is_same_road=True)
    changed = compared.theirs
    if "revision" in dataset.schema:
        changed = changed.with_columns(compared.ours["revision"] + 1)
    added = pl.concat([compared.only_theirs, changed])
    gone = pl.concat([compared.only_ours, compared.ours])
    return Difference(added, gone, made.height - added.height, changed.height)
