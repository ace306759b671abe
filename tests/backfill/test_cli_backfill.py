"""`crypto-lake backfill` as a person uses it: what it says, what it leaves behind, and how it stops."""

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import random
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from crypto_lake.cli import main
from crypto_lake.config import FUTURES
from crypto_lake.models.bucket import CHECKSUM, File
from crypto_lake.query import read
from crypto_lake.simulator import Dumps, GeneratedMarket, Simulator
from crypto_lake.watch import Watch
from tests.conftest import eventually

DAYS = [date(2024, 1, day) for day in (1, 2, 3)]
ROWS = 1500
HEADER = "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker"
ASKED = ("--dataset", "agg_trade", "--symbols", "BTCUSDT", "--start", "2024-01-01", "--end", "2024-01-03")
ALL_IDS = list(range(1, ROWS * len(DAYS) + 1))
TODAY = datetime.now(UTC).date()
PATIENCE_S = 60.0
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
MOVES = re.compile(r"\x1b\[[0-9;?]*[A-HJ-Zhl]")
SHOW_CURSOR = "\x1b[?25h"


def file(day: date) -> File:
    return File(FUTURES, "aggTrades", "BTCUSDT", "", "daily", day)


def lines(day: date) -> list[str]:
    """The trades of a day; what is drawn is hard to pack, so that a file has some 30 kB."""
    drawn, first = random.Random(day.isoformat()), (day - DAYS[0]).days * ROWS + 1
    midnight_ms = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
    return [
        f"{number},{60_000 + drawn.random():.4f},{1 + drawn.random():.6f},{number},{number},"
        f"{midnight_ms + (number - first) * 57_000},{str(drawn.random() < 0.5).lower()}"
        for number in range(first, first + ROWS)
    ]


@dataclass
class Said:
    """How a program ended, and what it said until then."""

    status: int
    out: str
    err: str
    about: dict[str, Any] = field(default_factory=dict)


class Program:
    """`crypto-lake` in an empty folder, as a process of its own."""

    def __init__(self, forks: Any, home: Path, address: str) -> None:
        self._forks, self._home = forks, home
        self._calls = 0
        self.root, self.state = home / "tables", home / "var"
        self.places = {"LAKE_ROOT": str(self.root), "LAKE_STATE": str(self.state), "LAKE_BINANCE_DUMPS": address}

    def environment(self, **more: str) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("LAKE_", "LOG_"))}
        return {**clean, **self.places, **more}

    def begin(self, *words: str, **environment: str) -> tuple[int, Path]:
        """Its process id, and the folder with its output."""
        self._calls += 1
        desk = self._home / f"call-{self._calls}"
        desk.mkdir()
        return self._forks.begin(self.environment(**environment), desk, "backfill", *words), desk

    async def end(self, begun: tuple[int, Path]) -> Said:
        """What came of it; a traceback is no way to say anything."""
        pid, desk = begun
        status = await asyncio.wait_for(self._forks.end(pid), PATIENCE_S)
        out, err = (desk / "out").read_text(), (desk / "errors").read_text()
        assert "Traceback" not in out + err
        return Said(status, out, err, json.loads(out) if out.startswith("{") else {})

    async def call(self, *words: str, **environment: str) -> Said:
        return await self.end(self.begin(*words, **environment))

    async def take(self, *words: str, **environment: str) -> Said:
        """The three days that there are."""
        return await self.call("binance", *ASKED, *words, **environment)

    def ids(self) -> list[int]:
        """The trades that are in the table."""
        if not (self.root / "agg_trade").exists():
            return []
        return read("agg_trade", root=str(self.root)).collect()["agg_trade_id"].sort().to_list()

    def left(self, ending: str) -> list[Path]:
        """Files of that ending in LAKE_STATE."""
        return sorted(self.state.rglob(f"*{ending}"))


@pytest.fixture
def program(bucket: Any, forks: Any, tmp_path: Path) -> Program:
    """Against a bucket that has the three days, and tells who asked for what."""
    for day in DAYS:
        bucket.put(file(day), [HEADER, *lines(day)])
    return Program(forks, tmp_path, bucket.address)


@pytest.fixture
async def dumps() -> AsyncIterator[Dumps]:
    """The same days as the simulator serves them."""
    made = Dumps()
    for day in DAYS:
        made.add(file(day).path, "".join(f"{line}\n" for line in lines(day)), HEADER)
    async with Simulator(GeneratedMarket(futures=1, rate=0.1), dumps=made) as exchange:
        made.address = exchange.rest_url  # type: ignore[attr-defined]
        yield made


