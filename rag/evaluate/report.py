"""Evaluation results: a row per question, figures with intervals, a comparison, a picture."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ingest.errors import UserError
from ingest.i18n import Translatable
from rag import plot
from rag.evaluate import metrics
from rag.evaluate.metrics import ResampleWeights, Values

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

NOT_SHARES = ("p50", "p95")  # seconds do not fit on an axis from 0 to 1
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

    def value(self, data: Columns) -> float:
        """The value over all questions."""
        return float(self.of(data, np.ones((1, len(data["answerable"]))))[0])

    def questions(self, data: Columns) -> int:
        """The number of questions that have all the columns."""
        return int(np.all([~np.isnan(data[name]) for name in self.columns], axis=0).sum())


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


@dataclass(frozen=True, slots=True)
class Difference:
    """`second - first` with its 95 % interval, and the two-sided p of no difference."""

    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, slots=True)
class EvalReport:
    """All results of one configuration, `settings`, on one set."""

    dataset: str
    rows: tuple[ScoredQuestion, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def columns(self) -> Columns:
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
        values = {name: measure.value(data) for name, measure in _measures(data).items()}
        defined = {name: measure_of(name) for name, value in values.items() if not np.isnan(value)}
        samples = _bootstrap(defined, (data,), resamples=resamples, seed=seed)
        return {
            name: Figure(values[name], *metrics.interval(samples[name][0]), measure.questions(data))
            for name, measure in defined.items()
        }

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
    first: EvalReport, second: EvalReport, *, resamples: int = 1000, flips: int = 10_000, seed: int = 0
) -> dict[str, Difference]:
    """How `second` differs from `first` on the same questions, measure by measure.

    Intervals come from the paired bootstrap. The p of means over questions comes from the paired
    randomisation test, that of the others from the paired bootstrap. Neither is corrected for
    multiple comparisons.
    """
    a, b = first.columns(), EvalReport(second.dataset, _aligned(first, second)).columns()
    both = {name: measure for name, measure in _measures(a).items() if name in _measures(b)}
    samples = _bootstrap(both, (a, b), resamples=resamples, seed=seed)
    differences: dict[str, Difference] = {}
    for name, measure in both.items():
        before, after = measure.value(a), measure.value(b)
        if np.isnan(before) or np.isnan(after):
            continue
        drawn = samples[name][1] - samples[name][0]
        if measure.statistic is metrics.mean:
            (column,) = measure.columns
            p = metrics.randomisation_p(b[column] - a[column], count=flips, seed=seed)
        else:
            p = metrics.bootstrap_p(drawn)
        differences[name] = Difference(before, after, after - before, *metrics.interval(drawn), p)
    return differences


def _bootstrap(
    measures: Mapping[str, Measure], systems: Sequence[Columns], *, resamples: int, seed: int
) -> dict[str, Values]:
    """Each measure on each system under the same resamples, shape (systems, resamples)."""
    strata = systems[0]["answerable"] > 0
    blocks = [
        {name: [each.of(data, weights) for data in systems] for name, each in measures.items()}
        for weights in metrics.resamples(strata, count=resamples, seed=seed)
    ]
    return {name: np.concatenate([block[name] for block in blocks], axis=1) for name in measures}


def _measures(data: Columns) -> dict[str, Measure]:
    """The measures whose columns `data` has."""
    kinds = sorted(name for name in data if name.startswith(f"{SHORT_ANSWER} "))
    every = {name: measure_of(name) for name in [*MEASURES, *kinds]}
    return {name: each for name, each in every.items() if data.keys() >= set(each.columns)}


def _aligned(first: EvalReport, second: EvalReport) -> tuple[ScoredQuestion, ...]:
    """The rows of `second` in the order of `first`."""
    theirs = {row.id: row for row in second.rows}
    ours = {row.id: row for row in first.rows}
    if first.dataset != second.dataset or ours.keys() != theirs.keys():
        raise UserError(
            "cannot compare {first} ({n} questions) with {second} ({m}; only one has question {id}); "
            "evaluate both on the same questions",
            first=first.dataset,
            n=len(ours),
            second=second.dataset,
            m=len(theirs),
            id=min(ours.keys() ^ theirs.keys(), default="none"),
        )
    for id, row in ours.items():
        if row.answerable != theirs[id].answerable:
            raise UserError(
                "question {id} is answerable in one report of {dataset} and not in the other; "
                "evaluate both on the same version of the set",
                id=id,
                dataset=first.dataset,
            )
    return tuple(theirs[row.id] for row in first.rows)


def draw(figures: Mapping[str, Mapping[str, Figure]], path: Path) -> None:
    """Draw the `figures` of reports by name to `path` (.png or .svg): a group of bars per measure.

    A name that no installed font can draw becomes "configuration 1" and so on. Raises `UserError`
    if the picture can't be drawn.
    """
    kind = plot.check_picture(path)
    every = {name for values in figures.values() for name in values}
    measures = [name for name in MEASURES if name in every and name not in NOT_SHARES]
    labels = [
        name if plot.drawable(name, kind) else f"configuration {number}"
        for number, name in enumerate(figures, start=1)
    ]

    def bars(canvas: "Canvas") -> None:
        axes, thickness = canvas.add_subplot(), 0.8 / max(1, len(figures))
        for order, (values, label) in enumerate(zip(figures.values(), labels, strict=True)):
            shown = [(row, values[name]) for row, name in enumerate(measures) if name in values]
            places = [row + (order - (len(figures) - 1) / 2) * thickness for row, _ in shown]
            widths = [figure.value for _, figure in shown]
            spread = whiskers([figure for _, figure in shown])
            drawn = axes.barh(places, widths, thickness * 0.9, xerr=spread, capsize=2, label=label)
            axes.bar_label(drawn, [f"{width:.3f}" for width in widths], padding=4, fontsize=8)
        rows = [MEASURES[name] for name in measures]
        titles = [f"{row.title} {'↑' if row.larger_is_better else '↓'}" for row in rows]
        axes.set_yticks(range(len(measures)), titles)
        axes.invert_yaxis()
        axes.margins(y=0.01)
        axes.set_xlim(0, 1.12)
        axes.set_xlabel("with 95 % bootstrap intervals over questions")
        axes.spines[["top", "right"]].set_visible(False)
        canvas.legend(loc="outside lower center", ncols=3, frameon=False)

    plot.save(path, bars, size=(8, 1.2 + len(measures) * (0.18 + 0.22 * len(figures))))


def whiskers(figures: Sequence[Figure]) -> list[list[float]]:
    """How far the intervals extend below and above the values: matplotlib's error bars."""
    return [
        [max(0.0, figure.value - figure.low) for figure in figures],
        [max(0.0, figure.high - figure.value) for figure in figures],
    ]
