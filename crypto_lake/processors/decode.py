"""Bytes to one frame: every message is checked against its dataset's type, misfits are set aside with their bytes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from operator import attrgetter
from typing import Any, Final, Generic, NamedTuple, TypeVar
from urllib.parse import parse_qs, urlsplit

import msgspec
import polars as pl
from msgspec import Struct

from crypto_lake.config import COIN_M, FUTURES
from crypto_lake.models.chart import ChartQuestion
from crypto_lake.models.dataset import EARLIEST_US, LATEST_US, LEVELS, TIME, Dataset
from crypto_lake.models.frame import FRAME, RESPONSE, UNDECODABLE, Records
from crypto_lake.processors.chart import NoBars, bars_in
from crypto_lake.processors.levels import NotLevels, level_lists

# What an event may tell beside the table's columns: its own time, `st`, and the kind of fill.
HELPERS: Final[dict[str, pl.DataType]] = {"event_time": TIME, "market_type": pl.Int64(), "fill": pl.String()}
COIN_M_TYPE: Final = 2  # `st` of a COIN-M row, since 2026-06-30 (PROTOCOLS A.6)
# BTCUSD_PERP, BTCUSD_260925; USD-M deliveries are BTCUSDT_260925.
COIN_M_SYMBOL: Final = r"USD_(PERP|\d{6})$"

# A trade without a price or a quantity is a finding as well (ANALYTICS 5.1).
NULL_FIELD: Final = "null_field"
TRADED: Final = ("price", "quantity")

Event = TypeVar("Event")


class Combined(Struct, Generic[Event], gc=False):
    """The envelope of a combined stream; its name is left, a connection carries one dataset only."""

    data: Event


class Refused(NamedTuple):
    """A message, or an element of one, that does not fit; with the name of a check where one says so (ANALYTICS 5)."""

    venue: str
    reason: str
    payload: bytes
    received_us: int
    symbol: str = ""
    check: str = ""


@dataclass(slots=True)
class Decoded:
    """Typed rows with the table's names, in the order received, and what was set aside.

    `row` is the number of the record that a row came in. `aside` are rows that fit and that a rule refuses.
    """

    frame: pl.DataFrame
    refused: list[Refused] = field(default_factory=list)
    aside: pl.DataFrame = field(default_factory=pl.DataFrame)


@dataclass(slots=True)
class _Events:
    """Events of one type, and beside each the number of the record it came in; `raw` where it was one of many."""

    events: list[Any] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    raw: dict[int, bytes] = field(default_factory=dict)


def decode(dataset: Dataset, records: Records) -> Decoded:
    """The rows in `records`, a frame with the columns of the road it came by and `venue`, `source`, `received_time`.

    Connection records are passed over. The result depends on nothing but `records`.
    """
    decoded = Decoded(pl.DataFrame())
    frames = [
        frame
        for frame in (
            _frames(dataset, records, decoded),
            _responses(dataset, records, decoded.refused),
            _charts(dataset, records, decoded.refused),
        )
        if frame is not None
    ]
    if len(frames) == 2:
        decoded.frame = pl.concat(frames, how="diagonal").sort("row", maintain_order=True)
    elif frames:
        decoded.frame = frames[0]
    decoded.refused += [
        # When it came is lost with it; a position is nanoseconds since 1970, give or take the bytes of its file.
        Refused("", f"the journal is damaged at position {position}", damage, position // 1000)
        for position, damage in records.damaged
    ]
    return decoded


def _frames(dataset: Dataset, records: Records, decoded: Decoded) -> pl.DataFrame | None:
    if dataset.live is None:
        return None
    refused = decoded.refused
    parse = _event_decoder(dataset.live.event)
    found, slow = _Events(rows=[row for row, kind in enumerate(records.kinds) if kind == FRAME]), []
    try:
        found.events = [parse(records.payloads[row]).data for row in found.rows]
    except UNDECODABLE:
        slow = _decode_singly(parse, records, found)
    for row in slow:
        _decode_slowly(dataset.live.event, records, row, found, refused)
    if slow:
        _restore_order(found)
    if not found.events:
        return None
    frame = _columns(dataset, dataset.live.event, found, records, refused)
    frame = frame.with_columns(pl.lit("live").alias("source"))
    return _refuse(frame, dataset.live.refuse, records, decoded)


def _decode_singly(parse: Callable[[bytes], Combined[Any]], records: Records, found: _Events) -> list[int]:
    """One of them is no event of the type: the others are kept, and the rows of the misfits are returned."""
    frames, found.rows, slow = found.rows, [], []
    for row in frames:
        try:
            found.events.append(parse(records.payloads[row]).data)
            found.rows.append(row)
        except UNDECODABLE:
            slow.append(row)
    return slow


def _responses(dataset: Dataset, records: Records, refused: list[Refused]) -> pl.DataFrame | None:
    if dataset.poll is None or RESPONSE not in records.kinds:
        return None
    found, symbols = _Events(), []
    for row, kind in enumerate(records.kinds):
        if kind != RESPONSE:
            continue
        before = len(found.events)
        _decode_body(dataset.poll.body, records, row, found, refused)
        symbols += [_requested_symbol(records.origins[row])] * (len(found.events) - before)
    if not found.events:
        return None
    if not hasattr(dataset.poll.body, "symbol"):
        names = pl.Series("symbol", symbols, pl.String)
        frame = _columns(dataset, dataset.poll.body, found, records, refused, names)
    else:
        frame = _columns(dataset, dataset.poll.body, found, records, refused)
    return frame.with_columns(pl.lit("rest").alias("source"))


def _charts(dataset: Dataset, records: Records, refused: list[Refused]) -> pl.DataFrame | None:
    if dataset.charts is None or RESPONSE not in records.kinds:
        return None
    says = [pl.lit(value).alias(name) for name, value in {"source": "rest", **dataset.charts.says}.items()]
    frames = []
    for row, kind in enumerate(records.kinds):
        if kind != RESPONSE:
            continue
        try:
            found = bars_in(records.payloads[row], ChartQuestion.named(records.origins[row]))
        except (NoBars, ValueError) as error:
            refused.append(_refusal(records, row, str(error), records.payloads[row]))
            continue
        refused += [_refusal(records, row, reason, payload) for reason, payload in found.refused]
        received = pl.lit(records.received_us[row]).cast(TIME).alias("received_time")
        venue = pl.lit(_venue(records.origins[row])).alias("venue")
        frames.append(found.frame.select(venue, pl.all(), received, *says, pl.lit(row, pl.Int64).alias("row")))
    return pl.concat(frames) if frames else None


@cache
def _event_decoder(event: type[Struct]) -> Callable[[bytes], Combined[Any]]:
    return msgspec.json.Decoder(Combined[event]).decode  # type: ignore[valid-type]


@cache
def _decoder(expected: Any) -> Callable[[bytes], Any]:
    return msgspec.json.Decoder(expected).decode


def _decode_slowly(event: type[Struct], records: Records, row: int, found: _Events, refused: list[Refused]) -> None:
    """A message that is no combined event: a raw one, an array of them, an answer to a command, or a misfit."""
    payload = records.payloads[row]
    try:
        content = _decoder(dict[str, msgspec.Raw])(payload).get("data", payload)
    except UNDECODABLE:
        content = payload
    try:
        elements = _decoder(list[msgspec.Raw])(content)
    except UNDECODABLE:
        elements = [content]
    for element in elements:
        try:
            found.events.append(_decoder(event)(element))
        except UNDECODABLE as error:
            if not _is_control(element):
                refused.append(_refusal(records, row, str(error), bytes(element) if len(elements) > 1 else payload))
            continue
        found.rows.append(row)
        if len(elements) > 1:
            found.raw[id(found.events[-1])] = bytes(element)


def _is_control(payload: bytes) -> bool:
    """Words about the connection, not data: `{"result":null,"id":1}` took a command, `serverShutdown` says good-bye."""
    try:
        answer = _decoder(dict[str, Any])(payload)
    except UNDECODABLE:
        return False
    return ("id" in answer and answer.get("result", ...) is None) or answer.get("e") == "serverShutdown"


def _decode_body(body: type[Struct], records: Records, row: int, found: _Events, refused: list[Refused]) -> None:
    payload = records.payloads[row]
    try:
        elements = _decoder(list[msgspec.Raw])(payload)
    except UNDECODABLE:
        elements = [payload]
    for element in elements:
        try:
            found.events.append(_decoder(body)(element))
        except UNDECODABLE as error:
            refused.append(_refusal(records, row, str(error), bytes(element)))
            continue
        found.rows.append(row)
        found.raw[id(found.events[-1])] = bytes(element)


def _restore_order(found: _Events) -> None:
    order = sorted(range(len(found.rows)), key=found.rows.__getitem__)
    found.events = [found.events[place] for place in order]
    found.rows = [found.rows[place] for place in order]


def _requested_symbol(origin: bytes) -> str:
    """The symbol in `binance-futures /fapi/v1/depth?symbol=BTCUSDT`; empty if the request was for all."""
    return _requested(origin).get("symbol", "")


@lru_cache(maxsize=4096)
def _requested(origin: bytes) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(origin.decode().partition(" ")[2]).query).items()}


def pages(dataset: Dataset, records: Records, frame: pl.DataFrame) -> list[tuple[str, str, int, int]]:
    """Of the answers to requests for rows from an id on: venue, symbol, and the first and last id in the answer.

    Between the two the venue has no other rows than those that it sent.
    """
    if dataset.poll is None or not dataset.poll.from_id or RESPONSE not in records.kinds or frame.is_empty():
        return []
    assert dataset.sequence is not None, "rows are asked for by an id that has no holes"
    answered = frame.filter(pl.col("source") == "rest")
    own = pl.col(dataset.sequence)
    ends = answered.group_by("row").agg(pl.col("venue", "symbol").first(), own.min().alias("first"), own.max())
    asked = [dataset.poll.from_id in _requested(records.origins[row]) for row in ends["row"]]
    return ends.filter(pl.Series(asked, dtype=pl.Boolean)).drop("row").rows()


def _refusal(records: Records, row: int, reason: str, payload: bytes) -> Refused:
    return Refused(_venue(records.origins[row]), reason, payload, records.received_us[row])


@lru_cache(maxsize=4096)
def _venue(origin: bytes) -> str:
    return origin.partition(b" ")[0].decode()


@cache
def _attributes(event: type[Struct]) -> dict[str, tuple[Callable[[Any], Any], ...]]:
    """Column names of an event's type with their getters; the fields of a struct inside it count as its own."""
    getters: dict[str, tuple[Callable[[Any], Any], ...]] = {}
    for attribute in msgspec.structs.fields(event):
        inner = attribute.type
        if isinstance(inner, type) and issubclass(inner, Struct):
            for name in (each.name for each in msgspec.structs.fields(inner)):
                getters[name] = (*getters.get(name, ()), attrgetter(f"{attribute.name}.{name}"))
        else:
            getters[attribute.name] = (*getters.get(attribute.name, ()), attrgetter(attribute.name))
    return getters


