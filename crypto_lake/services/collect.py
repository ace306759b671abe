"""Collecting: each feed stays connected, and whatever arrives goes into the journal of its dataset."""

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
import structlog

from crypto_lake.config import FUTURES, Settings
from crypto_lake.connections import SourceError
from crypto_lake.connections.backoff import backoff_s
from crypto_lake.connections.websocket import Connection, combined, connected, stream_of
from crypto_lake.journal import CLOSED, FRAME, OPENED, Journal
from crypto_lake.models import Dataset
from crypto_lake.monitoring import metrics
from crypto_lake.services.markets import Wanted
from crypto_lake.services.wait import first_of

log = structlog.get_logger()

# The venue's own default speeds have no name of their own in a stream's name.
DEFAULT_SPEEDS: Final = {FUTURES: "250ms"}
SPOT_DEFAULT_SPEED: Final = "1000ms"


@dataclass(frozen=True, slots=True)
class Policy:
    """How long a connection may live, and how it is replaced. A venue cuts it after 24 h (PROTOCOLS A.3)."""

    silence_s: float = 30.0
    life_s: float = 23 * 3600.0
    # Lives are drawn between this share and the whole, so that connections do not come to their end together.
    shortest_life: float = 0.9
    # Data must have flowed for so long before a failure counts as the first one again.
    steady_s: float = 5.0
    overlap_s: float = 30.0
    first_backoff_s: float = 1.0
    most_backoff_s: float = 60.0
    draw: Callable[[], float] = random.random


@dataclass(slots=True)
class Feed:
    """One connection's worth of streams of one dataset, and what is known of it; `pulse` begins a pulse's messages."""

    dataset: Dataset
    venue: str
    url: str
    streams: tuple[str, ...]
    name: str
    pulse: bytes = b""
    frames: int = 0
    size_bytes: int = 0
    heard_us: int = 0
    open: int = 0
    opened: int = 0
    trouble: str = ""

    @property
    def is_busy(self) -> bool:
        """Whether silence on it means that it is dead."""
        assert self.dataset.live is not None
        return self.dataset.live.is_busy or bool(self.pulse)


def plan(datasets: Iterable[Dataset], markets: Mapping[str, Wanted], settings: Settings) -> list[Feed]:
    """The connections that carry the datasets' streams of the wanted symbols."""
    return [
        feed
        for dataset in datasets
        if dataset.live
        for venue, wanted in markets.items()
        if venue in dataset.live.streams
        for feed in _feeds(dataset, wanted, settings)
    ]


def _feeds(dataset: Dataset, wanted: Wanted, settings: Settings) -> list[Feed]:
    assert dataset.live is not None
    stream = dataset.live.streams[wanted.venue]
    speed = settings.depth_speed
    names = [_stream_name(stream.name, symbol, wanted.venue, speed) for symbol in wanted.symbols]
    if wanted.every and stream.every:
        names = [stream.every]
    pulse = _pulse(dataset, wanted)
    addresses = combined(settings.ws_address(wanted.venue), stream.route, names, also=pulse)
    return [
        Feed(
            dataset,
            wanted.venue,
            address.url,
            address.streams,
            f"{dataset.name} {wanted.venue} {number}",
            f'{{"stream":"{pulse}"'.encode() if pulse else b"",
        )
        for number, address in enumerate(addresses)
    ]


def _stream_name(template: str, symbol: str, venue: str, speed: str) -> str:
    if speed == DEFAULT_SPEEDS.get(venue, SPOT_DEFAULT_SPEED):
        template = template.replace("@{speed}", "")
    return template.format(symbol=symbol.lower(), speed=speed)


def _pulse(dataset: Dataset, wanted: Wanted) -> str:
    assert dataset.live is not None
    if not dataset.live.pulse or wanted.venue != FUTURES or not wanted.symbols:
        return ""
    return dataset.live.pulse.format(symbol=wanted.symbols[0].lower())


