"""Blocks, which the reader of every format yields in reading order and `compose` joins to segments."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat

from ingest.types import Mark, MarkKind, Segment

SEGMENT = 1_000_000  # characters

_UNWANTED = re.compile("[\0-\x08\x0b\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff\u200b\xad\ud800-\udfff]")
_LINE_END = re.compile("\r\n?|[\f\u2028]")
_SPACES = re.compile(r"[ \t\xa0]*\n")
_EMPTY_LINES = re.compile(r"\n{3,}")


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of text and the marks in it. A tight block follows the one before on the next line,
    any other after an empty line. A block without text passes its marks on to the next."""

    text: str
    marks: tuple[Mark, ...] = ()
    tight: bool = False


Inner = Callable[..., Iterator[Block]]
"""Reads a document inside another one by content and name; with `part=True` as a part of its text."""


def comment(author: str, text: str, *, sample: str) -> str:
    """A reviewer's comment, named as such in the language of `sample`."""
    word = "批注" if re.search("[\u4e00-\u9fff]", sample) else "Comment"
    return f"[{f'{word} {author}'.strip()}] {text}"


def mark(kind: MarkKind, label: str) -> Block:
    """A place that begins here."""
    return Block("", (Mark(0, kind, label),))


def heading(text: str, level: int) -> Block:
    text = " ".join(clean(text).split())
    return Block(text, (Mark(0, "heading", text, level),) if text else ())


def table(
    rows: Iterable[Sequence[str]], *, numbers: Iterable[int] | None = None, empty_header: bool = False
) -> Iterator[Block]:
    """A table as lines `| a | b |`, the first row as its header, even without a name if `empty_header`;
    `numbers` label the rows."""
    tight = False
    for row, number in zip(rows, repeat(None) if numbers is None else numbers, strict=False):
        block = row_block(row, number, tight=tight)
        if not block.text.strip(" |") and (tight or not empty_header):
            continue
        yield block
        if not tight:
            yield Block(f"|{' --- |' * len(row)}", (), True)
        tight = True


def row_block(row: Sequence[str], number: int | None, *, tight: bool = True) -> Block:
    """A line of a table; a bar inside a cell becomes a full-width one."""
    plain = (cell if cell.isprintable() else clean(cell) for cell in row)
    cells = [" ".join(cell.split()).replace("|", "｜") for cell in plain]
    marks = (Mark(0, "row", f"row {number}"),) if number is not None else ()
    return Block(f"| {' | '.join(cells)} |", marks, tight)


def clean(text: str) -> str:
    """Line ends \\n, no control characters or lone surrogates, no trailing spaces, at most one
    empty line in a row. Letters are left as they are: no normalisation."""
    text = _UNWANTED.sub("", _LINE_END.sub("\n", text))
    return _EMPTY_LINES.sub("\n\n", _SPACES.sub("\n", text)).strip("\n ")


def compose(blocks: Iterable[Block]) -> Iterator[Segment]:
    """The blocks as segments of less than twice `SEGMENT` characters, cut at line ends if possible."""
    parts: list[str] = []
    marks: list[Mark] = []
    length = 0
    for text, own in _spaced(blocks):
        if length >= SEGMENT and not text.isspace():
            yield Segment("".join(parts), tuple(marks))
            parts, marks, length = [], [], 0
        marks += [replace(one, start=length + one.start) for one in own]
        parts.append(text)
        length += len(text)
    if parts:
        yield Segment("".join(parts), tuple(marks))


def _spaced(blocks: Iterable[Block]) -> Iterator[tuple[str, Sequence[Mark]]]:
    """The separators and texts of the blocks, none longer than `SEGMENT`, each with its marks."""
    pending: list[Mark] = []
    first = True
    for block in blocks:
        text = clean(block.text)
        if not text:
            pending += block.marks
            continue
        if not first:
            yield "\n" if block.tight else "\n\n", ()
        marks = [*(replace(one, start=0) for one in pending), *block.marks]
        first, pending = False, []
        yield from _cut(text, marks) if len(text) > SEGMENT else ((text, marks),)


def _cut(text: str, marks: Sequence[Mark]) -> Iterator[tuple[str, Sequence[Mark]]]:
    """A long text in parts that end at line ends, or anywhere in a line longer than `SEGMENT`."""
    start = 0
    while start < len(text):
        end = start + SEGMENT
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        own = [replace(one, start=one.start - start) for one in marks if start <= one.start < end]
        yield text[start:end], own
        start = end


_NUMBER = "[0-9０-９零〇一二三四五六七八九十百千两]+"
_PART = re.compile(rf"第\s*{_NUMBER}\s*([编編篇部卷章节節])(?![的是中里内內])\s*[：:、.．]?\s*(.*)")
_WHOLE = re.compile(r"(目录|目錄|前言|序言|附则|附則|附录[一二三四五六七八九十0-9]*|参考文献|致谢|摘要)")
_RANK = {"编": 1, "編": 1, "篇": 1, "部": 1, "卷": 1, "章": 2, "节": 3, "節": 3}
_LONGEST_HEADING = 40  # characters of a heading; longer lines are sentences that mention a chapter
_PUNCTUATION = re.compile(r"[。！？；，,;!?]|\.{3}|…")


def chinese_heading(line: str) -> tuple[str, int] | None:
    """`("第二章 合同的订立", 2)` if the line is a heading by its numbering (编 1, 章 2, 节 3), else None."""
    text = " ".join(line.split())
    if not 2 <= len(text) <= _LONGEST_HEADING or _PUNCTUATION.search(text):
        return None
    if match := _PART.fullmatch(text):
        return (text, _RANK[match[1]]) if len(match[2]) <= 30 else None
    return (text, 2) if _WHOLE.fullmatch(text.replace(" ", "")) else None
