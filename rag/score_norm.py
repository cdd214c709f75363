"""What an encoder and a knowledge base make of any question, whatever it asks.

An encoder puts all questions of a language near one direction, and passages that lie there (short
ones, ones in the question's own language) look alike to every question. The mean of questions
about nothing in particular shows that direction, and how well they match shows what a match is
worth in this knowledge base. See docs/decisions/005-fusion.md and 007-refusal.md.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ingest.embed import Vector, Vectors
from rag.generic import GENERIC

Script = Literal["han", "latin"]
Similarities = NDArray[np.floating]

SCRIPTS: tuple[Script, Script] = ("han", "latin")

CENTRING = 0.75
"""How much of the common direction is taken off a question's vector (flat between .5 and .9)."""

NATIVE = 0.2
"""The share of the chunks from which a script is one of the knowledge base's own."""

_HAN = re.compile(r"[\u3007\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_LATIN_WORD = re.compile(r"[^\W\d_\u0250-\uffff]+")


def script_of(question: str) -> Script:
    """`han` where Chinese characters are at least as many as Latin words."""
    return "han" if len(_HAN.findall(question)) >= len(_LATIN_WORD.findall(question)) else "latin"


@dataclass(frozen=True, slots=True)
class Background:
    """Statistics of one encoder over one knowledge base, by the script of the question.

    `questions` and `passages` are mean vectors (dim,); `spread` is the standard deviation of a
    generic question's similarity over the chunks; `level` the median of the best fused score that
    generic questions reach: what a question gets that the knowledge base does not answer. `native`
    says whether a fair part of the chunks is in the script; questions in another one share no words.
    """

    questions: dict[Script, Vector]
    passages: Vector
    spread: dict[Script, float]
    level: dict[Script, float]
    native: dict[Script, bool]

    def centred(self, question: str, vector: Vector) -> Vector:
        """The vector (dim,) to search with instead of the question's own; not of unit length."""
        common = self.questions[script_of(question)]
        return (vector - CENTRING * common).astype(np.float32)

    def standard(self, question: str, centred: Vector, similarity: Similarities) -> Similarities:
        """Dot products with a `centred` vector as deviations above the mean chunk's, (n,)."""
        return (similarity - self.passages @ centred) / self.spread[script_of(question)]

    def to_json(self) -> dict[str, Any]:
        """Plain values to keep with the knowledge base, for `from_json`."""
        return {
            "questions": {script: v.tolist() for script, v in self.questions.items()},
            "passages": self.passages.tolist(),
            "spread": dict(self.spread),
            "level": dict(self.level),
            "native": dict(self.native),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Background":
        return cls(
            questions={s: np.array(value["questions"][s], np.float32) for s in SCRIPTS},
            passages=np.array(value["passages"], np.float32),
            spread={s: float(value["spread"][s]) for s in SCRIPTS},
            level={s: float(value["level"][s]) for s in SCRIPTS},
            native={s: bool(value["native"][s]) for s in SCRIPTS},
        )


def measure(
    questions: Mapping[Script, Vectors], sample: Vectors, texts: Sequence[str]
) -> Background:
    """Means, spreads and scripts, with levels still at 0.

    `questions` are the embedded `GENERIC` ones, (n, dim) each; `sample` vectors of chunks of the
    knowledge base, evenly drawn, (m, dim), and `texts` theirs; a few hundred are enough, none (an
    empty one) will do.
    """
    scripts = [script_of(text) for text in texts]
    native: dict[Script, bool] = {
        script: scripts.count(script) >= NATIVE * len(scripts) for script in SCRIPTS
    }
    if not len(sample):
        sample = np.zeros((1, sample.shape[1]), np.float32)
    means: dict[Script, Vector] = {script: questions[script].mean(axis=0) for script in SCRIPTS}
    spread: dict[Script, float] = {}
    for script, mean in means.items():
        similarity = (questions[script] - CENTRING * mean) @ sample.T
        spread[script] = max(float(similarity.std(axis=1).mean()), 1e-6)
    return Background(means, sample.mean(axis=0), spread, dict.fromkeys(SCRIPTS, 0.0), native)


def level(best: Mapping[Script, Sequence[float]]) -> dict[Script, float]:
    """`Background.level` from the best fused score of each generic question.

    A median, for a knowledge base may happen to answer some of them.
    """
    return {script: float(np.median(best[script])) for script in SCRIPTS}


def generic_questions(script: Script) -> tuple[str, ...]:
    return GENERIC[script]
