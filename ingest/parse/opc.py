"""Opens Office Open XML and EPUB files (zip files of XML parts) without trusting them."""

import posixpath
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO
from urllib.parse import unquote
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from ingest.errors import Unreadable
from ingest.files import DAMAGE, damaged, locked
from ingest.i18n import Translatable

PART = 64 << 20  # bytes of one XML part, unpacked; a 5,000-page novel has 20 MB
WHOLE = 1 << 30  # bytes of all parts, unpacked
RATIO = 200  # a large part may shrink at most this many times; XML of real documents shrinks 10 to 50 times

REL = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"


@dataclass(frozen=True, slots=True)
class Package:
    """An open container. Parts are read only after their size has been checked."""

    archive: zipfile.ZipFile
    name: str

    def __contains__(self, part: str) -> bool:
        return part in self.archive.NameToInfo

    def read(self, part: str, limit: int = PART) -> bytes:
        self._check(part, limit)
        return self.head(part, -1)

    def stream(self, part: str) -> IO[bytes]:
        """The part, to be read piece by piece. A part that defines XML entities is refused."""
        self._check(part, WHOLE)
        if b"<!ENTITY" in self.head(part):
            raise refused(self.name, Translatable("{part} defines XML entities", part=part))
        return self.archive.open(part)

    def _check(self, part: str, limit: int) -> None:
        info = self.archive.NameToInfo.get(part)
        if info is None:
            raise damaged(self.name, Translatable("its part {part} is missing", part=part))
        ratio = info.file_size / max(info.compress_size, 1)
        if info.file_size > limit or (info.file_size > 16 << 20 and ratio > RATIO):
            reason = Translatable(
                "{part} unpacks to {size} MB ({ratio:.0f} times its size); limit {limit} MB and {most} times",
                part=part,
                size=info.file_size >> 20,
                ratio=ratio,
                limit=limit >> 20,
                most=RATIO,
            )
            raise refused(self.name, reason)

    def head(self, part: str, size: int = 1 << 20) -> bytes:
        """The part's first bytes."""
        try:
            with self.archive.open(part) as stream:
                return stream.read(size)
        except DAMAGE as error:
            raise damaged(self.name, f"{part}: {error}") from error

    def xml(self, part: str) -> Element:
        """The part's root. XML entities are refused, since no office program writes any."""
        content = self.read(part)
        if b"<!ENTITY" in content or "<!ENTITY".encode("utf-16-le") in content:
            raise refused(self.name, Translatable("{part} defines XML entities", part=part))
        try:
            return ElementTree.fromstring(content)
        except (ElementTree.ParseError, LookupError, ValueError) as error:
            raise damaged(self.name, f"{part}: {error}") from error

    def relations(self, part: str) -> dict[str, tuple[str, str]]:
        """Id -> (kind, part name) of the existing parts that `part` refers to."""
        folder, base = posixpath.split(part)
        place = f"{folder}/_rels/{base}.rels".lstrip("/")
        if place not in self:
            return {}
        found = {}
        for rel in self.xml(place):
            target = resolve(folder, rel.get("Target", ""))
            if rel.get("TargetMode") != "External" and target in self:
                found[rel.get("Id", "")] = rel.get("Type", "").rsplit("/", 1)[-1], target
        return found

    def related(self, part: str, *kinds: str) -> list[str]:
        """The existing parts of these kinds that `part` refers to."""
        return [target for kind, target in self.relations(part).values() if kind in kinds]


@contextmanager
def open_package(path: Path) -> Iterator[Package]:
    try:
        archive = zipfile.ZipFile(path)
    except DAMAGE as error:
        raise damaged(path.name, error) from error
    with archive:
        size = sum(info.file_size for info in archive.infolist())
        if size > WHOLE:
            size, limit = size >> 20, WHOLE >> 20
            why = Translatable("it unpacks to {size} MB, limit {limit} MB", size=size, limit=limit)
            raise refused(path.name, why)
        yield Package(archive, path.name)


@contextmanager
def open_document(path: Path) -> Iterator[Package]:
    """An OpenDocument file. Raises `Unreadable` if it is encrypted."""
    with open_package(path) as package:
        manifest = "META-INF/manifest.xml"
        if manifest in package and b"encryption-data" in package.read(manifest):
            raise locked(path.name)
        yield package


def refused(name: str, reason: str) -> Unreadable:
    return Unreadable(
        "{name} is refused because it could exhaust the machine: {reason}", name=name, reason=reason
    )


def resolve(folder: str, target: str) -> str:
    """A relative reference inside the package as a part name."""
    target = unquote(target.split("#")[0])
    whole = target if target.startswith("/") else f"{folder}/{target}"
    return posixpath.normpath(whole).lstrip("/")


def local(element: Element) -> str:
    """The tag without its namespace."""
    return _without_namespace(element.tag)


@lru_cache(1000)
def _without_namespace(tag: object) -> str:
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""  # a comment's tag is a function


def attributes(element: Element) -> dict[str, str]:
    """The attributes without their namespaces."""
    return {key.rpartition("}")[2]: value for key, value in element.items()}


def whole_number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() and len(text) < 9 else 0


def walk(element: Element, stop: frozenset[str] = frozenset()) -> Iterator[Element]:
    """The element and all below it in document order, without what is below elements in `stop`.
    Alternate content (text boxes are written twice, for new and old programs) is read once."""
    stack = [element]
    while stack:
        here = stack.pop()
        yield here
        name = local(here)
        if here is not element and name in stop:
            continue
        stack += here[:1] if name == "AlternateContent" else reversed(here)
