"""The whole write path: files -> text -> chunks -> vectors -> store.

`read`, `embed` and `write` do all of it, here one file after the other; see also `ray_pipeline`.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from time import monotonic, time
from typing import Literal, Protocol

import numpy as np

from ingest.chunk import Chunker
from ingest.embed import Embedder, Vectors
from ingest.errors import Unreadable
from ingest.files import FoundFile, digest
from ingest.store import Store
from ingest.types import Document, DocumentPart, ParsedFile, ParseReport, Segment

Status = Literal["added", "changed", "unchanged", "refused", "removed", "missing"]

# A batch is embedded and committed together: a kill loses only seconds.
BATCH_CHUNKS = 256
BATCH_SECONDS = 10.0
PART_PASSAGES = 64
"""Passages of a part (some 200 chunks), in which a large document is held or sent."""


@dataclass(frozen=True, slots=True)
class FileOutcome:
    """The result for one file; `problem` is the reason why it was refused."""

    source: str
    status: Status
    size: int = 0
    chunks: int = 0
    report: ParseReport | None = None
    problem: Unreadable | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """A file's outcome, without the number of its chunks, and the parts of its document, read once."""

    outcome: FileOutcome
    parts: Iterable[DocumentPart] = ()


class Parser(Protocol):
    def parse(self, path: Path) -> ParsedFile:
        """The text of a file; raises `Unreadable` if there is none. Reading the segments never fails."""
        ...


Recall = Callable[[Sequence[bytes]], dict[bytes, Vectors]]
"""`Store.known_vectors`, or a remote call of it."""

Embedding = Callable[[list[DocumentPart]], list[DocumentPart]]
"""Parts -> the same parts with their vectors."""


@dataclass(frozen=True)
class Ingestion:
    """Files go in, outcomes come out, each once its document is safely in the store.

    One bad file never stops the rest; an error after a file is parsed ends the run, and the current
    batch is rolled back. `tick` is called with the number of chunks embedded since its last call.
    """

    store: Store
    embedder: Embedder
    chunker: Chunker
    parser: Parser
    tick: Callable[[int], None] = lambda chunks: None
    again: bool = False
    """Whether unchanged files are read, too: with a newer parser, for example."""

    def run(self, files: Iterable[FoundFile]) -> Iterator[FileOutcome]:
        """Write every file that is new or changed. A kill loses at most the current batch."""
        store, parser, chunker = self.store, self.parser, self.chunker
        return self.write(read(f, store.document(f.source), parser, chunker, self.again) for f in files)

    def write(self, readings: Iterable[Reading]) -> Iterator[FileOutcome]:
        """Embed and write documents that have been read."""
        recall = self.store.known_vectors
        embedding = partial(embed, recall=recall, embedder=self.embedder, tick=self.tick)
        return write(readings, self.store, embedding)

    def prune(
        self, files: Iterable[FoundFile], roots: Iterable[Path], *, remove: bool
    ) -> Iterator[FileOutcome]:
        """Documents under the folders `roots` whose file is gone; with `remove` they are removed."""
        present = {file.source for file in files}
        folders = [Path(os.path.abspath(root)) for root in roots if root.is_dir()]
        gone = [
            source
            for source in (document.source for document in self.store.documents())
            if source not in present
            and any(map(Path(source).is_relative_to, folders))
            and not os.path.lexists(source)
        ]
        if remove and gone:
            with self.store.change(reason="prune") as change:
                for source in gone:
                    change.remove(source)
        yield from (FileOutcome(source, "removed" if remove else "missing") for source in gone)


