"""How long to wait before the next try."""

from collections.abc import Callable

# 2 ** 32 seconds is beyond any cap, and a float holds it; the exponent of a week of failures would not fit.
MOST_DOUBLINGS = 32


def backoff_s(attempt: int, draw: Callable[[], float], first_s: float = 1, most_s: float = 60) -> float:
    """A wait drawn from nothing to a ceiling that doubles with each attempt (the first is 0).

    Full jitter: a thousand clients cut off in the same moment come back spread out, not as one wave.
    `draw` gives numbers from 0 up to 1, as `random.random` does.
    """
    return draw() * min(most_s, first_s * 2.0 ** min(attempt, MOST_DOUBLINGS))
