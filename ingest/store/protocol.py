"""The operations of every store, and the types that its callers need."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ingest.errors import Mismatch
from ingest.normalize import Field, Terms
from ingest.types import Chunk, Document, DocumentPart, Passage, Vectors

UNIT = 5e-3  # how far from 1 a unit vector's length may be after float16


@dataclass(frozen=True, slots=True)
class Identity:
    """The embedder that made a knowledge base's vectors; those of another one don't match."""

    name: str
    dim: int
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Info:
    """Counts of a knowledge base, and its bytes on the disk (None if a server reports none)."""

    location: str
    identity: Identity
    created: str
    sequence: int
    documents: int
    passages: int
    chunks: int
    unpurged: int  # removed chunks of which the indexes may have traces
    bytes: int | None


class Ranking(NamedTuple):
    """Best first: chunk keys and their scores, larger is better, both (n,)."""

    keys: NDArray[np.int64]
    scores: NDArray[np.floating]


class Change(Protocol):
    """One transaction: all of it or nothing becomes visible."""

    def remove(self, source: str) -> bool:
        """Remove a document; returns False if there is none of that source."""
        ...

    def put(self, document: Document) -> None:
        """Add a document without its text, which `add` adds; one of the same source is replaced."""
        ...

    def add(self, part: DocumentPart) -> None:
        """Append to a document put in this change: passages in order, without gaps, and unit vectors.
        A chunk's passage is in this part or an earlier one."""
        ...

    def set_meta(self, name: str, value: object) -> None:
        """Store a JSON value (such as a calibration) with the knowledge base."""
        ...


Within = tuple[str, ...] | None
"""The ids of the documents that a search is limited to; None: all documents."""


class Store(AbstractContextManager["Store"], Protocol):
    """A knowledge base. Every reading method is independent and sees the newest complete change.
    A key belongs to one chunk for ever; no other chunk gets it, even after that one is removed."""

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
        """The only way to write. Raises `Busy` if another writer has the lock for `timeout` s."""
        ...

    def known_vectors(self, digests: Sequence[bytes]) -> dict[bytes, Vectors]:
        """Vectors (dim,) of the texts that are already in the store, by `Chunk.digest`."""
        ...

    def search_dense(self, vector: Vectors, k: int, *, within: Within = None) -> Ranking:
        """The `k` chunks with the highest dot product with `vector` (dim,), which is the score: the
        cosine if `vector` has unit length. Only chunks with a positive score are returned."""
        ...

    def search_words(self, query: Terms, k: int, *, field: Field = "words", within: Within = None) -> Ranking:
        """The `k` best chunks by BM25 over words, or over character bigrams; no score is 0."""
        ...

    def doc_freq(self, terms: Sequence[str], *, field: Field = "words") -> list[int]:
        """How many chunks have each normalized term (removed ones count until the next rebuild)."""
        ...

    def vectors(self, keys: Sequence[int] | NDArray[np.int64]) -> Vectors:
        """(len(keys), dim), with a row of zeros for a chunk that has been removed."""
        ...

    def chunks(self, keys: Sequence[int] | NDArray[np.int64]) -> dict[int, Chunk]:
        """The chunks that still exist, in the order of `keys`."""
        ...

    def passages(self, chunks: Sequence[Chunk]) -> list[Passage]:
        """The passage around each chunk. Raises KeyError if its document has been removed."""
        ...

    def chunks_within(self, passage: Passage) -> list[Chunk]:
        """The chunks of a passage, in order; [] if it has been removed."""
        ...

    def sample(self, count: int) -> NDArray[np.int64]:
        """Keys of chunks drawn evenly over the knowledge base, at most `count`."""
        ...

    def count(self) -> int:
        """How many chunks can be searched."""
        ...

    def text(self, document: str, start: int = 0, end: int | None = None) -> str:
        """Characters [start, end) of a document, by its id. Raises KeyError if it is not there."""
        ...

    def documents(self) -> Iterator[Document]:
        """All documents by source."""
        ...

    def document(self, source: str) -> Document | None: ...

    def by_id(self, document: str) -> Document | None: ...

    def length(self, document: str) -> int:
        """Characters of a document, by its id. Raises KeyError if it is not there."""
        ...

    def get_meta(self, name: str) -> object | None: ...

    def info(self) -> Info: ...

    def verify(self) -> list[str]:
        """A message (translatable) for each fault of the data and the indexes."""
        ...

    def rebuild(self) -> None:
        """Rebuild both indexes from the primary data, so that removed text leaves no trace."""
        ...

    def close(self) -> None: ...


def checked_vectors(part: DocumentPart, dim: int) -> Vectors:
    """The vectors of `part`. Raises ValueError unless there is one finite row a chunk."""
    vectors, shape = part.vectors, (len(part.chunks), dim)
    assert vectors is not None
    if vectors.shape != shape:
        raise ValueError(f"the vectors must have shape {shape}, not {vectors.shape}")
    if not np.isfinite(vectors).all():
        raise ValueError(f"a vector of {part.document.source} is not finite")
    return vectors


def check_tiling(passages: Sequence[Passage], length: int) -> int:
    """The document's new length. Raises ValueError unless the passages continue at its old length."""
    for passage in passages:
        span, size = (passage.start, passage.end), len(passage.text)
        if span != (length, length + size):
            raise ValueError(f"passage {span} of {size} characters does not continue at {length}")
        length = passage.end
    return length


def check_place(chunk: Chunk, passage: Passage | None) -> None:
    """Raises ValueError unless the passage has the chunk's text at its place."""
    if passage is None:
        raise ValueError(f"chunk {chunk.id} lies in no passage that was added")
    start, end = chunk.passage
    if passage.end != end or passage.text[chunk.start - start : chunk.end - start] != chunk.text:
        raise ValueError(f"the text of chunk {chunk.id} is not what its passage holds there")


def check_identity(location: str, stored: Identity, wanted: Identity) -> None:
    """Raises `Mismatch` unless the wanted embedder made the stored vectors."""
    if stored == wanted:
        return
    old, new = f"{stored.name} ({stored.dim}-d)", f"{wanted.name} ({wanted.dim}-d)"
    if (stored.name, stored.dim) == (wanted.name, wanted.dim):
        old, new = f"{old} {dict(stored.options)}", f"{new} {dict(wanted.options)}"
    raise Mismatch(
        "{location} has vectors of {old}, but the encoder is now {new}; use the old encoder, or ingest "
        "again into a new knowledge base with --kb",
        location=location, old=old, new=new,
    )  # fmt: skip
