"""Generated flat files in the layout of the Massive (Polygon.io) bucket (PROTOCOLS E), alike for the same seed."""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import polars as pl

from crypto_lake.models.flatfile import folders

# Tickers as they are: some that other programs take for nothing or for true, share classes and preferred shares in
# lower case, and those with which exchanges try themselves out.
TICKERS: Final = (
    *("A", "AAPL", "ABRpD", "AMC", "BApA", "BCATrw", "BRK.B", "DCOMp", "F", "GE", "MSFT", "NA", "NAN", "NULL", "NVDA"),
    *("PLTR", "QQQ", "SPY", "TRUE", "TSLA", "XOM", "ZBZX", "ZVZZT", "ZXZZT"),
)
# AAPL1 is what is delivered for old AAPL options after a split; its contracts stand before those of AAPL.
ROOTS: Final = ("A", "AA", "AAPL", "AAPL1", "BRKB", "NA", "SPX", "SPXW", "TSLA", "ZVZZT")
INDICES: Final = ("I:DJI", "I:NDX", "I:SPX", "I:VIX")
PAIRS: Final = ("X:BTC-USD", "X:ETH-USD", "X:SHIB-USD", "X:SOL-USD")
CURRENCIES: Final = ("C:EUR-USD", "C:GBP-USD", "C:USD-JPY")

# Since then there are fractions of shares in the files, and six places behind every point.
FRACTIONS_FROM: Final = date(2026, 2, 23)
NEW_YORK, CHICAGO = ZoneInfo("America/New_York"), ZoneInfo("America/Chicago")

MICRO, CENT = 1_000_000, 10_000
MINUTE_NS, SECOND_NS = 60_000_000_000, 1_000_000_000
# So many rows are in memory at a time.
PIECE_ROWS = 500_000
# A busy day of stocks has some 180 minutes per ticker; an option contract that is traded at all some 20.
MINUTES_EACH, CONTRACT_ROWS = 180, 20
EXPIRIES, STRIKES = 8, 25
CONTRACTS: Final = EXPIRIES * STRIKES * 2
# By default a file is small: what many tests write in no time.
FEW_ROWS, FEW_EXPIRIES, FEW_STRIKES = 60, 3, 4
BUSY = "AAPL"
MOST_TRADES = 10**9
LETTERS: Final = np.array([chr(65 + number) for number in range(26)])
NAME_LETTERS = 4
GZ_LEVEL, GZ_WINDOW = 1, 31  # 31: a gzip header, without a time in it

AMOUNTS: Final = frozenset({"volume", "size"})
PRICES: Final = frozenset({"open", "close", "high", "low", "price"})

Ints = npt.NDArray[np.int64]
Draws = np.random.Generator


@dataclass(frozen=True, slots=True)
class Session:
    """When a venue trades: from `opens` for so many minutes, in `zone`; a day bar starts at midnight in `day_zone`."""

    opens: time
    minutes: int
    zone: tzinfo
    day_zone: tzinfo

    def start_ns(self, day: date) -> int:
        """The first instant of the session, ns since 1970."""
        return _ns(datetime.combine(day, self.opens, self.zone))

    def day_ns(self, day: date) -> int:
        """The start of the day's bar, ns since 1970."""
        return _ns(datetime.combine(day, time(), self.day_zone))


SESSIONS: Final[Mapping[str, Session]] = {
    "us_stocks_sip": Session(time(4), 960, NEW_YORK, NEW_YORK),
    "us_options_opra": Session(time(9, 30), 390, NEW_YORK, NEW_YORK),
    # Day bars of indices were seen at 06:00 UTC in winter.
    "us_indices": Session(time(9, 30), 390, NEW_YORK, CHICAGO),
    "global_crypto": Session(time(), 1440, UTC, UTC),
    "global_forex": Session(time(), 1440, UTC, UTC),
}