def read(
    file: FoundFile, before: Document | None, parser: Parser, chunker: Chunker, again: bool = False
) -> Reading:
    """The content of a file, unless the store's document `before` already has it and not `again`."""
    try:
        hashed = digest(file.path)
        if before and before.digest == hashed and not again:
            return Reading(FileOutcome(file.source, "unchanged", file.size))
        parsed = parser.parse(file.path)
    except Unreadable as error:
        return refusal(file, before, error)
    except OSError as error:
        why = error.strerror or str(error)
        problem = Unreadable("{name} can't be read: {why}", name=file.path.name, why=why)
        return refusal(file, before, problem)
    report = replace(parsed.report, ingested=time())
    document = Document(file.source, parsed.title, hashed, report)
    status: Status = "changed" if before else "added"
    outcome = FileOutcome(file.source, status, file.size, report=report)
    return Reading(outcome, divide(document, parsed.segments, chunker))


def refusal(file: FoundFile, before: Document | None, problem: Unreadable) -> Reading:
    """Only the problem, which mentions an earlier version of the document in the store."""
    if before:
        why = problem.message
        problem = Unreadable("{problem}; the previously indexed version is kept", problem=why)
    return Reading(FileOutcome(file.source, "refused", file.size, problem=problem))


def divide(document: Document, segments: Iterable[Segment], chunker: Chunker) -> Iterator[DocumentPart]:
    """The document's passages and chunks, in order, `PART_PASSAGES` passages at a time."""
    for passages, chunks in chunker.split(document, segments):
        own = {span: list(group) for span, group in groupby(chunks, lambda chunk: chunk.passage)}
        for start in range(0, len(passages), PART_PASSAGES):
            part = passages[start : start + PART_PASSAGES]
            yield DocumentPart(document, part, [c for p in part for c in own[p.start, p.end]])


def embed(
    parts: Sequence[DocumentPart], recall: Recall, embedder: Embedder, tick: Callable[[int], None]
) -> list[DocumentPart]:
    """The parts with their vectors; a text is embedded only if `recall` does not know its vector."""
    chunks = [chunk for part in parts for chunk in part.chunks]
    known = recall([chunk.digest for chunk in chunks])
    fresh = {chunk.digest: chunk.indexed for chunk in chunks if chunk.digest not in known}
    digests = sorted(fresh, key=lambda digest: len(fresh[digest]))
    for start in range(0, len(digests), 64):
        batch = digests[start : start + 64]
        rows = embedder.embed_passages([fresh[digest] for digest in batch])
        known.update(zip(batch, rows, strict=True))
        tick(len(batch))
    return [replace(part, vectors=np.stack([known[chunk.digest] for chunk in part.chunks])) for part in parts]


def write(readings: Iterable[Reading], store: Store, embedding: Embedding) -> Iterator[FileOutcome]:
    """Write documents in the order in which they were read; an outcome follows once its document is
    stored. `embedding` gets the parts of a batch together."""
    rest = iter(readings)
    while outcomes := _write_batch(rest, store, embedding):
        yield from outcomes


def _write_batch(readings: Iterator[Reading], store: Store, embedding: Embedding) -> list[FileOutcome]:
    """Write documents in one transaction until there are BATCH_CHUNKS, or BATCH_SECONDS have passed.

    They wait in memory and are embedded together. What waits is embedded and written early if it
    grows to four batches, as a large document can, but still in the same transaction.
    """
    outcomes: list[FileOutcome] = []
    waiting: list[DocumentPart] = []
    written: set[str] = set()
    end = monotonic() + BATCH_SECONDS
    with ExitStack() as stack:
        open_change = cache(lambda: stack.enter_context(store.change()))

        def flush() -> None:
            parts = embedding(waiting)
            for part in parts:
                if part.document.id not in written:
                    open_change().put(part.document)
                    written.add(part.document.id)
                open_change().add(part)
            waiting.clear()

        for reading in readings:
            chunks = 0
            for part in reading.parts:
                waiting.append(part)
                chunks += len(part.chunks)
                if sum(len(one.chunks) for one in waiting) >= 4 * BATCH_CHUNKS:
                    flush()
            outcomes.append(replace(reading.outcome, chunks=chunks))
            if sum(o.chunks for o in outcomes) >= BATCH_CHUNKS or monotonic() > end:
                break
        if waiting:
            flush()
    return outcomes
