"""Text of pictures by RapidOCR, whose wheel contains its PP-OCR models."""

import importlib.util
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image


LONGEST = 2600  # pixels; larger pictures are shrunk, since the models see no more detail anyway
PIXELS = 120_000_000  # larger pictures are refused before they are decoded
CONFIDENT = 0.55  # lines with a lower score are noise: textures, logos, handwriting
MOST_PAGES = 300  # pages read of one image file
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
        self.extend_deadline = extend_deadline

    def lines(self, picture: "Image") -> list[Line]:
        """The lines of a decoded picture, and their boxes in its pixels."""
        import numpy

        low, high = picture.convert("L").resize((64, 64)).getextrema()
        if high - low < 8:  # pyright: ignore[reportOperatorIssue] -- a pair of numbers for mode L
            return []  # it has (nearly) one colour
        self.extend_deadline(SECONDS)
        width, height = picture.size
        scale = min(1.0, LONGEST / max(width, height))
        if scale != 1.0:
            picture = picture.resize((max(1, round(width * scale)), max(1, round(height * scale))))
        result = self._engine(numpy.asarray(picture)[:, :, ::-1])
        if result.txts is None:
            return []
        return [
            Line(text, *(float(edge) / scale for edge in (*box.min(axis=0), *box.max(axis=0))))
            for text, box, score in zip(result.txts, result.boxes, result.scores, strict=True)
            if score >= CONFIDENT and text.strip()
        ]

    @cached_property
    def _engine(self) -> Any:
        from rapidocr import RapidOCR

        threads = {"intra_op_num_threads": THREADS, "inter_op_num_threads": 1}
        params = {f"EngineConfig.onnxruntime.{name}": value for name, value in threads.items()}
        return RapidOCR(params={"Global.log_level": "error", **params})


def available() -> bool:
    """Whether the extra `ocr` is installed."""
    return importlib.util.find_spec("rapidocr") is not None


def open_picture(content: bytes, page: int = 0) -> "Image | None":
    """A page of a picture (a TIFF may have several) as RGB on white and the right way up, or None if its
    bytes are damaged, not a picture or too large."""
    from PIL import Image, ImageOps

    picture = _open(content, load=True, page=page)
    if picture is None:
        return None
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")


def picture_size(content: bytes) -> tuple[int, int] | None:
    """Width and height in pixels from the header alone, or None if it is not a picture."""
    picture = _open(content, load=False)
    return picture.size if picture else None


def page_count(content: bytes) -> int:
    """How many pages an image file has; an animation is one."""
    picture = _open(content, load=False)
    return getattr(picture, "n_frames", 1) if picture and picture.format == "TIFF" else 1


def _open(content: bytes, *, load: bool, page: int = 0) -> "Image | None":
    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"):
            picture = Image.open(io.BytesIO(content))
            picture.seek(page)
            if load and picture.width * picture.height > PIXELS:
                return None
            if load:
                picture.load()
            return picture
    except (OSError, EOFError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
