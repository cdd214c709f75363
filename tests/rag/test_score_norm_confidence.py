"""Refusal: confidence grows with the excess; a fitted curve keeps its promise on false refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.score_norm import READER_CALIBRATION, Calibration, Curve, calibrate, confidence
from rag.types import RefusalFeatures

EXCESS, READING = st.floats(-50, 50), st.floats(-30, 20)
CURVES = [curve for each in (Calibration(), READER_CALIBRATION) for curve in (each.native, each.foreign)]


def evidence(values):
    return [RefusalFeatures(value) for value in values]


@given(excess=st.tuples(EXCESS, EXCESS), reading=st.tuples(READING, READING), curve=st.sampled_from(CURVES))
def test_confidence_is_a_probability_that_grows_with_the_evidence(excess, reading, curve):
    pairs = zip(sorted(excess), sorted(reading), strict=True)
    sure = [confidence(RefusalFeatures(*pair), curve) for pair in pairs]
    assert 0 <= sure[0] <= sure[1] <= 1


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), refused=st.sampled_from([0.0, 0.05, 0.2]))
def test_calibration_refuses_no_more_answerable_questions_than_promised(seed, refused):
    rng = np.random.default_rng(seed)
    right, wrong = rng.normal(5, 2, 200), rng.normal(0, 1, 50)
    fitted = calibrate(evidence(right), evidence(wrong), refused=refused)
    sure = np.array([confidence(each, fitted) for each in evidence(right)])
    assert (sure < fitted.threshold).mean() <= refused
    assert fitted.slope > 0


def test_calibration_finds_the_curve_that_made_the_labels():
    rng = np.random.default_rng(1)
    excess = rng.normal(0, 2, 40_000)
    answerable = rng.random(40_000) < 1 / (1 + np.exp(-1.5 * excess))
    fitted = calibrate(evidence(excess[answerable]), evidence(excess[~answerable]))
    assert fitted.slope == pytest.approx(1.5, abs=0.1)
    assert fitted.bias == pytest.approx(0, abs=0.1)


def test_separable_questions_give_a_finite_curve():
    fitted = calibrate(evidence([5.0, 6.0]), evidence([-5.0, -6.0]))
    assert np.isfinite([fitted.slope, fitted.bias, fitted.threshold]).all()
    assert confidence(RefusalFeatures(5.0), fitted) > 0.9 > 0.1 > confidence(RefusalFeatures(-5.0), fitted)


def test_the_reader_counts_if_it_tells_the_questions_apart():
    yes, no = (
        [RefusalFeatures(1.0, 2.0), RefusalFeatures(0.0, 3.0)],
        [RefusalFeatures(1.0, -4.0), RefusalFeatures(0.0, -5.0)],
    )
    assert calibrate(yes, no).reading > abs(calibrate(yes, no).slope)


def test_a_calibration_of_an_older_version_is_read():
    stored = {"native": {"slope": 1.0, "bias": 0.5, "threshold": 0.4}}
    stored["foreign"] = stored["native"]
    assert Calibration.from_json(stored).native == Curve(1.0, 0.5, 0.4)
    assert not Calibration.from_json(stored).reads


@pytest.mark.parametrize("classes", [([], [1.0]), ([1.0], [])])
def test_calibration_needs_both_classes(classes):
    with pytest.raises(ValueError, match="answerable and unanswerable"):
        calibrate(*map(evidence, classes))
