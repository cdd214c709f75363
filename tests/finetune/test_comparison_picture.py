"""The picture of a comparison."""

from math import nan
from pathlib import Path

import pytest

from finetune.comparison import Comparison
from finetune.picture import draw
from ingest.errors import UserError
from rag.evaluate import Figure

FIGURE = Figure(0.5, 0.4, 0.6, 10)
NONE = Figure(nan, nan, nan, 0)
COMPARISONS = [
    Comparison("closed", "f1", FIGURE, FIGURE, 0.0, -0.1, 0.1, 1.0),
    Comparison("general", "f1", FIGURE, FIGURE, 0.0, -0.1, 0.1, 1.0),
    Comparison("retrieved", "refusal_precision", NONE, FIGURE, nan, nan, nan, nan),
]


@pytest.mark.parametrize("comparisons", [COMPARISONS, []])
def test_it_is_drawn_with_whatever_was_measured(
    tmp_path: Path, comparisons: list[Comparison]
) -> None:
    for name, head in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml")):
        draw(comparisons, tmp_path / name, title="模型 \U000f0000")
        assert (tmp_path / name).read_bytes().startswith(head)
    text = (tmp_path / "a.svg").read_text("utf-8")
    assert ("closed book" in text) == bool(comparisons)


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.jpg"):
        draw(COMPARISONS, tmp_path / "a.jpg", title="")
