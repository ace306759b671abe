"""REST manners of the simulator: weights and penalties, errors, paging, and answers that agree with the streams."""

import json
from typing import Any

import pytest

from crypto_lake.config import FUTURES, SPOT
from crypto_lake.simulator import GeneratedMarket, Simulator

NOON = 1_790_000_000.0


def a_market(total: int = 20_000, **settings: object) -> GeneratedMarket:
    """A market that has come to its end, so that answers can be compared with all that happened."""
    market = GeneratedMarket(
        **{"rate": 1_000, "start_ms": 1_790_000_000_000, "total": total, "record": True, **settings}
    )
    while not market.over:
        for _ in market.frames(10_000):
            pass
    return market


async def test_weight_is_counted_and_told_in_a_header(talk: Any) -> None:
    async with Simulator(a_market(10), clock=lambda: NOON) as exchange:
        url = exchange.rest_url
        weights = []
        for path, query in (
            ("/fapi/v1/ping", {}),
            ("/fapi/v1/depth", {"symbol": "BTCUSDT", "limit": 1000}),
            ("/fapi/v1/aggTrades", {"symbol": "BTCUSDT"}),
            ("/fapi/v1/ticker/24hr", {}),
            ("/fapi/v1/klines", {"symbol": "BTCUSDT", "interval": "1m", "limit": 99}),
        ):
            status, _, headers = await talk.got(url + path, **query)
            assert status == 200
            weights.append(int(headers["X-MBX-USED-WEIGHT-1M"]))
        assert weights == [1, 21, 41, 81, 82]
        assert exchange.used_weight == {FUTURES: 82, SPOT: 0}
        _, _, headers = await talk.got(url + "/api/v3/depth", symbol="BTCUSDT", limit=5000)
        assert headers["X-MBX-USED-WEIGHT-1M"] == "250"


