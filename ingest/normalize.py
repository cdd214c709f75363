"""Normalizes text for the word index: one spelling for all that readers take for the same word.

Questions and documents go through the same functions, so normalizing only unites spellings.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

Field = Literal["words", "bigrams"]
"""The two ways of cutting a text into terms; each is a field of the word index."""
FIELDS: tuple[Field, ...] = ("words", "bigrams")

HAN = r"\u3007\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
KANA_HANGUL = r"\u3040-\u30ff\u31f0-\u31ff\u1100-\u11ff\uac00-\ud7af"
RUN = re.compile(rf"(?P<han>[{HAN}]+)|(?P<other>[{KANA_HANGUL}]+)|[^\W_{HAN}{KANA_HANGUL}]+")
WRAP_IN_CHINESE = re.compile(r"(?<=[\u3000-\uffef])\s*\n\s*(?=[\u3000-\uffef])")
LONGEST = 64  # characters of a word; longer ones are encoded data, which nobody searches for


@dataclass(frozen=True, slots=True)
class Terms:
    """A text and its terms in order, both words and bigrams; a term may occur several times."""

    text: str
    words: tuple[str, ...]
    bigrams: tuple[str, ...]

    def of(self, field: Field) -> tuple[str, ...]:
        return self.words if field == "words" else self.bigrams


def terms(text: str) -> Terms:
    return Terms(text, tuple(words(text)), tuple(bigrams(text)))


def normalize(text: str) -> str:
    """`text` in NFKC, lower case, with simplified characters. Its length may differ."""
    if text.isascii():
        return text.lower()
    return simplify(unicodedata.normalize("NFKC", text).lower())


def simplify(text: str) -> str:
    """`text` with simplified characters, each in its place."""
    return text.translate(_simplified())


@cache
def _simplified() -> dict[int, str]:
    """Traditional -> simplified characters."""
    lines = Path(__file__).with_name("simplified.tsv").read_text("utf-8").splitlines()
    return {ord(line[0]): line[2] for line in lines}


def readable(text: str) -> str:
    """Text for UTF-8: bytes of file names that are not UTF-8 (lone surrogates) become `\\xba`."""
    return re.sub("[\ud800-\udfff]", lambda lone: rf"\x{ord(lone[0]) & 0xFF:02x}", text)


def one_line(text: str) -> str:
    """`text` on one line; each run of white space becomes one space, none between Chinese lines."""
    return " ".join(WRAP_IN_CHINESE.sub("", text).split())


def words(text: str) -> list[str]:
    """Words in order: Chinese by jieba's search mode (long words and their parts), others whole."""

    def cut(run: str) -> Iterable[str]:
        from rjieba import cut_for_search  # loads its dictionary: 0.1 s and more

        return cut_for_search(run)

    return _terms(text, cut)


def bigrams(text: str) -> list[str]:
    """Pairs of neighbouring characters in scripts without spaces, other words whole."""
    return _terms(text, pairs)


def _terms(text: str, han: Callable[[str], Iterable[str]]) -> list[str]:
    """The terms of a text, of whose runs of Chinese characters `han` gives the terms."""
    found: list[str] = []
    for run in RUN.finditer(normalize(text)):
        if run["han"] or run["other"]:
            found.extend(han(run[0]) if run["han"] else pairs(run[0]))
        else:
            found.append(run[0][:LONGEST])
    return found


def pairs(run: str) -> Iterator[str]:
    """All pairs of neighbouring characters in `run`, or its only character."""
    return map("".join, pairwise(run)) if len(run) > 1 else iter((run,))
