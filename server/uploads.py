"""The bytes of uploads, kept beside the knowledge base under their digest, never under a name."""

import os
import re
import secrets
import threading
import time
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from ingest.errors import Unreadable, UserError
from ingest.files import Found, digest
from ingest.sandbox import Limits, Sandbox
from ingest.store.atomic import sync
from ingest.store.sqlite import failures_named
from ingest.types import Document
from server.errors import Unknown
from server.serializers import PAGED

FOLDER = "originals"
UPLOAD = "upload/"
"""Sources of uploads begin so. They are relative, so no file on this machine has one of them."""

LONGEST_NAME = 200  # characters; with at most 4 bytes each and a folder's limit of 255 bytes below
LONGEST_BYTES = 240
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Stored:
    """One upload on the disk."""

    name: str
    digest: str
    size: int


def clean_name(name: str) -> str:
    """What a file is called on the page: the last part of `name`, which no path is made of.

    What looks like a separator, controls or turns the direction of writing becomes `_`. Raises
    `UserError` for a name of which nothing is left, or that is too long.
    """
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", name))[-1]
    kept = "".join("_" if _odd(character) else character for character in last).strip()
    if not kept.strip("._ ") or "\0" in name:
        raise UserError("a file has no usable name; rename it and upload it again")
    if len(kept) > LONGEST_NAME or len(kept.encode()) > LONGEST_BYTES:
        raise UserError(
            "a file's name has {kept_count} characters ({encode_count} bytes); at most "
            "{longest_name} ({longest_bytes} bytes) are taken, shorten it",
            kept_count=len(kept),
            encode_count=len(kept.encode()),
            longest_name=LONGEST_NAME,
            longest_bytes=LONGEST_BYTES,
        )
    return kept


def _odd(character: str) -> bool:
    plain = unicodedata.normalize("NFKC", character)
    category = unicodedata.category(character)
    return category in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") or bool(
        set(plain) & {"/", "\\", "\0"}
    )


class Originals:
    """The originals of the knowledge base at `base`. Equal bytes are kept once."""

    def __init__(self, base: Path) -> None:
        self.folder = base / FOLDER

    def path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"{digest!r} is no digest")
        return self.folder / digest

    def keep(
        self, name: str, pieces: Iterable[bytes], *, most: int, noted: Callable[[Stored], None]
    ) -> Stored:
        """Write the bytes to a new place, flush, tell `noted`, rename.

        `UserError` for a name that is none and above `most` bytes, of which nothing stays.
        """
        cleaned = clean_name(name)
        with failures_named(self.folder):
            self.folder.mkdir(mode=0o700, exist_ok=True)
            work = self.folder / f".{secrets.token_hex(8)}"
            hasher, size = blake2b(digest_size=32), 0
            try:
                with work.open("xb") as file:
                    for piece in pieces:
                        size += len(piece)
                        if size > most:
                            raise too_large(cleaned, most)
                        hasher.update(piece)
                        file.write(piece)
                    file.flush()
                    os.fsync(file.fileno())
                stored = Stored(cleaned, hasher.hexdigest(), size)
                noted(stored)
                work.rename(self.path(stored.digest))
                sync(self.folder)
            finally:
                work.unlink(missing_ok=True)
        return stored

    def as_file(self, stored: Stored, folder: Path) -> Found:
        """The original as the parsers want it, with its extension, and its name for messages: a link
        in a new folder below `folder`."""
        link = folder / secrets.token_hex(8) / stored.name
        link.parent.mkdir()
        link.symlink_to(self.path(stored.digest).absolute())
        return Found(link, named=UPLOAD + stored.name)

    def left_over(self, used: Container[str]) -> Iterator[str]:
        """Digests of originals that no document has. Uploads that a kill cut off go at once when
        they are a day old."""
        for path in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            if _DIGEST.fullmatch(path.name):
                if path.name not in used:
                    yield path.name
                continue
            with suppress(FileNotFoundError):  # an upload has just been given its name
                if time.time() - path.stat().st_mtime > 86_400:
                    path.unlink()

    def drop(self, digest: str) -> None:
        if _DIGEST.fullmatch(digest):
            self.path(digest).unlink(missing_ok=True)


def too_large(name: str, most: int) -> UserError:
    return UserError(
        "{name} is larger than {most:g} MB, the limit of this server; split it",
        name=name,
        most=most / 1e6,
    )


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
                    raise Unknown(problem.message) from problem
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
    return Unknown("this document has no page to show")
