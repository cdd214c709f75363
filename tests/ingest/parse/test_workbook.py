"""Workbooks of all formats: shown values, hidden parts, formulas, and files that are not what they seem."""

from pathlib import Path

import pytest

from ingest.errors import Unreadable
from tests.ingest.documents import (
    DATA,
    RELATION,
    S,
    kinds,
    package,
    parse,
    read,
    relations,
    rows_xml,
    whole,
    workbook,
)

STYLES = (
    '<numFmts><numFmt numFmtId="164" formatCode="000000"/><numFmt numFmtId="165" formatCode="[h]:mm"/>'
    "</numFmts><cellXfs>"
    + "".join(f'<xf numFmtId="{key}"/>' for key in (0, 164, 10, 14, 20, 165))
    + "</cellXfs>"
)
OFFICE = "urn:oasis:names:tc:opendocument:xmlns"


def test_rows_and_sheets_are_marked() -> None:
    text, marks = read(DATA / "zh-demo.xlsx")
    assert kinds(marks, "sheet") == ["Sheet1", "Sheet2"]
    row = next(m for m in marks if m.label == "row 3")
    assert "字符串1" in text[row.start :].split("\n")[0]


def test_row_numbers_are_those_of_the_sheet(tmp_path: Path) -> None:
    rows = "".join(rows_xml([[n, f"x{n}"]], first=n)[11:-12] for n in (4, 5, 8))
    text, marks = read(workbook(tmp_path / "a.xlsx", f"<sheetData>{rows}</sheetData>"))
    places = {m.label: text[m.start :].split("\n")[0] for m in marks if m.kind == "row"}
    assert (places["row 5"], places["row 8"]) == ("| 5 | x5 |", "| 8 | x8 |")


def test_cells_read_as_shown(tmp_path: Path) -> None:
    cell = '<c s="{}"><v>{}</v></c>'.format
    row = [cell(1, 7), cell(2, 0.856), cell(3, 45356), cell(4, 0.354166667), cell(5, 30.25 / 24)]
    others = ['<c t="b"><v>1</v></c>', '<c t="e"><v>#N/A</v></c>', '<c t="str"><v>文</v></c>', "x", 1]
    header = ["编号", "完成率", "日期", "开工", "时长"]
    path = workbook(tmp_path / "a.xlsx", rows_xml([header, row, others]), styles=STYLES)
    text, _ = read(path)
    assert "| 000007 | 85.60% | 2024-03-05 | 08:30 | 30:15 |\n| TRUE | #N/A | 文 | x | 1 |" in text


def test_what_is_hidden_is_left_out_and_reported(tmp_path: Path) -> None:
    sheet = (
        '<cols><col min="2" max="2" hidden="1"/></cols>'
        + rows_xml([["产品", "成本", "价格"], ["甲", 3100, 5200], ["乙", 1, 2], ["丙", 1, 6800]])
    ).replace('<row r="3">', '<row r="3" hidden="1">')
    others = [rows_xml([["密码", "swordfish"]])] * 2
    path = workbook(tmp_path / "a.xlsx", sheet, *others, states=("visible", "hidden", "veryHidden"))
    parsed = parse(path)
    assert whole(parsed)[0] == "| 产品 | 价格 |\n| --- | --- |\n| 甲 | 5200 |\n| 丙 | 6800 |"
    assert parse(path).report.warnings == ("hidden and left out: 表1 (1 rows, 1 columns), 表2, 表3",)
    hidden = workbook(tmp_path / "b.xlsx", others[0], states=("hidden",))
    with pytest.raises(Unreadable, match="hidden and left out: 表1"):
        read(hidden)


def types_of_content(path: Path) -> Path:
    """Adds what a program that computes formulas needs."""
    import zipfile

    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    parts = {"xl/workbook": "sheet.main", "xl/worksheets/s1": "worksheet", "xl/styles": "styles"}
    listed = "".join(
        f'<Override PartName="/{part}.xml" ContentType="{kind}.{name}+xml"/>' for part, name in parts.items()
    )
    space = "http://schemas.openxmlformats.org/package/2006"
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name).decode() for name in archive.namelist()}
    content = {
        name: text.replace("<Relationships>", f'<Relationships xmlns="{space}/relationships">')
        for name, text in content.items()
    }
    content["[Content_Types].xml"] = (
        f'<Types xmlns="{space}/content-types"><Default Extension="rels" ContentType='
        f'"application/vnd.openxmlformats-package.relationships+xml"/>{listed}</Types>'
    )
    return package(path, dict(content))


