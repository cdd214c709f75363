"""docs/scale.md says what the model says of the constants that are shipped."""

import importlib.util
import re
from pathlib import Path

import pytest

from rag.plan.constants import shipped

ROOT = Path(__file__).parents[3]
SPEC = importlib.util.spec_from_file_location("scale", ROOT / "benchmarks" / "scale.py")
assert SPEC
assert SPEC.loader
scale = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(scale)


@pytest.mark.parametrize("page", scale.PAGES)
def test_the_tables_are_what_the_model_prints(page: str) -> None:
    """Mend with: python benchmarks/scale.py write"""
    text = (ROOT / "docs" / page).read_text("utf-8")
    assert text == scale.filled(text, shipped(), scale.PAGES[page])


@pytest.mark.parametrize("page", scale.PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "docs" / page).read_text("utf-8")):
        assert (ROOT / "docs" / link).exists(), link


def test_both_pages_have_the_same_sections() -> None:
    levels = [
        re.findall(r"^(#+) ", (ROOT / "docs" / page).read_text("utf-8"), re.MULTILINE)
        for page in scale.PAGES
    ]
    assert levels[0] == levels[1]


@pytest.mark.parametrize("picture", scale.PICTURES)
def test_the_picture_shows_where_each_engine_takes_over(picture: str) -> None:
    drawn = (ROOT / "docs" / picture).read_text("utf-8")
    for chunks in scale.takeovers(shipped()).values():
        if chunks > scale.SIZES[0]:
            assert scale.rounded(chunks) in drawn
