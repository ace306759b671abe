"""Long work as a person sees it: bars with rate and time left on a terminal, a plain line now and then elsewhere."""

import threading
import time
from collections import deque
from datetime import timedelta
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.filesize import pick_unit_and_suffix
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

# Where nobody sees a bar move, a line says how far it is.
LINE_EVERY_S: Final = 10.0
LOOK_EVERY_S: Final = 0.25
# Rates are those of so long a while: of all the time they would be slow to see that a network is gone.
WHILE_S: Final = 30.0
# Of amount, rate and time left: what grows wider must not make the bar jump all the time.
WIDTHS: Final = (20, 11, 12)
UNITS: Final = ["B", "KiB", "MiB", "GiB", "TiB"]
STOPPING: Final = "stopping: what is under way is finished or kept for the next run; a second Ctrl-C ends at once"


class Watch:
    """What long work tells of itself, on stderr; a context manager. Its methods may be called from any thread.

    With `stop` it says at once that somebody asked to stop, which may take a moment.
    """

    def __init__(
        self,
        what: str,
        *,
        stop: threading.Event | None = None,
        is_terminal: bool | None = None,
        line_every_s: float = LINE_EVERY_S,
    ) -> None:
        self._what, self._stop, self._line_every_s = what, stop, line_every_s
        self._console = Console(stderr=True, highlight=False, force_terminal=is_terminal)
        self._is_drawn = self._console.is_terminal and not self._console.is_dumb_terminal
        self._lock = threading.RLock()
        self._far, self._speed = _Far(), _Speed(time.monotonic())
        self._live = Live(get_renderable=self._picture, console=self._console, transient=True)
        self._is_over = threading.Event()
        self._looks = threading.Thread(target=self._look, daemon=True, name="watch")

    def __enter__(self) -> Self:
        if self._is_drawn:
            self._live.start()
        self._looks.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._looks.join()
        if self._is_drawn:
            self._live.stop()
        if error is not None and self._far.through:
            self._print(f"{self._line()}; the same command goes on from here")

    # What it is told

    def planned(self, days: int) -> None:
        """So many more days are to be taken; fewer (less than 0) when nothing is published of them."""
        with self._lock:
            self._far.planned += days

    def found(self, files: int) -> None:
        """So many more files are to be taken."""
        with self._lock:
            self._far.files += files

    def sized(self, path: str, size_bytes: int, days: int) -> None:
        """A file has so many bytes and is taken for so many days; may be said again and again."""
        with self._lock:
            self._far.size(path, size_bytes, days)

    def fetched(self, count: int) -> None:
        """So many more bytes came; fewer (less than 0) when a download began anew."""
        with self._lock:
            self._far.bytes += count

    def read(self, rows: int) -> None:
        """So many more rows were read."""
        with self._lock:
            self._far.rows += rows

    def done(self, path: str, state: str, detail: str) -> None:
        """A file is through; what went wrong is said at once, and stays."""
        with self._lock:
            self._far.end(path)
        if state != "ingested":
            self._print(f"{state}: {detail}", "red")

    # What it says

    def _look(self) -> None:
        is_told, told_s = False, time.monotonic()
        while not self._is_over.wait(LOOK_EVERY_S):
            now_s = time.monotonic()
            with self._lock:
                self._speed.note(now_s, self._far)
            if self._stop and self._stop.is_set() and not is_told:
                is_told = True
                self._print(STOPPING, "yellow")
            if not self._is_drawn and now_s - told_s >= self._line_every_s:
                told_s = now_s
                self._print(self._line())

    def _print(self, text: str, style: str = "") -> None:
        # As a text of its own, and never folded: paths hold brackets, and are copied from here.
        self._console.print(Text(text, style), soft_wrap=True)

    def _line(self) -> str:
        with self._lock:
            far, speed = self._far, self._speed
            left_s = speed.left_s(far)
            parts = [f"{self._what}: {far.parts}", far.amount, f"{_size(speed.bytes_per_s)}/s", f"{far.rows:,} rows"]
            parts += [f"{speed.rows_per_s:,.0f} rows/s", *([f"{_clock(left_s)} left"] if left_s is not None else [])]
        return ", ".join(parts)

    def _picture(self) -> RenderableType:
        """Two bars under a line: what came, and what was read of it."""
        with self._lock:
            far, speed = self._far, self._speed
            bars = Table.grid(padding=(0, 2, 0, 0), expand=True)
            bars.add_column()
            bars.add_column(ratio=1)
            for width in WIDTHS:
                bars.add_column(justify="right", no_wrap=True, min_width=width)
            bytes_left_s, rows_left_s = speed.bytes_left_s(far), speed.rows_left_s(far)
            came = far.amount, f"{_size(speed.bytes_per_s)}/s", _left(bytes_left_s)
            bars.add_row("download", _bar(far.bytes, far.total_bytes), *came)
            read = f"{far.rows:,} rows", f"{speed.rows_per_s:,.0f}/s", _left(rows_left_s)
            bars.add_row("rows", _bar(*far.rows_of_total), *read)
            files = f"{far.through:,} file{'' if far.through == 1 else 's'}"
            head = f"{self._what}: {far.parts}, {files}, {_clock(speed.passed_s)}"
        return Group(Text(head, no_wrap=True, overflow="ellipsis"), bars)


