"""Feeds: which streams of which dataset come over which address, and what is known of each."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from zlib import crc32

from crypto_lake.config import FUTURES, SPOT, Settings
from crypto_lake.connections.websocket import Address, combined
from crypto_lake.models import Dataset
from crypto_lake.models.frame import OTHERS
from crypto_lake.services.markets import Wanted

# The venue's own default speeds have no name of their own in a stream's name.
DEFAULT_SPEEDS: Final = {FUTURES: "250ms"}
SPOT_DEFAULT_SPEED: Final = "1000ms"

Symbols = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Carries:
    """What the connections of a feed are to deliver, and by which address.

    `symbols` is what each stream carries, as the venue writes it; `pulse` is how the messages of a pulse begin.
    `left_out` are symbols that come by a stream of all symbols, and that nobody wants.
    """

    url: str = ""
    streams: tuple[str, ...] = ()
    symbols: Symbols = field(default_factory=dict)
    pulse: bytes = b""
    left_out: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The symbols, each once."""
        return list(dict.fromkeys(name for names in self.symbols.values() for name in names))


@dataclass(slots=True, eq=False)
class Feed:
    """Streams of one dataset and venue that one address carries, and what is known of them.

    What it `carries` may change while it is kept: then set `changed`.
    """

    dataset: Dataset
    venue: str
    carries: Carries
    name: str
    frames: int = 0
    size_bytes: int = 0
    repeats: int = 0
    shed: int = 0
    lapses: int = 0
    silent: tuple[str, ...] = ()
    is_shedding: bool = False
    heard_us: int = 0
    wanted: int = 1
    open: int = 0
    delivering: int = 0
    opened: int = 0
    trouble: str = ""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    # Its name in the journal as long as it is kept: the same after a restart, unless other streams are wanted then.
    origin: bytes = field(init=False)

    def __post_init__(self) -> None:
        streams = crc32("/".join(self.streams).encode())
        self.origin = f"{self.venue} {self.name.replace(f' {self.venue}', '')} {streams:08x}".encode()

    @property
    def url(self) -> str:
        """Where its next connection goes."""
        return self.carries.url

    @property
    def streams(self) -> tuple[str, ...]:
        """What that one asks for."""
        return self.carries.streams

    @property
    def symbols(self) -> Symbols:
        """What each of these carries."""
        return self.carries.symbols

    @property
    def is_busy(self) -> bool:
        """Whether silence on it means that it is dead."""
        assert self.dataset.live is not None
        return self.dataset.live.is_busy or bool(self.carries.pulse)

    @property
    def origins(self) -> bytes:
        """How the names of all feeds of its dataset and venue begin in the journal, whatever streams they carry."""
        return f"{self.venue} {self.dataset.name} ".encode()


def plan(datasets: Iterable[Dataset], markets: Mapping[str, Wanted], settings: Settings) -> list[Feed]:
    """The feeds that carry the datasets' streams of the wanted symbols."""
    return replan((), datasets, markets, settings)


def replan(
    feeds: Sequence[Feed], datasets: Iterable[Dataset], markets: Mapping[str, Wanted], settings: Settings
) -> list[Feed]:
    """Tells the feeds what is wanted of them now, and returns further ones for what they have no room for.

    A stream that is wanted as before stays where it is; a feed none of whose streams is wanted carries nothing.
    """
    fresh = []
    for dataset in datasets:
        for venue in dataset.live.streams if dataset.live else ():
            of_both = [feed for feed in feeds if feed.dataset is dataset and feed.venue == venue]
            fresh += _replanned(of_both, dataset, markets.get(venue, Wanted(venue, ())), settings)
    return fresh


def _replanned(feeds: Sequence[Feed], dataset: Dataset, wanted: Wanted, settings: Settings) -> list[Feed]:
    symbols = _streams(dataset, wanted, settings)
    held = {name for feed in feeds for name in feed.symbols}
    new = [name for name in symbols if name not in held]
    for feed in feeds:
        kept = [name for name in feed.symbols if name in symbols]
        # Who carries nothing any more is on its way to its end.
        first, *_ = _addresses(dataset, wanted, [*kept, *new], settings) if kept else [Address("", ())]
        new = [name for name in new if name not in first.streams]
        carries = _carries(dataset, wanted, first, symbols)
        if carries != feed.carries:
            feed.carries = carries
            feed.changed.set()
    number = max((int(feed.name.rpartition(" ")[2]) + 1 for feed in feeds), default=0)
    return [
        Feed(
            dataset,
            wanted.venue,
            _carries(dataset, wanted, address, symbols),
            f"{dataset.name} {wanted.venue} {number + place}",
            wanted=settings.redundancy,
        )
        for place, address in enumerate(_addresses(dataset, wanted, new, settings))
    ]


def _streams(dataset: Dataset, wanted: Wanted, settings: Settings) -> Symbols:
    """The names of the streams wanted, each with its symbols."""
    assert dataset.live is not None
    stream = dataset.live.streams[wanted.venue]
    if wanted.every and stream.every:
        return {stream.every: (*wanted.symbols, OTHERS)}
    return {
        _stream_name(stream.name, symbol, wanted.venue, settings.depth_speed): (symbol,) for symbol in wanted.symbols
    }


def _addresses(dataset: Dataset, wanted: Wanted, streams: Sequence[str], settings: Settings) -> list[Address]:
    assert dataset.live is not None
    route, pulse = dataset.live.streams[wanted.venue].route, _pulse(dataset, wanted)
    address = settings.ws_address(wanted.venue)
    return combined(address, route, streams, also=pulse, in_microseconds=wanted.venue == SPOT)


def _carries(dataset: Dataset, wanted: Wanted, address: Address, symbols: Symbols) -> Carries:
    carried = {name: symbols[name] for name in address.streams if name in symbols}
    pulse = _pulse(dataset, wanted) if carried else ""
    return Carries(
        address.url,
        address.streams,
        carried,
        f'{{"stream":"{pulse}"'.encode() if pulse else b"",
        wanted.removed if any(OTHERS in names for names in carried.values()) else (),
    )


def _stream_name(template: str, symbol: str, venue: str, speed: str) -> str:
    if speed == DEFAULT_SPEEDS.get(venue, SPOT_DEFAULT_SPEED):
        template = template.replace("@{speed}", "")
    return template.format(symbol=symbol.lower(), speed=speed)


def _pulse(dataset: Dataset, wanted: Wanted) -> str:
    assert dataset.live is not None
    if not dataset.live.pulse or wanted.venue != FUTURES or not wanted.symbols:
        return ""
    return dataset.live.pulse.format(symbol=wanted.symbols[0].lower())
