"""Killed at any moment, full or short of rights: the old state or the new one, never between."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ingest.normalize import terms
from ingest.store import open_store
from ingest.types import DocumentPart
from tests.ingest.store.factories import EMBEDDER, new_document, new_vectors
from tests.ingest.store.writer import check

ROOT = Path(__file__).parents[3]


def run_and_kill(kb: Path, delay: float) -> int:
    """Let a writer work for `delay` s from its first step on, kill it; its last committed step."""
    command = [sys.executable, "-m", "tests.ingest.store.writer", str(kb)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        first = writer.stdout.readline()
        time.sleep(delay)
        writer.kill()
        lines = [first, *writer.stdout.read().splitlines()]
    return int([line for line in lines if line.strip()][-1])


def test_a_killed_writer_leaves_the_old_or_the_new_state(tmp_path: Path) -> None:
    rng = random.Random(1)
    for _ in range(4):
        told = run_and_kill(tmp_path / "kb", rng.random())
        with open_store(tmp_path / "kb") as store:
            assert check(store) in (told, told + 1)


@pytest.mark.parametrize("room", [100_000, 1_000_000])
def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path, room: int) -> None:
    """`room` limits a file's size, which fails as a full disk does, for root as well."""
    kept = put_large(tmp_path / "kb", "first", 20)
    script = (
        "import resource, sys; from pathlib import Path;"
        "from ingest.errors import UserError;"
        "from tests.ingest.store.test_crash import put_large;"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}));"
        "\ntry: put_large(Path(sys.argv[1]), 'second', 3000)"
        "\nexcept UserError as error: sys.exit(str(error))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "kb")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "room" in done.stderr or "free space" in done.stderr
    with open_store(tmp_path / "kb") as store:
        assert [document.source for document in store.documents()] == ["first"]
        assert store.verify() == []
        assert len(store.search_words(terms("first"), 100).keys) == kept
    put_large(tmp_path / "kb", "second", 30)


def put_large(kb: Path, source: str, texts: int) -> int:
    lines = [f"{source} {number} " + "abc def ghi " * 20 for number in range(texts)]
    document, passages, chunks = new_document(source, lines)
    with open_store(kb, create=EMBEDDER) as store, store.change() as change:
        change.put(document)
        change.add(DocumentPart(document, passages, chunks, new_vectors(chunks)))
    return texts
