"""Charts become bars: complete ones, on the grid, that were traded; what cannot be read is set aside with its bytes."""

import json
from datetime import UTC, date, datetime
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest

from crypto_lake.config import CRYPTO, US_INDICES, US_STOCKS
from crypto_lake.models.bar import BAR
from crypto_lake.models.chart import ChartQuestion
from crypto_lake.models.frame import RESPONSE, Records
from crypto_lake.processors.decode import Decoded, decode
from crypto_lake.processors.shape import shape

NEW_YORK = ZoneInfo("America/New_York")
# A Wednesday, half an hour into the session of New York.
TEN = int(datetime(2026, 3, 4, 10, 0, tzinfo=NEW_YORK).timestamp())
RECEIVED_US = 1_790_000_000_000_000


def chart(
    stamps: list[int] | None, closes: list[float | None], *, symbol: str = "AAPL", volume: Any = 7, **meta: Any
) -> dict[str, Any]:
    """An answer as Yahoo sends it; opens are a dollar below the closes, highs one above."""
    quote = {
        "open": [each and each - 1 for each in closes],
        "high": [each and each + 1 for each in closes],
        "low": [each and each - 2 for each in closes],
        "close": closes,
        "volume": [each and volume for each in closes],
    }
    zone = {"symbol": symbol, "exchangeTimezoneName": "America/New_York"}
    series: dict[str, Any] = {"meta": {**zone, **meta}, "indicators": {"quote": [quote if stamps is not None else {}]}}
    if stamps is not None:
        series["timestamp"] = stamps
    return {"chart": {"result": [series], "error": None}}


def asked(symbol: str = "AAPL", timeframe: str = "1m", venue: str = US_STOCKS, **span: int) -> ChartQuestion:
    return ChartQuestion(venue, symbol, timeframe, span.get("since_s", TEN - 3600), span.get("until_s", TEN + 3600))


def decoded(body: Any, question: ChartQuestion | None = None) -> Decoded:
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    origin = (question or asked()).origin
    return decode(BAR, Records(1, [RESPONSE], [origin], [RECEIVED_US], [payload]))


def rows(body: Any, question: ChartQuestion | None = None) -> pl.DataFrame:
    found = decoded(body, question)
    assert not found.refused
    return shape(BAR, found.frame)


def begins(found: pl.DataFrame) -> list[int]:
    """Seconds from ten o'clock."""
    return [each - TEN for each in found["time"].dt.epoch("s")]


def test_a_chart_is_rows_of_the_table() -> None:
    (row,) = rows(chart([TEN, TEN + 60], [100.5, 200.0], regularMarketTime=TEN + 61)).to_dicts()
    assert row.pop("date") == date(2026, 3, 4)
    assert {name: value for name, value in row.items() if value is not None} == {
        "venue": US_STOCKS,
        "symbol": "AAPL",
        "time": datetime.fromtimestamp(TEN, UTC),
        "received_time": datetime.fromtimestamp(RECEIVED_US / 1e6, UTC),
        "source": "rest",
        "timeframe": "1m",
        "close_time": datetime.fromtimestamp(TEN + 59.999999, UTC),
        "open": 99.5,
        "high": 101.5,
        "low": 98.5,
        "close": 100.5,
        "volume": 7.0,
        "complete": True,
        "revision": 0,
        "origin": "yahoo",
    }


@pytest.mark.parametrize(
    ("stamps", "market_s", "complete"),
    [
        ([0, 60, 97], 97, [0]),  # the minute that is, and the price of this second
        ([0, 60, 120], 120, [0, 60]),  # that price may stand on the grid
        ([0, 60], 119, [0]),
        ([0, 60], 120, [0, 60]),  # the last trade came with the end of the minute
        ([0, 60, 97], None, [0]),  # without the exchange's own time, that of the newest row
        ([0, 120], None, [0]),
    ],
)
def test_only_what_is_over_by_the_exchanges_own_time_is_a_bar(
    stamps: list[int], market_s: int | None, complete: list[int]
) -> None:
    time = {} if market_s is None else {"regularMarketTime": TEN + market_s}
    found = rows(chart([TEN + each for each in stamps], [100.0] * len(stamps), **time))
    assert begins(found) == complete


def test_our_clock_completes_nothing() -> None:
    # Received half a year later, and still the exchange says that the minute goes on.
    assert RECEIVED_US / 1e6 > TEN + 86_400
    assert rows(chart([TEN], [100.0], regularMarketTime=TEN + 30)).is_empty()


