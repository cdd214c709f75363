"""Finds the files to read below some paths, in order and each once, and recognises their formats."""

import difflib
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b, file_digest
from pathlib import Path

from ingest.errors import Unreadable, UserError
from ingest.i18n import Translatable
from ingest.normalize import readable

TEXT_FORMATS = ("txt", "md", "csv", "tsv", "html", "json", "jsonl", "eml")
IMAGES = ("png", "jpg", "webp", "bmp", "tiff", "gif")
FORMATS = {
    **{name: name for name in (*TEXT_FORMATS, *IMAGES)},
    **{name: name for name in ("pdf", "docx", "pptx", "xlsx", "epub", "doc", "ppt", "xls", "rtf")},
    **{name: name for name in ("odt", "odp", "ods", "msg")},
    **dict.fromkeys(("text", "log", "rst", "srt", "vtt", "tex", "org"), "txt"),
    **dict.fromkeys(("markdown", "mdx", "mkd"), "md"),
    **dict.fromkeys(("htm", "xhtml", "xml", "shtml"), "html"),
    **{"ndjson": "jsonl", "geojson": "json"},
    **dict.fromkeys(("docm", "dotx"), "docx"),
    **dict.fromkeys(("pptm", "ppsx"), "pptx"),
    **dict.fromkeys(("xlsm", "xltx"), "xlsx"),
    **dict.fromkeys(("jpeg", "jpe"), "jpg"),
    "tif": "tiff",
}
"""Format by extension (lower case, no dot)."""

