"""Walks through the rows of a table day by day and keeps what outlives a day: checks, runs of ids, highest keys."""

from collections.abc import Iterator, Sequence
from datetime import date, datetime
from typing import Final

import polars as pl

from crypto_lake.models.bar import BAR
from crypto_lake.processors.quality import Checks
from crypto_lake.processors.sequence import INTERVALS, by_symbol, has_sequence
from crypto_lake.query import bars, klines
from crypto_lake.query.days import is_market, of_day, pieces
from crypto_lake.query.findings import Findings
from crypto_lake.query.profile import PROFILE, WITHIN, judge, line, of_pieces, pauses, profile
from crypto_lake.query.runs import joined, runs
from crypto_lake.query.source import Source

# At rest rows are ordered, keys are counted and ids are held against the table `gap`: these say the same less well.
JUDGED_ELSEWHERE: Final = ("duplicate", "id_regress", "id_gap", "book_seq_gap")
OUTLIER: Final = "price_outlier"


class Walk:
    """One table's walk. `held` are the runs of ids so far; row checks become findings only when `is_deep`."""

    def __init__(self, source: Source, findings: Findings, *, now: datetime, is_deep: bool) -> None:
        self.source = source
        self.dataset = source.dataset
        self.held = pl.DataFrame(schema=INTERVALS)
        self._findings = findings
        self._now_us = int(now.timestamp() * 1e6)
        self._is_deep = is_deep
        self._checks = Checks(self.dataset)
        self._checks_of_files = self._checks
        self._reached: pl.DataFrame | None = None  # the highest value of the order column within each group

    def day(self, day: date, symbols: Sequence[str] | None) -> pl.DataFrame:
        """Looks at a day; its profile."""
        # A million contracts come and go in flat files: what is remembered of each ends with its day.
        self._checks_of_files = Checks(self.dataset)
        rows = of_day(self.source, day, symbols)
        seen = profile(self.dataset, rows, day)
        judge(self.dataset, seen, self._findings)
        extra = [self._piece(piece, day) for piece in self._pieces(rows)] if is_market(self.dataset) else []
        if extra:
            seen = seen.join(of_pieces(pl.concat(extra)), on=WITHIN, how="left", nulls_equal=True)
        blank = [pl.lit(None, dtype).alias(name) for name, dtype in PROFILE.items() if name not in seen.columns]
        share = (pl.col("outliers") / pl.col("rows")).alias("outlier_share")
        return seen.with_columns(blank).with_columns(share).select(*PROFILE)

    def _pieces(self, rows: pl.LazyFrame) -> Iterator[pl.DataFrame]:
        """Price levels are most of the bytes of a depth row, and only those of snapshots are ever checked."""
        chain = self.dataset.chain
        chosen = []
        for name, dtype in self.dataset.schema.items():
            column = pl.col(name)
            if isinstance(dtype, pl.List) and not self._is_deep:
                continue
            if isinstance(dtype, pl.List) and chain is not None:
                column = pl.when(pl.col(chain.apart)).then(column)
            chosen.append(column)
        return pieces(self.dataset, rows, chosen)

    def _piece(self, piece: pl.DataFrame, day: date) -> pl.DataFrame:
        order = self.dataset.order
        ordered = piece.sort(*WITHIN, *([order] if order else []), "time", maintain_order=True)
        # A row without a part of its key is a finding already, and nothing to compare.
        ordered = ordered.drop_nulls([*dict.fromkeys([*WITHIN, *self.dataset.key, "time"])])
        doubled = self._doubled(ordered, day)
        outliers = self._check_rows(ordered)
        if self.dataset.name == BAR.name:
            bars.judge(ordered, self._reached, self._findings)
            klines.judge(ordered, self._findings)
        if has_sequence(self.dataset) and self._is_deep:
            self.held = joined(pl.concat([self.held, runs(self.dataset, ordered)]))
        if order:
            self._advance(ordered)
        found = pauses(self.dataset, ordered)  # with the ends of the piece: pieces of one symbol go on from each other
        for more in (doubled, outliers):
            found = found.join(more, on=WITHIN, how="left")
        return found.with_columns(pl.col("duplicates", "outliers").fill_null(0))

    def _check_rows(self, ordered: pl.DataFrame) -> pl.DataFrame:
        """The row checks; how many outliers each symbol has."""
        nothing = pl.DataFrame(schema={"venue": pl.String, "symbol": pl.String, "outliers": pl.Int64})
        if not (self._is_deep or self._checks.subject.is_trade):
            return nothing
        outliers = [nothing]
        is_single = by_symbol(self.dataset)
        for checks, is_own in ((self._checks, is_single), (self._checks_of_files, ~is_single)):
            own = ordered.filter(is_own)
            found = checks.check(own, found_us=self._now_us, numbered=True, at_rest=True, at_most=None).findings
            if self._is_deep:
                told = self._explained(own, found.filter(~pl.col("check").is_in(JUDGED_ELSEWHERE)))
                self._findings.add_rows(told.with_columns(pl.lit(None, pl.Int64()).alias("row")))
            strange = found.filter(pl.col("check") == OUTLIER).group_by("venue", line(self.dataset))
            outliers.append(strange.agg(pl.len().cast(pl.Int64).alias("outliers")))
        return pl.concat(outliers)

    def _explained(self, ordered: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
        """Without missing trade ids behind a hole in the ids of the rows: that hole is told already."""
        if self.dataset.sequence is None or not (found["check"] == "trade_id_gap").any():
            return found
        own = pl.col(self.dataset.sequence)
        if self._reached is not None:
            ordered = ordered.join(self._reached, on=WITHIN, how="left")
        before = own.shift(1).over(WITHIN)
        before = before if self._reached is None else pl.coalesce(before, "reached")
        follows = ordered.select((own == before + 1).fill_null(value=False).alias("follows")).with_row_index("row")
        is_next = found.join(follows.with_columns(pl.col("row").cast(pl.Int64)), on="row", how="left")
        return is_next.filter((pl.col("check") != "trade_id_gap") | pl.col("follows")).drop("follows")

    # Keys

    def _doubled(self, ordered: pl.DataFrame, day: date) -> pl.DataFrame:
        """Rows that share their key, per symbol (`line`); each one's are one finding."""
        dataset = self.dataset
        twice = ordered.filter(pl.struct(dataset.key).is_duplicated())
        across = self._across(ordered, day)
        ids = pl.col(dataset.order) if dataset.order and dataset.schema[dataset.order] == pl.Int64 else pl.lit(None)
        both = pl.concat([twice.select(ordered.columns), across.select(ordered.columns)])
        found = both.group_by("venue", line(dataset)).agg(
            pl.len().cast(pl.Int64).alias("duplicates"),
            pl.col("time").min().alias("first_time"),
            pl.col("time").max().alias("last_time"),
            ids.min().cast(pl.Int64).alias("first_id"),
            ids.max().cast(pl.Int64).alias("last_id"),
        )
        for row in found.sort(WITHIN).iter_rows(named=True):
            number = row.pop("duplicates")
            text = f"{number:,} rows of {day} have the key of another row"
            self._findings.add(dataset, "duplicate_key", "error", text, observed=float(number), threshold=0.0, **row)
        return found.select(*WITHIN, "duplicates")

    def _across(self, ordered: pl.DataFrame, day: date) -> pl.DataFrame:
        """Rows whose key is on an earlier day too. The days before are opened only where keys reach back."""
        if self._reached is None:
            return ordered.clear()
        order = str(self.dataset.order)
        back = ordered.join(self._reached, on=self.dataset.within, how="inner")
        back = back.filter(pl.col(order) <= pl.col("reached")).select(ordered.columns)
        if back.is_empty():
            return back
        near = self.source.scan(None, day).filter(
            pl.col("date") < day,
            pl.col("symbol").is_in(back["symbol"].unique().implode()),
            pl.col(order).is_between(back[order].min(), back[order].max()),
        )
        keys = near.select(self.dataset.key).collect(engine="streaming")
        return back.join(keys, on=self.dataset.key, how="semi")

    def _advance(self, ordered: pl.DataFrame) -> None:
        # The rows of a flat file are in no other one, and their symbols are too many to remember.
        ordered, within = ordered.filter(by_symbol(self.dataset)), list(self.dataset.within)
        best = ordered.group_by(within).agg(pl.col(str(self.dataset.order)).max().alias("reached"))
        both = best if self._reached is None else pl.concat([self._reached, best.select(self._reached.columns)])
        self._reached = both.group_by(within).agg(pl.col("reached").max())
