"""Who works in a data folder: servers and their workers, any number of each.

Each holds a folder of its own by a lock, which the kernel frees when the process dies, however that
happens. So the dead are told from the living at once and without a clock.
"""

import fcntl
import os
import secrets
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from ingest.store.atomic import writing

PATIENCE = 10.0  # seconds to wait for others, who need a moment only


class Member:
    """One of them. What it has under way lies in `folder`."""

    def __init__(self, folder: Path, held: int) -> None:
        self.folder, self._held = folder, held

    @property
    def name(self) -> str:
        return self.folder.name

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._held)


class Members:
    """Those of the server's files at `home`."""

    def __init__(self, home: Path) -> None:
        self.home, self.folder = home, home / "members"

    def moment(self, reason: str) -> AbstractContextManager[None]:
        """What only one may do at a time, and soon. Raises `Busy`."""
        return writing(self.home / "lock", reason=reason, timeout=PATIENCE)

    def join(self) -> Member:
        folder = self.folder / f"{os.getpid()}-{secrets.token_hex(4)}"
        with self.moment("joining"):  # nobody takes it for a dead one's before it is locked
            folder.mkdir(mode=0o700, parents=True)
            held = _locked(folder, fcntl.LOCK_EX)
        assert held is not None
        return Member(folder, held)

    def alive(self, name: str) -> bool:
        folder = self.folder / name
        held = _locked(folder, fcntl.LOCK_SH)
        if held is not None:
            os.close(held)
        return held is None and folder.exists()

    def tidy(self) -> None:
        """Remove what those have left that died."""
        with self.moment("tidying"):
            found = {folder: _locked(folder, fcntl.LOCK_EX) for folder in self.folder.iterdir()}
        for folder, held in found.items():
            if held is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(held)


def _locked(folder: Path, how: int) -> int | None:
    """A descriptor that holds the folder; None where another one does, or there is none."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
