"""Question -> candidates by vectors, words and character bigrams, fused into one ranking."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ingest.chunk import text_in_words
from ingest.embed import Vector
from ingest.errors import UserError
from ingest.normalize import FIELDS, Field, terms, words
from ingest.store import Ranking, Store, Within
from ingest.types import Chunk, Hit, Passage
from rag.question import codes
from rag.score_norm import ScoreNorm, background_frequencies, background_weight
from rag.types import Citation, Query, ReaderOutput

Scores = NDArray[np.floating]

LEXICAL = 6.0
"""Standard deviations of similarity that a chunk gains by covering the whole question."""
EXACT = 4.0
"""What a chunk loses that has none of the codes of the question."""
FOUND = 2.0
"""What a chunk gains that has them all."""
CHECKED = 200
"""How many of the best chunks are searched for codes."""
READING = 0.25
"""What a point of the reader's score adds to a chunk's."""
UNKNOWN = 6.0
"""Terms that no chunk has may always weigh this much: about two words."""


@dataclass(frozen=True, slots=True)
class RetrieveOptions:
    """How passages are retrieved for a question."""

    candidates: int = 100
    """How many chunks each of the three searches returns."""
    passages: int = 5
    """How many passages an answer is based on."""
    reranker: str = ""
    """The name or folder of a cross-encoder; empty for none."""

    def __post_init__(self) -> None:
        n, most = self.passages, self.candidates
        if not 1 <= n <= most:
            raise UserError("[retrieve] passages is {n}; need 1 to {most} (candidates)", n=n, most=most)


def rank(
    query: Query, vector: Vector, store: Store, norm: ScoreNorm, *, candidates: int, within: Within = None
) -> Ranking:
    """The chunks that any of the three searches finds, by fused score; `vector` is the question's."""
    centred = norm.centred(query.script, vector)
    dense = store.search_dense(centred, candidates, within=within)
    lexical = [store.search_words(query.content, candidates, field=field, within=within) for field in FIELDS]
    keys = np.unique(np.concatenate([dense.keys, *(each.keys for each in lexical)]))
    similarity = norm.standard(query.script, centred, store.vectors(keys) @ centred)
    chunks = store.count()
    if background_weight(chunks):
        scores = similarity + LEXICAL * _coverage_of_few(query, keys, store)
    else:
        words, bigrams = (_aligned(keys, each) for each in lexical)
        masses = (
            mass(store.doc_freq(sorted(set(query.content.of(field))), field=field), chunks)
            for field in FIELDS
        )
        scores = fuse(SearchScores(similarity, words, bigrams, *masses))
    if query.codes:
        scores += _exact_codes(query, keys, scores, store)
    order = np.argsort(-scores, kind="stable")
    return Ranking(keys[order], scores[order])


def _coverage_of_few(query: Query, keys: NDArray[np.int64], store: Store) -> Scores:
    """`coverage` in a knowledge base of few chunks, whose own frequencies say little: each term weighs
    by its rarity among the background texts too, and terms that no chunk has weigh no more than half
    of the whole."""
    texts = store.chunks(keys)
    shares = []
    for field in FIELDS:
        names = list(dict.fromkeys(query.keywords.of(field)))
        weights = np.array(rarity(store, names, field))
        known = np.array(store.doc_freq(names, field=field)) > 0
        held, missing = weights[known].sum(), weights[~known].sum()
        total = held + min(missing, max(held, UNKNOWN))
        cut = {key: set(terms(chunk.indexed).of(field)) for key, chunk in texts.items()}
        inside = [[name in cut.get(key, ()) for name in names] for key in keys.tolist()]
        if total > 0:
            shares.append(np.array(inside, float).reshape(len(keys), len(names)) @ weights / total)
    return np.mean(shares, axis=0) if shares else np.zeros(len(keys))


