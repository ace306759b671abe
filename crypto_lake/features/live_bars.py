"""Bars of one symbol while its trades come in: what their time has closed, and what a late trade changes (ANALYTICS 1).

Plain Python: whoever follows trades one by one gains nothing from columns, and needs no room for them.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Final, Literal, NamedTuple

from msgspec import Struct

Late = Literal["revise", "drop"]
# The place of a trade among others: its minute, then its id. So longer bars are what their minutes make.
Place = tuple[int, int]

MINUTE_US: Final = 60_000_000
DAY_US: Final = 86_400_000_000
LATENESS_US: Final = 5_000_000
# An outage of the venue is filled with so many bars of a timeframe, the newest: more than that nobody holds.
FILLED: Final = 500
# So many closed bars of a timeframe are kept at the most.
KEPT: Final = 1_440
# Stretches of ids that have come; holes that are filled join them.
STRETCHES: Final = 1_000
EVER: Final = -(2**63)


class LiveBar(Struct, gc=False):
    """A bar; `time_us` is the open of its interval, `is_final` whether that is closed."""

    timeframe: str
    time_us: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    quote_volume: float
    count: int
    taker_buy_volume: float
    taker_buy_quote_volume: float
    revision: int
    is_final: bool


class Dropped(Struct, gc=False):
    """A trade that came for a closed interval and is in no bar of it: policy `drop`."""

    trade_id: int
    time_us: int


class Older(Struct, gc=False):
    """A trade that came for a bar that is not kept any more: what was told of it is not right."""

    timeframe: str
    time_us: int


News = LiveBar | Dropped | Older


class Trade(NamedTuple):
    """A trade on its way into bars."""

    place: Place
    time_us: int
    price: float
    quantity: Decimal
    quote: float
    trades: int
    is_buyer_maker: bool


class LiveBars:
    """The bars of one symbol; trades are added in the order in which they were received.

    The watermark is the largest time that came before the record at hand. An interval is closed when the watermark has
    reached its end and `lateness_us` more. With `drop` a trade is in no bar when its minute was closed; a second of a
    minute that was not is revised. `keep_us` is how far behind the watermark closed bars can still be revised: what is
    older is left to those who have all trades.

    `is_cut`: trades came before the first one that is added. Then nothing is said of intervals that began before it
    (and `lateness_us` after it, since until then others of them may have come).
    """

    def __init__(
        self,
        timeframes: Mapping[str, int],
        *,
        lateness_us: int = LATENESS_US,
        late: Late = "revise",
        keep_us: int = DAY_US,
        is_cut: bool = False,
    ) -> None:
        """`timeframes` by name with their lengths in µs."""
        self.watermark_us: int | None = None
        self.keep_us = keep_us
        self._lateness_us, self._late, self._is_cut = lateness_us, late, is_cut
        self._ids = Ids()
        self._series = {name: Series(name, width_us) for name, width_us in timeframes.items()}
        self._due_us = EVER

    def add(
        self, trade_id: int, time_us: int, price: float, quantity: Decimal, trades: int, is_buyer_maker: bool
    ) -> Sequence[News]:
        """The next trade received; returns what it closes and changes. What cannot be a trade is left out.

        `quantity` is a decimal, so that volumes are exact, whatever the order; `trades` is how many of the venue's
        trades it stands for.
        """
        if not (0 < price < float("inf") and quantity.is_finite() and quantity > 0 and trades > 0):
            return ()
        if not self._ids.add(trade_id):
            return ()
        if self.watermark_us is None:
            self._begin(time_us)
        news: list[News] = []
        place, quote = (time_us - time_us % MINUTE_US, trade_id), price * float(quantity)
        self._apply(Trade(place, time_us, price, quantity, quote, trades, is_buyer_maker), news)
        self._advance(time_us, news)
        return news

    def under_way(self, timeframe: str, at_most: int = FILLED) -> list[LiveBar]:
        """The newest bars of a timeframe that are not closed, the newest last."""
        if self.watermark_us is None:
            return []
        series = self._series[timeframe]
        end = self.watermark_us - self.watermark_us % series.width_us + series.width_us
        start = max(series.closed_us, end - at_most * series.width_us)
        return [bar for at in range(start, end, series.width_us) if (bar := series.bar(at))]

    def _begin(self, time_us: int) -> None:
        self.watermark_us = time_us
        whole_us = time_us + self._lateness_us if self._is_cut else EVER
        for series in self._series.values():
            series.begin(time_us - self._lateness_us, whole_us)
        self._set_due()

    def _apply(self, trade: Trade, news: list[News]) -> None:
        assert self.watermark_us is not None
        (minute_us, trade_id), time_us = trade.place, trade.time_us
        if self._late == "drop" and minute_us + MINUTE_US <= self.watermark_us - self._lateness_us:
            news.append(Dropped(trade_id, time_us))
            return
        for series in self._series.values():
            start = series.start(time_us)
            if not series.take(trade, start, news) and start < series.closed_us:
                news.append(Older(series.timeframe, start))

    def _advance(self, time_us: int, news: list[News]) -> None:
        assert self.watermark_us is not None
        if time_us <= self.watermark_us:
            return
        self.watermark_us = time_us
        if time_us < self._due_us:
            return
        for series in self._series.values():
            series.close(time_us - self._lateness_us, self.keep_us, news)
        self._set_due()

    def _set_due(self) -> None:
        """The watermark that closes the next interval."""
        ends = (series.closed_us + series.width_us for series in self._series.values())
        self._due_us = min(ends, default=2**63) + self._lateness_us


class Growing:
    """A bar with trades. What came first is decided by their places, not by the order in which they are taken."""

    __slots__ = (
        "close", "count", "first", "high", "last", "low", "open", "quote", "revision", "taker_quote", "taker_volume",
        "volume",
    )  # fmt: skip

    def __init__(self, trade: Trade, revision: int) -> None:
        self.first = self.last = trade.place
        self.open = self.high = self.low = self.close = trade.price
        self.volume = self.taker_volume = Decimal(0)
        self.quote = self.taker_quote = 0.0
        self.count, self.revision = 0, revision
        self.take(trade)

    def take(self, trade: Trade) -> None:
        """One more trade."""
        place, _, price, quantity, quote, trades, is_buyer_maker = trade
        if place > self.last:
            self.last, self.close = place, price
        elif place < self.first:
            self.first, self.open = place, price
        if price > self.high:
            self.high = price
        elif price < self.low:
            self.low = price
        self.volume += quantity
        self.quote += quote
        self.count += trades
        if not is_buyer_maker:
            self.taker_volume += quantity
            self.taker_quote += quote


class Series:
    """The bars of one timeframe: those with trades, and what fillers between them repeat."""

    def __init__(self, timeframe: str, width_us: int) -> None:
        self.timeframe, self.width_us = timeframe, width_us
        # Intervals in front of it are closed.
        self.closed_us = EVER
        # Nothing is known of intervals in front of it but their last trade: its place and its price.
        self._kept_us = EVER
        self._before: tuple[Place, float] | None = None
        self._bars: dict[int, Growing] = {}
        self._opens: list[int] = []
        self._refilled: dict[int, int] = {}  # revisions of fillers, where there are any

    def begin(self, closed_us: int, whole_us: int) -> None:
        """The first trade is about to come."""
        self.closed_us = self.start(closed_us)
        self._kept_us = EVER if whole_us == EVER else self.start(whole_us + self.width_us - 1)

    def take(self, trade: Trade, start: int, news: list[News]) -> bool:
        """Adds a trade of the interval at `start`, and to `news` what it changes of closed bars.

        Returns whether its own bar is kept.
        """
        bar = self._bars.get(start)
        if bar is not None and start >= self.closed_us:
            bar.take(trade)
            return True
        if start < self._kept_us:
            self._take_before(trade, news)
            return False
        filler = self._close_before(start)
        if bar is None:
            is_told = start < self.closed_us and filler is not None
            revision = self._refilled.pop(start, 0) + 1 if is_told else 0
            self._bars[start] = Growing(trade, revision)
            insort(self._opens, start)
        else:
            filler = bar.close
            bar.take(trade)
            bar.revision += 1
        if start < self.closed_us:
            self._tell(start, news)
            if filler != self._bars[start].close:
                self._refill(start + self.width_us, news, were_told=filler is not None)
        return True

    def close(self, closed_us: int, keep_us: int, news: list[News]) -> None:
        """Everything that ends up to `closed_us` is closed, and told; what is older than `keep_us` is let go."""
        until = self.start(closed_us)
        if until <= self.closed_us:
            return
        fill_from = max(self.closed_us, until - FILLED * self.width_us)
        early = self._opens[bisect_left(self._opens, self.closed_us) : bisect_left(self._opens, fill_from)]
        self.closed_us = until
        for start in (*early, *range(fill_from, until, self.width_us)):
            self._tell(start, news)
        self._forget(self.start(closed_us - min(keep_us, KEPT * self.width_us)))

    def bar(self, start: int) -> LiveBar | None:
        """The bar of an interval, a filler if it has no trades; None where nothing is known or no trade was before."""
        bar = self._bars.get(start)
        if bar is not None:
            return LiveBar(
                self.timeframe, start, bar.open, bar.high, bar.low, bar.close, float(bar.volume), bar.quote, bar.count,
                float(bar.taker_volume), bar.taker_quote, bar.revision, start < self.closed_us,
            )  # fmt: skip
        close = self._close_before(start)
        if close is None or start < self._kept_us:
            return None
        revision = self._refilled.get(start, 0)
        is_final = start < self.closed_us
        return LiveBar(self.timeframe, start, close, close, close, close, 0.0, 0.0, 0, 0.0, 0.0, revision, is_final)

    def start(self, time_us: int) -> int:
        """The begin of the interval that a time is in."""
        return time_us - time_us % self.width_us

    def _tell(self, start: int, news: list[News]) -> None:
        if bar := self.bar(start):
            news.append(bar)

    def _close_before(self, start: int) -> float | None:
        """What a filler at `start` repeats."""
        at = bisect_left(self._opens, start) - 1
        if at >= 0:
            return self._bars[self._opens[at]].close
        return self._before[1] if self._before else None

    def _refill(self, start: int, news: list[News], *, were_told: bool) -> None:
        """Tells the closed fillers from `start` on to the next bar with trades: they repeat another close now."""
        at = bisect_left(self._opens, start)
        end = min(self.closed_us, self._opens[at]) if at < len(self._opens) else self.closed_us
        for filler in range(max(start, end - FILLED * self.width_us), end, self.width_us):
            if were_told:
                self._refilled[filler] = self._refilled.get(filler, 0) + 1
            self._tell(filler, news)

    def _take_before(self, trade: Trade, news: list[News]) -> None:
        """Of what is not kept only the last trade counts, for the fillers behind it."""
        was = self._before
        if was is None or trade.place > was[0]:
            self._before = (trade.place, trade.price)
            if was is None or was[1] != trade.price:
                self._refill(self._kept_us, news, were_told=was is not None)

    def _forget(self, kept_us: int) -> None:
        if kept_us <= self._kept_us:
            return
        self._kept_us = kept_us
        count = bisect_left(self._opens, kept_us)
        if count:
            newest = self._bars[self._opens[count - 1]]
            self._before = (newest.last, newest.close)
        for start in self._opens[:count]:
            del self._bars[start]
        del self._opens[:count]
        self._refilled = {start: each for start, each in self._refilled.items() if start >= kept_us}


class Ids:
    """Ids that have come, as stretches: as long as none is missing it is one, whatever their number."""

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []

    def add(self, number: int) -> bool:
        """Whether it has not come before."""
        firsts, lasts = self._firsts, self._lasts
        if lasts and number == lasts[-1] + 1:
            lasts[-1] = number
            return True
        at = bisect_right(firsts, number)  # the stretch behind it
        if at and number <= lasts[at - 1]:
            return False
        joins_left, joins_right = (
            bool(at) and lasts[at - 1] + 1 == number,
            at < len(firsts) and firsts[at] - 1 == number,
        )
        if joins_left and joins_right:
            lasts[at - 1] = lasts.pop(at)
            del firsts[at]
        elif joins_left:
            lasts[at - 1] = number
        elif joins_right:
            firsts[at] = number
        else:
            firsts.insert(at, number)
            lasts.insert(at, number)
            self._limit()
        return True

    def _limit(self) -> None:
        """The oldest hole is closed: what comes for it so much later is not looked at."""
        if len(self._firsts) > STRETCHES:
            del self._firsts[1], self._lasts[0]
