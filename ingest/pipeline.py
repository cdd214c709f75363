"""The whole write path on one screen: files -> text -> chunks -> vectors -> store.

`read`, `embed` and `write` do all of it: here one file after the other, on a cluster
(`ingest.ray_pipeline`) many at once.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from time import monotonic
from typing import Literal, Protocol

import numpy as np

from ingest.chunk import Chunker
from ingest.embed import Embedder, Vectors
from ingest.errors import Unreadable
from ingest.files import Found, digest
from ingest.store import Change, Store
from ingest.types import Chunk, Document, Parsed, Passage, Receipt, Segment

Status = Literal["added", "changed", "unchanged", "refused", "removed", "missing"]

# A batch is embedded and committed together: large enough for batches of equal length, small
# enough that a kill loses seconds.
BATCH_CHUNKS = 256
BATCH_SECONDS = 10.0
PART_PASSAGES = 64
"""Passages of a part, some 200 chunks: what of a large document is held or sent at a time."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file; `problem` says why it was refused."""

    source: str
    status: Status
    size: int = 0
    chunks: int = 0
    receipt: Receipt | None = None
    problem: Unreadable | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a document on its way to the store; once embedded, with a vector for each chunk."""

    document: Document
    passages: list[Passage]
    chunks: list[Chunk]
    vectors: Vectors | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """A file's outcome, its chunks not counted yet, and its document, which is read once."""

    outcome: Outcome
    parts: Iterable[Part] = ()


class Parser(Protocol):
    def parse(self, path: Path) -> Parsed:
        """The text of a file; `Unreadable` says why there is none. Its segments don't fail."""
        ...


Recall = Callable[[Sequence[bytes]], dict[bytes, Vectors]]
"""`Store.known_vectors`, or what asks it from afar."""

Embedding = Callable[[list[Part]], list[Part]]
"""Parts -> the same with their vectors."""


@dataclass(frozen=True)
class Ingestion:
    """Files go in, outcomes come out, each once its document is safely in the store.

    What goes wrong after a file is parsed is no fault of the file: it ends the run, and the batch
    under way is rolled back.

    `tick` is told how many chunks have been embedded since it was last told.
    """

    store: Store
    embedder: Embedder
    chunker: Chunker
    parser: Parser
    tick: Callable[[int], None] = lambda chunks: None

    def run(self, files: Iterable[Found]) -> Iterator[Outcome]:
        """Write every file that is new or changed. One bad file never stops the rest.

        A kill loses at most the batch under way; the next run takes up there.
        """
        readings = (
            read(file, self.store.document(file.source), self.parser, self.chunker)
            for file in files
        )
        return self.write(readings)

    def write(self, readings: Iterable[Reading]) -> Iterator[Outcome]:
        """Embed and write what has been read."""

        def embedding(parts: list[Part]) -> list[Part]:
            return embed(parts, self.store.known_vectors, self.embedder, self.tick)

        return write(readings, self.store, embedding)

    def prune(
        self, files: Iterable[Found], roots: Iterable[Path], *, remove: bool
    ) -> Iterator[Outcome]:
        """Documents under the folders `roots` whose file is gone; removed if `remove` says so."""
        present = {file.source for file in files}
        folders = [Path(os.path.abspath(root)) for root in roots if root.is_dir()]
        gone = [
            document.source
            for document in self.store.documents()
            if document.source not in present
            and any(map(Path(document.source).is_relative_to, folders))
            and not os.path.lexists(document.source)
        ]
        if remove and gone:
            with self.store.change(reason="prune") as change:
                for source in gone:
                    change.remove(source)
        for source in gone:
            yield Outcome(source, "removed" if remove else "missing")


def read(file: Found, before: Document | None, parser: Parser, chunker: Chunker) -> Reading:
    """What is in a file, unless that is what the store holds of it, which is `before`."""
    try:
        hashed = digest(file.path)
        if before and before.digest == hashed:
            return Reading(Outcome(file.source, "unchanged", file.size))
        parsed = parser.parse(file.path)
    except Unreadable as error:
        return refusal(file, before, error)
    except OSError as error:
        why = error.strerror or str(error)
        problem = Unreadable("{name} can't be read: {why}", name=file.path.name, why=why)
        return refusal(file, before, problem)
    document = Document(file.source, parsed.title, hashed, parsed.receipt)
    status: Status = "changed" if before else "added"
    outcome = Outcome(file.source, status, file.size, receipt=parsed.receipt)
    return Reading(outcome, divide(document, parsed.segments, chunker))


