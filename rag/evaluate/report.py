"""Evaluation results: a row per question, figures with intervals, a comparison, a picture."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ingest.errors import UserError
from ingest.i18n import Translatable
from rag import plot
from rag.evaluate import metrics
from rag.evaluate.metrics import ResampleWeights, Values

NOT_SHARES = ("p50", "p95")  # seconds do not fit on an axis from 0 to 1
INTERVALS = Translatable("with 95 % bootstrap intervals over questions")
FALSE_REFUSALS = 0.05  # the largest share of answerable questions that may be refused

Columns = Mapping[str, Any]  # one array of shape (questions,) per name; NaN: not measured


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure of a report: a statistic of some columns."""

    title: Translatable
    columns: tuple[str, ...]
    statistic: Callable[..., Values] = metrics.mean
    larger_is_better: bool = True

    def of(self, data: Columns, weights: ResampleWeights) -> Values:
        """The value for each row of `weights`, shape (resamples,)."""
        return self.statistic(*(data[name] for name in self.columns), weights)

    def questions(self, data: Columns) -> int:
        """The number of questions that have all the columns, and a denominator above 0."""
        counted = np.all([~np.isnan(data[name]) for name in self.columns], axis=0)
        if self.statistic is metrics.ratio:
            counted &= data[self.columns[1]] > 0
        return int(counted.sum())


_CONFIDENCE = ("confidence", "answerable")
_false_answers = partial(metrics.accepted_negatives, lost=FALSE_REFUSALS)
_p50, _p95 = (partial(metrics.quantile, level=level) for level in (0.5, 0.95))
_RANKING = (
    "Success@1", "Success@5", "Success@10", "Recall@1", "Recall@5", "Recall@10", "MRR@10", "nDCG@10",
)  # fmt: skip

SHORT_ANSWER = "short_answer"  # followed by a space and a kind of question: of this kind alone

MEASURES: dict[str, Measure] = {
    title.lower(): Measure(Translatable.of(title, {}), (title.lower(),)) for title in _RANKING
} | {
    "answer_in_sentence": Measure(Translatable("Answer in the best sentence"), ("answer_in_sentence",)),
    "answer_in_two": Measure(Translatable("Answer in at most two sentences"), ("answer_in_two",)),
    "answer_in_passage": Measure(Translatable("Answer in the best passage"), ("answer_in_passage",)),
    "exact": Measure(Translatable("Exact answer"), ("exact",)),
    "f1": Measure(Translatable("F1 of the answer"), ("f1",)),
    SHORT_ANSWER: Measure(Translatable("Right answer that is short"), (SHORT_ANSWER,)),
    "precise": Measure(Translatable("Precise answer"), ("precise",)),
    "page": Measure(Translatable("Citation on the right page"), ("page",)),
    "auroc": Measure(Translatable("Refusal AUROC"), _CONFIDENCE, metrics.auroc),
    "false_answers_at_5": Measure(
        Translatable("False answers at 5 % false refusals"), _CONFIDENCE, _false_answers, False
    ),
    "false_refusals": Measure(
        Translatable("False refusals as set"), ("false_refusal",), larger_is_better=False
    ),
    "false_answers": Measure(Translatable("False answers as set"), ("false_answer",), larger_is_better=False),
    "not_found": Measure(Translatable("Refused by the retrieval"), ("not_found",), larger_is_better=False),
    "declined": Measure(Translatable("Refused by the model"), ("declined",), larger_is_better=False),
    "right": Measure(Translatable("Right answer or right refusal"), ("right",)),
    "citations": Measure(Translatable("Exact citations"), ("exact_citations", "citations"), metrics.ratio),
    "p50": Measure(Translatable("Latency, median (s)"), ("seconds",), _p50, False),
    "p95": Measure(Translatable("Latency, 95th percentile (s)"), ("seconds",), _p95, False),
}


def measure_of(name: str) -> Measure:
    """One of `MEASURES`, or the short answers to one kind of question."""
    if name in MEASURES:
        return MEASURES[name]
    kind = name.removeprefix(f"{SHORT_ANSWER} ")
    return Measure(Translatable("Right answer that is short: {kind}", kind=kind), (name,))


@dataclass(frozen=True, slots=True)
class ScoredQuestion:
    """One question's result. `scores` has the columns measured on it; `ranked` is best first."""

    id: str
    text: str
    answerable: bool
    scores: Mapping[str, float]
    ranked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Figure:
    """A value and its 95 % bootstrap interval over `questions` questions."""

    value: float
    low: float
    high: float
    questions: int

    @property
    def bar(self) -> plot.Bar:
        return self.value, self.low, self.high


UNDEFINED = Figure(np.nan, np.nan, np.nan, 0)


@dataclass(frozen=True, slots=True)
class Difference:
    """`second - first` with its 95 % interval, and the two-sided p of no difference.

    NaN if one of them is undefined. The p is not corrected for multiple comparisons.
    """

    first: Figure
    second: Figure
    difference: float
    low: float
    high: float
    p: float

    @property
    def questions(self) -> int:
        return max(self.first.questions, self.second.questions)


