"""The daemon's end of the live bars: starts their process, keeps the newest bars, and shows them at `/bars`."""

import asyncio
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
import structlog

from crypto_lake.config import ConfigError, Settings, child_environment
from crypto_lake.connections.backoff import backoff_s
from crypto_lake.features.live_bars import LiveBar
from crypto_lake.models import Dataset
from crypto_lake.models.agg_trade import AGG_TRADE
from crypto_lake.models.bar import TIMEFRAMES_US
from crypto_lake.models.trade import TRADE
from crypto_lake.monitoring import metrics
from crypto_lake.monitoring.health import Answer
from crypto_lake.services.contract import BarOrder
from crypto_lake.services.live_contract import Ask, Closed, LiveOrder, LiveReport, Outdated, TooLate, UnderWay

log = structlog.get_logger()

REPORTS: Final = msgspec.json.Decoder(LiveReport)
# Bars of a symbol and timeframe, and bars in all: with many symbols each has fewer.
BARS_EACH: Final = 500
BARS_IN_ALL: Final = 50_000
# A process that dies at once is not started in a tight loop.
FIRST_RESTART_S: Final = 1.0
MOST_RESTART_S: Final = 60.0
# Without an answer by then only closed bars are shown.
ANSWER_S: Final = 0.5
ASKED_AT_A_TIME: Final = 100
END_S: Final = 5.0
LINE_BYTES: Final = 2**20
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Key = tuple[str, str, str]


def source_of(datasets: Sequence[Dataset]) -> Dataset | None:
    """What bars are made of, of what is recorded: aggregated trades, else single ones."""
    return next((each for each in (AGG_TRADE, TRADE) if each in datasets), None)


def widths_us(timeframes: Sequence[str]) -> dict[str, int]:
    """How long the bars are, by timeframe. Raises `ConfigError` for a timeframe that there is not."""
    for name in timeframes:
        if name not in TIMEFRAMES_US:
            raise ConfigError(f"LAKE_BARS: there is no timeframe {name!r}; there are {', '.join(TIMEFRAMES_US)}")
    return {name: width for name, width in TIMEFRAMES_US.items() if name in timeframes}


def table_order(settings: Settings, datasets: Sequence[Dataset]) -> BarOrder | None:
    """Which bars the worker keeps in the table `bar`; None: none, for want of trades or of a table."""
    source, timeframes = source_of(datasets), list(widths_us(settings.bars))
    if source is None or not timeframes or settings.sink != "delta":
        return None
    return BarOrder(source.name, timeframes, settings.late, round(settings.lateness_s * 1e6))


def order_of(settings: Settings, source: Dataset) -> LiveOrder:
    """What the process is to do."""
    return LiveOrder(
        journal=str(settings.journals / source.name),
        dataset=source.name,
        timeframes=widths_us(settings.bars),
        late=settings.late,
        lateness_us=round(settings.lateness_s * 1e6),
    )


