"""The layout of a sheet: what becomes a title, a header, a row, a note; and that nothing gets lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.parse.blocks import compose
from ingest.parse.sheet import Row, filled, sheet_blocks
from ingest.types import Segment

Cell = str | None


def laid_out(text: str, *spans: tuple[int, int, int, int]) -> Segment:
    """Lines of cells between bars; `spans` are merged cells: top, left, bottom, right."""
    rows = []
    for number, line in enumerate(text.strip("\n").split("\n"), 1):
        cells = {at: cell.strip() for at, cell in enumerate(line.split("|")) if cell.strip()}
        own = [(left, right, bottom) for top, left, bottom, right in spans if top == number]
        rows.append(Row(number, cells, own))
    (segment,) = compose(sheet_blocks("Sheet1", filled(rows)))
    return segment


def lines(text: str, *spans: tuple[int, int, int, int]) -> list[str]:
    return [line for line in laid_out(text, *spans).text.split("\n") if line and "---" not in line]


def test_title_two_header_rows_and_merged_cells_in_both_directions() -> None:
    found = laid_out(
        """
        差旅费标准 |     |       |
        部门       | 职务 | 住宿费 |
                   |     | 一线   | 其他
        研发部     | 总监 | 800   | 600
                   | 经理 | 600   | 450
        """.strip(" "),
        *((1, 0, 1, 3), (2, 0, 3, 0), (2, 1, 3, 1), (2, 2, 2, 3), (4, 0, 5, 0)),
    )
    assert found.text == (
        "差旅费标准\n\n| 部门 | 职务 | 住宿费 一线 | 住宿费 其他 |\n| --- | --- | --- | --- |\n"
        "| 研发部 | 总监 | 800 | 600 |\n| 研发部 | 经理 | 600 | 450 |"
    )
    assert [(m.label, m.level) for m in found.marks if m.kind == "heading"] == [("差旅费标准", 3)]
    row = next(m for m in found.marks if m.label == "row 5")
    assert found.text[row.start :] == "| 研发部 | 经理 | 600 | 450 |"


def test_names_of_groups_reach_over_empty_places() -> None:
    found = lines("| 一季度 | | 二季度 | \n产品|数量|金额|数量|金额\n甲|1|2|3|4")
    assert found[0] == "| 产品 | 一季度 数量 | 一季度 金额 | 二季度 数量 | 二季度 金额 |"


def test_blocks_beside_each_other_and_below() -> None:
    found = lines("""
物料 | 数量 | | 客户 | 金额
螺栓 | 3    | | 华星 | 900
垫片 | 4    | | 宏图 | 800