_MAGIC = {
    **{b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpg", b"GIF8": "gif", b"{\\rtf": "rtf"},
    **{b"II*\0": "tiff", b"MM\0*": "tiff", b"PK\x03\x04": "zip", b"PK\x05\x06": "zip"},
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "ole",
}
_BLANK = b"\0 \t\r\n\xef\xbb\xbf"
_FOREIGN = {
    b"\x1f\x8b": Translatable("a gzip archive"),
    b"7z\xbc\xaf": Translatable("a 7-Zip archive"),
    b"Rar!": Translatable("a RAR archive"),
    b"\x7fELF": Translatable("a program"),
    b"SQLite format 3\0": Translatable("a database"),
    # ID3 with the version of the tag.
    **dict.fromkeys((b"ID3\2", b"ID3\3", b"ID3\4", b"OggS", b"fLaC"), Translatable("audio")),
}
DAMAGE = (  # `zipfile` raises these for containers that are truncated, altered or exotic
    *(zipfile.BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError, ValueError),
    *(lzma.LZMAError, zlib.error),
)
_PACKAGES = (("word/", "docx"), ("ppt/", "pptx"), ("xl/", "xlsx"))
_STREAMS = {  # names in the directory of an OLE container
    **{"WordDocument": "doc", "PowerPoint Document": "ppt", "Workbook": "xls", "Book": "xls"},
    "__properties_version1.0": "msg",
}
_HTML = re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html)\b", re.I | re.S)


def format_by_name(path: Path) -> str | None:
    """The format that the file's name suggests, or None."""
    return FORMATS.get(path.suffix.lower().lstrip("."))


def recognise(path: Path) -> str:
    """The format of the content. Raises `Unreadable` if it is not a document, needs a password or is
    too damaged to be recognised."""
    with path.open("rb") as stream:
        head = piece = stream.read(4096)
        while piece and not piece.strip(_BLANK):
            piece = stream.read(1 << 20)
    if not piece:
        raise Unreadable("{name} is empty", name=path.name)
    if found := _by_magic(head, path):
        containers = {"zip": _package, "ole": _ole}
        return containers[found](path) if found in containers else found
    promised = format_by_name(path)
    if promised not in TEXT_FORMATS:
        promised = "txt"
    html = promised in ("txt", "md") and _HTML.match(head.lstrip(b"\xef\xbb\xbf"))
    return "html" if html else promised


def _by_magic(head: bytes, path: Path) -> str | None:
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return name
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "webp"
    if head.startswith(b"BM") and head[6:10] == b"\0\0\0\0":
        return "bmp"
    if head.startswith(b"%PDF-") or (format_by_name(path) == "pdf" and b"%PDF-" in head[:1024]):
        return "pdf"
    for magic, kind in _FOREIGN.items():
        if head.startswith(magic):
            raise Unreadable("{name} is {kind}, not a document", name=path.name, kind=kind)
    return None


def _package(path: Path) -> str:
    """The document format of a zip container."""
    try:
        with zipfile.ZipFile(path) as package:
            names = package.namelist()
            kind = package.read("mimetype")[:80] if "mimetype" in names else b""
    except DAMAGE as error:
        raise damaged(path.name, error) from error
    if kind.startswith(b"application/epub"):
        return "epub"
    if kind.startswith(b"application/vnd.oasis.opendocument."):
        return {b"t": "odt", b"p": "odp", b"s": "ods"}.get(kind[35:36], "zip")
    for folder, name in _PACKAGES:
        if any(entry.startswith(folder) for entry in names):
            return name
    if "META-INF/container.xml" in names:
        return "epub"
    raise Unreadable("{name} is an archive; unpack it and ingest the folder", name=path.name)


def _ole(path: Path) -> str:
    """The document format of an OLE container: an old Office file or an encrypted new one."""
    content = path.read_bytes()
    if "EncryptedPackage".encode("utf-16-le") in content:
        raise locked(path.name)
    for stream, name in _STREAMS.items():
        if stream.encode("utf-16-le") in content:
            return name
    raise Unreadable("{name} is an OLE container that holds no known document", name=path.name)


def locked(name: str) -> Unreadable:
    """The error for an encrypted file."""
    return Unreadable("{name} needs a password; save it without one", name=name)


def damaged(name: str, reason: object) -> Unreadable:
    """The error for a file that can't be read to its end."""
    return Unreadable("{name} is damaged or cut off: {reason}", name=name, reason=reason)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file below the paths; `skipped` is the reason why it is not read, or empty.

    `alias` is the name of its document, if that is not the file's path.
    """

    path: Path
    skipped: str = ""
    alias: str = ""

    @property
    def source(self) -> str:
        """The document's name: its absolute path, without `..` and doubled slashes.

        A file has the same name from whichever folder it is reached, and two files never share one.
        Bytes that are not UTF-8 are written `\\xba`; only `path` opens the file.
        """
        return self.alias or readable(Path(os.path.abspath(self.path)).as_posix())

    @property
    def size(self) -> int:
        """In bytes."""
        return self.path.stat().st_size if os.path.isfile(self.path) else 0


def walk(paths: Sequence[Path]) -> Iterator[FoundFile]:
    """Every file under `paths`, in a fixed order.

    Raises `UserError` at once for a path that does not exist or can't be read and for a folder
    without files. Knowledge bases are skipped. A file that is itself in `paths` is read, with any
    extension; links inside a folder are not followed.
    """
    for path in paths:
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError("{path} does not exist{hint}", path=path, hint=_hint(path)) from error
        except OSError as error:
            why = error.strerror
            raise UserError(
                "{path} can't be read: {why}; check its name and permissions", path=path, why=why
            ) from error
        if path.is_dir() and not any(_folder(path)):
            raise UserError(
                "{path} is an empty folder; put documents there or name another", path=path
            )
    return _distinct(paths)


def digest(path: Path) -> str:
    """blake2b of the file's bytes, in hex."""
    with path.open("rb") as stream:
        return file_digest(stream, partial(blake2b, digest_size=32)).hexdigest()


def _distinct(paths: Sequence[Path]) -> Iterator[FoundFile]:
    seen: set[Path] = set()
    for path in paths:
        for found in _folder(path) if path.is_dir() else (FoundFile(path, _not_a_file(path)),):
            place = found.path if os.path.islink(found.path) else found.path.resolve()
            if place not in seen:
                seen.add(place)
                yield found


def _folder(root: Path) -> Iterator[FoundFile]:
    errors: list[OSError] = []
    for here, folders, files in os.walk(root, onerror=errors.append):
        yield from _unreadable(errors)
        if "kb.sqlite" in files:
            yield FoundFile(Path(here), Translatable("a knowledge base"))
            folders.clear()
            continue
        for name in sorted(folders):
            if name.startswith("."):
                yield FoundFile(Path(here, name), Translatable("hidden folder"))
            elif os.path.islink(os.path.join(here, name)):
                yield FoundFile(Path(here, name), Translatable("link to a folder, not followed"))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            yield FoundFile(Path(here, name), _reason(Path(here, name)))
    yield from _unreadable(errors)


def _unreadable(errors: list[OSError]) -> Iterator[FoundFile]:
    """The folders that could not be listed since the last call."""
    for error in errors:
        reason = Translatable("can't be read: {why}", why=error.strerror)
        yield FoundFile(Path(error.filename), reason)
    errors.clear()


def _reason(path: Path) -> str:
    name = path.name.lower()
    if name.startswith(("~$", ".~lock")) or name.endswith((".tmp", "~")):
        return Translatable("temporary file")
    if name.startswith(".") or name in ("thumbs.db", "desktop.ini"):
        return Translatable("hidden file")
    if os.path.islink(path):
        return Translatable("link, not followed")
    if not path.suffix:
        return Translatable("unknown format, no extension")
    if format_by_name(path) is None:
        return Translatable("unknown format {suffix}", suffix=path.suffix)
    return _not_a_file(path)


def _not_a_file(path: Path) -> str:
    return "" if os.path.isfile(path) else Translatable("not a regular file")


def _hint(path: Path) -> str:
    """`; did you mean docs/b.txt?`, or nothing."""
    if not path.parent.is_dir():
        return Translatable(" (nor does {parent})", parent=path.parent)
    names = {entry.name.lower(): entry for entry in sorted(path.parent.iterdir(), reverse=True)}
    near = difflib.get_close_matches(path.name.lower(), names, n=1, cutoff=0.5)
    return Translatable("; did you mean {name}?", name=names[near[0]]) if near else ""
