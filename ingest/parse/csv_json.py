"""CSV and JSON: one row or record after the other, each with its number as a mark."""

import csv
import itertools
import json
import re
from collections.abc import Iterable, Iterator

from ingest.errors import Unreadable
from ingest.i18n import Translatable
from ingest.parse.blocks import Block
from ingest.parse.sheet import CELLS, Row, SheetLayout, faq_blocks, faq_columns, filled
from ingest.types import Mark

FIELD = 10_000_000  # characters of one cell
_DELIMITERS = ",;\t|，；"
_SEPARATOR = re.compile(r"[\"']?sep=(.)[\"']?\s*$", re.IGNORECASE)
_INVALID = object()
_SAMPLE = 50  # lines from which the delimiter is guessed


def csv_blocks(pieces: Iterable[str], *, name: str, warn: list[str]) -> Iterator[Block]:
    """Rows as a table under the first row; row numbers are those of a spreadsheet, from 1."""
    csv.field_size_limit(FIELD)
    lines = _lines(pieces)
    sample = list(itertools.islice(lines, _SAMPLE))
    first = 1
    if sample and (match := _SEPARATOR.match(sample[0])):  # a line for Excel
        delimiter, first = match[1], 2
        del sample[0]
    else:
        delimiter = "\t" if name.endswith(".tsv") else _delimiter(sample)
    rows = csv.reader(itertools.chain(sample, lines), delimiter=delimiter)
    numbers = itertools.count(first)
    return SheetLayout().blocks(
        filled(
            Row(number, {at: cell for at, cell in enumerate(row) if cell.strip()})
            for number, row in zip(numbers, _rows(rows, name, warn), strict=False)
        )
    )


def _rows(rows: Iterator[list[str]], name: str, warn: list[str]) -> Iterator[list[str]]:
    widest = CELLS  # so that one warning is given
    number = 0
    try:
        for number, row in enumerate(rows, 1):
            if len(row) > CELLS >= widest:
                widest = len(row)
                note = Translatable(
                    "row {row} has {columns} columns; only the first {most} are read",
                    row=number,
                    columns=widest,
                    most=CELLS,
                )
                warn.append(note)
            yield row[:CELLS]
    except csv.Error as error:
        raise Unreadable(
            "{name} is not a table: row {row}: {error}", name=name, row=number + 1, error=error
        ) from error


def _lines(pieces: Iterable[str]) -> Iterator[str]:
    rest = ""
    for piece in pieces:
        *complete, rest = (rest + piece).split("\n")
        yield from (line + "\n" for line in complete)
    if rest:
        yield rest


def _delimiter(sample: list[str]) -> str:
    """The character that cuts most lines into the same number of cells, more than one."""

    def agreement(delimiter: str) -> tuple[int, int]:
        counts = [len(row) for row in csv.reader(sample, delimiter=delimiter) if row]
        width = max(set(counts), key=counts.count, default=1)
        return (counts.count(width), width) if width > 1 else (0, 0)

    return max(_DELIMITERS, key=agreement)


def json_blocks(text: str, *, name: str, warn: list[str]) -> Iterator[Block]:
    """The records of a JSON text: the items of a list (even if it is the only value of an object),
    or the whole value. JSON Lines in a file called .json are common, so they are read too."""
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        if _loads(text.lstrip().split("\n", 1)[0]) is _INVALID:
            raise Unreadable("{name} is not JSON: {error}", name=name, error=error) from error
        yield from jsonl_blocks([text], name=name, warn=warn)
        return
    only = [*value.values()] if isinstance(value, dict) else []
    if len(only) == 1 and isinstance(only[0], list):
        value = only[0]
    if isinstance(value, list):
        for number, record in enumerate(value, 1):
            yield from _record(record, number)
    else:
        yield Block("\n".join(_flat(value)))


def jsonl_blocks(pieces: Iterable[str], *, name: str, warn: list[str]) -> Iterator[Block]:
    """One record a line; lines that are not JSON are left out, with a warning."""
    bad = good = last = 0
    for number, line in enumerate(_lines(pieces), 1):
        if not line.strip():
            continue
        if (record := _loads(line)) is _INVALID:
            bad, last = bad + 1, number
            continue
        good += 1
        yield from _record(record, number)
    if bad and not good:
        raise Unreadable("{name} is not JSON Lines: none of its {bad} lines is JSON", name=name, bad=bad)
    if bad:
        note = Translatable("{bad} lines are not JSON, the last is line {last}", bad=bad, last=last)
        warn.append(note)


def _loads(line: str) -> object:
    try:
        return json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        return _INVALID


def _record(record: object, number: int) -> Iterator[Block]:
    if isinstance(record, dict) and (faq := faq_columns(list(map(str, record)))):
        cells = ["\n".join(_flat(value)) for value in record.values()]
        if cells[faq[0]] and cells[faq[1]]:
            yield from faq_blocks(list(map(str, record)), cells, faq, number)
            return
    text = "\n".join(_flat(record))
    if text.strip():
        yield Block(text, (Mark(0, "row", f"row {number}"),))


def _flat(value: object) -> Iterator[str]:
    """`key: value` lines; nested keys are joined by dots, short lists stay on one line."""
    stack: list[tuple[str, object]] = [("", value)]
    while stack:
        path, value = stack.pop()
        prefix = f"{path}: " if path else ""
        if isinstance(value, dict):
            stack += [(f"{path}.{k}" if path else str(k), v) for k, v in reversed(value.items())]
        elif isinstance(value, list):
            if any(isinstance(v, dict | list) or (isinstance(v, str) and len(v) > 40) for v in value):
                stack += [(path, item) for item in reversed(value)]
            elif value:
                yield prefix + ", ".join(map(_word, value))
        elif value is not None and value != "":
            yield prefix + _word(value)


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
