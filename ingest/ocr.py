"""Text from pictures by RapidOCR, whose PP-OCR models come inside its wheel: no downloads."""

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


LONGEST = 2600  # pixels; larger pictures are shrunk, the models see no more detail anyway
PIXELS = 120_000_000  # refused before decoding
CONFIDENT = 0.55  # lines below are noise: textures, logos, handwriting
SECONDS = 90.0  # that one picture may take on a busy machine; 2 to 4 are usual
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

    @property
    def height(self) -> float:
        return self.bottom - self.top


class Reader:
    """Reads pictures. The models are loaded with the first one, once."""

    def __init__(self, patience: Callable[[float], None] = lambda seconds: None) -> None:
        self._engine: Any = None
        self.patience = patience

    def text(self, content: bytes) -> str:
        """The text of a picture in reading order; empty where there is none or it is damaged."""
        picture = open_picture(content)
        return "" if picture is None else self.read(picture)

    def read(self, picture: "Image") -> str:
        """The text of a decoded picture."""
        import numpy

        if is_blank(picture):
            return ""
        self.patience(SECONDS)
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

            self._engine = RapidOCR(
                params={
                    "Global.log_level": "error",
                    "EngineConfig.onnxruntime.intra_op_num_threads": THREADS,
                    "EngineConfig.onnxruntime.inter_op_num_threads": 1,
                }
            )
        return self._engine


def is_blank(picture: "Image") -> bool:
    """Whether a picture is (nearly) one colour, so that there is nothing to read."""
    low, high = picture.convert("L").resize((64, 64)).getextrema()
    return high - low < 8  # pyright: ignore[reportOperatorIssue] -- a pair of numbers for mode L


def available() -> bool:
    """Whether the extra `ocr` is installed."""
    return importlib.util.find_spec("rapidocr") is not None


def open_picture(content: bytes) -> "Image | None":
    """The picture as RGB on white, or None where its bytes are damaged, no picture or too large."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(content))
            if picture.width * picture.height > PIXELS:
                return None
            picture.load()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")


def picture_size(content: bytes) -> tuple[int, int] | None:
    """Width and height in pixels from the header alone, or None where it is no picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(content)).size
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def in_reading_order(lines: list[Line]) -> str:
    """Lines from top to bottom, columns from left to right, one output line per printed line.

    The page is cut at the widest free gap, recursively (X-Y cut): first into bands, where no line
    crosses, and each band into columns.
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
    """Groups with free space of at least `gap` line heights between them."""
    free = gap * sorted(line.height for line in lines)[len(lines) // 2]
    groups: list[list[Line]] = []
    reach = float("-inf")
    for line in sorted(lines, key=lambda line: getattr(line, low)):
        if getattr(line, low) > reach + free:
            groups.append([])
        groups[-1].append(line)
        reach = max(reach, getattr(line, high))
    return groups


def _rows(lines: list[Line]) -> list[list[Line]]:
    """Lines of one band as printed rows: boxes whose middles lie at one height, left to right."""
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: (line.top + line.bottom) / 2):
        middle = (line.top + line.bottom) / 2
        if rows and middle < (last := rows[-1][-1]).bottom - 0.3 * last.height:
            rows[-1].append(line)
        else:
            rows.append([line])
    return [sorted(row, key=lambda line: line.left) for row in rows]


def read_image(content: bytes, *, name: str, reader: Reader | None) -> str:
    """The text of an image file. Raises `Unreadable` where it is damaged or OCR is missing."""
    if reader is None:
        raise Unreadable(
            "{name} is an image and OCR is off or not installed; {install}",
            name=name,
            install=INSTALL,
        )
    picture = open_picture(content)
    if picture is None:
        raise Unreadable(
            "{name} is not text, and no whole image either: damaged, cut off or too large",
            name=name,
        )
    text = reader.read(picture)
    if not text.strip():
        raise Unreadable("{name} is an image in which no text was found", name=name)
    return text


WIDTH = 1200  # pixels
TALLEST = 3000  # pixels; a page may be as long as a receipt
LEAST = 6  # characters of a passage's beginning or end that are worth marking without the rest
MARK = (255, 214, 10, 96)  # RGBA

Box = tuple[float, float, float, float]
"""Left, bottom, right, top in points, from the lower left corner of the page."""


def draw(path: Path, number: int, passage: str) -> tuple[bytes, bool]:
    """The page as PNG, and whether `passage` was found on it. Pages are counted from 1.

    Raises `Unreadable` for what is no PDF, needs a password, or has no such page.
    """
    import pypdfium2

    try:
        with pypdfium2.PdfDocument(path) as document:
            if not 1 <= number <= len(document):
                raise Unreadable(
                    "{name} has {document_count} pages, not {number}",
                    name=path.name,
                    document_count=len(document),
                    number=number,
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
    """Where the characters of a passage stand. It may begin on the page before, or end on the next;
    spaces, line breaks and forms of width count for nothing."""
    letters: list[str] = []
    places: list[int] = []
    for index, character in enumerate(text.get_text_range()):
        for letter in _folded(character):
            letters.append(letter)
            places.append(index)
    start, end = find("".join(letters), "".join(map(_folded, passage)))
    return [text.get_charbox(index) for index in dict.fromkeys(places[start:end])]


def find(page: str, passage: str) -> tuple[int, int]:
    """The span of `passage` in `page`, or of as long a beginning or end of it as is there."""
    if not passage:
        return 0, 0
    if (at := page.find(passage)) >= 0:
        return at, at + len(passage)
    # A beginning that ends the page, or an end that begins it.
    for length in range(min(len(passage), len(page)), LEAST - 1, -1):
        if page.endswith(passage[:length]):
            return len(page) - length, len(page)
        if page.startswith(passage[-length:]):
            return 0, length
    return 0, 0


def _folded(character: str) -> str:
    return "".join(unicodedata.normalize("NFKC", character).split()).casefold()


def lines(boxes: Sequence[Box]) -> Iterator[Box]:
    """Boxes of characters that follow one another on a line, as one box each."""
    current: Box | None = None
    for left, bottom, right, top in boxes:
        if current and _beside(current, (left, bottom, right, top)):
            current = (
                min(current[0], left), min(current[1], bottom),
                max(current[2], right), max(current[3], top),
            )  # fmt: skip
            continue
        if current:
            yield current
        current = left, bottom, right, top
    if current:
        yield current


def _beside(line: Box, box: Box) -> bool:
    """Whether a box goes on a line: its middle lies within it, and it is not far to the left."""
    middle = (box[1] + box[3]) / 2
    return line[1] <= middle <= line[3] and box[0] >= line[0]
