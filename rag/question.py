"""Analyse a question: its stand-alone form, content words and codes.

Patterns match normalized text (`ingest.normalize.normalize`): NFKC, lower case, simplified.
"""

import re
from collections.abc import Sequence

from ingest.normalize import Terms, normalize, terms
from ingest.types import FactKind
from rag.types import Message, Query, Script


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


# Query rewriting
# Words that refer to an earlier turn, and elliptical questions.
_ANAPHORA = re.compile(
    r"(?<!其)[它他她牠祂]|[这這](?![样樣])|(?<!应)(?<!應)[该該](?!死)|那(?!么|麼|怕)|此(?!外)"
    r"|其(?![他它中余餘实實])|前者|后者|後者|上述|刚才|剛才"
    r"|\b(?:its?|they|them|their|he|she|his|her|former|latter)\b"
    r"|^(?:is |are |was |were |does |do |did |can |and )?(?:that|this|those|these)\b",
    re.IGNORECASE,
)
_ELLIPSIS = re.compile(
    r"^(?:那么?|那麼|还有|還有|另外|然后|and\b|what about|how about|what if)|呢[？?]?\s*$", re.IGNORECASE
)
_HAS_SUBJECT = re.compile(
    r"什么是|什麼是|何为|何謂|何谓|是什么|是什麼|的定义|^what (?:is|are) \w", re.IGNORECASE
)
_SHORT = 6
"""A question with fewer characters (or fewer than 3 Latin words) can't name its own subject."""


def stand_alone(question: str, history: Sequence[Message]) -> str:
    """The question, preceded by the subject of the conversation if it lacks its own.

    The subject is the latest earlier question that is not a follow-up itself.
    """
    earlier = [turn.text.strip() for turn in history if turn.role == "user"]
    if not earlier or not is_follow_up(question):
        return question
    subject = next((text for text in reversed(earlier) if not is_follow_up(text)), earlier[0])
    return f"{subject} {question}"


def is_follow_up(question: str) -> bool:
    """Whether a question can't be understood without an earlier one."""
    text = question.strip()
    latin = re.findall(r"[A-Za-z0-9]+", text)
    short = len(latin) < 3 if text.isascii() else len(text.rstrip("？?。！")) < _SHORT
    short = short and not _HAS_SUBJECT.search(text)
    return short or bool(_ANAPHORA.search(text) or _ELLIPSIS.search(text))


# Content words
_INTERROGATIVE = re.compile(
    r"请问|为什么|为何|什么时[候间]|什么|甚么|哪一?[些个位年种]?|谁|多少|怎么样?|怎样|如何|第几|几(?![乎何率])"
    r"|是否|何时|何处|[吗呢](?=\W|$)"
)
_FUNCTION = re.compile(
    r"\b(?:an?|the|of|in|on|at|to|for|from|by|with|as|and|or|but|not|no|is|are|was|were|be|been"
    r"|being|do|does|did|has|have|had|can|could|will|would|shall|should|may|might|must|that|this"
    r"|these|those|its?|he|his|him|she|hers?|they|their|them|we|our|you|your|i|my|me|what|which"
    r"|whom?|whose|when|where|why|how|many|much|there|than|then|if|so|such|into|about|after"
    r"|before|during|between|over|under|also)\b"
)


def content_words(text: str) -> str:
    """The normalized text with a space for each interrogative or function word; may be blank."""
    return _FUNCTION.sub(" ", _INTERROGATIVE.sub(" ", normalize(text)))


# Codes
_CODE = re.compile(
    r"(?<![a-z\d])(?:[a-z]{1,6}[-_/]?\d[a-z\d]*(?:[-_/.][a-z\d]+)*|\d+[a-z]+\d[a-z\d]*)(?![a-z\d])"
)
_ARTICLE = re.compile(r"第\s*([零〇一二三四五六七八九十百千两\d]+)\s*条(?:之([一二三四五六七八九十\d]+))?")
_DIGITS = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}


def codes(text: str) -> frozenset[str]:
    """The part numbers and error codes in `text`, without separators, and its articles as `12.1`."""
    normalized = normalize(text)
    parts = {re.sub(r"\W|_", "", match[0]) for match in _CODE.finditer(normalized)}
    articles = (match.groups() for match in _ARTICLE.finditer(normalized))
    return frozenset(parts | {f"{_integer(a)}.{_integer(b or '0')}" for a, b in articles})


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
_ASKED: dict[FactKind, re.Pattern[str]] = {
    "number": re.compile(
        r"(?:编号|文号|代码|标准号|番号|コード)[^，。]{0,4}(?:什么|多少|几|何|哪|[?？]|$)|第几号|几号令"
        r"|\b(?:docket|document|reference|report) (?:number|no\b)"
    ),
    "date": re.compile(
        r"(?:哪.?[天日年月]|何时|什么时[候间]|几[月号]|日期).*(?:公布|发布|印发|颁布|签发|编制)"
        r"|(?:公布|发布|印发|颁布|签发|成文|编制|出版|文件|落款).{0,6}(?:日期|哪.?[天日年月]|何时|什么时[候间]|几)|\b(?:issued|published|dated)\b"
    ),
    "body": re.compile(
        r"(?:谁|哪个|哪家|什么(?:单位|机构|部门|机关)).{0,4}(?:发布|公布|印发|制定|颁布|招标|编制)"
        r"|(?:招标人|采购人|(?:发布|发文|制定|印发|编制|采购|招标)(?:单位|机构|机关|部门|方))(?:是|为|叫|[?？])|\bwh(?:o|ich agency) (?:issued|published)\b"
    ),
    "author": re.compile(r"作者|谁写|谁撰|\bauthors?\b|\bwho wrote\b"),
}


def fact_kinds(question: str) -> frozenset[FactKind]:
    """The kinds of document facts that a normalized question asks for."""
    return frozenset(kind for kind, pattern in _ASKED.items() if pattern.search(question))
