"""Made documents for the store's tests: small words, random unit vectors, exact offsets."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ingest.store import Identity, Store, open_store
from ingest.types import Chunk, Document, DocumentPart, ParseReport, Passage, Vectors

DIM = 16
EMBEDDER = Identity("made-up", DIM, {"prefix": "passage: "})
TEXTS = [f"sentence number {number} about contracts" for number in range(40)]


def new_document(
    source: str, texts: Sequence[str], *, context: str = ""
) -> tuple[Document, list[Passage], list[Chunk]]:
    """A document of one passage a text, each cut into two chunks (or one, if it is short)."""
    document = Document(source, f"title of {source}", str(hash(tuple(texts))), ParseReport("txt"))
    passages: list[Passage] = []
    chunks: list[Chunk] = []
    at = 0
    for text in texts:
        end = at + len(text)
        passages.append(Passage(document.id, at, end, text, f"p. {len(passages) + 1}"))
        half = at + len(text) // 2
        for start, stop in ((at, half), (half, end)) if len(text) > 3 else ((at, end),):
            piece = text[start - at : stop - at]
            places = ((start, passages[-1].label),)
            head = document.id, document.source, document.title, places, context
            chunks.append(Chunk(*head, start, stop, piece, (at, end)))
        at = end
    return document, passages, chunks


def new_vectors(chunks: Sequence[Chunk], dim: int = DIM) -> Vectors:
    """A unit vector for each chunk's indexed text: equal text, equal vector."""
    seeds = [int.from_bytes(chunk.indexed.encode()[:64], "big") for chunk in chunks]
    rows = [np.random.default_rng(seed).standard_normal(dim) for seed in seeds]
    vectors = np.array(rows, np.float32).reshape(-1, dim)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def put(store: Store, source: str, texts: Sequence[str]) -> list[Chunk]:
    document, passages, chunks = new_document(source, texts)
    with store.change() as change:
        change.put(document)
        change.add(DocumentPart(document, passages, chunks, new_vectors(chunks)))
    return chunks


def with_codes(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A knowledge base of `TEXTS` that is large enough, by lowered limits, to keep vector codes."""
    monkeypatch.setattr("ingest.store.vector_index.EXACT_ROWS", 40)
    monkeypatch.setattr("ingest.store.index_sync.EXACT_ROWS", 40)
    with open_store(path, create=EMBEDDER) as store:
        put(store, "a.txt", TEXTS)
    assert list((path / "vectors").iterdir())
    return path
