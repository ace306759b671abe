"""Where the work of a build is done: in this process, in several, or on a Dask cluster; the same functions everywhere.

Whatever the farm, tasks only read and compute, and the process that started the build commits.
"""

import multiprocessing
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, ParamSpec, TypeVar

from crypto_lake.config import ConfigError, child_environment
from crypto_lake.query.findings import first_line
from crypto_lake.writers import CommitFailed

P = ParamSpec("P")
T = TypeVar("T")

# How long a cluster may take to answer.
CONNECT_S: Final = 10
# A worker is one core's: the libraries in it must not start threads for all of them.
ONE_THREAD: Final = {"POLARS_MAX_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


class Here(Executor):
    """Tasks one after the other in this process, each when it is handed in."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """The task is done when this returns; what it raises is in its future."""
        done: Future[T] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 (it is raised where the result is asked for)
            done.set_exception(error)
        return done


@contextmanager
def farm(scheduler: str | None, workers: int) -> Iterator[tuple[Executor, int]]:
    """An executor, and how many tasks it does at a time: `scheduler` is a Dask cluster's address (tcp://...), else
    there are so many processes, or none besides this one.

    Raises `ConfigError` for a cluster that does not answer or cannot be asked.
    """
    if scheduler:
        with _cluster(scheduler) as found:
            yield found
    elif workers <= 1:
        yield Here(), 1
    else:
        with _processes(workers) as pool:
            yield pool, workers


@contextmanager
def _processes(workers: int) -> Iterator[Executor]:
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(child_environment(**ONE_THREAD))
    try:
        # Not forked: the libraries here have threads, and a copy of a lock that one of them holds is never released.
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            try:
                yield pool
            except BrokenExecutor:
                raise CommitFailed(
                    "a process of the build died (out of memory?); what it committed stands: run it again, with fewer "
                    "--workers"
                ) from None
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@contextmanager
def _cluster(address: str) -> Iterator[tuple[Executor, int]]:
    try:
        from distributed import Client
    except ImportError:
        raise ConfigError(
            "--scheduler needs Dask's distributed: install crypto-lake with the extra dask (pip install "
            "'crypto-lake[dask]')"
        ) from None
    if not re.match(r"[a-z]+://[^/]", address):
        raise ConfigError(f"--scheduler {address}: that is no address; tcp://host:8786 is one")
    try:
        client: Any = Client(address, timeout=CONNECT_S, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, TimeoutError) as error:
        raise ConfigError(f"--scheduler {address}: no Dask scheduler answers there ({first_line(error)})") from None
    try:
        cores = sum(client.nthreads().values())
        if not cores:
            raise ConfigError(f"--scheduler {address}: the cluster has no workers; start some (dask worker {address})")
        # Each task is its own: two that look alike may read a table at two times.
        yield client.get_executor(pure=False), cores
    finally:
        client.close()
