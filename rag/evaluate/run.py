"""What is evaluated: a set's corpus as a knowledge base, and a pipeline's answers as outcomes."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING

from ingest.errors import UserError
from ingest.i18n import Translator
from ingest.types import Chunk, Document, Receipt, Segment
from rag.evaluate.dataset import Dataset, Entry
from rag.evaluate.report import Report
from rag.evaluate.score import Outcome, SourceText, Span, evaluate

if TYPE_CHECKING:
    from ingest.pipeline import Reading
    from rag.load import Writer
    from rag.pipeline import Pipeline

DEPTH = 50  # passages ranked: enough for ten distinct entries where one entry brings several

Tick = Callable[[int], None]  # told how many chunks have been embedded since it was last told


def prepare(
    dataset: Dataset,
    home: Path,
    *,
    embedder: str | None = None,
    cache: Path,
    settings: Path | None = None,
    tick: Tick = lambda chunks: None,
    settle: bool = False,
) -> "Pipeline":
    """The pipeline over the set's corpus, under `settings` (a rag.toml; all defaults if None).

    The knowledge base stays below `home` and is used again by the same corpus, encoder and
    chunking. `settle` has its indexes made anew when all is in: milvus-lite is slow to search what it
    has not flushed.
    """
    from ingest.embed import BUNDLED, open_embedder
    from rag import load as opening
    from rag.config import SETTINGS, read_config

    if settings and not settings.is_file():
        raise UserError("no settings at {settings}", settings=settings)
    encoder = open_embedder(embedder or BUNDLED, cache=cache).name
    config = read_config(home, settings or home / "none")
    folder = home / dataset.name / _variant(dataset, encoder, config.chunk)
    config = replace(config, place=folder)
    folder.mkdir(parents=True, exist_ok=True)
    if settings:
        copyfile(settings, folder / SETTINGS)
    else:
        (folder / SETTINGS).unlink(missing_ok=True)
    writer = opening.open_writer(config, embedder=embedder, cache=cache)
    try:
        index(dataset, writer, tick)
        if settle:
            writer.store.rebuild()
    finally:
        writer.store.close()
    return opening.open_pipeline(config, cache=cache, say=Translator("en"))


def _variant(dataset: Dataset, encoder: str, chunking: object) -> str:
    """A name that differs where the vectors would."""
    # Files are named by the folder, and by the place that it is named from.
    corpus = (Path.cwd(), dataset.docs) if dataset.docs else dataset.entries
    return blake2b(f"{corpus}{encoder}{chunking}".encode(), digest_size=6).hexdigest()


def index(dataset: Dataset, writer: "Writer", tick: Tick) -> None:
    """Bring the set's corpus into a knowledge base; what is in it already is passed over."""
    from ingest.files import walk
    from ingest.pipeline import Ingestion
    from ingest.sandbox import Sandbox

    with Sandbox() as sandbox:
        work = Ingestion(writer.store, writer.embedder, writer.chunker, sandbox, tick)
        if dataset.docs:
            outcomes = work.run(file for file in walk([dataset.docs]) if not file.skipped)
        else:
            outcomes = work.write(_readings(dataset.entries, writer))
        for _ in outcomes:
            pass


def _readings(entries: Iterable[Entry], writer: "Writer") -> "Iterator[Reading]":
    """An entry becomes a document whose source is the entry's id."""
    from ingest import pipeline

    present = {document.source for document in writer.store.documents()}
    for entry in entries:
        if entry.id not in present:
            digest = blake2b(f"{entry.title}\0{entry.text}".encode()).hexdigest()
            document = Document(entry.id, entry.title, digest, Receipt("jsonl", "utf-8"))
            parts = pipeline.divide(document, [Segment(entry.text)], writer.chunker)
            yield pipeline.Reading(pipeline.Outcome(entry.id, "added"), parts)


def report(pipeline: "Pipeline", dataset: Dataset) -> Report:
    """How the pipeline does on the set."""
    settings = {
        "embedder": pipeline.embedder.name,
        "retrieve": repr(pipeline.config.retrieve),
        "read": repr(pipeline.config.read),
    }
    texts = source_text(pipeline, dataset)
    return evaluate(dataset, lambda text: outcome(pipeline, text), texts, settings=settings)


def outcome(pipeline: "Pipeline", question: str) -> Outcome:
    """What the pipeline makes of a question; it is read also where it would be refused.

    A blank question, which some sets hold, finds nothing and is refused.
    """
    if not question.strip():
        return Outcome([], confidence=0.0, refused=True)
    found = pipeline.retrieve(question, limit=DEPTH)
    answer = pipeline.extract(found)
    return Outcome(
        ranked=spans(hit.chunk for hit in found.hits),
        sentences=[citation.quote for citation in answer.citations],
        passage=found.passages[0].text if found.passages else "",
        citations=[Span(c.chunk.source, c.start, c.end, c.quote) for c in answer.citations],
        confidence=found.confidence,
        refused=not found.answerable,
    )


def spans(chunks: Iterable[Chunk]) -> list[Span]:
    """The passage around each chunk: that is what the reader sees."""
    return [Span(chunk.source, *chunk.passage) for chunk in chunks]


def source_text(pipeline: "Pipeline", dataset: Dataset) -> SourceText:
    """The whole text behind a source: the entry's own, or what the parser made of the file."""
    if not dataset.docs:
        return {entry.id: entry.text for entry in dataset.entries}.__getitem__
    ids = {document.source: document.id for document in pipeline.store.documents()}
    return lambda source: pipeline.store.text(ids[source])
