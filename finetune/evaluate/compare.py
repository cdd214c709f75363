"""The result of an evaluation: base and adapter by condition and measure, with intervals; a decision.

Every measure is the sum of one column of `finetune.evaluate.run` over that of another. Intervals are
from the paired bootstrap over questions, with all cases of a question together
(rag.evaluate.metrics); answerable and unanswerable questions are resampled separately.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.evaluate.questions import CONDITIONS
from finetune.evaluate.run import CaseResult, ScoredReply
from ingest.errors import UserError
from ingest.i18n import Translatable, Translator, translate
from ingest.normalize import readable
from rag import plot
from rag.evaluate import metrics
from rag.evaluate.metrics import Values, ResampleWeights
from rag.evaluate.report import Figure, whiskers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

Sides = tuple[Mapping[str, Values], Mapping[str, Values]]
"""The columns of base and adapter."""
RESAMPLES = 2000
FLIPS = 10_000
READING = ("gold", "retrieved", "distractors")
"""Conditions with passages."""
ALL = "passages"
"""All of these together."""
ORDER = (*CONDITIONS, ALL, "general")
ANSWERED = ("closed", "gold", "retrieved", "general")
FOUND = ("gold", "retrieved")
CONDITION_TITLES = {
    "closed": Translatable("closed book"),
    "gold": Translatable("gold passage"),
    "retrieved": Translatable("retrieved"),
    "distractors": Translatable("distractors only"),
    "passages": Translatable("all with passages"),
    "general": Translatable("general"),
}


@dataclass(frozen=True, slots=True)
class RatioMetric:
    """The sum of column `part` over that of `whole`, under these `conditions`.

    A `primary` one decides whether the adapter is shipped.
    """

    title: Translatable
    part: str
    whole: str
    conditions: tuple[str, ...]
    primary: bool = False
    larger_is_better: bool = True

    def of(self, data: Mapping[str, Values], condition: str, weights: ResampleWeights) -> Values:
        """Its value for each row of `weights`, shape (resamples,); NaN if undefined."""
        return metrics.ratio(*self.columns(data, condition), weights)

    def columns(self, data: Mapping[str, Values], condition: str) -> tuple[Values, Values]:
        """Shape (questions,) each, NaN if a question has no such value."""
        part, whole = (data.get(f"{condition}:{name}") for name in (self.part, self.whole))
        if part is None or whole is None:
            none = np.full(len(next(iter(data.values()))), np.nan)
            return none, none
        return part, whole


MEASURES: dict[str, RatioMetric] = {
    "exact": RatioMetric(Translatable("Exact match"), "exact", "asked", ANSWERED),
    "contains": RatioMetric(Translatable("Holds the answer"), "contains", "asked", ANSWERED),
    "f1": RatioMetric(Translatable("F1"), "f1", "asked", ANSWERED, primary=True),
    "rouge_l": RatioMetric(Translatable("ROUGE-L"), "rouge_l", "asked", ANSWERED),
    "bleu4": RatioMetric(Translatable("BLEU-4 (0–100)"), "bleu4", "asked", ANSWERED),
    "refusal_precision": RatioMetric(
        Translatable("Refusal precision"), "agreed", "refused", ("retrieved", ALL), primary=True
    ),
    "refusal_recall": RatioMetric(
        Translatable("Refusal recall"), "agreed", "wanted", (*READING[1:], ALL), primary=True
    ),
    "refusal_f1": RatioMetric(Translatable("Refusal F1"), "agreed2", "refused_wanted", ("retrieved", ALL)),
    "false_refusals": RatioMetric(
        Translatable("False refusals"), "misrefused", "asked", FOUND, larger_is_better=False
    ),
    "grounded": RatioMetric(Translatable("Cites what answers"), "grounded", "asked", FOUND),
    "known": RatioMetric(Translatable("Cites what exists"), "known", "marked", READING),
    "unsupported": RatioMetric(
        Translatable("Unsupported sentences"), "unsupported", "claims", READING, larger_is_better=False
    ),
}
BLEU4 = Translatable("BLEU-4: over characters, nltk's sentence_bleu with method3, x 100, as THUDM's ptuning")
"""Which of the many metrics of this name it is."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A measure under a condition: both values, and adapter - base with its 95 % interval.

    `p` (two-sided, of there being no difference) is the paired randomisation test's if both have the
    same denominator, otherwise the bootstrap's; it is not corrected for many measures. A precision
    without refusals is NaN, and so is its difference.
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
    results: Sequence[Sequence[CaseResult]], *, resamples: int = RESAMPLES, seed: int = 0
) -> list[Comparison]:
    """By condition, then measure. `results`: the cases of each question. The same seed gives the
    same intervals."""
    results = [cases for cases in results if cases]
    if not results:
        return []
    base, adapter = (
        columns([[(each.case.condition, getattr(each, side)) for each in r] for r in results])
        for side in ("base", "adapter")
    )
    strata = np.array([cases[0].case.question.answerable for cases in results])
    weights = list(metrics.resamples(strata, count=resamples, seed=seed))
    return [
        _comparison(name, condition, (base, adapter), weights, seed)
        for condition in ORDER
        for name, measure in MEASURES.items()
        if condition in measure.conditions and _is_measured(measure, condition, (base, adapter))
    ]


