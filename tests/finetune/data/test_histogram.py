"""Bins hold every row once; pictures are pictures."""

import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.histogram import bins, draw, figures, save
from ingest.errors import UserError
from rag.i18n import Speaker

LENGTHS = st.lists(st.integers(0, 3000) | st.integers(0, 10_000_000), min_size=1, max_size=200)


@given(lengths=LENGTHS, most=st.integers(2, 60))
def test_each_row_is_in_one_bin(lengths: list[int], most: int) -> None:
    made = bins(np.array(lengths, np.int32), most)
    assert 1 <= len(made) <= most
    for bin in made:
        high = max(lengths) if bin.high is None else bin.high
        assert bin.count == sum(bin.low <= length <= high for length in lengths)
    assert sum(bin.count for bin in made) == len(lengths)
    assert made[0].low <= min(lengths)
    assert all(bin.high is not None for bin in made[:-1])
    assert all(left.high == right.low - 1 for left, right in pairwise(made))
    assert len({right.low - left.low for left, right in pairwise(made)}) <= 1


def test_a_few_very_long_rows_share_the_last_bin() -> None:
    lengths = np.array([*range(1000), 1_000_000], np.int32)
    made = bins(lengths, 10)
    assert made[-1].high is None
    assert made[-1].label.startswith("≥ ")
    assert made[-2].low < 1000
    assert bins(np.array([], np.int32), 10) == []


@given(lengths=LENGTHS)
def test_figures(lengths: list[int]) -> None:
    told = figures(np.array(lengths, np.int32))
    assert told["rows"] == len(lengths)
    assert told["total"] == sum(lengths)
    assert (told["shortest"], told["longest"]) == (min(lengths), max(lengths))
    assert sum(length <= told["p95"] for length in lengths) >= 0.95 * len(lengths)
    assert sum(length < told["p95"] for length in lengths) < 0.95 * len(lengths)
    assert sum(length <= told["median"] for length in lengths) >= len(lengths) / 2


@pytest.mark.parametrize(
    ("lengths", "limit"),
    [([], 0), ([], 9), ([0], 0), ([5] * 9, 1), (list(range(300)), 250), ([*range(99), 90_000], 90)],
)
def test_pictures(lengths: list[int], limit: int, tmp_path: Path) -> None:
    values = np.array(lengths, np.int32)
    save(tmp_path / "a.png", values, unit="tokens", max_length=limit)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    svg = draw(values, unit="tokens", max_length=limit, kind="svg")
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert svg == draw(values, unit="tokens", max_length=limit, kind="svg")


def test_a_picture_speaks_the_reader_s_language() -> None:
    """In an SVG, whose text is drawn by the reader's own fonts."""
    values = np.array([*range(99), 90_000], np.int32)
    drawn = draw(values, unit="characters", kind="svg", say=Speaker("zh")).decode()
    for text in ("每行的字符数", "行数", "中位数 49", "最后一栏"):
        assert text in drawn
    assert "rows" not in ElementTree.fromstring(drawn).itertext()
    assert "of a row" not in drawn
    draw(values, unit="tokens", kind="png", say=Speaker("zh"))  # with any fonts, and no warning


def test_another_kind_of_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.gif: a picture ends in .png or .svg"):
        save(tmp_path / "a.gif", np.array([1], np.int32), unit="tokens")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_way_out_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.data.histogram.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install .chatglm-rag\[pictures\]"):
        save(tmp_path / "a.png", np.array([1], np.int32), unit="tokens")
