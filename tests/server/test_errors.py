"""The reader's language."""

import pytest

from server.errors import translator_of


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-US,en;q=0.9,zh;q=0.8", "en"),
        ("fr, zh;q=0.5", "zh"),
        ("fr", "en"),
        ("zh;q=0", "en"),
        ("zh;q=x, en", "en"),
        ("," * 10_000, "en"),
        ("*", "en"),
    ],
)
def test_accept_language_selects_english_or_chinese(accepted: str, language: str) -> None:
    assert translator_of({"accept-language": accepted}).language == language