def columns(replies: Sequence[Sequence[tuple[str, ScoredReply]]]) -> dict[str, Values]:
    """`condition:column` -> shape (questions,), NaN if a question has no such value.

    `replies`: for each question, the conditions and the replies of one side.
    """
    rows = [dict(_row(of_question)) for of_question in replies]
    names = sorted({name for row in rows for name in row})
    return {name: np.array([row.get(name, nan) for row in rows], float) for name in names}


def _row(replies: Sequence[tuple[str, ScoredReply]]) -> Iterator[tuple[str, float]]:
    total = {"refused": 0.0, "wanted": 0.0, "agreed": 0.0}
    reading: list[tuple[str, Mapping[str, float]]] = []
    for condition, reply in replies:
        yield from ((f"{condition}:{name}", value) for name, value in reply.columns.items())
        if condition in READING:
            reading.append((condition, reply.columns))
            total = {name: value + reply.columns[name] for name, value in total.items()}
    if len(reading) > 1:
        yield from ((f"{ALL}:{name}", value) for name, value in total.items())
        reading.append((ALL, total))
    for condition, values in reading:  # F1 = 2 agreed / (refused + wanted)
        yield f"{condition}:agreed2", 2 * values["agreed"]
        yield f"{condition}:refused_wanted", values["refused"] + values["wanted"]


def _is_measured(measure: RatioMetric, condition: str, sides: Sides) -> bool:
    """Whether either side has values; for refusals, whether any refusal would be right."""
    wanted = sides[0].get(f"{condition}:wanted", np.zeros(1))
    if measure.part.startswith("agreed") and not np.nansum(wanted):
        return False
    return any(np.nansum(measure.columns(data, condition)[1]) > 0 for data in sides)


def _comparison(name: str, condition: str, sides: Sides, weights: Sequence[ResampleWeights], seed: int) -> Comparison:
    measure = MEASURES[name]
    (part, whole), (part2, whole2) = (measure.columns(data, condition) for data in sides)
    ones = np.ones((1, len(part)))
    values = [float(measure.of(data, condition, ones)[0]) for data in sides]
    samples = [np.concatenate([measure.of(d, condition, w) for w in weights]) for d in sides]
    differences = samples[1] - samples[0]
    difference = values[1] - values[0]
    if np.array_equal(whole, whole2, equal_nan=True):
        change = np.nan_to_num(part2) - np.nan_to_num(part)
        p = metrics.randomisation_p(change, count=FLIPS, seed=seed)
    else:
        p = metrics.bootstrap_p(differences)
    low, high = metrics.interval(differences)
    first, second = (
        Figure(value, *metrics.interval(sample), int(np.nansum(count > 0)))
        for value, sample, count in zip(values, samples, (whole, whole2), strict=True)
    )
    if np.isnan(difference):
        low = high = p = nan
    return Comparison(condition, name, first, second, difference, low, high, p)


