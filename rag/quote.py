"""A span of a passage -> the citation that quotes it."""

from ingest.store import Store
from ingest.types import Chunk, Passage
from rag.types import Citation


def quote(
    number: int, passage: Passage, start: int, end: int, store: Store, nearest: Chunk
) -> Citation:
    """The citation of characters [start, end) of a passage, with the chunk that they begin in.

    `nearest` stands for it where the passage has been removed meanwhile.
    """
    first = passage.start + start
    chunks = (c for c in store.chunks_within(passage) if c.start <= first < c.end)
    chunk = next(chunks, nearest)
    return Citation(number, chunk, first, passage.start + end, passage.text[start:end])
