"""Files to text: `DocumentParser`, which `ingest.sandbox` runs in a child process."""

import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

from ingest import encoding
from ingest.errors import Unreadable
from ingest.files import IMAGES, TEXT_FORMATS, format_by_name, recognise
from ingest.i18n import Translatable
from ingest.normalize import readable
from ingest.ocr import INSTALL, MOST_PAGES, PageReader, available, open_picture, page_count
from ingest.parse.blocks import Block, chinese_heading, clean, compose, heading
from ingest.parse.csv_json import csv_blocks, json_blocks, jsonl_blocks
from ingest.parse.docx import word_blocks
from ingest.parse.html import book_blocks, page_blocks
from ingest.parse.mail import DEPTH, mail_blocks, outlook_blocks
from ingest.parse.office import document_blocks, opendocument_blocks
from ingest.parse.pdf import Pictures, pdf_blocks, picture_text
from ingest.parse.pptx import slide_blocks
from ingest.parse.text import markdown_segments, text_segments
from ingest.parse.workbook import spreadsheetml_blocks, workbook_blocks
from ingest.types import Fact, FactKind, Mark, ParsedFile, ParseReport, Segment

LARGEST_TREE = 256 << 20  # bytes of a JSON file, which is read whole
MOST_INNER = 200  # documents read that are inside a file: attachments, parts
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

    def parse(self, path: Path) -> ParsedFile:
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
        file.facts = tuple(facts("".join(segment.text for segment in (*first, *rest))))
        title = readable(file.title or _opening(first[0]) or path.stem)
        return ParsedFile(title, chain(first, rest, segments), file.report())

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


def _blocks(segment: Segment, *, deeper: int) -> Iterator[Block]:
    """A segment cut at its headings, which are `deeper` below those around it, as are its sheets.
    Pages and rows lose their marks: they are not those of the whole document."""
    marks = [mark for mark in segment.marks if mark.kind in ("heading", "sheet")]
    starts = sorted({0, *(mark.start for mark in marks)})
    for start, end in zip(starts, [*starts[1:], len(segment.text)], strict=True):
        own = (mark for mark in marks if mark.start == start)
        places = tuple(Mark(0, "heading", mark.label, mark.level + deeper) for mark in own)
        yield Block(segment.text[start:end], places, start > 0 and segment.text[start - 2] != "\n")


class FileParser:
    """Parses one file, and collects what becomes known about it besides its text."""

    def __init__(self, path: Path, kind: str, reader: PageReader | None) -> None:
        self.path, self.kind, self.reader = path, kind, reader
        self.title, self.encoding, self.replaced = "", None, 0
        self.facts: tuple[Fact, ...] = ()
        self.warnings: list[str] = []
        self.pictures = Pictures(reader)
        self.inner_documents = 0
        self.depth = 0

    def set_title(self, title: str) -> None:
        self.title = self.title or title[:200]

    def report(self) -> ParseReport:
        """What is known so far."""
        read, warnings = self.pictures.read, (*self.warnings, *self.pictures.warnings())
        return ParseReport(self.kind, self.encoding, self.replaced, read, warnings, self.facts)

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
            return page_blocks(pieces, set_title=self.set_title, warn=self.warnings)
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
                return word_blocks(path, pictures=pictures, warn=warn, inner=self.inner)
            case "pptx":
                return slide_blocks(path, pictures=pictures, warn=warn)
            case "epub":
                return book_blocks(path, set_title=self.set_title)
            case "eml":
                return mail_blocks(path, warn=warn, inner=self.inner)
            case "msg":
                return outlook_blocks(path, warn=warn, inner=self.inner)
            case "xlsx" | "xls" | "ods":
                return workbook_blocks(path, self.kind, warn=warn)
            case "odt" | "odp":
                return opendocument_blocks(path, pictures=pictures, warn=warn)
            case _ if self.kind in IMAGES:
                return self._image_blocks()
            case _:
                return document_blocks(path, self.kind)

    def inner(self, content: bytes, name: str, *, part: bool = False) -> Iterator[Block]:
        """The blocks of a document inside this one, under its name unless it is a part of the text.
        What can't be read becomes a warning."""
        self.inner_documents += 1
        if self.inner_documents == MOST_INNER + 1:
            most = MOST_INNER
            self.warnings.append(
                Translatable("only the first {most} documents inside it are read", most=most)
            )
        if self.inner_documents > MOST_INNER or self.depth > DEPTH:
            return
        name = re.sub(r"[^\w.() -]", "_", name)[-80:].strip(". ") or "_"
        with TemporaryDirectory(prefix="rag-inner-") as folder:
            path = Path(folder, name)
            path.write_bytes(content)
            try:
                file = FileParser(path, recognise(path), self.reader)
                file.pictures, file.depth = self.pictures, self.depth + 1
                file.inner_documents = self.inner_documents
                if not part:
                    yield heading(name, file.depth + 1)
                if file.kind in IMAGES:
                    yield from self.pictures.blocks(content)
                    return
                for segment in file.segments():
                    yield from _blocks(segment, deeper=0 if part else file.depth + 1)
                self.inner_documents = file.inner_documents
                self.warnings += file.warnings
            except Unreadable as error:
                self.warnings.append(error.message)

    def _image_blocks(self) -> Iterator[Block]:
        name, content, found = self.path.name, self.path.read_bytes(), False
        if self.reader is None:
            raise Unreadable(
                "{name} is an image and OCR is off or not installed; {way}", name=name, way=INSTALL
            )
        pages = page_count(content)
        for page in range(min(pages, MOST_PAGES)):
            picture = open_picture(content, page)
            if picture is None and not page:
                raise Unreadable(
                    "{name} is not text, nor a whole image of a size that can be read", name=name
                )
            text = picture_text(self.reader, picture) if picture else ""
            found = found or bool(text.strip())
            self.pictures.read += 1
            yield Block(clean(text), (Mark(0, "page", f"p. {page + 1}"),) if pages > 1 else ())
        if not found:
            raise Unreadable("{name} is an image in which no text was found", name=name)
        if pages > MOST_PAGES:
            self.warnings.append(Translatable("only the first {most} pages are read", most=MOST_PAGES))


OPENING = 3000
"""Characters from the start of a document that are searched for facts."""
_LONGEST = 120  # characters of a line with a fact


@cache
def _patterns() -> dict[FactKind, re.Pattern[str]]:
    """A pattern for the lines with each kind of fact."""
    table = tomllib.loads(Path(__file__).with_name("facts.toml").read_text("utf-8"))
    found: dict[FactKind, re.Pattern[str]] = {}
    for kind in get_args(FactKind):
        fact = table[kind]
        pattern = rf"(?:{fact['label']})\s*[:：]\s*\S.*|{fact['form']}"
        for name in ("date", "month"):
            pattern = pattern.replace(f"<{name}>", table["names"][name])
        found[kind] = re.compile(pattern, re.IGNORECASE)
    return found


def facts(text: str) -> Iterator[Fact]:
    """The facts in the beginning of a document."""
    for line in re.finditer(r"[^\n]+", text[:OPENING]):
        bare = line[0].strip()
        if len(bare) <= _LONGEST and not bare.startswith("|"):
            start = line.start() + line[0].index(bare)
            for kind, pattern in _patterns().items():
                if pattern.fullmatch(bare):
                    yield Fact(kind, start, start + len(bare))
