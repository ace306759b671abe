"""Where the roads meet: whatever way rows came, from here on they have the table's columns, order and types."""

from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from crypto_lake.models.dataset import TIME, Dataset
from crypto_lake.models.quality import QUALITY
from crypto_lake.models.rejected import REJECTED
from crypto_lake.processors.decode import Refused


def shape(dataset: Dataset, frame: pl.DataFrame) -> pl.DataFrame:
    """The rows of `frame` as rows of the dataset's table.

    `frame` has the columns of its road under the table's names; columns that the road does not know become null.
    Where the venue gives no time of the fact, it is the time of its message, and failing that the time it reached us.
    """
    if frame.is_empty():
        return pl.DataFrame(schema=dataset.schema)
    names = set(frame.columns)
    clocks = [name for name in ("time", "event_time", "received_time") if name in names]
    frame = frame.with_columns(pl.coalesce(clocks).alias("time"))
    frame = frame.with_columns(pl.col(dataset.partition).dt.date().alias("date"), **dataset.derived)
    return frame.select(
        pl.col(column.name).cast(column.dtype)
        if column.name in frame.columns
        else pl.lit(None, column.dtype).alias(column.name)
        for column in dataset.columns
    )


def rejected_rows(dataset: Dataset, refused: Sequence[Refused]) -> pl.DataFrame:
    """What was set aside, as rows of the table `rejected`."""
    return (
        pl.DataFrame(
            {
                "venue": [each.venue for each in refused],
                "dataset": [dataset.name] * len(refused),
                "reason": [each.reason for each in refused],
                "payload": [each.payload.decode("utf-8", "backslashreplace") for each in refused],
                "received_time": [each.received_us for each in refused],
            },
            schema_overrides={"received_time": pl.Int64},
        )
        .with_columns(
            pl.col("received_time").cast(REJECTED.schema["received_time"]),
            pl.from_epoch("received_time", "us").dt.date().alias("date"),
        )
        .select(*REJECTED.schema)
    )


class Finding(NamedTuple):
    """A finding about a time (µs since 1970) rather than about a row that is there."""

    venue: str
    symbol: str
    check: str
    severity: str
    first_us: int
    last_us: int
    observed: float | None = None
    threshold: float | None = None


def finding_rows(dataset: Dataset, findings: Sequence[Finding], *, found_us: int) -> pl.DataFrame:
    """Findings as rows of the table `quality`."""
    schema = {name: pl.Int64() if dtype == TIME else dtype for name, dtype in QUALITY.schema.items() if name != "date"}
    frame = pl.DataFrame(
        [
            {
                "venue": each.venue,
                "symbol": each.symbol,
                "dataset": dataset.name,
                "check": each.check,
                "severity": each.severity,
                "first_time": each.first_us,
                "last_time": each.last_us,
                "observed": each.observed,
                "threshold": each.threshold,
                "found_time": found_us,
            }
            for each in findings
        ],
        schema=schema,
    )
    frame = frame.with_columns(pl.col("first_time", "last_time", "found_time").cast(TIME))
    return frame.with_columns(pl.col("found_time").dt.date().alias("date")).select(*QUALITY.schema)
