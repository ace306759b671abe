"""What tests of history share: official files on loopback, made by the test, and settings that point to them."""

import asyncio
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from crypto_lake.config import Settings
from crypto_lake.models.bucket import CHECKSUM, File
from crypto_lake.simulator import Dumps
from crypto_lake.simulator.bucket import Bucket as DumpServer
from tests.s3 import Flatfiles


def zipped(name: str, lines: Iterable[str]) -> bytes:
    """A ZIP with one CSV."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, "".join(f"{line}\n" for line in lines))
    return target.getvalue()


class Bucket:
    """Official files over HTTP; `asked` are the paths that were asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.address = ""

    def put(self, file: File, lines: Iterable[str], *, sha256: str | None = None) -> str:
        """Publishes a file with these lines, and its sum (or another one); returns its path."""
        body = zipped(f"{file.stem}.csv", lines)
        own = hashlib.sha256(body).hexdigest()
        self.files[file.path] = body
        self.files[file.path + CHECKSUM] = f"{sha256 or own}  {file.stem}.zip\n".encode()
        return file.path

    async def answer(self, request: web.Request) -> web.Response:
        path = request.path.lstrip("/")
        self.asked.append(path)
        if path not in self.files:
            raise web.HTTPNotFound
        return web.Response(body=self.files[path])


