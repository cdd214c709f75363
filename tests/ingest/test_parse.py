"""Every format: text, places, receipts; and the documents beside the repository, if present."""

import json
import random
import re
import unicodedata
from pathlib import Path

import pytest

from ingest.errors import Unreadable
from ingest.ocr import available
from ingest.parse import parse
from ingest.parse.blocks import SEGMENT, Block, compose, heading, mark, table
from ingest.parse.lines import rejoin, unspaced
from ingest.parse.numbering import spell
from ingest.parse.pdf import is_mojibake
from ingest.parse.plain import inline
from ingest.types import Mark, Parsed, Segment
from tests.ingest.documents import A, P, R, package, paragraph, pdf, relations, word

DATA = Path(__file__).parents[1] / "data" / "documents"
SHARED = Path(__file__).parents[2].parent / "shared" / "documents"


def whole(parsed: Parsed) -> tuple[str, list[Mark]]:
    """The text and the marks with offsets in it."""
    text, marks = "", []
    for segment in parsed.segments:
        marks += [Mark(len(text) + m.start, m.kind, m.label, m.level) for m in segment.marks]
        text += segment.text
    return text, marks


def read(path: Path, content: str | bytes | None = None) -> tuple[str, list[Mark]]:
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return whole(parse(path, ocr=False))


def kinds(marks: list[Mark], kind: str) -> list[str]:
    return [m.label for m in marks if m.kind == kind]


# --- blocks


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


def test_a_table_has_a_head_a_rule_and_one_line_a_row() -> None:
    text = "".join(s.text for s in compose(table([["a", "b"], ["1\n2", "x|y"], ["", ""]])))
    assert text == "| a | b |\n| --- | --- |\n| 1 2 | x｜y |"


# --- plain text and Markdown


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


@pytest.mark.parametrize(
    "line", ["a*b*c", "2 ** 3 ** 4", "f(*args, **kwargs)", "* item", "__init__"]
)
def test_stars_that_are_no_emphasis_stay(line: str) -> None:
    assert inline(line).replace("init", "__init__").replace("____", "__") == line


# --- tables and records


def test_csv_rows_carry_numbers_and_quoted_newlines(tmp_path: Path) -> None:
    text, marks = read(tmp_path / "a.csv", '姓名;说明\r\n张三;"多行\r\n文本; 分号"\r\n李四;无\r\n')
    assert text == "| 姓名 | 说明 |\n| --- | --- |\n| 张三 | 多行 文本; 分号 |\n| 李四 | 无 |"
    rows = {m.label: text[m.start :].split("\n")[0] for m in marks}
    assert rows == {
        "row 1": "| 姓名 | 说明 |",
        "row 2": "| 张三 | 多行 文本; 分号 |",
        "row 3": "| 李四 | 无 |",
    }


def test_a_row_of_a_million_columns_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    path.write_text("a,b\n" + "1," * 1_000_000 + "\n")
    parsed = parse(path)
    assert len(whole(parsed)[0]) < 10_000
    assert "1000001 columns" in parsed.receipt.warnings[0]


def test_json_records_read_as_key_and_value(tmp_path: Path) -> None:
    record = {
        "标题": "春晓",
        "作者": {"名": "孟浩然", "朝": "唐"},
        "标签": ["春", "鸟"],
        "空": None,
    }
    text, marks = read(tmp_path / "a.json", json.dumps([record, {"标题": "静夜思"}]))
    assert text == "标题: 春晓\n作者.名: 孟浩然\n作者.朝: 唐\n标签: 春, 鸟\n\n标题: 静夜思"
    assert kinds(marks, "row") == ["row 1", "row 2"]
    lines = "\n".join(json.dumps(one, ensure_ascii=False) for one in (record, {"标题": "静夜思"}))
    assert read(tmp_path / "a.jsonl", lines)[0] == text
    assert read(tmp_path / "b.json", lines)[0] == text


def test_bad_json_lines_are_counted_and_bad_json_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\nnot json\n{"a": 2}\n')
    assert parse(path).receipt.warnings == ("1 lines are not JSON, the last is line 2",)
    for name, content in (("b.json", '{"a": '), ("c.json", "[" * 100_000), ("d.jsonl", "x\ny")):
        with pytest.raises(Unreadable, match="is not JSON"):
            read(tmp_path / name, content)


