"""Snapshots come back whole, and nothing else comes out of an archive."""

import sqlite3
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.errors import UserError
from ingest.normalize import terms
from ingest.store import open_store, restore, snapshot
from tests.ingest.store.factories import EMBEDDER, put


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    with open_store(tmp_path / "kb", create=EMBEDDER) as store:
        put(store, "a.txt", ["a sentence to keep", "劳动合同"])
        (tmp_path / "kb" / "rag.toml").write_text("# mine\n")
        with store.change():  # a writer at work does not disturb, nor is it seen
            snapshot(tmp_path / "kb", tmp_path / "out" / "kb.zip")
    return tmp_path / "out" / "kb.zip"


def test_a_snapshot_comes_back_whole(archive: Path, tmp_path: Path) -> None:
    assert [path.name for path in archive.parent.iterdir()] == ["kb.zip"]
    restore(archive, tmp_path / "back")
    assert (tmp_path / "back" / "rag.toml").read_text() == "# mine\n"
    with open_store(tmp_path / "kb") as old, open_store(tmp_path / "back", create=EMBEDDER) as new:
        assert list(new.documents()) == list(old.documents())
        assert new.chunks(range(1, 10)) == old.chunks(range(1, 10))
        assert len(new.search_words(terms("劳动"), 5).keys) == 1
        assert new.verify() == []
        put(new, "b.txt", ["it can be written on"])


def test_a_directory_in_use_is_left_alone(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not empty"):
        restore(archive, tmp_path / "kb")
    (tmp_path / "empty").mkdir()
    restore(archive, tmp_path / "empty")
    with pytest.raises(UserError, match="no knowledge base"):
        snapshot(tmp_path / "none", tmp_path / "x.zip")


def rewritten(archive: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = {name: opened.read(name) for name in opened.namelist()}
    change(members)
    with zipfile.ZipFile(archive, "w") as opened:
        for name, data in members.items():
            opened.writestr(name, data)


def damaged(data: bytes) -> bytes:
    """A database whose second page is overwritten."""
    return data[:4096] + bytes(4096) + data[8192:]


def forged(members: dict[str, bytes], tmp_path: Path, script: str) -> None:
    path = tmp_path / "forged.sqlite"
    path.write_bytes(members["kb.sqlite"])
    with sqlite3.connect(path) as sql:
        sql.executescript(script)
    sql.close()
    members["kb.sqlite"] = path.read_bytes()


FORGERIES: dict[str, Callable[[dict[str, bytes], Path], object]] = {
    "another name": lambda m, _: m.update({"../evil": b"x"}),
    "an absolute name": lambda m, _: m.update({"/tmp/evil": b"x"}),
    "an index": lambda m, _: m.update({"vectors/a.codes": b"x"}),
    "no primary data": lambda m, _: m.pop("kb.sqlite"),
    "not a database": lambda m, _: m.update({"kb.sqlite": b"x" * 5000}),
    "an empty database": lambda m, _: m.update({"kb.sqlite": b""}),
    "a damaged page": lambda m, _: m.update({"kb.sqlite": damaged(m["kb.sqlite"])}),
    "a trigger of theirs": lambda m, tmp: forged(
        m, tmp, "CREATE TRIGGER t AFTER INSERT ON meta BEGIN DELETE FROM documents; END"
    ),
    "a newer schema": lambda m, tmp: forged(m, tmp, "PRAGMA user_version=99"),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES.keys())
def test_a_forged_archive_is_refused(archive: Path, tmp_path: Path, forge) -> None:
    rewritten(archive, lambda members: forge(members, tmp_path))
    with pytest.raises(UserError):
        restore(archive, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("name", ["kb.sqlite", "rag.toml"])
def test_one_changed_byte_is_noticed(archive: Path, tmp_path: Path, name: str) -> None:
    data = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as opened:
        member = opened.getinfo(name)
    data[member.header_offset + 30 + len(name) + member.file_size // 2] ^= 1
    archive.write_bytes(data)
    with pytest.raises(UserError, match="not whole"):
        restore(archive, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_snapshot_of_an_earlier_version_is_restored(archive: Path, tmp_path: Path) -> None:
    rewritten(archive, lambda members: members.update({"manifest.json": b"{}"}))
    restore(archive, tmp_path / "back")
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["kb.sqlite", "rag.toml"]


def test_a_cut_packed_or_linked_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not whole"):
        restore(archive, tmp_path / "back")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("kb.sqlite", bytes(10_000_000))
    with pytest.raises(UserError):
        restore(archive, tmp_path / "back")
    with zipfile.ZipFile(archive, "w") as linked:
        link = zipfile.ZipInfo("kb.sqlite")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        linked.writestr(link, "/etc/passwd")
    with pytest.raises(UserError):
        restore(archive, tmp_path / "back")
    with pytest.raises(UserError, match="no snapshot at"):
        restore(tmp_path / "none.zip", tmp_path / "back")
    assert not (tmp_path / "back").exists()
