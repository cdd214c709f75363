"""The servers that share a data folder: each has a folder of its own there, held while it lives."""

import fcntl
import os
import secrets
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from ingest.store.lock import writing
from server.jobs import Jobs

FOLDER = "replicas"
PATIENCE = 10.0  # seconds to wait for others, who need a moment only


def moment(home: Path, reason: str) -> AbstractContextManager[None]:
    """What only one of all replicas may do at a time, and soon. Raises `Busy`."""
    return writing(home / "lock", reason=reason, timeout=PATIENCE)


class Replica:
    """This server among those of `home`. What it has under way lies in `folder`.

    The folder is locked, and the kernel frees it when the process dies, however that happens.
    """

    def __init__(self, home: Path) -> None:
        self.name = secrets.token_hex(8)
        self.folder = home / FOLDER / self.name
        with moment(home, "joining"):  # nobody looks before it is locked
            self.folder.mkdir(mode=0o700, parents=True)
            self._held = _locked(self.folder)

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._held is not None:
            os.close(self._held)
            self._held = None


def alive(home: Path, name: str) -> bool:
    """Whether the replica of that name still runs."""
    folder = home / FOLDER / name
    held = _locked(folder)
    if held is not None:
        os.close(held)
    return held is None and folder.exists()


def tidy(home: Path, jobs: Jobs) -> None:
    """End the uploads of replicas that died, and remove what they had under way."""
    jobs.forget_uploads(lambda name: alive(home, name))
    with moment(home, "tidying"):
        folders = {folder: _locked(folder) for folder in (home / FOLDER).glob("*")}
    for folder, held in folders.items():
        if held is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the folder; None where another one does, or there is none."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
