"""CSV and JSON: one row or record after the other, each with its number as a mark."""

import csv
import itertools
import json
from collections.abc import Iterable, Iterator

from ingest.errors import Unreadable
from ingest.parse.blocks import Block, mark, table
from ingest.types import Mark

CELLS = 1000  # columns read of one row; more is no table for people
FIELD = 10_000_000  # characters of one cell
_DELIMITERS = ",;\t|，；"
_SAMPLE = 50  # lines from which the delimiter is told


def csv_blocks(pieces: Iterable[str], *, name: str, warn: list[str]) -> Iterator[Block]:
    """Rows as a table under the first row; row numbers are those of a spreadsheet, from 1."""
    csv.field_size_limit(FIELD)
    lines = _lines(pieces)
    sample = list(itertools.islice(lines, _SAMPLE))
    delimiter = "\t" if name.endswith(".tsv") else _delimiter(sample)
    numbers: list[int] = []
    rows = csv.reader(itertools.chain(sample, lines), delimiter=delimiter)
    return table(_rows(rows, name, numbers, warn), numbers=_latest(numbers))


def _rows(
    rows: "Iterable[list[str]]", name: str, numbers: list[int], warn: list[str]
) -> Iterator[list[str]]:
    wide = False
    iterator = iter(rows)
    for number in itertools.count(1):
        try:
            row = next(iterator, None)
        except csv.Error as error:
            raise Unreadable(
                "{name} is not a table: row {number}: {error}",
                name=name,
                number=number,
                error=error,
            ) from error
        if row is None:
            return
        if len(row) > CELLS and not wide:
            wide = True
            warn.append(f"row {number} has {len(row)} columns; only the first {CELLS} are read")
        numbers[:] = [number]
        yield row[:CELLS]


def _latest(numbers: list[int]) -> Iterator[int]:
    while True:
        yield numbers[0]


def _lines(pieces: Iterable[str]) -> Iterator[str]:
    rest = ""
    for piece in pieces:
        *whole, rest = (rest + piece).split("\n")
        yield from (line + "\n" for line in whole)
    if rest:
        yield rest


def _delimiter(sample: list[str]) -> str:
    """The character that gives most lines the same number, above one, of cells."""

    def agreement(delimiter: str) -> tuple[int, int]:
        counts = [len(row) for row in csv.reader(sample, delimiter=delimiter) if row]
        width = max(set(counts), key=counts.count, default=1)
        return (counts.count(width), width) if width > 1 else (0, 0)

    return max(_DELIMITERS, key=agreement)


def json_blocks(text: str, *, name: str, warn: list[str]) -> Iterator[Block]:
    """The records of a JSON text: the items of a list (also of a list alone in an object), or the
    whole value."""
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        yield from _jsonl_or_refuse(text, name, error, warn)
        return
    if (
        isinstance(value, dict)
        and len(value) == 1
        and isinstance(only := next(iter(value.values())), list)
    ):
        value = only
    if isinstance(value, list):
        for number, record in enumerate(value, 1):
            yield from _record(record, number)
    else:
        yield Block("\n".join(_flat(value)))


def jsonl_blocks(pieces: Iterable[str], *, name: str, warn: list[str]) -> Iterator[Block]:
    """One record a line; a line that is no JSON is named in `warn` and left out."""
    bad = good = last = 0
    for number, line in enumerate(_lines(pieces), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            bad += 1
            last = number
            continue
        good += 1
        yield from _record(record, number)
    if bad and not good:
        raise Unreadable(
            "{name} is not JSON Lines: none of its {bad} lines is JSON", name=name, bad=bad
        )
    if bad:
        warn.append(f"{bad} lines are not JSON, the last is line {last}")


def _jsonl_or_refuse(text: str, name: str, error: Exception, warn: list[str]) -> Iterator[Block]:
    """JSON Lines under the name .json is common; anything else is refused with the place."""
    first = text.lstrip().split("\n", 1)[0]
    try:
        json.loads(first)
    except (json.JSONDecodeError, RecursionError):
        raise Unreadable("{name} is not JSON: {error}", name=name, error=error) from error
    yield from jsonl_blocks([text], name=name, warn=warn)


def _record(record: object, number: int) -> Iterator[Block]:
    text = "\n".join(_flat(record))
    if text.strip():
        yield Block(text, (Mark(0, "row", f"row {number}"),))


def _flat(value: object, path: str = "") -> Iterator[str]:
    """`key: value` lines; nested keys are joined by dots, short lists stay on one line."""
    stack: list[tuple[str, object]] = [(path, value)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, dict):
            stack += [(f"{path}.{k}" if path else str(k), v) for k, v in reversed(value.items())]
        elif isinstance(value, list) and all(not isinstance(item, dict | list) for item in value):
            if any(isinstance(item, str) and len(item) > 40 for item in value):
                stack += [(path, item) for item in reversed(value)]
            elif value:
                yield _pair(path, ", ".join(map(_word, value)))
        elif isinstance(value, list):
            stack += [(path, item) for item in reversed(value)]
        elif value is not None and value != "":
            yield _pair(path, _word(value))


def _pair(path: str, text: str) -> str:
    return f"{path}: {text}" if path else text


def _word(value: object) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def sheet_blocks(name: str, rows: Iterable[list[str]], *, first: int = 1) -> Iterator[Block]:
    """A sheet: its name as a mark, its rows as a table."""
    yield mark("sheet", name)
    yield from table(rows, numbers=itertools.count(first))
