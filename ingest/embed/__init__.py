"""Texts -> unit vectors."""

from pathlib import Path

from ingest.embed.e5 import NAME as BUNDLED
from ingest.embed.e5 import open_bundled
from ingest.embed.sentence_transformers import Backend, open_sentence
from ingest.types import Embedder, Vector, Vectors

__all__ = ["BUNDLED", "Backend", "Embedder", "Vector", "Vectors", "open_embedder"]


def open_embedder(
    name: str = BUNDLED,
    *,
    cache: Path | None = None,
    threads: int | None = None,
    backend: Backend = "torch",
) -> Embedder:
    """The encoder called `name`: the bundled one, or a sentence-transformers model or folder.

    `cache` is where the bundled one is built on first use, `threads` how many cores it uses (all
    that this process may use, if None); `backend` is what runs a sentence-transformers model.
    """
    if name in (BUNDLED, "bundled"):
        return open_bundled(cache or Path.home() / ".cache" / "chatglm-rag", threads=threads)
    return open_sentence(name, backend=backend)