LEVEL = 0.05
COLLAPSE = 0.5
"""An adapter must have this share of its base's F1 without passages, at least."""
WORTH = 0.1
"""The smallest F1 of the base for that rule: below, it knows nothing to lose."""


@dataclass(frozen=True, slots=True)
class Decision:
    """`reasons` against the adapter if it must not be shipped, otherwise what got better."""

    ship: bool
    reasons: tuple[Translatable, ...]


def decide(comparisons: Sequence[Comparison]) -> Decision:
    """Ship an adapter that is better somewhere and worse nowhere, by the primary measures.

    Worse: the 95 % interval of the difference is wholly below 0, or less than half is left of an F1
    without passages. Better: it is wholly above 0 and p is below .05, because a few questions give
    narrow intervals. Only an improvement needs that evidence.

    A model that hardly ever refuses has a high precision, and one that always refuses a high recall.
    So a loss of precision or recall counts only if the F1 of refusals did not improve.
    """
    refuses_better = {each.condition for each in comparisons if each.measure == "refusal_f1" and each.low > 0}
    losses: list[Translatable] = []
    collapses: list[Translatable] = []
    gains: list[Translatable] = []
    for each in comparisons:
        primary, name = MEASURES[each.measure].primary, each.measure
        outweighed = name != "f1" and refuses_better & {each.condition, ALL}
        if primary and each.high < 0 and not outweighed:
            losses.append(_reason(Translatable("worse"), each))
        # A precision has no exact test, and an improvement shows in F1 or recall, too.
        if primary and name != "refusal_precision" and each.low > 0 and each.p < LEVEL:
            gains.append(_reason(Translatable("better"), each))
        collapsed = each.base.value >= WORTH and each.adapter.value < COLLAPSE * each.base.value
        closed = name == "f1" and each.condition in ("closed", "general")
        if closed and collapsed and not each.high < 0:
            collapses.append(_reason(Translatable("collapsed"), each))
    if losses or collapses:
        return Decision(False, (*losses, *collapses))
    if gains:
        return Decision(True, tuple(gains))
    nothing = Translatable(
        "nothing got better beyond chance: no primary measure has its 95 % interval above 0 and "
        "p < {level}; ask more questions, or train more",
        level=LEVEL,
    )
    return Decision(False, (nothing,))


def _reason(change: Translatable, each: Comparison) -> Translatable:
    return Translatable(
        "{change}: {measure}, {condition}: {base:.3f} → {adapter:.3f} ({difference:+.3f}; 95 % "
        "{low:+.3f} – {high:+.3f}; {questions} questions)",
        change=change,
        measure=MEASURES[each.measure].title,
        condition=CONDITION_TITLES[each.condition],
        base=each.base.value,
        adapter=each.adapter.value,
        difference=each.difference,
        low=each.low,
        high=each.high,
        questions=each.questions,
    )


PANELS = (("f1", "exact", "grounded"), ("refusal_recall", "refusal_precision", "refusal_f1"))
"""Measures of each row; those that were not measured are left out."""
INTERVALS = Translatable("with 95 % bootstrap intervals over questions")
SIDES = (
    ("base", Translatable("base"), plot.GREY, -0.2),
    ("adapter", Translatable("adapter"), plot.ORANGE, 0.2),
)
"""Field of `Comparison`, name, colour, and distance from a condition's place."""


def check_place(path: Path) -> None:
    """Raises `UserError`, before there is anything to write, if a file can't be written there."""
    folder, name = path.parent, path.name
    if path.is_dir():
        raise UserError("{path} is a folder; name a file", path=path)
    if not folder.is_dir():
        raise UserError(
            "there is no folder {folder} to write {name} into; make it first", folder=folder, name=name
        )


def draw(comparisons: Sequence[Comparison], path: Path, *, title: str, say: Translator) -> None:
    """Write a picture to `path` (.png or .svg): a panel for each measure, two bars a condition.

    In a PNG, a title that no installed font can draw is left out, and Chinese becomes English.
    Raises `UserError` if the picture can't be drawn.
    """
    kind = plot.check_picture(path)
    say, title = plot.speaker(say, kind), title if plot.drawable(title, kind) else ""
    rows = panels(comparisons)
    size = (12, 0.9 + 2.6 * max(1, len(rows)))
    plot.save(path, lambda canvas: chart(canvas, rows, title, say), size=size)


