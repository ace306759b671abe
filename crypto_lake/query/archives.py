"""What only official archives can be checked for: sums in the ledger, months that end early, archives that are kept."""

import gzip
import hashlib
import re
import zipfile
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import polars as pl

from crypto_lake.models import DATASETS, Dataset
from crypto_lake.models.bucket import File, file_at, is_about
from crypto_lake.models.coverage import COVERAGE, EVERY_SYMBOL
from crypto_lake.models.dump_file import DUMP_FILE, INGESTED
from crypto_lake.models.flatfile import TEST_TICKERS, FlatFile, flatfile_at, is_test
from crypto_lake.processors.sequence import by_symbol
from crypto_lake.query.days import DAY, is_within, midnight
from crypto_lake.query.findings import Findings, Severity, first_line
from crypto_lake.query.source import find

# Archives are read in such pieces: their size does not matter.
PIECE_BYTES: Final = 1 << 20
LINE_BYTES: Final = 1 << 16
# Lines of a flat file that may be of a test ticker; also those of options on it. The ticker is the first column.
MAYBE_TEST: Final = re.compile(rb"^((?:O:)?(?:%s)\w*)," % "|".join(map(re.escape, TEST_TICKERS)).encode(), re.MULTILINE)
TICKER: Final = b"ticker,"
# What a damaged archive raises, and one that is of a kind we do not know.
UNREADABLE: Final = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)
OnStep = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """Which archives are looked at (of which tables, symbols and days), and how closely.

    `landing` is the folder where archives are kept, by their paths in the bucket; None: do not look for them.
    """

    datasets: Collection[Dataset]
    symbols: Sequence[str] | None
    since: datetime | None
    until: datetime | None
    has_months: bool
    landing: Path | None


@dataclass(frozen=True, slots=True)
class Entry:
    """The newest row of the ledger about a path, and what the path says."""

    dataset: Dataset
    file: File | FlatFile | None
    row: dict[str, Any]

    @property
    def path(self) -> str:
        """Where it is in the bucket."""
        return str(self.row["path"])

    @property
    def place(self) -> dict[str, Any]:
        """What findings about it say of where and when."""
        if self.file is None:
            return {}
        if isinstance(self.file, FlatFile):
            day = midnight(self.file.day)
            return {"venue": self.file.kind.venue, "symbol": EVERY_SYMBOL, "first_time": day, "last_time": day}
        days = {"first_time": midnight(self.file.first), "last_time": midnight(self.file.last)}
        return {"venue": self.file.venue, "symbol": self.file.symbol, **days}


def judge(root: str, asked: Asked, findings: Findings, on_step: OnStep) -> None:
    """The findings about archives whose rows are in the tables. Raises what a store raises when the ledger cannot be
    read."""
    entries = [entry for entry in _ledger(root) if _is_asked(entry, asked)]
    certified = _certified(root) if any(isinstance(entry.file, FlatFile) for entry in entries) else {}
    for number, entry in enumerate(entries):
        on_step(DUMP_FILE.name, number, len(entries))
        if not entry.row["sha256"]:
            findings.add(entry.dataset, "sha256_missing", "error", f"{entry.path} has no SHA-256", **entry.place)
        if asked.has_months:
            _judge_month(entry, findings)
            _judge_certificate(entry, certified, findings)
        if asked.landing is not None and entry.file and (kept := asked.landing / entry.path).is_file():
            _judge_kept(entry, kept, findings, is_whole=_is_whole(entry, certified))


def _ledger(root: str) -> list[Entry]:
    source = find(root, DUMP_FILE)
    if source is None:
        return []
    rows = source.scan().collect(engine="streaming").sort("state_time", *DUMP_FILE.schema)
    newest = rows.unique("path", keep="last", maintain_order=True).filter(pl.col("state") == INGESTED)
    return [_entry(row) for row in newest.sort("path").iter_rows(named=True)]


def _entry(row: dict[str, Any]) -> Entry:
    if (flat := flatfile_at(row["path"])) is not None:
        return Entry(flat.dataset, flat, row)
    file = file_at(row["path"])
    about = (dataset for dataset in DATASETS.values() if file is not None and is_about(file, dataset))
    return Entry(next(about, DUMP_FILE), file, row)


def _is_asked(entry: Entry, asked: Asked) -> bool:
    if entry.dataset not in asked.datasets and DUMP_FILE not in asked.datasets:
        return False
    if entry.file is None:
        return True
    if isinstance(entry.file, FlatFile):
        is_meant = asked.symbols is None or EVERY_SYMBOL in asked.symbols
        return is_meant and is_within(entry.file.day, asked.since, asked.until)
    if asked.symbols is not None and entry.file.symbol not in asked.symbols:
        return False
    return any(is_within(day, asked.since, asked.until) for day in entry.file.days)


