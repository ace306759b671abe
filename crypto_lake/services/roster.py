"""What the table `symbol` said last, on disk: for a start at which it cannot be read.

A recorder reads it here and hears it from whoever drains, and so needs no table library itself.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from crypto_lake.models.symbol import Named

Roster = Mapping[str, Named]

FILE: Final = "symbols.json"


def keep(journals: Path, roster: Roster) -> None:
    """Notes beside the journals what the table says, for a start at which it cannot be read."""
    fresh = journals / f"{FILE}.new"
    with contextlib.suppress(OSError):  # a full disk is told by the journals
        fresh.write_bytes(msgspec.json.encode(roster))
        fresh.rename(journals / FILE)


def kept(journals: Path) -> Roster:
    """What was noted last; nothing if nothing was."""
    try:
        return msgspec.json.decode((journals / FILE).read_bytes(), type=dict[str, Named])
    except (OSError, msgspec.DecodeError):
        return {}
