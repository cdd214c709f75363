"""What an evaluation came to: base and adapter by condition and measure, with intervals.

Every measure is the sum of one column of `finetune.evaluate.run` over that of another. Intervals come from
the paired bootstrap over questions, all of a question's cases together (rag.evaluate.metrics);
answerable and unanswerable questions are drawn apart.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.evaluate.questions import CONDITIONS
from finetune.evaluate.run import Asked, Reply
from ingest.errors import UserError
from ingest.i18n import Translatable, Translator, readable, translate
from rag import plot
from rag.evaluate import metrics
from rag.evaluate.metrics import Values, Weights
from rag.evaluate.report import Figure, whiskers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas


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

    title: Translatable
    part: str
    whole: str
    conditions: tuple[str, ...]
    primary: bool = False
    larger_is_better: bool = True

    def of(self, data: Mapping[str, Values], condition: str, weights: Weights) -> Values:
        """Its value for each row of `weights`, shape (resamples,); NaN where undefined."""
        part, whole = self.columns(data, condition)
        return metrics.ratio(part, whole, weights)

    def columns(self, data: Mapping[str, Values], condition: str) -> tuple[Values, Values]:
        """Shape (questions,) each, NaN where a question does not measure it."""
        part, whole = (data.get(f"{condition}:{name}") for name in (self.part, self.whole))
        if part is None or whole is None:
            size = len(next(iter(data.values())))
            return np.full(size, np.nan), np.full(size, np.nan)
        return part, whole


MEASURES: dict[str, Measure] = {
    "exact": Measure(Translatable("Exact match"), "exact", "asked", ANSWERED),
    "contains": Measure(Translatable("Holds the answer"), "contains", "asked", ANSWERED),
    "f1": Measure(Translatable("F1"), "f1", "asked", ANSWERED, primary=True),
    "rouge_l": Measure(Translatable("ROUGE-L"), "rouge_l", "asked", ANSWERED),
    "bleu4": Measure(Translatable("BLEU-4 (0–100)"), "bleu4", "asked", ANSWERED),
    "refusal_precision": Measure(
        Translatable("Refusal precision"), "agreed", "refused", ("retrieved", ALL), primary=True
    ),
    "refusal_recall": Measure(
        Translatable("Refusal recall"),
        "agreed",
        "wanted",
        ("retrieved", "distractors", ALL),
        primary=True,
    ),
    "refusal_f1": Measure(
        Translatable("Refusal F1"), "agreed2", "refused_wanted", ("retrieved", ALL)
    ),
    "false_refusals": Measure(
        Translatable("False refusals"), "misrefused", "asked", FOUND, larger_is_better=False
    ),
    "grounded": Measure(Translatable("Cites what answers"), "grounded", "asked", FOUND),
    "known": Measure(Translatable("Cites what exists"), "known", "marked", READING),
    "unsupported": Measure(
        Translatable("Unsupported sentences"),
        "unsupported",
        "claims",
        READING,
        larger_is_better=False,
    ),
}


BLEU4 = Translatable(
    "BLEU-4: over characters, nltk's sentence_bleu with method3, x 100, as THUDM's ptuning"
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
    weights = list(metrics.resamples(strata, count=resamples, seed=seed))
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
        p = metrics.randomisation_p(change, count=FLIPS, seed=seed)
    else:
        p = metrics.bootstrap_p(differences)
    low, high = metrics.interval(differences)
    first, second = (
        Figure(value, *metrics.interval(samples), int(np.nansum(count > 0)))
        for value, samples, count in zip(values, drawn, (whole, whole2), strict=True)
    )
    if np.isnan(difference):
        low = high = p = nan
    return Comparison(condition, name, first, second, difference, low, high, p)


LEVEL = 0.05
COLLAPSE = 0.5
"""An adapter keeps so much of what its base knows without passages, at least."""
WORTH = 0.1
"""F1 of the base from which that is looked at: below, it knows nothing to lose."""

CONDITION_TITLES = {
    "closed": Translatable("closed book"),
    "gold": Translatable("gold passage"),
    "retrieved": Translatable("retrieved"),
    "distractors": Translatable("distractors only"),
    "passages": Translatable("all with passages"),
    "general": Translatable("general"),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reasons` against it where it is not to be shipped, else what got better."""

    ship: bool
    reasons: tuple[Translatable, ...]


def verdict(comparisons: Sequence[Comparison]) -> Verdict:
    """Ship what got better somewhere and worse nowhere, by the primary measures.

    Worse: the 95 % interval of the difference lies wholly below 0, or less than half is left of an
    F1 without passages. Better: it lies wholly above 0 and p is below .05, for a few questions make
    narrow intervals. Evidence is asked of what is good, not of what is bad.

    A model that hardly ever refuses does so precisely, and one that always does recalls all. So a
    fall of precision or recall counts only where refusals as a whole (their F1) did not get better.
    """
    against = [*_worse(comparisons), *_collapsed(comparisons)]
    if against:
        return Verdict(False, tuple(against))
    better = tuple(_better(comparisons))
    if better:
        return Verdict(True, better)
    nothing = Translatable(
        "nothing got better beyond chance: no primary measure has its 95 % interval above 0 and "
        "p < {level}; ask more questions, or train more",
        level=LEVEL,
    )
    return Verdict(False, (nothing,))


def _primary(comparisons: Sequence[Comparison]) -> Iterator[Comparison]:
    return (each for each in comparisons if MEASURES[each.measure].primary)


def _worse(comparisons: Sequence[Comparison]) -> Iterator[Translatable]:
    surer = {e.condition for e in comparisons if e.measure == "refusal_f1" and e.low > 0}
    for each in _primary(comparisons):
        made_up = each.measure != "f1" and surer & {each.condition, ALL}
        if each.high < 0 and not made_up:
            yield _reason(Translatable("worse"), each)


