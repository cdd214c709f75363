"""PowerPoint: reading order, merged cells, hidden slides and boxes, comments."""

from pathlib import Path
from xml.etree.ElementTree import fromstring

from hypothesis import given
from hypothesis import strategies as st

from ingest.parse.pptx import Box, reading_order
from tests.ingest.documents import A, P, R, package, parse, relations, whole


def shape(text: str, x: float, y: float, width: float = 3, height: float = 0.5, role: str = "") -> str:
    place = f'<a:off x="{x * 1000:.0f}" y="{y * 1000:.0f}"/><a:ext cx="{width * 1000:.0f}" cy="{height * 1000:.0f}"/>'
    paragraphs = "".join(f"<a:p><a:r><a:t>{line}</a:t></a:r></a:p>" for line in text.split("\n"))
    return (
        f"<p:sp><p:nvSpPr><p:cNvPr id='1' name=''/><p:nvPr>{role}</p:nvPr></p:nvSpPr><p:spPr><a:xfrm>{place}</a:xfrm>"
        f"</p:spPr><p:txBody>{paragraphs}</p:txBody></p:sp>"
    )


def show(path: Path, *slides: str, parts: dict[str, str] | None = None, **targets: tuple[str, str]) -> Path:
    ids = "".join(f'<p:sldId r:id="s{at}"/>' for at in range(len(slides)))
    files = {f"s{at}": ("slide", f"slides/{at}.xml") for at in range(len(slides))}
    contents = {
        f"ppt/slides/{at}.xml": f"<p:sld {P} {A} {R} show='{int(not slide.startswith('hidden'))}'><p:cSld>"
        f"<p:spTree>{slide.removeprefix('hidden')}</p:spTree></p:cSld></p:sld>"
        for at, slide in enumerate(slides)
    }
    return package(
        path,
        {
            "ppt/presentation.xml": f"<p:presentation {P} {R}><p:sldIdLst>{ids}</p:sldIdLst></p:presentation>",
            "ppt/_rels/presentation.xml.rels": relations({**files, "a": ("commentAuthors", "authors.xml")}),
            "ppt/slides/_rels/0.xml.rels": relations(targets),
            **contents,
            **(parts or {}),
        },
    )


def text_of(path: Path) -> str:
    return whole(parse(path, ocr=False))[0]


def test_labels_and_values_side_by_side_are_one_line(tmp_path: Path) -> None:
    boxes = [shape("2025年", 4, 3), shape("2024年", 4, 2), shape("竣工", 1, 3), shape("开工", 1, 2.02)]
    title = shape("节点", 0, 5, role='<p:ph type="title"/>')
    assert (
        text_of(show(tmp_path / "a.pptx", "".join([*boxes, title]))) == "节点\n\n开工 2024年\n\n竣工 2025年"
    )


def test_columns_of_text_are_read_one_after_the_other(tmp_path: Path) -> None:
    boxes = [
        shape("右题", 6, 1), shape("左题", 1, 1), shape("右文\n" + "长" * 50, 6, 2, 3, 2), shape("左文\n" + "长" * 50, 1, 2, 3, 2),
        shape("全宽的标语", 0, 0, 9),
    ]  # fmt: skip
    text = text_of(show(tmp_path / "a.pptx", "".join(boxes)))
    assert [text.index(word) for word in ("标语", "左题", "左文", "右题", "右文")] == sorted(
        text.index(word) for word in ("标语", "左题", "左文", "右题", "右文")
    )


def test_figures_above_their_labels_stay_with_them(tmp_path: Path) -> None:
    boxes = [
        shape(text, x, y, 2)
        for y, row in ((1, ("128", "56", "9")), (1.5, ("合同", "客户", "分部")))
        for x, text in zip((0, 4, 8), row, strict=True)
    ]
    assert text_of(show(tmp_path / "a.pptx", "".join(boxes))).split() == [
        "128",
        "合同",
        "56",
        "客户",
        "9",
        "分部",
    ]


