"""PDF: page by page; a page without usable text is drawn and read by OCR. And pages as pictures."""

import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ingest.errors import Unreadable
from ingest.i18n import Translatable
from ingest.ocr import INSTALL, PageReader, picture_size
from ingest.parse.blocks import Block, chinese_heading, clean, heading, mark
from ingest.parse.office import extract

if TYPE_CHECKING:
    from pypdfium2 import PdfPage, PdfTextPage

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
FULL = 0.85  # of the widest line nearby: a line as wide as that was broken because it was full


def rejoin(text: str) -> str:
    """The text with lines joined that were broken only because they were full.

    Lines are joined without a space beside a Chinese character. Korean, which also breaks words, is
    left as it is, and so are lists and tables.
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
    """The line without the spaces between Chinese characters, if most of them are letter-spaced."""
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


MOST = 60  # pictures of one document that are read
SMALLEST = 40  # pixels of the shorter side; a smaller picture is a line or a bullet
SMALLEST_FILE = 4096  # bytes; without OCR, smaller pictures are not even counted as unread
AREA = 8_000  # pixels; a smaller picture is an icon
LARGEST = 30 << 20  # bytes of one picture


@dataclass
class Pictures:
    """Reads each distinct picture once with `reader`, or only counts pictures if that is None."""

    reader: PageReader | None
    read: int = 0
    unread: int = 0
    _known: set[int] = field(default_factory=set)

    def blocks(self, content: bytes) -> list[Block]:
        """The picture's text as a block, or no block."""
        text = self.text(content)
        return [Block(text)] if text else []

    def text(self, content: bytes) -> str:
        key = hash(content)
        if key in self._known:
            return ""  # a logo on every page is read once
        self._known.add(key)
        if self.reader is None:  # then there is no library to decode a picture either
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
        reason = Translatable("OCR is off or not installed")
        if self.reader:
            reason = Translatable("only the first {most} are", most=MOST)
        return [
            Translatable("pictures not read: {count} ({reason})", count=self.unread, reason=reason)
        ]


DPI = 200
DRAWING = 10.0  # seconds that drawing one page may take
MOST_PAGES = 300  # pages of one document that are drawn and read by OCR
EMPTY_PAGES = 30  # pages without text in a row, after which no more are drawn

_SOUP = re.compile(r"[\xa1-\xff]{2,}")
_CID = re.compile(r"\(cid:\d+\)")
_PRIVATE = re.compile("[\ue000-\uf8ff\ufffd\U000f0000-\U0010ffff\0-\x08\x0e-\x1f]")


def pdf_blocks(path: Path, *, pictures: Pictures, warn: list[str]) -> Iterator[Block]:
    result, reader = extract(path, "application/pdf", images=True), pictures.reader
    read = empty = 0  # pages read by OCR, and pages in a row in which it found nothing
    undrawn: list[int] = []
    unread: dict[Translatable, list[int]] = {}
    for page in result.pages or []:
        number = page["page_number"]
        yield mark("page", f"p. {number}")
        text = clean(page["content"])
        fault = None if text else Translatable("no text layer")
        if is_mojibake(text):
            fault = Translatable("a text layer that is mojibake")
        if fault and reader and read + len(undrawn) < MOST_PAGES and empty < EMPTY_PAGES:
            drawn = _ocr(path, number, reader)
            text, read = clean(drawn or ""), read + (drawn is not None)
            if drawn is None:
                undrawn.append(number)
            empty = 0 if text else empty + 1
        elif fault:
            unread.setdefault(fault, []).append(number)
            text = ""
        yield from _lines(text)
        for image in () if fault else page["images"]:
            yield from pictures.blocks(image["data"])
    for fault, pages in unread.items():
        reason = Translatable("OCR stops after {most} or empty pages", most=MOST_PAGES)
        warn.append(
            Translatable(
                "pages with {fault}: {count}, from p. {first} on ({reason})",
                fault=fault,
                count=len(pages),
                first=pages[0],
                reason=reason if reader else INSTALL,
            )
        )
    if undrawn:
        pages = undrawn[:10]
        warn.append(Translatable("pages that could not be drawn for OCR: {pages}", pages=pages))
    pictures.read += read


def is_mojibake(text: str) -> bool:
    """Whether a page's text comes from a font without a usable character map: runs of upper Latin-1
    ("£± ¹ØÓÚ"), private-use or control characters, (cid:12)."""
    visible = sum(not character.isspace() for character in text) or 1
    soup = sum(len(run) for run in _SOUP.findall(text))
    cids = sum(map(len, _CID.findall(text)))
    return max(soup, cids, 2 * len(_PRIVATE.findall(text))) > 0.3 * visible


