"""PDF: its pages as blocks; a page without usable text is drawn and read by OCR. And pages as pictures."""

import io
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pypdfium2 import PdfDocument, PdfiumError, PdfPage, PdfTextPage

from ingest.errors import Unreadable
from ingest.files import damaged, locked
from ingest.i18n import Translatable
from ingest.ocr import INSTALL, LONGEST, PageReader, open_picture, picture_size
from ingest.parse.blocks import Block, clean
from ingest.parse.pdf_layout import Layout
from ingest.parse.pdf_page import RADICALS, Box, PageContent, Run, read_page, row_text, stretches, visual_rows

if TYPE_CHECKING:
    from PIL.Image import Image

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
        picture = open_picture(content)
        return "" if picture is None else picture_text(self.reader, picture)

    def warnings(self) -> list[str]:
        if not self.unread:
            return []
        reason = Translatable("OCR is off or not installed")
        if self.reader:
            reason = Translatable("only the first {most} are", most=MOST)
        return [Translatable("pictures not read: {count} ({reason})", count=self.unread, reason=reason)]


def picture_text(reader: PageReader, picture: "Image") -> str:
    """What OCR reads in a picture, in the order of a page."""
    page = PageContent(1, picture.width, picture.height, runs=_runs(reader, picture, 1.0))
    return Layout().add(page)


def _runs(reader: PageReader, picture: "Image", points: float) -> list[Run]:
    """The lines that OCR reads in a picture; a pixel has `points`."""
    runs = []
    for line in reader.lines(picture):
        box = [points * edge for edge in (line.left, line.top, line.right, line.bottom)]
        runs.append(Run(line.text, *box, size=0.8 * (box[3] - box[1])))
    return runs


DPI = 200
DRAWING = 10.0  # seconds that drawing one page may take
LARGEST_PAGE = 14_400  # points, by the PDF standard
MOST_DAMAGED = 100  # pages that can't be read, after which the rest is left out
MOST_PAGES = 300  # pages of one document that are drawn and read by OCR
EMPTY_PAGES = 30  # pages without text in a row, after which no more are drawn
MOST_CHARACTERS = 500_000  # of one document; pages after them are read as plain text
SAME = 0.3  # of a page's pairs of characters; OCR that shares fewer has read another text

_SOUP = re.compile(r"[\xa1-\xff]{2,}")
_CID = re.compile(r"\(cid:\d+\)")
_PRIVATE = re.compile("[\ue000-\uf8ff\ufffd\U000f0000-\U0010ffff\0-\x08\x0e-\x1f]")
_HAN = re.compile("[\u3400-\u9fff]")
_LATIN = re.compile(r"(?<![\w./@:-])[A-Za-z]{3,}(?![\w/@:]|\.\w)")  # no addresses
_NO_TEXT = Translatable("no text layer")
_MOJIBAKE = Translatable("a text layer that is mojibake")
_DOUBT = Translatable("a text layer that may be wrong")
_DOTS = re.compile(r"[\s.…·‥]|[\x02\ufffe-]")