def _exact_codes(query: Query, keys: NDArray[np.int64], scores: Scores, store: Store) -> NDArray[np.float64]:
    """What chunks lose, (n,), that lack codes of the question (`E110`, `第十二条之一`), and others gain."""
    lost = np.full(len(keys), -EXACT)
    best = np.argsort(-scores, kind="stable")[:CHECKED]
    for k, chunk in zip(best, store.chunks(keys[best]).values(), strict=False):
        lost[k] += (EXACT + FOUND) * len(query.codes & codes(chunk.indexed)) / len(query.codes)
    articles_only = all("." in code for code in query.codes)
    return np.zeros(len(keys)) if articles_only and lost.max(initial=-EXACT) <= -EXACT else lost


def _aligned(keys: NDArray[np.int64], ranking: Ranking) -> Scores:
    """The scores of `ranking` at the positions of its keys in the sorted `keys`, 0 elsewhere."""
    scores = np.zeros(len(keys), np.float32)
    scores[np.searchsorted(keys, ranking.keys)] = ranking.scores
    return scores


@dataclass(frozen=True, slots=True)
class SearchScores:
    """The scores of the chunks that any search found; all arrays are (n,).

    `similarity` is `ScoreNorm.standard`'s. `words` and `bigrams` are BM25 scores, 0 for a chunk
    that this search did not find; the masses are the `mass` of the question's terms in each field.
    """

    similarity: Scores
    words: Scores
    bigrams: Scores
    word_mass: float
    bigram_mass: float


def idf(doc_freqs: Sequence[float], chunks: float) -> NDArray[np.float64]:
    """BM25's weight of each term, (n,), as in Lucene and Tantivy: ln(1 + (N - df + .5)/(df + .5))."""
    df = np.minimum(np.asarray(doc_freqs, np.float64), chunks)
    return np.log1p((chunks - df + 0.5) / (df + 0.5))


def rarity(store: Store, names: Sequence[str], field: Field) -> list[float]:
    """The `idf` of each normalized term in the knowledge base and, if it is small, in the background
    texts."""
    chunks, frequencies = store.count(), store.doc_freq(names, field=field)
    if not (weight := background_weight(chunks)):
        return idf(frequencies, chunks).tolist()
    texts, counts = background_frequencies()
    pairs = zip(names, frequencies, strict=True)
    joint = [min(own, chunks) + weight * counts[field][term] for term, own in pairs]
    return idf(joint, chunks + weight * texts).tolist()


def mass(doc_freqs: Sequence[int], chunks: int) -> float:
    """The sum of the weights of a question's distinct terms."""
    return float(idf(doc_freqs, chunks).sum())


def coverage(found: SearchScores) -> Scores:
    """The idf-weighted share of the question's terms in each chunk, (n,), 0 to 1.

    1 means all terms, once each, in a chunk of mean length. BM25 gives more for repeated terms, but a
    question can't be covered twice.
    """
    pairs = ((found.words, found.word_mass), (found.bigrams, found.bigram_mass))
    shares = [scores / total for scores, total in pairs if total > 0]
    if not shares:
        return np.zeros_like(found.similarity)
    return np.minimum(sum(shares[1:], start=shares[0]) / len(shares), 1)


def fuse(found: SearchScores) -> Scores:
    """One score per chunk, (n,); larger is better, comparable between questions."""
    return found.similarity + LEXICAL * coverage(found)


def best_of_passages(ranking: Ranking, store: Store, limit: int) -> tuple[list[Hit], list[Passage]]:
    """The best chunk of each of the `limit` best passages, best first, and those passages.

    A passage that another process removes meanwhile is omitted.
    """
    hits: dict[tuple[str, int], Hit] = {}
    for start in range(0, len(ranking.keys), 4 * limit):
        keys = ranking.keys[start : start + 4 * limit]
        chunks: dict[int, Chunk] = store.chunks(keys)
        for key, score in zip(keys.tolist(), ranking.scores[start:], strict=False):
            if chunk := chunks.get(key):
                hits.setdefault((chunk.document, chunk.passage[0]), Hit(chunk, float(score)))
        if len(hits) >= limit:
            break
    best = list(hits.values())[:limit]
    try:
        return best, store.passages([hit.chunk for hit in best])
    except KeyError:
        hits_left, passages = [], []
        for hit in best:
            with suppress(KeyError):
                passages += store.passages([hit.chunk])
                hits_left.append(hit)
        return hits_left, passages


