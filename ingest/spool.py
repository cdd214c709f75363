"""A document's segments on disk, on their way from the child process: JSON Lines."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from ingest.types import Mark, Segment


def write(segments: Iterable[Segment], spool: Path) -> None:
    """One after the other, so that a document of any size passes."""
    with spool.open("w", encoding="utf-8", errors="replace") as lines:
        for segment in segments:
            marks = [(m.start, m.kind, m.label, m.level) for m in segment.marks]
            lines.write(json.dumps((segment.text, marks), ensure_ascii=False) + "\n")


def read(spool: Path) -> Iterator[Segment]:
    """The segments again, lazily; the file is removed once they are read."""
    try:
        with spool.open(encoding="utf-8") as lines:
            for line in lines:
                text, marks = json.loads(line)
                yield Segment(text, tuple(Mark(*mark) for mark in marks))
    finally:
        spool.unlink(missing_ok=True)
