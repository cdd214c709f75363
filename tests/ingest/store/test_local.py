"""The store as its callers see it: add, change, remove, search, read."""

import threading
from pathlib import Path

import pytest

from ingest.errors import Busy, UserError
from ingest.store import LocalStore, open_store
from tests.ingest.store.factories import EMBEDDER, put


@pytest.fixture
def store(tmp_path: Path):
    with open_store(tmp_path / "kb", create=EMBEDDER) as opened:
        yield opened


def test_no_knowledge_base_is_said_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rag ingest"):
        open_store(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_second_writer_waits_and_is_then_told_who_writes(store: LocalStore) -> None:
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
