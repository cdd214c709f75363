"""A knowledge base that can only be read is asked like any other; only writing is refused."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ingest.chunk import Chunker, ChunkOptions
from ingest.errors import UserError
from ingest.files import walk
from ingest.i18n import Translator
from ingest.pipeline import Ingestion
from ingest.store import Identity, open_store
from rag.evaluate.dataset import Dataset
from rag.evaluate.report import NOT_SHARES, Figure
from rag.evaluate.run import report
from rag.load import score_norm_of
from rag.pipeline import Pipeline
from tests.fakes import HashEmbedder, TextParser

NOBODY = 65534
EMBEDDER = HashEmbedder()
QUESTION = "试用期不得超过几个月？"


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nobody may write the folder, and this process is not the owner if it can be another."""
    modes = {path: path.stat().st_mode for path in [folder, *folder.rglob("*")]}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A knowledge base where every user can reach it."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        docs = Path(place, "docs")
        docs.mkdir()
        (docs / "law.txt").write_text("第十九条 试用期不得超过六个月。\n", "utf-8")
        chunker = Chunker(EMBEDDER.count_many, EMBEDDER.max_tokens, ChunkOptions(60, 100, 20))
        with open_store(Path(place, "kb"), create=Identity(EMBEDDER.name, EMBEDDER.dim)) as store:
            list(Ingestion(store, EMBEDDER, chunker, TextParser()).run(walk([docs])))
        # What a first question imports is imported by a user who may read it.
        shutil.copytree(Path(place, "kb"), Path(place, "twin"))
        ask(Path(place, "twin"))
        yield Path(place, "kb")


@contextmanager
def opened(folder: Path) -> Iterator[Pipeline]:
    with open_store(folder) as store:
        assert store.verify() == []
        yield Pipeline(store, EMBEDDER, score_norm_of(store, EMBEDDER), Translator("en"))


def ask(folder: Path) -> str:
    with opened(folder) as pipeline:
        return pipeline.ask(QUESTION).text


def test_it_is_asked_and_not_written(folder: Path) -> None:
    with read_only(folder):
        assert "六个月" in ask(folder)
        with open_store(folder) as store, pytest.raises(UserError, match="can't be written"), store.change():
            pass
    assert "六个月" in ask(folder)


def test_it_is_searched_and_evaluated(folder: Path) -> None:
    asked = {
        "id": "1", "question": QUESTION, "answers": ["六个月"], "answerable": True, "language": "zh", "kind": "number",
        "gold": [{"document": "law.txt", "quote": "试用期不得超过六个月。"}],
    }  # fmt: skip
    (folder.parent / "questions.jsonl").write_text(json.dumps(asked), "utf-8")
    dataset = Dataset.load(folder.parent)

    def figures(pipeline: Pipeline) -> dict[str, Figure]:
        every = report(pipeline, dataset).figures()
        return {name: figure for name, figure in every.items() if name not in NOT_SHARES}

    with opened(folder.parent / "twin") as pipeline:
        expected = figures(pipeline)
    with read_only(folder), opened(folder) as pipeline:
        assert "六个月" in pipeline.retrieve(QUESTION).hits[0].chunk.text
        assert figures(pipeline) == expected
    assert expected["recall@1"].value == 1


@pytest.mark.parametrize("lost", ["words", "words/1/meta.json"])
def test_an_index_that_can_not_be_read_is_built_elsewhere(folder: Path, lost: str) -> None:
    path = folder / lost
    path.chmod(0o000)
    with read_only(folder):
        assert "六个月" in ask(folder)


def test_it_is_read_while_its_owner_has_it_open(folder: Path) -> None:
    with open_store(folder) as store:
        with store.change() as change:
            change.set_meta("a", 1)
        with read_only(folder):
            assert "六个月" in ask(folder)
