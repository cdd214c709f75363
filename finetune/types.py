"""The nouns of training: a conversation to learn from, its tokens, and what is wrong with data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from rag.types import Message

IGNORED = -100
"""The label of a token that is not learnt (torch's `ignore_index`)."""


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation of which the assistant's messages are learnt.

    `messages` are a system message (or none), then user and assistant in turn; the last is the
    assistant's. `given` holds the indices of assistant messages that are context only.
    """

    messages: tuple[Message, ...]
    input: str = ""
    """Alpaca's `input`, which belongs to the last question."""
    given: frozenset[int] = frozenset()
    source: str = ""
    """`file.json:17`, the row as a person counts it, from 1."""
    whole: bool = False
    """Nothing of it may be cut off: its question holds the passages that its answer cites."""

    @property
    def question(self) -> str:
        return self.messages[-2].text

    @property
    def answer(self) -> str:
        return self.messages[-1].text

    def unplaced(self, template: str) -> int:
        """How many of the messages a template has no place for."""
        return len(self.messages) - 2 if template == "tutorial" else 0


@dataclass(frozen=True, slots=True)
class Row:
    """The tokens of an example. `labels[i]` is `ids[i]` where that token is learnt, else IGNORED."""

    ids: NDArray[np.int32]
    labels: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.ids)


class Rows(Protocol):
    """Rows that may lie on disk: a `TokenSet` (tokens.py), or a list in tests."""

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each row."""
        ...

    @property
    def digest(self) -> str:
        """Stands for content and order: what a resumed training compares."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...


class Part(Sequence[Row]):
    """Some rows of others, in the order of `places`."""

    def __init__(self, rows: Rows, places: NDArray[np.int64]) -> None:
        self.rows, self.places = rows, places

    @property
    def lengths(self) -> NDArray[np.int32]:
        return self.rows.lengths[self.places]

    @property
    def digest(self) -> str:
        from hashlib import sha256

        return sha256(self.rows.digest.encode() + self.places.tobytes()).hexdigest()[:32]

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self.rows[int(place)] for place in self.places[index]]
        return self.rows[int(self.places[index])]


Problem = Literal[
    "broken", "ended", "missing", "empty", "type", "duplicate", "conflict", "special", "control",
    "long", "place", "encoding",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a row. A `bad` one can't be trained on; others are warnings."""

    source: str
    """`file.json:17`"""
    problem: Problem
    text: str
    zh: str
    bad: bool
