"""Long work as a person sees it: bars with rate and time left on a terminal, a plain line now and then elsewhere."""

import sys
import threading
import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# Where nobody sees a bar move, a line says how far it is.
LINE_EVERY_S: Final = 10.0


class Watch:
    """What a backfill tells of itself, on stderr; a context manager. Its methods may be called from any thread."""

    def __init__(self, what: str, *, is_terminal: bool | None = None) -> None:
        self._what = what
        self._is_shown = sys.stderr.isatty() if is_terminal is None else is_terminal
        self._console = Console(stderr=True, highlight=False)
        self._lock = threading.Lock()
        self._files = self._through = self._bytes = self._rows = 0
        self._began_s = self._told_s = time.monotonic()
        self._shown = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("files"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._is_shown,
        )
        self._task = self._shown.add_task(what, total=None)

    def __enter__(self) -> Self:
        self._shown.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._shown.stop()

    def found(self, files: int) -> None:
        """So many more files are to be taken."""
        with self._lock:
            self._files += files
        self._tell()

    def fetched(self, count: int) -> None:
        """So many more bytes came."""
        with self._lock:
            self._bytes += count
        self._tell()

    def read(self, rows: int) -> None:
        """So many more rows were read."""
        with self._lock:
            self._rows += rows
        self._tell()

    def done(self, path: str, state: str, detail: str) -> None:
        """A file is through; what went wrong is said at once, and stays."""
        with self._lock:
            self._through += 1
        if state != "ingested":
            self._console.print(f"[red]{state}[/] {detail}", soft_wrap=True)
        self._tell()

    def _tell(self) -> None:
        if self._is_shown:
            self._shown.update(self._task, completed=self._through, total=self._files or None, description=self._line())
            return
        now_s = time.monotonic()
        with self._lock:
            is_due = now_s - self._told_s >= LINE_EVERY_S
            self._told_s = now_s if is_due else self._told_s
        if is_due:
            left_s = self._left_s(now_s)
            left = "" if left_s is None else f", about {left_s:,.0f} s left"
            self._console.print(f"{self._line()}: {self._through:,} of {self._files:,} files{left}", soft_wrap=True)

    def _line(self) -> str:
        passed_s = max(1e-3, time.monotonic() - self._began_s)
        speed = f"{self._bytes / passed_s / 1e6:,.1f} MB/s, {self._rows / passed_s:,.0f} rows/s"
        return f"{self._what}: {self._bytes / 1e6:,.1f} MB, {self._rows:,} rows ({speed})"

    def _left_s(self, now_s: float) -> float | None:
        if not self._through:
            return None
        return (now_s - self._began_s) / self._through * (self._files - self._through)