def _columns(
    dataset: Dataset,
    event: type[Struct],
    found: _Events,
    records: Records,
    refused: list[Refused],
    *extra: pl.Series,
) -> pl.DataFrame:
    """The frame of the events; rows with a value that is no number are refused."""
    wrong: dict[int, str] = {}
    columns = [
        _column(dataset, name, _values(found.events, getters), wrong)
        for name, getters in _attributes(event).items()
        if name != "event"
    ]
    received = records.received_us
    stamps = pl.Series("received_time", [received[row] for row in found.rows], pl.Int64).cast(TIME)
    frame = pl.DataFrame([*columns, *extra, stamps, pl.Series("row", found.rows, pl.Int64)])
    frame = frame.with_columns(_venues(frame, found.rows, records))
    return _without(frame, wrong, found, records, refused)


def _values(events: list[Any], getters: tuple[Callable[[Any], Any], ...]) -> list[Any]:
    values = list(map(getters[0], events))
    for getter in getters[1:]:
        values = [mine if other is None else other for mine, other in zip(values, map(getter, events), strict=True)]
    return values


def _column(dataset: Dataset, name: str, values: list[Any], wrong: dict[int, str]) -> pl.Series:
    dtype = dataset.schema.get(name) or HELPERS[name]
    if dtype == TIME:
        return _times(name, values, wrong)
    if dtype == pl.Float64:
        return _decimals(name, values, wrong, nullable=dataset.column(name).nullable)
    if dtype == LEVELS:
        return _levels(name, values, wrong)
    return pl.Series(name, values, dtype)


