"""Collecting: each feed stays connected, several times over, and what it hears goes to the journal once."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from crypto_lake.connections import SourceError
from crypto_lake.connections.backoff import backoff_s
from crypto_lake.connections.websocket import Connection, connected
from crypto_lake.journal import Journal
from crypto_lake.monitoring import metrics
from crypto_lake.services.delivery import Line
from crypto_lake.services.feeds import Feed, plan, replan
from crypto_lake.services.intake import Intake, OnStream
from crypto_lake.services.load import Load
from crypto_lake.services.mute import Mute
from crypto_lake.services.wait import first_of

__all__ = ["Feed", "Policy", "keep", "plan", "replan"]

log = structlog.get_logger()


# After a rest what had waited in the sockets is read within so long.
BACKLOG_S: Final = 2.0
# A look that is so late means that the whole process was not running.
STALLED_S: Final = 2.5
# The clock that stamps was set when it moves so far against the one that only runs.
STEP_US: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Policy:
    """How long a connection may live, and how it is replaced. A venue cuts it after 24 h (PROTOCOLS A.3)."""

    # Connections that carry the same streams, so that one may fail; the next one is opened when the first one
    # delivers, or after `stagger_s`.
    redundancy: int = 1
    stagger_s: float = 3.0
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
    # A connection on which nothing comes for so long, while its sibling hears plenty, is dead on one side.
    mute_s: float = 8.0
    look_every_s: float = 1.0


class Life:
    """One connection of a feed from its opening to its end, in a task of its own."""

    def __init__(self, feed: Feed, intake: Intake, may_read: asyncio.Event, policy: Policy) -> None:
        self.flowing = asyncio.Event()  # it delivers, and nothing was lost between it and its predecessors
        self.line = Line()
        self.retry_after_s: float | None = None
        self._closing = asyncio.Event()
        self.carries = feed.carries
        self._feed, self._intake, self._may_read, self._policy = feed, intake, may_read, policy
        self._connection: Connection | None = None
        self._resumed_s = 0.0
        self.task = asyncio.create_task(self._live(), name=f"feed {feed.name}")

    @property
    def was_steady(self) -> bool:
        """Whether data flowed for a while."""
        return self.line.last_us - self.line.first_us >= self._policy.steady_s * 1e6

    @property
    def is_open(self) -> bool:
        """Whether it may be heard."""
        return self._connection is not None and not self.task.done()

    async def close(self, reason: str) -> None:
        """Ends it after what has arrived is written."""
        self._closing.set()
        if self._connection is None:
            self.task.cancel()
        else:
            await self._connection.close(reason)
        await asyncio.wait([self.task])
        if not self.task.cancelled():
            self.task.result()  # a fault of ours must not go with the connection

    def doubt(self, since_us: int) -> None:
        """It was not read since then: what waits in the socket will be read with a time that proves nothing."""
        self.line.doubt_us, self._resumed_s = self.line.doubt_us or since_us, time.monotonic()

    def give_up(self, reason: str) -> None:
        """Ends it because nothing comes although something should."""
        if self._connection is not None:
            self._connection.give_up(reason)

    async def _live(self) -> str:
        """Returns why it ended."""
        feed = self._feed
        silence_s = self._policy.silence_s if feed.is_busy else self._policy.life_s
        try:
            async with connected(self.carries.url, silence_s=silence_s) as connection:
                self._connection = connection
                await self._record(connection)
                return connection.reason
        except SourceError as error:
            self.retry_after_s = error.retry_after_s
            return str(error)

    async def _record(self, connection: Connection) -> None:
        self._intake.opened(self.carries, _now_us())
        try:
            await self._frames(connection)
        finally:
            self._intake.closed(self.line, connection.reason, _now_us(), was_silent=connection.was_silent)

    async def _frames(self, connection: Connection) -> None:
        feed, line, may_read, pulse = self._feed, self.line, self._may_read, self.carries.pulse
        delivery, take = self._intake.delivery, self._intake.take
        async for received_us, payload in connection.frames():
            feed.heard_us = line.last_us = received_us
            line.frames += 1
            if line.is_joined:
                delivery.proven_us = received_us
            else:
                self._intake.join(line)
            if not (pulse and payload.startswith(pulse)):
                take(payload, received_us)
            if line.is_joined and not self.flowing.is_set():
                self.flowing.set()
            if line.doubt_us and time.monotonic() - self._resumed_s > BACKLOG_S:
                line.doubt_us = 0
            if not may_read.is_set():
                connection.is_resting = True
                await self._may_go_on()
                connection.is_resting = False
                self.doubt(received_us)

    async def _may_go_on(self) -> None:
        """Waits for the disk, or for the end: a disk that stays full must not hold up the stop."""
        disk = asyncio.create_task(self._may_read.wait())
        await first_of(self._closing, disk)
        disk.cancel()


class Seat:
    """One of a feed's places for a connection, which is always taken: after a failure with growing pauses, before the
    venue's cut with an overlap."""

    def __init__(
        self, number: int, feed: Feed, intake: Intake, may_read: asyncio.Event, stop: asyncio.Event, policy: Policy
    ) -> None:
        self.life: Life | None = None
        self._renew, self._renewed = asyncio.Event(), asyncio.Event()
        self._number, self._feed, self._intake = number, feed, intake
        self._may_read, self._stop, self._policy = may_read, stop, policy
        self._ends_at = 0.0

    @property
    def is_stale(self) -> bool:
        """Whether its connection brings something else than what the feed is to carry now."""
        return self.life is not None and not self.life.task.done() and self.life.carries.url != self._feed.url

    async def renew(self) -> None:
        """Puts a new connection in the place of the present one; returns when that is done, or given up."""
        self._renewed.clear()
        self._renew.set()
        renewed = asyncio.create_task(self._renewed.wait())
        await first_of(self._stop, renewed)
        renewed.cancel()

    async def keep(self, first: "Seat") -> None:
        """Keeps it taken until `stop`."""
        await self._may_open(first)
        attempt, life = 0, self._open()
        # The first lives are spread over the whole of one: those that begin together do not end together.
        self._ends_at -= self._policy.life_s * self._number / self._policy.redundancy
        while not self._stop.is_set():
            await self._turn(life)
            if self._stop.is_set():
                break
            if life.task.done():
                attempt = 0 if life.was_steady else attempt + 1
                await self._pause(life, attempt)
                if not self._stop.is_set():
                    life = self._open()
            else:
                life = await self._replace(life)
            self._renew.clear()
            self._renewed.set()
        await life.close("stopping")

    async def _may_open(self, first: "Seat") -> None:
        """Until the first seat delivers, or for some seconds: not all of them knock at once."""
        if first is self or first.life is None:
            return
        flowing = asyncio.create_task(first.life.flowing.wait())
        await first_of(self._stop, flowing, timeout_s=self._policy.stagger_s * self._number)
        flowing.cancel()

    async def _turn(self, life: Life) -> None:
        """Returns when the life is at its end, or should be."""
        renew = asyncio.create_task(self._renew.wait())
        await first_of(self._stop, life.task, renew, timeout_s=max(0.0, self._ends_at - time.monotonic()))
        renew.cancel()

    def _open(self) -> Life:
        self.life = Life(self._feed, self._intake, self._may_read, self._policy)
        self._ends_at = _life_end(self._policy)
        return self.life

    async def _pause(self, life: Life, attempt: int) -> None:
        wait_s = _pause_s(life, attempt, self._policy)
        feed = self._feed
        feed.trouble = reason = life.task.result()
        log.warning("disconnected", feed=feed.name, reason=reason, again_in_s=round(wait_s, 1), still_open=feed.open)
        metrics.reconnects_total.labels(feed.dataset.name, feed.venue, "failure").inc()
        await first_of(self._stop, timeout_s=wait_s)

    async def _replace(self, old: Life) -> Life:
        """The next connection in place of `old`, which is closed only when the new one delivers."""
        new = Life(self._feed, self._intake, self._may_read, self._policy)
        flowing = asyncio.create_task(new.flowing.wait())
        await first_of(self._stop, new.task, old.task, flowing, timeout_s=self._policy.overlap_s)
        flowing.cancel()
        if self._stop.is_set() or new.task.done() or not (new.line.frames or old.task.done()):
            await new.close("delivered nothing")
            self._ends_at = time.monotonic() + self._policy.overlap_s
            return old
        log.info("connection_replaced", feed=self._feed.name)
        metrics.reconnects_total.labels(self._feed.dataset.name, self._feed.venue, "planned").inc()
        await old.close("replaced by a new connection")
        self.life, self._ends_at = new, _life_end(self._policy)
        return new


