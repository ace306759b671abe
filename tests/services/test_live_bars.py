"""Live bars in a recorder: on the page within 100 ms, in the table with the next commit, whatever is killed."""

import asyncio
import json
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
from polars.testing import assert_frame_equal

from crypto_lake.build.bar_rows import Rules
from crypto_lake.build.bars import Wanted, build
from crypto_lake.build.farm import farm
from crypto_lake.config import ConfigError, load
from crypto_lake.features.live_bars import Late, LiveBar
from crypto_lake.journal import FRAME, RESPONSE, Journal, segments
from crypto_lake.models import DATASETS
from crypto_lake.models.bar import TIMEFRAMES_US
from crypto_lake.query import read
from crypto_lake.services.bars import BARS_EACH, Bars, Newest, order_of, widths_us
from crypto_lake.services.contract import BarOrder, BarsNotMade
from crypto_lake.services.live_bars import Follower, Tail
from crypto_lake.services.live_contract import Closed
from crypto_lake.services.table_bars import Due, TableBars
from crypto_lake.simulator import Fault, GeneratedMarket, Scenario, Simulator
from crypto_lake.writers.maintenance import MERGED, SORTED

MakeRecorder = Callable[..., Any]
Wait = Callable[..., Any]

AGG_TRADE = DATASETS["agg_trade"]
NOON_MS = 1_790_164_800_000
MINUTE_MS = 60_000
# Bars of seconds that are closed soon: a test need not wait for a minute.
QUICK = {"LAKE_DATASETS": "agg_trade", "LAKE_BARS": "1s,1m", "LAKE_LATENESS_S": "0.2"}


def trade(number: int, second: float, *, symbol: str = "BTCUSDT", price: str = "1.5") -> bytes:
    data = {
        "e": "aggTrade", "E": NOON_MS, "s": symbol, "a": number, "p": price, "q": "2", "f": number, "l": number,
        "T": NOON_MS + int(second * 1000), "m": True,
    }  # fmt: skip
    return json.dumps({"stream": f"{symbol.lower()}@aggTrade", "data": data}).encode()


