"""The page on small screens, with long names, in both appearances; its weight, its keys."""

import gzip
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.server.web.conftest import ASKED, BrowserServer, answered, until

WEB = Path(__file__).parents[3] / "server" / "web"
LONG = "很长的名字" * 12
SOURCES_FIT = """() => [...document.querySelectorAll('#source .source-head button:not([hidden])')]
  .every((each) => !each.offsetParent || each.getBoundingClientRect().right <= innerWidth)"""


def test_the_page_is_light() -> None:
    """All that a visit can load, gzipped; nothing is loaded from elsewhere."""
    files = [*WEB.glob("*.*"), *WEB.glob("vendor/*.js")]
    own = [file for file in files if not file.name.startswith("docs.")]
    assert sum(len(gzip.compress(file.read_bytes())) for file in own) < 120_000


# 200 % zoom of 1280×800, and a phone
@pytest.mark.parametrize("size", [(640, 400), (390, 844)])
def test_half_of_the_height_is_for_the_answer(shared: BrowserServer, size: tuple[int, int]) -> None:
    page = shared.open(viewport={"width": size[0], "height": size[1]})
    expect(page.locator("#question")).to_be_enabled()
    answered(page, ASKED)
    thread = page.locator("#thread").bounding_box()
    assert thread
    assert thread["height"] >= size[1] / 2
    page.locator(".chip").first.click()
    expect(page.locator("#source mark")).to_be_in_viewport()
    body = page.locator("#source-body").bounding_box()
    assert body
    assert body["height"] >= size[1] / 2
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    page.context.close()


@pytest.mark.parametrize("width", [1280, 640, 390])
def test_long_names_push_nothing_out(shared: BrowserServer, width: int) -> None:
    with shared.client() as client:
        if client.get(f"/knowledge-bases/{LONG}").status_code == 404:
            client.post("/knowledge-bases", json={"name": LONG})
    page = shared.open(viewport={"width": width, "height": 800})
    expect(page.locator("#question")).to_be_enabled()
    page.select_option("#base", LONG)
    expect(page.locator("#thread")).to_contain_text("no documents yet")
    for control in ("#menu-button", "#language", "#base"):
        box = page.locator(control).bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    page.route("**/documents/*", lambda route: route.fulfill(json={
        "id": "1" * 24, "name": f"{LONG}.pdf", "title": LONG, "length": 9, "pages": False, "size": 1, "added": 1.0,
        "receipt": {"format": "txt", "encoding": None, "replaced": 0, "ocr_pages": 0, "warnings": []},
    }))  # fmt: skip
    page.evaluate(f"location.hash = 'base={LONG}&document={'1' * 24}&start=0&end=2'")
    expect(page.locator("#source-title")).to_have_text(f"{LONG}.pdf")
    until(page, SOURCES_FIT)
    page.context.close()


def test_a_slash_focuses_the_question(page: Page) -> None:
    page.locator("#documents-title").click()
    page.keyboard.press("/")
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type("a/b")
    expect(page.locator("#question")).to_have_value("a/b")


def test_the_appearance_can_be_chosen(page: Page) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.click("#menu-button")
    expect(page.locator("#theme")).to_have_text("Appearance: as the system")
    page.click("#theme")
    assert page.evaluate(paper) == light
    page.click("#theme")
    expect(page.locator("#theme")).to_have_text("Appearance: dark")
    dark = page.evaluate(paper)
    assert dark != light
    page.reload()
    assert page.evaluate(paper) == dark


def test_the_demo_s_documents_come_with_questions(page: Page) -> None:
    found = {"documents": [{"name": "劳动合同法.md"}], "total": 1}
    page.route(re.compile(r"documents\?limit=1&q=%E5%8A%B3"), lambda route: route.fulfill(json=found))
    page.reload()
    expect(page.locator(".example")).to_have_count(3)
    question = page.locator(".example").first.inner_text()
    page.locator(".example").first.click()
    expect(page.locator("article .asked")).to_contain_text(question)
    expect(page.locator("article .trace")).to_have_count(1)
