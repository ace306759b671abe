"""Killed wherever it may be, `build features` ends with the table that nobody disturbed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from crypto_lake.models.feature import FEATURE
from crypto_lake.writers.delta import Lake
from tests.build.feature_lake import add, run, tables_of
from tests.features.feature_market import market

LOOK_EVERY_S = 0.001
DAYS = 84
READ = ("bar", "mark_price", "liquidation")
# What is waited for before a kill: a file of rows that no log names yet, and a commit.
MOMENTS = {"rows": "feature/date=*/*.parquet", "commit": "feature/_delta_log/*.json"}


def command(root: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "crypto_lake", "build", "features", "--root", str(root), *words]


def killed(root: Path, moment: str, log: Path) -> bool:
    """Whether it could be killed at the moment; else it had ended before."""
    before = set(root.glob(MOMENTS[moment]))
    with log.open("ab") as said:
        process = subprocess.Popen(command(root, "--timeframes", "1h"), stdout=said, stderr=said)
        while process.poll() is None and set(root.glob(MOMENTS[moment])) <= before:
            time.sleep(LOOK_EVERY_S)
        process.send_signal(signal.SIGKILL)
        status = process.wait()
    assert status in (0, -signal.SIGKILL), log.read_text()
    return status != 0


def rows_of(root: Path) -> pl.DataFrame:
    return Lake(str(root)).rows(FEATURE).sort(FEATURE.key)


def test_five_kills_change_nothing(tmp_path: Path) -> None:
    made = market(21, DAYS * 24, "1h", idle=0.0)
    tables = tables_of(made)
    disturbed, whole = tmp_path / "disturbed", tmp_path / "whole"
    begin, span = tables["bar"]["time"].min(), DAYS * 24 * 3600
    moments = ["rows", "commit", "rows", "commit", "rows"]
    for number in range(len(moments) + 1):
        for name in READ:
            turns = (pl.col("time") - begin).dt.total_seconds() * 6 // span
            late = pl.int_range(pl.len()) % 50 == 7
            turn = pl.when(late).then(5).otherwise(turns)
            add(disturbed, name, tables[name].filter(turn == number))
        if number < len(moments):
            assert killed(disturbed, moments[number], tmp_path / "log")
    for name in READ:
        add(whole, name, tables[name])
    last, once = run(disturbed, timeframes="1h"), run(whole, timeframes="1h")
    assert last.computed > 0
    assert once.added == rows_of(whole).height
    ours = rows_of(disturbed)
    assert ours.select(FEATURE.key).is_unique().all()
    assert ours.equals(rows_of(whole), null_equal=True)


def said(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LAKE_")}
    return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)


def test_the_command_says_what_it_did_and_what_is_missing(tmp_path: Path) -> None:
    add(tmp_path, "bar", tables_of(market(22, 300))["bar"])
    done = said(*command(tmp_path, "--symbols", "BTCUSDT", "--json"))
    assert done.returncode == 0, done.stderr
    built = json.loads(done.stdout)
    assert (built["dataset"], built["computed"], built["added"]) == ("feature", 300, 300)
    assert "there is no table book_snapshot: features made from it are null" in built["notes"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--timeframes", "7m"), "--timeframes: there is no '7m'; there are 1m, 5m, 15m, 1h, 4h, 1d"),
        (("--symbols", "BTCUSD"), "--symbols BTCUSD: table bar (1m) has no rows of it; did you mean"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, words: tuple[str, ...], sentence: str) -> None:
    add(tmp_path, "bar", tables_of(market(22, 30))["bar"])
    failed = said(*command(tmp_path, *words))
    assert failed.returncode == 1
    assert sentence in " ".join(failed.stderr.split())
    assert "Traceback" not in failed.stderr
