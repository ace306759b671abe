"""The words of the official files: headers, and lines made of what the streams said, as in Binance's bucket in 2026.

Spot files have no header and write `True`, futures files have one and write `true`; instants are microseconds in spot
files about 2025-01-01 and later, milliseconds in all others (PROTOCOLS D.5, D.6). Decimals stand as they were told.
"""

import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from msgspec import Struct, field

from crypto_lake.config import COIN_M, FUTURES, SPOT
from crypto_lake.simulator import payloads
from crypto_lake.simulator.grid import Grid, decimal
from crypto_lake.simulator.history import Bar

_MICROSECONDS_FROM_US: Final = 1_735_689_600_000_000  # 2025-01-01
# What has more is in microseconds, as spot tells it.
_MOST_MS: Final = 10**14
_QUOTE_DECIMALS: Final = 8
_MOST_LATE_MS: Final = 12
_FUNDING_HOURS: Final = payloads.FUNDING_EVERY_MS // 3_600_000

_KLINES: Final = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,taker_buy_quote_volume,ignore"
)
_HEADERS: Final = {
    "aggTrades": "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker",
    "trades": "id,price,qty,quote_qty,time,is_buyer_maker",
    "klines": _KLINES,
    "markPriceKlines": _KLINES,
    "indexPriceKlines": _KLINES,
    "bookTicker": "update_id,best_bid_price,best_bid_qty,best_ask_price,best_ask_qty,transaction_time,event_time",
    "metrics": (
        "create_time,symbol,sum_open_interest,sum_open_interest_value,count_toptrader_long_short_ratio,"
        "sum_toptrader_long_short_ratio,count_long_short_ratio,sum_taker_long_short_vol_ratio"
    ),
    "fundingRate": "calc_time,funding_interval_hours,last_funding_rate",
    "liquidationSnapshot": (
        "time,side,order_type,time_in_force,original_quantity,price,average_price,order_status,last_fill_quantity,"
        "accumulated_fill_quantity"
    ),
}


def header_of(venue: str, what: str) -> bytes:
    """The first line of the files of a type; nothing on spot."""
    return b"" if venue == SPOT else _HEADERS[what].encode() + b"\n"


# What is read of the streams


class AggTrade(Struct, gc=False):
    """Of `<s>@aggTrade`."""

    symbol: str = field(name="s")
    identity: int = field(name="a")
    price: str = field(name="p")
    quantity: str = field(name="q")
    first_id: int = field(name="f")
    last_id: int = field(name="l")
    time: int = field(name="T")
    buyer_is_maker: bool = field(name="m")


class Trade(Struct, gc=False):
    """Of `<s>@trade`."""

    symbol: str = field(name="s")
    identity: int = field(name="t")
    price: str = field(name="p")
    quantity: str = field(name="q")
    time: int = field(name="T")
    buyer_is_maker: bool = field(name="m")


class BookTicker(Struct, gc=False):
    """Of `<s>@bookTicker` on futures."""

    symbol: str = field(name="s")
    update_id: int = field(name="u")
    bid_price: str = field(name="b")
    bid_quantity: str = field(name="B")
    ask_price: str = field(name="a")
    ask_quantity: str = field(name="A")
    time: int = field(name="T")
    event_time: int = field(name="E")
    market_type: int = field(name="st")


class MarkPrice(Struct, gc=False):
    """Of `<s>@markPrice`."""

    symbol: str = field(name="s")
    event_time: int = field(name="E")
    mark: str = field(name="p")
    index: str = field(name="i")
    rate: str = field(name="r")
    next_funding: int = field(name="T")


class LiquidationOrder(Struct, gc=False):
    """The inside of `<s>@forceOrder`."""

    symbol: str = field(name="s")
    side: str = field(name="S")
    order_type: str = field(name="o")
    time_in_force: str = field(name="f")
    quantity: str = field(name="q")
    price: str = field(name="p")
    average: str = field(name="ap")
    status: str = field(name="X")
    last: str = field(name="l")
    filled: str = field(name="z")
    time: int = field(name="T")
    market_type: int = field(name="st")


class Liquidation(Struct, gc=False):
    """Of `<s>@forceOrder`."""

    order: LiquidationOrder = field(name="o")


@dataclass(slots=True)
class PriceBar:
    """A minute of a price that is told every second."""

    open_ms: int
    open: str
    high: str
    low: str
    close: str
    count: int = 0

    def add(self, price: str) -> None:
        """One more sample."""
        self.high, self.low, self.close = max(self.high, price, key=float), min(self.low, price, key=float), price
        self.count += 1


# Lines


