"""A folder to a cited answer, with the stand-in encoder."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ingest.chunk import Chunker, ChunkOptions
from ingest.errors import UserError
from ingest.files import walk
from ingest.pipeline import Ingestion
from ingest.store import Identity, open_store
from rag.language import Speaker
from rag.open import background_of
from rag.pipeline import Pipeline
from rag.refuse import Calibration, Curve
from rag.rerank import Scores
from rag.types import Message
from tests.fakes import HashEmbedder, TextParser

PAGES = {
    "law.txt": "第十条 建立劳动关系，应当订立书面劳动合同。\n第十九条 试用期不得超过六个月。\n",
    "staff.txt": "| 姓名 | 分机号 |\n| --- | --- |\n| 张三 | 8012 |\n| 李四 | 8013 |\n",
    "poem.txt": "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。\n",
    "wrapped.txt": "海南岛的最高峰是五指山，\n海拔一千八百六十七米。\n岛上四季常青。\n",
}


STRICT = Curve(0.98, -1.35, 0.9)


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    docs = tmp_path / "docs"
    docs.mkdir()
    for name, text in PAGES.items():
        (docs / name).write_text(text, "utf-8")
    embedder = HashEmbedder()
    chunker = Chunker(embedder.count_many, embedder.max_tokens, ChunkOptions(60, 100, 20))
    with open_store(tmp_path / "kb", create=Identity(embedder.name, embedder.dim)) as store:
        list(Ingestion(store, embedder, chunker, TextParser()).run(walk([docs])))
        yield Pipeline(store, embedder, background_of(store, embedder), Speaker("zh"))


@pytest.mark.parametrize(
    "question", ["试用期不得超过几个月？", "明月光是什么？", "五指山海拔多少米？"]
)
def test_every_citation_quotes_its_source_exactly(pipeline: Pipeline, question: str) -> None:
    answer = pipeline.read(pipeline.retrieve(question))
    assert answer.citations
    for number, citation in enumerate(answer.citations, start=1):
        chunk = citation.chunk
        assert citation.number == number
        assert f"[{number}]" in answer.text
        assert pipeline.store.text(chunk.document, citation.start, citation.end) == citation.quote
        assert chunk.start <= citation.start < chunk.end


def test_the_best_sentence_answers(pipeline: Pipeline) -> None:
    answer = pipeline.ask("试用期不得超过几个月？")
    assert not answer.refused
    assert "六个月" in answer.citations[0].quote


def test_wrapped_lines_are_joined_in_the_answer_only(pipeline: Pipeline) -> None:
    answer = pipeline.read(pipeline.retrieve("海南岛最高峰五指山"))
    assert "五指山，\n海拔" in answer.citations[0].quote
    assert "\n海拔" not in answer.text


def test_a_table_row_is_answered_with_its_header(pipeline: Pipeline) -> None:
    answer = pipeline.read(pipeline.retrieve("李四的分机号"))
    assert answer.citations[0].quote == "| 李四 | 8013 |"
    assert answer.text.startswith("姓名：李四；分机号：8013 [1]")


def test_a_follow_up_is_asked_with_its_subject(pipeline: Pipeline) -> None:
    answer = pipeline.ask("那它有多高？", [Message("user", "海南岛的最高峰五指山在哪里？")])
    assert "一千八百六十七米" in answer.citations[0].quote


def test_below_the_threshold_a_question_is_refused_with_what_was_looked_at(
    pipeline: Pipeline,
) -> None:
    strict = replace(pipeline, calibration=Calibration(STRICT, STRICT))
    assert not strict.ask("第十九条 试用期不得超过几个月？").refused
    answer = strict.ask("xyzzy plugh quux?")
    assert answer.refused
    assert answer.citations == ()
    assert "4 个文档" in answer.text


class Backwards:
    """The worst first."""

    def score(self, question: str, passages: Sequence[str]) -> Scores:
        return np.arange(len(passages), dtype=np.float32)


def test_a_reranker_decides_the_order(pipeline: Pipeline) -> None:
    plain = pipeline.retrieve("明月", limit=3).passages
    turned = replace(pipeline, reranker=Backwards()).retrieve("明月", limit=3).passages
    assert turned == plain[::-1]


@pytest.mark.parametrize("question", ["", " \n", "长" * 10_000])
def test_a_question_that_is_none_is_the_users_mistake(pipeline: Pipeline, question: str) -> None:
    with pytest.raises(UserError):
        pipeline.ask(question)


def test_an_empty_knowledge_base_refuses(tmp_path: Path) -> None:
    embedder = HashEmbedder()
    with open_store(tmp_path / "kb", create=Identity(embedder.name, embedder.dim)) as store:
        pipeline = Pipeline(store, embedder, background_of(store, embedder), Speaker("en"))
        answer = pipeline.ask("anything?")
    assert answer.refused
    assert answer.hits == ()
