"""The drain's process: decoding a batch must never make the receiving process wait, so it happens in another one.

The parent writes one line of JSON (the order) to standard input and later closes it, which means: drain what is there
and end. It also closes when the parent dies, so a worker never outlives its daemon for long. Everything that happens
is one line of JSON on standard output.
"""

import contextlib
import os
import resource
import select
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from crypto_lake.config import ConfigError, SinkFormat
from crypto_lake.journal import end_of, take
from crypto_lake.models import DATASETS, SIDES, Dataset
from crypto_lake.processors.follow import Hole
from crypto_lake.services.contract import (
    Batch,
    Holes,
    Missing,
    Order,
    Ready,
    Refusal,
    Report,
    Round,
    Symbols,
    Trouble,
)
from crypto_lake.services.drain import Drain, Drained
from crypto_lake.services.look import Look
from crypto_lake.services.table_bars import TableBars
from crypto_lake.writers import CommitFailed, CommitUnknown, Sink, StoreAway
from crypto_lake.writers.delta import Lake
from crypto_lake.writers.files import Files

# The receiving process goes first when both want the processor.
NICENESS: Final = 5
# The worker of a daemon that was killed ends by itself; a new one waits for it so long.
LOCK_PATIENCE_S: Final = 60.0
# How soon it is seen that somebody has added or removed symbols.
LOOK_EVERY_S: Final = 3.0
# So many holes are worked on at a time; the next ones are told when these are gone.
HOLES_TOLD: Final = 1000


def sink_of(sink: SinkFormat, root: str) -> Sink:
    """The sink of that name under `root`."""
    return Lake(root) if sink == "delta" else Files(root, sink)


def work(order: Order) -> None:
    """Drains at the interval ordered until standard input closes, then once more."""
    bars = TableBars(order.root, order.bars) if order.bars else None
    sink = bars.lake() if bars else sink_of(order.sink, order.root)
    journals = Path(order.journals)
    drains = [
        Drain(
            DATASETS[name],
            journals / name,
            sink,
            collector=order.collector,
            batch_messages=order.batch_messages,
        )
        for name in order.datasets
    ]
    with _alone(journals):
        trouble = _trouble(sink, drains)
        if trouble and not order.has_recorded:
            raise trouble
        look = Look(order.root, every_s=min(LOOK_EVERY_S, order.commit_every_s))
        _say(Ready(None if trouble else look.now()))
        is_told_to_end = False
        while not is_told_to_end:
            if trouble:
                _say(Trouble(drains[0].dataset.name, str(trouble)))
            is_told_to_end = _waited(order.commit_every_s, look)
            for drain in drains:
                drain.is_closed = is_told_to_end
            trouble = trouble and _trouble(sink, drains)
            if not trouble:
                patience_s = order.last_drain_s if is_told_to_end else 10 * order.commit_every_s
                drain_all(drains, time.monotonic() + patience_s, look)
                _make_bars(bars, order.last_drain_s if is_told_to_end else None)


def _make_bars(bars: TableBars | None, last_s: float | None) -> None:
    """Behind the trades; when it is the last time they are waited for."""
    if bars is not None:
        for report in bars.step() if last_s is None else bars.finish(last_s):
            _say(report)


def _trouble(sink: Sink, drains: list[Drain]) -> StoreAway | None:
    try:
        check(sink, [drain.dataset for drain in drains])
    except StoreAway as away:
        return away
    return None


def check(sink: Sink, datasets: list[Dataset]) -> None:
    """Raises `ConfigError` unless the tables of the datasets, and those beside them, can be written."""
    for dataset in (*datasets, *SIDES):
        sink.check(dataset)


def drain_all(drains: list[Drain], until_s: float, look: Look | None = None) -> None:
    """Every dataset to where its journal ends now, in turns so that none waits for another's backlog."""
    # Not to where it will end: under way there is always one more message, and a commit for it would be a small one.
    goals = {drain: end_of(drain.journal) for drain in drains}
    left = list(drains)
    told = {drain: drain.open_holes for drain in drains}
    unopened = [drain for drain in drains if not drain.is_open]
    while left and time.monotonic() < until_s:
        left = [drain for drain in left if _one_batch(drain) and drain.position < goals[drain]]
        _tell_symbols(look)
    for drain in drains:
        if _can_ask(drain.dataset) and drain.open_holes != told[drain]:
            _say(_holes(drain.dataset, _to_be_had(drain.dataset, drain.open_holes)[:HOLES_TOLD]))
    for drain in unopened:
        # Whoever was to see to these may have died before: a book has to be fetched behind its last hole.
        if drain.dataset.chain:
            _tell_newest(drain.dataset, drain.last_holes)
    _say(Round({drain.dataset.name: drain.position for drain in drains}, _rss_bytes()))


