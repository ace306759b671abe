"""`backfill yahoo`: bars out of Yahoo's charts into the table, by the decoder that a recorder uses; it ends by itself.

What is in the table is found by its key and left as it is, so a second run asks again, takes what came since, and
writes nothing twice.
"""

import asyncio
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import polars as pl
import structlog

from crypto_lake.backfill.flow import TOGETHER_DAYS, Progress, Wrong, unless
from crypto_lake.backfill.settle import settle
from crypto_lake.config import ConfigError, Settings, nearest
from crypto_lake.connections import SourceError
from crypto_lake.connections.rest import PATIENCE_S, Answer
from crypto_lake.connections.yahoo import FIRST_PAUSE_S, NoChart, Yahoo
from crypto_lake.models import SIDES
from crypto_lake.models.bar import BAR, YAHOO
from crypto_lake.models.chart import CHARTED_S, ChartQuestion
from crypto_lake.models.dump_file import INGESTED
from crypto_lake.models.frame import RESPONSE, Records
from crypto_lake.models.gap import GAP
from crypto_lake.models.rejected import REJECTED
from crypto_lake.processors.decode import Refused, decode
from crypto_lake.processors.shape import rejected_rows, shape
from crypto_lake.query.span import limits
from crypto_lake.writers import CommitConflict, CommitFailed
from crypto_lake.writers.bulk import Bulk
from crypto_lake.writers.delta import STORE_ERRORS, Lake, reason
from crypto_lake.writers.maintenance import UNCHECKED_COMMITS, shorten_log

log = structlog.get_logger()

DAY: Final = timedelta(days=1)
# One question is about so many days: of minutes Yahoo gives about eight at a time.
ASKED_DAYS: Final = {"1m": 7, "1d": 3650}
# How far back there is anything; days go back to the beginning of the symbol.
REACH_DAYS: Final = {"1m": 30}
# Nothing at Yahoo is older, and a table has a folder for each day.
FIRST_DAY: Final = date(1927, 1, 1)
# Between two questions, unless LAKE_YAHOO_EVERY_S says otherwise.
EVERY_S: Final = 1.0
ATTEMPTS: Final = 4
MARGIN_S: Final = 0.05
# Somebody who adds the very same rows is met again and again only when something is wrong.
CONFLICTS: Final = 10
# What stands in all rows of this road.
SAYS: Final = {"origin": YAHOO, "source": "rest"}
# Added to the midnight that a daily bar bears, it is on the bar's own date in UTC, wherever the exchange is.
NOON: Final = pl.duration(hours=13)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a user asks for: venues with symbols, and both days inside."""

    symbols: tuple[tuple[str, str], ...]
    timeframe: str
    first: date
    last: date

    def spans(self) -> Iterator[tuple[date, date]]:
        """The days of one question each, the last ones first: before a symbol was listed there is an end of asking."""
        last = self.last
        while last >= self.first:
            first = max(self.first, last - (ASKED_DAYS[self.timeframe] - 1) * DAY)
            yield first, last
            last = first - DAY


@dataclass(slots=True)
class Summary:
    """What a backfill did."""

    answers: int = 0
    size: int = 0
    rows: int = 0  # complete bars in the answers
    added: int = 0  # that the table lacked
    refused: int = 0
    ends: list[str] = field(default_factory=list)  # where Yahoo has nothing older
    wrong: list[Wrong] = field(default_factory=list)
    is_stopped: bool = False

    @property
    def is_good(self) -> bool:
        """Whether everything that was asked for was answered."""
        return not (self.wrong or self.is_stopped)


def wanted_of(symbols: str, start: str, end: str | None, timeframe: str, *, now: datetime) -> Wanted:
    """The same in the terms of the plan. Raises `ConfigError` for what there is not, or is out of Yahoo's reach."""
    if timeframe not in CHARTED_S:
        raise ConfigError(f"--timeframe {timeframe}: Yahoo is asked for 1m and 1d{nearest(timeframe, CHARTED_S)}")
    words = tuple(dict.fromkeys(word.strip() for word in symbols.split(",") if word.strip()))
    if not words:
        raise ConfigError("--symbols: name at least one symbol, such as us-stocks:AAPL")
    today = now.date()
    first, last = limits("--start", start)[0], min(today, limits("--end", end)[1] if end else today)
    if first > last:
        behind = f"after --end {end}" if end and first <= today else f"yet to come; today is {today} (UTC)"
        raise ConfigError(f"--start {start} is {behind}")
    named = tuple(map(_symbol, words))
    _check_reach(start, max(first, FIRST_DAY), timeframe, now)
    return Wanted(named, timeframe, max(first, FIRST_DAY), last)


