"""The road to flat files: a bucket that is read under keys of our own, listed by folder, fetched as other files are."""

import asyncio
import dataclasses
import random
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http import HTTPStatus
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import quote, urlsplit

from crypto_lake.config import ConfigError
from crypto_lake.connections import SourceError
from crypto_lake.connections.part import Fetched, Hear, Part, Said, discard, fill, landed
from crypto_lake.connections.patience import ATTEMPTS, AgainError, Got, Patience
from crypto_lake.monitoring import metrics

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, ObjectMeta
    from obstore.store import S3Credential, S3Store

__all__ = ["Bucket", "Fetched", "Listed", "NotEntitled", "discard"]

# Keys are for one or two downloads at a time; more were answered with 429 (PROTOCOLS E.1).
AT_ONCE = 2
CONNECT_S, STALL_S = 10.0, 30.0
# The library wants a limit for a whole body. A file may take hours as long as bytes come.
WHOLE_BODY: Final = timedelta(days=365)
BUCKET, REGION = "flatfiles", "us-east-1"
# What is listed at once, and how many pages of it; a month of flat files has some 22.
PAGE_NAMES, MOST_LISTED = 1000, 1_000_000
# Whatever has come is handed on at once: of bytes that are held back nothing is left when the connection breaks.
LEAST_PIECE = 1
MOST_WORDS = 120

TRIED_AGAIN = frozenset({408, 429, *range(500, 600)})
FOR_ALL = frozenset({429, 503})
UNKNOWN_KEY: Final = frozenset({"InvalidAccessKeyId", "InvalidToken", "ExpiredToken", "AuthorizationHeaderMalformed"})
WRONG_SECRET, NO_BUCKET, WRONG_CLOCK = "SignatureDoesNotMatch", "NoSuchBucket", "RequestTimeTooSkewed"

# What obstore says comes as a text: one sentence, with the server's answer in it, and the error's inner life.
INNER: Final = "\n\nDebug source:"
ANSWERED: Final = re.compile(r"Server returned non-2xx status code: (?P<status>\d{3})[^:]*: ?(?P<body>.*)", re.DOTALL)
CODE, MESSAGE = (re.compile(rf"<{name}>([^<]*)</{name}>") for name in ("Code", "Message"))
KIND: Final = re.compile(r"HttpError \{\s*kind: (\w+)")
SYSTEM: Final = re.compile(r"(?:message|error): \"([^\"]*)\"")
NOT_THE_REST: Final = ("NotPartial", "UnexpectedRange", "NoContentRange")


class NotEntitled(SourceError):
    """The keys are good, but not for this file: asking again is in vain."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A file as the bucket lists it: `size` in bytes, `etag` without its quotes, `last_modified` in UTC."""

    path: str
    size: int
    etag: str | None
    last_modified: datetime | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """What stands in the text of an error: the HTTP status (None = no answer), S3's own code, and words for the user.

    `kind` is what broke when there was no answer, `is_not_the_rest` that an answer was not to what was asked for.
    """

    status: int | None
    code: str
    words: str
    kind: str
    is_not_the_rest: bool


def _unheard(number: int) -> None:
    pass