@pytest.mark.parametrize("empty", ["open", "high", "low", "close"])
def test_a_minute_without_a_trade_is_no_row(empty: str) -> None:
    body = chart([TEN, TEN + 60, TEN + 120], [100.0, 101.0, 102.0], regularMarketTime=TEN + 600)
    body["chart"]["result"][0]["indicators"]["quote"][0][empty][1] = None
    assert begins(rows(body)) == [0, 120]


def test_an_index_has_no_volume() -> None:
    question = asked("^GSPC", venue=US_INDICES)
    body = chart([TEN, TEN + 60], [5000.0, 5001.0], symbol="^GSPC", volume=None, regularMarketTime=TEN + 600)
    assert rows(body, question)["volume"].to_list() == [None, None]
    del body["chart"]["result"][0]["indicators"]["quote"][0]["volume"]
    found = rows(body, question)
    assert found.select("venue", "symbol", "close", "volume").rows() == [
        (US_INDICES, "^GSPC", 5000.0, None),
        (US_INDICES, "^GSPC", 5001.0, None),
    ]


def test_a_chart_without_times_has_no_bars() -> None:
    assert rows(chart(None, [])).is_empty()
    assert rows(chart([], [])).is_empty()


def test_rows_outside_of_the_question_are_left_out() -> None:
    body = chart([TEN - 60, TEN, TEN + 60, TEN + 86_400], [100.0] * 4, regularMarketTime=TEN + 90_000)
    assert begins(rows(body, asked(since_s=TEN, until_s=TEN + 60))) == [0]


def test_a_row_off_the_grid_is_set_aside_unless_it_is_the_last() -> None:
    found = decoded(chart([TEN, TEN + 67, TEN + 120, TEN + 187], [100.0, 5.0, 102.0, 103.0]))
    assert begins(shape(BAR, found.frame)) == [0, 120]
    ((reason, payload),) = [(each.reason, json.loads(each.payload)) for each in found.refused]
    assert reason == f"{TEN + 67} begins no 1m of AAPL"
    assert (payload["timestamp"], payload["close"]) == (TEN + 67, 5.0)


DAYS = [datetime(2026, 3, day, 9, 30, tzinfo=NEW_YORK) for day in (5, 6, 9, 10)]
WIDE = {"since_s": int(DAYS[0].timestamp()) - 86_400, "until_s": int(DAYS[-1].timestamp()) + 86_400}


def test_a_day_begins_at_midnight_of_the_exchange_also_where_the_clocks_change() -> None:
    # On Sunday, 8 March, New York goes from -5 to -4 hours.
    stamps = [int(day.timestamp()) for day in DAYS]
    found = rows(chart(stamps, [1.5, 2.5, 3.5, 4.5]), asked(timeframe="1d", **WIDE))
    assert found["time"].to_list() == [
        datetime(2026, 3, 5, 5, tzinfo=UTC),
        datetime(2026, 3, 6, 5, tzinfo=UTC),
        datetime(2026, 3, 9, 4, tzinfo=UTC),
    ]
    assert found["timeframe"].unique().to_list() == ["1d"]
    assert found["close_time"][0] == datetime(2026, 3, 6, 4, 59, 59, 999_999, tzinfo=UTC)


def test_a_day_is_over_at_its_midnight_and_not_with_the_session() -> None:
    first = int(DAYS[0].timestamp())
    at = {name: int(datetime(2026, 3, 5, hour, 59, 59, tzinfo=NEW_YORK).timestamp()) for name, hour in
          (("session", 16), ("evening", 23))}  # fmt: skip
    for moment in at.values():
        body = chart([first, moment], [1.5, 2.5], regularMarketTime=moment)
        assert rows(body, asked(timeframe="1d", **WIDE)).is_empty()
    body = chart([first], [1.5], regularMarketTime=at["evening"] + 1)
    assert rows(body, asked(timeframe="1d", **WIDE)).height == 1


def test_a_day_that_is_told_twice_is_one_bar() -> None:
    # The session's row, and behind it the last price of the same day.
    stamps = [int(DAYS[0].timestamp()), int(DAYS[0].timestamp()) + 20_000, int(DAYS[1].timestamp())]
    found = rows(chart(stamps, [1.5, 9.5, 2.5]), asked(timeframe="1d", **WIDE))
    assert found["close"].to_list() == [1.5]


def test_days_of_what_trades_all_week_are_those_of_their_own_zone() -> None:
    midnight = int(datetime(2026, 3, 4, tzinfo=UTC).timestamp())
    body = chart([midnight, midnight + 86_400], [1.5, 2.5], symbol="BTC-USD", exchangeTimezoneName="UTC")
    question = ChartQuestion(CRYPTO, "BTC-USD", "1d", midnight, midnight + 10**6)
    assert rows(body, question)["time"].to_list() == [datetime(2026, 3, 4, tzinfo=UTC)]