# --- HTML, EPUB, mail


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


def test_html_nested_without_end(tmp_path: Path) -> None:
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


def test_mail_prefers_plain_text_and_names_attachments(tmp_path: Path) -> None:
    raw = (
        b"From: =?utf-8?B?5byg5LiJ?= <a@b.cn>\r\nSubject: =?gbk?B?u+HS6c2o1qo=?=\r\n"
        b"Date: Mon, 1 Jan 2024 00:00:00 +0800\r\nMIME-Version: 1.0\r\n"
        b'Content-Type: multipart/mixed; boundary="x"\r\n\r\n--x\r\n'
        b"Content-Type: text/plain; charset=gbk\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    ) + "明天开会。\r\n".encode("gbk")
    raw += b'--x\r\nContent-Type: application/pdf; name="a.pdf"\r\n'
    raw += b'Content-Disposition: attachment; filename="a.pdf"\r\n\r\nx\r\n--x--\r\n'
    path = tmp_path / "a.eml"
    path.write_bytes(raw)
    parsed = parse(path)
    text, _ = whole(parsed)
    assert parsed.title == "会议通知"
    assert text.startswith("会议通知\n\nFrom: 张三 <a@b.cn>\nDate:")
    assert text.endswith("明天开会。")
    assert parsed.receipt.warnings == ("attachments are not read: a.pdf",)


# --- Office


def test_word_headings_lists_numbers_tables_and_deletions(tmp_path: Path) -> None:
    styles = (
        '<w:style w:styleId="B"><w:name w:val="heading 2"/></w:style>'
        '<w:style w:styleId="C"><w:name w:val="mine"/><w:basedOn w:val="B"/></w:style>'
    )
    numbering = (
        '<w:abstractNum w:abstractNumId="0"><w:lvl w:ilvl="0"><w:start w:val="1"/>'
        '<w:numFmt w:val="chineseCounting"/><w:lvlText w:val="第%1条"/></w:lvl></w:abstractNum>'
        '<w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num>'
    )
    listed = '<w:numPr><w:ilvl w:val="0"/><w:numId w:val="1"/></w:numPr>'
    row = "<w:tr>{}</w:tr>".format
    cell = "<w:tc><w:tcPr>{}</w:tcPr>{}</w:tc>".format
    body = (
        paragraph("合同", '<w:outlineLvl w:val="0"/>')
        + paragraph("定义", '<w:pStyle w:val="C"/>')
        + paragraph("甲方义务", listed)
        + paragraph("乙方义务", listed)
        + "<w:p><w:r><w:t>保留</w:t></w:r><w:del><w:r><w:t>删除</w:t></w:r></w:del></w:p>"
        + "<w:tbl>"
        + row(cell("", paragraph("城市")) + cell("", paragraph("区")))
        + row(cell('<w:vMerge w:val="restart"/>', paragraph("北京")) + cell("", paragraph("海淀")))
        + row(cell("<w:vMerge/>", paragraph("")) + cell("", paragraph("朝阳")))
        + "</w:tbl>"
    )
    path = word(tmp_path / "a.docx", body, styles=styles, numbering=numbering)
    parsed = parse(path)
    text, marks = whole(parsed)
    assert [(m.label, m.level) for m in marks] == [("合同", 1), ("定义", 2)]
    assert parsed.title == "合同"
    assert "第一条 甲方义务\n第二条 乙方义务" in text
    assert "删除" not in text
    assert "| 城市 | 区 |\n| --- | --- |\n| 北京 | 海淀 |\n| 北京 | 朝阳 |" in text


@pytest.mark.parametrize(
    ("number", "form", "expected"),
    [
        (10, "chineseCounting", "十"),
        (21, "chineseCountingThousand", "二十一"),
        (105, "chineseCounting", "一百零五"),
        (110, "chineseCounting", "一百一十"),
        (1010, "chineseCounting", "一千零一十"),
        (2024, "ideographDigital", "二〇二四"),
        (28, "lowerLetter", "bb"),
        (1994, "upperRoman", "MCMXCIV"),
        (7, "decimal", "7"),
    ],
)
def test_numbers_are_spelt_as_word_does(number: int, form: str, expected: str) -> None:
    assert spell(number, form) == expected


def test_text_boxes_and_footnotes_are_read() -> None:
    text, _ = read(DATA / "testWORD_text_box.docx")
    assert "This text is directly in the" in text
    assert text.count("inside of a text box in the body") == 1
    assert "snoskoy" in read(DATA / "footnotes.docx")[0]


def slide(title: str, body: str) -> str:
    return (
        f"<p:sld {P} {A} {R}><p:cSld><p:spTree><p:sp><p:nvSpPr><p:nvPr><p:ph type='title'/>"
        f"</p:nvPr></p:nvSpPr><p:txBody><a:p><a:r><a:t>{title}</a:t></a:r></a:p></p:txBody></p:sp>"
        f"{body}</p:spTree></p:cSld></p:sld>"
    )


def test_slides_are_pages_in_the_order_of_the_show(tmp_path: Path) -> None:
    cell = "<a:tc><a:txBody><a:p><a:r><a:t>{}</a:t></a:r></a:p></a:txBody></a:tc>".format
    rows = ("<a:tr>" + "".join(map(cell, row)) + "</a:tr>" for row in ("甲乙", "丙丁"))
    grid = f"<p:graphicFrame><a:tbl>{''.join(rows)}</a:tbl></p:graphicFrame>"
    text, marks = read(
        package(
            tmp_path / "a.pptx",
            {
                "ppt/presentation.xml": f"<p:presentation {P} {R}><p:sldIdLst><p:sldId r:id='x2'/>"
                "<p:sldId r:id='x1'/></p:sldIdLst></p:presentation>",
                "ppt/_rels/presentation.xml.rels": relations(
                    {"x1": ("slide", "slides/s1.xml"), "x2": ("slide", "/ppt/slides/s2.xml")}
                ),
                "ppt/slides/s1.xml": slide("后", grid),
                "ppt/slides/s2.xml": slide("先", ""),
                "ppt/slides/_rels/s1.xml.rels": relations({"n": ("notesSlide", "../notes/n1.xml")}),
                "ppt/notes/n1.xml": f"<p:notes {P} {A}><p:sp><p:txBody><a:p><a:r><a:t>备注"
                "</a:t></a:r></a:p></p:txBody></p:sp></p:notes>",
            },
        )
    )
    assert text == "先\n\n后\n\n| 甲 | 乙 |\n| --- | --- |\n| 丙 | 丁 |\n\n备注"
    assert [(text[m.start], m.label) for m in marks if m.kind == "page"] == [
        ("先", "p. 1"),
        ("后", "p. 2"),
    ]


def test_workbook_rows_and_sheets_are_marked() -> None:
    text, marks = read(DATA / "zh-demo.xlsx")
    assert kinds(marks, "sheet") == ["Sheet1", "Sheet2"]
    row = next(m for m in marks if m.label == "row 3")
    assert text[row.start :].startswith("| ")
    assert "字符串1" in text[row.start :].split("\n")[0]


# --- PDF


def test_pdf_pages_are_marked_where_they_begin(tmp_path: Path) -> None:
    path = pdf(tmp_path / "a.pdf", [["Alpha one", "Alpha two"], ["Beta"], ["Gamma"]])
    text, marks = read(path)
    assert [(m.label, text[m.start :].split()[0]) for m in marks] == [
        ("p. 1", "Alpha"),
        ("p. 2", "Beta"),
        ("p. 3", "Gamma"),
    ]


def test_a_page_without_text_is_named_in_a_warning(tmp_path: Path) -> None:
    parsed = parse(pdf(tmp_path / "a.pdf", [["Alpha"], []]), ocr=False)
    assert "Alpha" in whole(parsed)[0]
    assert re.search(r"no text layer: 1, from p\. 2", parsed.receipt.warnings[0])


def test_fonts_without_a_map_do_not_pass_as_text() -> None:
    assert is_mojibake("£± ¹ØÓÚºì¾ü×÷Õ½µÄÔ-Ôò")
    assert is_mojibake("(cid:12)(cid:7)(cid:99) (cid:3)")
    assert is_mojibake("\ue001\ue002\ue003 \ue004")
    assert not is_mojibake("Déjà vu à l'été, où le café coûte très cher")
    assert not is_mojibake("关于红军作战的原则 • 100 ±5 ℃")
    text, _ = read(DATA / "zh-toc-cid-font.pdf")
    assert "关于红军作战的原则" in text


def test_lines_are_joined_where_they_were_full() -> None:
    page = (
        "公司董事会、监事会及董事、监事、高级管理人员保证季度报告内容的真\n"
        "实、准确、完整，不存在虚假记载、误导性陈述或者重大遗漏，并承担个别和\n"
        "连带的法律责任。\n所有董事均已出席了审议本次季报的董事会会议。\n"
        "第一条 本办法所称的企业，是指在中华人民共和国境内依法设立的各类企业和组织\n"
        "第二条 略"
    )
    first, second, third, fourth = rejoin(page).split("\n")
    assert first.endswith("并承担个别和连带的法律责任。")
    assert "内容的真实、准确" in first
    assert (second[:2], third[:3], fourth[:3]) == ("所有", "第一条", "第二条")


def test_tables_lists_and_short_lines_are_not_joined() -> None:
    for page in (
        "营业收入（元） 4,755,785.11 5,699,227.63 -16.55%\n利润（元） -4,648,986.52 -15,563,758 -",
        "姓名\n年龄\n职务",
        "the first item of a longer list of things\n- second item of that list",
    ):
        assert rejoin(page) == page


def test_letter_spaced_print_is_closed() -> None:
    assert unspaced("关 于 红 军 作 战 的 原 则 １") == "关于红军作战的原则１"
    assert unspaced("第一章 总 则 一般规定") == "第一章 总 则 一般规定"


# --- what can't be read


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    path = pdf(tmp_path / "a.docx", [["Alpha"]])
    parsed = parse(path)
    assert "Alpha" in whole(parsed)[0]
    assert parsed.receipt.format == "pdf"
    assert parsed.receipt.warnings == ("the name says docx, the content is pdf",)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("password-aes-256.pdf", "needs a password"),
        ("testWORD_protected_passtika.docx", "needs a password"),
        ("blank-page.pdf", "holds no text"),
    ],
)
def test_locked_and_blank_files_say_so(name: str, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason) as caught:
        parse(DATA / name)
    assert name in caught.value.zh
    assert caught.value.zh != str(caught.value)


