"""Index files, archives and adapters from elsewhere are data: they run nothing and write nothing."""

import os
import pickle
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingest.errors import UserError
from ingest.normalize import terms
from ingest.store import open_store, restore, snapshot
from tests.ingest.store.factories import TEXTS, new_vectors, with_codes


class ArchiveBomb:
    """Its pickle creates a folder when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.canary,)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A knowledge base with every kind of index file."""
    return with_codes(tmp_path / "kb", monkeypatch)


def kind_of(path: Path) -> tuple[str, str]:
    """The kind of an index file; the word index's file names are random."""
    folder = next((part for part in path.parts if part in ("vectors", "words")), "")
    return folder, path.suffix or path.name


def test_the_pickle_of_these_tests_runs_code_when_loaded(tmp_path: Path) -> None:
    """Otherwise the tests below would prove nothing."""
    pickle.loads(pickle.dumps(ArchiveBomb(tmp_path / "canary")))  # noqa: S301
    assert (tmp_path / "canary").exists()


def test_index_files_that_are_pickles_run_no_code(base: Path, tmp_path: Path) -> None:
    canary, kinds = (tmp_path / "canary", {kind_of(path) for path in base.rglob("*") if path.is_file()})
    assert {folder for folder, _ in kinds} >= {"vectors", "words"}
    for each in sorted(kinds - {kind_of(base / "kb.sqlite")}):
        for keep in (0, 16):  # bytes of the head, by which a reader might believe the rest
            for file in [path for path in base.rglob("*") if path.is_file() and kind_of(path) == each]:
                new = file.with_name(f"{file.name}.bomb")  # who has the old one mapped keeps it
                new.write_bytes(file.read_bytes()[:keep] + pickle.dumps(ArchiveBomb(canary)))
                new.replace(file)
            with open_store(base) as store:
                (chunk,) = store.chunks([1]).values()
                assert store.search_dense(new_vectors([chunk])[0], 1).keys.tolist() == [1]
                assert len(store.search_words(terms("contracts"), 100).keys) == len(TEXTS)
            assert not canary.exists()
    for name in ("index.pkl", "docstore.pkl", "vectors/index.pkl", "words/index.pkl"):
        (base / name).write_bytes(pickle.dumps(ArchiveBomb(tmp_path / "canary")))
    with open_store(base) as store:
        store.search_words(terms("contracts"), 1)
    assert not (tmp_path / "canary").exists()


def test_a_database_that_is_a_pickle_is_an_error_of_one_line(base: Path, tmp_path: Path) -> None:
    (base / "kb.sqlite").write_bytes(pickle.dumps(ArchiveBomb(tmp_path / "canary")))
    with pytest.raises(UserError):
        open_store(base)
    assert not (tmp_path / "canary").exists()


def write_special(archive: zipfile.ZipFile, name: str, mode: int, data: bytes) -> None:
    member = zipfile.ZipInfo(name)
    member.create_system, member.external_attr = 3, (mode | 0o777) << 16
    archive.writestr(member, data)


ENTRIES: dict[str, Callable[[zipfile.ZipFile], None]] = {
    "a link": lambda z: write_special(z, "rag.toml", stat.S_IFLNK, b"/etc/passwd"),
    "a link as the database": lambda z: write_special(z, "kb.sqlite", stat.S_IFLNK, b"/etc/passwd"),
    "a link out": lambda z: write_special(z, "vectors", stat.S_IFLNK, b"/tmp"),
    "a device": lambda z: write_special(z, "null", stat.S_IFCHR, b""),
    "a pipe": lambda z: write_special(z, "pipe", stat.S_IFIFO, b""),
    "a way up": lambda z: z.writestr("../canary", b"x"),
    "a way up, of Windows": lambda z: z.writestr("..\\canary", b"x"),
    "a way inside and out": lambda z: z.writestr("vectors/../../canary", b"x"),
    "a root": lambda z: z.writestr("/tmp/canary-of-chatglm-rag", b"x"),
    "an index": lambda z: z.writestr("vectors/x.codes", b"x"),
    "a pickle": lambda z: z.writestr("index.pkl", b"x"),
    "a member twice": lambda z: z.writestr("rag.toml", b"# theirs\n"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("add", ENTRIES.values(), ids=ENTRIES.keys())
def test_an_archive_with_a_foreign_entry_is_refused(
    base: Path, tmp_path: Path, add: Callable[[zipfile.ZipFile], None]
) -> None:
    (base / "rag.toml").write_text("# mine\n")
    snapshot(base, tmp_path / "kb.zip")
    with zipfile.ZipFile(tmp_path / "kb.zip", "a") as archive:
        add(archive)
    with pytest.raises(UserError):
        restore(tmp_path / "kb.zip", tmp_path / "inner" / "back")
    assert not (tmp_path / "inner" / "back").exists()
    assert not list(tmp_path.rglob("canary*"))
    assert not Path("/tmp/canary-of-chatglm-rag").exists()


def test_a_tar_and_a_bomb_are_refused(base: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "kb.tar", "w") as archive:
        link = tarfile.TarInfo("kb.sqlite")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("kb.sqlite", "manifest.json"):
            with archive.open(name, "w") as member:
                for _ in range(64):
                    member.write(bytes(1 << 20))
    for name in ("kb.tar", "bomb.zip"):
        with pytest.raises(UserError):
            restore(tmp_path / name, tmp_path / "back")
        assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin", "chatglm-lora.pt"])
def test_weights_that_are_a_pickle_run_no_code(tmp_path: Path, name: str) -> None:
    """Only tensors are read from a model's or an adapter's folder."""
    import torch

    from rag.chatglm.weights import read_bin

    file, canary = tmp_path / name, tmp_path / "canary"
    for save in (
        lambda: file.write_bytes(pickle.dumps({"weight": ArchiveBomb(canary)})),
        lambda: torch.save({"weight": ArchiveBomb(canary)}, file),
        lambda: torch.save({"a": ArchiveBomb(canary)}, file, _use_new_zipfile_serialization=False),
    ):
        save()
        with pytest.raises(UserError):
            read_bin(file)
        assert not canary.exists()