def _times(name: str, values: list[Any], wrong: dict[int, str]) -> pl.Series:
    given = pl.Series(name, values, pl.Int64)
    latest = given.max()
    if 0 in (given.min(), latest):
        given = given.replace(0, None)  # the venue's way to say that there is none
    if not isinstance(latest, int) or latest <= LATEST_US // 1000:
        return (given * 1000).cast(TIME)
    # By row: a journal that was begun before the venue was asked for microseconds has both.
    times = given.zip_with(given >= EARLIEST_US, given * 1000)
    outside = (times > LATEST_US).fill_null(False).arg_true()
    wrong.update({row: f"{name}: {given[row]} is no time in milliseconds or microseconds" for row in outside})
    return times.cast(TIME)


def _decimals(name: str, values: list[Any], wrong: dict[int, str], *, nullable: bool) -> pl.Series:
    given = pl.Series(name, values, pl.String)
    if nullable:
        given = given.replace("", None)  # how the venue says that there is none
    numbers = given.cast(pl.Float64, strict=False)
    lost = numbers.null_count() != given.null_count()
    if lost or not pl.Series([numbers.sum()]).is_finite().all():
        bad = given.is_not_null() & (numbers.is_null() | ~numbers.is_finite())
        wrong.update({row: f"{name}: {given[row]!r} is no finite number" for row in bad.fill_null(False).arg_true()})
    return numbers


