"""Files as they should not be: days in two of them, files without a row that is fit, months that change behind us."""

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from crypto_lake.backfill.binance import Summary, backfill
from crypto_lake.backfill.plan import Wanted
from crypto_lake.config import FUTURES, Settings
from crypto_lake.models.agg_trade import AGG_TRADE
from crypto_lake.models.book_ticker import BOOK_TICKER
from crypto_lake.models.bucket import DAY, File
from crypto_lake.models.dataset import Period
from crypto_lake.query import coverage, read

FIRST, LAST = date(2025, 11, 1), date(2025, 11, 30)
DAYS = [FIRST + number * DAY for number in range(30)]
HOURS = 10


def file(period: Period, first: date) -> File:
    return File(FUTURES, "aggTrades", "BTCUSDT", "", period, first)


def line(day: date, hour: int, price: str = "1.5") -> str:
    """A trade; the ids go on from day to day."""
    number = (day - FIRST).days * HOURS + hour
    time = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(hours=hour)
    return f"{number},{price},2,{number},{number},{int(time.timestamp() * 1000)},true"


def lines(*days: date) -> list[str]:
    return [line(day, hour) for day in days for hour in range(HOURS)]


@pytest.fixture
def take(settings: Callable[..., Settings], watched: Any) -> Callable[..., Any]:
    async def taken(first: date = FIRST, last: date = LAST) -> Summary:
        return await backfill(settings(), Wanted(AGG_TRADE, FUTURES, ("BTCUSDT",), "", first, last), watched)

    return taken


def ids(settings: Callable[..., Settings]) -> Sequence[int]:
    return read("agg_trade", root=settings().root).collect()["agg_trade_id"].sort().to_list()


def certificates(settings: Callable[..., Settings]) -> dict[date, tuple[Any, ...]]:
    """Of each day: rows, rows of the file, rows that only we have, verdict."""
    found = coverage("agg_trade", root=settings().root)
    return {row[0]: row[1:] for row in found.select("date", "rows", "dump_rows", "dump_missing_rows", "verdict").rows()}


async def test_a_row_that_is_in_the_files_of_two_days_is_in_the_table_once(
    bucket: Any, settings: Any, take: Any
) -> None:
    for day in DAYS:  # so many that some of them are ready together
        bucket.put(file("daily", day), [*lines(day), line(day + DAY, 0)])
    done = await take()
    assert done.is_good
    assert ids(settings) == list(range(30 * HOURS + 1))
    assert {verdict for *_, verdict in certificates(settings).values()} == {"complete", "unverifiable"}


async def test_a_day_none_of_whose_rows_is_fit_is_not_certified(bucket: Any, settings: Any, take: Any) -> None:
    bucket.put(file("daily", FIRST), [line(FIRST, hour, price="0") for hour in range(HOURS)])
    assert (await take(FIRST, FIRST)).refused == HOURS
    assert certificates(settings)[FIRST] == (0, HOURS, 0, "unverifiable")


async def test_of_a_file_without_a_row_the_certificate_says_what_it_lacks(
    bucket: Any, settings: Any, take: Any
) -> None:
    second = FIRST + DAY
    bucket.put(file("daily", FIRST), [*lines(FIRST), line(second, 0), line(second, 1)])
    bucket.put(file("daily", second), [])
    await take(FIRST, FIRST)
    await take(second, second)
    rows, in_file, only_ours, _ = certificates(settings)[second]
    assert (rows, in_file, only_ours) == (2, 0, 2)


async def test_a_month_that_was_replaced_is_read_for_all_its_days_whichever_are_asked_for(
    bucket: Any, settings: Any, take: Any
) -> None:
    missing = date(2025, 11, 20)
    late = line(date(2025, 11, 25), 5)
    every = lines(*DAYS)
    bucket.put(file("monthly", FIRST), [each for each in every if each != late and each not in lines(missing)])
    await take()
    bucket.put(file("monthly", FIRST), every)
    done = await take(FIRST, FIRST)
    assert done.replaced == [file("monthly", FIRST).path]
    assert ids(settings) == list(range(30 * HOURS))


@pytest.mark.parametrize("form", ["a month", "days", "days, the later ones first"])
async def test_a_best_bid_that_is_told_again_after_midnight_is_one_row(
    bucket: Any, settings: Any, watched: Any, form: str
) -> None:
    header = "update_id,best_bid_price,best_bid_qty,best_ask_price,best_ask_qty,transaction_time,event_time"
    days = DAYS if form == "a month" else DAYS[:3]

    def told(day: date) -> list[str]:
        """Ten updates, and the last one of the day before once more."""
        number, time = (day - FIRST).days * 10, datetime(day.year, day.month, day.day, tzinfo=UTC)
        at_ms = [int((time + timedelta(hours=hour)).timestamp() * 1000) for hour in range(11)]
        return [f"{number + place},1.5,2,1.6,2,{ms},{ms}" for place, ms in enumerate(at_ms)]

    def file_of(period: Period, first: date) -> File:
        return File(FUTURES, "bookTicker", "BTCUSDT", "", period, first)

    if form == "a month":
        bucket.put(file_of("monthly", FIRST), [header, *(line for day in days for line in told(day))])
    else:
        for day in days:
            bucket.put(file_of("daily", day), [header, *told(day)])
    spans = [(days[-1], days[-1]), (days[0], days[-1])] if form.endswith("first") else [(days[0], days[-1])]
    for first, last in spans:
        await backfill(settings(), Wanted(BOOK_TICKER, FUTURES, ("BTCUSDT",), "", first, last), watched)
    found = read("book_ticker", root=settings().root).collect()["update_id"].sort().to_list()
    assert found == list(range(len(days) * 10 + 1))
