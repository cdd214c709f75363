"""What a prompt asks of a reply and what is read from it: marks `[1]`, and that nothing was found."""

import re
from collections.abc import Iterator

from ingest.normalize import fold
from ingest.sentences import sentences
from rag.score_norm import Script

NOT_FOUND: dict[Script, str] = {"han": "资料中没有提到。", "latin": "The passages do not say."}
"""What a model is told to reply where the passages hold no answer, and is understood by."""

MARK = re.compile(r"[\[［【]\s*(\d{1,3}(?:\s*[,，、;；]\s*\d{1,3})*)\s*[\]］】](?!\()")
"""`[1]`, `[1, 2]`, `【1】`; not a link of Markdown. Group 1 holds the numbers."""

_CODE = re.compile(r"(`{3,}).*?(?:\1|\Z)|`[^`\n]+`", re.DOTALL)


def marks(text: str) -> Iterator[re.Match[str]]:
    """The marks of `text` in order; what stands in code (`a[1]`) is none."""
    code = [match.span() for match in _CODE.finditer(text)]
    for match in MARK.finditer(text):
        if not any(start <= match.start() < end for start, end in code):
            yield match


def numbers(mark: re.Match[str]) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", mark[1])]


def declines(text: str) -> bool:
    """Whether a reply says that the passages hold no answer: as told, or in a sentence around it."""
    if MARK.search(text):
        return False
    folded = fold(text).strip(" \t\n\"'“”‘’「」")
    phrases = [fold(phrase).rstrip("。.") for phrase in NOT_FOUND.values()]
    alone = len(sentences(folded)) <= 1
    return any(folded.startswith(phrase) or (alone and phrase in folded) for phrase in phrases)
