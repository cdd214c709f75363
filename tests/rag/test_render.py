"""Answers as text, Markdown and JSON."""

import json

from ingest.types import Chunk, Hit
from rag import render
from rag.types import Answer, Citation

CHUNK = Chunk(
    document="d1",
    source="docs/劳动合同法.pdf",
    title="劳动合同法",
    places=((0, "p. 3 · 第二章"), (30, "p. 4 · 第二章")),
    context="劳动合同法",
    start=0,
    end=60,
    text="试用期" * 20,
    passage=(0, 60),
)
QUOTE = Citation(1, CHUNK, 33, 42, "试用期" * 3)
ANSWER = Answer("多久？", f"{QUOTE.quote} [1]", (QUOTE,), (Hit(CHUNK, 3.14159),), 0.9, False)
REFUSAL = Answer("多久？", "未找到", (), (Hit(CHUNK, 0.5),), 0.1, True)


def test_plain_text_names_the_page_of_the_quote_itself() -> None:
    assert render.plain(ANSWER) == f"{ANSWER.text}\n\n[1] 劳动合同法.pdf · p. 4 · 第二章 · 33–42"


def test_a_quote_that_the_answer_does_not_hold_is_shown() -> None:
    short = Answer("多久？", "三 [1]", (QUOTE,), ANSWER.hits, 0.9, False)
    assert "“试用期试用期试用期”" in render.plain(short)


def test_a_refusal_names_what_was_looked_at() -> None:
    for text in (render.plain(REFUSAL), render.markdown(REFUSAL)):
        assert text.startswith("未找到")
        assert "劳动合同法.pdf · p. 3 · 第二章" in text


def test_markdown_quotes_the_source() -> None:
    assert "> 试用期试用期试用期" in render.markdown(ANSWER)


def test_json_holds_exact_spans() -> None:
    value = json.loads(json.dumps(render.record(ANSWER)))
    [citation] = value["citations"]
    assert CHUNK.text[citation["start"] : citation["end"]] == citation["quote"]
    assert citation["label"] == "p. 4 · 第二章"
    assert value["hits"][0]["score"] == 3.1416
