"""What real documents cost: reading, vectors, writing, and the bytes that stay."""

import resource
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from time import perf_counter, process_time
from typing import NamedTuple

import numpy as np

from ingest.chunk import Chunker
from ingest.embed import Embedder
from ingest.errors import Unreadable, UserError
from ingest.files import walk
from ingest.normalize import bigrams, words
from ingest.pipeline import BATCH_CHUNKS
from ingest.sandbox import Sandbox
from ingest.store import Identity, Store, open_store
from ingest.store.atomic import taken
from ingest.types import Chunk, Document, Passage
from rag.plan.constants import Kind
from rag.plan.made import DIM, unit

LAYERS, WIDTH, INNER = 12, 384, 1536  # of the bundled encoder

Tell = Callable[[str, str], None]
"""Told what is done now, in English and Chinese."""


class Text(NamedTuple):
    """A document that was read and cut."""

    document: Document
    passages: list[Passage]
    chunks: list[Chunk]


def read(
    paths: Sequence[Path], chunker: Chunker, *, ocr: bool
) -> tuple[dict[str, Kind], list[Text]]:
    """The documents under `paths`, and what each kind of them cost; those that can't be read are
    passed over. `UserError` where none is left.

    Seconds are shares, by the clock, of the work that all of it was: the child's cannot be told while
    it lives.
    """
    kinds: dict[str, Kind] = {}
    texts: list[Text] = []
    began, work = perf_counter(), _work()
    with Sandbox(ocr=ocr) as sandbox:
        for file in walk(paths):
            if file.skipped:
                continue
            start = perf_counter()
            try:
                parsed = sandbox.parse(file.path)
                document = Document(file.source, parsed.title, file.source, parsed.receipt)
                parts = list(chunker.split(document, parsed.segments))
            except Unreadable:
                continue
            seconds = perf_counter() - start
            passages = [passage for found, _ in parts for passage in found]
            chunks = [chunk for _, found in parts for chunk in found]
            if not chunks:
                continue
            texts.append(Text(document, passages, chunks))
            receipt = parsed.receipt
            name = f"{receipt.format}+ocr" if receipt.ocr_pages else receipt.format
            found = Kind(1, file.size, len(chunks), seconds)
            kinds[name] = kinds[name] + found if name in kinds else found
    if not texts:
        named = ", ".join(map(str, paths))
        raise UserError(
            f"nothing in {named} could be read; name a folder of documents",
            zh=f"{named} 中没有可读的文档；请指定一个文档文件夹",
        )
    share = min(1.0, (_work() - work) / (perf_counter() - began))
    counted = {name: replace(kind, seconds=kind.seconds * share) for name, kind in kinds.items()}
    return dict(sorted(counted.items())), texts


def _work() -> float:
    """Seconds that this process and its children that have ended worked."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return process_time() + children.ru_utime + children.ru_stime


@dataclass(frozen=True, slots=True)
class Vectors:
    """Of a chunk: tokens, operations, and seconds of a core, alone and while all cores work."""

    tokens: float
    flops: float
    alone: float
    together: float


def embed(texts: Sequence[Text], one: Embedder, all_cores: Embedder, *, most: int) -> Vectors:
    """The encoder's speed on at most `most` chunks drawn evenly; `one` keeps one core busy, the other all."""
    chunks = [chunk.indexed for text in texts for chunk in text.chunks]
    drawn = chunks[:: max(1, len(chunks) // most)][:most]
    counts = np.array(one.count_many(drawn), float)
    each = LAYERS * 2 * (4 * WIDTH * WIDTH + 2 * WIDTH * INNER)  # a multiplication, an addition
    attention = LAYERS * 4 * WIDTH * counts  # to each of the others, twice
    seconds = []
    for embedder in (one, all_cores):
        embedder.embed_passages(drawn[:8])  # opens its session
        start = process_time()
        embedder.embed_passages(drawn)
        seconds.append((process_time() - start) / len(drawn))
    alone, together = seconds
    flops = float((counts * (each + attention)).mean())
    return Vectors(float(counts.mean()), flops, alone, max(alone, together))


@dataclass(frozen=True, slots=True)
class Stored:
    """A chunk: seconds of a core to write it, bytes of the truth, of the word index and of the text itself."""

    seconds: float
    truth: float
    words: float
    characters: float
    postings: float


def write(texts: Sequence[Text], folder: Path, identity: Identity, *, least: int) -> Stored:
    """Write the documents as ingestion does, again and again until there are `least` chunks."""
    rng = np.random.default_rng(0)
    pending = [
        renamed(text, round_) for round_ in range(-(-least // _count(texts))) for text in texts
    ]
    total, spent = _count(pending), 0.0
    with open_store(folder, create=identity) as store:
        rest = iter(pending)
        while batch := _batch(rest):
            rows = unit(rng.standard_normal((_count(batch), DIM), dtype=np.float32))
            start = process_time()
            _write(store, batch, rows)
            spent += process_time() - start
    chunks = [chunk.indexed for text in texts for chunk in text.chunks]
    drawn = chunks[:: max(1, len(chunks) // 500)]
    terms = [len(set(split(text))) for text in drawn for split in (words, bigrams)]
    return Stored(
        spent / total,
        (folder / "kb.sqlite").stat().st_size / total,
        taken(folder / "words") / total,
        sum(len(text.encode()) for text in drawn) / len(drawn),
        sum(terms) / len(drawn),
    )


def renamed(text: Text, number: int) -> Text:
    """The same under another name, as another document."""
    document = replace(text.document, source=f"{text.document.source} {number}")
    head = {"document": document.id, "source": document.source}
    return Text(
        document,
        [replace(passage, document=document.id) for passage in text.passages],
        [replace(chunk, **head) for chunk in text.chunks],
    )


def _batch(texts: Iterator[Text]) -> list[Text]:
    """The next documents, of at least as many chunks as ingestion commits at once."""
    found: list[Text] = []
    for text in texts:
        found.append(text)
        if _count(found) >= BATCH_CHUNKS:
            break
    return found


def _write(store: Store, batch: Sequence[Text], rows: np.ndarray) -> None:
    vectors = iter(rows)
    with store.change() as change:
        for document, passages, chunks in batch:
            change.put(document)
            change.add(document, passages, chunks, np.array(list(islice(vectors, len(chunks)))))


def _count(texts: Sequence[Text]) -> int:
    return sum(len(text.chunks) for text in texts)
