"""Marks and the sentence that says nothing was found."""

import pytest

from rag.cite import declines, marks, numbers
from rag.types import NOT_FOUND


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("六个月[1]。", [[1]]),
        ("六个月【2】，八成［3］。", [[2], [3]]),
        ("都有[1, 2]、[3]；[4，5]", [[1, 2], [3], [4, 5]]),
        ("a `x[1]` b\n```\ny[2]\n```\nc[3]", [[3]]),
        ("[1](https://example.org) [12]", [[12]]),
        ("[a] [] [2023]", []),
    ],
)
def test_marks_are_numbers_in_brackets_outside_code(text: str, found: list[list[int]]) -> None:
    assert [numbers(mark) for mark in marks(text)] == found


@pytest.mark.parametrize(
    ("text", "declined"),
    [
        *((sentence, True) for sentence in NOT_FOUND.values()),
        ("資料中沒有提到", True),
        ("  “资料中没有提到。”\n", True),
        ("根据所给内容，资料中没有提到试用期工资。", True),
        ("资料中没有提到。不过一般是三个月。", True),
        ("the passages do not say.", True),
        ("资料中没有提到年龄，但提到他生于1990年[1]。", False),
        ("试用期为六个月。其余资料中没有提到。", False),
        ("六个月[1]。", False),
        ("", False),
    ],
)
def test_the_sentence_for_nothing_found_is_recognised(text: str, declined: bool) -> None:
    assert declines(text) is declined