async def test_too_much_weight_is_429_going_on_is_418_and_a_minute_later_all_is_well(talk: Any) -> None:
    now = [NOON // 60 * 60 + 10]
    limits = {FUTURES: 40}
    async with Simulator(a_market(10), weight_limits=limits, ban_after=2, clock=lambda: now[0]) as exchange:
        url = exchange.rest_url + "/fapi/v1/aggTrades"
        answers = [await talk.got(url, symbol="BTCUSDT") for _ in range(6)]
        assert [status for status, _, _ in answers] == [200, 200, 429, 429, 418, 418]
        assert 50 <= int(answers[2][2]["Retry-After"]) <= 51
        assert 120 <= int(answers[4][2]["Retry-After"]) <= 121
        assert answers[2][1]["code"] == answers[4][1]["code"] == -1003
        assert exchange.used_weight[FUTURES] == 40
        assert (await talk.got(exchange.rest_url + "/api/v3/ping"))[0] == 200
        now[0] += 60
        assert (await talk.got(url, symbol="BTCUSDT"))[0] == 418
        now[0] += 61
        assert (await talk.got(url, symbol="BTCUSDT"))[0] == 200


async def test_waiting_after_a_429_is_enough(talk: Any) -> None:
    now = [NOON // 60 * 60 + 10]
    async with Simulator(a_market(10), weight_limits={FUTURES: 20}, clock=lambda: now[0]) as exchange:
        url = exchange.rest_url + "/fapi/v1/aggTrades"
        assert [(await talk.got(url, symbol="BTCUSDT"))[0] for _ in range(2)] == [200, 429]
        now[0] += 50
        assert (await talk.got(url, symbol="BTCUSDT"))[0] == 200


@pytest.mark.parametrize(
    ("path", "query", "code"),
    [
        ("/fapi/v1/depth", {"symbol": "NOSUCH"}, -1121),
        ("/fapi/v1/depth", {"symbol": "btcusdt"}, -1121),
        ("/fapi/v1/depth", {}, -1102),
        ("/fapi/v1/depth", {"symbol": "BTCUSDT", "limit": 7}, -1130),
        ("/fapi/v1/aggTrades", {"symbol": "BTCUSDT", "limit": 1001}, -1130),
        ("/fapi/v1/aggTrades", {"symbol": "BTCUSDT", "limit": "many"}, -1100),
        ("/fapi/v1/aggTrades", {"symbol": "BTCUSDT", "startTime": 0, "endTime": 3_600_000}, -1127),
        ("/fapi/v1/aggTrades", {"symbol": "BTCUSDT", "fromId": 1, "startTime": 0}, -1128),
        ("/fapi/v1/klines", {"symbol": "BTCUSDT", "interval": "1m", "limit": 1501}, -1130),
        ("/fapi/v1/klines", {"symbol": "BTCUSDT"}, -1102),
        ("/fapi/v1/klines", {"symbol": "BTCUSDT", "interval": "7m"}, -1120),
        ("/api/v3/depth", {"symbol": "ETHUSDT"}, -1121),
    ],
)
async def test_a_wrong_request_gets_the_venue_s_code(talk: Any, path: str, query: dict, code: int) -> None:
    async with Simulator(a_market(10)) as exchange:
        status, body, _ = await talk.got(exchange.rest_url + path, **query)
    assert (status, body["code"]) == (400, code)


MICROSECONDS = {"X-MBX-TIME-UNIT": "MICROSECOND"}


@pytest.mark.parametrize(
    ("venue", "path", "headers", "unit"),
    [
        (FUTURES, "/fapi/v1/aggTrades", {}, 1),
        (FUTURES, "/fapi/v1/aggTrades", MICROSECONDS, 1),
        (SPOT, "/api/v3/aggTrades", {}, 1000),
        (SPOT, "/api/v3/aggTrades", MICROSECONDS, 1),
    ],
)
async def test_paging_by_id_gives_every_aggregate_trade_once(
    talk: Any, venue: str, path: str, headers: dict[str, str], unit: int
) -> None:
    market = a_market(30_000)
    truth = [json.loads(each) for each in market.sent(venue, "aggTrade", "BTCUSDT")]
    for each in truth:
        each["T"] //= unit
    async with Simulator(market) as exchange:
        rows, next_id = [], truth[0]["a"]
        while True:
            query = {"symbol": "BTCUSDT", "fromId": next_id, "limit": 700}
            _, page, _ = await talk.got(exchange.rest_url + path, headers=headers, **query)
            rows += page
            if len(page) < 700:
                break
            next_id = page[-1]["a"] + 1
        _, latest, _ = await talk.got(exchange.rest_url + path, symbol="BTCUSDT", limit=5)
        window = {"startTime": truth[10]["T"], "endTime": truth[40]["T"]}
        _, between, _ = await talk.got(exchange.rest_url + path, headers=headers, symbol="BTCUSDT", **window)
    keys = ("a", "p", "q", "f", "l", "T", "m")
    assert [[row[k] for k in keys] for row in rows] == [[each[k] for k in keys] for each in truth]
    assert [row["a"] for row in latest] == [each["a"] for each in truth[-5:]]
    # A window in microseconds is one of whole milliseconds here.
    fine = 1000 if truth[0]["T"] > 10**15 else 1
    first, last = window["startTime"] // fine, window["endTime"] // fine
    assert between == [row for row in rows if first <= row["T"] // fine <= last]
    assert ("nq" in rows[0]) == (venue == FUTURES)


async def test_futures_reach_back_48_hours_of_the_market_clock_and_spot_further(talk: Any) -> None:
    market = a_market(100 * 3600, rate=1, with_others=False, mix={"aggTrade": 1}, record=False)
    oldest_ms = market.clock_ms - 48 * 3_600_000
    async with Simulator(market) as exchange:
        _, futures, _ = await talk.got(exchange.rest_url + "/fapi/v1/aggTrades", symbol="BTCUSDT", fromId=0)
        _, spot, _ = await talk.got(exchange.rest_url + "/api/v3/aggTrades", symbol="BTCUSDT", fromId=0)
    assert oldest_ms <= futures[0]["T"] < oldest_ms + 60_000
    assert spot[0]["T"] < oldest_ms


@pytest.mark.parametrize(("venue", "path"), [(FUTURES, "/fapi/v1/aggTrades"), (SPOT, "/api/v3/aggTrades")])
async def test_rest_has_the_newest_trades_and_an_id_before_them_gives_the_oldest_of_these(
    talk: Any, venue: str, path: str
) -> None:
    market = a_market(20_000, mix={"aggTrade": 1}, with_others=False, history=1_000)
    newest = json.loads(market.sent(venue, "aggTrade", "BTCUSDT")[-1])["a"]
    first = json.loads(market.sent(venue, "aggTrade", "BTCUSDT")[0])["a"]
    assert newest - first > 1_300
    async with Simulator(market) as exchange:
        for from_id, limit, expected in (
            (0, 1000, range(newest - 999, newest + 1)),
            (first, 3, range(newest - 999, newest - 996)),
            (newest - 999, 2, range(newest - 999, newest - 997)),
            (newest - 10, 5, range(newest - 10, newest - 5)),
            (newest, 5, [newest]),
            (newest + 1, 5, []),
            (newest + 10**9, 5, []),
        ):
            _, rows, _ = await talk.got(exchange.rest_url + path, symbol="BTCUSDT", fromId=from_id, limit=limit)
            assert [row["a"] for row in rows] == list(expected)
        _, rows, _ = await talk.got(exchange.rest_url + path, symbol="BTCUSDT", startTime=0, limit=1)
        assert rows[0]["a"] == newest - 999


@pytest.mark.parametrize(
    ("depth", "path"),
    [("/public/ws/btcusdt@depth@100ms", "/fapi/v1/depth"), ("/ws/btcusdt@depth@100ms", "/api/v3/depth")],
)
async def test_a_snapshot_fetched_amid_the_stream_fits_into_it(talk: Any, depth: str, path: str) -> None:
    async with (
        Simulator(GeneratedMarket(rate=500)) as exchange,
        talk.listening(exchange.ws_url + depth) as socket,
    ):
        first = await talk.heard(socket)
        _, snapshot, _ = await talk.got(exchange.rest_url + path, symbol="BTCUSDT", limit=1000)
        identity = snapshot["lastUpdateId"]
        assert identity >= first["u"]
        event = first
        while event["u"] < identity:
            event = await talk.heard(socket)
        assert event["U"] <= identity <= event["u"] or event.get("pu") == identity
        assert ("T" in snapshot) == path.startswith("/fapi")


async def test_only_spot_tells_microseconds_and_only_to_who_asks(talk: Any) -> None:
    async with Simulator(a_market()) as exchange:
        digits = {}
        for venue, prefix in ((FUTURES, "/fapi/v1"), (SPOT, "/api/v3")):
            for unit in ("", "MILLISECOND", "microsecond", "MICROSECOND"):
                headers = {"x-mbx-time-unit": unit} if unit else {}
                _, time, _ = await talk.got(f"{exchange.rest_url}{prefix}/time", headers=headers)
                _, listed, _ = await talk.got(f"{exchange.rest_url}{prefix}/exchangeInfo", headers=headers)
                _, (row,), _ = await talk.got(
                    f"{exchange.rest_url}{prefix}/klines", headers=headers, symbol="BTCUSDT", interval="1m", limit=1
                )
                times = (time["serverTime"], listed["serverTime"], row[0], row[6])
                digits[venue, unit] = {len(str(each)) for each in times}
                assert str(row[6]).endswith("999")
    fine = {(SPOT, "MICROSECOND"), (SPOT, "microsecond")}
    assert digits == {key: {16} if key in fine else {13} for key in digits}


async def test_every_endpoint_answers(talk: Any) -> None:
    async with Simulator(a_market()) as exchange:
        for prefix in ("/fapi/v1", "/api/v3"):
            for path in ("ping", "time", "exchangeInfo", "ticker/24hr", "ticker/price", "ticker/bookTicker"):
                assert (await talk.got(f"{exchange.rest_url}{prefix}/{path}"))[0] == 200
            for path in ("depth", "aggTrades", "trades", "ticker/24hr", "ticker/price", "ticker/bookTicker"):
                status, body, _ = await talk.got(f"{exchange.rest_url}{prefix}/{path}", symbol="BTCUSDT")
                assert (status, bool(body)) == (200, True)
        for path in ("premiumIndex", "openInterest"):
            _, body, _ = await talk.got(f"{exchange.rest_url}/fapi/v1/{path}", symbol="币安人生USDT")
            assert body["symbol"] == "币安人生USDT"
        _, rows, _ = await talk.got(exchange.rest_url + "/api/v3/ticker/24hr", symbols='["BTCUSDT"]')
        assert [row["symbol"] for row in rows] == ["BTCUSDT"]


async def test_the_last_trades_are_those_of_the_stream(talk: Any) -> None:
    market = a_market()
    async with Simulator(market) as exchange:
        _, rows, _ = await talk.got(exchange.rest_url + "/fapi/v1/trades", symbol="BTCUSDT", limit=100)
    streamed = [json.loads(each) for each in market.sent(FUTURES, "trade", "BTCUSDT")][-100:]
    assert [(row["id"], row["price"], row["qty"], row["time"], row["isBuyerMaker"]) for row in rows] == [
        (each["t"], each["p"], each["q"], each["T"], each["m"]) for each in streamed
    ]
