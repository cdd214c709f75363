"""Uploads tell the truth, and a failed request is shown where it failed, with a way on."""

import json
import re
import time

import pytest
from playwright.sync_api import Page, Route, expect

from tests.server.web.conftest import BrowserServer, add, upload

JOB = {
    "kind": "ingest", "knowledge_base": "上传", "started": 1.0, "chunks": 3, "error": None, "bytes_done": 1,
    "bytes_total": 2, "files_done": 1, "files_total": 2,
}  # fmt: skip
FILE = {"size": 1, "chunks": 0, "receipt": None, "problem": None}


@pytest.fixture
def page(shared: BrowserServer, page: Page) -> Page:
    """A knowledge base of its own, so that the documents of other tests stay as they are."""
    with shared.client() as client:
        if client.get("/knowledge-bases/上传").status_code == 404:
            add(client, "上传", {"旧.txt": "旧的说明。\n".encode()})
    page.goto("about:blank")
    page.goto(f"{shared.address}#base=上传")
    expect(page.locator("#list .document").first).to_be_visible()
    return page


def failing(times: int = 1, status: int = 500):
    """A handler that answers the first requests with an error and passes the others on."""
    left = [times]

    def handle(route: Route) -> None:
        if left[0] and route.request.resource_type in ("fetch", "xhr"):
            left[0] -= 1
            body = {"error": {"message": "the disk is full", "type": "x", "code": "x"}}
            route.fulfill(status=status, body=json.dumps(body), content_type="application/json")
        else:
            route.continue_()

    return handle


def test_the_end_of_an_upload_counts_what_was_refused_and_shows_it_first(page: Page) -> None:
    files = [
        {"name": "甲.txt", "mimeType": "text/plain", "buffer": "甲说：灯在左边。\n".encode()},
        {"name": "坏.pdf", "mimeType": "application/pdf", "buffer": b"%PDF-1.4 cut off"},
        {"name": "旧.txt", "mimeType": "text/plain", "buffer": "新的说明。\n".encode()},
    ]
    page.set_input_files("#files", files)
    job = page.locator("#jobs .job").first
    expect(job.locator("p").first).to_have_text("1 added, 1 replaced, 1 refused", timeout=120_000)
    expect(job.locator("li").first).to_contain_text("坏.pdf")
    expect(job.locator("li .problem")).to_have_count(1)
    expect(job.locator("li .problem")).not_to_be_empty()


def test_running_jobs_are_on_top_after_a_reload(page: Page) -> None:
    refused = {**FILE, "name": "坏.pdf", "state": "refused", "problem": "it is cut off"}
    waiting = {**FILE, "name": "大.pdf", "state": "waiting"}
    ended = {
        **JOB,
        "id": "1" * 24,
        "state": "done",
        "created": 2.0,
        "finished": time.time(),
        "files": [refused],
    }
    running = {
        **JOB,
        "id": "2" * 24,
        "state": "running",
        "created": 1.0,
        "finished": None,
        "files": [waiting],
    }
    page.route("**/jobs?*", lambda route: route.fulfill(json={"jobs": [ended, running]}))
    page.route("**/jobs/2*", lambda route: route.fulfill(json=running))
    page.reload()
    jobs = page.locator("#jobs .job")
    expect(jobs).to_have_count(2)
    expect(jobs.first).to_contain_text("Reading: 1 of 2 files")
    expect(jobs.last).to_contain_text("1 refused")


def test_a_failed_request_never_freezes_a_panel(page: Page) -> None:
    page.route(re.compile(r"/documents\?q="), failing())
    page.route("**/jobs?*", failing())
    page.reload()
    expect(page.locator("#list")).to_contain_text("the disk is full")
    expect(page.locator(".notice")).to_contain_text("the disk is full")
    page.locator("#list button", has_text="Try again").click()
    expect(page.locator("#list .document").first).to_be_visible()
    page.locator(".notice button", has_text="Try again").click()
    expect(page.locator(".notice")).to_have_count(0)
    page.route("**/session", failing(status=503))
    page.reload()
    expect(page.locator("#thread .problem")).to_have_text("the disk is full")
    page.locator("#thread button", has_text="Try again").click()
    expect(page.locator("#list .document").first).to_be_visible()
    page.route("**/knowledge-bases/*", failing(status=503))
    page.click("#menu-button")
    page.click("#delete-base")
    page.click("#yes")
    expect(page.locator(".notice")).to_contain_text("the disk is full")
    expect(page.locator("#list .document").first).to_be_visible()


