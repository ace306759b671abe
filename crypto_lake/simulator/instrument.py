"""One generated symbol: its book, its trades and what is told of them."""

from collections import deque
from collections.abc import Iterator

from crypto_lake.simulator import payloads
from crypto_lake.simulator.book import Book, Diff
from crypto_lake.simulator.grid import grid_of
from crypto_lake.simulator.history import DAY_MINUTES, KEPT_BARS, Bar, Rows, merged
from crypto_lake.simulator.market import Frame
from crypto_lake.simulator.payloads import COIN_M, USD_M, Listing, Trade

MINUTE_MS = 60_000
FORCE_ORDER_EVERY_MS = 1000
# The matching engine's time of a fact lies a little before the time of its message.
_ENGINE_AHEAD_MS = 4
_ENGINE_AHEAD_US = _ENGINE_AHEAD_MS * 1000
_KEPT_TRADES = 1_000  # all that /trades can be asked for
PARTIAL_LEVELS = (5, 10, 20)


class Instrument:
    """State that trades and book events move; each event gives the frames that the venue would send."""

    def __init__(self, venue: str, symbol: str, *, first_id: int, history: int) -> None:
        is_coin_m = "_" in symbol
        grid, start = grid_of(symbol, venue)
        pair = symbol.partition("_")[0]
        self.listing = Listing(venue, symbol, pair, COIN_M if is_coin_m else USD_M, grid)
        self.book = Book(start, first_id * 1_000, has_foreign_updates=self.listing.is_futures)
        self.agg_trades = Rows(first_id, history)
        self.trades: deque[Trade] = deque(maxlen=_KEPT_TRADES)
        self.bars: deque[Bar] = deque(maxlen=KEPT_BARS)
        self.liquidated_ms = 0
        self._told_us = 0
        self._next_trade_id = first_id * 2
        self._start = start
        self._partial_ids = dict.fromkeys(PARTIAL_LEVELS, self.book.update_id)
        self._told_bar: Bar | None = None
        prefix = symbol.lower() + "@"
        self._streams = {
            kind: prefix + kind
            for kind in ("aggTrade", "trade", "depth", "bookTicker", "forceOrder", "markPrice", "ticker", "miniTicker")
        }
        self._streams |= {kind: prefix + kind for kind in ("kline_1m", *(f"depth{n}" for n in PARTIAL_LEVELS))}

    def frame(self, time_ms: int, kind: str, payload: bytes) -> Frame:
        """A message of this symbol."""
        return Frame(time_ms, self.listing.venue, self._streams[kind], payload)

    def trade(self, time_ms: int, noise: bytes, *, with_parts: bool) -> Iterator[Frame]:
        """One taker order: an aggregate trade made of one to three trades."""
        buys = bool(noise[0] & 1)
        price, quantity = self.book.take(buys=buys, wanted=1 + noise[1] * noise[2] // 16, noise=noise[3])
        event_us = self._event_us(time_ms, noise)
        parts = self._parts(event_us - _ENGINE_AHEAD_US, price, quantity, noise[4], buyer_is_maker=not buys)
        whole = self._whole(parts, quantity, noise[5])
        self.agg_trades.append(whole.time_ms, payloads.agg_trade_row(self.listing, whole))
        self._add_to_bar(whole, len(parts))
        if with_parts:
            for part in parts:
                yield self.frame(time_ms, "trade", payloads.single_trade(self.listing, event_us, part))
        yield self.frame(time_ms, "aggTrade", payloads.agg_trade(self.listing, event_us, whole))

    def _event_us(self, time_ms: int, noise: bytes) -> int:
        """When exactly in this millisecond an event is told of: behind all others; on futures nobody hears of it."""
        if self.listing.is_futures:
            return time_ms * 1000
        drawn_us = time_ms * 1000 + int.from_bytes(noise[-2:]) * 1000 // 65_536
        self._told_us = min(max(drawn_us, self._told_us + 1), time_ms * 1000 + 999)
        return self._told_us

    def _parts(self, time_us: int, price: int, quantity: int, noise: int, *, buyer_is_maker: bool) -> list[Trade]:
        count = min(1 + noise // 86, quantity)
        share, rest = divmod(quantity, count)
        parts = []
        for i in range(count):
            identity, size = self._next_trade_id, share + (rest if i == count - 1 else 0)
            self._next_trade_id += 1
            part = Trade(identity, identity, identity, price, size, size, time_us, buyer_is_maker)
            parts.append(part)
        self.trades.extend(parts)
        return parts

    def _whole(self, parts: list[Trade], quantity: int, noise: int) -> Trade:
        first, last = parts[0], parts[-1]
        rpi = quantity // 4 if noise < 32 else 0
        return Trade(
            self.agg_trades.next_id,
            first.identity,
            last.identity,
            first.price,
            quantity,
            quantity - rpi,
            first.time_us,
            first.buyer_is_maker,
        )

    def _add_to_bar(self, trade: Trade, count: int) -> None:
        open_ms, price = trade.time_ms - trade.time_ms % MINUTE_MS, trade.price
        if not self.bars or self.bars[-1].open_ms != open_ms:
            self.bars.append(Bar(open_ms, price, price, price, price, trade.first_id))
        bar, quote = self.bars[-1], price * trade.quantity
        bar.high, bar.low, bar.close = max(bar.high, price), min(bar.low, price), price
        bar.last_id, bar.last_quantity = trade.last_id, trade.quantity
        bar.count += count
        bar.volume += trade.quantity
        bar.quote += quote
        if not trade.buyer_is_maker:
            bar.taker_volume += trade.quantity
            bar.taker_quote += quote

    def depth(self, time_ms: int, noise: bytes) -> Frame:
        """The book moves, and a diff tells of all changes since the diff before."""
        self.book.stir(noise)
        diff = self.book.flush()
        event_us = self._event_us(time_ms, noise)
        payload = payloads.depth(self.listing, event_us, event_us - _ENGINE_AHEAD_US, diff)
        return self.frame(time_ms, "depth", payload)

    def book_ticker(self, time_ms: int) -> Frame:
        """The best bid and ask as they are."""
        payload = payloads.book_ticker(self.listing, time_ms, time_ms - _ENGINE_AHEAD_MS, self.book)
        return self.frame(time_ms, "bookTicker", payload)

    def may_liquidate(self, time_ms: int) -> bool:
        """At most one liquidation per symbol and second is pushed."""
        return time_ms - self.liquidated_ms >= FORCE_ORDER_EVERY_MS

    def liquidation(self, time_ms: int, noise: bytes) -> Frame:
        """Somebody is closed by force, at a price worse than the book's best."""
        self.liquidated_ms = time_ms
        sells, quantity = bool(noise[0] & 1), 2 + noise[1] * noise[2] // 8
        average = self.book.best_bid if sells else self.book.best_ask
        away = (10 + noise[3]) * (-1 if sells else 1)
        payload = payloads.liquidation(
            self.listing,
            time_ms,
            sells=sells,
            price=average + away,
            average=average,
            quantity=quantity,
            last=1 + quantity * noise[4] // 256,
        )
        return self.frame(time_ms, "forceOrder", payload)

    def day(self, now_ms: int) -> Bar:
        """The last 24 hours as one bar; without trades, the price at which the market began."""
        day = Bar(0, self._start, self._start, self._start, self._start, -1, -1)
        since_ms = now_ms - DAY_MINUTES * MINUTE_MS
        recent = [bar for bar in self.bars if bar.open_ms > since_ms]
        if recent:
            first = recent[0]
            day = Bar(0, first.open, first.high, first.low, first.close, first.first_id)
            for bar in recent:
                day.add(bar)
        return day

    @property
    def last_price(self) -> int:
        """Of the last trade, in ticks."""
        return self.bars[-1].close if self.bars else self._start

    def klines(self, span_ms: int, start_ms: int | None, end_ms: int | None, limit: int) -> list[Bar]:
        """Bars by open time, both ends included: the first ones from a start, otherwise the last ones."""
        bars = [
            bar
            for bar in merged(list(self.bars), span_ms)
            if (start_ms is None or bar.open_ms >= start_ms) and (end_ms is None or bar.open_ms <= end_ms)
        ]
        return bars[:limit] if start_ms is not None else bars[-limit:]

    def told_regularly(self, time_ms: int) -> Iterator[Frame]:
        """The messages that come by the clock, not by events."""
        day = self.day(time_ms)
        if self.listing.is_futures:
            yield self.frame(time_ms, "markPrice", payloads.mark_price(self.listing, time_ms, self.book))
        yield self.frame(time_ms, "ticker", payloads.ticker(self.listing, time_ms, day, self.book))
        yield self.frame(time_ms, "miniTicker", payloads.mini_ticker(self.listing, time_ms, day))
        yield from self._partial_books(time_ms)
        yield from self._klines_told(time_ms)

    def _partial_books(self, time_ms: int) -> Iterator[Frame]:
        for count in PARTIAL_LEVELS:
            yield self.frame(time_ms, f"depth{count}", self._partial_book(time_ms, count))

    def _partial_book(self, time_ms: int, count: int) -> bytes:
        if not self.listing.is_futures:
            return payloads.snapshot(self.listing, time_ms, self.book, count)
        bids, asks = self.book.top(count)
        previous, final = self._partial_ids[count], self.book.update_id
        self._partial_ids[count] = final
        diff = Diff(min(previous + 1, final), final, previous, dict(bids), dict(asks))
        return payloads.depth(self.listing, time_ms * 1000, time_ms * 1000 - _ENGINE_AHEAD_US, diff)

    def _klines_told(self, time_ms: int) -> Iterator[Frame]:
        """The open minute each time; every minute with trades once more when it is closed."""
        bar = self.bars[-1] if self.bars else None
        if self._told_bar is not None and (self._told_bar is not bar or self._is_past(self._told_bar, time_ms)):
            yield self.frame(time_ms, "kline_1m", payloads.kline(self.listing, time_ms, self._told_bar, closed=True))
            self._told_bar = None
        if bar is not None and not self._is_past(bar, time_ms):
            self._told_bar = bar
            yield self.frame(time_ms, "kline_1m", payloads.kline(self.listing, time_ms, bar, closed=False))

    @staticmethod
    def _is_past(bar: Bar, now_ms: int) -> bool:
        # Trades carry the engine's time, so the last of a minute is told of a little after its end.
        return bar.open_ms + MINUTE_MS + _ENGINE_AHEAD_MS <= now_ms
