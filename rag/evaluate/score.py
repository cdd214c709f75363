"""Ask a set's questions and score each prediction by the answers that the set knows."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import isfinite
from time import perf_counter

from rag.evaluate.dataset import Dataset, EvalQuestion, Gold
from rag.evaluate.metrics import answer_end, contains, locate, ranking_scores, span_f1
from rag.evaluate.report import SHORT_ANSWER, EvalReport, ScoredQuestion


@dataclass(frozen=True, slots=True)
class SourceSpan:
    """Characters `start` to `end` of the document `source`, and the `text` that should be there."""

    source: str
    start: int
    end: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class Prediction:
    """A system's result for a question. A field that is None is not scored.

    `ranked`: the retrieved passages, best first; a passage may occur twice.
    `sentences`: the quotes of the answer, best first, also if the question was then refused.
    `passage`: the text of the best passage.
    `citations`: spans whose `text` is the quote that the reader sees.
    `shown`: the answer as the reader sees it, and `labels` the places that it cites.
    `declined`: whether the language model refused, not the retrieval.
    `span`: the words that are taken for the answer itself.
    `confidence`: finite; larger means that the question seems more answerable.
    """

    ranked: Sequence[SourceSpan]
    sentences: Sequence[str] | None = None
    passage: str | None = None
    citations: Sequence[SourceSpan] | None = None
    confidence: float | None = None
    refused: bool | None = None
    declined: bool | None = None
    shown: str | None = None
    labels: Sequence[str] | None = None
    span: str | None = None


SHORT = 160
"""Characters of a short answer: what a reader takes in at a glance."""
FIRST, SLACK = 60, 40
"""An answer is precise if it gives the value in its first `FIRST` characters or is `SLACK` longer at most."""

SourceText = Callable[[str], str]  # a document's source -> its whole text


def evaluate(
    dataset: Dataset,
    predict: Callable[[str], Prediction],
    source_text: SourceText,
    *,
    settings: Mapping[str, object] | None = None,
    short: int = SHORT,
) -> EvalReport:
    """The report of `predict` on every question of `dataset`, with `settings` stored in it; `short` is
    the length of a short answer."""
    rows = []
    for question in dataset.questions:
        start = perf_counter()
        prediction = predict(question.text)
        scores = {"seconds": perf_counter() - start}
        ranked = _ranking(question, prediction.ranked, source_text)
        if question.answerable:
            grades = dict(question.grades) or {_gold_key(gold): 1 for gold in question.gold}
            scores |= ranking_scores(ranked, grades)
        scores |= _answer_scores(question, prediction)
        scores |= _shown_scores(question, prediction, short)
        scores |= _citation_scores(prediction, source_text)
        top = tuple(ranked[:10])
        rows.append(ScoredQuestion(question.id, question.text, question.answerable, scores, top))
    return EvalReport(dataset.name, tuple(rows), settings or {})


def _gold_key(gold: Gold) -> str:
    return f"{gold.document}#{gold.quote}"


def _ranking(question: EvalQuestion, spans: Sequence[SourceSpan], source_text: SourceText) -> list[str]:
    """The distinct entries that the spans represent, best first.

    In BEIR-like sets a span represents its source. In ours it represents every gold place that it
    overlaps, or itself if there is none.
    """
    if not question.gold:
        return list(dict.fromkeys(span.source for span in spans))

    @cache
    def places(source: str, gold: Gold) -> list[tuple[int, int]]:
        return locate(gold.quote, source_text(source))

    ranked: dict[str, None] = {}
    for span in spans:
        overlaps = [
            _gold_key(gold)
            for gold in question.gold
            if ends_in(span.source, gold.document) and _overlaps(span, places(span.source, gold))
        ]
        ranked |= dict.fromkeys(overlaps or [f"{span.source}:{span.start}-{span.end}"])
    return list(ranked)


def ends_in(source: str, document: str) -> bool:
    """Whether the path `source` ends in the path `document`."""
    return f"/{source}".endswith(f"/{document}")


def _overlaps(span: SourceSpan, places: Sequence[tuple[int, int]]) -> bool:
    """Whether `span` shares a character with one of the `places` of a gold quote.

    If there are none (the quote is empty, or the parsed text lacks it), the whole document is gold.
    """
    return not places or any(start < span.end and span.start < end for start, end in places)


def _answer_scores(question: EvalQuestion, prediction: Prediction) -> dict[str, float]:
    """Whether the text that the reader sees contains an answer, and whether refusing was right."""
    scores: dict[str, float] = {}
    sentences, refused = prediction.sentences, prediction.refused
    if question.answerable and question.answers:
        if sentences is not None:
            scores["answer_in_sentence"] = float(contains("".join(sentences[:1]), question.answers))
            scores["answer_in_two"] = float(contains("".join(sentences[:2]), question.answers))
        if prediction.passage is not None:
            scores["answer_in_passage"] = float(contains(prediction.passage, question.answers))
        if prediction.span is not None:
            scores["f1"] = span_f1(prediction.span, question.answers)
            scores["exact"] = float(scores["f1"] == 1)
    if (confidence := prediction.confidence) is not None:
        if not isfinite(confidence):
            raise ValueError(f"confidence {confidence} for {question.text!r} is not finite")
        scores["confidence"] = float(confidence)
    if prediction.declined is not None:
        scores["declined"] = float(prediction.declined)
        scores["not_found"] = float(bool(refused) and not prediction.declined)
    if refused is not None and question.answerable:
        scores["false_refusal"] = float(refused)
        if "answer_in_two" in scores:
            scores["right"] = float(scores["answer_in_two"] and not refused)
    elif refused is not None:
        scores |= {"false_answer": float(not refused), "right": float(refused)}
    return scores


_MARK = re.compile(r"\s*\[\d+\]")


def _shown_scores(question: EvalQuestion, prediction: Prediction, short: int) -> dict[str, float]:
    """Whether the answer as shown is right and short, also by kind of question, precise, and cites the
    page. A refusal of an answerable question is wrong."""
    if prediction.shown is None or not question.answerable or not question.answers:
        return {}
    shown = _MARK.sub("", prediction.shown)
    length = len(re.sub(r"\s", "", shown))
    end = None if prediction.refused else answer_end(shown, question.answers)
    right = float(end is not None and length <= short)
    slack = max(map(len, question.answers)) + SLACK
    scores = {SHORT_ANSWER: right, "precise": float(end is not None and (end <= FIRST or length <= slack))}
    if question.kind:
        scores[f"{SHORT_ANSWER} {question.kind}"] = right
    if question.page and prediction.labels is not None:
        page = re.compile(rf"(?:p\.|第)\s*{question.page}(?!\d)")
        scores["page"] = float(any(page.search(label) for label in prediction.labels))
    return scores


def _citation_scores(prediction: Prediction, source_text: SourceText) -> dict[str, float]:
    """The number of citations, and of those whose quote equals the span of the source."""
    if prediction.citations is None:
        return {}
    exact = sum(source_text(span.source)[span.start : span.end] == span.text for span in prediction.citations)
    return {"citations": float(len(prediction.citations)), "exact_citations": float(exact)}
