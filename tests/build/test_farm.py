"""Wherever a build is computed, its tables are the same: here, on two processes, on a Dask cluster, on half of one."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from crypto_lake.build import bars, features, imbalance, indicators
from crypto_lake.build.farm import farm
from crypto_lake.build.flow import Built, OnStep, silently
from crypto_lake.config import ConfigError
from crypto_lake.models import DATASETS
from crypto_lake.processors.shape import shape
from crypto_lake.query import read
from crypto_lake.writers.delta import Lake

pytest.importorskip("distributed")

START = datetime(2026, 3, 2, tzinfo=UTC)
SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
DAYS = 2
TRADES = 1_500  # of a symbol and day
TABLES = ("bar", "indicator", "feature", "imbalance_bar")
BALANCE = imbalance.parameters(kind="dollar", init_ticks=50, imbalance_window=200)
PATIENCE_S = 30.0


def trades(symbol: str, day: int) -> pl.DataFrame:
    """A day of trades, the same whenever it is asked for."""
    random = np.random.default_rng([len(symbol), ord(symbol[0]), day])
    ids = np.arange(TRADES) + day * TRADES
    times = np.sort(random.integers(0, 86_400_000_000, TRADES)) + int(START.timestamp() * 1e6) + day * 86_400_000_000
    rows = {
        "venue": "binance-futures",
        "symbol": symbol,
        "source": "dump",
        "time": times,
        "agg_trade_id": ids,
        "price": np.round(100 * np.exp(np.cumsum(random.normal(0, 1e-3, TRADES))), 2),
        "quantity": np.round(random.lognormal(0, 1, TRADES), 3) + 0.001,
        "first_trade_id": ids,
        "last_trade_id": ids,
        "is_buyer_maker": random.random(TRADES) < 0.5,
    }
    frame = pl.DataFrame(rows).with_columns(pl.from_epoch("time", "us").dt.replace_time_zone("UTC"))
    return shape(DATASETS["agg_trade"], frame)


def lake(root: Path) -> str:
    """A lake with the trades of three symbols."""
    made = Lake(str(root))
    made.check(DATASETS["agg_trade"])
    made.add(DATASETS["agg_trade"], pl.concat([trades(symbol, day) for symbol in SYMBOLS for day in range(DAYS)]))
    return str(root)


def build(root: str, *, workers: int = 1, scheduler: str | None = None, on_step: OnStep = silently) -> list[Built]:
    with farm(scheduler, workers) as (executor, at_once):
        return [
            bars.build(root, bars.Wanted(timeframes="1m,1h"), executor, at_once, on_step=on_step),
            indicators.build(root, indicators.Wanted(), executor, at_once, on_step=on_step),
            features.build(root, features.Wanted(), executor, at_once, on_step=on_step),
            imbalance.build(root, imbalance.Wanted(BALANCE), executor, at_once, on_step=on_step),
        ]


def tables(root: str) -> dict[str, pl.DataFrame]:
    return {name: read(name, root=root).collect().sort(DATASETS[name].key) for name in TABLES}


def assert_same(found: dict[str, pl.DataFrame], wanted: dict[str, pl.DataFrame]) -> None:
    for name, rows in wanted.items():
        assert rows.height > 100, name
        assert rows.equals(found[name]), name


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    root = lake(tmp_path_factory.mktemp("serial"))
    assert all(done.added for done in build(root))
    return tables(root)


class Cluster:
    """A scheduler and workers on loopback, each a process."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._processes: list[subprocess.Popen[bytes]] = []
        self.workers: list[subprocess.Popen[bytes]] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        self._run("scheduler", "--host", self.address, "--dashboard-address", "127.0.0.1:0")

    def add_worker(self) -> None:
        """One that dies when it is killed: nobody starts it again."""
        nothing = ("--no-nanny", "--no-dashboard", "--nthreads", "1", "--memory-limit", "0", "--death-timeout", "60")
        folder = self._home / f"worker-{len(self.workers)}"
        self.workers.append(self._run("worker", self.address, *nothing, "--local-directory", str(folder)))

    def _run(self, what: str, *words: str) -> subprocess.Popen[bytes]:
        with (self._home / f"{what}-{len(self._processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                (sys.executable, "-m", f"distributed.cli.dask_{what}", *words), stdout=log, stderr=log, cwd=self._home
            )
        self._processes.append(process)
        return process

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        """A client, when all workers have come."""
        from distributed import Client

        with contextlib.closing(Client(self.address, timeout=PATIENCE_S, set_as_default=False)) as client:  # type: ignore[no-untyped-call]
            if self.workers:
                client.wait_for_workers(len(self.workers), timeout=PATIENCE_S)
            yield client

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        made.add_worker()
        made.add_worker()
        with made.client():
            pass
        yield made
    finally:
        made.close()


def test_two_processes_make_what_one_makes(serial: dict[str, pl.DataFrame], tmp_path: Path) -> None:
    root = lake(tmp_path / "tables")
    build(root, workers=2)
    assert_same(tables(root), serial)


def test_a_cluster_makes_what_one_process_makes_and_nothing_when_nothing_is_new(
    serial: dict[str, pl.DataFrame], cluster: Cluster, tmp_path: Path
) -> None:
    root = lake(tmp_path / "tables")
    build(root, scheduler=cluster.address)
    assert_same(tables(root), serial)
    assert [done.added for done in build(root, scheduler=cluster.address)] == [0, 0, 0, 0]


def test_a_worker_that_is_killed_at_its_task_spoils_nothing(
    serial: dict[str, pl.DataFrame], cluster: Cluster, tmp_path: Path
) -> None:
    root, killed = lake(tmp_path / "tables"), []
    with cluster.client() as client:
        pids = client.run(os.getpid)

        def kill(*_: object) -> None:
            busy = [address for address, tasks in client.processing().items() if tasks]
            if busy and not killed:
                killed.append(pids[busy[0]])
                os.kill(killed[0], signal.SIGKILL)

        build(root, scheduler=cluster.address, on_step=kill)
    assert [worker.pid for worker in cluster.workers if worker.poll() == -signal.SIGKILL] == killed != []
    assert_same(tables(root), serial)


# What a user is told


async def program(text: str, home: Path) -> tuple[int, str]:
    """Exit status and standard error of a program that ends with a build on a cluster."""
    words = ["build", "bars", "--root", "tables", "--scheduler", "tcp://127.0.0.1:1"]
    text = f"{text}\nfrom crypto_lake.cli import main\nmain({words!r})"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", text, cwd=home, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    return process.returncode or 0, said.decode().strip()


async def test_a_scheduler_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    lake(tmp_path / "tables")
    status, said = await program("from crypto_lake.build import farm\nfarm.CONNECT_S = 1", tmp_path)
    assert status == 1
    assert said.startswith("crypto-lake: --scheduler tcp://127.0.0.1:1: no Dask scheduler answers there")
    assert len(said.splitlines()) == 1


async def test_without_the_extra_its_name_is_told(tmp_path: Path) -> None:
    lake(tmp_path / "tables")
    status, said = await program("import sys\nsys.modules['distributed'] = None", tmp_path)
    assert status == 1
    assert said.startswith("crypto-lake: --scheduler needs Dask's distributed: install crypto-lake with the extra dask")
    assert len(said.splitlines()) == 1


def test_a_cluster_without_workers_is_a_sentence(tmp_path: Path) -> None:
    empty = Cluster(tmp_path)
    try:
        with empty.client():
            pass
        with pytest.raises(ConfigError, match="the cluster has no workers; start some"), farm(empty.address, 1):
            pass
    finally:
        empty.close()
