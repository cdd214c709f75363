"""OCR: reading order, bounds, and Chinese text in pictures with the models of the wheel."""

import io
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import Unreadable
from ingest.ocr import Line, PageReader, available, open_picture, page_count, picture_size
from ingest.parse import DocumentParser
from ingest.parse.pdf import MOST, Pictures, picture_text
from ingest.sandbox import Sandbox
from tests.ingest.documents import parse, pdf, whole

if TYPE_CHECKING:
    from PIL.Image import Image

DATA = Path(__file__).parents[1] / "data" / "documents"
ROOT = Path(__file__).parents[2]
OCR = available()


def printed(text: str, left: float, top: float, *, size: float = 20) -> Line:
    return Line(text, left, top, left + size * len(text), top + size)


class Printed(PageReader):
    """Gives these lines for every picture."""

    def __init__(self, lines: list[Line]) -> None:
        super().__init__()
        self._lines = lines

    def lines(self, picture: "Image") -> list[Line]:
        return self._lines


def text_of(lines: list[Line]) -> str:
    from PIL import Image

    return picture_text(Printed(lines), Image.new("L", (1000, 1000)))


@pytest.mark.skipif(not OCR, reason="the extra `ocr` is not installed")
def test_columns_are_read_one_after_the_other() -> None:
    left = [printed(f"左栏的第{row}行有文字", 0, 30 * row) for row in range(6)]
    right = [printed(f"右栏的第{row}行有文字", 300, 30 * row) for row in range(6)]
    title = printed("横跨两栏的标题横跨两栏的标题", 100, -80)
    lines = [title, *left, *right]
    random.Random(0).shuffle(lines)
    assert text_of(lines).split("\n") == [title.text, *(line.text for line in left + right)]


@pytest.mark.skipif(not OCR, reason="the extra `ocr` is not installed")
def test_cells_of_one_printed_row_stay_together() -> None:
    cells = [printed("品名", 0, 0), printed("价格", 200, 3), printed("苹果", 0, 30), printed("5", 200, 28)]
    assert text_of(cells[::-1]) == "品名 价格\n苹果 5"


@pytest.mark.skipif(not OCR, reason="the extra `ocr` is not installed")
@given(st.lists(st.tuples(st.integers(0, 900), st.integers(0, 900)), max_size=40))
def test_no_line_is_lost(places: list[tuple[int, int]]) -> None:
    lines = [printed(f"w{at}w", *place) for at, place in enumerate(places)]
    text = text_of(lines)
    assert [line.text for line in lines if line.text not in text] == []


def bitmap(width: int, height: int, shade: int = 255) -> bytes:
    """A grey BMP, written by hand."""
    row = bytes([shade]) * (width * 3 + -width * 3 % 4)
    size = 54 + len(row) * height
    head = b"BM" + size.to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    info = b"".join(n.to_bytes(4, "little") for n in (40, width, height, 1 | 24 << 16)) + bytes(24)
    return head + info + row * height


@pytest.mark.skipif(not OCR, reason="the extra `ocr` is not installed")
def test_pictures_are_read_once_and_within_bounds() -> None:
    pictures = Pictures(Printed([printed("文字", 0, 0)]))
    assert pictures.text(bitmap(20, 20)) == ""  # an icon
    assert pictures.text(bitmap(200, 100)) != ""
    assert pictures.text(bitmap(200, 100)) == ""  # the logo of every page
    assert pictures.text(b"no picture") == ""
    for shade in range(MOST + 5):
        pictures.text(bitmap(200, 100, shade))
    assert pictures.read == MOST
    assert pictures.warnings() == [f"pictures not read: 6 (only the first {MOST} are)"]


@pytest.mark.skipif(not OCR, reason="the extra `ocr` is not installed")
def test_damaged_and_huge_pictures_are_none() -> None:
    assert picture_size(bitmap(30, 40)) == (30, 40)
    assert open_picture(bitmap(30, 40)[:200]) is None
    assert open_picture(b"BM" + b"\xff" * 60) is None
    head = bytearray(bitmap(1, 1))
    head[18:26] = (60_000).to_bytes(4, "little") * 2
    assert open_picture(bytes(head)) is None


