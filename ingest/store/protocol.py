"""What every store can do, and the few nouns that its callers need."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ingest.errors import Mismatch
from ingest.normalize import Field, Terms
from ingest.types import Chunk, Document, Passage

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Identity:
    """The embedder that made a knowledge base's vectors; another one's don't fit."""

    name: str
    dim: int
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Info:
    """Counts of a knowledge base; `unpurged`: removed chunks that the caches may hold traces of.

    `bytes` on the disk; None where a server keeps that to itself.
    """

    location: str
    identity: Identity
    created: str
    sequence: int
    documents: int
    passages: int
    chunks: int
    unpurged: int
    bytes: int | None


class Ranking(NamedTuple):
    """Best first: chunk keys and their scores, larger is better, both (n,)."""

    keys: NDArray[np.int64]
    scores: NDArray[np.floating]


class Change(Protocol):
    """One transaction: all of it or nothing becomes visible."""

    def remove(self, source: str) -> bool:
        """Remove a document; False where there is none of that source."""
        ...

    def put(self, document: Document) -> None:
        """Add a document's head; one of the same source is replaced. `add` brings its text."""
        ...

    def add(
        self,
        document: Document,
        passages: Sequence[Passage],
        chunks: Sequence[Chunk],
        vectors: Vectors,
    ) -> None:
        """Append a batch to a document put in this change: passages in order, without gaps.

        `vectors` (len(chunks), dim) are of unit length. A chunk's passage is in this batch or an
        earlier one.
        """
        ...

    def set_meta(self, name: str, value: object) -> None:
        """Keep a JSON value (calibration and the like) with the knowledge base."""
        ...


class Store(Protocol):
    """A knowledge base. Every reading method stands by itself and sees the newest whole change.

    A key names one chunk for ever; no other has it, even when that is gone.
    """

    @property
    def location(self) -> str:
        """Its folder, or its address on a server."""
        ...

    @property
    def identity(self) -> Identity: ...

    @property
    def sequence(self) -> int:
        """The number of the newest change; it only grows."""
        ...

    def change(self, *, reason: str = "", timeout: float = 10.0) -> AbstractContextManager[Change]:
        """The only way to write. Raises `Busy` if another writer isn't done in `timeout` s, where
        there can be but one."""
        ...

    def known_vectors(self, digests: Sequence[bytes]) -> dict[bytes, Vectors]:
        """Vectors (dim,) of those texts that are in the store already, by `Chunk.digest`."""
        ...

    def search_dense(self, vector: Vectors, k: int) -> Ranking:
        """The `k` chunks of highest cosine to `vector` (dim,), cosine as the score."""
        ...

    def search_words(self, query: Terms, k: int, *, field: Field = "words") -> Ranking:
        """The `k` best chunks by BM25 over words, or over character bigrams; no score is 0."""
        ...

    def doc_freq(self, terms: Sequence[str], *, field: Field = "words") -> list[int]:
        """How many chunks hold each normalized term (removed ones count until the next rebuild)."""
        ...

    def vectors(self, keys: Sequence[int] | NDArray[np.int64]) -> Vectors:
        """(len(keys), dim); a chunk that is gone by now gives a row of zeros."""
        ...

    def chunks(self, keys: Sequence[int] | NDArray[np.int64]) -> dict[int, Chunk]:
        """Those of `keys` that are still there, in the order of `keys`."""
        ...

    def passages(self, chunks: Sequence[Chunk]) -> list[Passage]:
        """The passage around each chunk. Raises KeyError for a document that is gone."""
        ...

    def chunks_within(self, passage: Passage) -> list[Chunk]:
        """The chunks of a passage, in order; [] where it is gone."""
        ...

    def sample(self, count: int) -> NDArray[np.int64]:
        """Keys of chunks drawn evenly over the knowledge base, at most `count`."""
        ...

    def count(self) -> int:
        """How many chunks can be searched."""
        ...

    def text(self, document: str, start: int = 0, end: int | None = None) -> str:
        """Characters [start, end) of a document, by its id. Raises KeyError if it is gone."""
        ...

    def documents(self) -> Iterator[Document]:
        """All documents by source."""
        ...

    def document(self, source: str) -> Document | None: ...

    def by_id(self, document: str) -> Document | None: ...

    def length(self, document: str) -> int:
        """Characters of a document, by its id. Raises KeyError if it is gone."""
        ...

    def get_meta(self, name: str) -> object | None: ...

    def info(self) -> Info: ...

    def verify(self) -> list[str]:
        """What is wrong with truth and caches, a line each; empty where all is well."""
        ...

    def rebuild(self) -> None:
        """Make both caches anew from the truth; nothing removed leaves a trace after it."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def check_vectors(document: Document, chunks: Sequence[Chunk], vectors: Vectors, dim: int) -> None:
    """One finite row a chunk."""
    if vectors.shape != (len(chunks), dim):
        raise ValueError(f"{len(chunks)} chunks of dim {dim} need not {vectors.shape}")
    if not np.isfinite(vectors).all():
        raise ValueError(f"a vector of {document.source} is not finite")


def check_tiling(passages: Sequence[Passage], length: int) -> int:
    """The document's new length; passages go on where its text ends."""
    for passage in passages:
        if passage.start != length or passage.end != length + len(passage.text):
            raise ValueError(
                f"passage [{passage.start}, {passage.end}) of {len(passage.text)} characters"
                f" doesn't go on at {length}"
            )
        length = passage.end
    return length


def check_place(chunk: Chunk, passage: Passage | None) -> None:
    """The chunk is what its passage holds there."""
    if passage is None:
        raise ValueError(f"chunk {chunk.id} lies in no passage that was added")
    start, end = chunk.passage
    if passage.end != end or passage.text[chunk.start - start : chunk.end - start] != chunk.text:
        raise ValueError(f"the text of chunk {chunk.id} is not what its passage holds there")


def check_identity(location: str, made: Identity, asked: Identity) -> None:
    """Raises `Mismatch` unless the embedder that is asked for made the vectors."""
    if made == asked:
        return
    had, wants = f"{made.name} ({made.dim}-d)", f"{asked.name} ({asked.dim}-d)"
    if (made.name, made.dim) == (asked.name, asked.dim):
        had, wants = f"{had} {dict(made.options)}", f"{wants} {dict(asked.options)}"
    raise Mismatch(
        "{location} holds vectors of {had}, but the encoder is now {wants}; go back to the "
        "former, or ingest again into a new knowledge base with --kb",
        location=location,
        had=had,
        wants=wants,
    )