class Newest:
    """The newest closed bars by venue, symbol and timeframe; of each interval the last word."""

    def __init__(self, *, each: int = BARS_EACH, in_all: int = BARS_IN_ALL) -> None:
        self._each, self._in_all = each, in_all
        self._bars: dict[Key, dict[int, LiveBar]] = {}

    def put(self, venue: str, symbol: str, bar: LiveBar) -> None:
        """A bar was closed or revised."""
        bars = self._bars.setdefault((venue, symbol, bar.timeframe), {})
        bars[bar.time_us] = bar
        most = min(self._each, max(1, self._in_all // len(self._bars)))
        while len(bars) > most:
            del bars[min(bars)]

    def drop(self, venue: str, symbol: str, timeframe: str, time_us: int) -> None:
        """A bar is not right any more."""
        self._bars.get((venue, symbol, timeframe), {}).pop(time_us, None)

    def last(self, venue: str, symbol: str, timeframe: str, count: int) -> list[LiveBar]:
        """The newest ones, the newest last."""
        bars = self._bars.get((venue, symbol, timeframe), {})
        return [bars[time_us] for time_us in sorted(bars)[-count:]] if count else []

    def venues(self, symbol: str) -> set[str]:
        """Where there are bars of a symbol."""
        return {venue for venue, name, _ in self._bars if name == symbol}


class Bars:
    """The process of the live bars, and what it has said. Without a source there is none, and no bars."""

    def __init__(self, settings: Settings, datasets: Sequence[Dataset]) -> None:
        """Raises `ConfigError` when LAKE_BARS names what is no timeframe."""
        self._timeframes = widths_us(settings.bars)
        self._source = source_of(datasets) if self._timeframes else None
        self._settings = settings
        self._newest = Newest()
        self._process: asyncio.subprocess.Process | None = None
        self._ending = False
        self._asked: dict[int, asyncio.Future[list[LiveBar] | None]] = {}
        self._number = 0

    async def watch(self) -> None:
        """Runs the process until `finish`; one that dies is started again, and finds its place by itself."""
        attempt = 0
        while self._source is not None:
            began_s = time.monotonic()
            try:
                await self._live()
            except OSError as error:
                log.error("live_bars_did_not_start", reason=str(error))
            if self._ending:
                return
            attempt = 0 if time.monotonic() - began_s > MOST_RESTART_S else attempt + 1
            wait_s = backoff_s(attempt, lambda: 1.0, FIRST_RESTART_S / 2, MOST_RESTART_S)
            status = self._process.returncode if self._process else None
            log.error("live_bars_died", status=status, again_in_s=wait_s, lost="nothing")
            await asyncio.sleep(wait_s)

    async def finish(self) -> None:
        """Lets it end; nothing of what it knows is needed any more."""
        self._ending = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), END_S)
        except TimeoutError:
            process.kill()

    def kill(self) -> None:
        """Ends it now."""
        if self._process and self._process.returncode is None:
            self._process.kill()

    async def page(self, query: Mapping[str, str]) -> Answer:
        """`/bars?symbol=BTCUSDT&venue=binance-futures&timeframe=1m&limit=100`: the newest bars, the newest last.

        The last ones may be under way, `final` is false then. 400 says what is wrong with the question, 404 that there
        are no such bars.
        """
        try:
            symbol, timeframe, limit = self._question(query)
            venues = [query["venue"]] if query.get("venue") else await self._venues(symbol, timeframe)
        except Unanswerable as error:
            return error.status, msgspec.json.encode({"error": str(error)})
        for venue in venues:
            under_way = await self._ask(venue, symbol, timeframe, limit)
            if under_way is not None or venue in self._newest.venues(symbol):
                closed = self._newest.last(venue, symbol, timeframe, max(0, limit - len(under_way or ())))
                return 200, _shown(venue, symbol, timeframe, closed, under_way or [])
        at = f" on {query['venue']}" if query.get("venue") else ""
        return 404, msgspec.json.encode({"error": f"symbol={symbol}: no trade of it has come{at} since the start"})

    def _question(self, query: Mapping[str, str]) -> tuple[str, str, int]:
        if self._source is None:
            why = "neither agg_trade nor trade is recorded" if self._timeframes else "LAKE_BARS is empty"
            raise Unanswerable(404, f"there are no live bars: {why}")
        symbol, timeframe, limit = query.get("symbol", ""), query.get("timeframe", "1m"), query.get("limit", "100")
        if not symbol:
            raise Unanswerable(400, "symbol is missing: /bars?symbol=BTCUSDT&timeframe=1m")
        if timeframe not in TIMEFRAMES_US:
            known = ", ".join(TIMEFRAMES_US)
            raise Unanswerable(400, f"timeframe={timeframe}: there is no such timeframe; there are {known}")
        if timeframe not in self._timeframes:
            raise Unanswerable(404, f"timeframe={timeframe}: LAKE_BARS names only {', '.join(self._timeframes)}")
        if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= BARS_EACH:
            raise Unanswerable(400, f"limit={limit}: must be a number from 1 to {BARS_EACH}")
        return symbol, timeframe, int(limit)

    async def _venues(self, symbol: str, timeframe: str) -> list[str]:
        """Where the symbol was traded; one that is traded at two venues has to be asked for with one of them."""
        assert self._source is not None
        assert self._source.live is not None
        known = self._newest.venues(symbol)
        for venue in self._source.live.streams:
            if venue not in known and await self._ask(venue, symbol, timeframe, 1) is not None:
                known.add(venue)
        if len(known) > 1:
            raise Unanswerable(400, f"symbol={symbol}: is at {' and '.join(sorted(known))}; name one with venue=")
        return sorted(known)

    async def _ask(self, venue: str, symbol: str, timeframe: str, at_most: int) -> list[LiveBar] | None:
        """What is under way; None when the process knows no such symbol, or does not answer."""
        process = self._process
        if process is None or process.stdin is None or process.stdin.is_closing():
            return None
        if len(self._asked) >= ASKED_AT_A_TIME:
            return None
        self._number += 1
        nth, answer = self._number, asyncio.get_running_loop().create_future()
        self._asked[nth] = answer
        try:
            process.stdin.write(msgspec.json.encode(Ask(nth, venue, symbol, timeframe, at_most)) + b"\n")
            return await asyncio.wait_for(answer, ANSWER_S)
        except TimeoutError:
            return None
        finally:
            del self._asked[nth]

    async def _live(self) -> None:
        """One life of the process."""
        assert self._source is not None
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "crypto_lake.services.live_bars",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=child_environment(),
            limit=LINE_BYTES,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(order_of(self._settings, self._source)) + b"\n")
        if self._ending:
            process.stdin.close()
        async for line in process.stdout:
            self._hear(REPORTS.decode(line))
        await process.wait()

    def _hear(self, report: LiveReport) -> None:
        match report:
            case Closed(venue, symbol, bar, received_us):
                self._newest.put(venue, symbol, bar)
                metrics.live_bars_total.labels(bar.timeframe, "revised" if bar.revision else "closed").inc()
                if received_us is not None and not bar.revision:
                    metrics.live_bar_delay_seconds.observe(max(0.0, time.time() - received_us / 1e6))
            case TooLate(venue, symbol, trade_id, time_us, is_new):
                if is_new:
                    metrics.late_trades_dropped_total.labels(venue).inc()
                    log.warning("late_trade_dropped", venue=venue, symbol=symbol, id=trade_id, time=_text(time_us))
            case Outdated(venue, symbol, timeframe, time_us):
                self._newest.drop(venue, symbol, timeframe, time_us)
            case UnderWay(nth, bars):
                answer = self._asked.get(nth)
                if answer is not None and not answer.done():
                    answer.set_result(bars)


