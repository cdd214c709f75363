"""The store in a folder: writers that wait, are killed, or find no room."""

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ingest.errors import Busy, UserError
from ingest.normalize import terms
from ingest.store import LocalStore, Ranking, local, open_store
from ingest.types import DocumentPart
from tests.ingest.store.factories import EMBEDDER, new_document, new_vectors, put, with_codes
from tests.ingest.store.writer import check


@pytest.fixture
def store(tmp_path: Path):
    with open_store(tmp_path / "kb", create=EMBEDDER) as opened:
        yield opened


def test_a_missing_knowledge_base_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rag ingest"):
        open_store(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_second_writer_waits_and_its_error_names_the_first(store: LocalStore) -> None:
    with (
        open_store(store.path) as other,
        store.change(reason="adding contracts"),
        pytest.raises(Busy, match=r"process \d+ \(adding contracts\)"),
        other.change(timeout=0.05),
    ):
        raise AssertionError("two writers at once")


def test_a_second_writer_gets_its_turn(store: LocalStore) -> None:
    with open_store(store.path) as other:
        threads = [
            threading.Thread(target=put, args=(writer, f"{name}.txt", [f"text of {name}"]))
            for name, writer in (("a", store), ("b", other), ("c", store), ("d", other))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [document.source for document in other.documents()] == [f"{n}.txt" for n in "abcd"]
        assert store.verify() == other.verify() == []


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
        step = run_and_kill(tmp_path / "kb", rng.random())
        with open_store(tmp_path / "kb") as store:
            assert check(store) in (step, step + 1)


@pytest.mark.parametrize("room", [100_000, 1_000_000])
def test_a_full_disk_is_reported_and_loses_nothing(tmp_path: Path, room: int) -> None:
    """`room` limits a file's size, which fails as a full disk does, for root as well."""
    count = put_large(tmp_path / "kb", "first", 20)
    script = (
        "import resource, sys; from pathlib import Path;"
        "from ingest.errors import UserError;"
        "from tests.ingest.store.test_local import put_large;"
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
        assert len(store.search_words(terms("first"), 100).keys) == count
    put_large(tmp_path / "kb", "second", 30)


def put_large(kb: Path, source: str, texts: int) -> int:
    lines = [f"{source} {number} " + "abc def ghi " * 20 for number in range(texts)]
    document, passages, chunks = new_document(source, lines)
    with open_store(kb, create=EMBEDDER) as store, store.change() as change:
        change.put(document)
        change.add(DocumentPart(document, passages, chunks, new_vectors(chunks)))
    return texts


def test_many_documents_are_searched_as_few_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By comparing each chunk if these are few, otherwise by a longer search of all."""
    path = with_codes(tmp_path / "kb", monkeypatch)
    with open_store(path) as store:
        texts = [[f"contracts of {n}", f"rivers of {n}"] for n in range(9)]
        wanted = tuple(put(store, f"{n}.txt", each)[0].document for n, each in enumerate(texts))
        question, vector = terms("sentence contracts rivers"), store.vectors([store.sample(9)[-1]])[0]

        def both() -> tuple[Ranking, Ranking]:
            dense = store.search_dense(vector, 5, within=wanted)
            return dense, store.search_words(question, 5, within=wanted)

        few = both()
        monkeypatch.setattr(local, "FEW", 3)
        for first, second in zip(few, both(), strict=True):
            assert first.scores.tolist() == pytest.approx(second.scores.tolist())
            assert {chunk.document for chunk in store.chunks(second.keys).values()} <= set(wanted)
        put(store, "0.txt", ["rivers again"])
        left = store.chunks(store.search_dense(vector, 99, within=wanted).keys).values()
        assert wanted[0] not in {chunk.document for chunk in left}
