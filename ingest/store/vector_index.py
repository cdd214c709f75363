"""Finds the chunks that may be nearest: exactly up to `EXACT_ROWS` rows, by RaBitQ codes beyond.

Their cosines are computed from the primary data, so a removed key drops out there, and an error of
the codes can cost recall, but never gives a wrong score.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ingest.store.protocol import Vectors

EXACT_ROWS = 20_000  # a scan of 20,000 x 384 takes 2 ms; codes would save nothing
OVERSAMPLING = 5  # candidates for each wanted row, at least FEWEST (recall: docs/decisions/003)
FEWEST = 500

Keys = NDArray[np.int64]


class Candidates:
    """Rows by growing key, and the search for those nearest to a vector.

    `last` is the highest key so far, `rows` counts rows, also those that have been removed, `trained`
    is the number of rows when the codes' centre was computed (0 while the scan is exact).
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.last = self.trained = 0
        self._keys: Keys = np.empty(0, np.int64)
        self._matrix: Vectors = np.empty((0, dim), np.float32)
        self._codes = None

    @property
    def rows(self) -> int:
        return self._codes.ntotal if self._codes is not None else len(self._keys)

    def train(self, sample: Vectors, rows: int) -> None:
        """Switch to codes around the centre of `sample`; the rows so far are encoded."""
        import faiss

        # Without the (fixed) rotation, most of the one-bit dimensions would carry no information.
        rotation = faiss.RandomRotationMatrix(self.dim, self.dim)
        coder = faiss.IndexRaBitQFastScan(self.dim, faiss.METRIC_INNER_PRODUCT)
        self._codes = faiss.IndexIDMap(faiss.IndexPreTransform(rotation, coder))
        self._codes.train(sample)
        self.trained = rows
        if len(self._keys):
            self._codes.add_with_ids(self._matrix, self._keys)
        self._keys, self._matrix = self._keys[:0], self._matrix[:0]

    def add(self, keys: Keys, vectors: Vectors) -> None:
        """Append rows whose keys are all above `last`."""
        if self._codes is not None:
            self._codes.add_with_ids(vectors, keys)
        else:
            self._keys = np.concatenate([self._keys, keys])
            self._matrix = np.concatenate([self._matrix, vectors])
            if len(self._keys) > EXACT_ROWS:
                self.train(self._matrix, len(self._keys))
        self.last = int(keys[-1])

    def search(self, vector: Vectors, n: int) -> Keys:
        """At least min(n, rows) keys, likely the nearest, in no particular order."""
        n = min(n, self.rows)
        if n == 0:
            return np.empty(0, np.int64)
        if self._codes is None:
            return self._keys[np.argpartition(-(self._matrix @ vector), n - 1)[:n]]
        import faiss

        faiss.omp_set_num_threads(1)  # more threads would only wait: one vector is not divided
        keys = self._codes.search(vector[None], n)[1][0]
        return keys[keys >= 0]

    def enough(self, k: int) -> int:
        """The `n` for `search` with which the k nearest chunks that still exist are found."""
        return 2 * k if self._codes is None else max(OVERSAMPLING * k, FEWEST)

    def keys(self) -> Keys:
        """All keys, also removed ones, sorted."""
        import faiss

        if self._codes is None:
            return self._keys
        return np.sort(faiss.vector_to_array(self._codes.id_map))

    def dump(self) -> bytes:
        """The codes as bytes for `load`. Only once trained."""
        import faiss

        assert self._codes is not None
        return faiss.serialize_index(self._codes).tobytes()

    @classmethod
    def load(cls, dim: int, data: bytes, *, last: int, trained: int) -> "Candidates":
        """The candidates from `dump`. FAISS trusts the bytes: check their digest before."""
        import faiss

        candidates = cls(dim)
        candidates._codes = faiss.deserialize_index(np.frombuffer(data, np.uint8))
        candidates.last, candidates.trained = last, trained
        return candidates


def stack(blobs: Iterable[bytes], dim: int) -> Vectors:
    """Vectors (n, dim) float32 from their stored form, float16 in little-endian order."""
    return np.frombuffer(b"".join(blobs), "<f2").reshape(-1, dim).astype(np.float32)