@pytest.fixture
def slow(dumps: Any, forks: Any, tmp_path: Path) -> Program:
    """Against files that take a while to come, until that is mended."""
    dumps.slowness = dumps.fail("slow_download", bytes_per_s=30_000)
    return Program(forks, tmp_path, dumps.address)


def asked(**other: str) -> list[str]:
    options = dict(zip((name.removeprefix("--") for name in ASKED[::2]), ASKED[1::2], strict=True)) | other
    return ["binance", *(word for name, value in options.items() if value for word in (f"--{name}", value))]


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"market": "usdm"}, "there is no market 'usdm'; did you mean 'um'?"),
        ({"dataset": "agg_trad"}, "did you mean 'agg_trade'?"),
        ({"dataset": "depth"}, "there are no official files of depth on um; there are agg_trade, bar,"),
        ({"market": "spot", "dataset": "funding_rate"}, "there are no official files of funding_rate on spot"),
        ({"dataset": "bar", "timeframe": "3m"}, "there are no files of 3m bars on um"),
        ({"symbols": "binance:BTCUSDT"}, "write BTCUSDT alone; the venue is --market um, cm, spot"),
        ({"symbols": "btcusdt"}, "symbols are written as the venue writes them: BTCUSDT"),
        ({"symbols": "../BTCUSDT"}, "that is no symbol"),
        ({"symbols": "all,BTCUSDT"}, "either all, or names"),
        ({"symbols": " , "}, "name at least one symbol, or all"),
        ({"start": "yesterday"}, "--start yesterday: write a day (2024-01-15) or a month (2024-01)"),
        ({"start": "2024-01-01T10:00"}, "--start 2024-01-01T10:00: write a day"),
        ({"end": "2024-02-30"}, "--end 2024-02-30: write a day"),
        ({"start": "2024-02"}, "--start 2024-02 is after --end 2024-01-03"),
        ({"start": "2999-01-01", "end": ""}, f"that is yet to come; today is {TODAY}"),
        ({"start": str(TODAY), "end": ""}, "the files of a day come on the next one"),
        ({"start": "2009", "end": "2010-01"}, "--start 2009: write a day"),
        ({"start": "2009-01", "end": "2010-01"}, "Binance began on 2017-07-14"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
async def test_a_mistake_is_one_sentence_and_nobody_is_asked(
    program: Program, bucket: Any, capsys: Any, monkeypatch: Any, other: dict[str, str], sentence: str
) -> None:
    for name, value in program.places.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main(["backfill", *asked(**other)])
    said = capsys.readouterr()
    assert ended.value.code == 1
    assert said.err.startswith("crypto-lake: ")
    assert sentence in said.err
    assert said.out == ""
    assert bucket.asked == []
    assert not program.root.exists()


async def test_what_is_there_is_taken_and_what_is_not_is_said(program: Program) -> None:
    said = await program.call(*asked(symbols="BTCUSDT,NOPE", end="2024-01-05"))
    assert said.status == 0
    assert said.err == ""
    assert re.match(r"3 files, [\d.]+ KiB, 4,500 rows, 4,500 of them new, 3 days\n", said.out)
    assert "  BTCUSDT: 2024-01-04 to 2024-01-05 (2 days)\n  NOPE: 2024-01-01 to 2024-01-05 (5 days)\n" in said.out
    assert program.ids() == ALL_IDS
    again = await program.take()
    assert again.out == "0 files, 0 B, 0 rows, 0 of them new, 0 days; there already: 3 days\n"
    assert program.left(".zip") == program.left(".json") == []


async def test_a_sum_that_stays_wrong_puts_its_file_aside_and_the_others_go_on(program: Program, bucket: Any) -> None:
    path = bucket.put(file(DAYS[1]), [HEADER, *lines(DAYS[1])], sha256="0" * 64)
    said = await program.take("--json")
    assert (said.status, said.about["files"]) == (1, 2)
    (aside,) = program.left(".zip")
    assert aside == program.state / "quarantine" / path
    (failed,) = said.about["failed"]
    assert failed["path"] == path
    assert failed["reason"].startswith(f"{path} has SHA-256 ")
    assert failed["reason"].endswith(f"its .CHECKSUM says {'0' * 64}; put aside as {aside}")
    assert said.err == f"quarantined: {failed['reason']}\n"
    assert program.ids() == [number for number in ALL_IDS if not ROWS < number <= 2 * ROWS]
    bucket.put(file(DAYS[1]), [HEADER, *lines(DAYS[1])])
    assert (await program.take("--json")).about["files"] == 1
    assert program.ids() == ALL_IDS


async def test_a_sum_that_makes_no_sense_stops_no_other_file(program: Program, bucket: Any) -> None:
    bucket.files[file(DAYS[0]).path + CHECKSUM] = b"<html>be right back</html>"
    said = await program.take("--json")
    assert (said.status, said.about["files"]) == (1, 2)
    assert [each["path"] for each in said.about["failed"]] == [file(DAYS[0]).path]
    assert "<html>" in said.about["failed"][0]["reason"]
    assert said.about["absent"] == [], "it is not known that there is none"


async def test_refused_access_is_a_sentence_and_nothing_on_stdout(dumps: Any, forks: Any, tmp_path: Path) -> None:
    dumps.fail("unavailable", status=403)
    said = await Program(forks, tmp_path, dumps.address).take("--json")
    assert (said.status, said.out) == (1, "")
    assert said.err.count("\n") == 1
    assert re.search(r"BTCUSDT-aggTrades-2024-01-0\d.zip.CHECKSUM answered HTTP 403: access is refused", said.err)


async def test_places_that_cannot_be_written_are_named(program: Program, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = await program.take("--root", str(tmp_path / "file"))
    assert said.status == 1
    assert f"LAKE_ROOT={tmp_path}/file" in said.err
    said = await program.take("--state", str(tmp_path / "file"))
    assert said.status == 1
    assert f"LAKE_STATE: {tmp_path}/file/landing" in said.err
    assert program.ids() == []
    # What fails in the middle of the writing is no other matter.
    (program.root / "agg_trade" / "date=2024-01-02").touch()
    said = await program.take()
    assert said.status == 1
    assert f"{program.root}/agg_trade: " in said.err
    (program.root / "agg_trade" / "date=2024-01-02").unlink()
    assert (await program.take()).status == 0
    assert program.ids() == ALL_IDS


async def test_archives_are_kept_and_asked_about_as_one_likes(program: Program, bucket: Any) -> None:
    assert (await program.take("--keep-archives")).status == 0
    assert [path.name for path in program.left(".zip")] == [f"{file(day).stem}.zip" for day in DAYS]
    bucket.asked.clear()
    assert (await program.take("--no-recheck")).status == 0
    assert bucket.asked == []
    assert (await program.take()).status == 0
    assert sorted(bucket.asked) == [file(day).path + CHECKSUM for day in DAYS]


async def test_the_log_goes_into_its_file_and_nowhere_else(program: Program, bucket: Any) -> None:
    bucket.put(file(DAYS[1]), [HEADER, *lines(DAYS[1])], sha256="0" * 64)
    said = await program.take("--json", LOG_TO_FILE="true", LOG_TO_TERMINAL="true")
    logged = (program.state / "log" / "crypto-lake.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in logged] == ["backfill_mode", "dump_spoilt", "dump_quarantined"]
    assert said.about["files"] == 2
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_stops_it_and_the_next_run_goes_on(slow: Program, dumps: Any, number: signal.Signals) -> None:
    begun = slow.begin("binance", *ASKED)
    await eventually(lambda: sum(path.stat().st_size for path in slow.left(".part")) > 3_000)
    os.kill(begun[0], number)
    said = await slow.end(begun)
    assert said.status == 1
    assert said.out.endswith("stopped; the same command goes on from here\n")
    parts = {path.name: path.stat().st_size for path in slow.left(".part")}
    assert sum(parts.values()) > 3_000
    dumps.served.clear()
    dumps.mend(dumps.slowness)
    assert (await slow.take()).status == 0
    assert slow.ids() == ALL_IDS
    ranges = {each.path.rpartition("/")[2]: each.range for each in dumps.served if each.range}
    assert ranges == {name.removesuffix(".part"): f"bytes={size}-" for name, size in parts.items() if size}


async def test_a_second_signal_ends_it_at_once(slow: Program, dumps: Any) -> None:
    begun = slow.begin("binance", *ASKED)
    await eventually(lambda: slow.left(".part"))
    os.kill(begun[0], signal.SIGTERM)
    os.kill(begun[0], signal.SIGINT)
    assert (await slow.end(begun)).status in (-signal.SIGINT, -signal.SIGTERM)
    dumps.mend(dumps.slowness)
    assert (await slow.take()).status == 0
    assert slow.ids() == ALL_IDS


class Mute:
    """A server that takes every connection and never says a word."""

    def __init__(self) -> None:
        self.heard = self.open = 0

    async def listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        with contextlib.suppress(ConnectionError):
            self.heard += len(await reader.read(100))
            await reader.read()
            writer.close()
            await writer.wait_closed()
        self.open -= 1


@pytest.mark.parametrize("symbols", ["BTCUSDT", "all"])
async def test_it_stops_although_nobody_answers(forks: Any, tmp_path: Path, symbols: str) -> None:
    mute = Mute()
    async with await asyncio.start_server(mute.listen, "127.0.0.1", 0) as server:
        program = Program(forks, tmp_path, "http://{}:{}".format(*server.sockets[0].getsockname()))
        begun = program.begin(*asked(symbols=symbols))
        await eventually(lambda: mute.heard)
        os.kill(begun[0], signal.SIGINT)
        async with asyncio.timeout(15):  # half of what a silent server is given
            said = await program.end(begun)
        await eventually(lambda: not mute.open)
    assert said.status == 1
    assert said.out == "0 files, 0 B, 0 rows, 0 of them new, 0 days\nstopped; the same command goes on from here\n"


class Terminal:
    """A program on a terminal of so many columns."""

    def __init__(self, environment: dict[str, str], home: Path, columns: int, *words: str) -> None:
        self._seen = b""
        self._own, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "crypto_lake", *words],
            cwd=home,
            env={**environment, "TERM": "xterm"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        while True:
            try:
                self._seen += os.read(self._own, 65536)
            except OSError:  # nobody writes there any more
                return

    def type(self, text: str) -> None:
        os.write(self._own, f"{text}\n".encode())

    def interrupt(self) -> None:
        """As Ctrl-C does; the terminal is nobody's controlling one."""
        self._process.send_signal(signal.SIGINT)

    @property
    def seen(self) -> str:
        return self._seen.decode(errors="replace")

    @property
    def lines(self) -> list[str]:
        """What was on the screen at some time, line by line."""
        return [line for line in re.split(r"[\r\n]+", COLOURS.sub("", MOVES.sub("\n", self.seen))) if line.strip()]

    async def end(self) -> int:
        try:
            return await asyncio.to_thread(self._process.wait, PATIENCE_S)
        finally:
            self._process.kill()
            self._reading.join(PATIENCE_S)
            os.close(self._own)


@pytest.mark.parametrize("columns", [80, 120])
async def test_on_a_terminal_two_bars_fit_into_its_width(slow: Program, tmp_path: Path, columns: int) -> None:
    screen = Terminal(slow.environment(), tmp_path, columns, "backfill", "binance", *ASKED)
    assert await screen.end() == 0
    drawn = [line for line in screen.lines if line.startswith(("agg_trade um", "download", "rows"))]
    assert len(drawn) > 6
    assert max(map(len, drawn)) <= columns
    some = [line for line in drawn if re.search(r"[\d.]+ KiB of \d\d\.\d KiB +[\d.]+ KiB/s +\d:\d\d:\d\d left$", line)]
    assert some, drawn
    assert any(re.fullmatch(r"agg_trade um \(.+\): \d of 3 days, \d files?, 0:00:\d\d", line) for line in drawn)
    assert screen.seen.rindex(SHOW_CURSOR) > screen.seen.rindex("\x1b[?25l")
    assert screen.lines[-2].startswith("3 files, ")


async def test_without_a_source_it_asks_until_the_answer_fits(program: Program, bucket: Any, tmp_path: Path) -> None:
    bucket.put(file(DAYS[1]), [HEADER, *lines(DAYS[1])], sha256="0" * 64)
    screen = Terminal(program.environment(), tmp_path, 80, "backfill")
    sources, markets, datasets, symbols = (
        ["yahooo", "binance"],
        ["usdm", "um"],
        ["depth", "agg_trade"],
        ["btcusdt", "BTCUSDT"],
    )
    span = ["yesterday", "2024-01-01", "2023", "2024-01-03"]
    for number, answer in enumerate([*sources, *markets, *datasets, *symbols, *span], 1):
        await eventually(lambda number=number: len(re.findall(r"[\])]: ", screen.seen)) >= number)
        screen.type(answer)
    assert await screen.end() == 1
    refused = (
        "there is no source 'yahooo'",
        "there is no market",
        "there are no official files of depth",
        "--symbols b",
        "--start y",
        "--end 2023:",
    )
    assert [words for words in refused if f"Error: {words}" not in screen.seen] == []
    options = "--market um --symbols BTCUSDT --start 2024-01-01 --end 2024-01-03 --dataset agg_trade"
    assert f"crypto-lake backfill binance {options}" in screen.seen
    # Long names and sums stay in one piece, so that they can be copied.
    reason = f"{file(DAYS[1]).path} has SHA-256 "
    assert f"quarantined: {reason}" in COLOURS.sub("", screen.seen)
    assert len(program.ids()) == 2 * ROWS


async def test_flat_files_are_asked_for_too(program: Program, flatfiles: Any, tmp_path: Path) -> None:
    screen = Terminal(program.environment(**flatfiles.environment), tmp_path, 80, "backfill")
    folders, symbols = ["us_stocks_sip/day_agg_v1", "us_stocks_sip/day_aggs_v1"], ["A A", "AAPL"]
    answers = ["massive", *folders, *symbols, "2001-01", "2002-12", "2026-05-04"]
    for number, answer in enumerate(answers, 1):
        await eventually(lambda number=number: len(re.findall(r"[\])]: ", screen.seen)) >= number)
        screen.type(answer)
    assert await screen.end() == 1, "there is nothing at all in that bucket"
    refused = "there are no flat files 'us_stocks_sip/day_agg_v1'", "--symbols 'A A': that", "--end 2002-12: the files"
    assert [words for words in refused if f"Error: {words}" not in screen.seen] == []
    asked = "--dataset us_stocks_sip/day_aggs_v1 --symbols AAPL --start 2001-01 --end 2026-05-04"
    assert f"crypto-lake backfill massive {asked}" in screen.seen
    assert "nothing at all is listed in the bucket 'flatfiles'" in screen.seen


async def test_a_question_need_not_be_answered(program: Program, tmp_path: Path) -> None:
    screen = Terminal(program.environment(), tmp_path, 80, "backfill")
    await eventually(lambda: "[binance]: " in screen.seen)
    screen.interrupt()
    assert await screen.end() == 1
    assert "Aborted" in screen.seen
    assert "Traceback" not in screen.seen


async def test_without_a_source_and_without_a_terminal_it_says_how_to_be_asked(program: Program) -> None:
    said = await program.call()
    assert said.status == 2
    assert "Usage" in said.out
    assert "binance" in said.out


# Where nobody sees a bar


async def told(capfd: pytest.CaptureFixture[str], pattern: str) -> str:
    """The next line on stderr that matches."""
    heard: list[str] = []

    def has_come() -> bool:
        heard.extend(capfd.readouterr().err.splitlines())
        return any(re.search(pattern, line) for line in heard)

    await eventually(has_come)
    return next(line for line in heard if re.search(pattern, line))


async def test_the_time_left_is_that_of_the_bytes_and_rows_to_come(capfd: Any) -> None:
    with Watch("agg_trade um", line_every_s=0.1) as watch:
        assert await told(capfd, "looking what there is, 0 B")
        watch.planned(100)
        watch.planned(-60)  # not published
        watch.found(1)
        watch.sized("month.zip", 31 * 1024, 31)
        watch.fetched(20 * 1024)
        line = await told(capfd, "20.0 KiB of 40.0 KiB")
        assert line.startswith("agg_trade um: 0 of 40 days, 20.0 KiB of 40.0 KiB, ")
        assert re.search(r"KiB/s, 0 rows, 0 rows/s, 0:00:\d\d left$", line)
        watch.fetched(11 * 1024)
        watch.read(3100)
        watch.done("month.zip", "ingested", "3,100 rows, 3,100 new")
        line = await told(capfd, "31 of 40 days")
        assert re.search(r"31.0 KiB of 40.0 KiB, [\d.]+ Ki?B/s, 3,100 rows, [\d,]+ rows/s, 0:00:\d\d left$", line)


async def test_files_are_counted_where_nobody_plans_days(capfd: Any) -> None:
    with Watch("trade spot", line_every_s=0.1) as watch:
        watch.found(4)
        watch.fetched(1000)
        watch.done("a.zip", "failed", "a.zip [red] is not there")
        assert await told(capfd, "^failed: a.zip \\[red\\] is not there$")
        assert await told(capfd, "^trade spot: 1 of 4 files, 1,000 B, .* left$")


async def test_who_asks_to_stop_is_told_so(capfd: Any) -> None:
    stop = threading.Event()
    with Watch("agg_trade um", stop=stop) as watch:
        stop.set()
        assert await told(capfd, "^stopping: .*; a second Ctrl-C ends at once$")
        watch.planned(2)


async def test_what_was_done_is_said_when_it_breaks_off(capfd: Any) -> None:
    with pytest.raises(OSError, match="away"), Watch("agg_trade um") as watch:  # noqa: PT012
        watch.planned(2)
        watch.sized("day.zip", 1000, 1)
        watch.done("day.zip", "ingested", "")
        raise OSError("the store is away")
    assert re.search("^agg_trade um: 1 of 2 days, .*; the same command goes on from here$", capfd.readouterr().err)
