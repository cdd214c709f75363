"""Files and folders that are whole or not there, even after a power cut."""

import errno
import fcntl
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ingest.errors import Busy, UserError


def write_whole(path: Path, data: bytes) -> None:
    """Put `data` in the place of `path` at one blow: a new file, flushed, then renamed."""
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a file last, or renames in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def taken(folder: Path) -> int:
    """Bytes of the files below `folder`, while others may write there."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def check_new(target: Path) -> None:
    """`UserError` where `target` holds something already, or is a folder that can't be replaced: a
    mounted one, or that in which one is."""
    empty = target.is_dir() and not any(target.iterdir()) and not target.is_mount()
    if (target.exists() and not empty) or target.resolve() == Path.cwd():
        raise UserError("{target} exists already; name a new folder", target=target)


@contextmanager
def new_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A place to write to, which becomes the folder `target` when the block has ended well.

    Its files are then on the disk. Of a block that failed nothing stays, but for
    new folders above it. With `replace` the folder
    that was there goes then, and not before. `UserError` where `target` is taken, or can't be
    written.
    """
    if not replace:
        check_new(target)
    target = target.resolve()
    work, old = (target.with_name(f".{target.name}.{end}") for end in ("partial", "old"))
    try:
        if old.exists() and not target.exists():  # of a run that was killed
            old.rename(target)
        for left in (work, old):
            shutil.rmtree(left, ignore_errors=True)
        work.mkdir(parents=True)
        yield work
        for path in [*work.iterdir(), work]:
            sync(path)
        if replace and target.exists():
            target.rename(old)
        work.rename(target)
        sync(target.parent)
    except OSError as problem:
        raise UserError(
            "{target} can't be written: {strerror}; name another folder",
            target=target,
            strerror=problem.strerror or problem,
        ) from problem
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        for left in (work, old):
            shutil.rmtree(left, ignore_errors=True)


NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}
NO_PLACE = {errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ENOENT}


@contextmanager
def failures_named(path: Path) -> Iterator[None]:
    """Turn failed writes under `path` into `UserError`; what was committed before is kept."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise full(path, error) from error
        if error.errno in NOT_ALLOWED:
            raise forbidden(path, error) from error
        if error.errno in NO_PLACE:
            raise UserError(
                "{path} can't be written there ({strerror}); name another path",
                path=path,
                strerror=error.strerror,
            ) from error
        raise
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL or primary(error) == sqlite3.SQLITE_IOERR:
            raise full(path, error) from error
        if primary(error) in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            raise forbidden(path, error) from error
        raise


def primary(error: sqlite3.Error) -> int:
    """The result code without the details in its higher bytes."""
    return error.sqlite_errorcode & 0xFF


def full(path: Path, error: Exception) -> UserError:
    return UserError(
        "no room to write {path} ({error}); nothing is lost, free space and go on",
        path=path,
        error=error,
    )


def forbidden(path: Path, error: Exception) -> UserError:
    return UserError(
        "{path} can't be written ({error}); change its permissions", path=path, error=error
    )


PAUSE = 0.02  # s between two tries


@contextmanager
def writing(path: Path, *, reason: str, timeout: float) -> Iterator[None]:
    """Hold the writer lock at `path`. Raises `Busy`, naming the holder, after `timeout` s."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        wait_for(descriptor, path, timeout)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} ({reason or 'a change'})".encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def wait_for(descriptor: int, path: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                holder = os.pread(descriptor, 400, 0).decode(errors="replace") or "another process"
                raise Busy(
                    "{parent} is being written by {holder}; waited {timeout:g} s, try again when it is "
                    "done",
                    parent=path.parent,
                    holder=holder,
                    timeout=timeout,
                ) from None
            time.sleep(PAUSE)
