"""Metrics of texts keep their definitions, and agree with the packages that upstream scored with."""

from functools import cache
from math import exp

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from finetune.evaluate.metrics import bare, bleu4, chosen, contains, exact, f1, rouge_l, tokens, words

TEXT = st.text("甲乙丙丁 ab1.。", max_size=12)
METRICS = {"exact": exact, "contains": contains, "f1": f1, "rouge_l": rouge_l}

# nltk 3.10.4 (3.8.1 gives the same): sentence_bleu([list(answer)], list(reply),
# smoothing_function=SmoothingFunction().method3) * 100. rouge_chinese 1.0.3: rouge-l's f over
# jieba 0.42.1's words joined by spaces.
ORACLE = [
    ("试用期不得超过六个月", "试用期最长不得超过六个月。", 58.20085, 0.8),
    ("提前三日", "三日", 31.947155, 0.666667),
    ("三日", "劳动者在试用期内提前三日通知用人单位，可以解除劳动合同。", 0.000134, 0.142857),
    ("The cat sat on the mat.", "The cat is on the mat.", 79.448372, 0.857143),
    ("ab", "ab", 59.460356, 1.0),
    ("甲乙丙丁", "丁丙乙甲", 22.59005, 0.0),
    ("一二三四五六七八", "一二三四五六七八", 100.0, 1.0),
    ("x", "y", 0.0, 0.0),
    ("二倍的工资 double", "应当向劳动者每月支付二倍的工资", 24.689801, 0.5),
]


@pytest.mark.parametrize(("reply", "answer", "bleu", "rouge"), ORACLE)
def test_scores_equal_those_of_nltk_and_rouge_chinese(
    reply: str, answer: str, bleu: float, rouge: float
) -> None:
    assert bleu4(reply, answer) == pytest.approx(bleu, abs=1e-6)
    assert rouge_l(reply, answer) == pytest.approx(rouge, abs=1e-6)


def test_bleu_equals_a_computation_by_hand() -> None:
    # Precisions 2/2 and 1/1; no 3-gram (n counts as 1) is 1/2, no 4-gram 1/4.
    assert bleu4("ab", "ab") == pytest.approx(100 * (1 * 1 * 1 / 2 * 1 / 4) ** (1 / 4))
    # 3/4 (the second a is clipped), 1/3, then 1/(2·2) and 1/(4·1); as long: no penalty.
    assert bleu4("abca", "abdc") == pytest.approx(100 * (3 / 4 * 1 / 3 * 1 / 4 * 1 / 4) ** (1 / 4))
    # One character against three: exp(1 - 3/1), and 1, 1/2, 1/4, 1/8.
    assert bleu4("a", "abc") == pytest.approx(100 * exp(-2) * (1 / 2 * 1 / 4 * 1 / 8) ** (1 / 4))


@pytest.mark.parametrize(
    ("reply", "answer", "right"),
    [
        ("B", "B", 1), ("答案是B。", "B", 1), ("b) 六个月", "B", 1), ("A 或 B", "B", 0), ("About B", "B", 1),
        ("", "B", 0), ("对", "对", 1), ("这句话不对。", "对", 0), ("不正确", "错", 1), ("True.", "true", 1),
        ("untrue", "true", 0),
    ],
)  # fmt: skip
def test_the_first_choice_in_a_reply_counts(reply: str, answer: str, right: int) -> None:
    assert chosen(reply, answer) == right


@given(TEXT, TEXT)
def test_scores_are_within_their_bounds(reply: str, answer: str) -> None:
    for metric in METRICS.values():
        assert 0 <= metric(reply, answer) <= 1
    assert 0 <= bleu4(reply, answer) <= 100 + 1e-9
    assert exact(reply, answer) <= contains(reply, answer)
    assert exact(reply, answer) <= f1(reply, answer)


@given(TEXT, TEXT)
def test_symmetric_scores_are_symmetric(reply: str, answer: str) -> None:
    for metric in (exact, f1, rouge_l):
        assert metric(reply, answer) == pytest.approx(metric(answer, reply))


@given(TEXT)
def test_equal_texts_have_the_full_score(text: str) -> None:
    assert exact(text, text) == contains(text, text) == f1(text, text) == 1
    assert rouge_l(text, text) == bool(words(text))
    if len(text) >= 4:
        assert bleu4(text, text) == pytest.approx(100)


@given(TEXT, TEXT)
def test_the_longest_common_subsequence_equals_its_definition(reply: str, answer: str) -> None:
    a, b = words(reply), words(answer)

    @cache
    def longest(i: int, j: int) -> int:
        if i == len(a) or j == len(b):
            return 0
        if a[i] == b[j]:
            return 1 + longest(i + 1, j + 1)
        return max(longest(i + 1, j), longest(i, j + 1))

    expected = 2 * longest(0, 0) / (len(a) + len(b)) if a and b else 0.0
    assert rouge_l(reply, answer) == pytest.approx(expected)


@given(TEXT, TEXT)
def test_a_longer_text_still_contains_the_answer(before: str, answer: str) -> None:
    assume(any(character.isalnum() for character in answer))
    assert contains(f"{before}。{answer}。", answer)


@pytest.mark.parametrize(
    ("reply", "answer", "same"),
    [
        ("六个月。", "六個月", True),
        ("ＡＢＣ， 是“3.5%”", "abc 是 3.5％", True),
        ("1,000 元", "1000元", True),
        ("3.5", "35", False),
        ("-5", "5", False),
        ("5%", "5", False),
        ("1-3", "13", False),
        ("hello world", "helloworld", False),
        ("三 日", "三日", True),
        ("√", "×", False),
        ("√", "√", True),
    ],
)
def test_texts_that_count_as_equal(reply: str, answer: str, same: bool) -> None:
    assert exact(reply, answer) == same


def test_an_answer_is_found_as_whole_tokens() -> None:
    assert contains("试用期不得超过六个月[1]。", "六个月")
    assert not contains("concatenate", "cat")
    assert not contains("15 days", "5")
    assert contains("It takes 5 days.", "5 DAYS")


def test_f1_counts_tokens_as_a_bag() -> None:
    assert f1("提前三日", "三日") == pytest.approx(2 * 2 / (4 + 2))
    assert f1("the the cat", "the cat cat") == pytest.approx(2 / 3)
    assert tokens("第1,234条 v2.0") == ["第", "1234", "条", "v2", "0"]


def test_citation_marks_are_removed_before_scoring() -> None:
    assert bare("六个月[1]。二倍【2，3】") == "六个月。二倍"
    assert bare("`a[1]` is code [2].") == "`a[1]` is code ."
    assert exact(bare("六个月[1]。"), "六个月")