@pytest.fixture
async def bucket() -> AsyncIterator[Bucket]:
    """Served as long as the test runs."""
    made, application = Bucket(), web.Application()
    application.router.add_get("/{path:.*}", made.answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.address = "http://{}:{}".format(*runner.addresses[0])
    yield made
    await runner.cleanup()


@pytest.fixture
def settings(bucket: Bucket, tmp_path: Path) -> Callable[..., Settings]:
    """Settings with empty folders, and others as they are given."""

    def make(**others: str) -> Settings:
        root = str(tmp_path / "tables")
        return Settings(_env_file=None, root=root, state=tmp_path / "var", dumps=bucket.address, **others)

    return make


class Watched:
    """Whoever watches long work: remembers what it is told, and may do something then."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, str]] = []
        self.on_done: Callable[[], None] = lambda: None
        self.on_read: Callable[[], None] = lambda: None
        self._lock = threading.Lock()

    def planned(self, days: int) -> None:
        pass

    def found(self, files: int) -> None:
        pass

    def sized(self, path: str, size_bytes: int, days: int) -> None:
        pass

    def fetched(self, count: int) -> None:
        pass

    def read(self, rows: int) -> None:
        self.on_read()

    def done(self, path: str, state: str, detail: str) -> None:
        with self._lock:
            self.told.append((path, state, detail))
        self.on_done()


@pytest.fixture
def watched() -> Watched:
    return Watched()


@asynccontextmanager
async def _serving(dumps: Dumps) -> AsyncIterator[str]:
    application = web.Application()
    DumpServer(dumps).add_routes(application.router)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield "http://{}:{}".format(*runner.addresses[0])
    await runner.cleanup()


@pytest.fixture
async def served() -> AsyncIterator[Callable[[Dumps], Awaitable[str]]]:
    """Serves official files as the simulator does, of a market that nobody plays any more or of none; the address."""
    async with AsyncExitStack() as stack:

        async def serve(dumps: Dumps) -> str:
            return await stack.enter_async_context(_serving(dumps))

        yield serve


# A process that has imported everything and forks: a backfill begins in milliseconds instead of a second or two.
FORKING = """
import contextlib, json, os, sys
import crypto_lake.cli, crypto_lake.watch, crypto_lake.backfill.ask, crypto_lake.backfill.binance
import crypto_lake.backfill.massive, exchange_calendars, obstore.store
with contextlib.suppress(ImportError):
    import pandas  # where it is installed pyarrow imports it sooner or later

def begun(environment, home, arguments):
    pid = os.fork()
    if pid:
        return pid
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(home)
    for number, name in ((1, "out"), (2, "errors")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["crypto-lake", *arguments]
    crypto_lake.cli.main()

def ended(pid):
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None

for line in sys.stdin:
    what, *arguments = json.loads(line)
    print(json.dumps(begun(*arguments) if what == "begin" else ended(*arguments)), flush=True)
"""


class Forks:
    """Begins `crypto-lake` as a process of its own, whose output goes into files at its home."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[int] = set()
        self._process = subprocess.Popen(
            [sys.executable, "-c", FORKING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def begin(self, environment: dict[str, str], home: Path, *arguments: str) -> int:
        """Its process id, which is nobody else's until `end` has told how it ended."""
        pid = int(self._ask("begin", environment, str(home), arguments))
        self._running.add(pid)
        return pid

    async def end(self, pid: int) -> int:
        """Its exit status when it has ended, less than 0 when a signal ended it."""
        while (status := self._ask("end", pid)) is None:  # noqa: ASYNC110 - it is another process's child
            await asyncio.sleep(0.03)
        self._running.discard(pid)
        return int(status)

    def close(self) -> None:
        """Ends what still runs."""
        for pid in self._running:
            os.kill(pid, signal.SIGKILL)
        self._process.communicate()

    def _ask(self, *order: object) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        with self._lock:
            print(json.dumps(order), file=self._process.stdin, flush=True)
            return json.loads(self._process.stdout.readline())


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """One for all tests: what it costs is its imports."""
    made = Forks()
    yield made
    made.close()


class Backfills:
    """`crypto-lake backfill binance` as processes of their own, into the tables under `home`."""

    def __init__(self, forks: Forks, home: Path, address: str) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.root, self.state = home / "tables", home / "var"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("LAKE_")},
            "LAKE_ROOT": str(self.root),
            "LAKE_STATE": str(self.state),
            "LAKE_BINANCE_DUMPS": address,
        }
        self._forks, self._begun = forks, 0

    def begin(self, market: str, dataset: str, symbols: str, *span: object) -> tuple[int, Path]:
        """Begins one from the first to the last day of `span`; its process id, and where its output goes."""
        self._begun += 1
        desk = self.home / f"backfill-{self._begun}"
        desk.mkdir()
        said = "--market", market, "--dataset", dataset, "--symbols", symbols
        days = "--start", str(span[0]), "--end", str(span[-1])
        return self._forks.begin(self.environment, desk, "backfill", "binance", *said, *days, "--json"), desk

    async def run(self, market: str, dataset: str, symbols: str, *span: object) -> dict[str, Any]:
        """One of them to its good end; what it says that it did."""
        pid, desk = self.begin(market, dataset, symbols, *span)
        assert await self._forks.end(pid) == 0, (desk / "errors").read_text()
        return dict(json.loads((desk / "out").read_text()))


@pytest.fixture
def backfills(forks: Forks) -> Callable[[Path, str], Backfills]:
    """Made of a home and an address."""
    return partial(Backfills, forks)


@dataclass(frozen=True)
class Said:
    """How a program ended, and what it said until then."""

    status: int
    out: str
    err: str

    @property
    def about(self) -> dict[str, Any]:
        """What it told other programs."""
        return dict(json.loads(self.out))


class FlatBackfills:
    """`crypto-lake backfill massive` as processes of their own, into the tables under `home`."""

    def __init__(self, forks: Forks, home: Path, environment: Mapping[str, str]) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.root, self.state = home / "tables", home / "var"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("LAKE_", "LOG_"))},
            "LAKE_ROOT": str(self.root),
            "LAKE_STATE": str(self.state),
            **environment,
        }
        self._forks, self._begun = forks, 0

    def begin(self, *words: object) -> tuple[int, Path]:
        """Its process id, and where its output goes."""
        self._begun += 1
        desk = self.home / f"backfill-{self._begun}"
        desk.mkdir()
        return self._forks.begin(self.environment, desk, "backfill", "massive", *map(str, words)), desk

    async def end(self, begun: tuple[int, Path]) -> Said:
        """What came of it; a traceback is no way to say anything."""
        pid, desk = begun
        status = await self._forks.end(pid)
        said = Said(status, (desk / "out").read_text(), (desk / "errors").read_text())
        assert "Traceback" not in said.out + said.err, said.err
        return said

    async def run(self, *words: object) -> Said:
        """One of them to its end."""
        return await self.end(self.begin(*words))


@pytest.fixture
def flat_backfills(forks: Forks, flatfiles: Flatfiles) -> Callable[..., FlatBackfills]:
    """Made of a home, and of settings beside those of the bucket."""

    def make(home: Path, **environment: str) -> FlatBackfills:
        return FlatBackfills(forks, home, {**flatfiles.environment, **environment})

    return make