def write(journal: Journal, *payloads: bytes, venue: str = "binance-futures") -> None:
    for payload in payloads:
        journal.append(FRAME, f"{venue} x".encode(), payload, time.time_ns() // 1000)
    journal.flush()


def ask(port: int, path: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}") as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read()


async def bars_of(port: int, query: str) -> list[dict[str, Any]]:
    status, body = await asyncio.to_thread(ask, port, f"bars?{query}")
    return json.loads(body)["bars"] if status == 200 else []


async def metric(port: int, name: str, **labels: str) -> float:
    """The sum over all labels, or of those with these; 0 when it is not there yet."""
    _, body = await asyncio.to_thread(ask, port, "metrics")
    found = re.findall(rf"^crypto_lake_{name}(?:{{(.*)}})? (\S+)$", body.decode(), re.MULTILINE)
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(float(value) for said, value in found if all(each in said for each in wanted))


async def eventually(condition: Callable[[], Awaitable[object]], *, within_s: float = 60.0) -> None:
    """As `wait_for`, of something that has to be asked for."""
    until_s = time.monotonic() + within_s
    while not await condition():
        assert time.monotonic() < until_s, f"not within {within_s} s"
        await asyncio.sleep(0.1)


def process_of(daemon: Any, module: str) -> psutil.Process:
    children = psutil.Process(daemon.process.pid).children()
    return next(each for each in children if f"crypto_lake.services.{module}" in each.cmdline())


# What is read again after a start


def test_a_tail_reads_what_is_there_and_then_what_comes(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "agg_trade", segment_bytes=2_000)
    write(journal, *(trade(nth, nth) for nth in range(20)))
    tail, seen = Tail(journal.directory), []
    for nth in range(20, 60):
        write(journal, trade(nth, nth))
        while (records := tail.more()) is not None:
            seen += records.payloads
        assert tail.is_live
    journal.close()
    assert len(segments(journal.directory)) > 3
    assert seen == [trade(nth, nth) for nth in range(60)]
    assert not tail.is_cut


def test_a_tail_begins_so_far_from_the_end_and_knows_that_something_was_before(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "agg_trade")
    write(journal, *(trade(nth, nth) for nth in range(200)))
    tail = Tail(journal.directory, look_back_bytes=2_000)
    assert tail.is_cut
    records = tail.more()
    assert records is not None
    assert 5 < len(records) < 12
    assert records.payloads[-1] == trade(199, 199)
    journal.close()


def test_a_journal_whose_first_file_is_gone_was_cut(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "agg_trade")
    journal.append(FRAME, b"binance-futures x", trade(1, 1), 1)
    journal.carry(b"binance-futures x", ["BTCUSDT"], 1)
    journal.close()
    journal = Journal(tmp_path / "agg_trade")
    write(journal, trade(2, 2))
    journal.close()
    assert not Tail(journal.directory).is_cut
    segments(journal.directory)[0].path.unlink()
    assert Tail(journal.directory).is_cut


def closed_in(journal: Path, *, look_back_bytes: int = 2**30, **environment: Any) -> list[LiveBar]:
    """What a process that is started now would say, bar by bar, of BTCUSDT."""
    order = order_of(load(bars="1m", **environment), AGG_TRADE)
    tail = Tail(journal, look_back_bytes=look_back_bytes)
    follower, said = Follower(order, is_cut=tail.is_cut), []
    while (records := tail.more()) is not None:
        reports = follower.take(records, is_new=tail.is_live)
        said += [each.bar for each in reports if isinstance(each, Closed) and each.symbol == "BTCUSDT"]
    return said


def test_a_restart_says_the_same_bars_again_but_none_of_which_it_does_not_know_all(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "agg_trade")
    write(journal, *(trade(nth, 7 * nth, price=f"{nth}.5") for nth in range(300)))
    journal.close()
    whole, part = closed_in(journal.directory), closed_in(journal.directory, look_back_bytes=20_000)
    assert len(whole) == 34
    assert 5 < len(part) < 30
    assert part == whole[-len(part) :]


def test_a_repair_is_no_beginning_after_a_restart(tmp_path: Path) -> None:
    ticks = [trade(nth, 7 * nth, price=f"{nth}.5") for nth in range(300)]
    journal = Journal(tmp_path / "agg_trade")
    write(journal, *ticks[:200])
    at = journal.end
    page = [{name: json.loads(ticks[5])["data"][name] for name in "apqflTm"}]
    origin = b"binance-futures /fapi/v1/aggTrades?symbol=BTCUSDT&fromId=5"
    journal.append(RESPONSE, origin, json.dumps(page).encode(), 1)
    write(journal, *ticks[200:])
    journal.close()
    part, whole = closed_in(journal.directory, look_back_bytes=journal.end - at), closed_in(journal.directory)
    assert len(part) > 5
    assert part == whole[-len(part) :]


# The page


@asynccontextmanager
async def living(home: Path, **environment: Any) -> AsyncIterator[tuple[Bars, Journal]]:
    """A process of live bars beside a journal that a test writes."""
    wanted = {"bars": "1m,5m", **environment}
    settings = load(root=str(home / "tables"), state=str(home / "var"), **wanted)
    journal = Journal(settings.journals / "agg_trade")
    bars = Bars(settings, [AGG_TRADE])
    watching = asyncio.create_task(bars.watch())
    try:
        yield bars, journal
    finally:
        await bars.finish()
        await asyncio.wait_for(watching, 20)
        journal.close()


async def answer(bars: Bars, **query: str) -> tuple[int, Any]:
    status, body = await bars.page(query)
    return status, json.loads(body)


async def until(bars: Bars, holds: Callable[[list[dict[str, Any]]], bool], **query: str) -> list[dict[str, Any]]:
    """The bars of the page as soon as they are like this."""
    async with asyncio.timeout(60):
        while True:
            status, page = await answer(bars, **query)
            if status == 200 and holds(page["bars"]):
                shown: list[dict[str, Any]] = page["bars"]
                return shown
            await asyncio.sleep(0.02)


async def test_the_page_shows_closed_bars_and_what_is_under_way(tmp_path: Path) -> None:
    async with living(tmp_path) as (bars, journal):
        write(journal, trade(1, 10), trade(2, 20, price="2.5"), trade(3, 130, price="3.5"))
        shown = await until(bars, len, symbol="BTCUSDT")
        assert [(bar["time"], bar["final"], bar["count"]) for bar in shown] == [
            ("2026-09-23T12:00:00Z", True, 2),
            ("2026-09-23T12:01:00Z", True, 0),
            ("2026-09-23T12:02:00Z", False, 1),
        ]
        assert shown[0] == {
            "time": "2026-09-23T12:00:00Z", "close_time": "2026-09-23T12:00:59.999999Z",
            "open": 1.5, "high": 2.5, "low": 1.5, "close": 2.5, "volume": 4.0, "quote_volume": 8.0, "count": 2,
            "taker_buy_volume": 0.0, "taker_buy_quote_volume": 0.0, "revision": 0, "final": True,
        }  # fmt: skip
        (longer,) = (await answer(bars, symbol="BTCUSDT", timeframe="5m"))[1]["bars"]
        assert (longer["final"], longer["count"]) == (False, 3)
        assert len((await answer(bars, symbol="BTCUSDT", limit="2"))[1]["bars"]) == 2
        write(journal, trade(4, 30, price="9.5"))
        shown = await until(bars, lambda rows: bool(rows[0]["revision"]), symbol="BTCUSDT")
        assert [(bar["close"], bar["revision"]) for bar in shown] == [(9.5, 1), (9.5, 1), (3.5, 0)]


async def test_a_dropped_trade_changes_nothing_on_the_page(tmp_path: Path) -> None:
    async with living(tmp_path, late="drop") as (bars, journal):
        write(journal, trade(1, 10), trade(3, 130), trade(4, 30, price="9.5"), trade(5, 131, price="4.5"))
        shown = await until(bars, lambda rows: len(rows) == 3 and rows[2]["close"] == 4.5, symbol="BTCUSDT")
        assert [bar["high"] for bar in shown] == [1.5, 1.5, 4.5]


async def test_a_bar_that_is_too_old_to_be_revised_leaves_the_page(tmp_path: Path) -> None:
    async with living(tmp_path, bars="1h") as (bars, journal):
        write(journal, trade(1, 10), trade(2, 27 * 3600))
        shown = await until(bars, lambda rows: len(rows) == 28, symbol="BTCUSDT", timeframe="1h")
        assert shown[0]["time"] == "2026-09-23T12:00:00Z"
        write(journal, trade(3, 20))
        shown = await until(bars, lambda rows: len(rows) == 27, symbol="BTCUSDT", timeframe="1h")
        assert shown[0]["time"] == "2026-09-23T13:00:00Z"


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("", 400, "symbol is missing: /bars?symbol=BTCUSDT&timeframe=1m"),
        ("symbol=NONEUSDT", 404, "symbol=NONEUSDT: no trade of it has come since the start"),
        ("symbol=BTCUSDT&venue=mars", 404, "symbol=BTCUSDT: no trade of it has come on mars since the start"),
        (
            "symbol=BTCUSDT&timeframe=2m",
            400,
            "timeframe=2m: there is no such timeframe; there are 1s, 1m, 5m, 15m, 1h, 4h, 1d",
        ),
        ("symbol=BTCUSDT&timeframe=1h", 404, "timeframe=1h: LAKE_BARS names only 1m, 5m"),
        ("symbol=BTCUSDT&limit=0", 400, "limit=0: must be a number from 1 to 500"),
        ("symbol=BTCUSDT&limit=many", 400, "limit=many: must be a number from 1 to 500"),
        ("symbol=ETHUSDT", 400, "symbol=ETHUSDT: is at binance and binance-futures; name one with venue="),
    ],
)
async def test_a_question_that_has_no_bars_is_answered_in_a_sentence(
    tmp_path: Path, query: str, status: int, words: str
) -> None:
    async with living(tmp_path) as (bars, journal):
        write(journal, trade(1, 10), trade(1, 10, symbol="ETHUSDT"))
        write(journal, trade(1, 10, symbol="ETHUSDT"), venue="binance")
        await until(bars, len, symbol="ETHUSDT", venue="binance")
        asked = dict(part.split("=") for part in query.split("&") if part)
        assert await answer(bars, **asked) == (status, {"error": words})


