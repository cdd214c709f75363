"""Word: text that is not shown, comments, merged and nested tables, parts, symbols, bold headings."""

from collections.abc import Iterable
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ingest.parse.sheet import Row, text_table
from tests.ingest.documents import A, R, W, kinds, package, paragraph, parse, read, relations, whole, word

MATH = 'xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math"'


OFF = '<w:strike w:val="0"/>'
RAISED = '<w:vertAlign w:val="superscript"/>'


def run(text: str, font: str = "") -> str:
    return f"<w:r><w:rPr>{font}</w:rPr><w:t>{text}</w:t></w:r>"


def cell(content: str, properties: str = "") -> str:
    return f"<w:tc><w:tcPr>{properties}</w:tcPr>{content}</w:tc>"


def test_hidden_struck_and_deleted_text_is_left_out_and_counted(tmp_path: Path) -> None:
    styles = '<w:style w:styleId="S"><w:rPr><w:vanish/></w:rPr></w:style>'
    deleted = "<w:del><w:r><w:delText>旧</w:delText></w:r></w:del>"
    row = f"<w:tr><w:trPr><w:del/></w:trPr>{cell(paragraph('废'))}{cell(paragraph('行'))}</w:tr>"
    kept = "".join(f"<w:tr>{cell(paragraph(a))}{cell(paragraph(b))}</w:tr>" for a, b in ("甲乙", "丙丁"))
    parsed = parse(
        word(
            tmp_path / "a.docx",
            f"<w:p>{run('每年')}{run('五', '<w:strike/>')}{run('六', '<w:dstrike/>')}{run('（密）', '<w:vanish/>')}"
            f"{deleted}{run('十天', OFF)}</w:p>"
            f"<w:p><w:r><w:rPr><w:rStyle w:val='S'/></w:rPr><w:t>密</w:t></w:r></w:p><w:tbl>{row}{kept}</w:tbl>",
            styles=styles,
        ),
        ocr=False,
    )
    assert whole(parsed)[0] == "每年十天\n\n| 甲 | 乙 |\n| --- | --- |\n| 丙 | 丁 |"
    assert parsed.report.warnings == ("hidden or struck text is left out: 4 places",)


def test_comments_are_named_in_the_language_of_the_document(tmp_path: Path) -> None:
    reference = '<w:r><w:commentReference w:id="1"/></w:r>'
    comments = f'<w:comment w:id="1" w:author="王某">{paragraph("降到一成 10%")}</w:comment>'
    for at, (body, word_for_comment) in enumerate((("三成", "批注"), ("30 percent", "Comment"))):
        path = word(tmp_path / f"{at}.docx", f"<w:p>{run(body)}{reference}</w:p>", comments=comments)
        assert read(path)[0] == f"{body}\n\n[{word_for_comment} 王某] 降到一成 10%"


def test_parts_in_other_formats_are_read_where_they_stand(tmp_path: Path) -> None:
    html = "<html><body><h2>结论</h2><p>铅 0.03</p></body></html>"
    mht = (
        'MIME-Version: 1.0\nContent-Type: multipart/related; boundary="x"\n\n--x\nContent-Type: text/html; '
        f"charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n{html.replace('0.03', '0.04')}\n--x--\n"
    )
    inner = word(tmp_path / "inner.docx", paragraph("镉 0.05"))
    parts = {"a.html": html, "b.mht": mht, "c.txt": "汞 0.06", "d.docx": inner.read_bytes()}
    chunks = "".join(f'<w:altChunk r:id="{name}"/>' for name in (*parts, "absent"))
    path = package(
        tmp_path / "a.docx",
        {
            "word/document.xml": f"<w:document {W} {R}><w:body>{paragraph('前')}{chunks}{paragraph('后')}</w:body></w:document>",
            "word/_rels/document.xml.rels": relations({name: ("aFChunk", name) for name in parts}),
            **{f"word/{name}": content for name, content in parts.items()},
        },
    )
    text, marks = read(path)
    assert text == "前\n\n结论\n\n铅 0.03\n\n结论\n\n铅 0.04\n\n汞 0.06\n\n镉 0.05\n\n后"
    assert [text[m.start :][:2] for m in marks] == ["结论", "结论"]


def test_header_rows_with_merged_cells_are_joined_and_nested_tables_follow(tmp_path: Path) -> None:
    down, on = '<w:vMerge w:val="restart"/>', "<w:vMerge/>"
    rows = [
        cell(paragraph("薪级表"), '<w:gridSpan w:val="3"/>'),
        cell(paragraph("岗位"), down) + cell(paragraph("月薪"), '<w:gridSpan w:val="2"/>'),
        cell("<w:p/>", on) + cell(paragraph("初级")) + cell(paragraph("高级")),
        cell(paragraph("工程师"), down) + cell(paragraph("9000")) + cell(paragraph("18000")),
        cell("<w:p/>", on) + cell(paragraph("8000")) + cell(paragraph("16000")),
    ]
    table = "".join(f"<w:tr>{row}</w:tr>" for row in rows)
    outer = f"<w:tr>{cell(paragraph('项目'))}{cell(paragraph('内容'))}</w:tr>"
    outer += f"<w:tr>{cell(paragraph('明细'))}{cell(f'<w:tbl>{table}</w:tbl><w:p/>')}</w:tr>"
    text, _ = read(word(tmp_path / "a.docx", f"<w:tbl>{outer}</w:tbl>"))
    assert text == (
        "| 项目 | 内容 |\n| --- | --- |\n| 明细 |  |\n\n明细\n\n薪级表\n\n| 岗位 | 月薪 初级 | 月薪 高级 |\n"
        "| --- | --- | --- |\n| 工程师 | 9000 | 18000 |\n| 工程师 | 8000 | 16000 |"
    )


