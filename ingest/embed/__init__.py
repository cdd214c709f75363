"""Texts -> unit vectors."""

from ingest.embed.e5 import NAME as BUNDLED
from ingest.embed.e5 import open_embedder
from ingest.embed.sentence_transformers import Backend
from ingest.types import Embedder, Vector, Vectors

__all__ = ["BUNDLED", "Backend", "Embedder", "Vector", "Vectors", "open_embedder"]
