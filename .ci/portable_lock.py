"""Writes a uv.lock (stdin) in its portable form (stdout): pinned versions, and no word of the index they came from.

`uv sync` completes the portable form again from the user's own index and keeps the versions. As a git clean filter
this runs at every `git add`, so what it prints must be the same when it is fed its own output.
"""

import re
import sys
from collections.abc import Iterable, Iterator

DROPPED_BLOCKS = ("sdist = ", "wheels = [")


def portable(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a lock file without archives, their addresses, and the root package's metadata."""
    in_archives = in_metadata = False
    for line in lines:
        if in_archives:
            in_archives = line.rstrip() != "]"
            continue
        if line.startswith("["):
            in_metadata = line.startswith("[package.metadata")
        if in_metadata:
            continue
        if line.startswith(DROPPED_BLOCKS):
            in_archives = line.rstrip().endswith("[")
            continue
        yield re.sub(r'source = \{ registry = "[^"]*" \}', 'source = { registry = "index" }', line)


def squeeze(lines: Iterable[str]) -> Iterator[str]:
    """Not more than one empty line after another, and none at the end."""
    empty = False
    for line in lines:
        if line.strip():
            yield "\n" + line if empty else line
            empty = False
        else:
            empty = True


if __name__ == "__main__":
    sys.stdout.writelines(squeeze(portable(sys.stdin)))
