"""Metrics equal trec_eval's; statistics equal their definitions; intervals and tests behave."""

import random
from itertools import product

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from rag.evaluate.metrics import (
    accepted_negatives,
    auroc,
    contains,
    locate,
    mean,
    normalize_answer,
    quantile,
    randomisation_p,
    ranking_scores,
    ratio,
    resamples,
    span_f1,
)
from rag.evaluate.report import EvalReport, ScoredQuestion, compare


def test_ranking_scores_equal_trec_eval() -> None:
    """The oracle is trec_eval itself on a fixed run of 200 questions with grades from -1 to 3."""
    rng = random.Random(5)
    entries = [f"d{number}" for number in range(40)]
    qrels, rankings = {}, {}
    for number in range(200):
        grades = {entry: rng.choice([-1, 0, 1, 1, 2, 3]) for entry in rng.sample(entries, 12)}
        qrels[f"q{number}"] = grades | {"d0": 1}
        rankings[f"q{number}"] = rng.sample(entries, rng.randrange(30))
    run = {
        query: {entry: float(-rank) for rank, entry in enumerate(ranked)}
        for query, ranked in rankings.items()
    }
    first_ten = {query: dict(list(scores.items())[:10]) for query, scores in run.items()}
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"recall.1,5,10", "success.1,5,10", "ndcg_cut.10"})
    expected = evaluator.evaluate(run)
    reciprocal = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(first_ten)
    compared = 0
    for query, ranked in rankings.items():
        if not ranked:  # trec_eval leaves out questions without results; they score 0
            assert not any(ranking_scores(ranked, qrels[query]).values())
            continue
        ours = ranking_scores(ranked, qrels[query])
        for name, k in product(["recall", "success"], [1, 5, 10]):
            assert ours[f"{name}@{k}"] == pytest.approx(expected[query][f"{name}_{k}"])
        assert ours["ndcg@10"] == pytest.approx(expected[query]["ndcg_cut_10"])
        assert ours["mrr@10"] == pytest.approx(reciprocal[query]["recip_rank"])
        compared += 1
    assert compared > 150


SCORED = st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 3)), min_size=1, max_size=30)


@given(SCORED)
def test_auroc_equals_its_pairs(scored: list[tuple[int, bool, int]]) -> None:
    """Weights are counts, so the oracle repeats each question and looks at every pair."""
    repeated = [(score, positive) for score, positive, count in scored for _ in range(count)]
    positives = [score for score, positive in repeated if positive]
    negatives = [score for score, positive in repeated if not positive]
    pairs = [(a > b) + (a == b) / 2 for a, b in product(positives, negatives)]
    scores, positive, weights = (np.array(column, float) for column in zip(*scored, strict=True))
    ours = auroc(scores, positive, weights[None])[0]
    assert ours == pytest.approx(np.mean(pairs) if pairs else np.nan, nan_ok=True)


@given(SCORED, st.sampled_from([0.0, 0.05, 0.2, 0.5]))
def test_accepted_negatives_equal_the_best_threshold(
    scored: list[tuple[int, bool, int]], lost: float
) -> None:
    """The oracle tries every threshold."""
    repeated = [(score, positive) for score, positive, count in scored for _ in range(count)]
    positives = [score for score, positive in repeated if positive]
    negatives = [score for score, positive in repeated if not positive]
    expected = np.nan
    if positives and negatives:
        allowed = [
            threshold
            for threshold in {score for score, _, _ in scored}
            if np.mean([score < threshold for score in positives]) <= lost
        ]
        expected = np.mean([score >= max(allowed) for score in negatives])
    scores, positive, weights = (np.array(column, float) for column in zip(*scored, strict=True))
    ours = accepted_negatives(scores, positive, weights[None], lost=lost)[0]
    assert ours == pytest.approx(expected, nan_ok=True)


@given(st.lists(st.floats(0, 9), min_size=1, max_size=40), st.sampled_from([0.05, 0.5, 0.95, 1.0]))
def test_quantile_equals_numpys(values: list[float], level: float) -> None:
    ours = quantile(np.array(values), np.ones((1, len(values))), level=level)[0]
    assert ours == np.quantile(values, level, method="inverted_cdf")


def test_unmeasured_questions_do_not_count() -> None:
    nan = np.nan
    weights = np.array([[1.0, 1, 1, 1], [0, 0, 2, 1]])
    assert mean(np.array([1, nan, 0, nan]), weights) == pytest.approx([0.5, 0])
    assert ratio(np.array([1, nan, 0, 2]), np.array([1, nan, 2, 2]), weights) == pytest.approx([0.6, 1 / 3])
    scores, positive = np.array([0.1, nan, 0.9, 0.5]), np.array([0.0, 1, 1, 0])
    assert auroc(scores, positive, weights) == pytest.approx([1, 1])
    assert np.isnan(mean(np.full(4, nan), weights)).all()
    assert np.isnan(auroc(np.full(4, nan), positive, weights)).all()
    assert np.isnan(accepted_negatives(np.full(4, nan), positive, weights, lost=0.1)).all()
    assert np.isnan(quantile(np.full(4, nan), weights, level=0.5)).all()


