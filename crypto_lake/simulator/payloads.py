"""The words of generated messages: stream payloads and REST rows, field by field as the venues wrote them in 2026.

Text is put together by hand: a JSON encoder would first want a dictionary per message, for more than the price of
making the message. Futures tell milliseconds. What is made for spot is in microseconds, as it is for those who ask for
them; `in_milliseconds` makes of it what the others get.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from crypto_lake.config import FUTURES
from crypto_lake.simulator.book import Book, Diff
from crypto_lake.simulator.grid import Grid, decimal
from crypto_lake.simulator.history import Bar

USD_M, COIN_M = 1, 2
FUNDING_EVERY_MS = 8 * 3_600_000
DAY_MS = 86_400_000
_FUNDING_RATE = "0.00010000"
# No other number on spot is a bare integer of sixteen digits: ids have twelve at the most.
_MICROSECONDS: Final = re.compile(rb"([:\[,]\d{13})\d{3}(?=[,}\]])")


def stamp(venue: str, time_ms: int) -> int:
    """A time of whole milliseconds as the messages made here tell it."""
    return time_ms if venue == FUTURES else time_ms * 1000


def in_milliseconds(payload: bytes) -> bytes:
    """A message or answer of spot for who did not ask for microseconds; one that has none stays as it is."""
    return _MICROSECONDS.sub(rb"\1", payload)


@dataclass(frozen=True)
class Listing:
    """A symbol on a venue."""

    venue: str
    symbol: str
    pair: str
    market_type: int  # the `st` of futures messages
    grid: Grid

    @property
    def is_futures(self) -> bool:
        """USD-M or COIN-M."""
        return self.venue == FUTURES

    def stamp(self, time_ms: int) -> int:
        """A time of whole milliseconds as the messages made here tell it."""
        return stamp(self.venue, time_ms)


@dataclass(frozen=True, slots=True)
class Trade:
    """An aggregate trade, or one of its parts when first and last id are the same.

    `time_us` is the engine's time: on spot with all its digits, on futures of whole milliseconds. It never falls while
    the ids rise.
    """

    identity: int
    first_id: int
    last_id: int
    price: int
    quantity: int
    without_rpi: int
    time_us: int
    buyer_is_maker: bool

    @property
    def time_ms(self) -> int:
        """The same in whole milliseconds."""
        return self.time_us // 1000

    @property
    def maker(self) -> str:
        """`m` as JSON writes it."""
        return "true" if self.buyer_is_maker else "false"


def agg_trade(of: Listing, event_us: int, trade: Trade) -> bytes:
    """`<s>@aggTrade`."""
    price, quantity = of.grid.price[trade.price], of.grid.quantity[trade.quantity]
    if of.is_futures:
        text = (
            f'{{"e":"aggTrade","E":{event_us // 1000},"a":{trade.identity},"s":"{of.symbol}","p":"{price}",'
            f'"q":"{quantity}","nq":"{of.grid.quantity[trade.without_rpi]}","f":{trade.first_id},"l":{trade.last_id},'
            f'"T":{trade.time_ms},"m":{trade.maker},"st":{of.market_type}}}'
        )
    else:
        text = (
            f'{{"e":"aggTrade","E":{event_us},"s":"{of.symbol}","a":{trade.identity},"p":"{price}","q":"{quantity}",'
            f'"f":{trade.first_id},"l":{trade.last_id},"T":{trade.time_us},"m":{trade.maker},"M":true}}'
        )
    return text.encode()


def agg_trade_row(of: Listing, trade: Trade) -> bytes:
    """One element of `/aggTrades`."""
    quantity = of.grid.quantity[trade.quantity]
    beside = f'"nq":"{of.grid.quantity[trade.without_rpi]}",' if of.is_futures else ""
    time, best = (trade.time_ms, "") if of.is_futures else (trade.time_us, ',"M":true')
    return (
        f'{{"a":{trade.identity},"p":"{of.grid.price[trade.price]}","q":"{quantity}",{beside}"f":{trade.first_id},'
        f'"l":{trade.last_id},"T":{time},"m":{trade.maker}{best}}}'
    ).encode()


def single_trade(of: Listing, event_us: int, trade: Trade) -> bytes:
    """`<s>@trade`."""
    price, quantity = of.grid.price[trade.price], of.grid.quantity[trade.quantity]
    if of.is_futures:
        text = (
            f'{{"e":"trade","E":{event_us // 1000},"T":{trade.time_ms},"s":"{of.symbol}","t":{trade.identity},'
            f'"p":"{price}","q":"{quantity}","X":"MARKET","m":{trade.maker},"st":{of.market_type}}}'
        )
    else:
        text = (
            f'{{"e":"trade","E":{event_us},"s":"{of.symbol}","t":{trade.identity},"p":"{price}","q":"{quantity}",'
            f'"T":{trade.time_us},"m":{trade.maker},"M":true}}'
        )
    return text.encode()


def single_trade_row(of: Listing, trade: Trade) -> bytes:
    """One element of `/trades`."""
    time, last = (trade.time_ms, '"isRPITrade":false') if of.is_futures else (trade.time_us, '"isBestMatch":true')
    return (
        f'{{"id":{trade.identity},"price":"{of.grid.price[trade.price]}","qty":"{of.grid.quantity[trade.quantity]}",'
        f'"quoteQty":"{of.grid.quote(trade.price * trade.quantity)}","time":{time},'
        f'"isBuyerMaker":{trade.maker},{last}}}'
    ).encode()


def levels(grid: Grid, side: Mapping[int, int] | Iterable[tuple[int, int]]) -> str:
    """`[["64990.90","0.002"],...]`."""
    price, quantity = grid.price, grid.quantity
    pairs = side.items() if isinstance(side, Mapping) else side
    return "[" + ",".join([f'["{price[p]}","{quantity[q]}"]' for p, q in pairs]) + "]"


def depth(of: Listing, event_us: int, transaction_us: int, diff: Diff) -> bytes:
    """`<s>@depth`, and on futures also the complete top levels of `<s>@depth5|10|20`."""
    bids, asks = levels(of.grid, diff.bids), levels(of.grid, diff.asks)
    if of.is_futures:
        text = (
            f'{{"e":"depthUpdate","E":{event_us // 1000},"T":{transaction_us // 1000},"s":"{of.symbol}",'
            f'"ps":"{of.pair}","U":{diff.first_id},"u":{diff.final_id},"pu":{diff.previous_id},"b":{bids},"a":{asks},'
            f'"st":{of.market_type}}}'
        )
    else:
        text = (
            f'{{"e":"depthUpdate","E":{event_us},"s":"{of.symbol}","U":{diff.first_id},"u":{diff.final_id},'
            f'"b":{bids},"a":{asks}}}'
        )
    return text.encode()


def snapshot(of: Listing, now_ms: int, book: Book, limit: int) -> bytes:
    """`/depth`, and spot's `<s>@depth5|10|20`."""
    bids, asks = book.top(limit)
    times = f'"E":{now_ms},"T":{now_ms},' if of.is_futures else ""
    return (
        f'{{"lastUpdateId":{book.update_id},{times}"bids":{levels(of.grid, bids)},"asks":{levels(of.grid, asks)}}}'
    ).encode()


