"""Asks a set's questions and judges each outcome by what the set knows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import PurePath
from time import perf_counter

from rag.evaluate.dataset import Dataset, Gold, Question
from rag.evaluate.metrics import contains, locate, ranking_scores
from rag.evaluate.report import Report, Row


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` to `end` of the document `source`, and the `text` said to stand there."""

    source: str
    start: int
    end: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a question brought. None means that it was not asked for and is not judged.

    `ranked`: the passages found, best first; a passage may come twice.
    `sentences`: the quotes of the answer, best first, also where the question was then refused, so
    that reading and refusing are measured apart.
    `passage`: the text of the best passage.
    `citations`: spans whose `text` is the quote that the reader sees.
    `confidence`: finite; larger means that the question looks more answerable.
    """

    ranked: Sequence[Span]
    sentences: Sequence[str] | None = None
    passage: str | None = None
    citations: Sequence[Span] | None = None
    confidence: float | None = None
    refused: bool | None = None


Ask = Callable[[str], Outcome]
SourceText = Callable[[str], str]  # a document's source -> its whole text


def evaluate(
    dataset: Dataset,
    ask: Ask,
    source_text: SourceText,
    *,
    settings: Mapping[str, object] | None = None,
) -> Report:
    """The report of `ask` on every question of `dataset`; `settings` are kept in it."""
    return Report(dataset.name, tuple(judgements(dataset, ask, source_text)), settings or {})


def judgements(dataset: Dataset, ask: Ask, source_text: SourceText) -> Iterator[Row]:
    """A row per question as it is asked, for those who show progress or stop early."""
    for question in dataset.questions:
        began = perf_counter()
        outcome = ask(question.text)
        seconds = perf_counter() - began
        ranked = _ranking(question, outcome.ranked, source_text)
        scores = {"seconds": seconds}
        if question.answerable:
            scores |= ranking_scores(ranked, _grades(question))
            scores |= _reading(question, outcome)
        scores |= _refusing(question, outcome)
        scores |= _citing(outcome, source_text)
        yield Row(question.id, question.text, question.answerable, scores, tuple(ranked[:10]))


def _grades(question: Question) -> dict[str, int]:
    return dict(question.grades) or {_gold_key(gold): 1 for gold in question.gold}


def _gold_key(gold: Gold) -> str:
    return f"{gold.document}#{gold.quote}"


def _ranking(question: Question, spans: Sequence[Span], source_text: SourceText) -> list[str]:
    """What the spans stand for, best first, each once.

    In BEIR-like sets a span stands for its source. In ours it stands for every gold place that it
    overlaps, else for itself; a gold place found again is passed over, as is a span.
    """
    if not question.gold:
        return list(dict.fromkeys(span.source for span in spans))
    places = {
        (source, gold): locate(gold.quote, source_text(source))
        for source in {span.source for span in spans}
        for gold in question.gold
        if _names(source, gold.document)
    }
    ranked: dict[str, None] = {}
    for span in spans:
        found = [
            _gold_key(gold)
            for gold in question.gold
            if (span.source, gold) in places and _overlaps(span, places[span.source, gold])
        ]
        ranked |= dict.fromkeys(found or [f"{span.source}:{span.start}-{span.end}"])
    return list(ranked)


def _names(source: str, document: str) -> bool:
    """Whether the path `source` ends in the path `document`."""
    parts, wanted = PurePath(source).parts, PurePath(document).parts
    return parts[-len(wanted) :] == wanted


def _overlaps(span: Span, places: Sequence[tuple[int, int]]) -> bool:
    """Whether `span` shares a character with one of the `places` where a gold quote stands.

    Without any (the quote is empty, or the parser's text lacks it) the whole document is gold.
    """
    return not places or any(start < span.end and span.start < end for start, end in places)


def _reading(question: Question, outcome: Outcome) -> dict[str, float]:
    """Whether what the reader sees holds an answer."""
    scores: dict[str, float] = {}
    if question.answers and outcome.sentences is not None:
        best, two = outcome.sentences[:1], outcome.sentences[:2]
        scores["answer_in_sentence"] = float(contains("".join(best), question.answers))
        scores["answer_in_two"] = float(contains("".join(two), question.answers))
    if question.answers and outcome.passage is not None:
        scores["answer_in_passage"] = float(contains(outcome.passage, question.answers))
    return scores


def _refusing(question: Question, outcome: Outcome) -> dict[str, float]:
    scores: dict[str, float] = {}
    if outcome.confidence is not None:
        if not isfinite(outcome.confidence):
            raise ValueError(f"confidence {outcome.confidence} for {question.text!r} is not finite")
        scores["confidence"] = float(outcome.confidence)
    if outcome.refused is None:
        return scores
    if question.answerable:
        scores["false_refusal"] = float(outcome.refused)
        if outcome.sentences is not None and question.answers:
            shown = contains("".join(outcome.sentences[:2]), question.answers)
            scores["right"] = float(shown and not outcome.refused)
    else:
        scores["false_answer"] = float(not outcome.refused)
        scores["right"] = float(outcome.refused)
    return scores


def _citing(outcome: Outcome, source_text: SourceText) -> dict[str, float]:
    """How many citations there are, and in how many the quote is exactly the source's span."""
    if outcome.citations is None:
        return {}
    exact = sum(
        source_text(span.source)[span.start : span.end] == span.text for span in outcome.citations
    )
    return {"citations": float(len(outcome.citations)), "exact_citations": float(exact)}
