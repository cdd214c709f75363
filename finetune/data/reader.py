"""Files of training data -> their records, one at a time: JSON arrays, JSON lines, CSV.

The content of a file decides what it is, not its name (except for CSV). Its encoding is detected
once, from the whole file; a record with bytes that don't fit it, or that is not JSON, becomes a bad
`Finding`.
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
from ingest.encoding import Detected, detect
from ingest.errors import UserError
from ingest.i18n import Translatable
from ingest.normalize import readable

READ_SIZE = 1 << 16  # characters read at a time
HEAD_LINES = 20  # one of so many first lines must be JSON
_UNFINISHED = 16  # an error in the last so many characters may only mean that the text was cut
LONGEST_CELL = 2**31 - 1  # characters; Python's own limit is 131,072
BLANKS = " \t\n\r"
_BLANK = re.compile(f"[{BLANKS}]*")
_LOST = re.compile("[\udc80-\udcff]")


class Decoder:
    """JSON -> values. `repeated_key` is one that an object of the last value has twice, or None."""

    def __init__(self) -> None:
        self.repeated_key: str | None = None
        self._json = json.JSONDecoder(object_pairs_hook=self._object)

    def whole(self, text: str) -> Any:
        """The value that the text is; raises `ValueError` if it is not one."""
        self.repeated_key = None
        return self._json.decode(text)

    def part(self, text: str, at: int) -> tuple[Any, int]:
        """The value that begins at `at`, and where it ends; raises `ValueError` if there is none."""
        self.repeated_key = None
        return self._json.raw_decode(text, at)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            seen: set[str] = set()
            self.repeated_key = next(key for key, _ in pairs if key in seen or seen.add(key))
        return value


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
        head = ""
        while not head and (text := stream.read(READ_SIZE)):
            head = text.lstrip(" \t\n")[:1]
    if not head:
        raise UserError("{path} is empty", path=path)
    with _open(path, detected) as stream:
        values = head == "[" or (head == "{" and _Window(stream).is_over_lines())
    read = _table if path.suffix.lower() == ".csv" else _array if values else _lines
    with _open(path, detected) as stream:
        yield from read(stream, name, detected)


def _open(path: Path, detected: Detected) -> io.TextIOWrapper:
    """The text of a file with \\n at its line ends; undecodable bytes are lone surrogates, in
    UTF-16 and UTF-32 U+FFFD."""
    raw = path.open("rb")
    raw.seek(detected.skip)
    wide = detected.encoding.startswith(("utf-16", "utf-32"))
    return io.TextIOWrapper(raw, detected.encoding, "replace" if wide else "surrogateescape")


def _lines(stream: io.TextIOWrapper, name: str, detected: Detected) -> Iterator[Record | Finding]:
    decoder = Decoder()
    read = (
        _line(line, f"{name}:{number}", detected, decoder)
        for number, line in enumerate(stream, 1)
        if line.strip()
    )
    head = list(islice(read, HEAD_LINES))
    if not any(isinstance(item, Record) for item in head):
        raise UserError(
            "{name} is neither a JSON array, nor a JSON object on each line, nor .csv; an object "
            "over several lines becomes an array if [ and ] are put around it",
            name=name,
        )
    yield from head
    yield from read


def _line(line: str, source: str, detected: Detected, decoder: Decoder) -> Record | Finding:
    try:
        _check_bytes(_lost(line, detected), detected)
        return _record(source, decoder.whole(line), decoder)
    except InvalidRow as invalid:
        return invalid.finding(source)
    except (ValueError, RecursionError) as error:  # also a number of 5,000 digits; [[[[…
        place = Translatable("this line")
        if isinstance(error, json.JSONDecodeError):
            place = Translatable("column {colno}", colno=error.colno)
        text = Translatable("not JSON at {place} ({what})", place=place, what=_reason(error))
        return Finding(source, "broken", text, bad=True)


def _array(stream: io.TextIOWrapper, name: str, detected: Detected) -> Iterator[Record | Finding]:
    """Record by record; at most one, and the text that was read with its end, is held.

    Without brackets the values follow each other, with or without commas.
    """
    window = _Window(stream)
    bracket = window.take("[")
    number = 0 if bracket and window.take("]") else 1
    while number:
        source = f"{name}:{number}"
        start = window.at
        try:
            value = window.value()
        except (ValueError, RecursionError) as error:
            at = error.pos if isinstance(error, json.JSONDecodeError) else start
            yield _ended(source, *window.place(at), _reason(error))
            return
        try:
            _check_bytes(_lost(window.text[start : window.at], detected), detected)
            yield _record(source, value, window.decoder)
        except InvalidRow as invalid:
            yield invalid.finding(source)
        if window.take("]") if bracket else not window.skip_blanks():
            break
        number += 1
        if not window.take(",") and bracket:
            yield _ended(f"{name}:{number}", *window.place(window.at), "Expecting ',' or ']'")
            return
    if window.skip_blanks():
        source = f"{name}:{number + 1}"
        yield _ended(source, *window.place(window.at), "more text after the array")


class _Window:
    """A part of a text that moves over it; `at` is the place in the part."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self.stream, self.text, self.at = stream, "", 0
        self.decoder = Decoder()
        self.lines = 0
        self.column = 0  # of what is before the part, in its last line

    def value(self) -> Any:
        """The JSON value that comes next, after blanks; raises `ValueError` if there is none."""
        self.skip_blanks()
        while True:
            try:
                value, end = self.decoder.part(self.text, self.at)
            except json.JSONDecodeError as error:
                near = len(self.text) - error.pos <= _UNFINISHED
                if not (near or error.msg.startswith("Unterminated")) or not self._more():
                    raise
                continue
            # A number may continue: the 1 of 1e+16 is one too.
            if end + len("e+") < len(self.text) or not self._more():
                self.at = end
                return value

    def is_over_lines(self) -> bool:
        """Whether the value that comes next is whole, and has line ends in it."""
        self.skip_blanks()
        first, _ = self.place(self.at)
        with suppress(ValueError, RecursionError):
            self.value()
            return self.place(self.at)[0] > first
        return False

    def take(self, sign: str) -> bool:
        """Move past blanks and the sign, if it comes next."""
        is_next = self.skip_blanks() and self.text[self.at] == sign
        self.at += is_next
        return is_next

    def skip_blanks(self) -> bool:
        """Move past blanks; whether any text is left."""
        while True:
            if self.at < len(self.text) and self.text[self.at] not in BLANKS:
                return True
            found = _BLANK.match(self.text, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.text):
                return True
            if not self._more():
                return False

    def place(self, at: int) -> tuple[int, int]:
        """Line and column of a place in the part, from 1."""
        before = self.text[:at]
        last = before.rfind("\n")
        column = at - last if last >= 0 else self.column + at + 1
        return self.lines + before.count("\n") + 1, column

    def _more(self) -> bool:
        """Drop the text before `at` and read at least as much as is held (so that a long record
        takes time in proportion to its length); whether there was more."""
        text = self.stream.read(max(READ_SIZE, len(self.text) - self.at))
        if text:
            line, column = self.place(self.at)
            self.lines, self.column = line - 1, column - 1
            self.text, self.at = self.text[self.at :] + text, 0
        return bool(text)


