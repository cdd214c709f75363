"""The page in a real browser: uploaded, asked, streamed, cited, deleted, refused."""

import re
from collections.abc import Iterator

import pytest
from axe_playwright_python.base import AxeResults
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.server.web.conftest import ASKED, DOCUMENTS, RULES, BrowserServer, add, ask, upload

HOSTILE = "<img src=x onerror=alert(1)>.txt"


@pytest.fixture
def page(server: BrowserServer) -> Iterator[Page]:
    server.complaints.clear()
    opened = server.open()
    yield opened
    opened.close()


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_an_empty_server_is_one_button(server: BrowserServer, size: tuple[int, int]) -> None:
    """The first files make the first knowledge base, where the sentence says so, on a phone too."""
    page = server.open(viewport={"width": size[0], "height": size[1]})
    expect(page.locator("#thread")).to_contain_text("There are no documents yet. Add some, then ask.")
    expect(page.locator("#question")).to_be_disabled()
    expect(page.locator("#base")).to_be_hidden()
    expect(page.locator("#thread button")).to_have_text(["Add documents"])
    expect(page.locator("#thread button")).to_be_in_viewport()
    with page.expect_file_chooser() as chooser:
        page.locator("#thread button").click()
    chooser.value.set_files({"name": "规定.txt", "mimeType": "text/plain", "buffer": RULES.encode("gb18030")})
    expect(page.locator("#base")).to_have_value("documents", timeout=60_000)
    expect(page.locator("#jobs .job p").first).to_have_text("1 added", timeout=120_000)
    ask(page, ASKED)
    expect(page.locator("article .chip").first).to_be_visible()
    page.click("#menu-button")
    new, delete = (page.locator(each).bounding_box() for each in ("#new-base", "#delete-base"))
    assert new
    assert delete
    assert delete["y"] > new["y"] + 2 * new["height"]  # apart from it, and in its own colour
    colours = [
        page.locator(each).evaluate("node => getComputedStyle(node).color")
        for each in ("#new-base", "#delete-base")
    ]
    assert colours[0] != colours[1]
    page.click("#delete-base")
    page.click("#yes")
    expect(page.locator(".notice")).to_contain_text("“documents” was deleted.")
    expect(page.locator("#thread button")).to_have_text(["Add documents"])
    page.context.close()


def test_an_empty_knowledge_base_waits_for_a_server_that_starts(server: BrowserServer) -> None:
    """`rag serve --demo` listens before it has read anything."""
    with server.client() as client:
        client.post("/knowledge-bases", json={"name": "demo"})
        page = server.open()
        page.route("**/readyz", lambda route: route.fulfill(status=503))
        page.reload()
        expect(page.locator("#thread")).to_contain_text("still reads the documents")
        ask(page, ASKED)
        expect(page.locator(".refusal")).to_contain_text("still reads the documents")
        add(client, "demo", {"规定.txt": RULES.encode("gb18030")})
        page.unroute("**/readyz")
        expect(page.locator("#list")).to_contain_text("规定.txt")
        assert client.delete("/knowledge-bases/demo").is_success
    page.context.close()


