"""Sources: beside the answer on a desk, a sheet on a phone; pages, tables, Markdown, the original."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.server.web.conftest import ASKED, MARKDOWN, BrowserServer, answered, until

IN_PANE = """selector => { const box = document.querySelector(selector).getBoundingClientRect();
  const pane = document.querySelector('#source-body').getBoundingClientRect();
  return box.bottom > pane.top && box.top < pane.bottom; }"""
MARK_IN_PANE = """() => { const image = document.querySelector('#source img');
  const canvas = document.createElement('canvas');
  canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
  const pen = canvas.getContext('2d'); pen.drawImage(image, 0, 0);
  const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
  let row = -1;
  for (let at = 0; at < data.length && row < 0; at += 4) {
    if (data[at] > data[at + 2] + 60 && data[at + 1] > data[at + 2] + 60) row = at / 4 / canvas.width;
  }
  const box = image.getBoundingClientRect();
  const pane = document.querySelector('#source-body').getBoundingClientRect();
  const y = box.top + box.height * row / canvas.height;
  return row > 0 && y >= pane.top && y < pane.bottom - 20; }"""


def passage(shared: BrowserServer, name: str, part: str) -> tuple[str, int, int]:
    """A document's id, and the place of a part of its text."""
    with shared.client() as client:
        found = client.get("/knowledge-bases/仓库/documents", params={"q": name}).json()["documents"][0]["id"]
        text = client.get(f"/knowledge-bases/仓库/documents/{found}/text").json()["text"]
    start = text.index(part)
    return found, start, start + len(part)


def follow(page: Page, place: tuple[str, int, int], more: str = "") -> None:
    """Open a link to a passage."""
    page.evaluate(
        "([hash]) => { location.hash = hash; }",
        [f"base=仓库&document={place[0]}&start={place[1]}&end={place[2]}{more}"],
    )


def test_a_source_is_beside_the_answer_and_back_closes_it(page: Page) -> None:
    answered(page, ASKED)
    page.locator(".chip").first.click()
    expect(page.locator("#source mark")).to_be_in_viewport()
    answer, pane = page.locator("article").bounding_box(), page.locator("#source").bounding_box()
    assert answer
    assert pane
    assert answer["x"] + answer["width"] <= pane["x"]
    page.fill("#question", "还能打字")  # the page behind it is not blocked
    page.go_back()
    expect(page.locator("#source")).to_be_hidden()
    expect(page.locator("article")).to_be_visible()
    page.go_forward()
    expect(page.locator("#source mark")).to_be_in_viewport()


def test_a_source_is_a_sheet_on_a_phone(shared: BrowserServer) -> None:
    page = shared.open(viewport={"width": 390, "height": 844}, has_touch=True)
    expect(page.locator("#question")).to_be_enabled()
    answered(page, ASKED)
    chip = page.locator(".chip").first
    chip.dispatch_event("pointerdown", {"pointerType": "touch"})  # a long press shows a preview
    expect(page.locator("#preview")).to_contain_text("两个工作日")
    chip.dispatch_event("pointerup", {"pointerType": "touch"})
    chip.dispatch_event("click")
    expect(page.locator("#source")).to_be_hidden()
    chip.tap()
    expect(page.locator("#source mark")).to_be_in_viewport()
    box = page.locator("#source").bounding_box()
    assert box
    assert (box["width"], box["y"] + box["height"]) == (390, 844)
    page.go_back()
    expect(page.locator("#source")).to_be_hidden()
    page.context.close()


def test_a_citation_is_previewed_under_the_pointer(page: Page) -> None:
    answered(page, ASKED)
    page.locator(".chip").first.hover()
    expect(page.locator("#preview")).to_contain_text("规定.txt")
    expect(page.locator("#preview")).to_contain_text("两个工作日")
    page.locator("#question").hover()
    expect(page.locator("#preview")).to_be_hidden()


