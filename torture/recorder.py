"""The recorder as a process of its own, which can be killed and started again."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

STOP_S: Final = 60.0


class Recorder:
    """`crypto-lake run` in a folder; what it says goes to `log` there."""

    def __init__(self, home: Path, environment: Mapping[str, str]) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home, self.root, self.log = home, home / "tables", home / "log.jsonl"
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("LAKE_")},
            "LAKE_ROOT": str(self.root),
            "LAKE_STATE": str(home / "var"),
            "LAKE_METRICS_PORT": "0",
            **environment,
        }
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Starts it in a process group of its own."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "crypto_lake", "run"),
                env=self._environment,
                cwd=self.home,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def kill(self, *, with_worker: bool) -> None:
        """`kill -9`, of the daemon alone or of all its processes."""
        if self._process is None or self._process.returncode is not None:
            return
        if with_worker:
            os.killpg(self._process.pid, signal.SIGKILL)
        else:
            self._process.kill()
        await self._process.wait()

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def stop(self) -> int:
        """SIGTERM, and the exit status."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.terminate()
        return await asyncio.wait_for(self._process.wait(), STOP_S)