def test_a_day_is_the_exchanges_also_where_it_opens_on_another_day_of_utc() -> None:
    stamps = [int(datetime(2026, 3, day, 10, tzinfo=ZoneInfo("Australia/Sydney")).timestamp()) for day in (4, 5)]
    body = chart(stamps, [1.5, 2.5], exchangeTimezoneName="Australia/Sydney")
    question = asked(timeframe="1d", since_s=stamps[0], until_s=stamps[1])
    assert rows(body, question)["time"].to_list() == [datetime(2026, 3, 3, 13, tzinfo=UTC)]


def test_where_a_day_has_no_midnight_it_begins_an_hour_later() -> None:
    stamps = [int(datetime(2024, 4, day, 11, tzinfo=ZoneInfo("Africa/Cairo")).timestamp()) for day in (26, 28)]
    body = chart(stamps, [1.5, 2.5], exchangeTimezoneName="Africa/Cairo")
    question = asked(timeframe="1d", since_s=stamps[0], until_s=stamps[1])
    assert rows(body, question)["time"].to_list() == [datetime(2024, 4, 25, 22, tzinfo=UTC)]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            {"chart": {"result": None, "error": {"code": "Not Found", "description": "No data found"}}},
            "Not Found: No data found",
        ),
        ({"chart": {"result": None, "error": None}}, "neither a chart nor an error"),
        (b"<html>Will be right back</html>", "malformed"),
        (b"\xff\xfe", "malformed"),
        ({"finance": {}}, "missing required field `chart`"),
        (chart([TEN * 1000], [1.0]), "Expected `int` <= 4133980800"),
        (chart([TEN, TEN + 60], [1.0]), "2 times, and 1 values of open"),
        (chart([TEN + 60, TEN, TEN + 120], [1.0, 2.0, 3.0]), "times that do not rise"),
        (chart([TEN], [1.0], symbol="MSFT"), "a chart of MSFT, and AAPL was asked for"),
        (chart([TEN], [1.0], dataGranularity="1d"), "bars of 1d, and 1m was asked for"),
        (
            {"chart": {"result": [{"meta": {"symbol": "AAPL"}, "timestamp": ["1"]}]}},
            "Expected `int`, got `str`",
        ),
    ],
)
def test_what_is_no_chart_of_what_was_asked_for_is_set_aside_whole(body: Any, reason: str) -> None:
    found = decoded(body)
    (refused,) = found.refused
    assert found.frame.is_empty()
    assert reason in refused.reason
    assert refused.payload == (body if isinstance(body, bytes) else json.dumps(body).encode())
    assert (refused.venue, refused.received_us) == (US_STOCKS, RECEIVED_US)


def test_a_zone_that_nobody_knows_spoils_days_and_no_minutes() -> None:
    body = chart([TEN, TEN + 60], [1.0, 2.0], exchangeTimezoneName="Mars/Olympus")
    assert rows(body).height == 1
    (refused,) = decoded(body, asked(timeframe="1d")).refused
    assert refused.reason == "'Mars/Olympus' is no time zone"


def test_an_answer_that_is_unfit_leaves_the_others_alone() -> None:
    good = json.dumps(chart([TEN, TEN + 60], [1.0, 2.0])).encode()
    origins = [asked().origin, asked("MSFT").origin, asked("^GSPC", venue=US_INDICES).origin]
    third = json.dumps(chart([TEN + 60, TEN + 120], [3.0, 4.0], symbol="^GSPC")).encode()
    found = decode(BAR, Records(1, [RESPONSE] * 3, origins, [RECEIVED_US] * 3, [good, b"no", third]))
    assert found.frame.select("venue", "symbol", "row").rows() == [(US_STOCKS, "AAPL", 0), (US_INDICES, "^GSPC", 2)]
    assert [each.payload for each in found.refused] == [b"no"]


@pytest.mark.parametrize("symbol", ["AAPL", "^GSPC", "EURUSD=X", "BTC-USD", "BRK-B", "A&B?C/D"])
def test_a_question_is_known_by_its_name(symbol: str) -> None:
    question = ChartQuestion(US_STOCKS, symbol, "1m", -100, 4_000_000_000)
    assert ChartQuestion.named(question.origin) == question
    assert question.origin.startswith(question.about)
    assert question.path.count("/") == 4
    with pytest.raises(ValueError, match="without 'interval'"):
        ChartQuestion.named(b"us-stocks /v8/finance/chart?symbol=AAPL")
