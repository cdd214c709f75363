"""An answer as text for a terminal, as Markdown, or as a JSON value."""

from pathlib import Path
from typing import Any

from ingest.types import Hit
from rag.layout import one_line
from rag.types import Answer, Citation


def plain(answer: Answer) -> str:
    """The answer, then where each quote stands."""
    if answer.refused:
        return "\n".join([answer.text, *(f"  - {_place(hit)}" for hit in answer.hits)])
    lines = [answer.text, ""]
    for citation in answer.citations:
        lines.append(f"[{citation.number}] {place(citation)}")
        if _clean(citation.quote) not in _clean(answer.text):
            lines.append(f"    “{one_line(citation.quote)}”")
    return "\n".join(lines)


def markdown(answer: Answer) -> str:
    """The answer with its quotes as block quotes."""
    if answer.refused:
        return "\n".join([answer.text, "", *(f"- {_place(hit)}" for hit in answer.hits)])
    lines = [answer.text, ""]
    for citation in answer.citations:
        lines += [f"**[{citation.number}]** {place(citation)}", ""]
        lines += [f"> {line}" for line in citation.quote.strip().splitlines()]
        lines.append("")
    return "\n".join(lines).rstrip()


def record(answer: Answer) -> dict[str, Any]:
    """Everything that a program would want to check: quotes with their exact spans."""
    return {
        "question": answer.question,
        "answer": answer.text,
        "refused": answer.refused,
        "confidence": round(answer.confidence, 4),
        "citations": [
            {
                "number": citation.number,
                "source": citation.chunk.source,
                "title": citation.chunk.title,
                "label": citation.label,
                "document": citation.chunk.document,
                "start": citation.start,
                "end": citation.end,
                "quote": citation.quote,
            }
            for citation in answer.citations
        ],
        "hits": [hit_record(hit) for hit in answer.hits],
    }


def hit_record(hit: Hit) -> dict[str, Any]:
    chunk = hit.chunk
    return {
        "score": round(hit.score, 4),
        "source": chunk.source,
        "title": chunk.title,
        "label": chunk.label(chunk.start),
        "document": chunk.document,
        "start": chunk.start,
        "end": chunk.end,
        "text": chunk.text,
    }


def hit_line(hit: Hit) -> str:
    """Where a hit stands and what it says: two lines."""
    return f"{_place(hit)}  ({hit.score:.2f})\n    {one_line(hit.chunk.text)}"


def place(citation: Citation) -> str:
    """Document, place in it, and the characters: `法.docx · 第二章 · 1024–1060`."""
    parts = [Path(citation.chunk.source).name, citation.label]
    return " · ".join([*(part for part in parts if part), f"{citation.start}–{citation.end}"])


def _place(hit: Hit) -> str:
    parts = [Path(hit.chunk.source).name, hit.chunk.label(hit.chunk.start)]
    return " · ".join(part for part in parts if part)


def _clean(text: str) -> str:
    return "".join(text.split())
