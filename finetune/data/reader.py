"""Files of training data -> their records: JSON arrays, JSON lines, CSV.

The content of a file decides what it is, not its name (except for CSV). Its encoding is detected
once, from the whole file; a record with bytes that don't fit it, or that is not JSON, becomes a bad
`Finding`. Lines and tables are read one record at a time; the text of an array is held in memory.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from finetune.types import Finding, InvalidRow
from ingest.encoding import Detection, detect
from ingest.errors import UserError
from ingest.i18n import Translatable
from ingest.normalize import readable

HEAD_LINES = 20  # one of so many first lines must be JSON
LONGEST_CELL = 2**31 - 1  # characters; Python's own limit is 131,072
_BLANKS = re.compile(r"[ \t\n\r]*")
_LOST = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class Record:
    """A JSON value and its place: `file.json:17`, as a person counts."""

    source: str
    value: Any


def records(path: Path, name: str = "") -> Iterator[Record | Finding]:
    """The records of a file in order.

    `name:17` is the 17th record of an array, the 17th line (also counting blank ones) of a file of
    lines, the 17th row (also counting the header) of a table. An array that breaks off ends in one
    finding. Raises `UserError` if the file is missing, empty, not text, or of none of these forms.
    """
    name = name or path.name
    if path.is_dir():
        raise UserError("{path} is a folder; need a file of training data", path=path)
    if not path.is_file():
        raise UserError("{path} is missing; need a file of training data", path=path)
    detected = detect(path, name=name)
    with _open(path, detected) as stream:
        head = next(filter(str.strip, stream), "").lstrip()
    if not head:
        raise UserError("{path} is empty", path=path)
    with _open(path, detected) as stream:
        if path.suffix.lower() == ".csv":
            yield from _table(stream, name, detected)
        # An object over several lines begins with a line that is not JSON. So does a file of lines
        # whose first line is broken.
        elif head[0] == "[" or (head[0] == "{" and not _has_value(head)):
            text = stream.read()
            read = _array if head[0] == "[" or _has_value(text) else _lines
            yield from read(text, name, detected)
        else:
            yield from _lines(stream, name, detected)


def _open(path: Path, detected: Detection) -> io.TextIOWrapper:
    """The text of a file with \\n at its line ends; undecodable bytes are lone surrogates, in
    UTF-16 and UTF-32 U+FFFD."""
    raw = path.open("rb")
    raw.seek(detected.skip)
    wide = detected.encoding.startswith(("utf-16", "utf-32"))
    return io.TextIOWrapper(raw, detected.encoding, "replace" if wide else "surrogateescape")


def _lines(text: str | io.TextIOWrapper, name: str, detected: Detection) -> Iterator[Record | Finding]:
    lines = enumerate(text.split("\n") if isinstance(text, str) else text, 1)
    read = (_line(line, f"{name}:{number}", detected) for number, line in lines if line.strip())
    head = list(islice(read, HEAD_LINES))
    if not any(isinstance(item, Record) for item in head):
        raise UserError(
            "{name} is neither a JSON array, nor a JSON object on each line, nor .csv; an object "
            "over several lines becomes an array if [ and ] are put around it",
            name=name,
        )
    yield from head
    yield from read


def _line(line: str, source: str, detected: Detection) -> Record | Finding:
    try:
        value, end = _value(line, 0)
        if end < len(line):
            raise json.JSONDecodeError("Extra data", line, end)
    except json.JSONDecodeError as error:
        what = _reason(error)
        value = InvalidRow("not JSON at column {colno} ({what})", "broken", colno=error.colno, what=what)
    return _item(source, value, line, detected)


def _array(text: str, name: str, detected: Detection) -> Iterator[Record | Finding]:
    number = 0
    try:
        for number, (value, raw) in enumerate(_values(text), 1):
            yield _item(f"{name}:{number}", value, raw, detected)
    except json.JSONDecodeError as error:
        yield _ended(f"{name}:{number + 1}", error.lineno, error.colno, _reason(error))


def _values(text: str) -> Iterator[tuple[Any, str]]:
    """The values of an array and their text; raises `JSONDecodeError` where it breaks.

    Without brackets the values follow each other, with or without commas.
    """
    at = _skip_blanks(text, 0)
    bracket = text.startswith("[", at)
    at = _skip_blanks(text, at + bracket)
    is_end = bracket and text.startswith("]", at)
    while not is_end:
        start = at
        value, at = _value(text, start)
        yield value, text[start:at]
        is_end = text.startswith("]", at) if bracket else at == len(text)
        comma = text.startswith(",", at)
        if bracket and not (comma or is_end):
            raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
        at = _skip_blanks(text, at + comma)
    if bracket and (at := _skip_blanks(text, at + 1)) < len(text):
        raise json.JSONDecodeError("more text after the array", text, at)


def _value(text: str, at: int) -> tuple[Any, int]:
    """The JSON value at `at` or after blanks, and where the blanks after it end.

    An `InvalidRow` stands for a value with a key that occurs twice. Raises `JSONDecodeError`.
    """
    at = _skip_blanks(text, at)
    try:
        try:
            value, end = _UNIQUE.raw_decode(text, at)
        except InvalidRow as invalid:
            value, end = invalid, json.JSONDecoder().raw_decode(text, at)[1]
    except (ValueError, RecursionError) as error:  # also a number of 5,000 digits; [[[[…
        if isinstance(error, json.JSONDecodeError):
            raise
        raise json.JSONDecodeError(str(error), text, at) from error
    return value, _skip_blanks(text, end)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        key = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise InvalidRow(
            'the key "{key}" occurs twice in this row, and one value would be lost; keep one',
            "broken",
            key=readable(key),
        )
    return value


_UNIQUE = json.JSONDecoder(object_pairs_hook=_object)


def _has_value(text: str) -> bool:
    with suppress(json.JSONDecodeError):
        _value(text, 0)
        return True
    return False


def _skip_blanks(text: str, at: int) -> int:
    """Where the blanks that begin at `at` end."""
    found = _BLANKS.match(text, at)
    return found.end() if found else at


def _table(stream: io.TextIOWrapper, name: str, detected: Detection) -> Iterator[Record | Finding]:
    csv.field_size_limit(LONGEST_CELL)
    rows = csv.reader(stream, strict=True)
    numbered = enumerate(rows, 1)
    number = 0
    try:
        header = next(([cell.strip() for cell in cells] for number, cells in numbered if cells), [])
        for number, cells in numbered:
            value: Any = dict(zip(header, cells, strict=False))
            if len(cells) != len(header):
                value = InvalidRow(
                    "the row has {cells_count} cells, the header {header_count}",
                    "broken",
                    cells_count=len(cells),
                    header_count=len(header),
                )
            if cells:
                yield _item(f"{name}:{number}", value, "".join(cells), detected)
    except csv.Error as error:
        yield _ended(f"{name}:{number + 1}", rows.line_num, 1, str(error))


def _item(source: str, value: Any, raw: str, detected: Detection) -> Record | Finding:
    """The record of a value that was read from the text `raw`; a finding if the value is an
    `InvalidRow`, or if bytes of the text were lost."""
    lost = 0
    if detected.replaced:
        lost = len(_LOST.findall(raw)) + raw.count("\ufffd") * detected.encoding.startswith("utf-")
    if lost:
        value = InvalidRow(
            "{lost} bytes are not {encoding}, the file's encoding",
            "encoding",
            lost=lost,
            encoding=detected.encoding,
        )
    return value.finding(source) if isinstance(value, InvalidRow) else Record(source, value)


def _ended(source: str, line: int, column: int, what: str) -> Finding:
    text = Translatable(
        "the file breaks at line {line}, column {column} ({what}); nothing from this row on can be read",
        line=line,
        column=column,
        what=what,
    )
    return Finding(source, "ended", text, bad=True)


def _reason(error: json.JSONDecodeError) -> str:
    """Python's reason, without the place that it ends in."""
    return re.sub(r"( starting)? at$", "", error.msg)
