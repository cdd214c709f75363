"""Nothing typed is lost, and conversations outlive the tab."""

import json
import re
from pathlib import Path

from playwright.sync_api import Page, expect

from ingest.sandbox import Sandbox
from tests.server.web.conftest import ASKED, BrowserServer, answered, ask, until

SLOW = """() => { const real = window.fetch; window.fetch = async (path, options) => {
  if (path !== '/ask') return real(path, options);
  const encoder = new TextEncoder();
  const stream = new ReadableStream({ start(controller) {
    controller.enqueue(encoder.encode('event: passages\\ndata: {}\\n\\n'));
    controller.enqueue(encoder.encode('event: text\\ndata: {"text":"两个工作"}\\n\\n'));
    window.cut = () => controller.error(new TypeError('network error'));
    options.signal.onabort = () => controller.error(new DOMException('left', 'AbortError'));
  }});
  return new Response(stream); }; }"""


def at_end(page: Page) -> None:
    until(page, "() => { const t = document.getElementById('thread'); return t.scrollHeight > t.clientHeight"
          " && t.scrollTop + t.clientHeight > t.scrollHeight - 3; }")  # fmt: skip


def test_a_question_is_kept_from_the_moment_it_is_sent(page: Page) -> None:
    page.evaluate(SLOW)
    ask(page, ASKED)
    expect(page.locator(".streaming")).to_have_text("两个工作")
    page.click("#language")  # the answer goes on
    expect(page.locator(".streaming")).to_have_text("两个工作")
    expect(page.locator("#stop")).to_be_visible()
    page.reload()
    expect(page.locator("article .asked")).to_contain_text(ASKED)
    expect(page.locator("article .problem")).to_have_text("连接中断。")
    page.goto("about:blank")
    page.go_back()
    expect(page.locator("article .asked")).to_contain_text(ASKED)
    page.locator("article button", has_text="重试").click()
    expect(page.locator("article .chip").first).to_be_visible()
    expect(page.locator("article")).to_have_count(1)


def test_a_partial_answer_stays_with_two_ways_on(page: Page) -> None:
    page.evaluate(SLOW)
    ask(page, ASKED)
    expect(page.locator(".streaming")).to_have_text("两个工作")
    page.evaluate("window.cut()")
    expect(page.locator("article .problem")).to_have_text("The connection was interrupted.")
    expect(page.locator("article .answer")).to_have_text("两个工作")
    page.reload()
    expect(page.locator("article .answer")).to_have_text("两个工作")
    page.locator("article button", has_text="Edit and ask again").click()
    expect(page.locator("#question")).to_have_value(ASKED)
    expect(page.locator("#question")).to_be_focused()
    page.locator("article button", has_text="Try again").click()
    expect(page.locator("article .chip").first).to_be_visible()
    expect(page.locator("article .problem")).to_have_count(0)


def test_the_page_says_how_much_of_the_passages_the_model_has_read(page: Page) -> None:
    page.evaluate(
        SLOW.replace("event: text", "event: reading").replace('{"text":"两个工作"}', '{"share":0.25}')
    )
    ask(page, ASKED)
    expect(page.locator("article .soft")).to_have_text("Reading the passages: 25 %")
    page.click("#language")
    expect(page.locator("article .soft")).to_have_text("正在阅读段落：25%")


def test_two_tabs_on_one_conversation_lose_nothing(shared: BrowserServer, page: Page) -> None:
    answered(page, ASKED)
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.locator("article")).to_have_count(1)
    answered(other, "谁保管钥匙？")
    expect(page.locator("article .asked")).to_contain_text([ASKED, "谁保管钥匙？"])
    answered(page, "每周几盘点？")
    page.reload()
    expect(page.locator("article")).to_have_count(3)


def test_a_server_that_is_away_leaves_the_question(page: Page) -> None:
    page.route("**/ask", lambda route: route.abort())
    ask(page, ASKED)
    expect(page.locator("article .problem")).to_have_text("The connection was interrupted.")
    page.unroute("**/ask")
    page.locator("article button", has_text="Try again").click()
    expect(page.locator("article .chip").first).to_be_visible()


def test_what_is_typed_grows_is_kept_and_never_cut(page: Page) -> None:
    box = page.locator("#question")
    low = box.bounding_box()
    box.fill("一行\n二行\n三行\n四行")
    high = box.bounding_box()
    assert low
    assert high
    assert high["height"] > low["height"] * 1.5
    page.reload()
    expect(box).to_have_value("一行\n二行\n三行\n四行")
    text = "问" * 2345
    box.fill(text)
    expect(page.locator("#limit")).to_contain_text("2,345")
    expect(page.locator("#limit")).to_contain_text("2,000")
    box.press("Enter")
    expect(page.locator("article")).to_have_count(0)
    expect(box).to_have_value(text)
    box.fill(ASKED)
    expect(page.locator("#limit")).to_be_hidden()


