"""Tables in a document's text: rows `| a | b |` below a header row and a rule, as `ingest.parse` writes
them. A row reads as words with the names of its columns."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

# Header row, rule, rows. Group 1 is the header.
_TABLE = re.compile(r"(?m)^(\|.*\|)[ \t]*\n\|(?:\s*:?-+:?\s*\|)+[ \t]*(?:\n|$)(?:\|.*(?:\n|$))*")
_ROWS = re.compile(r"(?:\|.*(?:\n|$))+")
_ROW = re.compile(r"\|.*\|\s*")
_RULE = re.compile(r"\|[\s|:-]+\|\s*")
_LINE = re.compile(r"(?m)^\|.*\|[ \t]*$")


@dataclass(frozen=True, slots=True)
class Table:
    """The span of a table in a text, and the header row that belongs before each of its rows."""

    start: int
    end: int
    header: str


def tables(text: str, header: str = "") -> list[Table]:
    """The tables of `text`; `header` is that of a table that continues here from the text before."""
    rows = _ROWS.match(text) if header else None
    first = [Table(-1, rows.end(), header)] if rows else []
    start = rows.end() if rows else 0
    return first + [Table(m.start(), m.end(), m[1]) for m in _TABLE.finditer(text, start)]


def is_row(line: str) -> bool:
    return bool(_ROW.fullmatch(line)) and not _RULE.fullmatch(line)


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def in_words(names: Sequence[str], row: Sequence[str]) -> str:
    """`姓名：张三；年龄：30`; if the first column has no name, `营业收入：本期 12；上期 10`."""
    pairs = [(name, cell) for name, cell in zip(names, row, strict=True) if cell]
    if pairs and row[0] and not names[0] and any(name for name, _ in pairs):
        rest = (f"{name} {cell}".strip() for name, cell in pairs[1:])
        return f"{row[0]}：{'；'.join(rest)}".strip("：")
    return "；".join(f"{name}：{cell}" if name and name != cell else cell for name, cell in pairs)


def text_in_words(text: str, header: str = "") -> str:
    """`text` with the rows of its tables in words, below their header; `header` is that of a table that
    began earlier."""
    spans = tables(text, header)

    def words(line: re.Match[str]) -> str:
        table = next((t for t in spans if t.start <= line.start() < t.end), None)
        if not table or line.start() == table.start or not is_row(line[0]):
            return line[0]
        names, row = cells(table.header), cells(line[0])
        return in_words(names, row) if len(names) == len(row) else line[0]

    return _LINE.sub(words, text)
