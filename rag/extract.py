"""The sentences that answer a question, out of the best passages, without a language model.

Within a passage most sentences share its topic, and so does the question; what tells them apart is
the rest of the question. So a term counts by its rarity in the collection, again by its rarity
among the passage's own sentences, and not at all if title or headings hold it. The encoder then
decides between the sentences that words leave. See docs/decisions/006-extraction.md.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ingest.chunk import Span, sentences
from ingest.embed import Embedder, Vectors
from ingest.errors import UserError
from ingest.normalize import bigrams, fold, words
from ingest.store import Store
from rag.question import SHORT, asked, content, names
from rag.render import one_line, row_in_words
from rag.retrieve import rarity
from rag.score_norm import Background
from rag.types import Answer, Retrieved, quote

Array = NDArray[np.floating]
Idf = Callable[[Sequence[str]], Sequence[float]]

LEXICAL = 18.0
"""Standard deviations of similarity for the whole question's weight in words."""
RARITY = 2.0
"""Exponent of a term's rarity among the sentences of its passage."""
KIND = 1.0
"""For naming something of the kind asked for; taken off again where nothing is named."""
PRIOR = 1.5
"""For each unit of the passage's fused score."""
EMBEDDED = 16
"""How many sentences the encoder sees at most; more change nothing."""
REACH = 7.0
"""How far below the best by words a sentence may be for the encoder to see it. Of 800 answers from
CMRC 2018 this changes 10, one to the better and two to the worse, for .4 of the tokens."""
LONGEST = 300
"""Characters of a sentence; longer ones (tables, lists without stops) are cut at a clause."""

_UNCLEAR = re.compile(r"第几|第多少|[几哪]届|时期|时代|哪几|几[项种类层个]|由来")
"""Questions whose short answer is an ordinal, an age or a list: no clause is singled out."""

_WORD = re.compile(r"\w")  # a rule or a bullet alone says nothing
_RULE = re.compile(r"\s*\n\|[\s|:-]+\|")  # comes after a table's header, which answers nothing

_CLAUSE = re.compile(r"[，,；;：:、\n|]+[”’」』）)\"']*\s*")


@dataclass(frozen=True, slots=True)
class Source:
    """A passage to extract from. `topic`: title and headings; `score`: fused, larger is better."""

    text: str
    topic: str
    score: float


@dataclass(frozen=True, slots=True)
class Sentence:
    """`sources[source].text[start:end]`, without surrounding space; larger scores are better.

    `focus` is the span (in the same text) of the clause that answers a question for a date, a
    number or a title, where one stands out.
    """

    source: int
    start: int
    end: int
    score: float
    focus: Span | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """A question's distinct terms of one kind and their weights in the collection, (n,)."""

    split: Callable[[str], list[str]]
    names: list[str]
    idf: Array

    @classmethod
    def of(cls, question: str, split: Callable[[str], list[str]], idf: Idf) -> "Terms":
        found = list(dict.fromkeys(split(question)))
        return cls(split, found, np.array(idf(found), np.float64))

    def shares(self, texts: Sequence[str], topic: str) -> Array:
        """How much of the question beyond its topic each of a passage's sentences holds, 0..1."""
        known = set(self.split(topic))
        free = np.array([name not in known for name in self.names], bool)
        total = float(self.idf @ free)
        if total <= 0 or not texts:
            return np.zeros(len(texts))
        held = np.array(
            [[name in there for name in self.names] for there in map(set, map(self.split, texts))],
            float,
        )
        n = len(texts)
        sentences_with = held.sum(axis=0).clip(1)
        rarity = np.log((n + 1) / (sentences_with + 0.5)) / np.log((n + 1) / 1.5)
        return held @ (self.idf * free * rarity**RARITY) / total


def rank(
    question: str,
    sources: Sequence[Source],
    *,
    embedder: Embedder,
    standard: Callable[[Vectors], Array],
    idf_words: Idf,
    idf_bigrams: Idf,
) -> list[Sentence]:
    """The sentences of `sources` worth quoting, best first; empty only where no text holds a word.

    `standard` turns sentence vectors (n, dim) into similarities to the question, (n,), in standard
    deviations (`Background.standard`). `idf_*` weigh folded terms in the collection.
    """
    places = [(i, span) for i, source in enumerate(sources) for span in spans(source.text)]
    if not places:
        return []
    texts = [sources[i].text[start:end] for i, (start, end) in places]
    about = content(question)
    terms = [Terms.of(about, words, idf_words), Terms.of(about, bigrams, idf_bigrams)]
    scores = _worded(question, sources, [i for i, _ in places], texts, terms)
    order = np.argsort(-scores, kind="stable")[:EMBEDDED]
    order = order[scores[order] >= scores[order[0]] - REACH]
    scores[order] += standard(_embed(embedder, [texts[k] for k in order]))
    best = order[np.argsort(-scores[order], kind="stable")]
    return [
        Sentence(i, start, end, float(scores[k]), _focus(question, texts[k], start))
        for k in best
        for i, (start, end) in [places[k]]
    ]


