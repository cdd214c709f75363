"""Whether a passage supports the sentences of an answer, by words, numbers, negations and bounds.

No model is involved. A clause is supported by a few neighbouring sentences of one passage if they
contain half of what it adds to the question (terms weighted by their rarity in the collection) and
each of its numbers, and if the nearest clause does not contradict it. See docs/decisions/011-prompt.md.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from ingest.chunk import Span, short_sentences
from ingest.normalize import Field, bigrams, normalize, words
from rag.question import content_words, script_of
from rag.types import Idf

Term = tuple[Field, str]
TermWeights = dict[Term, float]

ADDED = 0.5
"""The share of what a clause adds to the question that its evidence must contain."""
ALIKE = 0.6
"""A clause of a passage with at least this share of a clause's terms is about the same thing."""
WINDOW = 3
"""Up to this many neighbouring sentences may support a clause together."""
NARROW = 0.15
"""The coverage that each further sentence of a quote must add."""

_CLAUSE = re.compile(r"[，；;：。！？!?\n|]+|,(?!\d)|:(?!\d)|\.(?=\s|$)")
_ABOUT = re.compile(  # words about the answer, not about its subject
    r"根据|依据|按照|参考|资料|材料|上述|以上|以下|如下|可知|可以看出|提到|提及|指出|显示|说明|所述|因此|所以|综上|总之"
    r"|好的|是的|[您你]好|此外|另外|同时|其中|可以|能够|应当|应该|必须|需要|[的了是在和与及为也都就而或这那该]"
    r"|\b(?:according|passages?|documents?|provided|context|states?|stated|says|mentions?|mentioned"
    r"|therefore|thus|also|additionally|however|because|since)\b"
)


@dataclass(frozen=True, slots=True)
class Rarity:
    """The weights of terms, by their idf in the collection."""

    idf: Idf

    def weigh(self, text: str) -> tuple[TermWeights, TermWeights]:
        """The distinct content words and bigrams of `text` and their weights."""
        content = _ABOUT.sub(" ", plain(content_words(text)))
        return self._weights(words(content), "words"), self._weights(bigrams(content), "bigrams")

    def _weights(self, terms: Iterable[str], field: Field) -> TermWeights:
        names = list(dict.fromkeys(terms))
        weights = self.idf(names, field)
        return {(field, name): weight for name, weight in zip(names, weights, strict=True)}


def terms(text: str) -> frozenset[Term]:
    """All terms of `text`, for comparison with those of `Rarity.weigh`."""
    text = plain(normalize(text))
    pairs: set[Term] = {("bigrams", pair) for pair in bigrams(text)}
    return frozenset(pairs.union(("words", word) for word in words(text)))


def coverage(weights: tuple[TermWeights, TermWeights], terms: frozenset[Term]) -> float:
    """The share of the weight that `terms` cover, 0 to 1, the mean over words and bigrams.

    1 if there is nothing to cover.
    """
    shares = [
        sum(weight for term, weight in part.items() if term in terms) / total
        for part in weights
        if (total := sum(part.values())) > 0
    ]
    return sum(shares) / len(shares) if shares else 1.0


class Evidence:
    """A passage's sentences; `topic` is the title, headings and table header above them."""

    def __init__(self, text: str, topic: str) -> None:
        self.text = text
        self.topic = topic
        self.script = script_of(text)

    @cached_property
    def windows(self) -> "list[Window]":
        """Every run of up to `WINDOW` neighbouring sentences."""
        sentences = short_sentences(self.text)
        topic_terms, topic_numbers = terms(self.topic), numbers(normalize(self.topic))
        runs = (
            sentences[start : start + size]
            for size in range(1, WINDOW + 1)
            for start in range(len(sentences) - size + 1)
        )
        return [Window(self.text, run, topic_terms, topic_numbers) for run in runs]

    @cached_property
    def clauses(self) -> list[tuple[str, frozenset[Term]]]:
        """The normalized clauses and the terms of each."""
        return [(normalize(clause), terms(clause)) for clause in clauses(self.text)]

    def quote(self, claim: str, rarity: Rarity) -> Span:
        """The span that supports a claim best: a sentence, or a few if each adds to it."""
        weights, values = rarity.weigh(claim), numbers(normalize(claim))

        def score(window: "Window") -> float:
            share = coverage(weights, window.terms)
            if values:
                share += len(values & window.numbers) / len(values)
            return share - NARROW * window.size

        return max(self.windows, key=score).span if self.windows else (0, len(self.text))


