"""Tables of PDFs as rows with their header, however they are drawn; and no character is lost."""

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.i18n import translate
from tests.ingest.documents import at, drawn, parse, read, rules, whole

XS = [60.0, 180.0, 300.0, 420.0]


def grid(rows: list[list[str]], *, top: float = 700, lines: bool = True) -> str:
    """Rows of a table with 20 points each, from `top` down."""
    ys = [top - 20 * row for row in range(len(rows) + 1)]
    text = "".join(
        at(XS[column] + 4, ys[row] - 14, cell, 10)
        for row, cells in enumerate(rows)
        for column, cell in enumerate(cells)
        if cell
    )
    return text + (rules(XS[: len(rows[0]) + 1], ys) if lines else "")


ROWS = [["项目", "本期", "上期"], ["营业收入", "1,200.5", "1,100.0"], ["净利润", "-33.1", "20.0"]]
TABLE = (
    "| 项目 | 本期 | 上期 |\n| --- | --- | --- |\n| 营业收入 | 1,200.5 | 1,100.0 |\n| 净利润 | -33.1 | 20.0 |"
)


@pytest.mark.parametrize("lines", [True, False])
def test_a_table_has_a_row_for_each_row(tmp_path: Path, lines: bool) -> None:
    text, _ = read(drawn(tmp_path / "a.pdf", [grid(ROWS, lines=lines)]))
    assert text == TABLE


def test_a_cell_over_several_columns_or_rows_is_in_each(tmp_path: Path) -> None:
    ys = [700.0, 680.0, 660.0, 640.0, 620.0]
    page = "".join(f"60 {y} m 420 {y} l S\n" for y in (700, 660, 620))
    page += "180 680 m 420 680 l S\n180 640 m 420 640 l S\n"
    page += "".join(f"{x} 700 m {x} 620 l S\n" for x in (60, 180, 420)) + "300 680 m 300 620 l S\n"
    for x, y, text in (
        (64, 676, "部门"), (240, 686, "住宿费"), (184, 666, "一线城市"), (304, 666, "其他城市"),
        (64, 636, "研发部"), (184, 646, "500"), (304, 646, "450"), (184, 626, "400"), (304, 626, "350"),
    ):  # fmt: skip
        page += at(x, y, text, 10)
    text, _ = read(drawn(tmp_path / "a.pdf", [page]))
    assert text == (
        "| 部门 | 住宿费 一线城市 | 住宿费 其他城市 |\n| --- | --- | --- |\n| 研发部 | 500 | 450 |\n"
        "| 研发部 | 400 | 350 |"
    )
    assert len(ys) == 5


def test_a_table_continues_under_its_header_on_the_next_page(tmp_path: Path) -> None:
    """Also where the header is drawn again; a row is cited with the page on which it stands."""
    for again in ([], [ROWS[0]]):
        first = at(60, 720, "经营情况", 10) + grid(ROWS, top=140)
        path = drawn(tmp_path / "a.pdf", [first, grid([*again, ["负债", "7", "8"]], top=740)])
        text, marks = read(path)
        assert text == f"经营情况\n\n{TABLE}\n| 负债 | 7 | 8 |"
        assert [(m.label, text[m.start :][:4]) for m in marks if m.kind == "page"] == [
            ("p. 1", "经营情况"),
            ("p. 2", "| 负债"),
        ]


def test_tables_side_by_side_are_two(tmp_path: Path) -> None:
    page = "".join(
        at(x + 4, 686 - 20 * row, cell, 10)
        for row, cells in enumerate(
            [["序号", "名称"] * 2, ["1", "牛肉", "5", "牛柳"], ["2", "牛心", "6", "牛腩"]]
        )
        for x, cell in zip((60, 120, 240, 300), cells, strict=True)
    )
    page += rules([60, 120, 240, 300, 420], [700, 680, 660, 640])
    text, _ = read(drawn(tmp_path / "a.pdf", [page]))
    assert text == (
        "| 序号 | 名称 |\n| --- | --- |\n| 1 | 牛肉 |\n| 2 | 牛心 |\n\n"
        "| 序号 | 名称 |\n| --- | --- |\n| 5 | 牛柳 |\n| 6 | 牛腩 |"
    )


def test_a_cell_broken_over_lines_is_one(tmp_path: Path) -> None:
    page = rules([60, 180, 300], [700, 680, 640])
    for x, y, text in (
        (64, 686, "名称"), (184, 686, "金额"), (64, 666, "归属于母公司所有"), (64, 650, "者的净利润"),
        (184, 666, "1,234,567,"), (184, 650, "890"),
    ):  # fmt: skip
        page += at(x, y, text, 10)
    text, _ = read(drawn(tmp_path / "a.pdf", [page]))
    assert text.endswith("| 归属于母公司所有者的净利润 | 1,234,567,890 |")


words = st.text("营收利润资产abc019", min_size=1, max_size=6)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(st.tuples(st.integers(20, 520), st.integers(20, 760), words), max_size=30),
    across=st.lists(st.tuples(st.integers(20, 300), st.integers(20, 760)), max_size=8),
    down=st.lists(st.tuples(st.integers(20, 580), st.integers(20, 400)), max_size=8),
)
def test_no_character_is_lost(
    tmp_path: Path,
    pieces: list[tuple[int, int, str]],
    across: list[tuple[int, int]],
    down: list[tuple[int, int]],
) -> None:
    """Whatever the text, the lines, and how they cross."""
    page = at(300, 400, "正文", 10) + "".join(at(x, y, text, 10) for x, y, text in pieces)
    page += "".join(f"{x} {y} m {x + 250} {y} l S\n" for x, y in across)
    page += "".join(f"{x} {y} m {x} {y + 300} l S\n" for x, y in down)
    text, _ = read(drawn(tmp_path / "a.pdf", [page]))
    import pypdfium2

    with pypdfium2.PdfDocument(tmp_path / "a.pdf") as document:
        plain = document[0].get_textpage().get_text_range()
    for letter in set(plain) - set(" \r\n"):
        assert text.count(letter) >= plain.count(letter)


@pytest.mark.parametrize(
    ("page", "reported"),
    [
        ("".join(f"40 {40 + at / 15} m 570 {40 + at / 15} l S\n" for at in range(10_000)), False),
        ("".join(f"{at % 100 * 5} {at // 100 * 5} 5 5 re S\n" for at in range(15_000)), True),
        ("".join(at(20, 60 + row / 6, f"{row} " * 10, 1) for row in range(4_000)), True),
    ],
    ids=["lines", "cells", "text"],
)
def test_too_much_on_a_page_is_read_in_bounded_time(tmp_path: Path, page: str, reported: bool) -> None:
    before = time.process_time()
    parsed = parse(drawn(tmp_path / "a.pdf", [page + at(40, 700, "Alpha 1")]), ocr=False)
    text, _ = whole(parsed)
    assert "Alpha 1" in text
    assert bool(parsed.report.warnings) == reported
    assert all(translate(warning, "zh") for warning in parsed.report.warnings)
    assert time.process_time() - before < 20  # CPU time, against minutes for work in squares