def test_a_session_from_an_empty_server_to_a_refusal(server: BrowserServer, page: Page) -> None:
    """Everything that a new user does, in one test."""
    expect(page.locator("#thread button")).to_be_visible()
    page.click("#menu-button")
    page.click("#new-base")
    expect(page.locator("#base-rule")).to_contain_text("no spaces")  # before it is typed wrong
    page.fill("#base-name", "not a name")
    page.press("#base-name", "Enter")
    expect(page.locator("#base-problem")).to_contain_text("“not a name” can't be a name")
    assert "\\" not in page.locator("#base-form").inner_text()  # no regular expression
    page.fill("#base-name", "仓库")
    page.evaluate(
        """() => { const real = window.fetch; window.fetch = async (path, options) => {
          if (options.method === 'POST') await new Promise((resolve) => setTimeout(resolve, 500));
          window.fetch = real; return real(path, options); }; }"""
    )
    page.press("#base-name", "Enter")
    expect(page.locator("#base-create")).to_have_text("Creating…")
    expect(page.locator("#base-problem")).to_be_empty()
    expect(page.locator("#base")).to_have_value("仓库", timeout=30_000)
    expect(page.locator("#list")).to_contain_text("No documents yet")
    expect(page.locator("#thread button")).to_have_text(["Add documents"])  # the next step, and only that
    ask(page, ASKED)
    expect(page.locator(".refusal")).to_contain_text("This knowledge base is empty")
    page.click("#clear")

    # Upload, and watch the progress.
    seen = page.evaluate_handle(
        """() => { const seen = new Set();
        new MutationObserver(() => { const p = document.querySelector('#jobs p');
          if (p) seen.add(p.textContent); }).observe(document.getElementById('jobs'),
          {subtree: true, childList: true, characterData: true}); return seen; }"""
    )
    upload(page, "仓库管理规定.txt", RULES.encode("gb18030"))
    states = page.evaluate("seen => [...seen]", seen)
    assert any(state.startswith("Reading: ") or state == "Waiting" for state in states), states
    expect(page.locator("#jobs .file")).to_contain_text("Chinese (GB18030)")
    expect(page.locator("#list .document")).to_contain_text("仓库管理规定.txt")
    expect(page.locator("#list .receipt").first).to_contain_text("Chinese (GB18030)")

    # Ask, and see the source at the quoted span.
    ask(page, ASKED)
    chip = page.locator("article .chip").first
    expect(chip).to_be_visible()
    quote = page.locator(".sources .quote").first.inner_text()
    assert "两个工作日" in quote
    chip.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#source mark")).to_have_text(quote)
    expect(page.locator("#source mark")).to_be_in_viewport()
    expect(page.locator("#source-title")).to_have_text("仓库管理规定.txt")
    page.keyboard.press("Escape")
    expect(page.locator("#source")).to_be_hidden()
    expect(chip).to_be_focused()

    # The conversation survives a reload.
    page.reload()
    expect(page.locator("article .chip").first).to_be_visible()

    # Delete, but only when that is meant.
    delete = page.locator("#list .delete")
    delete.click()
    page.keyboard.press("Escape")
    expect(page.locator("#list .document")).to_have_count(1)
    delete.click()
    expect(page.locator("#confirm-text")).to_contain_text("仓库管理规定.txt")
    page.click("#yes")
    expect(page.locator("#list .document")).to_have_count(0)

    # What is deleted is not found any more.
    page.click("#clear")
    ask(page, ASKED)
    expect(page.locator(".refusal")).to_contain_text("This knowledge base is empty")
    expect(page.locator(".chip")).to_have_count(0)
    assert server.complaints == []


@pytest.fixture(scope="module")
def sample_server(server: BrowserServer) -> BrowserServer:
    with server.client() as client:
        if client.get("/knowledge-bases/仓库").status_code == 404:
            client.post("/knowledge-bases", json={"name": "仓库"})
        files = {"规定.txt": RULES.encode(), "mark.pdf": (DOCUMENTS / "zh-toc-cid-font.pdf").read_bytes()}
        parts = [("files", each) for each in files.items()]
        job = client.post("/knowledge-bases/仓库/documents", files=parts).json()["id"]
        while client.get(f"/jobs/{job}").json()["finished"] is None:
            pass
    return server


def test_text_arrives_piece_by_piece_and_can_be_stopped(sample_server: BrowserServer, page: Page) -> None:
    """The stream stops after its first pieces, as if the model were slow."""
    page.evaluate(
        """() => { const real = window.fetch; window.fetch = async (path, options) => {
          if (path !== '/ask') return real(path, options);
          const encoder = new TextEncoder();
          const bytes = encoder.encode('event: text\\ndata: {"text":"两个"}\\n\\n');
          const stream = new ReadableStream({ start(controller) {
            controller.enqueue(encoder.encode('event: passages\\ndata: {}\\n\\n'));
            controller.enqueue(bytes.slice(0, 27)); // ends within a character
            setTimeout(() => controller.enqueue(bytes.slice(27)), 50);
            options.signal.onabort = () => controller.error(
              new DOMException('left', 'AbortError'));
          }});
          return new Response(stream); }; }"""
    )
    ask(page, ASKED)
    expect(page.locator(".streaming")).to_have_text("两个")
    expect(page.locator("#send")).to_be_hidden()
    page.click("#stop")
    expect(page.locator("article .problem")).to_have_text("Stopped.")
    expect(page.locator("#send")).to_be_visible()


