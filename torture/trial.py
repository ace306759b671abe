"""A trial: which market, which faults and which kills a seed stands for."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from crypto_lake.simulator.scenario import Fault, Scenario

# Faults begin in the first seconds and are over by CALM_S; what happens then is repair.
FIRST_S, LAST_S, CALM_S = 1.0, 12.0, 15.0
# A lost message of a stream without ids cannot be known by anybody: those are only cut and silenced.
WITH_IDS: Final = ("aggTrade", "depth", "trade")
SHORT_HISTORY: Final = 150


@dataclass(frozen=True, slots=True)
class Kill:
    """`kill -9` so many seconds after the start, of the daemon alone or with its worker; it starts again at once."""

    at_s: float
    with_worker: bool


@dataclass(frozen=True, slots=True)
class Trial:
    """All that a seed decides."""

    seed: int
    scenario: Scenario
    kills: tuple[Kill, ...]
    redundancy: int
    symbols: int
    rate: float
    history: int

    @property
    def faults(self) -> str:
        """The kinds, for a table."""
        kinds = [fault.kind for fault in self.scenario.faults]
        return ", ".join(dict.fromkeys(kinds))

    @property
    def has(self) -> frozenset[str]:
        """The kinds of its faults."""
        return frozenset(fault.kind for fault in self.scenario.faults)


def trial(seed: int) -> Trial:
    """The trial of a seed, always the same one."""
    rng = random.Random(seed)
    makers = list(FAULTS)
    # Each kind comes up in some of the first trials; beyond that it is chance.
    first = makers[seed % len(makers)]
    others = rng.sample([name for name in makers if name != first], rng.randint(1, 3))
    chosen = [first, *others]
    faults = [FAULTS[name](rng) for name in chosen for _ in range(rng.randint(2, 5) if name == "cut" else 1)]
    kills = sorted(rng.uniform(FIRST_S, LAST_S) for _ in range(rng.randint(2, 3)))
    if any(fault.kind == "restricted" for fault in faults):
        kills[-1] = LAST_S + 1.5  # told to stay away, a process does so for an hour; the next one asks again
    return Trial(
        seed,
        Scenario(faults=tuple(faults), seed=seed),
        tuple(Kill(at_s, with_worker=rng.random() < 0.5) for at_s in kills),
        redundancy=rng.choice((1, 2, 2)),
        symbols=rng.randint(2, 5),
        rate=rng.choice((150.0, 300.0, 600.0)),
        history=SHORT_HISTORY if rng.random() < 0.15 else 100_000,
    )


def _at(rng: random.Random) -> float:
    return round(rng.uniform(FIRST_S, LAST_S - 3), 2)


def _window(rng: random.Random, most_s: float = 4.0) -> dict[str, Any]:
    return {"at_s": _at(rng), "for_s": round(rng.uniform(0.5, min(most_s, 3.0)), 2)}


def _frames(rng: random.Random, most: float) -> dict[str, Any]:
    streams = tuple(rng.sample(WITH_IDS, rng.randint(1, len(WITH_IDS))))
    everywhere = rng.random() < 0.6
    return {**_window(rng), "streams": streams, "everywhere": everywhere, "share": round(rng.uniform(0.01, most), 3)}


def _on_answers(rng: random.Random) -> dict[str, Any]:
    return {**_window(rng), "share": round(rng.uniform(0.3, 1), 2)}


FAULTS: Final[dict[str, Callable[[random.Random], Fault]]] = {
    "cut": lambda rng: Fault(kind="cut", at_s=_at(rng), share=rng.choice((0.3, 1))),
    "lost": lambda rng: Fault(kind="lost", **_frames(rng, 0.5)),
    "half_open": lambda rng: Fault(kind="half_open", at_s=_at(rng), share=rng.choice((0.5, 1))),
    "reordered": lambda rng: Fault(kind="reordered", **_frames(rng, 0.3)),
    "repeated": lambda rng: Fault(kind="repeated", **_frames(rng, 0.5)),
    "corrupted": lambda rng: Fault(kind="corrupted", **_frames(rng, 0.2)),
    "mute": lambda rng: Fault(kind="mute", **_window(rng)),
    "silent_stream": lambda rng: Fault(
        kind="silent_stream", **_window(rng), streams=WITH_IDS, everywhere=rng.random() < 0.5
    ),
    "oversized": lambda rng: Fault(kind="oversized", at_s=_at(rng), streams=("aggTrade",)),
    "format_change": lambda rng: Fault(
        kind="format_change", **_window(rng), streams=WITH_IDS, share=0.3, form=rng.choice(("renamed", "types"))
    ),
    "new_fields": lambda rng: Fault(kind="new_fields", at_s=_at(rng)),
    "clock_skew": lambda rng: Fault(kind="clock_skew", **_window(rng), skew_s=rng.choice((-3.0, -0.5, 0.5, 3.0))),
    "delisted": lambda rng: Fault(kind="delisted", at_s=round(rng.uniform(5, 9), 2), symbols=("ETHUSDT",)),
    "life": lambda rng: Fault(kind="life", for_s=LAST_S, life_s=round(rng.uniform(1, 4), 2)),
    "shutdown": lambda rng: Fault(kind="shutdown", at_s=_at(rng), for_s=2, delay_s=0.5),
    "refused": lambda rng: Fault(
        kind="refused", **_window(rng), status=rng.choice((429, 503)), retry_after_s=1, share=rng.choice((0.5, 1))
    ),
    "stale_snapshot": lambda rng: Fault(kind="stale_snapshot", **_window(rng), share=0.7, age_s=2),
    "too_many": lambda rng: Fault(kind="too_many", **_on_answers(rng), retry_after_s=2),
    "banned": lambda rng: Fault(kind="banned", **_on_answers(rng), retry_after_s=3),
    "restricted": lambda rng: Fault(kind="restricted", **_on_answers(rng), endpoints=("aggTrades", "depth")),
    "html": lambda rng: Fault(kind="html", **_on_answers(rng), status=rng.choice((200, 502))),
    "slow": lambda rng: Fault(kind="slow", **_on_answers(rng), delay_s=round(rng.uniform(0.5, 3), 2)),
}
