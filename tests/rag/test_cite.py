"""Marks become exact quotes; sentences without support are flagged; the text is never altered."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.chunk import Chunker, ChunkOptions
from ingest.files import walk
from ingest.pipeline import Ingestion
from ingest.store import Identity, LocalStore, open_store
from ingest.types import Hit, Passage
from rag.cite import AnswerCitations, cite, claims
from rag.types import Source
from tests.fakes import HashEmbedder, TextParser

LAW = (
    "第十九条 劳动合同期限三个月以上不满一年的，试用期不得超过一个月。"
    "三年以上固定期限和无固定期限的劳动合同，试用期不得超过六个月。"
    "同一用人单位与同一劳动者只能约定一次试用期。\n"
    "第二十条 劳动者在试用期的工资不得低于本单位相同岗位最低档工资的百分之八十。\n"
    "第二十一条 在试用期中，用人单位不得无故解除劳动合同，并应当向劳动者说明理由。\n"
)
COMPANY = "蓝海公司成立于2009年，总部位于杭州。公司现有员工1200人，董事长是李明。\n"
CARGO = "Cargo is the build system of Rust. A new stable release comes out every six weeks.\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalStore, list[Source]]]:
    folder = tmp_path_factory.mktemp("cite")
    docs = folder / "docs"
    docs.mkdir()
    for name, text in (("1law", LAW), ("2company", COMPANY), ("3cargo", CARGO)):
        (docs / f"{name}.txt").write_text(text, "utf-8")
    embedder = HashEmbedder()
    chunker = Chunker(embedder.count_many, embedder.max_tokens, ChunkOptions(100, 400, 20))
    with open_store(folder / "kb", create=Identity(embedder.name, embedder.dim)) as store:
        list(Ingestion(store, embedder, chunker, TextParser()).run(walk([docs])))
        sources = []
        for document in sorted(store.documents(), key=lambda d: d.source):
            text = store.text(document.id)
            passage = Passage(document.id, 0, len(text), text, "")
            sources.append(Source(passage, Hit(store.chunks_within(passage)[0], 1.0)))
        yield store, sources


def cited(
    made: tuple[LocalStore, list[Source]], text: str, question: str = "试用期多久？"
) -> AnswerCitations:
    store, sources = made
    return cite(text, question, sources, store)


def test_a_mark_quotes_the_sentence_that_supports_its_own(made) -> None:
    found = cited(made, "试用期最长为6个月[1]。试用期工资至少为最低档工资的80%[1]。")
    assert [c.number for c in found.citations] == [1, 1]
    assert [c.quote.rstrip("\n")[-7:] for c in found.citations] == ["得超过六个月。", "的百分之八十。"]
    assert found.unsupported == ()
    for citation in found.citations:
        store = made[0]
        assert store.text(citation.chunk.document, citation.start, citation.end) == citation.quote


def test_two_sentences_on_one_quote_share_a_citation(made) -> None:
    found = cited(made, "蓝海公司总部在杭州[2]。蓝海公司成立于2009年[2]。", "蓝海公司在哪里？")
    assert [c.number for c in found.citations] == [2]


def test_a_number_of_no_passage_gives_no_citation_and_is_counted(made) -> None:
    found = cited(made, "试用期最长为六个月[1][7]。只能约定一次试用期[0, 7]。")
    assert [c.number for c in found.citations] == [1]
    assert found.unknown == (7, 0, 7)


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ("试用期最长多久？", "试用期不得超过九个月[1]。"),
        ("试用期最长多久？", "试用期至少六个月[1]。"),
        ("试用期内可以解除合同吗？", "在试用期中，用人单位可以无故解除劳动合同[1]。"),
        ("试用期工资有何规定？", "试用期工资不得低于最低档工资的90%[1]。"),
        ("蓝海公司的董事长是谁？", "蓝海公司的董事长是王强[2]。"),
        ("蓝海公司在哪里？", "蓝海公司总部位于上海[2]。"),
        ("蓝海公司何时成立？", "蓝海公司成立于2019年。"),
        ("蓝海公司何时成立？", "该公司主要生产新能源汽车和电池。"),
        ("How often is Rust released?", "A new stable release comes out every eight weeks [3]."),
    ],
)
def test_what_no_passage_says_is_flagged(made, question: str, text: str) -> None:
    assert cited(made, text, question).unsupported == ((0, len(text)),)


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ("试用期最长多久？", "六个月[1]。"),
        ("试用期最长多久？", "根据资料，三年以上固定期限的劳动合同，试用期最长为6个月[1]。"),
        ("试用期可以约定几次？", "同一单位与同一劳动者只能约定1次试用期。[1]"),
        ("蓝海公司的董事长是谁？", "是李明[2]。"),
        ("蓝海公司的情况？", "蓝海公司2009年成立，总部在杭州，员工有一千二百人，董事长为李明[2]。"),
        ("How often is Rust released?", "Rust has a new stable release every 6 weeks [3]."),
        ("试用期最长多久？", "好的。"),
        ("试用期最长多久？", "资料中没有提到。"),
    ],
)
def test_what_a_passage_says_is_not_flagged(made, question: str, text: str) -> None:
    assert cited(made, text, question).unsupported == ()


def test_only_the_sentence_without_support_is_flagged(made) -> None:
    text = "试用期最长为六个月[1]。违者处以罚款五万元[1]。\n只能约定一次试用期[1]。"
    [(start, end)] = cited(made, text).unsupported
    assert text[start:end] == "违者处以罚款五万元[1]。"


def test_in_another_language_only_numbers_can_tell(made) -> None:
    right, wrong = "Probation lasts at most six months [1].", "Probation lasts nine months [1]."
    assert cited(made, right, "How long is probation?").unsupported == ()
    assert cited(made, wrong, "How long is probation?").unsupported == ((0, len(wrong)),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("甲。[1] 乙。[2]", [("甲。", (1,)), ("乙。", (2,))]),
        ("甲[1]。乙[2][3]。", [("甲。", (1,)), ("乙。", (2, 3))]),
        ("[1] 甲。\n[2] 乙。", [("甲。", (1,)), ("乙。", (2,))]),
        ("[1] 甲。[2] 乙。", [("甲。", (1,)), ("乙。", (2,))]),
        ("如下：\n[1] 甲。\n[2] 乙。", [("如下：", ()), ("甲。", (1,)), ("乙。", (2,))]),
        ("甲。\n[1]", [("甲。", (1,))]),
        ("One. [1] Two [2].", [("One.", (1,)), ("Two .", (2,))]),
        ("", []),
    ],
)
def test_a_mark_belongs_to_its_sentence(text: str, expected: list) -> None:
    assert [(claim.text, claim.numbers) for claim in claims(text)] == expected


@given(st.text(alphabet="甲乙。！，. \n[]1２3【】`|a", max_size=60))
def test_claims_are_spans_in_order_that_hold_every_mark(text: str) -> None:
    from rag.cite import marks, numbers

    found = claims(text)
    spans = [(claim.start, claim.end) for claim in found]
    assert spans == sorted(spans)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    assert all(0 <= start <= end <= len(text) for start, end in spans)
    marked = [number for mark in marks(text) for number in numbers(mark)]
    assert [number for claim in found for number in claim.numbers] == marked
