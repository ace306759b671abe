"""Yahoo's charts on loopback: the same for the same seed, with holes, a last row that is no bar, and refusals."""

from datetime import UTC, date, datetime
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import aiohttp
import msgspec
import pytest

from crypto_lake.simulator import Fault, GeneratedMarket, Listed, Quotes, Scenario, Simulator

NEW_YORK = ZoneInfo("America/New_York")
# A Friday in the session of New York, 37 seconds into a minute.
NOW = datetime(2026, 3, 6, 11, 0, 37, tzinfo=NEW_YORK)
NOW_S = int(NOW.timestamp())
CHART = "/v8/finance/chart/"


def quotes(now: datetime = NOW, **more: Any) -> Quotes:
    return Quotes(now_s=now.timestamp, **more)


def series(made: Quotes, symbol: str, timeframe: str, since_s: int, until_s: int) -> Any:
    status, body = made.answer(symbol, {"interval": timeframe, "period1": str(since_s), "period2": str(until_s)})
    assert status == 200
    (one,) = msgspec.json.decode(body)["chart"]["result"]
    return one


def table(one: Any) -> list[tuple[Any, ...]]:
    quote = one["indicators"]["quote"][0]
    names = ("open", "high", "low", "close", "volume")
    return list(zip(one["timestamp"], *(quote[name] for name in names), strict=True))


def test_a_chart_has_the_true_bars_with_nulls_between_and_a_price_at_the_end() -> None:
    made = quotes(null_share=0.2)
    rows = table(series(made, "AAPL", "1m", NOW_S - 3600, NOW_S + 60))
    true = made.true_bars("AAPL", "1m", NOW_S - 3600, NOW_S + 60)
    *bars, under_way, last = rows
    traded = [row for row in bars if row[1] is not None]
    assert traded == [(bar.stamp_s, bar.open, bar.high, bar.low, bar.close, bar.volume) for bar in true]
    assert 0 < len(bars) - len(traded) < 30
    assert len(bars) == 59
    assert all(later[0] - earlier[0] == 60 for earlier, later in pairwise(bars))
    assert (under_way[0], last[0]) == (NOW_S - 37, NOW_S)
    assert len({*last[1:5]}) == 1
    assert all(low <= min(first, close) <= max(first, close) <= high for _, first, high, low, close, _ in traded)
    assert series(made, "AAPL", "1m", NOW_S - 3600, NOW_S + 60)["meta"]["regularMarketTime"] == NOW_S


def test_a_seed_makes_the_same_bars_whatever_is_asked_before() -> None:
    one, other = quotes(seed=5), quotes(seed=5)
    series(other, "AAPL", "1d", 0, NOW_S)
    wide = one.true_bars("AAPL", "1m", NOW_S - 86_400, NOW_S)
    assert wide[-20:] == other.true_bars("AAPL", "1m", wide[-20].stamp_s, NOW_S)
    assert wide != quotes(seed=6).true_bars("AAPL", "1m", NOW_S - 86_400, NOW_S)


def test_the_bar_that_is_under_way_becomes_another_one() -> None:
    early, late = quotes(), quotes(datetime.fromtimestamp(NOW_S + 60, UTC))
    before = table(series(early, "AAPL", "1m", NOW_S - 60, NOW_S))[-2]
    after = next(row for row in table(series(late, "AAPL", "1m", NOW_S - 60, NOW_S)) if row[0] == before[0])
    assert before[:2] == after[:2]
    assert before[4:] != after[4:]


def test_days_are_stamped_with_the_open_of_their_market_and_end_with_the_price() -> None:
    made = quotes(null_share=0.0)
    *days, last = table(series(made, "AAPL", "1d", NOW_S - 7 * 86_400, NOW_S + 86_400))
    opens = [datetime.fromtimestamp(row[0], NEW_YORK) for row in days]
    assert {(each.hour, each.minute) for each in opens} == {(9, 30)}
    assert [each.day for each in opens] == [2, 3, 4, 5, 6]
    assert last[0] == NOW_S
    true = made.true_bars("AAPL", "1d", NOW_S - 7 * 86_400, NOW_S + 86_400)
    assert [bar.stamp_s for bar in true] == [row[0] for row in days[:-1]]