@given(
    st.lists(st.lists(st.sampled_from("甲乙丙1 "), min_size=3, max_size=3), min_size=1, max_size=5), st.data()
)
def test_joined_headers_lose_no_cell(rows: list[list[str]], data: st.DataObject) -> None:
    rows = [[cell.strip() for cell in row] for row in rows]
    wide = [data.draw(st.booleans()) for _ in rows]
    assert {cell for row in rows for cell in row if cell} <= set(table_text(rows, wide))


def table_text(rows: list[list[str]], wide: Iterable[bool]) -> str:
    """A table of rows; in a wide row the cell before the first empty one takes its place too."""
    table = []
    for number, (row, is_wide) in enumerate(zip(rows, wide, strict=False), 1):
        at = row.index("") - 1 if is_wide and "" in row else -1
        table.append(Row(number, dict(enumerate(row)), [(at, at + 1, number)] if at >= 0 else []))
    return "\n".join(block.text for block in text_table(table) if block.text)


def test_data_below_a_wide_header_stays_data() -> None:
    rows = [["姓名", "联系方式", ""], ["王", "电话", "邮箱"], ["李", "138", "a@b"]]
    text = table_text(rows, [True, False, False])
    assert text.startswith("| 姓名 | 联系方式 | 联系方式 |")
    assert "| 王 | 电话 | 邮箱 |" in text


def test_a_title_above_two_columns_of_text_does_not_make_a_header_of_the_first_row() -> None:
    text = table_text([["动作", ""], ["游", "滑行"], ["飞", "高"]], [True, False, False])
    assert text == "动作\n|  |  |\n| --- | --- |\n| 游 | 滑行 |\n| 飞 | 高 |"
    text = table_text([["价目", ""], ["品名", "价格"], ["灯", "3"]], [True, False, False])
    assert text == "价目\n| 品名 | 价格 |\n| --- | --- |\n| 灯 | 3 |"


def test_symbols_boxes_equations_and_charts(tmp_path: Path) -> None:
    sign = '<w:r><w:sym w:font="Wingdings 2" w:char="F0{}"/></w:r>'.format
    legacy = "<w:r><w:fldChar><w:ffData><w:checkBox><w:default w:val='0'/><w:checked/></w:checkBox></w:ffData></w:fldChar></w:r>"
    private = "<w:r><w:rPr><w:rFonts w:ascii='Wingdings'/></w:rPr><w:t>\uf0fe</w:t></w:r>"
    power = "<m:oMath><m:sSup><m:e><m:r><m:t>x</m:t></m:r></m:e><m:sup><m:r><m:t>2</m:t></m:r></m:sup></m:sSup></m:oMath>"
    chart = '<w:r><w:drawing><c:chart xmlns:c="c" r:id="c1"/></w:drawing></w:r>'
    art = '<w:r><w:drawing><d:relIds xmlns:d="d" r:dm="d1"/></w:drawing></w:r>'
    series = (
        "<chart><ser><tx><v>销量</v></tx><cat><pt idx='0'><v>一季度</v></pt><pt idx='1'><v>二季度</v></pt></cat>"
        "<val><formatCode>0.0%</formatCode><pt idx='1'><v>0.856</v></pt></val></ser></chart>"
    )
    path = package(
        tmp_path / "a.docx",
        {
            "word/document.xml": f"<w:document {W} {R} {MATH}><w:body><w:p>{sign('52')}{run('合格')}{sign('A3')}"
            f"{run('不合格')}{legacy}{private}{run('10')}{run('24', RAISED)}{power}</w:p>"
            f"<w:p>{chart}{art}</w:p></w:body></w:document>",
            "word/_rels/document.xml.rels": relations({"c1": ("chart", "c.xml"), "d1": ("diagramData", "d.xml")}),
            "word/c.xml": series,
            "word/d.xml": f"<d {A}><a:p><a:r><a:t>立项</a:t></a:r></a:p><a:p><a:r><a:t>验收</a:t></a:r></a:p></d>",
        },
    )  # fmt: skip
    text, _ = read(path)
    assert text == (
        "☑合格☐不合格☑☑10^24x^2\n\n|  | 销量 |\n| --- | --- |\n| 一季度 |  |\n| 二季度 | 85.6% |\n\n立项\n验收"
    )


def test_short_bold_paragraphs_are_headings_unless_bold_is_common(tmp_path: Path) -> None:
    bold = "<w:p>" + run("{}", "<w:b/>") + "</w:p>"
    lines = ["手册", "一、总则", "金额：三万元", "2026年6月", "请注意。"]
    plain = "".join(paragraph(f"正文第{at}段。") for at in range(20))
    text, marks = read(word(tmp_path / "a.docx", "".join(map(bold.format, lines)) + plain))
    assert [(m.label, m.level) for m in marks] == [("手册", 1), ("一、总则", 2)]
    assert not read(word(tmp_path / "b.docx", "".join(map(bold.format, lines)) + paragraph("正文")))[1]
    assert kinds(marks, "heading") == ["手册", "一、总则"]
    assert text.startswith("手册\n\n一、总则\n\n金额：三万元")
