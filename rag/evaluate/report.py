"""What an evaluation found: a row per question, figures with intervals, a comparison, a picture."""

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
from rag.evaluate.metrics import Values, Weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOT_SHARES = ("p50", "p95")  # seconds do not fit on an axis from 0 to 1
FALSE_REFUSALS = 0.05  # the share of answerable questions that the operating point may refuse

Columns = Mapping[str, Any]  # one array of shape (questions,) per name; NaN: not measured


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure of a report: a statistic of some columns."""

    title: Translatable
    columns: tuple[str, ...]
    statistic: Callable[..., Values] = metrics.mean
    larger_is_better: bool = True

    def of(self, data: Columns, weights: Weights) -> Values:
        """Its value for each row of `weights`, shape (resamples,)."""
        return self.statistic(*(data[name] for name in self.columns), weights)

    def questions(self, data: Columns) -> int:
        """How many questions it was measured on."""
        return int(np.all([~np.isnan(data[name]) for name in self.columns], axis=0).sum())


_CONFIDENCE = ("confidence", "answerable")
_false_answers = partial(metrics.accepted_negatives, lost=FALSE_REFUSALS)

MEASURES: dict[str, Measure] = {
    "success@1": Measure(Translatable("Success@1"), ("success@1",)),
    "success@5": Measure(Translatable("Success@5"), ("success@5",)),
    "success@10": Measure(Translatable("Success@10"), ("success@10",)),
    "recall@1": Measure(Translatable("Recall@1"), ("recall@1",)),
    "recall@5": Measure(Translatable("Recall@5"), ("recall@5",)),
    "recall@10": Measure(Translatable("Recall@10"), ("recall@10",)),
    "mrr@10": Measure(Translatable("MRR@10"), ("mrr@10",)),
    "ndcg@10": Measure(Translatable("nDCG@10"), ("ndcg@10",)),
    "answer_in_sentence": Measure(
        Translatable("Answer in the best sentence"), ("answer_in_sentence",)
    ),
    "answer_in_two": Measure(Translatable("Answer in at most two sentences"), ("answer_in_two",)),
    "answer_in_passage": Measure(
        Translatable("Answer in the best passage"), ("answer_in_passage",)
    ),
    "auroc": Measure(Translatable("Refusal AUROC"), _CONFIDENCE, metrics.auroc),
    "false_answers_at_5": Measure(
        Translatable("False answers at 5 % false refusals"), _CONFIDENCE, _false_answers, False
    ),
    "false_refusals": Measure(
        Translatable("False refusals as set"), ("false_refusal",), larger_is_better=False
    ),
    "false_answers": Measure(
        Translatable("False answers as set"), ("false_answer",), larger_is_better=False
    ),
    "right": Measure(Translatable("Right answer or right refusal"), ("right",)),
    "citations": Measure(
        Translatable("Exact citations"), ("exact_citations", "citations"), metrics.ratio
    ),
    "p50": Measure(
        Translatable("Latency, median (s)"),
        ("seconds",),
        partial(metrics.quantile, level=0.5),
        False,
    ),
    "p95": Measure(
        Translatable("Latency, 95th percentile (s)"),
        ("seconds",),
        partial(metrics.quantile, level=0.95),
        False,
    ),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One question's result. `scores` holds the columns measured on it; `ranked` is best first."""

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
    """`second - first` with its 95 % interval, and the p of there being none (two-sided)."""

    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, slots=True)
