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
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from ingest.chunk import CLAUSE, Span, cells, in_words, trim
from ingest.embed import Embedder, Vectors
from ingest.errors import UserError
from ingest.normalize import FIELDS, normalize, one_line, words
from ingest.store import Store
from ingest.types import Chunk, Passage
from rag.question import RARITY, TermWeights, codes, fact_kinds, worth_of
from rag.reader import NO_SPAN, best_span
from rag.retrieve import citation, rarity
from rag.score_norm import ScoreNorm
from rag.types import Answer, AnswerSpan, Idf, Query, ReaderOutput, Retrieval
from rag.units import (
    ANSWERER,
    ASKS,
    LONGEST_ANSWER,
    LONGEST_CELL,
    STOP,
    Unit,
    list_shown,
    records,
    units,
    words_of,
)

Array = NDArray[np.floating]

LEXICAL = 18.0
"""Standard deviations of similarity that a sentence gains by containing all question words."""
SPAN, LEAST_SPAN = 1.0, -8.0
"""What a point of the reader's margin between the best span of a sentence and the best of its chunk weighs,
and the least that it counts."""
UNREAD = -4.0
"""The margin of sentences outside the chunk that was read."""
BEFORE = 8
"""Characters before a span that tell it from an equal text in the same sentence."""
LIKELY = -8.0
"""The margin of a span from which it is marked in the answer."""
PRIOR = 1.5
"""The weight of the passage's fused score."""
EMBEDDED = 16
"""The encoder sees at most this many sentences; more change nothing."""
REACH = 7.0
"""The encoder sees the sentences that score at most this much below the best by words. Of 800
answers from CMRC 2018 this changes 10 (one better, two worse), with .4 of the tokens."""
CODE, BEGINS = 4.0, 10.0
"""What a unit gains that has the codes of a question, and what it gains if it begins with them."""
FACT = 12.0
"""What a unit gains that says of its document what the question asks."""
NEXT = 40
"""Characters that the first sentence of an answer leaves to the second."""
START = 10  # characters
SLACK = 8
"""Characters that the second sentence of an answer may be longer than a single one."""
LABEL = 4.0
"""What a row gains whose label the question names."""
LABELS = 3
"""Columns that may hold the label of a row, such as `序号 | 评分项 | 内容`."""
LISTS = 2.0
"""What a list gains if the question asks for several things."""
_CELL = re.compile(r"[^|]+")
_SEVERAL = re.compile(r"哪些|哪几|几[项种类个]|措施|步骤|什么条件|包括|\bwhat are\b|\bwhich \w+s\b|\blist\b")
_WHETHER = re.compile(r"吗|是否|能否|可否|^(?:is|are|do|does|did|can|may|must)\b")
_WHOLE = re.compile(rf"{_WHETHER.pattern}|为什么|为何|怎么|如何|\bwhy\b|\bhow (?:do|does|to|can)\b")
"""Questions that a whole sentence answers, not a span of it."""


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """How much of the passages an answer quotes."""

    passages: int = 3
    """Sentences come from at most this many of the best passages."""
    sentences: int = 2
    """An answer has at most this many sentences."""
    reader: str = "bundled"
    """Who reads the passages: "bundled", the folder of a reader, or "none" for rules alone."""

    def __post_init__(self) -> None:
        n, m = self.passages, self.sentences
        if n < 1 or m < 1:
            raise UserError("[read] passages is {n} and sentences {m}; need 1 or more", n=n, m=m)