def test_resamples_keep_the_strata_and_the_seed() -> None:
    strata = np.array([True] * 7 + [False] * 3)
    weights = resamples(strata, count=50, seed=1)
    assert weights.shape == (50, 10)
    assert (weights[:, strata].sum(axis=1) == 7).all()
    assert (weights[:, ~strata].sum(axis=1) == 3).all()
    assert (weights == resamples(strata, count=50, seed=1)).all()


def test_intervals_of_a_mean_are_the_normal_ones() -> None:
    rng = np.random.default_rng(2)
    hits = rng.random(800) < 0.8
    rows = [ScoredQuestion(str(n), "", True, {"recall@1": float(hit)}) for n, hit in enumerate(hits)]
    figure = EvalReport("set", tuple(rows)).figures(resamples=2000)["recall@1"]
    half = 1.96 * np.sqrt(hits.mean() * (1 - hits.mean()) / 800)
    assert figure.low == pytest.approx(hits.mean() - half, abs=0.005)
    assert figure.high == pytest.approx(hits.mean() + half, abs=0.005)


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=8))
def test_randomisation_equals_all_sign_flips(differences: list[int]) -> None:
    values = np.array(differences, float)
    sums = [abs(np.dot(signs, values)) for signs in product([-1, 1], repeat=len(values))]
    exact = np.mean([total >= abs(values.sum()) for total in sums])
    assert randomisation_p(values, count=4000, seed=0) == pytest.approx(exact, abs=0.04)


def report(confidence: np.ndarray, hits: np.ndarray) -> EvalReport:
    rows = [
        ScoredQuestion(str(n), "", n % 5 > 0, {"confidence": float(c), "recall@1": float(h), "seconds": 0.1})
        for n, (c, h) in enumerate(zip(confidence, hits, strict=True))
    ]
    return EvalReport("set", tuple(rows))


def test_comparison_tells_a_real_difference_from_none() -> None:
    rng = np.random.default_rng(3)
    answerable = np.arange(500) % 5 > 0
    hits = rng.random(500) < 0.7
    better = hits | (rng.random(500) < 0.3)
    weak = report(rng.normal(0.5 * answerable), hits)
    strong = report(rng.normal(3.0 * answerable), better)
    found = compare(weak, strong)
    for name in ("recall@1", "auroc", "false_answers_at_5"):
        assert found[name].p < 0.01, name
        assert found[name].low * found[name].high > 0, name
    backwards = compare(strong, weak)
    assert backwards["auroc"].difference == -found["auroc"].difference
    assert backwards["auroc"].low == pytest.approx(-found["auroc"].high)
    shuffled = report(rng.normal(0.5 * answerable), rng.random(500) < 0.7)
    none = compare(weak, shuffled)["recall@1"]
    assert none.low < 0 < none.high
    assert none.p > 0.05


def test_comparison_pairs_questions_by_id() -> None:
    rng = np.random.default_rng(4)
    one = report(rng.random(50), rng.random(50) < 0.5)
    reordered = EvalReport("set", one.rows[::-1])
    assert all(value.difference == 0 for value in compare(one, reordered).values())


@given(st.text(max_size=40), st.integers(0, 40), st.integers(1, 10))
def test_every_quote_is_located(text: str, start: int, length: int) -> None:
    quote = text[start : start + length]
    spans = locate(quote, text)
    assert bool(spans) == bool(quote)
    assert all(normalize_answer(text[a:b]) == normalize_answer(quote) for a, b in spans)


def test_quotes_are_located_through_width_case_and_breaks() -> None:
    text = "甲：ＡＢ\n Ｃ 丁㎏。abc"
    assert locate("abc", text) == [(11, 14)]
    assert [text[a:b] for a, b in locate("ABC丁kg", text)] == ["ＡＢ\n Ｃ 丁㎏"]
    assert locate("戊", text) == []


def test_containment_folds_width_case_and_space_only() -> None:
    assert contains("共 ５４６４ Km", ["5464km"])
    assert not contains("黄河", ["黃河"])
    assert not contains("黄河", [])


@pytest.mark.parametrize(
    ("text", "answers", "value"),
    [
        ("六个月", ["六个月"], 1.0),
        (" 六 个月。", ["三年", "六个月"], 1.0),
        ("不得超过六个月", ["六个月"], 0.6),
        ("Three  years", ["three years"], 1.0),
        ("4,500 元", ["4500元"], 1.0),
        ("", ["六个月"], 0.0),
        ("七天", ["六个月"], 0.0),
    ],
)
def test_span_f1_is_that_of_the_longest_common_run(text: str, answers: list[str], value: float) -> None:
    assert span_f1(text, answers) == pytest.approx(value)
