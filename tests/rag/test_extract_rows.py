"""Text as a line of an answer."""

import pytest

from ingest.normalize import one_line
from rag.extract import row_in_words

HEADER = "| 姓名 | 年龄 |"
ROWS = ["| 张三 | 30 |", "| 王五 | 40 |", "| 李四 | 25 |", "| 赵六 |  |"]
TABLE = "\n".join([HEADER, "| --- | --- |", *ROWS])
WORDS = ["姓名：张三；年龄：30", "姓名：王五；年龄：40", "姓名：李四；年龄：25", "姓名：赵六"]


@pytest.mark.parametrize(("row", "words"), list(zip(ROWS, WORDS, strict=True)))
def test_every_row_has_its_own_header(row: str, words: str) -> None:
    assert row_in_words(row, TABLE[: TABLE.index(row)], "员工名单") == words


@pytest.mark.parametrize(("row", "words"), list(zip(ROWS, WORDS, strict=True)))
def test_a_header_that_stands_in_the_context_alone_counts(row: str, words: str) -> None:
    rows = "\n".join(ROWS)
    assert row_in_words(row, rows[: rows.index(row)], f"员工名单\n{HEADER}") == words


def test_what_is_no_row_of_a_table_stays() -> None:
    assert row_in_words("张三三十岁。", TABLE, HEADER) == "张三三十岁。"
    assert row_in_words("| 一 | 二 | 三 |", TABLE, HEADER) == "| 一 | 二 | 三 |"
    assert row_in_words("| 张三 | 30 |", "", "员工名单") == "| 张三 | 30 |"


def test_line_breaks_go_and_words_stay_apart() -> None:
    assert one_line("公安机关指定的\n时间、路线") == "公安机关指定的时间、路线"
    assert one_line("the quick\nbrown  fox") == "the quick brown fox"
