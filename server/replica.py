"""A replica: this process, as one of those that share a data folder.

Any number of servers can run on one data folder, each with a worker. Each of these processes is a
replica. Replicas share knowledge bases, keys, jobs and traces, and each can stop or crash at any
time. The others must notice that: they take over its job, end the uploads that it was receiving, and
delete its temporary files. For this, each replica locks a folder of its own in `.server/members`. The
kernel releases the lock when the process dies, for whatever reason, so no clock or timeout is needed.
"""

import fcntl
import os
import secrets
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from ingest.store.atomic import try_lock, writing

TIMEOUT = 10.0  # seconds to wait for other replicas, which hold the lock only for a moment


class Replica:
    """Joins the replicas whose common files are in `home`. Its temporary files are in `folder`."""

    def __init__(self, home: Path) -> None:
        self.home, self.name = home, f"{os.getpid()}-{secrets.token_hex(4)}"
        self.folder = home / "members" / self.name
        with self.lock("joining"):  # nobody must see the folder before it is locked
            self.folder.mkdir(mode=0o700, parents=True)
            self._descriptor = _lock(self.folder, fcntl.LOCK_EX)
        assert self._descriptor is not None

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._descriptor is not None:
            os.close(self._descriptor)

    def lock(self, reason: str) -> AbstractContextManager[None]:
        """Hold the lock that all replicas share, for a short time. Raises `Busy`."""
        return writing(self.home / "lock", reason=reason, timeout=TIMEOUT)

    def alive(self, name: str) -> bool:
        """Whether the replica of this name is running."""
        folder = self.folder.parent / name
        descriptor = _lock(folder, fcntl.LOCK_SH)
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is None and folder.exists()

    def remove_dead(self) -> None:
        """Delete the folders of replicas that died."""
        with self.lock("removing dead replicas"):
            folders = self.folder.parent.iterdir()
            descriptors = {folder: _lock(folder, fcntl.LOCK_EX) for folder in folders}
        for folder, descriptor in descriptors.items():
            if descriptor is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(descriptor)


def _lock(folder: Path, kind: int) -> int | None:
    """A descriptor that locks the folder; None if another process does, or it does not exist."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    if try_lock(descriptor, kind):
        return descriptor
    os.close(descriptor)
    return None
