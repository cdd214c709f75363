"""Files to text: `DocumentParser`, which `ingest.sandbox` runs in a child process."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from ingest import encoding
from ingest.errors import Unreadable
from ingest.files import IMAGES, TEXT_FORMATS, format_by_name, recognise
from ingest.i18n import Translatable
from ingest.normalize import readable
from ingest.ocr import INSTALL, PageReader, available, open_picture
from ingest.parse.blocks import Block, chinese_heading, clean, compose
from ingest.parse.csv_json import csv_blocks, json_blocks, jsonl_blocks
from ingest.parse.docx import word_blocks
from ingest.parse.html import book_blocks, html_blocks
from ingest.parse.office import document_blocks
from ingest.parse.pdf import Pictures, pdf_blocks
from ingest.parse.pptx import slide_blocks
from ingest.parse.text import mail_blocks, markdown_segments, text_segments
from ingest.parse.workbook import spreadsheetml_blocks, workbook_blocks
from ingest.types import Parsed, ParseReport, Segment

LARGEST_TREE = 256 << 20  # bytes of a JSON file, which is read whole
FAMILIES = (IMAGES, ("txt", "md", "html"), ("doc", "rtf"), ("html", "xls", "spreadsheetml"))
"""Formats whose names are often confused; no warning is given about that."""


class DocumentParser:
    """Parses files one after the other; the OCR models stay loaded between them. `extend_deadline` is
    called with the seconds that a step may take, before each step of known size."""

    def __init__(
        self, ocr: bool = True, extend_deadline: Callable[[float], None] = lambda seconds: None
    ) -> None:
        self._reader = PageReader(extend_deadline) if ocr and available() else None
        self._file: FileParser | None = None

    def parse(self, path: Path) -> Parsed:
        """The text of a file, whose format is recognised by its content.

        Raises `Unreadable`, also while the segments of a large file are read; until they are, `report`
        covers only their beginning.
        """
        kind = recognise(path)
        file = self._file = FileParser(path, kind, self._reader)
        promised = format_by_name(path) or kind
        if promised != kind and not any({promised, kind} <= set(family) for family in FAMILIES):
            note = Translatable(
                "the name says {promised}, the content is {kind}", promised=promised, kind=kind
            )
            file.warnings.append(note)
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
        self.title, self.encoding, self.replaced = "", None, 0
        self.warnings: list[str] = []
        self.pictures = Pictures(reader)

    def set_title(self, title: str) -> None:
        self.title = self.title or title[:200]

    def report(self) -> ParseReport:
        """What is known so far."""
        read, warnings = self.pictures.read, (*self.warnings, *self.pictures.warnings())
        return ParseReport(self.kind, self.encoding, self.replaced, read, warnings)

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
        detected = encoding.detect(self.path)
        self.encoding, self.replaced = detected.encoding, detected.replaced
        self.warnings += encoding.losses(detected)
        pieces = encoding.decode(self.path, detected)
        if self.kind == "txt":
            return text_segments(pieces)
        if self.kind == "md":
            return markdown_segments(pieces)
        return compose(self._text_blocks(pieces))

    def _text_blocks(self, pieces: Iterable[str]) -> Iterator[Block]:
        name = self.path.name
        if self.kind in ("csv", "tsv"):
            return csv_blocks(pieces, name=name, warn=self.warnings)
        if self.kind == "spreadsheetml":
            return spreadsheetml_blocks(pieces, name=name, warn=self.warnings)
        if self.kind == "html":
            return html_blocks(pieces, set_title=self.set_title)
        if self.kind == "jsonl":
            return jsonl_blocks(pieces, name=name, warn=self.warnings)
        if self.path.stat().st_size > LARGEST_TREE:
            size = LARGEST_TREE >> 20
            raise Unreadable("{name} is larger than {size} MB; write it as JSON Lines", name=name, size=size)
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
        name = self.path.name
        if self.reader is None:
            raise Unreadable(
                "{name} is an image and OCR is off or not installed; {way}", name=name, way=INSTALL
            )
        picture = open_picture(self.path.read_bytes())
        if picture is None:
            raise Unreadable("{name} is not text, nor a whole image of a size that can be read", name=name)
        text = self.reader.read(picture)
        if not text.strip():
            raise Unreadable("{name} is an image in which no text was found", name=name)
        self.pictures.read += 1
        yield Block(clean(text))
