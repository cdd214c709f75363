"""HTML: the content of a page without its margins; what is hidden, struck, raised or in fields."""

from hypothesis import given
from hypothesis import strategies as st

from ingest.parse.html import html_blocks, page_blocks

PAGE = """<!doctype html><html><head><title>指南</title><style>p { color: red }</style></head><body>
<header><a href="/">首页</a></header><nav><ul><li><a href="/a">栏目</a><li><a href="/b">提取</a></ul></nav>
<div class="cookie-banner">本站使用 Cookie。<button>接受</button></div>
<div class="left-sidebar"><p>热门文章</p></div><div role="navigation">位置</div>
%s
<aside>相关推荐</aside><footer>版权所有</footer></body></html>"""
PROSE = "".join(f"<p>第{at}段说明公积金怎样领和用在哪里，内容足够长，不是链接。</p>" for at in range(20))
MARGINS = ("首页", "栏目", "提取", "Cookie", "热门", "位置", "相关推荐", "版权")


def text_of(html: str, *, whole: bool = False) -> str:
    blocks = html_blocks([html]) if whole else page_blocks([html], warn=[])
    return "\n".join(block.text for block in blocks)


def test_the_content_of_a_page_without_its_margins() -> None:
    warnings: list[str] = []
    page = (
        PAGE % f"<main><h1>公积金</h1><p>每月一千五百元。</p><aside>提示：须本人办理。</aside>{PROSE}</main>"
    )
    text = "\n".join(block.text for block in page_blocks([page], warn=warnings))
    assert text.startswith("公积金\n每月一千五百元。\n提示：须本人办理。\n第0段")
    assert [word for word in MARGINS if word in text] == []
    assert warnings == ["left out as navigation or margin of the page: 34 characters"]


def test_a_mail_or_a_book_has_no_margins() -> None:
    text = text_of(PAGE % "<p>正文</p>", whole=True)
    assert [word for word in (*MARGINS, "正文") if word not in text] == []


def test_a_page_whose_content_bears_the_name_of_a_margin_is_read() -> None:
    long = f"<div class='sidebar'><p>{'长文。' * 2000}</p></div>"
    assert "长文" in text_of(PAGE % long)
    only = "<html><body><div id='menu'><p>菜单：红烧肉四十八元</p></div><p>店</p></body></html>"
    assert "红烧肉" in text_of(only)
    assert text_of(f"<html><body>{'<div>' * 600}{PROSE}").count("段说明") == 20  # too deep for resiliparse


def test_the_heading_of_the_page_is_content() -> None:
    header = "<header><nav>栏目</nav><div><div><h1>题目</h1></div></div></header>"
    assert text_of(f"<html><body>{header}{PROSE}</body></html>").startswith("题目\n第0段")


def test_hidden_and_struck_text_is_not_read_and_ends_where_it_ends() -> None:
    hidden = (
        "<p style='Display: None'>甲<p>一</p><div hidden><p>乙</div><p>二</p><ul><li hidden>丙<li>三</ul><p style='visibility:hidden'>丁</p>"
        "<span style='display:none'>戊</span><p>四<del>己</del><ins>五</ins><s>庚</s><input hidden value='辛'>六</p><dialog>壬</dialog>"
        "<p style='text-decoration: line-through'>癸</p><p class='tab'>七</p><p class='printed'>八</p>"
        "<div><p hidden>子</div><p>九</p>"
    )
    text = text_of(f"<main>{hidden}</main>", whole=True)
    assert [sign for sign in "甲乙丙丁戊己庚辛壬癸子" if sign in text] == []
    assert "".join(sign for sign in text if sign in "一二三四五六七八九") == "一二三四五六七八九"


def test_scripts_fields_alternative_texts_and_frames() -> None:
    body = (
        "<p>3×10<sup>8</sup> m/s，H<sub>2</sub>O，注<sup>[1]</sup></p><label>电话</label><input value='0512'>"
        "<input type=checkbox checked>是<input type=radio>否<input type=submit value=提交>"
        "<img alt='流程图：三个工作日'><noscript>窗口十二</noscript><iframe srcdoc='&lt;p&gt;网点&lt;/p&gt;'></iframe>"
    )
    text = text_of(f"<html><body><main>{body}</main></body></html>")
    assert text.startswith("3×10^8 m/s，H2O，注[1]\n电话 0512 ☑是☐否 流程图：三个工作日")
    assert "窗口十二" in text
    assert "网点" in text
    assert "提交" not in text


def test_joined_header_rows_and_navigation_in_layout_tables() -> None:
    table = (
        "<table><tr><th rowspan=2>家庭<th colspan=2>额度<tr><th>首套<th>二套<tr><td>双人<td>100<td>70</table>"
        "<table><tr><td><nav>导航</nav>左<td>右<tr><td>下<td>末</table>"
    )
    text = text_of(f"<html><body>{table}</body></html>")
    assert "| 家庭 | 额度 首套 | 额度 二套 |\n| --- | --- | --- |\n| 双人 | 100 | 70 |" in text
    assert "| 左 | 右 |" in text
    assert "导航" not in text


tags = st.sampled_from(("div", "p", "ul", "li", "table", "tr", "td", "b", "span", "section", "h2", "sup"))


@given(st.lists(st.tuples(tags, st.booleans()), max_size=40))
def test_no_text_of_a_page_without_margins_is_lost(found: list[tuple[str, bool]]) -> None:
    """Whatever is opened and not closed, or closed and not opened."""
    parts = [f"<{'/' * closing}{tag}>字{at:02}" for at, (tag, closing) in enumerate(found)]
    text = text_of(f"<html><body>{''.join(parts)}</body></html>")
    assert [at for at in range(len(parts)) if f"字{at:02}" not in text] == []


def test_the_element_around_the_article_leaves_out_what_no_name_gives_away() -> None:
    cards = "".join(f'<div class="x{at}"><a href="#">另一篇{at}</a><p>它的摘要</p></div>' for at in range(9))
    page = f"<div>栏目</div><h1>题目</h1><div class='article-body'>{PROSE}</div>{cards}"
    blocks = text_of(f"<html><body>{page}</body></html>").split("\n")
    assert blocks[0] == "题目"
    assert len(blocks) == 21
    short = f"<html><body>{page.replace(PROSE, '<p>一行</p>')}</body></html>"
    assert "另一篇8" in text_of(short)  # too little to be the content


def test_a_style_sheet_hides_by_class_and_id() -> None:
    sheet = "@media print { .a { display: none } } .b, p.c { color: red; display: none } #d{display:none}"
    sheet += ".e { visibility: hidden } .f { text-decoration: line-through red }"
    body = "<p class='a'>甲</p><p class='x b'>乙</p><p class='c'>丙</p><p id='d'>丁</p><p>戊<i class='b'>己</i></p>"
    body += "<p class='e'>庚</p><p>辛<span class='f'>壬</span></p>"
    page = f"<html><head><style>{sheet}</style></head><body>{body}<p>正文正文</p></body></html>"
    assert text_of(page) == "甲\n戊\n辛\n正文正文"
    folded = page.replace("丁", "答案在点击后才显示。" * 9)  # most of the page: its reader will unfold it
    assert "答案在点击" in text_of(folded)