class Window:
    """Neighbouring sentences of a passage, with their terms and numbers and those of the topic."""

    def __init__(
        self, text: str, sentences: Sequence[Span], terms: frozenset[Term], numbers: frozenset[str]
    ) -> None:
        self.span, self.size = (sentences[0][0], sentences[-1][1]), len(sentences)
        self.text = text[slice(*self.span)]
        self._topic_terms, self._topic_numbers = terms, numbers

    @cached_property
    def terms(self) -> frozenset[Term]:
        return terms(self.text) | self._topic_terms

    @cached_property
    def numbers(self) -> frozenset[str]:
        return numbers(normalize(self.text)) | self._topic_numbers


@dataclass(frozen=True)
class Faithfulness:
    """Checks sentences of the answer to `question` against the passages."""

    question: str
    evidence: Sequence[Evidence]
    rarity: Rarity

    @cached_property
    def _question_terms(self) -> frozenset[Term]:
        return terms(self.question)

    def supports(self, sentence: str, cited: Sequence[int] = ()) -> bool:
        """Whether each clause of `sentence` is supported, or makes no claim that can be checked.

        Passages in another script share few words with it, so matching numbers suffice if the
        sentence cites them (`cited` counts from 1), or if all passages are in another script.
        """
        script = script_of(sentence)
        alone = all(evidence.script != script for evidence in self.evidence)
        foreign = [
            evidence
            for number, evidence in enumerate(self.evidence, start=1)
            if evidence.script != script and (number in cited or alone)
        ]
        return all(self._clause(clause, foreign) for clause in clauses(sentence))

    def _clause(self, clause: str, foreign: Sequence[Evidence]) -> bool:
        weights, normalized = self.rarity.weigh(clause), normalize(clause)
        values = numbers(normalized)
        if not values and coverage(weights, frozenset()):  # nothing to check
            return True
        if any(values <= window.numbers for evidence in foreign for window in evidence.windows):
            return True
        words, pairs = ({t: w for t, w in part.items() if t not in self._question_terms} for part in weights)
        supported = any(
            values <= window.numbers and coverage((words, pairs), window.terms) >= ADDED
            for evidence in self.evidence
            for window in evidence.windows
        )
        return supported and not self._contradicted(normalized, weights)

    def _contradicted(self, normalized: str, weights: tuple[TermWeights, TermWeights]) -> bool:
        """Whether the most similar clause of the passages says the opposite."""
        agreeing = contrary = 0.0
        for text, terms in (clause for each in self.evidence for clause in each.clauses):
            share = coverage(weights, terms)
            if negated(normalized) != negated(text) or contradict(bounds(normalized), bounds(text)):
                contrary = max(contrary, share)
            else:
                agreeing = max(agreeing, share)
        return contrary > agreeing and contrary >= ALIKE


def clauses(sentence: str) -> list[str]:
    """The parts between commas, colons and full stops, without blank ones."""
    cuts = [0, *(match.end() for match in _CLAUSE.finditer(sentence)), len(sentence)]
    parts = (sentence[start:end] for start, end in pairwise(cuts))
    return [part for part in parts if part.strip()]


# Numbers, negation and bounds, which must be right to the letter. All read normalized text.

_DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "○": 0}
_UNITS = {"十": 10, "百": 100, "千": 1000}
_MYRIADS = {"万": 10**4, "亿": 10**8}
_TO_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)
_TENS = "thirty forty fifty sixty seventy eighty ninety"
_ENGLISH = {word: value for value, word in enumerate(_TO_TWENTY.split())}
_ENGLISH |= {word: value for value, word in zip(range(30, 100, 10), _TENS.split(), strict=True)}

_HAN = "零〇○一二两三四五六七八九十百千万亿"
_NUMBER = re.compile(
    rf"(?P<arabic>\d+(?:,\d{{3}})*(?:\.\d+)?)\s*(?P<scale>[百千万亿]+)?"
    rf"|百分之(?P<percent>[{_HAN}]+)|(?P<han>[{_HAN}]+)(?:点(?P<rest>[{_HAN}]+))?"
    r"|\b(?P<english>[a-z]+(?:-[a-z]+)?)\b"
)
_NO_NUMBER = re.compile(
    rf"(?<![\d{_HAN}])(?:一(?:般|些|样|定|致|起|直|旦|边|切|律|方面|共|并|同|次性|经|贯|系列|种"
    r"|个(?!月|[小工]|星|学|自然|年))|(?<=[同另任某每这那哪唯统])一|万一|十分(?!之|钟)|千万(?!元|人|[吨名个])|百姓|万物)"
    rf"(?![\d{_HAN}])"
)
"""Words with a numeral that are not a number."""