def panels(comparisons: Sequence[Comparison]) -> list[list[list[Comparison]]]:
    """The rows of a picture; each has panels, and these have the comparisons to show."""
    rows = [
        [shown for name in names if (shown := [c for c in comparisons if c.measure == name])]
        for names in PANELS
    ]
    return [row for row in rows if row]


def chart(
    canvas: "Canvas", rows: Sequence[Sequence[Sequence[Comparison]]], title: str, say: Translator
) -> None:
    """Draw the `panels` on a matplotlib figure."""
    grid = canvas.add_gridspec(max(1, len(rows)), max(map(len, rows), default=1))
    for line, row in enumerate(rows):
        for column, shown in enumerate(row):
            _bars(canvas.add_subplot(grid[line, column]), shown, say)
    canvas.suptitle(f"{title}   {say(INTERVALS)}".strip(), fontsize=10, x=0.01, ha="left")
    axes = canvas.axes[:1]
    handles, labels = axes[0].get_legend_handles_labels() if axes else ([], [])
    canvas.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)


def _bars(axes: "Axes", shown: Sequence[Comparison], say: Translator) -> None:
    for side, title, colour, offset in SIDES:
        figures: list[Figure] = [getattr(each, side) for each in shown]
        defined = [(place, f) for place, f in enumerate(figures) if not isnan(f.value)]
        values, spread = [f.value for _, f in defined], whiskers([f for _, f in defined])
        places = [place + offset for place, _ in defined]
        axes.bar(places, values, 0.38, yerr=spread, capsize=2, label=say(title), color=colour)
        for place, figure in enumerate(figures):
            # Above its whisker, so that no text is crossed out.
            top = 0 if isnan(figure.value) else max(figure.value, figure.high)
            text = "–" if isnan(figure.value) else f"{figure.value:.2f}"
            axes.text(place + offset, top + 0.02, text, ha="center", fontsize=8)
    axes.set_title(say(MEASURES[shown[0].measure].title), fontsize=10, loc="left")
    titles = CONDITION_TITLES | {ALL: Translatable("all passages")}
    names = [f"{say(titles[each.condition])}\nn = {each.questions}" for each in shown]
    axes.set_xticks(range(len(shown)), names, fontsize=8)
    axes.set_xlim(-0.6, max(3, len(shown)) - 0.4)
    axes.set_ylim(0, 1.15)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.tick_params(axis="y", labelsize=8)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def record(
    about: Mapping[str, Any],
    results: Sequence[Sequence[CaseResult]],
    comparisons: Sequence[Comparison],
    decision: Decision,
) -> bytes:
    """JSON in UTF-8. A value that is undefined is null."""
    reasons = [{"text": each, "zh": translate(each, "zh")} for each in decision.reasons]
    value = {
        "about": dict(about),
        "verdict": {"ship": decision.ship, "reasons": reasons},
        "figures": [_defined(asdict(comparison)) for comparison in comparisons],
        "replies": [_case(result) for cases in results for result in cases],
    }
    text = json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False)
    return f"{readable(text)}\n".encode()


def _defined(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _defined(each) for name, each in value.items()}
    return None if isinstance(value, float) and isnan(value) else value


def _case(result: CaseResult) -> dict[str, Any]:
    case, question = result.case, result.case.question
    return {
        "id": question.id,
        "condition": case.condition,
        "question": question.text,
        "answers": question.answers,
        "refusal_is_right": case.refuse,
        "passages": [
            {
                "number": number,
                "source": source.hit.chunk.source,
                "label": source.passage.label,
                "answers": number in case.gold,
                "text": source.passage.text,
            }
            for number, source in enumerate(case.sources, start=1)
        ],
        "base": _reply(result.base),
        "adapter": _reply(result.adapter),
    }


def _reply(reply: ScoredReply) -> dict[str, Any]:
    return {
        "text": reply.text,
        "refused": reply.refused,
        "cited": reply.cited,
        "unsupported": [reply.text[start:end] for start, end in reply.unsupported],
        "scores": dict(reply.columns),
    }
