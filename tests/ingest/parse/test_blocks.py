"""Chinese chapter headings: told from sentences that mention a chapter."""

import pytest

from ingest.parse.blocks import chinese_heading


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("第一编 总则", ("第一编 总则", 1)),
        ("  第二章　 合同的订立  ", ("第二章 合同的订立", 2)),
        ("第3节：一般规定", ("第3节：一般规定", 3)),
        ("第 十 章 附 则", ("第 十 章 附 则", 2)),
        ("第十二章", ("第十二章", 2)),
        ("附　则", ("附 则", 2)),
        ("目录", ("目录", 2)),
    ],
)
def test_headings(line: str, expected: tuple[str, int] | None) -> None:
    assert chinese_heading(line) == expected


@pytest.mark.parametrize(
    "line",
    [
        "",
        "第一条 为了规范公司的组织和行为，制定本法。",
        "第三章的规定适用于本条",
        "第二章 规定了合同的订立，第三章 规定了合同的效力。",
        "依照本法第五章第二节",
        "第一章" + "很长的一句话没有标点" * 5,
        "一、总体要求",
    ],
)
def test_sentences_are_not_headings(line: str) -> None:
    assert chinese_heading(line) is None
