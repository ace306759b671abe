"""Flat files into their table: all tickers of a day, read in pieces, checked, and committed with the day's marks.

A file may have a hundred million rows, so nothing here grows with it. Its rows stand ticker by ticker; that is looked
at and not believed: a file in another order is sorted first.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any, Final, Self
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import polars as pl

from crypto_lake.backfill.ingest import CONFLICTS, Gone, Told, Unfit, desk, enter_rows, ledger_row
from crypto_lake.backfill.plan import bits, days_in
from crypto_lake.backfill.unpack import Damaged, gz_pieces
from crypto_lake.config import CRYPTO, FOREX, US_OPTIONS, US_STOCKS
from crypto_lake.connections.objects import Fetched
from crypto_lake.models.bar import BAR
from crypto_lake.models.coverage import COMPLETE, COVERAGE, EVERY_SYMBOL, INCOMPLETE
from crypto_lake.models.dataset import OPTION_COLUMNS, TIME, Dataset
from crypto_lake.models.dump_file import DUMP_FILE, INGESTED
from crypto_lake.models.flatfile import OPTION, TEST_TICKERS, FlatFile, flat_app, symbol_of
from crypto_lake.models.quality import QUALITY
from crypto_lake.models.rejected import REJECTED
from crypto_lake.processors.compare import compare
from crypto_lake.processors.decode import Refused
from crypto_lake.processors.delimited import REFUSED_AT_MOST, Layout, Misfit
from crypto_lake.processors.quality import Checks
from crypto_lake.processors.shape import Finding, finding_rows, rejected_rows, shape
from crypto_lake.query.bars import BROKEN
from crypto_lake.writers import CommitConflict, CommitFailed
from crypto_lake.writers.bulk import Bulk, Mark, marked
from crypto_lake.writers.delta import Lake, reason

DAY: Final = timedelta(days=1)
TICK: Final = timedelta(microseconds=1)
EPOCH: Final = date(1970, 1, 1)
SOURCE: Final = "flatfile"
# What is done once per piece is much here; larger ones only take more memory.
PIECE_BYTES: Final = 16 << 20
PAIRS: Final = (CRYPTO, FOREX)
# A trade's id is its day's number times this, plus its place among the trades of its symbol in the file.
TRADES_A_DAY: Final = 10**9
# Rows in disorder are sorted some symbols at a time: about so many rows.
BUCKET_ROWS: Final = 1_000_000
# Replaced rows are compared so many at a time, old and new: side by side they have twice the columns.
COMPARED_ROWS: Final = 250_000
# Of rows that an exchange's own file says can not be, or that a replaced file changed, so many are told one by one.
EXAMPLES: Final = 1000

# Checks, as they stand in `quality`.
BAR_INVARIANT: Final = "bar_invariant"
FILE_REPLACED: Final = "file_replaced"
IMPOSSIBLE: Final = pl.any_horizontal(*BROKEN.values(), pl.col("volume") < 0)


@dataclass(frozen=True, slots=True)
class FlatJob:
    """A file to take, as it stands in the listing; `symbols` are those that are wanted of it, none for all.

    `replaces` says that the table has the rows of the file that was in its place before.
    """

    file: FlatFile
    etag: str | None
    size: int
    symbols: tuple[str, ...] = ()
    replaces: bool = False

    @property
    def path(self) -> str:
        """Its key in the bucket."""
        return self.file.path


@dataclass(frozen=True, slots=True)
class FlatLanded:
    """A file that was downloaded."""

    job: FlatJob
    fetched: Fetched


@dataclass(slots=True)
class FlatTaken:
    """What became of a file."""

    landed: FlatLanded
    rows: int = 0  # of the wanted symbols
    added: int = 0  # that the table lacked
    refused: list[Refused] = field(default_factory=list)
    tests: int = 0  # of exchange test tickers, dropped
    symbols: int = 0
    per_name: dict[str, int] = field(default_factory=dict)  # rows of each symbol or root, where some were asked for
    first_time: datetime | None = None
    last_time: datetime | None = None
    lost: list[Refused] = field(default_factory=list)  # of a replaced file, some of the rows that it has no more
    changed: int = 0  # rows of a replaced file that are new, gone, or not what they were
    findings: list[pl.DataFrame] = field(default_factory=list)

    @property
    def job(self) -> FlatJob:
        """What it was fetched for."""
        return self.landed.job


def ingest_flat(
    lake: Lake,
    landed: Sequence[FlatLanded],
    *,
    known: Mapping[str, str],
    now: datetime,
    told: Told,
    piece_bytes: int = PIECE_BYTES,
) -> list[FlatTaken]:
    """Puts the rows of some files of one folder into the table, in one commit with the marks of their days.

    What is said beside them (`rejected`, `quality`, the ledger) is written before the commit, the certificates behind
    it. `known` are the sums of files that the ledger has. Raises `Unfit` for a file that is not what it should be,
    `Gone`, `Stopped`, `CommitFailed`; nothing is in the table then, but maybe words about it.
    """
    ordered = sorted((_for_all(lake, each) for each in landed), key=lambda each: each.job.file.day)
    dataset = ordered[0].job.file.dataset
    mixed: set[str] = set()
    # Of pairs the ledger knows which hours came out of a file: others of its symbols may have had more of them.
    told_before = {} if _is_of_pairs(ordered[0].job.file) else dict(known)
    for _ in range(CONFLICTS + len(ordered)):
        turns = _turns(lake, ordered)
        bulk = Bulk(lake, dataset, silent=_silent(ordered[0].job.file))
        try:
            taken = [_taken(bulk, lake, each, now, told, piece_bytes, mixed) for each in ordered]
            if _overlap(taken):
                break
            _note(lake, dataset, taken, turns, now)
            fresh = (_entry(each, now) for each in taken if not each.job.replaces)
            told_before.update(enter_rows(lake, fresh, told_before))
            bulk.commit(list(_marks(taken)))
        except CommitConflict:
            continue
        except _Mixed as found:
            mixed.add(found.path)
        except (OSError, pl.exceptions.PolarsError) as error:  # a disk that is full, of the tables or of what is sorted
            raise CommitFailed(f"{lake.uri(dataset)}: {reason(error)}") from error
        else:
            lake.add(COVERAGE, pl.concat([_certificate(each, now) for each in taken]))
            # Of a replaced file the ledger speaks last: until it does, the file is to be taken.
            enter_rows(lake, (_entry(each, now) for each in taken if each.job.replaces), known)
            return taken
        finally:
            bulk.discard()
    else:
        raise CommitConflict(f"{dataset.name}: somebody else keeps adding the same rows")
    # What they add was looked for in the table, not in each other: one behind the other, then.
    how: Any = {"known": known, "now": now, "told": told, "piece_bytes": piece_bytes}
    return [done for each in ordered for done in ingest_flat(lake, [each], **how)]


def _for_all(lake: Lake, landed: FlatLanded) -> FlatLanded:
    """The same; of a file in another's place what anybody ever asked for is wanted, for the old rows all leave."""
    job = landed.job
    if not job.replaces or not job.symbols:
        return landed
    symbols = () if is_whole(lake, job.file) else tuple(sorted({*job.symbols, *_asked(lake, job.file)}))
    return replace(landed, job=replace(job, symbols=symbols))


