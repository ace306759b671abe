"""What the official files say of a generated market: row by row what was told, in the words of PROTOCOLS D."""

import itertools
import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import pytest

from crypto_lake.config import FUTURES, SPOT
from crypto_lake.models import DATASETS
from crypto_lake.models.bucket import file_at
from crypto_lake.simulator import Dumps, GeneratedMarket, Simulator, dumps_kept
from crypto_lake.simulator.market import Question

DAY_MS = 86_400_000
NEW_YEAR_MS = 1_735_689_600_000  # 2025-01-01: from here on spot files are in microseconds
SPANS_MS = {"1s": 1_000, "1m": 60_000, "5m": 300_000, "15m": 900_000, "1h": 3_600_000, "4h": 14_400_000, "1d": DAY_MS}


def a_market(before_ms: int = 20 * 60_000, after_ms: int = 10 * 60_000, **settings: Any) -> GeneratedMarket:
    """The minutes around New Year, all told already; a symbol for XML, and one that hardly anybody trades."""
    market = GeneratedMarket(
        **{
            "futures": ("BTCUSDT", "A&B币USDT"),
            "spot": ("BTCUSDT", "QUIETUSDT"),
            "rate": 2,
            "rates": {"QUIETUSDT": 1 / 40},
            "others_every_ms": 5_000,
            "start_ms": NEW_YEAR_MS - before_ms,
            "record": True,
            "dumps": True,
            **settings,
        }
    )
    while market.clock_ms < NEW_YEAR_MS + after_ms:
        for _ in market.frames(20):
            pass
    return market


@pytest.fixture(scope="module")
def market() -> GeneratedMarket:
    return a_market()


@pytest.fixture(scope="module")
def dumps(market: GeneratedMarket) -> Dumps:
    return Dumps(publish="all").of(market)


def told(market: GeneratedMarket, venue: str, kind: str, symbol: str | None = None) -> list[dict[str, Any]]:
    return [json.loads(payload) for payload in market.sent(venue, kind, symbol)]


