"""Answers as text, Markdown and JSON."""

import json

from ingest.i18n import Translator
from ingest.types import Chunk, Hit
from rag import render
from rag.types import Answer, Citation, PromptOmissions

SAY = Translator("zh")
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


def plain(answer: Answer, say: Translator) -> str:
    """What a terminal shows of an answer."""
    return f"{answer.text}\n{render.below(answer, say)}".rstrip("\n")


def test_plain_text_names_the_page_of_the_quote_itself() -> None:
    assert plain(ANSWER, SAY) == f"{ANSWER.text}\n\n[1] 劳动合同法.pdf · p. 4 · 第二章 · 33–42"


def test_a_quote_that_the_answer_does_not_hold_is_shown() -> None:
    short = Answer("多久？", "三 [1]", (QUOTE,), ANSWER.hits, 0.9, False)
    assert "“试用期试用期试用期”" in plain(short, SAY)


def test_a_refusal_names_what_was_looked_at() -> None:
    for text in (plain(REFUSAL, SAY), render.markdown(REFUSAL, SAY)):
        assert text.startswith("未找到")
        assert "劳动合同法.pdf · p. 3 · 第二章" in text


def test_markdown_quotes_the_source() -> None:
    assert "> 试用期试用期试用期" in render.markdown(ANSWER, SAY)


def test_json_holds_exact_spans() -> None:
    value = json.loads(json.dumps(render.record(ANSWER)))
    [citation] = value["citations"]
    assert CHUNK.text[citation["start"] : citation["end"]] == citation["quote"]
    assert citation["label"] == "p. 4 · 第二章"
    assert value["hits"][0]["score"] == 3.1416


WRITTEN = Answer(
    "多久？",
    "试用期[1]。违者罚款[1][4]。",
    (QUOTE,),
    ANSWER.hits,
    0.9,
    False,
    generator="chatglm3-6b",
    unsupported=((7, 18),),
    unknown=(4, 4),
    dropped=PromptOmissions(turns=2, passages=1, shortened=1),
)


def test_what_a_model_wrote_comes_with_remarks_in_the_readers_language() -> None:
    assert render.remarks(WRITTEN, SAY) == [
        "段落中找不到依据：“违者罚款[1][4]。”",
        "没有编号为 [4] 的段落",
        "模型窗口容不下：2 轮较早的对话、1 个段落",
        "为放入模型窗口而截短的段落：1 个",
    ]
    assert render.remarks(WRITTEN, Translator("en"))[2] == (
        "did not fit into the model's window: 2 earlier turns and 1 passage"
    )
    for text in (plain(WRITTEN, SAY), render.markdown(WRITTEN, SAY)):
        assert all(remark in text for remark in render.remarks(WRITTEN, SAY))
    assert render.remarks(ANSWER, SAY) == []


def test_json_holds_the_spans_without_support() -> None:
    value = render.record(WRITTEN)
    [span] = value["unsupported"]
    assert WRITTEN.text[span["start"] : span["end"]] == span["text"] == "违者罚款[1][4]。"
    assert value["unknown"] == [4, 4]
    assert value["dropped"] == {"turns": 2, "passages": 1, "shortened": 1}
    assert value["generator"] == "chatglm3-6b"
