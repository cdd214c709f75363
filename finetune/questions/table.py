"""Rows of tables -> what one of their cells says of the thing that the row is about."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from finetune.synth.pair import Pair, Section, ended
from ingest.sentences import Span
from rag.score_norm import script_of

LONGEST_HEADER = 24
LONGEST_KEY = 60
LONGEST_CELL = 160

_ROW = re.compile(r"(?m)^\|.*\|[ \t]*$")
_RULE = re.compile(r"^\|[\s|:-]+\|\s*$")
_NUMBER = re.compile(r"[\s\d.,:%+/\\-]*")
_HEADER = re.compile(r"[^\W\d_]{2}")
_NO_CELL = re.compile(r"https?://|```|\*\*|[:：]$|\\n|Traceback|\[\d|<[a-z/]+>|\.{3}$|…$")
_NO_FACT = re.compile(
    r"^(?:id|no|index|urls?|links?|files?|paths?|序号|链接|网址)$|^是否", re.IGNORECASE
)
_PERSON = re.compile(r"(?:者|负责人|联系人|姓名|经理|主任|导演)$")
_TITLED = re.compile(r"(?:题目|标题|书名|篇名|片名)$")
_COUNTS = re.compile(r"^[+-]?[\d.,]+\s*(?:%|[\u4e00-\u9fff]{1,3}|[A-Za-z]{1,4})?$")


@dataclass(frozen=True, slots=True)
class Row:
    cells: tuple[str, ...]
    place: Span


def tables(section: Section) -> Iterator[Pair]:
    for header, rows in _tables(section):
        key = _key(header, rows)
        if key is not None:
            for row in rows:
                yield from _cells_of(section, header, key, row)


def _tables(section: Section) -> Iterator[tuple[tuple[str, ...], list[Row]]]:
    """Headers and the rows under each, a table that began before the passage first."""
    lines = list(_ROW.finditer(section.text))
    header = _split(section.header) if section.header else ()
    rows: list[Row] = []
    for at, line in enumerate(lines):
        if _RULE.match(line[0]):
            continue
        if at + 1 < len(lines) and _RULE.match(lines[at + 1][0]):
            yield header, rows
            header, rows = _split(line[0]), []
            continue
        cells = _split(line[0])
        if len(cells) == len(header):
            rows.append(Row(cells, line.span()))
    yield header, rows


def _split(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.strip().strip("|").split("|"))


def _key(header: Sequence[str], rows: Sequence[Row]) -> int | None:
    """The first column that names what its row is about: words, none of them twice."""
    for column, name in enumerate(header):
        cells = [row.cells[column] for row in rows]
        if (
            rows
            and _named(name)
            and all(0 < len(cell) <= LONGEST_KEY for cell in cells)
            and len(set(cells)) == len(cells)
            and not any(_NUMBER.fullmatch(cell) or _NO_CELL.search(cell) for cell in cells)
        ):
            return column
    return None


def _named(header: str) -> bool:
    bare = header.strip(" :：")
    return (
        bare == header
        and len(header) <= LONGEST_HEADER
        and bool(_HEADER.search(header))
        and not re.search(r"[\d`|]", header)
    )


def _cells_of(section: Section, header: Sequence[str], key: int, row: Row) -> Iterator[Pair]:
    of = row.cells[key]
    for column, (name, cell) in enumerate(zip(header, row.cells, strict=True)):
        if column == key or not _named(name) or not 0 < len(cell) <= LONGEST_CELL:
            continue
        if _NO_FACT.search(name):
            continue
        if _NO_CELL.search(cell) or re.fullmatch(r"[\W_]*", cell):
            continue
        han = script_of(f"{of} {cell}") == "han"
        question = (_asked if han else _asked_latin)(section, header[key], of, name, cell)
        colon, between = ("：", "；") if han else (": ", "; ")
        reply = ended(f"{header[key]}{colon}{of}{between}{name}{colon}{cell}")
        yield from section.pair("table", question, cell, reply, row.place)


def _asked(section: Section, kind: str, of: str, name: str, cell: str) -> str:
    where = f"{section.named}中，" if section.named else ""
    asks = "是多少" if _COUNTS.match(cell) else "是谁" if _PERSON.search(name) else "是什么"
    if _TITLED.search(kind):
        return f"{where}《{of}》的{name}{asks}"
    # A word of Chinese says itself what it is; `as` and `!=` do not.
    if re.fullmatch(r"[\u4e00-\u9fff·]{2,12}", of):
        return f"{where}{of}的{name}{asks}"
    if len(of) <= 12 and of.isascii():
        return f"{where}{kind} {of} 的{name}{asks}"
    return f"{where}{kind}为“{of}”时，{name}{asks}"


def _asked_latin(section: Section, kind: str, of: str, name: str, cell: str) -> str:
    if re.search(r"[?!:]$", of):
        return ""
    name = name.lower() if name.istitle() else name
    where = f"According to {section.named}, what" if section.named else "What"
    return f"{where} is the {name} of {of}"
