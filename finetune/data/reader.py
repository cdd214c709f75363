"""Files of training data -> their records, one at a time: JSON arrays, JSON lines, CSV.

What a file is, its content says, not its name (but for CSV). Its encoding is judged once, from the
whole file; a record with bytes that fit it not, or that is no JSON, becomes a bad `Finding`.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from finetune.types import Finding
from ingest.encoding import Detected, detect
from ingest.errors import UserError
from ingest.i18n import Translatable, readable

PIECE = 1 << 16  # characters read at a time
TRIED = 20  # lines, of which one must be JSON
_UNFINISHED = 16  # characters before the end in which an error may only mean "cut here"
BLANKS = " \t\n\r"
_BLANK = re.compile(f"[{BLANKS}]*")
_LOST = re.compile("[\udc80-\udcff]")


class Decoder:
    """JSON -> values; `twice` is a key that an object of the last one has twice, or None."""

    def __init__(self) -> None:
        self.twice: str | None = None
        self._json = json.JSONDecoder(object_pairs_hook=self._object)

    def whole(self, text: str) -> Any:
        """The value that the text is; `ValueError` where it is none."""
        self.twice = None
        return self._json.decode(text)

    def part(self, text: str, at: int) -> tuple[Any, int]:
        """The value that begins at a place, and where it ends; `ValueError` where there is none."""
        self.twice = None
        return self._json.raw_decode(text, at)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            seen: set[str] = set()
            self.twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        return made


@dataclass(frozen=True, slots=True)
class Record:
    """A JSON value and where it stands: `file.json:17`, as a person counts."""

    source: str
    value: Any


def records(path: Path, name: str = "") -> Iterator[Record | Finding]:
    """The records of a file in order.

    `name:17` is the 17th record of an array, the 17th line (also counting blank ones) of a file of
    lines, the 17th row (also counting the header) of a table. An array that breaks off ends in one
    finding. `UserError` where the file is missing, empty, not text, or of none of these forms.
    """
    name = name or path.name
    if not path.is_file():
        if path.is_dir():
            raise UserError("{path} is a folder; need a file of training data", path=path)
        raise UserError("{path} is missing; need a file of training data", path=path)
    detected = detect(path, name=name)
    head = _first(path, detected)
    if not head:
        raise UserError("{path} is empty", path=path)
    read = _table if path.suffix.lower() == ".csv" else _array if head == "[" else _lines
    with _open(path, detected) as stream:
        yield from read(stream, name, detected)


def _open(path: Path, detected: Detected) -> io.TextIOWrapper:
    """The text of a file with \\n at its line ends; undecodable bytes are lone surrogates, in
    UTF-16 and UTF-32 U+FFFD."""
    raw = path.open("rb")
    raw.seek(detected.skip)
    wide = detected.encoding.startswith(("utf-16", "utf-32"))
    return io.TextIOWrapper(raw, detected.encoding, "replace" if wide else "surrogateescape")


def _first(path: Path, detected: Detected) -> str:
    """The first character that is not blank, or ""."""
    with _open(path, detected) as stream:
        while piece := stream.read(PIECE):
            if head := piece.lstrip(" \t\n"):
                return head[0]
    return ""


def _lines(stream: io.TextIOWrapper, name: str, detected: Detected) -> Iterator[Record | Finding]:
    decoder = Decoder()
    read = (
        _line(line, f"{name}:{number}", detected, decoder)
        for number, line in enumerate(stream, 1)
        if line.strip()
    )
    head = list(islice(read, TRIED))
    if not any(isinstance(item, Record) for item in head):
        raise UserError(
            "{name} is neither a JSON array, nor a JSON object on each line, nor .csv; an object "
            "over several lines becomes an array if [ and ] are put around it",
            name=name,
        )
    yield from head
    yield from read


def _line(line: str, source: str, detected: Detected, decoder: Decoder) -> Record | Finding:
    if lost := _lost(line, detected):
        return undecoded(source, lost, detected)
    try:
        value = decoder.whole(line)
    except json.JSONDecodeError as error:
        return _broken(source, Translatable("column {colno}", colno=error.colno), _why(error))
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits; [[[[…
        return _broken(source, Translatable("this line"), _why(error))
    return _twice(source, decoder.twice) if decoder.twice is not None else Record(source, value)


def _array(stream: io.TextIOWrapper, name: str, detected: Detected) -> Iterator[Record | Finding]:
    """Record by record; at most one, and the piece it ends in, is held."""
    window = _Window(stream)
    window.take("[")
    number = 0 if window.take("]") else 1
    while number:
        source = f"{name}:{number}"
        start = window.at
        try:
            value = window.value()
        except (ValueError, RecursionError) as error:
            at = error.pos if isinstance(error, json.JSONDecodeError) else start
            yield _ended(source, *window.place(at), _why(error))
            return
        if lost := _lost(window.text[start : window.at], detected):
            yield undecoded(source, lost, detected)
        elif window.decoder.twice is not None:
            yield _twice(source, window.decoder.twice)
        else:
            yield Record(source, value)
        if window.take("]"):
            break
        number += 1
        if not window.take(","):
            yield _ended(f"{name}:{number}", *window.place(window.at), "Expecting ',' or ']'")
            return
    if window.rest():
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
        """The JSON value at hand, behind blanks; `ValueError` where there is none."""
        self.rest()
        while True:
            try:
                value, end = self.decoder.part(self.text, self.at)
            except json.JSONDecodeError as error:
                near = len(self.text) - error.pos <= _UNFINISHED
                if not (near or error.msg.startswith("Unterminated")) or not self._more():
                    raise
                continue
            # A number may go on: of 1e+16 the 1 is one too.
            if end + len("e+") < len(self.text) or not self._more():
                self.at = end
                return value

    def take(self, sign: str) -> bool:
        """Go behind blanks and the sign, if that is what comes."""
        taken = self.rest() and self.text[self.at] == sign
        self.at += taken
        return taken

    def rest(self) -> bool:
        """Go behind blanks; whether anything is left."""
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
        """Drop what is behind, read at least as much as is held (so that a long record costs only
        its length); whether there was more."""
        piece = self.stream.read(max(PIECE, len(self.text) - self.at))
        if piece:
            line, column = self.place(self.at)
            self.lines, self.column = line - 1, column - 1
            self.text, self.at = self.text[self.at :] + piece, 0
        return bool(piece)


def _table(stream: io.TextIOWrapper, name: str, detected: Detected) -> Iterator[Record | Finding]:
    rows = csv.reader(stream, strict=True)
    header: list[str] = []
    number = 0
    try:
        for number, cells in enumerate(rows, 1):
            source = f"{name}:{number}"
            if not header:
                header = [cell.strip() for cell in cells]
            elif lost := sum(_lost(cell, detected) for cell in cells):
                yield undecoded(source, lost, detected)
            elif cells and len(cells) != len(header):
                yield Finding(
                    source,
                    "broken",
                    Translatable(
                        "the row has {cells_count} cells, the header {header_count}",
                        cells_count=len(cells),
                        header_count=len(header),
                    ),
                    bad=True,
                )
            elif cells:
                yield Record(source, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        yield _ended(f"{name}:{number + 1}", rows.line_num, 1, str(error))


def _lost(text: str, detected: Detected) -> int:
    """Characters of `text` that stand for undecodable bytes."""
    if not detected.replaced:
        return 0
    return len(_LOST.findall(text)) + text.count("\ufffd") * detected.encoding.startswith("utf-")


def undecoded(source: str, lost: int, detected: Detected) -> Finding:
    return Finding(
        source,
        "encoding",
        Translatable(
            "{lost} bytes are not {encoding}, the file's encoding",
            lost=lost,
            encoding=detected.encoding,
        ),
        bad=True,
    )


def _twice(source: str, key: str) -> Finding:
    return Finding(
        source,
        "broken",
        Translatable(
            '"{key}" stands twice in this row, of which one would be lost; keep one',
            key=readable(key),
        ),
        bad=True,
    )


def _broken(source: str, place: Translatable, what: str) -> Finding:
    return Finding(
        source,
        "broken",
        Translatable("not JSON at {place} ({what})", place=place, what=what),
        bad=True,
    )


def _ended(source: str, line: int, column: int, what: str) -> Finding:
    return Finding(
        source,
        "ended",
        Translatable(
            "the file breaks at line {line}, column {column} ({what}); nothing from this row on "
            "can be read",
            line=line,
            column=column,
            what=what,
        ),
        bad=True,
    )


def _why(error: Exception) -> str:
    """Python's reason, without the place that it ends in."""
    text = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    return re.sub(r"( starting)? at$", "", text)
