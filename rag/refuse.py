"""How likely the knowledge base answers a question, decided before an answer is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.errors import UserError

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curve:
    """A logistic curve over the excess, and the confidence below which to refuse.

    The excess is the best fused score minus `ScoreNorm.level`: how much better the knowledge base
    matches this question than unrelated questions.
    """

    slope: float
    bias: float
    threshold: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """One curve for questions in a script of the knowledge base, one for those in other scripts.

    In the knowledge base's own script the words of a question count too, so that questions with and
    without an answer lie further apart. Each excess is relative to its knowledge
    base's level, so the default curves fit any of them; docs/decisions/007-refusal.md has the sets.
    """

    native: Curve = Curve(0.98, -1.35, 0.35)
    foreign: Curve = Curve(0.98, -1.35, 0.22)

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


def confidence(excess: float, curve: Curve) -> float:
    """The probability that there is an answer, 0 to 1."""
    return float(_logistic(curve.slope * np.float64(excess) + curve.bias))


def calibrate(answerable: Sequence[float], unanswerable: Sequence[float], *, refused: float = 0.05) -> Curve:
    """A curve fitted to the excesses of labelled questions; both classes have the same weight.

    The threshold refuses at most the share `refused` of the answerable ones. Raises ValueError if
    a class is empty.
    """
    if not answerable or not unanswerable:
        raise ValueError("calibration needs answerable and unanswerable questions")
    sizes = [len(answerable), len(unanswerable)]
    x = np.column_stack([[*answerable, *unanswerable], np.ones(sum(sizes))])
    y = np.repeat([1.0, 0.0], sizes)
    share = np.repeat([0.5 / size for size in sizes], sizes)
    slope, bias = map(float, _fit(x, y, share))
    probabilities = _logistic(slope * np.array(answerable) + bias)
    return Curve(slope, bias, float(np.quantile(probabilities, refused, method="lower")))


def _logistic(logit: Any) -> Any:
    return 1 / (1 + np.exp(-np.clip(logit, -30, 30)))


def _fit(x: Array, y: Array, share: Array) -> Array:
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
