"""What all benchmarks are fed with: made-up frames of 50 symbols, 60 % depth, 38 % trades, 2 % liquidations."""

from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from crypto_lake.config import FUTURES
from crypto_lake.journal import FRAME, Journal
from crypto_lake.models import DATASETS, Dataset
from crypto_lake.simulator import GeneratedMarket, made_up_symbols

SYMBOLS: Final = made_up_symbols(50)
MIX: Final = {"depth": 0.60, "aggTrade": 0.38, "forceOrder": 0.02}
# Above 2,500 messages a second of the market's own clock the venue's limit of one liquidation per symbol and second
# would eat into the two percent.
MARKET_RATE: Final = 2_000
DAY: Final = date(2025, 11, 20)
START_MS: Final = 1_763_640_000_000  # noon of it
# Enough for 20 s of 20,000 messages a second and for 2,000 commits.
COUNT: Final = 420_000
KINDS: Final = ("depth", "agg_trade", "liquidation")


class Message(NamedTuple):
    """A frame as a combined connection carries it, and the dataset that it belongs to."""

    dataset: str
    time_ms: int
    payload: bytes


class Workload(msgspec.Struct):
    """Messages in parallel lists: a place in KINDS, the market's time, the payload."""

    kinds: list[int]
    times_ms: list[int]
    payloads: list[bytes]

    def __len__(self) -> int:
        return len(self.payloads)

    def __iter__(self) -> Iterator[Message]:
        columns = zip(self.kinds, self.times_ms, self.payloads, strict=True)
        return (Message(KINDS[kind], at, text) for kind, at, text in columns)

    def part(self, start: int, end: int) -> "Workload":
        """The messages from `start` to `end`."""
        return Workload(self.kinds[start:end], self.times_ms[start:end], self.payloads[start:end])


def kind_of(stream: str) -> int:
    """The place in KINDS of a stream's name."""
    if stream.endswith("@depth"):
        return 0
    return 1 if stream.endswith("@aggTrade") else 2


def generate(path: Path, count: int) -> Path:
    """Writes `count` messages to `path`, always the same ones."""
    market = GeneratedMarket(
        SYMBOLS, (), rate=MARKET_RATE, mix=MIX, with_others=False, start_ms=START_MS, history=10, seed=1
    )
    made = Workload([], [], [])
    for frame in market.frames(count):
        made.kinds.append(kind_of(frame.stream))
        made.times_ms.append(frame.time_ms)
        made.payloads.append(frame.combined())
    path.write_bytes(msgspec.msgpack.encode(made))
    return path


def load(path: Path) -> Workload:
    """What `generate` wrote."""
    return msgspec.msgpack.decode(path.read_bytes(), type=Workload)


def datasets() -> Sequence[Dataset]:
    """The datasets of KINDS."""
    return [DATASETS[name] for name in KINDS]


def journal(folder: Path, messages: Workload) -> None:
    """Writes a journal per dataset under `folder`, as the daemon would have: 50 ms between message and receipt."""
    writers = {name: Journal(folder / name) for name in KINDS}
    origins = {name: f"{FUTURES} {name} {FUTURES} 0".encode() for name in KINDS}
    for number, (name, time_ms, payload) in enumerate(messages):
        writers[name].append(FRAME, origins[name], payload, time_ms * 1000 + 50_000)
        if number % 2_000 == 0:
            for writer in writers.values():
                writer.flush()
    for writer in writers.values():
        writer.close()