def _ocr(path: Path, number: int, reader: PageReader) -> str | None:
    """The text that OCR reads on a page, or None if the page can't be drawn."""
    import kreuzberg

    reader.extend_deadline(DRAWING)
    try:
        picture = kreuzberg.render_pdf_page(str(path), number - 1, dpi=DPI)
    except (kreuzberg.KreuzbergError, RuntimeError, ValueError):
        return None
    return reader.text(picture)


def _lines(text: str) -> Iterator[Block]:
    """Paragraphs of a page; a chapter heading is a paragraph of its own."""
    paragraph: list[str] = []
    for line in rejoin(text).split("\n"):
        found = chinese_heading(line)
        if not found and line.strip():
            paragraph.append(line)
            continue
        yield Block("\n".join(paragraph))
        paragraph = []
        if found:
            yield heading(*found)
    yield Block("\n".join(paragraph))


WIDTH = 1200  # pixels
TALLEST = 3000  # pixels; a page may be very long
LEAST = 6  # a part of a passage is marked if it has at least this many characters
MARK = (255, 214, 10, 96)  # RGBA

Box = tuple[float, float, float, float]
"""Left, bottom, right, top in points, from the lower left corner of the page."""


def draw(path: Path, number: int, passage: str) -> tuple[bytes, bool]:
    """The page as PNG, and whether `passage` was found on it. Pages are counted from 1.

    Raises `Unreadable` if the file is not a PDF, needs a password or has no such page.
    """
    import pypdfium2

    try:
        with pypdfium2.PdfDocument(path) as document:
            count = len(document)
            if not 1 <= number <= count:
                raise Unreadable(
                    "{name} has {count} pages, not {page}", name=path.name, count=count, page=number
                )
            page = document[number - 1]
            boxes = line_boxes(_character_boxes(page.get_textpage(), passage))
            return _picture(page, boxes), bool(boxes)
    except pypdfium2.PdfiumError as error:
        raise Unreadable("{name} can't be drawn: {error}", name=path.name, error=error) from error


def _picture(page: "PdfPage", boxes: Sequence[Box]) -> bytes:
    from PIL import Image, ImageDraw

    width, height = page.get_size()
    scale = min(WIDTH / max(width, 1), TALLEST / max(height, 1))
    picture = page.render(scale=scale).to_pil().convert("RGBA")
    layer = Image.new("RGBA", picture.size)
    pen = ImageDraw.Draw(layer)
    for left, bottom, right, top in boxes:
        corners = (left * scale - 2, (height - top) * scale - 2)
        pen.rectangle((*corners, right * scale + 2, (height - bottom) * scale + 2), fill=MARK)
    out = io.BytesIO()
    Image.alpha_composite(picture, layer).convert("RGB").save(out, "PNG", optimize=False)
    return out.getvalue()


def _character_boxes(text: "PdfTextPage", passage: str) -> list[Box]:
    """The boxes of a passage's characters on the page. It may begin on the page before or end on the
    next; spaces, line breaks and the width of characters are ignored."""
    letters = [
        (letter, index)
        for index, character in enumerate(text.get_text_range())
        for letter in _letters(character)
    ]
    start, end = find("".join(letter for letter, _ in letters), _letters(passage))
    return [text.get_charbox(index) for index in dict.fromkeys(at for _, at in letters[start:end])]


def find(page: str, passage: str) -> tuple[int, int]:
    """The span of `passage` in `page`, or of its longest beginning or end that is there."""
    if not passage:
        return 0, 0
    if (at := page.find(passage)) >= 0:
        return at, at + len(passage)
    # The beginning of the passage may end the page, or its end begin the page.
    for length in range(min(len(passage), len(page)), LEAST - 1, -1):
        if page.endswith(passage[:length]):
            return len(page) - length, len(page)
        if page.startswith(passage[-length:]):
            return 0, length
    return 0, 0


def _letters(text: str) -> str:
    """The text without spaces, case and width of characters."""
    return "".join("".join(unicodedata.normalize("NFKC", c).split()).casefold() for c in text)


def line_boxes(boxes: Sequence[Box]) -> list[Box]:
    """One box for each run of boxes of characters that follow one another on a line."""
    runs: list[Box] = []
    for left, bottom, right, top in boxes:
        if runs:
            start, low, end, high = runs[-1]
            if low <= (bottom + top) / 2 <= high and left >= start:
                runs[-1] = start, min(low, bottom), max(end, right), max(high, top)
                continue
        runs.append((left, bottom, right, top))
    return runs
