"""Peak memory of ingesting one very large text: python benchmarks/memory.py FOLDER [--megabytes 1000].

Everything is the real thing but the encoder, which would take a day: its stand-in makes random
vectors and counts .65 tokens a character, as the bundled one does on Chinese.
"""

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ingest.chunk import Chunker, ChunkOptions
from ingest.embed import Vector, Vectors
from ingest.files import walk
from ingest.pipeline import Ingestion
from ingest.sandbox import Sandbox
from ingest.store import Identity, open_store


class RandomEmbedder:
    """Unit vectors without meaning."""

    name, dim, max_tokens = "random", 384, 500

    def count(self, text: str) -> int:
        return int(0.65 * len(text)) + 1

    def count_many(self, texts: Sequence[str]) -> list[int]:
        return [self.count(text) for text in texts]

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        rows = np.random.default_rng(0).standard_normal((len(texts), self.dim), np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def embed_query(self, text: str) -> Vector:
        return self.embed_passages([text])[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=int, default=1000)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    file = options.folder / f"{options.megabytes}.txt"
    if not file.exists():
        write(file, options.megabytes)
    embedder = RandomEmbedder()
    chunker = Chunker(embedder.count_many, 500, ChunkOptions(chunk_tokens=440))
    identity = Identity(embedder.name, embedder.dim)
    start = time.perf_counter()
    path = options.folder / f"kb-{options.megabytes}"
    with open_store(path, create=identity) as store, Sandbox() as sandbox:
        [outcome] = Ingestion(store, embedder, chunker, sandbox).run(walk([file]))
    spent = time.perf_counter() - start
    parent, child = (
        resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    sys.stdout.write(
        f"{options.megabytes} MB: {outcome.status}, {outcome.chunks} chunks, {spent:.0f} s; "
        f"peak memory {parent:.0f} MB, its parser {child:.0f} MB\n"
    )


def write(file: Path, megabytes: int) -> None:
    """Numbered sentences of Chinese characters drawn by Zipf's law, some 80 a line."""
    rng = np.random.default_rng(0)
    letters = np.array([chr(0x4E00 + i) for i in range(3000)])
    weights = 1 / np.arange(1, 3001)
    with file.open("w", encoding="utf-8") as stream:
        while stream.tell() < megabytes << 20:
            drawn = rng.choice(3000, (2000, 80), p=weights / weights.sum())
            stream.write("".join(f"第{i}条 {''.join(row)}。\n" for i, row in enumerate(letters[drawn])))


if __name__ == "__main__":
    main()
