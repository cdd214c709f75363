"""Workbooks, row by row: .xlsx, .xls, .ods and SpreadsheetML 2003. Cells read as they are shown; what is
hidden is left out and reported."""

import io
import re
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError, XMLPullParser, iterparse

from ingest.files import DAMAGE, damaged, locked
from ingest.i18n import Translatable
from ingest.parse.blocks import Block
from ingest.parse.number_format import BUILTIN, Formulas, column, general, show
from ingest.parse.opc import Package, attributes, local, open_document, open_package
from ingest.parse.sheet import CELLS, Row, filled, sheet_blocks

_PIECE = 1 << 20
_MERGED = re.compile(rb'<(?:\w+:)?mergeCell [^>]*?ref="([A-Z]+)(\d+):([A-Z]+)(\d+)"')
_FORMULA = re.compile(  # a formula that has no value, in a cell with these attributes
    rb"<(?:\w+:)?c\b([^>]*)>\s*<(?:\w+:)?f\b[^>]*(?:/>|>[^<]*</(?:\w+:)?f>)\s*(?:<(?:\w+:)?v\s*/>|<(?:\w+:)?v>\s*</(?:\w+:)?v>)?\s*</(?:\w+:)?c>"
)
_CHARACTER = re.compile("_x([0-9A-F]{4})_")
_HIDDEN = "hidden"
_STRUCTURE = {  # of SpreadsheetML and of OpenDocument
    *("Style", "Column", "Row", "Visible", "Worksheet"),
    *("style", "table-column", "table-row", "table"),
}
_NAMED_FORMATS = {  # of SpreadsheetML
    **{"General Date": 22, "Long Date": 31, "Medium Date": 15, "Short Date": 14, "Long Time": 21},
    **{"Medium Time": 18, "Short Time": 20, "Fixed": 2, "Standard": 4, "Percent": 10, "Scientific": 11},
    **{"Currency": 4, "Euro Currency": 4},
}


@dataclass(slots=True)
class Sheet:
    """A sheet while it is read: `notes` and `hidden_columns` are complete up to the current row."""

    name: str
    rows: Iterable[Row]
    hidden: bool = False
    part: str = ""
    hidden_columns: set[int] = field(default_factory=set)
    notes: dict[int, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))


@dataclass(slots=True)
class Omissions:
    """What is not in the text of a workbook."""

    hidden: list[str] = field(default_factory=list)
    wide: dict[str, None] = field(default_factory=dict)
    formulas: int = 0
    computed: int = 0

    def watch(self, sheet: Sheet) -> Iterator[Row]:
        """The rows of a sheet; what is hidden or too far to the right is noted."""
        rows = 0
        for row in sheet.rows:
            rows += row.hidden and any(row.cells.values())
            if row.cells and max(row.cells) >= CELLS:
                self.wide[sheet.name] = None
                row.cells = {column: text for column, text in row.cells.items() if column < CELLS}
            yield row
        name, columns = sheet.name, len(sheet.hidden_columns)
        if rows or columns:
            self.hidden.append(
                Translatable(
                    "{sheet} ({rows} rows, {columns} columns)", sheet=name, rows=rows, columns=columns
                )
            )

    def warnings(self) -> Iterator[str]:
        if self.wide:
            sheets = list(self.wide)[:10]
            yield Translatable(
                "only the first {most} columns are read of {sheets}", most=CELLS, sheets=sheets
            )
        if self.hidden:
            yield Translatable("hidden and left out: {places}", places=self.hidden[:10])
        if self.computed:
            yield Translatable("{count} formulas had no stored value and were computed", count=self.computed)
        if self.formulas:
            yield Translatable(
                "{count} formulas have no value; save the file in a spreadsheet program first",
                count=self.formulas,
            )


def workbook_blocks(path: Path, kind: str, *, warn: list[str]) -> Iterator[Block]:
    """The sheets of an .xlsx, .xls or .ods file that are not hidden."""
    reader: Callable[[Path, Omissions], Iterator[Sheet]] = {"xlsx": _xlsx, "xls": _xls, "ods": _ods}[kind]
    omissions = Omissions()
    yield from _shown(reader(path, omissions), path.name, omissions, warn)


def spreadsheetml_blocks(pieces: Iterable[str], *, name: str, warn: list[str]) -> Iterator[Block]:
    """The sheets of a workbook in one XML file, as Excel 2003 writes it."""
    omissions = Omissions()
    yield from _shown(_xml_sheets(_elements(pieces), omissions), name, omissions, warn)


def _shown(sheets: Iterator[Sheet], name: str, omissions: Omissions, warn: list[str]) -> Iterator[Block]:
    try:
        for sheet in sheets:
            if sheet.hidden:
                omissions.hidden.append(sheet.name)
            else:
                rows = filled(omissions.watch(sheet), sheet.hidden_columns, warn)
                yield from sheet_blocks(sheet.name, rows, sheet.notes)
    except (ParseError, LookupError, struct.error, AssertionError, *DAMAGE) as error:
        raise damaged(name, error) from error
    warn += omissions.warnings()


