"""Writes a Qlib root: files of values that grow at their ends, and a calendar that says last what counts.

What Qlib reads is bounded by the calendar and by instruments/all.txt. So values behind the old end may be appended in
place: until the calendar is replaced nobody sees them, and who is killed before leaves the old export whole. Anything
else is made anew beside the old root, in `.new`, and takes its place in the end; while it does there is no calendar,
without which Qlib reads nothing at all.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from crypto_lake.config import ConfigError
from crypto_lake.journal.lock import take
from crypto_lake.models import qlib
from crypto_lake.models.qlib import Calendar, Manifest, Span
from crypto_lake.writers.files import replace_file

Values = NDArray[np.float32]

# Where this or the manifest stands an export was begun; in no other folder that holds anything is something removed.
LOCK: Final = ".crypto_lake.lock"
NEW: Final = ".new"
OLD: Final = ".old"
FEW: Final = 3
CALENDAR_LINES: Final = 1_000_000


@contextmanager
def taken(folder: Path, frequency: str) -> Iterator[None]:
    """The folder for one export alone; what a killed one left beside the root is gone.

    Raises `ConfigError` when the folder holds anything but a root of ours of this frequency, or another export is
    writing into it, and `OSError` when it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_others(folder, frequency)
    with ExitStack() as stack:
        lock = take(folder / LOCK, busy=f"--out {folder}: another export is writing into it; wait for its end")
        stack.callback(os.close, lock)
        for name in (NEW, OLD):
            shutil.rmtree(folder / name, ignore_errors=True)
        stack.callback(shutil.rmtree, folder / NEW, ignore_errors=True)
        yield


def _refuse_others(folder: Path, frequency: str) -> None:
    there = {path.name for path in folder.iterdir()}
    if there and not there & {LOCK, qlib.MANIFEST}:
        strange = ", ".join(sorted(there)[:FEW])
        raise ConfigError(f"--out {folder}: holds {strange}, which is not of an export; name another folder")
    if others := sorted({path.stem for path in (folder / qlib.CALENDARS).glob("*.txt")} - {frequency}):
        raise ConfigError(
            f"--out {folder}: is a root of {others[0]}; Qlib wants one root per frequency, so name another folder for "
            f"{frequency}"
        )


class Root:
    """A root under way. With `held` its files grow in place, else all of them are made anew beside it."""

    def __init__(self, folder: Path, frequency: str, held: Manifest | None) -> None:
        self._folder = folder
        self._held = held
        self._frequency = frequency
        self._place = folder / NEW if held is None else folder
        self.spans = _spans(held)
        (self._place / qlib.FEATURES).mkdir(parents=True, exist_ok=True)

    def append(self, symbol: str, slot: int, values: Mapping[str, Values]) -> None:
        """Some fields of a symbol from `slot` on; slots that were left out before it have no value.

        All fields get the same slots; then `advance` says so.
        """
        span = self.spans.get(symbol)
        assert span is None or slot >= span.end
        for field, some in values.items():
            path = qlib.values_path(self._features, symbol, field, self._frequency)
            if span is None:
                path.parent.mkdir(exist_ok=True)
                _put(path, "wb", np.array([slot], qlib.VALUE), some)
            else:
                _put(path, "ab", np.full(slot - span.end, np.nan, qlib.VALUE), some)

    def advance(self, symbol: str, slot: int, length: int) -> None:
        """Every field of the symbol has so many values from `slot` on by now."""
        span = self.spans.get(symbol)
        self.spans[symbol] = Span(slot, length) if span is None else Span(span.start, slot + length - span.start)

    def undo(self) -> bool:
        """Cuts off what was appended, now or by one who was killed; False if a file is missing or too short for that.

        A root that is made anew has nothing to cut off.
        """
        self.spans = _spans(self._held)
        for symbol, span in self.spans.items():
            for field in self._held.fields if self._held else ():
                path = qlib.values_path(self._features, symbol, field, self._frequency)
                size = (1 + span.length) * qlib.VALUE.itemsize
                if not path.exists() or path.stat().st_size < size:
                    return False
                if path.stat().st_size > size:
                    os.truncate(path, size)
        return True

    def finish(self, calendar: Calendar, manifest: Manifest) -> None:
        """From here on the root is what was appended. The calendar comes last; only what was noted comes behind it."""
        target = qlib.calendar_path(self._folder, self._frequency)
        for folder in (qlib.CALENDARS, qlib.INSTRUMENTS):
            (self._folder / folder).mkdir(exist_ok=True)
        if self._place != self._folder:
            target.unlink(missing_ok=True)
            self._swap()
        replace_file(qlib.instruments_path(self._folder), _instruments(calendar, self.spans, self._frequency))
        replace_file(target, b"".join(_lines(calendar, self._frequency)))
        replace_file(self._folder / qlib.MANIFEST, qlib.encoded(manifest))
        shutil.rmtree(self._folder / OLD, ignore_errors=True)
        shutil.rmtree(self._folder / NEW, ignore_errors=True)

    def _swap(self) -> None:
        features = self._folder / qlib.FEATURES
        if features.exists():
            features.rename(self._folder / OLD)
        self._features.rename(features)

    @property
    def _features(self) -> Path:
        return self._place / qlib.FEATURES


def _spans(held: Manifest | None) -> dict[str, Span]:
    return {} if held is None else {name: each.span for name, each in held.members.items()}


def _put(path: Path, mode: str, *parts: NDArray[np.float32]) -> None:
    # Not synced: what a power cut takes away leaves a file too short, which the check finds; it can be made again.
    with path.open(mode) as file:
        for part in parts:
            file.write(part.astype(qlib.VALUE, copy=False).tobytes())


def _instruments(calendar: Calendar, spans: Mapping[str, Span], frequency: str) -> bytes:
    names = sorted(spans)
    ends = np.array([slot for name in names for slot in (spans[name].start, spans[name].end - 1)], np.int64)
    texts = qlib.written(calendar[ends], frequency).to_list()
    lines = zip(names, texts[::2], texts[1::2], strict=True)
    return "".join(f"{name}\t{first}\t{last}\n" for name, first, last in lines).encode()


def _lines(calendar: Calendar, frequency: str) -> Iterator[bytes]:
    for begin in range(0, len(calendar), CALENDAR_LINES):
        texts = qlib.written(calendar[begin : begin + CALENDAR_LINES], frequency)
        yield ("\n".join(texts) + "\n").encode()
