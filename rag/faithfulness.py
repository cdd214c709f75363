"""Whether a passage supports what an answer says, by its words, numbers, negations and bounds.

No model judges. A clause is supported by a few neighbouring sentences of one passage that hold half
of what it adds to the question (terms weighed by their rarity in the collection) and each of its
numbers, and whose nearest clause does not say the contrary. See docs/decisions/011-prompt.md.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from ingest.chunk import Span, short_sentences
from ingest.normalize import Field, bigrams, normalize, words
from rag.claims import bounds, contradict, negated, numbers, plain
from rag.question import content_words, script_of
from rag.retrieve import Idf

Term = tuple[Field, str]
Weights = dict[Term, float]

ADDED = 0.5
"""The share of what a clause adds to the question that its evidence must hold."""
ALIKE = 0.6
"""The share of a clause's terms from which a clause of the passage is about the same."""
WINDOW = 3
"""So many neighbouring sentences may support a clause together."""
NARROW = 0.15
"""What each further sentence of a quote must bring in coverage."""

_CLAUSE = re.compile(r"[，；;：。！？!?\n|]+|,(?!\d)|:(?!\d)|\.(?=\s|$)")
_ABOUT = re.compile(  # of the answer, not of its matter
    r"根据|依据|按照|参考|资料|材料|上述|以上|以下|如下|可知|可以看出|提到|提及|指出|显示|说明|所述|因此|所以|综上|总之"
    r"|好的|是的|[您你]好|此外|另外|同时|其中|可以|能够|应当|应该|必须|需要|[的了是在和与及为也都就而或这那该]"
    r"|\b(?:according|passages?|documents?|provided|context|states?|stated|says|mentions?|mentioned"
    r"|therefore|thus|also|additionally|however|because|since)\b"
)


@dataclass(frozen=True, slots=True)
class Rarity:
    """The weights of terms, by their idf in the collection."""

    idf: Idf

    def weigh(self, text: str) -> tuple[Weights, Weights]:
        """The distinct words and bigrams of `text` that say something, and their weights."""
        about = _ABOUT.sub(" ", plain(content_words(text)))
        return self._of(words(about), "words"), self._of(bigrams(about), "bigrams")

    def _of(self, found: Iterable[str], field: Field) -> Weights:
        names = list(dict.fromkeys(found))
        weights = self.idf(names, field)
        return {(field, name): weight for name, weight in zip(names, weights, strict=True)}


def terms(text: str) -> frozenset[Term]:
    """All that `Rarity.weigh` could weigh."""
    text = plain(normalize(text))
    held: set[Term] = {("words", word) for word in words(text)}
    held |= {("bigrams", pair) for pair in bigrams(text)}
    return frozenset(held)


def coverage(weights: tuple[Weights, Weights], held: frozenset[Term]) -> float:
    """The share of the weight that `held` covers, 0..1, the mean over words and bigrams.

    1 if there is nothing to cover.
    """
    shares = [
        sum(weight for term, weight in part.items() if term in held) / total
        for part in weights
        if (total := sum(part.values())) > 0
    ]
    return sum(shares) / len(shares) if shares else 1.0


class Evidence:
    """A passage's sentences; `topic` is what stands above them: title, headings, table header."""

    def __init__(self, text: str, topic: str) -> None:
        self.text = text
        self.topic = topic
        self.script = script_of(text)

    @cached_property
    def windows(self) -> "list[Window]":
        """Every run of up to `WINDOW` neighbouring sentences."""
        sentences = short_sentences(self.text)
        topic_terms, topic_numbers = terms(self.topic), numbers(normalize(self.topic))
        return [
            Window(self.text, span, size, topic_terms, topic_numbers)
            for size in range(1, WINDOW + 1)
            for span in (
                (run[0][0], run[-1][1])
                for run in zip(*(sentences[k:] for k in range(size)), strict=False)
            )
        ]

    @cached_property
    def clauses(self) -> list[tuple[str, frozenset[Term]]]:
        """The normalized clauses and the terms of each."""
        return [(normalize(clause), terms(clause)) for clause in clauses(self.text)]

    def quote(self, claim: str, rarity: Rarity) -> Span:
        """The span that supports a claim best: a sentence, or a few where each adds to it."""
        weights, wanted = rarity.weigh(claim), numbers(normalize(claim))

        def score(window: "Window") -> float:
            share = coverage(weights, window.terms)
            if wanted:
                share += len(wanted & window.numbers) / len(wanted)
            return share - NARROW * window.size

        return max(self.windows, key=score).span if self.windows else (0, len(self.text))


class Window:
    """Neighbouring sentences of a passage and what they hold."""

    def __init__(
        self,
        text: str,
        span: Span,
        size: int,
        topic_terms: frozenset[Term],
        topic_numbers: frozenset[str],
    ) -> None:
        self.span, self.size = span, size
        self.text = text[span[0] : span[1]]
        self._topic_terms, self._topic_numbers = topic_terms, topic_numbers

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
        """Whether each clause of it is supported; one that says nothing to check is.

        Passages in another script share few words with it, so their numbers are enough if the
        sentence cites them (`cited` counts from 1), or if all are in another script.
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
        wanted = numbers(normalized)
        if not wanted and coverage(weights, frozenset()):  # nothing to check
            return True
        if any(wanted <= window.numbers for evidence in foreign for window in evidence.windows):
            return True
        words, pairs = (
            {t: w for t, w in part.items() if t not in self._question_terms} for part in weights
        )
        held = any(
            wanted <= window.numbers and coverage((words, pairs), window.terms) >= ADDED
            for evidence in self.evidence
            for window in evidence.windows
        )
        return held and not self._denied(normalized, weights)

    def _denied(self, normalized: str, weights: tuple[Weights, Weights]) -> bool:
        """Whether the passages' clause nearest to this one says the contrary."""
        agreeing = contrary = 0.0
        for text, held in (clause for each in self.evidence for clause in each.clauses):
            share = coverage(weights, held)
            if negated(normalized) != negated(text) or contradict(bounds(normalized), bounds(text)):
                contrary = max(contrary, share)
            else:
                agreeing = max(agreeing, share)
        return contrary > agreeing and contrary >= ALIKE


def clauses(sentence: str) -> list[str]:
    """The parts between commas, colons and stops; blank ones left out."""
    cuts = [0, *(match.end() for match in _CLAUSE.finditer(sentence)), len(sentence)]
    parts = (sentence[start:end] for start, end in pairwise(cuts))
    return [part for part in parts if part.strip()]