def _xlsx(path: Path, omissions: Omissions) -> Iterator[Sheet]:
    with open_package(path) as package:
        book = next(iter(package.related("", "officeDocument")), "")
        root, parts = package.xml(book), package.relations(book)
        sheets = [
            Sheet(e.get("name", ""), (), e.get("state", "visible") != "visible", part)
            for e in root.iter()
            if local(e) == "sheet"
            for kind, part in (parts.get(next((v for k, v in e.items() if k.endswith("}id")), ""), ("", "")),)
            if kind == "worksheet"
        ]
        shown = [sheet for sheet in sheets if not sheet.hidden]
        scans = {sheet.part: _scan(package, sheet.part) for sheet in shown}
        omissions.formulas = sum(formulas for _, formulas in scans.values())
        places = dict(parts.values())
        date1904 = any(e.get("date1904") in ("1", "true") for e in root.iter())
        strings = list(_strings(package, places.get("sharedStrings", "")))
        texts = CellTexts(_formats(package, places.get("styles", "")), strings, date1904)
        for sheet in shown:
            for kind in ("comments", "threadedComment"):
                for place in sorted(package.related(sheet.part, kind)):
                    _read_comments(package.xml(place), sheet)
            spans, formulas = scans[sheet.part]
            sheet.rows = _rows(package, sheet, texts, spans, omissions if formulas else None)
        yield from sheets


Spans = dict[int, list[tuple[int, int, int]]]
"""Row -> the merged cells that begin in it."""


def _scan(package: Package, part: str) -> tuple[Spans, int]:
    """The merged cells, which a sheet names after its rows, and how many formulas have no value."""
    spans: Spans = defaultdict(list)
    formulas, rest = 0, b""
    with package.stream(part) as stream:
        while piece := stream.read(_PIECE):
            rest += piece
            end = max(rest.rfind(b"</c>") + 4, rest.rfind(b"/>") + 2) if len(rest) < 64 * _PIECE else 0
            complete, rest = rest[:end], rest[end:] if end else b""
            formulas += sum(b't="str"' not in match[1] for match in _FORMULA.finditer(complete))
            for left, top, right, bottom in _MERGED.findall(complete):
                span = column(left.decode()), column(right.decode()), int(bottom)
                spans[int(top)].append(span)
    return spans, formulas


def _read_comments(root: Element, sheet: Sheet) -> None:
    """The comments of a part; those of a conversation replace the copy for older programs."""
    found: dict[tuple[int, int], list[str]] = defaultdict(list)
    for comment in (e for e in root.iter() if local(e) in ("comment", "threadedComment")):
        if match := re.fullmatch(r"([A-Z]+)(\d+)", comment.get("ref", "")):
            text = "".join(e.text or "" for e in comment.iter() if local(e) in ("t", "text"))
            found[int(match[2]), column(match[1])].append(text)
    for (row, at), texts in found.items():
        sheet.notes[row][at] = " ".join(texts)


def _formats(package: Package, part: str) -> list[str]:
    """The format of each cell style."""
    if part not in package:
        return []
    root = package.xml(part)
    codes = {e.get("numFmtId", ""): e.get("formatCode", "") for e in root.iter() if local(e) == "numFmt"}
    styles = next((e for e in root if local(e) == "cellXfs"), ())
    keys = [style.get("numFmtId", "0") for style in styles]
    return [codes.get(k) or BUILTIN.get(int(k) if k.isdecimal() else 0, "General") for k in keys]


def _strings(package: Package, part: str) -> Iterator[str]:
    if part not in package:
        return
    with package.stream(part) as stream:
        events = iterparse(stream, events=("start", "end"))
        root = next(events)[1]
        for event, element in events:
            if event == "end" and local(element) == "si":
                yield _rich(element)
                root.clear()


def _rich(element: Element) -> str:
    """The text of a string or of its parts, without the reading of Japanese words."""
    parts = [t for child in element for t in (child if local(child) == "r" else (child,))]
    text = "".join(part.text or "" for part in parts if local(part) == "t")
    return _CHARACTER.sub(lambda code: chr(int(code[1], 16)), text) if "_x" in text else text


@dataclass(frozen=True, slots=True)
class CellTexts:
    """What a cell of an .xlsx file shows."""

    formats: list[str]
    strings: list[str]
    date1904: bool

    def __call__(self, kind: str, style: str, value: str) -> str:
        if kind == "s":
            return self.strings[int(value)] if int(value) < len(self.strings) else ""
        if kind == "b":
            return "TRUE" if value == "1" else "FALSE"
        if kind == "d":
            return value.removesuffix("T00:00:00").replace("T", " ")
        if kind != "n":
            return value
        at = int(style)
        code = self.formats[at] if at < len(self.formats) else "General"
        try:
            number = float(value)
        except ValueError:
            return value
        return general(number) if code == "General" else show(number, code, date1904=self.date1904)


