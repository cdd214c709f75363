"""The nouns of the write side: what a file becomes on its way into a knowledge base."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

MarkKind = Literal["page", "heading", "sheet", "row"]


@dataclass(frozen=True, slots=True)
class Mark:
    """A place's name that holds from character `start` of the document on.

    A page, sheet or row holds until the next mark of its kind; a heading until the next heading
    of the same or a higher rank (`level` 1 is the highest).
    """

    start: int
    kind: MarkKind
    label: str
    level: int = 1


@dataclass(frozen=True, slots=True)
class Receipt:
    """How a file's bytes became text, so that nothing is lost silently.

    `encoding` is None for container formats; `replaced` counts bytes that could not be decoded.
    """

    format: str
    encoding: str | None = None
    replaced: int = 0
    ocr_pages: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a document's text with the marks in it (offsets within the segment).

    Most documents are one segment. A very large text comes as many, cut at line ends, so that no
    stage ever holds it whole; the document's text is their concatenation.
    """

    text: str
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True)
class Parsed:
    """A file's title and text. `segments` is read once and may be lazy."""

    title: str
    segments: Iterable[Segment]
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Document:
    """A document's head: all but its text. `digest` is the hash of the file's bytes."""

    source: str
    title: str
    digest: str
    receipt: Receipt

    @property
    def id(self) -> str:
        """Derived from source and bytes alone: the same file gives the same id on every machine."""
        return blake2b(f"{self.source}\0{self.digest}".encode(), digest_size=12).hexdigest()


@dataclass(frozen=True, slots=True)
class Passage:
    """Whole paragraphs or a section: what the reader of an answer sees. Passages tile the text."""

    document: str
    start: int
    end: int
    text: str
    label: str


Place = tuple[int, str]
"""An offset in a document's text and the name of the place that begins there."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What is embedded and indexed: a part of one passage that fits the encoder's window whole.

    Invariant: `document text[start:end] == text`. `context` (title, headings, table header) stands
    before the text when it is embedded, indexed or read, and is not part of the document's text.
    `places` names where the chunk begins and each place that begins within it, sorted by offset.
    """

    document: str
    source: str
    title: str
    places: tuple[Place, ...]
    context: str
    start: int
    end: int
    text: str
    passage: tuple[int, int]

    @property
    def id(self) -> str:
        return f"{self.document}:{self.start}-{self.end}"

    def label(self, offset: int) -> str:
        """The place of a character of this chunk in words: `p. 3 · 第二章 合同 › 第一节`, or ""."""
        return next((label for start, label in reversed(self.places) if start <= offset), "")

    @property
    def indexed(self) -> str:
        """The very text that the encoder and the word index see."""
        return f"{self.context}\n{self.text}" if self.context else self.text

    @property
    def digest(self) -> bytes:
        """16 bytes that stand for `indexed`: equal digests have equal vectors."""
        return blake2b(self.indexed.encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk and its score; larger is better, everywhere."""

    chunk: Chunk
    score: float


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
