"""Files to text: `DocumentParser`, which `ingest.sandbox` runs in a child process.

The modules beside it each read some formats; `parse` is for tests and tools.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from ingest import encoding
from ingest.errors import Unreadable
from ingest.files import IMAGES, TEXT_FORMATS, format_by_name, recognise
from ingest.i18n import Translatable, readable
from ingest.ocr import INSTALL, PageReader, available, read_image
from ingest.parse.blocks import Block, chinese_heading, clean, compose
from ingest.parse.csv_json import csv_blocks, json_blocks, jsonl_blocks
from ingest.parse.docx import word_blocks
from ingest.parse.html import book_blocks, html_blocks
from ingest.parse.office import document_blocks, workbook_blocks
from ingest.parse.pdf import Pictures, pdf_blocks
from ingest.parse.pptx import slide_blocks
from ingest.parse.text import mail_blocks, markdown_segments, text_segments
from ingest.types import Parsed, ParseReport, Segment

__all__ = ["DocumentParser", "parse"]

LARGEST_TREE = 256 << 20  # bytes of a JSON file, which is read whole
FAMILIES = (IMAGES, ("txt", "md", "html"), ("doc", "rtf"))
"""Formats whose names are often confused; no warning is given about that."""


@dataclass
class DocumentParser:
    """Parses files one after the other; the OCR models stay loaded between them.

    `extend_deadline` is called with the seconds that a step may take, before each step of known size.
    """

    ocr: bool = True
    extend_deadline: Callable[[float], None] = lambda seconds: None
    _reader: PageReader | None = field(default=None, init=False)
    _file: "FileParser | None" = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.ocr and available():
            self._reader = PageReader(self.extend_deadline)

    def parse(self, path: Path) -> Parsed:
        """The text of a file, whose format is recognised by its content.

        Raises `Unreadable`, also while the segments of a large file are read; until they are, `report`
        covers only their beginning.
        """
        kind = recognise(path)
        file = self._file = FileParser(path, kind, self._reader)
        promised = format_by_name(path) or kind
        if promised != kind and not any(promised in f and kind in f for f in FAMILIES):
            file.warnings.append(
                Translatable(
                    "the name says {promised}, the content is {kind}", promised=promised, kind=kind
                )
            )
        segments = file.segments()
        first = list(islice(segments, 1))
        if not any(segment.text.strip() for segment in first):
            raise file.without_text()
        rest = list(islice(segments, 1))
        title = readable(file.title or _opening(first[0]) or path.stem)
        return Parsed(title, chain(first, rest, segments), file.report())

    def report(self) -> ParseReport:
        """The report on the last file; final once its segments have been read to the end."""
        assert self._file
        return self._file.report()


def parse(path: Path, *, ocr: bool = True) -> Parsed:
    """`DocumentParser(ocr).parse(path)`, for a single file."""
    return DocumentParser(ocr).parse(path)


def _opening(segment: Segment) -> str:
    """The heading of the first rank that a document begins with, unless it is a chapter's."""
    for mark in segment.marks:
        if mark.kind == "heading":
            first = mark.level == 1 and not segment.text[: mark.start].strip()
            return mark.label if first and not chinese_heading(mark.label) else ""
    return ""


class FileParser:
    """Parses one file, and collects what becomes known about it besides its text."""

    def __init__(self, path: Path, kind: str, reader: PageReader | None) -> None:
        self.path, self.kind, self.reader = path, kind, reader
        self.title = ""
        self.warnings: list[str] = []
        self.detected: encoding.Detected | None = None
        self.pictures = Pictures(reader)

    def set_title(self, title: str) -> None:
        self.title = self.title or title[:200]

    def report(self) -> ParseReport:
        """What is known so far."""
        code, replaced = (
            (self.detected.encoding, self.detected.replaced) if self.detected else (None, 0)
        )
        warnings = (*self.warnings, *self.pictures.warnings())
        return ParseReport(self.kind, code, replaced, self.pictures.read, warnings)

    def without_text(self) -> Unreadable:
        """The error for a file that gave no text."""
        reasons = [*self.warnings, *self.pictures.warnings()]
        if not reasons and self.reader is None:
            reasons = [INSTALL]
        reason = Translatable(" ({reasons:;})", reasons=reasons) if reasons else ""
        return Unreadable("{name} holds no text{reason}", name=self.path.name, reason=reason)

    def segments(self) -> Iterator[Segment]:
        if self.kind not in TEXT_FORMATS or self.kind == "eml":
            return compose(self._container_blocks())
        self.detected = encoding.detect(self.path)
        if self.detected.replaced:
            self.warnings.append(encoding.loss(self.detected))
        pieces = encoding.decode(self.path, self.detected)
        if self.kind == "txt":
            return text_segments(pieces)
        if self.kind == "md":
            return markdown_segments(pieces)
        return compose(self._text_blocks(pieces))

    def _text_blocks(self, pieces: Iterable[str]) -> Iterator[Block]:
        name = self.path.name
        if self.kind in ("csv", "tsv"):
            return csv_blocks(pieces, name=name, warn=self.warnings)
        if self.kind == "html":
            return html_blocks(pieces, set_title=self.set_title)
        if self.kind == "jsonl":
            return jsonl_blocks(pieces, name=name, warn=self.warnings)
        if self.path.stat().st_size > LARGEST_TREE:
            size = LARGEST_TREE >> 20
            raise Unreadable(
                "{name} is larger than {size} MB; write it as JSON Lines", name=name, size=size
            )
        return json_blocks("".join(pieces), name=name, warn=self.warnings)

    def _container_blocks(self) -> Iterator[Block]:
        path, pictures, warn = self.path, self.pictures, self.warnings
        match self.kind:
            case "pdf":
                return pdf_blocks(path, pictures=pictures, warn=warn)
            case "docx":
                return word_blocks(path, pictures=pictures)
            case "pptx":
                return slide_blocks(path, pictures=pictures)
            case "epub":
                return book_blocks(path, set_title=self.set_title)
            case "eml":
                return mail_blocks(path, warn=warn)
            case "xlsx" | "xls" | "ods":
                return workbook_blocks(path, self.kind, warn=warn)
            case _ if self.kind in IMAGES:
                return self._image_blocks()
            case _:
                return document_blocks(path, self.kind)

    def _image_blocks(self) -> Iterator[Block]:
        text = read_image(self.path.read_bytes(), name=self.path.name, reader=self.reader)
        self.pictures.read += 1
        yield Block(clean(text))
