"""More tokens than a prompt has, where nobody counts them."""

import re
from collections.abc import Sequence

from rag.types import Message

FRAME = (
    64  # tokens of what a chat template puts before and behind, such as Qwen's own first message
)
MARKS = 8  # tokens around each message
_WORD = re.compile(r" ?([A-Za-z]+)| +|.", re.DOTALL)


def estimate(messages: Sequence[Message]) -> int:
    """At least the tokens of the prompt: a word has one for each three letters, a Chinese character
    two, and whatever else one for each byte of UTF-8.

    Compared with the vocabularies of cl100k, o200k, Qwen, tekken, Mistral (32k) and ChatGLM3 on
    Chinese and English prose, documentation, code and tables, in stretches of 600 characters and
    more: never fewer, 1.8 times as many in the middle. Text of random letters may have more.
    """
    return FRAME + sum(MARKS + tokens(message.text) for message in messages)


def tokens(text: str) -> int:
    """Of a text alone, and like `estimate` more rather than fewer."""
    return sum(map(_weight, _WORD.finditer(text)))


def _weight(found: re.Match[str]) -> int:
    if letters := found[1]:
        return -(-len(letters) // 3)
    size = len(found[0][0].encode("utf-8", "surrogatepass"))
    return 2 if size == 3 else size
