"""Parquet and JSONL files: whole by atomic rename, named by the journal positions that they hold.

    <root>/<dataset>/date=2026-11-20/<collector>.<journal>.<start>-<end>.parquet
    <root>/<dataset>/.positions/<collector>.<journal>.json

A commit may need several files, one per day, and a crash may fall between two renames. So the intention (start, end)
is written down first; who finds one makes the same batch again, and the same names take the same rows.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import msgspec
import polars as pl
from msgspec import Struct

from crypto_lake.config import ConfigError
from crypto_lake.journal import sync_directory
from crypto_lake.models import Dataset
from crypto_lake.models.dataset import TIME
from crypto_lake.writers import CommitFailed, StoreAway, marks_of, no_marks

PARTITION: Final = "date"
POSITIONS: Final = ".positions"
UNFINISHED: Final = ".tmp"
ISO: Final = "%Y-%m-%dT%H:%M:%S%.6fZ"

Format = Literal["parquet", "jsonl"]


class State(Struct):
    """How far a journal is in the files; `pending` is the end of a commit that was begun."""

    position: int = 0
    pending: int = 0


class Files:
    """Datasets as files under one root, for those who read without Delta."""

    def __init__(self, root: str, form: Format) -> None:
        self.root = Path(root)
        self.form = form
        self._is_url = "://" in root
        self._mine: set[str] = set()
        self._seen: dict[str, dict[str, bytes]] = {}

    def check(self, dataset: Dataset) -> None:
        """Raises `ConfigError` when the root cannot be written or holds another kind of table."""
        folder = self.root / dataset.name
        if self._is_url:
            raise ConfigError(f"LAKE_ROOT={self.root}: --sink {self.form} writes to a local path only")
        if (folder / "_delta_log").exists():
            raise ConfigError(
                f"LAKE_ROOT={self.root}: {dataset.name} is a Delta table already; "
                f"choose another LAKE_ROOT for --sink {self.form}"
            )
        try:
            (folder / POSITIONS).mkdir(parents=True, exist_ok=True)
            replace_file(folder / POSITIONS / "probe", b"")
        except OSError as error:
            raise StoreAway(f"LAKE_ROOT={self.root}: cannot be written: {error.strerror}") from None

    def position(self, dataset: Dataset, app: str) -> int:
        """The journal position up to which the files hold the records of `app`; 0 if they hold none.

        Removes what a crash of `app` left unfinished; other writers' files are theirs.
        """
        for left_over in (self.root / dataset.name).glob(f"*/.{_safe(app)}.*{UNFINISHED}"):
            left_over.unlink(missing_ok=True)
        return self._state(dataset, app).position

    def pending(self, dataset: Dataset, app: str) -> int:
        """The end of a commit that a crash interrupted and that must be made again exactly; 0 if there is none."""
        return self._state(dataset, app).pending

    def append(self, dataset: Dataset, rows: pl.DataFrame, app: str, *, start: int, end: int) -> None:
        """Commits `rows`, made from the records between two positions. Raises `CommitFailed`; then try again."""
        folder = self.root / dataset.name
        name = f"{_safe(app)}.{start}-{end}.{self.form}"
        try:
            days = [(folder / f"{PARTITION}={day[0]}" / name, part) for day, part in rows.group_by(PARTITION)]
            for path, part in days:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._write(part.drop(PARTITION), path.with_name(f".{name}{UNFINISHED}"))
            self._keep(dataset, app, State(start, end))
            for path, _ in days:
                path.with_name(f".{name}{UNFINISHED}").rename(path)
                sync_directory(path.parent)
            self._keep(dataset, app, State(end))
        except OSError as error:
            raise CommitFailed(f"{dataset.name}: {error}") from error
        self._mine.add(_safe(app))

    def marks(self, dataset: Dataset, groups: pl.DataFrame) -> pl.DataFrame:
        """The highest value of the order column per group and the newest time, for groups that have rows."""
        within = list(dataset.within)
        found = groups.clear().with_columns(no_marks(dataset))
        for day in sorted((self.root / dataset.name).glob(f"{PARTITION}=*"), reverse=True):
            missing = groups.join(found, on=within, how="anti")
            if missing.is_empty():
                break
            rows = self._scan(dataset, [day])
            with _failing(dataset):
                best = rows.group_by(within).agg(marks_of(dataset)).collect()
            found = pl.concat([found, best.join(missing, on=within, how="semi").select(found.columns)])
        return found

    def known(self, dataset: Dataset, rows: pl.DataFrame) -> pl.DataFrame:
        """The keys among those of `rows` that the files hold."""
        key = list(dataset.key)
        days = rows[PARTITION].unique()
        near = pl.concat([days, days.dt.offset_by("-1d"), days.dt.offset_by("1d")]).unique()
        folders = [self.root / dataset.name / f"{PARTITION}={day}" for day in near]
        with _failing(dataset):
            held = self._scan(dataset, [folder for folder in folders if folder.exists()])
            return held.select(key).join(rows.select(key).lazy(), on=key, how="semi").unique().collect()

    def rows(self, table: Dataset, /, **equals: str) -> pl.DataFrame:
        """The rows of a small table whose columns have these values."""
        day = pl.col(table.partition).dt.date().alias(PARTITION)
        conditions = [pl.col(name) == value for name, value in equals.items()]
        with _failing(table):
            held = self._scan(table, sorted((self.root / table.name).glob(f"{PARTITION}=*"))).filter(*conditions)
            return held.with_columns(day).select(*table.schema).collect()

    def was_changed_by_others(self, dataset: Dataset) -> bool:
        """Whether another writer's position has moved since the last look."""
        theirs = {
            path.name: path.read_bytes()
            for path in (self.root / dataset.name / POSITIONS).glob("*.json")
            if path.stem not in self._mine and not path.name.startswith(".")
        }
        before = self._seen.get(dataset.name, theirs)
        self._seen[dataset.name] = theirs
        return any(before.get(name) != position for name, position in theirs.items())

    def _state(self, dataset: Dataset, app: str) -> State:
        path = self._state_path(dataset, app)
        try:
            return msgspec.json.decode(path.read_bytes(), type=State) if path.exists() else State()
        except (OSError, msgspec.DecodeError) as error:
            raise CommitFailed(f"{path} cannot be read: {error}") from error

    def _keep(self, dataset: Dataset, app: str, state: State) -> None:
        replace_file(self._state_path(dataset, app), msgspec.json.encode(state))

    def _state_path(self, dataset: Dataset, app: str) -> Path:
        return self.root / dataset.name / POSITIONS / f"{_safe(app)}.json"

    def _write(self, rows: pl.DataFrame, path: Path) -> None:
        with path.open("wb") as file:
            if self.form == "parquet":
                rows.write_parquet(file, compression="zstd", compression_level=3)
            else:
                times = [name for name, dtype in rows.schema.items() if dtype == TIME]
                rows.with_columns(pl.col(times).dt.to_string(ISO)).write_ndjson(file)
            file.flush()
            os.fsync(file.fileno())

    def _scan(self, dataset: Dataset, folders: Iterable[Path]) -> pl.LazyFrame:
        """The committed rows in some days' folders; files of a commit that was only begun are none."""
        positions = {
            path.stem: msgspec.json.decode(path.read_bytes(), type=State).position
            for path in (self.root / dataset.name / POSITIONS).glob("*.json")
        }
        paths = [
            path
            for folder in folders
            for path in sorted(folder.glob(f"*.{self.form}"))
            if _start(path) < positions.get(_app(path), 0)
        ]
        schema = {name: dtype for name, dtype in dataset.schema.items() if name != PARTITION}
        if not paths:
            return pl.LazyFrame(schema=schema)
        if self.form == "parquet":
            return pl.scan_parquet(paths)
        times = [name for name, dtype in schema.items() if dtype == TIME]
        text = pl.scan_ndjson(paths, schema=schema | dict.fromkeys(times, pl.String()))
        return text.with_columns(pl.col(times).str.to_datetime(ISO, time_unit="us", time_zone="UTC"))


@contextmanager
def _failing(dataset: Dataset) -> Iterator[None]:
    """What the disk or the parser says while files are read becomes `CommitFailed`: nothing was written, try again."""
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        raise CommitFailed(f"{dataset.name}: {error}") from error


def _safe(app: str) -> str:
    """`collector/dataset` as a part of a file's name."""
    return app.replace("/", ".")


def _app(path: Path) -> str:
    return path.stem.rpartition(".")[0]


def _start(path: Path) -> int:
    return int(path.stem.rpartition(".")[2].partition("-")[0])


def replace_file(path: Path, content: bytes) -> None:
    """The file is the old one or the new one, never a half."""
    fresh = path.with_name(f".{path.name}{UNFINISHED}")
    with fresh.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
    sync_directory(path.parent)