联系人 | 电话 | 邮箱
王仓 | 021-5555 | w@example.com
""")
    assert found == [
        *("| 物料 | 数量 |", "| 螺栓 | 3 |", "| 垫片 | 4 |"),
        *("| 客户 | 金额 |", "| 华星 | 900 |", "| 宏图 | 800 |"),
        *("| 联系人 | 电话 | 邮箱 |", "| 王仓 | 021-5555 | w@example.com |"),
    ]


def test_an_empty_column_inside_a_table_does_not_cut_its_rows() -> None:
    assert lines("项目 | | 2023 | | 2022\n收入 | | 5 | | 4\n成本 | | 3 | | 2")[1] == "| 收入 | 5 | 4 |"


def test_halves_of_a_table_side_by_side() -> None:
    assert lines("品名|单价|品名|单价\n白菜|2|猪肉|20\n萝卜|1.5|牛肉|40") == [
        *("| 品名 | 单价 |", "| 白菜 | 2 |", "| 萝卜 | 1.5 |"),
        *("| 品名 | 单价 |", "| 猪肉 | 20 |", "| 牛肉 | 40 |"),
    ]


def test_a_new_table_below_a_merged_title_has_its_own_names() -> None:
    found = lines("物料|库存\n螺栓|12\n垫片|5\n联系人名单|\n联系人|电话\n王仓|021-5555", (4, 0, 4, 1))
    assert found[3:] == ["联系人名单", "| 联系人 | 电话 |", "| 王仓 | 021-5555 |"]


def test_sections_keep_the_header_and_notes_stand_apart() -> None:
    found = lines("项目|期末|期初\n流动资产：||\n现金|10|9\n非流动资产：||\n厂房|7|8\n注：未经审计||")
    assert found == [
        *("流动资产：", "| 项目 | 期末 | 期初 |", "| 现金 | 10 | 9 |"),
        *("非流动资产：", "| 项目 | 期末 | 期初 |", "| 厂房 | 7 | 8 |", "注：未经审计"),
    ]


def test_a_table_goes_on_after_an_empty_row() -> None:
    assert lines("姓名|金额\n张三|3\n\n李四|4\n\n合计|7")[-2:] == ["| 姓名 | 金额 |", "| 合计 | 7 |"]


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("张三|13800001111\n李四|13800002222\n王五|13800003333", "|  |  |"),
        ("张三|研发\n李四|研发\n王五|销售", "|  |  |"),
        ("地区|2019|2020\n北京|1.5|2\n上海|3|4", "| 地区 | 2019 | 2020 |"),
        ("月份|1月|2月\n张三|5|6", "| 月份 | 1月 | 2月 |"),
        ("岗位|负责人\n运维|张三\n开发|李四", "| 岗位 | 负责人 |"),
    ],
)
def test_the_first_row_is_a_header_if_it_differs_from_those_below(text: str, header: str) -> None:
    assert lines(text)[0] == header


def test_questions_and_answers_are_headings_and_paragraphs() -> None:
    found = laid_out("编号|问题|答案\n1|年假可以结转吗？|最多结转五天。\n2|工牌丢了怎么办|补办")
    assert found.text.startswith("年假可以结转吗？\n\n最多结转五天。\n编号：1\n\n工牌丢了怎么办")
    assert [m.label for m in found.marks if m.kind == "heading"][1] == "工牌丢了怎么办"


def test_comments_are_named_and_say_where() -> None:
    rows = [Row(1, {0: "仓库", 1: "库存"}), Row(2, {0: "成都", 1: "80"}), Row(3, {0: "上海", 1: "9"})]
    (found,) = compose(sheet_blocks("仓储", filled(rows), {2: {1: "含30件\n待报废"}}))
    assert found.text.endswith("| 上海 | 9 |\n\n[批注 成都 · 库存] 含30件 待报废")


def test_hidden_rows_and_columns_are_no_gaps() -> None:
    rows = [
        Row(1, {0: "产品", 1: "成本", 2: "价格"}),
        *(Row(2, {0: "甲", 1: "1", 2: "2"}), Row(3, {0: "乙", 1: "3", 2: "4"}, (), True)),
        Row(4, {0: "丙", 1: "5", 2: "6"}),
    ]
    (found,) = compose(sheet_blocks("Sheet1", filled(rows, {1})))
    assert found.text == "| 产品 | 价格 |\n| --- | --- |\n| 甲 | 2 |\n| 丙 | 6 |"


WORDS = st.sampled_from(["甲", "名称", "12", "3.5", "2024", "合计：", "注：无", "长文" * 40, "产品", "—"])
GRIDS = st.lists(
    st.tuples(st.integers(1, 3), st.dictionaries(st.integers(0, 7), WORDS, max_size=8)), max_size=12
)


@given(GRIDS, st.lists(st.tuples(*[st.integers(0, 9)] * 4), max_size=4))
def test_no_text_gets_lost_and_rows_are_in_order(
    grid: list[tuple[int, dict[int, str]]], merged: list[tuple[int, int, int, int]]
) -> None:
    rows, number = [], 0
    for step, words in grid:
        number += step
        cells = {at: f"{word}{number}号{at}列" if word != "12" else word for at, word in words.items()}
        spans = [(a, a + b % 4, number + c % 3) for top, a, b, c in merged if top == number and a in cells]
        cells = {at: t for at, t in cells.items() if not any(a < at <= b for a, b, _ in spans)}
        rows.append(Row(number, cells, spans))
    shown = list(filled(rows))
    segments = list(compose(sheet_blocks("台账", iter(shown))))
    text = "".join(segment.text for segment in segments)
    assert all(cell in text for row in shown for cell in row.cells.values())
    marks = [m for segment in segments for m in segment.marks]
    assert [m.start for m in marks] == sorted(m.start for m in marks)
