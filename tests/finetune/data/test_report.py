"""The page and the JSON of a diagnosis: complete, self-contained, and deaf to hostile data."""

import json
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.check import Diagnosis, Unit, diagnose
from finetune.data.report import (
    BAR,
    LISTED,
    TITLES,
    TokenPiece,
    View,
    bars,
    bins,
    counts,
    figures,
    page,
    record,
    visible,
)
from finetune.types import Finding
from ingest.i18n import Translatable, Translator

DATA = Path(__file__).parents[2] / "data/alpaca"
HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"><svg onload='alert(1)'>",
    "</style></title><!--",
    "javascript:alert(1)",
    "&lt;b&gt;",
    "\u202eesrever",
)
# What a page is made of; anything else would be the data's.
TAGS = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "div", "b", "span", "table",
    "tr", "th", "td", "details", "summary",
}  # fmt: skip
ATTRIBUTES = {
    "lang", "charset", "http-equiv", "content", "name", "class", "open", "title",
}  # fmt: skip


class Page(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("hostile", HOSTILE)
def test_the_page_has_no_markup_from_the_data(hostile: str, language: str) -> None:
    findings = tuple(
        Finding(f"{hostile}:{i}", problem, Translatable.of(hostile, {}), bad=i % 2 == 0)
        for i, problem in enumerate(TITLES)
    )
    lengths = np.array([3, 4], np.int32)
    diagnosis = Diagnosis((hostile,), 9, findings, lengths, "tokens", 4, ())
    views = [
        View(hostile, (TokenPiece(hostile, (1, 2), True, False), TokenPiece(hostile, (3,), False, True)))
    ]
    made = Page(page(diagnosis, views, Translator("zh" if language == "zh" else "en")))
    assert set(made.tags) <= TAGS
    assert {name for name, _ in made.attributes} <= ATTRIBUTES
    assert made.open == []
    text = made.text.replace(visible(hostile), hostile)  # as tokens are shown
    assert text.count(hostile) == 2 * len(TITLES) + 1 + 3
    assert "http:" not in made.text
    assert any("default-src 'none'" in value for _, value in made.attributes)


def test_the_page_lists_some_findings_and_the_json_all() -> None:
    findings = tuple(
        Finding(f"a:{i}", "duplicate", Translatable("the same as {first}", first=f"b:{i}"))
        for i in range(LISTED + 7)
    )
    diagnosis = Diagnosis(("a",), 300, findings, np.array([], np.int32), "characters", 0, ())
    text = Page(page(diagnosis, [], Translator("en"))).text
    assert text.count("the same as") == LISTED
    assert "and 7 more, in the JSON report" in text
    assert len(record(diagnosis)["findings"]) == LISTED + 7


def test_a_record_has_everything_that_was_found() -> None:
    diagnosis = diagnose([DATA / "messy_bad_fields.json"])
    message = json.loads(json.dumps(record(diagnosis)))
    assert (message["rows"], message["usable"], message["bad"], message["warned"]) == (30, 21, 9, 0)
    assert message["problems"] == {
        problem: {"bad": 3, "warnings": 0} for problem in ("empty", "missing", "type")
    }
    assert message["findings"][0] == {
        "source": "messy_bad_fields.json:4",
        "problem": "empty",
        "text": '"output" is empty; need a text',
        "zh": '"output" 为空；需要文本',
        "bad": True,
    }
    assert message["lengths"]["rows"] == sum(bin["count"] for bin in message["histogram"]) == 21


def test_the_page_of_clean_data() -> None:
    diagnosis = diagnose([DATA / "alpaca_zh.json"])
    assert counts(diagnosis) == []
    assert "Nothing is wrong." in Page(page(diagnosis, [], Translator("en"))).text
    assert "没有发现问题。" in Page(page(diagnosis, [], Translator("zh"))).text


LENGTHS = st.lists(st.integers(0, 3000) | st.integers(0, 10_000_000), min_size=1, max_size=200)


@given(lengths=LENGTHS, most=st.integers(2, 60))
def test_each_row_is_in_one_bin(lengths: list[int], most: int) -> None:
    found = bins(np.array(lengths, np.int32), most)
    assert 1 <= len(found) <= most
    for bin in found:
        high = max(lengths) if bin.high is None else bin.high
        assert bin.count == sum(bin.low <= length <= high for length in lengths)
    assert sum(bin.count for bin in found) == len(lengths)
    assert found[0].low <= min(lengths)
    assert all(bin.high is not None for bin in found[:-1])
    assert all(left.high == right.low - 1 for left, right in pairwise(found))
    assert len({right.low - left.low for left, right in pairwise(found)}) <= 1


def test_a_few_very_long_rows_share_the_last_bin() -> None:
    lengths = np.array([*range(1000), 1_000_000], np.int32)
    found = bins(lengths, 10)
    assert found[-1].high is None
    assert found[-1].label.startswith("≥ ")
    assert found[-2].low < 1000
    assert bins(np.array([], np.int32), 10) == []


@given(lengths=LENGTHS)
def test_figures_equal_their_definition(lengths: list[int]) -> None:
    known = figures(np.array(lengths, np.int32))
    assert known["rows"] == len(lengths)
    assert known["total"] == sum(lengths)
    assert (known["shortest"], known["longest"]) == (min(lengths), max(lengths))
    assert sum(length <= known["p95"] for length in lengths) >= 0.95 * len(lengths)
    assert sum(length < known["p95"] for length in lengths) < 0.95 * len(lengths)
    assert sum(length <= known["median"] for length in lengths) >= len(lengths) / 2


def of_lengths(lengths: Sequence[int], unit: Unit = "tokens") -> Diagnosis:
    return Diagnosis(("a",), len(lengths), (), np.array(lengths, np.int32), unit, 0, ())


def test_bars_are_as_long_as_their_rows_are_many() -> None:
    assert bars(np.array([0, 0, 0, 0, 2, 2], np.int32)) == [
        ("0–0", "4", "█" * BAR), ("1–1", "0", ""), ("2–2", "2", "█" * (BAR // 2)),
    ]  # fmt: skip
    assert bars(np.array([0] * 986 + [1] * 12, np.int32))[1] == ("1–1", "12", "▏")
    assert bars(np.array([], np.int32)) == []
    lengths = [*range(99), 90_000]
    shown = Page(page(of_lengths(lengths), [], Translator("en"))).text
    for label, count, bar in bars(np.array(lengths, np.int32)):
        assert f"{label}{count}{bar}" in shown.replace("\n", "")
