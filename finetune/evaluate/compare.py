"""The result of an evaluation: base and adapter by condition and measure, with intervals; a decision.

The replies of each side become a report of rag.evaluate, whose `compare` has the statistics. A question
is resampled with all its cases; answerable and unanswerable questions are resampled separately.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from finetune.evaluate.questions import CONDITIONS
from finetune.evaluate.run import CaseResult, ScoredReply
from ingest.errors import UserError
from ingest.i18n import Translatable, Translator, translate
from ingest.normalize import readable
from rag import plot
from rag.evaluate import metrics, report
from rag.evaluate.metrics import ResampleWeights, Values
from rag.evaluate.report import INTERVALS, Difference, EvalReport, Measure, ScoredQuestion

Comparisons = Mapping[tuple[str, str], Difference]
"""By condition and name of the measure: the adapter's value and the base's."""
RESAMPLES = 2000
READING = ("gold", "retrieved", "distractors")
"""Conditions with passages."""
ALL = "passages"
"""All of these together."""
CONDITION_TITLES = {
    "closed": Translatable("closed book"),
    "gold": Translatable("gold passage"),
    "retrieved": Translatable("retrieved"),
    "distractors": Translatable("distractors only"),
    "passages": Translatable("all with passages"),
    "general": Translatable("general"),
}


def refusal_f1(agreed: Values, refused: Values, wanted: Values, weights: ResampleWeights) -> Values:
    return metrics.ratio(2 * agreed, refused + wanted, weights)


def _rate(title: Translatable, part: str, whole: str = "asked", *, larger_is_better: bool = True) -> Measure:
    """The sum of a column of `finetune.evaluate.run` over that of another."""
    return Measure(title, (part, whole), metrics.ratio, larger_is_better)


MEASURES = {
    "accuracy": _rate(Translatable("Accuracy"), "accuracy"),
    "exact": _rate(Translatable("Exact match"), "exact"),
    "contains": _rate(Translatable("Holds the answer"), "contains"),
    "f1": _rate(Translatable("F1"), "f1"),
    "rouge_l": _rate(Translatable("ROUGE-L"), "rouge_l"),
    "bleu4": _rate(Translatable("BLEU-4 (0–100)"), "bleu4"),
    "refusal_precision": _rate(Translatable("Refusal precision"), "agreed", "refused"),
    "refusal_recall": _rate(Translatable("Refusal recall"), "agreed", "wanted"),
    "refusal_f1": Measure(Translatable("Refusal F1"), ("agreed", "refused", "wanted"), refusal_f1),
    "false_refusals": _rate(Translatable("False refusals"), "misrefused", larger_is_better=False),
    "grounded": _rate(Translatable("Cites what answers"), "grounded"),
    "known": _rate(Translatable("Cites what exists"), "known", "marked"),
    "unsupported": _rate(
        Translatable("Unsupported sentences"), "unsupported", "claims", larger_is_better=False
    ),
}
PRIMARY = ("accuracy", "f1", "refusal_precision", "refusal_recall")
"""They decide whether the adapter is shipped."""
REFUSALS = ("refusal_precision", "refusal_recall", "refusal_f1")
BLEU4 = Translatable("BLEU-4: over characters, nltk's sentence_bleu with method3, x 100, as THUDM's ptuning")
"""Which of the many metrics of this name it is."""


def compare(
    results: Sequence[Sequence[CaseResult]], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[tuple[str, str], Difference]:
    """By condition, then measure. `results`: the cases of each question. The same seed gives the
    same intervals."""
    results = [cases for cases in results if cases]
    if not results:
        return {}
    base, adapter = (
        EvalReport("", tuple(_scored(number, cases, side) for number, cases in enumerate(results)))
        for side in ("base", "adapter")
    )
    wanted = {name for row in base.rows for name, value in row.scores.items() if value}
    measures = {
        f"{condition}:{name}": replace(
            measure, columns=tuple(f"{condition}:{column}" for column in measure.columns)
        )
        for condition in (*CONDITIONS, ALL, "general")
        for name, measure in MEASURES.items()
        # Refusals are measured if any would be right. Among distractors, all are.
        if name not in REFUSALS or f"{condition}:wanted" in wanted
        if condition != "distractors" or name not in ("refusal_precision", "refusal_f1")
    }
    found = report.compare(base, adapter, measures, resamples=resamples, seed=seed)
    return {(condition, name): each for key, each in found.items() for condition, name in [key.split(":")]}


def _scored(number: int, cases: Sequence[CaseResult], side: str) -> ScoredQuestion:
    """The scores have names as `condition:column`."""
    replies: list[tuple[str, ScoredReply]] = [(each.case.condition, getattr(each, side)) for each in cases]
    scores = {f"{at}:{name}": value for at, reply in replies for name, value in reply.scores.items()}
    reading = [reply.scores for condition, reply in replies if condition in READING]
    if len(reading) > 1:
        for name in ("refused", "wanted", "agreed"):
            scores[f"{ALL}:{name}"] = sum(each[name] for each in reading)
    question = cases[0].case.question
    return ScoredQuestion(str(number), question.text, question.answerable, scores)


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


def decide(comparisons: Comparisons) -> Decision:
    """Ship an adapter that is better somewhere and worse nowhere, by the primary measures.

    Worse: the 95 % interval of the difference is wholly below 0, or less than half is left of an F1
    without passages. Better: it is wholly above 0 and p is below .05, because a few questions give
    narrow intervals. Only an improvement needs that evidence.

    A model that hardly ever refuses has a high precision, and one that always refuses a high recall.
    So a loss of precision or recall counts only if the F1 of refusals did not improve.
    """
    refuses_better = {
        condition for (condition, name), each in comparisons.items() if name == "refusal_f1" and each.low > 0
    }
    losses: list[Translatable] = []
    collapses: list[Translatable] = []
    gains: list[Translatable] = []
    for (condition, name), each in comparisons.items():
        primary, reason = name in PRIMARY, partial(_reason, condition, name, each)
        outweighed = name in REFUSALS and refuses_better & {condition, ALL}
        if primary and each.high < 0 and not outweighed:
            losses.append(reason(Translatable("worse")))
        # A precision has no exact test, and an improvement shows in F1 or recall, too.
        if primary and name != "refusal_precision" and each.low > 0 and each.p < LEVEL:
            gains.append(reason(Translatable("better")))
        collapsed = each.first.value >= WORTH and each.second.value < COLLAPSE * each.first.value
        closed = name == "f1" and condition in ("closed", "general")
        if closed and collapsed and not each.high < 0:
            collapses.append(reason(Translatable("collapsed")))
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


def _reason(condition: str, name: str, each: Difference, change: Translatable) -> Translatable:
    return Translatable(
        "{change}: {measure}, {condition}: {base:.3f} → {adapter:.3f} ({difference:+.3f}; 95 % "
        "{low:+.3f} – {high:+.3f}; {questions} questions)",
        change=change,
        measure=MEASURES[name].title,
        condition=CONDITION_TITLES[condition],
        base=each.first.value,
        adapter=each.second.value,
        difference=each.difference,
        low=each.low,
        high=each.high,
        questions=each.questions,
    )


PANEL = ("accuracy", "f1", "exact", "grounded", "refusal_recall", "refusal_precision", "refusal_f1")
"""Measures of a picture; those that were not measured are left out."""


def check_place(path: Path) -> None:
    """Raises `UserError`, before there is anything to write, if a file can't be written there."""
    folder, name = path.parent, path.name
    if path.is_dir():
        raise UserError("{path} is a folder; name a file", path=path)
    if not folder.is_dir():
        raise UserError(
            "there is no folder {folder} to write {name} into; make it first", folder=folder, name=name
        )


