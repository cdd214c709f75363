"""What one question scores: where its relevant entries rank, and whether a text holds an answer."""

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import log2

import numpy as np
from numpy.typing import NDArray

CUTOFFS = (1, 5, 10)


def ranking_scores(ranked: Sequence[str], grades: Mapping[str, int]) -> dict[str, float]:
    """Success and Recall@1, 5 and 10, MRR@10 and nDCG@10 of `ranked`, best first, no repetition.

    Defined as in trec_eval: relevant means a grade above 0. Success asks for one relevant entry,
    recall for all of them (with two, Recall@1 is at most .5); with a single one they are equal.
    The gain of nDCG is the grade itself and its discount log2(rank + 1). Needs one relevant entry
    at least.
    """
    relevant = {entry for entry, grade in grades.items() if grade > 0}
    scores = {
        f"recall@{k}": len(relevant.intersection(ranked[:k])) / len(relevant) for k in CUTOFFS
    }
    scores |= {f"success@{k}": float(scores[f"recall@{k}"] > 0) for k in CUTOFFS}
    ranks = [rank for rank, entry in enumerate(ranked[:10], start=1) if entry in relevant]
    ideal = sorted((grades[entry] for entry in relevant), reverse=True)
    scores["mrr@10"] = 1 / ranks[0] if ranks else 0.0
    scores["ndcg@10"] = _dcg(max(grades.get(entry, 0), 0) for entry in ranked[:10]) / _dcg(
        ideal[:10]
    )
    return scores


