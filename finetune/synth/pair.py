"""Question-answer pairs about a passage, and which of them are valid."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from ingest.chunk import Span
from rag.question import read_patterns, script_of
from rag.types import MARK, Script

QuestionKind = Literal["definition", "article", "list", "table", "cloze", "model"]


@dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """A question that characters [start, end) of a document answer.

    `answer` is an exact part of those characters; `reply` states it in whole sentences on one line.
    """

    question: str
    answer: str
    reply: str
    start: int
    end: int
    kind: QuestionKind


@dataclass(frozen=True)
class TitledPassage:
    """A passage to ask about: `text` begins at character `start` of its document.

    `title` is what a person calls the document, "" if it has no such name. `places` are the
    document offsets at which headings begin to apply, with those headings (`第二章 › 第一节`).
    `header` is that of a table that began before the passage.
    """

    text: str
    start: int
    title: str = ""
    places: tuple[tuple[int, str], ...] = ()
    header: str = ""

    @property
    def end(self) -> int:
        return self.start + len(self.text)

    @cached_property
    def script(self) -> Script | None:
        """None if questions can't be asked in the language of the text."""
        letters = len(_LETTER.findall(self.text))
        if letters and len(_HAN.findall(self.text)) >= 0.3 * letters:
            return None if _KANA_OR_HANGUL.search(self.text) else "han"
        return "latin" if letters and len(_LATIN.findall(self.text)) >= 0.8 * letters else None

    @property
    def quoted_title(self) -> str:
        """The title as a question quotes it, "" without one."""
        if not self.title or self.title.startswith("《"):
            return self.title
        return f"《{self.title}》" if self.script == "han" else f"“{self.title}”"

    def pair(
        self, kind: QuestionKind, question: str, answer: str, reply: str, span: Span
    ) -> Iterator[QuestionAnswer]:
        """The pair for characters `span` of the text, if it is valid."""
        start, end = self.start + span[0], self.start + span[1]
        pair = QuestionAnswer(punctuate(question), answer, reply, start, end, kind)
        if answer in self.text[slice(*span)] and is_valid(pair):
            yield pair


LONGEST_QUESTION = {"han": 90, "latin": 220}
SHORTEST_QUESTION = {"han": 6, "latin": 12}
LONGEST_REPLY = {"han": 400, "latin": 1000}


PATTERNS: Any = SimpleNamespace(**read_patterns(Path(__file__).with_name("patterns.toml")))
_HAN = re.compile(r"[\u3400-\u9fff]")
_LETTER = re.compile(r"[^\W\d_]")
_KANA_OR_HANGUL = re.compile(r"[\u3040-\u30ff\uac00-\ud7af]{3}")
_LATIN = re.compile(r"[A-Za-z]")
_BRACKETS = ("（）", "《》", "“”", "‘’", "「」", "『』", "【】", "()", "[]", "{}")


def is_valid(pair: QuestionAnswer) -> bool:
    """Whether the question is clear without its passage, and doesn't give away the answer."""
    question, answer, reply = pair.question, pair.answer, pair.reply
    script = script_of(question)
    return (
        script == script_of(reply)
        and SHORTEST_QUESTION[script] <= len(question) <= LONGEST_QUESTION[script]
        and len(answer.strip()) > 0
        and len(reply) <= LONGEST_REPLY[script]
        and normalize(answer) not in normalize(question)
        and is_self_contained(question)
        and _balanced(question)
        and _balanced(reply)
        and not MARK.search(reply)
        and not MARK.search(question)
        and not re.search(r"\n|\*\*|\]\(|</", question + reply)
    )


def is_self_contained(question: str) -> bool:
    """Whether it refers to nothing that only the text around it explains."""
    bare = re.sub(r"《[^》]*》|“[^”]*”", "", question)
    if script_of(question) == "latin":
        return not PATTERNS.latin_refers_back.search(bare)
    its = re.search(r"(?<![尤极与及莫])其(?![他它中余次实])", bare)
    return not PATTERNS.refers_back.search(bare) and (its is None or its.start() >= 8)


def _balanced(text: str) -> bool:
    if text.count("`") % 2 or text.count('"') % 2:
        return False
    return all(text.count(left) == text.count(right) for left, right in _BRACKETS)


def normalize(text: str) -> str:
    """For comparison: without space and case."""
    return "".join(text.split()).casefold()


def punctuate(question: str) -> str:
    """The question with one question mark, and no space before Chinese punctuation."""
    bare = question.strip().rstrip("。.；;：:，,？? ")
    bare = re.sub(r"\s+(?=[，。；：、？）》”])|(?<=[（《“，。；：、])\s+", "", bare)
    return f"{bare}？" if script_of(bare) == "han" else f"{bare}?"
