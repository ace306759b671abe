"""Spot tells microseconds: the same fact by socket and by REST is the same row, with every digit the venue told."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from crypto_lake.config import FUTURES, SPOT, Settings
from crypto_lake.connections.rest import Rest
from crypto_lake.connections.websocket import connected
from crypto_lake.models import DATASETS
from crypto_lake.models.frame import FRAME, RESPONSE, Records
from crypto_lake.processors.decode import decode
from crypto_lake.processors.shape import shape
from crypto_lake.query import read
from crypto_lake.services.feeds import plan
from crypto_lake.services.markets import Wanted
from crypto_lake.simulator import Fault, GeneratedMarket, Scenario, Simulator

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
AGG_TRADE = DATASETS["agg_trade"]


def instant(told_us: int) -> datetime:
    return EPOCH + timedelta(microseconds=told_us)


def rows_of(kind: int, origin: str, payloads: list[bytes]) -> pl.DataFrame:
    count = len(payloads)
    records = Records(1, [kind] * count, [origin.encode()] * count, [1_790_000_000_000_000] * count, payloads)
    decoded = decode(AGG_TRADE, records)
    assert not decoded.refused
    return shape(AGG_TRADE, decoded.frame).sort("agg_trade_id")


@pytest.mark.parametrize("venue", [FUTURES, SPOT])
async def test_a_trade_is_the_same_row_by_socket_and_by_rest(venue: str) -> None:
    market = GeneratedMarket(("BTCUSDT",), ("BTCUSDT",), rate=1_000, mix={"aggTrade": 1}, with_others=False)
    async with Simulator(market) as exchange:
        settings = Settings(_env_file=None, futures_ws=exchange.ws_url, spot_ws=exchange.ws_url)
        (feed,) = plan([AGG_TRADE], {venue: Wanted(venue, ("BTCUSDT",))}, settings)
        async with connected(feed.url, silence_s=30) as connection:
            heard = []
            async for frame in connection.frames():
                heard += [frame.payload] if b"@aggTrade" in frame.payload[:40] else []
                if len(heard) == 500:
                    break
        live = rows_of(FRAME, f"{venue} x", heard)
        request = AGG_TRADE.poll.requests[venue]
        question = {"symbol": "BTCUSDT", "fromId": str(live["agg_trade_id"][0]), "limit": "500"}
        async with Rest(lambda _: exchange.rest_url) as rest:
            answer = await rest.get(venue, request.path, question, weight=request.weight)
    asked = rows_of(RESPONSE, f"{venue} {request.path}?symbol=BTCUSDT", [answer.body])
    apart = ("received_time", "source", "event_time")  # REST does not tell when a message was made
    assert live.drop(apart).equals(asked.drop(apart))
    assert live["source"].unique().to_list() == ["live"]
    assert asked["source"].unique().to_list() == ["rest"]
    assert len(below_ms(live)) > 100 if venue == SPOT else below_ms(live) == {0}


async def test_what_is_recorded_of_spot_has_the_microseconds_that_the_venue_told(
    recorder: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    market = GeneratedMarket((), ("BTCUSDT",), rate=300, record=True)
    lost = Fault(kind="lost", streams=("aggTrade",), share=0.05, everywhere=True)
    async with Simulator(market, faults=Scenario(faults=(lost,))) as exchange:
        daemon = recorder(
            {**exchange.environment, "LAKE_SYMBOLS": "binance:BTCUSDT", "LAKE_DATASETS": "agg_trade,trade,depth,prices"}
        )
        await daemon.start()
        await wait_for(lambda: repaired(daemon) >= 10)
        assert await daemon.stop() == 0
    for dataset, kind, identity, column, time in (
        ("agg_trade", "aggTrade", "a", "agg_trade_id", "T"),
        ("trade", "trade", "t", "trade_id", "T"),
        ("depth", "depth", "u", "final_update_id", "E"),
    ):
        told = {event[identity]: event for event in map(json.loads, market.sent(SPOT, kind))}
        rows = read(dataset, root=str(daemon.root)).collect()
        rows = rows.filter(~pl.col("is_snapshot")) if dataset == "depth" else rows
        for row in rows.iter_rows(named=True):
            event = told[row[column]]
            assert row["time"] == instant(event[time])
            assert row["event_time"] == (None if row["source"] == "rest" else instant(event["E"]))
        assert len(below_ms(rows)) > 30
    prices = read("prices", root=str(daemon.root)).collect()
    assert prices.select((pl.col("close_time") - pl.col("open_time")).unique()).item() == timedelta(days=1)
    assert (prices["close_time"] - prices["received_time"]).abs().max() < timedelta(seconds=30)
    assert read("rejected", root=str(daemon.root)).collect().is_empty()


def below_ms(rows: pl.DataFrame) -> set[int]:
    """The microseconds that stand below the milliseconds."""
    return set((rows["time"].dt.epoch("us") % 1000).to_list())


def repaired(daemon: Any) -> int:
    """How many rows of the table came by REST."""
    if not any(daemon.root.glob("agg_trade/_delta_log/*.json")):
        return 0
    return read("agg_trade", root=str(daemon.root)).filter(source="rest").collect().height
