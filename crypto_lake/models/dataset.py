"""What a dataset is: its table's columns and key, and every road that leads into the table."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

import polars as pl
from msgspec import Meta, Struct

# Times are of a sane century (a perpetual's delivery date is 2100-12-25), since a time chooses the partition that a row
# goes to. They come in milliseconds or, from spot when it is asked, in microseconds: the size of the number tells.
EARLIEST_US: Final = 1_230_768_000_000_000
LATEST_US: Final = 4_133_980_800_000_000

# Wire types: what a message must hold in a field before anything is made of it. A type has one range: seconds and
# nanoseconds are refused by it, what lies between the two units when a column is made.
Instant = Annotated[int, Meta(ge=EARLIEST_US // 1000, le=LATEST_US)]
InstantOrZero = Annotated[int, Meta(ge=0, le=LATEST_US)]
Id = Annotated[int, Meta(ge=-1, le=2**63 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
# Prices and quantities are strings on the wire; a number in their place is a change of format that we want to see.
DecimalText = Annotated[str, Meta(max_length=40)]
Symbol = Annotated[str, Meta(min_length=1, max_length=40)]

TIME: Final = pl.Datetime("us", "UTC")
LEVELS: Final = pl.List(pl.Struct({"price": pl.Float64, "quantity": pl.Float64}))


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its type, and in one line what stands in it, with its unit."""

    name: str
    dtype: pl.DataType
    meaning: str
    nullable: bool = False


def price(name: str, meaning: str, *, nullable: bool = False) -> Column:
    """A price or another decimal of the venue, as Float64."""
    return Column(name, pl.Float64(), meaning, nullable)


def time(name: str, meaning: str, *, nullable: bool = False) -> Column:
    """An instant: microseconds, UTC."""
    return Column(name, TIME, meaning, nullable)


def integer(name: str, meaning: str, *, nullable: bool = False) -> Column:
    """An id or a count, Int64."""
    return Column(name, pl.Int64(), meaning, nullable)


def text(name: str, meaning: str, *, nullable: bool = False) -> Column:
    """A word or a text."""
    return Column(name, pl.String(), meaning, nullable)


def flag(name: str, meaning: str, *, nullable: bool = False) -> Column:
    """True or false."""
    return Column(name, pl.Boolean(), meaning, nullable)


def levels(name: str, meaning: str) -> Column:
    """Price levels of one side of a book, a list of struct{price, quantity}."""
    return Column(name, LEVELS, meaning)


VENUE = text(
    "venue",
    "binance-futures (USD-M), binance (spot), binance-delivery (COIN-M), us-stocks, us-options, us-indices, crypto, "
    "forex",
)
SYMBOL = text("symbol", "as the venue writes it: Binance upper case, maybe not ASCII; tickers of stocks as they are")
MARKET_COLUMNS = (
    VENUE,
    SYMBOL,
    time("time", "the venue's own time of the fact, UTC"),
    time("received_time", "when it reached us, our clock; null when backfilled", nullable=True),
    text("source", "live, rest, dump, flatfile or derived"),
)
# What the symbol of an option says; null of everything else. Columns for filters.
OPTION_COLUMNS = (
    text("underlying", "of an option: the root of its symbol", nullable=True),
    Column("expiry", pl.Date(), "of an option: the last day on which it can be exercised", nullable=True),
    text("right", "of an option: C (call) or P (put)", nullable=True),
    price("strike", "of an option: quote units per unit of the underlying", nullable=True),
)
DATE = Column("date", pl.Date(), "UTC date; the partition column")


@dataclass(frozen=True, slots=True)
class Stream:
    """A venue's stream of a dataset. `name` holds {symbol} and maybe {speed}; `every` is the stream of all symbols."""

    route: str
    name: str
    every: str | None = None


@dataclass(frozen=True, slots=True)
class Live:
    """The road from a WebSocket: which stream on which venue, and what a message of it must look like.

    The attributes of `event` carry the table's column names, so the type is also the mapping. A busy stream that is
    silent is dead; a quiet one is judged by a `pulse`, a stream that always speaks on the same route. A stream that has
    not spoken `first_word_s` after its subscription is taken for dead; None: it may be quiet for ever. `refuse` says
    (by reason) which well-formed events are no row of this table.
    """

    streams: Mapping[str, Stream]
    event: type[Struct]
    is_busy: bool = True
    pulse: str | None = None
    first_word_s: float | None = 30.0
    refuse: Mapping[str, pl.Expr] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """A REST request of a venue; `weight` is what one call costs of the venue's budget (PROTOCOLS C.2)."""

    path: str
    weight: int
    params: Mapping[str, str] = field(default_factory=dict)
    # How far back it answers; none: to the beginning.
    reach_s: float | None = None


@dataclass(frozen=True, slots=True)
class Poll:
    """The road from REST: the request per venue, and what the body (or each element of it) must look like.

    With `from_id`, the parameter that names the first id wanted, missing rows can be asked for; `at_most` per request.
    """

    requests: Mapping[str, Request]
    body: type[Struct]
    from_id: str = ""
    at_most: int = 0