def _one_batch(drain: Drain) -> bool:
    """Whether there may be more."""
    began_s = time.monotonic()
    try:
        done = drain.step()
    except (CommitFailed, CommitUnknown) as error:
        _say(Trouble(drain.dataset.name, str(error)))
        return False
    if not done.records and not done.rejected:
        return False
    _say(_batch(drain.dataset.name, done, time.monotonic() - began_s))
    if drain.dataset.chain:
        _tell_newest(drain.dataset, done.revealed)
    return True


def _can_ask(dataset: Dataset) -> bool:
    """Whether missing rows can be asked for by their ids; then all open holes are told, otherwise the new ones once."""
    return dataset.poll is not None and bool(dataset.poll.from_id)


def _to_be_had(dataset: Dataset, holes: Sequence[Hole]) -> list[Hole]:
    """Those within the venue's reach, in turns by symbol: a long past of one must not keep the others waiting."""
    now_us, turns, due = time.time_ns() // 1000, Counter[tuple[str, str]](), []
    for hole in holes:
        request = dataset.poll.requests.get(hole.venue) if dataset.poll else None
        reach_us = now_us - 1e6 * request.reach_s if request and request.reach_s else 0
        if request and (hole.end_us or now_us) > reach_us:
            turns[hole.group] += 1
            due.append((turns[hole.group], hole.start_us, hole))
    return [hole for _, _, hole in sorted(due, key=lambda each: each[:2])]


def _tell_newest(dataset: Dataset, holes: Sequence[Hole]) -> None:
    """Of each symbol the newest hole: a book from behind that one is behind all of them."""
    newest = list({hole.group: hole for hole in sorted(holes, key=lambda hole: hole.ids)}.values())
    for at in range(0, len(newest), HOLES_TOLD):
        _say(_holes(dataset, newest[at : at + HOLES_TOLD]))


def _holes(dataset: Dataset, holes: Sequence[Hole]) -> Holes:
    return Holes(
        dataset.name,
        [Missing(hole.venue, hole.symbol, *hole.ids, hole.start_us, hole.end_us) for hole in holes],
    )


def _batch(dataset: str, done: Drained, seconds: float) -> Batch:
    return Batch(
        dataset,
        done.records,
        done.rows,
        done.duplicates,
        done.rejected,
        done.position,
        round(seconds, 4),
        len(done.revealed),
        done.findings,
    )


def _waited(for_s: float, look: Look) -> bool:
    """Whether it was told to end within that time."""
    until_s = time.monotonic() + for_s
    while not _told_to_end(min(look.every_s, max(0.0, until_s - time.monotonic()))):
        _tell_symbols(look)
        if time.monotonic() >= until_s:
            return False
    return True


def _tell_symbols(look: Look | None) -> None:
    venues = look.again() if look else None
    if venues is not None:
        _say(Symbols(venues))


def _told_to_end(timeout_s: float) -> bool:
    readable, _, _ = select.select([sys.stdin.fileno()], [], [], timeout_s)
    return bool(readable)


@contextlib.contextmanager
def _alone(journals: Path) -> Iterator[None]:
    """One drain per journal: two would both find the same rows missing."""
    journals.mkdir(parents=True, exist_ok=True)
    busy = f"LAKE_STATE: another crypto-lake is draining {journals}; stop it first"
    lock = take(journals / "drain.lock", busy=busy, patience_s=LOCK_PATIENCE_S)
    try:
        yield
    finally:
        os.close(lock)


def _rss_bytes() -> int:
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _say(report: Report) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more: the rows count, not the words
        sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
        sys.stdout.buffer.flush()


def main() -> int:
    """The process: one order in, reports out; 1 when the user has to change something first."""
    # Ctrl-C goes to the whole terminal: the parent decides when it is time to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    try:
        work(order)
    except ConfigError as error:
        _say(Refusal(str(error)))
        return 1
    if threading.active_count() > 1:
        os._exit(0)  # bars that are not done yet: to leave them in the middle is a crash, which harms no table
    return 0


if __name__ == "__main__":
    sys.exit(main())
