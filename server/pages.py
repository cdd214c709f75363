"""Pictures of pages: drawn in a child process, one at a time, the last few kept."""

import threading
from collections import OrderedDict
from pathlib import Path

from ingest.errors import Unreadable
from ingest.files import digest
from ingest.sandbox import Limits, Sandbox
from ingest.types import Document
from server.errors import Unknown
from server.serializers import PAGED
from server.uploads import Originals

KEPT = 32
Drawn = tuple[bytes, bool]


class Pages:
    """Draws a page of an original, if it is still the very file that was read."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._sandbox: Sandbox | None = None
        self._drawn: OrderedDict[tuple[str, int, str], Drawn] = OrderedDict()

    def draw(self, base: Path, document: Document, number: int, passage: str) -> Drawn:
        """PNG, and whether the passage is marked on it. Raises `Unknown` where there is none."""
        if document.receipt.format not in PAGED:
            raise _none()
        wanted = document.digest, number, passage
        with self._guard:
            if wanted not in self._drawn:
                if self._sandbox is None:
                    self._sandbox = Sandbox(ocr=False, limits=Limits(seconds=20))
                try:
                    path = original(base, document)
                    self._drawn[wanted] = self._sandbox.draw(path, number, passage)
                except Unreadable as problem:
                    raise Unknown(str(problem), zh=problem.zh) from problem
            self._drawn.move_to_end(wanted)
            while len(self._drawn) > KEPT:
                self._drawn.popitem(last=False)
            return self._drawn[wanted]

    def close(self) -> None:
        with self._guard:
            if self._sandbox:
                self._sandbox.__exit__(None, None, None)
                self._sandbox = None


def original(base: Path, document: Document) -> Path:
    """The file that a document of the knowledge base in the folder `base` was read from.

    A file is opened only where its bytes are those of the document: a knowledge base that came from
    elsewhere can name or link any path, and shows nothing by it.
    """
    kept = Originals(base).path(document.digest).absolute()
    for path in (kept, Path(document.source)):
        if path.is_absolute() and path.is_file() and not path.is_symlink():
            try:
                if digest(path) == document.digest:
                    return path
            except OSError:
                pass
    raise _none()


def _none() -> Unknown:
    return Unknown("this document has no page to show", zh="这个文档没有可显示的页面")