def book_ticker(of: Listing, event_ms: int, transaction_ms: int, book: Book) -> bytes:
    """`<s>@bookTicker`; spot's has neither name nor times."""
    best = _best(of.grid, book)
    if not of.is_futures:
        return f'{{"u":{book.update_id},"s":"{of.symbol}",{best}}}'.encode()
    return (
        f'{{"e":"bookTicker","u":{book.update_id},"s":"{of.symbol}","ps":"{of.pair}",{best},"T":{transaction_ms},'
        f'"E":{event_ms},"st":{of.market_type}}}'
    ).encode()


def _best(grid: Grid, book: Book) -> str:
    bid, ask = book.best_bid, book.best_ask
    return (
        f'"b":"{grid.price[bid]}","B":"{grid.quantity[book.bids[bid]]}",'
        f'"a":"{grid.price[ask]}","A":"{grid.quantity[book.asks[ask]]}"'
    )


def book_ticker_row(of: Listing, now_ms: int, book: Book) -> bytes:
    """One element of `/ticker/bookTicker`."""
    bid, ask, grid = book.best_bid, book.best_ask, of.grid
    time = f',"lastUpdateId":{book.update_id},"time":{now_ms}' if of.is_futures else ""
    return (
        f'{{"symbol":"{of.symbol}","bidPrice":"{grid.price[bid]}","bidQty":"{grid.quantity[book.bids[bid]]}",'
        f'"askPrice":"{grid.price[ask]}","askQty":"{grid.quantity[book.asks[ask]]}"{time}}}'
    ).encode()