_BOUND = re.compile(
    r"(?P<le>(?:不|未)(?:得|能|可|应|会|准|许|允许)?(?:超过|多于|高于|大于|晚于|长于)|最[多长高大晚迟]|至多|上限|以内|以下"
    r"|\b(?:no (?:more|later|longer|higher|greater) than|not (?:to )?exceed|at most|up to|within|maximum)\b)"
    r"|(?P<ge>(?:不|未)(?:得|能|可|应|会)?(?:少于|低于|小于|早于|短于)|不足|至少|最[少低短小早]|下限|以上"
    r"|\b(?:no (?:less|fewer|earlier) than|at least|minimum)\b)"
    r"|(?P<gt>超过|多于|高于|大于|\b(?:more|longer|higher|greater|later) than|exceeds?\b)"
    r"|(?P<lt>少于|低于|小于|\b(?:less|fewer|lower|earlier) than\b|\bbelow\b)"
)
_OPPOSITE = {("le", "gt"), ("gt", "le"), ("ge", "lt"), ("lt", "ge"), ("le", "ge"), ("ge", "le")}

_NEGATION = re.compile(
    r"不(?!仅|但|过|同|断|久|管|论|错|光|只|妨|惜|料|禁|动产|锈|良|可抗力)|(?<!沉|淹|埋|出|吞)没(?!收|落)|未(?!来|婚|成年)"
    r"|无(?=权|须|需|法(?!律)|效|罪|责|关|意|力|可|从|人)|毫无|(?<=[并绝决而])非|勿|莫(?!斯|名)|禁止|严禁|免于"
    r"|\b(?:not?|never|none|neither|nor|without|cannot)\b|n't\b|n’t\b"
)


def numbers(text: str) -> frozenset[str]:
    """The values in a normalized text: `六个月`, `6 months` and `six` all give 6."""
    values = set()
    for match in _NUMBER.finditer(_NO_NUMBER.sub("·", text)):
        if match["arabic"]:
            value = float(match["arabic"].replace(",", ""))
            for unit in match["scale"] or "":
                value *= _UNITS.get(unit, _MYRIADS.get(unit, 1))
            values.add(_canonical(value))
        elif match["english"]:
            parts = [_ENGLISH.get(part) for part in match["english"].split("-")]
            if None not in parts and match["english"] != "one":  # "no one", "one of them"
                values.add(_canonical(sum(part or 0 for part in parts)))
        elif match["percent"]:
            values.add(_canonical(_chinese(match["percent"])))
        else:
            rest = "".join(str(_DIGITS.get(c, "")) for c in match["rest"] or "")
            values.add(_canonical(float(f"{_chinese(match['han'])}.{rest or 0}")))
    return frozenset(values)


def plain(text: str) -> str:
    """A normalized text with a space for each number and bound, which are compared separately."""
    return _NUMBER.sub(lambda match: match[0] if match["english"] else " ", _BOUND.sub(" ", text))


def negated(text: str) -> bool:
    """Whether a normalized clause is negated; bounds (`不得超过`) and double negations do not count."""
    return len(_NEGATION.findall(_BOUND.sub("·", text))) % 2 == 1


def bounds(text: str) -> frozenset[str]:
    """The directions in which a normalized clause bounds a quantity: le, ge, gt, lt."""
    return frozenset(kind for match in _BOUND.finditer(text) if (kind := match.lastgroup))


def contradict(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether two sets of `bounds` point in opposite directions and share none."""
    return not one & other and any((a, b) in _OPPOSITE for a in one for b in other)


def _chinese(numeral: str) -> int:
    """`一千八百六十七` -> 1867, `二〇二三` -> 2023, `三万五` -> 30005 (spoken forms are not read)."""
    if not set(numeral) & (_UNITS.keys() | _MYRIADS.keys()):
        return int("".join(str(_DIGITS[c]) for c in numeral))
    total = section = digit = 0
    for c in numeral:
        if c in _DIGITS:
            digit = _DIGITS[c]
            continue
        if c in _UNITS:
            section += (digit or 1) * _UNITS[c]
        elif c == "万":
            total += (section + digit or 1) * 10**4
        else:
            total = (total + section + digit or 1) * 10**8
        section, digit = (section, 0) if c in _UNITS else (0, 0)
    return total + section + digit


def _canonical(value: float) -> str:
    return f"{value:.10g}"