def test_an_index_has_no_volume_and_a_weekend_nothing_but_coins() -> None:
    made = quotes(datetime(2026, 3, 8, 12, tzinfo=UTC))
    sunday_s = int(datetime(2026, 3, 8, tzinfo=UTC).timestamp())
    assert {row[5] for row in table(series(made, "^GSPC", "1d", sunday_s - 6 * 86_400, sunday_s))} == {None}
    assert len(made.true_bars("BTC-USD", "1m", sunday_s, sunday_s + 7200)) > 100
    assert made.true_bars("AAPL", "1m", sunday_s, sunday_s + 86_400) == []
    nothing = series(made, "AAPL", "1m", sunday_s, sunday_s + 3600)
    assert "timestamp" not in nothing
    assert nothing["indicators"] == {"quote": [{}]}


@pytest.mark.parametrize(
    ("symbol", "query", "status", "words"),
    [
        ("NOBODY", {}, 404, "No data found, symbol may be delisted"),
        ("AAPL", {"interval": "1m"}, 422, "period1 and period2"),
        ("AAPL", {"interval": "7m", "period1": "1", "period2": "2"}, 422, "interval=7m is not supported"),
        ("AAPL", {"interval": "1d", "period1": "2", "period2": "1"}, 422, "start date cannot be after end date"),
        ("AAPL", {"interval": "1m", "period1": str(NOW_S - 9 * 86_400), "period2": str(NOW_S)}, 422, "8 days"),
        ("AAPL", {"interval": "1m", "period1": "1000", "period2": "2000"}, 422, "within the last 30 days"),
        ("YOUNG", {"interval": "1d", "period1": "1000", "period2": "2000"}, 400, "Data doesn't exist for startDate"),
    ],
)
def test_what_there_is_not_is_said_in_yahoos_form(symbol: str, query: dict[str, str], status: int, words: str) -> None:
    listed = (Listed("AAPL", "EQUITY", 180.0), Listed("YOUNG", "EQUITY", 20.0, since=date(2025, 1, 1)))
    got, body = quotes(listed=listed).answer(symbol, query)
    content = msgspec.json.decode(body)["chart"]
    assert (got, content["result"]) == (status, None)
    assert words in content["error"]["description"]


async def test_charts_are_served_and_faults_concern_them() -> None:
    made = quotes()
    faults = (
        Fault(kind="too_many", symbols=("MSFT",), endpoints=("chart",), retry_after_s=7),
        Fault(kind="html", symbols=("^GSPC",), venue="yahoo", status=999),
    )
    span = {"interval": "1m", "period1": str(NOW_S - 600), "period2": str(NOW_S)}
    market = GeneratedMarket(1, rate=1)
    async with (
        Simulator(market, quotes=made, faults=Scenario(faults=faults)) as exchange,
        aiohttp.ClientSession(exchange.environment["LAKE_YAHOO"]) as session,
    ):
        async with session.get(f"{CHART}AAPL", params=span) as answer:
            assert (answer.status, answer.content_type) == (200, "application/json")
            assert await answer.read() == made.answer("AAPL", span)[1]
        async with session.get(f"{CHART}MSFT", params=span) as answer:
            assert (answer.status, answer.headers["Retry-After"], answer.content_type) == (429, "7", "text/plain")
        async with session.get(f"{CHART}%5EGSPC", params=span) as answer:
            assert (answer.status, answer.content_type) == (999, "text/html")
        async with session.get(f"{CHART}NOBODY", params=span) as answer:
            assert answer.status == 404
        done = [(each.kind, each.what) for each in exchange.faults.done]
    assert done == [("too_many", "yahoo chart MSFT"), ("html", "yahoo chart ^GSPC")]
    assert {each.symbol for each in made.asked} == {"AAPL"}