def _collapsed(comparisons: Sequence[Comparison]) -> Iterator[Translatable]:
    for each in comparisons:
        alone = each.condition in ("closed", "general") and each.measure == "f1"
        lost = each.base.value >= WORTH and each.adapter.value < COLLAPSE * each.base.value
        if alone and lost and not each.high < 0:
            yield _reason(Translatable("collapsed"), each)


def _better(comparisons: Sequence[Comparison]) -> Iterator[Translatable]:
    for each in _primary(comparisons):
        # A precision has no exact test, and what it gains, F1 or recall gain too.
        if each.measure != "refusal_precision" and each.low > 0 and each.p < LEVEL:
            yield _reason(Translatable("better"), each)


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
"""Field of `Comparison`, name, colour, and how far from a condition's place."""


def check_place(path: Path) -> None:
    """`UserError` where no file can be put, before there is anything to write."""
    if path.is_dir():
        raise UserError("{path} is a folder; name a file", path=path)
    if not path.parent.is_dir():
        raise UserError(
            "there is no folder {folder} to write {name} into; make it first",
            folder=path.parent,
            name=path.name,
        )


def draw(comparisons: Sequence[Comparison], path: Path, *, title: str, say: Translator) -> None:
    """Write a picture to `path` (.png or .svg): a panel per measure, in it two bars a condition.

    In a PNG, a title that no installed font can draw is left out, and Chinese becomes English.
    Raises `UserError` if the picture can't be drawn.
    """
    kind = plot.check_picture(path)
    say, title = plot.speaker(say, kind), title if plot.drawable(title, kind) else ""
    rows = panels(comparisons)
    size = (12, 0.9 + 2.6 * max(1, len(rows)))
    plot.save(path, lambda canvas: chart(canvas, rows, title, say), size=size)


def panels(comparisons: Sequence[Comparison]) -> list[list[list[Comparison]]]:
    """The rows of a picture, of each its panels, of each what it shows."""
    rows = [
        [found for name in names if (found := [c for c in comparisons if c.measure == name])]
        for names in PANELS
    ]
    return [row for row in rows if row]


def chart(
    canvas: "Canvas", rows: Sequence[Sequence[Sequence[Comparison]]], title: str, say: Translator
) -> None:
    """Draw the `panels` on a matplotlib figure."""
    columns = max((len(row) for row in rows), default=1)
    grid = canvas.add_gridspec(max(1, len(rows)), columns)
    for line, row in enumerate(rows):
        for column, found in enumerate(row):
            _bars(canvas.add_subplot(grid[line, column]), found, say)
    head = f"{title}   {say(INTERVALS)}".strip()
    canvas.suptitle(head, fontsize=10, x=0.01, ha="left")
    axes = canvas.axes[:1]
    handles, labels = axes[0].get_legend_handles_labels() if axes else ([], [])
    canvas.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)


def _bars(axes: "Axes", found: Sequence[Comparison], say: Translator) -> None:
    for side, title, colour, offset in SIDES:
        figures: list[Figure] = [getattr(each, side) for each in found]
        drawn = [(place, f) for place, f in enumerate(figures) if f.value == f.value]
        values = [f.value for _, f in drawn]
        spread = whiskers([f for _, f in drawn])
        places = [place + offset for place, _ in drawn]
        axes.bar(places, values, 0.38, yerr=spread, capsize=2, label=say(title), color=colour)
        for place, figure in enumerate(figures):
            defined = figure.value == figure.value
            # Above its whisker, so that none is crossed out.
            top = max(figure.value, figure.high) if defined else 0
            text = f"{figure.value:.2f}" if defined else "–"
            axes.text(place + offset, top + 0.02, text, ha="center", fontsize=8)
    measure = MEASURES[found[0].measure]
    axes.set_title(say(measure.title), fontsize=10, loc="left")
    names = [f"{_name(each.condition, say)}\nn = {each.questions}" for each in found]
    axes.set_xticks(range(len(found)), names, fontsize=8)
    axes.set_xlim(-0.6, max(3, len(found)) - 0.4)
    axes.set_ylim(0, 1.15)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.tick_params(axis="y", labelsize=8)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _name(condition: str, say: Translator) -> str:
    return say("all passages") if condition == ALL else say(CONDITION_TITLES[condition])


def record(
    about: Mapping[str, Any],
    results: Sequence[Sequence[Asked]],
    comparisons: Sequence[Comparison],
    verdict: Verdict,
) -> bytes:
    """JSON in UTF-8. A value that is undefined is null."""
    value = {
        "about": dict(about),
        "verdict": {
            "ship": verdict.ship,
            "reasons": [{"text": each, "zh": translate(each, "zh")} for each in verdict.reasons],
        },
        "figures": [_defined(asdict(comparison)) for comparison in comparisons],
        "replies": [_asked(asked) for cases in results for asked in cases],
    }
    text = json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False)
    return f"{readable(text)}\n".encode()


def _defined(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _defined(each) for name, each in value.items()}
    return None if isinstance(value, float) and isnan(value) else value


def _asked(asked: Asked) -> dict[str, Any]:
    case = asked.case
    return {
        "id": case.question.id,
        "condition": case.condition,
        "question": case.question.text,
        "answers": case.question.answers,
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
        "base": _reply(asked.base),
        "adapter": _reply(asked.adapter),
    }


def _reply(reply: Reply) -> dict[str, Any]:
    return {
        "text": reply.text,
        "refused": reply.refused,
        "cited": reply.cited,
        "unsupported": [reply.text[start:end] for start, end in reply.unsupported],
        "scores": dict(reply.columns),
    }
