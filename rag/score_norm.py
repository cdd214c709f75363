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
from ingest.normalize import FIELDS, Field, terms
from rag.question import script_of
from rag.types import Script

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
