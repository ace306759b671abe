"""Locks between processes: the kernel lets go of them when their holder dies, however it dies."""

import fcntl
import os
import time
from pathlib import Path

from crypto_lake.config import ConfigError

LOOK_EVERY_S = 0.05


def take(path: Path, *, busy: str, patience_s: float = 0.0) -> int:
    """Takes the lock in the file `path` and returns its descriptor; closing that lets go.

    Raises `ConfigError` with the sentence `busy` when another process holds it for longer than `patience_s`, and
    `OSError` when the file cannot be made.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    patient_until = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() >= patient_until:
                os.close(lock)
                raise ConfigError(busy) from None
            time.sleep(LOOK_EVERY_S)
