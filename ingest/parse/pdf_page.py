"""One page of a PDF as PDFium gives it: pieces of lines with their places, ruled lines, form values, notes;
and pieces as rows and cells of text."""

import ctypes
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Any

import pypdfium2.raw as pdfium
from pypdfium2 import PdfMatrix, PdfPage

from ingest.parse.blocks import clean, comment

MOST_CHARACTERS = 150_000  # of one page; a page with more is read as plain text
MOST_RUNS = 8_000  # pieces of lines of one page
MOST_RULES = 40_000  # sides of shapes of one page that are looked at
MOST_NOTES = 2_000  # annotations of one page
THIN = 3.0  # points; a thinner shape is a line
GAP = 1.0  # of the font's size; a wider gap ends a piece
_BOLD = re.compile(r"bold|heavy|black|demi|simhei|heiti|黑体|-hei|mhei", re.IGNORECASE)
WIDE = "[\u2e80-\u303f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
_WIDE = re.compile(WIDE)
_NUMBER = re.compile(r"[-+−–△▲▼(（]?[$¥€￥]?\s?\d[\d,.，]*\s?(%|％|\)|）|元|万元|亿元|个|份|批)?|[-—–]+|N/?A")
BROKEN = re.compile(r"\d,\n\d{3}(?!\d)|\d,\d{3}\.?\n\.?\d{1,2}$|\d,\d{3}\.\d\n\d$")  # one number
LEADER = re.compile(r"(?:[.·•…‥]\s?){4,}|…{2,}")
_WORD = re.compile("[^\\s\0\x02\ufffe]+[\x02\ufffe]?|[\x02\ufffe]")
_BLANK = re.compile(r"[^\S\r\n]*")
_MARKS = {2: "-", 0xFFFE: "-"}  # PDFium's marks for a hyphen at the end of a line

# CJK radicals -> ideographs, from Unicode's EquivalentUnifiedIdeograph.txt; Kangxi radicals by NFKC.
RADICALS = str.maketrans(
    "⺁⺂⺃⺄⺅⺆⺇⺈⺉⺊⺋⺌⺍⺎⺏⺐⺑⺒⺓⺔⺕⺖⺗⺘⺙⺛⺜⺝⺞⺠⺡⺢⺣⺤⺥⺦⺧⺨⺩⺪⺫⺬⺭⺮⺯⺰⺱⺲⺳⺴⺵⺶⺷⺸⺹⺺"
    "⺻⺼⺽⺾⺿⻀⻁⻂⻃⻄⻅⻆⻇⻈⻉⻊⻋⻌⻍⻎⻏⻐⻑⻒⻓⻔⻕⻖⻗⻘⻙⻚⻛⻜⻝⻞⻟⻠⻡⻢⻣⻤⻥⻦⻧⻨⻩⻪⻫⻬⻭⻮⻯⻰⻱⻲",
    "厂乛乚乙亻冂𠘨刀刂卜㔾小小兀尣尢𡯂巳幺彑𫜹忄心扌攵旡日月歺民氵氺灬爫爫丬牛犭王𤴔目示礻𥫗糹纟罓罒㓁冗𦉫羊𦍌𦍋耂肀"
    "聿肉𦥑艹艹艹虎衤覀西见角𧢲讠贝𧾷车辶辶辶邑钅長镸长门𨸏阝雨青韦页风飞食𩙿飠饣𩠐马骨鬼鱼鸟卤麦黄黾斉齐歯齿竜龙龜亀",
)
RADICALS |= {code: unicodedata.normalize("NFKC", chr(code)) for code in range(0x2F00, 0x2FD6)}


@dataclass(slots=True)
class Run:
    """A piece of a line without wide gaps, and its box in points from the upper left corner.

    `words` are the left and right edges of its words, and the number of their characters.
    """

    text: str
    left: float
    top: float
    right: float
    bottom: float
    size: float
    bold: bool = False
    words: list[tuple[float, float, int]] = field(default_factory=list)

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2


@dataclass(frozen=True, slots=True)
class Rule:
    """A straight line: its place across its direction, and from where to where it runs."""

    at: float
    start: float
    end: float


@dataclass(slots=True)
class PageContent:
    """What stands on a page. `slanted` is text in another direction than most of the page's."""

    number: int
    width: float
    height: float
    plain: str = ""
    runs: list[Run] = field(default_factory=list)
    across: list[Rule] = field(default_factory=list)
    down: list[Rule] = field(default_factory=list)
    slanted: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    """Lines that were taken out because they repeat on other pages."""
    notes: list[str] = field(default_factory=list)
    crowded: bool = False
    pictures: list[Any] = field(default_factory=list)


