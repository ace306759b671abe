"""Where a dataset's rows are under a root: a Delta table, or the Parquet or JSONL files of a sink, by day."""

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

import polars as pl
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from crypto_lake.models import Dataset
from crypto_lake.models.dataset import TIME

PARTITION: Final = "date"
FORMS: Final = ("parquet", "jsonl")


@dataclass(frozen=True, slots=True)
class Source:
    """A dataset's rows as they are stored: a table, or files with the day of each."""

    dataset: Dataset
    table: DeltaTable | None
    files: tuple[tuple[date, Path], ...] = ()

    def scan(self, first: date | None = None, last: date | None = None) -> pl.LazyFrame:
        """The rows of the days from `first` to `last` with the dataset's columns; no other day's file is opened."""
        if self.table is not None:
            rows = pl.scan_delta(self.table)
            days = [limit for limit in (_not_before(first), _not_after(last)) if limit is not None]
            return _typed(self.dataset, rows.filter(*days) if days else rows)
        wanted = [path for day, path in self.files if not (first and day < first) and not (last and day > last)]
        parts = [_scan_files(self.dataset, [each for each in wanted if each.suffix == f".{form}"]) for form in FORMS]
        held = [part for part in parts if part is not None]
        return pl.concat(held) if held else pl.LazyFrame(schema=self.dataset.schema)

    def stored(self) -> tuple[int, int]:
        """How many files, and their bytes."""
        if self.table is None:
            return len(self.files), sum(path.stat().st_size for _, path in self.files)
        sizes = pl.DataFrame(self.table.get_add_actions(flatten=True))["size_bytes"]
        return sizes.len(), int(sizes.sum())

    def noted(self) -> dict[str, Any] | None:
        """Rows, first and last time as the Delta log has them; None where it does not say."""
        if self.table is None:
            return None
        actions = pl.DataFrame(self.table.get_add_actions(flatten=True))
        first, last = f"min.{self.dataset.partition}", f"max.{self.dataset.partition}"
        needed = ["num_records", first, last]
        if not set(needed) <= set(actions.columns) or sum(actions.select(needed).null_count().row(0)):
            return None
        return {
            "rows": actions["num_records"].sum(),
            "first_time": actions[first].min(),
            "last_time": actions[last].max(),
        }


def find(root: str, dataset: Dataset) -> Source | None:
    """The dataset's rows under `root`, a path or an s3:// URL; None if there is nothing."""
    place = f"{root.rstrip('/')}/{dataset.name}"
    try:
        return Source(dataset, DeltaTable(place))
    except TableNotFoundError:
        pass
    files = () if "://" in place else tuple(_files(Path(place)))
    return Source(dataset, None, files) if files else None


def _files(folder: Path) -> list[tuple[date, Path]]:
    """The finished files; a name with a dot in front or .tmp behind is one that is being written."""
    return [
        (date.fromisoformat(path.parent.name.removeprefix(f"{PARTITION}=")), path)
        for path in sorted(folder.glob(f"{PARTITION}=????-??-??/*"))
        if path.suffix.lstrip(".") in FORMS and not path.name.startswith(".")
    ]


def _scan_files(dataset: Dataset, files: list[Path]) -> pl.LazyFrame | None:
    if not files:
        return None
    if files[0].suffix == ".jsonl":
        return _typed(dataset, _restored(dataset, files))
    hive = {PARTITION: dataset.schema[PARTITION]}
    # A file may hold the day as well; the folder's name is what counts.
    rows = pl.scan_parquet(files, hive_partitioning=True, hive_schema=hive, missing_columns="insert", glob=False)
    return _typed(dataset, rows)


def _restored(dataset: Dataset, files: list[Path]) -> pl.LazyFrame:
    """JSON knows neither instants nor days: times are ISO texts, and the day follows from the partition column."""
    times = [name for name, dtype in dataset.schema.items() if dtype == TIME]
    written = {name: pl.String() if name in times else dtype for name, dtype in dataset.schema.items()}
    del written[PARTITION]
    # A fraction of a second is there or not, line by line, and UTC is written in more than one way.
    naive = pl.col(times).str.replace(" ", "T").str.replace(r"(Z|\+00:?00)$", "")
    instants = naive.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us").dt.replace_time_zone("UTC")
    rows = pl.scan_ndjson(files, schema=written).with_columns(instants)
    return rows.with_columns(pl.col(dataset.partition).dt.date().alias(PARTITION))


def _typed(dataset: Dataset, rows: pl.LazyFrame) -> pl.LazyFrame:
    """The dataset's columns in its order; one that the store does not have yet is null."""
    stored = rows.collect_schema()
    return rows.select(
        (pl.col(name) if stored[name] == dtype else pl.col(name).cast(dtype))
        if name in stored
        else pl.lit(None, dtype).alias(name)
        for name, dtype in dataset.schema.items()
    )


def _not_before(first: date | None) -> pl.Expr | None:
    return None if first is None else pl.col(PARTITION) >= first


def _not_after(last: date | None) -> pl.Expr | None:
    return None if last is None else pl.col(PARTITION) <= last
