"""Text formats: plain text, Markdown, tables, records, HTML, EPUB, mail."""

import json
import random
from pathlib import Path

import pytest

from ingest.errors import Unreadable
from ingest.parse.blocks import SEGMENT, Block, compose, heading, mark, table
from ingest.parse.text import inline
from ingest.types import Mark, Segment
from tests.ingest.documents import kinds, package, parse, read, whole


def test_blocks_become_one_text_with_marks_where_they_begin() -> None:
    blocks = [mark("page", "p. 1"), heading("第一章", 1), Block("一"), Block("二", (), True)]
    (segment,) = compose(blocks)
    assert segment.text == "第一章\n\n一\n二"
    assert segment.marks == (Mark(0, "page", "p. 1"), Mark(0, "heading", "第一章"))


def test_segments_are_cut_at_line_ends_and_join_to_the_same_text() -> None:
    rng = random.Random(0)
    blocks = [Block("字" * rng.randint(1, 90_000), (Mark(0, "row", str(i)),)) for i in range(60)]
    segments = list(compose(blocks))
    assert len(segments) > 2
    assert all(segment.text.endswith("\n") for segment in segments[:-1])
    assert max(len(segment.text) for segment in segments) < SEGMENT + 100_000
    assert "".join(s.text for s in segments) == "\n\n".join(block.text for block in blocks)
    assert all(s.text[m.start - 1 : m.start] in ("", "\n") for s in segments for m in s.marks)


@pytest.mark.parametrize("line", ["字" * 999 + "\n", "字" * 1000])
def test_a_block_larger_than_a_segment_is_cut(line: str) -> None:
    text = (line * 3500).strip()
    marks = tuple(Mark(start, "row", str(start)) for start in range(0, len(text), 500_000))
    segments = list(compose([Block("头"), Block(text, marks)]))
    assert max(len(segment.text) for segment in segments) <= 2 * SEGMENT
    assert "".join(segment.text for segment in segments) == "头\n\n" + text
    starts, at = [], 0
    for segment in segments:
        assert all(0 <= mark.start < len(segment.text) for mark in segment.marks)
        starts += [(at + mark.start - 3, mark.label) for mark in segment.marks]
        at += len(segment.text)
    assert starts == [(mark.start, mark.label) for mark in marks]


def test_a_table_has_a_head_a_rule_and_one_line_a_row() -> None:
    text = "".join(s.text for s in compose(table([["a", "b"], ["1\n2", "x|y"], ["", ""]])))
    assert text == "| a | b |\n| --- | --- |\n| 1 2 | x｜y |"


def test_text_is_kept_verbatim_with_chapters_marked(tmp_path: Path) -> None:
    content = "公司法\n\n第一章  总则\n第一条 为了规范公司。\n  第二章 登记\n第二条 略\n"
    text, marks = read(tmp_path / "法.txt", content)
    assert text == content
    assert [(text[m.start :][:3], m.level) for m in marks] == [("第一章", 2), ("第二章", 2)]


def test_a_large_text_comes_in_segments_that_join_to_it(tmp_path: Path) -> None:
    content = "".join(f"第{i}行：内容\n" for i in range(300_000))
    path = tmp_path / "big.txt"
    path.write_text(content)
    segments = list(parse(path).segments)
    assert len(segments) > 2
    assert all(isinstance(s, Segment) and s.text.endswith("\n") for s in segments)
    assert "".join(s.text for s in segments) == content


