"""Text as the word index sees it: one spelling for what readers take for the same word.

Questions and documents go through the same functions, so normalizing can only join, never lose.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

Field = Literal["words", "bigrams"]
"""The two ways of cutting a text, each of which is a field of the word index."""
FIELDS: tuple[Field, ...] = ("words", "bigrams")

HAN = r"\u3007\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
KANA_HANGUL = r"\u3040-\u30ff\u31f0-\u31ff\u1100-\u11ff\uac00-\ud7af"
RUN = re.compile(rf"(?P<han>[{HAN}]+)|(?P<other>[{KANA_HANGUL}]+)|[^\W_{HAN}{KANA_HANGUL}]+")
LONGEST = 64  # characters of a word; longer ones are encoded data, no one asks for them


@dataclass(frozen=True, slots=True)
class Terms:
    """A text and its terms in order, cut in both ways; a term may occur several times."""

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
    return unicodedata.normalize("NFKC", text).lower().translate(_simplified())


@cache
def _simplified() -> dict[int, str]:
    """Traditional -> simplified characters."""
    lines = Path(__file__).with_name("simplified.tsv").read_text("utf-8").splitlines()
    return {ord(line[0]): line[2] for line in lines}


def words(text: str) -> list[str]:
    """Words in order: Chinese by jieba's search mode (long words and their parts), others whole."""
    found: list[str] = []
    for run in RUN.finditer(normalize(text)):
        if run["han"]:
            from rjieba import cut_for_search  # loads its dictionary: 0.1 s and more

            found.extend(cut_for_search(run[0]))
        elif run["other"]:
            found.extend(pairs(run[0]))
        else:
            found.append(run[0][:LONGEST])
    return found


def bigrams(text: str) -> list[str]:
    """Pairs of neighbouring characters in scripts without spaces, other words whole."""
    found: list[str] = []
    for run in RUN.finditer(normalize(text)):
        if run["han"] or run["other"]:
            found.extend(pairs(run[0]))
        else:
            found.append(run[0][:LONGEST])
    return found


def pairs(run: str) -> Iterator[str]:
    """Each two neighbours of `run`; a single character stands for itself."""
    if len(run) == 1:
        return iter((run,))
    return map("".join, pairwise(run))
