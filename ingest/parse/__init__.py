"""Files to text: one function, `parse`. What each format needs stands in the modules beside it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from ingest import encoding
from ingest.errors import Unreadable
from ingest.files import IMAGES, TEXT_FORMATS, extension, recognise
from ingest.i18n import readable
from ingest.ocr import INSTALL, Reader, available, read_image
from ingest.parse import blocks as block
from ingest.parse.blocks import Block, chinese_heading, compose
from ingest.parse.csv_json import csv_blocks, json_blocks, jsonl_blocks
from ingest.parse.docx import word_blocks
from ingest.parse.html import book_blocks, html_blocks
from ingest.parse.office import document_blocks, workbook_blocks
from ingest.parse.pdf import Pictures, pdf_blocks
from ingest.parse.pptx import slide_blocks
from ingest.parse.text import mail_blocks, markdown_segments, text_segments
from ingest.types import Parsed, Receipt, Segment

__all__ = ["Parser", "parse"]

LARGEST_TREE = 256 << 20  # bytes of a JSON file, which is read whole


@dataclass
class Parser:
    """Parses files one after the other; keeps the OCR models loaded between them.

    `patience` is told how many seconds a step of known size may take, before each such step.
    """

    ocr: bool = True
    patience: Callable[[float], None] = lambda seconds: None
    _reader: Reader | None = field(default=None, init=False)
    _work: "Work | None" = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.ocr and available():
            self._reader = Reader(self.patience)

    def parse(self, path: Path) -> Parsed:
        """The text of a file, its format told by its content. Raises `Unreadable`, also while the
        segments of a large file are read; until then `receipt` knows but their beginning."""
        kind = recognise(path)
        work = self._work = Work(path, kind, self._reader)
        promised = extension(path)
        if promised and promised != kind and not _alike(promised, kind):
            work.warnings.append(f"the name says {promised}, the content is {kind}")
        segments = work.segments()
        first = list(_take(segments, 1))
        if not any(segment.text.strip() for segment in first):
            raise work.nothing()
        rest = list(_take(segments, 1))
        title = readable(work.title or _opening(first[0]) or path.stem)
        return Parsed(title, chain(first, rest, segments), work.receipt())

    def receipt(self) -> Receipt:
        """That of the file parsed last; final once its segments are read to the end."""
        assert self._work
        return self._work.receipt()


def parse(path: Path, *, ocr: bool = True) -> Parsed:
    """`Parser(ocr).parse(path)`, for a single file."""
    return Parser(ocr).parse(path)


def _take(segments: Iterator[Segment], count: int) -> Iterator[Segment]:
    for _, segment in zip(range(count), segments, strict=False):
        yield segment


def _opening(segment: Segment) -> str:
    """The heading of the first rank that a document begins with, unless it is a chapter's."""
    for mark in segment.marks:
        if mark.kind == "heading":
            blank = not segment.text[: mark.start].strip()
            return (
                mark.label if mark.level == 1 and blank and not chinese_heading(mark.label) else ""
            )
    return ""


def _alike(promised: str, kind: str) -> bool:
    families = (IMAGES, ("txt", "md", "html"), ("doc", "rtf"))
    return any(promised in family and kind in family for family in families)


class Work:
    """One file under way: what is found out about it besides its text."""

    def __init__(self, path: Path, kind: str, reader: Reader | None) -> None:
        self.path, self.kind, self.reader = path, kind, reader
        self.title = ""
        self.warnings: list[str] = []
        self.detected: encoding.Detected | None = None
        self.pictures = Pictures(reader)

    def found_title(self, title: str) -> None:
        self.title = self.title or title[:200]

    def receipt(self) -> Receipt:
        """What is known by now."""
        return Receipt(
            format=self.kind,
            encoding=self.detected and self.detected.encoding,
            replaced=self.detected.replaced if self.detected else 0,
            ocr_pages=self.pictures.read,
            warnings=tuple(map(readable, (*self.warnings, *self.pictures.warnings()))),
        )

    def nothing(self) -> Unreadable:
        """The error for a file that gave no text."""
        reasons = [*self.warnings, *self.pictures.warnings()]
        if not reasons and self.reader is None:
            reasons = [INSTALL]
        reason = f" ({'; '.join(reasons)})" if reasons else ""
        return Unreadable("{name} holds no text{reason}", name=self.path.name, reason=reason)

    def segments(self) -> Iterator[Segment]:
        kind = self.kind
        if kind in TEXT_FORMATS and kind != "eml":
            self.detected = encoding.detect(self.path)
            if self.detected.replaced:
                self.warnings.append(f"{self.detected.replaced} bytes could not be decoded")
            pieces = encoding.decode(self.path, self.detected)
            if kind in ("txt", "md"):
                return text_segments(pieces) if kind == "txt" else markdown_segments(pieces)
            return compose(self._text_blocks(kind, pieces))
        return compose(self._container_blocks(kind))

    def _text_blocks(self, kind: str, pieces: Iterable[str]) -> Iterator[Block]:
        name = self.path.name
        if kind in ("csv", "tsv"):
            return csv_blocks(pieces, name=name, warn=self.warnings)
        if kind == "html":
            return html_blocks(pieces, found_title=self.found_title)
        if kind == "jsonl":
            return jsonl_blocks(pieces, name=name, warn=self.warnings)
        if self.path.stat().st_size > LARGEST_TREE:
            raise Unreadable(
                "{name} is larger than {largest_tree} MB; write it as JSON Lines",
                name=name,
                largest_tree=LARGEST_TREE >> 20,
            )
        return json_blocks("".join(pieces), name=name, warn=self.warnings)

    def _container_blocks(self, kind: str) -> Iterator[Block]:
        path = self.path
        readers: dict[str, Callable[[], Iterator[Block]]] = {
            "pdf": lambda: pdf_blocks(
                path, reader=self.reader, pictures=self.pictures, warn=self.warnings
            ),
            "docx": lambda: word_blocks(path, pictures=self.pictures),
            "pptx": lambda: slide_blocks(path, pictures=self.pictures),
            "epub": lambda: book_blocks(path, found_title=self.found_title),
            "eml": lambda: mail_blocks(path, warn=self.warnings),
        }
        if kind in readers:
            return readers[kind]()
        if kind in ("xlsx", "xls", "ods"):
            return workbook_blocks(path, kind, warn=self.warnings)
        if kind in IMAGES:
            return self._image_blocks()
        return document_blocks(path, kind)

    def _image_blocks(self) -> Iterator[Block]:
        text = read_image(self.path.read_bytes(), name=self.path.name, reader=self.reader)
        self.pictures.read += 1
        yield Block(block.clean(text))