def liquidation(
    of: Listing, event_ms: int, *, sells: bool, price: int, average: int, quantity: int, last: int
) -> bytes:
    """`<s>@forceOrder`: one order, closing a long when it sells."""
    price_text, filled = of.grid.price[price], of.grid.quantity[quantity]
    return (
        f'{{"e":"forceOrder","E":{event_ms},"o":{{"s":"{of.symbol}","S":"{"SELL" if sells else "BUY"}","o":"LIMIT",'
        f'"f":"IOC","q":"{filled}","p":"{price_text}","ap":"{of.grid.price[average]}","X":"FILLED",'
        f'"l":"{of.grid.quantity[last]}","z":"{filled}","T":{event_ms - 6},"ps":"{of.pair}","st":{of.market_type}}}}}'
    ).encode()


def next_funding_ms(now_ms: int) -> int:
    """Funding is every eight hours of UTC."""
    return now_ms - now_ms % FUNDING_EVERY_MS + FUNDING_EVERY_MS


def mark_price(of: Listing, event_ms: int, book: Book) -> bytes:
    """`<s>@markPrice`."""
    mark = of.grid.ratio(book.middle, 8)
    index, settle = of.grid.ratio(book.middle * 1.0004, 8), of.grid.ratio(book.middle * 1.0001, 8)
    return (
        f'{{"e":"markPriceUpdate","E":{event_ms},"s":"{of.symbol}","p":"{mark}","ap":"{mark}","P":"{settle}",'
        f'"i":"{index}","r":"{_FUNDING_RATE}","T":{next_funding_ms(event_ms)},"st":{of.market_type}}}'
    ).encode()


def premium_index_row(of: Listing, now_ms: int, book: Book) -> bytes:
    """One element of `/premiumIndex`."""
    mark = of.grid.ratio(book.middle, 8)
    index, settle = of.grid.ratio(book.middle * 1.0004, 8), of.grid.ratio(book.middle * 1.0001, 8)
    return (
        f'{{"symbol":"{of.symbol}","markPrice":"{mark}","indexPrice":"{index}","estimatedSettlePrice":"{settle}",'
        f'"lastFundingRate":"{_FUNDING_RATE}","interestRate":"{_FUNDING_RATE}",'
        f'"nextFundingTime":{next_funding_ms(now_ms)},"time":{now_ms}}}'
    ).encode()


def _quantity(grid: Grid, steps: int) -> str:
    return decimal(steps * grid.step, grid.quantity_decimals)


def _change(grid: Grid, day: Bar) -> tuple[str, str, str]:
    """Absolute and relative change and the average price of a window."""
    absolute = decimal((day.close - day.open) * grid.tick, grid.price_decimals)
    average = day.quote / day.volume if day.volume else float(day.close)
    return absolute, f"{(day.close / day.open - 1) * 100:.3f}", grid.ratio(average, grid.price_decimals)


def ticker(of: Listing, event_ms: int, day: Bar, book: Book) -> bytes:
    """`<s>@ticker`: the last 24 hours."""
    price, (absolute, relative, average) = of.grid.price, _change(of.grid, day)
    pair, kind = (f'"ps":"{of.pair}",', f',"st":{of.market_type}') if of.is_futures else ("", "")
    time = of.stamp(event_ms)
    best = "" if of.is_futures else f'"x":"{price[day.open]}",{_best(of.grid, book)},'
    return (
        f'{{"e":"24hrTicker","E":{time},"s":"{of.symbol}",{pair}"p":"{absolute}","P":"{relative}","w":"{average}",'
        f'"c":"{price[day.close]}","Q":"{_quantity(of.grid, day.last_quantity)}",{best}"o":"{price[day.open]}",'
        f'"h":"{price[day.high]}","l":"{price[day.low]}","v":"{_quantity(of.grid, day.volume)}",'
        f'"q":"{of.grid.quote(day.quote)}","O":{of.stamp(event_ms - DAY_MS)},"C":{time},"F":{day.first_id},'
        f'"L":{day.last_id},"n":{day.count}{kind}}}'
    ).encode()


