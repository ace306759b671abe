"""A build as a process that is killed at a moment that can be seen: so many new files of a kind are there."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

# How often the files are looked at, and how long a build may take.
LOOK_EVERY_S: Final = 0.001
KILL_AFTER_S: Final = 120


def killed(root: Path, words: tuple[str, ...], pattern: str, count: int) -> bool:
    """Whether `crypto-lake build WORDS` was killed as soon as so many new files of that pattern were under the root;
    else it was faster."""
    known = set(root.glob(pattern))
    process = subprocess.Popen(
        [sys.executable, "-m", "crypto_lake", "build", *words, "--root", str(root)],
        env={name: value for name, value in os.environ.items() if not name.startswith("LAKE_")},
        cwd=root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    end = os.pidfd_open(process.pid)
    try:
        while len(set(root.glob(pattern)) - known) < count:
            if select.select([end], [], [], LOOK_EVERY_S)[0]:
                break
        else:
            signal.pidfd_send_signal(end, signal.SIGKILL)
        _, errors = process.communicate(timeout=KILL_AFTER_S)
    finally:
        os.close(end)
    assert process.returncode in (0, -signal.SIGKILL), errors.decode()
    return process.returncode != 0
