"""What the daemon and its worker say to each other: one order in, then one report a line."""

from typing import Final

from msgspec import Struct

from crypto_lake.config import LatePolicy, SinkFormat
from crypto_lake.models.symbol import Named

# Decoding is one thread's work, and two cores are shared with the sockets.
THREADS: Final = "1"


class BarOrder(Struct):
    """Which bars of the table `bar` are kept up to date, and what becomes of late trades (see `features.live_bars`)."""

    source: str
    timeframes: list[str]
    late: LatePolicy
    lateness_us: int


class Order(Struct):
    """What a worker is to do."""

    root: str
    sink: SinkFormat
    journals: str
    collector: str
    datasets: list[str]
    commit_every_s: float
    batch_messages: int
    # Whether a store that is away at the start is waited for: a first start would be a mistake of the settings.
    has_recorded: bool = False
    last_drain_s: float = 30.0
    bars: BarOrder | None = None


class Ready(Struct, tag=True):
    """The tables can be written. `symbols` is what the table `symbol` says, by venue; None if it cannot be read now."""

    symbols: dict[str, Named] | None = None


class Symbols(Struct, tag=True):
    """The table `symbol` has changed: what it says now, by venue."""

    venues: dict[str, Named]


class Refusal(Struct, tag=True):
    """The user has to change something first."""

    reason: str


class Batch(Struct, tag=True):
    """A batch is in the tables."""

    dataset: str
    records: int
    rows: int
    duplicates: int
    rejected: int
    position: int
    seconds: float
    holes: int = 0
    findings: int = 0


class Missing(Struct):
    """Ids that a table lacks (both inclusive), and the time of the rows on either side (µs since 1970)."""

    venue: str
    symbol: str
    first_id: int
    last_id: int
    start_us: int
    end_us: int | None


class Holes(Struct, tag=True):
    """What a table lacks: all that may still be had, or where nothing can be had what was just found to be missing."""

    dataset: str
    missing: list[Missing]


class Trouble(Struct, tag=True):
    """The store did not take a batch of this dataset; it will be tried again."""

    dataset: str
    reason: str


class BarsMade(Struct, tag=True):
    """The table `bar` is up to date with the trades: bars that are new, and that are there once more."""

    added: int
    revised: int
    findings: int
    seconds: float
    notes: list[str]


class BarsNotMade(Struct, tag=True):
    """It is not; it will be tried again, and no trade is lost by it."""

    reason: str


class Round(Struct, tag=True):
    """Every dataset was looked at; `positions` is how far each is."""

    positions: dict[str, int]
    rss_bytes: int


Report = Ready | Symbols | Refusal | Batch | Holes | Trouble | BarsMade | BarsNotMade | Round