class Bucket:
    """The files of one bucket of an S3 service; used as `async with`, one per process.

    `address` is `https://host[:port]`, with the bucket's name as its path if it is not called `flatfiles`. At most
    `at_once` files are downloaded at a time. Every method raises `ConfigError`, which names the setting, when keys,
    bucket or address are wrong, `NotEntitled` when a file is not for these keys, and `SourceError` when the service
    refuses or has failed in `attempts` tries in a row that brought no byte. `stall_s` is for how long no byte may come.
    """

    def __init__(
        self,
        address: str,
        key_id: str,
        secret: str,
        *,
        at_once: int = AT_ONCE,
        attempts: int = ATTEMPTS,
        stall_s: float = STALL_S,
        connect_s: float = CONNECT_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Raises `ConfigError` when `address` is none, or a key is missing."""
        self._address = address
        self._endpoint, self._bucket = _place(address)
        self._key_id, self._secret = _keys(key_id, secret)
        self._stall_s, self._connect_s = stall_s, connect_s
        self._downloads, self._questions = asyncio.Semaphore(at_once), asyncio.Semaphore(at_once)
        self._sleep, self._patience = sleep, Patience(attempts, sleep, draw)
        self._was_heard = self._is_filled = False
        self._store: S3Store | None = None

    async def __aenter__(self) -> Self:
        """Raises `ConfigError` when the extra `stocks` is not installed."""
        self._store = self._opened(_obstore())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._store = None

    async def listed(self, prefix: str) -> list[Listed]:
        """All files whose path begins with the folders `prefix`, ascending by path."""
        url = f"the listing of {self._url(prefix)}"
        async with self._questions:
            found = await self._patiently(url, lambda: self._pages(prefix))
            if not found and not self._is_filled:
                await self._patiently(url, self._look)
        return sorted((_entry(meta) for meta in found), key=lambda entry: entry.path)

    async def fetch(
        self, path: str, target: Path, *, on_bytes: Hear = _unheard, on_size: Hear = _unheard
    ) -> Fetched | None:
        """The file at `path` as `target`; None when it is not there. Its `etag` has no quotes, as in a listing.

        All else is as `connections.objects` has it: a `target` that is there is hashed and nobody is asked; what is
        begun lies in `target`.part and goes on from there, now or in a later process; of two who want the same
        `target` one downloads and the other waits; `discard` removes one that is done with.
        """
        url = self._url(path)
        async with self._downloads:
            fetched = await landed(
                target,
                lambda part: self._patiently(url, lambda: self._go_on(url, path, part), part.held, is_key=True),
                on_bytes=on_bytes,
                on_size=on_size,
                sleep=self._sleep,
            )
        return dataclasses.replace(fetched, etag=_bare(fetched.etag)) if fetched else None

    def _url(self, path: str) -> str:
        return f"{self._endpoint}/{self._bucket}/{quote(path)}"

    @property
    def _open(self) -> "S3Store":
        assert self._store is not None, "Bucket is used inside `async with`"
        return self._store

    def _opened(self, obstore: ModuleType) -> "S3Store":
        # Whatever AWS_* the environment holds is for the tables' own store, so all that matters is said here.
        store: S3Store = obstore.store.S3Store(
            self._bucket,
            endpoint=self._endpoint,
            region=REGION,
            virtual_hosted_style_request=False,
            skip_signature=False,
            s3_express=False,
            request_payer=False,
            credential_provider=self._credentials,
            client_options={
                "allow_http": self._endpoint.startswith("http://"),
                "connect_timeout": timedelta(seconds=self._connect_s),
                "read_timeout": timedelta(seconds=self._stall_s),
                "timeout": WHOLE_BODY,
            },
            retry_config={"max_retries": 0, "retry_timeout": timedelta(0)},  # see `patience`
        )
        return store

    def _credentials(self) -> "S3Credential":
        return {
            "access_key_id": self._key_id,
            "secret_access_key": self._secret,
            "token": None,
            "expires_at": None,
        }

    async def _pages(self, prefix: str) -> "list[ObjectMeta]":
        obstore = _obstore()
        found: list[ObjectMeta] = []
        with _counted(HTTPStatus.OK):
            async for page in obstore.list(self._open, prefix=prefix, chunk_size=PAGE_NAMES):
                found += page
                if len(found) > MOST_LISTED:
                    raise SourceError(f"the listing of {self._url(prefix)} has more than {MOST_LISTED} files")
        self._is_filled = self._is_filled or bool(found)
        return found

    async def _look(self) -> None:
        """A page that is no listing reads as an empty one, and nothing is what it would take all files for."""
        with _counted(HTTPStatus.OK):
            root = await _obstore().list_with_delimiter_async(self._open)
        if not root["common_prefixes"] and not root["objects"]:
            raise ConfigError(
                f"LAKE_MASSIVE_S3={self._address}: nothing at all is listed in the bucket {self._bucket!r}; "
                "is it the address of an S3 service?"
            )
        self._is_filled = True

    async def _go_on(self, url: str, path: str, part: Part) -> bool:
        """Receive what is missing, or all of it; False when there is no such file."""
        options = _rest(part)
        try:
            with _counted(HTTPStatus.PARTIAL_CONTENT if options else HTTPStatus.OK):
                answer: GetResult = await _obstore().get_async(self._open, path, options=options)
        except _raised() as error:
            refusal = refusal_in(str(error))
            if refusal.status == HTTPStatus.NOT_FOUND and refusal.code != NO_BUCKET:
                self._was_heard = True
                return False
            if options and _is_other(refusal):
                part.begin(None)
                raise AgainError(f"{url} does not go on where it broke off") from None
            raise
        self._was_heard = self._is_filled = True
        said = _said(answer.meta)
        if not options:
            part.begin(said)
        elif said != part.said:
            part.begin(None)
            raise AgainError(f"{url} was replaced while it came")
        await fill(url, part, answer.stream(min_chunk_size=LEAST_PIECE))
        return True

    async def _patiently(
        self,
        url: str,
        ask: Callable[[], Awaitable[Got]],
        held: Callable[[], int] = lambda: 0,
        *,
        is_key: bool = False,
    ) -> Got:
        async def once() -> Got:
            await self._patience.may_ask()
            try:
                got = await ask()
            except _raised() as error:
                raise self._error(url, refusal_in(str(error)), is_key=is_key) from None
            self._was_heard = True
            return got

        try:
            return await self._patience.answer(once, held)
        except _NobodyError as error:
            # Who has answered before is only away; who never has is not there.
            if self._was_heard:
                raise
            raise ConfigError(f"LAKE_MASSIVE_S3={self._address}: {error}") from None

    def _error(self, url: str, refusal: Refusal, *, is_key: bool) -> Exception:
        """What is to be raised, in one sentence; keys never stand in it, not even if the server repeats them."""
        if refusal.status is None:
            return self._no_answer(url, refusal)
        self._was_heard = True
        if refusal.code == NO_BUCKET or (refusal.status == HTTPStatus.NOT_FOUND and not is_key):
            return ConfigError(f"LAKE_MASSIVE_S3={self._address}: there is no bucket {self._bucket!r} (HTTP 404)")
        if refusal.code in UNKNOWN_KEY or refusal.status == HTTPStatus.UNAUTHORIZED:
            return ConfigError(
                f"LAKE_MASSIVE_KEY_ID: {self._endpoint} does not know this key ({self._said(refusal)}); "
                "it takes the S3 keys of the flat files, not the REST key"
            )
        if refusal.code == WRONG_SECRET:
            return ConfigError(f"LAKE_MASSIVE_SECRET: it is not the secret of LAKE_MASSIVE_KEY_ID ({refusal.code})")
        if refusal.code == WRONG_CLOCK:
            return ConfigError(f"the clock of this machine is wrong, so {self._endpoint} refuses ({refusal.code})")
        told = f"HTTP {refusal.status}: {self._said(refusal)}"
        if refusal.status == HTTPStatus.FORBIDDEN:
            reason = "is not in your plan" if is_key else "is not allowed with these keys"
            return NotEntitled(f"{url} {reason} ({told})", status=refusal.status)
        if refusal.status not in TRIED_AGAIN:
            return SourceError(f"{url} answered {told}", status=refusal.status)
        # When to come back is in a header, which obstore keeps to itself.
        return AgainError(f"{url} answered {told}", status=refusal.status, is_for_all=refusal.status in FOR_ALL)

    def _no_answer(self, url: str, refusal: Refusal) -> SourceError:
        if refusal.kind == "Connect":
            return _NobodyError(f"cannot reach {self._endpoint}: {refusal.words or 'no connection'}")
        if refusal.kind == "Timeout":
            return AgainError(f"no byte of {url} came for {self._stall_s:g} s")
        if refusal.kind:
            return AgainError(f"the connection to {url} broke: {refusal.words or refusal.kind}")
        return SourceError(f"{url} cannot be read: {self._said(refusal)}")

    def _said(self, refusal: Refusal) -> str:
        words = f"{refusal.words} ({refusal.code})" if refusal.words and refusal.code else refusal.words or refusal.code
        return (words or "(nothing more)").replace(self._secret, "***").replace(self._key_id, "***")[:MOST_WORDS]


class _NobodyError(AgainError):
    """Nobody listens at the address, or not now."""


def refusal_in(text: str) -> Refusal:
    """What an error of obstore's says."""
    told, _, inner = text.rpartition(INNER) if INNER in text else (text, "", "")
    kind = KIND.search(inner)
    if answered := ANSWERED.search(told):
        body = answered["body"]
        code, message = CODE.search(body), MESSAGE.search(body)
        words = message[1] if message else "" if code else body
        return Refusal(int(answered["status"]), code[1].strip() if code else "", _plain(words), "", False)
    # The innermost words are the system's own: "Connection refused".
    system = SYSTEM.findall(inner)
    words = (system[-1] if system else "") if kind else told
    is_not_the_rest = any(f"source: {name}" in inner for name in NOT_THE_REST)
    return Refusal(None, "", _plain(words), kind[1] if kind else "", is_not_the_rest)


def _plain(text: str) -> str:
    words = " ".join(text.split())
    return words if words.isprintable() else ""


def _is_other(refusal: Refusal) -> bool:
    """Whether the file is no longer the one of which we hold a part, or its rest cannot be had."""
    changed = (HTTPStatus.PRECONDITION_FAILED, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
    return refusal.status in changed or refusal.is_not_the_rest


def _rest(part: Part) -> "GetOptions":
    """What asks for the rest of the same file; nothing when all of it is to come."""
    if not part.held() or (validator := part.said.validator) is None:
        return {}
    same: GetOptions = {"if_match": validator} if validator == part.said.etag else {}
    return {"range": {"offset": part.held()}, **same}


def _said(meta: "ObjectMeta") -> Said:
    since, etag = _instant(meta), meta["e_tag"]
    return Said(
        meta["size"],
        etag if etag and etag.isascii() else None,
        format_datetime(since.replace(microsecond=0), usegmt=True) if since else None,
    )


def _entry(meta: "ObjectMeta") -> Listed:
    return Listed(meta["path"], meta["size"], _bare(meta["e_tag"]), _instant(meta))


def _instant(meta: "ObjectMeta") -> datetime | None:
    # The library says 1970 where the server says nothing.
    since = meta["last_modified"].astimezone(UTC)
    return since if since.timestamp() else None


def _bare(etag: str | None) -> str | None:
    return etag.strip('"') if etag else None


@contextmanager
def _counted(status: HTTPStatus) -> Iterator[None]:
    """Counts one request: under `status` when it is answered as it should be, else under what it says."""
    try:
        yield
    except _raised() as error:
        metrics.download_requests_total.labels(str(refusal_in(str(error)).status or "none")).inc()
        raise
    metrics.download_requests_total.labels(str(status.value)).inc()


def _obstore() -> ModuleType:
    try:
        import obstore
        import obstore.store
    except ImportError:
        raise ConfigError("flat files in a bucket need the extra `stocks`: pip install 'crypto-lake[stocks]'") from None
    return obstore


def _raised() -> tuple[type[Exception], ...]:
    """What obstore raises. The disk's own errors are a `ConfigError` by the time they pass where this is caught."""
    return (_obstore().exceptions.BaseError, FileNotFoundError)


def _keys(key_id: str, secret: str) -> tuple[str, str]:
    given = {"LAKE_MASSIVE_KEY_ID": key_id.strip(), "LAKE_MASSIVE_SECRET": secret.strip()}
    if missing := [name for name, key in given.items() if not key]:
        raise ConfigError(
            f"{' and '.join(missing)}: not set; flat files are read with an S3 key of their own, from the dashboard"
        )
    for name, key in given.items():
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ConfigError(f"{name}: it has characters that no key has")
    return given["LAKE_MASSIVE_KEY_ID"], given["LAKE_MASSIVE_SECRET"]


def _place(address: str) -> tuple[str, str]:
    """The endpoint and the bucket of `http(s)://host[:port][/bucket]`."""
    try:
        parts = urlsplit(address)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        bucket = parts.path.strip("/") or BUCKET
        is_one = is_one and "/" not in bucket and not parts.query and not parts.fragment
    except ValueError:
        is_one = False
    if is_one and "@" in parts.netloc:
        raise ConfigError("LAKE_MASSIVE_S3: keys do not stand in the address, but in LAKE_MASSIVE_KEY_ID and _SECRET")
    if not is_one:
        raise ConfigError(
            f"LAKE_MASSIVE_S3={address!r} is no address of a bucket, as https://files.massive.com/flatfiles is one"
        )
    return f"{parts.scheme}://{parts.netloc}", bucket
