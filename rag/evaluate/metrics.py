"""Ranking metrics, answer containment, and statistics of scores over questions."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from math import log2

import numpy as np
from numpy.typing import NDArray

CUTOFFS = (1, 5, 10)


def ranking_scores(ranked: Sequence[str], grades: Mapping[str, int]) -> dict[str, float]:
    """Success and Recall@1, 5 and 10, MRR@10 and nDCG@10 of distinct `ranked`, best first.

    Defined as in trec_eval: a grade above 0 is relevant. Success needs one relevant entry, recall
    all of them (with two, Recall@1 is at most .5). The gain of nDCG is the grade itself and its
    discount log2(rank + 1). There must be at least one relevant entry.
    """
    relevant = {entry for entry, grade in grades.items() if grade > 0}
    scores = {f"recall@{k}": len(relevant.intersection(ranked[:k])) / len(relevant) for k in CUTOFFS}
    scores |= {f"success@{k}": float(scores[f"recall@{k}"] > 0) for k in CUTOFFS}
    ranks = [rank for rank, entry in enumerate(ranked[:10], start=1) if entry in relevant]
    ideal = sorted((grades[entry] for entry in relevant), reverse=True)
    scores["mrr@10"] = 1 / ranks[0] if ranks else 0.0
    gains = (max(grades.get(entry, 0), 0) for entry in ranked[:10])
    scores["ndcg@10"] = _dcg(gains) / _dcg(ideal[:10])
    return scores


def _dcg(gains: Iterable[int]) -> float:
    return sum(gain / log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def normalize_answer(text: str) -> str:
    """`text` in NFKC, case-folded, without whitespace. Traditional and simplified stay distinct."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def contains(text: str, answers: Sequence[str]) -> bool:
    """Whether `text` contains one of `answers`, after normalisation of both."""
    whole = normalize_answer(text)
    return any(normalize_answer(answer) in whole for answer in answers)


_GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_DASHES = dict.fromkeys(map(ord, "‐‑‒–—−－"), "-") | dict.fromkeys(map(ord, "～〜∼"), "~")


_UNITS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")


def answer_end(text: str, answers: Sequence[str]) -> int | None:
    """Where the first of `answers` ends in `text`, in characters that are not space; None if none occurs.

    Unlike `contains`, a number must be the whole number: 4.5 is not found in 14.5 or 4.55, but 4,500 in
    4500. White space may be anywhere but within a number.
    """
    text = _plain(text)
    ends = [match.end() for answer in answers if (match := _pattern(answer).search(text))]
    return len(re.sub(r"\s", "", text[: min(ends)])) if ends else None


def _plain(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).translate(_DASHES).casefold()
    return _GROUPED.sub("", folded)


def _pattern(answer: str) -> re.Pattern[str]:
    chars = [char for char in _plain(answer) if not char.isspace()]
    pairs = zip(chars, [*chars[1:], ""], strict=True)
    body = "".join(
        re.escape(a) + ("" if not b or re.fullmatch(r"[\d.]{2}", a + b) else r"\s*") for a, b in pairs
    )
    before = r"(?<![\d.])" if chars[0].isdigit() else ""
    after = r"(?!\d|\.\d*[1-9])" if chars[-1].isdigit() else ""
    return re.compile(before + body + after)


def span_f1(text: str, answers: Sequence[str]) -> float:
    """The F1 of `text` against the best of `answers`, on their longest common run of words (Han and kana:
    of characters), as for CMRC 2018. It is 1 if nothing but white space and punctuation differs."""
    best, ours = 0.0, _UNITS.findall(_plain(text))
    for answer in answers:
        theirs = _UNITS.findall(_plain(answer))
        common = SequenceMatcher(None, ours, theirs, autojunk=False).find_longest_match().size
        best = max(best, 2 * common / max(1, len(ours) + len(theirs)))
    return best


def locate(quote: str, text: str) -> list[tuple[int, int]]:
    """Every span of `text` that equals `quote`: exactly, or otherwise after normalisation.

    Characters are normalised one by one, to keep the offsets; so composed accents do not match
    decomposed ones.
    """
    if spans := _occurrences(quote, text):
        return spans
    pieces = [normalize_answer(char) for char in text]
    offsets = [offset for offset, piece in enumerate(pieces) for _ in piece]
    part = "".join(normalize_answer(char) for char in quote)
    return [(offsets[a], offsets[b - 1] + 1) for a, b in _occurrences(part, "".join(pieces))]


def _occurrences(part: str, text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(re.escape(part), text)] if part else []


Values = NDArray[np.float64]
ResampleWeights = NDArray[np.float64]

_BLOCK = 4_000_000  # signs in memory at once


def mean(values: Values, weights: ResampleWeights) -> Values:
    """The mean over the questions that have a value (are not NaN)."""
    measured = ~np.isnan(values)
    return _divide(weights @ np.where(measured, values, 0.0), weights @ measured.astype(float))


def ratio(part: Values, whole: Values, weights: ResampleWeights) -> Values:
    """The sum of `part` over the sum of `whole`; questions with NaN in `whole` do not count."""
    measured = ~np.isnan(whole)
    parts, wholes = np.where(measured, part, 0.0), np.where(measured, whole, 0.0)
    return _divide(weights @ parts, weights @ wholes)


def quantile(values: Values, weights: ResampleWeights, *, level: float) -> Values:
    """The smallest value that `level` of the weight does not exceed (the inverted CDF)."""
    measured = ~np.isnan(values)
    found = [
        np.quantile(values[measured], level, weights=row, method="inverted_cdf") if row.any() else np.nan
        for row in weights[:, measured]
    ]
    return np.array(found, float)


def auroc(scores: Values, positive: Values, weights: ResampleWeights) -> Values:
    """The probability that a positive (1) scores above a negative (0); a tie counts half.

    This is the Mann-Whitney U divided by the number of pairs. Questions with NaN do not count.
    """
    positives, negatives = _by_score(scores, positive, weights)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    return _divide((positives * below).sum(axis=1), pairs)


def accepted_negatives(scores: Values, positive: Values, weights: ResampleWeights, *, lost: float) -> Values:
    """The share of negatives at or above the highest threshold that rejects at most the share `lost`
    of the positives."""
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


def _by_score(
    scores: Values, positive: Values, weights: ResampleWeights
) -> tuple[ResampleWeights, ResampleWeights]:
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


def resamples(strata: NDArray[np.bool_], *, count: int, seed: int) -> ResampleWeights:
    """`count` rows of weights: questions drawn with replacement within each stratum.

    Answerable and unanswerable questions are drawn separately, because the set's author fixed their
    numbers; so no resample lacks either kind.
    """
    rng = np.random.default_rng(seed)
    weights = np.zeros((count, len(strata)))
    for group in (np.flatnonzero(strata), np.flatnonzero(~strata)):
        if len(group):
            weights[:, group] = rng.multinomial(len(group), [1 / len(group)] * len(group), size=count)
    return weights


def interval(samples: Values, *, level: float = 0.95) -> tuple[float, float]:
    """The percentile bootstrap interval of the defined `samples`; NaN if there are none."""
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
