"""Follow-up questions."""

import pytest

from rag.question import is_follow_up, stand_alone
from rag.types import Message

HISTORY = [Message("user", "劳动合同的试用期最长多久？"), Message("assistant", "六个月 [1]")]


@pytest.mark.parametrize(
    "question", ["那工资呢？", "它可以延长吗？", "What about wages?", "为什么？", "這是誰規定的？"]
)
def test_a_follow_up_gets_the_subject(question: str) -> None:
    assert stand_alone(question, HISTORY) == f"劳动合同的试用期最长多久？ {question}"


@pytest.mark.parametrize(
    "question",
    [
        "消费者在多少天内可以退货？",
        "Who decides on personal information protection?",
        "其他国家的劳动法怎么规定？",
        "劳动者应该做什么准备？",
        "合同应该由谁保管？",
        "什么是物权？",
        "What penalty applies to drivers that drink alcohol?",
        "Is there a minimum wage in China?",
    ],
)
def test_a_question_that_stands_alone_is_left_alone(question: str) -> None:
    assert stand_alone(question, HISTORY) == question


def test_the_first_question_is_left_alone() -> None:
    assert stand_alone("那工资呢？", []) == "那工资呢？"


def test_the_subject_survives_a_chain_of_follow_ups() -> None:
    history = [*HISTORY, Message("user", "那工资呢？"), Message("assistant", "百分之八十 [1]")]
    assert stand_alone("为什么？", history).startswith("劳动合同的试用期最长多久？")
    assert is_follow_up("那工资呢？")
