"""Text of pictures by RapidOCR, whose wheel contains its PP-OCR models."""

import importlib.util
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ingest.errors import Unreadable

if TYPE_CHECKING:
    from PIL.Image import Image


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
