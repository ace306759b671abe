"""`crypto-lake backfill massive` as a person uses it: what it says when something is wrong, and how it stops."""

import asyncio
import json
import os
import signal
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from crypto_lake.cli import main
from crypto_lake.models.bar import BAR
from crypto_lake.models.bucket import DAY
from crypto_lake.models.flatfile import FlatFile
from crypto_lake.query import read
from crypto_lake.simulator.flatfiles import FlatMarket
from crypto_lake.writers.delta import Lake
from tests.conftest import eventually
from tests.s3 import FakeS3, Flatfiles, refuses, stops

FOLDER = "us_stocks_sip/day_aggs_v1"
DAYS = [date(2026, 5, 18) + number * DAY for number in range(5)]
PATHS = [FlatFile(FOLDER, day).path for day in DAYS]
ASKED = ("--dataset", FOLDER, "--start", DAYS[0], "--end", DAYS[-1])
MARKET = FlatMarket(seed=3, tickers=("A", "AAPL", "BApA", "NA", "ZVZZT"))
BODIES = {path: MARKET.gz(FOLDER, day) for path, day in zip(PATHS, DAYS, strict=True)}
ROWS = 4


@pytest.fixture
def program(flatfiles: Flatfiles, flat_backfills: Callable[..., Any], tmp_path: Path) -> Any:
    """Against a bucket that has five days."""
    for path, body in BODIES.items():
        flatfiles.put(path, body)
    return flat_backfills(tmp_path / "home")


@pytest.fixture
def failing(fake_s3: FakeS3, flat_backfills: Callable[..., Any], tmp_path: Path) -> Any:
    """Against one with the same that does as told."""
    for path, body in BODIES.items():
        fake_s3.put(path, body)
    return flat_backfills(tmp_path / "home", LAKE_MASSIVE_S3=fake_s3.address)


def days_in(program: Any) -> list[date]:
    """The days whose rows are in the table."""
    if Lake(str(program.root)).table(BAR) is None:
        return []
    rows = read("bar", root=str(program.root)).collect()
    assert rows.group_by("date").len()["len"].to_list() == [ROWS] * rows["date"].n_unique()
    return sorted(rows["date"].unique().to_list())


async def test_what_was_done_is_said(program: Any) -> None:
    said = await program.run(*ASKED)
    assert (said.status, said.err) == (0, "")
    head, tests, *others = said.out.splitlines()
    assert head.startswith("5 files, ")
    assert head.endswith(", 20 rows, 20 of them new, 5 days")
    assert tests == "left out, of symbols that exchanges test with: 5 rows"
    assert others == []
    again = await program.run(*ASKED)
    assert again.out == "0 files, 0 B, 0 rows, 0 of them new, 0 days; there already: 5 days\n"


async def test_the_mode_is_the_one_that_was_asked_for_and_is_said(program: Any) -> None:
    program.environment |= {"LAKE_MODE": "streaming", "LOG_TO_FILE": "true"}
    said = await program.run(*ASKED, "--json")
    assert (said.about["mode"], said.about["added_rows"], said.about["test_rows"]) == ("streaming", 20, 5)
    logged = [json.loads(line) for line in (program.state / "log" / "crypto-lake.jsonl").read_text().splitlines()]
    assert [line["mode"] for line in logged if line["event"] == "backfill_mode"] == ["streaming"]
    program.environment["LAKE_MODE"] = "fast"
    said = await program.run(*ASKED)
    assert said.status == 1
    assert said.err.startswith("crypto-lake: LAKE_MODE='fast': input should be 'streaming', 'batch'")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--dataset", "us_stocks_sip/day_agg_v1"), "did you mean 'us_stocks_sip/day_aggs_v1'?"),
        (("--dataset", "bar"), "there are no flat files 'bar' that are understood"),
        (("--symbols", "BRK/B"), "--symbols 'BRK/B': that is no symbol"),
        (("--symbols", "A A"), "--symbols 'A A': that is no symbol"),
        (("--symbols", "all,A"), "either all, or names"),
        (("--dataset", "us_options_opra/day_aggs_v1", "--symbols", "O:SPY"), "SPY is all of its options"),
        (("--start", "2026-05-22", "--end", "2026-05-21"), "--start 2026-05-22 is after --end 2026-05-21"),
        (("--start", "2001-01", "--end", "2002-12"), f"the files of {FOLDER} begin in 2003"),
        (("--start", "soon"), "--start soon: write a day"),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path, monkeypatch: Any, capsys: Any, words: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.setenv("LAKE_ROOT", str(tmp_path / "tables"))
    with pytest.raises(SystemExit) as ended:
        main(["backfill", "massive", *map(str, ASKED), *words])
    said = capsys.readouterr()
    assert (ended.value.code, said.out, said.err.count("\n")) == (1, "", 1)
    assert said.err.startswith("crypto-lake: ")
    assert sentence in said.err
    assert not (tmp_path / "tables").exists()


@pytest.mark.parametrize("words", [("--dataset", FOLDER), (*map(str, ASKED), "--market", "um")])
def test_wrong_usage_is_another_exit_status(words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["backfill", "massive", *words])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"LAKE_MASSIVE_KEY_ID": ""}, "crypto-lake: LAKE_MASSIVE_KEY_ID: not set"),
        ({"LAKE_MASSIVE_KEY_ID": "", "LAKE_MASSIVE_SECRET": ""}, "LAKE_MASSIVE_KEY_ID and LAKE_MASSIVE_SECRET: not"),
        ({"LAKE_MASSIVE_S3": "http://127.0.0.1/a/b"}, "LAKE_MASSIVE_S3='http://127.0.0.1/a/b' is no address"),
    ],
)
async def test_wrong_settings_are_named(program: Any, settings: dict[str, str], sentence: str) -> None:
    program.environment |= settings
    said = await program.run(*ASKED)
    assert (said.status, said.out, said.err.count("\n")) == (1, "", 1)
    assert sentence in said.err
    assert days_in(program) == []


