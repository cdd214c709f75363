"""An encoder that keeps the vectors it gave last: sentences of passages that many ask about."""

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from threading import Lock

import numpy as np

from ingest.embed import Embedder, Vector, Vectors

BYTES = 64 * 1024 * 1024
"""What the vectors of one encoder may take: 43,690 of 384 dimensions."""


class Remembered:
    """`embedder`, which sees a passage once as long as the `most` passages since are others.

    Safe between threads; two that ask for the same passage at once may both have it embedded.
    """

    def __init__(self, embedder: Embedder, most: int | None = None) -> None:
        self._embedder = embedder
        self._most = BYTES // (4 * embedder.dim) if most is None else most
        self._held: OrderedDict[bytes, Vector] = OrderedDict()
        self._guard = Lock()
        self.name, self.dim, self.max_tokens = embedder.name, embedder.dim, embedder.max_tokens

    def count(self, text: str) -> int:
        return self._embedder.count(text)

    def count_many(self, texts: Sequence[str]) -> list[int]:
        return self._embedder.count_many(texts)

    def embed_query(self, text: str) -> Vector:
        return self._embedder.embed_query(text)

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        keys = [_key(text) for text in texts]
        found: dict[bytes, Vector] = {}
        with self._guard:
            for key in keys:
                if key in self._held:
                    self._held.move_to_end(key)
                    found[key] = self._held[key]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        if new:
            made = self._embedder.embed_passages(list(new.values()))
            # A row's own copy, for a view would hold on to all the rows it was made with.
            found |= {key: row.copy() for key, row in zip(new, made, strict=True)}
            with self._guard:
                self._held |= {key: found[key] for key in new}
                while len(self._held) > self._most:
                    self._held.popitem(last=False)
        rows = np.empty((len(keys), self.dim), np.float32)
        for row, key in zip(rows, keys, strict=True):
            row[:] = found[key]
        return rows


def _key(text: str) -> bytes:
    return blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