def test_formulas_without_a_value_are_computed_or_reported(tmp_path: Path) -> None:
    formula = "<c><f>{}</f></c>".format
    rows = [["产品", "单价", "数量", "金额"], ["钢笔", 12.5, 40, formula("B2*C2")], ["本", 8, 9, 72]]
    total = [["合计", None, None, formula("SUM(D2:D3)")]]
    path = types_of_content(workbook(tmp_path / "a.xlsx", rows_xml(rows + total)))
    parsed = parse(path)
    assert "| 钢笔 | 12.5 | 40 | 500 |" in whole(parsed)[0]
    assert "| 合计 |  |  | 572 |" in whole(parse(path))[0]
    assert parse(path).report.warnings == ("2 formulas had no stored value and were computed",)
    broken = workbook(tmp_path / "b.xlsx", rows_xml([*rows, ["空", None, None, formula('""')]]))
    assert "1 formulas have no value" in parse(broken).report.warnings[1]
    empty = '<c t="str"><f>IF(1,"")</f><v></v></c>'
    kept = workbook(tmp_path / "c.xlsx", rows_xml([["甲", "乙"], ["丙", empty]]))
    assert parse(kept).report.warnings == ()


def test_columns_past_the_limit_are_named(tmp_path: Path) -> None:
    row = '<sheetData><row r="1"><c r="A1"><v>1</v></c><c r="AML1"><v>2</v></c></row></sheetData>'
    path = workbook(tmp_path / "a.xlsx", row)
    assert parse(path).report.warnings == ("only the first 1000 columns are read of 表1",)


def test_comments_of_a_conversation_replace_their_copy(tmp_path: Path) -> None:
    rows = rows_xml([["仓库", "库存"], ["成都", 80]])
    path = workbook(tmp_path / "a.xlsx", rows)
    old = '<comments><comment ref="B2"><text><r><t>[Threaded comment] old</t></r></text></comment></comments>'
    new = (
        '<ThreadedComments><threadedComment ref="B2"><text>待报废</text></threadedComment></ThreadedComments>'
    )
    import zipfile

    with zipfile.ZipFile(path, "a") as archive:
        kinds_ = {"a": ("comments", "../c.xml"), "b": ("threadedComment", "../t.xml")}
        archive.writestr("xl/worksheets/_rels/s1.xml.rels", relations(kinds_))
        archive.writestr("xl/c.xml", old)
        archive.writestr("xl/t.xml", new)
    text, _ = read(path)
    assert text.endswith("[批注 成都 · 库存] 待报废")
    assert "old" not in text


def test_old_excel() -> None:
    parsed = parse(DATA / "equipment.xls")
    text, _ = whole(parsed)
    assert "| 动力车间 | 000007 | 2024年3月5日 | 85.6% |\n| 动力车间 | 000008 | 30:15 | 100% |" in text
    assert "swordfish" not in text
    assert "隐藏" not in text
    assert "4100" not in text
    assert parse(DATA / "equipment.xls").report.warnings == (
        "hidden and left out: 设备台账 (1 rows, 1 columns), 底价",
    )


def open_document(path: Path, tables: str, styles: str = "") -> Path:
    names = "".join(f' xmlns:{name}="{OFFICE}:{name}:1.0"' for name in ("office", "table", "text", "style"))
    content = (
        f"<office:document-content{names}><office:automatic-styles>{styles}</office:automatic-styles>"
        f"<office:body><office:spreadsheet>{tables}</office:spreadsheet></office:body>"
        "</office:document-content>"
    )
    kind = "application/vnd.oasis.opendocument.spreadsheet"
    return package(path, {"mimetype": kind, "content.xml": content})


def test_open_document(tmp_path: Path) -> None:
    cell = "<table:table-cell{}><text:p>{}</text:p></table:table-cell>".format
    row = "<table:table-row{}>{}</table:table-row>".format
    end = '<table:table-cell table:number-columns-repeated="16380"/>'
    style = '<style:style style:name="h"><style:table-properties table:display="false"/></style:style>'
    note = "<office:annotation><text:p>待核实</text:p></office:annotation>"
    amount = f'<table:table-cell office:value="1">{note}<text:p>¥1.00</text:p></table:table-cell>'
    hidden = ' table:visibility="collapse"'
    table = (
        f'<table:table table:name="发货"><table:table-column/><table:table-column{hidden}/>'
        + row("", cell(' table:number-columns-spanned="4"', "发货单") + "<table:covered-table-cell/>")
        + row("", cell("", "单号") + cell("", "成本") + cell("", "完成率") + cell("", "金额") + end)
        + row("", cell(' table:number-rows-spanned="2"', "F-1") + cell("", "9") + cell("", "85.6%") + amount)
        + row("", "<table:covered-table-cell/>" + cell("", "8") + cell("", "7%") + cell("", "¥2.00"))
        + row(hidden, cell("", "隐藏行"))
        + row(' table:number-rows-repeated="1048000"', end)
        + "</table:table>"
        + f'<table:table table:name="底价" table:style-name="h">{row("", cell("", "swordfish"))}</table:table>'
    )
    path = open_document(tmp_path / "a.ods", table, style)
    assert read(path)[0] == (
        "发货\n\n发货单\n\n| 单号 | 完成率 | 金额 |\n| --- | --- | --- |\n| F-1 | 85.6% | ¥1.00 |\n"
        "| F-1 | 7% | ¥2.00 |\n\n[批注 F-1 · 金额] 待核实"
    )
    parsed = parse(path)
    whole(parsed)
    assert parse(path).report.warnings == ("hidden and left out: 发货 (1 rows, 1 columns), 底价",)