def _rows(
    package: Package, sheet: Sheet, texts: CellTexts, spans: Spans, omissions: Omissions | None
) -> Iterator[Row]:
    """With `omissions`, formulas without a value are computed."""
    number, formulas = 0, Formulas() if omissions else None
    with package.stream(sheet.part) as stream:
        parent = Element("none")
        for event, element in iterparse(stream, events=("start", "end")):
            name = local(element)
            if event == "start":
                parent = element if name == "sheetData" else parent
            elif name == "row":
                number = int(element.get("r", number + 1))
                hidden = element.get("hidden") in ("1", "true")
                cells = _cells(element, number, texts, formulas)
                yield Row(number, cells, spans.get(number, []), hidden)
                parent.clear()
            elif name == "col" and element.get("hidden") in ("1", "true"):
                last = min(int(element.get("max", 0)), CELLS)
                sheet.hidden_columns |= set(range(int(element.get("min", 1)) - 1, last))
    if omissions and formulas:
        omissions.computed += formulas.computed
        omissions.formulas -= formulas.computed


def _cells(row: Element, number: int, texts: CellTexts, formulas: Formulas | None) -> dict[int, str]:
    cells: dict[int, str] = {}
    at = -1
    for cell in row:
        reference = cell.get("r")
        at = column(reference.rstrip("0123456789")) if reference else at + 1
        kind, value, formula = cell.get("t", "n"), "", ""
        for child in cell:
            if (name := local(child)) == "v":
                value = child.text or ""
            elif name == "f":
                formula = child.text or ""
            elif name == "is":
                cells[at] = _rich(child)
        if formulas:
            value = formulas.value((number, at), kind, value, formula)
        if value:
            cells[at] = texts(kind, cell.get("s", "0"), value)
    return cells


def _xls(path: Path, omissions: Omissions) -> Iterator[Sheet]:
    import xlrd
    from xlrd.biffh import XLRDError

    options = ("formatting_info", "on_demand", "ragged_rows", "ignore_workbook_corruption")
    try:
        book = xlrd.open_workbook(str(path), logfile=io.StringIO(), **dict.fromkeys(options, True))
    except XLRDError as error:
        raise (locked(path.name) if "encrypted" in str(error) else damaged(path.name, error)) from error
    formats = [book.format_map[xf.format_key].format_str for xf in book.xf_list]
    for index, name in enumerate(book.sheet_names()):
        source = book.sheet_by_index(index)
        sheet = Sheet(name, _xls_rows(source, formats, book.datemode == 1), source.visibility != 0)
        sheet.hidden_columns |= {
            at for at, info in source.colinfo_map.items() if info.hidden and at < source.ncols
        }
        for (row, at), note in source.cell_note_map.items():
            sheet.notes[row + 1][at] = note.text
        yield sheet
        book.unload_sheet(index)


def _xls_rows(source: Any, formats: list[str], date1904: bool) -> Iterator[Row]:
    import xlrd

    spans: Spans = defaultdict(list)
    for top, bottom, left, right in source.merged_cells:
        spans[top + 1].append((left, right - 1, bottom))
    for number in range(source.nrows):
        cells: dict[int, str] = {}
        for at, cell in enumerate(source.row(number)):
            match cell.ctype:
                case xlrd.XL_CELL_TEXT:
                    cells[at] = cell.value
                case xlrd.XL_CELL_NUMBER | xlrd.XL_CELL_DATE:
                    cells[at] = show(cell.value, formats[cell.xf_index], date1904=date1904)
                case xlrd.XL_CELL_BOOLEAN:
                    cells[at] = "TRUE" if cell.value else "FALSE"
                case xlrd.XL_CELL_ERROR:
                    cells[at] = xlrd.error_text_from_code.get(cell.value, "#N/A")
        info = source.rowinfo_map.get(number)
        yield Row(number + 1, cells, spans.get(number + 1, []), bool(info and info.hidden))


def _ods(path: Path, omissions: Omissions) -> Iterator[Sheet]:
    with open_document(path) as package, package.stream("content.xml") as stream:
        yield from _xml_sheets((element for _, element in iterparse(stream)), omissions)


def _elements(pieces: Iterable[str]) -> Iterator[Element]:
    """The elements of a text, each when it ends."""
    parser = XMLPullParser(["end"])
    for piece in pieces:
        if "<!ENTITY" in piece:
            raise ValueError(Translatable("{part} defines XML entities", part="XML"))
        parser.feed(piece)
        events: Any = parser.read_events()
        yield from (element for _, element in events)
    parser.close()


