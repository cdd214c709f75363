"""A real server with its worker, and a real browser."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright
from pypdfium2 import PdfDocument

expect.set_options(timeout=20_000)  # of a machine with much else to do
CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DOCUMENTS = Path(__file__).parents[2] / "data" / "documents"
RULES = (
    "第一章 仓库\n\n第一条 仓库的钥匙放在门卫室，由张三保管。\n\n"
    "第二条 领用货物须提前两个工作日申请。😀 超过十件的，由主任批准。\n\n第三条 每周五盘点一次。\n"
)
ASKED = "领用货物须提前多久申请？"
TABLE = "编号,名称,库位\n" + "".join(f"{n},零件{n:03},第{n % 7}排{n % 13}号\n" for n in range(1, 161))
MARKDOWN = (
    "# 值班手册\n\n## 夜间巡查、交接班以及发现异常情况时的处理步骤和报告方式的详细说明\n\n值班员**每两小时**巡查一次，发现异常立即报告。\n\n| 班次 | 时间 |\n| --- | --- |\n| 夜-班 | 22:00 |\n\n"
    "- <img src=x onerror=alert(1)> 不得离岗\n- [链接](javascript:alert(2))\n"
)
RAG = [sys.executable, "-c", "from rag.cli.app import main; main()"]


class BrowserServer:
    """A server with a folder of its own; `open` returns a page and collects its console errors."""

    def __init__(self, data: Path, browser: Browser) -> None:
        self.browser = browser
        self.complaints: list[str] = []
        self.environment = {**os.environ, "XDG_DATA_HOME": str(data), "LC_ALL": "C.UTF-8"}
        self.process = subprocess.Popen(
            [*RAG, "serve", "--port", "0", "--no-ocr"], env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self.process.stdout
        found = re.search(r"http://\S+", self.process.stdout.readline())
        assert found
        self.address = found[0]
        self.contexts: list[BrowserContext] = []

    def open(self, **more) -> Page:
        """The page, in English and of desktop size unless `more` says otherwise."""
        context = self.browser.new_context(**{"locale": "en-US", **more})
        context.set_default_timeout(30_000)
        self.contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))
        page.on("console", self._on_console)
        page.goto(self.address)
        return page

    def _on_console(self, message: ConsoleMessage) -> None:
        """The browser also logs 4xx responses; the page shows them, which other tests check."""
        refused = message.text.startswith("Failed to load resource")
        if message.type in ("error", "warning") and not refused:
            self.complaints.append(message.text)

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.address, timeout=60)

    def rag(self, *words: str) -> str:
        result = subprocess.run(
            [*RAG, *words], env=self.environment, capture_output=True, text=True, check=True
        )
        return result.stdout.strip()

    def close(self) -> None:
        for context in self.contexts:
            context.close()  # again does nothing
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=60)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium; install it from your distribution")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


def ask(page: Page, question: str) -> None:
    page.fill("#question", question)
    page.press("#question", "Enter")


def answered(page: Page, question: str) -> None:
    """Ask and wait for the end of the answer."""
    count = page.locator("article").count()
    ask(page, question)
    expect(page.locator("article .trace")).to_have_count(count + 1)


def upload(page: Page, name: str, content: str | bytes) -> None:
    data = content.encode() if isinstance(content, str) else content
    expect(page.locator("#upload")).to_be_visible()  # Playwright would not wait for what is hidden
    page.set_input_files("#files", {"name": name, "mimeType": "text/plain", "buffer": data})
    expect(page.locator("#jobs .job").first).to_contain_text(
        re.compile(r"\d+ (added|replaced|unchanged|refused)"), timeout=120_000
    )


def add(client: httpx.Client, base: str, files: dict[str, bytes]) -> None:
    """Upload to a knowledge base, which is made if there is none, and wait until all are read."""
    if client.get(f"/knowledge-bases/{base}").status_code == 404:
        client.post("/knowledge-bases", json={"name": base})
    parts = [("files", each) for each in files.items()]
    job = client.post(f"/knowledge-bases/{base}/documents", files=parts).json()["id"]
    while client.get(f"/jobs/{job}").json()["finished"] is None:
        time.sleep(0.1)


def two_pages() -> bytes:
    """A PDF whose second page is a table of contents."""
    with PdfDocument.new() as made:
        for name in ("filled-form-and-notes.pdf", "zh-toc-cid-font.pdf"):
            with PdfDocument(DOCUMENTS / name) as part:
                made.import_pages(part, [0])
        written = io.BytesIO()
        made.save(written)
    return written.getvalue()


def until(page: Page, condition: str) -> None:
    """Wait for a function of the page; Playwright's own way is forbidden by the page's policy."""
    end = time.monotonic() + 20
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(50)


@pytest.fixture(scope="session")
def shared(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserServer]:
    """One server with documents of all kinds, for all tests that leave them as they are."""
    server = BrowserServer(tmp_path_factory.mktemp("shared"), browser)
    with server.client() as client:
        files = {
            "规定.txt": RULES.encode("gb18030"),
            "库位.csv": TABLE.encode(),
            "手册.md": MARKDOWN.encode(),
        }
        add(client, "仓库", files | {"mark.pdf": two_pages()})
    yield server
    server.close()


@pytest.fixture
def page(shared: BrowserServer) -> Iterator[Page]:
    """A page of the shared server in a browser that has stored nothing yet; it must log no error."""
    shared.complaints.clear()
    opened = shared.open()
    expect(opened.locator("#list .document").first).to_be_visible()
    yield opened
    opened.context.close()
    assert shared.complaints == []


@pytest.fixture(scope="module")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserServer]:
    server = BrowserServer(tmp_path_factory.mktemp("data"), browser)
    yield server
    server.close()
