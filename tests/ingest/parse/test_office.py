"""Word, PowerPoint, Excel and PDF: text and places."""

import re
from pathlib import Path

import pytest

from ingest.parse.docx import spell
from ingest.parse.pdf import is_mojibake
from ingest.parse.pdf_layout import unspaced
from tests.ingest.documents import DATA, A, P, R, package, paragraph, parse, pdf, read, relations, whole, word


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
    assert [(text[m.start], m.label) for m in marks if m.kind == "page"] == [("先", "p. 1"), ("后", "p. 2")]


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


def test_letter_spaced_print_is_closed() -> None:
    assert unspaced("关 于 红 军 作 战 的 原 则 １") == "关于红军作战的原则１"
    assert unspaced("第一章 总 则 一般规定") == "第一章 总 则 一般规定"