def test_a_conversation_outlives_the_tab(shared: BrowserServer, page: Page) -> None:
    answered(page, ASKED)
    answered(page, "谁保管钥匙？")
    page.reload()
    expect(page.locator("article")).to_have_count(2)
    at_end(page)
    page.locator("article").nth(1).locator("button", has_text="Copy link").click()
    page.click("#clear")
    expect(page.locator("article")).to_have_count(0)
    answered(page, "每周几盘点？")
    first_tab, page = page, page.context.new_page()
    first_tab.close()
    page.goto(shared.address)
    expect(page.locator("#list .document").first).to_be_visible()
    expect(page.locator("article")).to_have_count(0)
    page.click("#show-conversations")
    names = page.locator("#conversation-list .name")
    expect(names).to_have_text(["每周几盘点？", ASKED])

    page.fill("#find-conversation", "两个工作日")  # said in an answer of the first
    expect(names).to_have_text([ASKED])
    names.first.click()
    expect(page.locator("article")).to_have_count(2)
    page.click("#conversation-menu-button")
    page.click("#rename-conversation")
    page.fill("#rename-field", "仓库的规矩")
    page.press("#rename-field", "Enter")
    expect(page.locator("#conversation-title")).to_have_text("仓库的规矩")
    page.fill("#find-conversation", "")
    expect(names).to_have_text(["每周几盘点？", "仓库的规矩"])

    link = page.url
    page.click("#conversation-menu-button")
    page.click("#delete-conversation")
    expect(names).to_have_text(["每周几盘点？"])
    expect(page.locator("article")).to_have_count(0)
    notice, box = page.locator(".notice").bounding_box(), page.locator("#ask").bounding_box()
    assert notice
    assert box
    assert notice["y"] + notice["height"] <= box["y"]  # it does not cover the question
    page.locator(".notice button", has_text="Undo").click()
    expect(names).to_have_text(["每周几盘点？", "仓库的规矩"])
    expect(page.locator("article")).to_have_count(2)
    page.goto("about:blank")
    page.goto(f"{link}&answer=1")
    expect(page.locator("article")).to_have_count(2)
    expect(page.locator("article").first).to_be_in_viewport()
    assert page.evaluate("document.getElementById('thread').scrollTop") < 40


def test_a_link_from_elsewhere_is_explained(shared: BrowserServer, page: Page) -> None:
    page.goto("about:blank")
    page.goto(f"{shared.address}#base=仓库&conversation=nothere")
    expect(page.locator(".notice")).to_contain_text("no such conversation")
    expect(page.locator("#question")).to_be_enabled()


def test_an_answer_is_copied_with_its_sources_but_no_trace(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    answered(page, ASKED)
    page.locator("article .actions button", has_text="Copy").first.click()
    expect(page.locator(".notice")).to_have_text(re.compile("Copied"))
    copied = page.evaluate("navigator.clipboard.readText()")
    assert "[1] 规定.txt" in copied
    assert "两个工作日" in copied
    shown = page.locator("article").inner_text()
    assert not re.search(r"[0-9a-f]{24}", shown + copied)
    page.locator("article summary").click()
    assert re.search(r"rag trace [0-9a-f]{24}", page.locator("article details").inner_text())


def test_a_conversation_is_saved_as_markdown_and_as_a_word_document(page: Page, tmp_path: Path) -> None:
    answered(page, ASKED)
    texts = {}
    for button, end in (("#export-markdown", "md"), ("#export-word", "docx")):
        page.click("#conversation-menu-button")
        with page.expect_download() as download:
            page.click(button)
        assert download.value.suggested_filename == f"{ASKED}.{end}"
        path = tmp_path / f"out.{end}"
        download.value.save_as(path)
        with Sandbox(ocr=False) as sandbox:
            texts[end] = "".join(segment.text for segment in sandbox.parse(path).segments)
    for text in texts.values():
        assert ASKED in text
        assert "领用货物须提前两个工作日申请" in text
        assert "规定.txt" in text


def test_a_refusal_is_said_once_with_three_short_passages(page: Page) -> None:
    answered(page, "2026年世界杯决赛在哪座城市举行？")
    refusal = page.locator(".refusal")
    text = refusal.inner_text().lower()
    assert text.count("not found") == 1
    assert text.count("nearest passages") == 1
    quotes = refusal.locator(".quote").all_inner_texts()
    assert 1 <= len(quotes) <= 3
    assert all(len(quote) <= 120 for quote in quotes)
    assert all(len(quote) < 118 or quote.endswith("…") for quote in quotes)  # a cut shows
    assert not any("\n\n" in quote for quote in quotes)
    page.locator("article .actions button", has_text="Try again").click()
    expect(page.locator("article .trace")).to_have_count(1)


def test_a_refusal_says_that_documents_are_still_read(page: Page) -> None:
    job = {
        "id": "3" * 24, "kind": "ingest", "knowledge_base": "仓库", "state": "running", "created": 1.0, "started": 1.0,
        "finished": None, "chunks": 3, "error": None, "bytes_done": 1, "bytes_total": 9, "files_done": 2, "files_total": 7,
        "files": [],
    }  # fmt: skip
    page.route(
        "**/jobs?*",
        lambda route: route.fulfill(body=json.dumps({"jobs": [job]}), content_type="application/json"),
    )
    page.route(
        "**/jobs/3*", lambda route: route.fulfill(body=json.dumps(job), content_type="application/json")
    )
    page.reload()
    expect(page.locator("#jobs .job")).to_be_visible()
    answered(page, "2026年世界杯决赛在哪座城市举行？")
    expect(page.locator(".refusal .label")).to_contain_text("2 of 7 files")
