"""Word documents: paragraphs, headings, numbering, tables, text boxes, notes, comments, drawings."""

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from xml.etree.ElementTree import Element

from ingest.i18n import Translatable
from ingest.parse.blocks import Block, Inner, chinese_heading, clean, comment, heading
from ingest.parse.notation import equation, scripts, symbol
from ingest.parse.opc import REL, Package, local, open_package, walk, whole_number
from ingest.parse.pdf import Pictures
from ingest.parse.pptx import drawing_blocks
from ingest.parse.sheet import Row, text_table

W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_DIGITS = "零一二三四五六七八九"
_ROMAN = {
    **{1000: "M", 900: "CM", 500: "D", 400: "CD", 100: "C", 90: "XC", 50: "L", 40: "XL"},
    **{10: "X", 9: "IX", 5: "V", 4: "IV", 1: "I"},
}


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a list: number format, pattern such as 第%1章, first number."""

    form: str
    pattern: str
    start: int


class Numbering:
    """Counts the paragraphs of each list as Word does when it draws them."""

    def __init__(self, root: Element | None) -> None:
        self._lists: dict[str, tuple[str, dict[int, Level]]] = {}
        self._counts: dict[str, dict[int, int]] = {}
        if root is None:
            return
        lists = root.iter(W + "abstractNum")
        abstract = {each.get(W + "abstractNumId", ""): _levels(each) for each in lists}
        for number in root.iter(W + "num"):
            key, name = _value(number, "abstractNumId"), number.get(W + "numId", "")
            own = _levels(number)
            self._lists[name] = f"{name}*" if own else key, abstract.get(key, {}) | own

    def label(self, place: tuple[str, int]) -> str:
        """The number of the next paragraph at `(list, level)`; - for a bullet, empty for none."""
        key, level = place
        counter, levels = self._lists.get(key, ("", {}))
        if level not in levels:
            return ""
        counts = self._counts.setdefault(counter, {})
        counts[level] = counts.get(level, levels[level].start - 1) + 1
        for deeper in [other for other in counts if other > level]:
            del counts[deeper]
        here = levels[level]
        if here.form in ("bullet", "none"):
            return "-" if here.form == "bullet" else ""

        def number(match: re.Match[str]) -> str:
            at = int(match[1]) - 1
            shown = levels.get(at, here)
            return spell(counts.get(at, shown.start), shown.form)

        return re.sub(r"%([1-9])", number, here.pattern).strip()


def _levels(element: Element) -> dict[int, Level]:
    levels = {}
    for level in element.iter(W + "lvl"):
        form, start = _value(level, "numFmt", "decimal"), whole_number(_value(level, "start", "1"))
        levels[whole_number(level.get(W + "ilvl"))] = Level(form, _value(level, "lvlText"), start)
    return levels


def _value(element: Element | None, tag: str, default: str = "") -> str:
    """The `w:val` of the child `tag`."""
    child = None if element is None else element.find(W + tag)
    return default if child is None else child.get(W + "val", default)


def spell(number: int, form: str) -> str:
    """A number in one of Word's formats; unknown ones are written in digits."""
    if number < 1 or number > 9999:
        return str(number)
    if re.match("(chinese|japanese|taiwanese)Counting", form):
        return _chinese(number)
    if form == "ideographDigital":
        return "".join("〇一二三四五六七八九"[int(digit)] for digit in str(number))
    if form in ("upperLetter", "lowerLetter", "upperRoman", "lowerRoman"):
        letters = chr(ord("A") + (number - 1) % 26) * ((number - 1) // 26 + 1)
        text = _roman(number) if form.endswith("Roman") else letters
        return text.lower() if form.startswith("lower") else text
    if form.startswith("decimalEnclosedCircle") and number <= 20:
        return chr(0x2460 + number - 1)
    if form == "ideographTraditional" and number <= 10:
        return "甲乙丙丁戊己庚辛壬癸"[number - 1]
    return str(number)


def _chinese(number: int) -> str:
    """10 is 十, 21 is 二十一, 105 is 一百零五."""
    digits = zip(f"{number:04}", ("千", "百", "十", ""), strict=True)
    text = "".join(_DIGITS[int(digit)] + (unit if digit != "0" else "") for digit, unit in digits)
    text = re.sub("零+", "零", text).strip("零")
    return text.removeprefix("一") if text.startswith("一十") else text


def _roman(number: int) -> str:
    text = ""
    for value, letters in _ROMAN.items():
        text += letters * (number // value)
        number %= value
    return text


_STYLE_NAME = re.compile(r"(?:heading|标题|標題)\s*([1-9])", re.IGNORECASE)
_NOTES = {f"{kind}Reference": f"{kind}s" for kind in ("footnote", "endnote", "comment")}
_NOT_TEXT = frozenset(("txbxContent", "del", "moveFrom", "instrText", "delText", "pPr"))
_FONT = {"vanish", "strike", "dstrike", "b", "vertAlign", "rFonts"}
_OFF = ("0", "false", "off", "none")
_HEX = re.compile("[0-9A-Fa-f]{1,4}")
_SYMBOLS = re.compile("[\uf020-\uf0ff]")
_VALUE = re.compile(r"[:：]\s*\S|[。；;！!]$|^[\W\d年月日]+$")  # no heading: it has a value, or is a sentence
_LONGEST = 40  # characters of a heading in plain bold
_BOLD = 0.4  # of the paragraphs; bold is no sign of a heading where more are bold


def word_blocks(path: Path, *, pictures: Pictures, warn: list[str], inner: Inner) -> Iterator[Block]:
    with open_package(path) as package:
        main = next(iter(package.related("", "officeDocument")), "word/document.xml")
        document = Word(package, main, pictures, inner)
        yield from document.blocks(document.root)
        yield from document.margins()
        warn += document.warnings
        if document.hidden:
            warn.append(
                Translatable("hidden or struck text is left out: {count} places", count=document.hidden)
            )


Font = dict[str, str]
"""Properties of characters: name -> value."""


@dataclass(frozen=True, slots=True)
class Style:
    """A paragraph style's heading rank (0 for none), its list id and level, and its font."""

    rank: int = 0
    numbering: tuple[str, int] | None = None
    font: Font = field(default_factory=dict)


class Word:
    def __init__(self, package: Package, main: str, pictures: Pictures, inner: Inner) -> None:
        self.package, self.pictures, self.inner = package, pictures, inner
        self.relations = package.relations(main)
        self.parts = dict(self.relations.values())
        self.styles = self._styles()
        self.numbering = Numbering(
            package.xml(self.parts["numbering"]) if "numbering" in self.parts else None
        )
        self.root = package.xml(main)
        self.hidden = 0  # runs of hidden or struck text
        self.warnings: list[str] = []
        self.rank = 0  # of the last heading by style or numbering
        self.begun = False
        self.sample = "".join(islice(self.root.itertext(), 5000))
        self.notes = {kind: self._note_texts(kind) for kind in _NOTES.values()}
        self.bold_headings = self._bold_is_rare()

    def blocks(self, root: Element, tables: list[Element] | None = None) -> Iterator[Block]:
        """Paragraphs and tables below `root` in order; the tables are only collected in `tables` if
        that is given."""
        for element in walk(root, frozenset(("p", "tbl", "sectPr"))):
            name = local(element)
            if name == "p":
                yield from self._paragraph(element)
            elif name == "tbl" and tables is not None:
                tables.append(element)
            elif name == "tbl":
                yield from self._table(element)
            elif name == "altChunk":
                _, part = self.relations.get(element.get(REL + "id", ""), ("", ""))
                if part in self.package:
                    yield from self.inner(self.package.read(part), posixpath.basename(part), part=True)

    def margins(self) -> Iterator[Block]:
        """The distinct texts of page headers and footers, without page numbers."""
        seen: set[str] = set()
        for kind, part in self.relations.values():
            if kind in ("header", "footer"):
                for block in self.blocks(self.package.xml(part)):
                    if block.text not in seen and re.search(r"[^\W\d_]{2}", block.text):
                        seen.add(block.text)
                        yield Block(block.text)

    def _paragraph(self, element: Element) -> Iterator[Block]:
        style = self._style(element)
        text = clean(self._text(element, style))
        if text:
            label = self.numbering.label(style.numbering) if style.numbering else ""
            if label and not text.startswith(label):
                text = f"{label} {text}"
            found = (text, style.rank) if style.rank and len(text) <= 120 else chinese_heading(text)
            if found:
                self.rank = found[1]
            elif self.bold_headings and label != "-" and self._is_heading(element, style, text):
                found = text, max(self.rank, self.begun) + 1  # the first line is the title
            self.begun = True
            yield heading(*found) if found else Block(text, (), bool(label))
        for part in walk(element, frozenset(("txbxContent",))):
            name = local(part)
            if name == "txbxContent":
                yield from self.blocks(part)
            elif name in _NOTES:
                if note := self.notes[_NOTES[name]].pop(part.get(W + "id", ""), ""):
                    yield Block(note)
            elif name in ("blip", "imagedata"):
                reference = part.get(REL + "embed") or part.get(REL + "id") or ""
                yield from self._picture(reference)
            elif name in ("chart", "relIds"):
                yield from drawing_blocks(self.package, part, self.relations)

    def _style(self, element: Element) -> Style:
        properties = element.find(W + "pPr")
        style = self.styles.get(_value(properties, "pStyle"), self.styles.get("", Style()))
        rank, numbering = _rank(properties), _numbering(properties)
        return Style(style.rank if rank is None else rank, numbering or style.numbering, style.font)

    def _text(self, paragraph: Element, style: Style) -> str:
        pieces: list[tuple[str, str]] = []
        for element in walk(paragraph, _NOT_TEXT | {"r", "oMath"}):
            name = local(element)
            if name == "oMath":
                pieces.append(("", equation(element)))
            elif name == "r":
                font = self._font(element, style)
                if any(font.get(one, "0") not in _OFF for one in ("vanish", "strike", "dstrike")):
                    self.hidden += element.find(W + "t") is not None
                elif text := _run_text(element, font.get("rFonts", "")):
                    pieces.append((font.get("vertAlign", ""), text))
        plain = not any(align for align, _ in pieces)
        return ("".join(text for _, text in pieces) if plain else scripts(pieces)).strip("\t")

    def _font(self, run: Element, style: Style) -> Font:
        properties = run.find(W + "rPr")
        if properties is None:
            return style.font
        own = self.styles.get(_value(properties, "rStyle"))
        return style.font | (own.font if own else {}) | _font(properties)

    def _is_bold(self, paragraph: Element, style: Style) -> bool:
        runs = [r for r in paragraph.iter(W + "r") if any(t.text for t in r.iter(W + "t"))]
        return bool(runs) and all(self._font(r, style).get("b", "0") not in _OFF for r in runs)

    def _is_heading(self, paragraph: Element, style: Style, text: str) -> bool:
        """Whether a paragraph in plain bold is a heading: short, and neither a sentence nor a value."""
        short = len(text) <= _LONGEST and "\n" not in text
        return short and not _VALUE.search(text) and self._is_bold(paragraph, style)

    def _bold_is_rare(self) -> bool:
        body = next(iter(self.root), None)
        paragraphs = [] if body is None else body.findall(W + "p")
        filled = [p for p in paragraphs if next(p.iter(W + "t"), None) is not None]
        bold = sum(self._is_bold(p, self._style(p)) for p in filled)
        return bold < _BOLD * len(filled)

    def _table(self, element: Element) -> Iterator[Block]:
        """A table of one column or one row is only layout. A table in a cell follows the table."""
        rows: list[Row] = []
        above: dict[int, Row] = {}  # column -> the row in which its cell begins
        nested: list[tuple[str, list[Element]]] = []
        for row in _below(element, "tr"):
            if any(row.find(f"{W}trPr/{W}{state}") is not None for state in ("del", "hidden")):
                continue
            here, at = Row(len(rows) + 1, {}), 0
            for cell in _below(row, "tc"):
                tables: list[Element] = []
                text = "\n".join(block.text for block in self.blocks(cell, tables))
                span, merged = _spans(cell.find(W + "tcPr"))
                first = above.get(at, here) if merged and not text else here
                above[at] = first
                if first is here:
                    here.cells[at] = text
                if span > 1 or first is not here:
                    first.spans = [s for s in first.spans if s[0] != at] + [(at, at + span - 1, here.number)]
                if tables:
                    nested.append((here.text(), tables))
                at += span
            rows.append(here)
        if len(rows) < 2 or not any(map(max, (row.cells for row in rows if row.cells))):
            yield from (Block(text) for row in rows for text in row.cells.values() if text)
        else:
            yield from text_table(rows, self.warnings)
        for label, tables in nested:
            if len(rows) > 1:
                yield Block(label)
            for one in tables:
                yield from self._table(one)

    def _picture(self, reference: str) -> list[Block]:
        _, part = self.relations.get(reference, ("", ""))
        return self.pictures.blocks(self.package.read(part)) if part in self.package else []

    def _note_texts(self, kind: str) -> dict[str, str]:
        """Id -> text; a comment begins with its author."""
        if kind not in self.parts:
            return {}
        notes: dict[str, str] = {}
        for note in self.package.xml(self.parts[kind]):
            text = "\n".join(clean(self._text(p, Style())) for p in note.iter(W + "p"))
            if text.strip() and note.get(W + "type") is None:
                text = text.strip()
                if kind == "comments":
                    text = comment(note.get(W + "author", ""), text, sample=self.sample)
                notes[note.get(W + "id", "")] = text
        return notes

    def _styles(self) -> dict[str, Style]:
        """By style id, and "" for paragraphs that name none; a style inherits what it doesn't set from
        the one that it is based on."""
        if "styles" not in self.parts:
            return {}
        root = self.package.xml(self.parts["styles"])
        elements = {s.get(W + "styleId", ""): s for s in root.iter(W + "style")}
        base = _font(root.find(f"{W}docDefaults/{W}rPrDefault/{W}rPr"))

        styles: dict[str, Style] = {}

        def resolve(key: str, depth: int = 0) -> Style:
            style = elements.get(key)
            if style is None or depth > 20 or key in styles:
                return styles.get(key, Style())
            based = style.find(W + "basedOn") is not None
            above = resolve(_value(style, "basedOn"), depth + 1) if based else Style()
            name, properties = _value(style, "name"), style.find(W + "pPr")
            rank = _rank(properties)
            if match := _STYLE_NAME.match(name):
                rank = int(match[1])
            elif name.lower() in ("title", "标题", "標題"):
                rank = 1
            rank = above.rank if rank is None else rank
            font = above.font | _font(style.find(W + "rPr"))
            return styles.setdefault(key, Style(rank, _numbering(properties) or above.numbering, font))

        for key in elements:
            resolve(key)
        default = (
            key for key, style in elements.items()
            if style.get(W + "type") == "paragraph" and style.get(W + "default") in ("1", "true")
        )  # fmt: skip
        return styles | {"": Style(font=base | styles.get(next(default, ""), Style()).font)}


def _font(properties: Element | None) -> Font:
    font: Font = {}
    for child in properties if properties is not None else ():
        name = local(child)
        if name == "rFonts":
            font[name] = child.get(W + "ascii", "") or child.get(W + "hAnsi", "")
        elif name in _FONT:
            font[name] = child.get(W + "val", "1")
    return font


def _run_text(run: Element, font: str) -> str:
    parts: list[str] = []
    for element in walk(run, _NOT_TEXT):
        name = local(element)
        if name == "t":
            text = element.text or ""
            parts.append(_SYMBOLS.sub(lambda sign: symbol(font, ord(sign[0])), text))
        elif name == "sym":
            code = element.get(W + "char", "")
            parts.append(symbol(element.get(W + "font", ""), int(code, 16) if _HEX.fullmatch(code) else 0))
        elif name == "checkBox":
            state = {local(child): child.get(W + "val", "1") for child in element}
            parts.append("☐" if state.get("checked", state.get("default", "0")) in _OFF else "☑")
        elif name == "tab":
            parts.append("\t")
        elif name in ("br", "cr"):
            parts.append("\n")
        elif name == "noBreakHyphen":
            parts.append("-")
    return "".join(parts)


def _below(element: Element, name: str) -> Iterator[Element]:
    """The outermost elements called `name` below `element`."""
    return (part for part in walk(element, frozenset((name,))) if local(part) == name)


def _rank(properties: Element | None) -> int | None:
    """Word counts outline levels from 0; 9 means body text. None if no level is set."""
    if properties is None or properties.find(W + "outlineLvl") is None:
        return None
    value = _value(properties, "outlineLvl", "9")
    return int(value) + 1 if value.isdecimal() and int(value) < 9 else 0


def _numbering(properties: Element | None) -> tuple[str, int] | None:
    number = None if properties is None else properties.find(W + "numPr")
    if number is None or number.find(W + "numId") is None:
        return None
    return _value(number, "numId"), whole_number(_value(number, "ilvl"))


def _spans(properties: Element | None) -> tuple[int, bool]:
    """How many columns a cell takes, and whether it continues the cell above."""
    merge = None if properties is None else properties.find(W + "vMerge")
    merged = merge is not None and merge.get(W + "val", "continue") == "continue"
    return min(max(whole_number(_value(properties, "gridSpan")), 1), 100), merged
