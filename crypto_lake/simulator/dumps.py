"""The official files of a market: which there are, when they are published, and what is in them."""

import asyncio
import time
import zlib
from collections import OrderedDict, deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Final, Literal, NamedTuple, Self

from crypto_lake.models.bucket import CHECKSUM, DAY, File, file_at
from crypto_lake.models.dataset import Period
from crypto_lake.simulator.dumps_kept import SETTLED_MS, Series, Text
from crypto_lake.simulator.dumps_rows import header_of
from crypto_lake.simulator.dumps_zip import Archive, Source, Variant, etag_of, stem_of, zipped
from crypto_lake.simulator.faulty_files import FaultyFiles
from crypto_lake.simulator.generated import GeneratedMarket
from crypto_lake.simulator.market import Market
from crypto_lake.simulator.scenario import Fault

Publish = Literal["closed", "all"]

# Of all other types there are both (PROTOCOLS D.2).
_PERIODS: Final[Mapping[str, tuple[Period, ...]]] = {
    "metrics": ("daily",),
    "liquidationSnapshot": ("daily",),
    "fundingRate": ("monthly",),
}
_BOTH: Final[tuple[Period, ...]] = ("daily", "monthly")
_ZIP: Final = b"PK"
# The dates of HTTP have no fractions of a second.
_DATE_STEP_MS: Final = 1000
# Archives are made when they are asked for, and made again when they have had to go.
MOST_MADE_BYTES: Final = 256 * 2**20
MOST_SERVED: Final = 200_000


@dataclass(frozen=True, slots=True)
class Stored:
    """An object of the bucket as it is handed out."""

    body: bytes
    etag: str  # as in the header, with its quotes
    modified_ms: int


class Request(NamedTuple):
    """A question to the bucket and what it was answered."""

    method: str
    path: str  # of a listing: "?" and its query
    status: int
    range: str | None = None  # as it was asked for


