"""Language models (one in memory, any number on other servers), and an embedding cache."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from threading import Lock

import numpy as np

from ingest.embed import Embedder, Vector, Vectors
from rag.generate import Adaptable, GenerateOptions, Generator, Reply, load
from rag.types import Message, Sampling

Loader = Callable[[GenerateOptions, Callable[[float], None]], Adaptable]


class Models:
    """Loads models with `loader`, which gets options without adapter, and what is called with the share of a
    prompt that the model has read. Only one local model is in memory: another one replaces it."""

    read = 1.0
    """The share of its newest prompt that the local model has read, 0 to 1."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._local: tuple[tuple[str, str], Adaptable] | None = None
        self._remote: dict[GenerateOptions, Adaptable] = {}

    def generator(self, options: GenerateOptions) -> Generator | None:
        """The generator of these options, which loads its model at first use; None if they name no
        model."""
        if options.served:
            key = GenerateOptions(options.model, endpoint=options.endpoint)
            if key not in self._remote:
                self._remote[key] = self._loader(key, self._on_read)
            return self._remote[key]
        return LocalGenerator(self, options) if options.model else None

    def load(self, options: GenerateOptions) -> Adaptable:
        """The local model with the options' adapter. The caller must hold the model's slot."""
        key = options.model, options.quant
        if self._local is None or self._local[0] != key:
            self._local = None  # two models do not fit into memory
            self._local = key, self._loader(replace(options, adapter=""), self._on_read)
        model = self._local[1]
        model.use(Path(options.adapter) if options.adapter else None)
        return model

    def _on_read(self, share: float) -> None:
        self.read = share

    def stop(self) -> None:
        """Stop the local model's present answer."""
        if self._local:
            self._local[1].stop()


@dataclass(frozen=True)
class LocalGenerator:
    """A knowledge base's generator, which shares the local model with the others."""

    models: Models
    options: GenerateOptions

    @property
    def name(self) -> str:
        return Path(self.options.model).resolve().name

    @property
    def context(self) -> int:
        return self.models.load(self.options).context

    def count(self, messages: Sequence[Message]) -> int:
        return self.models.load(self.options).count(messages)

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        return (yield from self.models.load(self.options).stream(messages, sampling))

    def stop(self) -> None:
        self.models.stop()


def model_loader(cache: Path, note: Callable[[str], None]) -> Loader:
    """Loads models like the command line; a model of a hub is downloaded into `cache`."""
    return lambda options, reading: load(
        options, cache=cache / "models", progress=lambda share: None, note=note, reading=reading
    )


CACHE_BYTES = 64 * 1024 * 1024
"""Memory for the vectors of one encoder: 43,690 vectors of 384 dimensions."""


class CachedEmbedder:
    """An embedder with a cache of the `limit` passages that were used last.

    It is thread-safe. If two threads ask for the same new passage at once, both embed it.
    """

    def __init__(self, embedder: Embedder, limit: int | None = None) -> None:
        self.embedder = embedder
        self._limit = CACHE_BYTES // (4 * embedder.dim) if limit is None else limit
        self._cache: OrderedDict[bytes, Vector] = OrderedDict()
        self._lock = Lock()
        self.name, self.dim, self.max_tokens = embedder.name, embedder.dim, embedder.max_tokens
        self.count, self.count_many = embedder.count, embedder.count_many
        self.embed_query = embedder.embed_query

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        keys = [blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest() for text in texts]
        with self._lock:  # a vector that is used moves to the end of the cache
            vectors = {key: self._cache.pop(key) for key in dict.fromkeys(keys) if key in self._cache}
            self._cache |= vectors
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in vectors}
        if new:
            rows = self.embedder.embed_passages(list(new.values()))
            # Copies, because a view would keep the whole batch in memory.
            vectors |= {key: row.copy() for key, row in zip(new, rows, strict=True)}
            with self._lock:
                self._cache |= {key: vectors[key] for key in new}
                while len(self._cache) > self._limit:
                    self._cache.popitem(last=False)
        return np.array([vectors[key] for key in keys], np.float32).reshape(len(keys), self.dim)
