"""Files and folders that are complete or not there, even after a power cut."""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from weakref import finalize

from ingest.errors import Busy, UserError


def write_whole(path: Path, data: bytes) -> None:
    """Replace `path` by `data` atomically: a new file is written, flushed and renamed."""
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(data)
    sync(new)
    new.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file, or the renames in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def scratch(owner: object) -> Path:
    """A temporary folder that is deleted together with `owner`."""
    folder = Path(mkdtemp(prefix="rag-"))
    finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    return folder


def disk_usage(folder: Path) -> int:
    """Bytes of the files below `folder`; others may write there meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def check_new(target: Path) -> None:
    """Raises `UserError` if `target` is not empty, or is mounted or the current folder."""
    empty = target.is_dir() and not any(target.iterdir()) and not target.is_mount()
    if (target.exists() and not empty) or target.resolve() == Path.cwd():
        raise UserError("{target} exists already; name a new folder", target=target)


@contextmanager
def new_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to write to, which becomes `target` once the block has ended without an error.

    A block that fails leaves nothing behind but new parent folders. Raises `UserError` if `target`
    can't be written, or exists; with `replace` an existing one is replaced at the end.
    """
    if not replace:
        check_new(target)
    target = target.resolve()
    work, old = (target.with_name(f".{target.name}.{end}") for end in ("partial", "old"))
    try:
        _restore(old, target, work)  # after a run that was killed
        work.mkdir(parents=True)
        yield work
        for path in [*work.iterdir(), work]:
            sync(path)
        if replace and target.exists():
            target.rename(old)
        work.rename(target)
        sync(target.parent)
    except OSError as problem:
        why = problem.strerror or problem
        raise UserError(
            "{target} can't be written: {why}; name another folder", target=target, why=why
        ) from problem
    finally:
        _restore(old, target, work)


def _restore(old: Path, target: Path, work: Path) -> None:
    if old.exists() and not target.exists():
        old.rename(target)
    for folder in (work, old):
        shutil.rmtree(folder, ignore_errors=True)


PAUSE = 0.02  # s between two tries


@contextmanager
def writing(path: Path, *, reason: str, timeout: float) -> Iterator[None]:
    """Hold the writer lock at `path`. Raises `Busy`, naming the holder, after `timeout` s."""
    with path.open("a+b", buffering=0) as file:
        deadline = time.monotonic() + timeout
        while not try_lock(file.fileno(), fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                file.seek(0)
                raise Busy(
                    "{parent} is being written by {holder}; waited {timeout:g} s, try again when it is done",
                    parent=path.parent,
                    holder=file.read(400).decode(errors="replace") or "another process",
                    timeout=timeout,
                )
            time.sleep(PAUSE)
        file.truncate(0)
        file.write(f"process {os.getpid()} ({reason or 'a change'})".encode())
        yield
        file.truncate(0)


def try_lock(descriptor: int, kind: int) -> bool:
    """Lock an open file or folder, until it is closed; False if another process has the lock."""
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        return True
    return False