class Unanswerable(Exception):
    """A question that has no bars for an answer; `status` is that of HTTP."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def _shown(venue: str, symbol: str, timeframe: str, closed: Sequence[LiveBar], under_way: Sequence[LiveBar]) -> bytes:
    # What was closed while the answer was on its way is not shown twice.
    behind_us = closed[-1].time_us if closed else 0
    rows = [*closed, *(bar for bar in under_way if bar.time_us > behind_us)]
    page = {"venue": venue, "symbol": symbol, "timeframe": timeframe, "bars": [dict(_row(bar)) for bar in rows]}
    return msgspec.json.encode(page)


def _row(bar: LiveBar) -> Iterator[tuple[str, Any]]:
    """A bar under the names of the table."""
    yield "time", _text(bar.time_us)
    yield "close_time", _text(bar.time_us + TIMEFRAMES_US[bar.timeframe] - 1)
    for name in ("open", "high", "low", "close", "volume", "quote_volume", "count"):
        yield name, getattr(bar, name)
    for name in ("taker_buy_volume", "taker_buy_quote_volume", "revision"):
        yield name, getattr(bar, name)
    yield "final", bar.is_final


def _text(time_us: int) -> str:
    return (EPOCH + timedelta(microseconds=time_us)).isoformat().replace("+00:00", "Z")
