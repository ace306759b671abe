"""First seen wins: what is the same message, and for how long it is remembered."""

import pytest

from crypto_lake.models import DATASETS
from crypto_lake.services.seen import Seen, has_ids

TRADE = b'{"stream":"btcusdt@aggTrade","data":{"e":"aggTrade","E":1790000000123,"s":"BTCUSDT","a":7,"p":"1.5"}}'


def test_the_same_fact_in_a_message_made_a_little_later_is_a_repeat() -> None:
    seen = Seen(ignore_event_time=True)
    assert not seen.is_repeat(TRADE)
    assert seen.is_repeat(TRADE)
    assert seen.is_repeat(TRADE.replace(b"0000123", b"0001987"))


def test_so_it_is_in_microseconds() -> None:
    seen, fine = Seen(ignore_event_time=True), TRADE.replace(b"0000123", b"0000123456")
    assert not seen.is_repeat(fine)
    assert not seen.is_repeat(fine.replace(b"1.5", b"1.6"))
    assert seen.is_repeat(fine)
    assert seen.is_repeat(TRADE.replace(b"0000123", b"0001987654"))
    assert not seen.is_repeat(TRADE.replace(b"0000123", b"00001234567"))


@pytest.mark.parametrize(
    ("right", "damaged"),
    [
        (b'"1.5"', b'"1.6"'),
        (b'"1.5"', b'"1.'),
        (b"1790000000123", b"9790000000123"),
        (b"000123,", b"0001x3,"),
        (b'"E":', b'"F":'),
    ],
)
def test_a_damaged_message_does_not_stand_in_the_way_of_the_good_one(right: bytes, damaged: bytes) -> None:
    seen = Seen(ignore_event_time=True)
    assert not seen.is_repeat(TRADE.replace(right, damaged))
    assert not seen.is_repeat(TRADE)


def test_where_there_are_no_ids_the_time_of_the_message_counts() -> None:
    seen = Seen(ignore_event_time=False)
    assert not seen.is_repeat(TRADE)
    assert not seen.is_repeat(TRADE.replace(b"0000123", b"0000124"))
    assert seen.is_repeat(TRADE)


def test_what_is_remembered_has_a_limit_and_is_forgotten_by_generations() -> None:
    seen = Seen(ignore_event_time=True, most=10)
    messages = [b"%d" % number for number in range(30)]
    assert not any(map(seen.is_repeat, messages))
    assert all(map(seen.is_repeat, messages[-20:]))
    assert not any(map(seen.is_repeat, messages[:5]))


def test_the_datasets_whose_facts_have_numbers_are_known() -> None:
    live = {name for name, dataset in DATASETS.items() if dataset.live and has_ids(dataset)}
    assert live == {"agg_trade", "trade", "depth", "book_ticker"}