@dataclass(frozen=True, slots=True)
class EvalReport:
    """All results of one configuration, `settings`, on one set."""

    dataset: str
    rows: tuple[ScoredQuestion, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def columns(self) -> dict[str, Any]:
        """An array of shape (questions,) for each score; NaN for the rows that lack it."""
        names = {name for row in self.rows for name in row.scores}
        columns = {
            name: np.array([row.scores.get(name, np.nan) for row in self.rows], float)
            for name in sorted(names)
        }
        return columns | {"answerable": np.array([row.answerable for row in self.rows], float)}

    def figures(self, *, resamples: int = 1000, seed: int = 0) -> dict[str, Figure]:
        """Every defined measure with its interval; the same seed gives the same intervals."""
        data = self.columns()
        found = _bootstrap((data,), None, resamples=resamples, seed=seed)
        return {name: figure for name, _, (figure,), _ in found}

    def save(self, path: Path) -> None:
        """Write settings, figures and rows to `path` as JSON."""
        content = {
            "dataset": self.dataset,
            "settings": dict(self.settings),
            "figures": {name: asdict(figure) for name, figure in self.figures().items()},
            "rows": [asdict(row) for row in self.rows],
        }
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "EvalReport":
        """Read a report that `save` wrote; the figures are computed again from the rows."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            rows = tuple(ScoredQuestion(**{**row, "ranked": tuple(row["ranked"])}) for row in content["rows"])
            return cls(content["dataset"], rows, content["settings"])
        except OSError as error:
            why = error.strerror
            raise UserError("cannot read the report {path}: {why}", path=path, why=why) from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                "{path} is not a saved report ({error!r}); write one with rag eval --save",
                path=path,
                error=error,
            ) from None


def compare(
    first: EvalReport,
    second: EvalReport,
    measures: Mapping[str, Measure] | None = None,
    *,
    resamples: int = 1000,
    flips: int = 10_000,
    seed: int = 0,
) -> dict[str, Difference]:
    """How `second` differs from `first` on the same questions, by measure (default: all of `MEASURES`).

    Intervals come from the paired bootstrap over questions. The p of a mean, and of a ratio whose
    denominators are the same, comes from the paired randomisation test, that of the others from the
    bootstrap. A measure that is defined in neither is left out.
    """
    a, b = first.columns(), EvalReport(second.dataset, _aligned(first, second)).columns()
    none = np.full(len(first.rows), np.nan)
    a, b = dict.fromkeys(b, none) | a, dict.fromkeys(a, none) | b
    differences: dict[str, Difference] = {}
    for name, measure, figures, samples in _bootstrap((a, b), measures, resamples=resamples, seed=seed):
        (before, after), drawn = figures, samples[1] - samples[0]
        difference = after.value - before.value
        part, whole = measure.columns[0], measure.columns[-1]
        same = measure.statistic is metrics.ratio and np.array_equal(a[whole], b[whole], equal_nan=True)
        if np.isnan(difference):
            p = np.nan
        elif same or measure.statistic is metrics.mean:
            p = metrics.randomisation_p(b[part] - a[part], count=flips, seed=seed)
        else:
            p = metrics.bootstrap_p(drawn)
        differences[name] = Difference(before, after, difference, *metrics.interval(drawn), p)
    return differences


def _bootstrap(
    systems: Sequence[Columns], measures: Mapping[str, Measure] | None, *, resamples: int, seed: int
) -> Iterator[tuple[str, Measure, list[Figure], list[Values]]]:
    """Each measure that is defined in a system; of each system its figure, and its values under the
    same resamples."""
    data = systems[0]
    if measures is None:
        kinds = sorted(name for name in data if name.startswith(f"{SHORT_ANSWER} "))
        measures = {name: measure_of(name) for name in [*MEASURES, *kinds]}
    weights = metrics.resamples(data["answerable"] > 0, count=resamples, seed=seed)
    weights = np.concatenate([np.ones((1, weights.shape[1])), weights])  # the first: as it was measured
    for name, measure in measures.items():
        if not data.keys() >= set(measure.columns):
            continue
        samples = [measure.of(data, weights) for data in systems]
        figures = [
            Figure(float(sample[0]), *metrics.interval(sample[1:]), measure.questions(data))
            for data, sample in zip(systems, samples, strict=True)
        ]
        if any(not np.isnan(figure.value) for figure in figures):
            yield name, measure, figures, [sample[1:] for sample in samples]


def _aligned(first: EvalReport, second: EvalReport) -> tuple[ScoredQuestion, ...]:
    """The rows of `second` in the order of `first`."""
    ours, theirs = ({(row.id, row.answerable): row for row in each.rows} for each in (first, second))
    if first.dataset != second.dataset or ours.keys() != theirs.keys():
        id, _ = min(ours.keys() ^ theirs.keys(), default=("none", True))
        raise UserError(
            "cannot compare {first} ({n} questions) with {second} ({m}; only one has question {id}); "
            "evaluate both on the same version of the set",
            first=first.dataset,
            n=len(ours),
            second=second.dataset,
            m=len(theirs),
            id=id,
        )
    return tuple(theirs[key] for key in ours)


def draw(figures: Mapping[str, Mapping[str, Figure]], path: Path) -> None:
    """Draw the `figures` of reports by name to `path` (.png or .svg): a group of bars per measure.

    A name that no installed font can draw becomes "configuration 1" and so on. Raises `UserError`
    if the picture can't be drawn.
    """
    kind = plot.check_picture(path)
    every = {name for values in figures.values() for name in values}
    measures = [name for name in MEASURES if name in every and name not in NOT_SHARES]
    titles = [f"{MEASURES[n].title} {'↑' if MEASURES[n].larger_is_better else '↓'}" for n in measures]
    series = {
        name if plot.drawable(name, kind) else f"configuration {number}": [
            values.get(measure, UNDEFINED).bar for measure in measures
        ]
        for number, (name, values) in enumerate(figures.items(), start=1)
    }
    plot.draw_bars(path, titles, series, label=str(INTERVALS))
