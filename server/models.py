"""The language models that answers write with: one in memory, lent to one answer at a time, and any
that are served elsewhere."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from threading import Lock

import numpy as np

from ingest.embed import Embedder, Vector, Vectors
from rag.generate import Adaptable, GenerateOptions, Generator, load
from rag.types import Message, Sampling

Loading = Callable[[GenerateOptions], Adaptable]


class Models:
    """Brings models by `loading`, which is given options without adapter. Another model takes the
    place of the one before."""

    def __init__(self, loading: Loading) -> None:
        self._loading = loading
        self._held: tuple[tuple[str, str], Adaptable] | None = None
        self._served: dict[GenerateOptions, Adaptable] = {}

    def generator(self, options: GenerateOptions) -> Generator | None:
        """What answers as the options say, from when it is first used; None where they name no
        model."""
        if options.served:
            where = GenerateOptions(options.model, endpoint=options.endpoint)
            if where not in self._served:
                self._served[where] = self._loading(where)
            return self._served[where]
        return Lent(self, options) if options.model else None

    def bring(self, options: GenerateOptions) -> Adaptable:
        """The model of the options with their adapter. For whoever has the turn to write."""
        which = options.model, options.quant
        if self._held is None or self._held[0] != which:
            self._held = None  # memory for two is not to be had
            self._held = which, self._loading(replace(options, adapter=""))
        model = self._held[1]
        model.use(Path(options.adapter) if options.adapter else None)
        return model

    def stop(self) -> None:
        """End the reply under way."""
        if self._held:
            self._held[1].stop()


@dataclass(frozen=True)
class Lent:
    """A knowledge base's generator: the one model, brought whenever it is used."""

    models: Models
    options: GenerateOptions

    @property
    def name(self) -> str:
        return Path(self.options.model).resolve().name

    @property
    def context(self) -> int:
        return self.models.bring(self.options).context

    def count(self, messages: Sequence[Message]) -> int:
        return self.models.bring(self.options).count(messages)

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
        yield from self.models.bring(self.options).stream(messages, sampling)

    def stop(self) -> None:
        self.models.stop()


def loader(cache: Path, note: Callable[[str], None]) -> Loading:
    """Loads models as the command line does; a name on a hub is fetched into `cache`."""

    def bring(options: GenerateOptions) -> Adaptable:
        return load(options, cache=cache / "models", progress=lambda share: None, note=note)

    return bring


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
