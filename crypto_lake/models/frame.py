"""What arrives, as it is: the kinds of records, and a batch of them."""

from dataclasses import dataclass, field
from typing import Final

FRAME: Final = 1  # one message of a WebSocket
RESPONSE: Final = 2  # the body of an answer to a request
OPENED: Final = 3  # a connection was opened; the payload says which streams it carries
CLOSED: Final = 4  # a connection ended; the payload says why


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
