"""Analyse a question: its stand-alone form, content words and codes.

Patterns match normalized text (`ingest.normalize.normalize`): NFKC, lower case, simplified.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from copy import copy
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ingest.normalize import Field, Terms, bigrams, normalize, terms, words
from ingest.types import FactKind
from rag.types import Idf, Message, Query, Script

Array = NDArray[np.floating]
SmallTalk = Literal["contents", "thanks", "greeting", "farewell", "remark"]


def read_patterns(file: Path) -> dict[str, re.Pattern[str]]:
    """The patterns of a file by name; its lines say how they are written."""
    texts = tomllib.loads(file.read_text("utf-8"))
    for name, text in texts.items():
        joined = "".join(line.strip() for line in text.splitlines())
        texts[name] = re.sub(r"<<(\w+)>>", lambda other: texts[other[1]], joined)
    return {name: re.compile(text) for name, text in texts.items()}


_PATTERNS = read_patterns(Path(__file__).with_name("patterns.toml"))
_SMALL_TALK: dict[SmallTalk, re.Pattern[str]] = {kind: _PATTERNS[kind] for kind in get_args(SmallTalk)}


def analyze(question: str) -> Query:
    """The analysis of a stand-alone question, before any search."""
    normalized, content = normalize(question), terms(content_words(question))
    keywords = _without_particles(content)
    return Query(question, script_of(question), normalized, content, keywords, codes(question))


_PARTICLES = frozenset("的是有为了在和与及或对由其被把从到中上下里这那个吗呢吧啊")
_HIRAGANA = re.compile("[\u3041-\u309f]+")


def _without_particles(content: Terms) -> Terms:
    """`content` without particles, hiragana and the pairs of characters that contain a particle, unless
    such a pair is a word; the terms as they are if nothing is left."""
    words = tuple(w for w in content.words if not (w in _PARTICLES or _HIRAGANA.fullmatch(w)))
    pairs = tuple(
        p for p in content.bigrams if p in words or not (_PARTICLES.intersection(p) or _HIRAGANA.fullmatch(p))
    )
    return Terms(content.text, words, pairs) if words and pairs else content


# Script
_HAN = re.compile(r"[\u3007\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_LATIN_WORD = re.compile(r"[^\W\d_\u0250-\uffff]+")


def script_of(text: str) -> Script:
    """`han` if there are at least as many Chinese characters as Latin words, also if there are none."""
    return "han" if len(_HAN.findall(text)) >= len(_LATIN_WORD.findall(text)) else "latin"


# Small talk
_TAIL = re.compile("(?:了|啊|呀|啦|哦|哈|嘛|吧|呢|吗|喽|咯|哟|的)+$")


def small_talk(question: str) -> SmallTalk | None:
    """The kind of a message that asks nothing of the documents; None of one that does.

    Each of its clauses must be small talk; the first kind in the order of the file that occurs counts.
    Signs alone (`?`, `……`) are a remark.
    """
    kinds: list[SmallTalk] = ["remark"]
    for part in re.split(r"[^\w\s'+*/^×÷%=.()-]+|\n", normalize(question).replace("’", "'")):
        clause = part.strip("/-_.'= ")
        forms = {clause, _TAIL.sub("", clause)}
        found: list[SmallTalk] = [
            kind for kind in _SMALL_TALK if any(map(_SMALL_TALK[kind].fullmatch, forms))
        ]
        kinds += found[:1]
        if not found and re.search(r"\w", clause):
            return None
    return min(kinds, key=[*_SMALL_TALK].index)


# Query rewriting
_UNIT = re.compile(r"[A-Za-z0-9]+|[^\W_]")
_LONGEST_SUBJECT = 500  # characters of an earlier message that count
_LONG_SUBJECT = 60  # characters of an earlier question that is a story of its own
_SHORT = 6
"""A question with fewer characters (or fewer than 3 Latin words) can't name its own subject."""


