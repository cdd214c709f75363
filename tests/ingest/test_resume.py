"""An ingestion killed by SIGKILL is whole or absent document by document, and is taken up again."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from ingest.store import Identity, open_store
from tests.fakes import HashEmbedder

ROOT = Path(__file__).parents[2]
RUN = """
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
    command = [sys.executable, "-c", RUN, str(docs), str(kb)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_a_killed_run_is_taken_up_where_it_was(tmp_path: Path) -> None:
    docs, kb = tmp_path / "docs", tmp_path / "kb"
    docs.mkdir()
    for number in range(24):
        (docs / f"{number:02}.txt").write_text(text_of(number), "utf-8")
    rng, told = random.Random(0), set()
    for _ in range(4):
        with start(docs, kb) as process:
            assert process.stdout
            for line in process.stdout:  # wait for one document, then kill at some moment
                told.add(line.split()[0])
                break
            time.sleep(rng.random() * 0.3)
            process.send_signal(signal.SIGKILL)
            told |= {line.split()[0] for line in process.stdout if line.endswith("\n")}
        with open_store(kb, create=Identity(HashEmbedder.name, HashEmbedder.dim)) as store:
            assert store.verify() == []
            written = {document.source: document for document in store.documents()}
            assert told <= written.keys()  # what was reported is there
            for source, document in written.items():
                assert store.text(document.id) == Path(source).read_text("utf-8")
    with start(docs, kb) as process:
        assert process.stdout
        last = dict(line.split() for line in process.stdout)
    assert process.returncode == 0
    assert len(last) == 24
    assert {last[source] for source in told} == {"unchanged"}
    with open_store(kb) as store:
        assert store.info().documents == 24
        assert store.verify() == []
