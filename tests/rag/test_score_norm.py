"""What all questions have in common is taken off, and measured."""

import json

import numpy as np
import pytest

from rag.question import script_of
from rag.score_norm import SCRIPTS, ScoreNorm, level, measure, unrelated_questions

RNG = np.random.default_rng(7)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def norm():
    common = RNG.normal(size=32)
    questions = {script: unit(common + 0.5 * RNG.normal(size=(40, 32))) for script in SCRIPTS}
    return measure(questions, unit(RNG.normal(size=(200, 32))), ["汉字", "words"])


@pytest.mark.parametrize(
    ("question", "script"),
    [
        ("公司哪年成立？", "han"),
        ("When was OpenAI founded?", "latin"),
        ("OpenAI是哪一年成立的？", "han"),
        ("GPT-4 API price", "latin"),
        ("1998", "han"),
        ("", "han"),
    ],
)
def test_script_of_a_question(question, script):
    assert script_of(question) == script


def test_centring_takes_off_what_questions_share(norm):
    vectors = unit(norm.questions["han"] + 0.2 * RNG.normal(size=(20, 32)))
    centred = np.array([norm.centred("han", vector) for vector in vectors])
    shared = norm.questions["han"] / np.linalg.norm(norm.questions["han"])
    assert (np.abs(centred @ shared) < np.abs(vectors @ shared)).all()
    assert centred.dtype == np.float32


def test_standard_is_zero_for_the_mean_chunk(norm):
    centred = norm.centred("han", unit(RNG.normal(size=(1, 32)))[0])
    assert norm.standard("han", centred, norm.passages @ centred) == pytest.approx(0)


def test_json_keeps_all(norm):
    again = ScoreNorm.from_json(json.loads(json.dumps(norm.to_json())))
    assert again.spread == pytest.approx(norm.spread)
    assert again.level == norm.level
    assert again.native == norm.native
    assert np.array_equal(again.passages, norm.passages)
    for script in SCRIPTS:
        assert np.array_equal(again.questions[script], norm.questions[script])


def test_level_is_not_moved_by_a_few_questions_that_are_answered():
    best = {"han": [1.0] * 40 + [30.0] * 8, "latin": [2.0] * 48}
    assert level(best) == {"han": 1.0, "latin": 2.0}


@pytest.mark.parametrize("chunks", [0, 1])
def test_hardly_any_chunks_give_finite_numbers(chunks):
    questions = {script: np.ones((3, 4), np.float32) / 2 for script in SCRIPTS}
    norm = measure(questions, np.ones((chunks, 4), np.float32) / 2, ["一"] * chunks)
    assert np.isfinite(norm.passages).all()
    assert all(value > 0 for value in norm.spread.values())


@pytest.mark.parametrize("script", SCRIPTS)
def test_unrelated_questions_are_distinct_and_of_their_script(script):
    questions = unrelated_questions()[script]
    assert len(set(questions)) == len(questions) >= 32
    assert {script_of(question) for question in questions} == {script}
