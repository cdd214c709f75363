"""What every store checks of a batch before it takes it. Whoever breaks it has a bug."""

from collections.abc import Sequence

import numpy as np

from ingest.store.protocol import Vectors
from ingest.types import Chunk, Document, Passage


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
