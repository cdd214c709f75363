"""A real server with its worker, and a real browser."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

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
            context.close()
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


@pytest.fixture(scope="module")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserServer]:
    server = BrowserServer(tmp_path_factory.mktemp("data"), browser)
    yield server
    server.close()