@pytest.mark.skipif(not OCR, reason="the extra `ocr` is not installed")
def test_chinese_text_in_pictures_of_documents_is_found() -> None:
    """In a process of its own, as ingestion does: a model's threads would be in the way here."""
    with Sandbox() as parser:
        for name in ("ocr_test.docx", "ocr_test.pdf"):
            parsed = parser.parse(DATA / name)
            text = re.sub(r"\s", "", "".join(segment.text for segment in parsed.segments))
            assert "我是文字" in text
            assert "横向文本框" in text
            assert parsed.report.ocr_pages == 1


@pytest.mark.skipif(not OCR, reason="the extra `ocr` is not installed")
def test_an_image_file_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "white.bmp").write_bytes(bitmap(300, 200))
    with pytest.raises(Unreadable, match="no text was found"):
        parse(tmp_path / "white.bmp")


@pytest.mark.skipif(not OCR, reason="the extra `ocr` is not installed")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_its_camera_says(orientation: int) -> None:
    from PIL import Image

    upright = Image.new("RGB", (30, 20), "white")
    upright.paste("red", (0, 0, 10, 5))
    turns = Image.Transpose
    stored = {
        **{2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM, 5: turns.TRANSPOSE},
        **{6: turns.ROTATE_90, 7: turns.TRANSVERSE, 8: turns.ROTATE_270},
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = upright.transpose(stored[orientation]) if orientation > 1 else upright
    file = io.BytesIO()
    picture.save(file, "PNG", exif=exif)
    turned = open_picture(file.getvalue())
    assert turned is not None
    assert turned.tobytes() == upright.tobytes()


class Numbered(PageReader):
    """Names each page by its shade."""

    def lines(self, picture: "Image") -> list[Line]:
        return [printed(f"shade {picture.getpixel((0, 0))[0]}", 0, 0)]  # pyright: ignore[reportOptionalSubscript, reportIndexIssue]


@pytest.mark.skipif(not OCR, reason="the extra `ocr` is not installed")
def test_all_pages_of_a_tiff_are_read_and_one_picture_of_an_animation(tmp_path: Path) -> None:
    from PIL import Image

    first, *others = (Image.new("L", (40, 40), shade) for shade in (10, 20, 30))
    parser = DocumentParser(ocr=False)
    parser._reader = Numbered()
    for name, count in (("a.tiff", 3), ("a.gif", 1)):
        first.save(tmp_path / name, save_all=True, append_images=others)
        text, marks = whole(parser.parse(tmp_path / name))
        assert text == "\n\n".join(f"shade {10 * at}" for at in range(1, count + 1))
        assert [m.label for m in marks] == ([] if count == 1 else ["p. 1", "p. 2", "p. 3"])
    assert page_count(b"no picture") == 1


def test_without_ocr_an_image_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "a.bmp").write_bytes(bitmap(300, 200))
    with pytest.raises(Unreadable, match="pip install"):
        parse(tmp_path / "a.bmp", ocr=False)


def test_without_ocr_pictures_become_a_warning() -> None:
    parsed = parse(DATA / "ocr_test.docx", ocr=False)
    assert "我是文字" in "".join(segment.text for segment in parsed.segments)
    assert "OCR is off" in parsed.report.warnings[0]


def test_the_base_install_parses_without_an_image_library() -> None:
    """Pillow comes with the extra `ocr`; without it pictures are a warning, not a crash."""
    code = (
        "import sys; sys.modules['PIL'] = sys.modules['rapidocr'] = None\n"
        "from pathlib import Path; from ingest.parse import DocumentParser\n"
        "for name in sys.argv[1:]: print(DocumentParser(ocr=False).parse(Path(name)).report.warnings)"
    )
    names = [str(DATA / "ocr_test.docx"), str(DATA / "ocr_test.pdf")]
    done = subprocess.run(
        [sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("pictures not read: 1") == 2


@pytest.mark.skipif(not OCR, reason="the extra `ocr` is not installed")
def test_a_page_too_large_to_draw_is_named_not_counted(tmp_path: Path) -> None:
    path = pdf(tmp_path / "a.pdf", [["Alpha"], []])
    before, _, after = path.read_bytes().rpartition(b"612 792")
    path.write_bytes(before + b"900000 900000" + after)
    report = parse(path).report
    assert report.ocr_pages == 0
    assert report.warnings == ("pages that could not be drawn for OCR: 2",)
