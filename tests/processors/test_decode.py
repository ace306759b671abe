"""Decoding: each message becomes its row, and one that does not fit is set aside with its bytes."""

import json
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_lake.models import DATASETS
from crypto_lake.models.dataset import LATEST_US
from crypto_lake.models.frame import FRAME, RESPONSE, Records
from crypto_lake.processors.decode import Refused, decode
from crypto_lake.processors.levels import NotLevels, level_lists
from crypto_lake.processors.shape import rejected_rows, shape

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
RECEIVED_US = 1_790_000_001_000_000
CASES = [json.loads(line) for line in (Path(__file__).parents[1] / "wire" / "messages.jsonl").read_text().splitlines()]


def records(messages: Sequence[tuple[int, str, bytes]]) -> Records:
    return Records(
        end=1,
        kinds=[kind for kind, _, _ in messages],
        origins=[origin.encode() for _, origin, _ in messages],
        received_us=[RECEIVED_US + n for n in range(len(messages))],
        payloads=[payload for _, _, payload in messages],
    )


def rows_of(dataset: str, *messages: tuple[int, str, bytes]) -> tuple[list[dict[str, Any]], list[Refused]]:
    decoded = decode(DATASETS[dataset], records(messages))
    return shape(DATASETS[dataset], decoded.frame).to_dicts(), decoded.refused


def comparable(value: Any, wanted: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return value.isoformat() if isinstance(value, date) else value


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['dataset']}: {case['why']}")
def test_a_message_becomes_its_rows_or_is_refused(case: dict[str, Any]) -> None:
    kind = FRAME if case["kind"] == "frame" else RESPONSE
    rows, refused = rows_of(case["dataset"], (kind, case["origin"], case["payload"].encode()))
    if "refused" in case:
        assert not rows
        assert case["refused"] in refused[0].reason
        assert refused[0].payload.decode() == case["payload"]
        return
    assert not refused
    assert len(rows) == len(case["rows"])
    for row, wanted in zip(rows, case["rows"], strict=True):
        assert {name: comparable(row[name], value) for name, value in wanted.items()} == wanted


@pytest.mark.parametrize("dataset", [name for name, each in DATASETS.items() if each.live])
def test_good_messages_around_a_bad_one_keep_their_places(dataset: str) -> None:
    good = next(each for each in CASES if each["dataset"] == dataset and each["kind"] == "frame" and each.get("rows"))
    one = (FRAME, good["origin"], good["payload"].encode())
    bad = (FRAME, good["origin"], b'{"stream":"x","data":{"e":"surprise"}}')
    raw = (FRAME, good["origin"], json.dumps(json.loads(good["payload"])["data"]).encode())
    rows, refused = rows_of(dataset, one, bad, raw, one)
    stamps = [row["received_time"].microsecond for row in rows]
    assert stamps == [n for n in (0, 2, 3) for _ in good["rows"]]
    assert [each.payload for each in refused] == [bad[2]]


MILLIS = st.integers(1_230_768_000_000, 4_133_980_800_000)
NO_TIMES = st.integers(4_133_980_800_001, 1_230_767_999_999_999)


