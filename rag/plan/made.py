"""Knowledge bases of made text and vectors, the same ones at every run.

Words are drawn by Zipf's law; vectors are clustered like real ones: neighbours share a centre,
dimensions differ in size.
"""

from collections.abc import Iterator
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from ingest.store import Store
from ingest.store.protocol import Vectors
from ingest.types import Chunk, Document, Passage, Receipt

DIM = 384
VOCABULARY = 100_000
WORDS = 60  # a chunk
CHUNKS = 20  # a document
FAMILY = 50  # chunks around one centre
BATCH = 20_000  # chunks a change


class Made:
    """Documents and questions of a knowledge base of `chunks` chunks."""

    def __init__(self, chunks: int) -> None:
        rng = np.random.default_rng(0)
        letters = np.array([chr(0x4E00 + offset) for offset in range(4_000)])
        first, second = rng.integers(0, len(letters), (2, VOCABULARY))
        self.words = np.char.add(letters[first], letters[second])
        share = 1 / np.arange(1, VOCABULARY + 1)  # Zipf's law
        self.cumulated = np.cumsum(share / share.sum())
        self.centres = rng.standard_normal((max(1, chunks // FAMILY), DIM), dtype=np.float32)
        self.sizes = np.exp(0.5 * rng.standard_normal(DIM, dtype=np.float32))

    def texts(self, rng: np.random.Generator, count: int, length: int) -> list[str]:
        drawn = np.searchsorted(self.cumulated, rng.random((count, length))).clip(0, VOCABULARY - 1)
        return ["".join(row) for row in self.words[drawn]]

    def vectors(self, rng: np.random.Generator, count: int) -> Vectors:
        centres = self.centres[rng.integers(0, len(self.centres), count)]
        own = rng.standard_normal((count, DIM), dtype=np.float32)
        return unit((centres + 0.8 * own + 1) * self.sizes)

    def near(self, rng: np.random.Generator, vectors: Vectors) -> Vectors:
        """Questions: each near one of `vectors`, about as far as its family is."""
        return unit(vectors + 0.03 * rng.standard_normal(vectors.shape, dtype=np.float32))


def unit(vectors: NDArray[np.floating]) -> Vectors:
    """Each row made one long, float32."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / lengths).astype(np.float32, copy=False)


def made_document(source: str, texts: list[str]) -> tuple[Document, list[Passage], list[Chunk]]:
    """A document whose passages are single chunks."""
    document = Document(source, source, source, Receipt("made"))
    passages, chunks, at = [], [], 0
    for text in texts:
        end = at + len(text)
        passages.append(Passage(document.id, at, end, text, ""))
        place = ((at, ""),)
        chunks.append(
            Chunk(document.id, source, source, place, "", at, end, text, passage=(at, end))
        )
        at = end
    return document, passages, chunks


def build(store: Store, made: Made, chunks: int) -> Iterator[tuple[int, float]]:
    """Fill the store up to `chunks`, a batch at a time; how many there are now, and the seconds that
    the store took for the batch."""
    for at in range(store.count(), chunks, BATCH):
        count = min(BATCH, chunks - at)
        rng = np.random.default_rng(at + 1)
        texts, vectors = made.texts(rng, count, WORDS), made.vectors(rng, count)
        begun = perf_counter()
        with store.change(reason="made") as change:
            for first in range(0, count, CHUNKS):
                part = slice(first, first + CHUNKS)
                document, passages, cut = made_document(f"{at + first}", texts[part])
                change.put(document)
                change.add(document, passages, cut, vectors[part])
        yield at + count, perf_counter() - begun
