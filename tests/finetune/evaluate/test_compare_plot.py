"""The picture of a comparison."""

from math import nan
from pathlib import Path

import pytest

from finetune.evaluate.compare import Comparisons, check_place, draw
from ingest.errors import UserError
from ingest.i18n import Translator
from rag.evaluate.report import UNDEFINED, Difference, Figure

ENGLISH, CHINESE = Translator("en"), Translator("zh")
FIGURE = Figure(0.5, 0.4, 0.6, 10)
OTHER = Figure(0.8, 0.7, 0.95, 10)
COMPARISONS = {
    ("closed", "f1"): Difference(FIGURE, OTHER, 0.3, 0.2, 0.4, 0.01),
    ("general", "f1"): Difference(OTHER, FIGURE, -0.3, -0.4, -0.2, 0.01),
    ("retrieved", "refusal_precision"): Difference(UNDEFINED, FIGURE, nan, nan, nan, nan),
}


@pytest.mark.parametrize("comparisons", [COMPARISONS, {}])
def test_a_picture_shows_the_measures_that_exist(tmp_path: Path, comparisons: Comparisons) -> None:
    for name, head in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml")):
        draw(comparisons, tmp_path / name, title="模型 \U000f0000", say=ENGLISH)
        assert (tmp_path / name).read_bytes().startswith(head)
    text = (tmp_path / "a.svg").read_text("utf-8")
    assert ("F1, closed book (n = 10)" in text) == bool(comparisons)
    assert ("–" in text) == bool(comparisons)  # a precision that is not defined


def test_a_chinese_reader_gets_chinese_labels(tmp_path: Path) -> None:
    for name in ("a.png", "a.svg"):
        draw(COMPARISONS, tmp_path / name, title="m", say=CHINESE)
    text = (tmp_path / "a.svg").read_text("utf-8")
    for shown in ("闭卷", "基座", "适配器", "拒答精确率", "95 % 区间"):
        assert shown in text
    assert "adapter" not in text


def test_a_place_without_a_folder_is_an_error(tmp_path: Path) -> None:
    check_place(tmp_path / "a.json")
    with pytest.raises(UserError, match="is a folder; name a file"):
        check_place(tmp_path)
    with pytest.raises(UserError, match=r"no folder .*missing to write a.json into; make it first"):
        check_place(tmp_path / "missing" / "a.json")
