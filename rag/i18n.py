"""Which of the two languages the reader sees, and text in both."""

from collections.abc import Mapping
from typing import Literal

Language = Literal["en", "zh"]


def language_of(environment: Mapping[str, str]) -> Language:
    """`zh` for a Chinese locale (POSIX order: LC_ALL, LC_MESSAGES, LANG), otherwise `en`."""
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if value := environment.get(name):
            return "zh" if value.lower().startswith("zh") else "en"
    return "en"


class Speaker:
    """Says a line in the reader's language: `say("2 documents", "2 个文档")`."""

    def __init__(self, language: Language) -> None:
        self.language = language

    def __call__(self, en: str, zh: str) -> str:
        return zh if self.language == "zh" else en
