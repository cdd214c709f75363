"""Folders are whole or as they were, whatever happens in between."""

import shutil
import threading
from pathlib import Path

import pytest

from ingest.errors import UserError
from ingest.store.atomic import check_new, disk_usage, new_folder


def write(target: Path, text: str, *, replace: bool = False) -> None:
    with new_folder(target, replace=replace) as folder:
        (folder / "a").write_text(text)


def found(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError), new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("\ud800", "utf-8")
    assert found(tmp_path) == {}
    write(tmp_path / "out", "new")
    assert found(tmp_path) == {"out/a": "new"}
    with pytest.raises(UserError, match="exists already"):
        write(tmp_path / "out", "newer")
    write(tmp_path / "out", "newer", replace=True)
    assert found(tmp_path) == {"out/a": "newer"}


def test_the_old_folder_stays_if_the_new_one_fails(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "out", replace=True):
        _ = 1 / 0
    assert found(tmp_path) == {"out/a": "old"}


def test_an_interrupt_between_the_renames_restores_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "out", "old")
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.suffix == ".partial":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", "new", replace=True)
    assert found(tmp_path) == {"out/a": "old"}


def test_a_folder_left_by_a_kill_is_restored(tmp_path: Path) -> None:
    """Killed between its renames: the old folder waits under another name."""
    write(tmp_path / "out", "old")
    (tmp_path / "out").rename(tmp_path / ".out.old")
    (tmp_path / ".out.partial").mkdir()
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "out", replace=True):
        _ = 1 / 0
    assert found(tmp_path) == {"out/a": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_can_t_be_replaced_is_refused_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for target in (Path(), Path("/proc"), Path("/")):
        with pytest.raises(UserError, match="name a new folder"):
            check_new(target)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"Not a directory.*name another folder"):
        write(tmp_path / "file" / "out", "new")
    check_new(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    check_new(tmp_path / "empty")


def test_bytes_are_counted_while_files_and_folders_go(tmp_path: Path) -> None:
    (tmp_path / "stays").write_bytes(b"four")
    over = threading.Event()

    def change() -> None:
        while not over.is_set():
            folder = tmp_path / "goes"
            (folder / "deep").mkdir(parents=True)
            for number in range(20):
                (folder / "deep" / str(number)).touch()
            shutil.rmtree(folder)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        assert {disk_usage(tmp_path) for _ in range(500)} == {4}
    finally:
        over.set()
        changing.join()