def test_files_can_be_dropped_anywhere(sample_server: BrowserServer, page: Page) -> None:
    expect(page.locator("#list .document").first).to_be_visible()
    transfer = page.evaluate_handle(
        """() => { const data = new DataTransfer();
        data.items.add(new File(['拖放的文件说：密码箱在三楼。\\n'], '拖放.txt')); return data; }"""
    )
    page.dispatch_event("main", "dragenter", {"dataTransfer": transfer})
    expect(page.locator("#curtain")).to_be_visible()
    page.dispatch_event("main", "drop", {"dataTransfer": transfer})
    expect(page.locator("#curtain")).to_be_hidden()
    expect(page.locator("#list")).to_contain_text("拖放.txt", timeout=120_000)


def test_a_page_of_a_pdf_is_shown_with_the_passage_marked(sample_server: BrowserServer, page: Page) -> None:
    page.fill("#find", "mark.pdf")
    expect(page.locator("#list .document")).to_have_count(1)
    with sample_server.client() as client:
        listed = client.get("/knowledge-bases/仓库/documents", params={"q": "mark.pdf"}).json()
        document = listed["documents"][0]["id"]
        text = client.get(f"/knowledge-bases/仓库/documents/{document}/text").json()["text"]
    ask(page, text.strip()[:60].replace("\n", " "))
    page.locator("article .source").first.click()
    picture = page.locator("#source img")
    expect(picture).to_be_visible()
    expect(picture).to_have_attribute("alt", re.compile("with the quote marked"))
    expect(picture).to_have_js_property("complete", True)
    assert picture.evaluate("image => image.naturalWidth") > 500


def test_names_and_text_are_never_rendered_as_markup(sample_server: BrowserServer, page: Page) -> None:
    script = "<script>alert(2)</script> <b onclick=alert(3)>暗号是芝麻</b> javascript:alert(4)\n"
    upload(page, HOSTILE, script)
    expect(page.locator("#jobs .file .name").first).to_have_text(HOSTILE)
    expect(page.locator("#list .document .name", has_text=HOSTILE)).to_have_count(1)
    ask(page, "暗号是什么？")
    expect(page.locator("article .source").first).to_contain_text("<b onclick")
    page.locator("article .chip").first.click()
    expect(page.locator("#source .text")).to_contain_text("<script>alert(2)</script>")
    assert page.locator("#source b, #thread b, #list img").count() == 0
    assert sample_server.complaints == []


def test_a_refused_file_shows_the_reason(sample_server: BrowserServer, page: Page) -> None:
    upload(page, "broken.pdf", b"%PDF-1.4 cut off")
    expect(page.locator("#jobs .file.refused")).to_contain_text("broken.pdf")
    expect(page.locator("#jobs .file.refused .problem")).not_to_be_empty()
    page.reload()  # and goes on saying so, until that is dismissed
    expect(page.locator("#jobs .file.refused")).to_contain_text("broken.pdf")
    page.locator("#jobs button", has_text="Hide").click()
    page.reload()
    expect(page.locator("#list .document").first).to_be_visible()
    expect(page.locator("#jobs .job")).to_have_count(0)


def test_enter_in_an_input_method_does_not_send(sample_server: BrowserServer, page: Page) -> None:
    page.fill("#question", "领用")
    page.dispatch_event("#question", "keydown", {"key": "Enter", "keyCode": 229})
    page.dispatch_event("#question", "keydown", {"key": "Enter", "isComposing": True})
    expect(page.locator("article")).to_have_count(0)
    page.press("#question", "Shift+Enter")
    expect(page.locator("article")).to_have_count(0)


