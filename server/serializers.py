"""The nouns of `rag` and `ingest` as they go over the wire: names of files, never their paths."""

import json
import re
import sqlite3
from collections.abc import Sequence
from pathlib import PurePosixPath

from ingest.i18n import Translator, readable
from ingest.types import Document, Hit
from rag.render import remarks
from rag.types import Answer, Citation, Retrieved
from server import schemas

_PAGE = re.compile(r"p\. (\d+)")
PAGED = ("pdf",)
"""Formats whose pages can be drawn."""


def name_of(source: str) -> str:
    return readable(PurePosixPath(source).name)


def shown(name: str) -> str:
    """A file's name as a client sent it, fit to be told back."""
    return "".join(c if c.isprintable() else "_" for c in readable(name))[:200]


def hit(found: Hit) -> schemas.Hit:
    chunk = found.chunk
    return schemas.Hit(
        score=round(found.score, 4),
        name=name_of(chunk.source),
        title=chunk.title,
        label=chunk.label(chunk.start),
        document=chunk.document,
        start=chunk.start,
        end=chunk.end,
        text=chunk.text,
    )


def found(retrieved: Retrieved, *, trace: str, base: str, sequence: int) -> schemas.Found:
    return schemas.Found(
        id=trace,
        question=retrieved.query.text,
        knowledge_base=base,
        sequence=sequence,
        confidence=round(retrieved.confidence, 4),
        answerable=retrieved.answerable,
        hits=[hit(each) for each in retrieved.hits],
    )


def citation(cited: Citation) -> schemas.Citation:
    label = cited.chunk.label(cited.start)
    page = _PAGE.match(label)
    return schemas.Citation(
        number=cited.number,
        name=name_of(cited.chunk.source),
        title=cited.chunk.title,
        label=label,
        page=int(page[1]) if page else None,
        document=cited.chunk.document,
        start=cited.start,
        end=cited.end,
        quote=cited.quote,
    )


def answer(
    given: Answer, usage: schemas.Usage, say: Translator, *, trace: str, base: str, sequence: int
) -> schemas.Answer:
    return schemas.Answer(
        id=trace,
        question=given.question,
        knowledge_base=base,
        sequence=sequence,
        answer=given.text,
        refused=given.refused,
        confidence=round(given.confidence, 4),
        citations=[citation(each) for each in given.citations],
        hits=[hit(each) for each in given.hits],
        generator=given.generator,
        unsupported=[
            schemas.Unsupported(start=start, end=end, text=given.text[start:end])
            for start, end in given.unsupported
        ],
        unknown=list(given.unknown),
        dropped=schemas.Dropped(
            turns=given.dropped.turns,
            passages=given.dropped.passages,
            shortened=given.dropped.shortened,
        ),
        remarks=remarks(given, say),
        usage=usage,
    )


def document(head: Document, length: int) -> schemas.Document:
    receipt = head.receipt
    return schemas.Document(
        id=head.id,
        name=name_of(head.source),
        title=head.title,
        length=length,
        pages=receipt.format in PAGED,
        receipt=schemas.Receipt(
            format=receipt.format,
            encoding=receipt.encoding,
            replaced=receipt.replaced,
            ocr_pages=receipt.ocr_pages,
            warnings=list(receipt.warnings),
        ),
    )


def job(row: sqlite3.Row, files: Sequence[sqlite3.Row], say: Translator) -> schemas.Job:
    told = [_file(file, say) for file in files]
    ended = [file for file in told if file.state != "waiting"]
    return schemas.Job(
        id=row["id"],
        kind=row["kind"],
        knowledge_base=row["base"],
        state=row["state"],
        created=row["created"],
        started=row["started"],
        finished=row["finished"],
        files_done=len(ended),
        files_total=len(told),
        bytes_done=sum(file.size for file in ended),
        bytes_total=sum(file.size for file in told),
        chunks=row["chunks"],
        error=row["error"] and row["error_zh" if say.language == "zh" else "error"],
        files=told,
    )


def _file(row: sqlite3.Row, say: Translator) -> schemas.JobFile:
    return schemas.JobFile(
        name=row["name"],
        size=row["size"],
        state=row["state"],
        chunks=row["chunks"],
        receipt=json.loads(row["receipt"]) if row["receipt"] else None,
        problem=row["problem"] and row["problem_zh" if say.language == "zh" else "problem"],
    )
