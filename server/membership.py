"""Which processes share a data folder, and which of them are still alive.

Any number of servers can run on one data folder, each with a worker. Such a process is a replica.
Replicas share knowledge bases, keys, jobs and traces, and each can stop or crash at any time. The
others must notice that: they take over its job, end the uploads that it was receiving, and delete its
temporary files. For this, each replica locks a folder of its own in `.server/members`. The kernel
releases the lock when the process dies, for whatever reason, so no clock or timeout is needed.
"""

import fcntl
import os
import secrets
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from ingest.store.atomic import writing

TIMEOUT = 10.0  # seconds to wait for other replicas, which hold the lock only for a moment


class Replica:
    """This process as one of the replicas. Its temporary files are in `folder`."""

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder, self.name, self._lock = folder, folder.name, lock

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


class Membership:
    """The replicas of the data folder whose `.server` folder is `home`."""

    def __init__(self, home: Path) -> None:
        self.home, self.folder = home, home / "members"

    def lock(self, reason: str) -> AbstractContextManager[None]:
        """Hold the lock that all replicas share, for a short time. Raises `Busy`."""
        return writing(self.home / "lock", reason=reason, timeout=TIMEOUT)

    def join(self) -> Replica:
        """Make this process a replica."""
        folder = self.folder / f"{os.getpid()}-{secrets.token_hex(4)}"
        with self.lock("joining"):  # nobody must see the folder before it is locked
            folder.mkdir(mode=0o700, parents=True)
            lock = _lock(folder, fcntl.LOCK_EX)
        assert lock is not None
        return Replica(folder, lock)

    def alive(self, name: str) -> bool:
        """Whether the replica of this name is running."""
        folder = self.folder / name
        lock = _lock(folder, fcntl.LOCK_SH)
        if lock is not None:
            os.close(lock)
        return lock is None and folder.exists()

    def remove_dead(self) -> None:
        """Delete the folders of replicas that died."""
        with self.lock("removing dead replicas"):
            locks = {folder: _lock(folder, fcntl.LOCK_EX) for folder in self.folder.iterdir()}
        for folder, lock in locks.items():
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _lock(folder: Path, kind: int) -> int | None:
    """A descriptor that locks the folder; None if another process does, or it does not exist."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