def _judge_month(entry: Entry, findings: Findings) -> None:
    """Says which monthly file does not reach from the first to the last day of its month."""
    file, first, last = entry.file, entry.row["first_time"], entry.row["last_time"]
    if not isinstance(file, File) or file.period != "monthly":
        return
    if first is None or last is None:
        text = f"{entry.path} holds no row"
    elif first.date() > file.first or last.date() < file.last:
        text = f"{entry.path} reaches from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} only"
    else:
        return
    held = 0 if first is None or last is None else (last.date() - first.date()) // DAY + 1
    findings.add(
        entry.dataset, "incomplete_month", "warn", text, **entry.place,
        observed=float(held), threshold=float(len(file.days)),
    )  # fmt: skip


# Flat files, which are certified one by one

# Table, venue, timeframe, day and sum.
Name = tuple[Any, ...]


def _certified(root: str) -> dict[Name, list[str]]:
    """The symbols for which each flat file is certified: `*`, or those that were wanted of it."""
    source = find(root, COVERAGE)
    if source is None:
        return {}
    name = ("dataset", "venue", "timeframe", "date", "dump_sha256")
    rows = source.scan().filter(_is_of_file(), pl.col("dump_sha256").is_not_null())
    found = rows.group_by(name).agg(pl.col("symbol").unique()).collect(engine="streaming")
    return {row[:-1]: row[-1] for row in found.iter_rows()}


def _is_of_file() -> pl.Expr:
    flat = [pl.col("dataset").eq(each.name) & ~by_symbol(each) for each in DATASETS.values() if each.by_file]
    return pl.any_horizontal(flat)


def _name(entry: Entry) -> Name | None:
    if not isinstance(entry.file, FlatFile):
        return None
    kind = entry.file.kind
    return entry.dataset.name, kind.venue, kind.timeframe or None, entry.file.day, entry.row["sha256"]


def _is_whole(entry: Entry, certified: dict[Name, list[str]]) -> bool:
    """Whether the ledger's rows are all of the file; of a flat file only some symbols may have been wanted."""
    name = _name(entry)
    return name is None or EVERY_SYMBOL in certified.get(name, ())


def _judge_certificate(entry: Entry, certified: dict[Name, list[str]], findings: Findings) -> None:
    name = _name(entry)
    if name is not None and entry.row["sha256"] and name not in certified:
        text = f"{entry.path} is in the table, and no row of {COVERAGE.name} says so"
        findings.add(entry.dataset, "certificate_missing", "warn", text, **entry.place)


# Archives that are kept


def _judge_kept(entry: Entry, kept: Path, findings: Findings, *, is_whole: bool) -> None:
    noted = entry.row["sha256"]
    try:
        found = _sha256(kept)
        lines = None if found != noted else _lines(kept) if isinstance(entry.file, File) else _flat_lines(entry, kept)
    except UNREADABLE as error:
        text = f"{kept} cannot be read: {first_line(error)}"
        findings.add(entry.dataset, "archive_unreadable", "error", text, **entry.place)
        return
    if noted and found != noted:
        text = f"{kept} has the SHA-256 {found}, the ledger says {noted}"
        findings.add(entry.dataset, "sha256_differs", "error", text, **entry.place)
    if lines is not None and entry.row["rows"] is not None and (is_whole or lines < entry.row["rows"]):
        _judge_rows(entry, kept, lines, findings)


def _judge_rows(entry: Entry, kept: Path, lines: int, findings: Findings) -> None:
    """Lines that were rejected are none of the ledger's rows; where it says how many they were, they are counted."""
    rows = entry.row["rows"] + (entry.row.get("refused_rows") or 0)
    if lines != rows:
        text = f"{kept} has {lines:,} lines of data, the ledger says {rows:,} rows"
        severity: Severity = "error" if lines < rows else "warn"
        findings.add(
            entry.dataset, "archive_rows", severity, text, **entry.place, observed=float(lines), threshold=float(rows)
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lines(path: Path) -> int:
    """The lines of the archive's CSV, without a header. Raises `ValueError` when there is no CSV of its name."""
    with zipfile.ZipFile(path) as archive:
        name = f"{path.stem}.csv"
        if name not in archive.namelist():
            raise ValueError(f"no {name} inside")
        with archive.open(name) as file:
            first, count, last = file.readline(LINE_BYTES), 0, b""
            while piece := file.read(PIECE_BYTES):
                count += piece.count(b"\n")
                last = piece
    # The last line may have no end; a line that does not begin with a number is the header.
    count += bool(last) and not last.endswith(b"\n")
    return count + first[:1].isdigit()


def _flat_lines(entry: Entry, path: Path) -> int:
    """The lines of a flat file, without its header and without those of test tickers (if tickers come first)."""
    assert isinstance(entry.file, FlatFile)
    venue, count, rest = entry.file.kind.venue, 0, b""
    with gzip.open(path) as file:
        may_test = file.readline(LINE_BYTES).startswith(TICKER)
        while piece := file.read(PIECE_BYTES):
            whole, _, end = (rest + piece).rpartition(b"\n")
            rest = end
            count += _rows_of(whole, venue, may_test=may_test)
    return count + _rows_of(rest, venue, may_test=may_test)


def _rows_of(lines: bytes, venue: str, *, may_test: bool) -> int:
    if not lines:
        return 0
    tests = sum(is_test(venue, name.decode()) for name in MAYBE_TEST.findall(lines)) if may_test else 0
    return lines.count(b"\n") + 1 - tests
