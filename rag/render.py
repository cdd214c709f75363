"""An answer as text for a terminal, as Markdown, or as a JSON value."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ingest.chunk import Span
from ingest.i18n import Translatable, Translator, translate
from ingest.normalize import one_line
from ingest.types import Chunk, Hit, ParseReport
from rag.types import Answer, Citation


def below(answer: Answer, say: Translator) -> str:
    """The place of each quote, or of the nearest passages: what a terminal shows below the answer."""
    if answer.refused:
        lines = [f"  - {_place(hit.chunk, hit.chunk.start)}" for hit in answer.hits]
    else:
        lines = [""]
        for citation in answer.citations:
            lines.append(f"[{citation.number}] {place(citation)}")
            if _clean(citation.quote) not in _clean(answer.text):
                lines.append(f"    “{one_line(citation.quote)}”")
    return "\n".join([*lines, *(f"! {remark}" for remark in remarks(answer, say))])


def markdown(answer: Answer, say: Translator) -> str:
    """The answer with its quotes as block quotes."""
    if answer.refused:
        lines = [answer.text, "", *(f"- {_place(hit.chunk, hit.chunk.start)}" for hit in answer.hits), ""]
    else:
        lines = [answer.text, ""]
        for citation in answer.citations:
            lines += [f"**[{citation.number}]** {place(citation)}", ""]
            lines += [f"> {line}" for line in citation.quote.strip().splitlines()]
            lines.append("")
    lines += [f"- ⚠ {remark}" for remark in remarks(answer, say)]
    return "\n".join(lines).rstrip()


def remarks(answer: Answer, say: Translator) -> list[str]:
    """Warnings about a text that a language model wrote, one line each."""
    lines = []
    for start, end in answer.unsupported:
        claim = one_line(answer.text[start:end])
        lines.append(say("no passage supports “{claim}”", claim=claim))
    for number in dict.fromkeys(answer.unknown):
        lines.append(say("[{number}] is not the number of a passage", number=number))
    if answer.finish_reason == "length":
        lines.append(say("the answer is cut because it has max_new_tokens tokens; raise --max-new-tokens"))
    turns, passages, n = answer.dropped.turns, answer.dropped.passages, answer.dropped.shortened
    parts: list[Translatable] = []
    if turns:
        one = Translatable("1 earlier turn")
        parts.append(one if turns == 1 else Translatable("{n} earlier turns", n=turns))
    if passages:
        one = Translatable("1 passage")
        parts.append(one if passages == 1 else Translatable("{n} passages", n=passages))
    if parts:
        lines.append(say("did not fit into the model's window: {parts:and}", parts=parts))
    if n:
        lines.append(say("passages cut to fit into the model's window: {n}", n=n))
    return lines


def record(answer: Answer) -> dict[str, Any]:
    """The answer as a JSON value, with the exact spans of its quotes."""
    return {
        "question": answer.question,
        "answer": answer.text,
        "span": part(answer.text, answer.span) if answer.span else None,
        "refused": answer.refused,
        "confidence": round(answer.confidence, 4),
        "citations": [
            {"number": c.number, **_span(c.chunk, c.start, c.end), "quote": c.quote} for c in answer.citations
        ],
        "hits": [hit_record(hit) for hit in answer.hits],
        "generator": answer.generator,
        "finish_reason": answer.finish_reason,
        "unsupported": [part(answer.text, span) for span in answer.unsupported],
        "unknown": list(answer.unknown),
        "dropped": asdict(answer.dropped),
    }


def part(text: str, span: Span) -> dict[str, Any]:
    """Characters [start, end) of an answer's text, and what they are."""
    start, end = span
    return {"start": start, "end": end, "text": text[start:end]}


def hit_record(hit: Hit) -> dict[str, Any]:
    chunk = hit.chunk
    span = _span(chunk, chunk.start, chunk.end)
    return {"score": round(hit.score, 4), **span, "text": chunk.text}


def report_record(report: ParseReport, say: Translator) -> dict[str, Any]:
    """The report as a JSON value, its warnings in the reader's language."""
    return asdict(report) | {"warnings": [translate(each, say.language) for each in report.warnings]}


def _span(chunk: Chunk, start: int, end: int) -> dict[str, Any]:
    return {
        "source": chunk.source,
        "title": chunk.title,
        "label": chunk.label(start),
        "document": chunk.document,
        "start": start,
        "end": end,
    }


def hit_line(hit: Hit) -> str:
    """The place of a hit, and its text: two lines."""
    return f"{_place(hit.chunk, hit.chunk.start)}  ({hit.score:.2f})\n    {one_line(hit.chunk.text)}"


def place(citation: Citation) -> str:
    """Document, label and characters: `法.docx · 第二章 · 1024–1060`."""
    return f"{_place(citation.chunk, citation.start)} · {citation.start}–{citation.end}"


def _place(chunk: Chunk, start: int) -> str:
    parts = [Path(chunk.source).name, chunk.label(start)]
    return " · ".join(part for part in parts if part)


def _clean(text: str) -> str:
    return "".join(text.split())