def stand_alone(question: str, history: Sequence[Message], *, replace: bool = True) -> str:
    """The question, preceded by the subject of the conversation if it lacks its own.

    The subject is the latest earlier question that is not a follow-up itself. A follow-up that names
    another subject ("and type B?") is asked as that question was, with its own subject instead; without
    `replace`, with both.
    """
    subject = ""
    for text in (turn.text.strip()[:_LONGEST_SUBJECT] for turn in history if turn.role == "user"):
        if not small_talk(text):
            subject = _with_subject(text, subject) or subject or text
    if not replace and subject and is_follow_up(question):
        return f"{subject} {question}"
    own = own_words(question) and not _refers(question)
    if (
        own and len(subject) > _LONG_SUBJECT
    ):  # beside it, a short question's own words would count for nothing
        subject = ""
    return _with_subject(question, subject) or f"{subject} {question}"


def _with_subject(question: str, subject: str) -> str:
    """The stand-alone form of a question that names its own subject; "" if it does not."""
    if not subject or not is_follow_up(question):
        return question
    named = _PATTERNS["ellipsis"].sub("", question.strip())
    if _ARTICLE.fullmatch(named.rstrip(" ？?。")):  # an article is exact: it can only replace another one
        return _ARTICLE.sub(named.rstrip(" ？?。"), subject) if _ARTICLE.search(subject) else named
    elliptical = named != question.strip() and own_words(named)
    return _replaced(named.rstrip(" ？?。"), subject) if elliptical and not _refers(named) else ""


def _refers(text: str) -> bool:
    """Whether a text without its opening words refers to an earlier answer, or asks for more of it."""
    return bool(_PATTERNS["anaphora"].search(text) or _PATTERNS["go_on"].search(text))


def _replaced(named: str, question: str) -> str:
    """`question` with `named` in place of the words that resemble it most, or else of its subject.

    Words resemble each other if they are equal but for figures.
    """
    named = re.sub(r"^(?:the|an?|in|for|of|on)\s+", "", named, flags=re.IGNORECASE)
    old, new = (list(_UNIT.finditer(text)) for text in (question, named))
    kinds = [[re.sub(r"\d+", "0", unit[0].lower()) for unit in units] for units in (old, new)]
    shared = Counter(
        i - j for i, a in enumerate(kinds[0]) for j, b in enumerate(kinds[1])
        if a == b and not _PATTERNS["function"].fullmatch(a)
    )  # fmt: skip
    if shared:
        first = max(shared, key=lambda offset: (shared[offset], offset))
        begin, end = old[max(first, 0)].start(), old[min(first + len(new), len(old)) - 1].end()
    else:
        part = _PATTERNS[f"{script_of(question)}_subject"].search(question)
        begin, end = part.span(1) if part else (0, 0)
    return f"{question[:begin]}{named}{question[end:] if end else f' {question}'}"


def is_follow_up(question: str) -> bool:
    """Whether a question can't be understood without an earlier one."""
    text = question.strip()
    latin = re.findall(r"[A-Za-z0-9]+", text)
    short = len(latin) < 3 if text.isascii() else len(text.rstrip("？?。！")) < _SHORT
    short = short and not _PATTERNS["has_subject"].search(text)
    return short or bool(_PATTERNS["anaphora"].search(text) or _PATTERNS["ellipsis"].search(text))


def own_words(question: str) -> list[str]:
    """The words of a question that are no question words; single characters only if there are no
    others."""
    found = _without_particles(terms(content_words(question))).words
    return [word for word in found if len(word) > 1] or [*found]


def strays(question: str, passages: Iterable[str]) -> bool:
    """Whether no word of a follow-up is in the passages that its stand-alone form found. It does not
    belong to the conversation then. One that refers to an earlier answer always belongs to it."""
    named = _PATTERNS["ellipsis"].sub("", question.strip())
    words, text = own_words(named), normalize("\n".join(passages))
    if not words or _refers(named):
        return False
    return not (all if len(words[0]) == 1 else any)(word in text for word in words)


# Content words
def content_words(text: str) -> str:
    """The normalized text with a space for each interrogative or function word; may be blank."""
    return _PATTERNS["function"].sub(" ", _PATTERNS["interrogative"].sub(" ", normalize(text)))


