"""How likely the knowledge base answers a question, decided before anything is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ingest.errors import UserError


@dataclass(frozen=True, slots=True)
class Curve:
    """A logistic curve over the excess, and the confidence below which to refuse.

    The excess is the best fused score above `ScoreNorm.level`: how much better the knowledge base
    matches this question than questions that have nothing to do with it.
    """

    slope: float
    bias: float
    threshold: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """A curve for questions in a script of the knowledge base, and one for those in another.

    Words help the former, so their excesses lie further apart. The excess is measured against each
    encoder's and knowledge base's own level, without labelled questions, so the curves carry over.
    The thresholds are chosen on the sets of docs/decisions/007-refusal.md.
    """

    native: Curve = Curve(0.98, -1.35, 0.35)
    foreign: Curve = Curve(0.98, -1.35, 0.22)

    def curve(self, *, native: bool) -> Curve:
        return self.native if native else self.foreign

    @classmethod
    def from_json(cls, value: Mapping[str, Mapping[str, float]]) -> "Calibration":
        """What `asdict` gave."""
        return cls(Curve(**value["native"]), Curve(**value["foreign"]))


@dataclass(frozen=True, slots=True)
class RefuseOptions:
    """What `rag.toml` may say about refusing."""

    threshold: float | None = None
    """Confidence (0 to 1) below which a question is refused; unset: the calibrated one."""

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UserError(
                "[refuse] threshold is {threshold}; need 0 (never refuse) to 1",
                threshold=self.threshold,
            )


def confidence(excess: float, curve: Curve) -> float:
    """How likely there is an answer: 0 to 1, larger is surer."""
    return float(_along(np.float64(excess), curve))


def calibrate(
    answerable: Sequence[float], unanswerable: Sequence[float], *, refused: float = 0.05
) -> Curve:
    """A curve fitted to the excesses of labelled questions; the two classes weigh the same.

    The threshold refuses at most the share `refused` of the answerable ones. Raises ValueError if
    a class is empty.
    """
    if not answerable or not unanswerable:
        raise ValueError("calibration needs answerable and unanswerable questions")
    sizes = [len(answerable), len(unanswerable)]
    x = np.column_stack([[*answerable, *unanswerable], np.ones(sum(sizes))])
    y = np.repeat([1.0, 0.0], sizes)
    share = np.repeat([0.5 / size for size in sizes], sizes)
    w = _logistic(x, y, share)
    fitted = Curve(float(w[0]), float(w[1]), 0.0)
    kept = np.quantile(_along(np.array(answerable), fitted), refused, method="lower")
    return replace(fitted, threshold=float(kept))


def _along(excess: NDArray[np.float64] | np.float64, curve: Curve):
    logit = curve.slope * excess + curve.bias
    return 1 / (1 + np.exp(-np.clip(logit, -30, 30)))


def _logistic(
    x: NDArray[np.float64], y: NDArray[np.float64], share: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Logistic regression by Newton's method; the ridge keeps separable classes finite."""
    ridge = 1e-3 * np.eye(x.shape[1])
    w = np.zeros(x.shape[1])
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        slope = x.T @ (share * (p - y)) + ridge @ w
        curve = (x * (share * p * (1 - p))[:, None]).T @ x + ridge
        step = np.linalg.solve(curve, slope)
        w = w - step
        if np.abs(step).max() < 1e-9:
            break
    return w
