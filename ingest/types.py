"""The types of the write side: what a file becomes on its way into a knowledge base."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ingest.i18n import from_json, to_json

MarkKind = Literal["page", "heading", "sheet", "row"]


@dataclass(frozen=True, slots=True)
class Mark:
    """The name of a place that begins at character `start` of the document.

    A page, sheet or row lasts until the next mark of its kind; a heading until the next heading
    of the same or a higher rank (`level` 1 is the highest).
    """

    start: int
    kind: MarkKind
    label: str
    level: int = 1


FactKind = Literal["number", "date", "body", "author"]


class Fact(NamedTuple):
    """The line [start, end) of a document that says its number, date, issuing body or author."""

    kind: FactKind
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class ParseReport:
    """How a file's bytes became text, so that nothing is lost silently, and what the text says of itself.

    `encoding` is None for container formats; `replaced` counts bytes that could not be decoded. The
    warnings are translatable messages, also after they were stored. `ingested` is when, in seconds since
    1970; 0 if that was not stored.
    """

    format: str
    encoding: str | None = None
    replaced: int = 0
    ocr_pages: int = 0
    warnings: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = ()
    ingested: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """A value for `from_json`."""
        return asdict(self) | {"warnings": [to_json(warning) for warning in self.warnings]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The report from `to_json`; an older one has its warnings in English only."""
        warnings = tuple(map(from_json, values["warnings"]))
        found = tuple(Fact(*fact) for fact in values.get("facts", ()))
        return cls(**{**values, "warnings": warnings, "facts": found})


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a document's text with the marks in it (offsets within the segment). A very large
    text comes as many segments, cut at line ends, so that no stage ever holds all of it."""

    text: str
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """A file's title and text. `segments` is read once and may be lazy."""

    title: str
    segments: Iterable[Segment]
    report: ParseReport


@dataclass(frozen=True, slots=True)
class Document:
    """All of a document but its text. `digest` is the hash of the file's bytes."""

    source: str
    title: str
    digest: str
    report: ParseReport

    @property
    def id(self) -> str:
        """Derived from source and bytes alone: the same file gives the same id on every machine."""
        return blake2b(f"{self.source}\0{self.digest}".encode(), digest_size=12).hexdigest()


@dataclass(frozen=True, slots=True)
class Passage:
    """Paragraphs or a section, as shown to the reader of an answer. Passages tile the text."""

    document: str
    start: int
    end: int
    text: str
    label: str


Place = tuple[int, str]
"""An offset in a document's text and the name of the place that begins there."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of one passage that fits the encoder's window; it is embedded and indexed.

    Invariant: `document text[start:end] == text`. `context` (title, headings, table header) is put
    before the text when it is embedded, indexed or read. `places` holds the place of the chunk's
    start and each place that begins in it, sorted by offset.
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
        """The name of the place of a character of this chunk: `p. 3 · 第二章 合同 › 第一节`, or ""."""
        return next((label for start, label in reversed(self.places) if start <= offset), "")

    @property
    def indexed(self) -> str:
        """The exact text that the encoder and the word index see."""
        return f"{self.context}\n{self.text}" if self.context else self.text

    @property
    def digest(self) -> bytes:
        """The hash of `indexed`, 16 bytes: equal digests have equal vectors."""
        return blake2b(self.indexed.encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk and its score; larger is better, everywhere."""

    chunk: Chunk
    score: float


Vectors = NDArray[np.float32]
Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class DocumentPart:
    """A piece of a document on its way to the store; once embedded, it has a row for each chunk."""

    document: Document
    passages: Sequence[Passage]
    chunks: Sequence[Chunk]
    vectors: Vectors | None = None


class Embedder(Protocol):
    """Texts -> unit vectors, whose dot product is their cosine; larger means more similar."""

    @property
    def name(self) -> str:
        """Model, digest and options: vectors can be compared only if the names are equal."""
        ...

    @property
    def dim(self) -> int: ...

    @property
    def max_tokens(self) -> int:
        """How many tokens of a passage fit, beside the model's own prefix and special tokens."""
        ...

    def count(self, text: str) -> int:
        """Tokens of `text` alone, comparable with `max_tokens`."""
        ...

    def count_many(self, texts: Sequence[str]) -> list[int]: ...

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        """One row a text, float32 (len(texts), dim). Raises ValueError if a text has more than
        `max_tokens` tokens: nothing is ever cut."""
        ...

    def embed_query(self, text: str) -> Vector:
        """float32 (dim,). A question longer than the window gives the mean over its parts."""
        ...
