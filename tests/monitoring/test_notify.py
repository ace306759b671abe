"""The word to systemd, heard by a real datagram socket."""

import os
import secrets
import socket
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest

from crypto_lake.monitoring import notify


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@crypto-lake-{secrets.token_hex(4)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0", 1) if request.param == "abstract" else name)
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield listener


def test_each_word_is_one_datagram(systemd: socket.socket) -> None:
    said = [notify.ready("recording 4 datasets"), notify.alive(), notify.status("behind"), notify.stopping()]
    heard = [systemd.recv(4096).decode() for _ in said]
    assert said == [True] * 4
    assert heard == ["READY=1\nSTATUS=recording 4 datasets", "WATCHDOG=1", "STATUS=behind", "STOPPING=1"]


def test_a_status_of_two_lines_cannot_say_something_else(systemd: socket.socket) -> None:
    notify.status("first\nMAINPID=1")
    assert systemd.recv(4096) == b"STATUS=first MAINPID=1"


def test_without_systemd_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify.ready("recording")


@pytest.mark.parametrize("address", ["/nowhere/notify", "@nobody-listens-here", "/" + "x" * 300, "vsock:2:1"])
def test_a_socket_that_is_dead_never_takes_the_recorder_down(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not notify.ready("recording")


def test_a_systemd_that_does_not_read_holds_nobody_up(systemd: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "PATIENCE_S", 0.01)
    said = list(takewhile(bool, (notify.alive() for _ in range(5000))))
    assert 0 < len(said) < 5000


@pytest.mark.parametrize(
    ("allowed_us", "pid", "interval_s"),
    [
        ("60000000", None, 30.0),
        ("60000000", str(os.getpid()), 30.0),
        ("60000000", str(os.getppid()), None),
        ("0", None, None),
        ("", None, None),
        ("soon", None, None),
        (None, None, None),
    ],
    ids=["nobody's", "ours", "another's", "off", "empty", "no number", "not set"],
)
def test_the_watchdog_is_fed_at_half_its_time(
    allowed_us: str | None, pid: str | None, interval_s: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WATCHDOG_USEC", allowed_us), ("WATCHDOG_PID", pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert notify.watchdog_interval_s() == interval_s
