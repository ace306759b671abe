"""Yahoo's charts on loopback: generated bars, the same for the same seed, and a ledger of the true ones."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock_time
from hashlib import blake2b
from math import sin
from time import time
from typing import Any, Final
from zoneinfo import ZoneInfo

import msgspec

MINUTE_S: Final = 60
DAY_S: Final = 86_400
LENGTHS_S: Final = {"1m": MINUTE_S, "1d": DAY_S}
# What one question may ask for, and how far back (PROTOCOLS F).
MOST_S: Final = {"1m": 8 * DAY_S}
REACH_S: Final = {"1m": 30 * DAY_S}
FIRST_DAY: Final = date(1970, 1, 5)
NOT_FOUND: Final = ("Not Found", "No data found, symbol may be delisted")


@dataclass(frozen=True, slots=True)
class Listed:
    """A symbol, with the hours of its exchange (none: around the clock) on weekdays or on all days."""

    symbol: str
    kind: str
    price: float
    zone: str = "America/New_York"
    opens: clock_time = clock_time(9, 30)
    closes: clock_time | None = clock_time(16, 0)
    rests_at_weekends: bool = True
    has_volume: bool = True
    since: date = FIRST_DAY


LISTED: Final = (
    Listed("AAPL", "EQUITY", 180.0),
    Listed("MSFT", "EQUITY", 410.0),
    Listed("^GSPC", "INDEX", 5_200.0, has_volume=False),
    Listed("BTC-USD", "CRYPTOCURRENCY", 64_000.0, "UTC", clock_time(0), None, rests_at_weekends=False),
    Listed("EURUSD=X", "CURRENCY", 1.08, "Europe/London", clock_time(0), None, has_volume=False),
)


@dataclass(frozen=True, slots=True)
class TrueBar:
    """A bar as it is when it is over; `stamp_s` is how an answer stamps it (seconds since 1970)."""

    symbol: str
    stamp_s: int
    begin_s: int
    end_s: int
    open: float
    high: float
    low: float
    close: float
    volume: float | None


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that was answered with a chart."""

    symbol: str
    timeframe: str
    since_s: int
    until_s: int


class Quotes:
    """Charts of made-up prices. `now_s` is the exchanges' time; of all intervals `null_share` have no trade.

    `asked` has the questions; what is in `revised` (by symbol and stamp) is told with this close from then on.
    """

    def __init__(
        self,
        listed: Sequence[Listed] = LISTED,
        *,
        seed: int = 1,
        null_share: float = 0.03,
        now_s: Callable[[], float] = time,
    ) -> None:
        self.listed = {each.symbol: each for each in listed}
        self.now_s, self.asked = now_s, list[Asked]()
        self.revised: dict[tuple[str, int], float] = {}
        self._seed, self._null_share = seed, null_share
        # They are asked for again and again, and are always the same.
        self._made: dict[tuple[str, int, int], tuple[TrueBar, bool]] = {}

    def true_bars(self, symbol: str, timeframe: str, since_s: int, until_s: int) -> list[TrueBar]:
        """The bars stamped from `since_s` on and before `until_s` that were traded, and over before the last trade."""
        listed = self.listed[symbol]
        now_s = _last_trade(listed, int(self.now_s()))
        bars = self._bars(listed, timeframe, since_s, until_s)
        return [bar for bar, is_null in bars if bar.end_s <= now_s and not is_null]

    def answer(self, symbol: str, query: Mapping[str, str]) -> tuple[int, bytes]:
        """Status and body of an answer, as Yahoo gives it now."""
        listed = self.listed.get(symbol)
        if listed is None:
            return 404, _fault(*NOT_FOUND)
        timeframe, now_s = query.get("interval", "1d"), self.now_s()
        try:
            since_s, until_s = int(query["period1"]), int(query["period2"])
        except (KeyError, ValueError):
            return 422, _fault("Unprocessable Entity", "period1 and period2 are needed here")
        if refusal := _refusal(timeframe, since_s, until_s, now_s):
            return 422, _fault("Unprocessable Entity", refusal)
        if until_s <= _second(listed, listed.since):
            return 400, _fault("Bad Request", f"Data doesn't exist for startDate = {since_s}, endDate = {until_s}")
        self.asked.append(Asked(symbol, timeframe, since_s, until_s))
        return 200, self._chart(listed, timeframe, since_s, until_s, int(now_s))

    def _chart(self, listed: Listed, timeframe: str, since_s: int, until_s: int, now_s: int) -> bytes:
        traded_s = _last_trade(listed, now_s)
        meta = {
            "currency": "USD",
            "symbol": listed.symbol,
            "instrumentType": listed.kind,
            "exchangeTimezoneName": listed.zone,
            "regularMarketTime": traded_s,
            "dataGranularity": timeframe,
            "validRanges": ["1d", "5d", "1mo", "max"],
        }
        bars = self._bars(listed, timeframe, since_s, until_s)
        rows = [self._row(bar, is_null, traded_s) for bar, is_null in bars if bar.stamp_s <= traded_s]
        if rows:
            # The price of the last trade stands behind the bars, whatever was asked for.
            price = self._price(listed, traded_s)
            rows.append((traded_s, price, price, price, price, 0.0 if listed.has_volume else None))
        return _body(meta, rows)

    def _row(self, bar: TrueBar, is_null: bool, now_s: int) -> tuple[float | None, ...]:
        """A bar that is not over is told with what was traded until now."""
        if is_null:
            return bar.stamp_s, None, None, None, None, None
        close = self.revised.get((bar.symbol, bar.stamp_s), bar.close)
        volume = bar.volume
        if bar.end_s > now_s:
            close, volume = (bar.open + bar.close) / 2, None if bar.volume is None else bar.volume // 2
        return bar.stamp_s, bar.open, bar.high, bar.low, close, volume

    def _bars(self, listed: Listed, timeframe: str, since_s: int, until_s: int) -> Iterator[tuple[TrueBar, bool]]:
        """The bars, and whether nothing was traded."""
        for interval in _intervals(listed, timeframe, since_s, until_s):
            name = listed.symbol, interval[1], interval[2]
            if name not in self._made:
                is_null = self._draw(listed.symbol, interval[0], "null") < self._null_share
                self._made[name] = self._bar(listed, *interval), is_null
            yield self._made[name]

    def _bar(self, listed: Listed, stamp_s: int, begin_s: int, end_s: int) -> TrueBar:
        first, last = self._price(listed, begin_s), self._price(listed, end_s - 1)
        above, below, size = (1 + self._draw(listed.symbol, begin_s, what) / 500 for what in ("high", "low", "size"))
        volume = float(int((size - 1) * 1e6)) if listed.has_volume else None
        high, low = max(first, last) * above, min(first, last) / below
        return TrueBar(listed.symbol, stamp_s, begin_s, end_s, first, high, low, last, volume)

    def _price(self, listed: Listed, second: int) -> float:
        wave = 1 + 0.05 * sin(second / 400_000) + 0.002 * sin(second / 900)
        return listed.price * wave * (1 + self._draw(listed.symbol, second, "price") / 2_000)

    def _draw(self, *about: object) -> float:
        """From 0 to 1, always the same."""
        text = f"{self._seed} {about}"
        return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def _intervals(listed: Listed, timeframe: str, since_s: int, until_s: int) -> Iterator[tuple[int, int, int]]:
    """Stamp, begin and end of the intervals that are stamped in a time, in which the exchange is open."""
    day = max(listed.since, datetime.fromtimestamp(since_s, UTC).date() - timedelta(days=1))
    while day <= datetime.fromtimestamp(until_s, UTC).date() + timedelta(days=1):
        if session := _session(listed, day):
            opens_s, closes_s = session
            if timeframe == "1d":
                intervals = [(opens_s, _second(listed, day), _second(listed, day + timedelta(days=1)))]
            else:
                stamps = range(opens_s, closes_s, LENGTHS_S[timeframe])
                intervals = [(at, at, at + LENGTHS_S[timeframe]) for at in stamps if since_s <= at < until_s]
            yield from (each for each in intervals if since_s <= each[0] < until_s)
        day += timedelta(days=1)


