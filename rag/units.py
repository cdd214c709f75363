"""The units of a passage that an answer quotes: sentences, table rows, and lists with their first line.

A unit has a `lead`, the text above it that it belongs to: headings, a question, a line that ends in a
colon, the header of a table. A heading, a question or a label alone answers nothing.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ingest.chunk import CLAUSE, Span, Table, cells, in_words, is_row, short_sentences, tables, trim
from ingest.normalize import one_line

LONGEST_GROUP = 1200
"""Characters of a question with its answer, or of a line with its list."""
LONGEST_CAPTION = 60
LONGEST_CELL = 100
"""Characters that are shown of a cell."""
LONGEST_ANSWER = 150
"""Characters that are shown of one unit; its citation quotes the whole."""
ASKS = re.compile(r"[?？][”’」』）)\"'*]*$")
_LEADS = re.compile(r"[：:][*]*$|(?:如下|以下|下列)[^，。]{0,15}[。.]$")
ITEM = re.compile(r"\s*(?:[（(]?[一二三四五六七八九十\d]{1,3}[.、．)）]|[-*+•●◆■○▪]\s|[①-⑳])", re.ASCII)
STOP = re.compile(r"[。！!；;.…][”’」』）)\"']*$")
_LABEL = re.compile(r"\W*(?:q(?:uestion)?|问题?)\s*\d*\s*[:：.、]", re.IGNORECASE)
ANSWERER = re.compile(r"^(?:答案?|a|answer|回答|回复)\s*[:：]\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Unit:
    """Characters [start, end) of a passage.

    `names` are the columns of a row. `parts` are the members of a group: the answer below a question,
    or the line before a list and its items. `answers` is false for what is no answer on its own.
    """

    start: int
    end: int
    lead: str = ""
    names: tuple[str, ...] = ()
    parts: tuple[Span, ...] = ()
    answers: bool = True


def units(text: str, headings: Collection[str] = (), header: str = "") -> list[Unit]:
    """The units of a passage in order; a group follows the line that it begins with.

    `headings` are the headings and the title of its document; `header` is that of a table that began
    before the passage.
    """
    spans = [part for span in short_sentences(text) for part in _cut_at_headings(text, span, headings)]
    in_table = tables(text, header)
    found: list[Unit] = []
    heading, lead, members, caption = "", None, list[Unit](), ""

    def close() -> None:
        """Add the group of `lead` and its members; a lead alone answers if it says more than a label."""
        if not lead:
            return
        line, asks = text[lead.start : lead.end], bool(ASKS.search(text[lead.start : lead.end]))
        if members and not members[0].names:
            parts = tuple((m.start, m.end) for m in (members if asks else (lead, *members)))
            found.append(Unit(lead.start, members[-1].end, heading, (), parts))
        elif not asks and lead in found and len(list(CLAUSE.finditer(line))) > 1:
            found[found.index(lead)] = replace(lead, answers=True)

    for span in spans:
        start, end = span
        line = text[start:end]
        gap = "\n\n" in text[members[-1].end : start] if members else False
        row = _row(text, span, in_table)
        asks, leads = bool(ASKS.search(line)), bool(_LEADS.search(line))
        around = text[text.rfind("\n", 0, start) + 1 : (text.find("\n", end) + 1 or len(text) + 1) - 1]
        title = around.strip("#* ") in headings and not row
        item = bool(ITEM.match(line)) or bool(row)
        size = end - lead.start if lead else 0
        if lead and (title or asks or size > LONGEST_GROUP or (members and not item and (gap or leads))):
            close()
            lead, members = None, []
        if title:
            heading = around.strip("#* ")
        above = text[lead.start : lead.end] if lead else ""
        above = "" if row and len(above) > LONGEST_CAPTION else above
        context = "\n".join(part for part in (heading, above) if part and part != line)
        unit = Unit(start, end, context, answers=not (title or asks or leads))
        if row:
            if found and not found[-1].names and not caption:
                caption = "\n".join(_caption(text, found))
            unit = replace(unit, names=row, lead=f"{context}\n{caption}", answers=True)
        else:
            caption = ""
        found.append(unit)
        # A question is answered by what follows only if it has the form of a FAQ: otherwise any text
        # that repeats a question could put its own words below it.
        faq = (
            title
            or around.startswith("#")
            or _LABEL.match(line)
            or ITEM.match(line)
            or ANSWERER.match(text[end:].lstrip())
        )
        if ((asks and faq) or leads) and not row and not (lead and item):
            close()
            lead, members = unit, []
        elif lead:
            members.append(unit)
    close()
    return found


def _cut_at_headings(text: str, span: Span, headings: Collection[str]) -> list[Span]:
    """The parts of a sentence before, in and after its lines that are headings, which have no stop."""
    start, end = span
    lines = (m for m in re.finditer(r"[^\n]+", text[start:end]) if m[0].strip("#* ") in headings)
    bounds = [start, *(start + at for line in lines for at in line.span()), end]
    parts = (trim(text, *pair) for pair in pairwise(bounds))
    return [part for part in parts if part[0] < part[1]]


def _row(text: str, span: Span, in_table: Sequence[Table]) -> tuple[str, ...]:
    """The names of the columns, if the span is a row of a table with as many cells."""
    line = text[slice(*span)]
    table = next((t for t in in_table if t.start < span[0] < t.end), None)
    if not table or not is_row(line):
        return ()
    names = cells(table.header)
    return tuple(names) if len(names) == len(cells(line)) else ()


def _caption(text: str, found: list[Unit]) -> Iterator[str]:
    """The short lines without a stop before a table, at most two; they are no answers."""
    for k in range(len(found) - 1, max(-1, len(found) - 3), -1):
        line = text[found[k].start : found[k].end]
        if found[k].names or found[k].parts or len(line) > LONGEST_CAPTION or re.search("[，,。]", line):
            break
        found[k] = replace(found[k], answers=found[k].answers and bool(re.search("[：:].", line)))
        yield line


def records(names: Sequence[str]) -> list[slice]:
    """The parts of a row that are rows of their own: a header may repeat, as in `序号 | 名称 | 序号 | 名称`."""
    count = len(names)
    for size in range(2, count // 2 + 1):
        if count % size == 0 and list(names) == list(names[:size]) * (count // size):
            return [slice(start, start + size) for start in range(0, count, size)]
    return [slice(0, count)]


def words_of(text: str, unit: Unit) -> str:
    """The unit as one line of words."""
    line = text[unit.start : unit.end]
    return in_words(unit.names, cells(line)) if unit.names else one_line(line)


def list_shown(text: str, unit: Unit) -> str:
    """The members of a group on one line, as many as fit, at least two."""
    lines = [ANSWERER.sub("", one_line(text[start:end])) for start, end in unit.parts]
    shown = lines[0]
    for number, line in enumerate(lines[1:], start=1):
        if number > 1 and len(shown) + len(line) > LONGEST_ANSWER:
            return f"{shown} …"
        shown += ("" if re.search(r"[\u3000-\u9fff\uff00-\uffef]$", shown) else " ") + line
    return shown
