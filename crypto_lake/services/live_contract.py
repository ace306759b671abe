"""What the daemon and the process of the live bars say to each other: an order, then questions; news come back."""

from msgspec import Struct

from crypto_lake.features.live_bars import Late, LiveBar


class LiveOrder(Struct):
    """Which journal of which dataset is followed, and which bars its trades make (lengths in µs)."""

    journal: str
    dataset: str
    timeframes: dict[str, int]
    late: Late
    lateness_us: int


class Ask(Struct):
    """What is under way; the answer has the same number."""

    nth: int
    venue: str
    symbol: str
    timeframe: str
    at_most: int


class Closed(Struct, tag=True):
    """A bar is closed, or revised; `received_us` is when the trade came that did it, None when that is long ago."""

    venue: str
    symbol: str
    bar: LiveBar
    received_us: int | None


class TooLate(Struct, tag=True):
    """A trade is in no bar: it came when its interval was closed."""

    venue: str
    symbol: str
    trade_id: int
    time_us: int
    is_new: bool


class Outdated(Struct, tag=True):
    """A trade belongs to a bar that is not kept here any more: only the table will have it right."""

    venue: str
    symbol: str
    timeframe: str
    time_us: int


class UnderWay(Struct, tag=True):
    """The answer to a question: bars that are not closed, the newest last; None when no trade of the symbol came."""

    nth: int
    bars: list[LiveBar] | None


LiveReport = Closed | TooLate | Outdated | UnderWay
