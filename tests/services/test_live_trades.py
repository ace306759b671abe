"""Trades taken out of the journal one by one are the rows that the drain makes of it."""

import json
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_lake.models import DATASETS, Dataset
from crypto_lake.models.frame import FRAME, LAPSE, RESPONSE, Records
from crypto_lake.processors import decode as drain
from crypto_lake.processors.decode import decode
from crypto_lake.services import live_trades
from crypto_lake.services.live_trades import Found, Trades

MS = 1_790_000_000_000
CASES = [json.loads(line) for line in (Path(__file__).parents[1] / "wire" / "messages.jsonl").read_text().splitlines()]
ORIGINS = {FRAME: b"binance-futures market", RESPONSE: b"binance-futures /fapi/v1/aggTrades?symbol=ETHUSDT&fromId=1"}


def records(messages: Iterable[tuple[int, bytes, bytes]]) -> Records:
    kinds, origins, payloads = (list(each) for each in zip(*messages, strict=True))
    return Records(1, kinds, origins, [MS * 1000] * len(kinds), payloads)


def one_by_one(dataset: Dataset, given: Records) -> list[Found]:
    return list(Trades(dataset).find(given))


def by_the_drain(dataset: Dataset, given: Records) -> list[tuple[Any, ...]]:
    rows = decode(dataset, given).frame
    if rows.is_empty():
        return []
    trades = pl.col("last_trade_id") - pl.col("first_trade_id") + 1 if "last_trade_id" in rows.columns else pl.lit(1)
    time_us = pl.col("time").to_physical()
    columns = ("row", "venue", "symbol", dataset.sequence, time_us, "price", "quantity", trades.alias("trades"))
    return rows.select(*columns, "is_buyer_maker").rows()


def flat(found: Iterable[Found]) -> list[tuple[Any, ...]]:
    return [
        (row, venue, symbol, tick.trade_id, tick.time_us, tick.price, float(tick.quantity), *tick[4:])
        for row, venue, symbol, tick in found
    ]


@pytest.mark.parametrize("name", ["agg_trade", "trade"])
def test_every_message_of_the_wire_gives_the_same_trades(name: str) -> None:
    messages = [
        (FRAME if case["kind"] == "frame" else RESPONSE, case["origin"].encode(), case["payload"].encode())
        for case in CASES
    ]
    mine = flat(one_by_one(DATASETS[name], records(messages)))
    assert mine == by_the_drain(DATASETS[name], records(messages))
    assert len(mine) > 1


VALUES = {
    "a": [1, 2**63 - 1, -1, -2, 2**63, "7", None, 1.5],
    "t": [1, 0, "x", None],
    "T": [MS, MS * 1000, 0, 1, MS // 1000, 10**16, 4_133_980_800_000, 4_133_980_800_000_000, "1", None],
    "E": [MS, MS * 1000, 5_000_000_000_000, None],
    "p": ["1.5", "0", "", "x", "1e3", "1e400", "1_0", " 1", "NaN", "inf", "-1", 1.5, None, "1" * 41],
    "q": ["0.001", "", "1_0", "1e400", "x", "nan", 2, None],
    "f": [1, 5, None, "1"],
    "l": [5, 1, None],
    "m": [True, False, None, "true"],
    "s": ["BTCUSDT", "币安人生USDT", "BTCUSD_PERP", "ETHUSD_260925", "", None, "x" * 41],
    "st": [1, 2, None, "2"],
    "X": ["MARKET", "NA", None, 1],
    "e": ["aggTrade", "trade", "depthUpdate", None],
}
GOOD = {"E": MS, "T": MS, "p": "1.5", "q": "0.001", "m": True, "s": "BTCUSDT"}


@st.composite
def frames(draw: st.DrawFn, *, name: str) -> tuple[int, bytes, bytes]:
    ids = {"a": 7, "f": 1, "l": 5} if name == "agg_trade" else {"t": 7}
    event = {"e": "aggTrade" if name == "agg_trade" else "trade", **GOOD, **ids}
    for field in draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=2)):
        value = draw(st.sampled_from(VALUES[field]))
        if value is None and draw(st.booleans()):
            event.pop(field, None)
        else:
            event[field] = value
    kind = draw(st.sampled_from([FRAME, FRAME, RESPONSE] if name == "agg_trade" else [FRAME]))
    several = [event, event] if draw(st.booleans()) else event
    content = several if kind == RESPONSE or draw(st.booleans()) else {"stream": "x", "data": several}
    payload = json.dumps(content).encode()
    return kind, ORIGINS[kind], draw(st.sampled_from([payload, payload, payload, payload[:-3], b""]))


@pytest.mark.parametrize("name", ["agg_trade", "trade"])
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_what_the_drain_refuses_is_no_trade_and_what_it_takes_is_one(name: str, data: st.DataObject) -> None:
    drawn = data.draw(st.lists(frames(name=name), min_size=1, max_size=6))
    given = records([*drawn, (LAPSE, b"binance-futures x", b"{}")])
    assert flat(one_by_one(DATASETS[name], given)) == by_the_drain(DATASETS[name], given)


def test_quantities_are_the_decimals_of_the_venue() -> None:
    event = {"e": "trade", **GOOD, "t": 1, "q": "0.10000000"}
    ((*_, tick),) = one_by_one(DATASETS["trade"], records([(FRAME, ORIGINS[FRAME], json.dumps(event).encode())]))
    assert tick.quantity == Decimal("0.1")


def test_what_tells_coin_m_and_no_prints_is_as_the_drain_has_it() -> None:
    # There it stands beside Polars, which the process of the live bars does without.
    assert live_trades.COIN_M_SYMBOL.pattern == drain.COIN_M_SYMBOL
    assert live_trades.COIN_M_TYPE == drain.COIN_M_TYPE
    refuse = DATASETS["trade"].live.refuse  # type: ignore[union-attr]
    kinds = pl.DataFrame({"fill": ["MARKET", live_trades.NO_PRINT, None, "INSURANCE_FUND"]})
    (rule,) = refuse.values()
    assert kinds.select(rule.fill_null(False)).to_series().to_list() == [False, True, False, False]
    assert not DATASETS["agg_trade"].live.refuse  # type: ignore[union-attr]
