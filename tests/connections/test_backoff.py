"""The wait before the next try."""

from random import Random

from crypto_lake.connections.backoff import backoff_s


def test_the_ceiling_doubles_from_the_first_wait_to_the_cap() -> None:
    assert [backoff_s(n, lambda: 1.0) for n in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_the_wait_is_drawn_from_nothing_to_the_ceiling() -> None:
    waits = [backoff_s(3, Random(seed).random) for seed in range(300)]
    assert min(waits) < 0.5
    assert max(waits) > 7.5
    assert all(0 <= wait < 8 for wait in waits)


def test_a_week_of_failures_does_not_overflow() -> None:
    assert backoff_s(1_000_000, lambda: 0.5, first_s=0.1, most_s=20) == 10