Period = Literal["monthly", "daily"]
# Where a table stands between what comes in and what goes out. `landing` are files that are no table yet, `bronze` is
# what was received and what was noted of receiving it, `silver` is made of that, `gold` is taken out of the lake.
Layer = Literal["landing", "bronze", "silver", "gold"]


@dataclass(frozen=True, slots=True)
class Archive:
    """A kind of official file (PROTOCOLS D.2, D.5): `type` is its folder, one ZIP with one CSV per symbol and period.

    `columns` are those of the CSV in order, each with the table's name for it, or "" where it is left out. With
    `intervals` (of klines) the interval is one more folder, and stands in the file's name instead of the type.
    `beside` is another file of the same symbol and period that knows more of the same rows, by their time. Of some
    files the folder is named after the pair (BTCUSD) rather than after the symbol (BTCUSD_PERP).
    """

    type: str
    columns: Mapping[str, str]
    periods: tuple[Period, ...] = ("monthly", "daily")
    intervals: tuple[str, ...] = ()
    beside: "Archive | None" = None
    is_by_pair: bool = False


@dataclass(frozen=True, slots=True)
class Dump:
    """The road from official files: the kind of file per venue, and what every row of this road says."""

    archives: Mapping[str, Archive]
    says: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FlatKind:
    """A kind of flat file (PROTOCOLS E.3): one CSV a day with all tickers of a `venue`.

    `columns` are those of the CSV that are wanted, each with the table's name for it; the header says where they are.
    `says` is what every row of this road says; `timeframe` is that of bars, "" of other rows. `calendar` is the one
    that tells on which days there should be a file, `zone` the one in which the day of a file is counted.
    """

    venue: str
    columns: Mapping[str, str]
    says: Mapping[str, Any] = field(default_factory=dict)
    timeframe: str = ""
    calendar: str = "XNYS"
    zone: str = "America/New_York"


@dataclass(frozen=True, slots=True)
class Charts:
    """The road from Yahoo's charts (PROTOCOLS F), which are asked for by symbol; what every row of this road says."""

    venues: tuple[str, ...]
    says: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chain:
    """The columns by which an event says what it follows: it holds the ids `first` to `last`, and comes after
    `previous` (or, where that is null, after `first` - 1). Rows with `apart` are no links of it."""

    first: str
    last: str
    previous: str
    apart: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """A table and the roads into it; `flat` are the kinds of flat files by their folder in the bucket.

    `key` says which rows are the same row. `order` is the column of the key that rises within `within`: a row above
    everything seen there is new without a look into the table. `derived` columns are computed, whatever the road.
    `is_fillable` says whether rows that were missed can still be had, from REST or from official dumps. `sacrifice` is
    where it stands when there is more than can be kept: 1 is given up first, 2 next, 0 never.
    """

    name: str
    meaning: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    order: str | None = None
    within: tuple[str, ...] = ("venue", "symbol")
    z_order: tuple[str, ...] = ("symbol", "time")
    partition: str = "time"
    sequence: str | None = None
    chain: Chain | None = None
    is_fillable: bool = False
    sacrifice: int = 0
    live: Live | None = None
    poll: Poll | None = None
    dump: Dump | None = None
    flat: Mapping[str, FlatKind] = field(default_factory=dict)
    charts: Charts | None = None
    derived: Mapping[str, pl.Expr] = field(default_factory=dict)
    layer: Layer = "bronze"

    @property
    def by_file(self) -> frozenset[str]:
        """The venues that come in flat files: they are covered file by file, and none of their ids says that one is
        missing."""
        return frozenset(kind.venue for kind in self.flat.values())

    @property
    def is_derived(self) -> bool:
        """Whether its rows are made of those of other tables alone: what it lacks is what these lack."""
        return not (self.live or self.poll or self.dump or self.flat or self.charts)

    @property
    def is_retold(self) -> bool:
        """Whether the venue may tell a row again under its key at a later time, and so maybe on the next day."""
        return self.sequence is None and self.order is not None and self.schema[self.order] == pl.Int64

    def is_sampled(self, venue: str) -> bool:
        """Whether a venue's archives have a row per interval of what comes live more often."""
        archive = self.dump.archives.get(venue) if self.dump else None
        return archive is not None and bool(archive.intervals) and "timeframe" not in self.schema

    def silent(self, *said: Iterable[str]) -> frozenset[str]:
        """The columns that are null on a road that says only these, and those that are computed."""
        known = {*self.derived, *self.key, *(name for names in said for name in names)}
        return frozenset(each.name for each in self.columns if each.nullable and each.name not in known)

    def column(self, name: str) -> Column:
        """The column of that name."""
        return next(column for column in self.columns if column.name == name)

    @property
    def schema(self) -> dict[str, pl.DataType]:
        """Column names and types in the table's order."""
        return {column.name: column.dtype for column in self.columns}


def market(name: str, meaning: str, *columns: Column, key: tuple[str, ...], **rest: Any) -> Dataset:
    """A dataset of market rows: the columns that all of them have, its own, and the date."""
    return Dataset(name, meaning, (*MARKET_COLUMNS, *columns, DATE), key=key, **rest)
