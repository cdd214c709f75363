"""Evaluate a pipeline: a set's corpus as a knowledge base, and answers as predictions."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING

from ingest.errors import UserError
from ingest.i18n import Translator
from ingest.types import Chunk, Document, ParseReport, Segment
from rag.evaluate.dataset import Dataset, Entry
from rag.evaluate.report import EvalReport
from rag.evaluate.score import SHORT, Prediction, SourceSpan, SourceText, evaluate
from rag.types import Answer

if TYPE_CHECKING:
    from ingest.pipeline import Reading
    from rag.load import Writer
    from rag.pipeline import Pipeline

DEPTH = 50  # ranked passages: enough for ten distinct entries, since an entry may have several


def prepare(
    dataset: Dataset, home: Path, *, embedder: str | None = None, cache: Path, settings: Path | None = None
) -> "Pipeline":
    """The pipeline over the set's corpus, under `settings` (a rag.toml; all defaults if None).

    The knowledge base stays below `home` and is reused for the same corpus, encoder and chunking.
    """
    from ingest.embed import BUNDLED, open_embedder
    from rag.config import SETTINGS, read_config
    from rag.load import open_pipeline, open_writer

    if settings and not settings.is_file():
        raise UserError("no settings at {settings}", settings=settings)
    encoder = open_embedder(embedder or BUNDLED, cache=cache).name
    config = read_config(home, settings or home / "none")
    folder = home / dataset.name / _variant(dataset, encoder, config.chunk)
    config = replace(config, place=folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).unlink(missing_ok=True)
    if settings:
        copyfile(settings, folder / SETTINGS)
    writer = open_writer(config, embedder=embedder, cache=cache)
    with writer.store:
        index(dataset, writer)
    return open_pipeline(config, cache=cache, say=Translator("en"))


def _variant(dataset: Dataset, encoder: str, chunking: object) -> str:
    """A name that differs if the vectors would."""
    # The folder may be relative to the working directory.
    corpus = (Path.cwd(), dataset.docs) if dataset.docs else dataset.entries
    return blake2b(f"{corpus}{encoder}{chunking}".encode(), digest_size=6).hexdigest()


def index(dataset: Dataset, writer: "Writer") -> None:
    """Ingest the set's corpus into a knowledge base; documents that it already has are skipped."""
    from ingest.files import walk
    from ingest.pipeline import Ingestion
    from ingest.sandbox import Sandbox

    with Sandbox() as sandbox:
        work = Ingestion(writer.store, writer.embedder, writer.chunker, sandbox)
        if dataset.docs:
            outcomes = work.run(file for file in walk([dataset.docs]) if not file.skipped)
        else:
            outcomes = work.write(_readings(dataset.entries, writer))
        deque(outcomes, maxlen=0)


def _readings(entries: Iterable[Entry], writer: "Writer") -> "Iterator[Reading]":
    """Each new entry as a document whose source is the entry's id."""
    from ingest import pipeline

    present = {document.source for document in writer.store.documents()}
    for entry in entries:
        if entry.id not in present:
            digest = blake2b(f"{entry.title}\0{entry.text}".encode()).hexdigest()
            document = Document(entry.id, entry.title, digest, ParseReport("jsonl", "utf-8"))
            parts = pipeline.divide(document, [Segment(entry.text)], writer.chunker)
            yield pipeline.Reading(pipeline.FileOutcome(entry.id, "added"), parts)


def report(pipeline: "Pipeline", dataset: Dataset, *, short: int = SHORT) -> EvalReport:
    """The report of the pipeline on the set."""
    retrieve, read = repr(pipeline.config.retrieve), repr(pipeline.config.read)
    generator = pipeline.generator.name if pipeline.generator else ""
    settings = {
        "embedder": pipeline.embedder.name, "retrieve": retrieve, "read": read, "generator": generator,
    }  # fmt: skip
    texts = source_text(pipeline, dataset)
    ask = partial(predict, pipeline)
    return evaluate(dataset, ask, texts, settings=settings, short=short)


def predict(pipeline: "Pipeline", question: str) -> Prediction:
    """The pipeline's result for a question, with an extract even if the question is refused.

    A generator writes only what is not refused, and may then decline itself. A blank question, which some sets contain, finds nothing and is refused.
    """
    if not question.strip():
        return Prediction([], confidence=0.0, refused=True)
    found = pipeline.retrieve(question, limit=DEPTH)
    answer = pipeline.refusal(found) if pipeline.generator else pipeline.extract(found)
    if pipeline.generator and found.answerable:
        *_, answer = pipeline.write(found, pipeline.generator)
        assert isinstance(answer, Answer)
    return Prediction(
        ranked=spans(hit.chunk for hit in found.hits),
        sentences=[citation.quote for citation in answer.citations],
        passage=found.passages[0].text if found.passages else "",
        citations=[SourceSpan(c.chunk.source, c.start, c.end, c.quote) for c in answer.citations],
        confidence=found.confidence,
        refused=answer.refused or not found.answerable,
        declined=answer.refused and found.answerable if pipeline.generator else None,
        shown=answer.text,
        labels=[citation.chunk.label(citation.start) for citation in answer.citations],
        span=answer.text[slice(*(answer.span or (0, 0)))]
        if pipeline.reader and not pipeline.generator
        else None,
    )


def spans(chunks: Iterable[Chunk]) -> list[SourceSpan]:
    """The passage around each chunk, which is what the reader sees."""
    return [SourceSpan(chunk.source, *chunk.passage) for chunk in chunks]


def source_text(pipeline: "Pipeline", dataset: Dataset) -> SourceText:
    """The whole text of a source: the entry's own, or the parsed text of the file."""
    if not dataset.docs:
        return {entry.id: entry.text for entry in dataset.entries}.__getitem__
    ids = {document.source: document.id for document in pipeline.store.documents()}
    return lambda source: pipeline.store.text(ids[source])