@dataclass(frozen=True, slots=True)
class ScoredPassage:
    """A passage with its `topic` (title and file name), its `section` (headings) and fused `score`; larger
    is better.

    `headings` are the lines of the text that are headings, and the title; `header` is that of a table
    that began before the passage; `facts` are the lines that say what the question asks of the document.
    `reading` is the reader's of the chunk that begins at character `read_from`.
    """

    text: str
    topic: str
    score: float
    section: str = ""
    headings: frozenset[str] = frozenset()
    header: str = ""
    facts: Sequence[Span] = ()
    reading: ReaderOutput | None = None
    read_from: int = 0

    def best_in(self, unit: Unit) -> AnswerSpan | None:
        """The reader's best span in the unit, or in one cell of a row; None if it has not read there."""
        if not self.reading:
            return None
        first, whole = self.read_from, (unit.start, unit.end)
        parts = [m.span() for m in _CELL.finditer(self.text, *whole)] if unit.names else [whole]
        best = max(
            (best_span(self.reading, a - first, b - first) for a, b in parts), key=lambda span: span.margin
        )
        if best is NO_SPAN:
            return None
        return AnswerSpan(best.start + first, best.end + first, best.margin)


@dataclass(frozen=True, slots=True)
class Sentence:
    """`passages[passage].text[start:end]`, without surrounding space; larger scores are better.

    `shown` is what an answer shows of it: a clause, the cells of a row in words, or a list. `span` is the
    text in it that the reader takes for the answer, or "", and `lead` what stands before it, with it.
    """

    passage: int
    start: int
    end: int
    score: float
    shown: str
    span: str = ""
    lead: str = ""

    def place(self, shown: str) -> Span | None:
        """Where the span is in a part of what is shown; of several equal texts, the one after the same."""
        for before in (BEFORE, 0) if self.span else ():
            key = self.lead[-len(self.span) - before :]
            if (at := shown.find(key)) >= 0:
                return at + len(key) - len(self.span), at + len(key)
        return None


def extract(
    found: Retrieval, store: Store, embedder: Embedder, norm: ScoreNorm, options: ExtractOptions
) -> Answer:
    """The best sentences as text with citations `[1]`, `[2]`; a citation quotes the whole sentence,
    row or list of which the answer shows a part."""
    query, centred = found.query, norm.centred(found.query.script, found.vector)

    def similarity(vectors: Vectors) -> Array:
        return norm.standard(query.script, centred, vectors @ centred)

    pairs = list(zip(found.hits, found.passages, strict=True))[: options.passages]
    facts = _facts(found, store)
    pairs += [(found.hits[0], opening) for opening in facts if opening not in found.passages[: len(pairs)]]
    hits, passages = zip(*pairs, strict=True)
    scored = []
    for hit, passage in pairs:
        topic = f"{hit.chunk.title} {PurePath(hit.chunk.source).stem}"
        chunks = store.chunks_within(passage) or [hit.chunk]
        around = passage.label, *_surroundings(chunks)
        number = len(scored)
        reading = found.readings[number] if number < len(found.readings) else None
        at = hit.chunk.start - passage.start
        scored.append(
            ScoredPassage(passage.text, topic, hit.score, *around, facts.get(passage, ()), reading, at)
        )
    idf = partial(rarity, store)
    ranked = rank(query, scored, embedder=embedder, similarity=similarity, idf=idf)
    weights = [TermWeights(query, field, idf) for field in FIELDS]
    citations, lines, room, span = [], [], LONGEST_ANSWER + SLACK, None
    chosen = choose(ranked, most=options.sentences)
    for sentence in chosen:
        first = not lines
        within = room - NEXT * (first and len(chosen) > 1)
        place = sentence.place(sentence.shown)
        shown = _window(sentence.shown, weights, within, place[0] if place else -1)
        if len(shown) > room and not first:
            continue
        passage, hit = passages[sentence.passage], hits[sentence.passage]
        number, quoted = len(lines) + 1, (sentence.start, sentence.end)
        citations.append(citation(number, passage, *quoted, store, hit.chunk))
        span = sentence.place(shown) if first else span
        lines.append(f"{shown} [{number}]")
        room -= len(shown)
    text = "\n".join(lines)
    return Answer(query.text, text, tuple(citations), found.hits, found.confidence, refused=False, span=span)