def days_of(rows: list[tuple[int, str]]) -> dict[str, list[str]]:
    """Lines by the day of their time, which is in microseconds."""
    days: dict[str, list[str]] = {}
    for time_us, line in rows:
        days.setdefault(datetime.fromtimestamp(time_us // 1_000_000, UTC).date().isoformat(), []).append(line)
    return days


def microseconds(time: int) -> int:
    return time if time > 10**14 else time * 1000


def in_file(venue: str, time: int) -> int:
    """As spot and futures files write an instant."""
    time_us = microseconds(time)
    return time_us if venue == SPOT and time_us >= NEW_YEAR_MS * 1000 else time_us // 1000


def files(dumps: Dumps, folder: str, name: str) -> dict[str, list[str]]:
    """Rows of the files of days, by day."""
    days = (path.removeprefix(f"{folder}{name}-").removesuffix(".zip") for path in dumps.paths() if folder in path)
    return {day: dumps.rows(f"{folder}{name}-{day}.zip") for day in days}


def flag(venue: str, value: bool) -> str:
    return str(value) if venue == SPOT else json.dumps(value)


FOLDERS = {FUTURES: "data/futures/um", SPOT: "data/spot"}


@pytest.mark.parametrize(("venue", "symbol"), [(FUTURES, "BTCUSDT"), (FUTURES, "A&B币USDT"), (SPOT, "BTCUSDT")])
def test_aggregate_trades_are_those_of_the_stream(
    market: GeneratedMarket, dumps: Dumps, venue: str, symbol: str
) -> None:
    best = ",True" if venue == SPOT else ""
    expected = days_of(
        [
            (
                microseconds(each["T"]),
                f"{each['a']},{each['p']},{each['q']},{each['f']},{each['l']},{in_file(venue, each['T'])},"
                f"{flag(venue, each['m'])}{best}",
            )
            for each in told(market, venue, "aggTrade", symbol)
        ]
    )
    assert set(expected) == {"2024-12-31", "2025-01-01"}
    assert files(dumps, f"{FOLDERS[venue]}/daily/aggTrades/{symbol}/", f"{symbol}-aggTrades") == expected


@pytest.mark.parametrize(("venue", "symbol"), [(FUTURES, "BTCUSDT"), (SPOT, "BTCUSDT")])
def test_single_trades_are_those_of_the_stream_with_their_value(
    market: GeneratedMarket, dumps: Dumps, venue: str, symbol: str
) -> None:
    found = files(dumps, f"{FOLDERS[venue]}/daily/trades/{symbol}/", f"{symbol}-trades")
    best = ",True" if venue == SPOT else ""
    expected = days_of(
        [
            (microseconds(each["T"]), f"{each['t']},{each['p']},{each['q']},{in_file(venue, each['T'])},{each['m']}")
            for each in told(market, venue, "trade", symbol)
        ]
    )
    for day, rows in found.items():
        fields = [row.removesuffix(best).split(",") for row in rows]
        assert [f"{i},{p},{q},{t},{m.title()}" for i, p, q, _, t, m in fields] == expected[day]
        assert all(m == flag(venue, m.title() == "True") for *_, m in fields)
        assert [float(value) for _, _, _, value, _, _ in fields] == pytest.approx(
            [float(p) * float(q) for _, p, q, _, _, _ in fields], rel=1e-12
        )
    assert found.keys() == expected.keys()


@pytest.mark.parametrize(("folder", "symbol"), [("um", "BTCUSDT"), ("cm", "BTCUSD_PERP")])
def test_book_tickers_are_those_of_the_stream(market: GeneratedMarket, dumps: Dumps, folder: str, symbol: str) -> None:
    expected = days_of(
        [
            (each["T"] * 1000, ",".join(str(each[name]) for name in "ubBaATE"))
            for each in told(market, FUTURES, "bookTicker")
            if each["s"] == symbol
        ]
    )
    assert files(dumps, f"data/futures/{folder}/daily/bookTicker/{symbol}/", f"{symbol}-bookTicker") == expected


def test_liquidations_are_those_of_coin_m_each_of_them_twice() -> None:
    market = a_market(mix={"forceOrder": 1}, with_others=False)
    orders = [each["o"] for each in told(market, FUTURES, "forceOrder") if each["o"]["st"] == 2]
    fields = ("T", "S", "o", "f", "q", "p", "ap", "X", "l", "z")
    expected = days_of(
        [(order["T"] * 1000, ",".join(str(order[name]) for name in fields)) for order in orders for _ in range(2)]
    )
    folder = "data/futures/cm/daily/liquidationSnapshot/BTCUSD_PERP/"
    dumps = Dumps(publish="all").of(market)
    assert files(dumps, folder, "BTCUSD_PERP-liquidationSnapshot") == expected
    assert not [path for path in dumps.paths() if "liquidationSnapshot" in path and not path.startswith(folder)]


def bars_of(trades: list[dict[str, Any]], span_ms: int, until_ms: int) -> list[list[float]]:
    """Bars as plain as can be: open time, prices, volume, value, trades, and bought volume and value."""
    trades = [{**each, "T": microseconds(each["T"]) // 1000} for each in trades]
    first_ms = trades[0]["T"] // span_ms * span_ms
    by_span = {key: list(group) for key, group in itertools.groupby(trades, lambda each: each["T"] // span_ms)}
    bars: list[list[float]] = []
    for open_ms in range(first_ms, until_ms - span_ms + 1, span_ms):
        inside = by_span.get(open_ms // span_ms, [])
        prices = [float(each["p"]) for each in inside] or [bars[-1][4]]
        bought = [each for each in inside if not each["m"]]
        bars.append(
            [
                *(open_ms, prices[0], max(prices), min(prices), prices[-1], volume(inside), value(inside)),
                *(sum(each["l"] - each["f"] + 1 for each in inside), volume(bought), value(bought)),
            ]
        )
    return bars


def volume(trades: list[dict[str, Any]]) -> float:
    return sum(float(each["q"]) for each in trades)


def value(trades: list[dict[str, Any]]) -> float:
    return sum(float(each["q"]) * float(each["p"]) for each in trades)


@pytest.mark.parametrize(
    ("venue", "symbol", "interval"),
    [(SPOT, symbol, interval) for symbol in ("BTCUSDT", "QUIETUSDT") for interval in SPANS_MS]
    + [(FUTURES, "BTCUSDT", interval) for interval in SPANS_MS if interval != "1s"],
)
def test_klines_are_the_trades_of_their_span_and_where_there_are_none_the_last_price(
    market: GeneratedMarket, dumps: Dumps, venue: str, symbol: str, interval: str
) -> None:
    span_ms = SPANS_MS[interval]
    found = files(dumps, f"{FOLDERS[venue]}/daily/klines/{symbol}/{interval}/", f"{symbol}-{interval}")
    rows = [row.split(",") for day in found.values() for row in day]
    expected = bars_of(told(market, venue, "aggTrade", symbol), span_ms, market.clock_ms - dumps_kept.SETTLED_MS)
    for row, (open_ms, *numbers) in zip(rows, expected, strict=True):
        unit = 1000 if venue == SPOT and open_ms >= NEW_YEAR_MS else 1
        assert (int(row[0]), int(row[6])) == (open_ms * unit, (open_ms + span_ms) * unit - 1)
        assert [float(row[i]) for i in (1, 2, 3, 4, 5, 7, 8, 9, 10)] == pytest.approx(numbers, rel=1e-9, abs=1e-7)
        assert (len(row), row[11]) == (12, "0")
    if symbol == "QUIETUSDT" and interval in ("1s", "1m"):
        assert sum(row[8] == "0" for row in rows) > len(rows) // 10
    assert all(day == datetime.fromtimestamp(int(rows[0][:10]), UTC).date().isoformat() for day, rows in found.items())


async def test_klines_are_written_like_those_of_rest(market: GeneratedMarket, dumps: Dumps) -> None:
    for venue in (FUTURES, SPOT):
        found = files(dumps, f"{FOLDERS[venue]}/daily/klines/BTCUSDT/1m/", "BTCUSDT-1m")
        rows = {int(row.split(",")[0][:13]): row.split(",")[1:] for day in found.values() for row in day}
        rest = json.loads(await market.answer(Question(venue, "klines", ("BTCUSDT",), False, 1000, interval="1m")))
        asked = {int(str(row[0])[:13]): row for row in rest}
        assert len(set(rows) & set(asked)) > 25
        for open_ms in set(rows) & set(asked):
            texts = [str(each) for each in asked[open_ms][1:]]
            assert rows[open_ms][:5] + rows[open_ms][6:] == texts[:5] + texts[6:]


@pytest.mark.parametrize(("what", "field"), [("markPriceKlines", "p"), ("indexPriceKlines", "i")])
def test_klines_of_prices_are_the_samples_of_their_minute(
    market: GeneratedMarket, dumps: Dumps, what: str, field: str
) -> None:
    samples = [(each["E"] // 60_000, each[field]) for each in told(market, FUTURES, "markPrice", "BTCUSDT")]
    minutes = {
        minute: [price for _, price in group] for minute, group in itertools.groupby(samples, lambda each: each[0])
    }
    rows = [
        row.split(",")
        for day in files(dumps, f"data/futures/um/daily/{what}/BTCUSDT/1m/", "BTCUSDT-1m").values()
        for row in day
    ]
    assert len(rows) in (len(minutes), len(minutes) - 1)  # the last one may not be over
    for row in rows:
        prices = minutes[int(row[0]) // 60_000]
        ranked = sorted(prices, key=float)
        assert row[1:5] == [prices[0], ranked[-1], ranked[0], prices[-1]]
        assert row[5:] == ["0", str(int(row[0]) + 59_999), "0", str(len(prices)), "0", "0", "0"]


def test_funding_is_paid_when_the_stream_goes_on_to_the_next(dumps: Dumps) -> None:
    for symbol in ("BTCUSDT", "A&B币USDT"):
        path = f"data/futures/um/monthly/fundingRate/{symbol}/{symbol}-fundingRate-2025-01.zip"
        ((time, hours, rate),) = (row.split(",") for row in dumps.rows(path))
        assert 0 <= int(time) - NEW_YEAR_MS < 20
        assert (hours, rate) == ("8", "0.00010000")
    assert not [path for path in dumps.paths() if "fundingRate" in path and ("daily" in path or "2024" in path)]


async def test_metrics_hold_what_rest_said_of_the_open_interest_at_their_time() -> None:
    market = a_market(before_ms=-1, after_ms=0, with_others=False, record=False)
    asked: dict[str, str] = {}
    question = Question(FUTURES, "openInterest", ("BTCUSDT",), False, 0)
    for mark_ms in range(NEW_YEAR_MS + 300_000, NEW_YEAR_MS + 1_200_001, 300_000):
        while market.clock_ms + 500 < mark_ms:
            next(market.frames(1))
        # Nothing happens any more before the mark.
        when = datetime.fromtimestamp(mark_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        asked[when] = json.loads(await market.answer(question))["openInterest"]
    for _ in market.frames(10):
        pass
    dumps = Dumps(publish="all").of(market)
    rows = [
        row.split(",") for row in dumps.rows("data/futures/um/daily/metrics/BTCUSDT/BTCUSDT-metrics-2025-01-01.zip")
    ]
    assert {row[0]: row[2] for row in rows} == asked
    assert len(set(asked.values())) == 4
    assert {row[1] for row in rows} == {"BTCUSDT"}
    assert all(float(row[3]) == pytest.approx(float(row[2]) * 65_000, rel=0.01) for row in rows)
    coin_m = dumps.rows("data/futures/cm/daily/metrics/BTCUSD_PERP/BTCUSD_PERP-metrics-2025-01-01.zip")
    assert coin_m[0].startswith("2025-01-01 00:05:00,BTCUSD_PERP,1000000,1538.46")
    assert all(row.split(",")[4:7] == ['""', '""', '""'] for row in coin_m)


def test_futures_files_have_the_header_that_the_reader_knows_and_spot_files_none(dumps: Dumps) -> None:
    archives = {
        (venue, each.type): list(each.columns)
        for dataset in DATASETS.values()
        if dataset.dump
        for venue, archive in dataset.dump.archives.items()
        for each in (archive, archive.beside)
        if each
    }
    seen = set()
    for path in dumps.paths():
        file = file_at(path)
        assert file is not None
        first = dumps.csv(path).decode().splitlines()[0]
        columns = archives[file.venue, file.type]
        if file.venue == SPOT:
            assert first[0].isdigit()
            assert len(first.split(",")) == len(columns)
        else:
            assert first.split(",") == columns
            assert len(dumps.rows(path)[0].split(",")) == len(columns)
        assert dumps.csv(path).endswith(b"\n")
        seen.add((file.venue, file.type))
    assert len(seen) == 3 + 8 + 3  # spot, USD-M, COIN-M


def test_paths_are_those_of_the_bucket(dumps: Dumps) -> None:
    assert {
        "data/spot/daily/aggTrades/BTCUSDT/BTCUSDT-aggTrades-2024-12-31.zip",
        "data/spot/monthly/trades/BTCUSDT/BTCUSDT-trades-2025-01.zip",
        "data/spot/daily/klines/BTCUSDT/1s/BTCUSDT-1s-2024-12-31.zip",
        "data/futures/um/monthly/klines/A&B币USDT/15m/A&B币USDT-15m-2024-12.zip",
        "data/futures/um/daily/markPriceKlines/BTCUSDT/1m/BTCUSDT-1m-2025-01-01.zip",
        "data/futures/um/monthly/indexPriceKlines/BTCUSDT/1m/BTCUSDT-1m-2025-01.zip",
        "data/futures/um/daily/metrics/BTCUSDT/BTCUSDT-metrics-2024-12-31.zip",
        "data/futures/cm/monthly/bookTicker/BTCUSD_PERP/BTCUSD_PERP-bookTicker-2024-12.zip",
    } <= set(dumps.paths())
    assert not [path for path in dumps.paths() if "metrics" in path and "monthly" in path]
    assert not [path for path in dumps.paths() if "futures" in path and "/1s/" in path]
    with pytest.raises(KeyError, match="is not published"):
        dumps.rows("data/spot/daily/aggTrades/BTCUSDT/BTCUSDT-aggTrades-2024-12-30.zip")


def test_a_month_is_its_days_but_those_that_are_missing(market: GeneratedMarket) -> None:
    whole, holed = Dumps(publish="all").of(market), Dumps(publish="all", missing_days=[date(2025, 1, 1)]).of(market)
    for dumps, months in ((whole, {"2024-12", "2025-01"}), (holed, {"2024-12"})):
        found = files(dumps, "data/spot/daily/trades/BTCUSDT/", "BTCUSDT-trades")
        assert set(found) == {"2024-12-31", "2025-01-01"}
        of_months = files(dumps, "data/spot/monthly/trades/BTCUSDT/", "BTCUSDT-trades")
        assert of_months == {month: rows for day, rows in found.items() if (month := day[:7]) in months}
    assert not [path for path in Dumps(publish="all", monthly=False).of(market).paths() if "monthly" in path]


@pytest.mark.parametrize(("after_s", "is_there"), [(0, True), (590, True), (660, False)])
def test_a_day_is_published_when_it_is_over_or_so_much_later(
    market: GeneratedMarket, after_s: float, is_there: bool
) -> None:
    paths = Dumps(publish_after_s=after_s).of(market).paths()
    assert ("data/spot/daily/trades/BTCUSDT/BTCUSDT-trades-2024-12-31.zip" in paths) == is_there
    assert ("data/spot/monthly/trades/BTCUSDT/BTCUSDT-trades-2024-12.zip" in paths) == is_there
    assert not [path for path in paths if "2025" in path]


async def test_the_day_s_files_appear_at_midnight(wait_for: Callable[..., Any]) -> None:
    market = GeneratedMarket(rate=2_000, start_ms=NEW_YEAR_MS - 500, record=True)
    path = "data/futures/um/daily/aggTrades/BTCUSDT/BTCUSDT-aggTrades-2024-12-31.zip"
    async with Simulator(market, dumps=True) as exchange:
        assert exchange.dumps.paths() == []
        assert exchange.environment["LAKE_BINANCE_DUMPS"] == exchange.rest_url
        await wait_for(lambda: path in exchange.dumps.paths())
        first = exchange.dumps.rows(path)
        await wait_for(lambda: market.clock_ms > NEW_YEAR_MS + 100)
        ids = [each["a"] for each in told(market, FUTURES, "aggTrade", "BTCUSDT") if each["T"] < NEW_YEAR_MS]
        assert [int(row.split(",")[0]) for row in exchange.dumps.rows(path)] == ids
        assert exchange.dumps.rows(path) == first
    assert len(ids) > 50


def test_a_market_played_in_small_pieces_says_nothing_twice() -> None:
    pieces, at_once = (GeneratedMarket(rate=2, start_ms=NEW_YEAR_MS, record=True, dumps=True) for _ in range(2))
    while pieces.made < 100:
        next(pieces.frames(1))
    for _ in at_once.frames(20_000):
        if at_once.made > pieces.made:
            break
    assert pieces.ledger == at_once.ledger[: len(pieces.ledger)]
    for path in Dumps(publish="all").of(pieces).paths():
        rows = Dumps(publish="all").of(pieces).rows(path)
        assert len(set(rows)) == len(rows) or "liquidationSnapshot" in path


def test_it_makes_no_difference_how_often_one_looks_nor_how_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    seldom = a_market(before_ms=65_000, after_ms=65_000)
    monkeypatch.setattr(dumps_kept, "PIECE_BYTES", 1_000)
    often = a_market(before_ms=65_000, after_ms=-64_000)
    while often.made < seldom.made:
        next(often.frames(1))
        often.keep_up()
    often, seldom = Dumps(publish="all").of(often), Dumps(publish="all").of(seldom)
    assert often.paths() == seldom.paths()
    for path in seldom.paths():
        assert often.csv(path) == seldom.csv(path)


def test_what_nobody_asked_to_keep_is_not_kept() -> None:
    market = GeneratedMarket(rate=100)
    for _ in market.frames(10):
        pass
    assert market.kept is None
    with pytest.raises(AssertionError, match="dumps=True"):
        Simulator(market, dumps=True)
    assert "LAKE_BINANCE_DUMPS" not in Simulator(market).environment


def test_the_oldest_day_is_forgotten_when_there_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dumps_kept, "MOST_KEPT_BYTES", 100_000)
    market = a_market(after_ms=20 * 60_000, with_others=False)
    assert {day for days in market.kept.days.values() for day in days} == {date(2025, 1, 1)}
    assert all("2025-01" in path for path in Dumps(publish="all").of(market).paths())


def test_a_delisted_symbol_has_no_more_bars() -> None:
    market = a_market(before_ms=60_000, after_ms=0, rates={"QUIETUSDT": 5}, with_others=False)
    market.delist(SPOT, "QUIETUSDT")
    while market.clock_ms < NEW_YEAR_MS + 180_000:
        next(market.frames(1))
    found = files(Dumps(publish="all").of(market), "data/spot/daily/klines/QUIETUSDT/1m/", "QUIETUSDT-1m")
    assert set(found) == {"2024-12-31"}