def test_damaged_containers_are_refused(tmp_path: Path) -> None:
    content = (DATA / "ocr_test.docx").read_bytes()
    for name, raw, reason in (
        ("empty.pdf", b"", "is empty"),
        ("blank.txt", b" \n\n", "is empty"),
        ("cut.docx", content[: len(content) // 2], "damaged or cut off"),
        ("a.gz", b"\x1f\x8b\x08", "gzip archive"),
        ("png.txt", b"\x89PNG\r\n\x1a\n" + b"\0" * 99, "not text" if available() else "image"),
    ):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(Unreadable, match=reason):
            parse(tmp_path / name)


def test_bombs_and_entities_are_refused_before_they_unfold(tmp_path: Path) -> None:
    bomb = word(tmp_path / "bomb.docx", paragraph(" " * 80_000_000))
    with pytest.raises(Unreadable, match=r"refused.*unpacks"):
        parse(bomb)
    laugh = package(
        tmp_path / "laugh.docx",
        {"word/document.xml": '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><a>&c;</a>'},
    )
    with pytest.raises(Unreadable, match="entities"):
        parse(laugh)


# --- the documents beside the repository


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text))


def _shared() -> list[dict]:
    if not SHARED.is_dir():
        return []
    records = [json.loads(line) for line in (SHARED / "manifest.jsonl").read_text().splitlines()]
    return [r for r in records if r.get("needles")]


@pytest.mark.parametrize("record", _shared(), ids=lambda record: record["file"])
def test_shared_documents_hold_their_needles(record: dict) -> None:
    text = _squeezed(read(SHARED / record["file"])[0])
    assert [needle for needle in record["needles"] if _squeezed(needle) not in text] == []
