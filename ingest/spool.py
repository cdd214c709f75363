"""A parsed document on disk, on its way from the child process: JSON Lines, the head first."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from ingest.types import Mark, Parsed, Receipt, Segment


def write(parsed: Parsed, spool: Path) -> None:
    """Segment by segment, so that a document of any size passes."""
    with spool.open("w", encoding="utf-8", errors="replace") as lines:
        head = {"title": parsed.title, "receipt": asdict(parsed.receipt)}
        lines.write(json.dumps(head, ensure_ascii=False) + "\n")
        for segment in parsed.segments:
            marks = [(m.start, m.kind, m.label, m.level) for m in segment.marks]
            lines.write(json.dumps((segment.text, marks), ensure_ascii=False) + "\n")


def read(spool: Path) -> Parsed:
    """The document again; its segments are lazy, and the file is removed once they are read."""
    with spool.open(encoding="utf-8") as lines:
        head = json.loads(next(lines))
    receipt = head["receipt"]
    receipt["warnings"] = tuple(receipt["warnings"])
    return Parsed(head["title"], _segments(spool), Receipt(**receipt))


def _segments(spool: Path) -> Iterator[Segment]:
    try:
        with spool.open(encoding="utf-8") as lines:
            next(lines)
            for line in lines:
                text, marks = json.loads(line)
                yield Segment(text, tuple(Mark(*mark) for mark in marks))
    finally:
        spool.unlink(missing_ok=True)
