"""The whole write path on one screen: files -> text -> chunks -> vectors -> store."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Literal, Protocol

import numpy as np

from ingest.chunk import Chunker
from ingest.embed import Embedder, Vectors
from ingest.errors import Unreadable
from ingest.files import Found, digest
from ingest.store import Change, Store
from ingest.types import Chunk, Document, Parsed, Passage, Receipt

Status = Literal["added", "changed", "unchanged", "refused", "removed", "missing"]

# A batch is embedded and committed together: large enough for batches of equal length, small
# enough that a kill loses seconds.
BATCH_CHUNKS = 256
BATCH_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file; `problem` says why it was refused."""

    source: str
    status: Status
    size: int = 0
    chunks: int = 0
    receipt: Receipt | None = None
    problem: Unreadable | None = None


class Parser(Protocol):
    def parse(self, path: Path) -> Parsed:
        """The text of a file; `Unreadable` says why there is none. Its segments don't fail."""
        ...


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
        rest = iter(files)
        while outcomes := self._batch(rest):
            yield from outcomes

    def _batch(self, files: Iterator[Found]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        end = monotonic() + BATCH_SECONDS
        with Batch(self.store, self.embedder, self.tick) as batch:
            for file in files:
                outcomes.append(self._read(file, batch))
                if batch.chunks >= BATCH_CHUNKS or monotonic() > end:
                    break
        return outcomes

    def _read(self, file: Found, batch: "Batch") -> Outcome:
        before = self.store.document(file.source)
        try:
            hashed = digest(file.path)
            if before and before.digest == hashed:
                return Outcome(file.source, "unchanged", file.size)
            parsed = self.parser.parse(file.path)
        except Unreadable as error:
            return Outcome(file.source, "refused", file.size, problem=_kept(error, before))
        except OSError as error:
            why = error.strerror or str(error)
            problem = Unreadable(
                f"{file.path.name} can't be read: {why}", zh=f"无法读取 {file.path.name}：{why}"
            )
            return Outcome(file.source, "refused", file.size, problem=_kept(problem, before))
        document = Document(file.source, parsed.title, hashed, parsed.receipt)
        chunks = batch.add(document, self.chunker.split(document, parsed.segments))
        status: Status = "changed" if before else "added"
        return Outcome(file.source, status, file.size, chunks, parsed.receipt)

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


def _kept(problem: Unreadable, before: Document | None) -> Unreadable:
    """The problem, and that an earlier version of the document is still in the store."""
    if before is None:
        return problem
    return Unreadable(
        f"{problem}; its version of before stays", zh=f"{problem.zh}；知识库保留其旧版本"
    )


Rows = tuple[Document, list[Passage], list[Chunk]]


@dataclass
class Batch:
    """Documents that reach the store in one transaction.

    They wait in memory and are embedded together; only a document larger than a batch is written
    piece by piece, still inside the one transaction.
    """

    store: Store
    embedder: Embedder
    tick: Callable[[int], None]
    chunks: int = 0
    waiting: list[Rows] = field(default_factory=list)
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

    def add(self, document: Document, parts: Iterable[tuple[list[Passage], list[Chunk]]]) -> int:
        """Take a document; returns how many chunks it has."""
        total = 0
        for passages, chunks in parts:
            self.waiting.append((document, passages, chunks))
            total += len(chunks)
            if sum(len(rows[2]) for rows in self.waiting) >= 4 * BATCH_CHUNKS:
                self._flush()
        self.chunks += total
        return total

    def _flush(self) -> None:
        if not self.waiting:
            return
        vectors = self._vectors([chunk for _, _, chunks in self.waiting for chunk in chunks])
        if self.change is None:
            self.change = self.stack.enter_context(self.store.change())
        at = 0
        for document, passages, chunks in self.waiting:
            if document.id not in self.begun:
                self.change.put(document)
                self.begun.add(document.id)
            self.change.add(document, passages, chunks, vectors[at : at + len(chunks)])
            at += len(chunks)
        self.waiting.clear()

    def _vectors(self, chunks: list[Chunk]) -> Vectors:
        """One row a chunk; only texts whose vector the store does not hold are embedded."""
        known = self.store.known_vectors([chunk.digest for chunk in chunks])
        fresh = {chunk.digest: chunk.indexed for chunk in chunks if chunk.digest not in known}
        digests = sorted(fresh, key=lambda digest: len(fresh[digest]))
        for start in range(0, len(digests), 64):
            part = digests[start : start + 64]
            rows = self.embedder.embed_passages([fresh[digest] for digest in part])
            known.update(zip(part, rows, strict=True))
            self.tick(len(part))
        return np.stack([known[chunk.digest] for chunk in chunks])
