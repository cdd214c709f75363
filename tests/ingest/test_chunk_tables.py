"""Tables in text: which rows they have, and rows as words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.chunk import cells, in_words, is_row, tables, text_in_words
from ingest.normalize import one_line

HEADER = "| 姓名 | 年龄 |"
ROWS = ["| 张三 | 30 |", "| 王五 | 40 |", "| 李四 | 25 |", "| 赵六 |  |"]
TABLE = "\n".join([HEADER, "| --- | --- |", *ROWS])
WORDS = ["姓名：张三；年龄：30", "姓名：王五；年龄：40", "姓名：李四；年龄：25", "姓名：赵六"]
CELLS = st.text("甲乙丙12,. ", max_size=6).map(str.strip)


@pytest.mark.parametrize(("row", "words"), list(zip(ROWS, WORDS, strict=True)))
def test_a_row_reads_with_its_header(row: str, words: str) -> None:
    assert is_row(row)
    assert in_words(cells(HEADER), cells(row)) == words


def test_a_row_whose_column_has_no_name_is_its_own_label() -> None:
    names = ["", "本报告期", "上年同期"]
    words = in_words(names, ["营业收入（元）", "4,755,785.11", "5,699,227.63"])
    assert words == "营业收入（元）：本报告期 4,755,785.11；上年同期 5,699,227.63"


def test_tables_and_their_rows_in_a_text() -> None:
    text = f"名单：\n\n{TABLE}\n\n完。"
    [table] = tables(text)
    assert text[table.start : table.end].strip() == TABLE
    assert table.header == HEADER
    lines = text_in_words(text).split("\n")
    assert [line for line in lines if "：" in line and "；" in line] == WORDS[:3]
    assert HEADER in lines
    assert "完。" in lines


def test_rows_whose_header_is_in_the_text_before() -> None:
    rows = "\n".join(ROWS)
    assert text_in_words(rows, HEADER).split("\n") == WORDS
    assert text_in_words(rows) == rows


@pytest.mark.parametrize("line", ["张三三十岁。", "| --- | :-: |", "| 未完", ""])
def test_what_is_no_row(line: str) -> None:
    assert not is_row(line)


def test_a_row_with_other_cells_than_the_header_stays() -> None:
    text = f"{HEADER}\n| --- | --- |\n| 一 | 二 | 三 |"
    assert text_in_words(text) == text


@given(st.lists(st.lists(CELLS, min_size=3, max_size=3), min_size=1, max_size=5))
def test_no_cell_gets_lost(rows: list[list[str]]) -> None:
    names = ["甲", "乙", "丙"]
    for row in rows:
        words = in_words(names, row)
        assert all(cell in words for cell in row)


def test_line_breaks_go_and_words_stay_apart() -> None:
    assert one_line("公安机关指定的\n时间、路线") == "公安机关指定的时间、路线"
    assert one_line("the quick\nbrown  fox") == "the quick brown fox"
