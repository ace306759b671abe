"""Scenarios: a seed and a list of faults, written in a small TOML file or as values; nothing here does anything."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Final

import msgspec

from crypto_lake.config import FUTURES, SPOT, ConfigError, nearest
from crypto_lake.simulator.rest import CHART, ENDPOINTS, YAHOO
from crypto_lake.simulator.streams import STREAM_KINDS

# A little more than the 32 MiB that our own client takes; most others take 1 to 20.
OVERSIZED_BYTES: Final = 33 * 2**20
LARGEST_BYTES: Final = 60 * 2**20  # the simulator cuts off who has 64 MiB to read
MOST_FAULTS: Final = 1_000
FORMS: Final = {
    "corrupted": ("bytes", "short"),
    "format_change": ("renamed", "types"),
    "truncated_zip": ("summed", "unsummed"),
    "replaced_file": ("row_changed", "row_less"),
}

_MOMENT, _WINDOW = ("every_s",), ("for_s", "every_s")
_CONNECTIONS = ("share", "streams", "symbols")
_FRAMES = (*_CONNECTIONS, "everywhere")
_ANSWERS = ("share", "endpoints", "symbols")
_FILES = ("share", "paths", "times")


@dataclass(frozen=True)
class Kind:
    """What a kind of fault may be told, and what it is when it is not told."""

    takes: tuple[str, ...]
    needs: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)


KINDS: Final = {
    "cut": Kind((*_MOMENT, *_CONNECTIONS)),
    "half_open": Kind((*_MOMENT, *_CONNECTIONS)),
    "mute": Kind((*_WINDOW, "share")),
    "silent_stream": Kind((*_WINDOW, *_FRAMES)),
    "lost": Kind((*_WINDOW, *_FRAMES)),
    "repeated": Kind((*_WINDOW, *_FRAMES)),
    "reordered": Kind((*_WINDOW, *_FRAMES, "delay_s", "behind"), defaults={"delay_s": 0.2, "behind": 3}),
    "corrupted": Kind((*_WINDOW, *_FRAMES, "form")),
    "oversized": Kind((*_MOMENT, *_FRAMES, "size_bytes"), defaults={"size_bytes": OVERSIZED_BYTES}),
    "format_change": Kind((*_WINDOW, *_CONNECTIONS, "form"), defaults={"form": "renamed"}),
    "new_fields": Kind(_WINDOW),
    "clock_skew": Kind(("for_s", "skew_s"), ("skew_s",)),
    "delisted": Kind(("symbols",), ("symbols",)),
    "life": Kind(("for_s", "share", "life_s"), ("life_s",)),
    "shutdown": Kind((*_WINDOW, "delay_s"), defaults={"delay_s": 1.0, "for_s": 5.0}),
    "refused": Kind((*_WINDOW, "share", "status", "retry_after_s"), defaults={"status": 503}),
    "stale_snapshot": Kind((*_WINDOW, "share", "symbols", "age_s"), defaults={"age_s": 5.0}),
    "too_many": Kind((*_WINDOW, *_ANSWERS, "retry_after_s"), defaults={"retry_after_s": 10.0}),
    "banned": Kind((*_WINDOW, *_ANSWERS, "retry_after_s"), defaults={"retry_after_s": 120.0}),
    "restricted": Kind((*_WINDOW, *_ANSWERS)),
    "html": Kind((*_WINDOW, *_ANSWERS, "status"), defaults={"status": 200}),
    "slow": Kind((*_WINDOW, *_ANSWERS, "delay_s"), ("delay_s",)),
    "unavailable": Kind((*_WINDOW, *_FILES, "status", "retry_after_s"), defaults={"status": 503}),
    "slow_download": Kind((*_WINDOW, *_FILES, "bytes_per_s"), ("bytes_per_s",)),
    "cut_download": Kind((*_WINDOW, *_FILES, "after_bytes"), ("after_bytes",)),
    "wrong_checksum": Kind((*_WINDOW, *_FILES)),
    "truncated_zip": Kind((*_WINDOW, *_FILES, "form"), defaults={"form": "summed"}),
    "duplicate_csv": Kind((*_WINDOW, *_FILES)),
    "replaced_file": Kind((*_WINDOW, *_FILES, "form"), defaults={"form": "row_changed"}),
    "missing_day": Kind((*_WINDOW, *_FILES, "days")),
}

_EVERY_KIND_TAKES: Final = ("kind", "at_s", "venue")
_RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "at_s": (0, 1e9),
    "for_s": (0.001, 1e9),
    "every_s": (0.01, 1e9),
    "share": (0, 1),
    "delay_s": (0, 3600),
    "behind": (1, 100),
    "size_bytes": (1, LARGEST_BYTES),
    "skew_s": (-86_400, 86_400),
    "life_s": (0.1, 1e9),
    "status": (200, 999),  # 999 is how Yahoo says that it was asked too often
    "retry_after_s": (0, 1e6),
    "age_s": (0.1, 600),
    "times": (1, 1e9),
    "bytes_per_s": (1, 1e12),
    "after_bytes": (1, 1e12),
}
_WORDS: Final[Mapping[str, tuple[str, ...]]] = {
    "streams": STREAM_KINDS,
    "endpoints": tuple(sorted({each.name for each in (*ENDPOINTS.values(), CHART)})),
    "venue": (FUTURES, SPOT, YAHOO),
}


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that goes wrong; seconds count from the moment at which the simulator is first served.

    Empty `streams`, `symbols`, `endpoints` and `paths` and no `venue` mean all. `share` is drawn among connections
    (cut, half_open, oversized, silent_stream, mute, life, refused), frames, REST answers, official files or requests
    for these, by kind. Without `for_s` what lasts goes on for ever (a shutdown: 5 s). `times` counts the requests for
    each file that matches `paths` (`*aggTrades*2026-03-04.zip`), its sum apart from its archive.
    Raises `ConfigError` with a sentence on what would be right.
    """

    kind: str
    at_s: float = 0.0
    for_s: float | None = None
    every_s: float | None = None
    share: float = 1.0
    streams: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    venue: str | None = None
    everywhere: bool = False
    delay_s: float | None = None
    behind: int | None = None
    form: str | None = None
    size_bytes: int | None = None
    skew_s: float | None = None
    life_s: float | None = None
    status: int | None = None
    retry_after_s: float | None = None
    age_s: float | None = None
    paths: tuple[str, ...] = ()
    times: int | None = None
    bytes_per_s: int | None = None
    after_bytes: int | None = None
    days: tuple[date, ...] = ()

    def __post_init__(self) -> None:
        _check(self)
        for name, value in KINDS[self.kind].defaults.items():
            if getattr(self, name) is None:
                msgspec.structs.force_setattr(self, name, value)
        _check_sense(self)

    @property
    def what(self) -> Kind:
        """Its kind's rules."""
        return KINDS[self.kind]

    def occurrence(self, now_s: float) -> int | None:
        """The number, from 0, of the window that an instant is in; None outside. `at_s` is in, the end is not."""
        since_s = now_s - self.at_s
        if since_s < 0:
            return None
        number = int(since_s // self.every_s) if self.every_s else 0
        if self.for_s is not None and since_s - number * (self.every_s or 0) >= self.for_s:
            return None
        return number

    def begins_s(self, number: int) -> float:
        """When an occurrence begins."""
        return self.at_s + number * (self.every_s or 0)

    def concerns(self, venue: str, symbol: str, stream_kind: str = "") -> bool:
        """Is this venue, symbol and kind of stream meant? For REST the kind is left out."""
        return (
            self.venue in (None, venue)
            and (not self.symbols or symbol in self.symbols)
            and (not self.streams or stream_kind in self.streams)
        )


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """Faults, and the seed of everything that is drawn for them: the same seed draws the same."""

    faults: tuple[Fault, ...] = ()
    seed: int = 1


def read_scenario(path: Path, *, seed: int | None = None) -> Scenario:
    """The scenario in a TOML file; `seed` overrides the file's. Raises `ConfigError` with one sentence."""
    try:
        tables = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no TOML file: {error}") from None
    unknown = sorted(tables.keys() - {"seed", "fault"})
    if unknown:
        raise ConfigError(f"{path}: {unknown[0]}: a scenario has a seed and [[fault]] tables, nothing else")
    faults = tables.get("fault", [])
    if not isinstance(faults, list) or len(faults) > MOST_FAULTS:
        raise ConfigError(f"{path}: fault: write [[fault]], with two brackets, at most {MOST_FAULTS} times")
    own_seed = tables.get("seed", 1)
    if not isinstance(own_seed, int) or isinstance(own_seed, bool):
        raise ConfigError(f"{path}: seed = {own_seed!r}: must be a whole number")
    made = tuple(_fault(table, f"{path}: fault {number}") for number, table in enumerate(faults, 1))
    return Scenario(faults=made, seed=own_seed if seed is None else seed)


def _fault(table: object, place: str) -> Fault:
    try:
        if not isinstance(table, dict):
            raise ConfigError("write it as a [[fault]] table")
        _check_names(table)
        return msgspec.convert(table, Fault)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None
    except msgspec.ValidationError as error:
        words, _, where = str(error).partition(" - at `$.")
        raise ConfigError(f"{place}: {where.rstrip('`') or 'this fault'}: {words[0].lower()}{words[1:]}") from None


def _check_names(table: Mapping[str, object]) -> None:
    kind = table.get("kind")
    if not isinstance(kind, str):
        raise ConfigError(f'kind: say what goes wrong, such as kind = "cut"{_all(KINDS)}')
    if kind not in KINDS:
        raise ConfigError(f"kind = {kind!r}: there is no such kind" + (nearest(kind, KINDS) or _all(KINDS)))
    takes = (*_EVERY_KIND_TAKES, *KINDS[kind].takes)
    for name in table:
        if name not in takes:
            raise ConfigError(f"{name}: {kind} takes no such thing{nearest(name, takes) or _all(takes)}")


def _all(words: Iterable[str]) -> str:
    return f"; there are {', '.join(words)}"


def _check(fault: Fault) -> None:
    """Also for faults that were made as values."""
    given = {
        each.name: value
        for each in msgspec.structs.fields(Fault)
        if (value := getattr(fault, each.name)) != each.default
    }
    _check_names(given)
    for name in fault.what.needs:
        if name not in given:
            raise ConfigError(f"{name}: {fault.kind} needs it")
    _check_values(given)


def _check_values(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in _RANGES and not _RANGES[name][0] <= value <= _RANGES[name][1]:
            least, most = _RANGES[name]
            raise ConfigError(f"{name} = {value:g}: must be from {least:g} to {most:g}")
        for word in (value,) if isinstance(value, str) else value if isinstance(value, tuple) else ():
            if name in _WORDS and word not in _WORDS[name]:
                raise ConfigError(f"{name}: {word!r} is none{nearest(word, _WORDS[name]) or _all(_WORDS[name])}")


def _check_sense(fault: Fault) -> None:
    """What fits only in itself."""
    if fault.form is not None and fault.form not in FORMS[fault.kind]:
        raise ConfigError(f"form = {fault.form!r}: {fault.kind} has {' and '.join(FORMS[fault.kind])}")
    if fault.kind == "silent_stream" and fault.everywhere and fault.for_s is None:
        raise ConfigError("for_s: a stream that is silent everywhere must say for how long; delisted is for ever")
    if fault.every_s and fault.for_s and fault.for_s >= fault.every_s:
        raise ConfigError(f"for_s = {fault.for_s:g}: must be less than every_s = {fault.every_s:g}")
    if fault.kind in ("refused", "unavailable") and fault.status is not None and fault.status < 400:
        raise ConfigError(f"status = {fault.status}: a refusal is 400 to 599, such as 429, 451 or 503")
    if fault.kind == "delisted" and not fault.symbols:
        raise ConfigError('symbols: say which, such as symbols = ["BTCUSDT"]')