def refusal(file: Found, before: Document | None, problem: Unreadable) -> Reading:
    """Nothing but the problem, and whether an earlier version of the document is in the store."""
    if before:
        problem = Unreadable("{problem}; its version of before stays", problem=problem.message)
    return Reading(Outcome(file.source, "refused", file.size, problem=problem))


def divide(document: Document, segments: Iterable[Segment], chunker: Chunker) -> Iterator[Part]:
    """The document's passages and chunks, in order, `PART_PASSAGES` passages at a time."""
    for passages, chunks in chunker.split(document, segments):
        own = {place: list(some) for place, some in groupby(chunks, lambda chunk: chunk.passage)}
        for start in range(0, len(passages), PART_PASSAGES):
            part = passages[start : start + PART_PASSAGES]
            yield Part(document, part, [c for p in part for c in own[p.start, p.end]])


def embed(
    parts: Sequence[Part], recall: Recall, embedder: Embedder, tick: Callable[[int], None]
) -> list[Part]:
    """The parts with their vectors; only texts whose vector `recall` does not know are embedded."""
    chunks = [chunk for part in parts for chunk in part.chunks]
    known = recall([chunk.digest for chunk in chunks])
    fresh = {chunk.digest: chunk.indexed for chunk in chunks if chunk.digest not in known}
    digests = sorted(fresh, key=lambda digest: len(fresh[digest]))
    for start in range(0, len(digests), 64):
        some = digests[start : start + 64]
        rows = embedder.embed_passages([fresh[digest] for digest in some])
        known.update(zip(some, rows, strict=True))
        tick(len(some))
    return [
        replace(part, vectors=np.stack([known[chunk.digest] for chunk in part.chunks]))
        for part in parts
    ]


def write(readings: Iterable[Reading], store: Store, embedding: Embedding) -> Iterator[Outcome]:
    """Write what has been read, in that order; an outcome comes once its document is stored.

    `embedding` is given the parts of a batch together.
    """
    rest = iter(readings)
    while outcomes := _batch(rest, store, embedding):
        yield from outcomes


def _batch(readings: Iterator[Reading], store: Store, embedding: Embedding) -> list[Outcome]:
    outcomes: list[Outcome] = []
    end = monotonic() + BATCH_SECONDS
    with Batch(store, embedding) as batch:
        for reading in readings:
            chunks = batch.add(reading.parts)
            outcomes.append(replace(reading.outcome, chunks=chunks))
            if batch.chunks >= BATCH_CHUNKS or monotonic() > end:
                break
    return outcomes


@dataclass
class Batch:
    """Documents that reach the store in one transaction.

    They wait in memory and are embedded together; only a document larger than a batch is written
    piece by piece, still inside the one transaction.
    """

    store: Store
    embedding: Embedding
    chunks: int = 0
    waiting: list[Part] = field(default_factory=list)
    begun: set[str] = field(default_factory=set)
    stack: ExitStack = field(default_factory=ExitStack)
    change: Change | None = None

    def __enter__(self) -> "Batch":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            with self.stack:
                self._flush()
        else:
            self.stack.__exit__(kind, error, trace)  # pyright: ignore[reportArgumentType]

    def add(self, parts: Iterable[Part]) -> int:
        """Take a document; returns how many chunks it has."""
        total = 0
        for part in parts:
            self.waiting.append(part)
            total += len(part.chunks)
            if sum(len(one.chunks) for one in self.waiting) >= 4 * BATCH_CHUNKS:
                self._flush()
        self.chunks += total
        return total

    def _flush(self) -> None:
        if not self.waiting:
            return
        parts = self.embedding(self.waiting)
        if self.change is None:
            self.change = self.stack.enter_context(self.store.change())
        for part in parts:
            if part.document.id not in self.begun:
                self.change.put(part.document)
                self.begun.add(part.document.id)
            assert part.vectors is not None
            self.change.add(part.document, part.passages, part.chunks, part.vectors)
        self.waiting.clear()
