"""Facts: what a document says of itself is found by its label or form, at its exact place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.normalize import normalize
from ingest.parse import OPENING, facts
from ingest.types import ParseReport
from rag.question import fact_kinds

NOTICE = "关于印发采购办法的通知\n\n 财库〔2020〕46号 \n\n发文机关：财政部\n\n作者：王一\n\n2020年12月18日\n\n正文第一段。"


def test_facts_are_lines_at_their_place() -> None:
    found = {fact.kind: NOTICE[fact.start : fact.end] for fact in facts(NOTICE)}
    assert found == {
        "number": "财库〔2020〕46号",
        "body": "发文机关：财政部",
        "author": "作者：王一",
        "date": "2020年12月18日",
    }


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("项目编号：0873-2401HW", "number"),
        ("中华人民共和国财政部令第 87 号", "number"),
        ("[Docket No. FAA–2020–0686]", "number"),
        ("发布日期：2024-07-05", "date"),
        ("August 6, 2020", "date"),
        ("AGENCY: Federal Aviation Administration", "body"),
        ("Author: Ann Lee", "author"),
    ],
)
def test_labels_and_forms(line: str, kind: str) -> None:
    assert [fact.kind for fact in facts(f"Title\n{line}\n\nText.")] == [kind]


@pytest.mark.parametrize("line", ["会议于2020年12月18日召开。", "| 作者：王一 |", "作者：", "编号"])
def test_sentences_rows_and_bare_labels_are_no_facts(line: str) -> None:
    assert not list(facts(line))


@pytest.mark.parametrize(
    ("question", "kinds"),
    [
        ("这份招标文件的项目编号是什么？", {"number"}),
        ("这份通知的文号是多少？", {"number"}),
        ("第87号令是哪一天公布的？", {"date"}),
        ("这份文件是哪个部门印发的？", {"body"}),
        ("谁写了这篇文章？作者是谁？", {"author"}),
        ("年假有几天？", set()),
        ("子节标题用什么字号和字体？", set()),
    ],
)
def test_what_questions_ask(question: str, kinds: set[str]) -> None:
    assert fact_kinds(normalize(question)) == kinds


@given(st.text("编号：:作者日期来源2020年1月号令第[]〔〕()-\n ab", max_size=300))
def test_any_text_gives_lines_within_it(text: str) -> None:
    for fact in facts(text):
        assert text[fact.start : fact.end] == text[fact.start : fact.end].strip() != ""
        assert fact.end <= OPENING


def test_a_report_keeps_its_facts() -> None:
    report = ParseReport("txt", facts=tuple(facts(NOTICE)))
    assert ParseReport.from_json(report.to_json()) == report