@pytest.mark.parametrize("name", ["a.xml", "a.xls"])
def test_spreadsheetml(tmp_path: Path, name: str) -> None:
    data = '<Cell{}><Data ss:Type="{}">{}</Data></Cell>'.format
    xml = (
        '<?xml version="1.0"?><Workbook xmlns="urn:schemas-microsoft-com:office:spreadsheet" '
        'xmlns:ss="urn:schemas-microsoft-com:office:spreadsheet"><Styles>'
        '<Style ss:ID="p"><NumberFormat ss:Format="Percent"/></Style>'
        '<Style ss:ID="z"><NumberFormat ss:Format="000000"/></Style></Styles>'
        '<Worksheet ss:Name="台账"><Table><Column/><Column ss:Hidden="1"/><Row>'
        + data(' ss:MergeAcross="3"', "String", "设备台账")
        + '</Row><Row ss:Index="3">'
        + "".join(data("", "String", text) for text in ("部门", "成本", "编号", "日期", "比例"))
        + "</Row><Row>"
        + data(' ss:MergeDown="1"', "String", "动力")
        + data("", "Number", "4100")
        + data(' ss:StyleID="z"', "Number", "7")
        + data("", "DateTime", "2024-03-05T00:00:00.000")
        + data(' ss:StyleID="p"', "Number", "0.856")
        + "</Row><Row>"
        + data(' ss:Index="3" ss:StyleID="z"', "Number", "8")
        + '<Cell ss:Index="5" ss:Formula="=1"/></Row></Table></Worksheet></Workbook>'
    )
    text, _ = read(tmp_path / name, xml)
    assert text.endswith("| 动力 | 000007 | 2024-03-05 | 85.60% |\n| 动力 | 000008 |  |  |")
    formulas, hidden = parse(tmp_path / name).report.warnings[::-1][:2]
    assert "1 formulas have no value" in formulas
    assert hidden == "hidden and left out: 台账 (0 rows, 1 columns)"


@pytest.mark.parametrize("name", ["a.xls", "a.xlsx"])
def test_a_text_that_is_called_a_workbook_is_read_as_a_table(tmp_path: Path, name: str) -> None:
    assert "| 张三 | 30 |" in read(tmp_path / name, "姓名\t年龄\n张三\t30\n李四\t41\n")[0]


def test_hostile_sheets_end_in_a_line_or_stay_small(tmp_path: Path) -> None:
    merged = '<mergeCells><mergeCell ref="A1:XFD1048576"/></mergeCells>'
    rows = rows_xml([["甲", "乙"], *[["x"]] * 50])
    assert len(read(workbook(tmp_path / "a.xlsx", rows + merged))[0]) < 300_000
    empty = "".join(f'<row r="{n}"><c r="A{n}" s="1"/></row>' for n in range(2, 20_000))
    sheet = rows_xml([["甲"]]).replace("</sheetData>", f"{empty}</sheetData>")
    assert read(workbook(tmp_path / "b.xlsx", sheet))[0] == "甲"
    cells = (
        '<sheetData><row r="1048576"><c r="A1" t="s"><v>99</v></c><c r="B1"><v>x</v></c></row></sheetData>'
    )
    assert read(workbook(tmp_path / "c.xlsx", cells))[0] == "x"
    for bad in ('<sheetData><row r="x"/></sheetData>', "<sheetData><row><c></row></sheetData>"):
        with pytest.raises(Unreadable, match="damaged"):
            read(workbook(tmp_path / "d.xlsx", bad))
    bomb = f"<sheetData><row><c t='str'><v>{'0' * 20_000_000}</v></c></row></sheetData>"
    with pytest.raises(Unreadable, match="could exhaust"):
        read(workbook(tmp_path / "e.xlsx", bomb))
    entity = "<!DOCTYPE w [<!ENTITY a 'b'>]>" + f"<worksheet {S}/>"
    path = workbook(tmp_path / "f.xlsx", "")
    package(path, {"xl/worksheets/s1.xml": entity, **dict.fromkeys(["xl/x"], "")})
    with pytest.raises(Unreadable):
        read(path)
    assert RELATION
