"""What an evaluation came to: base and adapter by condition and measure, with intervals.

Every measure is the sum of one column of `finetune.judge` over that of another. Intervals come from
the paired bootstrap over questions, all of a question's cases together (rag.evaluate.statistics);
answerable and unanswerable questions are drawn apart.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np

from finetune.conditions import CONDITIONS
from finetune.evaluate.run import Asked
from finetune.judge import Reply
from rag.evaluate import Figure, statistics
from rag.evaluate.statistics import Values, Weights

RESAMPLES = 2000
FLIPS = 10_000

READING = ("gold", "retrieved", "distractors")
"""Conditions with passages."""
ALL = "passages"
"""Stands for all of these together."""
ORDER = (*CONDITIONS, ALL, "general")
TOGETHER = ("refused", "wanted", "agreed")
ANSWERED = ("closed", "gold", "retrieved", "general")
FOUND = ("gold", "retrieved")


@dataclass(frozen=True, slots=True)
class Measure:
    """The sum of column `part` over that of `whole`, under these `conditions`.

    A `primary` one decides what is shipped.
    """

    title: str
    zh: str
    part: str
    whole: str
    conditions: tuple[str, ...]
    primary: bool = False
    larger_is_better: bool = True

    def of(self, data: Mapping[str, Values], condition: str, weights: Weights) -> Values:
        """Its value for each row of `weights`, shape (resamples,); NaN where undefined."""
        part, whole = self.columns(data, condition)
        return statistics.ratio(part, whole, weights)

    def columns(self, data: Mapping[str, Values], condition: str) -> tuple[Values, Values]:
        """Shape (questions,) each, NaN where a question does not measure it."""
        part, whole = (data.get(f"{condition}:{name}") for name in (self.part, self.whole))
        if part is None or whole is None:
            size = len(next(iter(data.values())))
            return np.full(size, np.nan), np.full(size, np.nan)
        return part, whole


MEASURES: dict[str, Measure] = {
    "exact": Measure("Exact match", "完全一致", "exact", "asked", ANSWERED),
    "contains": Measure("Holds the answer", "含答案", "contains", "asked", ANSWERED),
    "f1": Measure("F1", "F1", "f1", "asked", ANSWERED, primary=True),
    "rouge_l": Measure("ROUGE-L", "ROUGE-L", "rouge_l", "asked", ANSWERED),
    "bleu4": Measure("BLEU-4 (0–100)", "BLEU-4（0–100）", "bleu4", "asked", ANSWERED),
    "refusal_precision": Measure(
        "Refusal precision", "拒答精确率", "agreed", "refused", ("retrieved", ALL), primary=True
    ),
    "refusal_recall": Measure(
        "Refusal recall",
        "拒答召回率",
        "agreed",
        "wanted",
        ("retrieved", "distractors", ALL),
        primary=True,
    ),
    "refusal_f1": Measure("Refusal F1", "拒答 F1", "agreed2", "refused_wanted", ("retrieved", ALL)),
    "false_refusals": Measure(
        "False refusals", "误拒率", "misrefused", "asked", FOUND, larger_is_better=False
    ),
    "grounded": Measure("Cites what answers", "引用正确", "grounded", "asked", FOUND),
    "known": Measure("Cites what exists", "编号存在", "known", "marked", READING),
    "unsupported": Measure(
        "Unsupported sentences",
        "无依据的句子",
        "unsupported",
        "claims",
        READING,
        larger_is_better=False,
    ),
}


BLEU4 = (
    "BLEU-4: over characters, nltk's sentence_bleu with method3, x 100, as THUDM's ptuning",
    "BLEU-4：按字计算，即 nltk 的 sentence_bleu 与 method3，乘以 100，与 THUDM 的 ptuning 相同",
)
"""Which of the many figures of this name it is."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A measure under a condition: both values, and adapter - base with its 95 % interval.

    `p` (two-sided, of there being no difference) is the paired randomisation test's where both are
    divided by the same, else the bootstrap's; it is not corrected for looking at many measures. A
    precision without refusals is NaN, and so is its difference.
    """

    condition: str
    measure: str
    base: Figure
    adapter: Figure
    difference: float
    low: float
    high: float
    p: float

    @property
    def questions(self) -> int:
        return max(self.base.questions, self.adapter.questions)


def compare(
    asked: Sequence[Sequence[Asked]], *, resamples: int = RESAMPLES, seed: int = 0
) -> list[Comparison]:
    """By condition, then measure. `asked`: the cases of each question; the same seed gives the
    same intervals."""
    asked = [cases for cases in asked if cases]
    if not asked:
        return []
    base, adapter = (
        columns([[(a.case.condition, getattr(a, side)) for a in cases] for cases in asked])
        for side in ("base", "adapter")
    )
    strata = np.array([cases[0].case.question.answerable for cases in asked])
    weights = list(statistics.resamples(strata, count=resamples, seed=seed))
    return [
        _comparison(name, condition, base, adapter, weights, seed)
        for condition in ORDER
        for name, measure in MEASURES.items()
        if condition in measure.conditions and _measured(measure, condition, base, adapter)
    ]


def columns(replies: Sequence[Sequence[tuple[str, Reply]]]) -> dict[str, Values]:
    """`condition:column` -> shape (questions,), NaN where a question has none.

    `replies`: of each question, the conditions and one side's replies.
    """
    rows = [dict(_row(of_question)) for of_question in replies]
    names = sorted({name for row in rows for name in row})
    return {name: np.array([row.get(name, nan) for row in rows], float) for name in names}


def _row(replies: Sequence[tuple[str, Reply]]) -> Iterator[tuple[str, float]]:
    together: dict[str, float] = dict.fromkeys(TOGETHER, 0.0)
    reading = [reply for condition, reply in replies if condition in READING]
    for condition, reply in replies:
        yield from ((f"{condition}:{name}", value) for name, value in reply.columns.items())
        if condition in READING:
            yield from _halves(condition, reply.columns)
    for reply in reading:
        for name in TOGETHER:
            together[name] += reply.columns[name]
    if len(reading) > 1:
        yield from ((f"{ALL}:{name}", value) for name, value in together.items())
        yield from _halves(ALL, together)


def _halves(condition: str, of: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """F1 = 2 agreed / (refused + wanted)."""
    yield f"{condition}:agreed2", 2 * of["agreed"]
    yield f"{condition}:refused_wanted", of["refused"] + of["wanted"]


def _measured(
    measure: Measure, condition: str, base: Mapping[str, Values], adapter: Mapping[str, Values]
) -> bool:
    """Whether either side has it; of refusals, whether any would be right there."""
    if measure.part.startswith("agreed") and not np.nansum(
        base.get(f"{condition}:wanted", np.zeros(1))
    ):
        return False
    return any(np.nansum(measure.columns(data, condition)[1]) > 0 for data in (base, adapter))


def _comparison(
    name: str,
    condition: str,
    base: Mapping[str, Values],
    adapter: Mapping[str, Values],
    weights: Sequence[Weights],
    seed: int,
) -> Comparison:
    measure, sides = MEASURES[name], (base, adapter)
    (part, whole), (part2, whole2) = (measure.columns(data, condition) for data in sides)
    ones = np.ones((1, len(part)))
    values = [float(measure.of(data, condition, ones)[0]) for data in sides]
    drawn = [np.concatenate([measure.of(d, condition, w) for w in weights]) for d in sides]
    differences = drawn[1] - drawn[0]
    difference = values[1] - values[0]
    if np.array_equal(whole, whole2, equal_nan=True):
        change = np.nan_to_num(part2) - np.nan_to_num(part)
        p = statistics.randomisation_p(change, count=FLIPS, seed=seed)
    else:
        p = statistics.bootstrap_p(differences)
    low, high = statistics.interval(differences)
    first, second = (
        Figure(value, *statistics.interval(samples), int(np.nansum(count > 0)))
        for value, samples, count in zip(values, drawn, (whole, whole2), strict=True)
    )
    if np.isnan(difference):
        low = high = p = nan
    return Comparison(condition, name, first, second, difference, low, high, p)
