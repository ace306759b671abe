"""The listing of a bucket, version 1 of S3's: which keys stand on a page, and the XML that tells of them; pure."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from typing import Final, NamedTuple

MOST_KEYS: Final = 1000
NAME: Final = "data.binance.vision"
_DECLARATION: Final = '<?xml version="1.0" encoding="UTF-8"?>\n'
_NAMESPACE: Final = "http://s3.amazonaws.com/doc/2006-03-01/"


class Wrong(Exception):
    """What was asked makes no sense; the text is S3's."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The parameters of a listing. Raises `Wrong`."""

    prefix: str = ""
    delimiter: str = ""
    marker: str = ""
    max_keys: int = MOST_KEYS

    @classmethod
    def of(cls, query: Mapping[str, str]) -> "Asked":
        """As they stand in an address."""
        most = query.get("max-keys", str(MOST_KEYS))
        if not (most.isascii() and most.isdigit()):
            raise Wrong("Provided max-keys not an integer or within integer range")
        prefix, delimiter, marker = (query.get(name, "") for name in ("prefix", "delimiter", "marker"))
        return cls(prefix, delimiter, marker, min(int(most), MOST_KEYS))


@dataclass(slots=True)
class Page:
    """What one answer names, in order."""

    keys: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    last: str = ""
    is_truncated: bool = False


class Entry(NamedTuple):
    """What is said of a key."""

    key: str
    modified_ms: int
    etag: str
    size_bytes: int


def page_of(keys: Sequence[str], asked: Asked) -> Page:
    """The page of a bucket's keys, which stand in the order of their bytes.

    What a delimiter cuts short is named once, and counts once; a marker that is such a name is behind all in it.
    """
    page = Page()
    for key in keys[bisect_right(keys, asked.marker.encode(), key=str.encode) :]:
        name = _shown(key, asked)
        if not key.startswith(asked.prefix) or name in (page.last, asked.marker):
            continue
        if len(page.keys) + len(page.folders) == asked.max_keys:
            page.is_truncated = asked.max_keys > 0
            break
        (page.keys if name == key else page.folders).append(name)
        page.last = name
    return page


def _shown(key: str, asked: Asked) -> str:
    """The key, or as much of it as ends with the first delimiter behind the prefix."""
    place = key.find(asked.delimiter, len(asked.prefix)) if asked.delimiter else -1
    return key if place < 0 else key[: place + len(asked.delimiter)]


def xml_of(page: Page, asked: Asked, entries: Iterable[Entry]) -> str:
    """The answer. `NextMarker` comes with a delimiter only: without one the last key is the marker."""
    parts = [_element("Name", NAME), _element("Prefix", asked.prefix), _element("Marker", asked.marker)]
    if asked.delimiter:
        parts += [_element("NextMarker", page.last)] if page.is_truncated else []
        parts.append(_element("Delimiter", asked.delimiter))
    parts += [_element("MaxKeys", asked.max_keys), _element("IsTruncated", str(page.is_truncated).lower())]
    parts += [_contents(entry) for entry in entries]
    parts += [_wrapped("CommonPrefixes", _element("Prefix", folder)) for folder in page.folders]
    return f'{_DECLARATION}<ListBucketResult xmlns="{_NAMESPACE}">{"".join(parts)}</ListBucketResult>'


def _contents(entry: Entry) -> str:
    modified = datetime.fromtimestamp(entry.modified_ms // 1000, UTC)
    return _wrapped(
        "Contents",
        _element("Key", entry.key),
        _element("LastModified", f"{modified:%Y-%m-%dT%H:%M:%S}.000Z"),
        _element("ETag", entry.etag),
        _element("Size", entry.size_bytes),
        _element("StorageClass", "STANDARD"),
    )


def error_xml(code: str, words: str, key: str = "") -> str:
    """What S3 says instead."""
    about = [_element("Key", key)] if key else []
    return _DECLARATION + _wrapped("Error", _element("Code", code), _element("Message", words), *about)


def _wrapped(name: str, *parts: str) -> str:
    return f"<{name}>{''.join(parts)}</{name}>"


def _element(name: str, text: object) -> str:
    return _wrapped(name, escape(str(text)))
