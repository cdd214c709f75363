"""PDF: page by page; a page without usable text is drawn and read by OCR."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ingest.ocr import INSTALL, Reader, picture_size
from ingest.parse.blocks import Block, clean, heading, mark
from ingest.parse.blocks import chinese_heading as chinese_heading
from ingest.parse.office import extract

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


MOST = 60  # pictures read of one document
SMALLEST = 40  # pixels of the shorter side; less is a line or a bullet
SMALLEST_FILE = 4096  # bytes; without OCR, smaller pictures are not even counted as unread
AREA = 8_000  # pixels; less is an icon
LARGEST = 30 << 20  # bytes of one picture


@dataclass
class Pictures:
    """Reads pictures with `reader`, each distinct one once; None reads nothing and counts."""

    reader: Reader | None
    read: int = 0
    unread: int = 0
    _known: set[int] = field(default_factory=set)

    def blocks(self, content: bytes) -> list[Block]:
        """The picture's text as a block, or nothing."""
        text = self.text(content)
        return [Block(text)] if text else []

    def text(self, content: bytes) -> str:
        key = hash(content)
        if key in self._known:
            return ""  # a logo on every page is read once
        self._known.add(key)
        if self.reader is None:  # nor is there anything to decode a picture with
            self.unread += len(content) > SMALLEST_FILE
            return ""
        size = picture_size(content) if len(content) <= LARGEST else None
        if size is None or min(size) < SMALLEST or size[0] * size[1] < AREA:
            return ""
        if self.read >= MOST:
            self.unread += 1
            return ""
        self.read += 1
        return self.reader.text(content)

    def warnings(self) -> list[str]:
        if not self.unread:
            return []
        reason = f"only the first {MOST} are" if self.reader else "OCR is off or not installed"
        return [f"pictures not read: {self.unread} ({reason})"]


DPI = 200
DRAWING = 10.0  # seconds that one page may take to be drawn
MOST_PAGES = 300  # drawn and read by OCR in one document
EMPTY_PAGES = 30  # in a row without text; then the rest is not drawn any more

_SOUP = re.compile(r"[\xa1-\xff]{2,}")
_CID = re.compile(r"\(cid:\d+\)")
_PRIVATE = re.compile("[\ue000-\uf8ff\ufffd\U000f0000-\U0010ffff\0-\x08\x0e-\x1f]")


def pdf_blocks(
    path: Path, *, reader: Reader | None, pictures: Pictures, warn: list[str]
) -> Iterator[Block]:
    result = extract(path, "application/pdf", images=True)
    read: list[int] = []
    undrawn: list[int] = []
    empty = 0  # pages in a row in which OCR found nothing
    unread: dict[str, list[int]] = {}
    for page in result.pages or []:
        number = page["page_number"]
        yield mark("page", f"p. {number}")
        text = clean(page["content"])
        trouble = "" if text else "no text layer"
        if text and is_mojibake(text):
            trouble = "a text layer that is mojibake"
        tried = len(read) + len(undrawn)
        if trouble and reader and tried < MOST_PAGES and empty < EMPTY_PAGES:
            seen = _ocr(path, number, reader)
            text = clean(seen or "")
            (undrawn if seen is None else read).append(number)
            empty = 0 if text else empty + 1
        elif trouble:
            unread.setdefault(trouble, []).append(number)
            text = ""
        yield from _lines(text)
        if not trouble:
            for image in page["images"]:
                yield from pictures.blocks(image["data"])
    for trouble, pages in unread.items():
        reason = INSTALL if reader is None else f"OCR stops after {MOST_PAGES} or empty pages"
        warn.append(f"pages with {trouble}: {len(pages)}, from p. {pages[0]} on ({reason})")
    if undrawn:
        warn.append(f"pages that could not be drawn for OCR: {', '.join(map(str, undrawn[:10]))}")
    pictures.read += len(read)


def is_mojibake(text: str) -> bool:
    """Whether a page's text is what a font without a usable character map leaves: runs of upper
    Latin-1 ("£± ¹ØÓÚ"), private-use or control characters, (cid:12)."""
    visible = sum(not character.isspace() for character in text) or 1
    soup = sum(len(run) for run in _SOUP.findall(text))
    cids = sum(map(len, _CID.findall(text)))
    return max(soup, cids, 2 * len(_PRIVATE.findall(text))) > 0.3 * visible


def _ocr(path: Path, number: int, reader: Reader) -> str | None:
    """What OCR reads on a page; None when the page can't be drawn."""
    import kreuzberg

    reader.patience(DRAWING)
    try:
        picture = kreuzberg.render_pdf_page(str(path), number - 1, dpi=DPI)
    except (kreuzberg.KreuzbergError, RuntimeError, ValueError):
        return None
    return reader.text(picture)


def _lines(text: str) -> Iterator[Block]:
    """Paragraphs of a page; chapter headings stand alone."""
    held: list[str] = []
    for line in rejoin(text).split("\n"):
        found = chinese_heading(line)
        if found or not line.strip():
            if held:
                yield Block("\n".join(held))
            held = []
            if found:
                yield heading(*found)
        else:
            held.append(line)
    if held:
        yield Block("\n".join(held))
