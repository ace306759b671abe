"""Interpreters with libraries that do not belong into ours: each in a virtual environment of its own under .bench/."""

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PLACE: Final = ROOT / ".bench"
# Long enough for the largest of them over a slow line.
MAKING_S: Final = 600


class NotMade(Exception):
    """The environment cannot be made here; the message says why."""


def python_with(name: str, *requirements: str) -> Path:
    """The interpreter of the environment .bench/`name`, which has `requirements` (as pip writes them).

    It is made by uv when it is not there or has others, and kept. Raises `NotMade`.
    """
    home = PLACE / name
    stamp, python = home / "requirements.txt", home / "bin" / "python"
    wanted = "\n".join([sys.version, *requirements])
    with _alone(name):
        if not (python.exists() and stamp.exists() and stamp.read_text() == wanted):
            # Never cleared in place: what is half made has no stamp.
            shutil.rmtree(home, ignore_errors=True)
            _uv("venv", "--python", sys.executable, str(home))
            _uv("pip", "install", "--python", str(python), *requirements)
            stamp.write_text(wanted)
    return python


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Two that want the same environment make it once."""
    PLACE.mkdir(exist_ok=True)
    with (PLACE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _uv(*words: str) -> None:
    uv = shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")
    try:
        subprocess.run([uv, "--quiet", *words], check=True, capture_output=True, text=True, timeout=MAKING_S)
    except FileNotFoundError:
        raise NotMade("there is no uv: make setup") from None
    except subprocess.TimeoutExpired:
        raise NotMade(f"uv {words[0]} took more than {MAKING_S} s") from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip() or "nothing was said").splitlines()[-1]
        raise NotMade(f"uv {words[0]} failed: {said}") from None