def _session(listed: Listed, day: date) -> tuple[int, int] | None:
    """The first second of the exchange's day and the first one behind it; None when it is closed."""
    if listed.rests_at_weekends and day.weekday() >= 5:
        return None
    opens_s = _second(listed, day, listed.opens)
    if listed.closes is None:
        return opens_s, _second(listed, day + timedelta(days=1))
    return opens_s, _second(listed, day, listed.closes)


def _second(listed: Listed, day: date, at: clock_time = clock_time(0)) -> int:
    return int(datetime.combine(day, at, ZoneInfo(listed.zone)).timestamp())


def _last_trade(listed: Listed, now_s: int) -> int:
    """Now, or the end of the session before."""
    day = datetime.fromtimestamp(now_s, ZoneInfo(listed.zone)).date()
    while not (session := _session(listed, day)) or session[0] > now_s:
        day -= timedelta(days=1)
    return min(now_s, session[1])


def _refusal(timeframe: str, since_s: int, until_s: int, now_s: float) -> str:
    """Why there is no such chart; empty when there is."""
    if timeframe not in LENGTHS_S:
        return f"Invalid input - interval={timeframe} is not supported."
    if since_s >= until_s:
        return f"Invalid input - start date cannot be after end date. startDate = {since_s}, endDate = {until_s}"
    if timeframe in MOST_S and until_s - since_s > MOST_S[timeframe]:
        return f"{timeframe} data not available for startTime={since_s} and endTime={until_s}. Only 8 days worth."
    if timeframe in REACH_S and since_s < now_s - REACH_S[timeframe]:
        return f"{timeframe} data not available for startTime={since_s}. It must be within the last 30 days."
    return ""


def _fault(code: str, description: str) -> bytes:
    return msgspec.json.encode({"chart": {"result": None, "error": {"code": code, "description": description}}})


def _body(meta: Mapping[str, Any], rows: Sequence[tuple[float | None, ...]]) -> bytes:
    stamps: dict[str, Any] = {"timestamp": [row[0] for row in rows]} if rows else {}
    names = ("open", "high", "low", "close", "volume")
    quote = {name: [row[at] for row in rows] for at, name in enumerate(names, 1)} if rows else {}
    series = {"meta": meta, **stamps, "indicators": {"quote": [quote]}}
    return msgspec.json.encode({"chart": {"result": [series], "error": None}})