def _asked(lake: Lake, file: FlatFile) -> set[str]:
    """The symbols and roots of which certificates say that the file was taken for them."""
    noted = lake.rows(COVERAGE, dataset=file.dataset.name, venue=file.kind.venue).drop_nulls("dump_sha256")
    is_of_file = (pl.col("date") == file.day) & (pl.col("timeframe").fill_null("") == file.kind.timeframe)
    return set(noted.filter(is_of_file, pl.col("symbol") != EVERY_SYMBOL)["symbol"])


def _is_of_pairs(file: FlatFile) -> bool:
    """Whether it has bars in whose window the files of the days around may have some, too."""
    return file.dataset is BAR and file.kind.zone == "UTC"


def _overlap(taken: Sequence[FlatTaken]) -> bool:
    """Whether two files have bars of the same hours; those of New York cannot."""
    bars = [each for each in taken if each.job.file.dataset is BAR]
    spans = sorted((each.first_time, each.last_time) for each in bars if each.first_time and each.last_time)
    return any(last >= first for (_, last), (first, _) in pairwise(spans))


def heal(lake: Lake, folder: str, days: Iterable[date], *, now: datetime) -> list[date]:
    """Certifies those of these days that are in the table and have no certificate: a crash came between.

    What the table holds is counted, and held against the ledger. Raises `CommitFailed`.
    """
    files = {FlatFile(folder, day).path: FlatFile(folder, day) for day in days}
    if not files:
        return []
    dataset, kind = next(iter(files.values())).dataset, next(iter(files.values())).kind
    noted = lake.rows(COVERAGE, dataset=dataset.name, venue=kind.venue, symbol=EVERY_SYMBOL).drop_nulls("dump_sha256")
    certified = set(noted.filter(pl.col("timeframe").fill_null("") == kind.timeframe)["date"])
    whole = [file for file in files.values() if file.day not in certified and is_whole(lake, file)]
    entries = lake.rows(DUMP_FILE).filter(pl.col("state") == INGESTED, pl.col("path").is_in(list(files)))
    newest = {row["path"]: row for row in entries.sort("state_time").iter_rows(named=True)}
    rows = [_recounted(lake, file, newest[file.path], now) for file in whole if file.path in newest]
    if rows:
        lake.add(COVERAGE, pl.concat(rows))
    return [file.day for file in whole]


