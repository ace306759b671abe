"""What is kept of a market for its official files: the lines of each file, by day, as they come about."""

import zlib
from collections.abc import Callable, Mapping, Set
from datetime import date
from functools import partial
from typing import Final, NamedTuple

import msgspec

from crypto_lake.config import COIN_M, FUTURES, SPOT
from crypto_lake.simulator import answers, dumps_rows
from crypto_lake.simulator.dumps_bars import LENGTHS_MS, Bars, bars_from
from crypto_lake.simulator.history import Bar
from crypto_lake.simulator.instrument import Instrument
from crypto_lake.simulator.market import Frame, Question
from crypto_lake.simulator.payloads import DAY_MS
from crypto_lake.simulator.streams import kind_of

# Text is packed in pieces: long enough to pack well, short enough that nobody waits for one.
PIECE_BYTES: Final = 256 * 1024
# About two days of the default market. When there is more the oldest day is forgotten, as if it had never been.
MOST_KEPT_BYTES: Final = 1024**3
# Facts are some milliseconds older than their messages: so long after its end nothing new falls into a span.
SETTLED_MS: Final = 10
METRICS_EVERY_MS: Final = 300_000
MINUTE_MS: Final = 60_000
# COIN-M counts contracts of so many dollars.
CONTRACT_USD: Final = 100


class Pieces(NamedTuple):
    """A text at one moment: taken at no cost, and put together where there is time."""

    packed: tuple[bytes, ...]
    rest: bytes

    def whole(self) -> bytes:
        """All of it; dear."""
        return b"".join(zlib.decompress(piece) for piece in self.packed) + self.rest


class Series(NamedTuple):
    """The files of one folder: a venue's symbol, a type, and an interval or nothing."""

    venue: str
    type: str
    symbol: str
    interval: str = ""


class Text:
    """Lines that are only added to; most of them lie packed."""

    def __init__(self) -> None:
        self.size_bytes = 0  # unpacked
        self._packed: list[bytes] = []
        self._packed_bytes = 0
        self._open = bytearray()

    def add(self, line: bytes) -> None:
        """One more line, or several."""
        self._open += line
        self.size_bytes += len(line)
        if len(self._open) >= PIECE_BYTES:
            self._packed.append(zlib.compress(self._open, level=1))
            self._packed_bytes += len(self._packed[-1])
            self._open.clear()

    @property
    def kept_bytes(self) -> int:
        """What it takes of memory."""
        return self._packed_bytes + len(self._open)

    @property
    def pieces(self) -> Pieces:
        """All of it as it is now."""
        return Pieces(tuple(self._packed), bytes(self._open))