async def keep(
    feed: Feed,
    journal: Journal,
    may_read: asyncio.Event,
    stop: asyncio.Event,
    *,
    policy: Policy,
    load: Load | None = None,
    on_stream: OnStream | None = None,
) -> None:
    """Keeps a feed connected until `stop`, `policy.redundancy` times over.

    While `may_read` is not set no message is taken from the sockets: the disk does not keep up, and the data waits in
    TCP. What the feed carries may change meanwhile (`feed.changed`); streams that stay are heard all the while.
    `on_stream` is called with the first message of each stream after a time in which nobody listened.
    """
    intake = Intake(
        feed,
        journal,
        now_us=_now_us(),
        load=load or Load(),
        shares=policy.redundancy > 1,
        on_stream=on_stream,
    )
    seats = [Seat(number, feed, intake, may_read, stop, policy) for number in range(policy.redundancy)]
    feed.wanted = len(seats)
    async with asyncio.TaskGroup() as group:
        for seat in seats:
            group.create_task(seat.keep(seats[0]))
        group.create_task(_look(feed, intake, seats, may_read, stop, policy))
        group.create_task(_adapt(feed, intake, seats, stop, policy))
    if intake.carries is not feed.carries:
        intake.turn(feed.carries, _now_us())
    intake.end(_now_us())