def choose(ranked: Sequence[Sentence], *, most: int = 2, within: float = 4.0) -> list[Sentence]:
    """The sentences to answer with: the best, and others at most `within` below it."""
    return [s for s in ranked[:most] if s.score >= ranked[0].score - within]


def _worded(
    question: str,
    sources: Sequence[Source],
    owners: Sequence[int],
    texts: Sequence[str],
    terms: Sequence[Terms],
) -> NDArray[np.float64]:
    """All of a sentence's score but the encoder's part."""
    folded = fold(question)
    kinds = asked(folded)
    scores = np.zeros(len(texts))
    best = max(source.score for source in sources)
    for i, source in enumerate(sources):
        rows = np.flatnonzero(np.equal(owners, i))
        inside = [text for text, owner in zip(texts, owners, strict=True) if owner == i]
        shares = np.mean([term.shares(inside, source.topic) for term in terms], axis=0)
        scores[rows] = LEXICAL * shares + PRIOR * (source.score - best)
    for k, text in enumerate(map(fold, texts)):
        scores[k] += sum(KIND * (names(kind, text, folded) - 0.5) for kind in kinds)
    return scores


def spans(text: str) -> list[Span]:
    """Sentences without surrounding space, none longer than `LONGEST`, blank ones left out."""
    found = []
    for start, end in sentences(text):
        while end - start > LONGEST:
            cuts = [m.end() for m in _CLAUSE.finditer(text, start, start + LONGEST)]
            cut = cuts[-1] if cuts else start + LONGEST
            found.append((start, cut))
            start = cut
        found.append((start, end))
    trimmed = [_trim(text, *span) for span in found]
    return [
        (start, end)
        for start, end in trimmed
        if _WORD.search(text, start, end) and not _RULE.match(text, end)
    ]


def _trim(text: str, start: int, end: int) -> Span:
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    return start, max(start, end - len(piece) + len(piece.rstrip()))


def _embed(embedder: Embedder, texts: Sequence[str]) -> Vectors:
    """One vector a text, of its first part that fits the encoder's window."""
    fitting = []
    for text, size in zip(texts, embedder.count_many(texts), strict=True):
        while size > embedder.max_tokens:
            text = text[: max(1, len(text) * embedder.max_tokens // (size + 1))]
            size = embedder.count(text)
        fitting.append(text)
    return embedder.embed_passages(fitting)


def _focus(question: str, sentence: str, offset: int) -> Span | None:
    """The one clause of `sentence` that names what the question asks for, if it is only one."""
    folded = fold(question)
    kinds = frozenset() if _UNCLEAR.search(folded) else asked(folded) & SHORT
    bounds = [0, *(m.end() for m in _CLAUSE.finditer(sentence)), len(sentence)]
    clauses = [(a, b) for a, b in pairwise(bounds) if sentence[a:b].strip()]
    for kind in sorted(kinds):
        holding = [(a, b) for a, b in clauses if names(kind, fold(sentence[a:b]), folded)]
        if len(holding) == 1 and len(clauses) > 1:
            start, end = _trim(sentence, *holding[0])
            end = start + len(sentence[start:end].rstrip("，,；;：:、。.|"))
            return offset + start, offset + end
    return None


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How much of the passages an answer shows."""

    passages: int = 3
    """Sentences are taken from so many of the best passages."""
    sentences: int = 2
    """An answer has at most so many sentences."""

    def __post_init__(self) -> None:
        if self.passages < 1 or self.sentences < 1:
            raise UserError(
                f"[read] passages is {self.passages} and sentences {self.sentences}; need 1 or more",
                zh=f"[read] passages 为 {self.passages}，sentences 为 {self.sentences}；均须不小于 1",
            )


def read(
    found: Retrieved, store: Store, embedder: Embedder, background: Background, options: ReadOptions
) -> Answer:
    """The best sentences as text with citations `[1]`, `[2]`.

    A question for a date, a number or a title is answered by the clause that names one, where one
    stands out; its citation quotes the whole sentence.
    """
    question, centred = found.question, background.centred(found.question, found.vector)
    passages = found.passages[: options.passages]
    ranked = rank(
        question,
        [
            Source(passage.text, f"{hit.chunk.title} {passage.label}", hit.score)
            for hit, passage in zip(found.hits, passages, strict=False)
        ],
        embedder=embedder,
        standard=lambda vectors: background.standard(question, centred, vectors @ centred),
        idf_words=rarity(store, "words"),
        idf_bigrams=rarity(store, "bigrams"),
    )
    citations, lines = [], []
    for number, sentence in enumerate(choose(ranked, most=options.sentences), start=1):
        passage, hit = passages[sentence.source], found.hits[sentence.source]
        citations.append(quote(number, passage, sentence.start, sentence.end, store, hit.chunk))
        whole = sentence.start, sentence.end
        start, end = (sentence.focus or whole) if number == 1 else whole
        above, context = passage.text[: sentence.start], citations[-1].chunk.context
        shown = one_line(row_in_words(passage.text[start:end], above, context))
        lines.append(f"{shown} [{number}]")
    text = "\n".join(lines)
    return Answer(question, text, tuple(citations), found.hits, found.confidence, refused=False)