class Kept:
    """Hears every message of a market and keeps what its official files will say of it.

    `days[series][date]` has the lines. What no stream tells (open interest) is asked for when the clock says so.
    """

    def __init__(
        self,
        instruments: Mapping[tuple[str, str], Instrument],
        coin_m: Instrument | None,
        delisted: Set[tuple[str, str]],
        start_ms: int,
    ) -> None:
        self.days: dict[Series, dict[date, Text]] = {}
        self._instruments, self._delisted = instruments, delisted
        futures = [each for each in instruments.values() if each.listing.is_futures]
        self._with_metrics = [*futures, coin_m] if coin_m else futures
        self._metrics_ms = start_ms + -start_ms % METRICS_EVERY_MS
        self._bars: dict[tuple[str, str], Bars] = {}
        self._prices: dict[tuple[str, str], dumps_rows.PriceBar] = {}  # by type and symbol
        self._fundings: dict[str, dumps_rows.MarkPrice] = {}
        self._hears: dict[str, Callable[[Frame], None]] = {
            "aggTrade": self._agg_trade,
            "trade": self._trade,
            "bookTicker": self._book_ticker,
            "forceOrder": self._liquidation,
            "markPrice": self._mark_price,
        }

    def hear(self, frame: Frame) -> None:
        """A message of the market."""
        if hears := self._hears.get(kind_of(frame.stream)):
            hears(frame)

    def tick(self, clock_ms: int) -> None:
        """The market's clock comes so far: note what is asked for by the clock. To be called before things happen."""
        while self._metrics_ms <= clock_ms:
            self._note_metrics(self._metrics_ms)
            self._metrics_ms += METRICS_EVERY_MS
            self._forget()

    def close(self, clock_ms: int, prices_until_ms: int) -> None:
        """Write what is over by now though nothing has followed it.

        Prices that are told regularly have been told before `prices_until_ms`: slow markets are behind with them.
        """
        self.tick(clock_ms)
        for key, bars in self._bars.items():
            if key not in self._delisted:
                bars.until(clock_ms - SETTLED_MS)
        for (what, symbol), bar in list(self._prices.items()):
            if bar.open_ms + MINUTE_MS <= prices_until_ms:
                self._close_minute(what, symbol, bar)

    def _line(self, series: Series, time_us: int, line: bytes) -> None:
        days = self.days.get(series)
        if days is None:
            days = self.days[series] = {}
        day = _date(time_us // (DAY_MS * 1000))
        text = days.get(day)
        if text is None:
            text = days[day] = Text()
        text.add(line)

    # What is told

    def _agg_trade(self, frame: Frame) -> None:
        venue, told = frame.venue, _AGG_TRADE.decode(frame.payload)
        time_us = dumps_rows.microseconds(told.time)
        self._line(Series(venue, "aggTrades", told.symbol), time_us, dumps_rows.agg_trade(venue, told))
        bars = self._bars.get((venue, told.symbol))
        if bars is None:
            write = partial(self._write_bar, self._instruments[venue, told.symbol])
            bars = self._bars[venue, told.symbol] = bars_from("1s" if venue == SPOT else "1m", write)
        bars.add(self._as_bar(self._instruments[venue, told.symbol], told, time_us // 1000))

    @staticmethod
    def _as_bar(instrument: Instrument, told: dumps_rows.AggTrade, time_ms: int) -> Bar:
        grid = instrument.listing.grid
        price, quantity = dumps_rows.units(told.price) // grid.tick, dumps_rows.units(told.quantity) // grid.step
        count, quote = told.last_id - told.first_id + 1, price * quantity
        bar = Bar(time_ms, price, price, price, price, told.first_id, told.last_id, count, quantity, quantity, quote)
        if not told.buyer_is_maker:
            bar.taker_volume, bar.taker_quote = quantity, quote
        return bar

    def _write_bar(self, instrument: Instrument, interval: str, bar: Bar) -> None:
        listing = instrument.listing
        line = dumps_rows.kline(listing.venue, listing.grid, bar, LENGTHS_MS[interval])
        self._line(Series(listing.venue, "klines", listing.symbol, interval), bar.open_ms * 1000, line)

    def _trade(self, frame: Frame) -> None:
        told = _TRADE.decode(frame.payload)
        line = dumps_rows.trade(frame.venue, told)
        self._line(Series(frame.venue, "trades", told.symbol), dumps_rows.microseconds(told.time), line)

    def _book_ticker(self, frame: Frame) -> None:
        if frame.venue == FUTURES:  # spot has no such files
            told = _BOOK_TICKER.decode(frame.payload)
            series = Series(dumps_rows.venue_of(told.market_type), "bookTicker", told.symbol)
            self._line(series, told.time * 1000, dumps_rows.book_ticker(told))

    def _liquidation(self, frame: Frame) -> None:
        told = _LIQUIDATION.decode(frame.payload).order
        if dumps_rows.venue_of(told.market_type) == COIN_M:  # those of USD-M were removed
            series = Series(COIN_M, "liquidationSnapshot", told.symbol)
            self._line(series, told.time * 1000, dumps_rows.liquidation(told))

    def _mark_price(self, frame: Frame) -> None:
        told = _MARK_PRICE.decode(frame.payload)
        self._sample("markPriceKlines", told.symbol, told.event_time, told.mark)
        self._sample("indexPriceKlines", told.symbol, told.event_time, told.index)
        before = self._fundings.get(told.symbol)
        if before and before.next_funding != told.next_funding:
            # The message that is the first to speak of the next funding is the one that tells that this one is over.
            line = dumps_rows.funding(told.symbol, told.event_time, before.rate)
            self._line(Series(FUTURES, "fundingRate", told.symbol), told.event_time * 1000, line)
        self._fundings[told.symbol] = told

    def _sample(self, what: str, symbol: str, time_ms: int, price: str) -> None:
        open_ms = time_ms - time_ms % MINUTE_MS
        bar = self._prices.get((what, symbol))
        if bar is not None and bar.open_ms != open_ms:
            self._close_minute(what, symbol, bar)
            bar = None
        if bar is None:
            bar = self._prices[what, symbol] = dumps_rows.PriceBar(open_ms, price, price, price, price)
        bar.add(price)

    def _close_minute(self, what: str, symbol: str, bar: dumps_rows.PriceBar) -> None:
        line = dumps_rows.price_kline(bar, MINUTE_MS)
        self._line(Series(FUTURES, what, symbol, "1m"), bar.open_ms * 1000, line)
        del self._prices[what, symbol]

    # What is asked for

    def _note_metrics(self, time_ms: int) -> None:
        for instrument in self._with_metrics:
            listing = instrument.listing
            if (listing.venue, listing.symbol) not in self._delisted:
                venue = dumps_rows.venue_of(listing.market_type)
                series = Series(venue, "metrics", listing.symbol)
                self._line(series, time_ms * 1000, _metric(venue, instrument, time_ms))

    def _forget(self) -> None:
        kept = {day for days in self.days.values() for day in days}
        while len(kept) > 1 and self._kept_bytes > MOST_KEPT_BYTES:
            oldest = min(kept)
            kept.remove(oldest)
            for days in self.days.values():
                days.pop(oldest, None)

    @property
    def _kept_bytes(self) -> int:
        return sum(text.kept_bytes for days in self.days.values() for text in days.values())


def _metric(venue: str, instrument: Instrument, time_ms: int) -> bytes:
    """What REST says of the open interest at this moment, and what was bought and sold of late."""
    listing = instrument.listing
    question = Question(listing.venue, "openInterest", (listing.symbol,), is_list=False, limit=0)
    answer = msgspec.json.decode(answers.answer(question, {(listing.venue, listing.symbol): instrument}, time_ms))
    held, price = answer["openInterest"], float(listing.grid.ratio(instrument.book.middle, 8))
    return dumps_rows.metric(
        venue,
        listing.symbol,
        time_ms,
        held=held,
        value=float(held) * (CONTRACT_USD / price if venue == COIN_M else price),
        taker_ratio=_taker_ratio(instrument, time_ms),
    )


def _taker_ratio(instrument: Instrument, time_ms: int) -> float:
    """Bought by takers over sold by takers, in the time of one row; 0 when nothing was sold."""
    bought = sold = 0
    for bar in reversed(instrument.bars):
        if bar.open_ms < time_ms - METRICS_EVERY_MS:
            break
        bought, sold = bought + bar.taker_volume, sold + bar.volume - bar.taker_volume
    return bought / sold if sold else 0.0


def _date(number: int) -> date:
    """Of a day counted from 1970."""
    return date.fromordinal(_FIRST_DAY + number)


_FIRST_DAY: Final = date(1970, 1, 1).toordinal()
_AGG_TRADE: Final = msgspec.json.Decoder(dumps_rows.AggTrade)
_TRADE: Final = msgspec.json.Decoder(dumps_rows.Trade)
_BOOK_TICKER: Final = msgspec.json.Decoder(dumps_rows.BookTicker)
_MARK_PRICE: Final = msgspec.json.Decoder(dumps_rows.MarkPrice)
_LIQUIDATION: Final = msgspec.json.Decoder(dumps_rows.Liquidation)
