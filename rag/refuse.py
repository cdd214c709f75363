"""How likely the knowledge base answers a question, decided before anything is written."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Evidence:
    """What retrieval says of a question.

    `excess`: the best fused score above the background's level for the question's script.
    `gap`: the best fused score above the mean of the ones that follow it.
    """

    excess: float
    gap: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Weights of a logistic model over the evidence, and the confidence below which to refuse."""

    excess: float = 1.0
    gap: float = 0.5
    bias: float = -1.5
    threshold: float = 0.3


FOLLOWERS = 20
"""How many chunks after the best one make the mean that `gap` is measured against."""


def evidence(scores: NDArray[np.float32], level: float) -> Evidence:
    """Of the fused scores of a question's candidates, best first, (n,) with n > 0."""
    followers = scores[1 : FOLLOWERS + 1]
    gap = float(scores[0] - followers.mean()) if len(followers) else 0.0
    return Evidence(float(scores[0]) - level, gap)


def confidence(found: Evidence, calibration: Calibration) -> float:
    """0 to 1, larger is surer."""
    logit = calibration.excess * found.excess + calibration.gap * found.gap + calibration.bias
    return float(1 / (1 + np.exp(-np.clip(logit, -30, 30))))


def calibrate(
    answerable: Sequence[Evidence], unanswerable: Sequence[Evidence], *, refused: float = 0.05
) -> Calibration:
    """Weights fitted to labelled questions; at most the share `refused` of answerable ones lost.

    Logistic regression by Newton's method, the two classes weighted alike, with a small ridge.
    Raises ValueError where a class is empty.
    """
    if not answerable or not unanswerable:
        raise ValueError("calibration needs answerable and unanswerable questions")
    x = np.array([[e.excess, e.gap, 1.0] for e in [*answerable, *unanswerable]])
    y = np.repeat([1.0, 0.0], [len(answerable), len(unanswerable)])
    share = np.repeat(
        [0.5 / len(answerable), 0.5 / len(unanswerable)], [len(answerable), len(unanswerable)]
    )
    ridge = np.diag([1e-3, 1e-3, 0])
    w = np.zeros(3)
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        slope = x.T @ (share * (p - y)) + ridge @ w
        curve = (x * (share * p * (1 - p))[:, None]).T @ x + ridge + 1e-9 * np.eye(3)
        step = np.linalg.solve(curve, slope)
        w -= step
        if np.abs(step).max() < 1e-8:
            break
    fitted = Calibration(*map(float, w))
    kept = np.quantile([confidence(e, fitted) for e in answerable], refused, method="lower")
    return Calibration(fitted.excess, fitted.gap, fitted.bias, float(kept))
