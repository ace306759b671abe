"""The generated market keeps its own rules: books, ids, times and what it remembers."""

import itertools
import json
from collections import Counter
from typing import Any

import pytest

from crypto_lake.config import FUTURES, SPOT
from crypto_lake.simulator import Frame, GeneratedMarket
from crypto_lake.simulator.market import Question
from crypto_lake.simulator.payloads import in_milliseconds
from crypto_lake.simulator.rest import ENDPOINTS

START_MS = 1_790_000_000_000


def a_market(**settings: object) -> GeneratedMarket:
    return GeneratedMarket(**{"start_ms": START_MS, "rate": 500, "spot": ("BTCUSDT", "ETHUSDT"), **settings})


def played(market: GeneratedMarket, count: int) -> list[Frame]:
    return list(market.frames(count))


class Follower:
    """The local book of PROTOCOLS B, as plain as can be: prices and quantities stay the strings that came."""

    def __init__(self, snapshot: dict) -> None:
        self.update_id = snapshot["lastUpdateId"]
        self.sides = {"b": dict(snapshot["bids"]), "a": dict(snapshot["asks"])}
        self.previous: int | None = None

    def follow(self, event: dict) -> None:
        if event["u"] < self.update_id or ("pu" not in event and event["u"] == self.update_id):
            return
        assert self.is_next(event), (self.update_id, event["U"], event["u"], event.get("pu"))
        for side, levels in self.sides.items():
            for price, quantity in event[side]:
                levels[price] = quantity
                if not float(quantity):
                    del levels[price]
        self.update_id = self.previous = event["u"]

    def is_next(self, event: dict) -> bool:
        if "pu" not in event:
            return event["U"] == self.update_id + 1 or (self.previous is None and event["U"] <= self.update_id)
        if self.previous is not None:
            return event["pu"] == self.previous
        return event["U"] <= self.update_id <= event["u"] or event["pu"] == self.update_id

    def best(self) -> tuple[str, str, str, str]:
        bid, ask = max(self.sides["b"], key=float), min(self.sides["a"], key=float)
        return bid, self.sides["b"][bid], ask, self.sides["a"][ask]


async def a_snapshot(market: GeneratedMarket, venue: str, symbol: str) -> dict:
    return json.loads(await market.answer(Question(venue, "depth", (symbol,), False, limit=1000)))


@pytest.mark.parametrize("venue", [FUTURES, SPOT])
@pytest.mark.parametrize("frames_before", [0, 777])
async def test_snapshot_and_diffs_give_the_best_prices_that_book_ticker_tells(venue: str, frames_before: int) -> None:
    market = a_market(futures=("BTCUSDT", "ETHUSDT"))
    played(market, frames_before)
    book = Follower(await a_snapshot(market, venue, "BTCUSDT"))
    compared = 0
    for frame in played(market, 60_000):
        if frame.venue != venue or not frame.stream.startswith("btcusdt@"):
            continue
        event = json.loads(frame.payload)
        if frame.stream == "btcusdt@depth":
            book.follow(event)
        elif frame.stream == "btcusdt@bookTicker" and event["u"] == book.update_id:
            assert book.best() == (event["b"], event["B"], event["a"], event["A"])
            compared += 1
    assert compared > 100


@pytest.mark.parametrize("venue", [FUTURES, SPOT])
async def test_the_whole_book_is_what_snapshot_and_diffs_give(venue: str) -> None:
    market = a_market(mix={"depth": 0.9, "bookTicker": 0.1})
    book = Follower(await a_snapshot(market, venue, "BTCUSDT"))
    for frame in played(market, 5_000):
        if frame.venue == venue and frame.stream == "btcusdt@depth":
            book.follow(json.loads(frame.payload))
    truth, grid = market.instrument(venue, "BTCUSDT").book, market.instrument(venue, "BTCUSDT").listing.grid
    assert book.update_id == truth.update_id
    assert book.sides["b"] == {grid.price[p]: grid.quantity[q] for p, q in truth.bids.items()}
    assert book.sides["a"] == {grid.price[p]: grid.quantity[q] for p, q in truth.asks.items()}


def test_futures_update_ids_chain_by_pu_only_and_spot_ids_have_no_holes() -> None:
    market = a_market(record=True)
    played(market, 20_000)
    futures = [json.loads(p) for p in market.sent(FUTURES, "depth", "BTCUSDT")]
    spot = [json.loads(p) for p in market.sent(SPOT, "depth", "BTCUSDT")]
    assert all(b["pu"] == a["u"] and b["U"] <= b["u"] for a, b in itertools.pairwise(futures))
    assert sum(b["U"] != a["u"] + 1 for a, b in itertools.pairwise(futures)) > len(futures) / 2
    assert all(b["U"] == a["u"] + 1 for a, b in itertools.pairwise(spot))
    assert not any({"pu", "T", "st"} & event.keys() for event in spot)


