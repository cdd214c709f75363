"""Files -> store: what is written, what is left alone, what survives a bad file and a kill."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.chunk import Chunker, ChunkOptions
from ingest.files import walk
from ingest.normalize import terms
from ingest.pipeline import FileOutcome, Ingestion
from ingest.store import Identity, LocalStore, open_store
from tests.fakes import HashEmbedder, TextParser

LAW = "第一条 为了保护劳动者的合法权益，制定本法。\n第二条 建立劳动关系，应当订立书面劳动合同。\n"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    identity = Identity(HashEmbedder.name, HashEmbedder.dim)
    with open_store(tmp_path / "kb", create=identity) as store:
        yield store


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "law.txt").write_text(LAW * 6, "utf-8")
    (folder / "poem.txt").write_text("床前明月光，疑是地上霜。\n", "utf-8")
    return folder


def ingestion(store: LocalStore) -> Ingestion:
    embedder = HashEmbedder()
    options = ChunkOptions(chunk_tokens=60, passage_tokens=100, context_tokens=20)
    chunker = Chunker(embedder.count_many, embedder.max_tokens, options)
    return Ingestion(store, embedder, chunker, TextParser())


def run(store: LocalStore, docs: Path) -> tuple[dict[str, FileOutcome], list[str]]:
    """Outcomes by file name, and the texts that had to be embedded."""
    work = ingestion(store)
    outcomes = {Path(outcome.source).name: outcome for outcome in work.run(walk([docs]))}
    return outcomes, work.embedder.embedded  # pyright: ignore[reportAttributeAccessIssue]


def test_a_folder_becomes_searchable(store: LocalStore, docs: Path) -> None:
    outcomes, embedded = run(store, docs)
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "law.txt": "added",
        "poem.txt": "added",
    }
    assert outcomes["law.txt"].chunks >= 6
    assert len(embedded) == len(set(embedded))
    found = store.search_words(terms("明月"), 5)
    [chunk] = store.chunks(found.keys).values()
    assert "明月光" in chunk.text
    document = store.document(chunk.source)
    assert document is not None
    assert store.text(document.id) == "床前明月光，疑是地上霜。\n"


def test_the_second_run_does_nothing(store: LocalStore, docs: Path) -> None:
    run(store, docs)
    before = store.info().sequence
    outcomes, embedded = run(store, docs)
    assert {outcome.status for outcome in outcomes.values()} == {"unchanged"}
    assert embedded == []
    assert store.info().sequence == before


def test_an_edit_embeds_only_what_changed(store: LocalStore, docs: Path) -> None:
    articles = [f"第{i}条 关于第{i}件事的规定，其内容不同于其他各条。\n" * 2 for i in range(40)]
    (docs / "law.txt").write_text("".join(articles), "utf-8")
    _, first = run(store, docs)
    (docs / "law.txt").write_text("".join(articles) + "附则 自公布之日起施行。\n", "utf-8")
    outcomes, second = run(store, docs)
    assert outcomes["law.txt"].status == "changed"
    assert 0 < len(second) <= 4 < len(first)
    document = store.document(next(o.source for n, o in outcomes.items() if n == "law.txt"))
    assert document is not None
    assert store.text(document.id).endswith("附则 自公布之日起施行。\n")


def test_one_bad_file_costs_one_line(store: LocalStore, docs: Path) -> None:
    (docs / "bad.txt").write_bytes(b"\x89PNG\xff\xfe\x00")
    outcomes, _ = run(store, docs)
    assert outcomes["bad.txt"].status == "refused"
    assert "not text" in str(outcomes["bad.txt"].problem)
    assert outcomes["poem.txt"].status == "added"


def test_a_file_that_turns_bad_keeps_its_last_good_text(store: LocalStore, docs: Path) -> None:
    run(store, docs)
    (docs / "poem.txt").write_bytes(b"\xff\xfe\x00")
    outcomes, _ = run(store, docs)
    assert outcomes["poem.txt"].status == "refused"
    assert store.search_words(terms("明月"), 5).keys.size == 1


def test_prune_removes_only_when_asked(store: LocalStore, docs: Path) -> None:
    run(store, docs)
    (docs / "poem.txt").unlink()
    files = list(walk([docs]))
    [missing] = ingestion(store).prune(files, [docs], remove=False)
    assert (missing.status, store.info().documents) == ("missing", 2)
    [removed] = ingestion(store).prune(files, [docs], remove=True)
    assert (removed.status, store.info().documents) == ("removed", 1)
    assert store.search_words(terms("明月"), 5).keys.size == 0


def test_a_document_larger_than_a_batch_streams_into_one_transaction(
    store: LocalStore, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.pipeline.BATCH_CHUNKS", 2)
    text = "".join(f"第{i}条 规定其{i * 7919}。\n" for i in range(200))
    (docs / "law.txt").write_text(text, "utf-8")
    run(store, docs)
    document = next(d for d in store.documents() if d.source.endswith("law.txt"))
    assert store.text(document.id) == text


ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from pathlib import Path
from ingest import pipeline
from ingest.files import walk
from ingest.chunk import Chunker, ChunkOptions
from ingest.store import Identity, open_store
from tests.fakes import HashEmbedder, TextParser

pipeline.BATCH_CHUNKS = 8
embedder = HashEmbedder()
chunker = Chunker(embedder.count_many, embedder.max_tokens, ChunkOptions(60, 100, 20))
with open_store(Path(sys.argv[2]), create=Identity(embedder.name, embedder.dim)) as store:
    work = pipeline.Ingestion(store, embedder, chunker, TextParser())
    for outcome in work.run(walk([Path(sys.argv[1])])):
        print(outcome.source, outcome.status, flush=True)
"""


def text_of(number: int) -> str:
    return "".join(f"第{i}条 第{number}号文件规定的第{i * 7919}件事。\n" for i in range(12))


def start(docs: Path, kb: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PROGRAM, str(docs), str(kb)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_a_killed_run_is_continued(tmp_path: Path) -> None:
    docs, kb = tmp_path / "docs", tmp_path / "kb"
    docs.mkdir()
    for number in range(24):
        (docs / f"{number:02}.txt").write_text(text_of(number), "utf-8")
    rng, reported = random.Random(0), set()
    for _ in range(4):
        with start(docs, kb) as process:
            assert process.stdout
            for line in process.stdout:  # wait for one document, then kill at some moment
                reported.add(line.split()[0])
                break
            time.sleep(rng.random() * 0.3)
            process.send_signal(signal.SIGKILL)
            reported |= {line.split()[0] for line in process.stdout if line.endswith("\n")}
        with open_store(kb, create=Identity(HashEmbedder.name, HashEmbedder.dim)) as store:
            assert store.verify() == []
            written = {document.source: document for document in store.documents()}
            assert reported <= written.keys()  # what was reported is there
            for source, document in written.items():
                assert store.text(document.id) == Path(source).read_text("utf-8")
    with start(docs, kb) as process:
        assert process.stdout
        last = dict(line.split() for line in process.stdout)
    assert process.returncode == 0
    assert len(last) == 24
    assert {last[source] for source in reported} == {"unchanged"}
    with open_store(kb) as store:
        assert store.info().documents == 24
        assert store.verify() == []
