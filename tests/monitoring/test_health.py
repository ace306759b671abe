"""The judgement on the recorder, and the pages that show it."""

import socket
from collections.abc import Mapping
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from crypto_lake.config import ConfigError
from crypto_lake.monitoring.health import BACKLOG_BYTES, Drain, Feed, Health, Progress, judge, start

NOW_S = 10_000.0
FINE = Feed(heard_s=NOW_S - 1, silence_s=30)
SILENT = Feed(heard_s=NOW_S - 31, silence_s=30)
QUIET = Feed(heard_s=NOW_S - 5000, silence_s=None, open=1, wanted=2, messages=7, repeats=5, lapses=1)
DEAD = Feed(heard_s=NOW_S - 1, silence_s=30, silent=("a@trade", "b@trade", "c@trade", "d@trade"))
SHEDDING = Feed(heard_s=NOW_S - 1, silence_s=30, is_shedding=True, shed=1234)
WORKING = Drain(committed_s=NOW_S - 9, backlog_bytes=5000)


def progress(**said: Any) -> Progress:
    return Progress(**{"started_s": NOW_S - 9000, "commit_every_s": 10, "feeds": {"f": FINE}} | said)


def test_a_recorder_that_hears_and_commits_is_ok() -> None:
    health = judge(progress(feeds={"f": FINE, "q": QUIET}, drains={"d": WORKING}), now_s=NOW_S)
    assert (health.status, health.reasons) == ("ok", ())
    assert health.details["feeds"]["q"] == {
        "heard_s_ago": 5000,
        "connections": 1,
        "connections_wanted": 2,
        "messages": 7,
        "repeats": 5,
        "lapses": 1,
        "shed": 0,
        "silent": [],
    }
    assert health.details["load_level"] == 0
    assert health.details["drains"]["d"] == {"committed_s_ago": 9, "backlog_bytes": 5000}


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"feeds": {"f": FINE, "s": SILENT}}, "s: silent for 31 s"),
        ({"feeds": {"f": DEAD}}, "f: 4 streams are silent: a@trade, b@trade, c@trade, ..."),
        (
            {"feeds": {"f": SHEDDING}, "load_level": 1, "load_reason": "the disk is slow"},
            "f: messages are given up, 1,234 so far: the disk is slow",
        ),
        ({"store_failing_since_s": NOW_S - 600}, "the store has been failing for 600 s; the journal keeps everything"),
        ({"drains": {"d": Drain(committed_s=NOW_S - 121, backlog_bytes=1)}}, "d: no commit for 121 s"),
        ({"drains": {"d": Drain(committed_s=NOW_S - 1, backlog_bytes=2 * BACKLOG_BYTES)}}, "d: 512 MiB wait"),
    ],
)
def test_what_somebody_should_look_at_is_degraded(said: dict[str, Any], reason: str) -> None:
    health = judge(progress(**said), now_s=NOW_S)
    assert health.status == "degraded"
    assert len(health.reasons) == 1
    assert health.reasons[0].startswith(reason)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"journal_full": True}, "the disk of the journal is full: nothing is recorded"),
        ({"feeds": {"s": SILENT, "t": SILENT, "q": QUIET}}, "every feed is silent"),
        (
            {"drains": {"d": Drain(committed_s=NOW_S - 1201, backlog_bytes=1)}},
            "d: no commit for 1201 s, and the store reports no failure",
        ),
    ],
)
def test_what_ends_the_recording_is_failing(said: dict[str, Any], reason: str) -> None:
    health = judge(progress(**said), now_s=NOW_S)
    assert health.status == "failing"
    assert health.reasons[0] == reason


def test_every_reason_is_said() -> None:
    health = judge(progress(journal_full=True, store_failing_since_s=NOW_S - 5, feeds={"s": SILENT}), now_s=NOW_S)
    assert len(health.reasons) == 4


def test_a_store_that_is_down_for_long_is_no_reason_to_restart_a_recorder_that_records() -> None:
    late = {"d": Drain(committed_s=NOW_S - 8000, backlog_bytes=1)}
    assert judge(progress(store_failing_since_s=NOW_S - 8000, drains=late), now_s=NOW_S).status == "degraded"


def test_without_a_backlog_no_commit_is_late() -> None:
    assert judge(progress(drains={"d": Drain(committed_s=None, backlog_bytes=0)}), now_s=NOW_S).status == "ok"


@pytest.mark.parametrize(("up_s", "status"), [(29, "ok"), (31, "failing")])
def test_a_feed_that_was_never_heard_is_silent_since_the_start(up_s: float, status: str) -> None:
    said = progress(started_s=NOW_S - up_s, feeds={"f": Feed(heard_s=None, silence_s=30)})
    assert judge(said, now_s=NOW_S).status == status


def test_slow_commits_are_late_later() -> None:
    slow = progress(commit_every_s=60, drains={"d": Drain(committed_s=NOW_S - 500, backlog_bytes=1)})
    assert judge(slow, now_s=NOW_S).status == "ok"


def test_a_recorder_with_nothing_to_watch_is_ok() -> None:
    assert judge(progress(feeds={}), now_s=NOW_S).status == "ok"


async def ask(port: int, path: str) -> tuple[int, Mapping[str, str], str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as response:
        return response.status, response.headers, await response.text()


@pytest.mark.parametrize(("status", "code"), [("ok", 200), ("degraded", 200), ("failing", 503)])
async def test_the_health_page_says_status_and_reasons(status: Any, code: int) -> None:
    pages = await start(0, lambda: Health(status, ("a reason",), {"up_s": 1}))
    answered, headers, text = await ask(pages.port, "/health")
    await pages.close()
    assert (answered, headers["Content-Type"]) == (code, "application/json; charset=utf-8")
    assert text == f'{{"status": "{status}", "reasons": ["a reason"], "details": {{"up_s": 1}}}}'


async def test_the_metrics_page_is_what_prometheus_reads() -> None:
    pages = await start(0, lambda: judge(progress(), now_s=NOW_S))
    answered, headers, text = await ask(pages.port, "/metrics")
    await pages.close()
    assert answered == 200
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert "crypto_lake_frames" in {family.name for family in text_string_to_metric_families(text)}


async def test_a_port_in_use_is_said_with_the_setting_to_change() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"^LAKE_METRICS_PORT={port}: port is in use on 127\.0\.0\.1"):
            await start(port, lambda: judge(progress(), now_s=NOW_S))


async def test_the_pages_are_for_this_machine_only_and_gone_after_close() -> None:
    pages = await start(0, lambda: judge(progress(), now_s=NOW_S))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", pages.port), timeout=5)
    await pages.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", pages.port), timeout=5)
