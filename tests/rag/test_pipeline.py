"""A folder to a cited answer, with the stand-in encoder."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ingest.chunk import Chunker, ChunkOptions
from ingest.errors import UserError
from ingest.files import walk
from ingest.i18n import Translator
from ingest.pipeline import Ingestion
from ingest.store import Identity, open_store
from rag.load import score_norm_of
from rag.pipeline import TRIES, Pipeline
from rag.retrieve import Scores
from rag.score_norm import Calibration, Curve
from rag.types import NOT_FOUND, Answer, Message, Retrieval, Sampling
from tests.fakes import CopyingGenerator, HashEmbedder, TextParser

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
        yield Pipeline(store, embedder, score_norm_of(store, embedder), Translator("zh"))


@pytest.mark.parametrize("question", ["试用期不得超过几个月？", "明月光是什么？", "五指山海拔多少米？"])
def test_every_citation_quotes_its_source_exactly(pipeline: Pipeline, question: str) -> None:
    answer = pipeline.extract(pipeline.retrieve(question))
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
    answer = pipeline.extract(pipeline.retrieve("海南岛最高峰五指山"))
    assert "五指山，\n海拔" in answer.citations[0].quote
    assert "\n海拔" not in answer.text


def test_a_table_row_is_answered_with_its_header(pipeline: Pipeline) -> None:
    answer = pipeline.extract(pipeline.retrieve("李四的分机号"))
    assert answer.citations[0].quote == "| 李四 | 8013 |"
    assert answer.text.startswith("姓名：李四；分机号：8013 [1]")


@pytest.mark.parametrize("text", ["谢谢", "ok", "?", "你好", "exit", "1+1=?"])
@pytest.mark.parametrize("writes", [False, True])
def test_a_courtesy_gets_a_courteous_line(pipeline: Pipeline, text: str, writes: bool) -> None:
    history = [Message("user", "试用期不得超过几个月？"), Message("assistant", "六个月 [1]")]
    asked = replace(pipeline, generator=CopyingGenerator() if writes else None)
    *_, answer = asked.stream(text, history)
    assert isinstance(answer, Answer)
    assert (answer.citations, answer.hits, answer.refused) == ((), (), False)
    assert "law.txt" in answer.text
    assert "六个月" not in answer.text


def test_the_contents_are_the_documents_and_example_questions(pipeline: Pipeline) -> None:
    lines = pipeline.ask("what is in here?").text.splitlines()
    assert {f"- {name}" for name in PAGES} <= set(lines)
    examples = [line.removeprefix("- ") for line in lines[len(PAGES) + 2 :]]
    assert len(examples) <= 3
    assert all(pipeline.retrieve(each).answerable for each in examples)


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("第十条规定了什么？", "第十条"),
        ("第十九条是什么？", "第十九条"),
        ("第十九条之一规定了什么？", ""),
        ("第20条", ""),
    ],
)
def test_an_article_is_answered_by_itself_alone(pipeline: Pipeline, question: str, says: str) -> None:
    answer = pipeline.ask(question)
    assert answer.refused is (not says)
    assert all(citation.quote.startswith(says) for citation in answer.citations)


def test_an_article_after_another_one_is_answered_by_itself(pipeline: Pipeline) -> None:
    answer = pipeline.ask("第十条", [Message("user", "第十九条"), Message("assistant", "不得超过六个月 [1]")])
    assert [citation.quote[:3] for citation in answer.citations] == ["第十条"]


def test_a_message_off_the_subject_is_searched_alone(pipeline: Pipeline) -> None:
    history = [Message("user", "试用期不得超过几个月？"), Message("assistant", "六个月 [1]")]
    for text in ("讲个笑话", "天气呢？"):
        assert next(pipeline.stream(text, history)).query.text == text  # type: ignore[union-attr]


def test_a_follow_up_is_asked_with_its_subject(pipeline: Pipeline) -> None:
    answer = pipeline.ask("那它有多高？", [Message("user", "海南岛的最高峰五指山在哪里？")])
    assert "一千八百六十七米" in answer.citations[0].quote


def test_below_the_threshold_a_question_is_refused_with_what_was_looked_at(pipeline: Pipeline) -> None:
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


def test_a_question_names_the_change_that_its_passages_stand_in(pipeline: Pipeline) -> None:
    """One that comes while they are looked up has them looked up again."""
    store, searches = pipeline.store, 0

    def changing(stage: str, seconds: float) -> None:
        nonlocal searches
        searches += stage == "search"
        if stage == "search" and searches == 1:
            with store.change() as change:
                [law] = [head for head in store.documents() if head.source.endswith("law.txt")]
                change.remove(law.source)

    before = store.sequence
    found = pipeline.observed(changing).retrieve("试用期不得超过几个月？")
    assert searches == 2
    assert found.sequence == store.sequence == before + 1
    assert not any(hit.chunk.source.endswith("law.txt") for hit in found.hits)


def test_a_store_that_never_rests_keeps_no_question_waiting(pipeline: Pipeline) -> None:
    def changing(stage: str, seconds: float) -> None:
        if stage == "search":
            with pipeline.store.change() as change:
                change.set_meta("turn", seconds)

    before = pipeline.store.sequence
    found = pipeline.observed(changing).retrieve("试用期不得超过几个月？")
    assert pipeline.store.sequence == before + TRIES
    assert found.sequence == before + TRIES - 1
    assert found.hits[0].chunk.source.endswith("law.txt")


def test_an_empty_knowledge_base_refuses(tmp_path: Path) -> None:
    embedder = HashEmbedder()
    with open_store(tmp_path / "kb", create=Identity(embedder.name, embedder.dim)) as store:
        pipeline = Pipeline(store, embedder, score_norm_of(store, embedder), Translator("en"))
        answer = pipeline.ask("anything?")
    assert answer.refused
    assert answer.hits == ()


@pytest.fixture
def writing(pipeline: Pipeline) -> Pipeline:
    return replace(pipeline, generator=CopyingGenerator())


def test_a_generator_answers_from_the_passages_with_exact_quotes(writing: Pipeline) -> None:
    answer = writing.ask("试用期不得超过几个月？")
    assert not answer.refused
    assert answer.generator == "copy"
    assert answer.text.startswith("第十九条 试用期不得超过六个月。[")
    [citation] = answer.citations
    assert citation.quote == "第十九条 试用期不得超过六个月。"
    text = writing.store.text(citation.chunk.document, citation.start, citation.end)
    assert text == citation.quote
    assert answer.unsupported == answer.unknown == ()


@pytest.mark.parametrize("question", ["试用期不得超过几个月？", "xyzzy plugh?", "明月光是什么？"])
def test_the_pieces_together_are_the_text(pipeline: Pipeline, writing: Pipeline, question: str) -> None:
    for each in (pipeline, writing):
        found, *pieces, answer = each.stream(question)
        assert isinstance(found, Retrieval)
        assert isinstance(answer, Answer)
        assert found.hits == answer.hits
        assert "".join(map(str, pieces)) == answer.text
        assert answer == each.ask(question)


def test_a_refusal_asks_the_generator_nothing(writing: Pipeline) -> None:
    generator = CopyingGenerator()
    strict = replace(writing, generator=generator, calibration=Calibration(STRICT, STRICT))
    assert strict.ask("xyzzy plugh quux?").refused
    assert generator.prompts == []


def test_the_models_own_refusal_is_one(writing: Pipeline) -> None:
    never = Curve(0.98, -1.35, 0.0)
    answer = replace(writing, calibration=Calibration(never, never)).ask("量子计算机？")
    assert answer.text == NOT_FOUND["han"]
    assert answer.refused
    assert answer.citations == answer.unsupported == ()


def test_closing_the_stream_stops_the_generator(pipeline: Pipeline) -> None:
    generator = CopyingGenerator()
    pieces = replace(pipeline, generator=generator).stream("试用期不得超过几个月？")
    next(pieces)
    assert next(pieces) == "第"
    pieces.close()  # type: ignore[attr-defined]
    assert generator.pieces == 1


def test_what_the_window_could_not_hold_is_told(pipeline: Pipeline) -> None:
    history = [Message("user", "问" * 500), Message("assistant", "答" * 500)]
    narrow = replace(pipeline, generator=CopyingGenerator(context=900))
    answer = narrow.ask("试用期不得超过几个月？", history, Sampling(max_new_tokens=100))
    assert answer.dropped.turns == 1
    assert len(answer.text) <= 100


def test_a_question_longer_than_the_window_is_told_with_both_numbers(pipeline: Pipeline) -> None:
    narrow = replace(pipeline, generator=CopyingGenerator(context=600))
    with pytest.raises(UserError, match=r"question and instruction have \d+ tokens.* 88 "):
        narrow.ask("试用期不得超过几个月？" * 10)
    with pytest.raises(UserError, match=r"max_new_tokens is 600.* 600 tokens"):
        narrow.ask("试用期？", sampling=Sampling(max_new_tokens=600))


@pytest.mark.parametrize(
    "wrong", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_invalid_sampling_is_the_users_mistake(wrong: dict[str, float], pipeline: Pipeline) -> None:
    [(name, value)] = wrong.items()
    generating = replace(pipeline, generator=CopyingGenerator())
    with pytest.raises(UserError, match=f"{name} is {value}"):
        generating.ask("试用期不得超过几个月？", sampling=Sampling(**wrong))  # type: ignore[arg-type]