def _xml_sheets(elements: Iterator[Element], omissions: Omissions) -> Iterator[Sheet]:
    """The sheets of OpenDocument and of SpreadsheetML, which differ in the names of things."""
    styles: dict[str, str] = {}  # name -> format of a cell, or _HIDDEN
    sheet, rows = Sheet("", ()), list[Row]()
    number = at = 0
    for element in elements:
        if (tag := local(element)) not in _STRUCTURE:
            continue
        values = attributes(element)
        hidden = values.get("Hidden") == "1" or values.get("visibility") in ("collapse", "filter")
        if tag in ("Style", "style"):
            for inner in map(attributes, element):
                code = inner.get("Format", "") if inner.get("display") != "false" else _HIDDEN
                styles[values.get("ID") or values.get("name", "")] = code
        elif tag in ("Column", "table-column"):
            at = int(values.get("Index", at + 1)) - 1
            last = at + int(values.get("number-columns-repeated", int(values.get("Span", 0)) + 1))
            sheet.hidden_columns |= set(range(at, min(last, CELLS))) if hidden else set()
            at = last
        elif tag in ("Row", "table-row"):
            number = int(values.get("Index", number + 1))
            row = Row(number, {}, [], hidden)
            _xml_cells(element, row, styles, sheet, omissions)
            repeated = int(values.get("number-rows-repeated", int(values.get("Span", 0)) + 1))
            copies = repeated if row.cells or hidden else 1
            rows += (replace(row, number=number + copy, cells={**row.cells}) for copy in range(copies))
            number += repeated - 1
            element.clear()
        elif tag == "Visible":
            sheet.hidden = element.text != "SheetVisible"
        elif tag in ("Worksheet", "table"):
            sheet.name, sheet.rows = values.get("Name") or values.get("name", ""), rows
            sheet.hidden = sheet.hidden or styles.get(values.get("style-name", "")) == _HIDDEN
            yield sheet
            sheet, rows, number, at = Sheet("", ()), [], 0, 0
            element.clear()


def _xml_cells(
    element: Element, row: Row, styles: dict[str, str], sheet: Sheet, omissions: Omissions
) -> None:
    at = 0
    spans: list[tuple[int, int, int]] = []
    for cell in (e for e in element if local(e) in ("Cell", "table-cell", "covered-table-cell")):
        values = attributes(cell)
        at = int(values.get("Index", at + 1)) - 1
        wide = int(values.get("MergeAcross", int(values.get("number-columns-spanned", 1)) - 1))
        tall = int(values.get("MergeDown", int(values.get("number-rows-spanned", 1)) - 1))
        if wide > 0 or tall > 0:
            spans.append((at, at + wide, row.number + tall))
        texts = (("".join(_spaced(p)) if len(p) else p.text or "") for p in cell if local(p) == "p")
        text = "\n".join(texts)
        text = text or values.get("value", "") or values.get("date-value", "")
        for inner in cell:
            kind = local(inner)
            if kind == "Data":
                style = values.get("StyleID") or attributes(element).get("StyleID", "")
                data_type = attributes(inner).get("Type", "")
                text = _xml_text("".join(inner.itertext()), data_type, styles.get(style, ""))
            elif kind in ("Comment", "annotation"):
                words = (e for e in inner.iter() if local(e) in ("p", "Data"))
                note = " ".join("".join(word.itertext()) for word in words)
                sheet.notes[row.number][at] = note
        lacks = not text and ("Formula" in values or "formula" in values) and "value-type" not in values
        omissions.formulas += lacks
        repeated = int(values.get("number-columns-repeated", 1))
        if text and local(cell) != "covered-table-cell":
            row.cells |= dict.fromkeys(range(at, at + min(repeated, CELLS + 1)), text)
        at += repeated if repeated > 1 or ("Index" not in values and local(cell) != "Cell") else wide + 1
    row.spans = spans


def _spaced(paragraph: Element) -> Iterator[str]:
    """The text of a paragraph; several spaces, tabs and line ends are elements."""
    for element in paragraph.iter():
        yield " " if local(element) in ("s", "tab", "line-break") else element.text or ""
        yield (element.tail or "") if element is not paragraph else ""


def _xml_text(text: str, kind: str, code: str) -> str:
    number = _NAMED_FORMATS.get(code)
    code = BUILTIN[number] if number else code
    if kind == "Number" and text.strip():
        return show(float(text), code or "General")
    if kind == "DateTime":
        moment = datetime.fromisoformat(text.strip()).replace(tzinfo=None)
        days = (moment - datetime(1899, 12, 30)).total_seconds() / 86400
        return show(days, code or BUILTIN[14 if days % 1 == 0 else 22])
    return ("FALSE", "TRUE")[text.strip() == "1"] if kind == "Boolean" else text
