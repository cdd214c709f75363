"""A set becomes a knowledge base, and a pipeline over it is scored."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ingest.chunk import Chunker, ChunkOptions
from ingest.i18n import Translator
from ingest.store import Identity, open_store
from rag.evaluate import run
from rag.evaluate.dataset import Dataset
from rag.load import Writer, score_norm_of
from rag.pipeline import Pipeline
from rag.types import NOT_FOUND, Message, Sampling
from tests.fakes import CopyingGenerator, HashEmbedder

MINI = Path(__file__).parents[2] / "data" / "eval-mini"


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    embedder = HashEmbedder()
    options = ChunkOptions(chunk_tokens=60, passage_tokens=100, context_tokens=20)
    chunker = Chunker(embedder.count_many, embedder.max_tokens, options)
    with open_store(tmp_path / "kb", create=Identity(embedder.name, embedder.dim)) as store:
        yield Writer(store, embedder, chunker)


def test_a_set_is_indexed_once_and_scored_whole(writer: Writer) -> None:
    dataset = Dataset.load(MINI)
    run.index(dataset, writer)
    assert {document.source for document in writer.store.documents()} == {
        entry.id for entry in dataset.entries
    }
    sequence = writer.store.sequence
    run.index(dataset, writer)
    assert writer.store.sequence == sequence

    norm = score_norm_of(writer.store, writer.embedder)
    pipeline = Pipeline(writer.store, writer.embedder, norm, Translator("en"))
    report = run.report(pipeline, dataset)
    assert [row.id for row in report.rows] == [question.id for question in dataset.questions]
    figures = report.figures(resamples=50)
    assert figures["citations"].value == 1.0
    assert figures["success@10"].value > 0.5  # hashed bigrams find most of what words name
    assert {"auroc", "false_answers", "answer_in_two", "right", "p95"} <= figures.keys()


def test_the_text_behind_a_source_is_the_entrys_own(writer: Writer) -> None:
    dataset = Dataset.load(MINI)
    run.index(dataset, writer)
    for entry in dataset.entries:
        document = writer.store.document(entry.id)
        assert document is not None
        assert writer.store.text(document.id) == entry.text


class FirstPassageOrNothing(CopyingGenerator):
    """Cites the first passage, but declines every question that has a digit."""

    asked = 0

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
        self.asked += 1
        declines = any(character.isdigit() for character in messages[-1].text.splitlines()[-1])
        yield NOT_FOUND["han"] if declines else "在这里 [1]。"


def test_a_generator_writes_the_answers_and_may_decline(writer: Writer) -> None:
    dataset = Dataset.load(MINI)
    run.index(dataset, writer)
    norm, generator = score_norm_of(writer.store, writer.embedder), FirstPassageOrNothing()
    pipeline = Pipeline(writer.store, writer.embedder, norm, Translator("en"), generator=generator)
    refused = total = 0
    for question in dataset.questions:
        prediction = run.predict(pipeline, question.text)
        total += bool(prediction.refused)
        if not pipeline.retrieve(question.text).answerable:
            assert prediction.refused
            refused += 1
        elif not prediction.refused:
            assert prediction.shown == "在这里 [1]。"
            assert prediction.citations
    assert generator.asked == len(dataset.questions) - refused > 0
    report = run.report(pipeline, dataset)
    assert report.settings["generator"] == generator.name
    figures = report.figures(resamples=50)
    assert figures["not_found"].value == pytest.approx(refused / len(dataset.questions))
    assert figures["declined"].value == pytest.approx((total - refused) / len(dataset.questions))
