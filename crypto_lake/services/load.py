"""What is given up first when there is more than can be kept: a level, from what disk, memory and processor say."""

from collections import deque
from dataclasses import dataclass
from typing import Final

# A level falls only after so long below half of what raised it: shedding must not flicker.
CALM_S: Final = 5.0
# A single late wake-up is no load; so many in a row are.
LATE_IN_A_ROW: Final = 3


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What raises the level to 1 and to 2.

    Disk: at the whole of MAX_WAITING_BYTES the sockets rest. Loop: a receive time is as late as the loop; at a second
    a chart still looks right. Free: at 5 MB/s of journal a gibibyte is three minutes.
    """

    waiting_share: tuple[float, float] = (0.25, 0.5)
    loop_delay_s: tuple[float, float] = (0.5, 2.0)
    free_bytes: tuple[float, float] = (1024 * 2**20, 512 * 2**20)


class Load:
    """The level of load: 0 keeps everything, at 1 the datasets of `sacrifice` 1 are shed, at 2 those of 2 as well."""

    def __init__(self, thresholds: Thresholds | None = None) -> None:
        self.level = 0
        self.reason = ""
        self._thresholds = thresholds or Thresholds()
        self._delays: deque[float] = deque([0.0] * LATE_IN_A_ROW, maxlen=LATE_IN_A_ROW)
        self._calm_since_s: float | None = None

    def observe(self, now_s: float, *, waiting_share: float, loop_delay_s: float, free_bytes: float) -> None:
        """What is measured now; `waiting_share` of what may wait for the disk, `free_bytes` on it."""
        self._delays.append(loop_delay_s)
        ratios = self._ratios(waiting_share, min(self._delays), free_bytes)
        name, high = max(((name, max(_levels(pair, 1.0))) for name, pair in ratios.items()), key=lambda each: each[1])
        if high >= self.level:
            self._calm_since_s = None
            if high > self.level:
                self.level, self.reason = high, name
            return
        if any(max(_levels(pair, 0.5)) >= self.level for pair in ratios.values()):
            self._calm_since_s = None
        elif self._calm_since_s is None:
            self._calm_since_s = now_s
        elif now_s - self._calm_since_s >= CALM_S:
            self.level, self._calm_since_s = self.level - 1, None

    def _ratios(self, waiting_share: float, delay_s: float, free_bytes: float) -> dict[str, tuple[float, float]]:
        """How each measure stands to the thresholds of both levels: 1 reaches it."""
        limits = self._thresholds
        return {
            "the disk is slow": _over(waiting_share, limits.waiting_share),
            "the processor is busy": _over(delay_s, limits.loop_delay_s),
            "the disk is nearly full": (
                limits.free_bytes[0] / max(free_bytes, 1.0),
                limits.free_bytes[1] / max(free_bytes, 1.0),
            ),
        }


def _over(value: float, limits: tuple[float, float]) -> tuple[float, float]:
    return value / limits[0], value / limits[1]


def _levels(ratios: tuple[float, float], share: float) -> tuple[int, int]:
    """The levels whose thresholds are reached, to that share of them."""
    return (1 if ratios[0] >= share else 0, 2 if ratios[1] >= share else 0)
