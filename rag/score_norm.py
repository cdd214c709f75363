"""Normalise scores by those of unrelated questions, so that they compare between questions.

An encoder places all questions of a language near one direction. Passages near it (short ones, ones
in the question's own language) look similar to every question. The mean of unrelated questions gives
that direction, and their scores show what a match is worth in this knowledge base. See
docs/decisions/005-fusion.md and 007-refusal.md.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.embed import Vector, Vectors
from ingest.errors import UserError
from ingest.normalize import FIELDS, Field, terms
from rag.question import script_of
from rag.types import RefusalFeatures, Script

FEW = 128
"""In a knowledge base of fewer chunks, the background texts count too: all of them beside one chunk,
none beside this many."""

Similarities = NDArray[np.floating]

SCRIPTS: tuple[Script, Script] = ("han", "latin")
CENTRING = 0.75
"""The share of the common direction to subtract from a question's vector (flat from .5 to .9)."""
NATIVE = 0.2
"""A script is native to a knowledge base if at least this share of its chunks is in it."""


@dataclass(frozen=True, slots=True)
class ScoreNorm:
    """Statistics of one encoder over one knowledge base, by the script of the question.

    `questions` and `passages` are mean vectors (dim,). `spread` is the standard deviation of an
    unrelated question's similarity over the chunks. `level` is the median of the best fused scores
    of unrelated questions: what a question without an answer here scores. `native` is true if a fair
    share of the chunks is in the script; questions in another script share no words with them.
    """

    questions: dict[Script, Vector]
    passages: Vector
    spread: dict[Script, float]
    level: dict[Script, float]
    native: dict[Script, bool]

    def centred(self, script: Script, vector: Vector) -> Vector:
        """The vector (dim,) to search with instead of the question's own; not of unit length."""
        return (vector - CENTRING * self.questions[script]).astype(np.float32)

    def standard(self, script: Script, centred: Vector, similarity: Similarities) -> Similarities:
        """Dot products with a `centred` vector as deviations above the mean chunk's, (n,)."""
        return (similarity - self.passages @ centred) / self.spread[script]

    def to_json(self) -> dict[str, Any]:
        """Plain values to store with the knowledge base, for `from_json`."""
        questions = {script: vector.tolist() for script, vector in self.questions.items()}
        return asdict(self) | {"questions": questions, "passages": self.passages.tolist()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ScoreNorm":
        return cls(
            questions={s: np.array(value["questions"][s], np.float32) for s in SCRIPTS},
            passages=np.array(value["passages"], np.float32),
            spread={s: float(value["spread"][s]) for s in SCRIPTS},
            level={s: float(value["level"][s]) for s in SCRIPTS},
            native={s: bool(value["native"][s]) for s in SCRIPTS},
        )


def measure(
    questions: Mapping[Script, Vectors],
    sample: Vectors,
    texts: Sequence[str],
    prior: Mapping[Script, Vectors] | None = None,
) -> ScoreNorm:
    """Means, spreads and native scripts; the levels are 0.

    `questions` are the vectors of `unrelated_questions`, (n, dim) each. `sample` are the vectors of
    evenly drawn chunks, (m, dim), and `texts` their texts; a few hundred are enough, and there may
    be none. `prior` are those of `background` texts, which count in a knowledge base of few chunks.
    """
    scripts = [script_of(text) for text in texts]
    native: dict[Script, bool] = {
        script: scripts.count(script) >= NATIVE * len(scripts) for script in SCRIPTS
    }
    for script, vectors in (prior or {}).items():
        count = round(len(vectors) * background_weight(len(sample)))
        if native[script]:
            sample = np.concatenate([sample, vectors[:count]])
    if not len(sample):
        sample = np.zeros((1, sample.shape[1]), np.float32)
    means: dict[Script, Vector] = {script: questions[script].mean(axis=0) for script in SCRIPTS}
    spread: dict[Script, float] = {}
    for script, mean in means.items():
        similarity = (questions[script] - CENTRING * mean) @ sample.T
        spread[script] = max(float(similarity.std(axis=1).mean()), 1e-6)
    return ScoreNorm(means, sample.mean(axis=0), spread, dict.fromkeys(SCRIPTS, 0.0), native)


@cache
def background() -> Mapping[Script, Sequence[str]]:
    """Short texts of many kinds, by script: what documents hold in general."""
    return json.loads(files("rag").joinpath("background.json").read_bytes())


def background_weight(chunks: int) -> float:
    """The weight of a background text against a chunk, 1 for no chunks to 0 for `FEW`."""
    return max(0.0, 1 - chunks / FEW)


def background_level(
    norm: ScoreNorm, questions: Mapping[Script, Vectors], prior: Mapping[Script, Vectors]
) -> dict[Script, float]:
    """The `level` of the background texts, by their similarity alone."""
    best: dict[Script, list[float]] = {script: [] for script in SCRIPTS}
    for script in SCRIPTS:
        for vector in questions[script]:
            centred = norm.centred(script, vector)
            scores = norm.standard(script, centred, prior[script] @ centred)
            best[script].append(float(scores.max()))
    return level(best)


@cache
def background_frequencies() -> tuple[int, Mapping[Field, Counter[str]]]:
    """The number of background texts, and how many of them have each term."""
    cut = [terms(text) for texts in background().values() for text in texts]
    return len(cut), {field: Counter(t for c in cut for t in set(c.of(field))) for field in FIELDS}


def level(best: Mapping[Script, Sequence[float]]) -> dict[Script, float]:
    """`ScoreNorm.level` from the best fused score of each unrelated question: the median, because a
    knowledge base may happen to answer some of them."""
    return {script: float(np.median(best[script])) for script in SCRIPTS}


@cache
def unrelated_questions() -> Mapping[Script, Sequence[str]]:
    """Questions about nothing in particular, by script."""
    return json.loads(files("rag").joinpath("unrelated_questions.json").read_bytes())


# Confidence
Floats = NDArray[np.float64]
COUNTED = -12.0, 8.0  # the least and the largest score of the reader that count


@dataclass(frozen=True, slots=True)
class Curve:
    """A logistic curve over the features, and the confidence below which to refuse."""

    slope: float
    bias: float
    threshold: float
    reading: float = 0.0
    """The slope of the reader's score."""

    @property
    def weights(self) -> Floats:
        return np.array([self.slope, self.reading, self.bias])


@dataclass(frozen=True, slots=True)
class Calibration:
    """One curve for questions in a script of the knowledge base, one for those in other scripts.

    In the knowledge base's own script the words of a question count too, so that questions with and
    without an answer lie further apart. Each excess is relative to its knowledge
    base's level, so the default curves fit any of them; docs/decisions/007-refusal.md has the sets.
    """

    native: Curve = Curve(0.98, -1.35, 0.35)
    foreign: Curve = Curve(0.98, -1.35, 0.22)

    @property
    def reads(self) -> bool:
        """Whether it was fitted with a reader."""
        return bool(self.native.reading or self.foreign.reading)

    @classmethod
    def from_json(cls, value: Mapping[str, Mapping[str, float]]) -> "Calibration":
        """The inverse of `asdict`."""
        return cls(Curve(**value["native"]), Curve(**value["foreign"]))


@dataclass(frozen=True, slots=True)
class RefuseOptions:
    """When a question is refused."""

    threshold: float | None = None
    """A question with a lower confidence (0 to 1) is refused; unset: the calibrated threshold."""

    def __post_init__(self) -> None:
        if (x := self.threshold) is not None and not 0 <= x <= 1:
            raise UserError("[refuse] threshold is {x}; need 0 (never refuse) to 1", x=x)


READER_CALIBRATION = Calibration(native=Curve(0.24, -0.42, 0.12, 0.37))
"""With the bundled reader, which tells little across languages: there the excess alone counts."""


def confidence(features: RefusalFeatures, curve: Curve) -> float:
    """The probability that there is an answer, 0 to 1."""
    return float(_logistic(_vector(features) @ curve.weights))


def calibrate(
    answerable: Sequence[RefusalFeatures], unanswerable: Sequence[RefusalFeatures], *, refused: float = 0.05
) -> Curve:
    """A curve fitted to the features of labelled questions; both classes have the same weight.

    The threshold refuses at most the share `refused` of the answerable ones. Raises ValueError if
    a class is empty.
    """
    if not answerable or not unanswerable:
        raise ValueError("calibration needs answerable and unanswerable questions")
    sizes = [len(answerable), len(unanswerable)]
    x = np.array([_vector(each) for each in (*answerable, *unanswerable)])
    y = np.repeat([1.0, 0.0], sizes)
    share = np.repeat([0.5 / size for size in sizes], sizes)
    weights = _fit(x, y, share)
    slope, reading, bias = weights.tolist()
    threshold = float(np.quantile(_logistic(x[: sizes[0]] @ weights), refused, method="lower"))
    return Curve(slope, bias, threshold, reading)


def _vector(features: RefusalFeatures) -> Floats:
    return np.array([features.excess, np.clip(features.reading, *COUNTED), 1.0])


def _logistic(logit: Any) -> Any:
    return 1 / (1 + np.exp(-np.clip(logit, -30, 30)))


def _fit(x: Floats, y: Floats, share: Floats) -> Floats:
    """Logistic regression by Newton's method; the ridge keeps separable classes finite."""
    ridge = 1e-3 * np.eye(x.shape[1])
    w = np.zeros(x.shape[1])
    for _ in range(100):
        p = _logistic(x @ w)
        slope = x.T @ (share * (p - y)) + ridge @ w
        curve = (x * (share * p * (1 - p))[:, None]).T @ x + ridge
        step = np.linalg.solve(curve, slope)
        w = w - step
        if np.abs(step).max() < 1e-9:
            break
    return w
