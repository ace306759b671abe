"""A look at the table `symbol`, every so often, by whoever writes tables anyway."""

import time

from crypto_lake.models.symbol import SYMBOL_TABLE, Named
from crypto_lake.query.source import find
from crypto_lake.query.symbols import named, newest
from crypto_lake.writers.delta import STORE_ERRORS


class Look:
    """What the table under a root says, looked at every so often."""

    def __init__(self, root: str, *, every_s: float) -> None:
        self.every_s = every_s
        self._root = root
        self._version: int | None = None
        self._due_s = 0.0

    def now(self) -> dict[str, Named] | None:
        """All it says; nothing where there is no such table; None when it cannot be read."""
        try:
            source = find(self._root, SYMBOL_TABLE)
            found = named(newest(source))
        except STORE_ERRORS:
            return None
        self._version = source.table.version() if source and source.table else None
        return found

    def again(self) -> dict[str, Named] | None:
        """The same if it is time and the table has changed, else None.

        A table that is gone says nothing new: a disk that is not there must not end what is recorded.
        """
        if time.monotonic() < self._due_s:
            return None
        self._due_s = time.monotonic() + self.every_s
        try:
            source = find(self._root, SYMBOL_TABLE)
            if source is None or source.table is None or source.table.version() == self._version:
                return None
            found = named(newest(source))
        except STORE_ERRORS:
            return None
        self._version = source.table.version()
        return found
