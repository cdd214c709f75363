"""The nouns of the read side: a question's passages, and an answer that quotes them."""

from dataclasses import dataclass
from typing import Literal

from ingest.embed import Vector
from ingest.types import Chunk, Hit, Passage


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class Retrieved:
    """What the knowledge base holds for a question.

    `hits` are the best chunk of each passage, best first, and `passages` the whole passages in the
    same order. `confidence` (0 to 1, larger is surer) says how likely they hold an answer.
    """

    question: str
    vector: Vector
    hits: tuple[Hit, ...]
    passages: tuple[Passage, ...]
    confidence: float
    threshold: float

    @property
    def answerable(self) -> bool:
        return bool(self.hits) and self.confidence >= self.threshold


@dataclass(frozen=True, slots=True)
class Citation:
    """A quote and where it stands. Invariant: the document's text[start:end] == quote."""

    number: int
    chunk: Chunk
    start: int
    end: int
    quote: str

    @property
    def label(self) -> str:
        """Page, heading, sheet or row of the quote's first character."""
        return self.chunk.label(self.start)


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer's text, whose marks `[1]` are the citations' numbers.

    A refusal has no citations; its `hits` say what was looked at.
    """

    question: str
    text: str
    citations: tuple[Citation, ...]
    hits: tuple[Hit, ...]
    confidence: float
    refused: bool
