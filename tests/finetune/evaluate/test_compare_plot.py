"""The picture of a comparison."""

from math import nan
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure as Canvas

from finetune.evaluate.compare import Comparison, chart, check_place, draw, panels
from ingest.errors import UserError
from ingest.i18n import Translator
from rag.evaluate.report import Figure

ENGLISH, CHINESE = Translator("en"), Translator("zh")
FIGURE = Figure(0.5, 0.4, 0.6, 10)
OTHER = Figure(0.8, 0.7, 0.95, 10)
NONE = Figure(nan, nan, nan, 0)
COMPARISONS = [
    Comparison("closed", "f1", FIGURE, OTHER, 0.3, 0.2, 0.4, 0.01),
    Comparison("general", "f1", OTHER, FIGURE, -0.3, -0.4, -0.2, 0.01),
    Comparison("retrieved", "refusal_precision", NONE, FIGURE, nan, nan, nan, nan),
]


@pytest.mark.parametrize("comparisons", [COMPARISONS, []])
def test_a_picture_shows_the_measures_that_exist(tmp_path: Path, comparisons: list[Comparison]) -> None:
    for name, head in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml")):
        draw(comparisons, tmp_path / name, title="模型 \U000f0000", say=ENGLISH)
        assert (tmp_path / name).read_bytes().startswith(head)
    text = (tmp_path / "a.svg").read_text("utf-8")
    assert ("closed book" in text) == bool(comparisons)


def test_a_chinese_reader_gets_chinese_labels(tmp_path: Path) -> None:
    for name in ("a.png", "a.svg"):
        draw(COMPARISONS, tmp_path / name, title="m", say=CHINESE)
    text = (tmp_path / "a.svg").read_text("utf-8")
    for shown in ("闭卷", "基座", "适配器", "拒答精确率", "95 % 区间"):
        assert shown in text
    assert "adapter" not in text


def bars(axes: Axes) -> dict[str, list[float]]:
    """The heights of the bars by the side that the legend gives them."""
    return {
        str(drawn.get_label()): [bar.get_height() for bar in drawn]
        for drawn in axes.containers
        if isinstance(drawn, BarContainer)
    }


def test_bars_are_as_high_as_the_values_of_their_side() -> None:
    canvas = Canvas()
    chart(canvas, panels(COMPARISONS), "m", ENGLISH)
    f1, precision = canvas.axes
    assert bars(f1) == {"base": [0.5, 0.8], "adapter": [0.8, 0.5]}
    assert [label.get_text() for label in f1.get_xticklabels()] == ["closed book\nn = 10", "general\nn = 10"]
    assert [text.get_text() for text in f1.texts] == ["0.50", "0.80", "0.80", "0.50"]
    assert bars(precision) == {"base": [], "adapter": [0.5]}
    assert [text.get_text() for text in precision.texts] == ["–", "0.50"]
    for axes in (f1, precision):  # each text above its own bar
        places = {
            round(bar.get_x() + bar.get_width() / 2, 6): bar.get_height()
            for drawn in axes.containers
            if isinstance(drawn, BarContainer)
            for bar in drawn
        }
        for text in axes.texts:
            height = places.get(round(text.get_position()[0], 6))
            assert text.get_text() == ("–" if height is None else f"{height:.2f}")


def test_a_place_without_a_folder_is_an_error(tmp_path: Path) -> None:
    check_place(tmp_path / "a.json")
    with pytest.raises(UserError, match="is a folder; name a file"):
        check_place(tmp_path)
    with pytest.raises(UserError, match=r"no folder .*missing to write a.json into; make it first"):
        check_place(tmp_path / "missing" / "a.json")