def _dcg(gains: Iterable[int]) -> float:
    return sum(gain / log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def folded(text: str) -> str:
    """`text` in NFKC, case-folded and without whitespace. Traditional and simplified stay apart."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def contains(text: str, answers: Sequence[str]) -> bool:
    """Whether one of `answers` lies within `text` as a string, both folded."""
    whole = folded(text)
    return any(folded(answer) in whole for answer in answers)


def locate(quote: str, text: str) -> list[tuple[int, int]]:
    """Every span of `text` that reads as `quote`: exactly so, or else when both are folded.

    Folding goes character by character, so that offsets survive; a quote whose accents are
    composed otherwise than the text's is not found.
    """
    if spans := _occurrences(quote, text):
        return spans
    pieces = [folded(char) for char in text]
    offsets = [offset for offset, piece in enumerate(pieces) for _ in piece]
    wanted = "".join(folded(char) for char in quote)
    return [(offsets[a], offsets[b - 1] + 1) for a, b in _occurrences(wanted, "".join(pieces))]


def _occurrences(wanted: str, text: str) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    start = text.find(wanted) if wanted else -1
    while start >= 0:
        spans.append((start, start + len(wanted)))
        start = text.find(wanted, start + len(wanted))
    return spans


Values = NDArray[np.float64]
Weights = NDArray[np.float64]

_BLOCK = 4_000_000  # weights held at once; 32 MB


def mean(values: Values, weights: Weights) -> Values:
    """The mean over the questions that have a value (are not NaN)."""
    measured = ~np.isnan(values)
    return _divide(weights @ np.where(measured, values, 0.0), weights @ measured.astype(float))


def ratio(part: Values, whole: Values, weights: Weights) -> Values:
    """The sum of `part` over the sum of `whole`; questions with NaN in `whole` do not count."""
    measured = ~np.isnan(whole)
    parts, wholes = np.where(measured, part, 0.0), np.where(measured, whole, 0.0)
    return _divide(weights @ parts, weights @ wholes)


def quantile(values: Values, weights: Weights, *, level: float) -> Values:
    """The smallest value that `level` of the weight does not exceed (the inverted CDF)."""
    measured = np.flatnonzero(~np.isnan(values))
    order = measured[np.argsort(values[measured], kind="stable")]
    if not len(order):
        return np.full(len(weights), np.nan)
    mass = np.cumsum(weights[:, order], axis=1)
    place = (mass < level * mass[:, -1:] - 1e-9).sum(axis=1)
    return np.where(mass[:, -1] > 0, values[order[np.minimum(place, len(order) - 1)]], np.nan)


def auroc(scores: Values, positive: Values, weights: Weights) -> Values:
    """The chance that a positive (1, negatives 0) scores above a negative, a tie counting half.

    This is the Mann-Whitney U divided by the number of pairs. Questions with NaN do not count.
    """
    positives, negatives = _by_score(scores, positive, weights)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    return _divide((positives * below).sum(axis=1), pairs)


def accepted_negatives(
    scores: Values, positive: Values, weights: Weights, *, lost: float
) -> Values:
    """The share of negatives at or above the highest threshold that loses at most `lost` positives.

    A positive is lost when it scores below the threshold; `lost` is a share.
    """
    positives, negatives = _by_score(scores, positive, weights)
    below = np.cumsum(positives, axis=1) - positives
    allowed = below <= lost * positives.sum(axis=1, keepdims=True) + 1e-9
    threshold = allowed.sum(axis=1, keepdims=True) - 1  # the last allowed column: `below` ascends
    rejected = np.cumsum(negatives, axis=1) - negatives
    total = negatives.sum(axis=1)
    if not rejected.shape[1]:
        return np.full(len(weights), np.nan)
    share = _divide(total - np.take_along_axis(rejected, threshold, axis=1)[:, 0], total)
    return np.where(positives.sum(axis=1) > 0, share, np.nan)


def _by_score(scores: Values, positive: Values, weights: Weights) -> tuple[Weights, Weights]:
    """The weight of positives and of negatives at each distinct score, ascending."""
    measured = np.flatnonzero(~np.isnan(scores))
    order = measured[np.argsort(scores[measured], kind="stable")]
    if not len(order):
        nothing = np.zeros((len(weights), 0))
        return nothing, nothing
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf) > 0)
    sorted_weights = weights[:, order]
    positives = np.add.reduceat(sorted_weights * positive[order], starts, axis=1)
    return positives, np.add.reduceat(sorted_weights, starts, axis=1) - positives


def _divide(part: Values, whole: Values) -> Values:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def resamples(strata: NDArray[np.bool_], *, count: int, seed: int) -> Iterator[Weights]:
    """`count` rows of weights in blocks: questions drawn with replacement within each stratum.

    Answerable and unanswerable questions are drawn apart, because the set's author fixed how many
    there are of each; so no resample lacks either kind.
    """
    rng = np.random.default_rng(seed)
    groups = [group for group in (np.flatnonzero(strata), np.flatnonzero(~strata)) if len(group)]
    rows = max(1, _BLOCK // max(1, len(strata)))
    for start in range(0, count, rows):
        weights = np.zeros((min(rows, count - start), len(strata)))
        for group in groups:
            chances = np.full(len(group), 1 / len(group))
            weights[:, group] = rng.multinomial(len(group), chances, size=len(weights))
        yield weights


def interval(samples: Values, *, level: float = 0.95) -> tuple[float, float]:
    """The percentile bootstrap interval of those `samples` that are defined, NaN without any."""
    tail = (1 - level) / 2
    defined = samples[~np.isnan(samples)]
    low, high = np.quantile(defined, [tail, 1 - tail]) if len(defined) else (np.nan, np.nan)
    return float(low), float(high)


def bootstrap_p(differences: Values) -> float:
    """The two-sided p of "no difference" from paired bootstrap differences of any statistic."""
    defined = differences[~np.isnan(differences)]
    beyond = min((defined <= 0).sum(), (defined >= 0).sum())
    return float(min(1.0, 2 * (beyond + 1) / (len(defined) + 1)))


def randomisation_p(differences: Values, *, count: int, seed: int) -> float:
    """The two-sided p of "the systems are exchangeable" for the mean of paired differences.

    The paired randomisation test of Smucker, Allan and Carterette (CIKM 2007): the signs of the
    per-question differences are flipped at random `count` times. NaN: not measured.
    """
    nonzero = differences[np.abs(differences) > 1e-12]  # a zero stays zero with either sign
    if not len(nonzero):
        return 1.0
    rng = np.random.default_rng(seed)
    observed, extreme = abs(nonzero.sum()) - 1e-9, 0
    rows = max(1, _BLOCK // len(nonzero))
    for start in range(0, count, rows):
        shape = (min(rows, count - start), len(nonzero))
        signs = rng.integers(0, 2, size=shape, dtype=np.int8) * 2.0 - 1.0
        extreme += int((np.abs(signs @ nonzero) >= observed).sum())
    return (extreme + 1) / (count + 1)