def test_an_upload_that_fails_can_be_sent_again(page: Page) -> None:
    page.route("**/documents", failing(status=507))
    page.set_input_files(
        "#files", {"name": "乙.txt", "mimeType": "text/plain", "buffer": "乙在右。".encode()}
    )
    expect(page.locator("#jobs .problem").first).to_have_text("the disk is full")
    page.locator("#jobs button", has_text="Try again").click()
    expect(page.locator("#jobs .job").first).to_contain_text("1 added", timeout=120_000)


def test_one_handler_shows_what_no_one_caught(shared: BrowserServer, page: Page) -> None:
    page.evaluate("setTimeout(() => { throw new Error('one'); })")
    expect(page.locator(".notice", has_text="Something went wrong")).to_contain_text("one")
    page.evaluate("() => { Promise.reject(new Error('two')); }")
    expect(page.locator(".notice", has_text="two")).to_be_visible()
    shared.complaints.clear()  # the browser's own report of both


def test_a_folder_is_uploaded_without_what_cannot_be_read(page: Page, tmp_path) -> None:
    (tmp_path / "文件夹" / "子").mkdir(parents=True)
    (tmp_path / "文件夹" / "说明.txt").write_text("外面的说明：门朝南。\n")
    (tmp_path / "文件夹" / "子" / "说明.txt").write_text("里面的说明：窗朝北。\n")
    (tmp_path / "文件夹" / "程序.exe").write_bytes(b"MZ")
    page.set_input_files("#folder", tmp_path / "文件夹")
    expect(page.locator(".notice")).to_contain_text("1 files of other formats")
    expect(page.locator("#jobs .job").first).to_contain_text("2 added", timeout=120_000)
    expect(page.locator("#jobs")).to_contain_text("文件夹 - 子 - 说明.txt")


def test_text_is_pasted_as_a_document(page: Page) -> None:
    page.click("#paste-text")
    page.click("#paste button[type=submit]")
    expect(page.locator("#paste-problem")).not_to_be_empty()
    page.fill("#paste-field", "备忘：周三开会\n\n地点在二楼。")
    page.click("#paste button[type=submit]")
    expect(page.locator("#list")).to_contain_text("备忘：周三开会.txt", timeout=120_000)


def test_several_documents_are_sorted_chosen_read_again_and_deleted(
    shared: BrowserServer, page: Page
) -> None:
    with shared.client() as client:
        add(
            client,
            "多选",
            {f"{name}.txt": f"{name}\n".encode() * size for name, size in (("a", 1), ("b", 300), ("c", 9))},
        )
    page.goto(f"{shared.address}#base=多选")
    page.reload()
    names = page.locator("#list .name")
    expect(names).to_have_text(["a.txt", "b.txt", "c.txt"])
    page.select_option("#sort", "size")
    expect(names).to_have_text(["b.txt", "c.txt", "a.txt"])
    expect(page.locator("#list .receipt").first).to_contain_text(re.compile(r"\d{4}.* · 600 B · .*read"))
    page.locator(".pick").nth(0).check()
    page.locator(".pick").nth(1).check()
    expect(page.locator("#chosen-count")).to_have_text("2 documents")
    page.click("#chosen-reread")
    expect(page.locator("#jobs .job").first).to_contain_text("2 replaced", timeout=120_000)
    expect(page.locator("#chosen")).to_be_hidden()
    page.locator(".pick").nth(0).check()
    page.locator(".pick").nth(2).check()
    page.click("#chosen-delete")
    expect(page.locator("#confirm-text")).to_contain_text("2 documents")
    page.click("#yes")
    expect(names).to_have_text(["c.txt"])


def test_all_about_documents_is_in_the_page_s_language(page: Page) -> None:
    page.click("#language")
    page.select_option("#base", "仓库")
    receipt = page.locator("#list .document", has_text="规定.txt").locator(".receipt")
    expect(receipt.first).to_contain_text("已读取")
    page.fill("#find", "mark.pdf")
    expect(page.locator("#list .document")).to_have_count(1)
    text = page.locator("#list").inner_text()
    assert not re.search(r"[a-z]{4,}", text.replace("mark.pdf", "")), text
    page.fill("#question", "零件123在哪里？")
    page.press("#question", "Enter")
    expect(page.locator("article .place").first).to_contain_text(re.compile(r"第 \d+ 行"))


def test_the_encoding_is_told_in_words(page: Page) -> None:
    upload(page, "繁體.txt", "繁體中文的說明：鑰匙在櫃臺，請向櫃臺人員領取並簽名。\n".encode("big5") * 5)
    expect(page.locator("#jobs .receipt").first).to_contain_text("traditional Chinese (Big5)")
