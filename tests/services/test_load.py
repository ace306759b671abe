"""What is given up first: the level rises at once, and falls only when it has been calm for a while."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crypto_lake.journal import FRAME, Journal
from crypto_lake.journal.writer import MAX_WAITING_BYTES
from crypto_lake.models import DATASETS
from crypto_lake.services.flush import Disk, flush_journals
from crypto_lake.services.load import CALM_S, LATE_IN_A_ROW, Load, Thresholds

CALM: dict[str, float] = {"waiting_share": 0.0, "loop_delay_s": 0.0, "free_bytes": 1e12}


def observed(load: Load, now_s: float, **measures: float) -> int:
    load.observe(now_s, **{**CALM, **measures})
    return load.level


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ({"waiting_share": 0.3}, {"waiting_share": 0.6}, "the disk is slow"),
        ({"free_bytes": 800 * 2**20}, {"free_bytes": 100 * 2**20}, "the disk is nearly full"),
    ],
)
def test_the_level_rises_with_what_is_measured(first: Any, second: Any, reason: str) -> None:
    load = Load()
    assert observed(load, 0) == 0
    assert observed(load, 1, **first) == 1
    assert observed(load, 2, **second) == 2
    assert load.reason == reason


def test_a_loop_that_is_late_once_is_no_load() -> None:
    load = Load()
    assert observed(load, 0, loop_delay_s=9.0) == 0
    assert observed(load, 1) == 0
    levels = [observed(load, 2 + number, loop_delay_s=0.7) for number in range(LATE_IN_A_ROW)]
    assert levels == [0] * (LATE_IN_A_ROW - 1) + [1]


def test_the_level_falls_one_by_one_after_a_calm_time() -> None:
    load = Load()
    observed(load, 0, waiting_share=0.9)
    assert [observed(load, 1 + ago_s) for ago_s in (0, 1, CALM_S - 1)] == [2, 2, 2]
    assert observed(load, 1 + CALM_S) == 1
    assert observed(load, 2 + CALM_S) == 1
    assert observed(load, 2 + 2 * CALM_S) == 0


def test_what_is_below_the_threshold_but_not_below_half_of_it_keeps_the_level() -> None:
    load = Load()
    observed(load, 0, waiting_share=0.3)
    assert [observed(load, second, waiting_share=0.2) for second in range(1, 30)] == [1] * 29
    assert [observed(load, second, waiting_share=0.1) for second in range(30, 36)][-1] == 0


def test_a_relapse_begins_the_calm_anew() -> None:
    load = Load()
    observed(load, 0, waiting_share=0.3)
    observed(load, 1)
    observed(load, 4, waiting_share=0.3)
    assert observed(load, 1 + CALM_S) == 1
    assert observed(load, 1 + 2 * CALM_S) == 0


def test_the_order_of_sacrifice_is_book_ticker_then_depth_and_nothing_else() -> None:
    assert {name: each.sacrifice for name, each in DATASETS.items() if each.sacrifice} == {"book_ticker": 1, "depth": 2}


@pytest.mark.parametrize(
    ("thresholds", "waiting_bytes", "reason"),
    [
        (Thresholds(free_bytes=(1e18, 1.0)), 0, "the disk is nearly full"),
        (Thresholds(waiting_share=(1e-3, 10.0)), MAX_WAITING_BYTES // 8, "the disk is slow"),
    ],
)
async def test_the_flushing_measures_the_real_disk(
    tmp_path: Path, wait_for: Callable[..., Any], thresholds: Thresholds, waiting_bytes: int, reason: str
) -> None:
    journal, load, stop = Journal(tmp_path), Load(thresholds), asyncio.Event()
    flushing = asyncio.create_task(
        flush_journals([journal], asyncio.Event(), Disk(), stop, sync_every_s=1.0, load=load)
    )

    def is_seen() -> bool:
        journal.append(FRAME, b"binance x", bytes(waiting_bytes), 1)  # faster than any disk
        return load.level == 1

    await wait_for(is_seen)
    assert load.reason == reason
    stop.set()
    await flushing
    journal.close()
