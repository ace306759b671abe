"""What goes wrong with official files: on the way, in their sums, and in what is inside them."""

from collections import Counter
from datetime import date
from fnmatch import fnmatchcase
from typing import Any, Final

from crypto_lake.models.bucket import CHECKSUM, file_at
from crypto_lake.simulator.course import Course, Numbered
from crypto_lake.simulator.dumps_zip import Variant
from crypto_lake.simulator.scenario import MOST_FAULTS, Fault, Scenario

ON_THE_WAY: Final = ("unavailable", "slow_download", "cut_download")
SUM: Final = ("wrong_checksum",)
CONTENT: Final = ("missing_day", "replaced_file", "duplicate_csv", "truncated_zip")


class FaultyFiles:
    """The faults of a bucket: those that are asked for here, and those of the scenario that it is served with."""

    def __init__(self) -> None:
        self._course = Course(Scenario())
        self._of_scenario: list[Numbered] = []
        self._own: list[Numbered] = []
        self._made = 0
        self._asked: Counter[tuple[int, str]] = Counter()
        self._done: Counter[tuple[int, str]] = Counter()

    def join(self, course: Course) -> None:
        """From now on the scenario's faults are at work too, and its clock counts."""
        self._course, self._of_scenario = course, course.of(*ON_THE_WAY, *SUM, *CONTENT)

    def add(self, kind: str, pattern: str, **settings: Any) -> Fault:
        """One more fault; its seconds count from now. Raises `ConfigError`."""
        at_s = max(0.0, self._course.now_s) + settings.pop("at_s", 0.0)
        fault = Fault(kind=kind, paths=(pattern,), at_s=at_s, **settings)
        self._made += 1
        self._own.append(Numbered(MOST_FAULTS + self._made, fault))
        return fault

    def remove(self, fault: Fault) -> None:
        """It is over."""
        self._own = [each for each in self._own if each.fault is not fault]

    def met(self, kind: str, key: str) -> Fault | None:
        """What of a kind happens to this request, as it does now; each request draws anew."""
        for each in self._at_work(key, (kind,)):
            self._asked[each.number, key] += 1
            if self._course.draw(each.number, key, self._asked[each.number, key]) < each.fault.share:
                self.note(each, key)
                return each.fault
        return None

    def of_sum(self, path: str) -> list[Numbered]:
        """What is wrong with a file's sum; a share is one of the files, the same ones for ever."""
        return [each for each in self._at_work(path + CHECKSUM, SUM) if self._is_drawn(each, path)]

    def of_content(self, path: str) -> list[Numbered]:
        """What is wrong inside a file; shares as above."""
        return [each for each in self._at_work(path, CONTENT) if self._is_drawn(each, path)]

    def note(self, each: Numbered, key: str) -> None:
        """It was done to a request."""
        self._done[each.number, key] += 1
        self._course.note(each, key)

    def variant(self, found: list[Numbered], path: str, days: list[date]) -> Variant:
        """What these faults make of a file about these days."""
        kinds = {each.fault.kind: each for each in found}
        gone, row, cut = kinds.get("missing_day"), kinds.get("replaced_file"), kinds.get("truncated_zip")
        return Variant(
            without=self._missing_days(gone, path, days) if gone else (),
            row=str(row.fault.form) if row else "",
            has_copy="duplicate_csv" in kinds,
            is_truncated=cut is not None,
            is_summed=cut is None or cut.fault.form == "summed",
        )

    def _missing_days(self, each: Numbered, path: str, days: list[date]) -> tuple[date, ...]:
        """Those that the fault names, or one that is drawn where there are several."""
        if each.fault.days or len(days) <= 1:
            return each.fault.days
        return (days[int(self._course.draw(each.number, path, "day") * len(days))],)

    def _at_work(self, key: str, kinds: tuple[str, ...]) -> list[Numbered]:
        faults = [each for kind in kinds for each in (*self._of_scenario, *self._own) if each.fault.kind == kind]
        return [
            each for each in self._course.in_force(faults) if _concerns(each.fault, key) and self._is_left(each, key)
        ]

    def _is_left(self, each: Numbered, key: str) -> bool:
        return each.fault.times is None or self._done[each.number, key] < each.fault.times

    def _is_drawn(self, each: Numbered, path: str) -> bool:
        return self._course.draw(each.number, path) < each.fault.share


def _concerns(fault: Fault, key: str) -> bool:
    """Is this archive or sum meant? What may befall an archive alone is also asked for by the archive's name."""
    path = key.removesuffix(CHECKSUM)
    names = (key,) if fault.kind in ON_THE_WAY else (key, path)
    if fault.paths and not any(fnmatchcase(name, pattern) for name in names for pattern in fault.paths):
        return False
    file = file_at(path)
    if fault.kind == "missing_day" and (file is None or file.period != "monthly"):
        return False
    return fault.venue is None or (file is not None and file.venue == fault.venue)
