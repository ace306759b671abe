"""Clients that nobody here wrote get right data from the simulator: python-binance and ccxt."""

import json
import warnings
from collections.abc import AsyncIterator
from typing import Any

import pytest

with warnings.catch_warnings():
    # python-binance still imports names that websockets has deprecated.
    warnings.filterwarnings("ignore", message="websockets", category=DeprecationWarning)
    import ccxt.pro
    from binance import AsyncClient, BinanceSocketManager
    from binance.enums import FuturesType

from crypto_lake.config import FUTURES, SPOT
from crypto_lake.simulator import GeneratedMarket, Simulator
from crypto_lake.simulator.payloads import in_milliseconds


@pytest.fixture
async def exchange() -> AsyncIterator[Simulator]:
    async with Simulator(GeneratedMarket(rate=300, record=True, others_every_ms=200)) as exchange:
        yield exchange


@pytest.fixture
async def python_binance(exchange: Simulator, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AsyncClient]:
    monkeypatch.setattr(AsyncClient, "API_URL", exchange.rest_url + "/api")
    monkeypatch.setattr(AsyncClient, "FUTURES_URL", exchange.rest_url + "/fapi")
    monkeypatch.setattr(BinanceSocketManager, "STREAM_URL", exchange.ws_url + "/")
    monkeypatch.setattr(BinanceSocketManager, "FSTREAM_URL", exchange.ws_url + "/")
    client = await AsyncClient.create()
    yield client
    await client.close_connection()


def sent(exchange: Simulator, venue: str, kind: str, symbol: str | None = None) -> list[Any]:
    """As it is told to who asks for nothing."""
    assert isinstance(exchange.market, GeneratedMarket)
    payloads = exchange.market.sent(venue, kind, symbol)
    return [json.loads(in_milliseconds(each) if venue == SPOT else each) for each in payloads]


async def test_python_binance_reads_rest(python_binance: AsyncClient, exchange: Simulator) -> None:
    client = python_binance
    assert (await client.get_symbol_info("BTCUSDT"))["symbol"] == "BTCUSDT"
    assert [row["symbol"] for row in (await client.futures_exchange_info())["symbols"]][-1] == "币安人生USDT"
    assert len((await client.get_order_book(symbol="BTCUSDT", limit=20))["bids"]) == 20
    assert len((await client.futures_order_book(symbol="BTCUSDT", limit=20))["asks"]) == 20
    assert {row["symbol"] for row in await client.futures_ticker()} == set(exchange.market.symbols(FUTURES))
    assert float((await client.futures_mark_price(symbol="ETHUSDT"))["markPrice"]) > 0
    trades = await client.futures_aggregate_trades(symbol="BTCUSDT", limit=10)
    of_stream = {each["a"]: each for each in sent(exchange, FUTURES, "aggTrade", "BTCUSDT")}
    assert all(of_stream[row["a"]]["p"] == row["p"] for row in trades)


async def test_python_binance_reads_the_streams(talk: Any, python_binance: AsyncClient, exchange: Simulator) -> None:
    manager = BinanceSocketManager(python_binance)
    sockets = {
        (FUTURES, "aggTrade"): manager.aggtrade_futures_socket("BTCUSDT"),
        (FUTURES, "bookTicker"): manager.symbol_ticker_futures_socket("BTCUSDT"),
        (FUTURES, "depth10"): manager.futures_depth_socket("BTCUSDT"),
        (FUTURES, "depth"): manager.futures_multiplex_socket(["btcusdt@depth@100ms"], category="public"),
        (FUTURES, "markPrice"): manager.symbol_mark_price_socket("BTCUSDT", futures_type=FuturesType.USD_M),
        (SPOT, "aggTrade"): manager.aggtrade_socket("BTCUSDT"),
        (SPOT, "trade"): manager.trade_socket("BTCUSDT"),
        (SPOT, "depth"): manager.depth_socket("BTCUSDT", interval=100),
        (SPOT, "depth20"): manager.depth_socket("BTCUSDT", depth="20"),
        (SPOT, "kline_1m"): manager.kline_socket("BTCUSDT"),
    }
    for (venue, kind), socket in sockets.items():
        async with socket as stream:
            messages = [await talk.patiently(stream.recv()) for _ in range(3)]
        payloads = [message.get("data", message) for message in messages]
        truth = sent(exchange, venue, kind, "BTCUSDT")
        start = truth.index(payloads[0])
        assert payloads == truth[start : start + 3], (venue, kind)


