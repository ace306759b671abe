"""What arrives, as it is: the kinds of records, and a batch of them."""

from dataclasses import dataclass, field
from typing import Final

from msgspec import DecodeError, Struct

# What reading bytes that are no message of a type may raise.
UNDECODABLE: Final = (DecodeError, UnicodeDecodeError, RecursionError)

FRAME: Final = 1  # one message of a WebSocket
RESPONSE: Final = 2  # the body of an answer to a request
OPENED: Final = 3  # a connection was opened; the payload says which streams it carries
CLOSED: Final = 4  # a connection ended; the payload says why
LAPSE: Final = 5  # a time in which nothing was delivered; the payload is a `Lapse`
ALIVE: Final = 6  # nothing came, but a connection was there to hear it until the record's time


# Which symbols come by the record's origin from here on, and by no other of its venue; the payload is their list in
# JSON. What is not named in any was not collected: that it did not come is no hole.
CARRIES: Final = 7


# In a lapse it stands for the symbols that the all-market streams carry beside the listed ones: those of COIN-M.
OTHERS: Final = "*"


# As the payload of an ALIVE record: until the next one without it, what comes by its origin proves no delivery.
DOUBT: Final = b"?"


class Lapse(Struct):
    """A time in which nobody delivered these symbols' streams of a dataset, as whoever listened saw it.

    The payload of a LAPSE record, in JSON. It says all by itself: whoever reads it needs no record before it.
    """

    symbols: list[str]
    # disconnect (no connection), silence (connected and mute), restart (no recorder) or overload (shed by us).
    reason: str
    # Our clock, microseconds since 1970. No begin: since the last row that the table holds, if it holds any. A lapse of
    # no length only ends what lasts: from there on nobody wants these symbols.
    from_us: int | None
    # No end: it lasts. The next lapse of a symbol that has an end ends this one too.
    to_us: int | None
    # Messages that came and were not written (overload).
    shed: int = 0


@dataclass(slots=True)
class Records:
    """Records in the order they were written, as parallel lists: a batch is decoded column by column.

    `damaged` has `(position, bytes)` of every stretch between two good records that is none.
    `end` is the position behind the last record: where the next read begins.
    """

    end: int
    kinds: list[int] = field(default_factory=list)
    origins: list[bytes] = field(default_factory=list)
    received_us: list[int] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    damaged: list[tuple[int, bytes]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.kinds)

    def __bool__(self) -> bool:
        return bool(self.kinds or self.damaged)
