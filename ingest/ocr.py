"""Text of pictures by RapidOCR, whose wheel contains its PP-OCR models; and pictures of PDF pages."""

import importlib.util
import io
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingest.errors import Unreadable

if TYPE_CHECKING:
    from PIL.Image import Image
    from pypdfium2 import PdfPage, PdfTextPage


LONGEST = 2600  # pixels; larger pictures are shrunk, since the models see no more detail anyway
PIXELS = 120_000_000  # larger pictures are refused before they are decoded
CONFIDENT = 0.55  # lines with a lower score are noise: textures, logos, handwriting
SECONDS = 90.0  # one picture may take this long on a busy machine; 2 to 4 are usual
THREADS = 2
INSTALL = "pip install 'chatglm-rag[ocr]'"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text and its box in pixels: left, top, right, bottom."""

    text: str
    left: float
    top: float
    right: float
    bottom: float


class PageReader:
    """Reads pictures. The models are loaded once, with the first picture."""

    def __init__(self, extend_deadline: Callable[[float], None] = lambda seconds: None) -> None:
        self._engine: Any = None
        self.extend_deadline = extend_deadline

    def text(self, content: bytes) -> str:
        """The text of a picture in reading order; empty if there is none or the picture is damaged."""
        picture = open_picture(content)
        return "" if picture is None else self.read(picture)

    def read(self, picture: "Image") -> str:
        """The text of a decoded picture."""
        import numpy

        if is_blank(picture):
            return ""
        self.extend_deadline(SECONDS)
        width, height = picture.size
        scale = min(1.0, LONGEST / max(width, height))
        if scale != 1.0:
            picture = picture.resize((max(1, round(width * scale)), max(1, round(height * scale))))
        result = self._load()(numpy.asarray(picture)[:, :, ::-1])
        if result.txts is None:
            return ""
        lines = [
            Line(text, *map(float, (*box.min(axis=0), *box.max(axis=0))))
            for text, box, score in zip(result.txts, result.boxes, result.scores, strict=True)
            if score >= CONFIDENT and text.strip()
        ]
        return in_reading_order(lines)

    def _load(self) -> Any:
        if self._engine is None:
            from rapidocr import RapidOCR

            threads = {"intra_op_num_threads": THREADS, "inter_op_num_threads": 1}
            params = {f"EngineConfig.onnxruntime.{name}": value for name, value in threads.items()}
            self._engine = RapidOCR(params={"Global.log_level": "error", **params})
        return self._engine


def is_blank(picture: "Image") -> bool:
    """Whether a picture has (nearly) one colour, so that there is nothing to read."""
    low, high = picture.convert("L").resize((64, 64)).getextrema()
    return high - low < 8  # pyright: ignore[reportOperatorIssue] -- a pair of numbers for mode L


def available() -> bool:
    """Whether the extra `ocr` is installed."""
    return importlib.util.find_spec("rapidocr") is not None


def open_picture(content: bytes) -> "Image | None":
    """The picture as RGB on white, or None if its bytes are damaged, not a picture or too large."""
    from PIL import Image

    picture = _open(content, load=True)
    if picture is None:
        return None
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")


def picture_size(content: bytes) -> tuple[int, int] | None:
    """Width and height in pixels from the header alone, or None if it is not a picture."""
    picture = _open(content, load=False)
    return picture.size if picture else None


def _open(content: bytes, *, load: bool) -> "Image | None":
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(content))
            if load and picture.width * picture.height > PIXELS:
                return None
            if load:
                picture.load()
            return picture
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def in_reading_order(lines: list[Line]) -> str:
    """Lines from top to bottom, columns from left to right, one output line per printed line.

    The page is cut recursively (X-Y cut) into columns and into bands that no line crosses.
    """
    return "\n".join(" ".join(line.text for line in row) for row in _cut(lines))


def _cut(lines: list[Line]) -> list[list[Line]]:
    if not lines:
        return []
    columns = _split(lines, "left", "right", gap=1.5)
    if len(columns) > 1 and all(len(column) > 2 for column in columns):
        return [row for column in columns for row in _cut(column)]
    bands = _split(lines, "top", "bottom", gap=0.8)
    if len(bands) > 1:
        return [row for band in bands for row in _cut(band)]
    return _rows(lines)


def _split(lines: list[Line], low: str, high: str, *, gap: float) -> list[list[Line]]:
    """Groups with space of at least `gap` line heights between them."""
    free = gap * sorted(line.bottom - line.top for line in lines)[len(lines) // 2]
    groups: list[list[Line]] = []
    reach = float("-inf")
    for line in sorted(lines, key=lambda line: getattr(line, low)):
        if getattr(line, low) > reach + free:
            groups.append([])
        groups[-1].append(line)
        reach = max(reach, getattr(line, high))
    return groups


def _rows(lines: list[Line]) -> list[list[Line]]:
    """Lines of one band as printed rows: boxes whose middles are at one height, from left to right."""
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: (line.top + line.bottom) / 2):
        middle = (line.top + line.bottom) / 2
        if rows and middle < (last := rows[-1][-1]).bottom - 0.3 * (last.bottom - last.top):
            rows[-1].append(line)
        else:
            rows.append([line])
    return [sorted(row, key=lambda line: line.left) for row in rows]


def read_image(content: bytes, *, name: str, reader: PageReader | None) -> str:
    """The text of an image file. Raises `Unreadable` if it is damaged or OCR is missing."""
    if reader is None:
        raise Unreadable(
            "{name} is an image and OCR is off or not installed; {way}", name=name, way=INSTALL
        )
    picture = open_picture(content)
    if picture is None:
        raise Unreadable(
            "{name} is not text, nor a whole image of a size that can be read", name=name
        )
    text = reader.read(picture)
    if not text.strip():
        raise Unreadable("{name} is an image in which no text was found", name=name)
    return text


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
            boxes = list(lines(_boxes(page.get_textpage(), passage)))
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


def _boxes(text: "PdfTextPage", passage: str) -> list[Box]:
    """The boxes of a passage's characters on the page. It may begin on the page before or end on the
    next; spaces, line breaks and the width of characters are ignored."""
    letters = [
        (letter, index)
        for index, character in enumerate(text.get_text_range())
        for letter in _fold(character)
    ]
    start, end = find("".join(letter for letter, _ in letters), "".join(map(_fold, passage)))
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


def _fold(character: str) -> str:
    return "".join(unicodedata.normalize("NFKC", character).split()).casefold()


def lines(boxes: Sequence[Box]) -> Iterator[Box]:
    """One box for each run of boxes of characters that follow one another on a line."""
    current: Box | None = None
    for box in boxes:
        middle = (box[1] + box[3]) / 2
        if current and current[1] <= middle <= current[3] and box[0] >= current[0]:
            (left, bottom), (right, top) = (
                map(min, current[:2], box[:2]),
                map(max, current[2:], box[2:]),
            )
            current = left, bottom, right, top
            continue
        if current:
            yield current
        current = box
    if current:
        yield current
