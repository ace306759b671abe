"""Scenarios as files and values: what is right is read, what is wrong is one sentence."""

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

from crypto_lake.config import ConfigError
from crypto_lake.simulator import Fault, Scenario, read_scenario
from crypto_lake.simulator.course import Course
from crypto_lake.simulator.scenario import KINDS

EXAMPLE = Path(__file__).parents[2] / "docs" / "faults.toml"


def test_the_example_has_every_kind() -> None:
    scenario = read_scenario(EXAMPLE)
    assert scenario.seed == 7
    assert {fault.kind for fault in scenario.faults} == set(KINDS)
    assert scenario.faults[0] == Fault(kind="cut", at_s=30, every_s=60, share=0.5)
    assert read_scenario(EXAMPLE, seed=8) == Scenario(faults=scenario.faults, seed=8)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seed = 'x'", "seed = 'x': must be a whole number"),
        ("speed = 1", "speed: a scenario has a seed and [[fault]] tables, nothing else"),
        ("[fault]\nkind = 'cut'", "fault: write [[fault]], with two brackets"),
        ("[[fault]]\nkind =", "is no TOML file: Invalid value"),
        ("[[fault]]\nat_s = 1", 'fault 1: kind: say what goes wrong, such as kind = "cut"; there are cut, half_open,'),
        ("[[fault]]\nkind = 'cuts'", "fault 1: kind = 'cuts': there is no such kind; did you mean 'cut'?"),
        (
            "[[fault]]\nkind = 'cut'\n[[fault]]\nkind = 'cut'\nshar = 1",
            "fault 2: shar: cut takes no such thing; did you",
        ),
        ("[[fault]]\nkind = 'cut'\nfor_s = 5", "fault 1: for_s: cut takes no such thing; "),
        ("[[fault]]\nkind = 'cut'\nshare = 1.5", "fault 1: share = 1.5: must be from 0 to 1"),
        ("[[fault]]\nkind = 'cut'\nshare = nan", "fault 1: share = nan: must be from 0 to 1"),
        ("[[fault]]\nkind = 'cut'\nat_s = 'soon'", "fault 1: at_s: expected `float`, got `str`"),
        (
            "[[fault]]\nkind = 'lost'\nstreams = ['aggtrade']",
            "fault 1: streams: 'aggtrade' is none; did you mean 'aggTr",
        ),
        ("[[fault]]\nkind = 'slow'", "fault 1: delay_s: slow needs it"),
        (
            "[[fault]]\nkind = 'lost'\nvenue = 'kraken'",
            "fault 1: venue: 'kraken' is none; there are binance, binance-f",
        ),
        ("[[fault]]\nkind = 'refused'\nstatus = 200", "fault 1: status = 200: a refusal is 400 to 599"),
        ("[[fault]]\nkind = 'corrupted'\nform = 'odd'", "fault 1: form = 'odd': corrupted has bytes and short"),
        ("[[fault]]\nkind = 'lost'\nfor_s = 9\nevery_s = 5", "fault 1: for_s = 9: must be less than every_s = 5"),
        ("[[fault]]\nkind = 'silent_stream'\neverywhere = true", "fault 1: for_s: a stream that is silent everywhere"),
        ("[[fault]]\nkind = 'delisted'", "fault 1: symbols: delisted needs it"),
    ],
)
def test_what_is_wrong_is_one_sentence_with_the_file_and_the_fault(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(f"{path}: {sentence}")):
        read_scenario(path)


def test_values_are_checked_like_files() -> None:
    with pytest.raises(ConfigError, match="share = 2: must be from 0 to 1"):
        Fault(kind="lost", share=2)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_scenario(Path("there is none.toml"))


def test_windows_open_and_close_again_and_again() -> None:
    fault = Fault(kind="lost", at_s=10, for_s=2, every_s=5)
    assert [fault.occurrence(now) for now in (0, 9.9, 10, 11.9, 12, 15, 16.9, 17, 60)] == [
        *(None, None, 0, 0, None),
        *(1, 1, None, 10),
    ]
    assert Fault(kind="lost", at_s=10).occurrence(1e6) == 0


def test_draws_depend_on_the_seed_and_the_subject_only() -> None:
    first, again, other = (Course(Scenario(seed=seed)) for seed in (1, 1, 2))
    draws = [first.draw(1, "a", i) for i in range(1000)]
    assert [again.draw(1, "a", i) for i in reversed(range(1000))] == draws[::-1]
    assert [other.draw(1, "a", i) for i in range(1000)] != draws
    assert [first.draw(2, "a", i) for i in range(1000)] != draws
    assert sum(draw < 0.1 for draw in draws) == pytest.approx(100, abs=40)


def test_a_course_begins_once() -> None:
    course = Course(Scenario())
    assert course.now_s < 0
    course.begin()
    while (later := course.now_s) < 0.02:
        pass
    course.begin()
    assert course.now_s >= later


async def program(*words: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "crypto_lake", "simulate", "--port", "0", *words),
        env={name: value for name, value in os.environ.items() if not name.startswith("LAKE_")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_a_bad_file_on_the_command_line_is_one_sentence_and_status_1(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[[fault]]\nkind = 'flood'")
    process = await program("--faults", str(tmp_path / "bad.toml"))
    _, said = await process.communicate()
    assert process.returncode == 1
    assert said.decode().startswith(f"crypto-lake: {tmp_path}/bad.toml: fault 1: kind = 'flood': there is no such kind")
    assert said.count(b"\n") == 1


async def test_faults_work_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("[[fault]]\nkind = 'html'\nstatus = 403\nendpoints = ['time']")
    process = await program("--faults", str(tmp_path / "s.toml"), "--seed", "3")
    try:
        assert process.stdout is not None
        text = ""
        while not (found := re.search(r"LAKE_BINANCE_FUTURES_REST=(\S+)", text)):
            text += (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        async with aiohttp.ClientSession() as session:
            async with session.get(found[1] + "/fapi/v1/time") as answer:
                assert (answer.status, answer.content_type) == (403, "text/html")
            async with session.get(found[1] + "/fapi/v1/ping") as answer:
                assert answer.status == 200
    finally:
        process.send_signal(signal.SIGTERM)
        await process.communicate()
    assert process.returncode == 0