@given(st.lists(st.tuples(MILLIS, st.integers(0, 999), st.booleans()), min_size=1, max_size=20), st.data())
def test_a_time_is_read_by_its_size_row_by_row(times: list[tuple[int, int, bool]], data: st.DataObject) -> None:
    case = next(each for each in CASES if each["why"] == "a liquidation")
    whole = [(ms, ms * 1000) if coarse else (min(ms * 1000 + us, LATEST_US), None) for ms, us, coarse in times]
    wire = [told for told, _ in whole]
    truth = [told if exact is None else exact for told, exact in whole]
    wrong = data.draw(st.sets(st.integers(0, len(wire) - 1), max_size=3))
    for place in wrong:
        wire[place] = data.draw(NO_TIMES)
    messages = []
    for number, told in enumerate(wire):
        message = json.loads(case["payload"])
        message["data"]["o"] |= {"T": told, "q": str(number)}
        messages.append((FRAME, case["origin"], json.dumps(message).encode()))
    rows, refused = rows_of("liquidation", *messages)
    got = {int(row["quantity"]): (row["time"] - EPOCH) // timedelta(microseconds=1) for row in rows}
    assert got == {place: us for place, us in enumerate(truth) if place not in wrong}
    assert [each.payload for each in refused] == [messages[place][2] for place in sorted(wrong)]
    assert all(
        f"time: {wire[place]} is no time" in each.reason for place, each in zip(sorted(wrong), refused, strict=True)
    )


def test_every_refusal_is_a_row_with_its_bytes_in_order() -> None:
    refused = [Refused("binance", "no JSON", b"\xff{", 5), Refused("binance-futures", "cut", "币".encode(), 6)]
    rows = rejected_rows(DATASETS["agg_trade"], refused).to_dicts()
    assert [row["payload"] for row in rows] == ["\\xff{", "币"]
    assert [row["venue"] for row in rows] == ["binance", "binance-futures"]
    assert {row["dataset"] for row in rows} == {"agg_trade"}


def test_a_shape_has_the_columns_of_its_table_whatever_came() -> None:
    for dataset in DATASETS.values():
        assert shape(dataset, pl.DataFrame()).schema == pl.Schema(dataset.schema)


decimals = st.decimals(min_value=0, max_value=10**9, places=6, allow_nan=False).map(str)
sides = st.lists(st.tuples(decimals, decimals), max_size=30)


@given(st.lists(sides, max_size=20), st.booleans())
def test_levels_are_bit_for_bit_the_floats_of_their_text(books: list[list[tuple[str, str]]], spaced: bool) -> None:
    separators = None if spaced else (",", ":")
    arrays = [json.dumps(book, separators=separators).encode() for book in books]
    got = level_lists("bids", arrays).to_list()
    assert got == [[{"price": float(p), "quantity": float(q)} for p, q in book] for book in books]


NO_LEVELS = [
    b'[["1","2"],["3"]]', b'[["1","2"],[3,4]]', b'["1","2"]', b'[["1","x"]]', b'[["inf","1"]]', b'[["nan","1"]]',
    b'[["1","2"]', b"{}", b"null", b"true", b'[["1","2"],["3","4","5"]]', b'[["1","2"],"3","4"]', b'[["1_0","2"]]',
    b'[["1"],["2","3","4"]]', b'[["1e999","2"]]', b'[["\xff","1"]]', b'[["","1"]]', b'[[" 1","1"]]', b"[" * 5000,
]  # fmt: skip


@given(st.lists(sides, min_size=1, max_size=5), st.data())
def test_what_are_no_levels_is_named_by_its_row(books: list[list[tuple[str, str]]], data: st.DataObject) -> None:
    arrays = [json.dumps(book, separators=(",", ":")).encode() for book in books]
    rows = data.draw(st.sets(st.integers(0, len(arrays) - 1), min_size=1))
    for row in rows:
        arrays[row] = data.draw(st.sampled_from(NO_LEVELS))
    with pytest.raises(NotLevels) as caught:
        level_lists("bids", arrays)
    assert set(caught.value.rows) == rows


def test_large_finite_numbers_are_numbers_though_their_sum_is_none() -> None:
    huge = [{"price": 1.5e308, "quantity": 1.5e308}]
    assert level_lists("bids", [b'[["1.5e308","1.5e308"]]'] * 2).to_list() == [huge, huge]


def test_a_price_of_fifteen_digits_comes_back_exactly() -> None:
    texts = ["0.00000001", "123456789.123456", "99999999999999.9", "0.1", "64990.90", "1000000.00000001"]
    case = next(each for each in CASES if each["why"] == "an aggregated trade of 2026")
    for text in texts:
        payload = case["payload"].replace("64990.90", text).encode()
        rows, _ = rows_of("agg_trade", (FRAME, case["origin"], payload))
        assert rows[0]["price"] == float(text)
        assert float(f"{rows[0]['price']:.15g}") == float(text)