@pytest.mark.parametrize("venue", [FUTURES, SPOT])
def test_trade_ids_are_contiguous_and_cover_what_the_aggregates_say(venue: str) -> None:
    market = a_market(record=True)
    played(market, 20_000)
    aggregates = [json.loads(p) for p in market.sent(venue, "aggTrade", "BTCUSDT")]
    trades = [json.loads(p) for p in market.sent(venue, "trade", "BTCUSDT")]
    ids = [each["a"] for each in aggregates]
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    assert [i for each in aggregates for i in range(each["f"], each["l"] + 1)] == [each["t"] for each in trades]
    assert all(a["l"] + 1 == b["f"] for a, b in itertools.pairwise(aggregates))
    by_id = {each["t"]: each for each in trades}
    for each in aggregates:
        parts = [by_id[i] for i in range(each["f"], each["l"] + 1)]
        assert sum(round(float(part["q"]) * 1e8) for part in parts) == round(float(each["q"]) * 1e8)
        assert {(part["p"], part["m"]) for part in parts} == {(each["p"], each["m"])}


def test_a_symbol_is_liquidated_at_most_once_a_second() -> None:
    market = a_market(mix={"forceOrder": 0.5, "aggTrade": 0.5}, record=True)
    played(market, 20_000)
    orders = [json.loads(p) for p in market.sent(FUTURES, "forceOrder")]
    for clock in (lambda order: order["E"], lambda order: order["o"]["T"]):
        seconds = Counter((order["o"]["s"], clock(order) // 1000) for order in orders)
        assert max(seconds.values()) == 1
    assert {order["o"]["S"] for order in orders} == {"BUY", "SELL"}


def test_coin_m_rows_stand_in_the_all_market_streams_only() -> None:
    market = a_market(record=True)
    frames = played(market, 30_000)
    rows = {"!ticker@arr": set(), "!forceOrder@arr": set(), "!bookTicker": set()}
    for frame in frames:
        assert not frame.stream.startswith("btcusd_perp")
        if frame.stream in rows:
            event = json.loads(frame.payload)
            rows[frame.stream] |= {
                (row.get("s") or row["o"]["s"], row.get("st") or row["o"]["st"])
                for row in (event if isinstance(event, list) else [event])
            }
    assert all(("BTCUSD_PERP", 2) in seen for seen in rows.values())
    assert ("币安人生USDT", 1) in rows["!ticker@arr"]


def test_every_payload_is_json_with_the_time_of_the_market_clock() -> None:
    market = a_market(rate=100)
    for frame in played(market, 5_000):
        event = json.loads(frame.payload)
        for row in event if isinstance(event, list) else [event]:
            event_ms = row.get("E", 0) // (1000 if frame.venue == SPOT else 1)
            assert event_ms == frame.time_ms or "E" not in row
            assert START_MS <= frame.time_ms <= market.clock_ms


@pytest.mark.parametrize("rate", [50, 20_000])
def test_spot_trades_have_microseconds_that_never_fall_while_the_ids_rise(rate: int) -> None:
    market = a_market(rate=rate, mix={"aggTrade": 1}, record=True, futures=("BTCUSDT",), spot=("BTCUSDT",))
    played(market, 20_000)
    for kind, identity in (("aggTrade", "a"), ("trade", "t")):
        spot = [json.loads(each) for each in market.sent(SPOT, kind)]
        times = [each["T"] for each in sorted(spot, key=lambda each: each[identity])]
        assert times == sorted(times)
        assert len({time % 1000 for time in times}) > 500
        assert all(0 < each["E"] - each["T"] < 10_000 for each in spot)
        futures = [json.loads(each) for each in market.sent(FUTURES, kind)]
        assert {len(str(each[name])) for each in futures for name in "ET"} == {13}
    # The parts of one order trade in one instant, and where there is room no two orders do.
    orders = [json.loads(each)["T"] for each in market.sent(SPOT, "aggTrade")]
    assert set(orders) == {json.loads(each)["T"] for each in market.sent(SPOT, "trade")}
    assert len(set(orders)) == len(orders) or rate > 1_000


def floored(value: Any, name: str = "") -> Any:
    """What has microseconds in milliseconds; read with json and by the names and places that the venue documents."""
    if isinstance(value, dict):
        return {name: floored(each, name) for name, each in value.items()}
    if isinstance(value, list) and len(value) == 12 and isinstance(value[0], int):  # a kline
        return [each // 1000 if place in (0, 6) else each for place, each in enumerate(value)]
    if isinstance(value, list):
        return [floored(each) for each in value]
    is_time = name in ("E", "T", "O", "C", "time", "openTime", "closeTime", "serverTime") or (
        name == "t" and value > 10**15
    )
    return value // 1000 if is_time else value


async def test_in_milliseconds_a_message_of_spot_is_the_same_but_for_its_times() -> None:
    market, kinds = a_market(rate=100), set()
    for frame in played(market, 10_000):
        if frame.venue == SPOT:
            kinds.add(frame.stream.rpartition("@")[2])
            coarse = json.loads(in_milliseconds(frame.payload))
            assert coarse == floored(json.loads(frame.payload))
    assert kinds == {
        *("aggTrade", "trade", "depth", "depth5", "depth10", "depth20", "bookTicker", "ticker", "miniTicker"),
        *("kline_1m", "arr"),
    }
    changed = set()
    for endpoint in {each.name for each in ENDPOINTS.values() if each.venue == SPOT} - {"ping", "time"}:
        body = await market.answer(Question(SPOT, endpoint, ("BTCUSDT",), is_list=False, limit=100, interval="1m"))
        assert json.loads(in_milliseconds(body)) == floored(json.loads(body))
        changed |= {endpoint} if in_milliseconds(body) != body else set()
    assert changed == {"aggTrades", "trades", "klines", "ticker/24hr", "exchangeInfo"}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_gives_others() -> None:
    assert played(a_market(seed=7), 3_000) == played(a_market(seed=7), 3_000)
    assert played(a_market(seed=7), 3_000) != played(a_market(seed=8), 3_000)


def test_the_mix_is_what_was_asked_for() -> None:
    market = GeneratedMarket(
        50, (), rate=1_000, with_others=False, mix={"depth": 0.6, "aggTrade": 0.38, "forceOrder": 0.02}
    )
    kinds, levels = Counter(), []
    for frame in played(market, 20_000):
        kinds[frame.stream.rpartition("@")[2]] += 1
        if frame.stream.endswith("@depth"):
            event = json.loads(frame.payload)
            levels.append(len(event["b"]) + len(event["a"]))
    assert kinds["depth"] == pytest.approx(12_000, rel=0.05)
    assert kinds["aggTrade"] == pytest.approx(7_600, rel=0.05)
    assert kinds["forceOrder"] + kinds["arr"] == pytest.approx(400, rel=0.25)
    assert 20 <= sum(levels) / len(levels) <= 40


def test_rates_make_symbols_uneven() -> None:
    rates = {"BTCUSDT": 100, f"{FUTURES}:ETHUSDT": 1 / 60}
    market = GeneratedMarket(
        ("BTCUSDT", "ETHUSDT", "COIN"), (), rate=2, rates=rates, mix={"aggTrade": 1}, with_others=False, record=True
    )
    played(market, 102 * 1_200)
    counts = {symbol: len(market.sent(FUTURES, "aggTrade", symbol)) for symbol in market.symbols(FUTURES)}
    assert counts["BTCUSDT"] == pytest.approx(100 * 1_200, rel=0.02)
    assert counts["ETHUSDT"] == pytest.approx(20, abs=13)
    assert counts["COIN"] == pytest.approx(2 * 1_200, rel=0.15)
    assert market.clock_ms - market.start_ms == pytest.approx(1_200_000, rel=0.01)


def test_equal_rates_are_the_market_without_rates() -> None:
    symbols = {f"{FUTURES}:BTCUSDT": 250, f"{FUTURES}:ETHUSDT": 250}
    even = a_market(futures=("BTCUSDT", "ETHUSDT"), spot=(), rate=500)
    same = a_market(futures=("BTCUSDT", "ETHUSDT"), spot=(), rate=1, rates=symbols)
    assert played(same, 2_000) == played(even, 2_000)


def test_a_total_ends_the_market() -> None:
    market = a_market(total=100)
    assert len(played(market, 10_000)) < 1_000
    assert market.over
    assert market.made == 100


async def test_prices_and_quantities_stand_on_the_grid_of_exchange_info() -> None:
    market = a_market(record=True)
    played(market, 10_000)
    for venue in (FUTURES, SPOT):
        listed = json.loads(await market.answer(Question(venue, "exchangeInfo", (), True, limit=0)))
        for symbol in listed["symbols"]:
            filters = {each["filterType"]: each for each in symbol["filters"]}
            tick, step = float(filters["PRICE_FILTER"]["tickSize"]), float(filters["LOT_SIZE"]["stepSize"])
            for trade in map(json.loads, market.sent(venue, "aggTrade", symbol["symbol"])):
                for number, grid in ((trade["p"], tick), (trade["q"], step)):
                    assert float(number) / grid == pytest.approx(round(float(number) / grid), abs=1e-6)
                    assert float(number) > 0


async def test_klines_add_up_to_the_trades() -> None:
    market = a_market(rate=20, record=True)
    played(market, 20_000)
    klines = json.loads(await market.answer(Question(FUTURES, "klines", ("BTCUSDT",), False, 1500, interval="1m")))
    trades = [json.loads(p) for p in market.sent(FUTURES, "aggTrade", "BTCUSDT")]
    assert len(klines) > 5
    assert sum(float(row[5]) for row in klines) == pytest.approx(sum(float(t["q"]) for t in trades))
    assert sum(row[8] for row in klines) == sum(t["l"] - t["f"] + 1 for t in trades)
    closed = [json.loads(p)["k"] for p in market.sent(FUTURES, "kline_1m", "BTCUSDT") if b'"x":true' in p]
    assert [(k["t"], k["o"], k["h"], k["l"], k["c"], k["v"]) for k in closed] == [
        (row[0], *row[1:6]) for row in klines[: len(closed)]
    ]