def test_markdown_without_its_markup(tmp_path: Path) -> None:
    content = (
        '# 所有权 #\n\n**借用**与*移动*，见[第四章](ch04.md "t")。![图 1](a.png)\n\n'
        "节标题\n---\n\n```rust\n# not a heading\nlet **x** = 1;\n```\n"
        "snake_case_name 和 `**p`，2 * 3 * 4，转义 \\_x\\_\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    )
    text, marks = read(tmp_path / "a.md", content)
    assert kinds(marks, "heading") == ["所有权", "节标题"]
    assert [m.level for m in marks] == [1, 2]
    assert all(text[m.start :].startswith(m.label) for m in marks)
    assert "借用与移动，见第四章。图 1" in text
    assert "# not a heading\nlet **x** = 1;" in text
    assert "snake_case_name 和 `**p`，2 * 3 * 4，转义 _x_" in text
    assert "| a | b |\n| --- | --- |\n| 1 | 2 |" in text


def test_markdown_front_matter_and_html(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    front = '---\ntitle: "条件渲染"\nlang: zh\n---\n'
    path.write_text(front + "\n<b>粗</b> &amp; Vec<T><br/>\n\n---\n完")
    parsed = parse(path)
    assert parsed.title == "条件渲染"
    assert whole(parsed)[0].split() == ["条件渲染", "lang:", "zh", "粗", "&", "Vec<T>", "完"]


@pytest.mark.parametrize("line", ["a*b*c", "2 ** 3 ** 4", "f(*args, **kwargs)", "* item", "__init__"])
def test_stars_that_are_no_emphasis_stay(line: str) -> None:
    assert inline(line).replace("init", "__init__").replace("____", "__") == line


def test_types_and_windows_paths_are_no_markup() -> None:
    line = r"返回 List<s> 或 Map<i>，C:\_tmp\*x"
    assert inline(line) == line
    assert inline(r"<b>粗</b> a\_b \*c\* C:\_x，\#") == r"粗 a_b *c* C:\_x，#"


def test_csv_rows_carry_numbers_and_quoted_newlines(tmp_path: Path) -> None:
    text, marks = read(tmp_path / "a.csv", '姓名;说明\r\n张三;"多行\r\n文本; 分号"\r\n李四;无\r\n')
    assert text == "| 姓名 | 说明 |\n| --- | --- |\n| 张三 | 多行 文本; 分号 |\n| 李四 | 无 |"
    rows = {m.label: text[m.start :].split("\n")[0] for m in marks}
    assert rows == {
        "row 1": "| 姓名 | 说明 |",
        "row 2": "| 张三 | 多行 文本; 分号 |",
        "row 3": "| 李四 | 无 |",
    }


def test_csv_lines_above_the_header_are_its_title(tmp_path: Path) -> None:
    content = '报表名称：库存表\n导出时间：2024-06-01 08:00\n\n编码,名称,库存\n000123,"M8,长",120\n0010E5,密封圈,5\n'
    text, marks = read(tmp_path / "a.csv", content)
    assert text == (
        "报表名称：库存表 导出时间：2024-06-01 08:00\n\n| 编码 | 名称 | 库存 |\n| --- | --- | --- |\n"
        "| 000123 | M8,长 | 120 |\n| 0010E5 | 密封圈 | 5 |"
    )
    assert [text[m.start :][:8] for m in marks if m.label == "row 5"] == ["| 000123"]


def test_csv_without_header_and_with_a_line_for_excel(tmp_path: Path) -> None:
    text, _ = read(tmp_path / "a.csv", "张三,13800001111,研发\n李四,13800002222,研发\n")
    assert (
        text
        == "|  |  |  |\n| --- | --- | --- |\n| 张三 | 13800001111 | 研发 |\n| 李四 | 13800002222 | 研发 |"
    )
    text, marks = read(tmp_path / "b.csv", "sep=;\r\n品名;单价\r\n白菜;2,50\r\n")
    assert text == "| 品名 | 单价 |\n| --- | --- |\n| 白菜 | 2,50 |"
    assert [m.label for m in marks] == ["row 2", "row 3"]


def test_questions_with_answers_in_csv_and_json(tmp_path: Path) -> None:
    csv_text, _ = read(tmp_path / "a.csv", "问题,答案\n年假可以结转吗？,最多结转五天。\n")
    record = {"question": "年假可以结转吗？", "answer": "最多结转五天。"}
    json_text, marks = read(tmp_path / "a.json", json.dumps([record]))
    assert csv_text == json_text == "年假可以结转吗？\n\n最多结转五天。"
    assert [(m.kind, m.label) for m in marks] == [("row", "row 1"), ("heading", "年假可以结转吗？")]


def test_html_tables_and_comments_in_markdown(tmp_path: Path) -> None:
    table = (
        '<html><body><table><tr><td rowspan="2">型号</td><td colspan="2">电流（A）</td></tr><tr><td>220V</td>'
        "<td>380V</td></tr><tr><td>KM-40<br>新</td><td>40</td><td>a &lt; **32**</td></tr></table></body></html>"
    )
    code = "```\n<!-- 保\n留 --><table><tr><td>x</td></tr></table>\n```"
    text, _ = read(tmp_path / "a.md", f"前\n{table}\n<!-- 备注：\n未核实\n-->\n{code}\n用 `<!--` 与 `-->`。")
    assert "| 型号 | 电流（A） 220V | 电流（A） 380V |\n| --- |" in text
    assert "| KM-40新 | 40 | a < 32 |" in text.replace("KM-40 新", "KM-40新")
    assert "核实" not in text
    assert code in text
    assert text.endswith("用 `<!--` 与 `-->`。")
    assert read(tmp_path / "b.md", "| a |\n| --- |\n| x \\| y |")[0].endswith("| x ｜ y |")


def test_html_that_is_never_closed_takes_linear_time(tmp_path: Path) -> None:
    assert read(tmp_path / "a.md", "<!-- a <table>b\n" * 50_000)[0].count("b") == 50_000


def test_a_row_of_a_million_columns_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    path.write_bytes(
        b"a,b\n\xe4\xb8\xad\xe4\xb8\xad\xe4\xb8\xad\xe4\xb8\xad\xff\n" + b"1," * 1_000_000 + b"\n"
    )
    parsed = parse(path)
    assert len(whole(parsed)[0]) < 20_000
    undecoded, columns = parsed.report.warnings
    assert "1 bytes" in undecoded
    assert "1000001 columns" in columns


def test_json_records_read_as_key_and_value(tmp_path: Path) -> None:
    record = {"标题": "春晓", "作者": {"名": "孟浩然", "朝": "唐"}, "标签": ["春", "鸟"], "空": None}
    text, marks = read(tmp_path / "a.json", json.dumps([record, {"标题": "静夜思"}]))
    assert text == "标题: 春晓\n作者.名: 孟浩然\n作者.朝: 唐\n标签: 春, 鸟\n\n标题: 静夜思"
    assert kinds(marks, "row") == ["row 1", "row 2"]
    lines = "\n".join(json.dumps(one, ensure_ascii=False) for one in (record, {"标题": "静夜思"}))
    assert read(tmp_path / "a.jsonl", lines)[0] == text
    assert read(tmp_path / "b.json", lines)[0] == text


def test_bad_json_lines_are_counted_and_bad_json_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "a.jsonl", tmp_path / "a.json"):
        path.write_text('{"a": 1}\nnot json\n{"a": 2}\n')
        assert parse(path).report.warnings == ("1 lines are not JSON, the last is line 2",)
    for name, content in (("b.json", '{"a": '), ("c.json", "[" * 100_000), ("d.jsonl", "x\ny")):
        with pytest.raises(Unreadable, match="is not JSON"):
            read(tmp_path / name, content)


def test_html_gives_headings_lists_tables_and_no_scripts(tmp_path: Path) -> None:
    page = """<html><head><title>指南 &amp; 手册</title><style>p{}</style></head><body>
      <script>alert("x < y")</script><h1>第一 <b>步</b></h1><p>打开&nbsp;应用，
      点击<a href="http://x">设置</a>。<br>换行</p><ul><li>甲<li>乙</ul><ol><li>一<ol><li>里</ol><li>二</ol>
      <table><tr><th>名<th>龄<tr><td>张<p>三</p><td>30</table><pre>  code
    x</pre><img src="http://127.0.0.1/x.png"></body></html>"""
    path = tmp_path / "a.html"
    path.write_text(page)
    parsed = parse(path)
    text, marks = whole(parsed)
    assert parsed.title == "指南 & 手册"
    assert [(m.label, m.level) for m in marks] == [("第一 步", 1)]
    assert "打开 应用，点击设置。\n换行\n- 甲\n- 乙\n1. 一\n1. 里\n2. 二" in text
    assert "| 名 | 龄 |\n| --- | --- |\n| 张 三 | 30 |" in text
    assert "code\n    x" in text
    assert "alert" not in text
    assert "http" not in text


def test_html_cells_that_span_rows_keep_the_columns_below(tmp_path: Path) -> None:
    page = """<table><tr><th>部门<th>姓名<th>龄<th>级</tr>
      <tr><td rowspan=2>研发<td>张三<td>30<td rowspan="2">甲</tr><tr><td>李四<td>40</tr>
      <tr><td rowspan=9 colspan=2>无<td>50<td rowspan=3>乙</tr><tr><tr><td>60</table>"""
    rows = [line.strip("| ").split(" | ") for line in read(tmp_path / "a.html", page)[0].split("\n")]
    assert rows[0] == ["部门", "姓名", "龄", "级"]
    assert rows[2:4] == [["研发", "张三", "30", "甲"], ["研发", "李四", "40", "甲"]]
    assert rows[4:] == [["无", "无", "50", "乙"], ["无", "无", "60", "乙"]]


def test_fields_of_xml_stand_apart(tmp_path: Path) -> None:
    xml = "<?xml version='1.0'?><rows><row><name>张三</name><age>30</age><title/><x/>甲<b>乙</b></row></rows>"
    assert read(tmp_path / "a.xml", xml)[0] == "张三\n\n30\n\n甲乙"


@pytest.mark.parametrize(
    ("charset", "text"),
    [("euc-kr", "안녕하세요"), ("iso-2022-jp", "会議のお知らせ"), ("iso-8859-1", "明天上午开会")],
)
def test_mail_is_decoded_as_it_declares(tmp_path: Path, charset: str, text: str) -> None:
    encoded = text.encode("gbk" if charset == "iso-8859-1" else charset)
    path = tmp_path / "a.eml"
    head = f"From: a@b.cn\nContent-Type: text/plain; charset={charset}\n\n".encode()
    path.write_bytes(head + encoded)
    assert whole(parse(path))[0].endswith(text)


def test_bytes_of_a_mail_that_are_lost_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.eml"
    path.write_bytes(b"From: a@b.cn\n\n" + "明天上午开会".encode() + b"\xff\n")
    assert parse(path).report.warnings == ("1 bytes could not be decoded",)


def test_html_may_be_nested_to_any_depth(tmp_path: Path) -> None:
    assert read(tmp_path / "a.html", "<div>" * 30_000 + "深层文字")[0] == "深层文字"
    assert "内" in read(tmp_path / "b.html", "<table><tr><td>" * 5_000 + "内")[0]


def test_epub_chapters_take_names_from_the_contents(tmp_path: Path) -> None:
    path = package(
        tmp_path / "a.epub",
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": '<container><rootfile full-path="OPS/a.opf"/></container>',
            "OPS/a.opf": "<package><dc:title xmlns:dc='d'>全书</dc:title><manifest>"
            '<item id="n" href="toc.ncx" media-type="application/x-dtbncx+xml"/>'
            '<item id="b" href="%E4%BA%8C.xhtml"/><item id="a" href="1.xhtml"/></manifest>'
            '<spine><itemref idref="a"/><itemref idref="b"/></spine></package>',
            "OPS/toc.ncx": "<ncx><navPoint><navLabel><text>卷一</text></navLabel>"
            '<content src="1.xhtml#x"/></navPoint></ncx>',
            "OPS/1.xhtml": "<html><body><p>甲</p></body></html>",
            "OPS/二.xhtml": "<html><body><h2>乙题</h2><p>乙</p></body></html>",
        },
    )
    parsed = parse(path)
    text, marks = whole(parsed)
    assert parsed.title == "全书"
    assert text == "甲\n\n乙题\n\n乙"
    assert kinds(marks, "heading") == ["卷一", "乙题"]
