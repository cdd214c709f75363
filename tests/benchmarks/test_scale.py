"""docs/scale.md shows what the model predicts from the shipped constants."""

import re
from pathlib import Path

import pytest

from benchmarks import scale
from rag.cli.plan import Constants

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", scale.PAGES)
def test_the_tables_are_what_the_model_predicts(page: str) -> None:
    """If not, run: python benchmarks/scale.py"""
    text = (DOCS / page).read_text("utf-8")
    assert text == scale.filled(text, Constants.read(), scale.PAGES[page])


@pytest.mark.parametrize("page", scale.PAGES)
def test_every_link_leads_to_a_file(page: str) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", (DOCS / page).read_text("utf-8")):
        assert (DOCS / link).exists(), link


def test_both_pages_have_the_same_sections() -> None:
    levels = [re.findall(r"^(#+) ", (DOCS / page).read_text("utf-8"), re.MULTILINE) for page in scale.PAGES]
    assert levels[0] == levels[1]


@pytest.mark.parametrize("picture", scale.PICTURES)
def test_the_picture_shows_where_each_engine_takes_over(picture: str) -> None:
    drawn = (DOCS / picture).read_text("utf-8")
    for chunks in scale.takeovers(Constants.read()).values():
        if chunks > scale.SIZES[0]:
            assert scale.rounded(chunks) in drawn