def _levels(name: str, values: list[Any], wrong: dict[int, str]) -> pl.Series:
    try:
        return level_lists(name, values)
    except NotLevels as error:
        wrong.update({row: f"{name}: {why}" for row, why in error.rows.items()})
        return level_lists(name, [b"[]" if row in error.rows else array for row, array in enumerate(values)])


def _venues(frame: pl.DataFrame, rows: Sequence[int], records: Records) -> pl.Series:
    origins = records.origins
    names = {origin: _venue(origin) for origin in set(origins)}
    if len(set(names.values())) == 1:
        venues = pl.Series("venue", [next(iter(names.values()))], pl.String).new_from_index(0, len(rows))
    else:
        venues = pl.Series("venue", [names[origins[row]] for row in rows], pl.String)
    if FUTURES not in names.values():
        return venues
    coin_m = _coin_m(frame)
    return venues.set(coin_m, COIN_M) if coin_m.any() else venues


def _coin_m(frame: pl.DataFrame) -> pl.Series:
    """Which rows are COIN-M: their symbol has the form, or `st` says so; some streams carry both families."""
    symbols = frame["symbol"].unique()
    named = symbols.filter(symbols.str.contains(COIN_M_SYMBOL))
    said = frame["market_type"] == COIN_M_TYPE if "market_type" in frame.columns else None
    is_coin_m = frame["symbol"].is_in(named.implode()) if len(named) else pl.repeat(False, frame.height, eager=True)
    return is_coin_m if said is None else is_coin_m | said.fill_null(False)


def _refuse(frame: pl.DataFrame, rules: Mapping[str, pl.Expr], records: Records, decoded: Decoded) -> pl.DataFrame:
    for reason, rule in rules.items():
        unfit = frame.select(rule.fill_null(False)).to_series()
        if unfit.any():
            aside = frame.filter(unfit)
            decoded.refused += [_refusal(records, row, reason, records.payloads[row]) for row in aside["row"]]
            decoded.aside = pl.concat([decoded.aside, aside]) if decoded.aside.height else aside
            frame = frame.filter(~unfit)
    return frame


def _without(
    frame: pl.DataFrame, wrong: dict[int, str], found: _Events, records: Records, refused: list[Refused]
) -> pl.DataFrame:
    if not wrong:
        return frame
    for place, reason in sorted(wrong.items()):
        row = found.rows[place]
        payload = found.raw.get(id(found.events[place]), records.payloads[row])
        check = NULL_FIELD if reason.partition(":")[0] in TRADED else ""
        refused.append(_refusal(records, row, reason, payload)._replace(symbol=frame["symbol"][place], check=check))
    keep: Iterable[bool] = (place not in wrong for place in range(frame.height))
    return frame.filter(pl.Series(list(keep)))
