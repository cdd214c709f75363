"""The sentences that answer a question, out of the best passages, without a language model.

The topic words of a question fit every sentence of a passage; its other words show which sentence
answers. So a term is weighted by its rarity in the collection and by its rarity among the
passage's own sentences, and has no weight if the title or headings contain it. The encoder then
decides between the best sentences by words. See docs/decisions/006-extraction.md.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ingest.chunk import CLAUSE, Span, short_sentences, trim
from ingest.embed import Embedder, Vectors
from ingest.errors import UserError
from ingest.normalize import FIELDS, Field, bigrams, normalize, one_line, words
from ingest.store import Store
from rag.question import SHORT, mentions
from rag.retrieve import citation, rarity
from rag.score_norm import ScoreNorm
from rag.types import Answer, Idf, Query, Retrieved

Array = NDArray[np.floating]

LEXICAL = 18.0
"""Standard deviations of similarity that a sentence gains by containing all question words."""
RARITY = 2.0
"""Exponent of a term's rarity among the sentences of its passage."""
TYPE = 1.0
"""What a sentence gains by mentioning something of an expected answer type."""
PRIOR = 1.5
"""The weight of the passage's fused score."""
EMBEDDED = 16
"""The encoder sees at most this many sentences; more change nothing."""
REACH = 7.0
"""The encoder sees the sentences that score at most this much below the best by words. Of 800
answers from CMRC 2018 this changes 10 (one better, two worse), with .4 of the tokens."""
_HEADER = re.compile(r"^(\|.*\|)[ \t]*\n\|[\s|:-]+\|[ \t]*$", re.MULTILINE)
_UNCLEAR = re.compile(r"第几|第多少|[几哪]届|时期|时代|哪几|几[项种类层个]|由来")
"""Questions whose short answer is an ordinal, an age or a list; the answer is a whole sentence."""


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """How much of the passages an answer quotes."""

    passages: int = 3
    """Sentences come from at most this many of the best passages."""
    sentences: int = 2
    """An answer has at most this many sentences."""

    def __post_init__(self) -> None:
        n, m = self.passages, self.sentences
        if n < 1 or m < 1:
            raise UserError("[read] passages is {n} and sentences {m}; need 1 or more", n=n, m=m)


@dataclass(frozen=True, slots=True)
class ScoredPassage:
    """A passage with its `topic` (title and headings) and fused `score`; larger is better."""

    text: str
    topic: str
    score: float


@dataclass(frozen=True, slots=True)
class Sentence:
    """`passages[passage].text[start:end]`, without surrounding space; larger scores are better.

    `focus` is the span (in the same text) of the only clause that answers a question for a date, a
    number or a title, if there is one.
    """

    passage: int
    start: int
    end: int
    score: float
    focus: Span | None = None


def extract(
    found: Retrieved, store: Store, embedder: Embedder, norm: ScoreNorm, options: ExtractOptions
) -> Answer:
    """The best sentences as text with citations `[1]`, `[2]`.

    If only one clause of the best sentence mentions the date, number or title that the question asks
    for, the answer shows this clause, and its citation quotes the whole sentence.
    """
    query, centred = found.query, norm.centred(found.query.script, found.vector)

    def similarity(vectors: Vectors) -> Array:
        return norm.standard(query.script, centred, vectors @ centred)

    passages = found.passages[: options.passages]
    scored = [
        ScoredPassage(passage.text, f"{hit.chunk.title} {passage.label}", hit.score)
        for hit, passage in zip(found.hits, passages, strict=False)
    ]
    idf = partial(rarity, store)
    ranked = rank(query, scored, embedder=embedder, similarity=similarity, idf=idf)
    citations, lines = [], []
    for number, sentence in enumerate(choose(ranked, most=options.sentences), start=1):
        passage, hit = passages[sentence.passage], found.hits[sentence.passage]
        span = sentence.start, sentence.end
        citations.append(citation(number, passage, *span, store, hit.chunk))
        start, end = (sentence.focus or span) if number == 1 else span
        above, context = passage.text[: sentence.start], citations[-1].chunk.context
        shown = one_line(row_in_words(passage.text[start:end], above, context))
        lines.append(f"{shown} [{number}]")
    text = "\n".join(lines)
    return Answer(query.text, text, tuple(citations), found.hits, found.confidence, refused=False)