def _facts(found: Retrieval, store: Store) -> dict[Passage, list[Span]]:
    """The first passages of the best document with their lines that say what the question asks of it."""
    kinds, best = fact_kinds(found.query.normalized), found.passages[0].document
    document = store.by_id(best) if kinds else None
    lines: dict[Passage, list[Span]] = {}
    passage = None
    for fact in document.report.facts if document else ():
        while fact.kind in kinds and (passage is None or passage.end <= fact.start):
            start = passage.end if passage else 0
            chunks = store.chunks_within(Passage(best, start, start, "", ""))
            if not chunks:
                return lines
            passage = store.passages(chunks[:1])[0]
        if passage and fact.kind in kinds:
            lines.setdefault(passage, []).append((fact.start - passage.start, fact.end - passage.start))
    return lines


def _surroundings(chunks: Sequence[Chunk]) -> tuple[frozenset[str], str]:
    """The headings in a passage with its title, and the header of a table that began before it."""
    labels = (part for chunk in chunks for _, label in chunk.places for part in label.split(" · "))
    headings = {heading for label in labels for heading in label.split(" › ")}
    last = chunks[0].context.split("\n")[-1]
    header = last if last.startswith("|") and last not in chunks[0].text else ""
    return frozenset({chunks[0].title, *headings}), header


def rank(
    query: Query,
    passages: Sequence[ScoredPassage],
    *,
    embedder: Embedder,
    similarity: Callable[[Vectors], Array],
    idf: Idf,
) -> list[Sentence]:
    """The best sentences of `passages`, best first; empty if none says more than the question.

    `similarity` maps sentence vectors (n, dim) to their similarity to the question, (n,), in standard
    deviations (`ScoreNorm.standard`).
    """
    candidates = [
        Candidate(i, passage.text, passage.section, unit)
        for i, passage in enumerate(passages)
        for unit in units(passage.text, passage.headings, passage.header)
    ]
    candidates = [c for c in candidates if c.unit.answers and _adds(query, c, passages[c.passage])]
    if not candidates:
        return []
    weights = [TermWeights(query, field, idf) for field in FIELDS]
    scores = _scores_by_words(query, passages, candidates, weights)
    order = np.argsort(-scores, kind="stable")[:EMBEDDED]
    order = order[scores[order] >= scores[order[0]] - REACH]
    texts = [candidates[k].whole for k in order]
    scores[order] += similarity(_embed(embedder, texts))
    best = order[np.argsort(-scores[order], kind="stable")]
    beyond = [[each.beyond(passage.topic) for each in weights] for passage in passages]
    ranked = []
    for k in best:
        c = candidates[k]
        place = c.passage, c.unit.start, c.unit.end
        span = passages[c.passage].best_in(c.unit)
        if span and (span.margin < LIKELY or _WHOLE.search(query.normalized)):
            span = None
        shown = _shown(query, c, beyond[c.passage], span)
        answer = one_line(c.source[span.start : span.end]) if span else ""
        lead = one_line(c.source[c.unit.start : span.end].rpartition("|")[2]) if span else ""
        ranked.append(Sentence(*place, float(scores[k]), shown, answer, lead))
    return ranked


@dataclass(frozen=True, slots=True)
class Candidate:
    """A unit of the passage with the number `passage`, whose text is `source`."""

    passage: int
    source: str
    section: str
    unit: Unit

    @property
    def text(self) -> str:
        """What the unit itself says; of a group, its first line."""
        unit = self.unit
        end = min(unit.end, unit.parts[0][0]) if unit.parts else unit.end
        if unit.parts and end <= unit.start:
            end = unit.parts[0][1]
        return self.source[unit.start : end]

    @property
    def whole(self) -> str:
        """The unit with its lead, but for the headings of all the passage, for the encoder."""
        unit = self.unit
        lines = [] if unit.names else unit.lead.split("\n")
        lead = [line for line in lines if line and line not in self.section]
        return "\n".join([*lead, words_of(self.source, unit)])


def choose(ranked: Sequence[Sentence], *, most: int = 2, within: float = 4.0) -> list[Sentence]:
    """The sentences of an answer: the best, and others that score at most `within` less and say
    something else."""
    chosen: list[Sentence] = []
    for sentence in ranked:
        if len(chosen) == most or sentence.score < ranked[0].score - within:
            break
        if not any(_repeats(sentence, other) for other in chosen):
            chosen.append(sentence)
    return chosen


