"""Texts -> unit vectors."""

from pathlib import Path

from ingest.embed.bundled import NAME as BUNDLED
from ingest.embed.bundled import open_bundled
from ingest.embed.protocol import Embedder, Vector, Vectors

__all__ = ["BUNDLED", "Embedder", "Vector", "Vectors", "open_embedder"]


def open_embedder(
    name: str = BUNDLED, *, cache: Path | None = None, threads: int | None = None
) -> Embedder:
    """The encoder called `name`: the bundled one, or a sentence-transformers model or folder.

    `cache` is where the bundled one is built on first use; `threads` defaults to the usable cores.
    """
    return open_bundled(cache or Path.home() / ".cache" / "chatglm-rag", threads=threads)
