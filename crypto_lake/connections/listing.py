"""One page of an S3 listing, version 1: XML in, names out."""

from dataclasses import dataclass
from xml.etree import ElementTree

from crypto_lake.connections import SourceError


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing: its names, ascending, whether more follow, and after which name."""

    names: list[str]
    is_cut: bool
    end: str


class _NoDoctype(ElementTree.TreeBuilder):
    """A listing has no document type; one that has could define entities that grow without bounds."""

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise ValueError("a document type is not read")


def page_in(body: bytes, listing: str) -> Page:
    """The page that an answer holds. Raises `SourceError`, naming the address `listing`, when it holds none."""
    parser = ElementTree.XMLParser(target=_NoDoctype())  # noqa: S314 - entities are refused with the document type
    try:
        parser.feed(body)
        root = parser.close()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise SourceError(f"{listing} is no listing: {error}") from None
    if root.tag.rpartition("}")[2] != "ListBucketResult":
        raise SourceError(f"{listing} is no listing: it answers with {root.tag}")
    found = [*root.iterfind("{*}Contents/{*}Key"), *root.iterfind("{*}CommonPrefixes/{*}Prefix")]
    names = sorted(each.text for each in found if each.text)
    is_cut = root.findtext("{*}IsTruncated", "").strip().lower() == "true"
    # The server names the next marker only where a delimiter was asked for.
    return Page(names, is_cut, root.findtext("{*}NextMarker") or (names[-1] if names else ""))
