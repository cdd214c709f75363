"""Folders that are built once and then only read, by any number of processes."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path

from ingest.errors import UserError

_MANIFEST = "manifest.json"


def built(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, after `build(new)` has filled it if it was missing or damaged.

    It appears whole or not at all (a new folder, synced and renamed), and a second process waits
    for the first. UserError where the disk refuses.
    """
    if intact(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock")):
            if not intact(folder):
                _replace(folder, build)
    except OSError as error:
        raise UserError(
            f"cannot write the encoder's cache {folder}: {error.strerror or error}; "
            "free space there or set XDG_CACHE_HOME to another folder",
            zh=f"无法写入编码器缓存 {folder}：{error.strerror or error}；"
            "请腾出空间，或用 XDG_CACHE_HOME 指定别的目录",
        ) from error
    return folder


def intact(folder: Path) -> bool:
    """Whether every file is as it was written.

    A file whose size and time are unchanged is taken as such; any other is hashed.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        return all(
            [size, time] == _stamp(folder / name) or digest == _digest(folder / name)
            for name, (size, time, digest) in manifest.items()
        )
    except (OSError, ValueError, AttributeError, TypeError):  # or no manifest of ours
        return False


def _replace(folder: Path, build: Callable[[Path], None]) -> None:
    new = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        build(new)
        files = sorted(new.iterdir())
        manifest = {file.name: [*_stamp(file), _digest(file)] for file in files}
        (new / _MANIFEST).write_text(json.dumps(manifest))
        for file in [*files, new / _MANIFEST, new]:
            _sync(file)
        if folder.exists():  # damaged: nobody reads it, or not for long
            shutil.rmtree(folder)
        new.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold `path` alone; the system lets go when the process dies."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
