"""Walking folders: order, what is passed over, clear errors."""

import os
from hashlib import blake2b
from pathlib import Path

import pytest

from ingest.errors import UserError
from ingest.files import FoundFile, digest, walk


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b/二.md", "b/一.txt", "a.PDF", "~$a.docx", ".DS_Store", "Thumbs.db", "x.exe"):
        path = tmp_path / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "docs/.git").mkdir()
    (tmp_path / "docs/.git/config.txt").write_text("x")
    return tmp_path / "docs"


def test_files_come_sorted_and_the_rest_with_a_reason(tree: Path) -> None:
    found = list(walk([tree]))
    assert [f.path.name for f in found if not f.skipped] == ["a.PDF", "一.txt", "二.md"]
    reasons = {f.path.name: f.skipped for f in found if f.skipped}
    assert reasons == {
        "~$a.docx": "temporary file",
        ".DS_Store": "hidden file",
        "Thumbs.db": "hidden file",
        "x.exe": "unknown format .exe",
        ".git": "hidden folder",
    }
    assert found == list(walk([tree]))


def test_a_file_is_met_once_and_a_named_one_whatever_its_extension(tree: Path) -> None:
    found = list(walk([tree / "x.exe", tree, tree / "a.PDF"]))
    assert [f.path.name for f in found].count("a.PDF") == 1
    assert found[0].path.name == "x.exe"
    assert not found[0].skipped


def test_links_are_not_followed_out_of_the_tree(tree: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key.txt").write_text("secret")
    (tree / "link.txt").symlink_to(secret / "key.txt")
    (tree / "folder").symlink_to(secret, target_is_directory=True)
    (tree / "loop").symlink_to(tree, target_is_directory=True)
    found = {f.path.name: f.skipped for f in walk([tree])}
    assert "not followed" in found["link.txt"]
    assert "not followed" in found["folder"]
    assert "not followed" in found["loop"]
    assert "key.txt" not in found


def test_a_missing_path_names_its_neighbour(tree: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist; did you mean .*a\.PDF"):
        walk([tree / "a.pdff"])
    with pytest.raises(UserError, match="nor does"):
        walk([tree / "no" / "such.pdf"])


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    with pytest.raises(UserError, match="empty folder"):
        walk([tmp_path / "deep"])


def test_a_source_is_the_same_from_every_folder(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = (tree / "b" / "一.txt").as_posix()
    monkeypatch.chdir(tree)
    assert FoundFile(Path("b/一.txt")).source == expected
    monkeypatch.chdir(tree / "b")
    assert FoundFile(Path("../b//一.txt")).source == expected


def test_digest_is_of_the_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    (tmp_path / "a").write_bytes(content)
    assert digest(tmp_path / "a") == blake2b(content, digest_size=32).hexdigest()


def test_a_name_that_is_not_utf8_is_written_in_escapes(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/" + "合".encode("gbk") + b".txt"
    Path(os.fsdecode(raw)).write_text("文字")
    (found,) = walk([tmp_path])
    assert found.path.read_text() == "文字"
    assert found.source == f"{tmp_path.as_posix()}/\\xba\\xcf.txt"
    with pytest.raises(UserError) as caught:
        walk([found.path / "x"])
    assert "\\xba" in str(caught.value)
    str(caught.value).encode()


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(17):  # deeper than a path may be long
        os.mkdir("d" * 250, dir_fd=folder)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)
    (tmp_path / "a.txt").write_text("x")
    found = list(walk([tmp_path]))
    assert [f.path.name for f in found if not f.skipped] == ["a.txt"]
    assert [f.skipped for f in found if f.skipped] == ["can't be read: File name too long"]


def test_a_knowledge_base_is_passed_over(tree: Path) -> None:
    for name in ("kb/kb.sqlite", "kb/words/1/meta.json"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("{}")
    found = {f.path.relative_to(tree).as_posix(): f.skipped for f in walk([tree])}
    assert found["kb"] == "a knowledge base"
    assert not any(name.startswith("kb/") for name in found)


def test_a_name_too_long_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="File name too long"):
        walk([tmp_path / ("x" * 300)])
