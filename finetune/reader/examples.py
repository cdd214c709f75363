"""Questions over chunks -> rows to train a reader on, about half of them without an answer.

What decides is the choice of the rows without an answer: chunks that resemble the right one, of the same
document above all, the right chunk with the answer's sentence cut out, and a question in which a year, a
number or a title was changed for one that the chunk doesn't have.
"""

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ingest.chunk import Span, sentences
from ingest.normalize import bigrams
from ingest.types import Chunk
from rag.evaluate.dataset import Dataset, EvalQuestion, Gold
from rag.evaluate.metrics import contains, locate
from rag.evaluate.score import ends_in
from rag.pipeline import Pipeline
from rag.reader import ReaderRow, RowBuilder

NEAREST = 60  # chunks from which rows without an answer are drawn
HELD_OUT = 0.3  # of the questions
KINDS = {"same": 3, "document": 4, "corpus": 2, "cut": 2, "changed": 1.5}  # how often to draw them
LEAST_DOCUMENTS = 5  # with fewer, questions are held out one by one


@dataclass(frozen=True, slots=True)
class ReaderQuestion:
    """A question, the chunk that answers it with characters `span` (None: it has no answer), and the chunks
    that a search finds, best first, of which those that contain no answer don't answer it."""

    text: str
    answers: Sequence[str]
    right: Chunk | None
    span: Span
    nearest: Sequence[Chunk]


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """A row, the places of the answer's first and last token in it (0, 0: no answer), and its kind."""

    row: ReaderRow
    answer: Span
    kind: str


def training_rows(
    questions: Iterable[ReaderQuestion],
    builder: RowBuilder,
    *,
    seed: int = 0,
    second: float = 0.25,
    titled: float = 0.7,
) -> Iterator[TrainingRow]:
    """A row with the answer of every question that has one, and one without, or two for the share
    `second`. The share `titled` shows the title and headings over the chunk."""
    rng = random.Random(seed)
    for question in questions:
        for kind, wording, chunk in _choices(question, 1 + (rng.random() < second), rng):
            row = builder.row(wording, chunk.context if rng.random() < titled else "", chunk.text)
            answer = _tokens(row, question.span) if kind == "answered" else (0, 0)
            if answer:
                yield TrainingRow(row, answer, kind)


def _choices(question: ReaderQuestion, count: int, rng: random.Random) -> Iterator[tuple[str, str, Chunk]]:
    """The kind, the wording of the question, and the chunk of each row."""
    text, right = question.text, question.right
    far = [each for each in question.nearest if each != right and not contains(each.text, question.answers)]
    if right is None:
        for chunk in [*far[:1], *rng.sample(far[1:8], min(count - 1, len(far[1:8])))]:
            yield "unanswerable", text, chunk
        return
    yield "answered", text, right
    kinds: dict[str, tuple[str, Chunk]] = {}
    own = [each for each in far if each.document == right.document]
    for kind, chunks in (
        ("same", [each for each in own if each.passage == right.passage]),
        ("document", [each for each in own if each.passage != right.passage]),
        ("corpus", [each for each in far if each.document != right.document]),
    ):
        if chunks:
            kinds[kind] = text, chunks[0] if rng.random() < 0.6 else rng.choice(chunks[:5])
    parts = [right.text[start:end] for start, end in sentences(right.text)]
    rest = [part for part in parts if not contains(part, question.answers)]
    if 1 < len(rest) < len(parts):
        kinds["cut"] = text, replace(right, text="".join(rest))
    titles = sorted({each.title for each in far if len(each.title) > 1})
    if changed := _changed(text, right, titles, rng):
        kinds["changed"] = changed, right
    for _ in range(min(count, len(kinds))):
        kind = rng.choices(list(kinds), [KINDS[name] for name in kinds])[0]
        yield kind, *kinds.pop(kind)