def _table(stream: io.TextIOWrapper, name: str, detected: Detected) -> Iterator[Record | Finding]:
    csv.field_size_limit(LONGEST_CELL)
    rows = csv.reader(stream, strict=True)
    header: list[str] = []
    number = 0
    try:
        for number, cells in enumerate(rows, 1):
            source = f"{name}:{number}"
            if not header:
                header = [cell.strip() for cell in cells]
                continue
            try:
                _check_bytes(sum(_lost(cell, detected) for cell in cells), detected)
                if cells and len(cells) != len(header):
                    raise InvalidRow(
                        "the row has {cells_count} cells, the header {header_count}",
                        "broken",
                        cells_count=len(cells),
                        header_count=len(header),
                    )
                if cells:
                    yield Record(source, dict(zip(header, cells, strict=True)))
            except InvalidRow as invalid:
                yield invalid.finding(source)
    except csv.Error as error:
        yield _ended(f"{name}:{number + 1}", rows.line_num, 1, str(error))


def _lost(text: str, detected: Detected) -> int:
    """Characters of `text` that stand for undecodable bytes."""
    if not detected.replaced:
        return 0
    return len(_LOST.findall(text)) + text.count("\ufffd") * detected.encoding.startswith("utf-")


def _check_bytes(lost: int, detected: Detected) -> None:
    """Raises `InvalidRow` if undecodable bytes were lost."""
    if lost:
        raise InvalidRow(
            "{lost} bytes are not {encoding}, the file's encoding",
            "encoding",
            lost=lost,
            encoding=detected.encoding,
        )


def _record(source: str, value: Any, decoder: Decoder) -> Record:
    """The value that was decoded last; raises `InvalidRow` if it has a key twice."""
    if (key := decoder.repeated_key) is not None:
        raise InvalidRow(
            'the key "{key}" occurs twice in this row, and one value would be lost; keep one',
            "broken",
            key=readable(key),
        )
    return Record(source, value)


def _ended(source: str, line: int, column: int, what: str) -> Finding:
    text = Translatable(
        "the file breaks at line {line}, column {column} ({what}); nothing from this row on can be read",
        line=line,
        column=column,
        what=what,
    )
    return Finding(source, "ended", text, bad=True)


def _reason(error: Exception) -> str:
    """Python's reason, without the place that it ends in."""
    text = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    return re.sub(r"( starting)? at$", "", text)
