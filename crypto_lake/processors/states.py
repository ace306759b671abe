"""The state of every hole, out of all the rows of `gap` that speak of it, whoever wrote them and in whatever order.

A running recorder and a backfill write the same table and know nothing of each other. What one of them has filled is
filled for ever, for no row ever leaves a table: ids of filled rows are cut out of what others still call missing, and
of ids that several rows call missing the one that got further speaks, then the newest one.
"""

import heapq
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import polars as pl

from crypto_lake.models.dataset import TIME
from crypto_lake.models.gap import FILLED, GAP, OPEN, UNFILLABLE

# How a hole goes on: what was given up may still come, what came does not go.
PROGRESS: Final = {OPEN: 0, UNFILLABLE: 1, FILLED: 2}
GROUP: Final = ["venue", "dataset", "symbol"]
SPAN: Final = ["first_id", "last_id", "start_time", "end_time"]
IS_FILLED: Final = pl.col("state") == FILLED
HOW_FAR: Final = pl.col("state").replace_strict(PROGRESS, default=-1, return_dtype=pl.Int8)


def newest(rows: pl.DataFrame) -> pl.DataFrame:
    """The states of the holes in some rows of `gap`, by dataset, venue, symbol, start_time, first_id.

    Rows that are `open` or `unfillable` name every id once at the most, and none that any row calls `filled`: a row of
    which a part was filled is divided, and each piece keeps what its row says but for the ids and the times around
    them. Rows that are `filled` are history. A time without delivery (no ids) has the state of the newest row of its
    key, and is `filled` when a row of its key says so that ends no earlier. The order of `rows` does not matter: of two
    rows with one `state_time` that is newer which has come further, then the one that ends, then the shorter one.
    """
    ordered = _in_order(rows)
    has_ids = pl.col("first_id").is_not_null()
    with_ids = ordered.filter(has_ids)
    filled, claims = with_ids.filter(IS_FILLED), _last(with_ids.filter(~IS_FILLED))
    states = [_without_ids(ordered.filter(~has_ids)), _last(filled), *_left(claims, filled)]
    return pl.concat(states).sort("dataset", "venue", "symbol", "start_time", "first_id")


def _in_order(rows: pl.DataFrame) -> pl.DataFrame:
    """From the oldest to the newest; whatever two rows differ in decides between them."""
    length = pl.col("last_id") - pl.col("first_id")
    rest = [name for name in rows.columns if name != "state_time"]
    return rows.sort("state_time", HOW_FAR, pl.col("end_time").is_not_null(), -length, *rest)


def _last(ordered: pl.DataFrame) -> pl.DataFrame:
    return ordered.unique(GAP.key, keep="last", maintain_order=True)


def _without_ids(ordered: pl.DataFrame) -> pl.DataFrame:
    bright = pl.col("end_time").filter(IS_FILLED).max().over(GAP.key)
    is_over = ~IS_FILLED & (pl.col("end_time") <= bright).fill_null(value=False)
    return _last(ordered.filter(~is_over))


# Missing ids


def _left(claims: pl.DataFrame, filled: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """What is left of rows that call ids missing, without those that are filled or that a better row speaks of."""
    # Nearly every hole that was ever filled was filled as a whole, under its own key.
    whole = filled.group_by(GAP.key).agg(pl.col("last_id").max().alias("until"))
    claims = claims.join(whole, on=GAP.key, how="left", maintain_order="left")
    claims = claims.filter(pl.col("until").is_null() | (pl.col("until") < pl.col("last_id"))).drop("until")
    near = filled.join(claims.select(GROUP).unique(), on=GROUP, how="semi", maintain_order="left")
    ranked = pl.concat([claims.sort(HOW_FAR, maintain_order=True), near]).with_row_index("rank")
    marked = _marked(ranked)
    yield marked.filter(~IS_FILLED, ~pl.col("is_touched")).select(claims.columns)
    touched = marked.filter("is_touched")
    if not touched.filter(~IS_FILLED).is_empty():
        yield _divided(touched, claims.columns)


def _marked(ranked: pl.DataFrame) -> pl.DataFrame:
    """With `is_touched`: some of the row's ids are in another row, too."""
    ordered = ranked.sort(*GROUP, "first_id", "last_id")
    reached = pl.col("last_id").cum_max().shift(1).over(GROUP)
    following = pl.col("first_id").shift(-1).over(GROUP)
    is_touched = (pl.col("first_id") <= reached) | (following <= pl.col("last_id"))
    return ordered.with_columns(is_touched.fill_null(value=False).alias("is_touched"))


class Row(NamedTuple):
    """A row's ids (both inclusive), times (µs since 1970), and rank: of two rows the one with the higher one speaks."""

    first_id: int
    last_id: int
    start_us: int
    end_us: int | None
    rank: int


class Piece(NamedTuple):
    """Ids (both inclusive) and the row that speaks of them."""

    first_id: int
    last_id: int
    row: Row


def _divided(touched: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    plain = touched.with_columns(pl.col("start_time", "end_time").to_physical())
    pieces = [
        piece
        for _, part in plain.group_by(GROUP)
        for piece in _timed(list(_pieces([Row(*row) for row in part.select(*SPAN, "rank").sort("first_id").rows()])))
    ]
    schema = {name: touched.schema[name] if name in ("rank", "last_id") else pl.Int64() for name in (*SPAN, "rank")}
    found = pl.DataFrame(pieces, schema=schema, orient="row").with_columns(pl.col("start_time", "end_time").cast(TIME))
    rows = touched.filter(~IS_FILLED).drop(SPAN)
    divided = found.join(rows, on="rank", how="inner")
    return divided.with_columns(pl.col("start_time").dt.date().alias("date")).select(columns)


def _pieces(rows: list[Row]) -> Iterator[Piece]:
    """The ids of all rows (ordered by the first one) in pieces, each with the row of the highest rank."""
    speaking: list[tuple[int, Row]] = []
    at, number, piece = 0, 0, None
    while number < len(rows) or speaking:
        at = at if speaking else rows[number].first_id
        while number < len(rows) and rows[number].first_id <= at:
            heapq.heappush(speaking, (-rows[number].rank, rows[number]))
            number += 1
        row = speaking[0][1]
        last_id = min(row.last_id, rows[number].first_id - 1) if number < len(rows) else row.last_id
        if piece and piece.row is row:
            piece = piece._replace(last_id=last_id)
        else:
            if piece:
                yield piece
            piece = Piece(at, last_id, row)
        at = last_id + 1
        while speaking and speaking[0][1].last_id < at:
            heapq.heappop(speaking)
    if piece:
        yield piece


def _timed(pieces: Sequence[Piece]) -> Iterator[Row]:
    """The pieces as rows. Where a row was cut, the times are those of the row that goes on there, as far as they can
    be."""
    for number, (first_id, last_id, row) in enumerate(pieces):
        start_us, end_us = row.start_us, row.end_us
        if first_id > row.first_id:
            start_us = _within(row, pieces[number - 1].row.end_us, start_us)
        if last_id < row.last_id and end_us is not None:
            end_us = _within(row, pieces[number + 1].row.start_us, end_us)
        yield Row(first_id, last_id, start_us, end_us, row.rank)


def _within(row: Row, time_us: int | None, otherwise: int) -> int:
    if time_us is None:
        return otherwise
    return max(row.start_us, time_us if row.end_us is None else min(row.end_us, time_us))