async def _look(
    feed: Feed, intake: Intake, seats: list[Seat], may_read: asyncio.Event, stop: asyncio.Event, policy: Policy
) -> None:
    """Once a second: what is missing is written down, and who is mute is replaced."""
    mute: Mute[Life] = Mute(policy.mute_s)
    renewing: asyncio.Task[None] | None = None
    looked_us, looked_s = _now_us(), time.monotonic()
    while not stop.is_set():
        await first_of(stop, timeout_s=policy.look_every_s)
        before_us, before_s = looked_us, looked_s
        looked_us, looked_s = _now_us(), time.monotonic()
        step_us = looked_us - before_us - round((looked_s - before_s) * 1e6)
        if abs(step_us) > STEP_US:
            log.warning("clock_was_set", feed=feed.name, by_s=round(step_us / 1e6, 1))
            intake.silence.shift(step_us)
        lives = [seat.life for seat in seats if seat.life is not None and seat.life.is_open]
        if looked_s - before_s > policy.look_every_s + STALLED_S:
            for life in lives:
                life.doubt(before_us)
        wants_renewal = intake.look(_now_us(), is_reading=may_read.is_set())
        for life in mute.look({life: life.line.frames for life in lives}, time.monotonic()):
            life.give_up("mute, while another connection is heard")
        if wants_renewal and (renewing is None or renewing.done()):
            log.warning("renewing_connections", feed=feed.name, silent=len(feed.silent))
            renewing = asyncio.create_task(_renew(seats))
    if renewing is not None:
        await asyncio.wait([renewing])


async def _adapt(feed: Feed, intake: Intake, seats: list[Seat], stop: asyncio.Event, policy: Policy) -> None:
    """Brings the connections to what the feed is to carry: one after the other, each closed when the next delivers."""
    renewing: list[asyncio.Task[None]] = []
    while not stop.is_set():
        feed.changed.clear()
        if intake.carries is not feed.carries:
            intake.turn(feed.carries, _now_us())
        stale = next((seat for seat in seats if seat.is_stale), None)
        if stale is not None and not renewing:
            renewing = [asyncio.create_task(stale.renew())]
        elif stale is None and not intake.is_settled:
            intake.settle(_now_us())
        changed = asyncio.create_task(feed.changed.wait())
        await first_of(stop, changed, *renewing, timeout_s=None if intake.is_settled else policy.look_every_s)
        changed.cancel()
        renewing = [task for task in renewing if not task.done()]
    await asyncio.gather(*renewing)


async def _renew(seats: list[Seat]) -> None:
    """One after the other, so that somebody listens all the while."""
    for seat in seats:
        await seat.renew()


def _pause_s(life: Life, attempt: int, policy: Policy) -> float:
    own_s = backoff_s(attempt, policy.draw, policy.first_backoff_s, policy.most_backoff_s)
    return max(own_s, life.retry_after_s or 0.0)


def _life_end(policy: Policy) -> float:
    return time.monotonic() + policy.life_s * (1 - policy.draw() * (1 - policy.shortest_life))


def _now_us() -> int:
    return time.time_ns() // 1000
