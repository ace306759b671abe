"""Feeds: which streams of which dataset come over which address, and what is known of each."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from zlib import crc32

from crypto_lake.config import FUTURES, SPOT, Settings
from crypto_lake.connections.websocket import combined
from crypto_lake.models import Dataset
from crypto_lake.models.frame import OTHERS
from crypto_lake.services.markets import Wanted

# The venue's own default speeds have no name of their own in a stream's name.
DEFAULT_SPEEDS: Final = {FUTURES: "250ms"}
SPOT_DEFAULT_SPEED: Final = "1000ms"


@dataclass(slots=True)
class Feed:
    """Streams of one dataset and venue that one address carries, and what is known of them.

    `symbols` is what each stream carries, as the venue writes it; `pulse` is how the messages of a pulse begin.
    """

    dataset: Dataset
    venue: str
    url: str
    streams: tuple[str, ...]
    name: str
    symbols: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pulse: bytes = b""
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

    @property
    def is_busy(self) -> bool:
        """Whether silence on it means that it is dead."""
        assert self.dataset.live is not None
        return self.dataset.live.is_busy or bool(self.pulse)

    @property
    def origin(self) -> bytes:
        """Its name in the journal: the same after a restart, unless other streams are wanted then."""
        streams = crc32("/".join(self.streams).encode())
        return f"{self.venue} {self.name.replace(f' {self.venue}', '')} {streams:08x}".encode()

    @property
    def origins(self) -> bytes:
        """How the names of all feeds of its dataset and venue begin in the journal, whatever streams they carry."""
        return f"{self.venue} {self.dataset.name} ".encode()


def plan(datasets: Iterable[Dataset], markets: Mapping[str, Wanted], settings: Settings) -> list[Feed]:
    """The feeds that carry the datasets' streams of the wanted symbols."""
    return [
        feed
        for dataset in datasets
        if dataset.live
        for venue, wanted in markets.items()
        if venue in dataset.live.streams
        for feed in _feeds(dataset, wanted, settings)
    ]


def _feeds(dataset: Dataset, wanted: Wanted, settings: Settings) -> list[Feed]:
    assert dataset.live is not None
    stream = dataset.live.streams[wanted.venue]
    symbols: dict[str, tuple[str, ...]] = {
        _stream_name(stream.name, symbol, wanted.venue, settings.depth_speed): (symbol,) for symbol in wanted.symbols
    }
    if wanted.every and stream.every:
        symbols = {stream.every: (*wanted.symbols, OTHERS)}
    pulse = _pulse(dataset, wanted)
    addresses = combined(
        settings.ws_address(wanted.venue), stream.route, symbols, also=pulse, in_microseconds=wanted.venue == SPOT
    )
    return [
        Feed(
            dataset,
            wanted.venue,
            address.url,
            address.streams,
            f"{dataset.name} {wanted.venue} {number}",
            symbols={name: symbols[name] for name in address.streams if name in symbols},
            pulse=f'{{"stream":"{pulse}"'.encode() if pulse else b"",
            wanted=settings.redundancy,
        )
        for number, address in enumerate(addresses)
    ]


def _stream_name(template: str, symbol: str, venue: str, speed: str) -> str:
    if speed == DEFAULT_SPEEDS.get(venue, SPOT_DEFAULT_SPEED):
        template = template.replace("@{speed}", "")
    return template.format(symbol=symbol.lower(), speed=speed)


def _pulse(dataset: Dataset, wanted: Wanted) -> str:
    assert dataset.live is not None
    if not dataset.live.pulse or wanted.venue != FUTURES or not wanted.symbols:
        return ""
    return dataset.live.pulse.format(symbol=wanted.symbols[0].lower())