def _symbol(word: str) -> tuple[str, str]:
    assert BAR.charts is not None
    venue, colon, symbol = word.partition(":")
    if not colon or not symbol:
        raise ConfigError(f"--symbols {word}: write the venue in front, such as us-stocks:AAPL or us-indices:^GSPC")
    if venue not in BAR.charts.venues:
        raise ConfigError(f"--symbols {word}: Yahoo has no venue {venue!r}{nearest(venue, BAR.charts.venues)}")
    return venue, symbol


def _check_reach(start: str, first: date, timeframe: str, now: datetime) -> None:
    days = REACH_DAYS.get(timeframe)
    if days is None:
        return
    earliest = (now - days * DAY).date() + DAY
    if first < earliest:
        raise ConfigError(
            f"--start {start}: of {timeframe} bars Yahoo has the last {days} days; begin on {earliest} or later, "
            "or take --timeframe 1d"
        )


async def backfill(
    settings: Settings,
    wanted: Wanted,
    progress: Progress,
    *,
    stop: threading.Event | None = None,
    first_pause_s: float = FIRST_PAUSE_S,
) -> Summary:
    """Takes what is wanted and not yet there. Raises `ConfigError`, `SourceError`, `CommitFailed`."""
    every_s = settings.yahoo_every_s or EVERY_S
    async with Yahoo(settings.yahoo, every_s=every_s, first_pause_s=first_pause_s) as yahoo:
        return await _Run(settings, wanted, progress, yahoo, stop or threading.Event()).whole()