NAMED: Final[Mapping[str, str]] = {
    "us_stocks_sip": "{}",
    "us_indices": "I:{}",
    "global_crypto": "X:{}-USD",
    "global_forex": "C:{}-USD",
}


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring tickers of a file: how many rows each has, and about what it costs, in millionths."""

    tickers: list[str]
    counts: Ints
    prices: Ints

    def per_row(self, values: Ints) -> Ints:
        """What is known per ticker, once per row."""
        return np.repeat(values, self.counts)

    @property
    def places(self) -> Ints:
        """For each row the how manieth of its ticker it is."""
        ends = np.cumsum(self.counts)
        return np.arange(int(ends[-1]), dtype=np.int64) - self.per_row(ends - self.counts)


class FlatMarket:
    """What is in the flat files of any day: without `rows` some thousand rows of the given tickers; with `rows` exactly
    so many, of as many more tickers as it takes.

    A file holds the same rows whenever it is made. Without `rows` the day bars are what the minute bars of that day
    make. Which days are sessions is for the caller to know. `tickers` are those of stocks, `roots` those of options.
    """

    def __init__(
        self,
        *,
        seed: int = 1,
        tickers: Sequence[str] = TICKERS,
        roots: Sequence[str] = ROOTS,
        indices: Sequence[str] = INDICES,
        pairs: Sequence[str] = PAIRS,
        currencies: Sequence[str] = CURRENCIES,
    ) -> None:
        self._seed, self._roots = seed, roots
        self._tickers: Mapping[str, Sequence[str]] = {
            "us_stocks_sip": tickers,
            "us_indices": indices,
            "global_crypto": pairs,
            "global_forex": currencies,
        }

    def frame(self, folder: str, day: date, *, rows: int | None = None) -> pl.DataFrame:
        """A file's rows with its columns: prices and sizes as numbers, times in ns, conditions as text."""
        return pl.concat([_numbers(folder, day, piece) for piece in self._pieces(folder, day, rows)])

    def rows(self, folder: str, day: date, *, rows: int | None = None) -> list[dict[str, Any]]:
        """The same as Python values."""
        return self.frame(folder, day, rows=rows).to_dicts()

    def text(self, folder: str, day: date, *, rows: int | None = None) -> str:
        """The CSV."""
        return b"".join(self._lines(folder, day, rows)).decode()

    def gz(self, folder: str, day: date, *, rows: int | None = None) -> bytes:
        """The file as it lies in the bucket."""
        return b"".join(_packed(self._lines(folder, day, rows)))

    def write(self, path: Path, folder: str, day: date, *, rows: int | None = None) -> int:
        """Writes such a file piece by piece, whatever its size; its size in bytes."""
        with path.open("wb") as file:
            return sum(file.write(piece) for piece in _packed(self._lines(folder, day, rows)))

    def _lines(self, folder: str, day: date, rows: int | None) -> Iterator[bytes]:
        for number, piece in enumerate(self._pieces(folder, day, rows)):
            yield _csv(folder, day, piece, has_header=number == 0)

    def _pieces(self, folder: str, day: date, rows: int | None) -> Iterator[pl.DataFrame]:
        """The file's rows in groups of neighbouring tickers; prices and sizes in millionths."""
        assert folder in folders(), f"no flat files {folder!r}"
        assert rows is None or rows > 0, "a file has rows"
        place, _, kind = folder.partition("/")
        # Day bars are made of the minutes of that day, so both are drawn alike.
        drawn = "trades" if kind == "trades_v1" else "minutes"
        for number, group in enumerate(self._groups(place, kind, day, rows)):
            draws = self._draws(place, drawn, str(day), str(number))
            if kind == "trades_v1":
                yield TRADES[place](group, day, draws)
            elif kind == "day_aggs_v1":
                yield _day_of(_bars(place, group, day, draws), SESSIONS[place].day_ns(day))
            else:
                yield _bars(place, group, day, draws)

    def _groups(self, place: str, kind: str, day: date, rows: int | None) -> Iterator[Group]:
        is_one_each = kind == "day_aggs_v1" and rows is not None
        if place == "us_options_opra":
            return _in_pieces(self._contracts(day, rows, 1 if is_one_each else CONTRACT_ROWS))
        most = MOST_TRADES if kind == "trades_v1" else 1 if is_one_each else SESSIONS[place].minutes
        return _in_pieces(iter([self._listed(place, rows, most)]))

    def _listed(self, place: str, rows: int | None, most: int) -> Group:
        """All tickers of a place that is no options market, each with `most` rows at most."""
        tickers = list(self._tickers[place])
        if rows is not None:
            tickers += self._made_up(-(-rows // min(most, MINUTES_EACH)) - len(tickers), tickers, NAMED[place])
        tickers = sorted(tickers[:rows])
        total = FEW_ROWS * len(tickers) + SESSIONS[place].minutes if rows is None else rows
        weights = self._draws(place, "weights").pareto(1.2, len(tickers)) + 0.05
        # One is traded in every minute, as long as there are enough.
        weights[tickers.index(BUSY) if BUSY in tickers else 0] = weights.sum()
        counts = _shares(min(total, most * len(tickers)), weights, most)
        return Group(tickers, counts, np.array([_price_of(self._seed, each) for each in tickers], dtype=np.int64))

    def _contracts(self, day: date, rows: int | None, each: int) -> Iterator[Group]:
        """The contracts of one root after the other."""
        expiries, strikes = (FEW_EXPIRIES, FEW_STRIKES) if rows is None else (EXPIRIES, STRIKES)
        roots = list(self._roots)
        if rows is not None:
            # Chance may be small: some roots more than on average.
            roots += self._made_up(rows * 21 // (20 * CONTRACTS * each) + 2 - len(roots), roots, "{}")
        left = rows
        fridays = _fridays(day, expiries)
        # The expiry follows the root, so AAPL1 stands before AAPL.
        for root in sorted(roots, key=lambda name: f"{name}{fridays[0]:%y%m%d}"):
            group = self._contracts_of(root, fridays, strikes, day, each)
            if left is not None:
                group = _first_rows(group, left)
                left -= int(group.counts.sum())
            yield group
            if left == 0:
                return
        assert left is None, f"{left} rows have found no contract"

    def _contracts_of(self, root: str, expiries: Sequence[date], strikes: int, day: date, each: int) -> Group:
        draws = self._draws("contracts", root, str(day))
        near = _price_of(self._seed, root) // MICRO + 1
        prices = [near * (strikes + 2 * step) // (2 * strikes) * 1000 + step * 500 + 500 for step in range(strikes)]
        tickers = [
            f"O:{root}{expiry:%y%m%d}{right}{strike:08d}" for expiry, right, strike in product(expiries, "CP", prices)
        ]
        counts = np.ones(len(tickers), np.int64) if each == 1 else draws.integers(1, 2 * each, len(tickers))
        return Group(tickers, counts, draws.integers(1, 10_000, len(tickers)) * CENT)

    def _made_up(self, count: int, known: Sequence[str], named: str) -> list[str]:
        """So many more tickers, of four letters."""
        if count <= 0:
            return []
        drawn = self._draws("names").choice(26**NAME_LETTERS, count + len(known), replace=False)
        letters = LETTERS[(drawn[:, None] // 26 ** np.arange(NAME_LETTERS)) % 26]
        names = [named.format("".join(each)) for each in letters]
        return [name for name in names if name not in known][:count]

    def _draws(self, *purpose: str) -> Draws:
        return np.random.default_rng([self._seed, zlib.crc32("/".join(purpose).encode())])


def _price_of(seed: int, name: str) -> int:
    """From half a dollar to a thousand, in millionths: the same on all days."""
    return int(50 * 2000 ** (zlib.crc32(f"{seed}/{name}".encode()) / 2**32)) * CENT


def _ns(instant: datetime) -> int:
    return int(instant.timestamp()) * SECOND_NS


def _fridays(day: date, count: int) -> list[date]:
    first = day + timedelta(days=(4 - day.weekday()) % 7)
    return [first + timedelta(weeks=week) for week in range(count)]


def _first_rows(group: Group, rows: int) -> Group:
    before = np.cumsum(group.counts) - group.counts
    kept = int((before < rows).sum())
    counts = np.minimum(group.counts, rows - before)[:kept]
    return Group(group.tickers[:kept], counts, group.prices[:kept])


def _in_pieces(groups: Iterator[Group]) -> Iterator[Group]:
    """The same tickers in groups of some `PIECE_ROWS` rows."""
    held: list[Group] = []
    size = 0
    for group in groups:
        parts = -(-int(group.counts.sum()) // PIECE_ROWS)
        for part in _cut(group, parts) if parts > 1 else [group]:
            held.append(part)
            size += int(part.counts.sum())
            if size >= PIECE_ROWS:
                yield _joined(held)
                held, size = [], 0
    if held:
        yield _joined(held)


def _cut(group: Group, parts: int) -> Iterator[Group]:
    for some in np.array_split(np.arange(len(group.tickers)), parts):
        if len(some):
            first, end = int(some[0]), int(some[-1]) + 1
            yield Group(group.tickers[first:end], group.counts[first:end], group.prices[first:end])


def _joined(groups: Sequence[Group]) -> Group:
    return Group(
        [ticker for group in groups for ticker in group.tickers],
        np.concatenate([group.counts for group in groups]),
        np.concatenate([group.prices for group in groups]),
    )


def _shares(total: int, weights: npt.NDArray[np.float64], most: int) -> Ints:
    """The rows of each ticker by its weight: one at least, `most` at most, `total` in all."""
    counts: Ints = np.clip((weights / weights.sum() * total).astype(np.int64), 1, most)
    while missing := total - int(counts.sum()):
        step = 1 if missing > 0 else -1
        free = np.flatnonzero(counts < most if missing > 0 else counts > 1)[: abs(missing)]
        counts[free] += step
    return counts


def _ticker_column(group: Group) -> pl.Series:
    return pl.Series("ticker", group.tickers, pl.String).gather(group.per_row(np.arange(len(group.tickers))))


def _slots(group: Group, size: int, draws: Draws) -> Ints:
    """Rising places within a day of `size`, one for each row; there is none where nothing happened."""
    first = np.repeat(draws.random(len(group.counts)), group.counts)
    slots: Ints = ((group.places + first) * (size / group.per_row(group.counts))).astype(np.int64)
    return slots


def _walk(group: Group, draws: Draws, step: Ints) -> Ints:
    """A price for each row, each near the one before, never below the smallest step."""
    steps = draws.integers(-3, 4, int(group.counts.sum())) * group.per_row(step)
    walked = np.cumsum(steps)
    starts = np.cumsum(group.counts) - group.counts
    walked += group.per_row(group.prices - walked[starts])
    prices: Ints = np.maximum(walked, group.per_row(step))
    return prices


def _step(place: str, prices: Ints) -> Ints:
    """The smallest difference between two prices, in millionths."""
    if place in ("us_stocks_sip", "us_options_opra", "us_indices"):
        return np.where((prices < MICRO) & (place == "us_stocks_sip"), 100, CENT)
    return np.where(prices < 10 * MICRO, 10, CENT)


def _bars(place: str, group: Group, day: date, draws: Draws) -> pl.DataFrame:
    session = SESSIONS[place]
    step = _step(place, group.prices)
    total = int(group.counts.sum())
    close = _walk(group, draws, step)
    per_row = group.per_row(step)
    opens = np.maximum(close + draws.integers(-2, 3, total) * per_row, per_row)
    high = np.maximum(opens, close) + draws.integers(0, 4, total) * per_row
    low = np.maximum(np.minimum(opens, close) - draws.integers(0, 4, total) * per_row, per_row)
    if place == "us_stocks_sip":
        # Some trades are between two cents.
        high += np.where(draws.random(total) < 0.1, draws.integers(1, CENT, total), 0)
    transactions = draws.integers(1, 300, total)
    columns: dict[str, Any] = {
        "ticker": _ticker_column(group),
        "volume": _volume(place, day, transactions, draws),
        "open": opens,
        "close": close,
        "high": high,
        "low": low,
        "window_start": session.start_ns(day) + _slots(group, session.minutes, draws) * MINUTE_NS,
        "transactions": transactions,
    }
    if place == "us_indices":
        del columns["volume"], columns["transactions"]
    return pl.DataFrame(columns)


def _volume(place: str, day: date, transactions: Ints, draws: Draws) -> Ints:
    """In millionths."""
    if place == "global_forex":
        return transactions * MICRO
    whole = transactions * draws.integers(1, 4 if place == "us_options_opra" else 200, len(transactions)) * MICRO
    return whole + _parts(place, day, len(whole), draws)


def _parts(place: str, day: date, total: int, draws: Draws) -> Ints:
    """Fractions of a share, in millionths, where there are any."""
    if not _has_fractions(place, day):
        return np.zeros(total, np.int64)
    return np.where(draws.random(total) < 0.6, draws.integers(0, MICRO, total), 0)


def _has_fractions(place: str, day: date) -> bool:
    return place == "global_crypto" or (place == "us_stocks_sip" and day >= FRACTIONS_FROM)


def _day_of(minutes: pl.DataFrame, start_ns: int) -> pl.DataFrame:
    """The day bars that these minutes make."""
    sums = [pl.col(name).sum() for name in ("volume", "transactions") if name in minutes.columns]
    made = minutes.group_by("ticker", maintain_order=True).agg(
        *sums,
        pl.col("open").first(),
        pl.col("close").last(),
        pl.col("high").max(),
        pl.col("low").min(),
        window_start=pl.lit(start_ns, pl.Int64),
    )
    return made.select(minutes.columns)


def _stock_trades(group: Group, day: date, draws: Draws) -> pl.DataFrame:
    total = int(group.counts.sum())
    sip = _instants("us_stocks_sip", group, day, draws)
    exchange = draws.choice([1, 4, 8, 11, 12, 15, 21], total, p=[0.1, 0.4, 0.1, 0.1, 0.2, 0.05, 0.05])
    off_exchange = exchange == 4
    # A tenth of a second or less after it happened, but for those that are told hours later.
    late = np.where(draws.random(total) < 0.01, 3600 * SECOND_NS, SECOND_NS // 10)
    return pl.DataFrame(
        {
            "ticker": _ticker_column(group),
            "conditions": _drawn([None, "12,37", "14,41", "37", "12", "14,12,41"], total, draws),
            "correction": draws.choice([0, 1, 10, 12], total, p=[0.997, 0.001, 0.001, 0.001]),
            "exchange": exchange,
            "id": pl.Series(draws.integers(1, 10**14, total)).cast(pl.String),
            "participant_timestamp": sip - draws.integers(0, late),
            "price": _walk(group, draws, _step("us_stocks_sip", group.prices)),
            "sequence_number": group.places * 3 + draws.integers(1, 4, total),
            "sip_timestamp": sip,
            "size": draws.integers(1, 500, total) * MICRO + _parts("us_stocks_sip", day, total, draws),
            "tape": group.per_row(draws.integers(1, 4, len(group.tickers))),
            "trf_id": np.where(off_exchange, draws.integers(201, 204, total), 0),
            "trf_timestamp": np.where(off_exchange, sip - draws.integers(0, 1_000_000, total), 0),
        }
    )


def _option_trades(group: Group, day: date, draws: Draws) -> pl.DataFrame:
    total = int(group.counts.sum())
    return pl.DataFrame(
        {
            "ticker": _ticker_column(group),
            "conditions": _drawn(["209", "227", "232", "233"], total, draws),
            "correction": np.zeros(total, np.int64),
            "exchange": draws.integers(300, 326, total),
            "price": _walk(group, draws, _step("us_options_opra", group.prices)),
            "sip_timestamp": _instants("us_options_opra", group, day, draws),
            "size": draws.integers(1, 50, total) * MICRO,
        }
    )


def _crypto_trades(group: Group, day: date, draws: Draws) -> pl.DataFrame:
    total = int(group.counts.sum())
    return pl.DataFrame(
        {
            "ticker": _ticker_column(group),
            "conditions": _drawn(["1", "2"], total, draws),
            "exchange": draws.choice([1, 2, 6, 10, 23], total),
            "id": pl.Series(group.places + 1_000_000).cast(pl.String),
            "participant_timestamp": _instants("global_crypto", group, day, draws),
            "price": _walk(group, draws, _step("global_crypto", group.prices)),
            "size": draws.integers(1_000, 5 * MICRO, total),
        }
    )


TRADES: Final[Mapping[str, Callable[[Group, date, Draws], pl.DataFrame]]] = {
    "us_stocks_sip": _stock_trades,
    "us_options_opra": _option_trades,
    "global_crypto": _crypto_trades,
}


def _drawn(choices: Sequence[str | None], total: int, draws: Draws) -> pl.Series:
    return pl.Series(choices, dtype=pl.String).gather(draws.integers(0, len(choices), total))


def _instants(place: str, group: Group, day: date, draws: Draws) -> Ints:
    """Nanoseconds that rise within each ticker."""
    session = SESSIONS[place]
    return session.start_ns(day) + _slots(group, session.minutes * MINUTE_NS, draws)


def _numbers(folder: str, day: date, piece: pl.DataFrame) -> pl.DataFrame:
    """Millionths as the numbers that their text is read as; amounts without fractions as whole numbers."""
    has_fractions = _has_fractions(folder.partition("/")[0], day)
    amounts, prices = AMOUNTS.intersection(piece.columns), PRICES.intersection(piece.columns)
    whole = [] if has_fractions else [pl.col(name) // MICRO for name in amounts]
    # By numpy: Polars multiplies by the inverse of a constant, which is not always the nearest number.
    divided = [
        pl.Series(name, piece[name].to_numpy() / MICRO) for name in (*prices, *(amounts if has_fractions else ()))
    ]
    return piece.with_columns(*whole, *divided)


def _csv(folder: str, day: date, piece: pl.DataFrame, *, has_header: bool) -> bytes:
    """The text of the rows; since there are fractions of shares all of it has six places, in the files of stocks."""
    place = folder.partition("/")[0]
    has_places = place == "us_stocks_sip" and day >= FRACTIONS_FROM
    out = BytesIO()
    _numbers(folder, day, piece).write_csv(out, include_header=has_header, float_precision=6 if has_places else None)
    text = out.getvalue()
    return text.replace(b".0,", b",") if place == "us_options_opra" else text


def _packed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(GZ_LEVEL, zlib.DEFLATED, GZ_WINDOW)
    for piece in pieces:
        yield packer.compress(piece)
    yield packer.flush()