class _Far:
    """How far the work is, and how much there is of it as far as that can be known.

    A part is a day where days were planned, else a file.
    """

    def __init__(self) -> None:
        self.planned = self.files = self.through = self.bytes = self.rows = 0
        self._sizes: dict[str, tuple[int, int]] = {}
        self._known_bytes = self._known_days = 0
        self._days = self._ended_bytes = self._ended_rows = 0

    def size(self, path: str, size_bytes: int, days: int) -> None:
        """A file has so many bytes, and is taken for so many days."""
        before = self._sizes.get(path, (0, 0))
        self._sizes[path] = size_bytes, days
        self._known_bytes += size_bytes - before[0]
        self._known_days += days - before[1]

    def end(self, path: str) -> None:
        """A file is through."""
        size_bytes, days = self._sizes.get(path, (0, 0))
        self.through += 1
        self._days += days
        self._ended_bytes += size_bytes
        # Files are read one behind the other: all rows so far are of those that are through.
        self._ended_rows = self.rows

    @property
    def parts(self) -> str:
        """In words: parts that are through, of all that there are."""
        if self.planned > 0:
            return f"{min(self._days, self.planned):,} of {self.planned:,} days"
        return f"{self.through:,} of {self.files:,} files" if self.files else "looking what there is"

    @property
    def amount(self) -> str:
        """In words: what came, of about how much."""
        total = self.total_bytes
        return _size(self.bytes) if total is None else f"{_size(self.bytes)} of {_size(total)}"

    @property
    def total_bytes(self) -> float | None:
        """Of all files: the sizes that are known, and as much again for each part whose size is not."""
        known, of = (self._known_days, self.planned) if self.planned > 0 else (len(self._sizes), self.files)
        return max(self._known_bytes * max(1.0, of / known), self.bytes) if known else None

    @property
    def rows_of_total(self) -> tuple[float, float | None]:
        """The rows that were read and about how many there are; where that is not known, files."""
        total = self.total_bytes
        if total is None:
            return self.through, self.files or None
        if not self._ended_bytes or not self._ended_rows:
            return self.rows, None
        return self.rows, max(self._ended_rows / self._ended_bytes * total, self.rows)


class _Speed:
    """How fast bytes and rows came lately."""

    def __init__(self, now_s: float) -> None:
        self._began_s = now_s
        self._noted: deque[tuple[float, int, int]] = deque([(now_s, 0, 0)])

    def note(self, now_s: float, far: _Far) -> None:
        """How far it is now."""
        self._noted.append((now_s, far.bytes, far.rows))
        while len(self._noted) > 1 and now_s - self._noted[0][0] > WHILE_S:
            self._noted.popleft()

    @property
    def passed_s(self) -> float:
        """Since the beginning."""
        return self._noted[-1][0] - self._began_s

    @property
    def bytes_per_s(self) -> float:
        """Of the last while."""
        return self._per_s(1)

    @property
    def rows_per_s(self) -> float:
        """Of the last while."""
        return self._per_s(2)

    def _per_s(self, which: int) -> float:
        first, last = self._noted[0], self._noted[-1]
        passed_s = last[0] - first[0]
        return max(0.0, (last[which] - first[which]) / passed_s) if passed_s > 0 else 0.0

    def bytes_left_s(self, far: _Far) -> float | None:
        """Until all has come; None while nobody can tell."""
        total = far.total_bytes
        return None if total is None else _left_s(far.bytes, total, self.bytes_per_s)

    def rows_left_s(self, far: _Far) -> float | None:
        """Until all is read; None while nobody can tell."""
        done, total = far.rows_of_total
        rate = self.rows_per_s if far.total_bytes is not None else done / max(1e-3, self.passed_s)
        return None if total is None else _left_s(done, total, rate)

    def left_s(self, far: _Far) -> float | None:
        """Until all is done; None while nobody can tell."""
        known = [left_s for left_s in (self.bytes_left_s(far), self.rows_left_s(far)) if left_s is not None]
        return max(known, default=None)


def _left_s(done: float, total: float, per_s: float) -> float | None:
    if done >= total:
        return 0.0
    return (total - done) / per_s if per_s > 0 else None


def _bar(done: float, total: float | None) -> ProgressBar:
    return ProgressBar(total=total or None, completed=done, pulse=not total)


def _left(left_s: float | None) -> str:
    return "" if left_s is None else f"{_clock(left_s)} left"


def _clock(passed_s: float) -> str:
    return str(timedelta(seconds=int(passed_s)))


def _size(size_bytes: float) -> str:
    unit, suffix = pick_unit_and_suffix(int(size_bytes), UNITS, 1024)
    return f"{size_bytes / unit:,.0f} {suffix}" if unit == 1 else f"{size_bytes / unit:,.1f} {suffix}"
