"""Rows from passages: their text is what the model will be asked, their citations are right."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest

from finetune.synth.build import passages_of, title_of
from finetune.synth.pair import normalize
from finetune.synth.raft import RaftBuilder, RaftRow, SyntheticQuestion, with_marks
from finetune.synth.rules import pairs_by_rule
from rag.cite import cite, claims, declines
from rag.config import Config
from rag.pipeline import Pipeline
from rag.prompt import compose
from rag.retrieve import RetrieveOptions
from rag.types import MARK, NOT_FOUND, Message, Sampling, Source
from tests.fakes import CopyingGenerator
from tests.finetune.documents import ingest, open_base
from tests.finetune.keyvalues import compared

ROOM = 4000


def characters(messages: Sequence[Message]) -> int:
    return sum(len(message.text) for message in messages)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with open_base(ingest(tmp_path_factory.mktemp("base"))) as opened:
        yield opened


@pytest.fixture(scope="module")
def pairs(pipeline: Pipeline) -> list[SyntheticQuestion]:
    store = pipeline.store
    return [
        SyntheticQuestion(pair, document)
        for document in store.documents()
        for section in passages_of(store, document)
        for pair in pairs_by_rule(section)
    ]


def rows(builder: RaftBuilder, pairs: Sequence[SyntheticQuestion]) -> list[RaftRow]:
    made = [builder.row(asked) for asked in pairs]
    return [row for row in made if isinstance(row, RaftRow)]


def holds(source: Source, row: RaftRow) -> bool:
    pair, passage = row.question.pair, source.passage
    same = passage.document == row.question.document.id
    return same and passage.start <= pair.start and pair.end <= passage.end


def test_passages_tile_a_document_and_have_its_title(pipeline: Pipeline) -> None:
    store = pipeline.store
    for document in store.documents():
        parts = list(passages_of(store, document))
        assert "".join(part.text for part in parts) == store.text(document.id)
        assert [part.start for part in parts[1:]] == [part.end for part in parts[:-1]]
        assert {part.title for part in parts} <= {"", Path(document.source).stem}
    table = next(d for d in store.documents() if d.title == "通讯录")
    first, *rest = passages_of(store, table)
    assert first.header == ""
    assert all(part.header == "| 姓名 | 分机号 | 部门 |" for part in rest)


@pytest.mark.parametrize(
    ("title", "opening", "subject"),
    [
        ("中华人民共和国劳动合同法", "", "劳动合同法"),
        ("zh-law-gbk", "# 中华人民共和国社会保险法\n\n第一条", "社会保险法"),
        ("ch04-01-what-is-ownership", "什么是所有权？\n", ""),
        ("What is Haystack? | Haystack", "", ""),
        ("Harbour Museum | Home", "", "Harbour Museum"),
        ("report.docx", "", ""),
        ("README", "", ""),
    ],
)
def test_the_title_of_a_document(title: str, opening: str, subject: str) -> None:
    assert title_of(title, opening) == subject


def test_pairs_are_of_many_kinds(pairs: list[SyntheticQuestion]) -> None:
    kinds = {asked.pair.kind for asked in pairs}
    assert kinds >= {"definition", "list", "table", "cloze", "article"}
    assert len({asked.id for asked in pairs}) == len(pairs) > 20


def test_rows_are_the_prompts_of_rag_ask(pipeline: Pipeline, pairs: list[SyntheticQuestion]) -> None:
    found = rows(RaftBuilder(pipeline, characters, ROOM, 3, seed=1), pairs)
    assert len(found) > 15
    for row in found:
        *asked, _ = row.messages
        prompt = compose(row.question.pair.question, row.sources, (), characters, ROOM)
        assert tuple(asked) == prompt.messages


def test_a_row_with_one_passage_equals_the_pipelines_prompt(
    pipeline: Pipeline, pairs: list[SyntheticQuestion]
) -> None:
    generator = CopyingGenerator(ROOM + Sampling().max_new_tokens)
    one = replace(pipeline, config=Config(retrieve=RetrieveOptions(passages=1)), generator=generator)
    same = 0
    for row in rows(RaftBuilder(pipeline, characters, ROOM, 1, without_gold=0), pairs):
        question = row.question.pair.question
        if one.retrieve(question).answerable and holds(_first(one, question), row):
            one.ask(question)
            assert generator.prompts[-1] == row.messages[:-1]
            same += 1
    assert same > 10


def _first(pipeline: Pipeline, question: str) -> Source:
    found = pipeline.retrieve(question)
    return Source(found.passages[0], found.hits[0])


@pytest.mark.parametrize("seed", [0, 1])
def test_a_target_cites_the_passage_that_answers_and_nothing_else(
    pipeline: Pipeline, pairs: list[SyntheticQuestion], seed: int
) -> None:
    found = rows(RaftBuilder(pipeline, characters, ROOM, 3, without_gold=0, seed=seed), pairs)
    assert {row.gold for row in found} >= {1, 2, 3}  # shuffled
    for row in found:
        assert row.gold
        pair, target = row.question.pair, row.messages[-1].text
        assert MARK.sub("", target).replace(" .", ".") == pair.reply
        cited = cite(target, pair.question, row.sources, pipeline.store)
        assert {citation.number for citation in cited.citations} == {row.gold}
        assert cited.unsupported == cited.unknown == ()
        assert any(c.start < pair.end and pair.start < c.end for c in cited.citations)


def test_only_the_gold_passage_has_the_answer(pipeline: Pipeline, pairs: list[SyntheticQuestion]) -> None:
    for row in rows(RaftBuilder(pipeline, characters, ROOM, 3, without_gold=0), pairs):
        answer = normalize(row.question.pair.answer)
        having = [n for n, s in enumerate(row.sources, 1) if answer in normalize(s.passage.text)]
        assert having == [row.gold]
        assert holds(row.sources[having[0] - 1], row)


def test_refusals_have_no_passage_that_answers(pipeline: Pipeline, pairs: list[SyntheticQuestion]) -> None:
    found = rows(RaftBuilder(pipeline, characters, ROOM, 3, without_gold=1), pairs)
    refusing = [row for row in found if row.gold is None]
    assert len(refusing) > len(found) / 2
    for row in refusing:
        pair = row.question.pair
        assert row.messages[-1].text in NOT_FOUND.values()
        assert declines(row.messages[-1].text)
        assert row.messages[-1].text in row.messages[0].text  # as the prompt asks
        assert row.sources
        for source in row.sources:
            assert not holds(source, row)
            assert normalize(pair.answer) not in normalize(source.passage.text)
        assert cite(pair.reply, pair.question, row.sources, pipeline.store).unsupported


def test_a_share_of_the_rows_refuses(pipeline: Pipeline, pairs: list[SyntheticQuestion]) -> None:
    def refusals(share: float) -> int:
        found = rows(RaftBuilder(pipeline, characters, ROOM, 3, without_gold=share), pairs)
        return sum(row.gold is None for row in found)

    assert refusals(0) == 0 < refusals(0.3) < refusals(0.9)


@pytest.mark.parametrize("room", [330, 420, 560])
def test_a_small_window_keeps_the_answer_or_makes_no_row(
    pipeline: Pipeline, pairs: list[SyntheticQuestion], room: int
) -> None:
    builder = RaftBuilder(pipeline, characters, room, 3, without_gold=0)
    made = [builder.row(asked) for asked in pairs]
    for row in made:
        if isinstance(row, RaftRow):
            assert characters(row.messages[:-1]) <= room
            assert row.gold
            assert row.question.pair.answer in row.sources[row.gold - 1].passage.text
        else:
            assert row in ("too long", "unsupported", "not retrieved")
    assert any(isinstance(row, RaftRow) for row in made)
    assert room > 400 or "too long" in made


def test_a_removed_document_is_skipped(tmp_path: Path) -> None:
    with open_base(ingest(tmp_path)) as pipeline:
        store = pipeline.store
        document = next(d for d in store.documents() if d.title == "通讯录")
        asked = [
            SyntheticQuestion(p, document) for s in passages_of(store, document) for p in pairs_by_rule(s)
        ]
        with store.change() as change:
            change.remove(document.source)
        builder = RaftBuilder(pipeline, characters, ROOM, 3)
        assert {builder.row(each) for each in asked} == {"not retrieved"}


@pytest.mark.parametrize(
    "reply",
    [
        "试用期不得超过一个月。",
        "第十条 应当订立合同。合同由双方签字。",
        "著作权人包括：（一）作者；（二）编者。",
        "他说：“可以。”然后离开了。",
        "The museum was founded in 1921. It is open on weekdays.",
        "姓名：张三；分机号：8012。",
        "标题",
    ],
)
def test_every_sentence_gets_a_mark_and_keeps_its_text(reply: str) -> None:
    target = with_marks(reply, 2)
    found = claims(target)
    assert found
    assert all(claim.numbers == (2,) for claim in found)
    assert MARK.sub("", target).replace(" .", ".").strip() == reply


def test_retrieval_aware_rows_beat_plain_ones(tiny: Path, tmp_path: Path) -> None:
    """In exact match with three distractors, and in F1 of refusals, on average over two seeds; by how
    much, `benchmarks/grounding.py` measures."""
    kinds = ("plain", "retrieval-aware")
    found = [compared(tiny, seed, tmp_path, kinds) for seed in range(2)]
    for score in ("exact", "refusal_f1"):
        plain, aware = (mean(getattr(scores[rows], score) for scores in found) for rows in kinds)
        assert aware > plain, (score, found)