def _changed(question: str, chunk: Chunk, titles: Sequence[str], rng: random.Random) -> str | None:
    """The question about another year, number or title, which the chunk doesn't have."""
    numbers = [match for match in re.finditer(r"\d+", question) if match[0] in chunk.text]
    if numbers and rng.random() < 0.8:
        match = rng.choice(numbers)
        near = [str(int(match[0]) + step) for step in range(-9, 10)]
        if absent := [n for n in near if n.isdigit() and len(n) == len(match[0]) and n not in chunk.text]:
            return question[: match.start()] + rng.choice(absent) + question[match.end() :]
    others = [title for title in titles if title not in chunk.indexed and title not in question]
    if len(chunk.title) > 1 and chunk.title in question and others:
        return question.replace(chunk.title, rng.choice(others))
    return None


def _tokens(row: ReaderRow, span: Span) -> Span | None:
    """The first and last token that cover `span` of the chunk; None if they were cut off."""
    inside = [k for k, (start, end) in enumerate(row.offsets) if start < span[1] and end > span[0]]
    if not inside or row.offsets[inside[-1]][1] < span[1] - 1:
        return None
    return row.first + inside[0], row.first + inside[-1]


def best_occurrence(text: str, answers: Sequence[str], question: str) -> Span | None:
    """Where one of `answers` occurs in `text`: in the sentence that shares most with the question."""
    wanted = set(bigrams(question))
    parts = [(start, len(wanted & set(bigrams(text[start:end])))) for start, end in sentences(text)]
    found = [span for answer in answers for span in locate(answer, text)]
    return max(found, key=lambda span: max(p for p in parts if p[0] <= span[0])[1], default=None)


def questions_of(
    dataset: Dataset, pipeline: Pipeline, progress: Callable[[], None]
) -> dict[str, ReaderQuestion]:
    """The questions over the knowledge base's own chunks, by id. An answerable one is left out if no
    chunk has one of its answers in the place that is known to answer it."""
    sources = {each.source: each.id for each in pipeline.store.documents()}
    result: dict[str, ReaderQuestion] = {}
    for question in dataset.questions:
        ranking = pipeline.retrieve(question.text).ranking
        chunks = list(pipeline.store.chunks(ranking.keys[:NEAREST]).values())
        right, span = _right(question, chunks, sources, pipeline) if question.answerable else (None, (0, 0))
        if right or not question.answerable:
            result[question.id] = ReaderQuestion(question.text, question.answers, right, span, chunks)
        progress()
    return result


def _right(
    question: EvalQuestion, chunks: Sequence[Chunk], sources: Mapping[str, str], pipeline: Pipeline
) -> tuple[Chunk | None, Span]:
    golds = question.gold or [Gold(source, "") for source, grade in question.grades.items() if grade > 0]
    for gold in golds:
        for id in (sources[source] for source in sources if ends_in(source, gold.document)):
            text = pipeline.store.text(id)
            for start, end in locate(gold.quote, text) or [(0, len(text))]:
                if found := best_occurrence(text[start:end], question.answers, question.text):
                    for chunk in chunks:
                        span = (start + found[0] - chunk.start, start + found[1] - chunk.start)
                        if chunk.document == id and span[0] >= 0 and span[1] <= len(chunk.text):
                            return chunk, span
    return None, (0, 0)


def held_out(questions: Mapping[str, ReaderQuestion], seed: int) -> set[str]:
    """The ids of the questions to compare with: those about some of the documents, or some of each."""
    rng, groups = random.Random(seed), defaultdict[str, list[str]](list)
    for id, question in questions.items():
        groups[question.right.document if question.right else ""].append(id)
    unanswerable = groups.pop("", [])
    if len(groups) < LEAST_DOCUMENTS:
        groups = {id: [id] for ids in groups.values() for id in ids}
    held, most = [], HELD_OUT * (len(questions) - len(unanswerable))
    for name in rng.sample(sorted(groups), len(groups)):
        if len(held) + len(groups[name]) <= most:
            held += groups[name]
    return {*held, *rng.sample(unanswerable, round(HELD_OUT * len(unanswerable)))}
