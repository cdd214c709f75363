"""Evaluation: ask a set's questions, judge what comes back, report figures with intervals.

    dataset.py      a folder -> questions, their answers and what is relevant
    lines.py        their files, read and checked
    judge.py        a question and its outcome -> a row of scores
    metrics.py      ranking metrics, answer containment
    statistics.py   AUROC and the like, bootstrap intervals, paired tests
    report.py       rows -> figures; saved, loaded and compared
    picture.py      reports -> bars
    subject.py      a set's corpus and a pipeline -> what is evaluated

Only `subject` knows how an answer is found: whatever turns a question into an `Outcome` can be
evaluated and compared.
"""

from rag.evaluate.dataset import Dataset, Entry, Gold, Question
from rag.evaluate.plot import draw
from rag.evaluate.report import MEASURES, Difference, Figure, Measure, Report, Row, compare
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
]