async def test_without_bars_or_trades_there_is_no_process_and_the_page_says_so(tmp_path: Path) -> None:
    for settings, datasets, why in (
        (load(bars=""), [AGG_TRADE], "LAKE_BARS is empty"),
        (load(), [DATASETS["depth"]], "neither agg_trade nor trade is recorded"),
    ):
        bars = Bars(settings, datasets)
        await asyncio.wait_for(bars.watch(), 1)
        assert await answer(bars, symbol="BTCUSDT") == (404, {"error": f"there are no live bars: {why}"})


def test_a_timeframe_that_there_is_not_is_a_mistake_of_the_settings() -> None:
    with pytest.raises(
        ConfigError, match=r"^LAKE_BARS: there is no timeframe '2h'; there are 1s, 1m, 5m, 15m, 1h, 4h, 1d$"
    ):
        widths_us(("1m", "2h"))
    assert widths_us(("1d", "1s")) == {name: TIMEFRAMES_US[name] for name in ("1s", "1d")}


def test_the_newest_bars_are_kept_and_no_more(tmp_path: Path) -> None:
    def bar(nth: int, revision: int = 0) -> LiveBar:
        return LiveBar("1m", nth * MINUTE_MS * 1000, *[1.0] * 6, 1, 0.0, 0.0, revision, is_final=True)

    newest = Newest(each=5, in_all=12)
    for nth in (3, 1, 2, 4, 5, 6):
        newest.put("v", "A", bar(nth))
    newest.put("v", "A", bar(4, revision=1))
    assert [each.time_us // 60_000_000 for each in newest.last("v", "A", "1m", BARS_EACH)] == [2, 3, 4, 5, 6]
    assert newest.last("v", "A", "1m", 3)[0].revision == 1
    newest.drop("v", "A", "1m", 5 * 60_000_000)
    assert [each.time_us // 60_000_000 for each in newest.last("v", "A", "1m", 2)] == [4, 6]
    for symbol in "BCDEFG":
        for nth in range(9):
            newest.put("v", symbol, bar(nth))
    newest.put("v", "A", bar(7))
    assert sum(len(newest.last("v", symbol, "1m", 9)) for symbol in "ABCDEFG") <= 12 + 7


async def test_a_process_that_dies_is_started_again_and_has_its_bars_again(tmp_path: Path) -> None:
    async with living(tmp_path) as (bars, journal):
        write(journal, trade(1, 10), trade(2, 70))
        await until(bars, lambda rows: rows[0]["final"], symbol="BTCUSDT")
        assert bars._process is not None
        first = bars._process
        first.kill()
        await first.wait()
        write(journal, trade(3, 130))
        shown = await until(bars, lambda rows: len(rows) == 3, symbol="BTCUSDT")
        assert [bar["final"] for bar in shown] == [True, True, False]
        assert bars._process is not first


# In a recorder


async def test_a_bar_is_on_the_page_within_100_ms_of_the_trade_that_closed_it(
    recorder: MakeRecorder, wait_for: Wait
) -> None:
    async with Simulator(GeneratedMarket(rate=200)) as exchange:
        daemon = recorder({**exchange.environment, **QUICK})
        await daemon.start()
        await wait_for(lambda: daemon.port)

        async def are_many() -> bool:
            return await metric(daemon.port, "live_bar_delay_seconds_count") >= 10

        await eventually(are_many)
        soon = await metric(daemon.port, "live_bar_delay_seconds_bucket", le="0.1")
        assert soon > await metric(daemon.port, "live_bar_delay_seconds_count") / 2
        shown = await bars_of(daemon.port, "symbol=BTCUSDT&venue=binance-futures&timeframe=1s")
        assert any(bar["final"] for bar in shown)
        assert not shown[-1]["final"]
        live = process_of(daemon, "live_bars")
        mapped = {Path(each.path).name for each in live.memory_maps() if each.path.startswith("/")}
        assert not [name for name in mapped if re.search("arrow|delta|numba", name)]
        assert live.memory_info().rss < 100 * 2**20
        daemon.kill(with_worker=False)
        await daemon.wait()
        await wait_for(lambda: not live.is_running() or live.status() == psutil.STATUS_ZOMBIE)


def reordering(share: float, delay_s: float) -> Scenario:
    """Trades that come late, on both connections."""
    fault = Fault(kind="reordered", share=share, behind=100, delay_s=delay_s, streams=("aggTrade",), everywhere=True)
    return Scenario(faults=(fault,))


async def test_a_late_trade_revises_the_page(recorder: MakeRecorder, wait_for: Wait) -> None:
    async with Simulator(GeneratedMarket(rate=200), faults=reordering(0.03, 1.3)) as exchange:
        daemon = recorder({**exchange.environment, **QUICK})
        await daemon.start()
        await wait_for(lambda: daemon.port)

        async def is_revised() -> bool:
            return any(bar["revision"] for bar in await bars_of(daemon.port, "symbol=ETHUSDT&timeframe=1s"))

        await eventually(is_revised)
        assert await daemon.stop() == 0


# In the table

# A minute of the market is a second: its clock begins hours ago.
FAST = {"LAKE_DATASETS": "agg_trade", "LAKE_SYMBOLS": "all", "LAKE_BARS": "1m,5m,15m,1h", "LAKE_COMMIT_EVERY_S": "0.3"}


def fast_market(**rest: Any) -> GeneratedMarket:
    start_ms = time.time_ns() // 1_000_000 - 20 * 3_600_000
    mix = {"aggTrade": 1.0}
    return GeneratedMarket(futures=3, spot=(), rate=4, speed=60, mix=mix, start_ms=start_ms, with_others=False, **rest)


def bars_in(root: Path) -> pl.DataFrame:
    """What the table holds, without how often it was written."""
    return read("bar", root=str(root)).collect().drop("revision").sort("venue", "symbol", "timeframe", "time")


async def has_made(port: int, bars: int) -> bool:
    """Whether so many are in the table since the start."""
    return await metric(port, "table_bars_total") >= bars


def built_from_scratch(daemon: Any, home: Path, late: Late = "revise") -> pl.DataFrame:
    """The bars of the recorded trades, made at once in another lake; of intervals that are closed."""
    for table in ("agg_trade", "gap"):
        shutil.copytree(daemon.root / table, home / table)
    with farm(None, 1) as (executor, at_once):
        build(str(home), Wanted(timeframes="1m,5m,15m,1h", rules=Rules(late)), executor, at_once)
    newest = read("agg_trade", root=str(home)).group_by("symbol").agg(pl.col("time").max().alias("newest")).collect()
    closes = pl.col("close_time") + pl.duration(seconds=5, microseconds=1)
    rows = bars_in(home).join(newest, on="symbol")
    return rows.filter(closes <= pl.col("newest")).drop("newest")


def assert_equal_rows(held: pl.DataFrame, made: pl.DataFrame) -> None:
    assert held.height > 10
    assert_frame_equal(held, made, check_exact=False, rel_tol=1e-9, abs_tol=1e-12)


async def test_bars_are_in_the_table_with_the_next_commit_and_a_kill_changes_none(
    recorder: MakeRecorder, wait_for: Wait, tmp_path: Path
) -> None:
    async with Simulator(fast_market(seed=5)) as exchange:
        daemon = recorder({**exchange.environment, **FAST, "LAKE_OPTIMIZE_EVERY_S": "2"})
        for with_worker in (True, False):
            await daemon.start()
            await wait_for(lambda: daemon.port)
            await eventually(lambda: has_made(daemon.port, 6))
            daemon.kill(with_worker=with_worker)
            await daemon.wait()
        await daemon.start()
        await wait_for(lambda: daemon.port)
        # Maintenance sees to this table too.
        await wait_for(lambda: [*daemon.root.glob(f"bar/*/{MERGED}*"), *daemon.root.glob(f"bar/*/{SORTED}*")])
        assert await daemon.stop() == 0
    assert not daemon.events("bars_not_made")
    held = bars_in(daemon.root)
    assert_equal_rows(held, built_from_scratch(daemon, tmp_path / "scratch"))
    assert set(held["timeframe"]) >= {"1m", "5m"}


@pytest.mark.parametrize("late", ["revise", "drop"])
async def test_late_trades_revise_the_table_or_are_dropped_with_a_finding(
    recorder: MakeRecorder, wait_for: Wait, tmp_path: Path, late: Late
) -> None:
    # Half a second is half a minute of the market.
    async with Simulator(fast_market(seed=6), faults=reordering(0.1, 0.5)) as exchange:
        daemon = recorder({**exchange.environment, **FAST, "LAKE_LATE": late})
        await daemon.start()
        await wait_for(lambda: daemon.port)
        await eventually(lambda: has_made(daemon.port, 10))

        async def is_late() -> bool:
            if late == "revise":
                return await metric(daemon.port, "table_bars_total", what="revised") > 0
            return await metric(daemon.port, "late_trades_dropped_total") > 2

        await eventually(is_late)
        assert await daemon.stop() == 0
    assert not daemon.events("bars_not_made")
    held, findings = bars_in(daemon.root), dropped_ids(daemon.root)
    assert len(findings) == len(set(findings))
    assert_equal_rows(held, built_from_scratch(daemon, tmp_path / "scratch", late))
    if late == "drop":
        assert findings
        assert set(findings) == set(dropped_ids(tmp_path / "scratch"))
        assert daemon.events("late_trade_dropped")
    else:
        assert not findings


async def test_while_no_bars_can_be_made_rows_go_on_being_recorded(recorder: MakeRecorder, wait_for: Wait) -> None:
    async with Simulator(fast_market(seed=7)) as exchange:
        daemon = recorder({**exchange.environment, **FAST, "LAKE_BARS": "1m"})
        daemon.root.mkdir(parents=True)
        (daemon.root / "bar").write_text("in the way")
        await daemon.start()
        await wait_for(lambda: daemon.events("bars_not_made"))
        rows = await metric(daemon.port, "rows_committed_total")

        async def are_more() -> bool:
            return await metric(daemon.port, "rows_committed_total") > rows + 100

        await eventually(are_more)
        _, health = await asyncio.to_thread(ask, daemon.port, "health")
        assert json.loads(health)["status"] == "degraded"
        assert json.loads(health)["reasons"][0].startswith("no bars are made: ")
        (daemon.root / "bar").unlink()
        await wait_for(lambda: daemon.events("bars_are_made_again"))
        assert await daemon.stop() == 0
    assert bars_in(daemon.root).height


def dropped_ids(root: Path) -> list[tuple[str, int]]:
    """Symbol and id of each finding."""
    if not (root / "quality" / "_delta_log").exists():
        return []
    rows = read("quality", root=str(root)).filter(pl.col("check") == "late_dropped").collect()
    return rows.select("symbol", "first_id").rows()


def test_only_trades_that_close_or_change_a_bar_make_the_table_due() -> None:
    def rows(*seconds: float, symbol: str = "A") -> pl.DataFrame:
        times = pl.Series([NOON_MS * 1000 + int(second * 1e6) for second in seconds]).cast(pl.Datetime("us", "UTC"))
        return pl.DataFrame({"time": times}).with_columns(venue=pl.lit("v"), symbol=pl.lit(symbol))

    due = Due(5_000_000)
    assert due.is_due  # an earlier run may have left something
    due.is_due = False
    for given, is_due in (
        (rows(10, 20), False),
        (rows(61, 64.9), False),
        (rows(65), True),
        (rows(70, 90), False),
        (rows(59), True),
        (rows(61), False),
        (rows(10, 200, symbol="B"), True),
    ):
        due.hear(given)
        assert due.is_due == is_due, given
        due.is_due = False


def test_whatever_is_wrong_with_bars_is_reported_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "agg_trade" / "_delta_log").mkdir(parents=True)
    (tmp_path / "agg_trade" / "_delta_log" / "00000000000000000000.json").write_text("no log")
    bars = TableBars(str(tmp_path), BarOrder("agg_trade", ["1m"], "revise", 5_000_000))
    assert bars.step() == []
    said = bars.finish(20)
    assert said
    assert all(isinstance(each, BarsNotMade) for each in said)
    assert bars.due.is_due