async def test_a_bucket_that_is_not_there_is_named(program: Any, flatfiles: Flatfiles) -> None:
    program.environment["LAKE_MASSIVE_S3"] = f"{flatfiles.address}/nosuch"
    said = await program.run(*ASKED)
    assert (said.status, said.out, said.err.count("\n")) == (1, "", 1)
    assert "there is no bucket 'nosuch'" in said.err


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("InvalidAccessKeyId", "crypto-lake: LAKE_MASSIVE_KEY_ID: "),
        ("SignatureDoesNotMatch", "crypto-lake: LAKE_MASSIVE_SECRET: it is not the secret of LAKE_MASSIVE_KEY_ID"),
    ],
)
async def test_keys_that_are_refused_are_named(failing: Any, fake_s3: FakeS3, code: str, sentence: str) -> None:
    fake_s3.always = refuses(403, code)
    said = await failing.run(*ASKED)
    assert (said.status, said.out, said.err.count("\n")) == (1, "", 1)
    assert said.err.startswith(sentence)
    assert days_in(failing) == []


async def test_what_is_not_in_the_plan_is_said_once_and_not_asked_for_again(failing: Any, fake_s3: FakeS3) -> None:
    for path in PATHS[2:]:
        fake_s3.acts[path] = [refuses(403, "AccessDenied")] * 9
    said = await failing.run(*ASKED)
    assert said.status == 1
    assert said.err.count("\n") == said.err.count("is not in your plan") == 1
    assert f"nothing more of {FOLDER} is asked for" in said.err
    refused = [path for path in fake_s3.paths() if path in PATHS[2:]]
    assert len(refused) <= 2, "two are fetched at a time"
    assert len(set(refused)) == len(refused)
    assert days_in(failing) == DAYS[:2]
    fake_s3.acts.clear()
    assert (await failing.run(*ASKED)).status == 0
    assert days_in(failing) == DAYS


def halved(body: bytes) -> bytes:
    return body[: len(body) // 2]


async def test_a_file_that_is_half_written_is_put_aside_and_the_others_go_on(
    program: Any, flatfiles: Flatfiles
) -> None:
    spoilt = PATHS[2]
    flatfiles.put(spoilt, halved(BODIES[spoilt]))
    said = await program.run(*ASKED, "--json")
    assert (said.status, said.about["files"]) == (1, 4)
    (failed,) = said.about["failed"]
    aside = program.state / "quarantine" / "massive" / spoilt
    assert failed["path"] == spoilt
    assert failed["reason"].endswith(f"; put aside as {aside}")
    assert said.err == f"quarantined: {failed['reason']}\n"
    assert aside.read_bytes() == halved(BODIES[spoilt])
    assert days_in(program) == [day for day in DAYS if day != DAYS[2]]
    assert not [path for path in (program.state / "landing").rglob("*") if path.is_file()]
    flatfiles.put(spoilt, BODIES[spoilt])
    said = await program.run(*ASKED, "--json")
    assert (said.status, said.about["files"], said.about["changed_rows"]) == (0, 1, 0)
    assert days_in(program) == DAYS


async def test_a_replaced_file_that_is_unfit_leaves_the_rows_that_are_there(program: Any, flatfiles: Flatfiles) -> None:
    await program.run(*ASKED)
    flatfiles.put(PATHS[1], halved(BODIES[PATHS[1]]))
    for _ in range(2):
        said = await program.run(*ASKED, "--json")
        assert (said.status, said.about["replaced"], len(said.about["failed"])) == (1, [PATHS[1]], 1)
        assert days_in(program) == DAYS
    other = FlatMarket(seed=8, tickers=("A", "AAPL", "BApA", "NA"))
    flatfiles.put(PATHS[1], other.gz(FOLDER, DAYS[1]))
    said = await program.run(*ASKED, "--json")
    assert (said.status, said.about["failed"]) == (0, [])
    assert said.about["changed_rows"] == ROWS
    assert (await program.run(*ASKED, "--json")).about["replaced"] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_stops_it_and_the_next_run_goes_on(
    failing: Any, fake_s3: FakeS3, number: signal.Signals
) -> None:
    body, held = BODIES[PATHS[2]], asyncio.Event()
    half = len(body) // 2
    for path in PATHS[2:]:
        fake_s3.acts[path] = [stops(half, until=held)]
    begun = failing.begin(*ASKED)
    part = failing.state / "landing" / "massive" / f"{PATHS[2]}.part"
    await eventually(lambda: part.exists() and part.stat().st_size == half)
    os.kill(begun[0], number)
    said = await failing.end(begun)
    held.set()
    assert said.status == 1
    assert said.out.endswith("stopped; the same command goes on from here\n")
    fake_s3.asked.clear()
    assert (await failing.run(*ASKED)).status == 0
    assert days_in(failing) == DAYS
    ranges = dict(zip(fake_s3.paths(), fake_s3.header("Range"), strict=True))
    assert ranges[PATHS[2]] == f"bytes={half}-"


async def test_without_a_recheck_nobody_is_asked_about_what_is_there(failing: Any, fake_s3: FakeS3) -> None:
    await failing.run(*ASKED)
    fake_s3.asked.clear()
    assert (await failing.run(*ASKED, "--no-recheck")).status == 0
    assert fake_s3.paths() == []
    assert (await failing.run(*ASKED)).status == 0
    assert fake_s3.paths() == [f"?{FOLDER}/2026/05/"]