def draw(comparisons: Comparisons, path: Path, *, title: str, say: Translator) -> None:
    """Write a picture to `path` (.png or .svg): a row for each measure and condition, two bars each.

    In a PNG, a title that no installed font can draw is left out, and Chinese becomes English.
    Raises `UserError` if the picture can't be drawn.
    """
    kind = plot.check_picture(path)
    say, title = plot.speaker(say, kind), title if plot.drawable(title, kind) else ""
    shown = [(key, each) for name in PANEL for key, each in comparisons.items() if key[1] == name]
    rows = [
        f"{say(MEASURES[name].title)}, {say(CONDITION_TITLES[condition])} (n = {each.questions})"
        for (condition, name), each in shown
    ]
    series = {
        say(Translatable("base")): [each.first.bar for _, each in shown],
        say(Translatable("adapter")): [each.second.bar for _, each in shown],
    }
    plot.draw_bars(path, rows, series, label=say(INTERVALS), title=title)


def record(
    about: Mapping[str, Any],
    results: Iterable[Sequence[CaseResult]],
    comparisons: Comparisons,
    decision: Decision,
) -> bytes:
    """JSON in UTF-8. A value that is undefined is null."""
    figures = [
        {
            "condition": condition,
            "measure": name,
            "base": values.pop("first"),
            "adapter": values.pop("second"),
        }
        | values
        for (condition, name), each in comparisons.items()
        for values in [asdict(each)]
    ]
    value = {
        "about": dict(about),
        "verdict": {
            "ship": decision.ship,
            "reasons": [{"text": each, "zh": translate(each, "zh")} for each in decision.reasons],
        },
        "figures": json.loads(json.dumps(figures), parse_constant=lambda _: None),  # NaN
        "replies": [_case(result) for cases in results for result in cases],
    }
    text = json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False)
    return f"{readable(text)}\n".encode()


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
        "base": asdict(result.base),
        "adapter": asdict(result.adapter),
    }
