"""What an encoder is to the rest of the program."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Vector = NDArray[np.float32]


class Embedder(Protocol):
    """Texts -> unit vectors, whose dot product is their cosine; larger is more alike."""

    @property
    def name(self) -> str:
        """Model, digest and options: vectors of two embedders compare only if names are equal."""
        ...

    @property
    def dim(self) -> int: ...

    @property
    def max_tokens(self) -> int:
        """How many tokens of a passage fit, the model's own prefix and marks already taken off."""
        ...

    def count(self, text: str) -> int:
        """Tokens of `text` alone, comparable with `max_tokens`."""
        ...

    def count_many(self, texts: Sequence[str]) -> list[int]: ...

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        """One row a text, float32 (len(texts), dim), in the order given.

        ValueError where a text has more than `max_tokens` tokens: nothing is ever cut.
        """
        ...

    def embed_query(self, text: str) -> Vector:
        """float32 (dim,). A question longer than the window gives the mean over its parts."""
        ...
