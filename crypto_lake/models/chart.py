"""Yahoo's charts (PROTOCOLS F): the question for a symbol's bars, and the arrays that answer it."""

from dataclasses import dataclass
from typing import Annotated, Final, Self
from urllib.parse import parse_qs, quote, urlencode

from msgspec import Meta, Struct, field

CHART_PATH: Final = "/v8/finance/chart"
DAY_S: Final = 86_400
# The timeframes that are asked for, in seconds; both exist on all of Yahoo's markets.
CHARTED_S: Final = {"1m": 60, "1d": DAY_S}

# Seconds since 1970, from 1900 to 2100: indices are older than 1970. Milliseconds would be a change of format.
Second = Annotated[int, Meta(ge=-2_208_988_800, le=4_133_980_800)]


@dataclass(frozen=True, slots=True)
class ChartQuestion:
    """The bars of a symbol that begin from `since_s` on and before `until_s` (seconds since 1970)."""

    venue: str
    symbol: str
    timeframe: str
    since_s: int
    until_s: int

    @property
    def path(self) -> str:
        """Where it is asked."""
        return f"{CHART_PATH}/{quote(self.symbol, safe='')}"

    @property
    def params(self) -> dict[str, str]:
        """How it is asked."""
        return {
            "interval": self.timeframe,
            "period1": str(self.since_s),
            "period2": str(self.until_s),
            "includePrePost": "false",
        }

    @property
    def about(self) -> bytes:
        """How the names of all questions about the same bars begin in the journal."""
        asked = urlencode({"symbol": self.symbol, "interval": self.timeframe})
        return f"{self.venue} {CHART_PATH}?{asked}&".encode()

    @property
    def origin(self) -> bytes:
        """Its name in the journal, which says all of it."""
        return self.about + urlencode({"period1": self.since_s, "period2": self.until_s}).encode()

    @classmethod
    def named(cls, origin: bytes) -> Self:
        """The question of that name. Raises `ValueError` when it is none."""
        venue, _, asked = origin.decode().partition(" ")
        said = {name: values[0] for name, values in parse_qs(asked.partition("?")[2]).items()}
        try:
            return cls(venue, said["symbol"], said["interval"], int(said["period1"]), int(said["period2"]))
        except KeyError as missing:
            raise ValueError(f"a question without {missing}") from None


class ChartMeta(Struct, gc=False):
    """What is said of a symbol; `market_s` is the exchange's own time, that of its last trade."""

    symbol: str
    zone: str = field(name="exchangeTimezoneName", default="UTC")
    market_s: Second | None = field(name="regularMarketTime", default=None)
    granularity: str = field(name="dataGranularity", default="")


class Quote(Struct, gc=False):
    """The values of the bars, as long as `timestamp`; null where nothing was traded."""

    open: list[float | None] = []
    high: list[float | None] = []
    low: list[float | None] = []
    close: list[float | None] = []
    volume: list[float | None] = []


class Indicators(Struct):
    """The values, of which there is one set."""

    quote: list[Quote] = []


class Series(Struct):
    """The bars of a symbol; without `timestamp` there are none."""

    meta: ChartMeta
    timestamp: list[Second] = []
    indicators: Indicators = field(default_factory=Indicators)


class Fault(Struct):
    """How Yahoo says no."""

    code: str
    description: str = ""

    @property
    def text(self) -> str:
        """In its own words, on one line."""
        return " ".join(f"{self.code}: {self.description}".split())


class Content(Struct):
    """Bars, or why there are none."""

    result: list[Series] | None = None
    error: Fault | None = None


class Chart(Struct):
    """The body of an answer."""

    chart: Content
