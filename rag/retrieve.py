"""Question -> candidates by vectors, words and character pairs, fused into one ranking."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ingest.embed import Vector
from ingest.errors import UserError
from ingest.normalize import bigrams, words
from ingest.store import Field, Ranking, Store
from ingest.types import Chunk, Hit, Passage
from rag.content import content
from rag.fuse import Candidates, Scores, fuse, mass
from rag.score_norm import Background


@dataclass(frozen=True, slots=True)
class RetrieveOptions:
    """How a question is looked up."""

    candidates: int = 100
    """How many chunks each of the three searches brings."""
    passages: int = 5
    """How many passages are handed on."""
    reranker: str = ""
    """A cross-encoder's name or folder; empty for none."""

    def __post_init__(self) -> None:
        if not 1 <= self.passages <= self.candidates:
            raise UserError(
                f"[retrieve] passages is {self.passages} and candidates {self.candidates}; "
                "need 1 <= passages <= candidates",
                zh=f"[retrieve] passages 为 {self.passages}，candidates 为 {self.candidates}；"
                "需满足 1 <= passages <= candidates",
            )


@dataclass(frozen=True, slots=True)
class Ranked:
    """Chunks for a question, best first, and the fused score of each, (n,)."""

    keys: NDArray[np.int64]
    scores: Scores


def rank(
    question: str, vector: Vector, store: Store, background: Background, *, candidates: int
) -> Ranked:
    """The chunks that any of the three searches finds; `vector` is the question's own."""
    centred = background.centred(question, vector)
    dense = store.search_dense(centred, candidates)
    about = content(question)
    lexical = {field: store.search_words(about, candidates, field=field) for field in _TERMS}
    keys = np.unique(np.concatenate([dense.keys, *(found.keys for found in lexical.values())]))
    similarity = background.standard(question, centred, store.vectors(keys) @ centred)
    chunks = store.count()
    scores = fuse(
        Candidates(similarity, *(_aligned(keys, found) for found in lexical.values())),
        word_mass=mass(store.doc_freq(_terms(about, "words"), field="words"), chunks),
        bigram_mass=mass(store.doc_freq(_terms(about, "bigrams"), field="bigrams"), chunks),
    )
    order = np.argsort(-scores, kind="stable")
    return Ranked(keys[order], scores[order])


def best_of_passages(ranked: Ranked, store: Store, limit: int) -> tuple[list[Hit], list[Passage]]:
    """The best chunk of each of the `limit` best passages, best first, and those passages.

    A passage that another process removes at this moment is passed over.
    """
    hits: dict[tuple[str, int], Hit] = {}
    for start in range(0, len(ranked.keys), 4 * limit):
        keys = ranked.keys[start : start + 4 * limit]
        chunks: dict[int, Chunk] = store.chunks(keys)
        for key, score in zip(keys.tolist(), ranked.scores[start:], strict=False):
            if chunk := chunks.get(key):
                hits.setdefault((chunk.document, chunk.passage[0]), Hit(chunk, float(score)))
        if len(hits) >= limit:
            break
    best = list(hits.values())[:limit]
    try:
        return best, store.passages([hit.chunk for hit in best])
    except KeyError:
        found = []
        for hit in best:
            with suppress(KeyError):
                found.append((hit, *store.passages([hit.chunk])))
        return [hit for hit, _ in found], [passage for _, passage in found]


_TERMS: dict[Field, Callable[[str], list[str]]] = {"words": words, "bigrams": bigrams}


def _terms(question: str, field: Field) -> list[str]:
    return sorted(set(_TERMS[field](question)))


def _aligned(keys: NDArray[np.int64], ranking: Ranking) -> Scores:
    """The scores of `ranking` at the places of its keys in `keys` (sorted), 0 elsewhere."""
    scores = np.zeros(len(keys), np.float32)
    scores[np.searchsorted(keys, ranking.keys)] = ranking.scores
    return scores
