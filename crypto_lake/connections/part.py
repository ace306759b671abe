"""A download that outlives its process: what has come of a file, what file that is of, and when it is whole."""

import asyncio
import fcntl
import hashlib
import os
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import msgspec

from crypto_lake.config import ConfigError
from crypto_lake.connections.patience import AgainError
from crypto_lake.monitoring import metrics

OPENINGS = 3
LOOK_EVERY_S = 1.0

Hear = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file as it was downloaded: `size` in bytes, `sha256` in lower case; the rest as the server said, None = not."""

    path: Path
    sha256: str
    size: int
    etag: str | None
    last_modified: datetime | None


class Said(msgspec.Struct, frozen=True):
    """What the server said of a file: its length in bytes, and two headers as they were."""

    size: int | None = None
    etag: str | None = None
    last_modified: str | None = None

    @property
    def validator(self) -> str | None:
        """What proves that two parts are of the same file; a weak ETag does not."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified

    def of(self, path: Path, sha256: str, size: int) -> Fetched:
        """The file that this was said of."""
        return Fetched(path, sha256, size, self.etag, _instant(self.last_modified))


class Part:
    """A download that is ours alone: `target`.part under a lock, its hash so far, and what was said of it."""

    def __init__(self, target: Path, on_bytes: Hear, on_size: Hear) -> None:
        self._target, self._path = target, _beside(target, ".part")
        self._on_bytes, self._on_size = on_bytes, on_size
        self._file = self._path.open("ab", buffering=0)
        self._hash, self._size = hashlib.sha256(), 0
        self.said = Said()

    def lock(self) -> bool:
        """Whether it is ours; the kernel lets go of the lock when its holder dies, however it dies."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            return False
        # Whoever had it may just have given the file its final name, or removed it.
        if self._is_there() and not self._target.exists():
            return True
        self.close()
        return False

    def held(self) -> int:
        """How many bytes of the file we have."""
        return self._size

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing, as far as is known."""
        return self._size > 0 and self._size == self.said.size

    async def resume(self) -> None:
        """Take up what an earlier run has left, if it is known what file that is of."""
        with disk(self._path):
            left, said = self._on_disk(), _kept(self._target)
        if left and said and (said.size is None or left <= said.size):
            with disk(self._path):
                self._hash = await asyncio.to_thread(_hash_of, self._path)
            self._become(said)
            self._moved(left)
        else:
            self.begin(None)

    def rest(self) -> dict[str, str]:
        """The headers that ask for the rest of the same file; none when all of it is to come."""
        if not self._size or (validator := self.said.validator) is None:
            return {}
        return {"Range": f"bytes={self._size}-", "If-Range": validator}

    def begin(self, said: Said | None) -> None:
        """From the beginning, with a file of which this was said; None = it is not known which."""
        with disk(self._path):
            if self._on_disk():
                self._file.truncate(0)
            # Before the first byte: nobody can go on with bytes of he knows not what.
            _keep(self._target, said)
        self._hash = hashlib.sha256()
        self._become(said or Said())
        self._moved(-self._size)

    def add(self, piece: bytes) -> None:
        """The next bytes."""
        with disk(self._path):
            rest = memoryview(piece)
            while rest:
                rest = rest[self._file.write(rest) :]
        self._hash.update(piece)
        self._moved(len(piece))

    async def finish(self) -> Fetched:
        """All of it has come: first onto the disk, then under its name."""
        with disk(self._target):
            await asyncio.to_thread(_sync, self._path)
            self._path.rename(self._target)
        return self.said.of(self._target, self._hash.hexdigest(), self._size)

    def close(self) -> None:
        """Let go of it; without a byte in it nothing is left behind."""
        with disk(self._path), self._file:
            if self._is_there() and not self._on_disk():
                if not self._target.exists():
                    _keep(self._target, None)
                self._path.unlink()

    def _become(self, said: Said) -> None:
        self.said = said
        if said.size is not None:
            self._on_size(said.size)

    def _moved(self, count: int) -> None:
        self._size += count
        if count:
            self._on_bytes(count)

    def _on_disk(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False


async def landed(
    target: Path,
    receive: Callable[[Part], Awaitable[bool]],
    *,
    on_bytes: Hear,
    on_size: Hear,
    sleep: Callable[[float], Awaitable[None]],
) -> Fetched | None:
    """The file `target`, once `receive` has brought what is missing of it; None when that says there is no such file.

    What is already there is hashed and not received again. Of two who want the same `target` one receives it and the
    other waits.
    """
    while (fetched := await finished(target)) is None:
        if part := claim(target, on_bytes, on_size):
            try:
                return await _completed(part, receive)
            finally:
                part.close()
        await sleep(LOOK_EVERY_S)
    on_size(fetched.size)
    on_bytes(fetched.size)
    return fetched


async def fill(url: str, part: Part, pieces: AsyncIterable[bytes]) -> None:
    """Take the pieces as they come, to the size that was promised. Raises `AgainError` when there are more or fewer."""
    size = part.said.size
    async for piece in pieces:
        metrics.download_bytes_total.inc(len(piece))
        if size is not None and part.held() + len(piece) > size:
            part.begin(None)
            raise AgainError(f"{url} has more than the {size} bytes that were promised")
        part.add(piece)
    if size is not None and part.held() < size:
        raise AgainError(f"{url} ended after {part.held()} of {size} bytes")


async def _completed(part: Part, receive: Callable[[Part], Awaitable[bool]]) -> Fetched | None:
    await part.resume()
    if part.is_whole or await receive(part):
        return await part.finish()
    part.begin(None)
    return None


def claim(target: Path, on_bytes: Hear, on_size: Hear) -> Part | None:
    """The begun download of `target`; None when somebody else has it or has just finished it.

    Raises `ConfigError` when the disk refuses, as everything here does.
    """
    with disk(target):
        part = _opened(target, on_bytes, on_size)
        return part if part.lock() else None


async def finished(target: Path) -> Fetched | None:
    """The file `target` as it lies there, hashed anew; None when it does not."""
    with disk(target):
        return await asyncio.to_thread(_found, target)


def discard(target: Path) -> None:
    """Remove a finished file and what is kept beside it; one that is gone already is no error."""
    with disk(target):
        # The file goes last: as long as it is there nobody begins to download it anew.
        _beside(target, ".json").unlink(missing_ok=True)
        target.unlink(missing_ok=True)


@contextmanager
def disk(path: Path) -> Iterator[None]:
    """What the disk refuses is said in words; nothing but work on the disk stands inside."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"LAKE_STATE: {path} cannot be written: {error.strerror}") from None


def _opened(target: Path, on_bytes: Hear, on_size: Hear) -> Part:
    for _ in range(OPENINGS - 1):
        target.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # who has finished his file removes the folder when it is empty
            return Part(target, on_bytes, on_size)
    return Part(target, on_bytes, on_size)


def _found(target: Path) -> Fetched | None:
    try:
        sha256, size = _hash_of(target).hexdigest(), target.stat().st_size
    except FileNotFoundError:
        return None
    said = _kept(target)
    # A file that somebody has put here by hand is not the one that the server spoke of.
    return (said if said and said.size in (None, size) else Said()).of(target, sha256, size)


def _beside(target: Path, ending: str) -> Path:
    return target.with_name(target.name + ending)


def _keep(target: Path, said: Said | None) -> None:
    beside = _beside(target, ".json")
    if said is None:
        beside.unlink(missing_ok=True)
    else:
        beside.write_bytes(msgspec.json.encode(said))


def _kept(target: Path) -> Said | None:
    try:
        return msgspec.json.decode(_beside(target, ".json").read_bytes(), type=Said)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def _hash_of(path: Path) -> "hashlib._Hash":
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")


def _sync(path: Path) -> None:
    # A descriptor of its own: whoever waits for this thread may be cancelled and close his.
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _instant(http_date: str | None) -> datetime | None:
    if http_date is None:
        return None
    try:
        told = parsedate_to_datetime(http_date)
    except ValueError:
        return None
    return told.astimezone(UTC) if told.tzinfo else told.replace(tzinfo=UTC)