def ticker_row(of: Listing, now_ms: int, day: Bar, book: Book) -> bytes:
    """One element of `/ticker/24hr`."""
    grid, price, (absolute, relative, average) = of.grid, of.grid.price, _change(of.grid, day)
    best = (
        ""
        if of.is_futures
        else (
            f'"prevClosePrice":"{price[day.open]}","bidPrice":"{price[book.best_bid]}",'
            f'"bidQty":"{grid.quantity[book.bids[book.best_bid]]}","askPrice":"{price[book.best_ask]}",'
            f'"askQty":"{grid.quantity[book.asks[book.best_ask]]}",'
        )
    )
    return (
        f'{{"symbol":"{of.symbol}","priceChange":"{absolute}","priceChangePercent":"{relative}",'
        f'"weightedAvgPrice":"{average}","lastPrice":"{price[day.close]}",'
        f'"lastQty":"{_quantity(grid, day.last_quantity)}",'
        f'{best}"openPrice":"{price[day.open]}","highPrice":"{price[day.high]}","lowPrice":"{price[day.low]}",'
        f'"volume":"{_quantity(grid, day.volume)}","quoteVolume":"{grid.quote(day.quote)}",'
        f'"openTime":{of.stamp(now_ms - DAY_MS)},"closeTime":{of.stamp(now_ms)},"firstId":{day.first_id},'
        f'"lastId":{day.last_id},"count":{day.count}}}'
    ).encode()


def mini_ticker(of: Listing, event_ms: int, day: Bar) -> bytes:
    """`<s>@miniTicker`."""
    price = of.grid.price
    kind = f',"ps":"{of.pair}","st":{of.market_type}' if of.is_futures else ""
    return (
        f'{{"e":"24hrMiniTicker","E":{of.stamp(event_ms)},"s":"{of.symbol}","c":"{price[day.close]}","o":"{price[day.open]}",'
        f'"h":"{price[day.high]}","l":"{price[day.low]}","v":"{_quantity(of.grid, day.volume)}",'
        f'"q":"{of.grid.quote(day.quote)}"{kind}}}'
    ).encode()


def kline(of: Listing, event_ms: int, bar: Bar, *, closed: bool) -> bytes:
    """`<s>@kline_1m`."""
    price, grid = of.grid.price, of.grid
    kind = f',"st":{of.market_type}' if of.is_futures else ""
    begin, end = of.stamp(bar.open_ms), of.stamp(bar.open_ms + 60_000) - 1
    return (
        f'{{"e":"kline","E":{of.stamp(event_ms)},"s":"{of.symbol}","k":{{"t":{begin},"T":{end},'
        f'"s":"{of.symbol}","i":"1m","f":{bar.first_id},"L":{bar.last_id},"o":"{price[bar.open]}",'
        f'"c":"{price[bar.close]}","h":"{price[bar.high]}","l":"{price[bar.low]}","v":"{_quantity(grid, bar.volume)}",'
        f'"n":{bar.count},"x":{"true" if closed else "false"},"q":"{grid.quote(bar.quote)}",'
        f'"V":"{_quantity(grid, bar.taker_volume)}","Q":"{grid.quote(bar.taker_quote)}","B":"0"}}{kind}}}'
    ).encode()


def kline_row(of: Listing, bar: Bar, span_ms: int) -> bytes:
    """One element of `/klines`."""
    price, grid = of.grid.price, of.grid
    return (
        f'[{of.stamp(bar.open_ms)},"{price[bar.open]}","{price[bar.high]}","{price[bar.low]}","{price[bar.close]}",'
        f'"{_quantity(grid, bar.volume)}",{of.stamp(bar.open_ms + span_ms) - 1},"{grid.quote(bar.quote)}",{bar.count},'
        f'"{_quantity(grid, bar.taker_volume)}","{grid.quote(bar.taker_quote)}","0"]'
    ).encode()


def array_of(rows: Iterable[bytes]) -> bytes:
    """A JSON array of JSON texts."""
    return b"[" + b",".join(rows) + b"]"
