"""A page as a picture, and the passage on it."""

from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ingest.errors import Unreadable
from ingest.parse.pdf import MARK, draw, find, line_boxes
from ingest.sandbox import Sandbox
from tests.ingest.documents import DATA

PAGED = DATA / "zh-toc-cid-font.pdf"


def marked(png: bytes) -> int:
    """How many pixels have the mark's hue."""
    picture = Image.open(BytesIO(png)).convert("RGB")
    return sum(
        count for count, (r, g, b) in picture.getcolors(1 << 24) if r > b + 60 and g > b + 60
    )


def test_a_passage_is_marked_on_its_page() -> None:
    with Sandbox(ocr=False) as sandbox:
        text = "".join(segment.text for segment in sandbox.parse(PAGED).segments)
        passage = text.strip()[:40]
        png, found = sandbox.draw(PAGED, 1, passage)
        plain, none = sandbox.draw(PAGED, 1, "")
        _, elsewhere = sandbox.draw(PAGED, 1, "这些字不在这一页上，也不在别处。")
    assert found
    assert not none
    assert not elsewhere
    assert marked(png) > marked(plain) + 500
    assert Image.open(BytesIO(png)).size == Image.open(BytesIO(plain)).size


@pytest.mark.parametrize("number", [0, 10_000])
def test_a_missing_page_is_an_error_that_names_it(number: int) -> None:
    with pytest.raises(Unreadable, match=rf"pages, not {number}"):
        draw(PAGED, number, "")


def test_the_child_reports_a_file_that_is_no_pdf_or_is_locked() -> None:
    with Sandbox(ocr=False) as sandbox:
        for name in ("zh-demo.xlsx", "password-aes-256.pdf"):
            with pytest.raises(Unreadable, match=name):
                sandbox.draw(DATA / name, 1, "x")


@given(st.text(max_size=60), st.text(max_size=30), st.integers(0, 60))
def test_the_span_found_is_the_passage_or_an_end_of_it(page: str, part: str, at: int) -> None:
    whole = page[:at] + part + page[at:]
    start, end = find(whole, part)
    assert whole[start:end] == part


@pytest.mark.parametrize(
    ("page", "passage", "found"),
    [
        ("abcdefghij", "efghijklmnop", "efghij"),
        ("klmnopqrst", "efghijklmnop", "klmnop"),
        ("abcdefgh", "ghijkl", ""),
        ("", "x", ""),
        ("x", "", ""),
    ],
)
def test_a_passage_over_two_pages_is_marked_on_both(page: str, passage: str, found: str) -> None:
    start, end = find(page, passage)
    assert page[start:end] == found


def test_characters_of_a_line_make_one_box() -> None:
    boxes = [(0, 0, 1, 2), (1, 0, 2, 2), (0, 5, 1, 7), (1, 5, 2, 7.5)]
    assert line_boxes(boxes) == [(0, 0, 2, 2), (0, 5, 2, 7.5)]  # type: ignore[arg-type]
    assert MARK[3] < 255  # what is marked can still be read
