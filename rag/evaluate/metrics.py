"""What one question scores: where its relevant entries rank, and whether a text holds an answer."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from math import log2

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
