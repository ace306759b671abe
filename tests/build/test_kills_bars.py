"""Killed wherever it may be, a build of bars ends with the same table as one that nobody disturbed."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from polars.testing import assert_frame_equal

from crypto_lake.build.bar_rows import Rules
from crypto_lake.models import BAR
from tests.build.tape import Market, straggling


@pytest.fixture
def market(tmp_path: Path) -> Market:
    return Market(tmp_path / "tables")


LOOK_EVERY_S = 0.002
# What is seen from outside before a kill: findings that no log names yet, their commit, bars that no log names yet,
# and their commit.
MOMENTS = ["quality/date=*/*.parquet", "quality/_delta_log/*1.json", "bar/date=*/*.parquet", "bar/_delta_log/*1.json"]


def kill(process: subprocess.Popen[bytes], folder: Path, moment: str) -> bool:
    """`kill -9` as soon as there is such a file; whether the process was still there then."""
    while process.poll() is None and not any(folder.glob(moment)):
        time.sleep(LOOK_EVERY_S)
    process.kill()
    return process.wait() == -signal.SIGKILL


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Market:
    """A build that nobody disturbed."""
    made = Market(tmp_path_factory.mktemp("whole") / "tables")
    made.put([*straggling(1500, 200), *straggling(400, 700, symbol="ETHUSDT")])
    made.gap(90_000, 200_000)
    made.build(rules=Rules("drop"))
    return made


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_wherever_it_is_a_build_ends_with_the_same_table(market: Market, whole: Market, moment: str) -> None:
    for table in ("agg_trade", "gap"):
        shutil.copytree(whole.path / table, market.path / table)
    command = [sys.executable, "-m", "crypto_lake", "build", "bars", "--late", "drop", "--root", market.root]
    while True:
        for table in ("bar", "quality"):
            shutil.rmtree(market.path / table, ignore_errors=True)
        if kill(subprocess.Popen(command), market.path, moment):
            break  # or else once more: it was faster than we
    market.build(rules=Rules("drop"))
    assert_frame_equal(market.lake.rows(BAR).sort(BAR.key), whole.lake.rows(BAR).sort(BAR.key))
    for check in ("late_dropped", "bar_in_gap"):
        ours, theirs = (each.findings(check).drop("found_time", "date") for each in (market, whole))
        assert_frame_equal(ours, theirs, check_row_order=False)
        assert ours.height
