"""Passages -> the sentences that answer, each cited. No language model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ingest.embed import Embedder
from ingest.errors import UserError
from ingest.sentences import sentences
from ingest.store import Store
from ingest.types import Chunk, Passage
from rag.types import Answer, Citation, Retrieved


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How much of the passages an answer shows."""

    passages: int = 3
    """Sentences are taken from so many of the best passages."""
    sentences: int = 2
    """An answer has at most so many sentences."""

    def __post_init__(self) -> None:
        if self.passages < 1 or self.sentences < 1:
            raise UserError(
                f"[read] passages is {self.passages} and sentences {self.sentences}; need 1 or more",
                zh=f"[read] passages 为 {self.passages}，sentences 为 {self.sentences}；均须不小于 1",
            )


def read(found: Retrieved, store: Store, embedder: Embedder, options: ReadOptions) -> Answer:
    """The best sentences, in the order of their rank, as text with citations `[1]`, `[2]`."""
    places = [
        (passage, start, end)
        for passage in found.passages[: options.passages]
        for start, end in sentences(passage.text)
    ]
    texts = [passage.text[start:end].strip() for passage, start, end in places]
    scores = embedder.embed_passages(texts) @ found.vector if texts else np.empty(0)
    order = np.argsort(-scores, kind="stable")[: options.sentences]
    citations = tuple(
        cite(number, *places[place], store) for number, place in enumerate(order, start=1)
    )
    text = "\n".join(f"{citation.quote} [{citation.number}]" for citation in citations)
    return Answer(found.question, text, citations, found.hits, found.confidence, refused=False)


def cite(number: int, passage: Passage, start: int, end: int, store: Store) -> Citation:
    """The citation of characters [start, end) of a passage, without the space around them."""
    raw = passage.text[start:end]
    quote = raw.strip()
    first = passage.start + start + raw.index(quote)
    chunk = _chunk_at(store.chunks_within(passage), first)
    return Citation(number, chunk, first, first + len(quote), quote)


def _chunk_at(chunks: Sequence[Chunk], offset: int) -> Chunk:
    return next(chunk for chunk in chunks if chunk.start <= offset < chunk.end)
