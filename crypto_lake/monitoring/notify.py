"""The word to systemd: ready, alive, stopping (sd_notify); without systemd every call does nothing.

`config.py` is our only reader of the environment; the variables read here are not settings but the address at which
systemd listens, handed to this very process, and nobody sets them by hand.
"""

import os
import socket

# systemd reads all the time; should its queue be full, we wait for so long and go on recording.
PATIENCE_S = 1.0


def ready(text: str) -> bool:
    """The start is over; the text is what `systemctl status` shows. Like all here: True when it was sent."""
    return _send("READY=1", _status(text))


def status(text: str) -> bool:
    """A new line for `systemctl status`."""
    return _send(_status(text))


def alive() -> bool:
    """Feeds the watchdog. Call it only after looking that there is progress, or it proves nothing."""
    return _send("WATCHDOG=1")


def stopping() -> bool:
    """A clean stop begins."""
    return _send("STOPPING=1")


def watchdog_interval_s() -> float | None:
    """How often `alive()` should be called: half of what systemd allows; None when there is no watchdog."""
    allowed_us, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID")
    # Inherited from a parent, the variables are meant for the parent.
    if not allowed_us.isdecimal() or int(allowed_us) == 0 or pid not in (None, str(os.getpid())):
        return None
    return int(allowed_us) / 2 / 1_000_000


def _status(text: str) -> str:
    # One line: what follows a newline would be a command of its own.
    return f"STATUS={' '.join(text.split())}"


def _send(*lines: str) -> bool:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):  # an abstract name, without a file
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(PATIENCE_S)
            sender.sendto("\n".join(lines).encode(errors="replace"), address)
    except OSError:
        return False  # a deaf systemd is no reason to stop recording
    return True
