"""A knowledge base's documents -> the sections that questions are made from."""

import re
from collections.abc import Iterator

from finetune.synth.pair import Section
from ingest.store import Store
from ingest.types import Chunk, Document, Passage

_KIND = re.compile(r"(?:p\. \d+|row \d+)")
_NO_NAME = re.compile(
    r"[-_]|\.\w{1,5}$|^\W*[\d.]+\W*$|[?？]$|^(?:untitled|document|无标题|未命名|新建)",
    re.IGNORECASE,
)
_STATE = re.compile(r"^中华人民共和国(?=.*(?:法|条例|决定|规定)$)")
_OPENING = re.compile(
    r"\s*(?:—\s*\d+\s*—\s*)?#*\s*(?P<name>[\u4e00-\u9fff]{4,30}(?:法|条例|办法|规定|细则|规则|章程))\s*\n"
)


def sections(store: Store, document: Document) -> Iterator[Section]:
    """The passages of a document in order, as sections; they tile its text.

    Raises KeyError where the document is removed meanwhile.
    """
    start, subject = 0, ""
    while chunks := store.chunks_within(Passage(document.id, start, start, "", "")):
        (passage,) = store.passages(chunks[:1])
        subject = subject or subject_of(document.title, passage.text)
        yield Section(passage.text, start, subject, _places(chunks), _header(chunks[0]))
        start = passage.end


def subject_of(title: str, opening: str) -> str:
    """What a person calls the document, "" where neither its title nor its first line tells."""
    title = re.split(r"\s[|–—]\s", " ".join(title.split()))[0]
    if found := _OPENING.match(opening):
        return _STATE.sub("", found["name"])
    if not 2 <= len(title) <= 80 or _NO_NAME.search(title):
        return ""
    # A word of Latin letters without space is more likely a file's name.
    named = re.search(r"[\u4e00-\u9fff]{2}", title) or " " in title
    return _STATE.sub("", title) if named else ""


def _places(chunks: list[Chunk]) -> tuple[tuple[int, str], ...]:
    """Where headings begin to hold; pages, sheets and rows left out."""
    found: list[tuple[int, str]] = []
    for start, label in (place for chunk in chunks for place in chunk.places):
        path = _headings(label)
        if path and (not found or found[-1][1] != path):
            found.append((start, path))
    return tuple(found)


def _headings(label: str) -> str:
    """`p. 3 · 第二章 › 第一节` -> `第二章 › 第一节`"""
    parts = label.split(" · ")
    if any(part.startswith("row ") for part in parts):
        return ""
    return " · ".join(part for part in parts if not _KIND.fullmatch(part))


def _header(chunk: Chunk) -> str:
    """The header of a table that the chunk's text is in the middle of."""
    header = chunk.context.rpartition("\n")[2]
    return header if header.startswith("|") and header not in chunk.text else ""