def rank(
    query: Query,
    passages: Sequence[ScoredPassage],
    *,
    embedder: Embedder,
    similarity: Callable[[Vectors], Array],
    idf: Idf,
) -> list[Sentence]:
    """The best sentences of `passages`, best first; empty only if no text contains a word.

    `similarity` maps sentence vectors (n, dim) to their similarity to the question, (n,), in standard
    deviations (`ScoreNorm.standard`).
    """
    places = [(i, span) for i, passage in enumerate(passages) for span in short_sentences(passage.text)]
    if not places:
        return []
    texts = [passages[i].text[start:end] for i, (start, end) in places]
    scores = _scores_by_words(query, passages, [i for i, _ in places], texts, idf)
    order = np.argsort(-scores, kind="stable")[:EMBEDDED]
    order = order[scores[order] >= scores[order[0]] - REACH]
    scores[order] += similarity(_embed(embedder, [texts[k] for k in order]))
    best = order[np.argsort(-scores[order], kind="stable")]
    return [
        Sentence(i, start, end, float(scores[k]), _focus(query, texts[k], start))
        for k in best
        for i, (start, end) in [places[k]]
    ]


def choose(ranked: Sequence[Sentence], *, most: int = 2, within: float = 4.0) -> list[Sentence]:
    """The sentences of an answer: the best, and others that score at most `within` less."""
    return [s for s in ranked[:most] if s.score >= ranked[0].score - within]


def _scores_by_words(
    query: Query, passages: Sequence[ScoredPassage], owners: Sequence[int], texts: Sequence[str], idf: Idf
) -> NDArray[np.float64]:
    """The scores of the sentences `texts` of the passages `owners`, without the encoder's part."""
    weights = [TermWeights(query, field, idf) for field in FIELDS]
    scores = np.zeros(len(texts))
    best = max(passage.score for passage in passages)
    for i, passage in enumerate(passages):
        rows = np.flatnonzero(np.equal(owners, i))
        inside = [texts[row] for row in rows.tolist()]
        shares = np.mean([each.shares(inside, passage.topic) for each in weights], axis=0)
        scores[rows] = LEXICAL * shares + PRIOR * (passage.score - best)
    for k, text in enumerate(map(normalize, texts)):
        scores[k] += sum(TYPE * (mentions(each, text, query.normalized) - 0.5) for each in query.answer_types)
    return scores


class TermWeights:
    """A question's distinct terms in one field and their weights in the collection, (n,)."""

    def __init__(self, query: Query, field: Field, idf: Idf) -> None:
        self.split = words if field == "words" else bigrams
        self.names = list(dict.fromkeys(query.content.of(field)))
        self.idf = np.array(idf(self.names, field), np.float64)

    def shares(self, texts: Sequence[str], topic: str) -> Array:
        """The weighted share, 0 to 1, of the question's terms beyond the topic in each sentence of a
        passage."""
        topic_terms = set(self.split(topic))
        free = np.array([name not in topic_terms for name in self.names], bool)
        total = float(self.idf @ free)
        if total <= 0 or not texts:
            return np.zeros(len(texts))
        terms = [set(self.split(text)) for text in texts]
        present = np.array([[name in each for name in self.names] for each in terms], float)
        n = len(texts)
        rarity = np.log((n + 1) / (present.sum(axis=0).clip(1) + 0.5)) / np.log((n + 1) / 1.5)
        return present @ (self.idf * free * rarity**RARITY) / total


def _embed(embedder: Embedder, texts: Sequence[str]) -> Vectors:
    """One vector per text; a text that exceeds the encoder's window is cut at the end."""
    fitting = []
    for text, size in zip(texts, embedder.count_many(texts), strict=True):
        while size > embedder.max_tokens:
            text = text[: max(1, len(text) * embedder.max_tokens // (size + 1))]
            size = embedder.count(text)
        fitting.append(text)
    return embedder.embed_passages(fitting)


def _focus(query: Query, sentence: str, offset: int) -> Span | None:
    """The clause of `sentence` that mentions what the question asks for, if there is only one."""
    if _UNCLEAR.search(query.normalized):
        return None
    bounds = [0, *(m.end() for m in CLAUSE.finditer(sentence)), len(sentence)]
    clauses = [(a, b) for a, b in pairwise(bounds) if sentence[a:b].strip()]
    for answer_type in sorted(query.answer_types & SHORT):
        matches = [
            (a, b) for a, b in clauses if mentions(answer_type, normalize(sentence[a:b]), query.normalized)
        ]
        if len(matches) == 1 and len(clauses) > 1:
            start, end = trim(sentence, *matches[0])
            end = start + len(sentence[start:end].rstrip("，,；;：:、。.|"))
            return offset + start, offset + end
    return None


def row_in_words(row: str, above: str, context: str) -> str:
    """A table row as `姓名：张三；年龄：30`.

    Its header is the last header with a rule in the text `above` it, or else the last line of the
    chunk's `context`. A text that is not a row with as many cells as the header is not changed.
    """
    headers = _HEADER.findall(above) or context.split("\n")[-1:]
    names, cells = _cells(headers[-1]), _cells(row)
    if not row.startswith("|") or not headers[-1].startswith("|") or len(names) != len(cells):
        return row
    pairs = zip(names, cells, strict=True)
    return "；".join(f"{name}：{cell}" if name else cell for name, cell in pairs if cell)


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]