def test_boxes_of_a_group_are_placed_on_the_slide(tmp_path: Path) -> None:
    frame = '<p:grpSpPr><a:xfrm><a:off x="0" y="5000"/><a:ext cx="9000" cy="1000"/><a:chOff x="0" y="0"/><a:chExt cx="9000" cy="1000"/></a:xfrm></p:grpSpPr>'
    group = f"<p:grpSp>{frame}{shape('组内', 0, 0)}</p:grpSp>"
    assert text_of(show(tmp_path / "a.pptx", group + shape("首", 0, 1))) == "首\n\n组内"


def test_merged_cells_hidden_slides_and_struck_text(tmp_path: Path) -> None:
    def cell(text: str, merge: str = "") -> str:
        return f"<a:tc {merge}><a:txBody><a:p><a:r><a:t>{text}</a:t></a:r></a:p></a:txBody></a:tc>"

    rows = [
        cell("岗位", 'rowSpan="2"') + cell("月薪", 'gridSpan="2"') + cell("", 'hMerge="1"'),
        cell("", 'vMerge="1"') + cell("初级") + cell("高级"),
        cell("工程师", 'rowSpan="2"') + cell("9") + cell("18"),
        cell("", 'vMerge="1"') + cell("8") + cell("16"),
    ]
    grid = (
        "<p:graphicFrame><a:tbl>"
        + "".join(f"<a:tr>{row}</a:tr>" for row in rows)
        + "</a:tbl></p:graphicFrame>"
    )
    struck = '<p:sp><p:txBody><a:p><a:r><a:rPr strike="sngStrike"/><a:t>旧</a:t></a:r><a:r><a:t>新10</a:t></a:r><a:r><a:rPr baseline="30000"/><a:t>3</a:t></a:r></a:p></p:txBody></p:sp>'
    path = show(tmp_path / "a.pptx", grid + struck, "hidden" + shape("底价", 0, 0), shape("末", 0, 0))
    parsed = parse(path, ocr=False)
    text, marks = whole(parsed)
    assert text == (
        "| 岗位 | 月薪 初级 | 月薪 高级 |\n| --- | --- | --- |\n| 工程师 | 9 | 18 |\n| 工程师 | 8 | 16 |\n\n"
        "新10^3\n\n末"
    )
    assert [m.label for m in marks] == ["p. 1", "p. 3"]
    assert parsed.report.warnings == ("hidden slides are left out: 2",)


places = st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(0, 8)] * 2)


@given(st.lists(places, max_size=25))
def test_no_box_is_lost_or_doubled(found: list[tuple[int, int, int, int]]) -> None:
    element = fromstring(f"<p:sp {P} {A}><a:p><a:r><a:t>x</a:t></a:r></a:p></p:sp>")
    boxes = [Box(element, x, y, x + width, y + height) for x, y, width, height in found]
    read = [id(box) for line in reading_order(boxes) for box in line]
    assert sorted(read) == sorted(map(id, boxes))


def test_comments_of_both_forms_follow_their_slide_under_their_authors(tmp_path: Path) -> None:
    old = f"<p:cmLst {P}><p:cm authorId='0'><p:pos x='1' y='2'/><p:text>价格待定</p:text></p:cm></p:cmLst>"
    body = "<p:txBody><a:p><a:r><a:t>{}</a:t></a:r></a:p></p:txBody>"
    new = f"<p:cmLst {P} {A}><p:cm authorId='0'><p:replyLst><p:reply authorId='9'>{body.format('已改')}</p:reply>"
    new += f"</p:replyLst>{body.format('核对日期')}</p:cm></p:cmLst>"
    authors = f"<p:cmAuthorLst {P}><p:cmAuthor id='0' name='李明'/></p:cmAuthorLst>"
    parts = {"ppt/authors.xml": authors, "ppt/c1.xml": old, "ppt/c2.xml": new}
    targets = {"c1": ("comments", "../c1.xml"), "c2": ("comments", "../c2.xml")}
    text = text_of(show(tmp_path / "a.pptx", shape("正文", 0, 0), parts=parts, **targets))
    assert text == "正文\n\n[批注 李明] 价格待定\n\n[批注 李明] 核对日期\n\n[批注] 已改"
