"""One score from three searches: vectors, words and character pairs.

A chunk's score is its similarity in standard deviations plus `LEXICAL` times the share of the
question that its words cover. Where question and chunks share no words (another language), the
share is zero and the vectors decide alone; no weight has to be switched.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ingest.store import Field, Store

Scores = NDArray[np.floating]

LEXICAL = 6.0
"""Standard deviations of similarity that a chunk gains by covering the whole question."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """What the searches say of the chunks that any of them found; all arrays are (n,).

    `similarity` is `Background.standard`'s. `words` and `bigrams` are BM25 scores, 0 for a chunk
    that this search did not find.
    """

    similarity: Scores
    words: Scores
    bigrams: Scores


def idf(doc_freqs: Sequence[int], chunks: int) -> NDArray[np.float64]:
    """BM25's weight of each term, (n,), as in Lucene and Tantivy: ln(1 + (N - df + .5)/(df + .5))."""
    df = np.minimum(np.asarray(doc_freqs, np.float64), chunks)
    return np.log1p((chunks - df + 0.5) / (df + 0.5))


def rarity(store: Store, field: Field) -> Callable[[Sequence[str]], list[float]]:
    """What gives the `idf` of each of some folded terms in the knowledge base."""
    return lambda terms: idf(store.doc_freq(terms, field=field), store.count()).tolist()


def mass(doc_freqs: Sequence[int], chunks: int) -> float:
    """The weight of a question's distinct terms together."""
    return float(idf(doc_freqs, chunks).sum())


def coverage(candidates: Candidates, *, word_mass: float, bigram_mass: float) -> Scores:
    """The idf-weighted share of the question that each chunk holds, (n,).

    0 for none, 1 for all of it, once each, in a chunk of mean length. BM25 gives more to terms said
    often, but a question can't be covered twice.
    """
    shares = [
        scores / total
        for scores, total in ((candidates.words, word_mass), (candidates.bigrams, bigram_mass))
        if total > 0
    ]
    if not shares:
        return np.zeros_like(candidates.similarity)
    return np.minimum(sum(shares[1:], start=shares[0]) / len(shares), 1)


def fuse(candidates: Candidates, *, word_mass: float, bigram_mass: float) -> Scores:
    """One score a chunk, (n,); larger is better, comparable between questions."""
    shared = coverage(candidates, word_mass=word_mass, bigram_mass=bigram_mass)
    return candidates.similarity + LEXICAL * shared
