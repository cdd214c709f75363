"""Refusal: confidence grows with the excess; a fitted curve keeps its promise on false refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.score_norm import Calibration, calibrate, confidence

EXCESS = st.floats(-50, 50)


@given(low=EXCESS, high=EXCESS)
def test_confidence_is_a_probability_that_grows_with_the_excess(low, high):
    low, high = sorted((low, high))
    sure = [confidence(excess, Calibration().native) for excess in (low, high)]
    assert 0 <= sure[0] <= sure[1] <= 1


@given(seed=st.integers(0, 2**32 - 1), refused=st.sampled_from([0.0, 0.05, 0.2]))
def test_calibration_refuses_no_more_answerable_questions_than_promised(seed, refused):
    rng = np.random.default_rng(seed)
    right, wrong = rng.normal(5, 2, 200), rng.normal(0, 1, 50)
    fitted = calibrate(right.tolist(), wrong.tolist(), refused=refused)
    sure = np.array([confidence(excess, fitted) for excess in right])
    assert (sure < fitted.threshold).mean() <= refused
    assert fitted.slope > 0


def test_calibration_finds_the_curve_that_made_the_labels():
    rng = np.random.default_rng(1)
    excess = rng.normal(0, 2, 40_000)
    answerable = rng.random(40_000) < 1 / (1 + np.exp(-1.5 * excess))
    fitted = calibrate(excess[answerable].tolist(), excess[~answerable].tolist())
    assert fitted.slope == pytest.approx(1.5, abs=0.1)
    assert fitted.bias == pytest.approx(0, abs=0.1)


def test_separable_questions_give_a_finite_curve():
    fitted = calibrate([5.0, 6.0], [-5.0, -6.0])
    assert np.isfinite([fitted.slope, fitted.bias, fitted.threshold]).all()
    assert confidence(5.0, fitted) > 0.9 > 0.1 > confidence(-5.0, fitted)


@pytest.mark.parametrize("classes", [([], [1.0]), ([1.0], [])])
def test_calibration_needs_both_classes(classes):
    with pytest.raises(ValueError, match="answerable and unanswerable"):
        calibrate(*classes)