def names_row(query: Query, chunk: Chunk) -> bool:
    """Whether a table row of the chunk has, with its header and headings, all content words of the question."""
    wanted = set(query.keywords.words)
    header = chunk.context.split("\n")[-1]
    lines = text_in_words(chunk.text, header if header.startswith("|") else "").split("\n")
    rows = (row for line, row in zip(chunk.text.split("\n"), lines, strict=True) if row != line)
    return bool(wanted) and any(wanted <= set(words(f"{chunk.context} {row}")) for row in rows)


def citation(number: int, passage: Passage, start: int, end: int, store: Store, nearest: Chunk) -> Citation:
    """The citation of characters [start, end) of a passage, with the chunk that contains the first;
    `nearest` if the passage has been removed meanwhile."""
    first = passage.start + start
    chunks = (c for c in store.chunks_within(passage) if c.start <= first < c.end)
    chunk = next(chunks, nearest)
    return Citation(number, chunk, first, passage.start + end, passage.text[start:end])


class Reranker(Protocol):
    def score(self, question: str, passages: Sequence[str]) -> Scores:
        """Scores (len(passages),); larger is better, comparable only within one question."""
        ...


class CrossEncoderReranker:
    """A sentence-transformers cross-encoder by name or folder, such as `BAAI/bge-reranker-base`."""

    def __init__(self, name: str) -> None:
        """Raises `UserError` if the extra is not installed or the model can't be found."""
        try:
            from sentence_transformers import CrossEncoder
        except ModuleNotFoundError as error:
            raise UserError(
                "the reranker {name} needs sentence-transformers: pip install "
                "'chatglm-rag[encoders]', or remove [retrieve] reranker from rag.toml",
                name=name,
            ) from error
        try:
            self._model = CrossEncoder(name, local_files_only=True, trust_remote_code=False)
        except OSError as error:
            raise UserError(
                "the reranker {name} is not on this machine; give a folder with its weights, or "
                "remove [retrieve] reranker from rag.toml",
                name=name,
            ) from error

    def score(self, question: str, passages: Sequence[str]) -> Scores:
        pairs = [(question, passage) for passage in passages]
        return np.asarray(self._model.predict(pairs, show_progress_bar=False), np.float32)


def rerank(
    question: str, hits: list[Hit], passages: list[Passage], reranker: Reranker
) -> tuple[list[Hit], list[Passage]]:
    """Hits and their passages in the reranker's order, with its scores."""
    scores = reranker.score(question, [passage.text for passage in passages])
    order = np.argsort(-scores, kind="stable")
    return [Hit(hits[i].chunk, float(scores[i])) for i in order], [passages[i] for i in order]


def by_reading(
    hits: Sequence[Hit], passages: Sequence[Passage], readings: Sequence[ReaderOutput]
) -> tuple[list[Hit], list[Passage], list[ReaderOutput]]:
    """The hits in the order of what retrieval and the reader say together. Only the first were read: the
    others stay behind them."""
    least = min((each.score for each in readings), default=0.0)
    scores = [hit.score + READING * (each.score - least) for hit, each in zip(hits, readings, strict=False)]
    order = sorted(range(len(readings)), key=lambda k: -scores[k])
    rest = range(len(readings), len(hits))
    ordered = [Hit(hits[k].chunk, scores[k]) for k in order] + [hits[k] for k in rest]
    return ordered, [passages[k] for k in (*order, *rest)], [readings[k] for k in order]