class Dumps:
    """The bucket of a market's official files, in the layout of Binance's.

    `publish="closed"`: a day is there once the market's clock has passed its end, and `publish_after_s` more; a month
    once its last day is. `"all"`: whatever has happened so far is there, of the running day too, and grows. Without
    `monthly` there are no files of months; `missing_days` are in none of them, though they have files of their own.
    What was told before a market was made to keep it (`GeneratedMarket(..., dumps=True)`) is in no file. Files can be
    added to those of the market, or served without one.
    """

    def __init__(
        self,
        *,
        publish: Publish = "closed",
        publish_after_s: float = 0.0,
        monthly: bool = True,
        missing_days: Collection[date] = (),
    ) -> None:
        self._publish, self._after_ms = publish, int(publish_after_s * 1000)
        self._monthly, self._missing_days = monthly, frozenset(missing_days)
        self._market: Market | None = None
        self._given: dict[str, Source] = {}
        self._made: OrderedDict[tuple[str, int, Variant], Archive] = OrderedDict()
        self._seen: dict[str, tuple[str, int]] = {}  # path -> ETag, and since when it is the one
        self.faults = FaultyFiles()
        self.served: deque[Request] = deque(maxlen=MOST_SERVED)

    def of(self, market: Market) -> Self:
        """From now on these are the files of this market."""
        self._market = market
        if isinstance(market, GeneratedMarket):
            market.keep()
        return self

    # What is in it

    def paths(self) -> list[str]:
        """The archives that are published, in the order of a listing."""
        return sorted({*self._given, *(file.path for file in self._published())}, key=str.encode)

    def csv(self, path: str) -> bytes:
        """The CSV inside a published archive, with its header, as it is without faults. Raises `KeyError`."""
        return self._sound(path).csv()

    def rows(self, path: str) -> list[str]:
        """The lines of that CSV, without the header and without their ends. Raises `KeyError`."""
        lines = self.csv(path).decode().splitlines()
        return lines if not lines or lines[0][0].isdigit() else lines[1:]

    def add(self, path: str, content: bytes | str, header: str = "") -> None:
        """Publish an archive of one's own, now: a ZIP, or a CSV to be zipped. It takes the place of what was there."""
        body = content.encode() if isinstance(content, str) else content
        first = f"{header}\n".encode() if header else b""
        before = self._given.get(path)
        archive = body if body.startswith(_ZIP) else zipped(stem_of(path), first + body)
        self._given[path] = Source(path, before.version + 1 if before else 0, self._now_ms, given=archive)

    # What goes wrong

    def fail(self, kind: str, pattern: str = "*", *, times: int | None = None, **settings: Any) -> Fault:
        """From now on something is wrong with the files that match, `times` times each or until it is mended.

        Kinds and their settings are those of a scenario: `unavailable` (status, retry_after_s), `slow_download`
        (bytes_per_s), `cut_download` (after_bytes), `wrong_checksum`, `truncated_zip` and `replaced_file` (form),
        `duplicate_csv`, `missing_day` (days, of months only). Patterns are those of a shell, over the whole path.
        Raises `ConfigError` when that makes no sense.
        """
        return self.faults.add(kind, pattern, times=times, **settings)

    def mend(self, fault: Fault) -> None:
        """That is over."""
        self.faults.remove(fault)

    # What it hands out

    async def stored(self, key: str, *, noted: bool = False) -> Stored | None:
        """An archive or its sum as it is now, faults included; None while there is none.

        With `noted` somebody gets it, and what is wrong with it counts as done.
        """
        path = key.removesuffix(CHECKSUM)
        source = self._source(path)
        if source is None:
            return None
        in_it, in_sum = self.faults.of_content(path), self.faults.of_sum(path)
        if noted:
            for each in in_it if key == path else in_sum:
                self.faults.note(each, key)
        variant = self.faults.variant(in_it, path, list(source.days))
        archive = await self._archive(source, variant)
        modified_ms = self._modified_ms(source, archive.etag)
        if key == path:
            return Stored(archive.body, archive.etag, modified_ms)
        summed = archive if variant.is_summed else await self._archive(source, variant._replace(is_truncated=False))
        line = checksum(path, summed.sha256, is_wrong=bool(in_sum))
        return Stored(line, etag_of(line), modified_ms)

    async def _archive(self, source: Source, variant: Variant) -> Archive:
        name = (source.path, source.version, variant)
        if name in self._made:
            self._made.move_to_end(name)
            return self._made[name]
        archive = self._made[name] = await asyncio.to_thread(source.archive, variant)
        while len(self._made) > 1 and sum(len(each.body) for each in self._made.values()) > MOST_MADE_BYTES:
            self._made.popitem(last=False)
        return archive

    def _modified_ms(self, source: Source, etag: str) -> int:
        """When these bytes came to be there; a file that is replaced says so."""
        before = self._seen.get(source.path)
        if before is None:
            since_ms = source.published_ms
        elif before[0] == etag:
            return before[1]
        else:
            since_ms = max(self._now_ms, before[1] + _DATE_STEP_MS)
        self._seen[source.path] = (etag, since_ms)
        return since_ms

    # Where it comes from

    @property
    def _now_ms(self) -> int:
        return self._market.clock_ms if self._market else time.time_ns() // 1_000_000

    def _days_kept(self) -> Mapping[Series, Mapping[date, Text]]:
        """What the market has for files, up to now."""
        if not isinstance(self._market, GeneratedMarket):
            return {}
        self._market.keep_up()
        return self._market.keep().days

    def _published(self) -> Iterator[File]:
        for series, days in self._days_kept().items():
            files = {
                File(*series, period, day if period == "daily" else day.replace(day=1))
                for period in _periods(series.type)
                for day in days
            }
            yield from (file for file in files if self._is_published(file) and self._days_in(file, days))

    def _is_published(self, file: File) -> bool:
        if file.period not in _periods(file.type) or (file.period == "monthly" and not self._monthly):
            return False
        return self._publish == "all" or self._due_ms(file) <= self._now_ms

    def _due_ms(self, file: File) -> int:
        midnight = datetime.combine(file.last + DAY, datetime.min.time(), UTC)
        return int(midnight.timestamp() * 1000) + SETTLED_MS + self._after_ms

    def _source(self, path: str) -> Source | None:
        if path in self._given:
            return self._given[path]
        file = file_at(path)
        if file is None or file.path != path or not self._is_published(file):
            return None
        kept = self._days_kept().get(Series(file.venue, file.type, file.symbol, file.interval), {})
        days = self._days_in(file, kept)
        if not days:
            return None
        return Source(
            path,
            version=sum(kept[day].size_bytes for day in days),
            published_ms=min(self._due_ms(file), self._now_ms),
            header=header_of(file.venue, file.type),
            days={day: kept[day].pieces for day in days},
        )

    def _days_in(self, file: File, kept: Collection[date]) -> list[date]:
        """Of the days that are kept, those that a file is made of."""
        days = sorted(day for day in kept if file.first <= day <= file.last)
        return days if file.period == "daily" else [day for day in days if day not in self._missing_days]

    def _sound(self, path: str) -> Source:
        source = self._source(path)
        if source is None:
            raise KeyError(f"{path} is not published")
        return source


def _periods(what: str) -> tuple[Period, ...]:
    return _PERIODS.get(what, _BOTH)


def checksum(path: str, sha256: str, *, is_wrong: bool = False) -> bytes:
    """What stands beside an archive: one line, of about half of them without a newline at its end."""
    newline = "\n" if zlib.crc32(path.encode()) % 2 else ""
    return f"{sha256[::-1] if is_wrong else sha256}  {path.rpartition('/')[2]}{newline}".encode()
