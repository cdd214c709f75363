"""Indexes that are missing, damaged or foreign are rebuilt; removed text leaves no byte."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.errors import Mismatch, UserError
from ingest.normalize import terms
from ingest.store import LocalStore, open_store
from ingest.store.sqlite import VERSION
from tests.ingest.store.factories import EMBEDDER, TEXTS, new_vectors, put, with_codes


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return with_codes(tmp_path / "kb", monkeypatch)


def answers(store: LocalStore) -> tuple[list[int], list[int]]:
    (chunk,) = store.chunks([1]).values()
    dense = store.search_dense(new_vectors([chunk])[0], 5).keys.tolist()
    return dense, sorted(store.search_words(terms("contracts"), 100).keys.tolist())


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)


def emptied(file: Path) -> None:
    """By another file in its place: the old one may still be mapped by this very process."""
    file.unlink()
    file.touch()


DAMAGE: dict[str, Callable[[Path], None]] = {
    "no indexes": lambda kb: (shutil.rmtree(kb / "words"), shutil.rmtree(kb / "vectors"), None)[2],
    "codes flipped": lambda kb: flip(next((kb / "vectors").iterdir())),
    "codes cut": lambda kb: next((kb / "vectors").iterdir()).write_bytes(b"IxMp") and None,
    "codes gone": lambda kb: next((kb / "vectors").iterdir()).unlink(),
    "words' head cut": lambda kb: (kb / "words/1/meta.json").write_text("{") and None,
    "words' head gone": lambda kb: (kb / "words/1/meta.json").unlink(),
    "words' rows gone": lambda kb: next((kb / "words/1").glob("*.idx")).unlink(),
    "words' rows cut": lambda kb: emptied(next((kb / "words/1").glob("*.idx"))),
    "half a rebuild": lambda kb: (kb / "words/2.new").mkdir(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_index_is_rebuilt(path: Path, damage: Callable[[Path], None]) -> None:
    with open_store(path) as store:
        whole = answers(store)
    damage(path)
    with open_store(path) as store:
        assert answers(store) == whole
        assert store.verify() == []
    with open_store(path) as store:  # and the repair lasts
        assert answers(store) == whole
    assert len(list((path / "vectors").iterdir())) == 1


def test_a_foreign_word_index_is_not_used(path: Path, tmp_path: Path) -> None:
    with open_store(tmp_path / "other", create=EMBEDDER) as other:
        put(other, "x.txt", ["nothing of the kind"])
    shutil.rmtree(path / "words")
    shutil.copytree(tmp_path / "other" / "words", path / "words")
    with open_store(path) as store:
        assert len(store.search_words(terms("contracts"), 100).keys) == len(TEXTS)
        assert len(store.search_words(terms("nothing"), 100).keys) == 0


def test_newer_indexes_are_rebuilt_from_older_primary_data(path: Path, tmp_path: Path) -> None:
    shutil.copy(path / "kb.sqlite", tmp_path / "old.sqlite")
    with open_store(path) as store:
        put(store, "b.txt", ["something added later"])
    shutil.copy(tmp_path / "old.sqlite", path / "kb.sqlite")
    with open_store(path) as store:
        assert len(store.search_words(terms("later"), 10).keys) == 0
        assert store.verify() == []


def test_indexes_behind_the_primary_data_are_caught_up(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path / "words", tmp_path / "words")
    with open_store(path) as store:
        put(store, "b.txt", ["something added later"])
        put(store, "a.txt", ["hardly anything of it remains"])
    shutil.rmtree(path / "words")
    shutil.copytree(tmp_path / "words", path / "words")
    with open_store(path) as store:
        assert len(store.search_words(terms("later"), 10).keys) == 1
        assert len(store.search_words(terms("contracts"), 10).keys) == 0
        assert store.verify() == []


def test_removed_text_leaves_no_byte(tmp_path: Path) -> None:
    needle = "xylophonists"
    with open_store(tmp_path / "kb", create=EMBEDDER) as store:
        put(store, "a.txt", [f"the {needle} met in Łódź", "and left"])
        put(store, "b.txt", ["something that stays"])
        assert holders(tmp_path, needle)
        with store.change() as change:
            change.remove("a.txt")
        assert not [path for path in holders(tmp_path, needle) if path.suffix != ".term"]
        assert store.info().unpurged
        store.rebuild()
        assert not holders(tmp_path, needle)
        assert not store.info().unpurged
        assert len(store.search_words(terms("stays"), 5).keys) == 1


def holders(directory: Path, needle: str) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and needle.encode() in path.read_bytes()]


def test_a_newer_schema_is_refused_with_both_numbers(path: Path) -> None:
    with sqlite3.connect(path / "kb.sqlite") as sql:
        sql.execute(f"PRAGMA user_version={VERSION + 1}")
    sql.close()
    with pytest.raises(Mismatch, match=f"schema {VERSION + 1}.*schema {VERSION}; upgrade"):
        open_store(path)


def test_a_foreign_or_broken_file_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "kb.sqlite") as sql:
        sql.execute("CREATE TABLE theirs (x)")
    sql.close()
    with pytest.raises(UserError, match="no knowledge base"):
        open_store(tmp_path, create=EMBEDDER)
    (tmp_path / "kb.sqlite").write_bytes(b"not a database at all" * 400)
    with pytest.raises(UserError, match="restore a snapshot"):
        open_store(tmp_path)
    (tmp_path / "kb.sqlite").write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        open_store(tmp_path)


def test_verify_names_faults_of_the_primary_data(path: Path) -> None:
    with sqlite3.connect(path / "kb.sqlite") as sql:
        sql.execute("UPDATE chunks SET vector = zeroblob(32) WHERE key = 1")
    sql.close()
    with open_store(path) as store:
        found = "\n".join(store.verify())
    assert "length 1" in found