class PdfReader:
    """Reads one document: `blocks` gives its text, `warn` gets what was left out or is in doubt."""

    def __init__(self, path: Path, pictures: Pictures, warn: list[str]) -> None:
        self.path, self.pictures, self.warn = path, pictures, warn
        self._seen: set[int] = set()
        self._characters = self._read = self._empty = 0
        self._undrawn: list[int] = []
        self._faults: dict[str, list[int]] = {}

    def blocks(self) -> Iterator[Block]:
        """Raises `Unreadable` if the file is damaged or needs a password."""
        name = self.path.name
        try:
            with PdfDocument(self.path) as document:
                document.init_forms()
                pages = list(self._pages(document))
                outline = {
                    "".join(entry.get_title().split()): min(entry.level + 1, 6)
                    for entry in islice(document.get_toc(max_depth=6), 5000)
                }
        except PdfiumError as error:
            if "password" in str(error).lower():
                raise locked(name) from error
            raise damaged(name, str(error).strip().rstrip(".")) from error
        if not pages:
            raise damaged(name, Translatable("no pages"))
        yield from self._layout(pages, outline)
        self._report()

    def _pages(self, document: PdfDocument) -> Iterator[PageContent]:
        for number in range(1, len(document) + 1):
            try:
                page = document[number - 1]
            except PdfiumError:
                self._fault(fault := Translatable("content that can't be read"), number)
                if len(self._faults[fault]) > MOST_DAMAGED:
                    break
                yield PageContent(number, 0, 0)
                continue
            content = read_page(page, number, plain=self._characters > MOST_CHARACTERS)
            self._characters += len(content.plain)
            if content.crowded or self._characters > MOST_CHARACTERS:
                self._fault(Translatable("too much on them to find tables and headings"), number)
            self._mend(page, content)
            if content.plain:
                content.notes = [*self._picture_texts(page, content), *content.notes]
            content.pictures = []
            page.close()
            yield content

    def _mend(self, page: PdfPage, content: PageContent) -> None:
        """Read the page by OCR if its text layer is missing or wrong."""
        text, reader = content.plain, self.pictures.reader
        if not text.strip():
            fault = None if content.runs else _NO_TEXT
        else:
            fault = _MOJIBAKE if is_mojibake(text) else _DOUBT if is_doubtful(text) else None
        if not fault:
            return
        if reader and self._read + len(self._undrawn) < MOST_PAGES and self._empty < EMPTY_PAGES:
            lines = self._ocr(page, content.number, reader)
        else:
            lines = None
            self._fault(fault, content.number)
        if fault is _DOUBT:
            seen = "".join(run.text for run in lines or ())
            if len(seen) <= len(text) // 4 or alike(text, seen):
                return
        if lines is not None:
            content.slanted = []
            self._empty = 0 if lines else self._empty + 1
        content.runs, content.plain = lines or [], ""

    def _ocr(self, page: PdfPage, number: int, reader: PageReader) -> list[Run] | None:
        """The lines that OCR reads on a page, or None if the page can't be drawn."""
        reader.extend_deadline(DRAWING)
        try:
            picture = _drawn(page)
        except (RuntimeError, ValueError, MemoryError):
            self._undrawn.append(number)
            return None
        self._read += 1
        return _runs(reader, picture, page.get_width() / picture.width)

    def _picture_texts(self, page: PdfPage, content: PageContent) -> Iterator[str]:
        """The texts of the page's pictures that do not lie behind its text."""
        for picture in content.pictures:
            try:
                if min(picture.get_px_size()) < SMALLEST:
                    continue
                left, bottom, right, top = picture.get_bounds()
                raw = bytes(picture.get_data())
                upper, lower = content.height - top, content.height - bottom
                behind = sum(
                    len(run.text)
                    for run in content.runs
                    if left < run.left < right and upper < run.middle < lower
                )
                if hash(raw) in self._seen or behind > 100:
                    continue
                self._seen.add(hash(raw))
                drawn = io.BytesIO()
                if self.pictures.reader:
                    if picture.container is None:
                        edges = left, bottom, page.get_width() - right, page.get_height() - top
                        image = _drawn(page, tuple(max(0, edge) for edge in edges))
                    else:  # in a form its place is not known
                        image = picture.get_bitmap().to_pil().convert("RGB")
                    image.save(drawn, "PNG")
                text = self.pictures.text(drawn.getvalue() or raw)
            except (RuntimeError, ValueError, OSError):
                self.pictures.unread += 1
                continue
            if text:
                yield text

    def _layout(self, pages: list[PageContent], outline: dict[str, int]) -> Iterator[Block]:
        plain = {page.number: clean(page.plain) for page in pages}
        running, layout = running_lines(pages), Layout()
        for page in pages:
            start = len(layout.items)
            text = layout.add(page) if page.runs else ""
            if missing(plain[page.number], text + "".join(page.slanted + page.running)):
                if page.runs:
                    self._fault(Translatable("a layout that is not understood"), page.number)
                del layout.items[start:]
                layout.add_text(plain[page.number], page.number)
            for extra in (*page.slanted, *page.notes):
                layout.add_text(clean(extra), page.number)
        for number in layout.large:
            self._fault(Translatable("a table too large to be read as one"), number)
        if running:
            lines = [text[:60] for text, _ in running.most_common(6)]
            self.warn.append(
                Translatable(
                    "{count} running headers, footers and page numbers left out: {lines:;}",
                    count=running.total(),
                    lines=lines,
                )
            )
        yield from layout.blocks(outline)

    def _fault(self, fault: Translatable, number: int) -> None:
        self._faults.setdefault(fault, []).append(number)

    def _report(self) -> None:
        for fault, pages in self._faults.items():
            reason = Translatable("they are read as plain text")
            if fault in (_NO_TEXT, _MOJIBAKE, _DOUBT):
                stops = Translatable("OCR stops after {most} or empty pages", most=MOST_PAGES)
                reason = stops if self.pictures.reader else INSTALL
            self.warn.append(
                Translatable(
                    "pages with {fault}: {count}, from p. {first} on ({reason})",
                    fault=fault,
                    count=len(pages),
                    first=pages[0],
                    reason=reason,
                )
            )
        if self._undrawn:
            pages = self._undrawn[:10]
            self.warn.append(Translatable("pages that could not be drawn for OCR: {pages}", pages=pages))
        self.pictures.read += self._read


