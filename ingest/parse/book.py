"""EPUB: the chapters of the spine in order, their headings from the markup or the contents list."""

import posixpath
from collections.abc import Callable, Iterator
from pathlib import Path

from ingest import encoding
from ingest.parse.blocks import Block, mark
from ingest.parse.html import html_blocks
from ingest.parse.opc import Package, damaged, local, open_package, resolve
from ingest.types import Mark


def book_blocks(path: Path, *, found_title: Callable[[str], None]) -> Iterator[Block]:
    with open_package(path) as package:
        root = _root_file(package)
        opf = package.xml(root)
        folder = posixpath.dirname(root)
        items = {i.get("id", ""): i for i in opf.iter() if local(i) == "item"}
        for element in opf.iter():
            if local(element) == "title" and element.text:
                found_title(" ".join(element.text.split()))
                break
        names = _contents(package, folder, list(items.values()))
        spine = [items.get(ref.get("idref", "")) for ref in opf.iter() if local(ref) == "itemref"]
        parts = [resolve(folder, item.get("href", "")) for item in spine if item is not None]
        parts = [part for part in parts if part in package]
        if not parts:
            raise damaged(path.name, "it has no chapters")
        for part in parts:
            yield from _chapter(package, part, names.get(part, ""))


def _chapter(package: Package, part: str, name: str) -> Iterator[Block]:
    content = package.read(part)
    detected = encoding.detect(content, name=f"{package.name}: {part}")
    blocks = list(html_blocks(encoding.decode(content, detected), found_title=_ignore))
    if name and not any(_heads(block.marks) for block in blocks):
        yield mark("heading", name)
    yield from blocks


def _heads(marks: tuple[Mark, ...]) -> bool:
    return any(one.kind == "heading" for one in marks)


def _ignore(title: str) -> None:
    """A chapter's title is not the book's."""


def _root_file(package: Package) -> str:
    for element in package.xml("META-INF/container.xml").iter():
        if local(element) == "rootfile" and element.get("full-path"):
            return element.get("full-path", "")
    raise damaged(package.name, "it names no package file")


def _contents(package: Package, folder: str, items: list) -> dict[str, str]:
    """Chapter part -> its name in the table of contents (EPUB 2: toc.ncx)."""
    names: dict[str, str] = {}
    for item in items:
        part = resolve(folder, item.get("href", ""))
        if item.get("media-type") != "application/x-dtbncx+xml" or part not in package:
            continue
        label = ""
        for element in package.xml(part).iter():
            if local(element) == "text":
                label = " ".join((element.text or "").split())
            elif local(element) == "content":
                names.setdefault(resolve(posixpath.dirname(part), element.get("src", "")), label)
    return names
