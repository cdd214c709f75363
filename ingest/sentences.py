"""Where paragraphs and sentences end, in Chinese and Latin scripts. Spans always tile the text."""

import re
from itertools import pairwise

Span = tuple[int, int]

# A line that starts something: heading, article, list item, table row, indented paragraph.
_ITEM = (
    r"#{1,6}\s|第[一二三四五六七八九十百千零〇两\d]+[编篇章节条款]|[（(][一二三四五六七八九十\d]+[）)]"
    r"|[一二三四五六七八九十]+[、．]|\d+[.、．)）](?!\d)|[-*+•●◆■]\s|\||>|　　|```"
)
_CLOSERS = r"[”’」』）》】\)\]\"']*"
_PARAGRAPH = re.compile(
    rf"\n(?=\s*\n)|(?<=[。！？；：!?;:|])\n|(?<=[。！？!?.][”’」』）\"'])\n|(?<=\.)\n(?=[A-Z])|\n(?=\s*(?:{_ITEM}))"
)
# A Latin full stop ends a sentence only before space and a capital, digit or CJK character, and
# not after a single capital (initials) or a title.
_SENTENCE = re.compile(
    rf"[。！？!?]+{_CLOSERS}|…{{2,}}{_CLOSERS}"
    rf"|(?<![A-Z]\.)(?<!\b[A-Z])(?<!\bDr|\bMr|\bMs|\bSt|\bNo|\bvs)\.{_CLOSERS}(?=\s+[A-Z\d\"“‘(\u4e00-\u9fff])|\n(?=\n)"
)


def paragraphs(text: str) -> list[Span]:
    """The paragraphs of `text`, blank lines and trailing space kept with what they follow.

    A line end inside a paragraph (hard-wrapped text, lines of a PDF) is no boundary.
    """
    return _tile(text, [match.end() for match in _PARAGRAPH.finditer(text)])


def sentences(text: str) -> list[Span]:
    """The sentences of `text`, closing quotes and trailing space kept with what they follow."""
    inner = [match.end() for match in _SENTENCE.finditer(text)]
    return _tile(text, sorted({*inner, *(start for start, _ in paragraphs(text))}))


def _tile(text: str, cuts: list[int]) -> list[Span]:
    """Spans between cuts; leading space goes to the span before, so that none is blank."""
    bounds, last = [0], len(text.rstrip())
    for cut in cuts:
        while cut < len(text) and text[cut] in " \t\n":
            cut += 1
        if bounds[-1] < cut < last and not text[bounds[-1] : cut].isspace():
            bounds.append(cut)
    return list(pairwise([*bounds, len(text)])) if text else []
