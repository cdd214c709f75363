"""Numbers in any spelling have the same value; negations and bounds are told apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.normalize import normalize
from rag.faithfulness import bounds, contradict, negated, numbers


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("六个月", {"6"}),
        ("6 months", {"6"}),
        ("six months", {"6"}),
        ("一千八百六十七米", {"1867"}),
        ("1,867米", {"1867"}),
        ("二〇二三年十月", {"2023", "10"}),
        ("２０２３年", {"2023"}),
        ("百分之八十", {"80"}),
        ("80%", {"80"}),
        ("三点五倍", {"3.5"}),
        ("3.50倍", {"3.5"}),
        ("13万人", {"130000"}),
        ("十三万人", {"130000"}),
        ("一亿两千万元", {"120000000"}),
        ("第十九条", {"19"}),
        ("一百零五", {"105"}),
        ("twenty-one days", {"21"}),
        ("一般来说，同一单位一定统一", set()),
        ("千万不要", set()),
        ("no one knows", set()),
    ],
)
def test_numbers_are_values(text: str, values: set[str]) -> None:
    assert numbers(normalize(text)) == values


@given(st.integers(1, 99_999_999))
def test_a_chinese_numeral_has_the_value_of_its_digits(value: int) -> None:
    assert numbers(_chinese(value)) == {str(value)} == numbers(f"{value:,}")


def _chinese(value: int) -> str:
    """The written form by the rule book, made from the top down."""
    high, low = divmod(value, 10_000)
    text = _below_myriad(high) + "万" if high else ""
    if low:
        text += ("零" if high and low < 1000 else "") + _below_myriad(low)
    return text


def _below_myriad(value: int) -> str:
    text, gap = "", False
    for unit, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = value // unit % 10
        if digit:
            text += ("零" if gap else "") + "零一二三四五六七八九"[digit] + name
            gap = False
        elif text:
            gap = True
    return text


@pytest.mark.parametrize(
    ("text", "denies"),
    [
        ("用人单位不得解除合同", True),
        ("没有规定", True),
        ("严禁吸烟", True),
        ("does not apply", True),
        ("用人单位可以解除合同", False),
        ("不仅如此", False),
        ("试用期不得超过六个月", False),
        ("不同的单位", False),
        ("无论如何", False),
        ("并非不可能", False),
    ],
)
def test_what_denies(text: str, denies: bool) -> None:
    assert negated(normalize(text)) is denies


def test_bounds_agree_in_other_words_and_contradict_the_other_way() -> None:
    most = bounds("不得超过六个月")
    assert most == bounds("最长六个月") == bounds("at most six months")
    assert not contradict(most, bounds("至多六个月"))
    assert contradict(most, bounds("至少六个月"))
    assert contradict(most, bounds("超过六个月"))
    assert not contradict(most, bounds("六个月"))
