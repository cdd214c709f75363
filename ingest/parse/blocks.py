"""What every reader yields, and the one place where it becomes a document's text.

A reader is a generator of blocks in reading order. `compose` joins them into segments, so that
separators, marks and the limit on a segment's size are the same for all formats.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ingest.types import Mark, MarkKind, Segment

SEGMENT = 1_000_000  # characters

_UNWANTED = re.compile("[\0-\x08\x0b\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff\u200b\xad\ud800-\udfff]")
_SPACES = re.compile(r"[ \t\xa0]*\n")
_EMPTY_LINES = re.compile(r"\n{3,}")


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of text and the marks in it. A tight block follows the one before on the next line,
    any other after an empty line. A block without text hands its marks to the next."""

    text: str
    marks: tuple[Mark, ...] = ()
    tight: bool = False


def mark(kind: MarkKind, label: str, *, level: int = 1) -> Block:
    """A place that begins here."""
    return Block("", (Mark(0, kind, label, level),))


def heading(text: str, level: int) -> Block:
    text = " ".join(clean(text).split())
    return Block(text, (Mark(0, "heading", text, level),) if text else ())


def table(
    rows: Iterable[Sequence[str]], *, numbers: Iterable[int] | None = None
) -> Iterator[Block]:
    """A table as lines `| a | b |`, the first row as its head; `numbers` label the rows."""
    labels = iter(numbers) if numbers is not None else None
    tight = False
    for row in rows:
        cells = [" ".join(clean(cell).split()).replace("|", "｜") for cell in row]
        number = next(labels) if labels is not None else None
        if not any(cells):
            continue
        marks = (Mark(0, "row", f"row {number}"),) if number is not None else ()
        yield Block(f"| {' | '.join(cells)} |", marks, tight)
        if not tight:
            yield Block(f"|{' --- |' * len(cells)}", (), True)
        tight = True


def clean(text: str) -> str:
    """Line ends \\n, no control characters or lone surrogates, no trailing spaces, at most one
    empty line in a row. Letters are left as they are: no normalisation."""
    text = (
        text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n").replace("\u2028", "\n")
    )
    text = _UNWANTED.sub("", text)
    return _EMPTY_LINES.sub("\n\n", _SPACES.sub("\n", text)).strip("\n ")


def compose(blocks: Iterable[Block]) -> Iterator[Segment]:
    """The blocks as segments of about `SEGMENT` characters; a segment ends with a line end."""
    parts: list[str] = []
    marks: list[Mark] = []
    pending: list[Mark] = []
    length = 0
    begun = False
    for block in blocks:
        text = clean(block.text)
        if not text:
            pending += block.marks
            continue
        if begun:
            separator = "\n" if block.tight else "\n\n"
            parts.append(separator)
            length += len(separator)
        if length >= SEGMENT:
            yield Segment("".join(parts), tuple(marks))
            parts, marks, length = [], [], 0
        begun = True
        marks += [replace(pended, start=length) for pended in pending]
        marks += [replace(own, start=length + own.start) for own in block.marks]
        pending = []
        parts.append(text)
        length += len(text)
    if parts:
        yield Segment("".join(parts), tuple(marks))
