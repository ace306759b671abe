"""What many tests need: a recorder as a process of its own, and a way to wait for what must come."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from tests.s3 import fake_s3, flatfiles  # noqa: F401  (fixtures)

DATA = Path(os.environ.get("LAKE_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
# A machine under load may be slow; a condition that has not come by then will not come.
PATIENCE_S = 60.0


async def eventually(condition: Callable[[], object], *, within_s: float = PATIENCE_S) -> None:
    """Returns when the condition holds; fails with its name when it does not within the time."""
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, f"not within {within_s} s: {condition.__qualname__}"
        await asyncio.sleep(0.02)


class Recorder:
    """`crypto-lake run` as a process, with its output on disk."""

    def __init__(self, home: Path, environment: Mapping[str, str]) -> None:
        self.home = home
        self.root, self.state = home / "tables", home / "var"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("LAKE_")},
            "LAKE_ROOT": str(self.root),
            "LAKE_STATE": str(self.state),
            "LAKE_METRICS_PORT": "0",
            "LAKE_COMMIT_EVERY_S": "0.3",
            "LAKE_BARS": "",  # a process more, for those who want bars
            **environment,
        }
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, *args: str) -> None:
        """Starts it; what it says goes to `log`."""
        self.home.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "crypto_lake", "run", *args),
                env=self.environment,
                cwd=self.home,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def log(self) -> Path:
        return self.home / "log.jsonl"

    def events(self, name: str) -> list[dict[str, object]]:
        """The log's events of that name."""
        found = []
        for line in self.log.read_text().splitlines() if self.log.exists() else []:
            if line.startswith("{"):
                event = msgspec.json.decode(line)
                found += [event] if event["event"] == name else []
        return found

    @property
    def port(self) -> int | None:
        """Where /health is; None before the recorder records (a killed one leaves its file)."""
        path = self.state / "daemon.json"
        try:
            running = msgspec.json.decode(path.read_bytes())
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        return int(running["port"]) if self.process and running["pid"] == self.process.pid else None

    def journal(self, dataset: str) -> Path:
        """The folder of a dataset's journal."""
        return next(self.state.glob(f"journal/*/{dataset}"), self.state / "nothing yet")

    @property
    def journal_bytes(self) -> int:
        """What the journals hold (positions are no sizes: they jump at every start)."""
        return sum(path.stat().st_size for path in self.state.glob("journal/*/*/*.journal"))

    def kill(self, *, with_worker: bool) -> None:
        """`kill -9`, of the daemon alone or of all its processes."""
        assert self.process is not None
        if with_worker:
            os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()

    async def wait(self) -> int:
        assert self.process is not None
        return await asyncio.wait_for(self.process.wait(), PATIENCE_S)

    async def stop(self) -> int:
        """SIGTERM, and the exit status."""
        assert self.process is not None
        self.process.terminate()
        return await self.wait()


@pytest.fixture
async def recorder(tmp_path: Path) -> AsyncIterator[Callable[[Mapping[str, str]], Recorder]]:
    """Makes recorders that do not outlive the test."""
    made: list[Recorder] = []

    def make(environment: Mapping[str, str]) -> Recorder:
        made.append(Recorder(tmp_path / f"recorder-{len(made)}", environment))
        return made[-1]

    yield make
    for each in made:
        if each.process and each.process.returncode is None:
            each.kill(with_worker=True)
            await each.process.wait()


@pytest.fixture
def wait_for() -> Callable[..., object]:
    """`await wait_for(condition)`."""
    return eventually


@pytest.fixture
def data() -> Path:
    """Real messages and files; they are not part of the project."""
    if not DATA.exists():
        pytest.skip(f"no real data at {DATA} (LAKE_TEST_DATA)")
    return DATA