@pytest.mark.parametrize(("locale", "words"), [("zh-CN", "添加文档"), ("en-GB", "Add documents")])
def test_the_page_has_the_readers_language_and_a_switch(
    sample_server: BrowserServer, locale: str, words: str
) -> None:
    page = sample_server.open(locale=locale)
    expect(page.locator("#upload")).to_contain_text(words)
    page.click("#language")
    expect(page.locator("#upload")).not_to_contain_text(words)
    page.reload()
    expect(page.locator("#upload")).not_to_contain_text(words)
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_axe_finds_nothing(sample_server: BrowserServer, scheme: str, width: int) -> None:
    page = sample_server.open(color_scheme=scheme, bypass_csp=True, viewport={"width": width, "height": 800})
    ask(page, ASKED)
    expect(page.locator("article .chip").first).to_be_visible()
    found = {"chat": Axe().run(page)}
    page.locator("article .chip").first.click()
    expect(page.locator("#source mark")).to_be_visible()
    found["source"] = Axe().run(page)
    page.keyboard.press("Escape")
    ask(page, "2026年世界杯决赛在哪座城市举行？")
    expect(page.locator("article .refusal")).to_be_visible()
    found["refusal"] = Axe().run(page)
    if width < 800:
        page.click("#show-documents")
    expect(page.locator("#list .document").first).to_be_visible()
    page.locator(".pick").first.check()
    found["documents"] = Axe().run(page)
    page.click("#show-conversations")
    found["conversations"] = Axe().run(page)
    page.click("#show-documents")
    page.click("#menu-button")
    page.click("#new-base")
    expect(page.locator("#base-name")).to_be_visible()
    found["new base"] = Axe().run(page)
    page.keyboard.press("Escape")
    page.locator("#list .delete").first.click()
    found["confirm"] = Axe().run(page)
    assert {view: findings(result) for view, result in found.items()} == {view: [] for view in found}
    page.close()


def findings(result: AxeResults) -> list[tuple[str, str]]:
    return [(each["id"], each["nodes"][0]["html"]) for each in result.response["violations"]]


def test_a_phone_scrolls_in_one_direction_and_has_large_targets(sample_server: BrowserServer) -> None:
    page = sample_server.open(viewport={"width": 360, "height": 740}, has_touch=True, locale="zh-CN")
    ask(page, ASKED)
    expect(page.locator("article .chip").first).to_be_visible()
    for view in ("#show-documents", "#show-chat"):
        page.click(view)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 360
    for button in page.locator("button:visible, select:visible").all():
        box = button.bounding_box()
        assert box
        assert min(box["width"], box["height"]) >= 24
    page.close()


def test_the_page_asks_for_a_key_and_respects_its_scopes(sample_server: BrowserServer) -> None:
    """This test is the last, because every request needs a key once there is one."""
    key = sample_server.rag("keys", "create", "reader", "--scope", "read:仓库")
    page = sample_server.open(bypass_csp=True)
    expect(page.locator("#key")).to_be_visible()
    assert findings(Axe().run(page)) == []
    page.keyboard.press("Escape")
    expect(page.locator("#key")).to_be_visible()
    page.fill("#key-field", "rag-000000000000-\u200b")  # pasted along, and in no header
    page.press("#key-field", "Enter")
    expect(page.locator("#key-problem")).to_contain_text("not known")
    page.fill("#key-field", "rag-000000000000-" + "x" * 43)
    page.press("#key-field", "Enter")
    expect(page.locator("#key-problem")).to_contain_text("not known")
    page.fill("#key-field", key)
    page.press("#key-field", "Enter")
    expect(page.locator("#key")).to_be_hidden()
    expect(page.locator("#list .document").first).to_be_visible()
    page.locator(".pick").first.check()  # who may read may choose what to ask, and no more
    expect(page.locator("#chosen-ask")).to_be_visible()
    writing = ("#upload", "#new-base", "#delete-base", "#list .delete", "#chosen-delete", "#chosen-reread")
    for hidden in (*writing, "#paste-text"):
        expect(page.locator(hidden).first).to_be_hidden()
    page.reload()
    ask(page, ASKED)
    expect(page.locator("article .chip").first).to_be_visible()
    assert page.evaluate("Object.keys(localStorage)") in (["base"], ["base", "language"])
    page.click("#menu-button")
    page.click("#log-out")
    expect(page.locator("#key")).to_be_visible()
    expect(page.locator("article")).to_have_count(0)
    page.reload()
    expect(page.locator("#key")).to_be_visible()
    page.close()