def test_citations_are_stepped_through(page: Page) -> None:
    """A refusal's passages, of which there are always several."""
    answered(page, "2026年世界杯决赛在哪座城市举行？")
    assert 1 < page.locator(".refusal .source").count() <= 3
    page.locator(".refusal .source").first.click()
    expect(page.locator("#citation-number")).to_have_text(re.compile("1 of [23]"))
    first = page.locator("#source-title").inner_text() + page.locator("#source-place").inner_text()
    expect(page.locator("#previous-citation")).to_be_disabled()
    page.click("#next-citation")
    expect(page.locator("#citation-number")).to_have_text(re.compile("2 of [23]"))
    page.click("#previous-citation")
    expect(page.locator("#citation-number")).to_have_text(re.compile("1 of [23]"))
    assert page.locator("#source-title").inner_text() + page.locator("#source-place").inner_text() == first
    page.go_back()  # one step, however many sources were looked at
    expect(page.locator("#source")).to_be_hidden()


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_a_pdf_opens_with_the_mark_in_view(shared: BrowserServer, size: tuple[int, int]) -> None:
    page = shared.open(viewport={"width": size[0], "height": size[1]})
    expect(page.locator("#base")).to_have_value("仓库")
    follow(
        page, passage(shared, "mark.pdf", "关于敌情判断及八路军的战略部署"), "&page=2"
    )  # at the foot of page 2
    image = page.locator("#source img")
    expect(image).to_have_attribute("alt", "Picture of page 2, with the quote marked")
    expect(image).to_have_js_property("complete", True)
    until(page, MARK_IN_PANE)
    page.locator("#source-tools button", has_text="+").click()
    until(page, MARK_IN_PANE)
    assert page.evaluate("document.querySelector('#source img').clientWidth") > size[0] / 3
    top = page.locator("#source-title").bounding_box()
    page.evaluate("document.querySelector('#source-body').scrollTop = 1e6")
    assert page.locator("#source-title").bounding_box() == top  # the place line is fixed
    expect(page.locator("#source-tools button", has_text="›")).to_be_disabled()
    page.locator("#source-tools button", has_text="‹").click()
    expect(image).to_have_attribute("alt", "Picture of page 1")
    expect(page.locator("#source-tools")).to_contain_text("Page 1 of 2")
    page.locator("#source-text").click()
    expect(page.locator("#source mark")).to_be_in_viewport()
    page.context.close()


def test_a_row_of_a_table_has_its_header(shared: BrowserServer, page: Page) -> None:
    follow(page, passage(shared, "库位.csv", "零件150"))
    expect(page.locator("#source mark")).to_have_text("零件150")
    expect(page.locator("#source th")).to_have_text(["编号", "名称", "库位"])
    expect(page.locator("#source th").first).to_be_in_viewport()  # it stays above the rows
    assert "零件001" not in page.locator("#source-body").inner_text()  # it is far away
    page.locator("#source-body button", has_text="Text before").click()
    expect(page.locator("#source-body")).to_contain_text("零件050")
    expect(page.locator("#source th")).to_have_count(3)
    expect(page.locator("#source mark")).to_have_text("零件150")


def test_markdown_is_rendered_and_sanitised(shared: BrowserServer, page: Page) -> None:
    follow(page, passage(shared, "手册.md", "值班员每两小时巡查一次"))
    expect(page.locator("#source strong")).to_have_text("每两小时")
    assert "".join(page.locator("#source mark").all_inner_texts()) == "值班员每两小时巡查一次"
    expect(page.locator("#source th")).to_have_text(["班次", "时间"])
    expect(page.locator("#source h1")).to_have_text("值班手册")
    heading = page.locator("#source .prose h2")  # nothing of it is cut off
    assert heading.evaluate("node => node.scrollWidth <= node.clientWidth && node.offsetHeight > 30")
    expect(page.locator("#source td").first).to_have_css("white-space", "nowrap")  # a code is not broken
    expect(page.locator("#source li")).to_have_text(["不得离岗", "链接"])
    assert page.locator("#source-body :is(img, script, style, form, [href], [onerror])").count() == 0


def test_the_original_is_downloaded_and_the_document_searched(shared: BrowserServer, page: Page) -> None:
    page.locator("#list .name", has_text="手册.md").click()
    expect(page.locator("#source h1, #source .prose").first).to_be_visible()
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "手册.md"
    assert Path(download.value.path()).read_text() == MARKDOWN
    expect(page.locator("#open-original")).to_be_hidden()
    page.click("#close-source")
    page.locator("#list .name", has_text="库位.csv").click()
    page.fill("#source-find", "零件157")
    page.press("#source-find", "Enter")
    expect(page.locator("#source mark")).to_have_text("零件157")
    page.fill("#source-find", "no such words")
    page.press("#source-find", "Enter")
    expect(page.locator("#source [role=alert]")).to_contain_text("not in this document")


def test_a_pdf_opens_in_the_browser_s_viewer(page: Page) -> None:
    page.locator("#list .name", has_text="mark.pdf").click()
    expect(page.locator("#source img")).to_be_visible()
    page.evaluate("window.open = (address) => { window.opened = address; }")
    page.click("#open-original")
    until(page, "() => Boolean(window.opened)")
    assert page.evaluate("window.opened").endswith("#page=1")


def test_a_source_that_cannot_be_had_says_so(page: Page) -> None:
    follow(page, ("0" * 24, 0, 3))
    expect(page.locator("#source [role=alert]")).not_to_be_empty()
    page.keyboard.press("Escape")
    expect(page.locator("#source")).to_be_hidden()