def _repeats(sentence: Sentence, other: Sentence) -> bool:
    """Whether two sentences overlap or show the same text."""
    a, b = (re.sub(r"\W", "", each.shown) for each in (sentence, other))
    overlap = sentence.start < other.end and other.start < sentence.end
    return (sentence.passage == other.passage and overlap) or a in b or b in a


def _scores_by_words(
    query: Query,
    passages: Sequence[ScoredPassage],
    candidates: Sequence[Candidate],
    weights: Sequence["TermWeights"],
) -> NDArray[np.float64]:
    """The scores of the candidates, without the encoder's part."""
    scores = np.zeros(len(candidates))
    top = max(passage.score for passage in passages)
    columns = {c.unit.names: _column(c.unit.names, weights) for c in candidates}
    for topic in dict.fromkeys(passage.topic for passage in passages):
        rows = [k for k, candidate in enumerate(candidates) if passages[candidate.passage].topic == topic]
        texts = [candidates[k].text for k in rows]
        leads = [f"{unit.lead}\n{columns[unit.names]}" for unit in (candidates[k].unit for k in rows)]
        about = [f"{topic} {passages[candidates[k].passage].section}" for k in rows]
        shares = np.mean([each.shares(texts, leads, about) for each in weights], axis=0)
        prior = np.array([passages[candidates[k].passage].score - top for k in rows])
        scores[rows] = LEXICAL * shares + PRIOR * prior
    best = [best_span(passage.reading).margin if passage.reading else 0.0 for passage in passages]
    for k, candidate in enumerate(candidates):
        unit = candidate.unit
        row = cells(candidate.source[unit.start : unit.end])[:LABELS] if unit.names else []
        labels = (normalize(cell) for cell in row)
        scores[k] += LABEL * sum(len(each) > 1 and each in query.normalized for each in labels)
        text = normalize(candidate.source[unit.start : unit.end])
        within = (a <= unit.start < b for a, b in passages[candidate.passage].facts)
        scores[k] += FACT * any(within)
        passage = passages[candidate.passage]
        if passage.reading:
            span = passage.best_in(unit)
            margin = min((span.margin if span else UNREAD) - best[candidate.passage], 0.0)
            scores[k] += SPAN * max(margin, LEAST_SPAN)
        if unit.parts and not ASKS.search(candidate.text):
            scores[k] += LISTS if _SEVERAL.search(query.normalized) else -LISTS
        for part, gain in ((text, CODE), (text[:START], BEGINS)) if query.codes else ():
            scores[k] += gain * len(query.codes & codes(part)) / len(query.codes)
    return scores


def _column(names: Sequence[str], weights: Sequence["TermWeights"]) -> str:
    """The column that a question names most fully, or ""."""
    worth = np.sum([each.named(names) @ each.idf for each in weights], axis=0)
    return names[int(np.argmax(worth))] if names else ""


def _adds(query: Query, candidate: Candidate, passage: ScoredPassage) -> bool:
    """Whether a unit says more than the question and the topic, unless that asks whether something is so;
    what ends in a stop does."""
    unit = candidate.unit
    text = candidate.source[unit.start : unit.end]
    known = {*words(query.text), *words(passage.topic)}
    told = bool(unit.names or unit.parts or STOP.search(text) or set(words(text)) - known)
    return told or bool(_WHETHER.search(query.normalized))


