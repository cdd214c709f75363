"""Small honest stand-ins: they do the real job on a small scale, and nothing is scripted."""

from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

import numpy as np

from ingest.embed import Vector, Vectors
from ingest.errors import Unreadable
from ingest.types import Parsed, Receipt, Segment


class HashEmbedder:
    """Bags of hashed character bigrams: texts that share bigrams are near each other."""

    name = "hash-bigrams"
    dim = 256
    max_tokens = 120

    def __init__(self) -> None:
        self.embedded: list[str] = []

    def count(self, text: str) -> int:
        return len(text)

    def count_many(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    def embed_query(self, text: str) -> Vector:
        return self._vector(text)

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        for text in texts:
            if len(text) > self.max_tokens:
                raise ValueError(
                    f"a text of {len(text)} tokens; the window holds {self.max_tokens}"
                )
        self.embedded += texts
        return np.array([self._vector(text) for text in texts], np.float32).reshape(-1, self.dim)

    def _vector(self, text: str) -> Vector:
        vector = np.full(self.dim, 1e-3, np.float32)
        for pair in pairwise(text):
            slot = blake2b("".join(pair).encode("utf-8", "surrogatepass"), digest_size=2).digest()
            vector[int.from_bytes(slot) % self.dim] += 1
        return vector / np.linalg.norm(vector)


class TextParser:
    """Reads UTF-8 files; anything else is unreadable, as with the real one."""

    def parse(self, path: Path) -> Parsed:
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise Unreadable(f"{path} is not text") from error
        return Parsed(path.stem, [Segment(text)], Receipt("txt", "utf-8"))