class Report:
    """All results of one configuration on one set. `settings` says what was evaluated."""

    dataset: str
    rows: tuple[Row, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def columns(self) -> Columns:
        """An array of shape (questions,) for every score of any row; NaN where a row lacks it."""
        names = {name for row in self.rows for name in row.scores}
        columns = {
            name: np.array([row.scores.get(name, np.nan) for row in self.rows], float)
            for name in sorted(names)
        }
        return columns | {"answerable": np.array([row.answerable for row in self.rows], float)}

    def figures(self, *, resamples: int = 1000, seed: int = 0) -> dict[str, Figure]:
        """Every measure that was measured, with intervals; the same seed gives the same ones."""
        data = self.columns()
        ones = np.ones((1, len(self.rows)))
        values = {
            name: float(measure.of(data, ones)[0]) for name, measure in _measured(data).items()
        }
        defined = {name: MEASURES[name] for name, value in values.items() if not np.isnan(value)}
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
    def load(cls, path: Path) -> "Report":
        """Read what `save` wrote; figures are computed anew from the rows."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            rows = tuple(Row(**{**row, "ranked": tuple(row["ranked"])}) for row in content["rows"])
            return cls(content["dataset"], rows, content["settings"])
        except OSError as error:
            raise UserError(
                "cannot read the report {path}: {strerror}", path=path, strerror=error.strerror
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                "{path} is no saved report ({error!r}); write one with rag eval --save",
                path=path,
                error=error,
            ) from None


def compare(
    first: Report, second: Report, *, resamples: int = 1000, flips: int = 10_000, seed: int = 0
) -> dict[str, Difference]:
    """How `second` differs from `first` on the same questions, measure by measure.

    Intervals come from the paired bootstrap. The p of means over questions comes from the paired
    randomisation test, that of the others from the paired bootstrap; neither is corrected for
    looking at many measures.
    """
    rows = _aligned(first, second)
    a, b = first.columns(), Report(second.dataset, rows).columns()
    both = {name: measure for name, measure in _measured(a).items() if name in _measured(b)}
    samples = _bootstrap(both, (a, b), resamples=resamples, seed=seed)
    ones = np.ones((1, len(rows)))
    differences: dict[str, Difference] = {}
    for name, measure in both.items():
        before, after = (float(measure.of(data, ones)[0]) for data in (a, b))
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
        {
            name: [measure.of(data, weights) for data in systems]
            for name, measure in measures.items()
        }
        for weights in metrics.resamples(strata, count=resamples, seed=seed)
    ]
    return {name: np.concatenate([block[name] for block in blocks], axis=1) for name in measures}


def _measured(data: Columns) -> dict[str, Measure]:
    """The measures whose columns `data` has."""
    return {
        name: measure for name, measure in MEASURES.items() if data.keys() >= set(measure.columns)
    }


def _aligned(first: Report, second: Report) -> tuple[Row, ...]:
    """The rows of `second` in the order of `first`."""
    rows = {row.id: row for row in second.rows}
    here = {row.id for row in first.rows}
    if first.dataset != second.dataset or here != rows.keys():
        alone = next(iter(sorted(here ^ rows.keys())), "none")
        raise UserError(
            "cannot compare {dataset} ({here_count} questions) with {dataset_2} ({rows_count}; "
            "only one has question {alone}); evaluate both on the same questions",
            dataset=first.dataset,
            here_count=len(here),
            dataset_2=second.dataset,
            rows_count=len(rows),
            alone=alone,
        )
    for row in first.rows:
        if row.answerable != rows[row.id].answerable:
            raise UserError(
                "question {id} is answerable in one report of {dataset} and not in the other; "
                "evaluate both on the same version of the set",
                id=row.id,
                dataset=first.dataset,
            )
    return tuple(rows[row.id] for row in first.rows)


def draw(figures: Mapping[str, Mapping[str, Figure]], path: Path) -> None:
    """Write a picture to `path` (.png or .svg): a group of bars per measure, in it a bar per name.

    `figures`: name -> figures of a report. Measures that only some have are drawn for those. Names
    that no font of this machine draws become "configuration 1" and so on. Raises `UserError` if the
    picture can't be drawn.
    """
    kind = plot.check_picture(path)
    measures = [
        name
        for name in MEASURES
        if name not in NOT_SHARES and any(name in values for values in figures.values())
    ]
    labels = [
        name if plot.drawable(name, kind) else f"configuration {number}"
        for number, name in enumerate(figures, start=1)
    ]
    height = 1.2 + len(measures) * (0.18 + 0.22 * len(figures))
    plot.save(
        path,
        lambda canvas: _bars(canvas.add_subplot(), measures, list(figures.values()), labels),
        size=(8, height),
    )


def _bars(
    axes: "Axes",
    measures: Sequence[str],
    figures: Sequence[Mapping[str, Figure]],
    labels: Sequence[str],
) -> None:
    thickness = 0.8 / max(1, len(figures))
    for order, (values, label) in enumerate(zip(figures, labels, strict=True)):
        shown = [(row, values[name]) for row, name in enumerate(measures) if name in values]
        places = [row + (order - (len(figures) - 1) / 2) * thickness for row, _ in shown]
        widths = [figure.value for _, figure in shown]
        spread = whiskers([figure for _, figure in shown])
        bars = axes.barh(places, widths, thickness * 0.9, xerr=spread, capsize=2, label=label)
        axes.bar_label(bars, [f"{width:.3f}" for width in widths], padding=4, fontsize=8)
    arrows = {True: "↑", False: "↓"}
    titles = [
        f"{MEASURES[name].title} {arrows[MEASURES[name].larger_is_better]}" for name in measures
    ]
    axes.set_yticks(range(len(measures)), titles)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlim(0, 1.12)
    axes.set_xlabel("with 95 % bootstrap intervals over questions")
    axes.spines[["top", "right"]].set_visible(False)
    axes.figure.legend(loc="outside lower center", ncols=3, frameon=False)


def whiskers(figures: Sequence[Figure]) -> list[list[float]]:
    """How far the intervals reach below the values, and above them: matplotlib's error bars."""
    return [
        [max(0.0, figure.value - figure.low) for figure in figures],
        [max(0.0, figure.high - figure.value) for figure in figures],
    ]
