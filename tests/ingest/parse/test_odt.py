"""OpenDocument text: what is shown, comments and notes, merged cells."""

from pathlib import Path

import pytest

from ingest.errors import Unreadable
from tests.ingest.documents import package, parse, whole

NAMES = ("office", "text", "style", "table", "draw")
NAMESPACES = " ".join(f'xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"' for name in NAMES)
STYLES = (
    '<style:style style:name="Old"><style:text-properties style:text-line-through-style="solid"/></style:style>'
    '<style:style style:name="Older" style:parent-style-name="Old"/>'
    '<style:style style:name="P1" style:parent-style-name="Title"/><style:style style:name="Off"><style:text-properties text:display="none"/></style:style>'
    '<style:style style:name="Up"><style:text-properties style:text-position="super 58%"/></style:style>'
)


def odt(path: Path, body: str, **parts: str) -> Path:
    content = (
        f'<office:document-content {NAMESPACES} xmlns:dc="http://purl.org/dc/elements/1.1/"><office:automatic-styles>'
        f"{STYLES}</office:automatic-styles><office:body><office:text>{body}</office:text></office:body></office:document-content>"
    )
    return package(
        path, {"mimetype": "application/vnd.oasis.opendocument.text", "content.xml": content, **parts}
    )


def test_what_is_not_shown_is_left_out_and_comments_are_named(tmp_path: Path) -> None:
    note = "<text:note><text:note-citation>1</text:note-citation><text:note-body><text:p>脚注</text:p></text:note-body></text:note>"
    comment = "<office:annotation><dc:creator>王某</dc:creator><dc:date>2024</dc:date><text:p>改小</text:p></office:annotation>"
    frame = "<draw:frame><draw:text-box><text:p>框内</text:p></draw:text-box></draw:frame>"
    parsed = parse(
        odt(
            tmp_path / "a.odt",
            "<text:tracked-changes><text:p>删除</text:p></text:tracked-changes>"
            '<text:h text:outline-level="2">合同</text:h>'
            f'<text:p>付<text:span text:style-name="Older">两成</text:span>三成{comment}<text:s text:c="2"/>'
            f'<text:span text:style-name="Off">底价</text:span>。{note}{frame}</text:p>'
            '<text:p>10<text:span text:style-name="Up">24</text:span><text:hidden-text>隐</text:hidden-text></text:p>'
            "<text:list><text:list-item><text:p>甲</text:p></text:list-item><text:list-item><text:p>乙</text:p></text:list-item></text:list>",
        )
    )
    text, marks = whole(parsed)
    assert text == "合同\n\n付三成 。\n\n[批注 王某] 改小\n\n脚注\n\n框内\n\n10^24\n- 甲\n- 乙"
    assert [(m.label, m.level) for m in marks] == [("合同", 2)]
    assert parsed.report.warnings == ("hidden or struck text is left out: 2 places",)


def test_the_title_is_the_first_heading(tmp_path: Path) -> None:
    body = '<text:p text:style-name="P1">手册</text:p><text:h>无级</text:h><text:p>文</text:p>'
    text, marks = whole(parse(odt(tmp_path / "a.odt", body)))
    assert text == "手册\n\n无级\n\n文"
    assert [(m.label, m.level) for m in marks] == [("手册", 1), ("无级", 6)]


def test_merged_cells_in_both_directions(tmp_path: Path) -> None:
    def cell(text: str, spans: str = "") -> str:
        return f"<table:table-cell {spans}><text:p>{text}</text:p></table:table-cell>"

    covered, tall = "<table:covered-table-cell/>", 'table:number-rows-spanned="2"'
    rows = [
        cell("岗位", tall) + cell("月薪", 'table:number-columns-spanned="2"') + covered,
        covered + cell("初级") + cell("高级"),
        cell("工程师", tall) + cell("9") + cell("18"),
        covered + cell("8") + cell("16"),
    ]
    table = "".join(f"<table:table-row>{row}</table:table-row>" for row in rows)
    assert whole(parse(odt(tmp_path / "a.odt", f"<table:table>{table}</table:table>")))[0] == (
        "| 岗位 | 月薪 初级 | 月薪 高级 |\n| --- | --- | --- |\n| 工程师 | 9 | 18 |\n| 工程师 | 8 | 16 |"
    )


def test_an_encrypted_document_needs_a_password(tmp_path: Path) -> None:
    path = odt(tmp_path / "a.odt", "", **{"META-INF/manifest.xml": "<m><encryption-data/></m>"})
    with pytest.raises(Unreadable, match="password"):
        parse(path)


def test_slides_of_a_presentation_are_pages_and_hidden_ones_are_reported(tmp_path: Path) -> None:
    def slide(text: str, style: str = "") -> str:
        frame = f"<draw:frame><draw:text-box><text:p>{text}</text:p></draw:text-box></draw:frame>"
        return f'<draw:page draw:style-name="{style}">{frame}</draw:page>'

    hidden = '<style:style style:name="H"><style:drawing-page-properties presentation:visibility="hidden"/></style:style>'
    content = (
        f'<office:document-content {NAMESPACES} xmlns:presentation="p"><office:automatic-styles>{hidden}'
        f"</office:automatic-styles><office:body><office:presentation>{slide('甲')}{slide('乙', 'H')}{slide('丙')}"
        "</office:presentation></office:body></office:document-content>"
    )
    mime = "application/vnd.oasis.opendocument.presentation"
    parsed = parse(package(tmp_path / "a.odp", {"mimetype": mime, "content.xml": content}))
    text, marks = whole(parsed)
    assert (text, [m.label for m in marks]) == ("甲\n\n丙", ["p. 1", "p. 3"])
    assert parsed.report.warnings == ("hidden slides are left out: 2",)
