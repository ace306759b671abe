"""The exchange on loopback: WebSocket and REST on one port, played by a market."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

import msgspec
from aiohttp import ClientConnectionResetError, WSCloseCode, WSMessage, WSMsgType, web

from crypto_lake.config import FUTURES, SPOT
from crypto_lake.models.chart import CHART_PATH
from crypto_lake.simulator import control
from crypto_lake.simulator.bucket import Bucket
from crypto_lake.simulator.dumps import Dumps
from crypto_lake.simulator.faults import Faults
from crypto_lake.simulator.hub import MAX_UNREAD_BYTES, UNREAD_ENOUGH_BYTES, Connection, Hub, Served
from crypto_lake.simulator.market import Market, Question, Refusal
from crypto_lake.simulator.payloads import in_milliseconds, stamp
from crypto_lake.simulator.quotes import Quotes
from crypto_lake.simulator.rest import CHART, ENDPOINTS, Endpoint, TooMuch, WeightMeter, question_of
from crypto_lake.simulator.scenario import Scenario
from crypto_lake.simulator.streams import MARKET, MICROSECOND, PRIVATE, PUBLIC, UNROUTED

# How often the market is asked what is due; short enough that nobody sees the steps, long enough to share a write.
TICK_S = 0.005
MAX_REQUEST_LINE_BYTES = 16 * 1024
# Longer lines aiohttp refuses by itself with 400; up to here we can give the venue's own 414.
_READABLE_LINE_BYTES = 256 * 1024
_CLOSE_TIMEOUT_S = 1.0
TIME_UNIT = "X-MBX-TIME-UNIT"


class Simulator:
    """An exchange on 127.0.0.1 for the time of an `async with`; the same market may be served again later.

    The market's clock runs on between two times of being served, as the venue's does while it cannot be reached.
    `faults.done` tells what the scenario in `faults` has done, `served` what became of every connection. With `dumps`
    the market's official files are served beside it, in their usual ways or in those that `Dumps` is told. Yahoo's
    charts come out of `quotes`.
    """

    def __init__(
        self,
        market: Market,
        port: int = 0,
        *,
        faults: Scenario | None = None,
        dumps: Dumps | bool = False,
        quotes: Quotes | None = None,
        ping_every_s: float = 180.0,
        client_messages_per_s: int = 10,
        weight_limits: dict[str, int] | None = None,
        ban_after: int = 5,
        ban_s: float = 120.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        limits = {FUTURES: 2400, SPOT: 6000, **(weight_limits or {})}
        self.market, self.port, self.quotes = market, port, quotes or Quotes()
        self.meters = {
            venue: WeightMeter(limit, ban_after=ban_after, ban_s=ban_s, clock=clock) for venue, limit in limits.items()
        }
        self._ping_every_s, self._client_messages_per_s = ping_every_s, client_messages_per_s
        self._dumps = Dumps() if dumps is True else dumps or None
        if self._dumps is not None:
            self._dumps.of(market)
        self.faults = Faults(faults or Scenario(), market, self._dumps.faults if self._dumps is not None else None)
        self._is_sound = not self.faults.scenario.faults
        self._hub = Hub(None if self._is_sound else self.faults.frames)

    @property
    def ws_url(self) -> str:
        """Of both venues; futures routes and spot paths are told apart by the path."""
        return f"ws://127.0.0.1:{self.port}"

    @property
    def rest_url(self) -> str:
        """Of both venues."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The settings that point a collector here; without dumps nothing is said of where they are."""
        settings = {
            "LAKE_BINANCE_FUTURES_WS": self.ws_url,
            "LAKE_BINANCE_FUTURES_REST": self.rest_url,
            "LAKE_BINANCE_WS": self.ws_url,
            "LAKE_BINANCE_REST": self.rest_url,
            "LAKE_YAHOO": self.rest_url,
        }
        return settings if self._dumps is None else {**settings, "LAKE_BINANCE_DUMPS": self.rest_url}

    @property
    def dumps(self) -> Dumps:
        """The official files that are served."""
        assert self._dumps is not None, "the simulator was made without dumps"
        return self._dumps

    @property
    def connections(self) -> tuple[Connection, ...]:
        """What is open now."""
        return tuple(self._hub.connections)

    @property
    def served(self) -> tuple[Served, ...]:
        """Every connection there ever was, in the order of opening."""
        return tuple(self._hub.served)

    @property
    def used_weight(self) -> dict[str, int]:
        """Request weight used per venue in the minute that is now; `meters[venue].by_minute` has the earlier ones."""
        return {venue: meter.used for venue, meter in self.meters.items()}

    @property
    def finished(self) -> asyncio.Future[None]:
        """To be awaited: the market has nothing more to send and has handed all of it to the readers."""
        return asyncio.shield(self._player)

    async def cut(self, connection: Connection | None = None) -> None:
        """Abort one connection, or all, on the TCP level; returns when they are gone."""
        victims = self.connections if connection is None else (connection,)
        for victim in victims:
            victim.abort()
        for victim in victims:
            await victim.closed.wait()

    async def __aenter__(self) -> Self:
        self._runner = web.AppRunner(
            self._application(),
            access_log=None,
            shutdown_timeout=_CLOSE_TIMEOUT_S,
            max_line_size=_READABLE_LINE_BYTES,
            max_field_size=_READABLE_LINE_BYTES,
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self._player = asyncio.create_task(self._play(), name="market")
        self._pinger = asyncio.create_task(self._ping(), name="pings")
        self.faults.begin()
        self._troubles = asyncio.create_task(self.faults.run(self._hub), name="faults")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        tasks = (self._player, self._pinger, self._troubles)
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await self.cut()
        await self._runner.cleanup()
        failure = next((each for each in outcomes if isinstance(each, Exception)), None)
        if failure is not None and kind is None:
            raise failure

    def _application(self) -> web.Application:
        application = web.Application()
        for path in ENDPOINTS:
            application.router.add_get(path, self._rest)
        application.router.add_get(f"{CHART_PATH}/{{symbol}}", self._chart)
        for prefix in (UNROUTED, PUBLIC, MARKET, PRIVATE):
            before = f"/{prefix}" if prefix else ""
            for path in ("/ws", "/ws/{names:.*}", "/stream"):
                application.router.add_get(before + path, self._websocket)
        if self._dumps is not None:
            Bucket(self._dumps).add_routes(application.router)
        return application

    # The market: ask what is due, hand it round, let the readers read.

    async def _play(self) -> None:
        loop = asyncio.get_running_loop()
        await self._until_ready(loop)
        while not self.market.over:
            count = 0
            for frame in self.market.due(loop.time()):
                self._hub.publish(frame)
                count += 1
            self._hub.flush()
            await self._let_read(paused=count == 0)
        if self.market.waits_for_readers:
            await self._read_down_to(0)

    async def _until_ready(self, loop: asyncio.AbstractEventLoop) -> None:
        first_s: float | None = None
        while True:
            kinds = self._hub.kinds()
            if first_s is None and kinds:
                first_s = loop.time()
            if self.market.ready(kinds, 0.0 if first_s is None else loop.time() - first_s):
                return
            await asyncio.sleep(TICK_S)

    async def _let_read(self, *, paused: bool) -> None:
        if self.market.waits_for_readers:
            await asyncio.sleep(TICK_S if paused else 0)
            await self._read_down_to(UNREAD_ENOUGH_BYTES)
            return
        for connection in list(self._hub.behind(MAX_UNREAD_BYTES)):
            connection.abort()
        await asyncio.sleep(TICK_S)

    async def _read_down_to(self, unread_bytes: int) -> None:
        while any(self._hub.behind(unread_bytes)):  # noqa: ASYNC110 - transports tell their protocol only
            await asyncio.sleep(TICK_S)

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(self._ping_every_s)
            for connection in self._hub.connections:
                connection.ping(str(time.time_ns() // 1_000_000).encode())

    # WebSocket

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        names = _names_in(request)
        route = next((each for each in (PUBLIC, MARKET, PRIVATE) if request.path.startswith(f"/{each}/")), UNROUTED)
        if refusal := self.faults.connections.handshake(request, route):
            return refusal
        # What a client's good-bye gets for an answer is decided below: one that is half open answers nothing.
        socket = web.WebSocketResponse(autoping=False, autoclose=False, compress=False, timeout=_CLOSE_TIMEOUT_S)
        try:
            await socket.prepare(request)
        except ClientConnectionResetError:
            return socket  # gone before it was answered
        assert request.transport is not None
        is_combined = request.path.removeprefix(f"/{route}" if route else "") == "/stream"
        connection = Connection(
            self._hub,
            request.transport,
            route=route,
            combined=is_combined,
            in_microseconds=route == UNROUTED and request.query.get("timeUnit") in MICROSECOND,
        )
        self._hub.open(connection)
        try:
            for name in names:
                connection.subscribe(name)
            self.faults.connections.opened(connection)
            await self._converse(socket, connection)
            if connection.is_half_open:
                await _gone(request)
        finally:
            self._hub.close(connection)
        return socket

    async def _converse(self, socket: web.WebSocketResponse, connection: Connection) -> None:
        """Answer the client until it goes or talks too much."""
        heard: deque[float] = deque(maxlen=self._client_messages_per_s + 1)
        loop = asyncio.get_running_loop()
        async for message in socket:
            if connection.is_half_open:
                continue
            heard.append(loop.time())
            if len(heard) == heard.maxlen and heard[-1] - heard[0] < 1.0:
                self._hub.close(connection)
                await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=b"Too many requests")
                return
            _react(message, connection)

    # REST

    async def _rest(self, request: web.Request) -> web.Response:
        endpoint = ENDPOINTS[request.path]
        meter = self.meters[endpoint.venue]
        try:
            if not self._is_sound and (instead := await self.faults.answers.instead(endpoint, request.query)):
                return instead
            body = await self._answer(endpoint, request, meter)
            return web.Response(body=body, content_type="application/json", headers=_used(meter))
        except Refusal as refusal:
            return _refused(refusal, meter)

    async def _chart(self, request: web.Request) -> web.Response:
        """Yahoo's; what the exchange says in words of its own is a line of text here."""
        symbol = request.match_info["symbol"]
        try:
            if not self._is_sound and (instead := await self.faults.answers.instead(CHART, {"symbol": symbol})):
                return instead
        except Refusal as refusal:
            waits = {"Retry-After": str(math.ceil(refusal.retry_after_s))} if isinstance(refusal, TooMuch) else {}
            return web.Response(status=refusal.status, text="Too Many Requests\r\n", headers=waits)
        status, body = self.quotes.answer(symbol, request.query)
        return web.Response(status=status, body=body, content_type="application/json")

    async def _answer(self, endpoint: Endpoint, request: web.Request, meter: WeightMeter) -> bytes:
        question: Question | None = None
        try:
            question = question_of(endpoint, request.query, self.market)
        finally:
            meter.charge(1 if question is None else endpoint.weigh(question))
        body = await self._plain_answer(question)
        if not self._is_sound:
            body = self.faults.answers.altered(question, body)
        if endpoint.venue == SPOT and request.headers.get(TIME_UNIT) not in MICROSECOND:
            return in_milliseconds(body)
        return body

    async def _plain_answer(self, question: Question) -> bytes:
        if question.endpoint == "ping":
            return b"{}"
        if question.endpoint == "time":
            return b'{"serverTime":%d}' % stamp(question.venue, self.market.clock_ms)
        return await self.market.answer(question)


async def _gone(request: web.Request) -> None:
    """The client has given up its end of TCP."""
    while (transport := request.transport) is not None and not transport.is_closing():  # noqa: ASYNC110 - as above
        await asyncio.sleep(_CLOSE_TIMEOUT_S / 20)


def _names_in(request: web.Request) -> list[str]:
    """The streams named in the address; raises the venue's refusal of one that is too long."""
    if len(f"GET {request.raw_path} HTTP/1.1") > MAX_REQUEST_LINE_BYTES:
        raise web.HTTPRequestURITooLong
    text = request.match_info.get("names") or request.query.get("streams", "")
    names = [name for name in text.split("/") if name]
    if len(set(names)) > control.MAX_STREAMS:
        raise web.HTTPBadRequest(text=f"at most {control.MAX_STREAMS} streams per connection")
    return names


def _react(message: WSMessage, connection: Connection) -> None:
    if message.type is WSMsgType.PING:
        connection.pong(message.data)
    elif message.type is WSMsgType.TEXT:
        connection.reply(control.answer(message.data, connection))


def _used(meter: WeightMeter) -> dict[str, str]:
    return {"X-MBX-USED-WEIGHT-1M": str(meter.used)}


def _refused(refusal: Refusal, meter: WeightMeter) -> web.Response:
    headers = _used(meter)
    if isinstance(refusal, TooMuch):
        headers["Retry-After"] = str(math.ceil(refusal.retry_after_s))
    body = msgspec.json.encode({"code": refusal.code, "msg": str(refusal)})
    return web.Response(status=refusal.status, body=body, content_type="application/json", headers=headers)
