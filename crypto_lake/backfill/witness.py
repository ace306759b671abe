"""The venue as a witness: rows that are asked for by their ids over REST, and which ids it thereby says it has not."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlencode

import polars as pl

from crypto_lake.backfill.findings import BOTH, DUMP, NEITHER, NOBODY, OURS
from crypto_lake.connections.rest import Rest
from crypto_lake.models import Dataset
from crypto_lake.models.frame import RESPONSE, Records
from crypto_lake.processors.compare import compare
from crypto_lake.processors.decode import Refused, decode, pages
from crypto_lake.processors.quality import Checks
from crypto_lake.processors.sequence import INTERVALS
from crypto_lake.processors.shape import shape

# Of a minute's request weight: a recorder at the same address needs the rest.
SHARE: Final = 0.5

Stretch = tuple[int, int]  # the first and the last id


@dataclass(frozen=True, slots=True)
class Heard:
    """A page: its rows as rows of the table, what was no row, and the ids of which the venue gave all that it has."""

    rows: pl.DataFrame
    spans: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=INTERVALS))
    refused: list[Refused] = field(default_factory=list)

    @property
    def last_id(self) -> int:
        """The highest id in the page; -1 if there is none."""
        highest = self.spans["last_id"].max()
        return highest if isinstance(highest, int) else -1


def stretches(wanted: Iterable[Stretch], at_most: int) -> list[Stretch]:
    """Neighbours joined as far as one page of `at_most` rows reaches: a page of one row costs as much as a full one."""
    found: list[Stretch] = []
    for first, last in sorted(wanted):
        if found and last - found[-1][0] + 3 <= at_most:  # with the rows on both sides
            found[-1] = found[-1][0], max(found[-1][1], last)
        else:
            found.append((first, last))
    return found


async def ask(rest: Rest, dataset: Dataset, venue: str, symbol: str, stretch: Stretch) -> AsyncIterator[Heard]:
    """Page by page what the venue has of these ids, with the rows on both sides. Raises `SourceError`."""
    # Between two rows that are there, what is not there is nowhere.
    at, last = max(0, stretch[0] - 1), stretch[1]
    while at <= last:
        heard = await _page(rest, dataset, venue, symbol, at, last)
        yield heard
        if heard.last_id <= at:
            return
        at = heard.last_id


async def _page(rest: Rest, dataset: Dataset, venue: str, symbol: str, at: int, last: int) -> Heard:
    poll = dataset.poll
    assert poll is not None
    # To the row behind the last one, and always more than the row that it begins with.
    params = {"symbol": symbol, poll.from_id: str(at), "limit": str(min(poll.at_most, last - at + 2))}
    request = poll.requests[venue]
    answer = await rest.get(venue, request.path, params, weight=request.weight, share=SHARE)
    origin = f"{venue} {request.path}?{urlencode(params)}".encode()
    return _heard(dataset, Records(0, [RESPONSE], [origin], [answer.received_us], [answer.body]))


def _heard(dataset: Dataset, records: Records) -> Heard:
    decoded = decode(dataset, records)
    if decoded.frame.is_empty():
        return Heard(shape(dataset, decoded.frame), refused=decoded.refused)
    spans = [(*page, None, None) for page in pages(dataset, records, decoded.frame)]
    rows = shape(dataset, decoded.frame)
    unfit = Checks(dataset).check(rows, found_us=records.received_us[0]).refused
    refused = [_refused(rows, place, reason, records.received_us[0]) for place, reason in unfit]
    places = [place for place, _ in unfit]
    fit = rows.with_row_index("place").filter(~pl.col("place").is_in(places)).drop("place") if places else rows
    return Heard(fit, pl.DataFrame(spans, schema=INTERVALS, orient="row"), [*decoded.refused, *refused])


def _refused(rows: pl.DataFrame, place: int, reason: str, received_us: int) -> Refused:
    row = rows[[place]]
    return Refused(row["venue"][0], reason, row.write_ndjson().strip().encode(), received_us, row["symbol"][0])


def opinions(dataset: Dataset, ours: pl.DataFrame, theirs: pl.DataFrame, heard: Heard) -> list[str]:
    """With whom REST agrees about each pair of rows; where `theirs` is empty, the official file has none of them."""
    if ours.is_empty():
        return []
    own = _says(dataset, ours, heard)
    if theirs.is_empty():
        return [{SAME: OURS, ABSENT: DUMP, OTHER: NEITHER}.get(each, NOBODY) for each in own]
    return [_verdict(mine, other) for mine, other in zip(own, _says(dataset, theirs, heard), strict=True)]


SAME, OTHER, ABSENT, SILENT = "same", "other", "absent", "silent"


def _verdict(mine: str, other: str) -> str:
    if SILENT in (mine, other):
        return NOBODY
    if mine == other:
        return BOTH if mine == SAME else NEITHER
    return OURS if mine == SAME else DUMP if other == SAME else NEITHER


def _says(dataset: Dataset, rows: pl.DataFrame, heard: Heard) -> list[str]:
    """Of each row whether REST has the same one, another one under its key, none, or has not been asked."""
    key, found = list(dataset.key), compare(dataset, rows, heard.rows)
    own = pl.col(str(dataset.sequence))
    within = [own.is_between(first, last) for first, last in heard.spans.select("first_id", "last_id").iter_rows()]
    is_in_page = pl.any_horizontal(within) if within else pl.lit(value=False)
    said = (
        rows.select(*key)
        .join(found.only_ours.select(key).with_columns(is_absent=True), on=key, how="left", maintain_order="left")
        .join(found.ours.select(key).with_columns(is_other=True), on=key, how="left", maintain_order="left")
        .select(
            pl.when(~is_in_page)
            .then(pl.lit(SILENT))
            .when("is_absent")
            .then(pl.lit(ABSENT))
            .when("is_other")
            .then(pl.lit(OTHER))
            .otherwise(pl.lit(SAME))
        )
    )
    return said.to_series().to_list()
