"""A follow-up question -> one that stands alone, without a language model."""

import re
from collections.abc import Sequence

from rag.types import Message

# Words that point back at what was said before, and forms that leave out what they are about.
_POINTS_BACK = re.compile(
    r"(?<!其)[它他她牠祂]|[这這](?![样樣])|(?<!应)(?<!應)[该該](?!死)|那(?!么|麼|怕)|此(?!外)"
    r"|其(?![他它中余餘实實])|前者|后者|後者|上述|刚才|剛才"
    r"|\b(?:its?|they|them|their|he|she|his|her|former|latter)\b"
    r"|^(?:is |are |was |were |does |do |did |can |and )?(?:that|this|those|these)\b",
    re.IGNORECASE,
)
_ELLIPSIS = re.compile(
    r"^(?:那么?|那麼|还有|還有|另外|然后|and\b|what about|how about|what if)|呢[？?]?\s*$",
    re.IGNORECASE,
)
_NAMES_A_SUBJECT = re.compile(
    r"什么是|什麼是|何为|何謂|何谓|是什么|是什麼|的定义|^what (?:is|are) \w", re.IGNORECASE
)
_SHORT = 6
"""A question of fewer characters (or of fewer than 3 Latin words) can't name its own subject."""


def condense(question: str, history: Sequence[Message]) -> str:
    """The question with the subject of the conversation put before it, where it lacks its own.

    A question that stands alone comes back unchanged. The subject is the nearest earlier question
    that stood alone; follow-ups in between are left out.
    """
    earlier = [turn.text.strip() for turn in history if turn.role == "user"]
    if not earlier or not depends(question):
        return question
    subject = next((text for text in reversed(earlier) if not depends(text)), earlier[0])
    return f"{subject} {question}"


def depends(question: str) -> bool:
    """Whether a question can't be understood without the one before it."""
    text = question.strip()
    latin = re.findall(r"[A-Za-z0-9]+", text)
    short = len(latin) < 3 if text.isascii() else len(text.rstrip("？?。！")) < _SHORT
    short = short and not _NAMES_A_SUBJECT.search(text)
    return short or bool(_POINTS_BACK.search(text) or _ELLIPSIS.search(text))
