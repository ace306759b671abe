"""REST answers of the generated market, and the listing of symbols that any market can give."""

from collections.abc import Iterable, Mapping, Set
from typing import Any

import msgspec

from crypto_lake.config import FUTURES
from crypto_lake.simulator import payloads
from crypto_lake.simulator.grid import Grid, decimal
from crypto_lake.simulator.instrument import Instrument
from crypto_lake.simulator.market import Question, Refusal
from crypto_lake.simulator.payloads import Listing
from crypto_lake.simulator.rest import HOUR_MS, INTERVALS_MS

# USD-M keeps aggregate trades for REST no longer than this.
FUTURES_REACH_MS = 48 * HOUR_MS
_PERPETUAL_DELIVERY_MS = 4_133_404_800_000
_ONBOARD_MS = 1_569_398_400_000

Instruments = Mapping[tuple[str, str], Instrument]


def answer(
    question: Question, instruments: Instruments, now_ms: int, delisted: Set[tuple[str, str]] = frozenset()
) -> bytes:
    """The JSON body that answers a question at an instant of the market's clock."""
    if question.endpoint == "exchangeInfo":
        return exchange_info(question, (each.listing for each in instruments.values()), now_ms, delisted)
    if question.endpoint in _ROWS:
        return _rows(question, instruments, now_ms)
    instrument = instruments[question.venue, question.symbol]
    match question.endpoint:
        case "depth":
            return payloads.snapshot(instrument.listing, now_ms, instrument.book, question.limit)
        case "aggTrades":
            return payloads.array_of(_agg_trades(question, instrument, now_ms))
        case "trades":
            return _trades(question, instrument)
        case "klines":
            return _klines(question, instrument)
        case "openInterest":
            return _open_interest(instrument, now_ms)
    raise not_here(question)


def not_here(question: Question) -> Refusal:
    """For endpoints that a market cannot answer."""
    return Refusal(-5000, f"Path {question.endpoint}, Method GET is invalid", 404)


def _agg_trades(question: Question, instrument: Instrument, now_ms: int) -> list[bytes]:
    rows, limit = instrument.agg_trades, question.limit
    oldest_ms = now_ms - FUTURES_REACH_MS if question.venue == FUTURES else 0
    if question.from_id is not None:
        return rows.from_id(question.from_id, limit, oldest_ms)
    if question.start_ms is None:
        return rows.latest(limit, oldest_ms, question.end_ms)
    end_ms = now_ms if question.end_ms is None else question.end_ms
    return rows.between(max(question.start_ms, oldest_ms), end_ms, limit)


def _trades(question: Question, instrument: Instrument) -> bytes:
    latest = list(instrument.trades)[-question.limit :]
    return payloads.array_of(payloads.single_trade_row(instrument.listing, trade) for trade in latest)


def _klines(question: Question, instrument: Instrument) -> bytes:
    span_ms = INTERVALS_MS[question.interval]
    bars = instrument.klines(span_ms, question.start_ms, question.end_ms, question.limit)
    return payloads.array_of(payloads.kline_row(instrument.listing, bar, span_ms) for bar in bars)


def _open_interest(instrument: Instrument, now_ms: int) -> bytes:
    listing, day = instrument.listing, instrument.day(now_ms)
    steps = 1_000_000 + day.volume // 7
    text = decimal(steps * listing.grid.step, listing.grid.quantity_decimals)
    return f'{{"symbol":"{listing.symbol}","openInterest":"{text}","time":{now_ms}}}'.encode()


def _ticker(instrument: Instrument, now_ms: int) -> bytes:
    return payloads.ticker_row(instrument.listing, now_ms, instrument.day(now_ms), instrument.book)


def _price(instrument: Instrument, now_ms: int) -> bytes:
    listing, price = instrument.listing, instrument.listing.grid.price[instrument.last_price]
    time = f',"time":{now_ms}' if listing.is_futures else ""
    return f'{{"symbol":"{listing.symbol}","price":"{price}"{time}}}'.encode()


def _book_ticker(instrument: Instrument, now_ms: int) -> bytes:
    return payloads.book_ticker_row(instrument.listing, now_ms, instrument.book)


def _premium_index(instrument: Instrument, now_ms: int) -> bytes:
    return payloads.premium_index_row(instrument.listing, now_ms, instrument.book)