def microseconds(time: int) -> int:
    """An instant that a stream told."""
    return time if time > _MOST_MS else time * 1000


def _is_in_microseconds(venue: str, time_us: int) -> bool:
    return venue == SPOT and time_us >= _MICROSECONDS_FROM_US


def _stamp(venue: str, time: int) -> int:
    time_us = microseconds(time)
    return time_us if _is_in_microseconds(venue, time_us) else time_us // 1000


def _flag(venue: str, value: bool) -> str:
    return str(value) if venue == SPOT else str(value).lower()


def _ending(venue: str) -> str:
    """Spot has one column more: the best match."""
    return ",True\n" if venue == SPOT else "\n"


def agg_trade(venue: str, told: AggTrade) -> bytes:
    """A line of `aggTrades`."""
    return (
        f"{told.identity},{told.price},{told.quantity},{told.first_id},{told.last_id},"
        f"{_stamp(venue, told.time)},{_flag(venue, told.buyer_is_maker)}{_ending(venue)}"
    ).encode()


def trade(venue: str, told: Trade) -> bytes:
    """A line of `trades`."""
    return (
        f"{told.identity},{told.price},{told.quantity},{_product(told.price, told.quantity)},"
        f"{_stamp(venue, told.time)},{_flag(venue, told.buyer_is_maker)}{_ending(venue)}"
    ).encode()


def _product(price: str, quantity: str) -> str:
    decimals = _decimals(price) + _decimals(quantity)
    shown = min(decimals, _QUOTE_DECIMALS)
    return decimal(units(price) * units(quantity) // 10 ** (decimals - shown), shown)


def units(text: str) -> int:
    """A decimal without its point."""
    return int(text.replace(".", ""))


def _decimals(text: str) -> int:
    return len(text.partition(".")[2])


def book_ticker(told: BookTicker) -> bytes:
    """A line of `bookTicker`."""
    return (
        f"{told.update_id},{told.bid_price},{told.bid_quantity},{told.ask_price},{told.ask_quantity},{told.time},"
        f"{told.event_time}\n"
    ).encode()


def liquidation(told: LiquidationOrder) -> bytes:
    """Two lines of `liquidationSnapshot`: they are in there twice."""
    line = (
        f"{told.time},{told.side},{told.order_type},{told.time_in_force},{told.quantity},{told.price},{told.average},"
        f"{told.status},{told.last},{told.filled}\n"
    )
    return (line * 2).encode()


def funding(symbol: str, time_ms: int, rate: str) -> bytes:
    """A line of `fundingRate`; the calculation takes some milliseconds."""
    late_ms = zlib.crc32(f"{symbol} {time_ms}".encode()) % _MOST_LATE_MS
    return f"{time_ms + late_ms},{_FUNDING_HOURS},{rate}\n".encode()


def kline(venue: str, grid: Grid, bar: Bar, span_ms: int) -> bytes:
    """A line of `klines`."""
    price, unit = grid.price, 1000 if _is_in_microseconds(venue, bar.open_ms * 1000) else 1
    return (
        f"{bar.open_ms * unit},{price[bar.open]},{price[bar.high]},{price[bar.low]},{price[bar.close]},"
        f"{_volume(grid, bar.volume)},{(bar.open_ms + span_ms) * unit - 1},{grid.quote(bar.quote)},{bar.count},"
        f"{_volume(grid, bar.taker_volume)},{grid.quote(bar.taker_quote)},0\n"
    ).encode()


def _volume(grid: Grid, steps: int) -> str:
    return decimal(steps * grid.step, grid.quantity_decimals)


def price_kline(bar: PriceBar, span_ms: int) -> bytes:
    """A line of `markPriceKlines` or `indexPriceKlines`."""
    return (
        f"{bar.open_ms},{bar.open},{bar.high},{bar.low},{bar.close},0,{bar.open_ms + span_ms - 1},0,{bar.count},0,0,0\n"
    ).encode()


def metric(venue: str, symbol: str, time_ms: int, *, held: str, value: float, taker_ratio: float) -> bytes:
    """A line of `metrics`. Nobody has accounts here, so as many are long as short; COIN-M does not say it at all."""
    when = datetime.fromtimestamp(time_ms / 1000, UTC)
    accounts = '"","",""' if venue == COIN_M else "1.00000000,1.00000000,1.00000000"
    return f"{when:%Y-%m-%d %H:%M:%S},{symbol},{held},{value:.8f},{accounts},{taker_ratio:.8f}\n".encode()


def venue_of(market_type: int) -> str:
    """Both futures markets come by the same streams, and say which they are."""
    return COIN_M if market_type == payloads.COIN_M else FUTURES
