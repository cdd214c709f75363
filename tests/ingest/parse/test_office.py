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


ODF = " ".join(
    f'xmlns:{name}="urn:{name}"'
    for name in ("office", "text", "style", "draw", "presentation", "table", "dc", "fo")
)
STYLES = """<style:style style:name="up"><style:text-properties style:text-position="super 58%"/></style:style>
<style:style style:name="old"><style:text-properties style:text-line-through-style="solid"/></style:style>
<style:style style:name="off"><style:text-properties text:display="none"/></style:style>
<style:style style:name="gone"><style:drawing-page-properties presentation:visibility="hidden"/></style:style>"""


def opendocument(path: Path, body: str) -> Path:
    kind = {".odt": "text", ".odp": "presentation"}[path.suffix]
    styles = f"<office:automatic-styles>{STYLES}</office:automatic-styles>"
    content = f"<office:document-content {ODF}>{styles}<office:body><office:{kind}>{body}</office:{kind}>"
    mime = f"application/vnd.oasis.opendocument.{kind}"
    return package(
        path, {"mimetype": mime, "content.xml": f"{content}</office:body></office:document-content>"}
    )


def test_opendocument_text_without_what_is_deleted_struck_or_hidden(tmp_path: Path) -> None:
    span = '<text:span text:style-name="{}">{}</text:span>'.format
    note = (
        "<text:note><text:note-citation/><text:note-body><text:p>脚注</text:p></text:note-body></text:note>"
    )
    body = (
        "<text:tracked-changes><text:deletion><text:p>删除</text:p></text:deletion></text:tracked-changes>"
        '<text:h text:outline-level="2">标题</text:h>'
        f"<text:p>面积10{span('up', '24')}{span('old', '旧价')}新价{span('off', '隐藏')}{note}<office:annotation>"
        "<dc:creator>李明</dc:creator><text:p>核对</text:p></office:annotation>。</text:p>"
        "<text:list><text:list-item><text:p>一项</text:p></text:list-item></text:list>"
        "<table:table><table:table-row><table:table-cell><text:p>项目</text:p></table:table-cell>"
        "<table:table-cell><text:p>金额</text:p></table:table-cell></table:table-row><table:table-row>"
        "<table:table-cell><text:p>差旅</text:p></table:table-cell>"
        "<table:table-cell><text:p>12</text:p></table:table-cell></table:table-row></table:table>"
    )
    text, marks = whole(parse(opendocument(tmp_path / "a.odt", body)))
    assert [(m.label, m.level) for m in marks] == [("标题", 2)]
    table = "| 项目 | 金额 |\n| --- | --- |\n| 差旅 | 12 |"
    assert text == f"标题\n\n面积10^24新价。\n- 一项\n\n{table}\n\n脚注\n\n[批注 李明] 核对"


def test_opendocument_slides_in_order_each_with_its_notes(tmp_path: Path) -> None:
    frame = '<draw:frame presentation:class="{}"><draw:text-box><text:p>{}</text:p></draw:text-box></draw:frame>'.format
    notes = f"<presentation:notes>{frame('notes', '讲稿')}</presentation:notes>"
    body = f"<draw:page>{frame('title', '题目')}{frame('outline', '要点')}{notes}</draw:page>"
    body += f'<draw:page draw:style-name="gone">{frame("outline", "底价")}</draw:page>'
    body += f"<draw:page>{frame('outline', '末页')}</draw:page>"
    parsed = parse(opendocument(tmp_path / "a.odp", body))
    text, marks = whole(parsed)
    assert text == "题目\n\n要点\n\n讲稿\n\n末页"
    assert [m.label for m in marks] == ["p. 1", "题目", "p. 3"]
    assert parsed.report.warnings == ("hidden slides are left out: 2",)


def test_rich_text_without_what_is_struck(tmp_path: Path) -> None:
    (tmp_path / "a.rtf").write_text(r"{\rtf1\ansi old {\strike 1200 yuan}, new 900 yuan.\par}")
    assert read(tmp_path / "a.rtf")[0] == "old , new 900 yuan."
    text = r"{\rtf1\ansi 5.97 x 10{\super 24} kg, 3x10\super 8\nosupersub  m/s, 1{\super st} {\deleted gone} stays\par}"
    (tmp_path / "b.rtf").write_text(text)
    assert read(tmp_path / "b.rtf")[0] == "5.97 x 10^24 kg, 3x10^8 m/s, 1st stays"


def test_the_text_of_merged_cells_of_word_grows_within_bounds(tmp_path: Path) -> None:
    cell = "<w:tc><w:tcPr>{}</w:tcPr>{}</w:tc>".format
    first, rest = '<w:vMerge w:val="restart"/>', "<w:vMerge/>"
    rows = [
        f"<w:tr>{cell(rest if n else first, paragraph('' if n else '长' * 5000))}{cell('', paragraph(f'第{n}行'))}</w:tr>"
        for n in range(1000)
    ]
    path = word(tmp_path / "a.docx", f"<w:tbl>{''.join(rows)}</w:tbl>")
    parsed = parse(path)
    text, _ = whole(parsed)
    assert len(text) < 60 * (5000 + 1000 * 5)
    assert all(f"第{n}行" in text for n in range(1000))
    assert any("merged cells" in warning for warning in parsed.report.warnings)
