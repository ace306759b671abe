"""Is the recorder well? A pure judgement, and the pages that show it to the machine it runs on."""

import errno
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import prometheus_client
from aiohttp import web

from crypto_lake.config import ConfigError
from crypto_lake.monitoring.metrics import REGISTRY

HOST = "127.0.0.1"
CLOSE_S = 1.0  # a page under way may be cut when the recorder stops

# A commit is late after so many of its periods, but not before LATE_S: a slow store is not an illness.
LATE_PERIODS, LATE_S = 10, 120.0
# Late by so many times more it will not come by itself: a restart is the cure.
STUCK_TIMES = 10
# Far above what comes in between two commits: the drain does not keep up.
BACKLOG_BYTES = 256 * 1024 * 1024
# A reason names so many streams; `/metrics` counts them all.
NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """The streams of one dataset and venue that come together."""

    heard_s: float | None  # None = nothing came since the start
    silence_s: float | None  # longest silence that is normal; None = it may be silent for ever
    open: int = 0  # connections that are open, of those `wanted`
    wanted: int = 0
    messages: int = 0
    repeats: int = 0  # what a second connection delivered again
    lapses: int = 0  # times in which nobody listened
    shed: int = 0  # messages given up under load
    is_shedding: bool = False
    silent: tuple[str, ...] = ()  # streams that should speak and do not


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """The way of one dataset from the journal to the tables."""

    committed_s: float | None  # None = nothing was committed since the start
    backlog_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What the services know of themselves at one moment; every time is in epoch seconds."""

    started_s: float
    commit_every_s: float
    feeds: Mapping[str, Feed] = field(default_factory=dict)
    drains: Mapping[str, Drain] = field(default_factory=dict)
    journal_full: bool = False
    load_level: int = 0
    load_reason: str = ""
    store_failing_since_s: float | None = None
    bars_trouble: str = ""  # why the table `bar` is not up to date
    # Venue and symbol of what should be collected and is not to be had.
    unlisted: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Health:
    """`degraded` = recording, but somebody should look; `failing` = not recording, or beyond cure by itself."""

    status: Literal["ok", "degraded", "failing"]
    reasons: tuple[str, ...]
    details: dict[str, Any]


def judge(progress: Progress, *, now_s: float) -> Health:
    """How the recorder is, and every reason why it is not better."""
    late_s = {name: _late_s(drain, progress, now_s) for name, drain in progress.drains.items()}
    failing = _ends_recording(progress, late_s, now_s)
    reasons = (*failing, *_worrying(progress, late_s, now_s))
    status: Literal["ok", "degraded", "failing"] = "failing" if failing else "degraded" if reasons else "ok"
    return Health(status, reasons, _details(progress, now_s))


def _ends_recording(progress: Progress, late_s: Mapping[str, float], now_s: float) -> list[str]:
    reasons = ["the disk of the journal is full: nothing is recorded"] if progress.journal_full else []
    watched = {name for name, feed in progress.feeds.items() if feed.silence_s is not None}
    if watched and watched == set(_silent_s(progress, now_s)):
        reasons.append("every feed is silent")
    # While the store is known to fail the drain is at work, and a restart would not help.
    if progress.store_failing_since_s is None:
        stuck_s = STUCK_TIMES * _allowed_s(progress)
        reasons += [
            f"{name}: no commit for {late:.0f} s, and the store reports no failure"
            for name, late in late_s.items()
            if late > stuck_s
        ]
    return reasons


def _worrying(progress: Progress, late_s: Mapping[str, float], now_s: float) -> list[str]:
    reasons = [f"{name}: silent for {silent:.0f} s" for name, silent in _silent_s(progress, now_s).items()]
    reasons += [
        f"{name}: {_streams(feed.silent)} silent: {_some(feed.silent)}"
        for name, feed in progress.feeds.items()
        if feed.silent
    ]
    reasons += [
        f"{name}: messages are given up, {feed.shed:,} so far: {progress.load_reason}"
        for name, feed in progress.feeds.items()
        if feed.is_shedding
    ]
    if progress.unlisted:
        names = tuple(f"{venue}:{symbol}" for venue, symbol in progress.unlisted)
        reasons.append(f"no venue lists {_some(names)}: not collected")
    if progress.store_failing_since_s is not None:
        failing_s = now_s - progress.store_failing_since_s
        reasons.append(f"the store has been failing for {failing_s:.0f} s; the journal keeps everything")
    if progress.bars_trouble:
        reasons.append(f"no bars are made: {progress.bars_trouble}")
    allowed_s, stuck_s = _allowed_s(progress), STUCK_TIMES * _allowed_s(progress)
    reasons += [f"{name}: no commit for {late:.0f} s" for name, late in late_s.items() if allowed_s < late <= stuck_s]
    reasons += [
        f"{name}: {drain.backlog_bytes / 2**20:.0f} MiB wait in the journal"
        for name, drain in progress.drains.items()
        if drain.backlog_bytes > BACKLOG_BYTES
    ]
    return reasons


def _streams(names: tuple[str, ...]) -> str:
    return "1 stream is" if len(names) == 1 else f"{len(names)} streams are"


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _allowed_s(progress: Progress) -> float:
    return max(LATE_S, LATE_PERIODS * progress.commit_every_s)


def _silent_s(progress: Progress, now_s: float) -> dict[str, float]:
    """The feeds that are silent for longer than is normal for them, and for how long."""
    silent = {name: (feed, _since_s(feed.heard_s, progress, now_s)) for name, feed in progress.feeds.items()}
    return {name: s for name, (feed, s) in silent.items() if feed.silence_s is not None and s > feed.silence_s}


def _late_s(drain: Drain, progress: Progress, now_s: float) -> float:
    """Without a backlog there is nothing to commit, and nothing is late."""
    return _since_s(drain.committed_s, progress, now_s) if drain.backlog_bytes else 0.0


def _since_s(last_s: float | None, progress: Progress, now_s: float) -> float:
    return now_s - (progress.started_s if last_s is None else last_s)


def _details(progress: Progress, now_s: float) -> dict[str, Any]:
    return {
        "up_s": round(now_s - progress.started_s, 1),
        "journal_full": progress.journal_full,
        "store_failing_s": _age_s(progress.store_failing_since_s, now_s),
        "load_level": progress.load_level,
        "feeds": {name: _feed_details(feed, now_s) for name, feed in progress.feeds.items()},
        "drains": {
            name: {"committed_s_ago": _age_s(drain.committed_s, now_s), "backlog_bytes": drain.backlog_bytes}
            for name, drain in progress.drains.items()
        },
    }


def _feed_details(feed: Feed, now_s: float) -> dict[str, Any]:
    return {
        "heard_s_ago": _age_s(feed.heard_s, now_s),
        "connections": feed.open,
        "connections_wanted": feed.wanted,
        "messages": feed.messages,
        "repeats": feed.repeats,
        "lapses": feed.lapses,
        "shed": feed.shed,
        "silent": list(feed.silent),
    }


def _age_s(at_s: float | None, now_s: float) -> float | None:
    return None if at_s is None else round(now_s - at_s, 1)


# What a page answers to the words behind the `?`: the HTTP status, and JSON.
Answer = tuple[int, bytes]
Page = Callable[[Mapping[str, str]], Awaitable[Answer]]


class Pages:
    """`/metrics`, `/health` and whatever else is asked for, served until `close()`."""

    def __init__(self, runner: web.AppRunner, port: int) -> None:
        self.port = port
        self._runner = runner

    async def close(self) -> None:
        await self._runner.cleanup()


async def start(port: int, health: Callable[[], Health], more: Mapping[str, Page] | None = None) -> Pages:
    """Serve the pages on this machine only; port 0 takes any free one, `Pages.port` says which.

    `more` are further pages by their path.

    Raises `ConfigError` when the port cannot be had.
    """
    app = web.Application()
    app.router.add_get("/metrics", _metrics)
    app.router.add_get("/health", partial(_health, health))
    for path, page in (more or {}).items():
        app.router.add_get(path, partial(_page, page))
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=CLOSE_S)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, port).start()
    except OSError as error:
        await runner.cleanup()
        raise ConfigError(_no_port(port, error)) from None
    return Pages(runner, runner.addresses[0][1])


def _no_port(port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"LAKE_METRICS_PORT={port}: port is in use on {HOST} (does another collector run?); "
            "choose another, or 0 for any free one"
        )
    reason = os.strerror(error.errno) if error.errno else str(error)
    return f"LAKE_METRICS_PORT={port}: cannot listen on {HOST}: {reason}"


async def _metrics(_: web.Request) -> web.Response:
    page = prometheus_client.generate_latest(REGISTRY)
    return web.Response(body=page, headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST})


async def _health(health: Callable[[], Health], _: web.Request) -> web.Response:
    now = health()
    page = {"status": now.status, "reasons": list(now.reasons), "details": now.details}
    return web.json_response(page, status=503 if now.status == "failing" else 200)


async def _page(page: Page, request: web.Request) -> web.Response:
    status, body = await page(request.query)
    return web.Response(status=status, body=body, content_type="application/json")
