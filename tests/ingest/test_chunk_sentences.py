"""Paragraph and sentence ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.chunk import paragraphs, sentences

TEXTS = st.text(alphabet="我们是。！？；：”」…. \n\tAbc.|#-1第条（一）　", max_size=80)


def cut(text: str, spans: list[tuple[int, int]]) -> list[str]:
    return [text[start:end] for start, end in spans]


@given(TEXTS)
def test_spans_tile_the_text(text: str) -> None:
    for split in (paragraphs, sentences):
        assert "".join(cut(text, split(text))) == text
        assert all(end > start for start, end in split(text))


@given(TEXTS)
def test_no_span_of_a_text_with_content_is_blank(text: str) -> None:
    if text.strip():
        assert all(part.strip() for part in cut(text, sentences(text)))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("他说：“你好。”然后走了！真的？", ["他说：“你好。”", "然后走了！", "真的？"]),
        ("面积3.5平方公里。人口多。", ["面积3.5平方公里。", "人口多。"]),
        ("Dr. Smith came. He left.", ["Dr. Smith came. ", "He left."]),
        ("J. R. R. Tolkien wrote it. Good.", ["J. R. R. Tolkien wrote it. ", "Good."]),
        ("一行没有\n结束的话。", ["一行没有\n结束的话。"]),
        ("包括：\n（一）甲；\n（二）乙。", ["包括：\n", "（一）甲；\n", "（二）乙。"]),
        ("第一条 为了。\n第二条 本法。", ["第一条 为了。\n", "第二条 本法。"]),
        ("等等……后来。", ["等等……", "后来。"]),
    ],
)
def test_sentence_ends(text: str, parts: list[str]) -> None:
    assert cut(text, sentences(text)) == parts


def test_hard_wrapped_lines_are_one_paragraph() -> None:
    text = "The quick brown\nfox jumps over\nthe dog.\n\nNext one."
    assert cut(text, paragraphs(text)) == [
        "The quick brown\nfox jumps over\nthe dog.\n\n",
        "Next one.",
    ]
