"""A page of a PDF as a picture, with a passage marked on it."""

import io
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ingest.errors import Unreadable

if TYPE_CHECKING:
    from pypdfium2 import PdfPage, PdfTextPage

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
                    f"{path.name} has {len(document)} pages, not {number}",
                    zh=f"{path.name} 共 {len(document)} 页，没有第 {number} 页",
                )
            page = document[number - 1]
            boxes = list(lines(_boxes(page.get_textpage(), passage)))
            return _picture(page, boxes), bool(boxes)
    except pypdfium2.PdfiumError as error:
        raise Unreadable(
            f"{path.name} can't be drawn: {error}", zh=f"无法绘制 {path.name}：{error}"
        ) from error


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
