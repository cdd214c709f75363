"""Uploaded files, stored under their digest beside the knowledge base, and pictures of pages."""

import os
import re
import secrets
import shutil
import threading
import time
import unicodedata
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

from ingest.errors import Unreadable, UserError
from ingest.files import FoundFile, digest
from ingest.normalize import readable
from ingest.sandbox import Limits, Sandbox
from ingest.store.atomic import sync
from ingest.store.sqlite import failures_named
from ingest.types import Document
from server.errors import NotFound
from server.schemas import DRAWABLE

FOLDER = "originals"
SOURCE_PREFIX = "upload/"
"""Start of the `source` of uploaded documents, which as a relative path names no file here."""

MAX_NAME_CHARACTERS = 200
MAX_NAME_BYTES = 240  # file systems allow 255
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Upload:
    """An uploaded file."""

    name: str
    digest: str
    size: int


def clean_name(name: str) -> str:
    """The last part of `name`, for display; no path is ever made of it.

    Separators, control characters and those that change the writing direction become `_`. Raises
    `UserError` for a name that is empty then or too long.
    """
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", name))[-1]
    clean = "".join("_" if _is_unsafe(character) else character for character in last).strip()
    if not clean.strip("._ ") or "\0" in name:
        raise UserError("a file has no usable name; rename it and upload it again")
    if len(clean) > MAX_NAME_CHARACTERS or len(clean.encode()) > MAX_NAME_BYTES:
        raise UserError(
            "a file's name has {count} characters ({size} bytes); the limit is {max_count} "
            "characters and {max_size} bytes; shorten it",
            count=len(clean), size=len(clean.encode()),
            max_count=MAX_NAME_CHARACTERS, max_size=MAX_NAME_BYTES,
        )  # fmt: skip
    return clean


def printable_name(name: str) -> str:
    """A file's name as the client sent it, made safe to show."""
    return "".join(c if c.isprintable() else "_" for c in readable(name))[:200]


def _is_unsafe(character: str) -> bool:
    category, plain = unicodedata.category(character), unicodedata.normalize("NFKC", character)
    is_separator = not {*plain}.isdisjoint("/\\\0")
    return is_separator or category in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


class Uploads:
    """The uploaded files of the knowledge base in `base`. Equal bytes are stored once."""

    def __init__(self, base: Path) -> None:
        self.folder = base / FOLDER

    def path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"{digest!r} is not a digest")
        return self.folder / digest

    def save(self, name: str, file: IO[bytes], *, limit: int, register: Callable[[Upload], None]) -> Upload:
        """Copy the file to a temporary one, sync that, call `register`, then rename it.

        Raises `UserError` for an unusable name and for more than `limit` bytes; nothing is left of
        the file then.
        """
        name, size = clean_name(name), file.seek(0, os.SEEK_END)
        if size > limit:
            raise UserError(
                "{name} is larger than {limit:g} MB, the limit of this server; split it",
                name=name, limit=limit / 1e6,
            )  # fmt: skip
        file.seek(0)
        with failures_named(self.folder):
            self.folder.mkdir(mode=0o700, exist_ok=True)
            work = self.folder / f".{secrets.token_hex(8)}"
            try:
                with work.open("xb") as copy:
                    shutil.copyfileobj(file, copy)
                sync(work)
                upload = Upload(name, digest(work), size)
                register(upload)
                work.rename(self.path(upload.digest))
                sync(self.folder)
            finally:
                work.unlink(missing_ok=True)
        return upload

    def status(self, document: Document) -> tuple[int, float] | None:
        """The uploaded file's size, and when it arrived; None if the document is from elsewhere."""
        with suppress(OSError, ValueError):
            found = self.path(document.digest).stat()
            return found.st_size, found.st_mtime
        return None

    def as_file(self, upload: Upload, folder: Path) -> FoundFile:
        """The file under its own name, whose extension the parsers need: a link in a new folder
        below `folder`."""
        link = folder / secrets.token_hex(8) / upload.name
        link.parent.mkdir()
        link.symlink_to(self.path(upload.digest).absolute())
        return FoundFile(link, alias=SOURCE_PREFIX + upload.name)

    def unused(self, digests: Container[str]) -> Iterator[str]:
        """Digests of stored files that are not in `digests`. Deletes temporary files older than a
        day, which a killed server has left."""
        for path in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            if _DIGEST.fullmatch(path.name):
                if path.name not in digests:
                    yield path.name
                continue
            with suppress(FileNotFoundError):  # it was renamed just now
                if time.time() - path.stat().st_mtime > 86_400:
                    path.unlink()

    def delete(self, digest: str) -> None:
        if _DIGEST.fullmatch(digest):
            self.path(digest).unlink(missing_ok=True)


PageImage = tuple[bytes, int, float | None]
"""A PNG, the number of pages, and the part of the height above the passage if it is marked."""


class PageRenderer:
    """Draws pages of documents whose file still has the digest that was ingested."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sandbox: Sandbox | None = None
        self.draw = lru_cache(maxsize=32)(self._draw)

    def _draw(self, base: Path, document: Document, number: int, passage: str) -> PageImage:
        """Draw a page and mark `passage` on it. Raises `NotFound` if there is no such page."""
        if document.report.format not in DRAWABLE:
            raise _no_page()
        with self._lock:
            if self._sandbox is None:
                self._sandbox = Sandbox(ocr=False, limits=Limits(seconds=20))
            try:
                return self._sandbox.draw(ingested_file(base, document), number, passage)
            except Unreadable as problem:
                raise NotFound(problem.message) from problem

    def close(self) -> None:
        with self._lock:
            if self._sandbox:
                self._sandbox.__exit__(None, None, None)
                self._sandbox = None


def ingested_file(base: Path, document: Document) -> Path:
    """The file that a document of the knowledge base in the folder `base` was read from.

    The file must have the document's digest, because a knowledge base from elsewhere could name any
    path of this machine. Raises `NotFound`.
    """
    upload = Uploads(base).path(document.digest).absolute()
    for path in (upload, Path(document.source)):
        if path.is_absolute() and path.is_file() and not path.is_symlink():
            with suppress(OSError):
                if digest(path) == document.digest:
                    return path
    raise _no_page()


def _no_page() -> NotFound:
    return NotFound("this document has no page to show")