class Life:
    """One connection of a feed from its opening to its end, in a task of its own."""

    def __init__(
        self, feed: Feed, journal: Journal, may_read: asyncio.Event, policy: Policy, on_stream: "OnStream | None"
    ) -> None:
        self.flowing = asyncio.Event()
        self._closing = asyncio.Event()
        self.first_us = self.last_us = 0
        self.retry_after_s: float | None = None
        self._feed, self._journal, self._may_read, self._policy = feed, journal, may_read, policy
        self._on_stream = on_stream
        self._connection: Connection | None = None
        self.task = asyncio.create_task(self._live(), name=f"feed {feed.name}")

    @property
    def was_steady(self) -> bool:
        """Whether data flowed for a while."""
        return self.last_us - self.first_us >= self._policy.steady_s * 1e6

    async def close(self, reason: str) -> None:
        """Ends it after what has arrived is written."""
        self._closing.set()
        if self._connection is None:
            self.task.cancel()
        else:
            await self._connection.close(reason)
        await asyncio.wait([self.task])

    async def _live(self) -> str:
        """Returns why it ended."""
        feed = self._feed
        silence_s = self._policy.silence_s if feed.is_busy else self._policy.life_s
        try:
            async with connected(feed.url, silence_s=silence_s) as connection:
                self._connection = connection
                await self._record(connection)
                return connection.reason
        except SourceError as error:
            self.retry_after_s = error.retry_after_s
            return str(error)

    async def _record(self, connection: Connection) -> None:
        feed, journal = self._feed, self._journal
        origin = f"{feed.venue} {feed.name}".encode()
        journal.append(OPENED, origin, msgspec.json.encode({"url": feed.url, "streams": feed.streams}), _now_us())
        feed.open += 1
        feed.opened += 1
        try:
            await self._frames(connection, origin)
        finally:
            feed.open -= 1
            journal.append(CLOSED, origin, msgspec.json.encode({"reason": connection.reason}), _now_us())

    async def _frames(self, connection: Connection, origin: bytes) -> None:
        feed, append, may_read, pulse = self._feed, self._journal.append, self._may_read, self._feed.pulse
        unseen = set(map(str.encode, feed.streams)) if self._on_stream else set()
        async for received_us, payload in connection.frames():
            feed.heard_us = self.last_us = received_us
            if not self.first_us:
                self.first_us = received_us
                self.flowing.set()
            if pulse and payload.startswith(pulse):
                continue
            append(FRAME, origin, payload, received_us)
            feed.frames += 1
            feed.size_bytes += len(payload)
            if unseen and (stream := stream_of(payload)) in unseen:
                unseen.discard(stream)
                assert self._on_stream is not None
                self._on_stream(feed, payload)
            if not may_read.is_set():
                connection.is_resting = True
                await self._may_go_on()
                connection.is_resting = False

    async def _may_go_on(self) -> None:
        """Waits for the disk, or for the end: a disk that stays full must not hold up the stop."""
        disk = asyncio.create_task(self._may_read.wait())
        await first_of(self._closing, disk)
        disk.cancel()


OnStream = Callable[[Feed, bytes], None]


async def keep(
    feed: Feed,
    journal: Journal,
    may_read: asyncio.Event,
    stop: asyncio.Event,
    *,
    policy: Policy,
    on_stream: OnStream | None = None,
) -> None:
    """Keeps a feed connected until `stop`: after a failure with growing pauses, before the venue's cut with an overlap.

    While `may_read` is not set no message is taken from the socket: the disk does not keep up, and the data waits in
    TCP. `on_stream` is called with the first message of each stream of a connection that follows a hole.
    """
    attempt = 0
    life = Life(feed, journal, may_read, policy, on_stream)
    ends_at = _life_end(policy)
    while not stop.is_set():
        await first_of(stop, life.task, timeout_s=max(0.0, ends_at - time.monotonic()))
        if stop.is_set():
            break
        if life.task.done():
            attempt = 0 if life.was_steady else attempt + 1
            wait_s = _pause_s(life, attempt, policy)
            feed.trouble = reason = life.task.result()
            log.warning("disconnected", feed=feed.name, reason=reason, again_in_s=round(wait_s, 1))
            metrics.reconnects_total.labels(feed.dataset.name, feed.venue, "failure").inc()
            await first_of(stop, timeout_s=wait_s)
            if not stop.is_set():
                life, ends_at = Life(feed, journal, may_read, policy, on_stream), _life_end(policy)
        else:
            life, ends_at = await _replace(life, feed, journal, may_read, stop, policy)
    await life.close("stopping")


async def _replace(
    old: Life, feed: Feed, journal: Journal, may_read: asyncio.Event, stop: asyncio.Event, policy: Policy
) -> tuple[Life, float]:
    """The next connection in place of `old`, which is closed only when the new one delivers."""
    new = Life(feed, journal, may_read, policy, None)
    flowing = asyncio.create_task(new.flowing.wait())
    await first_of(stop, new.task, old.task, flowing, timeout_s=policy.overlap_s)
    flowing.cancel()
    if new.flowing.is_set():
        log.info("connection_replaced", feed=feed.name)
        metrics.reconnects_total.labels(feed.dataset.name, feed.venue, "planned").inc()
        await old.close("replaced by a new connection")
        return new, _life_end(policy)
    await new.close("delivered nothing")
    return old, time.monotonic() + policy.overlap_s


def _pause_s(life: Life, attempt: int, policy: Policy) -> float:
    own_s = backoff_s(attempt, policy.draw, policy.first_backoff_s, policy.most_backoff_s)
    return max(own_s, life.retry_after_s or 0.0)


def _life_end(policy: Policy) -> float:
    return time.monotonic() + policy.life_s * (1 - policy.draw() * (1 - policy.shortest_life))


def _now_us() -> int:
    return time.time_ns() // 1000
