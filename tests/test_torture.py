"""A few trials of `make torture`: faults and kills at random, held against everything that was sent."""

from pathlib import Path

import pytest

from torture.__main__ import run_all
from torture.trial import FAULTS, trial

SEEDS = [0, 3, 16]


@pytest.mark.slow
async def test_under_faults_and_kills_every_hole_is_known_and_what_can_be_filled_is_filled(tmp_path: Path) -> None:
    outcomes = await run_all(SEEDS, tmp_path, 3, keep=True)
    assert {outcome.seed: outcome.wrong for outcome in outcomes} == {seed: [] for seed in SEEDS}
    assert all(outcome.known == outcome.lost for outcome in outcomes)
    assert sum(outcome.repaired for outcome in outcomes) > 100


def test_a_seed_is_always_the_same_trial_and_thirty_have_every_fault() -> None:
    assert trial(7) == trial(7)
    assert frozenset().union(*(trial(seed).has for seed in range(30))) == set(FAULTS)
