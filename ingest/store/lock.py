"""One writer at a time, by a file lock that the kernel frees when its process dies."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ingest.errors import Busy

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
                    f"{path.parent} is being written by {holder}; waited {timeout:g} s, "
                    "try again when it is done",
                    zh=f"{path.parent} 正被 {holder} 写入；已等待 {timeout:g} 秒，请待其完成后再试",
                ) from None
            time.sleep(PAUSE)
