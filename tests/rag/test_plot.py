"""What all pictures share: names, fonts, languages, the same bytes each time."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from ingest.errors import UserError
from ingest.i18n import Translator
from rag.plot import CHINESE, Kind, check_picture, draw_bars, drawable, families, render, save, speaker

UNDRAWABLE = "\U000f0000"  # of private use


def line(figure: Figure) -> None:
    figure.add_subplot().plot([1, 2], [3, 4])
    figure.suptitle(f"loss 损失 {UNDRAWABLE}")


@pytest.mark.parametrize(("kind", "head"), [("png", b"\x89PNG\r\n\x1a\n"), ("svg", b"<?xml")])
def test_the_same_drawing_gives_the_same_bytes(tmp_path: Path, kind: Kind, head: bytes) -> None:
    first = render(line, kind, size=(4, 3))
    assert first == render(line, kind, size=(4, 3))
    save(tmp_path / f"a.{kind.upper()}", line, size=(4, 3))
    assert (tmp_path / f"a.{kind.upper()}").read_bytes() == first
    assert first.startswith(head)
    assert len(list(tmp_path.iterdir())) == 1


def test_text_of_an_svg_stays_text() -> None:
    drawn = ElementTree.fromstring(render(line, "svg", size=(4, 3)))
    assert f"loss 损失 {UNDRAWABLE}" in "".join(drawn.itertext())


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.gif: a picture ends in \.png or \.svg"):
        save(tmp_path / "a.gif", line, size=(4, 3))
    assert list(tmp_path.iterdir()) == []
    assert (check_picture(Path("a.PNG")), check_picture(Path("b.svg"))) == ("png", "svg")


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag.plot.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install .chatglm-rag\[pictures\]"):
        check_picture(Path("a.png"))


def test_a_png_speaks_chinese_only_if_a_font_draws_it() -> None:
    chinese = Translator("zh")
    covered = bool(set(CHINESE) & set(fontManager.get_font_names()))
    assert len(families()) == 1 + covered
    assert speaker(chinese, "svg") is chinese
    assert speaker(chinese, "png").language == ("zh" if covered else "en")
    assert drawable("损失", "png") == covered
    assert drawable("loss", "png")
    assert not drawable(UNDRAWABLE, "png")
    assert drawable(UNDRAWABLE, "svg")


def test_bars_show_their_values(tmp_path: Path) -> None:
    nan = float("nan")
    series = {"first": [(0.25, 0.125, 0.5), (nan, nan, nan)], "second": [(1.0, 0.75, 1.0), (0.0, 0.0, 0.0)]}
    draw_bars(tmp_path / "bars.svg", ["F1 甲", "exact"], series, label="intervals", title="both")
    text = (tmp_path / "bars.svg").read_text("utf-8")
    for shown in ("F1 甲", "exact", "first", "second", "0.250", "1.000", "0.000", "–", "intervals", "both"):
        assert f">{shown}</text>" in text, shown
    draw_bars(tmp_path / "none.png", [], {"first": []}, label="")
