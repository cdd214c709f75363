"""An answer as text for a terminal, as Markdown, or as a JSON value."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ingest.i18n import Translatable, Translator
from ingest.types import Hit
from rag.types import Answer, Citation

_WRAP_IN_CHINESE = re.compile(r"(?<=[\u3000-\uffef])\s*\n\s*(?=[\u3000-\uffef])")
_HEADER = re.compile(r"^(\|.*\|)[ \t]*\n\|[\s|:-]+\|[ \t]*$", re.MULTILINE)


def one_line(text: str) -> str:
    """`text` without line breaks; words that have spaces between them keep one."""
    return " ".join(_WRAP_IN_CHINESE.sub("", text).split())


def row_in_words(row: str, above: str, context: str) -> str:
    """A table row as `姓名：张三；年龄：30`.

    Its header is the last one, with its rule, in the text `above` it; where there is none, the last
    line of the chunk's `context`. What is no row, or has no header of as many cells, comes back as
    it is.
    """
    headers = _HEADER.findall(above) or context.split("\n")[-1:]
    names, cells = _cells(headers[-1]), _cells(row)
    if not row.startswith("|") or not headers[-1].startswith("|") or len(names) != len(cells):
        return row
    pairs = zip(names, cells, strict=True)
    return "；".join(f"{name}：{cell}" if name else cell for name, cell in pairs if cell)


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def plain(answer: Answer, say: Translator) -> str:
    """The answer, then where each quote stands."""
    return f"{answer.text}\n{below(answer, say)}".rstrip("\n")


def below(answer: Answer, say: Translator) -> str:
    """All that stands below the text in `plain`: what a terminal shows after it was streamed."""
    if answer.refused:
        lines = [f"  - {_place(hit)}" for hit in answer.hits]
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
        lines = [answer.text, "", *(f"- {_place(hit)}" for hit in answer.hits), ""]
    else:
        lines = [answer.text, ""]
        for citation in answer.citations:
            lines += [f"**[{citation.number}]** {place(citation)}", ""]
            lines += [f"> {line}" for line in citation.quote.strip().splitlines()]
            lines.append("")
    lines += [f"- ⚠ {remark}" for remark in remarks(answer, say)]
    return "\n".join(lines).rstrip()


def remarks(answer: Answer, say: Translator) -> list[str]:
    """What a reader must know of a text that a language model wrote, a line each."""
    lines = []
    for start, end in answer.unsupported:
        claim = one_line(answer.text[start:end])
        lines.append(say("no passage supports “{claim}”", claim=claim))
    for number in dict.fromkeys(answer.unknown):
        lines.append(say("[{number}] is no passage's number", number=number))
    lost = answer.dropped
    parts = [
        text
        for count, text in (
            (lost.turns, _turns(lost.turns)),
            (lost.passages, _passages(lost.passages)),
        )
        if count
    ]
    if parts:
        lines.append(say("did not fit into the model's window: {parts:and}", parts=parts))
    if lost.shortened:
        lines.append(
            say("passages cut to fit the model's window: {shortened}", shortened=lost.shortened)
        )
    return lines


def _turns(count: int) -> Translatable:
    if count == 1:
        return Translatable("1 earlier turn")
    return Translatable("{count} earlier turns", count=count)


def _passages(count: int) -> Translatable:
    return (
        Translatable("1 passage") if count == 1 else Translatable("{count} passages", count=count)
    )


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
                "label": citation.chunk.label(citation.start),
                "document": citation.chunk.document,
                "start": citation.start,
                "end": citation.end,
                "quote": citation.quote,
            }
            for citation in answer.citations
        ],
        "hits": [hit_record(hit) for hit in answer.hits],
        "generator": answer.generator,
        "unsupported": [
            {"start": start, "end": end, "text": answer.text[start:end]}
            for start, end in answer.unsupported
        ],
        "unknown": list(answer.unknown),
        "dropped": asdict(answer.dropped),
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
    parts = [Path(citation.chunk.source).name, citation.chunk.label(citation.start)]
    return " · ".join([*(part for part in parts if part), f"{citation.start}–{citation.end}"])


def _place(hit: Hit) -> str:
    parts = [Path(hit.chunk.source).name, hit.chunk.label(hit.chunk.start)]
    return " · ".join(part for part in parts if part)


def _clean(text: str) -> str:
    return "".join(text.split())