def _embed(embedder: Embedder, texts: Sequence[str]) -> Vectors:
    """One vector per text; a text that exceeds the encoder's window is cut at the end."""
    fitting = []
    for text, size in zip(texts, embedder.count_many(texts), strict=True):
        while size > embedder.max_tokens:
            text = text[: max(1, len(text) * embedder.max_tokens // (size + 1))]
            size = embedder.count(text)
        fitting.append(text)
    return embedder.embed_passages(fitting)


def _shown(
    query: Query, candidate: Candidate, weights: Sequence[TermWeights], span: AnswerSpan | None
) -> str:
    """What an answer shows of a unit."""
    text, unit = candidate.source, candidate.unit
    if unit.names:
        answer = text[span.start : span.end] if span else ""
        return _cells_shown(unit.names, cells(text[unit.start : unit.end]), weights, answer)
    if unit.parts:
        return list_shown(text, unit)
    sentence = text[unit.start : unit.end]
    shown = one_line(_window(sentence, weights, at=span.start - unit.start if span else -1))
    return ANSWERER.sub("", shown) if ASKS.search(unit.lead) else shown


def _cells_shown(
    names: Sequence[str], row: Sequence[str], weights: Sequence[TermWeights], answer: str
) -> str:
    """The cells of the columns that the question names or that hold the `answer`, with the row's label, in
    words.

    If there are none, the whole row, as far as an answer may be long. A cell that asks is left out.
    """
    parts = records(names)
    best = max(parts, key=lambda part: float(worth_of(row[part], weights).sum()))
    names, row = names[best], row[best]
    asked, labels = np.zeros(len(names)), np.zeros(len(names))
    for each in weights:
        inside, above = each.present(row), each.present(names)
        labels += inside @ each.idf
        rarity = 1 / above.sum(axis=0).clip(1) ** RARITY
        asked += (each.named(names) * (1 - inside.max(axis=0))) @ (each.idf * rarity)
    for k, cell in enumerate(row):
        asked[k] *= bool(cell) * (labels[k] == 0)
    labels[0] += 1
    named = (asked > 0.6 * asked.max()) & (asked > 0)
    named &= ~_outdone(names, weights)
    if not named.any() and answer:
        named = np.array([answer in cell for cell in row])
    keep = (labels > 0) | named if named.any() else np.ones(len(row), bool)
    kept = [
        ""
        if not wanted or cell[-1:] in ("?", "？")
        else _window(cell, weights, LONGEST_CELL, cell.find(answer) if answer else -1)
        for cell, wanted in zip(row, keep, strict=True)
    ]
    for k in sorted(range(1, len(kept)), key=lambda k: (bool(named[k]), labels[k], -k)):
        if len(in_words(names, kept)) <= LONGEST_ANSWER:
            break
        kept[k] = "" if not named[k] else kept[k]
    return one_line(in_words(names, kept))


def _outdone(names: Sequence[str], weights: Sequence[TermWeights]) -> NDArray[np.bool_]:
    """Which columns another one outdoes, (n,): it has all words of the question that they have, and is
    named more fully."""
    above = np.concatenate([each.present(names) for each in weights], axis=1)
    worth = np.sum([each.named(names) @ each.idf for each in weights], axis=0)
    within = (above[:, None] <= above[None]).all(axis=2)
    return (within & (worth[None] > 1.05 * worth[:, None])).any(axis=1)


def _clauses(sentence: str) -> list[Span]:
    bounds = [0, *(m.end() for m in CLAUSE.finditer(sentence)), len(sentence)]
    return [(a, b) for a, b in pairwise(bounds) if sentence[a:b].strip()]


def _window(
    sentence: str, weights: Sequence[TermWeights], longest: int = LONGEST_ANSWER, at: int = -1
) -> str:
    """The neighbouring clauses around character `at`, or else those that hold most question words, as many
    as may be shown."""
    clauses = _clauses(sentence)
    if len(sentence) <= longest or len(clauses) < 2:
        return sentence
    worth = worth_of([sentence[a:b] for a, b in clauses], weights)
    first = last = next((k for k, (a, b) in enumerate(clauses) if a <= at < b), int(np.argmax(worth)))
    while True:
        wider = [(a, b) for a, b in ((first, last + 1), (first - 1, last)) if a >= 0 and b < len(clauses)]
        fit = [w for w in wider if clauses[w[1]][1] - clauses[w[0]][0] <= longest]
        if not fit:
            start, end = trim(sentence, clauses[first][0], clauses[last][1])
            return sentence[start:end]
        first, last = fit[0]
