"""Walking folders: order, what is passed over, clear errors."""

from hashlib import blake2b
from pathlib import Path

import pytest

from ingest.errors import UserError
from ingest.files import Found, digest, walk


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


def test_a_source_is_the_same_from_every_folder(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = (tree / "b" / "一.txt").as_posix()
    monkeypatch.chdir(tree)
    assert Found(Path("b/一.txt")).source == expected
    monkeypatch.chdir(tree / "b")
    assert Found(Path("../b//一.txt")).source == expected


def test_digest_is_of_the_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    (tmp_path / "a").write_bytes(content)
    assert digest(tmp_path / "a") == blake2b(content, digest_size=32).hexdigest()