def pdf_blocks(path: Path, *, pictures: Pictures, warn: list[str]) -> Iterator[Block]:
    return PdfReader(path, pictures, warn).blocks()


def _drawn(page: PdfPage, crop: Any = (0, 0, 0, 0)) -> "Image":
    """The page for OCR, or a part of it; `crop` cuts points off at the left, bottom, right and top."""
    longest = max(page.get_size())
    if longest > LARGEST_PAGE:
        raise ValueError
    scale: Any = min(DPI / 72, LONGEST / max(longest, 1))
    return page.render(scale=scale, crop=crop).to_pil().convert("RGB")


def is_mojibake(text: str) -> bool:
    """Whether a page's text comes from a font without a usable character map: runs of upper Latin-1
    ("£± ¹ØÓÚ"), private-use or control characters, (cid:12)."""
    visible = len("".join(text.split())) or 1
    soup = sum(len(run) for run in _SOUP.findall(text))
    cids = sum(map(len, _CID.findall(text)))
    return max(soup, cids, 2 * len(_PRIVATE.findall(text))) > 0.3 * visible


def is_doubtful(text: str) -> bool:
    """Whether a text may come from a wrong character map: few of its Chinese characters or of the
    letters of its words are common ones, or characters without a meaning stand among it."""
    han = _HAN.findall(text)
    if len(han) >= 20 and sum(map(_is_common, han)) < 0.7 * len(han):
        return True
    words = "".join(_LATIN.findall(text)).lower()
    if len(words) >= 60 and sum(letter in "eainorst" for letter in words) < 0.42 * len(words):
        return True
    return len(_PRIVATE.findall(text)) > 0.05 * len(text)


def _is_common(character: str) -> bool:
    """Whether it is among the first 3,755 of GB 2312, 5,401 of Big5 or 2,965 of JIS X 0208."""
    sets = (("gb2312", 0xD7), ("big5", 0xC6), ("euc_jp", 0xCF))
    codes = [(character.encode(charset, "ignore"), last) for charset, last in sets]
    return any(len(code) == 2 and code[0] <= last for code, last in codes)


def alike(one: str, other: str) -> bool:
    """Whether two readings of a page share enough pairs of characters to be the same text."""
    pairs = [Counter(map("".join, pairwise("".join(text.split())))) for text in (one, other)]
    return (pairs[0] & pairs[1]).total() > SAME * min(pair.total() for pair in pairs)


def missing(plain: str, shown: str) -> bool:
    """Whether a character of the page's plain text is nowhere in the text shown; leaders don't count."""
    return bool(Counter(_DOTS.sub("", plain)) - Counter(_DOTS.sub("", shown)))


EDGE = 0.2  # of a page's height; running lines stand no deeper
DEEPEST = 8  # running lines at one edge, at most
_DIGITS = re.compile(r"\d+")


