"""Questions to some of the documents, which a reader chooses in the list."""

import pytest
from playwright.sync_api import Page, expect

from tests.server.web.conftest import BrowserServer, add, ask

BASE = "范围"
FILES = {
    "甲合同[1].txt": "甲合同的违约金是三千元，由乙方承担。\n".encode(),
    "乙合同.txt": "乙合同的违约金是五千元，由甲方承担。\n".encode(),
}


@pytest.fixture
def page(shared: BrowserServer, page: Page) -> Page:
    with shared.client() as client:
        if client.get(f"/knowledge-bases/{BASE}").status_code == 404:
            add(client, BASE, FILES)
    page.goto("about:blank")
    page.goto(f"{shared.address}#base={BASE}")
    expect(page.locator("#list .document")).to_have_count(2)
    return page


def choose(page: Page, name: str) -> None:
    page.locator("#list .document", has_text=name).locator(".pick").check()
    page.click("#chosen-ask")


def test_only_the_chosen_documents_are_asked_until_they_are_given_back(page: Page) -> None:
    choose(page, "甲合同[1].txt")
    expect(page.locator("#chosen")).to_be_hidden()
    expect(page.locator("#scope button")).to_have_text("甲合同[1].txt ×")
    ask(page, "违约金是多少？")
    last = page.locator("#thread article").last
    expect(last).to_contain_text("三千元")
    expect(last).not_to_contain_text("五千元")
    page.reload()
    expect(page.locator("#scope button")).to_have_count(1)  # it belongs to the conversation
    choose(page, "乙合同.txt")
    expect(page.locator("#scope button")).to_have_count(2)
    page.locator("#scope button", has_text="甲合同").click()
    ask(page, "违约金是几千元？")
    expect(last).to_contain_text("五千元")
    page.locator("#scope button").click()
    expect(page.locator("#scope")).to_be_hidden()
    page.click("#clear")
    expect(page.locator("#scope")).to_be_hidden()


def test_a_refusal_names_the_documents_that_were_asked(page: Page) -> None:
    choose(page, "乙合同.txt")
    ask(page, "珠穆朗玛峰有多高？")
    expect(page.locator("#thread article").last).to_contain_text("Not found in 乙合同.txt")


def test_chips_leave_room_on_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.click("#show-documents")
    choose(page, "甲合同[1].txt")
    expect(page.locator("#question")).to_be_visible()  # back at the conversation
    expect(page.locator("#question")).to_be_focused()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