# Codes
_ARTICLE = re.compile(
    r"第\s*([零〇一二三四五六七八九十百千两\d]+)\s*[条條](?:之([一二三四五六七八九十\d]+))?"
)
_DIGITS = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}


def codes(text: str) -> frozenset[str]:
    """The part numbers and error codes in `text`, without separators, and its articles as `12.1`."""
    normalized = normalize(text)
    parts = {re.sub(r"\W|_", "", match[0]) for match in _PATTERNS["code"].finditer(normalized)}
    articles = (match.groups() for match in _ARTICLE.finditer(normalized))
    return frozenset(parts | {f"{_integer(a)}.{_integer(b or '0')}" for a, b in articles})


def asks_article(query: Query) -> bool:
    """Whether a question asks what an article says, and nothing more of it."""
    return bool(_PATTERNS["article_asked"].search(query.normalized))


def _integer(numeral: str) -> int:
    """The value of `12`, `十二`, `一百零三`."""
    if numeral.isdecimal():
        return int(numeral)
    total = digit = 0
    for char in numeral:
        if unit := {"十": 10, "百": 100, "千": 1000}.get(char):
            total, digit = total + (digit or 1) * unit, 0
        else:
            digit = _DIGITS[char] if char in _DIGITS else int(char)
    return total + digit


# Document facts
def fact_kinds(question: str) -> frozenset[FactKind]:
    """The kinds of document facts that a normalized question asks for."""
    return frozenset(kind for kind in get_args(FactKind) if _PATTERNS[f"asks_{kind}"].search(question))


# Weights of terms
RARITY = 2.0
"""Exponent of a term's rarity among the sentences of its passage."""
LEAD = 0.9
"""What a question word counts in the lead of a unit, against 1 in the unit itself."""


class TermWeights:
    """A question's distinct terms in one field and their weights in the collection, (n,)."""

    def __init__(self, query: Query, field: Field, idf: Idf) -> None:
        self.split = words if field == "words" else bigrams
        self.names = list(dict.fromkeys(query.keywords.of(field)))
        self.idf = np.array(idf(self.names, field), np.float64)

    def beyond(self, topic: str) -> "TermWeights":
        """The same terms without the weight of those in the topic, unless all are."""
        free = copy(self)
        free.idf = self.idf * (1 - self.present([topic])[0])
        return free if free.idf.any() else self

    def present(self, texts: Sequence[str]) -> Array:
        """Which terms each text has, (texts, n)."""
        terms = [set(self.split(text)) for text in texts]
        found = [[name in each for name in self.names] for each in terms]
        return np.array(found, float).reshape(len(texts), len(self.names))

    def named(self, names: Sequence[str]) -> Array:
        """`present`, less for a name of which a question has only some terms."""
        above = self.present(names)
        sizes = np.array([len(set(self.split(name))) for name in names]).clip(1)
        return above * np.sqrt(np.minimum(above.sum(axis=1) / sizes, 1))[:, None]

    def shares(self, texts: Sequence[str], leads: Sequence[str], topics: Sequence[str]) -> Array:
        """The weighted share, 0 to 1, of the question's terms beyond the topic in each unit of a
        document; a term in its lead counts less."""
        free, above = 1 - self._each(topics), self._each(leads)
        total = free @ self.idf
        own, n = self.present(texts), len(texts)
        present = np.maximum(own, LEAD * above)
        holders = np.where(own.any(axis=0), own.sum(axis=0), above.sum(axis=0)).clip(1)
        rarity = np.log((n + 1) / (holders + 0.5)) / np.log((n + 1) / 1.5)
        held = (present * free) @ (self.idf * rarity**RARITY)
        return np.divide(held, total, out=np.zeros(n), where=total > 0)

    def _each(self, texts: Sequence[str]) -> Array:
        """`present` for texts of which many are equal."""
        distinct = list(dict.fromkeys(texts))
        return self.present(distinct)[[distinct.index(text) for text in texts]]


def worth_of(texts: Sequence[str], weights: Sequence[TermWeights]) -> Array:
    """The weight of the question's terms in each text, (texts,)."""
    return np.sum([each.present(texts) @ each.idf for each in weights], axis=0)