async def test_python_binance_asks_spot_for_microseconds_and_gets_them(
    talk: Any, python_binance: AsyncClient, exchange: Simulator
) -> None:
    assert isinstance(exchange.market, GeneratedMarket)
    client = await AsyncClient.create(time_unit="MICROSECOND")
    try:
        async with BinanceSocketManager(client).aggtrade_socket("BTCUSDT") as stream:
            heard = [await talk.patiently(stream.recv()) for _ in range(3)]
        rows = await client.get_aggregate_trades(symbol="BTCUSDT", fromId=heard[0]["a"], limit=3)
        coarse = await python_binance.get_aggregate_trades(symbol="BTCUSDT", fromId=heard[0]["a"], limit=3)
    finally:
        await client.close_connection()
    truth = [json.loads(each) for each in exchange.market.sent(SPOT, "aggTrade")]
    start = truth.index(heard[0])
    assert heard == truth[start : start + 3]
    assert [row["T"] for row in rows] == [each["T"] for each in heard]
    assert [row["T"] for row in coarse] == [each["T"] // 1000 for each in heard]


async def test_python_binance_sees_coin_m_among_all_tickers(
    talk: Any, python_binance: AsyncClient, exchange: Simulator
) -> None:
    async with BinanceSocketManager(python_binance).futures_ticker_socket() as stream:
        rows = (await talk.patiently(stream.recv()))["data"]
    assert {row["s"] for row in rows} == {*exchange.market.symbols(FUTURES), "BTCUSD_PERP"}


@pytest.fixture(params=[FUTURES, SPOT])
async def ccxt_and_venue(request: pytest.FixtureRequest, exchange: Simulator) -> AsyncIterator[tuple[Any, str]]:
    venue = request.param
    # ccxt takes an address for spot when it finds "/stream" in it; the name is subscribed, acknowledged and silent.
    client = ccxt.pro.binanceusdm() if venue == FUTURES else ccxt.pro.binance({"options": {"fetchMarkets": ["spot"]}})
    client.urls["api"]["fapiPublic"] = exchange.rest_url + "/fapi/v1"
    client.urls["api"]["public"] = exchange.rest_url + "/api/v3"
    client.urls["api"]["ws"]["future"] = exchange.ws_url + "/ws"
    client.urls["api"]["ws"]["spot"] = exchange.ws_url + "/ws/stream"
    yield client, venue
    await client.close()


def unified(venue: str) -> str:
    return "BTC/USDT:USDT" if venue == FUTURES else "BTC/USDT"


async def test_ccxt_watches_trades(talk: Any, ccxt_and_venue: tuple[Any, str], exchange: Simulator) -> None:
    client, venue = ccxt_and_venue
    seen: dict[str, Any] = {}
    while len(seen) < 20:
        seen |= {trade["id"]: trade for trade in await talk.patiently(client.watch_trades(unified(venue)))}
    truth = {str(each["t"]): each for each in sent(exchange, venue, "trade", "BTCUSDT")}
    for identity, trade in seen.items():
        each = truth[identity]
        assert (trade["price"], trade["amount"]) == (float(each["p"]), float(each["q"]))
        assert (trade["side"], trade["timestamp"]) == ("sell" if each["m"] else "buy", each["T"])


async def test_ccxt_keeps_the_simulator_s_order_book(
    talk: Any, ccxt_and_venue: tuple[Any, str], exchange: Simulator
) -> None:
    client, venue = ccxt_and_venue
    truths = watched_books(exchange, venue)
    compared = 0
    while compared < 10:
        book = await talk.patiently(client.watch_order_book(unified(venue)))
        if book["nonce"] in truths:
            bids, asks = truths[book["nonce"]]
            assert [tuple(level[:2]) for level in book["bids"]] == bids[: len(book["bids"])]
            assert [tuple(level[:2]) for level in book["asks"]] == asks[: len(book["asks"])]
            assert len(book["bids"]) > 400
            compared += 1


def watched_books(exchange: Simulator, venue: str) -> dict[int, tuple[list[Any], list[Any]]]:
    """The true book after each diff, by update id: filled while the market plays."""
    market = exchange.market
    assert isinstance(market, GeneratedMarket)
    instrument = market.instrument(venue, "BTCUSDT")
    grid, truths, tell = instrument.listing.grid, {}, instrument.depth

    def depth(time_ms: int, noise: bytes) -> Any:
        frame = tell(time_ms, noise)
        sides = instrument.book.top(2_000)
        truths[instrument.book.update_id] = tuple(
            [(float(grid.price[p]), float(grid.quantity[q])) for p, q in side] for side in sides
        )
        return frame

    instrument.depth = depth  # type: ignore[method-assign]
    return truths
