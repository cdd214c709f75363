"""Printed lines back to running text: a PDF knows where lines end, not where sentences do."""

import re
import unicodedata

_END = re.compile(r"[。！？；：.!?:;…”」』]$")
_START = re.compile(
    r"[•·●○■□◆◇▪▫▶►※★☆√✓*\-–—]|[(（]?[0-9一二三四五六七八九十]{1,3}[)）、.．:：]"
    r"|第\s*[0-9一二三四五六七八九十百千零〇]+\s*[编章节条款项]|[①-⑳]|附[件录表]|[(（][a-zA-Z][)）]"
)
_WIDE = "[\u2e80-\u303f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
_HANGUL = re.compile("[\uac00-\ud7a3]")
_SPACED = re.compile(f"(?<={_WIDE}) (?={_WIDE})")
_TOUCHING = re.compile(f"{_WIDE}(?={_WIDE})")
_IS_WIDE = re.compile(_WIDE)
NARROWEST = 20  # columns; a shorter line is a cell or a label, never the full width of a text
FULL = 0.85  # of the widest line nearby: such a line was broken because it was full


def rejoin(text: str) -> str:
    """The text with lines joined that were broken only because they were full.

    Beside a Chinese character they are joined without a space. Korean, which breaks words too, is
    left as it is, as are lists and tables.
    """
    lines = [unspaced(line) for line in text.split("\n")]
    widths = [width(line) for line in lines]
    joined = lines[:1]
    for at in range(1, len(lines)):
        near = max(widths[max(0, at - 4) : at + 3])
        if _continues(lines[at - 1], lines[at], full=widths[at - 1] >= max(NARROWEST, FULL * near)):
            both_wide = _IS_WIDE.match(joined[-1][-1]) or _IS_WIDE.match(lines[at][0])
            joined[-1] += lines[at] if both_wide else f" {lines[at]}"
        else:
            joined.append(lines[at])
    return "\n".join(joined)


def unspaced(line: str) -> str:
    """A line whose Chinese characters all stand apart (letter-spaced print) without the spaces."""
    spaced = len(_SPACED.findall(line))
    return _SPACED.sub("", line) if spaced > 2 * len(_TOUCHING.findall(line)) + 1 else line


def width(line: str) -> int:
    """Columns of a line in a fixed-width font."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)


def _continues(line: str, following: str, *, full: bool) -> bool:
    if not full or not line or not following or _END.search(line) or _START.match(following):
        return False
    if _HANGUL.search(line[-1]) or _HANGUL.search(following[0]):
        return False
    return not (_tabular(line) or _tabular(following))


def _tabular(line: str) -> bool:
    """Whether a line looks like a row of cells: several numbers, or dot leaders."""
    cells = line.split()
    numbers = sum(bool(re.fullmatch(r"[-+(]?[\d,.]+[%)]?|-", cell)) for cell in cells)
    return (numbers >= 2 and 2 * numbers >= len(cells) - 1) or "……" in line or "....." in line
