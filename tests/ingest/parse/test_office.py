"""Word, PowerPoint, Excel and PDF: text and places."""

import re
from pathlib import Path

import pytest

from ingest.parse import parse
from ingest.parse.docx import spell
from ingest.parse.pdf import is_mojibake, rejoin, unspaced
from tests.ingest.documents import (
    DATA,
    A,
    P,
    R,
    kinds,
    package,
    paragraph,
    pdf,
    read,
    relations,
    whole,
    word,
)


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


def test_row_numbers_are_those_of_the_sheet(tmp_path: Path) -> None:
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    cell = '<c r="B{0}"><v>{0}</v></c>'.format
    rows = "".join(f'<row r="{n}">{cell(n)}</row>' for n in (4, 5, 8))
    path = package(
        tmp_path / "a.xlsx",
        {
            "_rels/.rels": relations({"r": ("officeDocument", "xl/workbook.xml")}),
            "xl/_rels/workbook.xml.rels": relations({"r1": ("worksheet", "worksheets/a.xml")}),
            "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets>'
            '<sheet name="表" sheetId="1" r:id="r1"/></sheets></workbook>',
            "xl/worksheets/a.xml": f'<worksheet xmlns="{main}"><sheetData>{rows}</sheetData>'
            "</worksheet>",
        },
    )
    text, marks = read(path)
    assert [(m.label, text[m.start :][:5]) for m in marks] == [
        ("表", "| 4 |"),
        ("row 4", "| 4 |"),
        ("row 5", "| 5 |"),
        ("row 8", "| 8 |"),
    ]


def test_columns_past_the_limit_are_named(tmp_path: Path) -> None:
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    path = package(
        tmp_path / "a.xlsx",
        {
            "_rels/.rels": relations({"r": ("officeDocument", "xl/workbook.xml")}),
            "xl/_rels/workbook.xml.rels": relations({"r1": ("worksheet", "worksheets/a.xml")}),
            "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets>'
            '<sheet name="宽表" sheetId="1" r:id="r1"/></sheets></workbook>',
            "xl/worksheets/a.xml": f'<worksheet xmlns="{main}"><sheetData><row r="1">'
            '<c r="A1"><v>1</v></c><c r="AML1"><v>2</v></c></row></sheetData></worksheet>',
        },
    )
    assert parse(path).report.warnings == ("only the first 1000 columns are read of 宽表",)


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
    assert re.search(r"no text layer: 1, from p\. 2", parsed.report.warnings[0])


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
