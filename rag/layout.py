"""Text of a document as one line of an answer."""

import re

_WRAP_IN_CHINESE = re.compile(r"(?<=[\u3000-\uffef])\s*\n\s*(?=[\u3000-\uffef])")


def one_line(text: str) -> str:
    """`text` without line breaks; words that have spaces between them keep one."""
    return " ".join(_WRAP_IN_CHINESE.sub("", text).split())