def is_whole(lake: Lake, file: FlatFile) -> bool:
    """Whether all symbols of a file are in the table."""
    app = flat_app(file.folder, file.day)
    return file.day in days_in(marked(lake.table(file.dataset), [app])[app], file.day.replace(day=1))


def _silent(file: FlatFile) -> frozenset[str]:
    """The columns of which files like this one say nothing."""
    kind, more = file.kind, {US_OPTIONS: [each.name for each in OPTION_COLUMNS], CRYPTO: ["is_buyer_maker"]}
    return file.dataset.silent(kind.columns.values(), kind.says, more.get(kind.venue, []))


# One file


class _Mixed(Exception):
    """The tickers of a file do not stand together, or their rows do not rise: it has to be sorted."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


def _taken(
    bulk: Bulk, lake: Lake, landed: FlatLanded, now: datetime, told: Told, piece_bytes: int, mixed: set[str]
) -> FlatTaken:
    """One file into the bulk. Raises `Unfit`, and `_Mixed` unless it is among the `mixed` ones."""
    reader = _Reader(bulk, lake, landed, now, told, piece_bytes)
    try:
        return reader.take(is_mixed=landed.job.path in mixed)
    except (Damaged, Misfit) as error:
        raise Unfit(landed, str(error)) from None
    except FileNotFoundError:
        if landed.fetched.path.exists():
            raise
        raise Gone(landed, f"{landed.fetched.path.name} is not there any more") from None


class _Reader:
    """One file on its way into a bulk."""

    def __init__(self, bulk: Bulk, lake: Lake, landed: FlatLanded, now: datetime, told: Told, piece_bytes: int) -> None:
        self.bulk, self.lake, self.told, self.piece_bytes = bulk, lake, told, piece_bytes
        self.file = landed.job.file
        self.dataset, self.kind = self.file.dataset, self.file.kind
        self.path, self.now_us = landed.fetched.path, int(now.timestamp() * 1e6)
        self.taken = FlatTaken(landed)
        self.window = _window(self.file)
        words = {"venue": self.kind.venue, "source": SOURCE}
        if self.dataset is BAR:
            words |= {"timeframe": self.kind.timeframe, "origin": self.kind.says["origin"]}
        self._words = words
        # Among rows of the same words these say which is which; there may be millions.
        self._key = [name for name in self.dataset.key if name not in words]
        self._says = [pl.lit(value).alias(name) for name, value in (words | dict(self.kind.says)).items()]
        self._checks = Checks(self.dataset)
        self._wanted = _wanted(landed.job.symbols, self.kind.venue)
        self._held: dict[date, pl.DataFrame] = {}
        self._leaves: pl.Expr | None = None  # which rows a file in another's place takes out, if some may stay
        self._unread = 0  # lines that are no rows
        self._counted = ""  # symbol that was counted last: it may go on in the next piece
        self._last: tuple[str, int] = "", 0  # symbol of the row before, and how many of its rows there were

    def take(self, *, is_mixed: bool) -> FlatTaken:
        """Reads it to its end."""
        self.bulk.speak(**self._words)
        replaced = self._replaced() if self.taken.job.replaces else None
        for frame, runs in self._sorted() if is_mixed else self._rising():
            self._add(frame, runs)
        # Lines that nobody can read may be about symbols that nobody asked for.
        if not self.taken.rows and len(self.taken.refused) > self._unread:
            raise Misfit(f"no line of {self.file.path} is a row: {self.taken.refused[-1].reason}")
        if replaced is not None:
            self._compare(replaced)
        return self.taken

    # Text to rows

    def _parsed(self) -> Iterator[tuple[pl.DataFrame, "_Runs"]]:
        """The wanted rows of the file as they come, with the columns of the file under the table's names."""
        layout: Layout | None = None
        for text in gz_pieces(self.path, piece_bytes=self.piece_bytes):
            layout = layout or Layout.of(self.dataset, self.kind, text)
            parsed = layout.parse(text)
            self._refuse(parsed.refused)
            self._unread += len(parsed.refused)
            if parsed.frame.height:
                frame, runs = self._of_wanted(parsed.frame)
                if frame.height:
                    yield frame, runs
            self.told.on_rows(parsed.frame.height)
            self.told.look()
        if layout is None:
            raise Misfit(f"{self.path.name} has no line, not even a header")

    def _of_wanted(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, "_Runs"]:
        """Without test tickers and without what nobody asked for."""
        runs, before = _Runs.of(frame), frame
        if tests := _tests(runs.symbols, self.kind.venue):
            frame = frame.filter(~pl.col("symbol").is_in(tests))
            self.taken.tests += before.height - frame.height
        if self.kind.venue in PAIRS:
            names = {name: symbol_of(self.kind.venue, name) for name in runs.symbols}
            frame = frame.with_columns(pl.col("symbol").replace(names))
        if self._wanted is not None:
            frame = frame.filter(self._wanted)
        return frame, runs if frame is before else _Runs.of(frame)

    def _rising(self) -> Iterator[tuple[pl.DataFrame, "_Runs"]]:
        """The rows as they come, as long as no symbol comes back and, of bars, times rise: then none comes twice."""
        before, is_bar = ("", 0), self.dataset is BAR
        for frame, runs in self._parsed():
            clocks = _us_of(frame) if is_bar else np.zeros(0, np.int64)
            first = runs.symbols[0], clocks[0] if is_bar else 1
            if not (first > before and runs.symbols.is_sorted()):
                raise _Mixed(self.file.path)
            if is_bar and not runs.rise(clocks):
                raise _Mixed(self.file.path)
            before = runs.symbols[-1], clocks[-1] if is_bar else 0
            yield frame, runs

    def _sorted(self) -> Iterator[tuple[pl.DataFrame, "_Runs"]]:
        """The same rows ticker by ticker, some tickers at a time; of bars each time once."""
        counts: dict[str, int] = {}
        with desk(self.path) as folder:
            for number, (frame, _) in enumerate(self._parsed()):
                for symbol, count in frame["symbol"].value_counts().iter_rows():
                    counts[symbol] = counts.get(symbol, 0) + count
                frame.write_ipc(folder / f"{number:06}.arrow", compression="lz4")
            parts = sorted(folder.iterdir())
            # The folder's name is the file's, which may have letters that a pattern is made of.
            everything = pl.scan_ipc(parts) if parts else None
            for low, high in _buckets(counts, BUCKET_ROWS):
                assert everything is not None
                chosen = everything.filter(pl.col("symbol").is_between(pl.lit(low), pl.lit(high)))
                # Texts that are chosen keep those of all the others in memory, until they are made anew.
                some = chosen.with_columns(pl.selectors.string() + "").collect()
                once = self._each_once(some.sort(*self._order(), maintain_order=True))
                yield once, _Runs.of(once)

    def _order(self) -> list[str]:
        """Trades stay in the order of the file, by which they are numbered."""
        return ["symbol", "time"] if self.dataset is BAR else ["symbol"]

    def _each_once(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Of sorted bars the first one of each ticker and time."""
        if self.dataset is not BAR:
            return frame
        is_again = pl.all_horizontal(pl.col(name) == pl.col(name).shift(1) for name in ("symbol", "time"))
        again = frame.filter(is_again)
        if again.is_empty():
            return frame
        once = frame.filter(is_again.not_().fill_null(value=True))
        others = again.unique(maintain_order=True).join(once, on=frame.columns, how="anti", nulls_equal=True)
        reason = "another row of the file has the same ticker and time, and differs"
        self._refuse_at_most(others.height, reason)
        self._refuse([(str(row).encode(), reason) for row in others.iter_rows(named=True)])
        return once

    # Rows to the table

    def _add(self, frame: pl.DataFrame, runs: "_Runs") -> None:
        """Rows that stand symbol by symbol."""
        frame = self._timed(frame)
        span = _span(frame)
        if span is None or not self.window[0] <= span[0] <= span[1] < self.window[1]:
            frame = self._in_window(frame)
            if frame.height:
                self._add(frame, _Runs.of(frame))
            return
        if self.dataset is not BAR:
            frame = self._numbered(frame, runs)
        if self.kind.venue == US_OPTIONS:
            frame = _split(frame, runs)
        rows = self._checked(shape(self.dataset, frame.with_columns(self._says)))
        self._count(rows, runs, *span)
        for day, part in _by_day(rows, *span):
            fresh = self._unknown(day, part)
            self.taken.added += fresh.height
            self.bulk.add(day, fresh)

    def _timed(self, frame: pl.DataFrame) -> pl.DataFrame:
        """With `time` out of the nanoseconds, and what the conditions of crypto trades say of the aggressor."""
        if "time" in frame.columns:
            return frame
        clocks = [name for name in ("sip_timestamp", "participant_timestamp") if name in frame.columns]
        frame = frame.with_columns((pl.coalesce(clocks) // 1000).cast(TIME).alias("time"))
        if self.kind.venue != CRYPTO:
            return frame
        sides = {"1": True, "2": False}
        return frame.with_columns(
            pl.col("conditions").replace_strict(sides, default=None, return_dtype=pl.Boolean).alias("is_buyer_maker")
        )

    def _in_window(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Without the rows of other days and those without a time, which are set aside."""
        since, until = self.window
        is_inside = ((pl.col("time") >= since) & (pl.col("time") < until)).fill_null(value=False)
        outside, reason = frame.filter(~is_inside), f"its time is not of {self.file.day}"
        self._refuse_at_most(outside.height, reason)
        self._refuse([(text, reason) for text in outside.write_ndjson().encode().splitlines()])
        return frame.filter(is_inside)

    def _numbered(self, frame: pl.DataFrame, runs: "_Runs") -> pl.DataFrame:
        """With `trade_id`: the day's number and the place among the symbol's trades."""
        number = np.arange(1, frame.height + 1) - np.repeat(runs.firsts, runs.lengths)
        symbol, before = self._last
        if runs.symbols[0] == symbol:
            number[: runs.lengths[0]] += before
        self._last = runs.symbols[-1], int(number[-1])
        base = (self.file.day - EPOCH).days * TRADES_A_DAY
        return frame.with_columns(pl.Series("trade_id", number + base, pl.Int64))

    def _checked(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Without what a check of values refuses (ANALYTICS 5.1); bars that cannot be stay, and are told (5.3)."""
        if self.dataset is BAR:
            self._judge(rows)
            return rows
        checked = self._checks.check(rows, found_us=self.now_us)
        if checked.findings.height:
            self.taken.findings.append(checked.findings)
        if not checked.refused:
            return rows
        places = [place for place, _ in checked.refused]
        texts = rows[places].write_ndjson().encode().splitlines()
        self._refuse([(text, why) for (_, why), text in zip(checked.refused, texts, strict=True)])
        return rows.with_row_index("place").filter(~pl.col("place").is_in(places)).drop("place")

    def _judge(self, rows: pl.DataFrame) -> None:
        broken = rows.filter(IMPOSSIBLE)
        if broken.is_empty():
            return
        left = EXAMPLES - sum(found.height for found in self.taken.findings)
        told = [
            Finding(row["venue"], row["symbol"], BAR_INVARIANT, "error", _us(row["time"]), _us(row["close_time"]))
            for row in broken.head(max(0, left)).iter_rows(named=True)
        ]
        self.taken.findings.append(finding_rows(self.dataset, told, found_us=self.now_us))

    def _count(self, rows: pl.DataFrame, runs: "_Runs", first: datetime, last: datetime) -> None:
        taken = self.taken
        taken.rows += rows.height
        for column in ("symbol", "underlying") if taken.job.symbols else ():
            for name, count in rows[column].drop_nulls().value_counts().iter_rows():
                taken.per_name[name] = taken.per_name.get(name, 0) + count
        taken.symbols += len(runs.symbols) - (runs.symbols[0] == self._counted)
        self._counted = runs.symbols[-1]
        taken.first_time = first if taken.first_time is None else min(taken.first_time, first)
        taken.last_time = last if taken.last_time is None else max(taken.last_time, last)

    def _unknown(self, day: date, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows whose key the table lacks: some symbols of the file may have been asked for before."""
        if self.taken.job.replaces and self._leaves is None:
            return rows
        if day not in self._held:
            since, until = self.window
            limits = {"above": since - TICK, "up_to": until - TICK} if self.dataset is BAR else self._ids()
            equals = {name: word for name, word in self._words.items() if name in (*self.dataset.key, "source")}
            there = self.bulk.held(day, self._key, **limits, **equals)
            self._held[day] = there if self._leaves is None else there.filter(~self._leaves)
        held = self._held[day]
        if held.is_empty():
            return rows
        # A join takes many times what it looks through.
        low, high = (pl.lit(end) for end in (rows["symbol"].min(), rows["symbol"].max()))
        near = held.filter(pl.col("symbol").is_between(low, high))
        return rows.join(near, on=self._key, how="anti", maintain_order="left")

    def _ids(self) -> dict[str, int]:
        first = (self.file.day - EPOCH).days * TRADES_A_DAY
        return {"above": first, "up_to": first + TRADES_A_DAY - 1}

    def _refuse_at_most(self, rows: int, reason: str) -> None:
        """Raises `Misfit` if there would be too many: each is kept with its text, and only wrong files have so many."""
        if len(self.taken.refused) + rows > REFUSED_AT_MOST:
            raise Misfit(f"more than {REFUSED_AT_MOST} rows of {self.file.path} are set aside, the last ones: {reason}")

    def _refuse(self, lines: Iterable[tuple[bytes, str]]) -> None:
        self.taken.refused += [Refused(self.kind.venue, why, bytes(line), self.now_us) for line, why in lines]

    # A file in another's place

    def _replaced(self) -> list[pl.LazyFrame]:
        """What the table has of the file that was here before; it leaves with the commit."""
        inside, days = _of_file(self.lake, self.file)
        gone = self.bulk.replace(days, pl.all_horizontal(*_of_road(self._words), inside))
        if _is_of_pairs(self.file):
            self._leaves = inside
        if self._wanted is not None:  # what leaves comes back, whoever wanted it
            held = [rows.select(pl.col("symbol").unique()).collect(engine="streaming")["symbol"] for rows in gone]
            names = pl.Series(sorted(set().union(*held)), dtype=pl.String)
            self._wanted |= pl.col("symbol").is_in(names.implode())
        return gone

    def _compare(self, old: list[pl.LazyFrame]) -> None:
        """What the new file says otherwise than the old one, some symbols at a time."""
        new, nothing = self.bulk.written(), pl.LazyFrame(schema=self.dataset.schema)
        counts: dict[str, int] = {}
        for rows in (*old, *new):
            per_symbol = rows.group_by("symbol").len().collect(engine="streaming")
            for symbol, count in per_symbol.iter_rows():
                counts[symbol] = counts.get(symbol, 0) + count
        for low, high in _buckets(counts, COMPARED_ROWS):
            between = pl.col("symbol").is_between(pl.lit(low), pl.lit(high))
            ours, theirs = (
                pl.concat([nothing, *(rows.filter(between).select(*self.dataset.schema) for rows in side)]).collect()
                for side in (old, new)
            )
            found = compare(self.dataset, ours, theirs, is_same_road=True)
            self.taken.changed += found.only_ours.height + found.only_theirs.height + found.ours.height
            self._lose(pl.concat([found.only_ours, found.ours]))

    def _lose(self, rows: pl.DataFrame) -> None:
        """What the table had and will not have any more stays where it can be read."""
        texts = rows.head(EXAMPLES - len(self.taken.lost)).write_ndjson().encode().splitlines()
        reason = f"{self.file.path} was replaced upstream: it does not say this any more"
        self.taken.lost += [Refused(self.kind.venue, reason, text, self.now_us) for text in texts]


def _window(file: FlatFile) -> tuple[datetime, datetime]:
    """From when (inclusive) to when the rows of a file may be.

    Bars of stocks belong to the day of New York. Trades may be reported late, and in which zone the days of pairs are
    counted is not promised: of these a day more on both sides is believed.
    """
    slack = timedelta(0) if file.dataset is BAR and file.kind.zone != "UTC" else DAY
    zone = ZoneInfo(file.kind.zone)
    begin, end = (datetime(day.year, day.month, day.day, tzinfo=zone) for day in (file.day, file.day + DAY))
    return begin.astimezone(UTC) - slack, end.astimezone(UTC) + slack


def _of_road(words: Mapping[str, str]) -> list[pl.Expr]:
    return [pl.col(name) == word for name, word in words.items()]


def _of_file(lake: Lake, file: FlatFile) -> tuple[pl.Expr, list[date]]:
    """Which rows of its road came out of the file that was here before, and on which days they are."""
    if _is_of_pairs(file):
        return _of_pairs(lake, file)
    since, until = _window(file)
    if file.dataset is BAR:
        return (pl.col("time") >= since) & (pl.col("time") < until), _days(since, until)
    return pl.col("trade_id") // TRADES_A_DAY == (file.day - EPOCH).days, _days(since, until)


def _of_pairs(lake: Lake, file: FlatFile) -> tuple[pl.Expr, list[date]]:
    """The same where the windows of two days overlap: the hours that the ledger says the file had.

    Of those that the file of a day beside it had, too, only the hours of its own day in UTC are its.
    """
    days = {FlatFile(file.folder, file.day + number * DAY).path: number for number in (-1, 0, 1)}
    entries = lake.rows(DUMP_FILE, state=INGESTED).filter(pl.col("path").is_in(list(days))).drop_nulls("first_time")
    spans = entries.group_by("path").agg(pl.col("first_time").min(), pl.col("last_time").max())
    hours = {days[path]: (first, last) for path, first, last in spans.iter_rows()}
    if 0 not in hours:
        return pl.lit(value=False), []
    first, last = hours.pop(0)
    time = pl.col("time")
    is_beside = pl.any_horizontal(pl.lit(value=False), *(time.is_between(*span) for span in hours.values()))
    inside = time.is_between(first, last) & (~is_beside | (time.dt.date() == file.day))
    return inside, _days(first, last + TICK)


def _days(since: datetime, until: datetime) -> list[date]:
    first, last = since.date(), (until - TICK).date()
    return [first + number * DAY for number in range((last - first).days + 1)]


def _wanted(symbols: Sequence[str], venue: str) -> pl.Expr | None:
    """Which symbols are wanted; None for all. Of options a name without `O:` is a root, with all its contracts."""
    if not symbols:
        return None
    if venue != US_OPTIONS:
        return pl.col("symbol").is_in([symbol_of(venue, name) for name in symbols])
    roots = [name for name in symbols if not name.startswith("O:")]
    return pl.col("symbol").is_in(list(symbols)) | pl.col("symbol").str.extract(OPTION.pattern, 1).is_in(roots)


@dataclass(frozen=True, slots=True)
class _Runs:
    """Rows that stand symbol by symbol: where each symbol begins, and which symbols these are."""

    firsts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    symbols: pl.Series

    @classmethod
    def of(cls, frame: pl.DataFrame) -> Self:
        places = frame["symbol"].rle_id().to_numpy()
        firsts = np.concatenate(
            [np.zeros(min(1, len(places)), np.int64), np.flatnonzero(places[1:] != places[:-1]) + 1]
        )
        return cls(firsts, np.diff(np.append(firsts, len(places))), frame["symbol"].gather(firsts))

    def rise(self, clocks: npt.NDArray[np.int64]) -> bool:
        """Whether in each run every time is above the one before."""
        is_above = clocks[1:] > clocks[:-1]
        is_above[self.firsts[1:] - 1] = True
        return bool(is_above.all())


def _us_of(frame: pl.DataFrame) -> npt.NDArray[np.int64]:
    return frame["time"].to_physical().to_numpy()


def _span(frame: pl.DataFrame) -> tuple[datetime, datetime] | None:
    """The first and the last time; None if a row has none."""
    if frame["time"].null_count():
        return None
    clocks = _us_of(frame)
    return _moment(clocks.min()), _moment(clocks.max())


def _moment(since_us: np.int64) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=int(since_us))


def _tests(symbols: pl.Series, venue: str) -> list[str]:
    """Those of them that exchanges try themselves out with."""
    if venue == US_OPTIONS:
        return symbols.filter(symbols.str.extract(OPTION.pattern, 1).is_in(list(TEST_TICKERS))).to_list()
    return [] if venue != US_STOCKS else sorted(TEST_TICKERS.intersection(symbols))


def _split(options: pl.DataFrame, runs: _Runs) -> pl.DataFrame:
    """With underlying, expiry, right and strike, null where a symbol is not that of an option (PROTOCOLS E.3)."""
    symbols = runs.symbols.to_frame()
    parts = symbols.select(pl.col("symbol").str.extract_groups(f"^{OPTION.pattern}$")).unnest("symbol")
    split = parts.select(
        pl.col("root").alias("underlying"),
        ("20" + pl.col("expiry")).str.to_date("%Y%m%d", strict=False).alias("expiry"),
        "right",
        "strike",
    )
    # Polars divides by a constant by multiplying with its inverse, which is not always the nearest double.
    thousandths = split["strike"].cast(pl.Float64).to_numpy()
    split = split.with_columns(pl.Series("strike", thousandths / 1000).fill_nan(None))
    return options.hstack(split[np.repeat(np.arange(len(runs.firsts)), runs.lengths)])


def _buckets(counts: Mapping[str, int], most_rows: int) -> Iterator[tuple[str, str]]:
    """The symbols in stretches of about so many rows: the first one and the last one of each."""
    first, rows = None, 0
    ordered = sorted(counts)
    for symbol in ordered:
        first, rows = first or symbol, rows + counts[symbol]
        if rows >= most_rows or symbol == ordered[-1]:
            yield first, symbol
            first, rows = None, 0


def _by_day(rows: pl.DataFrame, first: datetime, last: datetime) -> Iterator[tuple[date, pl.DataFrame]]:
    if first.date() == last.date():
        yield first.date(), rows
        return
    for (day,), part in rows.partition_by("date", as_dict=True, maintain_order=True).items():
        yield day, part


def _us(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000 + moment.microsecond


# What is said of files


def _marks(taken: Iterable[FlatTaken]) -> Iterator[Mark]:
    """The days that are in now, of all symbols or of those that were asked for."""
    days: dict[str, set[date]] = {}
    for each in taken:
        file = each.job.file
        for symbol in each.job.symbols or ("",):
            days.setdefault(flat_app(file.folder, file.day, symbol), set()).add(file.day)
    for app, found in days.items():
        yield Mark(app, bits(found))


def _turns(lake: Lake, landed: Sequence[FlatLanded]) -> dict[str, int]:
    """How many files were in the place of each that replaces one: a content may come back.

    Counted before the table is looked at: who is beaten to it by another one says what that one said, and so nothing.
    """
    paths = [each.job.path for each in landed if each.job.replaces]
    if not paths:
        return {}
    known = lake.rows(DUMP_FILE, state=INGESTED).filter(pl.col("path").is_in(paths))
    return dict(known.group_by("path").len().iter_rows())


def _note(lake: Lake, dataset: Dataset, taken: Sequence[FlatTaken], turns: Mapping[str, int], now: datetime) -> None:
    """What is said beside the rows is written before them: whoever finds a day marked finds these words too."""
    now_us = int(now.timestamp() * 1e6)
    for each in taken:
        # Other symbols of the same file are other words.
        whose = f"/{zlib.crc32(','.join(each.job.symbols).encode()):08x}" if each.job.symbols else ""
        content = int(each.landed.fetched.sha256[:15], 16)
        guard = {f"flatfile/{each.job.path}{whose}": content}
        lake.append_once(REJECTED, rejected_rows(dataset, each.refused), guard)
        lake.append_once(QUALITY, pl.concat([finding_rows(dataset, [], found_us=now_us), *each.findings]), guard)
        if each.changed:
            guard = {f"flatfile/{each.job.path}/replaced": content + turns.get(each.job.path, 0)}
            lake.append_once(REJECTED, rejected_rows(dataset, each.lost), guard)
            lake.append_once(QUALITY, finding_rows(dataset, [_replacement(each)], found_us=now_us), guard)


def _replacement(taken: FlatTaken) -> Finding:
    kind, (since, until) = taken.job.file.kind, _window(taken.job.file)
    span = _us(taken.first_time or since), _us(taken.last_time or until - TICK)
    return Finding(kind.venue, EVERY_SYMBOL, FILE_REPLACED, "warn", *span, float(taken.changed), 0.0)


def _entry(taken: FlatTaken, now: datetime) -> dict[str, Any]:
    got = taken.landed.fetched
    return {**ledger_row(taken, got, now), "path": taken.job.path, "etag": taken.job.etag or got.etag}


def _certificate(taken: FlatTaken, now: datetime) -> pl.DataFrame:
    job, venue = taken.job, taken.job.file.kind.venue
    rows: dict[tuple[str, ...], int] = {
        (name,): taken.per_name.get(symbol_of(venue, name), 0) for name in job.symbols
    } or {(): taken.rows}
    says: Any = {"now": now, "sha256": taken.landed.fetched.sha256, "refused": len(taken.refused)}
    return pl.concat(
        [certificate(job.file, names, rows=count, dump_rows=count, **says) for names, count in rows.items()]
    )


def certificate(
    file: FlatFile,
    symbols: Sequence[str],
    *,
    now: datetime,
    rows: int,
    sha256: str | None,
    dump_rows: int | None,
    refused: int = 0,
) -> pl.DataFrame:
    """Rows of `coverage` about a file: one about all symbols, or one for each that was asked for.

    Complete is a day of which every line of the file is in the table.
    """
    is_complete = sha256 is not None and not refused and rows == dump_rows
    missing = None if dump_rows is None else max(0, dump_rows - rows) + refused
    row = {
        "venue": file.kind.venue,
        "time": datetime(file.day.year, file.day.month, file.day.day, tzinfo=UTC),
        "dataset": file.dataset.name,
        "rows": rows,
        "missing_rows": missing,
        "repaired_rows": rows,
        "downtime_s": 0.0,
        "dump_sha256": sha256,
        "dump_rows": dump_rows,
        "dump_missing_rows": None if sha256 is None else 0,
        "verdict": COMPLETE if is_complete else INCOMPLETE,
        "checked_time": now,
        "date": file.day,
        "timeframe": file.kind.timeframe or None,
    }
    return pl.DataFrame([row | {"symbol": symbol} for symbol in symbols or (EVERY_SYMBOL,)], schema=COVERAGE.schema)


def _recounted(lake: Lake, file: FlatFile, entry: Mapping[str, Any], now: datetime) -> pl.DataFrame:
    words = {"venue": file.kind.venue, "source": SOURCE}
    words |= {"timeframe": file.kind.timeframe} if file.dataset is BAR else {}
    inside, days = _of_file(lake, file)
    rows = Bulk(lake, file.dataset).count(days, pl.all_horizontal(*_of_road(words), inside))
    return certificate(
        file,
        (),
        now=now,
        rows=rows,
        sha256=entry["sha256"],
        dump_rows=entry["rows"],
        refused=entry["refused_rows"] or 0,
    )
