"""Where the log goes, seen from outside: a program of its own with a pipe, a terminal and a file."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from crypto_lake.config import ConfigError, Settings
from crypto_lake.monitoring.log import FILE_BYTES, FILES, configure

PROJECT = Path(__file__).parents[2]
PROGRAM = """
import logging, sys, structlog
from crypto_lake.config import load
from crypto_lake.monitoring.log import configure

log = structlog.get_logger("crypto_lake.services.drain")  # before the set-up, as at the top of every module
settings = load()
configure(settings)
configure(settings)
log.debug("never_seen")
log.info("committed", rows=7, symbol="币安人生USDT")
logging.getLogger("websockets.client").info("never seen either")
logging.getLogger("websockets.client").warning("slow %s", "peer")
secret = "s3cr3t"
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
    logging.getLogger("aiohttp.server").exception("broken")
"""


def run(tmp_path: Path, stderr: Any = subprocess.PIPE, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "LAKE_STATE": str(tmp_path / "var"),
    }
    environment |= {"PYTHONUTF8": "1"} | settings
    program = [sys.executable, "-c", PROGRAM]
    return subprocess.run(
        program, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=stderr, encoding="utf-8", check=True
    )


def check(lines: list[str]) -> None:
    assert "币安人生USDT" in lines[0]  # as the venue writes it, so that grep finds it
    committed, slow, failed, broken = (json.loads(line) for line in lines)
    assert committed.items() >= {
        "event": "committed", "level": "info", "rows": 7, "symbol": "币安人生USDT",
        "logger": "crypto_lake.services.drain",
    }.items()  # fmt: skip
    assert slow.items() >= {"event": "slow peer", "level": "warning", "logger": "websockets.client"}.items()
    for line, name in ((failed, "failed"), (broken, "broken")):
        assert (line["event"], line["level"]) == (name, "error")
        assert line["exception"].endswith("ZeroDivisionError: division by zero")
    assert datetime.now(UTC) - datetime.fromisoformat(committed["timestamp"]) < timedelta(minutes=5)
    assert committed["timestamp"].endswith("Z")
    assert not any("s3cr3t" in line for line in lines)


def test_where_stderr_is_no_terminal_it_gets_json_lines(tmp_path: Path) -> None:
    ended = run(tmp_path)
    check(ended.stderr.splitlines())
    assert ended.stdout == ""
    assert not (tmp_path / "var").exists()


def chunks(terminal: FileIO) -> Iterator[bytes]:
    with suppress(OSError):  # how a terminal says that nobody is on its other side
        while chunk := terminal.read(4096):
            yield chunk


def test_a_terminal_gets_coloured_lines_to_read(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    run(tmp_path, stderr=theirs)
    os.close(theirs)
    with FileIO(ours) as terminal:
        shown = b"".join(chunks(terminal)).decode()
    assert "committed" in shown
    assert "\x1b[" in shown
    assert "slow peer" in shown
    assert "ZeroDivisionError: division by zero" in shown
    assert '{"' not in shown
    assert "never" not in shown
    assert "s3cr3t" not in shown


def test_the_file_gets_json_lines_and_the_terminal_nothing_when_told_so(tmp_path: Path) -> None:
    ended = run(tmp_path, LOG_TO_TERMINAL="false", LOG_TO_FILE="true")
    assert (ended.stdout, ended.stderr) == ("", "")
    check((tmp_path / "var/log/crypto-lake.jsonl").read_text(encoding="utf-8").splitlines())


def test_both_may_be_off(tmp_path: Path) -> None:
    ended = run(tmp_path, LOG_TO_TERMINAL="false", LOG_TO_FILE="false")
    assert (ended.stdout, ended.stderr) == ("", "")


def test_the_file_cannot_fill_the_disk() -> None:
    assert FILE_BYTES * (FILES + 1) == 300 * 1024 * 1024


def test_a_log_file_that_cannot_be_written_is_said_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "var").write_text("a file where a folder should be")
    settings = Settings.model_validate({"LAKE_STATE": tmp_path / "var", "LOG_TO_FILE": True})
    with pytest.raises(ConfigError, match=r"^LOG_TO_FILE=true: .*crypto-lake\.jsonl cannot be written: "):
        configure(settings)
