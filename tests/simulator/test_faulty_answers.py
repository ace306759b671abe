"""Faults of REST answers, as clients see them."""

import json
import time
from typing import Any

import aiohttp
import pytest

from crypto_lake.config import FUTURES, SPOT
from crypto_lake.simulator import Fault, GeneratedMarket, Scenario, Simulator


def an_exchange(*faults: Fault) -> Simulator:
    market = GeneratedMarket(("BTCUSDT", "ETHUSDT"), rate=500, record=True, with_others=False, seed=4)
    return Simulator(market, faults=Scenario(faults=faults))


@pytest.mark.parametrize(
    ("kind", "status", "code", "wait"),
    [("too_many", 429, -1003, "3"), ("banned", 418, -1003, "3"), ("restricted", 451, 0, None)],
)
async def test_a_refusal_has_status_code_words_and_the_time_to_wait(
    talk: Any, kind: str, status: int, code: int, wait: str | None
) -> None:
    asked = {"retry_after_s": 3.0} if wait else {}
    async with an_exchange(Fault(kind=kind, endpoints=("aggTrades",), venue=FUTURES, **asked)) as exchange:
        got, body, headers = await talk.got(exchange.rest_url + "/fapi/v1/aggTrades", symbol="BTCUSDT")
        assert (got, body["code"], headers.get("Retry-After")) == (status, code, wait)
        assert body["msg"]
        assert (await talk.got(exchange.rest_url + "/fapi/v1/depth", symbol="BTCUSDT"))[0] == 200
        assert (await talk.got(exchange.rest_url + "/api/v3/aggTrades", symbol="BTCUSDT"))[0] == 200
        assert [(each.kind, each.what) for each in exchange.faults.done] == [(kind, f"{FUTURES} aggTrades BTCUSDT")]


@pytest.mark.parametrize("status", [200, 403, 502])
async def test_a_page_comes_where_json_should_be(status: int) -> None:
    async with (
        an_exchange(Fault(kind="html", status=status)) as exchange,
        aiohttp.ClientSession() as session,
        session.get(exchange.rest_url + "/fapi/v1/exchangeInfo") as answer,
    ):
        assert (answer.status, answer.content_type) == (status, "text/html")
        with pytest.raises(ValueError, match="Expecting value"):
            json.loads(await answer.text())


async def test_a_slow_answer_comes_after_its_delay_and_the_others_at_once(talk: Any) -> None:
    async with an_exchange(Fault(kind="slow", delay_s=0.7, symbols=("ETHUSDT",))) as exchange:
        url, took = exchange.rest_url + "/fapi/v1/depth", {}
        for symbol in ("ETHUSDT", "BTCUSDT"):
            began = time.monotonic()
            assert (await talk.got(url, symbol=symbol))[0] == 200
            took[symbol] = time.monotonic() - began
        assert took["ETHUSDT"] >= 0.7
        assert [each.what for each in exchange.faults.done] == [f"{FUTURES} depth ETHUSDT"]


async def test_a_share_of_the_answers_is_drawn_by_the_seed(talk: Any) -> None:
    runs = []
    for _ in range(2):
        async with an_exchange(Fault(kind="too_many", share=0.5)) as exchange:
            runs.append([(await talk.got(exchange.rest_url + "/fapi/v1/ping"))[0] for _ in range(30)])
    assert runs[0] == runs[1]
    assert 5 <= runs[0].count(429) <= 25


async def test_a_window_closes(talk: Any) -> None:
    async with an_exchange(Fault(kind="banned", for_s=0.5)) as exchange:
        statuses = []
        for _ in talk.tries():
            statuses.append((await talk.got(exchange.rest_url + "/fapi/v1/ping"))[0])
            if statuses[-1] == 200:
                break
        assert len(exchange.faults.done) == statuses.count(418)


@pytest.mark.parametrize(
    ("stream", "path", "venue"),
    [("/public/ws/btcusdt@depth", "/fapi/v1/depth", FUTURES), ("/ws/btcusdt@depth", "/api/v3/depth", SPOT)],
)
async def test_a_stale_snapshot_is_a_real_book_older_than_the_stream(
    talk: Any, stream: str, path: str, venue: str
) -> None:
    fault = Fault(kind="stale_snapshot", at_s=1.0, age_s=0.5, symbols=("BTCUSDT",))
    async with an_exchange(fault) as exchange, talk.listening(exchange.ws_url + stream) as socket:
        _, fresh, _ = await talk.got(exchange.rest_url + path, symbol="BTCUSDT", limit=100)
        for _ in talk.tries():
            if exchange.faults.done:
                break
            newest = (await talk.heard(socket))["U"]
            _, stale, _ = await talk.got(exchange.rest_url + path, symbol="BTCUSDT", limit=100)
        assert fresh["lastUpdateId"] <= stale["lastUpdateId"] < newest
        diffs = [json.loads(each) for each in exchange.market.sent(venue, "depth", "BTCUSDT")]
    identity = stale["lastUpdateId"]
    after = next(each for each in diffs if each["u"] > identity)
    assert after["U"] <= identity + 1 or after.get("pu") == identity
    assert len(stale["bids"]) == 100
    assert float(stale["bids"][0][0]) < float(stale["asks"][0][0])


async def test_new_fields_are_in_rest_rows_too(talk: Any) -> None:
    async with an_exchange(Fault(kind="new_fields", venue=FUTURES)) as exchange:
        url = exchange.rest_url + "/fapi/v1/"
        _, book, _ = await talk.got(url + "depth", symbol="BTCUSDT")
        _, rows, _ = await talk.got(url + "ticker/24hr")
        _, listed, _ = await talk.got(url + "exchangeInfo")
        _, klines, _ = await talk.got(url + "klines", symbol="BTCUSDT", interval="1m")
        _, spot, _ = await talk.got(exchange.rest_url + "/api/v3/depth", symbol="BTCUSDT")
    for row in (book, *rows, listed, *listed["symbols"]):
        assert row["newField"] == "1.50"
    assert all(len(row) == 12 for row in klines)
    assert "newField" not in spot