_ROWS = {
    "ticker/24hr": _ticker,
    "ticker/price": _price,
    "ticker/bookTicker": _book_ticker,
    "premiumIndex": _premium_index,
}


def _rows(question: Question, instruments: Instruments, now_ms: int) -> bytes:
    """An object for one symbol, an array for several or all."""
    wanted = question.symbols or tuple(symbol for venue, symbol in instruments if venue == question.venue)
    row = _ROWS[question.endpoint]
    rows = [row(instruments[question.venue, symbol], now_ms) for symbol in wanted]
    return payloads.array_of(rows) if question.is_list else rows[0]


def exchange_info(
    question: Question, listings: Iterable[Listing], now_ms: int, delisted: Set[tuple[str, str]]
) -> bytes:
    """`/exchangeInfo`: rate limits, and symbols with their filters; those that are no longer traded say so."""
    here = [each for each in listings if each.venue == question.venue]
    asked = [each for each in here if not question.symbols or each.symbol in question.symbols]
    is_futures = question.venue == FUTURES
    symbols = [_futures_symbol(each) if is_futures else _spot_symbol(each) for each in asked]
    for symbol in symbols:
        if (question.venue, symbol["symbol"]) in delisted:
            symbol["status"] = "SETTLING" if is_futures else "BREAK"
    body: dict[str, Any] = {
        "timezone": "UTC",
        "serverTime": payloads.stamp(question.venue, now_ms),
        "rateLimits": [_rate_limit(2400 if is_futures else 6000)],
        "exchangeFilters": [],
        "symbols": symbols,
    }
    if is_futures:
        body |= {"futuresType": "U_MARGINED", "assets": [{"asset": "USDT", "marginAvailable": True}]}
    return msgspec.json.encode(body)


def _rate_limit(limit: int) -> dict[str, Any]:
    return {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": limit}


def _filters(grid: Grid) -> list[dict[str, str]]:
    tick, step = decimal(grid.tick, grid.price_decimals), decimal(grid.step, grid.quantity_decimals)
    most = decimal(100_000 * 10**grid.quantity_decimals, grid.quantity_decimals)
    highest = decimal(100_000_000 * 10**grid.price_decimals, grid.price_decimals)
    return [
        {"filterType": "PRICE_FILTER", "minPrice": tick, "maxPrice": highest, "tickSize": tick},
        {"filterType": "LOT_SIZE", "minQty": step, "maxQty": most, "stepSize": step},
        {"filterType": "MARKET_LOT_SIZE", "minQty": step, "maxQty": most, "stepSize": step},
    ]


def _assets(symbol: str) -> tuple[str, str]:
    quote = next((each for each in ("USDT", "USDC", "BTC", "USD") if symbol.endswith(each)), symbol[-3:])
    return symbol.removesuffix(quote), quote


def _futures_symbol(listing: Listing) -> dict[str, Any]:
    base, quote = _assets(listing.pair)
    return {
        "symbol": listing.symbol,
        "pair": listing.pair,
        "contractType": "PERPETUAL",
        "deliveryDate": _PERPETUAL_DELIVERY_MS,
        "onboardDate": _ONBOARD_MS,
        "status": "TRADING",
        "baseAsset": base,
        "quoteAsset": quote,
        "marginAsset": quote,
        "pricePrecision": listing.grid.price_decimals,
        "quantityPrecision": listing.grid.quantity_decimals,
        "baseAssetPrecision": 8,
        "quotePrecision": 8,
        "underlyingType": "COIN",
        "underlyingSubType": [],
        "filters": _filters(listing.grid),
        "orderTypes": ["LIMIT", "MARKET", "STOP"],
        "timeInForce": ["GTC", "IOC", "FOK", "GTX"],
    }


def _spot_symbol(listing: Listing) -> dict[str, Any]:
    base, quote = _assets(listing.symbol)
    return {
        "symbol": listing.symbol,
        "status": "TRADING",
        "baseAsset": base,
        "baseAssetPrecision": 8,
        "quoteAsset": quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "orderTypes": ["LIMIT", "MARKET"],
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False,
        "filters": _filters(listing.grid),
        "permissions": [],
        "permissionSets": [["SPOT"]],
    }
