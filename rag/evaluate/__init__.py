"""Evaluation: ask a set's questions, judge what comes back, report figures with intervals.

    dataset.py   a folder -> questions, their answers and what is relevant
    score.py     a question and its outcome -> a row of scores
    metrics.py   ranking metrics, answer containment, bootstrap intervals, paired tests
    report.py    rows -> figures; saved, loaded, compared and drawn
    run.py       a set's corpus and a pipeline -> what is evaluated

Only `run` knows how an answer is found: whatever turns a question into an `Outcome` can be
evaluated and compared.
"""

from rag.evaluate.dataset import Dataset, Entry, Gold, Question
from rag.evaluate.report import (
    MEASURES,
    Difference,
    Figure,
    Measure,
    Report,
    Row,
    compare,
    draw,
    whiskers,
)
from rag.evaluate.score import Outcome, Span, evaluate, judgements

__all__ = [
    "MEASURES",
    "Dataset",
    "Difference",
    "Entry",
    "Figure",
    "Gold",
    "Measure",
    "Outcome",
    "Question",
    "Report",
    "Row",
    "Span",
    "compare",
    "draw",
    "evaluate",
    "judgements",
    "whiskers",
]