Box = tuple[float, float, float, float]
"""Left, bottom, right, top in points, from the lower left corner of the page; or, once upright, left,
top, right, bottom from the upper left corner."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Turns boxes of PDF (left, bottom, right, top, upward) into boxes of a page that is read upright."""

    box: Box
    quarter: int
    """Quarter turns of the text, counter-clockwise."""

    def __call__(self, left: float, bottom: float, right: float, top: float) -> Box:
        x0, y0, x1, y1 = self.box
        edges = (
            (left - x0, right - x0),
            (bottom - y0, top - y0),
            (x1 - right, x1 - left),
            (y1 - top, y1 - bottom),
        )
        (near, far), (upper, lower) = edges[self.quarter], edges[self.quarter - 1]
        return near, upper, far, lower


def read_page(page: PdfPage, number: int, *, plain: bool = False) -> PageContent:
    """The content of a page; only its plain text if `plain`, or if the page is crowded."""
    text = page.get_textpage()
    count = max(pdfium.FPDFText_CountChars(text.raw), 0)
    frame = Frame(page.get_bbox(), _quarter(text.raw, count))
    width, height = page.get_width(), page.get_height()
    if (frame.quarter - page.get_rotation() // 90) % 2:
        width, height = height, width
    words = text.get_text_range().translate(RADICALS) if count else ""
    content = PageContent(number, width, height, words)
    content.crowded = count > MOST_CHARACTERS
    if not plain and not content.crowded:
        _read_runs(text.raw, count, frame, content)
        content.crowded = len(content.runs) > MOST_RUNS
        _read_shapes(page, frame, content)
    if content.crowded:
        content.runs, content.across, content.down = [], [], []
    _read_annotations(page, frame, content)
    return content


def _quarter(text: Any, count: int) -> int:
    turns = [0, 0, 0, 0]
    for index in range(0, count, count // 16 + 1):
        turns[_turn(pdfium.FPDFText_GetCharAngle(text, index)) or 0] += 1
    return turns.index(max(turns))


def _turn(angle: float) -> int | None:
    """Quarter turns of PDFium's angle (clockwise, radians); None if it is not straight."""
    turns = -angle / 1.5707963
    return round(turns) % 4 if abs(turns - round(turns)) < 0.05 else None


def _read_runs(text: Any, count: int, frame: Frame, content: PageContent) -> None:
    """Join the words that follow one another on a line."""
    character, box_of = pdfium.FPDFText_GetUnicode, pdfium.FPDFText_GetLooseCharBox
    letters = "".join([chr(character(text, index)) for index in range(count)])
    first, last = pdfium.FS_RECTF(), pdfium.FS_RECTF()
    slanted: list[str] = []
    run: Run | None = None
    end = 0
    for word in _WORD.finditer(letters):
        start, own = word.start(), _text(word[0])
        broken = run is None or not _BLANK.fullmatch(letters, end, start)
        end = word.end()
        if not box_of(text, start, first) or not box_of(text, end - 1, last):
            continue
        left, top, _, bottom = frame(first.left, first.bottom, first.right, first.top)
        _, upper, right, lower = frame(last.left, last.bottom, last.right, last.top)
        if run and not broken:
            height = run.bottom - run.top
            same = abs(bottom - run.bottom) < 0.5 * height and abs(top - run.top) < 0.5 * height
            broken = not same or not -0.7 * height < left - run.right < GAP * height
        if run is None or broken:
            if _turn(pdfium.FPDFText_GetCharAngle(text, start)) != frame.quarter:
                slanted.append(own)
                continue
            run = Run("", left, top, right, bottom, *_font(text, start))
            content.runs.append(run)
        run.text += f" {own}" if run.text else own
        run.right = max(run.right, right)
        run.top, run.bottom = min(run.top, top, upper), max(run.bottom, bottom, lower)
        run.words.append((left, right, len(own)))
    if slanted:
        content.slanted.append(" ".join(slanted))


def _text(word: str) -> str:
    """The word without PDFium's marks, halves of characters and radicals."""
    if word.isascii() and word.isprintable():
        return word
    word = word.translate(RADICALS).translate(_MARKS)
    if any("\ud800" <= letter <= "\udfff" for letter in word):
        word = word.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return clean(word)


def _font(text: Any, index: int) -> tuple[float, bool]:
    """Size in points, and whether the character is bold."""
    matrix = pdfium.FS_MATRIX()
    size = pdfium.FPDFText_GetFontSize(text, index)
    if pdfium.FPDFText_GetMatrix(text, index, matrix):
        size *= (matrix.c**2 + matrix.d**2) ** 0.5
    name, flags = ctypes.create_string_buffer(128), ctypes.c_int()
    pdfium.FPDFText_GetFontInfo(text, index, name, 128, flags)
    bold = pdfium.FPDFText_GetFontWeight(text, index) >= 600
    return size, bold or bool(_BOLD.search(name.value.decode("utf-8", "replace")))


def _read_shapes(page: PdfPage, frame: Frame, content: PageContent) -> None:
    """The straight lines of the page and its pictures; those in forms too."""
    kinds = (pdfium.FPDF_PAGEOBJ_IMAGE, pdfium.FPDF_PAGEOBJ_PATH)
    thing: Any
    for thing in islice(page.get_objects(filter=kinds, max_depth=3), MOST_RULES):
        if thing.type == pdfium.FPDF_PAGEOBJ_IMAGE:
            content.pictures.append(thing)
            continue
        for shape in _shapes(thing):
            left, top, right, bottom = frame(*shape)
            if bottom - top <= THIN < right - left:
                content.across.append(Rule((top + bottom) / 2, left, right))
            elif right - left <= THIN < bottom - top:
                content.down.append(Rule((left + right) / 2, top, bottom))
            elif right - left > THIN:
                content.across += [Rule(at, left, right) for at in (top, bottom)]
                content.down += [Rule(at, top, bottom) for at in (left, right)]
            if len(content.across) + len(content.down) > MOST_RULES:
                content.crowded = True
                return


def _shapes(thing: Any) -> Iterator[Box]:
    """The box of each rectangle and of each straight side of a path that can be seen."""
    fill, stroke = ctypes.c_int(), ctypes.c_int()
    pdfium.FPDFPath_GetDrawMode(thing.raw, fill, stroke)
    color = [ctypes.c_uint() for _ in range(4)]
    white = pdfium.FPDFPageObj_GetFillColor(thing.raw, *color) and min(c.value for c in color[:3]) > 250
    if not stroke.value and (not fill.value or white):
        return
    matrix = thing.get_matrix()
    if thing.container is not None:  # a shape in a form has the form's coordinates
        outer = pdfium.FS_MATRIX()
        pdfium.FPDFPageObj_GetMatrix(thing.container, outer)
        matrix = matrix.multiply(PdfMatrix.from_raw(outer))
    corners: list[tuple[float, float]] = []
    x, y = ctypes.c_float(), ctypes.c_float()
    for index in range(min(pdfium.FPDFPath_CountSegments(thing.raw), MOST_RULES)):
        segment = pdfium.FPDFPath_GetPathSegment(thing.raw, index)
        kind = pdfium.FPDFPathSegment_GetType(segment)
        if kind != pdfium.FPDF_SEGMENT_LINETO:
            yield from _sides(corners if kind == pdfium.FPDF_SEGMENT_MOVETO else [])
            corners = []
        if kind != pdfium.FPDF_SEGMENT_BEZIERTO:
            pdfium.FPDFPathSegment_GetPoint(segment, x, y)
            corners.append(matrix.on_point(x.value, y.value))
    yield from _sides(corners)


def _sides(corners: list[tuple[float, float]]) -> Iterator[Box]:
    """The box of a rectangle, or the boxes of an open line's straight parts."""
    xs, ys = [x for x, _ in corners], [y for _, y in corners]
    if len(corners) in (4, 5) and len({round(x) for x in xs}) <= 2 >= len({round(y) for y in ys}):
        yield min(xs), min(ys), max(xs), max(ys)
        return
    for (x0, y0), (x1, y1) in pairwise(corners):
        if abs(x0 - x1) < 1 or abs(y0 - y1) < 1:
            yield min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def _read_annotations(page: PdfPage, frame: Frame, content: PageContent) -> None:
    """Values of form fields and texts written on the page stand at their place; notes follow the page."""
    for index in range(min(pdfium.FPDFPage_GetAnnotCount(page.raw), MOST_NOTES)):
        note = pdfium.FPDFPage_GetAnnot(page.raw, index)
        if not note:
            continue
        kind, area = pdfium.FPDFAnnot_GetSubtype(note), pdfium.FS_RECTF()
        pdfium.FPDFAnnot_GetRect(note, area)
        text = author = ""
        if kind == pdfium.FPDF_ANNOT_WIDGET:
            text = _value(page, note)
        elif kind not in (pdfium.FPDF_ANNOT_POPUP, pdfium.FPDF_ANNOT_LINK):
            text = _string(pdfium.FPDFAnnot_GetStringValue, note, b"Contents")
            author = _string(pdfium.FPDFAnnot_GetStringValue, note, b"T")
        pdfium.FPDFPage_CloseAnnot(note)
        lines = [line.strip() for line in text.splitlines() if line.strip()][:MOST_NOTES]
        if lines and kind not in (pdfium.FPDF_ANNOT_WIDGET, pdfium.FPDF_ANNOT_FREETEXT):
            content.notes.append(comment(author, text, sample=text))
        elif lines:
            left, top, right, bottom = frame(area.left, area.bottom, area.right, area.top)
            step = (bottom - top) / len(lines)
            content.runs += [
                Run(line, left, top + step * at, right, top + step * (at + 1), min(step, 12))
                for at, line in enumerate(lines)
            ]


def _value(page: PdfPage, note: Any) -> str:
    """The value of a form's field."""
    form = page.formenv.raw if page.formenv else None
    kind = pdfium.FPDFAnnot_GetFormFieldType(form, note) if form else -1
    if kind in (pdfium.FPDF_FORMFIELD_CHECKBOX, pdfium.FPDF_FORMFIELD_RADIOBUTTON):
        return "☑" if pdfium.FPDFAnnot_IsChecked(form, note) else "☐"
    if kind in (-1, pdfium.FPDF_FORMFIELD_PUSHBUTTON, pdfium.FPDF_FORMFIELD_SIGNATURE):
        return ""
    return _string(lambda *rest: pdfium.FPDFAnnot_GetFormFieldValue(form, *rest), note)


def _string(call: Any, *arguments: Any) -> str:
    """A string that PDFium writes into a buffer as UTF-16."""
    size = min(call(*arguments, None, 0), 2_000_000)
    if size <= 2:
        return ""
    buffer = ctypes.create_string_buffer(size)
    call(*arguments, ctypes.cast(buffer, ctypes.POINTER(pdfium.FPDF_WCHAR)), size)
    return buffer.raw[: size - 2].decode("utf-16-le", "replace")


@dataclass(slots=True)
class PdfTable:
    """Rows of cells; the first `header` rows are joined to one. `edges` are the columns' places."""

    left: float
    top: float
    right: float
    bottom: float
    rows: list[list[str]]
    header: int
    edges: list[float]
    captions: list[str] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    """The page of each row."""

    @property
    def text(self) -> str:
        return "\n".join(map(" ".join, [self.captions, *self.rows]))


def join_lines(lines: Iterable[str]) -> str:
    """Text that was broken over lines; with a space unless a Chinese character stands there."""
    text = ""
    for line in lines:
        if not text or not line:
            text = text or line
        else:
            near = _WIDE.match(text[-1]) or _WIDE.match(line[0])
            near = near or BROKEN.search(f"{text[-12:]}\n{line[:4]}")
            text += line if near else f" {line}"
    return text


def visual_rows(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs as printed rows, from top to bottom and from left to right."""
    rows: list[list[Run]] = []
    low = high = 0.0
    for run in sorted(runs, key=lambda run: run.middle):
        if rows and low < run.middle < high:
            rows[-1].append(run)
            if run.bottom - run.top > high - low:
                low, high = run.top, run.bottom
        else:
            rows.append([run])
            low, high = run.top, run.bottom
    return [sorted(row, key=lambda run: run.left) for row in rows]


def row_text(row: Sequence[Run]) -> str:
    """One printed row; pieces that nearly touch are joined without a space."""
    text, right = "", 0.0
    for run in row:
        near = run.left - right < 0.25 * run.size
        text += run.text if not text or near else f" {run.text}"
        right = run.right
    return text


def is_number(text: str) -> bool:
    """Whether a cell holds a number, with its unit or sign, or a dash for none."""
    return bool(_NUMBER.fullmatch(text))


def cell_text(runs: Iterable[Run]) -> str:
    lines = (row_text(row) for row in visual_rows(runs))
    return " ".join(LEADER.sub(" ", join_lines(lines)).split())


def width(text: str) -> int:
    """Columns of a text in a fixed-width font."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def has_value(text: str) -> bool:
    return len(text) <= 16 and bool(re.search(r"\d|^[-–—]+$", text))


def parts(row: Sequence[Run], gap: float) -> list[list[Run]]:
    """The pieces of a row between gaps that are wider than `gap` times the font's size."""
    found: list[list[Run]] = []
    for run in row:
        if found and run.left - found[-1][-1].right < gap * run.size:
            found[-1].append(run)
        else:
            found.append([run])
    return found


def stretches(row: Sequence[Run]) -> list[Run]:
    """The stretches of a row without a wide gap."""
    return [
        Run(
            row_text(part),
            part[0].left,
            min(run.top for run in part),
            part[-1].right,
            max(run.bottom for run in part),
            max(run.size for run in part),
            all(run.bold for run in part),
        )
        for part in parts(row, 0.45)
    ]