def running_lines(pages: Sequence[PageContent]) -> Counter[str]:
    """Take the lines that repeat at the edge of pages, and watermarks, out of the pages' runs.

    Returns their texts, and on how many pages each stands. A line of a table is no running line, and
    neither is anything if that would be half of the text.
    """
    places: dict[tuple[str, int], list[tuple[int, str]]] = defaultdict(list)
    sides: list[tuple[PageContent, list[list[Run]]]] = []
    for page in pages:
        rows = visual_rows(page.runs)
        middle = sorted(run.size for run in page.runs)[len(page.runs) // 2] if rows else 0
        sides += [(page, _edge(page, part[:DEEPEST], middle)) for part in (rows, rows[::-1])]
    for page, rows in sides:
        for row in rows:
            places[_form(row)].append((page.number, row_text(row)))
    least = 2 if len(pages) < 8 else 3
    known = {
        form
        for form, found in places.items()
        if len({number for number, _ in found}) >= least and _repeats(form[0], found)
    }
    names = {text for text, _ in known if re.search(r"[^\W\d_]", text)}
    running: dict[int, tuple[PageContent, list[Run]]] = {}
    for page, rows in sides:
        for row in rows:
            text, place = _form(row)
            if text not in names and not {(text, place + by) for by in (-1, 0, 1)} & known:
                break
            running[id(row[0])] = page, row
    count = sum(len(row_text(row)) for _, row in running.values())
    if 2 * count > sum(len(run.text) for page in pages for run in page.runs):
        return Counter()
    texts: Counter[str] = Counter()
    for page, row in running.values():
        texts[_DIGITS.sub("#", row_text(row))] += 1
        page.running.append(row_text(row))
        taken = set(map(id, row))
        page.runs = [run for run in page.runs if id(run) not in taken]
    slanted = Counter(text for page in pages for text in set(page.slanted))
    for page in pages:
        stamps = [text for text in page.slanted if slanted[text] >= 2]
        page.slanted = [text for text in page.slanted if slanted[text] < 2]
        page.running += stamps
        texts.update(stamps)
    return texts


def _form(row: list[Run]) -> tuple[str, int]:
    return _DIGITS.sub("#", "".join(row_text(row).split())), round(row[0].bottom / 6)


def _edge(page: PageContent, rows: list[list[Run]], middle: float) -> list[list[Run]]:
    """The rows from one edge inward that may be running lines."""
    edge: list[list[Run]] = []
    for row in rows:
        place = row[0].middle
        inside = any(rule.start < place < rule.end for rule in page.down if rule.at < row[0].left)
        large = row[0].size > 1.3 * middle or (len(stretches(row)) > 3 and not _DIGITS.search(row_text(row)))
        if inside or large or min(place, page.height - place) > EDGE * page.height:
            break
        edge.append(row)
    return edge


def _repeats(form: str, found: Sequence[tuple[int, str]]) -> bool:
    """Whether the texts are the same, or differ only by a number that counts the pages."""
    if "#" not in form or len({text for _, text in found}) == 1:
        return True
    numbers = [
        (page, [int(digits[:9]) for digits in _DIGITS.findall("".join(text.split()))]) for page, text in found
    ]
    steps = zip(*([number - page for number in own] for page, own in numbers), strict=True)
    return any(len(set(step)) <= 1 + len(numbers) // 10 for step in steps)


WIDTH = 1200  # pixels
TALLEST = 3000  # pixels; a page may be very long
LEAST = 6  # a part of a passage is marked if it has at least this many characters
MARK = (255, 214, 10, 96)  # RGBA


def draw(path: Path, number: int, passage: str) -> tuple[bytes, int, float | None]:
    """The page as PNG, the number of pages, and where `passage` begins: the part of the page's height
    above it, None if it isn't on the page. Pages are counted from 1.

    Raises `Unreadable` if the file is not a PDF, needs a password or has no such page.
    """
    try:
        with PdfDocument(path) as document:
            count = len(document)
            if not 1 <= number <= count:
                raise Unreadable(
                    "{name} has {count} pages, not {page}", name=path.name, count=count, page=number
                )
            page = document[number - 1]
            boxes = _line_boxes(page.get_textpage(), passage)
            top = 1 - max(box[3] for box in boxes) / page.get_height() if boxes else None
            return _picture(page, boxes), count, top
    except PdfiumError as error:
        raise Unreadable("{name} can't be drawn: {error}", name=path.name, error=error) from error


def _picture(page: PdfPage, boxes: Sequence[Box]) -> bytes:
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


def _line_boxes(text: PdfTextPage, passage: str) -> list[Box]:
    """The boxes of a passage's lines on the page. It may begin on the page before or end on the
    next; spaces, line breaks and the width of characters are ignored."""
    letters = [
        (letter, index)
        for index, character in enumerate(text.get_text_range())
        for letter in _letters(character)
    ]
    start, end = find("".join(letter for letter, _ in letters), _letters(passage))
    places = [index for _, index in letters[start:end]]
    rectangles = text.count_rects(places[0], places[-1] - places[0] + 1) if places else 0
    return [text.get_rect(number) for number in range(rectangles)]


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
    """The text without spaces, case and width of characters, and the lines between cells."""
    plain = text.translate(RADICALS).replace("|", "")
    return "".join("".join(unicodedata.normalize("NFKC", c).split()).casefold() for c in plain)