class _Run:
    def __init__(
        self, settings: Settings, wanted: Wanted, progress: Progress, yahoo: Yahoo, stop: threading.Event
    ) -> None:
        self.settings, self.wanted, self.progress, self.yahoo, self.stop = settings, wanted, progress, yahoo, stop
        self.lake = Lake(settings.root)
        self.summary = Summary()
        self._commits = 0
        self._answered: set[date] = set()  # of the symbol that is asked for

    async def whole(self) -> Summary:
        for dataset in (BAR, *SIDES):
            await asyncio.to_thread(self.lake.check, dataset)
        spans = list(self.wanted.spans())
        self.progress.found(len(spans) * len(self.wanted.symbols))
        for venue, symbol in self.wanted.symbols:
            self._answered = set()
            for number, (first, last) in enumerate(spans):
                if self.stop.is_set() or not await self._take(venue, symbol, first, last, is_first=not number):
                    self.progress.found(number - len(spans) + 1)
                    break
            await asyncio.to_thread(self._settle, venue, symbol)
        self.summary.is_stopped = self.stop.is_set()
        return self.summary

    async def _take(self, venue: str, symbol: str, first: date, last: date, *, is_first: bool) -> bool:
        """The bars of these days; whether it is of use to ask for earlier ones of the symbol."""
        path, question = f"{venue}:{symbol} {first} to {last}", self._question(venue, symbol, first, last)
        try:
            answer = await unless(self.stop, self._ask(question))
        except NoChart as error:
            if is_first:
                self._give_up(path, str(error))
            else:
                self.summary.ends.append(str(error))
                self.progress.done(path, INGESTED, "nothing there")
            return False
        if answer is None:
            return False
        self.progress.sized(path, len(answer.body), 0)
        self.progress.fetched(len(answer.body))
        await asyncio.to_thread(self._enter, question, answer, path, first, last)
        return True

    def _question(self, venue: str, symbol: str, first: date, last: date) -> ChartQuestion:
        # Days are stamped with the open of their market, which may be on either side of the UTC day.
        more = DAY if self.wanted.timeframe == "1d" else timedelta()
        return ChartQuestion(venue, symbol, self.wanted.timeframe, _second(first - more), _second(last + DAY + more))

    async def _ask(self, question: ChartQuestion) -> Answer:
        """The answer. A pause that Yahoo wants is kept when it is short, and then it is asked again."""
        for _ in range(ATTEMPTS - 1):
            try:
                return await self.yahoo.ask(question)
            except NoChart:
                raise
            except SourceError as error:
                wait_s = error.retry_after_s or 0.0
                if error.status is None or wait_s > PATIENCE_S:
                    raise
                log.warning("yahoo_refuses", reason=str(error), again_in_s=wait_s)
                await asyncio.sleep(wait_s + MARGIN_S)
        return await self.yahoo.ask(question)

    def _enter(self, question: ChartQuestion, answer: Answer, path: str, first: date, last: date) -> None:
        """An answer into the tables."""
        records = Records(0, [RESPONSE], [question.origin], [answer.received_us], [answer.body])
        decoded = decode(BAR, records)
        self._note(question, decoded.refused)
        self.summary.answers += 1
        self.summary.size += len(answer.body)
        if not decoded.frame.width:
            self._give_up(path, f"{question.venue}:{question.symbol}: {decoded.refused[0].reason}")
            return
        # When a bar reached us says nothing of bars that are asked for days later.
        rows = shape(BAR, decoded.frame).with_columns(received_time=pl.lit(None, BAR.schema["received_time"]))
        if self.wanted.timeframe == "1d":
            rows = rows.filter((pl.col("time") + NOON).dt.date().is_between(first, last))
        added = sum(self._add(question, part) for part in _parts(rows))
        self.summary.rows += rows.height
        self.summary.added += added
        self._answered |= {first + number * DAY for number in range((last - first).days + 1)}
        self.progress.read(rows.height)
        self.progress.done(path, INGESTED, f"{rows.height:,} bars, {added:,} new")

    def _settle(self, venue: str, symbol: str) -> None:
        """The holes that a recorder left in days that were answered for are filled. Raises `CommitFailed`."""
        # A row of `gap` does not say of which bars it is: of those that a recorder with these settings asks for.
        if not self._answered or self.wanted.timeframe != self.settings.yahoo_timeframe:
            return

        def is_taken(name: str, day: date) -> bool:
            return name == symbol and day in self._answered

        how: Any = {"venue": venue, "days": {symbol: self._answered}, "is_taken": is_taken, "now": datetime.now(UTC)}
        try:
            self.lake.add(GAP, settle(self.lake.root, BAR, pl.DataFrame(), **how))
        except STORE_ERRORS as error:
            raise CommitFailed(f"{self.lake.uri(GAP)}: {reason(error)}") from error

    def _give_up(self, path: str, reason: str) -> None:
        log.error("chart_not_taken", path=path, reason=reason)
        self.summary.wrong.append(Wrong(path, reason))
        self.progress.done(path, "failed", reason)

    def _note(self, question: ChartQuestion, refused: Sequence[Refused]) -> None:
        """What fits nothing is set aside, once for the same question with the same misfits."""
        if not refused:
            return
        self.summary.refused += len(refused)
        seen = zlib.crc32(b"".join(each.payload for each in refused))
        self.lake.append_once(REJECTED, rejected_rows(BAR, refused), {f"chart/{question.origin.decode()}": seen})

    def _add(self, question: ChartQuestion, rows: pl.DataFrame) -> int:
        """Puts into the table what it lacks, in one commit; how many that were. Raises `CommitFailed`."""
        for _ in range(CONFLICTS):
            bulk = Bulk(self.lake, BAR)
            try:
                # Behind the look of the bulk: what is added from here on is found when it is committed.
                new = rows.join(self.lake.known(BAR, rows), on=list(BAR.key), how="anti", maintain_order="left")
                if new.is_empty():
                    return 0
                bulk.speak(venue=question.venue, symbol=question.symbol, timeframe=question.timeframe, **SAYS)
                for (day,), some in new.group_by("date", maintain_order=True):
                    assert isinstance(day, date)
                    bulk.add(day, some)
                bulk.commit([])
                self._tidy()
                return new.height
            except CommitConflict:
                continue
            except (OSError, pl.exceptions.PolarsError) as error:
                raise CommitFailed(f"{self.lake.uri(BAR)}: {reason(error)}") from error
            finally:
                bulk.discard()
        raise CommitConflict(f"{BAR.name}: somebody else keeps adding the same rows")

    def _tidy(self) -> None:
        self._commits += 1
        if self._commits % UNCHECKED_COMMITS == 1:
            # Nobody may be recording into this table, and a log without a checkpoint is read from its begin each time.
            shorten_log(self.settings.root, BAR)


def _parts(rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """The rows in pieces of so many days as may share a commit."""
    days = rows["date"].unique().sort()
    for at in range(0, len(days), TOGETHER_DAYS):
        yield rows.filter(pl.col("date").is_in(days[at : at + TOGETHER_DAYS].implode()))


def _second(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


__all__ = ["Summary", "Wanted", "backfill", "wanted_of"]
