"""Take the pictures of the web page that docs/quickstart.md shows: python docs/screenshots.py (after `make test`).

`rag serve --demo` is asked in a real Chromium: one question that the corpora answer, one that they don't.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from time import sleep
from typing import Any

import httpx
from playwright.sync_api import Page, expect, sync_playwright

DOCS = Path(__file__).parent
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu"]
DESK = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 780}, "has_touch": True, "color_scheme": "dark"}
QUESTIONS = {
    "en-US": (
        "How long must an online shop announce its closing in advance?",
        "Who won the football World Cup in 2026?",
    ),
    "zh-CN": ("试用期最长不得超过几个月？", "2026年世界杯决赛在哪座城市举行？"),
}


def asked(page: Page, address: str, questions: tuple[str, ...]) -> None:
    """A conversation about the laws, to its last answer."""
    page.goto(address)
    page.select_option("#base", "laws")
    for number, question in enumerate(questions, 1):
        expect(page.locator("#question")).to_be_enabled()
        page.fill("#question", question)
        page.press("#question", "Enter")
        expect(page.locator("article .sources, article .refusal")).to_have_count(number)


def main() -> None:
    command = [sys.executable, "-m", "rag", "serve", "--demo", "--port", "0"]
    serving = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert serving.stdout
        found = re.search(r"http://\S+", serving.stdout.readline())
        assert found
        while httpx.get(f"{found[0]}readyz").status_code != 200:  # it reads the documents first
            sleep(1)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)

            def pictured(name: str, locale: str, *, source: bool, questions: int = 2, **window: Any) -> None:
                with browser.new_context(locale=locale, device_scale_factor=1.5, **window) as context:
                    page = context.new_page()
                    asked(page, found[0], QUESTIONS[locale][:questions])
                    if source:
                        page.locator("article .chip").first.click()
                        expect(page.locator("#source mark").first).to_be_in_viewport()
                    page.screenshot(path=DOCS / name)

            pictured("web.png", "en-US", source=False, questions=1, **DESK)
            pictured("web.zh-CN.png", "zh-CN", source=True, **DESK)
            pictured("web-phone.png", "zh-CN", source=False, **PHONE)
            browser.close()
    finally:
        serving.terminate()
        serving.wait(60)


if __name__ == "__main__":
    main()
